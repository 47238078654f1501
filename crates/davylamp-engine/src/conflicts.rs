//! Foreign writes to routes whose weight was effective: put right with back-off, and a pause after five.

use davylamp_api::conditions::Reason;
use davylamp_api::status::StateName;

use crate::decision::Why;
use crate::explain;
use crate::pass::{Pass, carries, later};
use crate::steps::pause;

/// Foreign writes in one run that are put right without asking.
const CONFLICTS: i32 = 5;
/// For how long ours are put back, ms; then the back-off counts, should the other side win.
const ATTEMPT: i64 = 1_000;

/// Whether ours are written now: not in a pause for a conflict, and not while the back-off counts.
pub(crate) fn put_back(pass: &Pass<'_>) -> bool {
    if pass.state() == StateName::Paused && pass.reason() == Reason::RouteConflict {
        return false;
    }
    let Some((conflicts, next)) = pass.status.conflicts.as_ref().and_then(|c| Some((c, c.next?))) else {
        return true;
    };
    let began = later(next, -back_off(conflicts.count));
    pass.now < later(began, ATTEMPT)
}

/// Counts a foreign write; true when it was one too many, and the run pauses.
pub(crate) fn note(pass: &mut Pass<'_>) -> bool {
    if pass.state() == StateName::Paused && pass.reason() == Reason::RouteConflict {
        return false;
    }
    let Some(traffic) = &pass.status.traffic else { return false };
    let weight = traffic.desired;
    if traffic.effective != Some(weight) || traffic.restore {
        return false;
    }
    let foreign = traffic.originals.iter().any(|o| {
        let route = pass.observed.routes.get(&o.route);
        route.is_some_and(|r| r.found && r.unsupported.is_none() && !carries(r, weight))
    });
    let mut conflicts = pass.status.conflicts.clone().unwrap_or_default();
    if !foreign {
        if conflicts.next.take().is_some() {
            pass.status.conflicts = Some(conflicts);
        }
        return false;
    }
    if conflicts.next.is_none_or(|next| next <= pass.now) {
        conflicts.count = conflicts.count.max(0).saturating_add(1);
        conflicts.next = Some(later(pass.now, back_off(conflicts.count)));
    }
    let next = conflicts.next.unwrap_or(pass.now);
    pass.reached(next, Why::Conflict);
    let too_many = conflicts.count > CONFLICTS;
    pass.status.conflicts = Some(conflicts);
    let may_pause = matches!(
        pass.state(),
        StateName::Settling | StateName::Judging | StateName::Scaling | StateName::Holding
    );
    if too_many && may_pause {
        let message = explain::route_conflict(pass);
        pause(pass, Reason::RouteConflict, message);
    }
    too_many && may_pause
}

/// 2 s, 4 s, and so on up to 64 s.
fn back_off(count: i32) -> i64 {
    1_000 << count.clamp(0, 6)
}

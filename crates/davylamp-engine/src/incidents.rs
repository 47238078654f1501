//! What holds a run and is not the canary's doing, as far as one can see: an incident of its own baseline, or those of
//! several Rollouts at once; and the probe that finds a canary that breaks what both versions need.
//!
//! Invariant: a run that is held is not promoted, its weight never rises, and it goes on by itself, or pauses after an hour.

use davylamp_api::Instant;
use davylamp_api::conditions::Reason;
use davylamp_api::scalar::Percent;
use davylamp_api::status::{Held, StateName};

use crate::decision::Why;
use crate::explain;
use crate::fold::Fold;
use crate::pass::{Pass, later};
use crate::steps;

/// A run is held so long at most, ms.
const LONGEST: i64 = 3_600_000;
/// An incident that begins so soon after an increase of weight may be the canary's doing; a weight that was taken back for
/// that stays so for this long at least, ms.
const PROBE: i64 = 120_000;
/// Incidents of several Rollouts that are noticed within this are one, ms.
const TOGETHER: i64 = 120_000;

/// Why the run is held, or was and waits for somebody now.
pub(crate) fn is_reason(reason: Reason) -> bool {
    matches!(reason, Reason::Incident | Reason::SharedIncident | Reason::Interference)
}

/// Until when the incidents of several Rollouts, this one among them or not, hold all of them.
pub(crate) fn shared_until(pass: &Pass<'_>) -> Option<Instant> {
    let own = pass.fold.as_ref().and_then(Fold::incident).map(|incident| incident.noticed);
    let mut noticed: Vec<Instant> = pass.observed.incidents.values().copied().chain(own).collect();
    noticed.retain(|at| counts(pass, *at));
    noticed.sort_unstable();
    let together = noticed.windows(2).rev().find(|pair| later(pair[0], TOGETHER) >= pair[1])?;
    Some(later(together[1], TOGETHER)).filter(|until| *until > pass.now)
}

/// Nobody has promoted since it was noticed.
fn counts(pass: &Pass<'_>, noticed: Instant) -> bool {
    pass.status.incidents_after.is_none_or(|after| noticed > after)
}

/// What holds the run now.
fn holds(pass: &Pass<'_>) -> Option<Reason> {
    if pass.status.step.as_ref().is_some_and(|step| step.full) {
        return None;
    }
    let own = pass.fold.as_ref().and_then(Fold::incident).filter(|incident| incident.over.is_none());
    if own.is_some_and(|incident| counts(pass, incident.noticed)) {
        return Some(Reason::Incident);
    }
    shared_until(pass).map(|_| Reason::SharedIncident)
}

/// Holds a run that is about to go on.
pub(crate) fn hold(pass: &mut Pass<'_>, at: Instant) -> bool {
    let Some(reason) = holds(pass) else { return false };
    let state = pass.status.state.clone();
    let from = pass.state();
    let since = state.map_or(at, |state| state.since).as_millisecond();
    let judged =
        if from == StateName::Judging { at.as_millisecond().saturating_sub(since).max(0) } else { 0 };
    pass.at = at;
    let until = later(pass.now, LONGEST);
    pass.status.held = Some(Held { from, reason: pass.reason(), judged, until });
    let back = if reason == Reason::Incident { step_to_probe(pass) } else { None };
    if let Some((step, weight)) = back {
        step_back(pass, step, weight);
    } else {
        let message = explain::held(pass, reason);
        go(pass, reason, message);
    }
    true
}

fn go(pass: &mut Pass<'_>, reason: Reason, message: String) {
    let until = pass.status.held.as_ref().map_or(pass.now, |held| held.until);
    let left = until.as_millisecond().saturating_sub(pass.now.as_millisecond()).max(0);
    pass.status.capacity_low_since = None;
    pass.go(StateName::Holding, reason, Some(left), message);
}

/// The incident began right after the weight rose to that of a step: its index, and the weight before.
fn step_to_probe(pass: &Pass<'_>) -> Option<(i32, Percent)> {
    let began = pass.fold.as_ref()?.incident()?.since;
    let rose = pass.status.traffic.as_ref()?.effective_since?;
    if began < rose || began > later(rose, PROBE) {
        return None;
    }
    pass.step_of(pass.weight())
}

/// The weight before, to see whether that ends the incident; the second time, to stay there.
fn step_back(pass: &mut Pass<'_>, index: i32, before: Percent) {
    let weight = pass.weight();
    let again = pass.status.step.as_ref().is_some_and(|step| step.index == index && step.probed);
    let reason = if again { Reason::Interference } else { Reason::Incident };
    let message = explain::stepped_back(pass, before, again);
    go(pass, reason, message);
    if let Some(step) = &mut pass.status.step {
        // The next step had begun: this one is taken once more.
        step.approved |= step.index != index;
        (step.index, step.weight, step.probed) = (index, weight, true);
    }
    pass.set_weight(before);
}

/// The state of a run that is held.
pub(crate) fn holding(pass: &mut Pass<'_>) -> bool {
    while let Some(at) = pass.look() {
        if steps::regressed(pass, at) || steps::violated(pass, at) || goes_on(pass, at) {
            return true;
        }
    }
    if steps::capacity_low(pass) || goes_on(pass, pass.now) {
        return true;
    }
    let (weight, reason) = (pass.weight(), pass.reason());
    // Data of the weight that it went back to.
    if pass.fold.as_ref().is_some_and(|fold| !fold.is_open() && fold.in_incident())
        && steps::all_routes_carry(pass, weight).is_ok()
    {
        steps::effective(pass, weight);
        let settle = pass.settle();
        let message = format!("{weight} is effective; data of the next {} s is left out", settle / 1_000);
        pass.go(StateName::Settling, reason, Some(settle), message);
        return true;
    }
    if pass.past_deadline() {
        let message = explain::held_too_long(pass);
        steps::pause(pass, reason, message);
        return true;
    }
    if let Some(until) = shared_until(pass) {
        pass.reached(until, Why::Incident);
    }
    false
}

/// The settle time of a weight that it went back to is over.
pub(crate) fn settled(pass: &mut Pass<'_>) {
    let reason = pass.reason();
    if reason == Reason::Interference {
        let message = explain::interference(pass);
        steps::pause(pass, reason, message);
    } else {
        let message = format!("data counts from now on; held at {}", pass.weight());
        go(pass, reason, message);
    }
}

/// Goes on where the run was held, when nothing holds it any more.
pub(crate) fn goes_on(pass: &mut Pass<'_>, at: Instant) -> bool {
    if pass.reason() == Reason::Interference || holds(pass).is_some() || probing(pass) {
        return false;
    }
    let held = pass.status.held.take();
    pass.at = at;
    let over = explain::over(pass);
    let from = held.as_ref().map(|held| (held.from, held.reason));
    match from {
        _ if pass.weight() < pass.step_weight() => {
            steps::scale(pass, Reason::ScalingPods, &over);
        }
        Some((StateName::Promoting, reason)) if reason != Reason::LastStepPassed => {
            let deadline = pass.progress_deadline();
            pass.go(StateName::Promoting, reason, Some(deadline), over);
        }
        Some(_) | None => {
            steps::judge_from_now(pass, Reason::IncidentOver, &over);
            // `hold.max` stood still.
            let judged = held.map_or(0, |held| held.judged.max(0));
            if let Some(state) = &mut pass.status.state {
                state.since = later(at, judged.saturating_neg());
            }
        }
    }
    true
}

/// The weight went back, and has not been so for long enough.
fn probing(pass: &Pass<'_>) -> bool {
    let probed = pass.status.step.as_ref().is_some_and(|step| step.probed);
    let (Some(fold), Some(traffic)) = (&pass.fold, &pass.status.traffic) else { return false };
    let since = traffic.effective_since.map(|since| later(since, PROBE).as_millisecond());
    probed
        && pass.weight() < pass.step_weight()
        && fold.is_open()
        && since.is_some_and(|since| fold.folded_until() < since)
}

/// What was found in the fold stands in the status; others are told by it.
pub(crate) fn note(pass: &mut Pass<'_>) {
    if let Some(fold) = &pass.fold {
        pass.status.incident = fold.incident();
    }
    if !matches!(pass.state(), StateName::Holding | StateName::Settling | StateName::Paused) {
        pass.status.held = None;
    }
}

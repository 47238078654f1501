//! The state machine: which state decides, and what may end any of them. Each function makes at most one transition
//! and says whether it did.

use davylamp_api::conditions::Reason;
use davylamp_api::status::{Rejected, Stage, StateName};

use crate::pass::Pass;
use crate::{ending, explain, rest, steps};

/// One transition; false when none applies.
pub(crate) fn transition(pass: &mut Pass<'_>) -> bool {
    if pass.status.stable.is_none() {
        return rest::first_release(pass);
    }
    if interrupted(pass) {
        return true;
    }
    match pass.state() {
        StateName::Healthy | StateName::Degraded => rest::at_rest(pass),
        StateName::Scaling if !pass.proven() => rest::unproven(pass),
        StateName::Finalising => ending::finalising(pass),
        StateName::RollingBack => ending::rolling_back(pass),
        StateName::Unknown => false,
        // Written by hand, or by another version: there is nothing to release.
        _ if pass.status.canary.is_none() => rest::without_canary(pass),
        StateName::Preparing => steps::preparing(pass),
        StateName::Scaling => steps::scaling(pass),
        StateName::Shifting => steps::shifting(pass),
        StateName::Settling => steps::settling(pass),
        StateName::Judging => steps::judging(pass),
        StateName::Holding => steps::holding(pass),
        StateName::Paused => steps::paused(pass),
        StateName::Promoting => ending::promoting(pass),
    }
}

/// What may end any state but Finalising and `RollingBack`.
fn interrupted(pass: &mut Pass<'_>) -> bool {
    if pass.status.canary.is_none() || matches!(pass.state(), StateName::Finalising | StateName::RollingBack)
    {
        return false;
    }
    if pass.observed.meta.deleting {
        let message = "the Rollout is being deleted: all traffic goes back first".to_owned();
        roll_back(pass, Reason::Deleted, message);
        return true;
    }
    if let Some(program) = pass.wanted().filter(|p| p.hash != pass.canary_hash()) {
        let message = if program.hash == pass.stable_hash() {
            "the spec is back at the stable revision".to_owned()
        } else {
            format!("superseded by {}: all traffic goes back first", program.hash)
        };
        roll_back(pass, Reason::Superseded, message);
        return true;
    }
    // What a run promised is read in the pass after the one that began it.
    if pass.conduct.is_none() && !pass.moved && pass.state() != StateName::Unknown {
        let run = pass.status.run.clone().unwrap_or_default();
        let message =
            format!("RolloutRun {run} is gone, and with it what the run promised: all traffic goes back");
        roll_back(pass, Reason::RunLost, message);
        return true;
    }
    false
}

/// All traffic goes back. Nothing can forbid it.
pub(crate) fn roll_back(pass: &mut Pass<'_>, reason: Reason, message: String) {
    if matches!(
        reason,
        Reason::Regression
            | Reason::Expression
            | Reason::Abort
            | Reason::Inconclusive
            | Reason::NoData
            | Reason::PauseDeadline
    ) {
        reject(pass, reason);
    }
    let deadline = pass.progress_deadline();
    pass.status.capacity_low_since = None;
    pass.status.conflicts = None;
    pass.go(StateName::RollingBack, reason, Some(deadline), message);
    pass.go_stage(Stage::Weight);
}

/// The revision is remembered, and not tried again by itself.
pub(crate) fn reject(pass: &mut Pass<'_>, reason: Reason) {
    let (hash, run) = (pass.canary_hash(), pass.status.run.clone().unwrap_or_default());
    pass.status.rejected.retain(|r| r.hash != hash);
    pass.status.rejected.push(Rejected { hash, at: pass.at, reason, run });
    if pass.status.rejected.len() > 10 {
        pass.status.rejected.remove(0);
    }
}

/// Rolls back when the deadline of the state has passed.
pub(crate) fn deadline(pass: &mut Pass<'_>, reason: Reason) -> bool {
    if !pass.past_deadline() {
        return false;
    }
    let message = explain::deadline(pass, reason);
    roll_back(pass, reason, message);
    true
}

//! The end of a run: full weight and the point of no return, or all the way back; then the user's own weights.

use davylamp_api::Instant;
use davylamp_api::conditions::Reason;
use davylamp_api::scalar::Percent;
use davylamp_api::status::{OldPods, Stage, StateName, Verdict};

use crate::decision::Why;
use crate::explain;
use crate::observed::Role;
use crate::pass::{Pass, later};
use crate::states::{deadline, reject};
use crate::steps::{all_routes_carry, capacity_low, held_back, judged};

/// The previous version's pods stay at least this long after the last request, ms, beside their termination grace.
const OLD_PODS: i64 = 60_000;
/// Attempts that may miss a deadline before the revision is remembered as rejected.
const ATTEMPTS: i32 = 3;

pub(crate) fn promoting(pass: &mut Pass<'_>) -> bool {
    if judged(pass) || (pass.weight() < Percent::FULL && held_back(pass, pass.now)) || capacity_low(pass) {
        return true;
    }
    // Scaled to nothing: one pod shows that it runs at all.
    let (hash, size) = (pass.canary_hash(), pass.size().max(1));
    let ready = pass.available(&hash) >= size && pass.endpoints(Role::Canary, &hash) >= size;
    if pass.weight() < Percent::FULL && ready && !pass.past_deadline() {
        pass.set_weight(Percent::FULL);
    }
    if !ready {
        return deadline(pass, Reason::ProgressDeadline);
    }
    if all_routes_carry(pass, Percent::FULL).is_err() {
        return deadline(pass, Reason::TrafficDeadline);
    }
    let now = pass.now;
    let traffic = pass.traffic();
    traffic.effective = Some(Percent::FULL);
    traffic.effective_since = Some(now);
    let old = pass.stable_hash();
    if let Some(mut new) = pass.status.canary.take() {
        new.started_at = Some(now);
        let message = format!("revision {} carries all traffic: it becomes stable", new.revision);
        pass.status.stable = Some(new);
        pass.status.old = Some(OldPods { hash: old, until: None });
        let alert = pass.progress_deadline();
        pass.go(StateName::Finalising, Reason::Promoted, Some(alert), message);
        pass.go_stage(Stage::Settle);
        if let Some(analysis) = &mut pass.status.analysis {
            analysis.verdict = Verdict::Pass;
        }
    }
    true
}

fn stage_since(pass: &Pass<'_>) -> Instant {
    pass.status.state.as_ref().and_then(|s| s.stage_since).unwrap_or(pass.now)
}

/// The point of no return is behind: it alerts, and keeps trying.
pub(crate) fn finalising(pass: &mut Pass<'_>) -> bool {
    let (new, since, settle) = (pass.stable_hash(), stage_since(pass), pass.settle());
    match pass.stage() {
        Stage::Weight | Stage::Settle | Stage::Unknown => {
            if !pass.reached(later(since, settle), Why::Settle) || !pass.existing_carry(Percent::FULL) {
                return false;
            }
            pass.go_stage(Stage::Select);
        }
        Stage::Select => {
            if pass.endpoints(Role::Stable, &new) < pass.size().min(pass.available(&new).max(1)) {
                return false;
            }
            pass.go_stage(Stage::Endpoints);
        }
        Stage::Endpoints => {
            if !pass.reached(later(since, settle), Why::Settle) {
                return false;
            }
            pass.traffic().restore = true;
            pass.go_stage(Stage::Restore);
        }
        Stage::Restore => {
            if pass.routes_restored().is_err() {
                return false;
            }
            let grace = pass
                .status
                .old
                .as_ref()
                .and_then(|o| pass.observed.revisions.get(&o.hash))
                .map_or(30, |r| r.termination_grace);
            let until = later(pass.now, OLD_PODS + grace.clamp(0, 86_400) * 1_000);
            if let Some(old) = &mut pass.status.old {
                old.until = Some(until);
            }
            let number = pass.status.stable.as_ref().map_or(0, |s| s.revision);
            end(pass);
            pass.go(
                StateName::Healthy,
                Reason::Completed,
                None,
                format!("revision {number} is stable; the routes are yours again"),
            );
            pass.end_run("Promoted");
        }
    }
    true
}

/// What a run leaves behind in the status is only what was learned.
fn end(pass: &mut Pass<'_>) {
    pass.status.canary = None;
    pass.status.traffic = None;
    pass.status.step = None;
    pass.status.plan = None;
    pass.status.size_at_start = None;
    pass.status.services = None;
    pass.status.conflicts = None;
    pass.status.capacity_low_since = None;
    pass.status.incident = None;
    pass.status.held = None;
    pass.status.incidents_after = None;
    pass.fold = None;
    if let Some(analysis) = &mut pass.status.analysis {
        analysis.checkpoint = None;
        analysis.failing_since = None;
    }
}

pub(crate) fn rolling_back(pass: &mut Pass<'_>) -> bool {
    let driven = pass.status.traffic.as_ref().is_some_and(|t| !t.originals.is_empty());
    if !driven {
        finish_rollback(pass);
        return true;
    }
    let (since, settle, stable) = (stage_since(pass), pass.settle(), pass.stable_hash());
    // Where nobody takes the weight back in time, the canary's Service goes to the stable pods under it.
    let rescue = pass.past_deadline() && pass.available(&stable) > 0;
    match pass.stage() {
        Stage::Weight | Stage::Unknown | Stage::Endpoints => {
            let lower = rollback_weight(pass);
            if lower < pass.weight() {
                pass.set_weight(lower);
            }
            if pass.weight() > Percent::ZERO || !(pass.existing_carry(Percent::ZERO) || rescue) {
                return false;
            }
            let now = pass.now;
            let traffic = pass.traffic();
            traffic.effective = Some(Percent::ZERO);
            traffic.effective_since = Some(now);
            pass.go_stage(Stage::Settle);
        }
        Stage::Settle => {
            let carry = pass.existing_carry(Percent::ZERO) || rescue;
            if !pass.reached(later(since, settle), Why::Settle) || !carry {
                return false;
            }
            pass.go_stage(Stage::Select);
        }
        Stage::Select => {
            let (ready, late, canary) = (pass.available(&stable), pass.past_deadline(), pass.canary_hash());
            let moved = pass.observed.services.get(&Role::Canary).is_none_or(|s| {
                let has = |hash: &str| s.ready.get(hash).is_some_and(|n| *n > 0);
                let there = (has(&stable) || ready == 0) && !has(&canary);
                s.foreign || (s.selects.as_deref() == Some(&stable) && (there || late))
            });
            if !moved {
                return false;
            }
            pass.traffic().restore = true;
            pass.go_stage(Stage::Restore);
        }
        Stage::Restore => {
            if pass.routes_restored().is_err() {
                return false;
            }
            finish_rollback(pass);
        }
    }
    true
}

/// It only falls: to what the stable pods cannot carry, and to nothing when the deadline passes.
fn rollback_weight(pass: &Pass<'_>) -> Percent {
    let (ready, size) = (i64::from(pass.available(&pass.stable_hash())), i64::from(pass.size()));
    let canary = i64::from(pass.available(&pass.canary_hash()));
    if pass.past_deadline() || ready >= size || canary == 0 {
        return Percent::ZERO;
    }
    let left = 10_000 - 10_000 * ready.max(0) / size.max(1);
    Percent::from_basis_points(u16::try_from(left.clamp(0, 10_000)).unwrap_or(0)).min(pass.weight())
}

/// Causes that may clear by themselves.
pub(crate) fn tried_again(reason: Reason) -> bool {
    matches!(reason, Reason::ProgressDeadline | Reason::TrafficDeadline | Reason::Capacity | Reason::RunLost)
}

fn finish_rollback(pass: &mut Pass<'_>) {
    let reason = pass.reason();
    let hash = pass.canary_hash();
    let number = pass.status.stable.as_ref().map_or(0, |s| s.revision);
    let message = explain::rolled_back(pass, number);
    if tried_again(reason) {
        let now = pass.now;
        let missed = pass.status.latest.as_ref().and_then(|l| l.missed).unwrap_or(0).max(0).saturating_add(1);
        if missed >= ATTEMPTS {
            reject(pass, reason);
        }
        if let Some(latest) = pass.status.latest.as_mut().filter(|l| l.hash == hash) {
            latest.missed = Some(missed);
            latest.not_before = Some(later(now, 60_000 << missed.clamp(0, 6)));
        }
    }
    end(pass);
    let to = if reason == Reason::Superseded { StateName::Healthy } else { StateName::Degraded };
    pass.go(to, reason, None, message);
    pass.end_run(if reason == Reason::Superseded { "Superseded" } else { "RolledBack" });
}

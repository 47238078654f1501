//! The steps of a run: routes at 100/0, then pods, weight, data and verdict, one step after the other.

use davylamp_api::Instant;
use davylamp_api::conditions::Reason;
use davylamp_api::rollout::{OnInconclusive, OnNoData, OnNoTraffic, Then};
use davylamp_api::scalar::Percent;
use davylamp_api::status::{RouteOriginal, StateName, StepStatus};

use crate::background;
use crate::decide::pause_end;
use crate::decision::Why;
use crate::explain;
use crate::fold::{Fold, Missing};
use crate::incidents;
use crate::observed::Role;
use crate::pass::{Pass, ROUTER_DEADLINE, later};
use crate::states::{deadline, roll_back};

/// A source that fails, or that nobody can ask, pauses the step after this, ms.
const SOURCE_PATIENCE: i64 = 300_000;
/// Too few pods for so long is no flicker, ms.
const CAPACITY_PATIENCE: i64 = 30_000;

/// The numbers of each route are kept before the first edit.
fn keep_originals(pass: &mut Pass<'_>) {
    for target in pass.conduct.map(|c| c.routes.as_slice()).unwrap_or_default() {
        let Some(route) = pass.observed.routes.get(target).filter(|r| r.found && r.unsupported.is_none())
        else {
            continue;
        };
        let rules = route.rules.clone();
        if !pass.traffic().originals.iter().any(|o| o.route == *target) {
            pass.traffic().originals.push(RouteOriginal { route: target.clone(), rules });
            pass.weights_change();
        }
    }
}

/// Each route of the run was found, and carries the weight.
pub(crate) fn all_routes_carry(pass: &mut Pass<'_>, weight: Percent) -> Result<(), (Reason, String)> {
    for target in pass.conduct.map(|c| c.routes.as_slice()).unwrap_or_default() {
        let kept = pass.status.traffic.iter().flat_map(|t| &t.originals).any(|o| o.route == *target);
        if !kept {
            return Err(explain::route_missing(pass, target));
        }
    }
    pass.routes_carry(weight)
}

pub(crate) fn preparing(pass: &mut Pass<'_>) -> bool {
    if pass.conduct.is_none() {
        return false;
    }
    keep_originals(pass);
    if all_routes_carry(pass, Percent::ZERO).is_err() {
        return deadline(pass, Reason::TrafficDeadline);
    }
    pass.traffic().effective = Some(Percent::ZERO);
    let left = pass.fresh_baseline().and_then(|hash| pass.observed.revisions.get(&hash));
    if left.is_some_and(|pods| pods.desired > 0) {
        return deadline(pass, Reason::ProgressDeadline);
    }
    enter_step(pass, 1, Reason::ScalingPods, "routes are at 100/0");
    true
}

fn enter_step(pass: &mut Pass<'_>, index: i32, reason: Reason, why: &str) {
    let of = pass
        .status
        .plan
        .as_ref()
        .map_or_else(|| pass.conduct.map_or(0, |c| c.steps.len()), |p| p.steps.len());
    let full = pass.status.step.as_ref().is_some_and(|s| s.full);
    pass.status.step = Some(StepStatus {
        index,
        of: i32::try_from(of).unwrap_or(i32::MAX),
        weight: Percent::ZERO,
        approved: false,
        full,
        probed: false,
    });
    let weight = pass.step().map_or(Percent::ZERO, |s| s.weight);
    if let Some(step) = &mut pass.status.step {
        step.weight = weight;
    }
    scale(pass, reason, why);
}

/// The present step begins.
pub(crate) fn scale(pass: &mut Pass<'_>, reason: Reason, why: &str) {
    let (index, of) = pass.status.step.as_ref().map_or((0, 0), |s| (s.index, s.of));
    let (weight, pods) = (pass.step_weight(), explain::pods(pass.need()));
    let fresh = if pass.fresh_baseline().is_some() { ", and as many of the old version" } else { "" };
    let message = format!("{why}; step {index} of {of}, {weight}: {pods} started{fresh}");
    pass.go(StateName::Scaling, reason, Some(pass.progress_deadline()), message);
}

pub(crate) fn scaling(pass: &mut Pass<'_>) -> bool {
    if judged(pass) || held_back(pass, pass.now) || capacity_low(pass) {
        return true;
    }
    let need = pass.need();
    // The Service's selector moves after this: it must not carry anything then.
    let idle = pass.weight() > Percent::ZERO || all_routes_carry(pass, Percent::ZERO).is_ok();
    if pass.ready_to_compare() < need || !idle {
        if background::watched_since(pass).is_some() {
            scale(pass, Reason::ScalingPods, "pods are not ready any more");
            return true;
        }
        let reason = if idle { Reason::ProgressDeadline } else { Reason::TrafficDeadline };
        return deadline(pass, reason);
    }
    if pass.weight() == Percent::ZERO
        && let Some(moved) = background::measure(pass)
    {
        return moved;
    }
    let message = format!("{} ready: traffic moves to {}", explain::pods(need), pass.step_weight());
    pass.go(StateName::Shifting, Reason::ShiftingTraffic, Some(ROUTER_DEADLINE), message);
    true
}

pub(crate) fn shifting(pass: &mut Pass<'_>) -> bool {
    let target = pass.step_weight();
    if pass.weight() != target {
        if judged(pass) || held_back(pass, pass.now) {
            return true;
        }
        let (hash, need) = (pass.canary_hash(), pass.need());
        let covered = pass.available(&hash) >= need && pass.endpoints(Role::Canary, &hash) >= need;
        if target > pass.weight() && (!covered || pass.past_deadline()) {
            return capacity_low(pass) || deadline(pass, Reason::ProgressDeadline);
        }
        pass.set_weight(target);
    }
    if capacity_low(pass) {
        return true;
    }
    if all_routes_carry(pass, target).is_err() {
        return deadline(pass, Reason::TrafficDeadline);
    }
    effective(pass, target);
    let settle = pass.settle();
    let message = format!("{target} is effective; data of the next {} s is left out", settle / 1_000);
    pass.go(StateName::Settling, Reason::SettleTime, Some(settle), message);
    true
}

pub(crate) fn effective(pass: &mut Pass<'_>, weight: Percent) {
    let now = pass.now;
    let traffic = pass.traffic();
    traffic.effective = Some(weight);
    traffic.effective_since = Some(now);
    let next = pass.next_weight();
    let hold_min = pass.step().map_or(0, |step| step.hold_min);
    if let Some(fold) = &mut pass.fold {
        fold.begin_step(weight, next, hold_min);
        fold.open(now, pass.observed);
    }
}

pub(crate) fn settling(pass: &mut Pass<'_>) -> bool {
    if capacity_low(pass) {
        return true;
    }
    let since = pass.status.traffic.as_ref().and_then(|t| t.effective_since).unwrap_or(pass.now);
    let settled = later(since, pass.settle());
    if !pass.reached(settled, Why::Settle) {
        return false;
    }
    // Looks that were missed meanwhile belong to Judging, which began when the settle time was over.
    pass.at = settled;
    if incidents::is_reason(pass.reason()) {
        incidents::settled(pass);
    } else if pass.fold.is_some() {
        judge_from_now(pass, Reason::Collecting, "data counts from now on");
    } else {
        let hold = pass.step().map_or(0, |s| s.hold_max);
        let message = "no metrics: the step advances on pod health alone".to_owned();
        pass.go(StateName::Judging, Reason::NotAnalysed, Some(hold), message);
    }
    true
}

/// Enters Judging at `pass.at`; `hold.min` and `hold.max` begin. The deadline is for a source that says nothing, not
/// even that it fails: data time stands still then.
pub(crate) fn judge_from_now(pass: &mut Pass<'_>, reason: Reason, message: &str) {
    let hold = pass.step().map_or(0, |s| s.hold_max);
    let sampling = pass.conduct.and_then(|c| c.analysis.sampling).unwrap_or_default();
    let behind = sampling.delay.millis() + 2 * sampling.scrape_interval.millis();
    let deadline = hold + behind + SOURCE_PATIENCE;
    pass.go(StateName::Judging, reason, Some(deadline), message.to_owned());
}

/// Rule 1, in every state in which the canary carries weight: folds what there is and rolls back on evidence. And what
/// keeps a weight from rising.
pub(crate) fn judged(pass: &mut Pass<'_>) -> bool {
    while let Some(at) = pass.look() {
        let rises = matches!(pass.state(), StateName::Scaling | StateName::Shifting | StateName::Promoting);
        if regressed(pass, at) || violated(pass, at) || (rises && held_back(pass, at)) {
            return true;
        }
    }
    false
}

/// What bars the way to the next weight, in the order of the rules.
pub(crate) fn held_back(pass: &mut Pass<'_>, at: Instant) -> bool {
    incidents::hold(pass, at) || misrouted(pass, at)
}

/// The split is not what was asked for: the step does not show what it seems to. Without a weight it could not be seen to be right
/// again.
fn misrouted(pass: &mut Pass<'_>, at: Instant) -> bool {
    let full = pass.status.step.as_ref().is_some_and(|step| step.full);
    if full || pass.weight() == Percent::ZERO || !pass.fold.as_ref().is_some_and(Fold::is_misrouted) {
        return false;
    }
    pass.at = at;
    let message = explain::misrouted(pass);
    pause(pass, Reason::TrafficSplit, message);
    true
}

/// A canary that violates an objective waits for somebody: who says that it is the cause?
pub(crate) fn violated(pass: &mut Pass<'_>, at: Instant) -> bool {
    let known = pass.state() == StateName::Paused && pass.reason() == Reason::SloViolated;
    let metrics = pass.fold.as_ref().map(Fold::violated).unwrap_or_default();
    if known || metrics.is_empty() {
        return false;
    }
    pass.at = at;
    let message = explain::violated(pass, &metrics);
    pause(pass, Reason::SloViolated, message);
    true
}

pub(crate) fn regressed(pass: &mut Pass<'_>, at: Instant) -> bool {
    if !pass.fold.as_ref().is_some_and(Fold::regressed) {
        return exceeded(pass, at);
    }
    pass.at = at;
    let message = explain::regression(pass);
    roll_back(pass, Reason::Regression, message);
    true
}

/// Rule 1 of what has fixed limits.
fn exceeded(pass: &mut Pass<'_>, at: Instant) -> bool {
    let which = pass.fold.as_ref().map(Fold::exceeded).unwrap_or_default();
    if which.is_empty() {
        return false;
    }
    pass.at = at;
    let message = explain::exceeded(pass, &which);
    roll_back(pass, Reason::Expression, message);
    true
}

pub(crate) fn judging(pass: &mut Pass<'_>) -> bool {
    if pass.status.step.as_ref().is_some_and(|s| s.full) {
        promote_all(pass, "promoted in full".to_owned());
        return true;
    }
    if held_back(pass, pass.now) {
        return true;
    }
    while let Some(at) = pass.look() {
        if regressed(pass, at) || violated(pass, at) || judge(pass, at) {
            return true;
        }
    }
    if capacity_low(pass) {
        return true;
    }
    if pass.conduct.is_some_and(|c| c.analysis.is_empty()) {
        return without_metrics(pass);
    }
    let failing = pass.status.analysis.as_ref().and_then(|a| a.failing_since);
    let lost = failing.is_some_and(|since| pass.reached(later(since, SOURCE_PATIENCE), Why::NoData));
    if lost || pass.past_deadline() {
        let message = explain::source_failing(pass);
        pause(pass, Reason::SourceUnavailable, message);
        return true;
    }
    false
}

/// The rules below the first, at one look.
fn judge(pass: &mut Pass<'_>, at: Instant) -> bool {
    let (Some(step), Some(conduct), Some(fold)) = (pass.step(), pass.conduct, &pass.fold) else {
        return false;
    };
    // In data time, the settle time included; a pause without data does not count.
    let since = pass.status.state.as_ref().map_or(at, |s| s.since);
    let held = at.as_millisecond() - since.as_millisecond() + pass.settle();
    // What looks like the beginning of an incident is waited for, block by block.
    let (safe, missing) = (fold.safe() && !fold.is_suspicious(), fold.missing());
    pass.at = at;
    match missing {
        Some(Missing::Canary) => {
            let message =
                "the canary is silent, the baseline is not: check that its pods are scraped and get requests"
                    .to_owned();
            match conduct.analysis.on_no_data {
                OnNoData::Pause => pause(pass, Reason::NoData, message),
                OnNoData::Rollback => roll_back(pass, Reason::NoData, message),
            }
            return true;
        }
        Some(Missing::Everything) => {
            let message = explain::nothing_scraped(&conduct.analysis);
            pause(pass, Reason::NoData, message);
            return true;
        }
        Some(Missing::Requests) => match conduct.analysis.on_no_traffic {
            OnNoTraffic::Pause => {
                pause(
                    pass,
                    Reason::NoTraffic,
                    "no requests to either cohort: nothing can be compared".to_owned(),
                );
                return true;
            }
            OnNoTraffic::Promote if held >= step.hold_min => {
                let message =
                    "no requests to either cohort, and onNoTraffic is promote: taken as passed, unjudged";
                passed(pass, Reason::NoTraffic, message);
                return true;
            }
            OnNoTraffic::Promote => {}
        },
        None => {}
    }
    if held_back(pass, at) {
        return true;
    }
    if safe && held >= step.hold_min {
        let message = explain::passed(pass);
        passed(pass, Reason::StepPassed, &message);
        return true;
    }
    if held >= step.hold_max {
        let message = explain::inconclusive(pass);
        match conduct.analysis.on_inconclusive {
            OnInconclusive::Pause => pause(pass, Reason::Inconclusive, message),
            OnInconclusive::Promote => passed(pass, Reason::Inconclusive, &message),
            OnInconclusive::Rollback => roll_back(pass, Reason::Inconclusive, message),
        }
        return true;
    }
    pass.at = pass.now;
    false
}

fn without_metrics(pass: &mut Pass<'_>) -> bool {
    let Some(step) = pass.step() else { return false };
    let since = pass.status.traffic.as_ref().and_then(|t| t.effective_since).unwrap_or(pass.now);
    if !pass.reached(later(since, step.hold_min), Why::HoldMin) {
        return false;
    }
    let message = format!("not analysed: no metrics; the pods were healthy for {} s", step.hold_min / 1_000);
    passed(pass, Reason::NotAnalysed, &message);
    true
}

/// All but an approval is there.
fn passed(pass: &mut Pass<'_>, reason: Reason, message: &str) {
    let approved = pass.status.step.as_ref().is_some_and(|s| s.approved);
    match pass.step().and_then(|s| s.approval) {
        Some((timeout, _)) if !approved => {
            let step = pass.status.step.as_ref().map_or(0, |s| s.index);
            let run = pass.status.run.clone().unwrap_or_default();
            pass.go(
                StateName::Paused,
                Reason::Approval,
                Some(timeout),
                format!("{message}; waits for approval: create a RolloutAction with verb promote, run {run}, step {step}"),
            );
        }
        Some(_) | None => next_step(pass, reason, message),
    }
}

pub(crate) fn pause(pass: &mut Pass<'_>, reason: Reason, message: String) {
    let deadline = pass.conduct.map_or(86_400_000, |c| c.analysis.pause_deadline);
    pass.go(StateName::Paused, reason, Some(deadline), message);
}

pub(crate) fn next_step(pass: &mut Pass<'_>, reason: Reason, message: &str) {
    pass.status.capacity_low_since = None;
    if pass.is_last_step() {
        pass.go(
            StateName::Promoting,
            if reason == Reason::StepPassed { Reason::LastStepPassed } else { reason },
            Some(pass.progress_deadline()),
            format!("{message}; last step: {} started for all traffic", explain::pods(pass.size())),
        );
    } else {
        let index = pass.status.step.as_ref().map_or(0, |s| s.index).saturating_add(1);
        enter_step(pass, index, reason, message);
    }
}

/// All steps are taken as passed; the pods come first.
pub(crate) fn promote_all(pass: &mut Pass<'_>, message: String) {
    pass.status.capacity_low_since = None;
    pass.go(StateName::Promoting, Reason::Promote, Some(pass.progress_deadline()), message);
}

/// Pods of a canary that carries weight are missing for a while: less weight, until they are back.
pub(crate) fn capacity_low(pass: &mut Pass<'_>) -> bool {
    if pass.weight() == Percent::ZERO {
        return false;
    }
    let before_its_weight = matches!(pass.state(), StateName::Scaling | StateName::Promoting)
        || pass.weight() < pass.step_weight();
    let need = if before_its_weight { pass.need_now() } else { pass.need() };
    let available = pass.available(&pass.canary_hash());
    if i64::from(available) * 10 >= i64::from(need) * 8 {
        pass.status.capacity_low_since = None;
        return false;
    }
    let now = pass.now;
    let since = *pass.status.capacity_low_since.get_or_insert(now);
    if !pass.reached(later(since, CAPACITY_PATIENCE), Why::Capacity) {
        return false;
    }
    let hash = pass.canary_hash();
    let trouble = explain::trouble(pass, &hash);
    if pass.weight() == Percent::FULL {
        let message = format!("{available} of {need} pods that carry all traffic are ready{trouble}");
        roll_back(pass, Reason::Capacity, message);
        return true;
    }
    let message = format!(
        "{available} of {need} pods of the canary are ready{trouble}: its weight is lowered to what they cover"
    );
    let covered = covered_weight(pass.weight(), available, need);
    pass.go(StateName::Holding, Reason::Capacity, Some(pass.progress_deadline()), message);
    if covered < pass.weight() {
        pass.set_weight(covered);
    }
    true
}

/// What is left of a weight when only so many of the pods for it are there.
fn covered_weight(weight: Percent, available: i32, need: i32) -> Percent {
    let bp = i64::from(weight.basis_points()) * i64::from(available.max(0)) / i64::from(need.max(1));
    Percent::from_basis_points(u16::try_from(bp).unwrap_or(u16::MAX)).min(weight)
}

pub(crate) fn holding(pass: &mut Pass<'_>) -> bool {
    if incidents::is_reason(pass.reason()) {
        return incidents::holding(pass);
    }
    if judged(pass) {
        return true;
    }
    let (available, need) = (pass.available(&pass.canary_hash()), pass.need());
    if available >= need {
        pass.status.capacity_low_since = None;
        let message = format!("{} ready again", explain::pods(need));
        pass.go(StateName::Shifting, Reason::ShiftingTraffic, Some(ROUTER_DEADLINE), message);
        return true;
    }
    let covered = covered_weight(pass.step_weight(), available, need);
    if covered < pass.weight() {
        pass.set_weight(covered);
    }
    deadline(pass, Reason::ProgressDeadline)
}

pub(crate) fn paused(pass: &mut Pass<'_>) -> bool {
    let reason = pass.reason();
    while let Some(at) = pass.look() {
        if regressed(pass, at) || violated(pass, at) {
            return true;
        }
        if matches!(reason, Reason::Incident | Reason::SharedIncident) && incidents::goes_on(pass, at) {
            return true;
        }
        let flowing = pass.fold.as_ref().is_some_and(Fold::flowing);
        let failing = pass.status.analysis.as_ref().is_some_and(|a| a.failing_since.is_some());
        let again = (matches!(reason, Reason::NoData | Reason::NoTraffic) && flowing)
            || (reason == Reason::SourceUnavailable && !failing);
        if again {
            pass.at = at;
            judge_from_now(pass, Reason::Collecting, "there is data again");
            return true;
        }
        if reason == Reason::TrafficSplit && !pass.fold.as_ref().is_some_and(Fold::is_misrouted) {
            pass.at = at;
            let message = "the canary gets the share of the requests that was asked for again";
            if pass.weight() < pass.step_weight() {
                scale(pass, Reason::ScalingPods, message);
            } else {
                judge_from_now(pass, Reason::Collecting, message);
            }
            return true;
        }
    }
    if capacity_low(pass) {
        return true;
    }
    if matches!(reason, Reason::Incident | Reason::SharedIncident) && incidents::goes_on(pass, pass.now) {
        return true;
    }
    if !pass.past_deadline() {
        return false;
    }
    match pause_end(pass.conduct, reason, pass.step().and_then(|s| s.approval)) {
        Then::Keep => false,
        Then::Rollback => {
            let message = format!("nobody ended the pause ({reason}) in time");
            roll_back(pass, Reason::PauseDeadline, message);
            true
        }
    }
}

//! The transitions of a canary, state by state. Each function makes at most one and says whether it did.

use davylamp_api::conditions::Reason;
use davylamp_api::rollout::{OnInconclusive, OnNoData, OnNoTraffic, Then};
use davylamp_api::scalar::Percent;
use davylamp_api::status::{
    Attempt, Checkpoint, Conflicts, OldPods, Rejected, Revision, RouteOriginal, ServiceNames, Stage,
    StateName, StepStatus, TrafficStatus, Verdict,
};
use davylamp_api::{Instant, revision};

use crate::decide::pause_end;
use crate::decision::Why;
use crate::explain;
use crate::fold::{Fold, Missing};
use crate::observed::{Entrance, Role};
use crate::pass::{Pass, ROUTER_DEADLINE, carries, later, run_name};
use crate::program::Program;

/// A source that fails, or that nobody can ask, pauses the step after this, ms.
const SOURCE_PATIENCE: i64 = 300_000;
/// Too few pods for so long is no flicker, ms.
const CAPACITY_PATIENCE: i64 = 30_000;
/// Foreign writes in one run that are put right without asking.
const CONFLICTS: i32 = 5;
/// The previous version's pods stay at least this long after the last request, ms, beside their termination grace.
const OLD_PODS: i64 = 60_000;
/// Attempts that may miss a deadline before the revision is remembered as rejected.
const ATTEMPTS: i32 = 3;

/// One transition; false when none applies.
pub(crate) fn transition(pass: &mut Pass<'_>) -> bool {
    if pass.status.stable.is_none() {
        return first_release(pass);
    }
    if interrupted(pass) {
        return true;
    }
    match pass.state() {
        StateName::Healthy | StateName::Degraded => at_rest(pass),
        StateName::Preparing => preparing(pass),
        StateName::Scaling => scaling(pass),
        StateName::Shifting => shifting(pass),
        StateName::Settling => settling(pass),
        StateName::Judging => judging(pass),
        StateName::Holding => holding(pass),
        StateName::Paused => paused(pass),
        StateName::Promoting => promoting(pass),
        StateName::Finalising => finalising(pass),
        StateName::RollingBack => rolling_back(pass),
        StateName::Unknown => false,
    }
}

// The first release: nothing to compare with; health only.

fn first_release(pass: &mut Pass<'_>) -> bool {
    let Some(program) = pass.wanted().filter(|_| !pass.observed.meta.deleting) else { return false };
    take_as_stable(pass, program, 1);
    true
}

fn take_as_stable(pass: &mut Pass<'_>, program: &Program, number: i64) {
    pass.status.stable = Some(revision_of(program, number, 0, None));
    pass.status.latest = Some(Attempt { revision: number, hash: program.hash.clone(), ..Attempt::default() });
    let message = format!("first release: revision {number} is started; there is nothing to compare it with");
    pass.go(StateName::Scaling, Reason::FirstRelease, Some(program.progress_deadline), message);
}

fn revision_of(program: &Program, number: i64, attempt: i32, started_at: Option<Instant>) -> Revision {
    Revision {
        revision: number,
        hash: program.hash.clone(),
        hash_version: revision::HASH_VERSION,
        attempt,
        images: program.images.clone(),
        started_at,
        ..Revision::default()
    }
}

/// The stable revision has once been available: it can be gone back to.
fn proven(pass: &Pass<'_>) -> bool {
    pass.status.stable.as_ref().is_some_and(|s| s.started_at.is_some())
}

fn unproven(pass: &mut Pass<'_>) -> bool {
    if let Some(program) = pass.wanted().filter(|p| p.hash != pass.stable_hash()) {
        let number = pass.status.latest.as_ref().map_or(1, |l| l.revision) + 1;
        take_as_stable(pass, program, number);
        return true;
    }
    let (hash, size) = (pass.stable_hash(), pass.size());
    if pass.available(&hash) >= size {
        let now = pass.now;
        if let Some(stable) = &mut pass.status.stable {
            stable.started_at = Some(now);
        }
        pass.go(
            StateName::Healthy,
            Reason::Completed,
            None,
            format!("the first release is ready: {size} of {size} pods"),
        );
        return true;
    }
    if pass.state() == StateName::Scaling && pass.past_deadline() {
        let message = format!(
            "the first release is not ready: {} of {size} pods{}; it turns Healthy by itself when they are",
            pass.available(&hash),
            explain::trouble(pass, &hash)
        );
        pass.go(StateName::Degraded, Reason::ProgressDeadline, None, message);
        return true;
    }
    false
}

// What may end any state but Finalising and RollingBack.

fn interrupted(pass: &mut Pass<'_>) -> bool {
    if pass.status.canary.is_none() || matches!(pass.state(), StateName::Finalising | StateName::RollingBack)
    {
        return false;
    }
    if pass.observed.meta.deleting {
        roll_back(
            pass,
            Reason::Deleted,
            "the Rollout is being deleted: all traffic goes back first".to_owned(),
        );
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
    // A run that was named in an earlier pass, and is gone: its promises cannot be kept any more.
    let named = pass.status.run.as_ref().is_some_and(|run| !pass.observed.runs.contains_key(run));
    if pass.conduct.is_none() && named && !pass.moved {
        let run = pass.status.run.clone().unwrap_or_default();
        roll_back(
            pass,
            Reason::RunLost,
            format!("RolloutRun {run} is gone, and with it what the run promised: all traffic goes back"),
        );
        return true;
    }
    false
}

/// All traffic goes back. Nothing can forbid it.
pub(crate) fn roll_back(pass: &mut Pass<'_>, reason: Reason, message: String) {
    if matches!(
        reason,
        Reason::Regression | Reason::Abort | Reason::Inconclusive | Reason::NoData | Reason::PauseDeadline
    ) {
        reject(pass, reason);
    }
    let deadline = pass.input.program.as_ref().map_or(600_000, |p| p.progress_deadline);
    pass.status.capacity_low_since = None;
    pass.status.conflicts = None;
    pass.go(StateName::RollingBack, reason, Some(deadline), message);
    pass.go_stage(Stage::Weight);
}

fn reject(pass: &mut Pass<'_>, reason: Reason) {
    let (hash, run) = (pass.canary_hash(), pass.status.run.clone().unwrap_or_default());
    pass.status.rejected.retain(|r| r.hash != hash);
    pass.status.rejected.push(Rejected { hash, at: pass.at, reason, run });
    if pass.status.rejected.len() > 10 {
        pass.status.rejected.remove(0);
    }
}

// At rest.

fn at_rest(pass: &mut Pass<'_>) -> bool {
    if !proven(pass) {
        return unproven(pass);
    }
    retire_old(pass);
    if pass.observed.meta.deleting {
        return false;
    }
    let Some(program) = pass.wanted() else { return false };
    if program.hash == pass.stable_hash() {
        if pass.state() == StateName::Degraded {
            pass.go(
                StateName::Healthy,
                Reason::AsExpected,
                None,
                "the spec is the stable revision".to_owned(),
            );
            return true;
        }
        return false;
    }
    if let Some(rejected) = pass.status.rejected.iter().find(|r| r.hash == program.hash) {
        let message = format!(
            "revision {} was rejected in run {} ({}): apply another template, or create a RolloutAction with the verb retry",
            program.hash, rejected.run, rejected.reason
        );
        if pass.state() == StateName::Healthy {
            pass.go(StateName::Degraded, Reason::Rejected, None, message);
            return true;
        }
        return false;
    }
    let latest = pass.status.latest.clone().unwrap_or_default();
    if let Some(at) = latest.not_before.filter(|_| latest.hash == program.hash)
        && !pass.reached(at, Why::Retry)
    {
        return false;
    }
    if ready_to_start(pass, program).is_err() {
        return false;
    }
    let (number, attempt) = next_attempt(pass, program);
    let name = run_name(&pass.observed.meta.name, number, attempt);
    if pass.observed.runs.get(&name) != Some(&program.hash) {
        return false;
    }
    start(pass, program, name, number, attempt);
    true
}

/// The number and the attempt of the next run; names that others took are passed over.
pub(crate) fn next_attempt(pass: &Pass<'_>, program: &Program) -> (i64, i32) {
    let latest = pass.status.latest.clone().unwrap_or_default();
    let (number, mut attempt) = if latest.hash == program.hash {
        (latest.revision, latest.attempt + 1)
    } else {
        (latest.revision + 1, 1)
    };
    while pass.observed.taken_runs.contains(&run_name(&pass.observed.meta.name, number, attempt)) {
        attempt += 1;
    }
    (number, attempt)
}

/// A run needs both Services, and a source that it may ask.
pub(crate) fn ready_to_start(pass: &Pass<'_>, program: &Program) -> Result<(), (Reason, String)> {
    services_ready(pass, program)?;
    explain::source_usable(pass, &program.conduct)
}

pub(crate) fn services_ready(pass: &Pass<'_>, program: &Program) -> Result<(), (Reason, String)> {
    let user = &program.service;
    match pass.observed.entrance {
        Entrance::Missing => {
            return Err((
                Reason::ServiceNotFound,
                format!("Service {user} does not exist: create it; its ports are copied to ours"),
            ));
        }
        Entrance::WithoutPorts => {
            return Err((
                Reason::ServiceWithoutPorts,
                format!("Service {user} has no ports: add the ports of the pods"),
            ));
        }
        Entrance::Found => {}
    }
    for (role, name) in [(Role::Stable, &program.services.stable), (Role::Canary, &program.services.canary)] {
        match pass.observed.services.get(&role) {
            Some(service) if service.foreign => {
                return Err((
                    Reason::ServiceTaken,
                    format!(
                        "Service {name} exists and is not ours: delete it, or set spec.services.{} to another name",
                        role.as_str()
                    ),
                ));
            }
            Some(service) if service.selects.is_some() => {}
            Some(_) | None => return Err((Reason::NoEndpoints, format!("Service {name} is being created"))),
        }
    }
    Ok(())
}

fn start(pass: &mut Pass<'_>, program: &Program, name: String, number: i64, attempt: i32) {
    let missed = pass.status.latest.as_ref().filter(|l| l.hash == program.hash).and_then(|l| l.missed);
    pass.status.size_at_start = Some(pass.size());
    pass.status.canary = Some(revision_of(program, number, attempt, Some(pass.now)));
    pass.status.latest =
        Some(Attempt { revision: number, hash: program.hash.clone(), attempt, missed, not_before: None });
    pass.status.services = Some(ServiceNames::clone(&program.services));
    pass.status.run = Some(name);
    pass.status.step = None;
    pass.status.plan = None;
    pass.status.analysis = None;
    pass.status.conflicts = None;
    pass.status.traffic = Some(TrafficStatus::default());
    let (old, new) = (pass.status.stable.as_ref().map_or(0, |s| s.revision), number);
    let message =
        format!("revision {new} is released beside {old}, attempt {attempt}: routes go to 100/0 first");
    pass.go(
        StateName::Preparing,
        Reason::NewRevision,
        Some(ROUTER_DEADLINE.max(program.progress_deadline)),
        message,
    );
}

/// The previous version's pods go when their time has come.
fn retire_old(pass: &mut Pass<'_>) {
    if let Some(until) = pass.status.old.as_ref().and_then(|o| o.until)
        && pass.reached(until, Why::OldPods)
    {
        pass.status.old = None;
    }
}

// A run.

/// The numbers of each route are kept before the first edit.
fn keep_originals(pass: &mut Pass<'_>) {
    for target in pass.conduct.map(|c| c.routes.as_slice()).unwrap_or_default() {
        let Some(route) = pass.observed.routes.get(target).filter(|r| r.found && r.unsupported.is_none())
        else {
            continue;
        };
        let traffic = pass.traffic();
        if !traffic.originals.iter().any(|o| o.route == *target) {
            traffic.originals.push(RouteOriginal { route: target.clone(), rules: route.rules.clone() });
        }
    }
}

/// Each route of the run was found, and carries the weight.
fn all_routes_carry(pass: &mut Pass<'_>, weight: Percent) -> Result<(), (Reason, String)> {
    for target in pass.conduct.map(|c| c.routes.as_slice()).unwrap_or_default() {
        let kept = pass.status.traffic.iter().flat_map(|t| &t.originals).any(|o| o.route == *target);
        if !kept {
            return Err(explain::route_missing(pass, target));
        }
    }
    pass.routes_carry(weight)
}

fn preparing(pass: &mut Pass<'_>) -> bool {
    if pass.conduct.is_none() {
        return deadline(pass, Reason::RunLost);
    }
    keep_originals(pass);
    if all_routes_carry(pass, Percent::ZERO).is_err() {
        return deadline(pass, Reason::TrafficDeadline);
    }
    pass.traffic().effective = Some(Percent::ZERO);
    enter_step(pass, 1, Reason::ScalingPods, "routes are at 100/0".to_owned());
    true
}

fn deadline(pass: &mut Pass<'_>, reason: Reason) -> bool {
    if !pass.past_deadline() {
        return false;
    }
    let message = explain::deadline(pass, reason);
    roll_back(pass, reason, message);
    true
}

fn progress_deadline(pass: &Pass<'_>) -> i64 {
    pass.input.program.as_ref().map_or(600_000, |p| p.progress_deadline)
}

fn enter_step(pass: &mut Pass<'_>, index: i32, reason: Reason, why: String) {
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
    });
    let weight = pass.step().map_or(Percent::ZERO, |s| s.weight);
    if let Some(step) = &mut pass.status.step {
        step.weight = weight;
    }
    let message = format!("{why}; step {index} of {of}, {weight}: {} pods are started", pass.need());
    pass.go(StateName::Scaling, reason, Some(progress_deadline(pass)), message);
}

fn scaling(pass: &mut Pass<'_>) -> bool {
    if !proven(pass) {
        return unproven(pass);
    }
    if judged(pass) {
        return true;
    }
    if pass.status.state.as_ref().is_some_and(|s| s.deadline.is_none()) {
        // Steps were edited: the deadline begins here.
        let deadline = later(pass.now, progress_deadline(pass));
        if let Some(state) = &mut pass.status.state {
            state.deadline = Some(deadline);
        }
        pass.moved = true;
    }
    let (hash, need) = (pass.canary_hash(), pass.need());
    if pass.available(&hash) < need {
        return deadline(pass, Reason::ProgressDeadline);
    }
    let message = format!("{need} pods are ready: traffic moves to {}", pass.step_weight());
    pass.go(StateName::Shifting, Reason::ShiftingTraffic, Some(ROUTER_DEADLINE), message);
    true
}

fn shifting(pass: &mut Pass<'_>) -> bool {
    let target = pass.step_weight();
    if pass.weight() != target {
        if judged(pass) {
            return true;
        }
        let (hash, need) = (pass.canary_hash(), pass.need());
        let covered = pass.available(&hash) >= need && pass.endpoints(Role::Canary, &hash) >= need;
        if target > pass.weight() && !covered {
            return deadline(pass, Reason::ProgressDeadline);
        }
        pass.set_weight(target);
    }
    if all_routes_carry(pass, target).is_err() {
        return deadline(pass, Reason::TrafficDeadline);
    }
    effective(pass, target);
    let settle = pass.settle();
    pass.go(
        StateName::Settling,
        Reason::SettleTime,
        Some(settle),
        format!("{target} is effective; data of the next {} s is left out", settle / 1_000),
    );
    true
}

fn effective(pass: &mut Pass<'_>, weight: Percent) {
    let now = pass.now;
    let traffic = pass.traffic();
    traffic.effective = Some(weight);
    traffic.effective_since = Some(now);
    let next = pass.next_weight();
    if let Some(fold) = &mut pass.fold {
        fold.begin_step(weight, next);
        fold.open(now);
    }
}

fn settling(pass: &mut Pass<'_>) -> bool {
    if judged(pass) || capacity_low(pass) {
        return true;
    }
    let since = pass.status.traffic.as_ref().and_then(|t| t.effective_since).unwrap_or(pass.now);
    let settle = pass.settle();
    if !pass.reached(later(since, settle), Why::Settle) {
        return false;
    }
    let message = match &pass.fold {
        Some(_) => "data counts from now on".to_owned(),
        None => "no metrics: the step advances on pod health alone".to_owned(),
    };
    let reason = if pass.fold.is_some() { Reason::Collecting } else { Reason::NotAnalysed };
    pass.go(StateName::Judging, reason, None, message);
    true
}

/// Rule 1, in every state in which the canary carries weight: folds what there is and rolls back on evidence.
fn judged(pass: &mut Pass<'_>) -> bool {
    if pass.weight() == Percent::ZERO {
        return false;
    }
    while let Some(at) = pass.fold.as_mut().and_then(Fold::look) {
        if regressed(pass, at) {
            return true;
        }
    }
    false
}

fn regressed(pass: &mut Pass<'_>, at: i64) -> bool {
    if !pass.fold.as_ref().is_some_and(Fold::regressed) {
        return false;
    }
    pass.at = Instant::from_millisecond(at).unwrap_or(pass.now).min(pass.now);
    let message = explain::regression(pass);
    roll_back(pass, Reason::Regression, message);
    true
}

fn judging(pass: &mut Pass<'_>) -> bool {
    if pass.status.step.as_ref().is_some_and(|s| s.full) {
        promote_all(pass, "promoted in full".to_owned());
        return true;
    }
    while let Some(at) = pass.fold.as_mut().and_then(Fold::look) {
        if regressed(pass, at) || judge(pass, at) {
            return true;
        }
    }
    if capacity_low(pass) {
        return true;
    }
    if pass.fold.is_none() {
        return without_metrics(pass);
    }
    if let Some(since) = pass.status.analysis.as_ref().and_then(|a| a.failing_since)
        && pass.reached(later(since, SOURCE_PATIENCE), Why::NoData)
    {
        let message = explain::source_failing(pass);
        pause(pass, Reason::SourceUnavailable, message);
        return true;
    }
    false
}

/// The rules below the first, at one look.
fn judge(pass: &mut Pass<'_>, at: i64) -> bool {
    let (Some(step), Some(conduct), Some(fold)) = (pass.step(), pass.conduct, &pass.fold) else {
        return false;
    };
    let since =
        pass.status.traffic.as_ref().and_then(|t| t.effective_since).map_or(at, Instant::as_millisecond);
    let held = at - since;
    let (safe, missing) = (fold.safe(), fold.missing());
    pass.at = Instant::from_millisecond(at).unwrap_or(pass.now).min(pass.now);
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
            pause(
                pass,
                Reason::NoData,
                "the source has no sample of either cohort: check the metrics' names and the labels of pods and namespace".to_owned(),
            );
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
                    "no requests to either cohort, and onNoTraffic is promote: taken as passed, unjudged"
                        .to_owned();
                passed(pass, Reason::NoTraffic, message);
                return true;
            }
            OnNoTraffic::Promote => {}
        },
        None => {}
    }
    if safe && held >= step.hold_min {
        let message = explain::passed(pass);
        passed(pass, Reason::StepPassed, message);
        return true;
    }
    if held >= step.hold_max {
        let message = explain::inconclusive(pass);
        match conduct.analysis.on_inconclusive {
            OnInconclusive::Pause => pause(pass, Reason::Inconclusive, message),
            OnInconclusive::Promote => passed(pass, Reason::Inconclusive, message),
            OnInconclusive::Rollback => roll_back(pass, Reason::Inconclusive, message),
        }
        return true;
    }
    false
}

fn without_metrics(pass: &mut Pass<'_>) -> bool {
    let Some(step) = pass.step() else { return false };
    let since = pass.status.traffic.as_ref().and_then(|t| t.effective_since).unwrap_or(pass.now);
    if !pass.reached(later(since, step.hold_min), Why::HoldMin) {
        return false;
    }
    let message = format!("not analysed: no metrics; the pods were healthy for {} s", step.hold_min / 1_000);
    passed(pass, Reason::NotAnalysed, message);
    true
}

/// All but an approval is there.
fn passed(pass: &mut Pass<'_>, reason: Reason, message: String) {
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

fn pause(pass: &mut Pass<'_>, reason: Reason, message: String) {
    let deadline = pass.conduct.map_or(86_400_000, |c| c.analysis.pause_deadline);
    pass.go(StateName::Paused, reason, Some(deadline), message);
}

pub(crate) fn next_step(pass: &mut Pass<'_>, reason: Reason, message: String) {
    pass.status.capacity_low_since = None;
    if pass.is_last_step() {
        pass.go(
            StateName::Promoting,
            if reason == Reason::StepPassed { Reason::LastStepPassed } else { reason },
            Some(progress_deadline(pass)),
            format!("{message}; last step: all {} pods are started", pass.size()),
        );
    } else {
        let index = pass.status.step.as_ref().map_or(0, |s| s.index) + 1;
        enter_step(pass, index, reason, message);
    }
}

/// All steps are taken as passed; the pods come first.
pub(crate) fn promote_all(pass: &mut Pass<'_>, message: String) {
    pass.status.capacity_low_since = None;
    pass.go(StateName::Promoting, Reason::Promote, Some(progress_deadline(pass)), message);
}

fn capacity_low(pass: &mut Pass<'_>) -> bool {
    let (available, need) = (i64::from(pass.available(&pass.canary_hash())), i64::from(pass.need()));
    if available * 10 >= need * 8 {
        pass.status.capacity_low_since = None;
        return false;
    }
    let now = pass.now;
    let since = *pass.status.capacity_low_since.get_or_insert(now);
    if !pass.reached(later(since, CAPACITY_PATIENCE), Why::Capacity) {
        return false;
    }
    let hash = pass.canary_hash();
    let message = format!(
        "{available} of {need} pods of the canary are ready{}: its weight is lowered to what they cover",
        explain::trouble(pass, &hash)
    );
    let covered = covered_weight(pass, available, need);
    pass.go(StateName::Holding, Reason::Capacity, Some(progress_deadline(pass)), message);
    if covered < pass.weight() {
        pass.set_weight(covered);
    }
    true
}

fn covered_weight(pass: &Pass<'_>, available: i64, need: i64) -> Percent {
    let bp = i64::from(pass.step_weight().basis_points()) * available.max(0) / need.max(1);
    Percent::from_basis_points(u16::try_from(bp).unwrap_or(0)).min(pass.weight())
}

fn holding(pass: &mut Pass<'_>) -> bool {
    if judged(pass) {
        return true;
    }
    let (hash, need) = (pass.canary_hash(), pass.need());
    let available = pass.available(&hash);
    if available >= need {
        pass.status.capacity_low_since = None;
        pass.go(
            StateName::Shifting,
            Reason::ShiftingTraffic,
            Some(ROUTER_DEADLINE),
            format!("{need} pods are ready again"),
        );
        return true;
    }
    let covered = covered_weight(pass, i64::from(available), i64::from(need));
    if covered < pass.weight() {
        pass.set_weight(covered);
    }
    deadline(pass, Reason::ProgressDeadline)
}

fn paused(pass: &mut Pass<'_>) -> bool {
    let reason = pass.reason();
    while let Some(at) = pass.fold.as_mut().and_then(Fold::look) {
        if regressed(pass, at) {
            return true;
        }
        let waits = matches!(reason, Reason::NoData | Reason::NoTraffic | Reason::SourceUnavailable);
        if waits && pass.fold.as_ref().is_some_and(Fold::flowing) {
            pass.go(StateName::Judging, Reason::Collecting, None, "there is data again".to_owned());
            return true;
        }
    }
    if capacity_low(pass) {
        return true;
    }
    if !pass.past_deadline() {
        return false;
    }
    let then = pause_end(pass.conduct, reason, pass.step().and_then(|s| s.approval));
    match then {
        Then::Keep => false,
        Then::Rollback => {
            roll_back(pass, Reason::PauseDeadline, format!("nobody ended the pause ({reason}) in time"));
            true
        }
    }
}

fn promoting(pass: &mut Pass<'_>) -> bool {
    if pass.weight() < Percent::FULL {
        if judged(pass) {
            return true;
        }
        let (hash, size) = (pass.canary_hash(), pass.size());
        if pass.available(&hash) < size || pass.endpoints(Role::Canary, &hash) < size {
            return deadline(pass, Reason::ProgressDeadline);
        }
        pass.set_weight(Percent::FULL);
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
        pass.go(StateName::Finalising, Reason::Promoted, None, message);
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
fn finalising(pass: &mut Pass<'_>) -> bool {
    let (new, since, settle) = (pass.stable_hash(), stage_since(pass), pass.settle());
    match pass.stage() {
        Stage::Weight | Stage::Settle | Stage::Unknown => {
            if !pass.reached(later(since, settle), Why::Settle) || pass.routes_carry(Percent::FULL).is_err() {
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
    pass.fold = None;
    if let Some(analysis) = &mut pass.status.analysis {
        analysis.checkpoint = Some(Checkpoint::default()).filter(|_| false);
        analysis.failing_since = None;
    }
}

fn rolling_back(pass: &mut Pass<'_>) -> bool {
    let driven = pass.status.traffic.as_ref().is_some_and(|t| !t.originals.is_empty());
    if !driven {
        finish_rollback(pass);
        return true;
    }
    let (since, settle, stable) = (stage_since(pass), pass.settle(), pass.stable_hash());
    match pass.stage() {
        Stage::Weight | Stage::Unknown | Stage::Endpoints => {
            let lower = rollback_weight(pass);
            if lower < pass.weight() {
                pass.set_weight(lower);
            }
            if pass.weight() > Percent::ZERO || !gone_back(pass) {
                return false;
            }
            let now = pass.now;
            let traffic = pass.traffic();
            traffic.effective = Some(Percent::ZERO);
            traffic.effective_since = Some(now);
            pass.go_stage(Stage::Settle);
        }
        Stage::Settle => {
            if !pass.reached(later(since, settle), Why::Settle) {
                return false;
            }
            pass.go_stage(Stage::Select);
        }
        Stage::Select => {
            let moved = pass.observed.services.get(&Role::Canary).is_none_or(|s| {
                s.foreign
                    || (s.selects.as_deref() == Some(&stable)
                        && (s.ready.contains_key(&stable) || pass.available(&stable) == 0))
            });
            if !moved && !pass.past_deadline() {
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

/// No route that exists sends anything to the canary.
fn gone_back(pass: &mut Pass<'_>) -> bool {
    match pass.routes_carry(Percent::ZERO) {
        Ok(()) => true,
        Err((Reason::RouteNotFound | Reason::RouteUnsupported, _)) => {
            // One that is gone, or names us no more, carries nothing of ours; the others must still be at 0.
            let observed = pass.observed;
            pass.status.traffic.iter().flat_map(|t| &t.originals).all(|o| {
                observed.routes.get(&o.route).is_none_or(|r| {
                    !r.found
                        || r.unsupported.is_some()
                        || (carries(r, Percent::ZERO) && r.effective == crate::observed::Effective::Yes)
                })
            })
        }
        Err(_) => false,
    }
}

fn finish_rollback(pass: &mut Pass<'_>) {
    let reason = pass.reason();
    let hash = pass.canary_hash();
    let number = pass.status.stable.as_ref().map_or(0, |s| s.revision);
    let message = explain::rolled_back(pass, number);
    if matches!(reason, Reason::ProgressDeadline | Reason::TrafficDeadline | Reason::RunLost) {
        let now = pass.now;
        let missed = pass.status.latest.as_ref().and_then(|l| l.missed).unwrap_or(0) + 1;
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

/// Foreign writes to routes whose weight was effective: put right with back-off, and a pause after five.
pub(crate) fn note_conflicts(pass: &mut Pass<'_>) {
    let Some(traffic) = &pass.status.traffic else { return };
    let weight = traffic.desired;
    if traffic.effective != Some(weight) || traffic.restore {
        return;
    }
    let foreign = traffic.originals.iter().any(|o| {
        pass.observed
            .routes
            .get(&o.route)
            .is_some_and(|r| r.found && r.unsupported.is_none() && !carries(r, weight))
    });
    let mut conflicts = pass.status.conflicts.clone().unwrap_or_default();
    if !foreign {
        if conflicts.next.take().is_some() {
            pass.status.conflicts = Some(conflicts);
        }
        return;
    }
    if pass.state() == StateName::Paused && pass.reason() == Reason::RouteConflict {
        pass.put_back = false;
        return;
    }
    if let Some(next) = conflicts.next
        && !pass.reached(next, Why::Conflict)
    {
        pass.put_back = false;
        return;
    }
    conflicts.count += 1;
    conflicts.next = Some(later(pass.now, 1_000 << conflicts.count.clamp(0, 6)));
    let too_many = conflicts.count > CONFLICTS;
    pass.status.conflicts = Some(Conflicts { ..conflicts });
    let may_pause = matches!(
        pass.state(),
        StateName::Settling | StateName::Judging | StateName::Scaling | StateName::Holding
    );
    if too_many && may_pause {
        pass.put_back = false;
        let message = explain::route_conflict(pass);
        pause(pass, Reason::RouteConflict, message);
    }
}

//! `decide`: applies transitions until none applies, then says what should be.
//!
//! Invariant: total for any input, any status and any observation; on its own output with nothing new observed it
//! changes nothing but what it takes back from the outbox.

use davylamp_api::Instant;
use davylamp_api::action::{ActionPhase, Verb};
use davylamp_api::conditions::Reason;
use davylamp_api::rollout::Then;
use davylamp_api::scalar::Percent;
use davylamp_api::status::{ActionOutcome, AnalysisStatus, Plan, RolloutStatus, StateName, Verdict};

use crate::decision::{Decision, Why};
use crate::fold::Fold;
use crate::observed::{Action, Observed};
use crate::pass::Pass;
use crate::program::{Conduct, Input, step_view};
use crate::{conflicts, desired, explain, incidents, outlook, states, steps};

/// More transitions than any history needs in one pass.
const TRANSITIONS: usize = 64;
/// What a status may take. With ten metrics, a step of 200 new pods and the evidence that is still to be told it is 60 KB; most
/// are below 10.
const STATUS_BYTES: usize = 96 * 1_024;
/// The checkpoint is written so often at most, beyond transitions, ms.
const CHECKPOINT: i64 = 60_000;

/// Pure. The same arguments give the same answer; given its own output and nothing new observed, it changes nothing.
pub fn decide(input: &Input, status: &RolloutStatus, observed: &Observed, now: Instant) -> Decision {
    let now = Instant::from_millisecond(now.as_millisecond()).unwrap_or(now);
    let mut start = status.clone();
    let edited = take_edited_steps(input, &mut start);
    let mut pass = Pass::new(input, start, observed, now);
    if let Some(message) = edited {
        let deadline = pass.progress_deadline();
        pass.status.capacity_low_since = None;
        pass.go(StateName::Scaling, Reason::StepsEdited, Some(deadline), message);
    }
    pass.status.observed_generation = input.generation;
    if let Some(program) = &input.program {
        pass.status.selector.clone_from(&program.selector);
        pass.status.replicas = program.replicas.unwrap_or_else(|| existing_size(&pass));
    }
    note_source(&mut pass);
    take_actions(&mut pass);
    retire_old(&mut pass);
    settle(&mut pass);
    if conflicts::note(&mut pass) {
        settle(&mut pass);
    }
    incidents::note(&mut pass);
    pass.note_pods();
    write_checkpoint(&mut pass, status);
    // A run that began in this pass has something to note it in only now.
    note_source(&mut pass);
    let desired = desired::desired(&mut pass);
    explain::conditions(&mut pass, status);
    let wake = wake(&mut pass);
    let Pass { status: mut next, observed, .. } = pass;
    bound(&mut next);
    trim_outbox(&mut next, status, observed);
    Decision { status: next, desired, wake }
}

/// Applies transitions until none applies.
fn settle(pass: &mut Pass<'_>) {
    for _ in 0..TRANSITIONS {
        if !states::transition(pass) {
            break;
        }
        pass.at = pass.now;
    }
}

/// Of a Rollout whose `replicas` is absent: what there is, else 1.
fn existing_size(pass: &Pass<'_>) -> i32 {
    if pass.status.stable.is_some() {
        return pass.status.replicas.max(1);
    }
    let hash = pass.input.program.as_ref().map(|p| p.hash.as_str()).unwrap_or_default();
    pass.observed.revisions.get(hash).map_or(1, |r| r.desired.max(1))
}

/// A valid edit of steps in mid-run counts at once: the same weight in the new list keeps the state, else the run goes
/// on at the first step that is not lower, and never above the last: then the message says so. One that comes when all
/// steps have passed is for the next run, even if this one is held once more.
fn take_edited_steps(input: &Input, status: &mut RolloutStatus) -> Option<String> {
    let (program, run) = (input.program.as_ref()?, input.run.as_ref()?);
    let canary = status.canary.as_ref()?;
    if status.plan.as_ref().is_some_and(|p| p.generation == input.generation) {
        return None;
    }
    let now = status.plan.as_ref().map_or(&run.steps, |p| &p.steps);
    let steps = &program.conduct.steps;
    let judged = matches!(
        status.state.as_ref()?.name,
        StateName::Scaling
            | StateName::Shifting
            | StateName::Settling
            | StateName::Judging
            | StateName::Holding
            | StateName::Paused
            | StateName::Preparing
    );
    if now == steps || canary.hash != program.hash {
        return None;
    }
    if !judged {
        status.plan = Some(Plan { generation: input.generation, steps: now.clone() });
        return None;
    }
    status.plan = Some(Plan { generation: input.generation, steps: steps.clone() });
    let step = status.step.as_mut()?;
    let same = steps.iter().position(|s| s.weight == step.weight);
    let first = steps.iter().position(|s| s.weight >= step.weight);
    let index = same.or(first).unwrap_or_else(|| steps.len().saturating_sub(1));
    let new = steps.get(index)?;
    step.index = i32::try_from(index).unwrap_or(i32::MAX).saturating_add(1);
    step.of = i32::try_from(steps.len()).unwrap_or(i32::MAX);
    step.weight = new.weight;
    // The margin may be another now: what was shown against the old one shows nothing against it.
    let checkpoint = status.analysis.as_mut().and_then(|a| a.checkpoint.as_mut());
    if let Some(checkpoint) = checkpoint {
        checkpoint.next = None;
        checkpoint.metrics.values_mut().for_each(|metric| metric.safe = None);
    }
    if let Some(checkpoint) = status.analysis.as_mut().and_then(|a| a.checkpoint.as_mut()) {
        checkpoint.hold_min = step_view(new).hold_min;
        checkpoint.gauges.values_mut().for_each(|gauge| gauge.last = None);
    }
    if same.is_some() {
        return None;
    }
    step.approved = false;
    Some(format!("steps were edited: the run goes on at step {} of {}, {}", step.index, step.of, step.weight))
}

/// The previous version's pods go when their time has come.
fn retire_old(pass: &mut Pass<'_>) {
    if let Some(until) = pass.status.old.as_ref().and_then(|o| o.until)
        && pass.reached(until, Why::OldPods)
    {
        pass.status.old = None;
    }
}

/// Since when the source fails is remembered, for a pause must not begin anew with each process.
fn note_source(pass: &mut Pass<'_>) {
    use crate::observed::Source;
    let judged = pass.conduct.is_some_and(|c| !c.analysis.is_empty());
    let Some(analysis) = pass.status.analysis.as_mut().filter(|_| judged) else { return };
    match (&pass.observed.source, &pass.observed.samples) {
        (Source::NotNamed | Source::NotFound | Source::NotAllowed, _) => {
            analysis.failing_since.get_or_insert(pass.now);
        }
        (Source::Ready { .. }, Some(samples)) => match &samples.failing {
            Some((since, _)) => {
                analysis.failing_since.get_or_insert_with(|| *since.min(&pass.now));
            }
            None => analysis.failing_since = None,
        },
        (Source::Ready { .. }, None) => {}
    }
}

/// Each action is executed once: its uid and outcome enter the status in the same write as its effect.
fn take_actions(pass: &mut Pass<'_>) {
    let open = |uid: &str| pass.observed.actions.iter().any(|a| a.uid == uid);
    let kept: Vec<ActionOutcome> = pass.status.actions.iter().filter(|o| open(&o.uid)).cloned().collect();
    pass.status.actions = kept;
    for action in &pass.observed.actions {
        if pass.status.actions.iter().any(|o| o.uid == action.uid) || pass.status.actions.len() >= 20 {
            continue;
        }
        let (phase, message) = match act(pass, action) {
            Ok(message) => (ActionPhase::Done, message),
            Err(message) => (ActionPhase::Rejected, message),
        };
        pass.status.actions.push(ActionOutcome {
            uid: action.uid.clone(),
            name: action.name.clone(),
            phase,
            message: explain::bounded(message, 512),
            at: pass.now,
        });
    }
}

fn act(pass: &mut Pass<'_>, action: &Action) -> Result<String, String> {
    let who = explain::asked_by(action);
    if action.verb == Verb::Retry {
        return retry(pass, &who);
    }
    let (run, meant) = (pass.status.run.clone(), action.run.clone());
    if run != meant || !pass.in_flight() {
        let meant = meant.unwrap_or_default();
        return Err(match run.filter(|_| pass.in_flight()) {
            Some(run) => format!("run {meant} is not in flight: {run} is"),
            None => format!("run {meant} is not in flight: no run is"),
        });
    }
    match (action.verb, pass.state()) {
        (_, StateName::RollingBack) => Err("the run is being rolled back already".to_owned()),
        (_, StateName::Finalising) => {
            Err("the revision is stable already: apply the template that you want instead".to_owned())
        }
        (Verb::Abort, _) => {
            let message = format!("aborted{who}: all traffic goes back");
            states::roll_back(pass, Reason::Abort, message.clone());
            Ok(message)
        }
        (Verb::Promote, _) => promote(pass, action, &who),
        (Verb::Retry, _) => retry(pass, &who),
    }
}

fn retry(pass: &mut Pass<'_>, who: &str) -> Result<String, String> {
    let Some(program) = &pass.input.program else {
        return Err("the spec is not valid: see the condition Valid".to_owned());
    };
    let hash = &program.hash;
    let missed = pass.status.latest.as_ref().is_some_and(|l| l.hash == *hash && l.missed.is_some());
    if !missed && !pass.status.rejected.iter().any(|r| r.hash == *hash) {
        return Err(format!("revision {hash} was not rejected: there is nothing to retry"));
    }
    if pass.in_flight() {
        return Err("a run is in flight: wait for its end, or abort it first".to_owned());
    }
    let message = format!("revision {hash} is tried again{who}");
    pass.status.rejected.retain(|r| r.hash != *hash);
    if let Some(latest) = pass.status.latest.as_mut().filter(|l| l.hash == *hash) {
        latest.missed = None;
        latest.not_before = None;
    }
    pass.go(StateName::Healthy, Reason::Retry, None, message.clone());
    Ok(message)
}

fn promote(pass: &mut Pass<'_>, action: &Action, who: &str) -> Result<String, String> {
    if pass.fold.as_ref().is_some_and(Fold::condemned) {
        return Err(
            "the evidence against this revision suffices to roll back: it cannot be promoted".to_owned()
        );
    }
    let Some(step) = pass.status.step.clone() else {
        return Err("the run is not yet at its first step: promote when it is".to_owned());
    };
    if !action.full && action.step != Some(step.index) {
        return Err(format!(
            "step {} is not the present one: {} of {} is",
            action.step.unwrap_or(0),
            step.index,
            step.of
        ));
    }
    if pass.state() == StateName::Promoting {
        return Err("all steps have passed already".to_owned());
    }
    let conflict = pass.state() == StateName::Paused && pass.reason() == Reason::RouteConflict;
    if conflict {
        pass.status.conflicts = None;
    }
    if let Some(now) = &mut pass.status.step {
        now.approved = true;
        now.full |= action.full;
    }
    let message = if action.full {
        let message = format!("promoted in full{who}: the pods come first");
        steps::promote_all(pass, message.clone());
        message
    } else {
        let message = format!("step {} of {} promoted{who}", step.index, step.of);
        promote_step(pass, &message);
        message
    };
    // Somebody knows of the incident, of what the canary does to its objective, and of the split.
    pass.status.incidents_after = Some(pass.now);
    Ok(message)
}

fn promote_step(pass: &mut Pass<'_>, message: &str) {
    let (state, reason) = (pass.state(), pass.reason());
    let waits = incidents::is_reason(reason) || matches!(reason, Reason::SloViolated | Reason::TrafficSplit);
    let judged_alone = pass.step().is_none_or(|s| s.approval.is_none());
    if waits && pass.weight() < pass.step_weight() {
        // It has not had its weight, or not for long.
        steps::scale(pass, Reason::Promote, message);
    } else if state == StateName::Paused || waits || (state == StateName::Judging && judged_alone) {
        steps::next_step(pass, Reason::Promote, message);
    }
}

/// At a transition, and once a minute: the evidence as it is, and the base of the next fold.
fn write_checkpoint(pass: &mut Pass<'_>, before: &RolloutStatus) {
    let transition =
        pass.moved || before.state != pass.status.state || before.incident != pass.status.incident;
    let now = pass.now;
    let Some(fold) = &pass.fold else {
        if pass.conduct.is_some_and(|c| c.analysis.is_empty()) && pass.status.canary.is_some() {
            pass.status.analysis.get_or_insert_with(AnalysisStatus::default).verdict = Verdict::NotAnalysed;
        }
        return;
    };
    let last = pass.status.analysis.as_ref().and_then(|a| a.checkpoint.as_ref()).map_or(i64::MIN, |c| c.at);
    let due = fold.moved() && now.as_millisecond().saturating_sub(last) >= CHECKPOINT;
    if !transition && !due {
        return;
    }
    let share = fold.observed_share();
    let failing_since = pass.status.analysis.as_ref().and_then(|a| a.failing_since);
    let analysis = AnalysisStatus {
        verdict: explain::verdict(pass, fold),
        evidence: fold.evidence(),
        metrics: fold.statuses(),
        gauges: fold.gauges(),
        expressions: fold.expressions(),
        checkpoint: Some(fold.checkpoint(now)),
        outlook: outlook::of(pass, fold),
        failing_since,
    };
    pass.status.analysis = Some(analysis);
    if let Some(traffic) = &mut pass.status.traffic {
        traffic.observed_share = share.filter(|_| traffic.desired > Percent::ZERO);
    }
}

fn wake(pass: &mut Pass<'_>) -> Option<crate::decision::Wake> {
    let kept = pass.state() == StateName::Paused && pass.past_deadline();
    if let Some(deadline) = pass.status.state.as_ref().and_then(|s| s.deadline)
        && !kept
    {
        let now = pass.now;
        pass.reached(deadline.max(now), Why::Deadline);
    }
    pass.wakes.iter().filter(|w| w.at > pass.now).min().copied()
}

/// Details of what is still to be told go before the status grows past its limit, the oldest first.
fn bound(status: &mut RolloutStatus) {
    let size = |status: &RolloutStatus| serde_json::to_string(status).map_or(0, |text| text.len());
    for i in 0..status.pending.len() {
        if size(status) <= STATUS_BYTES {
            return;
        }
        let record = &mut status.pending[i].record;
        record.metrics.clear();
        record.gauges.clear();
        record.expressions.clear();
        record.split = None;
        record.gap = Some(true);
    }
    while size(status) > STATUS_BYTES && status.pending.len() > 1 {
        status.pending.remove(0);
        status.dropped = status.dropped.saturating_add(1);
    }
}

/// What was delivered leaves the outbox, with the next write for another reason.
fn trim_outbox(next: &mut RolloutStatus, before: &RolloutStatus, observed: &Observed) {
    let mut trimmed = next.clone();
    trimmed.pending.retain(|p| p.record.number > observed.delivered);
    let mut same = trimmed.clone();
    same.pending.clone_from(&before.pending);
    if same != *before {
        *next = trimmed;
    }
}

/// What follows a pause that nobody ended.
pub(crate) fn pause_end(conduct: Option<&Conduct>, reason: Reason, approval: Option<(i64, Then)>) -> Then {
    match (reason, approval) {
        (Reason::Approval, Some((_, then))) => then,
        _ => conduct.map_or(Then::Rollback, |c| c.analysis.pause_then),
    }
}

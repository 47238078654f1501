//! The invariants, checked in every pass, at every effect and at every moment.

use davylamp_api::Instant;
use davylamp_api::conditions::Reason;
use davylamp_api::scalar::Percent;
use davylamp_api::status::{RolloutStatus, StateName};
use davylamp_engine::observed::{Effective, Observed, Role, baseline_of, of_baseline};
use davylamp_engine::{RouteGoal, decide, pods_for};

use super::{Turn, World, at};

fn weight(status: &RolloutStatus) -> Percent {
    status.traffic.as_ref().map_or(Percent::ZERO, |t| t.desired)
}

fn name(status: &RolloutStatus) -> StateName {
    status.state.as_ref().map_or(StateName::Healthy, |s| s.name)
}

pub(crate) fn turn(world: &World, turn: &Turn<'_>) {
    weights(world, turn);
    fixed_point(world, turn);
    timers(turn);
    told(turn);
    shape(turn);
    fresh(turn);
}

/// A fresh baseline is as old as its run, and there before the weight.
fn fresh(turn: &Turn<'_>) {
    let Turn { input, before, observed, decision } = turn;
    let status = &decision.status;
    let Some(run) = input.run.as_ref().filter(|run| run.analysis.fresh) else { return };
    let Some(stable) = before.stable.as_ref().map(|stable| baseline_of(&stable.hash)) else { return };
    let baseline = observed.revisions.get(&stable).cloned().unwrap_or_default();
    let new = status.pending.iter().map(|p| &p.record).filter(|record| record.number > before.told);
    for record in new {
        match (record.from.as_str(), record.to.as_str()) {
            ("Preparing", "Scaling") => assert_eq!(baseline.desired, 0, "an older baseline"),
            ("Scaling", "Shifting") => {
                let steps = status.plan.as_ref().map_or(&run.steps, |plan| &plan.steps);
                let step = &steps[usize::try_from(record.step).unwrap() - 1];
                let size = status.size_at_start.unwrap_or(0).max(0);
                let need = step.replicas.unwrap_or_else(|| pods_for(size, step.weight));
                assert!(baseline.available >= need, "{} of {need} pods to compare with", baseline.available);
            }
            _ => {}
        }
    }
}

fn weights(world: &World, turn: &Turn<'_>) {
    let Turn { before, observed, decision, .. } = turn;
    let (status, now) = (&decision.status, weight(&decision.status));
    let step = status.step.as_ref().map_or(Percent::ZERO, |s| s.weight);
    match name(status) {
        StateName::Promoting | StateName::Finalising => {}
        StateName::RollingBack => assert!(now <= weight(before), "a weight rises in RollingBack"),
        _ => assert!(now <= step || now <= weight(before), "{now} is more than the step's {step}"),
    }
    if name(status) == StateName::Holding {
        assert!(now <= weight(before), "a weight rises in Holding");
    }
    if now > weight(before) && !status.step.as_ref().is_some_and(|step| step.full) {
        let counts = |at: &Instant| status.incidents_after.is_none_or(|after| *at > after);
        let on = status.incident.as_ref().filter(|i| i.over.is_none() && counts(&i.noticed));
        assert!(on.is_none(), "{now} in spite of {on:?}");
        let others: Vec<_> = observed.incidents.values().filter(|at| counts(at)).collect();
        let last = others.iter().max().map_or(i64::MIN, |at| at.as_millisecond());
        assert!(others.len() < 2 || last + 120_000 <= world.now, "{now} while several have incidents");
    }
    if now > weight(before) {
        let canary = status
            .canary
            .as_ref()
            .map_or_else(|| status.stable.as_ref().unwrap().hash.clone(), |c| c.hash.clone());
        let size = i64::from(status.size_at_start.unwrap_or(0).max(0));
        let mut need = (size * i64::from(now.basis_points()) + 9_999) / 10_000;
        let steps = status.plan.as_ref().map(|p| &p.steps);
        let steps = steps.or_else(|| turn.input.run.as_ref().map(|r| &r.steps));
        let index = status.step.as_ref().map_or(0, |s| s.index - 1);
        let own = steps.and_then(|s| s.get(usize::try_from(index).unwrap())?.replicas);
        if let Some(own) = own.filter(|_| now < Percent::FULL) {
            need = i64::from(own);
        }
        let available = observed.revisions.get(&canary).map_or(0, |r| r.available);
        let ready = observed.services.get(&Role::Canary).and_then(|s| s.ready.get(&canary).copied());
        assert!(i64::from(available) >= need, "{now} with {available} of {need} pods");
        assert!(i64::from(ready.unwrap_or(0)) >= need, "{now} with {ready:?} of {need} endpoints");
    }
    for (target, goal) in &decision.desired.weights {
        let RouteGoal::Weight(goal) = goal else { continue };
        assert_eq!(*goal, now);
        let rises = observed.routes[target].rules.iter().any(|r| {
            let (stable, canary) = (r.stable.unwrap_or(1), r.canary.unwrap_or(1));
            canary * 10_000 < i32::from(goal.basis_points()) * (stable + canary)
        });
        let judged = status.canary.is_some() && name(status) != StateName::RollingBack;
        if rises && judged {
            let canary = &status.canary.as_ref().unwrap().hash;
            let ready = observed.services.get(&Role::Canary).and_then(|s| s.ready.get(canary).copied());
            let nothing = world.spec.replicas == Some(0);
            assert!(nothing || ready.unwrap_or(0) > 0, "a route rises to {goal} without endpoints");
        }
    }
}

fn fixed_point(world: &World, turn: &Turn<'_>) {
    let Turn { before, observed, decision, .. } = turn;
    let read = &decision.status;
    // Nothing changed: to ask again is to ask the same. A run that begins: the next pass reads what it promised.
    if decision.status == **before || before.run != decision.status.run {
        return;
    }
    let input = world.input(&decision.status);
    let again = decide(&input, read, observed, at(world.now));
    let mut status = again.status;
    status.pending.clone_from(&decision.status.pending);
    if status != decision.status {
        let lines = |status: &RolloutStatus| serde_json::to_string_pretty(status).unwrap();
        let (one, two) = (lines(&decision.status), lines(&status));
        let new: Vec<_> = two.lines().filter(|line| !one.contains(*line)).collect();
        panic!("not a fixed point: {}; then {}\n{}", decision.status.message, status.message, new.join("\n"));
    }
    assert_eq!(again.desired, decision.desired, "what is desired changes by itself: {}", status.message);
}

fn timers(turn: &Turn<'_>) {
    let status = &turn.decision.status;
    let Some(state) = &status.state else { return };
    match state.name {
        StateName::Healthy | StateName::Degraded | StateName::Unknown => {}
        _ => assert!(state.deadline.is_some(), "{:?} without a deadline", state.name),
    }
}

fn told(turn: &Turn<'_>) {
    let (before, after) = (turn.before, &turn.decision.status);
    let new = usize::try_from(after.told - before.told).unwrap();
    let records: Vec<_> = after.pending.iter().filter(|p| p.record.number > before.told).collect();
    assert_eq!(records.len(), new.min(8), "records are missing");
    for pending in &records {
        assert!(!pending.record.rule.is_empty() && !pending.record.message.is_empty());
        assert!(pending.record.rule != Reason::Unknown.as_str());
    }
    if name(before) != name(after) {
        let last = records.last().unwrap();
        assert_eq!(last.record.to, name(after).as_str(), "a transition without a record");
    }
}

fn shape(turn: &Turn<'_>) {
    let status = &turn.decision.status;
    if status == turn.before {
        return;
    }
    let text = serde_json::to_string(status).unwrap();
    // Less would leave out evidence that is still to be told.
    assert!(text.len() <= 96 * 1_024, "a status of {} bytes", text.len());
    let read: RolloutStatus = serde_json::from_str(&text).unwrap();
    assert_eq!(&read, status, "the status does not survive being written");
    assert!(status.pending.len() <= 9);
    let is = |kind: &str| status.conditions.iter().any(|c| c.type_ == kind && c.status == "True");
    let one = [is("Ready"), is("Reconciling"), is("Stalled")];
    assert_eq!(one.iter().filter(|is| **is).count(), 1, "kstatus: {one:?}");
    assert!(status.phase.is_some() && !status.message.is_empty());
    if let Some(stable) = &status.stable {
        assert!(!stable.hash.is_empty());
        for role in [Role::Stable, Role::Canary] {
            let there = turn.observed.services.get(&role).is_some_and(|s| s.selects.is_some());
            let wanted = turn.decision.desired.selectors.contains_key(&role);
            assert!(there || wanted, "the {role:?} Service selects nothing");
        }
    }
}

/// A selector is about to move.
pub(crate) fn selector(world: &World, role: Role, from: Option<&str>, to: &str, observed: &Observed) {
    let Some(from) = from else { return };
    let status = &world.status;
    let late = status.state.as_ref().and_then(|s| s.deadline).is_some_and(|d| d <= at(world.now));
    if name(status) == StateName::RollingBack && late {
        return; // The rescue: nobody took the weight back.
    }
    let verified = observed.routes.values().all(|r| r.unsupported.is_some() || r.effective == Effective::Yes);
    if status.traffic.is_some() && verified && !world.stale {
        let traffic = world.routes.values().filter(|r| r.found && !r.unsupported).flat_map(|r| &r.carried);
        for rule in traffic {
            let number = match role {
                Role::Stable => rule.stable,
                Role::Canary => rule.canary,
            };
            assert_eq!(
                number,
                Some(0),
                "the {role:?} Service moves from {from} to {to} while it carries weight"
            );
        }
    }
    if status.traffic.is_none() && world.ready_pods(from) > 0 && !world.hurt.contains(to) {
        assert!(world.ready_pods(to) > 0, "a Service moves to a revision without pods");
    }
}

/// A `ReplicaSet` is about to change its size.
pub(crate) fn size(world: &World, hash: &str, from: i32, to: i32) {
    if let Some(of) = of_baseline(hash) {
        let of_stable = world.status.stable.as_ref().is_some_and(|stable| stable.hash == of);
        assert!(to <= from || (of_stable && world.status.canary.is_some()), "{hash} without a run");
        return;
    }
    if to >= from || world.status.stable.as_ref().is_some_and(|s| s.hash == hash) {
        return;
    }
    let share = world.traffic().get(hash).copied().unwrap_or(0.0);
    if to == 0 {
        assert!(share == 0.0, "{hash} goes while it gets {share} of the traffic: {}", world.status.message);
    }
}

/// Nobody loses a request for what we did.
pub(crate) fn moment(world: &mut World) {
    let proven = world.status.stable.as_ref().is_some_and(|s| s.started_at.is_some());
    if !proven || world.spec.replicas == Some(0) || !world.hurt.is_empty() {
        return;
    }
    let lost = world.traffic().get("").copied().unwrap_or(0.0);
    world.served |= lost == 0.0;
    if !world.served {
        return; // The first release has no endpoints yet.
    }
    assert!(lost == 0.0, "{lost} of the requests find no pod: {}\n{}", world.status.message, world.story());
}

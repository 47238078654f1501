//! What a Rollout goes through, told as histories. The invariants are checked in every pass by `world::check`.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test: what is not as expected ends it"
)]
mod background;
mod expressions;
mod fresh;
mod incidents;
mod replayed;
mod split;
#[path = "../world/mod.rs"]
mod world;

use davylamp_api::action::{ActionPhase, Verb};
use davylamp_api::rollout::{
    Approval, Baseline, Expression, Hold, Metric, MetricRole, OnInconclusive, OnNoTraffic, SplitAction, Step,
    Then, TrafficSplit,
};
use davylamp_api::run::{DecisionRecord, MetricRecord};
use davylamp_api::status::{Phase, StateName};
use davylamp_api::{Instant, RolloutRunSpec};
use davylamp_engine::Conduct;
use davylamp_engine::observed::{Source, baseline_of};
use davylamp_engine::replay::{Checked, Lacks, Next, Replay};
use world::{World, hash, route, secs, spec, step};

const MINUTE: i64 = 60_000;

fn canary() -> World {
    World::settled(spec(&[step("5%"), step("25%"), step("50%")], true))
}

/// Released and at that state of its first step.
fn released(state: StateName) -> World {
    let mut world = canary();
    world.release(2);
    world.until(state);
    world
}

fn stable(world: &World) -> &str {
    &world.status.stable.as_ref().unwrap().hash
}

fn reason(world: &World) -> &'static str {
    world.status.state.as_ref().unwrap().reason.as_str()
}

fn routes_are_the_users(world: &World) {
    for route in world.routes.values() {
        assert_eq!(route.rules, route.user);
        assert!(!route.ours);
    }
    assert!(!world.finalizer);
}

fn outcome(world: &World, uid: &str) -> (ActionPhase, String) {
    world.outcomes[uid].clone()
}

fn kstatus(world: &World) -> [&str; 3] {
    ["Ready", "Reconciling", "Stalled"].map(|kind| world.condition(kind).unwrap().0)
}

#[test]
fn the_first_release_is_ready_by_its_pods_alone() {
    let mut world = World::new(spec(&[step("5%")], true));
    world.reconcile();
    assert_eq!((world.state(), reason(&world)), (StateName::Scaling, "FirstRelease"));
    world.until(StateName::Healthy);
    assert_eq!(world.trace, ["Scaling", "Healthy"]);
    assert_eq!(stable(&world), hash(1));
    assert_eq!(world.services.len(), 2);
    assert!(world.services.values().all(|s| s.selects == Some(hash(1))));
    routes_are_the_users(&world);
}

#[test]
fn a_first_release_that_is_never_ready_turns_healthy_by_itself() {
    let mut world = World::new(spec(&[step("5%")], true));
    world.break_version(&hash(1));
    world.until(StateName::Degraded);
    assert_eq!(kstatus(&world), ["False", "False", "True"]);
    assert!(world.status.rejected.is_empty());
    world.heal_version(&hash(1));
    world.until(StateName::Healthy);
    assert_eq!(world.trace, ["Scaling", "Degraded", "Healthy"]);
}

#[test]
fn a_good_canary_is_promoted_step_by_step() {
    let mut world = canary();
    world.release(2);
    world.until(StateName::Finalising);
    world.until(StateName::Healthy);
    let step = ["Scaling", "Shifting", "Settling", "Judging"];
    let mut expected = vec!["Preparing"];
    expected.extend(step.into_iter().cycle().take(12));
    expected.extend(["Promoting", "Finalising", "Healthy"]);
    assert_eq!(world.trace, expected);
    assert_eq!(stable(&world), hash(2));
    assert!(world.sets[&hash(1)].desired == 10, "the old pods stay for a while");
    routes_are_the_users(&world);
    world.run_for(2 * MINUTE);
    assert_eq!(world.sets[&hash(1)].desired, 0);
    assert_eq!(world.condition("Ready"), Some(("True", "Completed")));
}

#[test]
fn without_metrics_steps_advance_on_hold_min_and_say_so() {
    let mut world = World::settled(spec(&[step("5%"), step("50%")], false));
    world.release(2);
    world.until(StateName::Finalising);
    assert!(world.records.iter().any(|r| r.rule == "NotAnalysed"));
    world.until(StateName::Healthy);
    assert_eq!(stable(&world), hash(2));
}

#[test]
fn a_bad_canary_is_rolled_back_and_remembered_until_retried() {
    let mut world = canary();
    world.versions.get_mut(&hash(2)).unwrap().error_rate = 0.5;
    world.release(2);
    world.until(StateName::Degraded);
    assert_eq!(reason(&world), "Regression");
    assert!(world.records.iter().all(|r| r.weight == "0%" || r.weight == "5%"), "never above its step");
    assert_eq!(world.status.rejected[0].hash, hash(2));
    assert_eq!(kstatus(&world), ["False", "False", "True"]);
    routes_are_the_users(&world);
    world.run_for(60 * MINUTE);
    assert_eq!(world.sets[&hash(2)].desired, 0);

    world.versions.get_mut(&hash(2)).unwrap().error_rate = 0.01;
    let uid = world.act(Verb::Retry, None, None, false);
    world.run_for(0);
    assert_eq!(outcome(&world, &uid).0, ActionPhase::Done);
    world.until(StateName::Finalising);
    world.until(StateName::Healthy);
    assert_eq!(stable(&world), hash(2));
    assert_eq!(world.status.latest.as_ref().unwrap().attempt, 2);
}

#[test]
fn abort_rolls_back_and_is_remembered() {
    let mut world = released(StateName::Judging);
    world.abort();
    world.until(StateName::Degraded);
    assert_eq!((reason(&world), world.status.rejected.len()), ("Abort", 1));
    routes_are_the_users(&world);
}

#[test]
fn a_word_to_another_run_or_step_is_refused() {
    let mut world = released(StateName::Judging);
    let stale = world.act(Verb::Abort, Some("shop-9-9".to_owned()), None, false);
    let wrong = world.act(Verb::Promote, world.status.run.clone(), Some(3), false);
    let retry = world.act(Verb::Retry, None, None, false);
    world.run_for(0);
    for uid in [stale, wrong, retry] {
        assert_eq!(outcome(&world, &uid).0, ActionPhase::Rejected);
    }
    assert_eq!(world.state(), StateName::Judging);
}

#[test]
fn promote_passes_the_present_step() {
    let mut world = released(StateName::Judging);
    let uid = world.promote();
    world.run_for(0);
    assert_eq!(outcome(&world, &uid).0, ActionPhase::Done);
    assert_eq!((world.state(), world.status.step.as_ref().unwrap().index), (StateName::Scaling, 2));
}

#[test]
fn promote_in_full_waits_for_the_pods() {
    let mut world = released(StateName::Scaling);
    world.act(Verb::Promote, world.status.run.clone(), None, true);
    world.run_for(0);
    assert_eq!((world.state(), world.weight()), (StateName::Promoting, 0));
    world.until(StateName::Finalising);
    assert_eq!(world.ready_pods(&hash(2)), 10);
    world.until(StateName::Healthy);
}

#[test]
fn an_approval_is_asked_for_when_all_else_is_there() {
    let approval = Some(Approval { timeout: Some(secs(600)), on_timeout: Some(Then::Keep) });
    let mut world = World::settled(spec(&[Step { approval, ..step("5%") }, step("50%")], true));
    world.release(2);
    world.until(StateName::Paused);
    assert_eq!((reason(&world), world.status.phase), ("Approval", Some(Phase::Paused)));
    assert_eq!(kstatus(&world), ["False", "True", "False"]);
    world.run_for(20 * MINUTE);
    assert_eq!((world.state(), world.status.phase), (StateName::Paused, Some(Phase::Degraded)));
    assert_eq!(kstatus(&world), ["False", "False", "True"]);
    world.promote();
    world.until(StateName::Finalising);
}

#[test]
fn a_silent_canary_pauses_and_goes_on_when_it_is_heard() {
    let mut world = canary();
    world.versions.get_mut(&hash(2)).unwrap().scraped = false;
    world.release(2);
    world.until(StateName::Paused);
    assert_eq!((reason(&world), world.weight()), ("NoData", 500));
    world.versions.get_mut(&hash(2)).unwrap().scraped = true;
    world.until(StateName::Judging);
    world.until(StateName::Finalising);
}

#[test]
fn no_traffic_pauses_or_promotes_as_asked() {
    let mut world = canary();
    world.sampler.rate = Some(0.0);
    world.release(2);
    world.until(StateName::Paused);
    assert_eq!(reason(&world), "NoTraffic");

    let mut spec = spec(&[step("5%")], true);
    spec.analysis.as_mut().unwrap().on_no_traffic = Some(OnNoTraffic::Promote);
    let mut world = World::settled(spec);
    world.sampler.rate = Some(0.0);
    world.release(2);
    world.until(StateName::Finalising);
    assert!(world.records.iter().any(|r| r.message.contains("unjudged")));
}

#[test]
fn a_source_without_both_cohorts_pauses() {
    let mut world = canary();
    for version in world.versions.values_mut() {
        version.scraped = false;
    }
    world.release(2);
    world.until(StateName::Paused);
    assert_eq!(reason(&world), "NoData");
    assert!(world.status.message.contains("either cohort"), "{}", world.status.message);
}

#[test]
fn a_source_that_is_away_for_a_minute_only_costs_the_minute() {
    let mut world = released(StateName::Judging);
    world.sampler.failing_since = Some(world.now);
    world.run_for(MINUTE);
    assert_eq!(world.state(), StateName::Judging);
    world.sampler.failing_since = None;
    world.until(StateName::Finalising);
    assert!(!world.trace.contains(&"Paused".to_owned()));
}

#[test]
fn a_source_that_stays_away_pauses_and_the_run_goes_on_by_itself() {
    let mut world = released(StateName::Judging);
    world.sampler.failing_since = Some(world.now);
    world.run_for(6 * MINUTE);
    assert_eq!((world.state(), reason(&world)), (StateName::Paused, "SourceUnavailable"));
    world.sampler.failing_since = None;
    world.until(StateName::Finalising);
}

#[test]
fn a_source_that_nobody_may_ask_begins_no_run_and_stops_no_abort() {
    let mut world = canary();
    world.source = Source::NotAllowed;
    world.release(2);
    world.run_for(MINUTE);
    assert_eq!(world.state(), StateName::Healthy);
    assert_eq!(world.condition("AnalysisReady"), Some(("False", "SourceNotAllowed")));
    world.source = Source::Ready { scrape_interval_ms: Some(world::INTERVAL), delay_ms: world::DELAY };
    world.poke();
    world.until(StateName::Judging);
    world.source = Source::NotFound;
    world.abort();
    world.until(StateName::Degraded);
}

#[test]
fn how_far_apart_scrapes_are_is_learnt_where_the_source_does_not_say() {
    let mut world = canary();
    world.source = Source::Ready { scrape_interval_ms: None, delay_ms: world::DELAY };
    world.release(2);
    world.until(StateName::Judging);
    let run = &world.runs[world.status.run.as_ref().unwrap()];
    assert_eq!(run.sampling.unwrap().scrape_interval.millis(), world::INTERVAL);
    assert_eq!(run.calibration["errors"].block.millis(), world::INTERVAL);
    world.until(StateName::Finalising);

    // Nothing is to be learnt: what is usual holds.
    let mut spec = spec(&[step("5%")], true);
    let none = serde_json::from_value(serde_json::json!({"history": "0s"})).unwrap();
    spec.analysis.as_mut().unwrap().calibration = Some(none);
    let mut world = World::settled(spec);
    world.source = Source::Ready { scrape_interval_ms: None, delay_ms: world::DELAY };
    world.release(2);
    world.until(StateName::Judging);
    let run = &world.runs[world.status.run.as_ref().unwrap()];
    assert_eq!(run.sampling.unwrap().scrape_interval.millis(), 15_000);
}

#[test]
fn a_sampler_that_says_nothing_pauses_at_the_deadline() {
    let mut world = released(StateName::Judging);
    world.sampler.nothing_before = i64::MAX;
    world.run_for(30 * MINUTE);
    assert_eq!((world.state(), reason(&world)), (StateName::Paused, "SourceUnavailable"));
    world.sampler.nothing_before = 0;
    world.until(StateName::Finalising);
}

#[test]
fn inconclusive_does_what_was_asked_for() {
    for (then, state) in [
        (OnInconclusive::Pause, StateName::Paused),
        (OnInconclusive::Rollback, StateName::Degraded),
        (OnInconclusive::Promote, StateName::Finalising),
    ] {
        let mut spec = spec(&[step("0.01%")], true);
        spec.analysis.as_mut().unwrap().on_inconclusive = Some(then);
        let mut world = World::settled(spec);
        world.sampler.rate = Some(2_000.0);
        for version in world.versions.values_mut() {
            version.error_rate = 0.2; // A margin of 1.5 cannot be shown with one request in five seconds.
        }
        world.release(2);
        world.until(state);
        assert!(world.records.iter().any(|r| r.rule == "Inconclusive"));
    }
}

#[test]
fn lost_pods_lower_the_weight_until_they_are_back() {
    let mut world = World::settled(spec(&[step("50%")], true));
    world.release(2);
    world.until(StateName::Judging);
    world.versions.get_mut(&hash(2)).unwrap().ready_after = None;
    world.lose_pods(&hash(2), 3);
    world.until(StateName::Holding);
    assert_eq!((reason(&world), world.weight()), ("Capacity", 2_000));
    world.heal_version(&hash(2));
    world.until(StateName::Judging);
    assert_eq!(world.weight(), 5_000);
    world.until(StateName::Finalising);
}

#[test]
fn a_missed_deadline_is_tried_again_with_back_off_and_then_remembered() {
    let mut world = canary();
    world.versions.get_mut(&hash(2)).unwrap().ready_after = None;
    world.release(2);
    for attempt in 1..=3 {
        world.until(StateName::RollingBack);
        world.until(StateName::Degraded);
        let latest = world.status.latest.as_ref().unwrap();
        assert_eq!((latest.attempt, latest.missed), (attempt, Some(attempt)));
        assert_eq!(world.status.rejected.len(), usize::from(attempt == 3));
    }
    world.run_for(3_600_000);
    assert_eq!((world.state(), reason(&world)), (StateName::Degraded, "ProgressDeadline"));
}

#[test]
fn a_newer_template_supersedes_the_run() {
    let mut world = released(StateName::Judging);
    world.release(3);
    world.run_for(0);
    assert_eq!((world.state(), reason(&world)), (StateName::RollingBack, "Superseded"));
    world.until(StateName::Finalising);
    world.until(StateName::Healthy);
    assert_eq!(stable(&world), hash(3));
    assert!(world.status.rejected.is_empty());
}

#[test]
fn the_stable_template_ends_the_run_as_healthy() {
    let mut world = released(StateName::Judging);
    world.release(1);
    world.until(StateName::Healthy);
    assert_eq!((stable(&world), kstatus(&world)), (hash(1).as_str(), ["True", "False", "False"]));
    routes_are_the_users(&world);
}

#[test]
fn steps_may_be_edited_while_the_run_is_on() {
    let mut world = released(StateName::Judging);
    let edit = |world: &mut World, list: &[Step]| {
        world.edit(|spec| spec.strategy.canary.steps = Some(list.to_vec()));
        world.run_for(0);
    };
    edit(&mut world, &[step("1%"), step("5%"), step("60%")]);
    let index = |world: &World| world.status.step.as_ref().unwrap().index;
    assert_eq!(
        (world.state(), index(&world), world.weight()),
        (StateName::Judging, 2, 500),
        "the same weight"
    );
    edit(&mut world, &[step("1%"), step("30%")]);
    assert_eq!((world.state(), index(&world), world.weight()), (StateName::Scaling, 2, 500), "not lower");
    world.until(StateName::Judging);
    assert_eq!(world.weight(), 3_000);
    edit(&mut world, &[step("20%")]);
    world.until(StateName::Judging);
    assert_eq!((index(&world), world.weight()), (1, 2_000), "below what is now");
    world.until(StateName::Finalising);
}

#[test]
fn steps_edited_after_the_last_one_are_for_the_next_run() {
    let mut world = World::settled(spec(&[step("50%")], true));
    world.release(2);
    world.until(StateName::Promoting);
    world.versions.get_mut(&hash(2)).unwrap().ready_after = None;
    world.edit(|spec| spec.strategy.canary.steps = Some(vec![step("90%")]));
    world.run_for(0);
    assert_eq!(world.state(), StateName::Promoting);
    world.lose_pods(&hash(2), 9);
    world.until(StateName::Holding);
    world.poke();
    world.run_for(0);
    assert_eq!((world.state(), reason(&world)), (StateName::Holding, "Capacity"));
    world.heal_version(&hash(2));
    world.until(StateName::Finalising);
}

#[test]
fn an_invalid_edit_in_mid_run_is_told_and_changes_nothing() {
    let mut world = released(StateName::Judging);
    world.invalid = true;
    world.edit(|_| {});
    world.run_for(0);
    assert_eq!(world.condition("Valid"), Some(("False", "InvalidSpec")));
    assert_eq!(kstatus(&world), ["False", "True", "False"]);
    world.until(StateName::Finalising);
    world.until(StateName::Healthy);
    assert_eq!(kstatus(&world), ["False", "False", "True"]);
}

#[test]
fn a_lost_run_rolls_back_and_is_tried_again() {
    let mut world = released(StateName::Judging);
    let run = world.status.run.clone().unwrap();
    world.runs.remove(&run);
    world.poke();
    world.until(StateName::Degraded);
    assert_eq!(reason(&world), "RunLost");
    world.until(StateName::Finalising);
}

#[test]
fn deletion_at_rest_needs_nothing() {
    let mut world = canary();
    world.delete();
    world.run_for(MINUTE);
    assert!(world.gone);
    routes_are_the_users(&world);
}

#[test]
fn deletion_in_mid_run_gives_the_routes_back_first() {
    for state in [StateName::Preparing, StateName::Scaling, StateName::Judging, StateName::Promoting] {
        let mut world = released(state);
        world.delete();
        world.run_for(10 * MINUTE);
        assert!(world.gone, "{state:?}");
        routes_are_the_users(&world);
    }
}

#[test]
fn deletion_does_not_wait_for_ever_for_a_dead_gateway() {
    let mut world = released(StateName::Judging);
    world.routes.get_mut(&route("shop")).unwrap().stuck = true;
    world.delete();
    world.run_for(4 * MINUTE);
    assert!(!world.gone);
    world.run_for(2 * MINUTE);
    assert!(world.gone);
}

#[test]
fn foreign_writes_are_put_right_with_back_off_and_pause_after_five() {
    let mut world = World::settled(spec(
        &[Step { hold: Some(Hold { min: Some(secs(3_600)), max: Some(secs(7_200)) }), ..step("5%") }],
        false,
    ));
    world.release(2);
    world.until(StateName::Judging);
    for count in 1..=5 {
        world.write_route(&route("shop"), Some(50), Some(50));
        world.run_for(MINUTE);
        assert_eq!(world.status.conflicts.as_ref().unwrap().count, count);
        assert_eq!(world.routes[&route("shop")].rules[0].canary, Some(500));
        assert_eq!(world.condition("TrafficReady"), Some(("True", "AsExpected")));
    }
    world.write_route(&route("shop"), Some(50), Some(50));
    world.run_for(MINUTE);
    assert_eq!((world.state(), reason(&world)), (StateName::Paused, "RouteConflict"));
    assert_eq!(world.routes[&route("shop")].rules[0].canary, Some(50), "theirs stays");
    world.promote();
    world.until(StateName::Finalising);
}

#[test]
fn a_route_that_is_deleted_and_comes_back_gets_its_weight_again() {
    let mut world = World::settled(spec(&[step("5%"), step("50%")], false));
    world.release(2);
    world.until(StateName::Judging);
    world.delete_route(&route("shop"));
    world.run_for(MINUTE);
    assert_eq!(world.condition("TrafficReady").unwrap().1, "RouteNotFound");
    world.create_route(&route("shop"));
    world.until(StateName::Finalising);
    world.until(StateName::Healthy);
    routes_are_the_users(&world);
}

#[test]
fn a_route_that_stays_away_ends_the_run() {
    let mut world = World::settled(spec(&[step("5%"), step("50%")], false));
    world.release(2);
    world.until(StateName::Judging);
    world.delete_route(&route("shop"));
    world.until(StateName::Degraded);
    assert_eq!(reason(&world), "TrafficDeadline");
}

#[test]
fn missing_pods_of_the_stable_version_are_reconciling_then_degraded() {
    let mut world = canary();
    world.break_version(&hash(1));
    world.run_for(MINUTE);
    assert_eq!((kstatus(&world), world.status.phase), (["False", "True", "False"], Some(Phase::Progressing)));
    world.run_for(5 * MINUTE);
    assert_eq!((kstatus(&world), world.status.phase), (["False", "True", "False"], Some(Phase::Degraded)));
    world.heal_version(&hash(1));
    world.run_for(MINUTE);
    assert_eq!((kstatus(&world), world.status.phase), (["True", "False", "False"], Some(Phase::Healthy)));
}

#[test]
fn a_new_template_after_a_rejected_one_is_reconciling_at_once() {
    let mut world = released(StateName::Judging);
    world.abort();
    world.until(StateName::Degraded);
    world.entrance = davylamp_engine::observed::Entrance::Missing;
    world.release(3);
    world.run_for(0);
    assert_eq!(kstatus(&world), ["False", "True", "False"]);
}

#[test]
fn a_refused_template_is_named_and_nothing_else_happens() {
    let mut world = canary();
    world.refused.insert(hash(2));
    world.release(2);
    world.run_for(MINUTE);
    assert_eq!(world.condition("Valid"), Some(("False", "TemplateRefused")));
    assert_eq!(kstatus(&world), ["False", "False", "True"]);
    assert!(!world.sets.contains_key(&hash(2)));
}

#[test]
fn ten_metrics_fit_into_a_status() {
    let mut spec = spec(&[step("5%"), step("25%"), step("50%")], true);
    let analysis = spec.analysis.as_mut().unwrap();
    let one = analysis.metrics[0].clone();
    analysis.metrics = (0..10)
        .map(|i| davylamp_api::rollout::Metric {
            name: format!("a-metric-with-a-long-name-number-{i}"),
            ..one.clone()
        })
        .collect();
    let mut world = World::settled(spec);
    world.release(2);
    world.until(StateName::Finalising);
    world.until(StateName::Healthy);
    assert_eq!(stable(&world), hash(2));
    assert!(world.records.iter().all(|record| record.gap.is_none()), "no evidence is left out");
}

#[test]
fn a_crash_between_status_and_effects_repeats_the_effects() {
    for effects in 0..4 {
        let mut world = canary();
        world.release(2);
        for _ in 0..2_000 {
            world.crash_after = Some(effects);
            let end = world.now + 2_000;
            world.run_until(end, |_| false);
            world.crash_after = None;
            world.poke();
        }
        assert_eq!(stable(&world), hash(2), "{}", world.status.message);
        routes_are_the_users(&world);
    }
}

#[test]
fn no_weight_rises_after_its_deadline() {
    let mut world = World::settled(spec(&[step("5%")], false));
    world.versions.get_mut(&hash(2)).unwrap().ready_after = Some(10_000);
    world.release(2);
    world.until(StateName::Promoting);
    world.break_version(&hash(1)); // Nothing to go back to: the weight stays, and must not have risen.
    world.jump(6 * MINUTE);
    world.run_for(0);
    assert_eq!((world.state(), world.weight()), (StateName::RollingBack, 500));
}

#[test]
fn a_rollout_of_no_pods_is_promoted_with_one() {
    let mut world = World::new(spec(&[step("5%")], false));
    world.edit(|spec| spec.replicas = Some(0));
    world.hurt.insert("scaled to nothing".to_owned());
    world.run_for(MINUTE);
    world.release(2);
    world.until(StateName::Finalising);
    world.until(StateName::Healthy);
    assert_eq!((stable(&world), world.sets[&hash(2)].desired), (hash(2).as_str(), 0));
}

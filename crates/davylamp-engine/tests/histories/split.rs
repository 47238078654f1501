//! A canary that gets another share of the requests.

use super::replayed::{is_recomputed, recomputed, run};
use super::*;

/// At its first step, which lasts for half an hour, behind a gateway that sends the canary so many times its share.
fn misrouted(times: f64, action: Option<SplitAction>) -> World {
    let hold = Some(Hold { min: Some(secs(1_800)), max: Some(secs(7_200)) });
    let mut spec = spec(&[Step { hold, ..step("10%") }, step("50%")], true);
    spec.analysis.as_mut().unwrap().traffic_split = Some(TrafficSplit { action, tolerance: None });
    let mut world = World::settled(spec);
    world.misroutes = times;
    world.release(2);
    world.until(StateName::Judging);
    world
}

#[test]
fn a_split_that_is_wrong_pauses_until_it_is_right_again() {
    for (times, got) in [(2.0, "20%"), (0.5, "5%")] {
        let mut world = misrouted(times, None);
        let run = run(&world);
        let judged = world.now;
        world.until(StateName::Paused);
        assert_eq!((reason(&world), world.weight()), ("TrafficSplit", 1_000));
        assert!(world.now - judged <= 9 * MINUTE, "{} s", (world.now - judged) / 1_000);
        let told = &world.records.last().unwrap().message;
        assert!(told.starts_with(&format!("the canary got {got} of the requests (")), "{told}");
        assert!(told.contains("asked for was 10%: look for another route"), "{told}");
        let status = &world.status;
        assert_eq!(status.analysis.as_ref().unwrap().verdict, davylamp_api::status::Verdict::TrafficSplit);
        let share = status.traffic.as_ref().unwrap().observed_share.unwrap();
        assert_eq!(share, got.parse().unwrap());
        assert_eq!(world.condition("AnalysisReady"), Some(("False", "TrafficSplit")));
        world.run_for(30 * MINUTE);
        assert_eq!((world.state(), world.weight()), (StateName::Paused, 1_000));
        world.misroutes = 1.0;
        let repaired = world.now;
        world.until(StateName::Judging);
        assert!(world.now - repaired <= 4 * MINUTE, "{} s", (world.now - repaired) / 1_000);
        assert_eq!(world.condition("AnalysisReady"), Some(("True", "AsExpected")));
        world.until(StateName::Finalising);
        is_recomputed(&world, &run);
    }
}

#[test]
fn a_wrong_split_that_nobody_repairs_ends_at_the_deadline_of_pauses() {
    let mut world = misrouted(2.0, None);
    world.until(StateName::Paused);
    world.until(StateName::Degraded);
    assert_eq!(reason(&world), "PauseDeadline");
}

#[test]
fn somebody_may_promote_in_spite_of_the_split() {
    let mut world = misrouted(2.0, None);
    let run = run(&world);
    world.until(StateName::Paused);
    world.promote();
    world.until(StateName::Judging);
    assert_eq!((world.status.step.as_ref().unwrap().index, world.weight()), (2, 5_000));
    world.misroutes = 1.0;
    world.until(StateName::Finalising);
    is_recomputed(&world, &run);
}

#[test]
fn a_bad_canary_goes_back_whatever_its_split() {
    let mut world = misrouted(2.0, None);
    world.until(StateName::Paused);
    let run = run(&world);
    world.versions.get_mut(&hash(2)).unwrap().error_rate = 0.5;
    world.until(StateName::Degraded);
    assert_eq!(reason(&world), "Regression");
    is_recomputed(&world, &run);
}

#[test]
fn a_wrong_split_can_be_said_and_no_more() {
    let mut world = misrouted(2.0, Some(SplitAction::Inform));
    world.run_for(15 * MINUTE);
    assert_eq!(world.state(), StateName::Judging);
    assert_eq!(world.condition("AnalysisReady"), Some(("True", "TrafficSplit")));
    world.misroutes = 1.0;
    world.until(StateName::Finalising);
    assert!(!world.trace.contains(&"Paused".to_owned()));
}

#[test]
fn a_pause_for_a_split_that_was_right_is_found() {
    let mut world = misrouted(2.0, None);
    let run = run(&world);
    world.until(StateName::Paused);
    let mut records = world.records.clone();
    let paused = records.iter_mut().find(|record| record.rule == "TrafficSplit").unwrap();
    let split = paused.split.as_mut().unwrap();
    split.canary *= 2.0;
    let number = paused.number;
    let found = |records: &[DecisionRecord]| {
        recomputed(&world, &run, records).into_iter().find(|checked| checked.number == number).unwrap()
    };
    let changed = found(&records);
    assert!(changed.split.is_some() && !changed.unfounded && !changed.is_same());
    // An earlier look, at which it was not yet shown.
    let paused = records.iter_mut().find(|record| record.rule == "TrafficSplit").unwrap();
    let metric = &mut paused.metrics[0];
    metric.until = metric.until.map(|at| Instant::from_millisecond(at.as_millisecond() - MINUTE).unwrap());
    assert!(found(&records).unfounded);
}

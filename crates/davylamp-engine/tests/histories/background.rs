//! What pods count without traffic.

use super::replayed::{is_recomputed, run};
use super::*;

/// Before the first step of a service with three requests a second and pod, and this many more that come without traffic.
fn quiet(background: f64) -> World {
    with_users(30.0, background)
}

/// The same with so many requests a second in all.
fn with_users(rate: f64, background: f64) -> World {
    let hold = || Some(Hold { min: Some(secs(1_800)), max: Some(secs(43_200)) });
    let step = |weight: &str| Step { hold: hold(), ..step(weight) };
    let mut world = World::settled(spec(&[step("10%"), step("50%")], true));
    world.sampler.rate = Some(rate);
    world.sampler.background = background;
    world.usual_traffic = Some(rate + 10.0 * background);
    world.release(2);
    world.until(StateName::Scaling);
    world
}

#[test]
fn what_comes_without_traffic_is_measured_and_left_out() {
    let mut world = quiet(0.25);
    let (run, began) = (run(&world), world.now);
    world.until(StateName::Shifting);
    assert!((90_000..210_000).contains(&(world.now - began)), "{} s", (world.now - began) / 1_000);
    let told: Vec<&str> = world.records.iter().map(|record| record.rule.as_str()).collect();
    assert_eq!(told[told.len() - 2..], ["BackgroundTraffic", "ShiftingTraffic"]);
    world.until(StateName::Judging);
    let judged = world.now;
    world.until(StateName::Scaling);
    let record = world.records.last().unwrap();
    let errors = &record.metrics[0];
    assert_eq!(errors.background, Some(0.25));
    // Whole rounds of 30 requests a second, of which a tenth are the canary's.
    #[allow(clippy::cast_precision_loss, reason = "a short time")]
    let seconds =
        (errors.until.unwrap().as_millisecond() - errors.from.unwrap().as_millisecond()) as f64 / 1_000.0;
    assert_eq!((errors.canary.exposure, errors.baseline.exposure), (3.25 * seconds, 29.5 * seconds));
    // As without it, but for what shows the canary to be worse: that counts all.
    let mut without = quiet(0.0);
    without.until(StateName::Judging);
    without.until(StateName::Scaling);
    let other = &without.records.last().unwrap().metrics[0];
    assert!((errors.log_e_non_inferior - other.log_e_non_inferior).abs() < 1e-6, "{errors:?} {other:?}");
    assert!((errors.log_e - other.log_e).abs() > 1e-3, "{errors:?} {other:?}");
    let split = record.split.unwrap();
    assert!((split.baseline - 9.0 * split.canary).abs() < 1e-6, "{split:?}");
    assert!(world.now - judged > 29 * MINUTE);
    world.until(StateName::Finalising);
    is_recomputed(&world, &run);
}

#[test]
fn a_busy_service_does_not_wait() {
    let mut world = canary();
    world.usual_traffic = Some(200.0);
    world.sampler.background = 0.25;
    world.release(2);
    world.until(StateName::Judging);
    assert!(world.records.iter().all(|record| record.rule != "BackgroundTraffic"));
    let metrics = world.records.iter().flat_map(|record| &record.metrics);
    assert!(metrics.into_iter().all(|metric| metric.background.is_none()));
}

#[test]
fn what_is_more_than_half_or_fails_is_no_background() {
    for (rate, background, errors) in [(10.0, 2.0, 0.0), (30.0, 0.25, 0.5)] {
        let mut world = with_users(rate, background);
        world.sampler.background_errors = errors;
        world.until(StateName::Judging);
        assert!(world.records.iter().any(|record| record.rule == "BackgroundTraffic"));
        let told = world.status.analysis.as_ref().unwrap();
        assert_eq!(told.checkpoint.as_ref().unwrap().metrics["errors"].background, None);
    }
}

#[test]
fn pods_that_come_and_go_are_waited_for_once() {
    let mut world = quiet(0.25);
    for _ in 0..5 {
        world.versions.get_mut(&hash(2)).unwrap().ready_after = None;
        world.lose_pods(&hash(2), 9);
        world.run_for(40_000);
        world.heal_version(&hash(2));
        world.run_for(20_000);
    }
    let measured = world.records.iter().filter(|record| record.rule == "BackgroundTraffic");
    assert_eq!(measured.count(), 1, "{:?}", world.trace);
    world.until(StateName::Judging);
}

#[test]
fn a_large_part_is_said() {
    let mut world = quiet(1.0);
    world.until(StateName::Judging);
    assert_eq!(world.condition("AnalysisReady"), Some(("False", "BackgroundTraffic")));
    let conditions = &world.status.conditions;
    let said = &conditions.iter().find(|one| one.type_ == "AnalysisReady").unwrap().message;
    assert!(
        said.starts_with("metric errors: 25 % of what it counts at the usual traffic comes without it"),
        "{said}"
    );
}

#[test]
fn a_service_without_it_is_told_from_one_that_was_not_measured() {
    let mut away = quiet(0.25);
    away.sampler.failing_since = Some(away.now);
    away.until(StateName::Judging);
    assert!(away.records.iter().flat_map(|record| &record.metrics).all(|metric| metric.background.is_none()));
    let mut world = quiet(0.0);
    world.until(StateName::Judging);
    let told =
        |world: &World| world.records.iter().flat_map(|record| &record.metrics).last().unwrap().background;
    assert_eq!(told(&world), Some(0.0));
    let status = world.status.analysis.as_ref().unwrap();
    assert_eq!(status.checkpoint.as_ref().unwrap().metrics["errors"].background, Some(0.0));
}

#[test]
fn nothing_is_waited_for_without_end() {
    let mut world = quiet(0.25);
    world.sampler.failing_since = Some(world.now);
    let began = world.now;
    world.until(StateName::Shifting);
    assert!(world.now - began <= 5 * MINUTE, "{} s", (world.now - began) / 1_000);
    world.sampler.failing_since = None;
    world.until(StateName::Finalising);
}

#[test]
fn pods_that_fail_meanwhile_get_all_their_time() {
    let mut world = quiet(0.25);
    let measures = |world: &World| reason(world) == "BackgroundTraffic";
    while !measures(&world) {
        world.run_for(1_000);
    }
    world.versions.get_mut(&hash(2)).unwrap().ready_after = None;
    world.lose_pods(&hash(2), 1);
    let lost = world.now;
    world.run_for(4 * MINUTE);
    assert_eq!((world.state(), reason(&world)), (StateName::Scaling, "ScalingPods"), "{}", world.now - lost);
    world.heal_version(&hash(2));
    world.until(StateName::Finalising);
}

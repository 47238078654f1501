//! A fresh baseline: when its pods come and go.

use super::replayed::recomputed;
use super::*;

/// A Rollout of ten pods that compares with a fresh baseline.
fn fresh() -> World {
    let mut spec = spec(&[step("25%"), step("50%")], true);
    spec.strategy.canary.baseline = Some(Baseline::Fresh);
    World::settled(spec)
}

/// Pods of the canary, and of a fresh baseline.
fn pods(world: &World) -> [i32; 2] {
    [hash(2), baseline_of(&hash(1))].map(|hash| world.sets.get(&hash).map_or(0, |set| set.desired))
}

#[test]
fn a_fresh_baseline_grows_with_the_canary_and_goes_with_the_old_pods() {
    let mut world = fresh();
    assert_eq!(pods(&world), [0, 0]);
    world.release(2);
    world.until(StateName::Judging);
    assert_eq!(pods(&world), [3, 3]);
    let run = world.runs.values().next().unwrap().clone();
    world.until(StateName::Promoting);
    assert_eq!(pods(&world), [10, 5]);
    assert_eq!(world.status.traffic.as_ref().unwrap().observed_share, None, "of a part nobody knows");
    world.until(StateName::Healthy);
    assert_eq!(pods(&world), [10, 5]);
    // 25 % of 200 requests a second against what three of thirteen pods get of the rest, for as long.
    let passed = world.records.iter().find(|record| record.rule == "StepPassed").unwrap();
    let [canary, baseline] = [&passed.metrics[0].canary, &passed.metrics[0].baseline].map(|c| c.exposure);
    assert!((canary / baseline - 50.0 / (150.0 * 3.0 / 13.0)).abs() < 0.01, "{canary} of {baseline}");
    let found = recomputed(&world, &run, &world.records);
    let differ: Vec<_> = found.iter().filter(|checked| !checked.is_same()).collect();
    assert!(found.len() >= 6 && differ.is_empty(), "{differ:#?}");
    world.run_for(2 * MINUTE);
    assert_eq!((pods(&world), world.sets[&hash(1)].desired), ([10, 0], 0));
}

#[test]
fn a_fresh_baseline_stays_until_a_run_has_gone_back() {
    let mut world = fresh();
    world.release(2);
    world.until(StateName::Judging);
    world.versions.get_mut(&hash(2)).unwrap().error_rate = 0.2;
    world.until(StateName::RollingBack);
    assert_eq!(pods(&world), [3, 3]);
    world.until(StateName::Degraded);
    assert_eq!(pods(&world), [0, 0]);
    // The next run starts its own.
    world.release(3);
    world.until(StateName::Judging);
    assert_eq!(pods(&world), [0, 3]);
    world.delete();
    world.run_for(10 * MINUTE);
    assert!(world.gone && pods(&world) == [0, 0], "{}", world.status.message);
}

#[test]
fn no_weight_before_the_baseline_is_there() {
    let mut world = fresh();
    // Its pods are as the new ones of a version that is broken meanwhile; those that are there stay.
    world.versions.get_mut(&hash(1)).unwrap().ready_after = None;
    world.release(2);
    world.until(StateName::Scaling);
    world.run_for(4 * MINUTE);
    assert_eq!((world.state(), world.weight(), pods(&world)), (StateName::Scaling, 0, [3, 3]));
    world.until(StateName::RollingBack);
    let told = &world.records.last().unwrap().message;
    assert!(told.starts_with("0 of 3 pods of the baseline"), "{told}");
    world.until(StateName::Degraded);
    assert_eq!(pods(&world), [0, 0]);
}

#[test]
fn what_an_earlier_run_has_left_goes_before_the_first_step() {
    let mut world = fresh();
    world.release(2);
    world.until(StateName::Judging);
    // The pods stay when the run has gone back: the controller ends before it has written that.
    world.abort();
    world.until(StateName::RollingBack);
    let left = world.sets[&baseline_of(&hash(1))].clone();
    world.until(StateName::Degraded);
    world.release(3);
    world.until(StateName::Preparing);
    world.sets.insert(baseline_of(&hash(1)), left.clone());
    world.poke();
    world.until(StateName::Judging);
    let now = &world.sets[&baseline_of(&hash(1))];
    assert!(now.desired == 3 && now.pods.keys().all(|pod| !left.pods.contains_key(pod)), "{now:?}");
}

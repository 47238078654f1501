//! Each decision is computed again from its record.

use super::*;

/// The decisions of the run in flight once more, by a source that has kept all samples.
pub(crate) fn recomputed(world: &World, run: &RolloutRunSpec, records: &[DecisionRecord]) -> Vec<Checked> {
    let conduct = Conduct::compile(&run.strategy, &run.analysis, run.sampling, &run.calibration).unwrap();
    let mut replay = Replay::new(run, &conduct, records).unwrap();
    let mut found = Vec::new();
    loop {
        match replay.advance() {
            Next::Ask(query, until) => replay.take(&world.sampler.later(&query, until)),
            Next::Checked(checked) => found.push(*checked),
            Next::End => return found,
        }
    }
}

pub(crate) fn is_recomputed(world: &World, run: &RolloutRunSpec) {
    let found = recomputed(world, run, &world.records);
    let differ: Vec<_> = found.iter().filter(|checked| !checked.is_same()).collect();
    assert!(differ.is_empty(), "{differ:#?}\n{:#?}", world.records);
}

pub(crate) fn run(world: &World) -> RolloutRunSpec {
    world.runs.values().next().unwrap().clone()
}

#[test]
fn a_metric_that_becomes_too_wide_is_recomputed_in_both_forms() {
    let mut world = released(StateName::Judging);
    let run = run(&world);
    world.sampler.wide_since = Some(world.now + MINUTE);
    world.until(StateName::Finalising);
    let metrics = || world.records.iter().flat_map(|record| &record.metrics);
    let since: Vec<Instant> = metrics().filter_map(|metric| metric.summed_since).collect();
    assert!(metrics().any(|metric| metric.summed_since.is_none()) && !since.is_empty());
    assert!(since.iter().all(|one| *one == since[0]), "{since:?}");
    is_recomputed(&world, &run);

    // In the other form the evidence is another.
    for metric in world.records.iter_mut().flat_map(|record| &mut record.metrics) {
        metric.summed_since = None;
    }
    let found = recomputed(&world, &run, &world.records);
    assert!(found.iter().any(|checked| checked.differs.iter().any(|(then, now)| then.canary != now.canary)));
}

#[test]
fn every_decision_can_be_recomputed_from_its_record() {
    let judging = || released(StateName::Judging);
    let mut good = judging();
    let mut bad = judging();
    bad.versions.get_mut(&hash(2)).unwrap().error_rate = 0.06;
    let mut away = judging();
    away.sampler.failing_since = Some(away.now);
    away.run_for(6 * MINUTE);
    away.sampler.failing_since = None;
    let mut lost = World::settled(spec(&[step("50%"), step("70%")], true));
    lost.release(2);
    lost.until(StateName::Judging);
    lost.versions.get_mut(&hash(2)).unwrap().ready_after = None;
    lost.lose_pods(&hash(2), 3);
    lost.until(StateName::Holding);
    lost.heal_version(&hash(2));
    let mut flapping = judging();
    flapping.run_for(MINUTE);
    flapping.break_version(&hash(1));
    flapping.run_for(20_000);
    flapping.heal_version(&hash(1));
    for (world, end, checks) in [
        (&mut flapping, StateName::Finalising, 10),
        (&mut good, StateName::Finalising, 10),
        (&mut bad, StateName::Degraded, 3),
        (&mut away, StateName::Finalising, 10),
        (&mut lost, StateName::Finalising, 8),
    ] {
        let run = world.runs.values().next().unwrap().clone();
        world.until(end);
        let found = recomputed(world, &run, &world.records);
        assert!(found.len() >= checks, "{}", found.len());
        let differ: Vec<_> = found.iter().filter(|checked| !checked.is_same()).collect();
        assert!(differ.is_empty(), "{differ:#?}\n{:#?}", world.records);
    }
}

#[test]
fn a_record_that_was_changed_is_found() {
    let mut world = released(StateName::Judging);
    world.versions.get_mut(&hash(2)).unwrap().error_rate = 0.06;
    let run = world.runs.values().next().unwrap().clone();
    world.until(StateName::Degraded);
    let regression = world.records.iter().position(|r| r.rule == "Regression").unwrap();
    let found = |change: fn(&mut DecisionRecord)| {
        let mut records = world.records.clone();
        change(&mut records[regression]);
        let number = records[regression].number;
        recomputed(&world, &run, &records).into_iter().find(|checked| checked.number == number).unwrap()
    };
    assert!(found(|_| ()).is_same());
    let fewer = found(|record| record.metrics[0].canary.events -= 1.0);
    assert!(fewer.differs.len() == 1 && !fewer.unfounded);
    // An earlier look, at which the evidence did not yet suffice.
    let early = found(|record| {
        let metric = &mut record.metrics[0];
        metric.until = metric
            .from
            .map(|from| Instant::from_millisecond(from.as_millisecond() + world::INTERVAL).unwrap());
    });
    assert!(early.unfounded, "{early:?}");
}

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
    let canary = |metric: &Option<MetricRecord>| metric.as_ref().map(|metric| metric.canary);
    let differs = |checked: &Checked| checked.differs.iter().any(|(then, now)| canary(then) != canary(now));
    assert!(found.iter().any(differs));
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

/// What has become of the decision at that place when its record, or another, is changed.
fn changed(
    world: &World,
    run: &RolloutRunSpec,
    at: usize,
    change: impl Fn(&mut Vec<DecisionRecord>),
) -> Checked {
    let mut records = world.records.clone();
    change(&mut records);
    let number = world.records[at].number;
    recomputed(world, run, &records).into_iter().find(|checked| checked.number == number).unwrap()
}

fn strip(record: &mut DecisionRecord) {
    record.metrics.clear();
    record.gauges.clear();
    record.expressions.clear();
    record.split = None;
}

#[test]
fn evidence_that_is_not_in_the_record_is_told() {
    let mut world = released(StateName::Judging);
    let run = run(&world);
    world.until(StateName::Finalising);
    let places = |rule: &str| {
        let all = world.records.iter().enumerate().filter(|(_, record)| record.rule == rule);
        all.map(|(at, _)| at).collect::<Vec<_>>()
    };
    for at in [places("StepPassed"), places("LastStepPassed"), places("Collecting")].concat() {
        let bare = changed(&world, &run, at, |records| strip(&mut records[at]));
        assert!(bare.lacks == Some(Lacks::Evidence) && !bare.is_same(), "{bare:?}");
    }
    let at = places("StepPassed")[0];
    // Whatever else the record does not say.
    let bare = changed(&world, &run, at, |records| {
        strip(&mut records[at]);
        records[at].after = None;
    });
    assert_eq!(bare.lacks, Some(Lacks::Evidence));
    // What was merged into it, or lies before it.
    let merged = changed(&world, &run, at, |records| records[at].gap = Some(true));
    assert_eq!((merged.lacks, merged.differs.len()), (Some(Lacks::Decisions), 0));
    let jumps = changed(&world, &run, at, |records| drop(records.remove(at - 1)));
    assert_eq!((jumps.lacks, jumps.differs.len()), (Some(Lacks::Decisions), 0));
    // A part of it.
    let half = changed(&world, &run, at, |records| records[at].split = None);
    assert!(matches!(half.split, Some((None, Some(_)))) && !half.is_same(), "{half:?}");
    let twice = changed(&world, &run, at, |records| {
        let again = records[at].metrics[0].clone();
        records[at].metrics.push(again);
    });
    assert!(matches!(twice.differs[..], [(Some(_), None)]) && twice.lacks.is_none(), "{twice:?}");
    let other = changed(&world, &run, at, |records| records[at].metrics[0].name = "other".to_owned());
    assert!(matches!(other.differs[..], [(Some(_), None), (None, Some(_))]), "{other:?}");
    // That the canary was silent.
    let heard = changed(&world, &run, at, |records| records[at].rule = "NoData".to_owned());
    assert!(heard.unfounded && heard.differs.is_empty(), "{heard:?}");
}

#[test]
fn without_metrics_there_is_no_evidence_to_miss() {
    let mut world = World::settled(spec(&[step("5%"), step("50%")], false));
    world.release(2);
    world.until(StateName::Judging);
    let run = run(&world);
    world.until(StateName::Finalising);
    assert!(world.records.iter().any(|record| record.rule == "NotAnalysed"));
    assert!(recomputed(&world, &run, &world.records).is_empty());
}

#[test]
fn a_silent_canary_is_silent_once_more() {
    let mut world = canary();
    world.versions.get_mut(&hash(2)).unwrap().scraped = false;
    world.release(2);
    world.until(StateName::Paused);
    assert_eq!(reason(&world), "NoData");
    is_recomputed(&world, &run(&world));
}

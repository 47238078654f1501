mod expressions;
mod gauges;
mod kinds;
mod size;
mod split;

use davylamp_api::rollout::{Analysis, Strategy as Release};
use davylamp_api::run::{Calibrated, Sampling};
use davylamp_api::scalar::Duration;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::calibration;
use crate::decision::{MetricQuery, Named};
use crate::observed::{Bucket, Increment, MetricSamples, Observed, Pod, Revision, Samples};
use crate::program::{Conduct, Problem};

/// When the weight became effective.
const T0: i64 = 1_767_225_600_000;
const SECOND: i64 = 1_000;
const INTERVAL: i64 = 15 * SECOND;
const SETTLE: i64 = 30 * SECOND;
const WARMUP: i64 = 60 * SECOND;

fn plan() -> Plan {
    plan_of(&json!([{"name": "errors", "ratio": {"events": "errors_total", "total": "requests_total"}}]))
}

fn plan_of(metrics: &serde_json::Value) -> Plan {
    compiled("stable", metrics).unwrap().analysis
}

fn compiled(baseline: &str, metrics: &serde_json::Value) -> Result<Conduct, Vec<Problem>> {
    let strategy: Release = serde_json::from_value(json!({
        "canary": {"steps": [{"weight": "50%"}], "baseline": baseline},
        "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": "shop"}]}}]
    }))
    .unwrap();
    let analysis: Analysis = serde_json::from_value(json!({
        "source": "prometheus", "warmup": "60s", "settle": "30s", "metrics": metrics
    }))
    .unwrap();
    let sampling = Sampling { scrape_interval: Duration::from_secs(15), delay: Duration::from_secs(15) };
    Conduct::compile(&strategy, &analysis, Some(sampling), &BTreeMap::new())
}

fn time(ms: i64) -> Instant {
    Instant::from_millisecond(ms).unwrap()
}

fn ready_since(ready_at: i64) -> Pod {
    Pod { created_at: time(ready_at), ready_at: Some(time(ready_at)) }
}

/// Two pods, both ready since then.
fn pods(ready_at: i64) -> Observed {
    let revision = |pod: &str| Revision {
        pods: BTreeMap::from([(pod.to_owned(), ready_since(ready_at))]),
        ..Revision::default()
    };
    Observed {
        revisions: BTreeMap::from([
            ("new".to_owned(), revision("shop-new-1")),
            ("old".to_owned(), revision("shop-old-1")),
        ]),
        ..Observed::default()
    }
}

fn cohorts() -> Named {
    Named::of("shop", "new", "old", None)
}

type Targets = BTreeMap<String, Vec<Increment>>;

fn samples(since: i64, until: i64, pods: &BTreeMap<String, Targets>) -> Samples {
    let asked = |increments: &Vec<Increment>| -> Vec<Increment> {
        increments.iter().filter(|i| i.to > since && i.to <= until).cloned().collect()
    };
    let pods = pods.iter().map(|(pod, targets)| {
        let targets = targets.iter().map(|(target, all)| (target.clone(), asked(all)));
        (pod.clone(), targets.collect())
    });
    let metric = MetricSamples { pods: pods.collect() };
    Samples { since, until, metrics: BTreeMap::from([("errors".to_owned(), metric)]), ..Samples::default() }
}

/// One target scraped each interval at that offset, with events and total of each scrape.
fn scraped(offset: i64, counts: &[(f64, f64)]) -> Vec<Increment> {
    let scrape = |i: i64| T0 + offset + i * INTERVAL;
    (0..)
        .zip(counts)
        .map(|(i, (events, total))| Increment {
            from: scrape(i),
            to: scrape(i + 1),
            events: *events,
            total: *total,
            buckets: Vec::new(),
        })
        .collect()
}

fn world(canary: &[(f64, f64)], baseline: &[(f64, f64)]) -> BTreeMap<String, Targets> {
    BTreeMap::from([
        ("shop-new-1".to_owned(), BTreeMap::from([("a".to_owned(), scraped(3_000, canary))])),
        ("shop-old-1".to_owned(), BTreeMap::from([("a".to_owned(), scraped(7_000, baseline))])),
    ])
}

fn opened(plan: &Plan) -> Checkpoint {
    let mut fold = Fold::new(plan, &Checkpoint::default(), Percent::from_basis_points(5_000), Percent::FULL);
    fold.begin_step(Percent::from_basis_points(5_000), Percent::FULL, 180 * SECOND);
    fold.open(time(T0), &Observed::default());
    fold.checkpoint(time(T0))
}

/// Folds up to that time from a checkpoint, as one process does in one pass; the looks, and the next checkpoint.
fn fold(
    plan: &Plan,
    from: &Checkpoint,
    until: i64,
    pods: &BTreeMap<String, Targets>,
    observed: &Observed,
) -> (Vec<i64>, Checkpoint) {
    let mut fold = Fold::new(plan, from, Percent::from_basis_points(5_000), Percent::FULL);
    fold.take(&samples(from.folded_until, until, pods), observed, &cohorts());
    let looks = std::iter::from_fn(|| fold.look()).collect();
    (looks, fold.checkpoint(time(T0)))
}

fn exposure(checkpoint: &Checkpoint) -> (f64, f64) {
    let row = checkpoint.metrics["errors"].rows[0];
    (row[2], row[3])
}

const LONG_AGO: i64 = T0 - 3_600_000;

#[test]
fn rounds_lie_on_the_grid_and_looks_at_their_ends() {
    let plan = plan();
    let (looks, _) = fold(&plan, &opened(&plan), T0 + 100_000, &world(&[], &[]), &pods(LONG_AGO));
    assert_eq!(looks, [45, 60, 75, 90].map(|s| T0 + s * SECOND));
}

#[test]
fn the_settle_time_is_left_out() {
    let plan = plan();
    let all = world(&[(0.0, 100.0); 8], &[(0.0, 100.0); 8]);
    let (_, checkpoint) = fold(&plan, &opened(&plan), T0 + 90 * SECOND, &all, &pods(LONG_AGO));
    // From 33 s and 37 s on: the earlier sample of an increment lies after 30 s.
    assert_eq!(exposure(&checkpoint), (300.0, 300.0));
    assert_eq!(checkpoint.from, T0 + SETTLE);
}

#[test]
fn young_pods_are_left_out_in_both_cohorts() {
    let plan = plan();
    let all = world(&[(0.0, 100.0); 8], &[(0.0, 100.0); 8]);
    let (_, checkpoint) = fold(&plan, &opened(&plan), T0 + 120 * SECOND, &all, &pods(T0));
    // From 63 s and 67 s on.
    assert_eq!(exposure(&checkpoint), (300.0, 300.0));
    assert_eq!(checkpoint.young.len(), 2, "the record of this step says from when they counted");
    let (_, later) = fold(&plan, &opened(&plan), T0 + 120 * SECOND, &all, &pods(T0 - WARMUP));
    assert!(later.young.is_empty(), "they were warm when it began");
    let (_, early) = fold(&plan, &opened(&plan), T0 + WARMUP - SECOND, &all, &pods(T0));
    assert_eq!(early.young["shop-new-1"], T0, "a restart must not forget that they are young");
}

#[test]
fn a_pod_that_is_not_ready_for_a_while_counts_all_the_time() {
    let plan = plan();
    let all = world(&[(10.0, 100.0); 12], &[(0.0, 100.0); 12]);
    let mut fold = Fold::new(&plan, &Checkpoint::default(), Percent::from_basis_points(5_000), Percent::FULL);
    fold.begin_step(Percent::from_basis_points(5_000), Percent::FULL, 180 * SECOND);
    fold.open(time(T0), &pods(LONG_AGO));
    let mut pass = |until, ready_at: Option<i64>| {
        let mut observed = pods(LONG_AGO);
        let canary = observed.revisions.get_mut("new").unwrap();
        canary.pods.insert(
            "shop-new-1".to_owned(),
            Pod { created_at: time(LONG_AGO), ready_at: ready_at.map(time) },
        );
        let since = fold.folded_until();
        fold.take(&samples(since, until, &all), &observed, &cohorts());
        while fold.look().is_some() {}
    };
    pass(T0 + 75 * SECOND, Some(LONG_AGO));
    pass(T0 + 105 * SECOND, None);
    pass(T0 + 150 * SECOND, Some(T0 + 110 * SECOND));
    let checkpoint = fold.checkpoint(time(T0));
    assert_eq!(exposure(&checkpoint), (700.0, 700.0));
    assert!(checkpoint.young.is_empty(), "{:?}", checkpoint.young);
}

#[test]
fn a_pod_that_was_never_ready_counts_once_it_is_warm() {
    let plan = plan();
    let all = world(&[(10.0, 100.0); 12], &[(0.0, 100.0); 12]);
    let unready = |created_at| Pod { created_at: time(created_at), ready_at: None };
    // It is there when the step begins, or comes later.
    for created_at in [LONG_AGO, T0 + 20 * SECOND] {
        let mut observed = pods(LONG_AGO);
        let mut fold =
            Fold::new(&plan, &Checkpoint::default(), Percent::from_basis_points(5_000), Percent::FULL);
        fold.begin_step(Percent::from_basis_points(5_000), Percent::FULL, 180 * SECOND);
        let canary = &mut observed.revisions.get_mut("new").unwrap().pods;
        canary.clear();
        if created_at == LONG_AGO {
            canary.insert("shop-new-1".to_owned(), unready(created_at));
        }
        fold.open(time(T0), &observed);
        for (until, ready) in [(T0 + 75 * SECOND, None), (T0 + 180 * SECOND, Some(time(T0 + 70 * SECOND)))] {
            let pod = Pod { ready_at: ready, ..unready(created_at) };
            observed.revisions.get_mut("new").unwrap().pods.insert("shop-new-1".to_owned(), pod);
            let since = fold.folded_until();
            fold.take(&samples(since, until, &all), &observed, &cohorts());
            while fold.look().is_some() {}
            if ready.is_none() {
                let (_, young) = fold.left_out();
                assert_eq!(young["shop-new-1"].to_string(), "9999-01-01T00:01:00Z");
            }
        }
        let (_, young) = fold.left_out();
        assert_eq!(young, BTreeMap::from([("shop-new-1".to_owned(), time(T0 + 130 * SECOND))]));
        // From 138 s on.
        assert_eq!(exposure(&fold.checkpoint(time(T0))).0.to_bits(), 200.0_f64.to_bits());
    }
}

#[test]
fn a_canary_that_warms_up_is_not_silent() {
    let plan = plan();
    let all = world(&[(0.0, 100.0); 12], &[(0.0, 100.0); 12]);
    let mut observed = pods(LONG_AGO);
    let canary = observed.revisions.get_mut("new").unwrap();
    canary.pods.insert("shop-new-1".to_owned(), ready_since(T0 + 60 * SECOND));
    let mut fold = Fold::new(&plan, &opened(&plan), Percent::from_basis_points(5_000), Percent::FULL);
    fold.take(&samples(T0 + SETTLE, T0 + 150 * SECOND, &all), &observed, &cohorts());
    while let Some(look) = fold.look() {
        assert!(
            fold.missing().is_none(),
            "its requests are seen, {} s after the weight",
            (look - T0) / SECOND
        );
    }
    assert_eq!(exposure(&fold.checkpoint(time(T0))), (100.0, 100.0), "and do not count before it is warm");
}

#[test]
fn when_both_fall_silent_it_is_no_traffic_whoever_is_heard_last() {
    let plan = plan();
    let heard = |rounds: usize| -> Vec<(f64, f64)> {
        (0..14).map(|round| (0.0, if round < rounds { 100.0 } else { 0.0 })).collect()
    };
    let missing = |canary: usize, baseline: usize| {
        let all = world(&heard(canary), &heard(baseline));
        let mut fold = Fold::new(&plan, &opened(&plan), Percent::from_basis_points(5_000), Percent::FULL);
        fold.take(&samples(T0 + SETTLE, T0 + 200 * SECOND, &all), &pods(LONG_AGO), &cohorts());
        std::iter::from_fn(|| fold.look().map(|_| fold.missing())).find_map(|missing| missing)
    };
    assert_eq!(missing(6, 6), Some(Missing::Requests));
    assert_eq!(missing(6, 7), Some(Missing::Requests));
    assert_eq!(missing(7, 6), Some(Missing::Requests));
    assert_eq!(missing(6, 14), Some(Missing::Canary));
}

#[test]
fn two_targets_of_one_pod_do_not_double_the_evidence() {
    let plan = plan();
    let mut all = world(&[(5.0, 100.0); 8], &[(1.0, 100.0); 8]);
    let (_, once) = fold(&plan, &opened(&plan), T0 + 120 * SECOND, &all, &pods(LONG_AGO));
    for targets in all.values_mut() {
        let twice = targets["a"].clone();
        targets.insert("b".to_owned(), twice);
    }
    let (_, twice) = fold(&plan, &opened(&plan), T0 + 120 * SECOND, &all, &pods(LONG_AGO));
    assert_eq!(once.metrics, twice.metrics);
    assert_eq!(twice.targets.len(), 2);
}

#[test]
fn pods_with_two_targets_are_named_also_after_a_checkpoint() {
    let plan = plan();
    let mut all = world(&[(5.0, 100.0); 8], &[(1.0, 100.0); 8]);
    for targets in all.values_mut() {
        let twice = targets["a"].clone();
        targets.insert("b".to_owned(), twice);
    }
    let (_, kept) = fold(&plan, &opened(&plan), T0 + 90 * SECOND, &all, &pods(LONG_AGO));
    let mut next = Fold::new(&plan, &kept, Percent::from_basis_points(5_000), Percent::FULL);
    next.take(&samples(kept.folded_until, T0 + 120 * SECOND, &all), &pods(LONG_AGO), &cohorts());
    assert_eq!(next.duplicates.len(), 2);
}

#[test]
fn a_second_target_that_comes_later_adds_nothing() {
    let plan = plan();
    let mut all = world(&[(5.0, 100.0); 12], &[(1.0, 100.0); 12]);
    let (_, first) = fold(&plan, &opened(&plan), T0 + 90 * SECOND, &all, &pods(LONG_AGO));
    let (_, alone) = fold(&plan, &first, T0 + 180 * SECOND, &all, &pods(LONG_AGO));
    for targets in all.values_mut() {
        let twice = targets["a"].clone();
        targets.insert("A".to_owned(), twice);
    }
    let (_, both) = fold(&plan, &first, T0 + 180 * SECOND, &all, &pods(LONG_AGO));
    let ((c1, b1), (c2, b2)) = (exposure(&alone), exposure(&both));
    assert!(c2 <= c1 && b2 <= b1 && c2 >= c1 - 100.0 && b2 >= b1 - 100.0, "at most one scrape is lost");
}

#[test]
fn a_scrape_that_is_missed_is_taken_from_the_other_target_and_never_twice() {
    let plan = plan();
    let mut all = world(&[(5.0, 100.0); 12], &[(1.0, 100.0); 12]);
    let (_, once) = fold(&plan, &opened(&plan), T0 + 180 * SECOND, &all, &pods(LONG_AGO));
    let targets = all.get_mut("shop-new-1").unwrap();
    targets.insert("b".to_owned(), scraped(11_000, &[(5.0, 100.0); 12]));
    // One scrape of the first is missed: its next increment is of both.
    let first = targets.get_mut("a").unwrap();
    let missed = first.remove(6);
    first[6] = Increment {
        from: missed.from,
        events: missed.events * 2.0,
        total: missed.total * 2.0,
        ..first[6].clone()
    };
    let (_, twice) = fold(&plan, &opened(&plan), T0 + 180 * SECOND, &all, &pods(LONG_AGO));
    let lost = exposure(&once).0 - exposure(&twice).0;
    assert!((0.0..=100.0).contains(&lost), "{lost}");
}

#[test]
fn late_samples_are_dropped_with_both_their_counts() {
    let plan = plan();
    let mut all = world(&[(0.0, 100.0); 8], &[(0.0, 100.0); 8]);
    let late = all.get_mut("shop-new-1").unwrap().get_mut("a").unwrap().pop().unwrap();
    let (_, first) = fold(&plan, &opened(&plan), T0 + 150 * SECOND, &all, &pods(LONG_AGO));
    all.get_mut("shop-new-1").unwrap().get_mut("a").unwrap().push(late);
    let (looks, second) = fold(&plan, &first, T0 + 150 * SECOND, &all, &pods(LONG_AGO));
    assert!(looks.is_empty());
    assert_eq!(first.metrics, second.metrics);
}

#[test]
fn what_was_asked_too_late_is_not_folded() {
    let plan = plan();
    let all = world(&[(0.0, 100.0); 8], &[(0.0, 100.0); 8]);
    let start = opened(&plan);
    let mut fold = Fold::new(&plan, &start, Percent::from_basis_points(5_000), Percent::FULL);
    fold.take(&samples(start.folded_until + 1, T0 + 120 * SECOND, &all), &pods(LONG_AGO), &cohorts());
    assert_eq!(fold.look(), None, "a gap between checkpoint and samples would lose data");
}

/// So many pods of the baseline, each with the same counts.
fn many(baseline: usize, counts: &[(f64, f64)]) -> (BTreeMap<String, Targets>, Observed) {
    let (mut all, mut observed) = (world(counts, counts), pods(LONG_AGO));
    let old = observed.revisions.get_mut("old").unwrap();
    for i in 1..baseline {
        let name = format!("shop-old-x{i}");
        all.insert(name.clone(), BTreeMap::from([("a".to_owned(), scraped(7_000, counts))]));
        old.pods.insert(name, ready_since(LONG_AGO));
    }
    (all, observed)
}

#[test]
fn what_pods_differ_by_widens_the_tolerance_for_those_that_count() {
    let mut plan = plan();
    let (all, observed) = many(19, &[(1.0, 100.0); 12]);
    let (_, kept) = fold(&plan, &opened(&plan), T0 + 90 * SECOND, &all, &observed);
    assert_eq!(kept.metrics["errors"].pods, Some([1, 19]));
    let of = |plan: &Plan, kept: &Checkpoint| {
        let fold = Fold::new(plan, kept, Percent::from_basis_points(5_000), Percent::FULL);
        (fold.statuses()[0].tolerated, fold.records()[0].margin)
    };
    // 1.1·exp(2.326·0.05·√(1 + 1/19)) and 1.5·exp(−1.645·0.05·√(1 + 1/19)).
    assert_eq!(of(&plan, &kept), (1.239_427, 1.378_624));
    assert_eq!(of(&plan, &opened(&plan)), (1.1, 1.5), "nobody counts yet");
    let learnt = Calibrated { pod_effect: 0.1, ..calibration::defaults(INTERVAL) };
    plan.calibrate(plan.sampling, &BTreeMap::from([("errors".to_owned(), learnt)]));
    let (tolerated, margin) = of(&plan, &kept);
    assert!((tolerated - 1.1 * (1.239_427 / 1.1_f64).powi(2)).abs() < 1e-5, "{tolerated}");
    assert!((margin - 1.5 * (1.378_624 / 1.5_f64).powi(2)).abs() < 1e-5, "{margin}");
}

#[test]
fn a_tolerance_holds_for_its_whole_block() {
    let mut plan = plan();
    let learnt = Calibrated { block: Duration::from_secs(60), ..calibration::defaults(INTERVAL) };
    plan.calibrate(plan.sampling, &BTreeMap::from([("errors".to_owned(), learnt)]));
    let (mut all, observed) = many(4, &[(1.0, 100.0); 12]);
    // Three pods fall silent in the middle of the first block.
    for (_, targets) in all.iter_mut().filter(|(pod, _)| pod.starts_with("shop-old-x")) {
        targets.get_mut("a").unwrap().truncate(4);
    }
    let pods = |until: i64| {
        let (_, kept) = fold(&plan, &opened(&plan), T0 + until * SECOND, &all, &observed);
        (kept.metrics["errors"].pods, (kept.metrics["errors"].block_until - T0) / SECOND)
    };
    assert_eq!(
        [pods(60), pods(105), pods(120)],
        [(Some([1, 4]), 105), (Some([1, 4]), 105), (Some([1, 1]), 165)]
    );
}

#[test]
fn a_record_by_hand_is_read_as_far_as_it_makes_sense() {
    let mut plan = plan();
    let mut read = |block: u64, clip: f64, pod_effect: f64| {
        let learnt =
            Calibrated { block: Duration::from_millis(block), clip, pod_effect, ..Calibrated::default() };
        plan.calibrate(plan.sampling, &BTreeMap::from([("errors".to_owned(), learnt)]));
        let metric = &plan.metrics[0];
        (metric.block / SECOND, metric.clip, metric.pod_effect)
    };
    assert_eq!(read(30_000, 1.5, 0.2), (30, 1.5, 0.2));
    assert_eq!(read(31_000, 1.5, 0.0), (45, 1.5, 0.0));
    let ln_10 = std::f64::consts::LN_10;
    assert_eq!(read(0, 0.0, -1.0), (15, ln_10, 0.05));
    assert_eq!(read(u64::MAX, f64::NAN, f64::NAN), (3_615, ln_10, 0.05));
    assert_eq!(read(15_000, 99.0, 99.0), (15, ln_10, 0.05));
}

fn counts() -> impl proptest::strategy::Strategy<Value = Vec<(f64, f64)>> {
    prop::collection::vec((0_u32..5, 0_u32..200), 30)
        .prop_map(|all| all.into_iter().map(|(x, n)| (f64::from(x.min(n)), f64::from(n))).collect::<Vec<_>>())
}

proptest! {
    /// However often it is asked, and however often it is written down and read again.
    #[test]
    fn the_same_samples_give_the_same_bits(
        canary in counts(),
        baseline in counts(),
        double in any::<bool>(),
        missed in prop::collection::btree_set(0_usize..30, 0..6),
        gone in 10_usize..40,
        mut polls in prop::collection::vec(0_i64..460, 1..40),
    ) {
        let (plan, observed) = (plan(), pods(T0 - 20 * SECOND));
        let mut all = world(&canary, &baseline);
        if double {
            let targets = all.get_mut("shop-new-1").unwrap();
            let second = scraped(11_000, &canary);
            targets.insert("b".to_owned(), second);
            let first = targets.get_mut("a").unwrap();
            first.truncate(gone);
            let mut n = 0;
            first.retain(|_| {
                n += 1;
                !missed.contains(&(n - 1))
            });
        }
        let end = T0 + 460 * SECOND;
        let (looks, once) = fold(&plan, &opened(&plan), end, &all, &observed);
        polls.sort_unstable();
        polls.push(460);
        let (mut checkpoint, mut often) = (opened(&plan), Vec::new());
        for poll in polls {
            let (more, next) = fold(&plan, &checkpoint, T0 + poll * SECOND, &all, &observed);
            often.extend(more);
            let text = serde_json::to_string(&next).unwrap();
            checkpoint = serde_json::from_str(&text).unwrap();
        }
        prop_assert_eq!(looks, often);
        prop_assert_eq!(once.metrics, checkpoint.metrics);
        prop_assert_eq!(once.silent, checkpoint.silent);
    }
}

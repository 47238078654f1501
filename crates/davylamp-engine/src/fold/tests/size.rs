//! What is remembered of a long run stays small.

use davylamp_api::status::AnalysisStatus;

use super::gauges::ready;
use super::*;

const DAY: i64 = 86_400_000;
const MINUTE: i64 = 60_000;
const PODS: usize = 16;

/// A number of its own for each of these.
fn noise(parts: [i64; 3]) -> f64 {
    let mixed = parts.iter().fold(7_u64, |sum, part| {
        (sum ^ part.unsigned_abs()).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
    });
    f64::from(u32::try_from(mixed >> 40).unwrap()) / f64::from(1 << 24)
}

/// Twenty of forty buckets, others at each scrape.
fn buckets(seed: [i64; 3]) -> Vec<Bucket> {
    let bound = |i: i32| if i == 0 { f64::NEG_INFINITY } else { 0.001 * 1.2_f64.powi(i) };
    let first = i32::from(noise(seed) < 0.5) * 20;
    let bucket = |i: i32| Bucket {
        lower: bound(i),
        upper: bound(i + 1),
        count: (100.0 * noise([seed[0], seed[1], i64::from(i)])).floor(),
    };
    (first..first + 20).map(bucket).collect()
}

fn ten_metrics() -> Plan {
    let mut metrics = Vec::new();
    for i in 0..4 {
        metrics.push(json!({"name": format!("a-metric-with-a-long-name-of-a-ratio-{i}"), "ratio": {"events": "e", "total": "t"}}));
    }
    for i in 0..2 {
        metrics.push(json!({"name": format!("a-metric-with-a-long-name-of-times-{i}"), "distribution": {"histogram": "h"}}));
    }
    for i in 0..4 {
        metrics.push(
            json!({"name": format!("a-metric-with-a-long-name-of-a-gauge-{i}"), "gauge": {"query": "g"}}),
        );
    }
    plan_of(&json!(metrics))
}

/// Of both cohorts.
fn both() -> BTreeMap<String, Targets> {
    let of = |cohort| (0..PODS).map(move |i| (format!("shop-{cohort}-{i:05}"), Targets::new()));
    ["new", "old"].into_iter().flat_map(of).collect()
}

/// The last analysis, and the most bytes of a checkpoint and of an analysis, when these pods are scraped as each of these targets
/// for so long.
fn remembered(
    plan: &Plan,
    pods: &BTreeMap<String, Targets>,
    observed: &Observed,
    targets: &[&str],
    length: i64,
) -> (AnalysisStatus, [usize; 2]) {
    let (mut checkpoint, mut largest, mut until) = (opened(plan), [0; 2], T0 + MINUTE);
    let mut last = AnalysisStatus::default();
    while until <= T0 + length {
        let since = checkpoint.folded_until;
        let of_metric = |(name, kind): (String, i64)| {
            let of_pod = |(i, pod): (i64, &String)| {
                let increments = (since / INTERVAL..until / INTERVAL).map(|round| {
                    let seed = [round, i, kind];
                    let buckets = if kind == 1 { buckets(seed) } else { Vec::new() };
                    let total = match kind {
                        0 => 100.0,
                        1 => buckets.iter().map(|bucket| bucket.count).sum(),
                        _ => 1.0,
                    };
                    let events =
                        if kind == 2 { 1e8 + 1e6 * noise(seed) } else { (3.0 * noise(seed)).floor() };
                    Increment { from: round * INTERVAL, to: (round + 1) * INTERVAL, events, total, buckets }
                });
                let increments: Vec<_> = increments.collect();
                let of_target = |target: &&str| ((*target).to_owned(), increments.clone());
                (pod.clone(), targets.iter().map(of_target).collect())
            };
            (name, MetricSamples { pods: (0..).zip(pods.keys()).map(of_pod).collect() })
        };
        let kinds = plan.metrics.iter().map(|metric| {
            (metric.name.clone(), i64::from(matches!(metric.query, MetricQuery::Distribution { .. })))
        });
        let gauges = plan.gauges.iter().map(|gauge| (gauge.name.clone(), 2));
        let metrics = kinds.chain(gauges).map(of_metric).collect();
        let mut fold = Fold::new(plan, &checkpoint, Percent::from_basis_points(5_000), Percent::FULL);
        fold.take(&Samples { since, until, metrics, ..Samples::default() }, observed, &cohorts());
        while fold.look().is_some() {}
        checkpoint = fold.checkpoint(time(until));
        last = AnalysisStatus {
            metrics: fold.statuses(),
            gauges: fold.gauges(),
            checkpoint: Some(checkpoint.clone()),
            ..AnalysisStatus::default()
        };
        for (most, size) in largest.iter_mut().zip([size(&checkpoint), size(&last)]) {
            *most = size.max(*most);
        }
        until += MINUTE;
    }
    assert!(checkpoint.folded_until > T0 + length - MINUTE, "all of it was folded");
    (last, largest)
}

fn size(part: &impl serde::Serialize) -> usize {
    serde_json::to_string(part).unwrap().len()
}

#[test]
fn after_a_day_with_ten_metrics_a_status_is_small() {
    let pods = both();
    let (_, largest) = remembered(&ten_metrics(), &pods, &ready(&pods), &["a"], DAY);
    // 1.2 KB a ratio with its incidents, 2 KB a distribution, 1.2 KB a gauge of ten pods.
    let [checkpoint, analysis] = largest;
    assert!(checkpoint <= 15 * 1_024, "a checkpoint of {checkpoint} bytes");
    assert!(analysis <= 18 * 1_024, "an analysis of {analysis} bytes");
}

#[test]
fn with_many_young_pods_that_are_scraped_twice_a_status_is_small() {
    let pods = both();
    let mut observed = ready(&pods);
    let young = (0..300).map(|i| (format!("checkout-5d8f9c77b1-{i:05}"), ready_since(T0 + MINUTE)));
    observed.revisions.get_mut("new").unwrap().pods.extend(young);
    let [one, other] = ["pods", "pods-again"].map(|job| {
        format!("{{container=\"app\",endpoint=\"http\",instance=\"10.244.101.202:8080\",job=\"{job}\"}}")
    });
    let (last, [_, analysis]) = remembered(&ten_metrics(), &pods, &observed, &[&one, &other], 60 * MINUTE);
    let checkpoint = last.checkpoint.unwrap();
    let (young, targets) = (&checkpoint.young, &checkpoint.targets);
    assert!(young.len() == 200 && targets.len() > 20, "{} young, {} targets", young.len(), targets.len());
    // A third of what a status may take: the rest is for what is still to be told, with its evidence.
    assert!(
        analysis <= 32 * 1_024,
        "an analysis of {analysis} bytes, {} for young pods and {} for targets",
        size(young),
        size(targets)
    );
}

//! The whole controller beside the bare statistics: what was recorded of a run is what the tests alone say of the samples
//! that the simulated Prometheus holds, read here in another way. Few seeds by default, as many as `DAVYLAMP_SEEDS` says
//! otherwise.
#![allow(clippy::disallowed_methods, reason = "how much is tested is said by the environment")]

use std::cell::OnceCell;
use std::collections::BTreeMap;

use davylamp_api::run::{DecisionRecord, MetricRecord};
use davylamp_sim::{Report, Scenario, simulate_open};
use davylamp_stats::{Counts, EventProcess, pod_effect_margin, pod_spread};
use davylamp_world::Config;

/// Of each pod, at each scrape: errors and requests so far.
type Pods = BTreeMap<String, BTreeMap<i64, [f64; 2]>>;

const SEEDS: u64 = 5;
const SCRAPE: i64 = 5_000;
/// A pod that was silent for so long starts anew: what happened meanwhile is in no increment.
const MEMORY: i64 = 12_500;
const BLOCK: i64 = 15_000;
const SETTLE: i64 = 5_000;
const FLOOR: f64 = 0.001;

const SERVICE: &str = "
rollout:
  apiVersion: davylamp.dev/v1alpha1
  kind: Rollout
  metadata: {name: shop}
  spec:
    replicas: 5
    selector: {matchLabels: {app: shop}}
    template:
      metadata: {labels: {app: shop}}
      spec:
        containers: [{name: app, image: 'shop:1'}]
    service: shop
    strategy:
      canary: {steps: [{weight: 30%}]}
      traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: shop}]}}]
    analysis:
      source: default
      warmup: 0s
      settle: 5s
      hold: {min: 1m, max: 30m}
      calibration: {history: 0s}
      metrics:
      - name: errors
        ratio: {events: 'http_requests_total{code=~\"5..\"}', total: http_requests_total}
world:
  users: {requestsPerSecond: 100}
  versions:
    shop:1: {errors: 1%}
    shop:2: {errors: CANARY%}
  scrapes: {interval: 5s, lost: 2%}
events:
- {at: 30s, do: {release: 'shop:2'}}
last: 1h
";

#[test]
fn the_evidence_is_that_of_the_bare_statistics() {
    let seeds = std::env::var("DAVYLAMP_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    for (canary, rule) in [("1", "LastStepPassed"), ("2", "Regression"), ("5", "Regression")] {
        let scenario: Scenario = serde_yaml::from_str(&SERVICE.replace("CANARY", canary)).unwrap();
        let mut decided = 0;
        for seed in 1..=seeds {
            let (report, pods) = scraped(&scenario, seed);
            let mut records = report.runs.values().flatten();
            let judging = |record: &&DecisionRecord| record.to == "Judging" && !record.metrics.is_empty();
            let begun = records.clone().find(judging).unwrap();
            let Some(decision) = records.find(|record| record.rule == rule) else { continue };
            decided += 1;
            let after = begun.after.unwrap().as_millisecond();
            let [recorded] = decision.metrics.as_slice() else { panic!("{decision:?}") };
            let (counts, log_e) = bare(&pods, after, recorded);
            let MetricRecord { canary: c, baseline: b, .. } = recorded;
            let held = [counts.x_canary, counts.x_baseline, counts.n_canary, counts.n_baseline];
            let told = [c.events, b.events, c.exposure, b.exposure];
            assert_eq!(told.map(f64::to_bits), held.map(f64::to_bits), "seed {seed}: {told:?}, {held:?}");
            assert!((log_e - recorded.log_e).abs() < 1e-6, "seed {seed}: {log_e}, {recorded:?}");
        }
        assert!(decided * 10 >= seeds * 9, "{canary} %: {decided} of {seeds} end by {rule}");
    }
}

/// What came of it, and all that was scraped meanwhile.
fn scraped(scenario: &Scenario, seed: u64) -> (Report, Pods) {
    let world = OnceCell::new();
    let mut series: BTreeMap<(String, String), BTreeMap<i64, f64>> = BTreeMap::new();
    let start = Config::default().start.as_millisecond();
    let report =
        simulate_open(scenario, seed, &mut |opened| world.set(opened.clone()).unwrap(), &mut |frame| {
            let now = start + i64::try_from(frame.at.as_millis()).unwrap();
            for mut one in world.get().unwrap().query("http_requests_total[5s]", now).unwrap() {
                let [pod, code] = ["pod", "code"].map(|name| one.labels.remove(name).unwrap());
                series.entry((pod, code)).or_default().extend(one.samples);
            }
        });
    let mut pods = Pods::new();
    for ((pod, code), samples) in series {
        let failed = if code.starts_with('5') { 1.0 } else { 0.0 };
        let pod = pods.entry(pod).or_default();
        for (at, value) in samples {
            let sum = pod.entry(at).or_default();
            *sum = [sum[0] + failed * value, sum[1] + value];
        }
    }
    (report.unwrap(), pods)
}

/// All counts until the record's end, and the logarithm of the evidence.
fn bare(pods: &Pods, after: i64, record: &MetricRecord) -> (Counts, f64) {
    let until = record.until.unwrap().as_millisecond();
    let t0 = after - SETTLE;
    // The canary is the younger one.
    let first = |pod: &str| pods[pod].keys().next().copied();
    let hash = |pod: &str| pod.rsplit_once('-').unwrap().0.to_owned();
    let canary = hash(pods.keys().max_by_key(|pod| first(pod)).unwrap());

    let mut rounds: BTreeMap<i64, (Counts, [u32; 2])> = BTreeMap::new();
    for (pod, samples) in pods {
        for ((from, then), (to, now)) in samples.iter().zip(samples.iter().skip(1)) {
            if *from < after || *to > until || to - from >= MEMORY {
                continue;
            }
            let (counts, seen) = rounds.entry((to - t0 + SCRAPE - 1) / SCRAPE).or_default();
            let [events, total] = [now[0] - then[0], now[1] - then[1]];
            if hash(pod) == canary {
                counts.x_canary += events;
                counts.n_canary += total;
                seen[0] += 1;
            } else {
                counts.x_baseline += events;
                counts.n_baseline += total;
                seen[1] += 1;
            }
        }
    }

    let mut all = Counts { x_canary: 0.0, x_baseline: 0.0, n_canary: 0.0, n_baseline: 0.0 };
    let mut process = EventProcess::new(1.1, 15.0, Some(FLOOR)).unwrap();
    let mut block_until = 0;
    for (index, (counts, pods)) in rounds {
        let end = t0 + index * SCRAPE;
        let new_block = end > block_until;
        if new_block {
            if counts.n_canary == 0.0 || counts.n_baseline == 0.0 {
                continue;
            }
            block_until = end - SCRAPE + BLOCK;
            let spread = pod_spread(0.05, pods[0], pods[1]).unwrap();
            process.tolerate(pod_effect_margin(1.1, spread, 0.01).unwrap()).unwrap();
        }
        process.round(&counts, new_block).unwrap();
        all.x_canary += counts.x_canary;
        all.x_baseline += counts.x_baseline;
        all.n_canary += counts.n_canary;
        all.n_baseline += counts.n_baseline;
    }
    (all, process.log_e())
}

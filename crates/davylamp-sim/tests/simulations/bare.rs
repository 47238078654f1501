//! The whole controller beside the bare statistics: what was recorded of a run is what the tests alone say of the samples
//! that the simulated Prometheus holds, read here in another way. Few seeds by default, as many as `DAVYLAMP_SEEDS` says
//! otherwise.
#![allow(clippy::disallowed_methods, reason = "how much is tested is said by the environment")]

use std::cell::OnceCell;
use std::collections::BTreeMap;

use davylamp_api::run::{DecisionRecord, MetricRecord};
use davylamp_sim::{Report, Scenario, simulate_open};
use davylamp_stats::{Counts, EventProcess, Layout, ScoreProcess, pod_effect_margin, pod_spread};
use davylamp_world::Config;

/// Of each pod, what it had counted at each scrape.
type Pods = BTreeMap<String, BTreeMap<i64, Scrape>>;

#[derive(Clone, Default)]
struct Scrape {
    failed: f64,
    requests: f64,
    sign_ups: f64,
    /// By bound, in ms: all up to there.
    below: BTreeMap<u64, f64>,
}

const SEEDS: u64 = 3;
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
      - name: latency
        distribution: {histogram: http_request_duration_seconds}
        tolerance: 10%
      - name: signups
        count: {events: signups_total, exposure: http_requests_total}
        goal: higher
        tolerance: 5%
world:
  users: {requestsPerSecond: 100}
  versions:
    shop:1: {errors: 1%, latency: 100ms, signUps: 5%}
    shop:2: {errors: 1%, latency: 100ms, signUps: 5%}
  scrapes: {interval: 5s, lost: 2%}
events:
- {at: 30s, do: {release: 'shop:2'}}
last: 45m
";

const CANARY: &str = "shop:2: {errors: 1%, latency: 100ms, signUps: 5%}";
const USERS: &str = "users: {requestsPerSecond: 100}";
const RELEASE: &str = "- {at: 30s, do: {release: 'shop:2'}}";

/// What is different, and the rule by which at least nine of ten end, if they do.
const CELLS: [(&str, &str, Option<&str>); 10] = [
    ("", "", None),
    (CANARY, "shop:2: {errors: 2%, latency: 100ms, signUps: 5%}", Some("Regression")),
    (CANARY, "shop:2: {errors: 5%, latency: 100ms, signUps: 5%}", Some("Regression")),
    (CANARY, "shop:2: {errors: 1%, latency: 125ms, signUps: 5%}", None),
    (CANARY, "shop:2: {errors: 1%, latency: 100ms, signUps: 4%}", None),
    (
        RELEASE,
        "- {at: 30s, do: {release: 'shop:2'}}\n- {at: 5m, do: {incident: {last: 5m, errors: 19%}}}",
        None,
    ),
    (USERS, "users: {requestsPerSecond: 100, bursts: {perHour: 40, last: 30s, errors: 30%, pods: 1}}", None),
    ("errors: 1%,", "errors: 1%, podEffect: 0.2,", None),
    (USERS, "users: {requestsPerSecond: 0}", Some("NoTraffic")),
    (USERS, "users: {requestsPerSecond: 2}", Some("Inconclusive")),
];

#[test]
fn the_evidence_is_that_of_the_bare_statistics() {
    let seeds = std::env::var("DAVYLAMP_SEEDS").map_or(SEEDS, |seeds| seeds.parse().unwrap());
    for (from, to, rule) in CELLS {
        assert!(SERVICE.contains(from), "{from}");
        let scenario: Scenario = serde_yaml::from_str(&SERVICE.replace(from, to)).unwrap();
        let (mut decided, mut compared) = (0, 0);
        for seed in 1..=seeds {
            let (report, pods) = scraped(&scenario, seed);
            let records: Vec<&DecisionRecord> = report.runs.values().flatten().collect();
            let begun = records.iter().find(|record| record.to == "Judging").unwrap();
            let after = begun.after.unwrap().as_millisecond();
            decided += u64::from(records.iter().any(|record| Some(record.rule.as_str()) == rule));
            // Those of the first weight, for a later one is other data.
            for record in records.iter().filter(|record| record.after == begun.after) {
                for metric in record.metrics.iter().filter(|metric| metric.until > begun.after) {
                    compared += 1;
                    is_bare(&pods, after, metric, &format!("{to}: seed {seed}: {}", record.number));
                }
            }
        }
        assert!(rule.is_none() || decided * 10 >= seeds * 9, "{to}: {decided} of {seeds} end by {rule:?}");
        assert!(compared >= 3 * seeds, "{to}: {compared}");
    }
}

fn is_bare(pods: &Pods, after: i64, recorded: &MetricRecord, what: &str) {
    let rounds = rounds(pods, after, recorded);
    let close = |log_e: f64| {
        assert!((log_e - recorded.log_e).abs() < 1e-6, "{what}: {log_e}, {recorded:?}");
    };
    let (tolerated, goal_is_higher) = match recorded.name.as_str() {
        "latency" => return close(of_values(&rounds)),
        "errors" => (1.1, false),
        _ => (1.0 / 0.95, true),
    };
    let (counts, log_e) = of_events(&rounds, tolerated, goal_is_higher);
    let MetricRecord { canary: c, baseline: b, .. } = recorded;
    let held = [counts.x_canary, counts.x_baseline, counts.n_canary, counts.n_baseline];
    let told = [c.events, b.events, c.exposure, b.exposure];
    assert_eq!(told.map(f64::to_bits), held.map(f64::to_bits), "{what}: {told:?}, {held:?}");
    close(log_e);
}

/// What came of it, and all that was scraped meanwhile.
fn scraped(scenario: &Scenario, seed: u64) -> (Report, Pods) {
    let world = OnceCell::new();
    let mut pods = Pods::new();
    let mut series: BTreeMap<(String, String), BTreeMap<i64, f64>> = BTreeMap::new();
    let start = Config::default().start.as_millisecond();
    let report =
        simulate_open(scenario, seed, &mut |opened| world.set(opened.clone()).unwrap(), &mut |frame| {
            let now = start + i64::try_from(frame.at.as_millis()).unwrap();
            let mut ask = |name: &str, label: &str| {
                for mut one in world.get().unwrap().query(&format!("{name}[5s]"), now).unwrap() {
                    let pod = one.labels.remove("pod").unwrap();
                    let told = one.labels.remove(label).unwrap_or_default();
                    series.entry((pod, format!("{name} {told}"))).or_default().extend(one.samples);
                }
            };
            ask("http_requests_total", "code");
            ask("signups_total", "");
            ask("http_request_duration_seconds_bucket", "le");
        });
    for ((pod, name), samples) in series {
        let pod = pods.entry(pod).or_default();
        let (name, told) = name.split_once(' ').unwrap();
        for (at, value) in samples {
            let scrape = pod.entry(at).or_default();
            match name {
                "http_requests_total" => {
                    scrape.requests += value;
                    scrape.failed += if told.starts_with('5') { value } else { 0.0 };
                }
                "signups_total" => scrape.sign_ups += value,
                _ => {
                    #[allow(
                        clippy::cast_possible_truncation,
                        clippy::cast_sign_loss,
                        reason = "infinity saturates"
                    )]
                    let le = (told.parse::<f64>().unwrap() * 1_000.0).round() as u64;
                    scrape.below.insert(le, value);
                }
            }
        }
    }
    (report.unwrap(), pods)
}

/// What was counted between two scrapes of all pods of a cohort.
#[derive(Default)]
struct Cohort {
    events: f64,
    total: f64,
    /// Of each bucket.
    buckets: Vec<f64>,
    pods: std::collections::BTreeSet<String>,
}

/// By the end of the round: what was counted at the canary and at the baseline.
fn rounds(pods: &Pods, after: i64, record: &MetricRecord) -> BTreeMap<i64, [Cohort; 2]> {
    let until = record.until.unwrap().as_millisecond();
    let t0 = after - SETTLE;
    // The canary is the younger one.
    let first = |pod: &str| pods[pod].keys().next().copied();
    let hash = |pod: &str| pod.rsplit_once('-').unwrap().0.to_owned();
    let canary = hash(pods.keys().max_by_key(|pod| first(pod)).unwrap());
    let mut rounds: BTreeMap<i64, [Cohort; 2]> = BTreeMap::new();
    for (pod, samples) in pods {
        for ((from, then), (to, now)) in samples.iter().zip(samples.iter().skip(1)) {
            if *from < after || *to > until || to - from >= MEMORY {
                continue;
            }
            let round = rounds.entry(t0 + (to - t0 + SCRAPE - 1) / SCRAPE * SCRAPE).or_default();
            let cohort = &mut round[usize::from(hash(pod) != canary)];
            let buckets = buckets(&then.below, &now.below);
            let (events, total) = match record.name.as_str() {
                "errors" => (now.failed - then.failed, now.requests - then.requests),
                "latency" => (0.0, buckets.iter().sum()),
                _ => (now.sign_ups - then.sign_ups, now.requests - then.requests),
            };
            cohort.events += events;
            cohort.total += total;
            cohort.buckets.resize(buckets.len(), 0.0);
            cohort.buckets.iter_mut().zip(&buckets).for_each(|(sum, count)| *sum += count);
            if total > 0.0 {
                cohort.pods.insert(pod.clone());
            }
        }
    }
    rounds
}

fn buckets(then: &BTreeMap<u64, f64>, now: &BTreeMap<u64, f64>) -> Vec<f64> {
    let grown: Vec<f64> =
        now.iter().map(|(le, count)| count - then.get(le).copied().unwrap_or(0.0)).collect();
    let before = std::iter::once(0.0).chain(grown.iter().copied());
    grown.iter().zip(before).map(|(all, before)| all - before).collect()
}

/// Each round that counts: the canary's part, the baseline's, and, when it begins a block, what is tolerated of these pods.
fn blocks(
    rounds: &BTreeMap<i64, [Cohort; 2]>,
    tolerated: f64,
    mut take: impl FnMut(&Cohort, &Cohort, Option<f64>),
) {
    let mut block_until = 0;
    for (end, [canary, baseline]) in rounds {
        let new_block = *end > block_until;
        if new_block {
            if canary.total == 0.0 || baseline.total == 0.0 {
                continue;
            }
            block_until = end - SCRAPE + BLOCK;
        }
        let pods = [canary, baseline].map(|cohort| u32::try_from(cohort.pods.len()).unwrap());
        let margin = || {
            let spread = pod_spread(0.05, pods[0], pods[1]).unwrap();
            pod_effect_margin(tolerated, spread, 0.01).unwrap()
        };
        take(canary, baseline, new_block.then(margin));
    }
}

/// All counts, and the logarithm of the evidence.
fn of_events(rounds: &BTreeMap<i64, [Cohort; 2]>, tolerated: f64, goal_is_higher: bool) -> (Counts, f64) {
    let mut all = Counts { x_canary: 0.0, x_baseline: 0.0, n_canary: 0.0, n_baseline: 0.0 };
    let floor = (!goal_is_higher).then_some(FLOOR);
    let mut process = EventProcess::new(tolerated, 15.0, floor).unwrap();
    blocks(rounds, tolerated, |canary, baseline, margin| {
        if let Some(margin) = margin {
            process.tolerate(margin).unwrap();
        }
        let counts = Counts {
            x_canary: canary.events,
            x_baseline: baseline.events,
            n_canary: canary.total,
            n_baseline: baseline.total,
        };
        let harm = if goal_is_higher { counts.swapped() } else { counts };
        process.round(&harm, margin.is_some()).unwrap();
        all.x_canary += counts.x_canary;
        all.x_baseline += counts.x_baseline;
        all.n_canary += counts.n_canary;
        all.n_baseline += counts.n_baseline;
    });
    (all, process.log_e())
}

/// The logarithm of the evidence.
fn of_values(rounds: &BTreeMap<i64, [Cohort; 2]>) -> f64 {
    let bounds =
        [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, f64::INFINITY];
    let mut process = ScoreProcess::new(Layout::classic(&bounds).unwrap(), 0.1, 15.0).unwrap();
    blocks(rounds, 1.1, |canary, baseline, margin| {
        if let Some(margin) = margin {
            process.tolerate(margin - 1.0).unwrap();
        }
        // Within a block, a cohort may not be scraped in a round.
        let [canary, baseline] = [canary, baseline].map(|cohort| {
            let mut buckets = cohort.buckets.clone();
            buckets.resize(bounds.len(), 0.0);
            buckets
        });
        process.round(&canary, &baseline, margin.is_some()).unwrap();
    });
    process.log_e()
}

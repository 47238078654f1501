//! What the history of the stable pods says about the tests of a run: how long a block is, how much it may count, and how
//! much pods of one version differ.
//!
//! Takes increments, in any order and cut into any windows, and gives the same for them: a pod counts by one of its targets
//! only, and not before it was warm. Asks nobody and decides nothing about a Rollout.

use std::collections::{BTreeMap, BTreeSet};

use davylamp_api::rollout::Cohorts;
use davylamp_api::run::Calibrated;
use davylamp_api::scalar::{Duration, Percent};
use davylamp_stats::{
    Bucket, Calibration, DEFAULT_POD_EFFECT, Layout, PodCounts, calibrate, latency_pod_effect, pod_effect,
    tail_boundary,
};

use crate::decision::HistoryQuery;
use crate::fold::rounded;
use crate::observed::{Increment, Learnt, MetricSamples, Samples};
use crate::program::{MetricPlan, Plan, pods_for};

/// Increments that are kept, of all metrics together: 32 MB.
const MOST: usize = 1_000_000;
/// Pods that are compared with each other; more take time and say little.
const MOST_PODS: usize = 64;
/// Sizes of the canary that are tried.
const MOST_SIZES: usize = 4;
const HOUR: i64 = 3_600_000;
/// What pods differ by is not told by less than this of a pod, ms.
const LONG_ENOUGH: i64 = 2 * HOUR;
/// Pods below which nothing can be compared.
const FEWEST_PODS: usize = 3;
/// Nothing is learnt about blocks from less than this, ms.
const SHORTEST: i64 = HOUR;
/// No block is longer than this or one scrape, ms.
const LONGEST_BLOCK: i64 = HOUR;
/// The largest pod effect that can be computed with.
const MOST_EFFECT: f64 = 10.0;

/// What was read of the past so far.
#[derive(Clone, Debug)]
pub struct History {
    of: HistoryQuery,
    /// The interval of scrapes, ms.
    interval: i64,
    metrics: BTreeMap<String, Metric>,
    held: usize,
}

/// Of one metric.
#[derive(Clone, Debug, Default)]
struct Metric {
    pods: BTreeMap<String, Targets>,
    /// Of a distribution: what lies above this bound is an event. Chosen from the window that was read first.
    above: Option<f64>,
}

/// Of one pod.
type Targets = BTreeMap<String, Vec<Past>>;

/// An increment, as far as it is needed.
#[derive(Clone, Copy, Debug)]
struct Past {
    from: i64,
    to: i64,
    counts: PodCounts,
    /// The values of a distribution, in sum.
    values: f64,
}

impl History {
    /// Of which nothing was read yet.
    #[must_use]
    pub fn new(of: HistoryQuery) -> Self {
        Self { interval: of.query.scrape_interval_ms, of, metrics: BTreeMap::new(), held: 0 }
    }

    /// Scrapes were seen to be so many ms apart.
    pub const fn scraped_each(&mut self, interval: i64) {
        self.interval = interval;
    }

    /// Takes one window; says whether there was anything in it.
    pub fn add(&mut self, samples: &Samples) -> bool {
        let before = self.held;
        for (name, metric) in &samples.metrics {
            let known = self.metrics.entry(name.clone()).or_default();
            known.above = known.above.or_else(|| tail(metric));
            for (pod, targets) in &metric.pods {
                let pod = known.pods.entry(pod.clone()).or_default();
                for (target, increments) in targets.iter().filter(|(_, increments)| !increments.is_empty()) {
                    let past = increments.iter().map(|increment| Past::of(increment, known.above));
                    pod.entry(target.clone()).or_default().extend(past);
                    self.held += increments.len();
                }
            }
        }
        self.held > before
    }

    /// No more is to be read.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        self.held >= MOST
    }

    /// What follows from what was read; `trouble` is why it is not all that was asked for.
    #[must_use]
    pub fn learn(self, trouble: Option<&str>) -> Learnt {
        let nothing = Metric::default();
        let learn = |name: &String| {
            let metric = self.metrics.get(name).unwrap_or(&nothing);
            (name.clone(), metric.learn(&self.of, self.interval.max(1_000), trouble))
        };
        let metrics = self.of.query.metrics.keys().map(learn).collect();
        Learnt { metrics, scrape_interval_ms: self.interval, of: self.of }
    }
}

impl Metric {
    fn learn(&self, of: &HistoryQuery, interval: i64, trouble: Option<&str>) -> Calibrated {
        let pods = self.pods.values().map(|targets| of_pod(targets, of.warmup));
        let pods: Vec<Vec<Past>> = pods.filter(|pod| !pod.is_empty()).collect();
        let all = pods.len();
        let pods = most_seen(pods);
        let round = |past: &Past| (past.to - 1).div_euclid(interval);
        let times = || pods.iter().flatten().map(round);
        let (first, last) = (times().min().unwrap_or(0), times().max().unwrap_or(-1));
        let length = usize::try_from(last - first + 1).unwrap_or(0);
        let mut rounds = vec![vec![PodCounts::default(); pods.len()]; length];
        for (i, pod) in pods.iter().enumerate() {
            for past in pod {
                let at = usize::try_from(round(past) - first).ok();
                if let Some(counts) = at.and_then(|at| rounds.get_mut(at)).and_then(|round| round.get_mut(i))
                {
                    counts.events += past.counts.events;
                    counts.exposure += past.counts.exposure;
                }
            }
        }

        let seconds = seconds(interval);
        let sizes = sizes(&of.steps, pods.len());
        // Arguments in range by construction; what is refused all the same leaves the defaults.
        let tried = sizes.iter().filter_map(|size| calibrate(&rounds, *size, seconds, of.alpha).ok());
        let longest = |a: &Calibration, b: &Calibration| {
            a.block_seconds.total_cmp(&b.block_seconds).then(b.clip.total_cmp(&a.clip))
        };
        let blocks = tried.max_by(longest);
        let long: Vec<&Vec<Past>> = pods.iter().filter(|pod| is_long(pod)).collect();
        let tau = match self.above {
            Some(_) => {
                let start = long.iter().filter_map(|pod| pod.first()).map(hour).min().unwrap_or(0);
                latency_pod_effect(&long.iter().map(|pod| hours(pod, start)).collect::<Vec<_>>())
            }
            None => pod_effect(&long.iter().map(|pod| sum(pod)).collect::<Vec<_>>()),
        };
        let tau = tau.unwrap_or(DEFAULT_POD_EFFECT);

        let span = Duration::from_millis(u64::try_from((last - first + 1) * interval).unwrap_or(0));
        let lacks = if all < FEWEST_PODS {
            Some(format!("fewer than {FEWEST_PODS} pods were seen: the defaults hold"))
        } else if span.millis() < SHORTEST {
            Some("less than 1h was seen: the defaults hold".to_owned())
        } else if long.len() < FEWEST_PODS {
            Some(format!(
                "fewer than {FEWEST_PODS} pods were seen for 2h: for what pods differ by, the default holds"
            ))
        } else {
            None
        };
        let reason = [trouble.map(str::to_owned), lacks].into_iter().flatten().collect::<Vec<_>>().join("; ");
        let default = defaults(interval);
        Calibrated {
            block: blocks.map_or(default.block, |b| from_seconds(b.block_seconds)),
            clip: blocks.map_or(default.clip, |b| b.clip),
            pod_effect: rounded(tau.min(MOST_EFFECT)),
            rate: self.above.is_none().then(|| usual(&pods)).flatten(),
            per_second: per_second(&pods, all, span),
            pods: i32::try_from(all).unwrap_or(i32::MAX),
            history: span,
            placebos: blocks.map_or(0, |b| i32::try_from(b.placebos).unwrap_or(i32::MAX)),
            alarms: blocks.map_or(0, |b| i32::try_from(b.alarms).unwrap_or(i32::MAX)),
            reason: (!reason.is_empty()).then(|| crate::explain::bounded(reason, 500)),
        }
    }
}

impl Past {
    fn of(increment: &Increment, above: Option<f64>) -> Self {
        let Increment { from, to, events, total, ref buckets } = *increment;
        let tail = |above: f64| {
            let slow = buckets.iter().filter(|bucket| bucket.lower >= above);
            slow.map(|bucket| bucket.count).sum()
        };
        let events = above.map_or(events, tail);
        let values = buckets.iter().map(|bucket| bucket.count * middle(bucket)).sum();
        Self { from, to, counts: PodCounts { events, exposure: total }, values }
    }
}

/// The bound that divides the slow part of a distribution from the rest; None of what has no buckets, or too few values.
fn tail(metric: &MetricSamples) -> Option<f64> {
    let increments = metric.pods.values().flat_map(BTreeMap::values).flatten();
    let buckets: Vec<Bucket> = increments.flat_map(|increment| increment.buckets.iter().copied()).collect();
    let layout = Layout::of(&buckets)?;
    let index = tail_boundary(&layout.on(&buckets).ok()?).ok()??;
    layout.bounds().get(index).copied()
}

/// About what a value in this bucket is.
fn middle(bucket: &Bucket) -> f64 {
    match (bucket.lower.is_finite(), bucket.upper.is_finite()) {
        (true, true) => f64::midpoint(bucket.lower, bucket.upper).max(0.0),
        (true, false) => bucket.lower.max(0.0),
        // The lowest one of times, of which none is below 0.
        (false, _) => bucket.upper.clamp(0.0, f64::MAX) / 2.0,
    }
}

/// Of the target that was seen most often, in order; what came before the pod was warm is left out. When a pod became ready
/// is not known any more: it got its first requests then.
fn of_pod(targets: &Targets, warmup: i64) -> Vec<Past> {
    let mut best: &[Past] = &[];
    for target in targets.values() {
        if target.len() > best.len() {
            best = target;
        }
    }
    let used = best.iter().filter(|past| past.counts.exposure > 0.0).map(|past| past.from).min();
    let warm = used.map_or(i64::MAX, |first| first.saturating_add(warmup));
    let mut pod: Vec<Past> = best.iter().filter(|past| past.from >= warm).copied().collect();
    pod.sort_by_key(|past| past.to);
    pod
}

/// For metrics of which nothing is to be learnt.
pub(crate) fn unlearnt(plan: &Plan, interval: i64) -> BTreeMap<String, Calibrated> {
    let reason = Some("spec.analysis.calibration.history is 0s".to_owned());
    let default = Calibrated { reason, ..defaults(interval) };
    plan.metrics.iter().map(|metric| (metric.name.clone(), default.clone())).collect()
}

/// What holds for metrics that are not of pods, for the record.
pub(crate) fn without_pods(plan: &Plan) -> BTreeMap<String, Calibrated> {
    let metrics = plan.metrics.iter().filter_map(|metric| Some((metric, metric.told.as_ref()?)));
    let of = |(metric, told): (&MetricPlan, &Cohorts)| {
        let reason = format!("{told}: pods are not told apart, no allowance for how they differ");
        (
            metric.name.clone(),
            Calibrated { pod_effect: 0.0, reason: Some(reason), ..defaults(plan.interval()) },
        )
    };
    metrics.map(of).collect()
}

/// What a record says, whatever somebody wrote there, or the defaults.
pub(crate) fn usable(learnt: Option<&Calibrated>, interval: i64) -> Calibrated {
    let default = defaults(interval);
    let Some(learnt) = learnt else { return default };
    let rounds =
        (learnt.block.millis() + interval - 1).div_euclid(interval).clamp(1, LONGEST_BLOCK / interval + 1);
    let block = Duration::from_millis(u64::try_from(rounds * interval).unwrap_or(0));
    let is_usable = |clip: &&f64| **clip > 0.0 && **clip <= default.clip;
    let clip = Some(&learnt.clip).filter(is_usable).copied().unwrap_or(default.clip);
    let is_usable = |effect: &&f64| (0.0..=MOST_EFFECT).contains(*effect);
    let pod_effect = Some(&learnt.pod_effect).filter(is_usable).copied().unwrap_or(default.pod_effect);
    let rate = learnt.rate.filter(|rate| rate.is_finite() && *rate >= 0.0);
    Calibrated { block, clip, pod_effect, rate, ..learnt.clone() }
}

/// Without a history.
pub(crate) fn defaults(interval: i64) -> Calibrated {
    let block = interval * ((15_000 + interval - 1) / interval);
    Calibrated {
        block: Duration::from_millis(u64::try_from(block).unwrap_or(15_000)),
        clip: std::f64::consts::LN_10,
        pod_effect: DEFAULT_POD_EFFECT,
        ..Calibrated::default()
    }
}

/// Those that were seen longest, in their order.
fn most_seen(mut pods: Vec<Vec<Past>>) -> Vec<Vec<Past>> {
    if pods.len() > MOST_PODS {
        let mut lengths: Vec<usize> = pods.iter().map(Vec::len).collect();
        lengths.sort_unstable_by(|a, b| b.cmp(a));
        let least = lengths.get(MOST_PODS - 1).copied().unwrap_or(0);
        pods.retain(|pod| pod.len() >= least);
        pods.truncate(MOST_PODS);
    }
    pods
}

/// A few of the sizes that the canary will have, from the smallest to the largest, as if there were so many pods.
fn sizes(steps: &[(Percent, Option<i32>)], pods: usize) -> BTreeSet<usize> {
    let all = i32::try_from(pods).unwrap_or(i32::MAX);
    let of_step = |(weight, own): &(Percent, Option<i32>)| {
        let size = own.unwrap_or_else(|| pods_for(all, *weight));
        usize::try_from(size).unwrap_or(1).clamp(1, (pods / 2).max(1))
    };
    let sizes: Vec<usize> = steps.iter().map(of_step).collect::<BTreeSet<_>>().into_iter().collect();
    let last = sizes.len().saturating_sub(1);
    let few = last.min(MOST_SIZES - 1);
    (0..=few).filter_map(|i| sizes.get(i * last / few.max(1)).copied()).collect()
}

fn is_long(pod: &[Past]) -> bool {
    pod.iter().map(|past| past.to - past.from).sum::<i64>() >= LONG_ENOUGH
}

/// One event more than was seen, of all.
fn usual(pods: &[Vec<Past>]) -> Option<f64> {
    let pods = pods.iter().map(|pod| sum(pod));
    let (events, exposure) = pods.fold((1.0, 0.0), |(x, n), pod| (x + pod.events, n + pod.exposure));
    (exposure > 0.0).then(|| rounded(events / exposure))
}

/// As if all pods were like those that were compared.
fn per_second(pods: &[Vec<Past>], all: usize, span: Duration) -> Option<f64> {
    let exposure = pods.iter().map(|pod| sum(pod).exposure).sum::<f64>();
    #[allow(clippy::cast_precision_loss, reason = "a number of pods")]
    let times = all as f64 / pods.len().max(1) as f64;
    (exposure > 0.0).then(|| rounded(exposure * times / span.as_secs_f64().max(1.0)))
}

fn sum(pod: &[Past]) -> PodCounts {
    pod.iter().fold(PodCounts::default(), |sum, past| PodCounts {
        events: sum.events + past.counts.events,
        exposure: sum.exposure + past.counts.exposure,
    })
}

fn hour(past: &Past) -> i64 {
    (past.to - 1).div_euclid(HOUR)
}

/// Values and their number, hour by hour.
fn hours(pod: &[Past], start: i64) -> Vec<PodCounts> {
    let last = pod.last().map_or(start, hour);
    let mut hours = vec![PodCounts::default(); usize::try_from(last - start + 1).unwrap_or(0)];
    for past in pod {
        let at = usize::try_from(hour(past) - start).ok();
        if let Some(counts) = at.and_then(|at| hours.get_mut(at)) {
            counts.events += past.values;
            counts.exposure += past.counts.exposure;
        }
    }
    hours
}

#[allow(clippy::cast_precision_loss, reason = "a scrape interval")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a block is shorter than a day")]
fn from_seconds(seconds: f64) -> Duration {
    Duration::from_millis((seconds * 1_000.0).round().clamp(0.0, 86_400_000.0) as u64)
}

#[cfg(test)]
mod tests;

//! From increments to evidence: cuts rounds and blocks, feeds the tests of `davylamp-stats`, and counts silence.
//!
//! Takes the checkpoint and the samples after it, anew in each pass, and gives one look after the other in the time
//! of the data: the same samples give the same bits, whatever the polls, crashes and hand-overs between.
//!
//! A round is one scrape interval, open at its start and closed at its end, on the grid that begins when the weight
//! became effective. An increment belongs to the round of its later sample and counts only if its earlier sample
//! lies after the settle time and its pod was warm by then.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use davylamp_api::Instant;
use davylamp_api::run::{Cohort, Interval, MetricRecord};
use davylamp_api::scalar::Percent;
use davylamp_api::status::{Checkpoint, MetricCheckpoint, MetricStatus, Silence, Verdict};
use davylamp_stats::{Counts, EventProcess, NonInferiority};

use crate::observed::{Increment, Observed, Samples};
use crate::program::{MetricPlan, Plan};

/// Data of a cohort that is missing for so many blocks is an observation of its own.
const SILENT_BLOCKS: i64 = 3;
/// Zero requests are silence when so many were expected.
const EXPECTED: f64 = 10.0;
/// The largest count: floating point counts every event up to here.
const MOST: f64 = 9_007_199_254_740_992.0;
/// The last moment of year 9999, ms since 1970.
const LATEST: i64 = 253_402_300_799_999;
/// Rows of counts in a checkpoint.
const ROWS: usize = 8;
/// Bytes of remembered targets, about.
const TARGETS: usize = 4_096;
/// Rounds that one pass folds at most; the rest follows in the next.
const ROUNDS: usize = 20_000;

/// The evidence so far, and the rounds that are still to be folded.
#[derive(Debug)]
pub(crate) struct Fold<'a> {
    plan: &'a Plan,
    margin: f64,
    next_weight: f64,
    interval: i64,
    block: i64,
    share: f64,
    checkpoint: Checkpoint,
    metrics: Vec<MetricFold>,
    rounds: VecDeque<Round>,
    folded: usize,
    /// A pod has more than one target.
    pub(crate) duplicates: BTreeSet<String>,
}

#[derive(Debug)]
struct MetricFold {
    event: EventProcess,
    safe: NonInferiority,
    block_until: i64,
    counted_from: i64,
    rows: Vec<[f64; 4]>,
}

#[derive(Clone, Debug, Default)]
struct Round {
    end: i64,
    counts: Vec<Counts>,
    canary_present: bool,
    baseline_present: bool,
    /// Requests after the settle time, of pods that are not yet warm as well.
    canary_seen: f64,
    baseline_seen: f64,
}

/// What was not seen lately.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    /// The canary's samples or requests, though the baseline has both.
    Canary,
    /// All samples.
    Everything,
    /// All requests.
    Requests,
}

/// The two cohorts by what their pods' names begin with.
#[derive(Clone, Debug)]
pub(crate) struct Cohorts {
    pub(crate) canary: String,
    pub(crate) baseline: String,
}

impl<'a> Fold<'a> {
    /// Continues at the checkpoint. An unreadable one (another version's) begins anew: with capital 1, which keeps
    /// every promise and only costs time.
    pub(crate) fn new(plan: &'a Plan, checkpoint: &Checkpoint, weight: Percent, next: Percent) -> Self {
        let interval = plan.sampling.map_or(15_000, |s| s.scrape_interval.millis()).max(1_000);
        let block = interval * ((15_000 + interval - 1) / interval);
        let next_weight = next.share().max(1e-4);
        let margin = 1.0 + plan.impact / next_weight;
        let checkpoint = readable(checkpoint);
        let metrics = plan
            .metrics
            .iter()
            .map(|metric| {
                MetricFold::restore(metric, checkpoint.metrics.get(&metric.name), margin, next_weight, block)
            })
            .collect();
        Self {
            plan,
            margin,
            next_weight,
            interval,
            block,
            share: weight.share(),
            checkpoint,
            metrics,
            rounds: VecDeque::new(),
            folded: 0,
            duplicates: BTreeSet::new(),
        }
    }

    /// Samples count from `effective` + settle on. Blocks are closed; the evidence of a step begins anew.
    pub(crate) fn open(&mut self, effective: Instant) {
        self.close();
        let t0 = effective.as_millisecond();
        let from = t0 + self.plan.settle;
        self.checkpoint.t0 = t0;
        self.checkpoint.from = from;
        self.checkpoint.folded_until = t0 + (from - t0).div_euclid(self.interval) * self.interval;
        self.checkpoint.silent = Silence::default();
    }

    /// No samples count until the next [`Fold::open`]: the weight or a cohort changes.
    pub(crate) fn close(&mut self) {
        self.checkpoint.t0 = 0;
        self.checkpoint.silent = Silence::default();
        self.rounds.clear();
        for metric in &mut self.metrics {
            metric.event.close_block();
            metric.safe.close_block();
            metric.block_until = 0;
        }
    }

    /// The evidence for the step's promotion begins anew, with the margin of its next weight.
    pub(crate) fn begin_step(&mut self, weight: Percent, next: Percent) {
        self.share = weight.share();
        self.next_weight = next.share().max(1e-4);
        self.margin = 1.0 + self.plan.impact / self.next_weight;
        for (metric, plan) in self.metrics.iter_mut().zip(&self.plan.metrics) {
            metric.safe = non_inferiority(plan, self.margin, self.next_weight);
            metric.counted_from = 0;
            if metric.rows.first() != Some(&[0.0; 4]) {
                metric.rows.insert(0, [0.0; 4]);
            }
            while metric.rows.len() > ROWS {
                let last = metric.rows.pop().unwrap_or_default();
                if let Some(before) = metric.rows.last_mut() {
                    for (sum, n) in before.iter_mut().zip(last) {
                        *sum += n;
                    }
                }
            }
        }
    }

    /// Whether samples count now.
    pub(crate) fn is_open(&self) -> bool {
        self.checkpoint.t0 > 0
    }

    /// Cuts the samples after the checkpoint into rounds.
    pub(crate) fn take(&mut self, samples: &Samples, observed: &Observed, cohorts: &Cohorts) {
        if !self.is_open() || samples.since > self.checkpoint.folded_until {
            return;
        }
        self.remember_young(observed);
        let last = self.index(samples.until.clamp(0, LATEST) + 1) - 1;
        let first = self.index(self.checkpoint.folded_until + 1);
        if last < first {
            return;
        }
        let count = usize::try_from(last - first + 1).unwrap_or(ROUNDS).min(ROUNDS);
        let mut rounds: Vec<Round> = (0..count)
            .map(|i| Round {
                end: self.end(first + i64::try_from(i).unwrap_or(0)),
                counts: vec![Counts::default(); self.metrics.len()],
                ..Round::default()
            })
            .collect();
        for (m, metric) in self.plan.metrics.iter().enumerate() {
            let name = &metric.name;
            let Some(metric) = samples.metrics.get(name) else { continue };
            for (pod, targets) in &metric.pods {
                let canary = pod.starts_with(&cohorts.canary);
                if !canary && !pod.starts_with(&cohorts.baseline) {
                    continue;
                }
                let warm = self.warm_at(pod, observed);
                let Some((increments, after)) = self.choose(name, pod, targets) else { continue };
                for increment in increments {
                    if increment.to <= self.checkpoint.folded_until || increment.from < after {
                        continue;
                    }
                    let at = usize::try_from(self.index(increment.to) - first).ok();
                    let Some(round) = at.and_then(|at| rounds.get_mut(at)) else { continue };
                    if canary {
                        round.canary_present = true;
                    } else {
                        round.baseline_present = true;
                    }
                    if increment.from < self.checkpoint.from {
                        continue;
                    }
                    let seen = if canary { &mut round.canary_seen } else { &mut round.baseline_seen };
                    *seen += increment.total;
                    if warm.is_some_and(|warm| increment.from >= warm) {
                        add(&mut round.counts[m], increment, canary);
                    }
                }
            }
        }
        self.rounds = rounds.into();
    }

    /// Folds the next round; its end is the time of the look. None when there is none left.
    pub(crate) fn look(&mut self) -> Option<i64> {
        let round = self.rounds.pop_front()?;
        self.folded += 1;
        self.checkpoint.folded_until = round.end;
        for (metric, counts) in self.metrics.iter_mut().zip(&round.counts) {
            let both = counts.n_canary > 0.0 && counts.n_baseline > 0.0;
            let inside = round.end <= metric.block_until;
            if !inside && !both {
                continue;
            }
            if !inside {
                metric.block_until = round.end - self.interval + self.block;
            }
            // Counts are finite and not negative by construction; a test that refuses them keeps its capital.
            if metric.event.round(counts, !inside).is_ok() && metric.safe.round(counts, !inside).is_ok() {
                if metric.counted_from == 0 {
                    metric.counted_from = round.end - self.interval;
                }
                if metric.rows.is_empty() {
                    metric.rows.push([0.0; 4]);
                }
                for (sum, n) in metric.rows.iter_mut().take(1).flatten().zip([
                    counts.x_canary,
                    counts.x_baseline,
                    counts.n_canary,
                    counts.n_baseline,
                ]) {
                    *sum += n;
                }
            }
        }
        self.count_silence(&round);
        Some(round.end)
    }

    fn count_silence(&mut self, round: &Round) {
        let (canary, baseline) = (round.canary_seen, round.baseline_seen);
        // Rounds that the settle time leaves out say nothing about silence.
        if round.end - self.interval < self.checkpoint.from {
            return;
        }
        let silent = &mut self.checkpoint.silent;
        let count =
            |seen: bool, total: &mut i64| *total = if seen { 0 } else { total.saturating_add(self.interval) };
        count(round.canary_present, &mut silent.canary_absent);
        count(round.baseline_present, &mut silent.baseline_absent);
        count(canary > 0.0, &mut silent.canary_idle);
        count(baseline > 0.0, &mut silent.baseline_idle);
        silent.baseline_meanwhile = if canary > 0.0 { 0.0 } else { silent.baseline_meanwhile + baseline };
        // JSON knows no infinity.
        silent.baseline_meanwhile = silent.baseline_meanwhile.clamp(0.0, MOST);
    }

    /// What was not seen for three blocks. Warm-up is no silence: what does not count yet is seen. A canary is silent
    /// beside a baseline that is heard at that moment: when both fall silent, one of them does so a round later.
    pub(crate) fn missing(&self) -> Option<Missing> {
        let silent = &self.checkpoint.silent;
        let long = SILENT_BLOCKS * self.block;
        let expected = silent.baseline_meanwhile * self.share / (1.0 - self.share).max(1e-9);
        if silent.canary_absent >= long && silent.baseline_absent >= long {
            Some(Missing::Everything)
        } else if silent.canary_absent >= long && silent.baseline_absent == 0 {
            Some(Missing::Canary)
        } else if silent.canary_idle >= long && silent.baseline_idle >= long {
            Some(Missing::Requests)
        } else if silent.canary_idle >= long
            && silent.baseline_idle == 0
            && expected >= EXPECTED * f64::from(u8::try_from(self.metrics.len()).unwrap_or(1))
        {
            Some(Missing::Canary)
        } else {
            None
        }
    }

    /// Data of both cohorts has come in the last round.
    pub(crate) fn flowing(&self) -> bool {
        let silent = &self.checkpoint.silent;
        self.folded > 0 && silent.canary_idle == 0 && silent.baseline_idle == 0
    }

    /// ln of the e-value of the whole rollout against "nothing is worse than tolerated".
    pub(crate) fn log_e(&self) -> f64 {
        let log_e: Vec<f64> = self.metrics.iter().map(|m| m.event.log_e()).collect();
        davylamp_stats::combine_log_e(&log_e, &self.weights()).unwrap_or(0.0)
    }

    #[allow(clippy::cast_precision_loss, reason = "at most ten metrics")]
    fn weights(&self) -> Vec<f64> {
        vec![1.0 / self.metrics.len().max(1) as f64; self.metrics.len()]
    }

    /// The evidence suffices to roll back.
    pub(crate) fn regressed(&self) -> bool {
        !self.metrics.is_empty() && self.log_e() >= -libm::log(self.plan.alpha)
    }

    /// Each metric is shown not to be worse than the margin of this step.
    pub(crate) fn safe(&self) -> bool {
        self.metrics.iter().all(|m| m.safe.log_e() >= -libm::log(self.plan.beta))
    }

    /// The share of the evidence that a rollback needs.
    pub(crate) fn evidence(&self) -> Percent {
        percent(self.log_e() / -libm::log(self.plan.alpha))
    }

    /// The share of requests that the canary was seen to get in this step.
    pub(crate) fn observed_share(&self) -> Option<Percent> {
        let row = self.metrics.first()?.rows.first()?;
        let all = row[2] + row[3];
        (all > 0.0).then(|| percent(row[2] / all))
    }

    /// The metrics that carry the evidence for a rollback.
    pub(crate) fn culprits(&self) -> Vec<usize> {
        let log_e: Vec<f64> = self.metrics.iter().map(|m| m.event.log_e()).collect();
        davylamp_stats::attribution(&log_e, &self.weights(), self.plan.alpha)
    }

    /// The base of the next fold.
    pub(crate) fn checkpoint(&self, now: Instant) -> Checkpoint {
        let mut checkpoint = self.checkpoint.clone();
        checkpoint.at = now.as_millisecond();
        checkpoint.metrics = self
            .metrics
            .iter()
            .zip(&self.plan.metrics)
            .map(|(metric, plan)| {
                let kept = MetricCheckpoint {
                    event: BASE64.encode(metric.event.to_bytes()),
                    safe: Some(BASE64.encode(metric.safe.to_bytes())),
                    block_until: metric.block_until,
                    counted_from: metric.counted_from,
                    rows: metric.rows.clone(),
                };
                (plan.name.clone(), kept)
            })
            .collect();
        // Also those that became warm within this step: the record says from when they counted.
        let warm = checkpoint.from.min(checkpoint.folded_until).saturating_sub(self.plan.warmup);
        checkpoint.young.retain(|_, ready| *ready >= warm);
        checkpoint
    }

    /// Whether any round was folded in this pass.
    pub(crate) fn moved(&self) -> bool {
        self.folded > 0
    }

    /// The end of the last round that was folded.
    pub(crate) fn folded_until(&self) -> i64 {
        self.checkpoint.folded_until
    }

    /// The evidence, by metric, for the record.
    pub(crate) fn records(&self) -> Vec<MetricRecord> {
        let time = |ms: i64| Instant::from_millisecond(ms).ok();
        self.metrics
            .iter()
            .zip(&self.plan.metrics)
            .zip(self.weights())
            .map(|((metric, plan), weight)| MetricRecord {
                name: plan.name.clone(),
                from: time(metric.counted_from).filter(|_| metric.counted_from > 0),
                until: time(self.checkpoint.folded_until).filter(|_| metric.counted_from > 0),
                canary: metric.canary(),
                baseline: metric.baseline(),
                ratio: metric.ratio().map(rounded),
                interval: metric.interval(self.plan.alpha),
                tolerated: plan.tolerated,
                log_e: rounded(metric.event.log_e()),
                log_e_non_inferior: rounded(metric.safe.log_e()),
                margin: rounded(self.margin),
                weight: rounded(weight),
            })
            .collect()
    }

    /// Before when increments may not begin, in general and for pods that were warm only later; at most 50 of them.
    pub(crate) fn left_out(&self) -> (Option<Instant>, BTreeMap<String, Instant>) {
        let after = self.checkpoint.from;
        let warm = |ready: &i64| ready.saturating_add(self.plan.warmup);
        let young = self.checkpoint.young.iter().filter(|(_, ready)| warm(ready) > after).take(50);
        let young = young
            .filter_map(|(pod, ready)| Some((pod.clone(), Instant::from_millisecond(warm(ready)).ok()?)));
        (Instant::from_millisecond(after).ok(), young.collect())
    }

    /// The evidence, by metric, for the status.
    pub(crate) fn statuses(&self) -> Vec<MetricStatus> {
        let (alpha, beta) = (-libm::log(self.plan.alpha), -libm::log(self.plan.beta));
        self.metrics
            .iter()
            .zip(&self.plan.metrics)
            .zip(self.weights())
            .map(|((metric, plan), weight)| {
                let evidence = (metric.event.log_e() + libm::log(weight)) / alpha;
                let safe = metric.safe.log_e() / beta;
                let verdict = match (evidence >= 1.0, safe >= 1.0) {
                    (true, _) => Verdict::Regressed,
                    (false, true) => Verdict::Pass,
                    (false, false) => Verdict::Collecting,
                };
                MetricStatus {
                    name: plan.name.clone(),
                    verdict,
                    ratio: metric.ratio().map(rounded),
                    interval: metric.interval(self.plan.alpha),
                    tolerated: plan.tolerated,
                    evidence: percent(evidence),
                    safe: percent(safe),
                    canary: metric.canary(),
                    baseline: metric.baseline(),
                }
            })
            .collect()
    }

    /// The number of the round that holds a sample of that time.
    fn index(&self, at: i64) -> i64 {
        (at - self.checkpoint.t0 - 1).div_euclid(self.interval)
    }

    fn end(&self, index: i64) -> i64 {
        self.checkpoint.t0 + (index + 1) * self.interval
    }

    /// The increments of one target of the pod, and the time from which they may begin: never two targets for one
    /// stretch of time, which would double the evidence.
    fn choose<'t>(
        &mut self,
        metric: &str,
        pod: &str,
        targets: &'t BTreeMap<String, Vec<Increment>>,
    ) -> Option<(&'t [Increment], i64)> {
        let key = format!("{metric} {pod}");
        let live = |target: &str| targets.get(target).map(Vec::as_slice).filter(|i| !i.is_empty());
        if targets.values().filter(|increments| !increments.is_empty()).count() > 1 {
            self.duplicates.insert(pod.to_owned());
        }
        let kept = self.checkpoint.targets.get(&key).and_then(|kept| kept.split_once(' '));
        if let Some((after, target)) = kept
            && let (Ok(after), Some(increments)) = (after.parse(), live(target))
        {
            return Some((increments, after));
        }
        let mut all = targets.iter().filter(|(_, increments)| !increments.is_empty());
        let (target, increments) = all.next()?;
        if all.next().is_none() && kept.is_none() {
            return Some((increments, i64::MIN));
        }
        let after = self.checkpoint.folded_until;
        let known = &mut self.checkpoint.targets;
        if known.values().map(String::len).sum::<usize>() < TARGETS || known.contains_key(&key) {
            known.insert(key, format!("{after} {target}"));
        }
        Some((increments, after))
    }

    /// A pod that flaps keeps the moment when it was first ready for as long as it is young.
    fn remember_young(&mut self, observed: &Observed) {
        let since = self.checkpoint.folded_until - self.plan.warmup;
        for (name, pod) in observed.revisions.values().flat_map(|r| &r.pods) {
            if let Some(ready) = pod.ready_at.map(Instant::as_millisecond)
                && ready >= since
                && self.checkpoint.young.len() < 200
            {
                self.checkpoint.young.entry(name.clone()).or_insert(ready);
            }
        }
    }

    /// From when samples of the pod count; None while that is unknown.
    fn warm_at(&self, pod: &str, observed: &Observed) -> Option<i64> {
        if let Some(ready) = self.checkpoint.young.get(pod) {
            return Some(ready.saturating_add(self.plan.warmup));
        }
        match observed.revisions.values().find_map(|r| r.pods.get(pod)) {
            Some(pod) => pod.ready_at.map(|ready| ready.as_millisecond() + self.plan.warmup),
            // It has left, and was warm: else it would be remembered as young.
            None => Some(i64::MIN),
        }
    }
}

/// A checkpoint by hand or by another version holds any numbers; times before 1970 or after year 9999 are no times.
fn readable(checkpoint: &Checkpoint) -> Checkpoint {
    let mut checkpoint = checkpoint.clone();
    for time in [&mut checkpoint.t0, &mut checkpoint.from, &mut checkpoint.folded_until] {
        *time = (*time).clamp(0, LATEST);
    }
    checkpoint.silent.baseline_meanwhile = checkpoint.silent.baseline_meanwhile.clamp(0.0, MOST);
    checkpoint
}

fn add(counts: &mut Counts, increment: &Increment, canary: bool) {
    if canary {
        counts.x_canary += increment.events;
        counts.n_canary += increment.total;
    } else {
        counts.x_baseline += increment.events;
        counts.n_baseline += increment.total;
    }
}

/// With six decimals: what is shown, and survives being written and read.
fn rounded(number: f64) -> f64 {
    let scaled = number * 1e6;
    if scaled.abs() < MOST { libm::round(scaled) / 1e6 } else { number }
}

/// A share as a percentage from 0 % to 100 %, rounded down; no number is 0 %.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
pub(crate) fn percent(share: f64) -> Percent {
    Percent::from_basis_points((share * 10_000.0).clamp(0.0, 10_000.0) as u16)
}

#[allow(clippy::expect_used, reason = "`compile` and the clamp keep the arguments in the documented range")]
fn non_inferiority(plan: &MetricPlan, margin: f64, next_weight: f64) -> NonInferiority {
    NonInferiority::new(margin, plan.floor.map(|floor| (floor, next_weight))).expect("arguments in range")
}

#[allow(clippy::expect_used, reason = "`compile` keeps the arguments in the documented range")]
fn event_process(plan: &MetricPlan, block_seconds: f64) -> EventProcess {
    EventProcess::new(plan.tolerated, block_seconds, plan.floor).expect("arguments in range")
}

impl MetricFold {
    #[allow(clippy::cast_precision_loss, reason = "a block is shorter than a day")]
    fn restore(
        plan: &MetricPlan,
        kept: Option<&MetricCheckpoint>,
        margin: f64,
        next_weight: f64,
        block: i64,
    ) -> Self {
        let seconds = block as f64 / 1_000.0;
        let event = kept
            .and_then(|k| BASE64.decode(&k.event).ok())
            .and_then(|bytes| event_process(plan, seconds).restore(&bytes).ok());
        let safe = kept
            .and_then(|k| BASE64.decode(k.safe.as_ref()?).ok())
            .and_then(|bytes| non_inferiority(plan, margin, next_weight).restore(&bytes).ok());
        Self {
            event: event.unwrap_or_else(|| event_process(plan, seconds)),
            safe: safe.unwrap_or_else(|| non_inferiority(plan, margin, next_weight)),
            block_until: kept.map_or(0, |k| k.block_until),
            counted_from: kept.map_or(0, |k| k.counted_from),
            rows: kept
                .map(|k| k.rows.iter().take(ROWS).map(|r| r.map(|n| n.clamp(0.0, MOST))).collect())
                .unwrap_or_default(),
        }
    }

    fn canary(&self) -> Cohort {
        self.rows.first().map_or_else(Cohort::default, |r| Cohort { events: r[0], exposure: r[2] })
    }

    fn baseline(&self) -> Cohort {
        self.rows.first().map_or_else(Cohort::default, |r| Cohort { events: r[1], exposure: r[3] })
    }

    fn counts(&self) -> impl Iterator<Item = Counts> + '_ {
        self.rows.iter().map(|r| Counts {
            x_canary: r[0],
            x_baseline: r[1],
            n_canary: r[2],
            n_baseline: r[3],
        })
    }

    fn ratio(&self) -> Option<f64> {
        davylamp_stats::mantel_haenszel(self.counts()).filter(|ratio| ratio.is_finite())
    }

    /// Its ends are absent where the data does not reach them.
    fn interval(&self, alpha: f64) -> Option<Interval> {
        let counts: Vec<Counts> = self.counts().collect();
        let interval = davylamp_stats::rr_confidence_sequence(&counts, alpha).ok()?;
        Some(Interval {
            lower: (interval.lower > 0.0).then(|| rounded(interval.lower)),
            upper: interval.upper.is_finite().then(|| rounded(interval.upper)),
        })
    }
}

#[cfg(test)]
mod tests;

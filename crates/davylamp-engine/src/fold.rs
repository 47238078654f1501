//! From increments to evidence: cuts rounds and blocks, feeds the tests of `davylamp-stats`, and counts silence.
//!
//! Takes the checkpoint and the samples after it, anew in each pass, and gives one look after the other in the time
//! of the data: the same samples give the same bits, whatever the polls, crashes and hand-overs between.
//!
//! A round is one scrape interval, open at its start and closed at its end, on the grid that begins when the weight
//! became effective. An increment belongs to the round of its later sample and counts only if its earlier sample
//! lies after the settle time and its pod was warm by then.

mod expression;
mod gauge;
mod limit;
mod metric;
mod rounds;
mod split;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use davylamp_api::Instant;
use davylamp_api::checkpoint::{Checkpoint, Silence};
use davylamp_api::conditions::Reason;
use davylamp_api::run::{ExpressionRecord, GaugeRecord, MOST_YOUNG, MetricRecord, SplitRecord};
use davylamp_api::scalar::Percent;
use davylamp_api::status::{IncidentStatus, MetricStatus};

use self::expression::ExpressionFold;
use self::gauge::GaugeFold;
pub(crate) use self::metric::Counted;
use self::metric::MetricFold;
use self::rounds::Round;
use self::split::Split;
use crate::observed::Observed;
use crate::program::{Exposure, MetricPlan, Plan};

/// Data of a cohort that is missing for so many blocks is an observation of its own.
const SILENT_BLOCKS: i64 = 3;
/// Zero requests are silence when so many were expected.
const EXPECTED: f64 = 10.0;
/// The largest count: floating point counts every event up to here.
const MOST: f64 = 9_007_199_254_740_992.0;
/// The last moment of year 9999, ms since 1970.
const LATEST: i64 = 253_402_300_799_999;
/// Targets that are remembered because a pod has more than one; what is left out of more is up to a scrape a minute.
const MOST_DOUBLED: usize = 64;
/// When a pod is taken to become ready that is not, ms since 1970: year 9999.
const UNREADY: i64 = 253_370_764_800_000;
/// Gauges are looked at each time that a weight has been effective for so much longer, ms.
const LOOK: i64 = 600_000;

/// The evidence so far, and the rounds that are still to be folded.
#[derive(Debug)]
pub(crate) struct Fold<'a> {
    plan: &'a Plan,
    next_weight: f64,
    interval: i64,
    block: i64,
    share: f64,
    checkpoint: Checkpoint,
    metrics: Vec<MetricFold>,
    gauges: Vec<GaugeFold>,
    /// None where no metric counts requests.
    split: Option<Split>,
    expressions: Vec<ExpressionFold>,
    rounds: VecDeque<Round>,
    folded: usize,
    /// Pods with more than one target.
    pub(crate) duplicates: BTreeSet<String>,
    /// Metrics whose cohorts have no buckets in common.
    pub(crate) incomparable: BTreeSet<String>,
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

impl<'a> Fold<'a> {
    /// Continues at the checkpoint. An unreadable one (another version's) begins anew: with capital 1, which keeps
    /// every promise and only costs time.
    pub(crate) fn new(plan: &'a Plan, checkpoint: &Checkpoint, weight: Percent, next: Percent) -> Self {
        let (interval, block) = (plan.interval(), plan.block());
        let checkpoint = readable(checkpoint);
        let next_weight = checkpoint.next.unwrap_or(next).share().max(1e-4);
        let metrics = plan
            .metrics
            .iter()
            .map(|metric| MetricFold::restore(metric, checkpoint.metrics.get(&metric.name), next_weight))
            .collect();
        let gauges =
            plan.gauges.iter().map(|gauge| GaugeFold::restore(checkpoint.gauges.get(&gauge.name))).collect();
        let split =
            plan.split.and_then(|split| Split::restore(split, plan.settle, checkpoint.split.as_ref()));
        let kept = &checkpoint.expressions;
        let expressions =
            plan.expressions.iter().map(|one| ExpressionFold::restore(kept.get(&one.name))).collect();
        Self {
            plan,
            next_weight,
            interval,
            block,
            share: weight.share(),
            checkpoint,
            metrics,
            gauges,
            split,
            expressions,
            rounds: VecDeque::new(),
            folded: 0,
            duplicates: BTreeSet::new(),
            incomparable: BTreeSet::new(),
        }
    }

    /// Samples count from `effective` + settle on. Blocks are closed; the evidence of a step begins anew.
    pub(crate) fn open(&mut self, effective: Instant, observed: &Observed) {
        self.close();
        let t0 = effective.as_millisecond();
        let from = t0 + self.plan.settle;
        self.checkpoint.t0 = t0;
        self.checkpoint.from = from;
        self.checkpoint.folded_until = t0 + (from - t0).div_euclid(self.interval) * self.interval;
        self.checkpoint.silent = Silence::default();
        self.split.iter_mut().for_each(Split::begin);
        self.checkpoint.targets.clear();
        let warm = from - self.plan.warmup;
        self.checkpoint.young.retain(|_, ready| (warm + 1..UNREADY).contains(ready));
        self.remember_young(observed, true);
    }

    /// No samples count until the next [`Fold::open`]: the weight or a cohort changes.
    pub(crate) fn close(&mut self) {
        if self.is_open() {
            self.checkpoint.closed = self.checkpoint.folded_until;
        }
        self.checkpoint.t0 = 0;
        self.checkpoint.silent = Silence::default();
        self.rounds.clear();
        for metric in &mut self.metrics {
            metric.close();
        }
        self.split.iter_mut().for_each(Split::close);
    }

    /// The evidence for the step's promotion begins anew, with the margin of its next weight. Gauges are looked at once all else
    /// is shown, but not before `hold_min`.
    pub(crate) fn begin_step(&mut self, weight: Percent, next: Percent, hold_min: i64) {
        self.checkpoint.hold_min = hold_min;
        self.share = weight.share();
        self.checkpoint.next = Some(next);
        self.next_weight = next.share().max(1e-4);
        for (metric, plan) in self.metrics.iter_mut().zip(&self.plan.metrics) {
            metric.begin_step(plan, self.next_weight);
        }
        for (gauge, plan) in self.gauges.iter_mut().zip(&self.plan.gauges) {
            gauge.begin_step(plan);
        }
        self.expressions.iter_mut().for_each(ExpressionFold::begin);
    }

    /// Whether samples count now.
    pub(crate) fn is_open(&self) -> bool {
        self.checkpoint.t0 > 0
    }

    /// Folds the next round; its end is the time of the look. None when there is none left.
    pub(crate) fn look(&mut self) -> Option<i64> {
        let round = self.rounds.pop_front()?;
        self.folded += 1;
        self.checkpoint.folded_until = round.end;
        let age = round.end - self.checkpoint.t0;
        let known = &mut self.checkpoint.targets;
        for (key, last) in &round.doubled {
            if known.len() < MOST_DOUBLED || known.contains_key(key) {
                known.insert(key.clone(), *last);
            }
        }
        if let Some(split) = &mut self.split {
            split.take(&round.requests, round.end, age, self.interval, self.share);
        }
        let misrouted = self.split_is_wrong();
        for ((metric, plan), seen) in self.metrics.iter_mut().zip(&self.plan.metrics).zip(&round.seen) {
            if let Some(limit) = &mut metric.limit {
                limit.take(&seen.counts, round.end, self.interval);
            }
            // What it takes for its exposure is known to be wrong.
            if misrouted && plan.exposure == Exposure::Traffic {
                continue;
            }
            let of_traffic = (plan.exposure == Exposure::Traffic).then(|| seen.of_traffic(self.share));
            let seen = of_traffic.as_ref().unwrap_or(seen);
            let inside = round.end <= metric.block_until;
            if !inside && !seen.both() {
                continue;
            }
            if !inside {
                metric.block_until = round.end - self.interval + plan.block;
            }
            match metric.take(plan, seen, !inside, self.next_weight) {
                Ok(true) if metric.counted_from == 0 => metric.counted_from = round.end - self.interval,
                Ok(_) => {}
                Err(metric::Incomparable) => {
                    self.incomparable.insert(plan.name.clone());
                }
            }
        }
        self.look_at_gauges(&round);
        self.look_at_expressions(&round);
        self.count_silence(&round);
        Some(round.end)
    }

    /// At each ten minutes of a weight, and once when all else is shown.
    fn look_at_gauges(&mut self, round: &Round) {
        let age = round.end - self.checkpoint.t0;
        let declared = gauge::passed(age, self.interval, LOOK);
        let rest = age >= self.checkpoint.hold_min && self.counts_are_safe();
        for ((gauge, plan), values) in self.gauges.iter_mut().zip(&self.plan.gauges).zip(&round.values) {
            gauge.take(plan, values, age, self.interval);
            let ends = rest && !gauge.asked;
            if (declared || ends) && gauge.look(plan, self.next_weight, round.end) {
                gauge.asked |= ends;
            }
        }
    }

    /// A value counts when all that it depends on is of this weight.
    fn look_at_expressions(&mut self, round: &Round) {
        let expressions = self.expressions.iter_mut().zip(&self.plan.expressions);
        for ((expression, plan), number) in expressions.zip(&round.numbers) {
            if round.end - plan.reach.max(self.interval) >= self.checkpoint.from {
                expression.take(plan, *number, round.end);
            }
        }
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
        // Without a metric that decides there is no evidence.
        davylamp_stats::combine_log_e(&self.log_es(), &self.weights()).unwrap_or(0.0)
    }

    fn log_es(&self) -> Vec<f64> {
        self.metrics.iter().map(MetricFold::log_e).collect()
    }

    fn weights(&self) -> Vec<f64> {
        self.plan.metrics.iter().map(|metric| metric.weight).collect()
    }

    /// The evidence suffices to roll back, or a gauge does.
    pub(crate) fn regressed(&self) -> bool {
        self.counts_regressed() || self.gauges.iter().any(GaugeFold::regressed)
    }

    /// The evidence of what is counted suffices to roll back.
    pub(crate) fn counts_regressed(&self) -> bool {
        !self.metrics.is_empty() && self.log_e() >= -libm::log(self.plan.alpha)
    }

    /// The evidence suffices to roll back, by whatever rule.
    pub(crate) fn condemned(&self) -> bool {
        self.regressed() || !self.exceeded().is_empty()
    }

    /// The expressions that were outside their limits too often.
    pub(crate) fn exceeded(&self) -> Vec<usize> {
        let expressions = self.expressions.iter().zip(&self.plan.expressions);
        (0..).zip(expressions).filter(|(_, (one, plan))| one.exceeded(plan)).map(|(i, _)| i).collect()
    }

    /// An expression that was asked for last without a value.
    pub(crate) fn silent_expression(&self) -> Option<&'a str> {
        let mut expressions = self.expressions.iter().zip(&self.plan.expressions);
        expressions.find(|(one, _)| one.is_silent()).map(|(_, plan)| plan.name.as_str())
    }

    /// The baseline is in an incident.
    pub(crate) fn in_incident(&self) -> bool {
        self.metrics.iter().filter_map(|metric| metric.limit.as_ref()).any(limit::Limit::is_on)
    }

    /// The last whole block of the baseline lies above its limit: perhaps an incident begins.
    pub(crate) fn is_suspicious(&self) -> bool {
        self.metrics.iter().filter_map(|metric| metric.limit.as_ref()).any(limit::Limit::is_above)
    }

    /// The incident of the baseline that is on and was noticed first, else the last one.
    pub(crate) fn incident(&self) -> Option<IncidentStatus> {
        let metrics = self.metrics.iter().zip(&self.plan.metrics);
        let incidents = || metrics.clone().filter_map(|(m, plan)| m.limit.as_ref()?.incident(&plan.name));
        let on = incidents().filter(|incident| incident.over.is_none()).min_by_key(|i| i.noticed);
        on.or_else(|| incidents().max_by_key(|incident| incident.noticed))
    }

    /// The metrics whose objectives the canary violates.
    pub(crate) fn violated(&self) -> Vec<usize> {
        let violated = |metric: &MetricFold| metric.limit.as_ref().is_some_and(limit::Limit::is_violated);
        (0..).zip(&self.metrics).filter(|(_, metric)| violated(metric)).map(|(i, _)| i).collect()
    }

    /// The canary is shown not to get the share of the requests that was asked for.
    pub(crate) fn split_is_wrong(&self) -> bool {
        self.split.as_ref().is_some_and(Split::is_wrong)
    }

    /// The same, where that keeps a run from going on.
    pub(crate) fn is_misrouted(&self) -> bool {
        self.split_is_wrong() && self.plan.split.is_some_and(|split| split.pauses)
    }

    /// How the requests were split, for the record.
    pub(crate) fn split(&self) -> Option<SplitRecord> {
        self.split.as_ref().map(Split::record)
    }

    /// Objectives and the split are tested anew.
    fn forgive(&mut self) {
        self.split.iter_mut().for_each(Split::forgive);
        self.metrics.iter_mut().filter_map(|metric| metric.limit.as_mut()).for_each(limit::Limit::forgive);
    }

    /// That the canary is good enough must be shown anew: what failed for both versions says that they are alike.
    fn prove_anew(&mut self) {
        for (metric, plan) in self.metrics.iter_mut().zip(&self.plan.metrics) {
            metric.prove_anew(plan, self.next_weight);
        }
    }

    /// What a decision changes in the evidence.
    pub(crate) fn decided(&mut self, rule: &str) {
        if rule == Reason::Promote.as_str() {
            self.forgive();
        } else if rule == Reason::IncidentOver.as_str() {
            self.prove_anew();
        }
    }

    /// Each metric that decides is shown not to be worse than the margin of this step.
    pub(crate) fn safe(&self) -> bool {
        let mut gauges = self.gauges.iter().zip(&self.plan.gauges);
        let mut expressions = self.expressions.iter().zip(&self.plan.expressions);
        self.counts_are_safe()
            && gauges.all(|(gauge, plan)| !plan.decides || gauge.safe())
            && expressions.all(|(expression, plan)| expression.safe(plan))
    }

    fn counts_are_safe(&self) -> bool {
        let enough = -libm::log(self.plan.beta);
        let mut metrics = self.metrics.iter().zip(&self.plan.metrics);
        metrics.all(|(metric, plan)| !plan.decides() || metric.log_e_safe() >= enough)
    }

    /// The share of the evidence that a rollback needs.
    pub(crate) fn evidence(&self) -> Percent {
        percent(self.log_e() / -libm::log(self.plan.alpha))
    }

    /// The share of requests that the canary was seen to get in this step.
    pub(crate) fn observed_share(&self) -> Option<Percent> {
        let SplitRecord { canary, baseline, .. } = self.split()?;
        let all = canary + baseline;
        (all > 0.0).then(|| percent(canary / all))
    }

    /// The metrics that carry the evidence for a rollback.
    pub(crate) fn culprits(&self) -> Vec<usize> {
        davylamp_stats::attribution(&self.log_es(), &self.weights(), self.plan.alpha)
    }

    /// The base of the next fold.
    pub(crate) fn checkpoint(&self, now: Instant) -> Checkpoint {
        let mut checkpoint = self.checkpoint.clone();
        checkpoint.at = now.as_millisecond();
        checkpoint.metrics = self
            .metrics
            .iter()
            .zip(&self.plan.metrics)
            .map(|(metric, plan)| (plan.name.clone(), metric.checkpoint()))
            .collect();
        let gauges = self.gauges.iter().zip(&self.plan.gauges);
        checkpoint.gauges = gauges.map(|(gauge, plan)| (plan.name.clone(), gauge.checkpoint())).collect();
        checkpoint.split = self.split.as_ref().map(Split::checkpoint);
        let expressions = self.expressions.iter().zip(&self.plan.expressions);
        checkpoint.expressions =
            expressions.map(|(one, plan)| (plan.name.clone(), one.checkpoint())).collect();
        checkpoint
    }

    /// Data of the weight before was read up to this moment.
    pub(crate) fn closed(&self) -> Option<Instant> {
        Instant::from_millisecond(self.checkpoint.closed).ok().filter(|_| self.checkpoint.closed > 0)
    }

    /// These pods are warm from then on, all others have been for long.
    pub(crate) fn warm_from(&mut self, warm: &BTreeMap<String, i64>) {
        let ready = |at: &i64| at.saturating_sub(self.plan.warmup);
        self.checkpoint.young = warm.iter().map(|(pod, at)| (pod.clone(), ready(at))).collect();
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
        let metrics = self.metrics.iter().zip(&self.plan.metrics);
        let until = self.checkpoint.folded_until;
        metrics.map(|(metric, plan)| metric.record(plan, self.plan.alpha, self.next_weight, until)).collect()
    }

    /// What each metric has counted in this step, and since when.
    pub(crate) fn counted(&self) -> impl Iterator<Item = (&'a MetricPlan, Counted)> {
        let until = self.checkpoint.folded_until;
        self.plan.metrics.iter().zip(&self.metrics).map(move |(plan, metric)| (plan, metric.counted(until)))
    }

    /// The gauges, for record and status.
    pub(crate) fn gauges(&self) -> Vec<GaugeRecord> {
        let gauges = self.gauges.iter().zip(&self.plan.gauges);
        gauges.map(|(gauge, plan)| gauge.record(plan, self.until())).collect()
    }

    /// The expressions, for record and status.
    pub(crate) fn expressions(&self) -> Vec<ExpressionRecord> {
        let expressions = self.expressions.iter().zip(&self.plan.expressions);
        expressions.map(|(expression, plan)| expression.record(plan, self.until())).collect()
    }

    /// The end of the data; None before there is any.
    fn until(&self) -> Option<Instant> {
        let until = self.checkpoint.folded_until;
        Instant::from_millisecond(until).ok().filter(|_| until > 0)
    }

    /// Before when increments may not begin, in general and for pods that were warm only later; at most 50 of them.
    pub(crate) fn left_out(&self) -> (Option<Instant>, BTreeMap<String, Instant>) {
        let after = self.checkpoint.from;
        let warm = |ready: &i64| ready.saturating_add(self.plan.warmup);
        let young = self.checkpoint.young.iter().filter(|(_, ready)| warm(ready) > after).take(MOST_YOUNG);
        let young = young
            .filter_map(|(pod, ready)| Some((pod.clone(), Instant::from_millisecond(warm(ready)).ok()?)));
        (Instant::from_millisecond(after).ok(), young.collect())
    }

    /// The metrics that are read as one sum for each target.
    pub(crate) fn summed(&self) -> BTreeSet<String> {
        let metrics = self.plan.metrics.iter().zip(&self.metrics);
        metrics.filter(|(_, metric)| metric.summed > 0).map(|(plan, _)| plan.name.clone()).collect()
    }

    /// What comes without traffic was looked for.
    pub(crate) fn was_watched(&self) -> bool {
        self.checkpoint.watched
    }

    /// It is looked for from now on.
    pub(crate) fn watch(&mut self) {
        self.checkpoint.watched = true;
    }

    /// What a pod counts of each metric a second without traffic, where that is known.
    pub(crate) fn backgrounds(&self) -> impl Iterator<Item = (&'a MetricPlan, Option<f64>)> {
        self.plan.metrics.iter().zip(&self.metrics).map(|(plan, metric)| (plan, metric.background))
    }

    /// It is known now.
    pub(crate) fn leave_out(&mut self, metric: &str, background: f64) {
        let at = self.plan.metrics.iter().position(|plan| plan.name == metric);
        if let Some(metric) = at.and_then(|at| self.metrics.get_mut(at)) {
            metric.background = Some(background.clamp(0.0, MOST));
        }
    }

    /// The evidence, by metric, for the status.
    pub(crate) fn statuses(&self) -> Vec<MetricStatus> {
        let metrics = self.metrics.iter().zip(&self.plan.metrics);
        metrics.map(|(metric, plan)| metric.status(plan, self.plan.alpha, self.plan.beta)).collect()
    }
}

/// A checkpoint by hand or by another version holds any numbers; times before 1970 or after year 9999 are no times.
fn readable(checkpoint: &Checkpoint) -> Checkpoint {
    let mut checkpoint = checkpoint.clone();
    for time in
        [&mut checkpoint.t0, &mut checkpoint.from, &mut checkpoint.folded_until, &mut checkpoint.closed]
    {
        *time = (*time).clamp(0, LATEST);
    }
    checkpoint.silent.baseline_meanwhile = checkpoint.silent.baseline_meanwhile.clamp(0.0, MOST);
    checkpoint
}

/// With six decimals: what is shown, and survives being written and read.
pub(crate) fn rounded(number: f64) -> f64 {
    let scaled = number * 1e6;
    if scaled.abs() < MOST { libm::round(scaled) / 1e6 } else { number }
}

/// A share as a percentage from 0 % to 100 %, rounded down; no number is 0 %.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
pub(crate) fn percent(share: f64) -> Percent {
    Percent::from_basis_points((share * 10_000.0).clamp(0.0, 10_000.0) as u16)
}

#[cfg(test)]
mod tests;

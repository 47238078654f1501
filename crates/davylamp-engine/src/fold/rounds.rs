//! Samples in rounds: of which target of which pod increments count, and since when.

use std::collections::BTreeMap;

use davylamp_api::Instant;

use super::metric::Seen;
use super::split::Requests;
use super::{Fold, LATEST, UNREADY, gauge};
use crate::decision::Named;
use crate::observed::{Increment, Observed, Samples};
use crate::program::{Exposure, MetricPlan};

/// A target that was silent for so many halves of an interval begins anew, as whoever reads its samples has it.
const SILENT_TARGET: i64 = 5;
/// Pods that are remembered as young.
const YOUNG: usize = 200;
/// Rounds that one pass folds at most; the rest follows in the next.
const ROUNDS: usize = 20_000;

#[derive(Clone, Debug, Default)]
pub(super) struct Round {
    pub(super) end: i64,
    /// By metric.
    pub(super) seen: Vec<Seen>,
    /// By gauge.
    pub(super) values: Vec<Vec<gauge::Value>>,
    /// Of all pods, warm or not.
    pub(super) requests: Requests,
    /// By expression: its value at the end.
    pub(super) numbers: Vec<Option<f64>>,
    /// Of "metric pod" with more than one target: up to when it has counted.
    pub(super) doubled: Vec<(String, i64)>,
    pub(super) canary_present: bool,
    pub(super) baseline_present: bool,
    /// Requests after the settle time, of pods that are not yet warm as well.
    pub(super) canary_seen: f64,
    pub(super) baseline_seen: f64,
}

/// What may count of one pod.
struct OfPod<'t> {
    /// The end of its name.
    pod: &'t str,
    canary: bool,
    increments: Vec<&'t Increment>,
    /// From when on they count; None while that is unknown.
    warm: Option<i64>,
}

impl Round {
    fn hear(&mut self, increment: &Increment, left_out: f64, canary: bool, from: i64) {
        let (present, seen) = if canary {
            (&mut self.canary_present, &mut self.canary_seen)
        } else {
            (&mut self.baseline_present, &mut self.baseline_seen)
        };
        *present = true;
        if increment.from >= from {
            *seen += increment.total - left_out;
        }
    }

    /// In one round a probe more may come than on average, and is no request.
    fn silence_background(&mut self) {
        for seen in [&mut self.canary_seen, &mut self.baseline_seen] {
            *seen = if *seen < 1.0 { 0.0 } else { *seen };
        }
    }
}

/// Two of them overlap.
fn is_doubled(increments: &[(usize, &Increment)]) -> bool {
    increments.windows(2).any(|pair| pair[1].1.from < pair[0].1.to)
}

#[allow(clippy::cast_precision_loss, reason = "a time in ms")]
fn seconds(increment: &Increment) -> f64 {
    (increment.to - increment.from) as f64 / 1_000.0
}

impl Fold<'_> {
    /// Cuts the samples after the checkpoint into rounds.
    pub(crate) fn take(&mut self, samples: &Samples, observed: &Observed, cohorts: &Named) {
        if !self.is_open() || samples.since > self.checkpoint.folded_until {
            return;
        }
        self.remember_young(observed, false);
        let last = self.index(samples.until.clamp(0, LATEST) + 1) - 1;
        let first = self.index(self.checkpoint.folded_until + 1);
        if last < first {
            return;
        }
        let count = usize::try_from(last - first + 1).unwrap_or(ROUNDS).min(ROUNDS);
        let mut rounds: Vec<Round> = (0..count)
            .map(|i| Round {
                end: self.end(first + i64::try_from(i).unwrap_or(0)),
                seen: vec![Seen::default(); self.metrics.len()],
                values: vec![Vec::new(); self.gauges.len()],
                numbers: vec![None; self.expressions.len()],
                ..Round::default()
            })
            .collect();
        let requests = self.plan.metrics.iter().any(MetricPlan::counts_requests);
        for (m, metric) in self.plan.metrics.iter().enumerate() {
            let heard = metric.counts_requests() || !requests;
            let split = self.plan.split.is_some_and(|split| split.metric == m);
            // A pod that restarts is not ready: what ends it would be left out. And a gateway knows no pods.
            let warms = metric.exposure != Exposure::PodSeconds && metric.told.is_none();
            if samples.summed.contains(&metric.name) && self.metrics[m].summed == 0 {
                self.metrics[m].summed = self.checkpoint.folded_until;
            }
            let background = self.metrics[m].background.unwrap_or(0.0);
            for OfPod { canary, increments, warm, .. } in
                self.pods(&metric.name, samples, observed, cohorts, warms, &mut rounds)
            {
                // The last round in which the pod counted, and was there.
                let (mut counted, mut present) = (None, None);
                for increment in increments {
                    let at = usize::try_from(self.index(increment.to) - first).ok();
                    let Some(round) = at.and_then(|at| rounds.get_mut(at)) else { continue };
                    let left_out = background * seconds(increment);
                    if heard {
                        round.hear(increment, left_out, canary, self.checkpoint.from);
                    }
                    if split {
                        round.requests.add(increment, left_out, canary);
                    }
                    if increment.from < self.checkpoint.from {
                        continue;
                    }
                    if present != at {
                        present = at;
                        round.seen[m].add_present(canary);
                    }
                    if warm.is_some_and(|warm| increment.from >= warm) {
                        round.seen[m].add(increment, left_out, canary);
                        if increment.total > 0.0 && counted != at {
                            counted = at;
                            round.seen[m].add_pod(canary);
                        }
                    }
                }
            }
            if background > 0.0 {
                rounds.iter_mut().for_each(Round::silence_background);
            }
        }
        for (g, plan) in self.plan.gauges.iter().enumerate() {
            let heard = self.plan.metrics.is_empty();
            for (name, divides) in [(plan.name.clone(), false), (plan.divisor(), true)] {
                for OfPod { pod, canary, increments, warm } in
                    self.pods(&name, samples, observed, cohorts, true, &mut rounds)
                {
                    for increment in increments {
                        let at = usize::try_from(self.index(increment.to) - first).ok();
                        let Some(round) = at.and_then(|at| rounds.get_mut(at)) else { continue };
                        if heard {
                            round.hear(increment, 0.0, canary, self.checkpoint.from);
                        }
                        let from = warm.map(|warm| warm.max(self.checkpoint.from));
                        let some = !divides || increment.events > 0.0;
                        if some && from.is_some_and(|from| increment.from >= from) {
                            let divided = plan.divided_by.is_some();
                            round.values[g].push(gauge::Value::of(pod, canary, increment, divided, divides));
                        }
                    }
                }
            }
        }
        self.read_numbers(samples, first, &mut rounds);
        self.rounds = rounds.into();
    }

    /// Expressions were asked for at the ends of rounds.
    fn read_numbers(&self, samples: &Samples, first: i64, rounds: &mut [Round]) {
        let alone = self.plan.metrics.is_empty() && self.plan.gauges.is_empty();
        for (e, plan) in self.plan.expressions.iter().enumerate() {
            let metric = samples.metrics.get(&plan.name);
            for increment in
                metric.iter().flat_map(|metric| metric.pods.values()).flat_map(BTreeMap::values).flatten()
            {
                let at = usize::try_from(self.index(increment.to) - first).ok();
                let round = at.and_then(|at| rounds.get_mut(at));
                let Some(round) = round.filter(|round| round.end == increment.to) else { continue };
                round.numbers[e] = Some(increment.events).filter(|number| number.is_finite());
                if alone {
                    round.canary_present = true;
                    round.baseline_present = true;
                    round.canary_seen = 1.0;
                    round.baseline_seen = 1.0;
                }
            }
        }
    }

    /// The increments of each pod that may count.
    fn pods<'t>(
        &mut self,
        name: &str,
        samples: &'t Samples,
        observed: &Observed,
        cohorts: &Named,
        warms: bool,
        rounds: &mut [Round],
    ) -> Vec<OfPod<'t>> {
        let mut all = Vec::new();
        for (pod, targets) in samples.metrics.get(name).iter().flat_map(|metric| &metric.pods) {
            let own = pod.strip_prefix(cohorts.canary.pods.as_str());
            let Some(end) = own.or_else(|| pod.strip_prefix(cohorts.baseline.pods.as_str())) else {
                continue;
            };
            let warm = if warms { self.warm_at(pod, observed) } else { Some(i64::MIN) };
            let increments = self.choose(name, pod, targets, rounds);
            all.push(OfPod { pod: end, canary: own.is_some(), increments, warm });
        }
        all
    }

    /// The number of the round that holds a sample of that time.
    fn index(&self, at: i64) -> i64 {
        (at - self.checkpoint.t0 - 1).div_euclid(self.interval)
    }

    fn end(&self, index: i64) -> i64 {
        self.checkpoint.t0 + (index + 1) * self.interval
    }

    /// The increments of one target: never two for one stretch of time, which would double the evidence. Another one follows when
    /// it has been silent for too long to go on. Depends on what ends in each round, not on when it was read.
    fn choose<'t>(
        &mut self,
        metric: &str,
        pod: &str,
        targets: &'t BTreeMap<String, Vec<Increment>>,
        rounds: &mut [Round],
    ) -> Vec<&'t Increment> {
        let until = self.checkpoint.folded_until;
        let live = || targets.values().filter(|increments| !increments.is_empty());
        let key = format!("{metric} {pod}");
        let mut last = self.checkpoint.targets.get(&key).copied();
        if last.is_none() && live().nth(1).is_none() {
            return live().flatten().filter(|i| i.to > until).collect();
        }
        let of_targets = live().enumerate().flat_map(|(n, all)| all.iter().map(move |one| (n, one)));
        let mut all: Vec<(usize, &Increment)> = of_targets.filter(|(_, one)| one.to > until).collect();
        all.sort_by_key(|(_, one)| one.to);
        let (t0, interval) = (self.checkpoint.t0, self.interval);
        let index = |at: i64| (at - t0 - 1).div_euclid(interval);
        let first = index(until + 1);
        let mut chosen = Vec::with_capacity(all.len());
        for of_round in all.chunk_by(|(_, a), (_, b)| index(a.to) == index(b.to)) {
            let at = of_round.first().and_then(|(_, one)| usize::try_from(index(one.to) - first).ok());
            let Some(round) = at.and_then(|at| rounds.get_mut(at)) else { break };
            if is_doubled(of_round) {
                self.duplicates.insert(pod.to_owned());
                let mut firsts = BTreeMap::new();
                for (target, one) in of_round {
                    firsts.entry(*target).or_insert(one.from);
                }
                // Where something may have counted before, it is not known of which target: the latest doubles nothing.
                let counted = round.end - interval > self.checkpoint.from;
                let begin = if counted { firsts.values().max() } else { firsts.values().next() }.copied();
                last = last.or(begin);
            }
            for (_, one) in of_round {
                let follows = |last: i64| {
                    one.from == last || (one.from > last && 2 * (one.to - last) >= SILENT_TARGET * interval)
                };
                if last.is_none_or(follows) {
                    chosen.push(*one);
                    last = last.map(|_| one.to);
                }
            }
            round.doubled.extend(last.map(|last| (key.clone(), last)));
        }
        chosen
    }

    /// Whether a pod is young in a step is told once, when the step begins or the pod is new: one that is not ready later has served
    /// as the others, and what made it fail must not be left out. A pod keeps the moment when it was first ready.
    pub(super) fn remember_young(&mut self, observed: &Observed, begins: bool) {
        let pods = || observed.revisions.values().flat_map(|r| &r.pods);
        if begins {
            // By the clock of the API server, not ours.
            let newest = pods().map(|(_, pod)| pod.created_at.as_millisecond()).max();
            self.checkpoint.newest = newest.unwrap_or(0);
        }
        let (warm, newest) = (self.checkpoint.from - self.plan.warmup, self.checkpoint.newest);
        let young = &mut self.checkpoint.young;
        for (name, pod) in pods() {
            let ready = pod.ready_at.map_or(UNREADY, Instant::as_millisecond);
            if let Some(known) = young.get_mut(name) {
                if *known == UNREADY && ready < UNREADY {
                    // What was folded meanwhile was left out.
                    *known = ready.max(self.checkpoint.folded_until - self.plan.warmup);
                }
            } else if ready > warm
                && (begins || pod.created_at.as_millisecond() > newest)
                && young.len() < YOUNG
            {
                young.insert(name.clone(), ready);
            }
        }
    }

    /// From when samples of the pod count; None while that is unknown.
    fn warm_at(&self, pod: &str, observed: &Observed) -> Option<i64> {
        if let Some(ready) = self.checkpoint.young.get(pod) {
            return Some(ready.saturating_add(self.plan.warmup));
        }
        let is_full = self.checkpoint.young.len() >= YOUNG;
        match observed.revisions.values().find_map(|r| r.pods.get(pod)) {
            Some(pod) if is_full => pod.ready_at.map(|ready| ready.as_millisecond() + self.plan.warmup),
            // It was warm when the step began, or has left.
            _ => Some(i64::MIN),
        }
    }
}

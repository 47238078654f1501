//! The service of a simulation: what both cohorts count in each round of five seconds.
//!
//! Takes a description and random numbers, gives [`Counts`]. Counts are drawn, never requests: thinning and
//! adding Poisson arrivals gives the same law. Every pod of a cohort gets the same share of its traffic, so
//! that the pods of a cohort count as one with the average of their rates.

use davylamp_stats::{Counts, PodCounts};
use serde::Serialize;

use crate::random::Random;

/// Seconds of a round: one scrape.
pub const ROUND: u32 = 5;

/// Rounds of a minute, in which most rules of others look.
pub const MINUTE: u32 = 60 / ROUND;

/// A rate is never drawn above this.
const LARGEST_RATE: f64 = 0.9;

/// A service and what happens to it.
#[derive(Debug, Clone, Serialize)]
pub struct Service {
    pub requests_per_second: f64,
    pub metrics: Vec<Metric>,
    /// Coefficient of variation of the pods' own rates, which last.
    #[serde(skip_serializing_if = "is_zero")]
    pub pod_cv: f64,
    /// Coefficient of variation of the traffic from round to round.
    #[serde(skip_serializing_if = "is_zero")]
    pub traffic_cv: f64,
    /// The share by which the rates of both cohorts swing up and down, with a period of half an hour.
    #[serde(skip_serializing_if = "is_zero")]
    pub drift: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub incident: Option<Incident>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bursts: Option<Bursts>,
}

/// A share of the requests.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Metric {
    /// Events per request of the baseline.
    pub rate: f64,
    /// The canary's rate per the baseline's.
    pub ratio: f64,
    /// The minute in which the canary begins to differ.
    #[serde(skip_serializing_if = "is_start")]
    pub onset: u32,
}

/// Both cohorts have `factor` times their rates for a while.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Incident {
    pub from_minute: u32,
    pub minutes: u32,
    pub factor: f64,
}

/// Errors of the first metric that come together, all of one pod.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Bursts {
    pub per_hour: f64,
    /// Errors of one burst, exponentially distributed.
    pub mean: f64,
    pub seconds: u32,
}

/// How the traffic is split in a round.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Split {
    /// The canary's share of the requests.
    pub weight: f64,
    pub canary_pods: u32,
    /// Of these, so many are old enough to be compared.
    #[serde(skip)]
    pub warm_pods: u32,
    pub baseline_pods: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(value: &f64) -> bool {
    *value <= 0.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_start(value: &u32) -> bool {
    *value == 0
}

impl Service {
    /// One metric, and nothing happens.
    #[must_use]
    pub fn new(requests_per_second: f64, rate: f64, ratio: f64) -> Self {
        Self {
            requests_per_second,
            metrics: vec![Metric { rate, ratio, onset: 0 }],
            pod_cv: 0.0,
            traffic_cv: 0.0,
            drift: 0.0,
            incident: None,
            bursts: None,
        }
    }
}

impl Split {
    /// Pods of one size: as many as the weight needs of `pods`.
    #[must_use]
    pub fn new(weight: f64, pods: u32) -> Self {
        let canary_pods = pods_for(weight, pods);
        Self { weight, canary_pods, warm_pods: canary_pods, baseline_pods: pods - canary_pods }
    }
}

/// The pods that a share of the traffic needs, at least one and not all.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a few pods")]
fn pods_for(weight: f64, pods: u32) -> u32 {
    ((f64::from(pods) * weight).round() as u32).clamp(1, pods - 1)
}

/// One run of a service.
#[derive(Debug)]
pub struct Traffic<'a> {
    service: &'a Service,
    random: Random,
    /// Rounds drawn so far.
    round: u32,
    /// The rate of each pod per the cohort's, for each metric; empty if all pods are equal.
    canary_effects: Vec<Vec<f64>>,
    baseline_effects: Vec<Vec<f64>>,
    /// The bursts that last.
    bursting: Vec<Bursting>,
}

#[derive(Debug, Clone, Copy)]
struct Bursting {
    pod: Pod,
    errors_per_round: f64,
    rounds: u32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pod {
    Canary,
    Baseline,
    /// Too young to be compared.
    Young,
    /// This one, of a service that is not being rolled out.
    Stable(u32),
}

impl<'a> Traffic<'a> {
    /// Before the first round; draws the rates of the pods.
    #[must_use]
    pub fn new(service: &'a Service, pods: u32, mut random: Random) -> Self {
        let mut effects = || -> Vec<Vec<f64>> {
            let mut of_metric = || (0..pods).map(|_| random.log_normal_factor(service.pod_cv)).collect();
            if service.pod_cv > 0.0 { service.metrics.iter().map(|_| of_metric()).collect() } else { vec![] }
        };
        let (canary_effects, baseline_effects) = (effects(), effects());
        Self { service, random, round: 0, canary_effects, baseline_effects, bursting: vec![] }
    }

    /// The rate of a stable pod per the cohort's.
    #[must_use]
    pub fn stable_effect(&self, metric: usize, pod: usize) -> f64 {
        self.baseline_effects.get(metric).and_then(|effects| effects.get(pod)).copied().unwrap_or(1.0)
    }

    /// The counts of each metric in the next round.
    pub fn round(&mut self, split: &Split, counts: &mut Vec<Counts>) {
        let minute = self.round / MINUTE;
        self.round += 1;
        let warm = f64::from(split.warm_pods) / f64::from(split.canary_pods);
        let mut requests = self.service.requests_per_second * f64::from(ROUND);
        if self.service.traffic_cv > 0.0 {
            requests *= self.random.gamma_factor(self.service.traffic_cv);
        }
        let n_canary = self.random.poisson(requests * split.weight * warm);
        let n_baseline = self.random.poisson(requests * (1.0 - split.weight));
        let common = self.common_factor(minute);
        let (burst_canary, burst_baseline) = self.bursts(split, warm);

        counts.clear();
        for (index, metric) in self.service.metrics.iter().enumerate() {
            let ratio = if minute >= metric.onset { metric.ratio } else { 1.0 };
            let canary = mean_effect(&self.canary_effects, index, split.warm_pods);
            let baseline = mean_effect(&self.baseline_effects, index, split.baseline_pods);
            let rate = |factor: f64| (metric.rate * common * factor).min(LARGEST_RATE);
            let (mut x_canary, mut x_baseline) = (
                self.random.binomial(n_canary, rate(ratio * canary)),
                self.random.binomial(n_baseline, rate(baseline)),
            );
            if index == 0 {
                x_canary = (x_canary + burst_canary).min(n_canary);
                x_baseline = (x_baseline + burst_baseline).min(n_baseline);
            }
            counts.push(Counts { x_canary, x_baseline, n_canary, n_baseline });
        }
    }

    /// The counts of each pod in the next round of a service that is not being rolled out and has no incident.
    pub(crate) fn stable_round(&mut self, metric: usize, pods: u32) -> Vec<PodCounts> {
        self.round += 1;
        let mut requests = self.service.requests_per_second * f64::from(ROUND) / f64::from(pods);
        if self.service.traffic_cv > 0.0 {
            requests *= self.random.gamma_factor(self.service.traffic_cv);
        }
        let rate = self.service.metrics[metric].rate * self.drift();
        let mut counts = Vec::with_capacity(pods as usize);
        for pod in 0..pods as usize {
            let exposure = self.random.poisson(requests);
            let events =
                self.random.binomial(exposure, (rate * self.stable_effect(metric, pod)).min(LARGEST_RATE));
            counts.push(PodCounts { events, exposure });
        }
        if metric == 0 {
            self.begin_bursts(|random| Pod::Stable(random.below(pods)));
            for (pod, errors) in self.burst_errors() {
                if let Pod::Stable(pod) = pod
                    && let Some(counts) = counts.get_mut(pod as usize)
                {
                    counts.events = (counts.events + errors).min(counts.exposure);
                }
            }
        }
        counts
    }

    /// What the rates of both cohorts are multiplied by.
    fn common_factor(&self, minute: u32) -> f64 {
        let incident = self.service.incident.map_or(1.0, |incident| {
            let during = (incident.from_minute..incident.from_minute + incident.minutes).contains(&minute);
            if during { incident.factor } else { 1.0 }
        });
        self.drift() * incident
    }

    fn drift(&self) -> f64 {
        let turns = f64::from(self.round) / f64::from(30 * MINUTE);
        1.0 + self.service.drift * libm::sin(std::f64::consts::TAU * turns)
    }

    /// Errors of bursts in this round, of the canary and of the baseline.
    fn bursts(&mut self, split: &Split, warm: f64) -> (f64, f64) {
        self.begin_bursts(|random| {
            if !random.chance(split.weight) {
                Pod::Baseline
            } else if random.chance(warm) {
                Pod::Canary
            } else {
                Pod::Young
            }
        });
        let (mut canary, mut baseline) = (0.0, 0.0);
        for (pod, errors) in self.burst_errors() {
            match pod {
                Pod::Canary => canary += errors,
                Pod::Baseline | Pod::Stable(_) => baseline += errors,
                Pod::Young => {}
            }
        }
        (canary, baseline)
    }

    /// Bursts that begin in this round, each at a pod that is drawn.
    fn begin_bursts(&mut self, pod: impl Fn(&mut Random) -> Pod) {
        let Some(bursts) = self.service.bursts else { return };
        let rounds = bursts.seconds.div_ceil(ROUND).max(1);
        let mut begin = self.random.poisson(bursts.per_hour * f64::from(ROUND) / 3600.0);
        while begin >= 1.0 {
            begin -= 1.0;
            let pod = pod(&mut self.random);
            let errors_per_round = self.random.exponential(bursts.mean) / f64::from(rounds);
            self.bursting.push(Bursting { pod, errors_per_round, rounds });
        }
    }

    /// The errors of each burst in this round.
    fn burst_errors(&mut self) -> Vec<(Pod, f64)> {
        let mut errors = Vec::new();
        for burst in &mut self.bursting {
            errors.push((burst.pod, self.random.poisson(burst.errors_per_round)));
            burst.rounds -= 1;
        }
        self.bursting.retain(|burst| burst.rounds > 0);
        errors
    }
}

/// The average of the first pods.
fn mean_effect(effects: &[Vec<f64>], metric: usize, pods: u32) -> f64 {
    match effects.get(metric) {
        Some(effects) if pods > 0 => effects.iter().take(pods as usize).sum::<f64>() / f64::from(pods),
        _ => 1.0,
    }
}

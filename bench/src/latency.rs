//! A canary at one weight and the distribution of its latency: all rules read the same histograms.
//!
//! Requests take log-normal times; the buckets are those of a classic histogram, or of a native one.

use anyhow::Result;
use davylamp_stats::{Layout, ScoreProcess, histogram_quantile};
use serde::Serialize;

use crate::random::Random;
use crate::results::{Ending, Outcome};
use crate::rules::{ALPHA, TimePoints};
use crate::traffic::{MINUTE, ROUND};

/// The median in seconds, and the standard deviation of the logarithm.
const MEDIAN: f64 = 0.1;
const SIGMA: f64 = 0.8;

/// Buckets as they are by default in most clients.
const CLASSIC: [f64; 12] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, f64::INFINITY];

/// What rules with a threshold allow, as a multiple of the baseline's 99th percentile.
const ALLOWED: f64 = 1.25;

/// A cell of one latency.
#[derive(Debug, Clone, Serialize)]
pub struct LatencyCell {
    pub requests_per_second: f64,
    pub weight: f64,
    pub change: Change,
    /// Buckets per doubling; none for a classic histogram.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub native: Option<u32>,
    pub minutes: u32,
    #[serde(skip)]
    pub rules: Vec<LatencyRule>,
}

/// How the canary differs.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    None,
    /// Every request takes so many times as long.
    All(f64),
    /// The slowest two per cent do.
    Slowest(f64),
}

/// A rule of this cell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LatencyRule {
    /// Tolerance 10 %.
    Defaults,
    /// Tolerance 0.
    Exact,
    /// On the 99th percentile of the minute, with this failure limit.
    Threshold(u32),
    /// On the 99th percentiles of the minutes.
    MannWhitney,
}

/// The rules of the tables.
pub const RULES: [LatencyRule; 6] = [
    LatencyRule::Exact,
    LatencyRule::Defaults,
    LatencyRule::Threshold(0),
    LatencyRule::Threshold(3),
    LatencyRule::Threshold(5),
    LatencyRule::MannWhitney,
];

impl LatencyRule {
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Defaults => "davylamp".to_owned(),
            Self::Exact => "davylamp, tolerance 0".to_owned(),
            Self::Threshold(limit) => format!("threshold, limit {limit}"),
            Self::MannWhitney => "Mann-Whitney".to_owned(),
        }
    }
}

impl Change {
    /// The share of the canary's requests that take at most so long.
    fn share_below(self, seconds: f64) -> f64 {
        const SLOWEST: f64 = 0.98;
        match self {
            Self::None => share_below(seconds),
            Self::All(factor) => share_below(seconds / factor),
            Self::Slowest(factor) => share_below(seconds).min(SLOWEST.max(share_below(seconds / factor))),
        }
    }
}

/// The share of the baseline's requests that take at most so long.
fn share_below(seconds: f64) -> f64 {
    let z = libm::log(seconds / MEDIAN) / SIGMA;
    0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)
}

impl LatencyCell {
    /// One run: how each rule ended, in the order of the rules.
    pub fn run(&self, name: &str, run: u32) -> Result<Vec<Ending>> {
        let mut random = Random::new(name, run);
        let bounds = self.bounds();
        let (canary_shares, baseline_shares) = (shares(&bounds, self.change), shares(&bounds, Change::None));
        let mut rules = Vec::new();
        for rule in &self.rules {
            rules.push(build(*rule, &bounds, &baseline_shares, self.requests_per_second)?);
        }
        let round_of = |requests: f64, shares: &[f64], random: &mut Random| -> Vec<f64> {
            shares.iter().map(|share| random.poisson(requests * share)).collect()
        };
        let requests = self.requests_per_second * f64::from(ROUND);
        let whole = self.minutes * MINUTE;
        let mut endings =
            vec![Ending { outcome: Outcome::Undecided, rounds: whole, excess: 0.0 }; rules.len()];
        let mut minute = Histograms::new(bounds.len());
        for round in 1..=whole {
            let canary = round_of(requests * self.weight, &canary_shares, &mut random);
            let baseline = round_of(requests * (1.0 - self.weight), &baseline_shares, &mut random);
            minute.add(&canary, &baseline);
            let percentiles = if round % MINUTE == 0 { Some(minute.percentiles(&bounds)?) } else { None };
            for (rule, ending) in rules.iter_mut().zip(&mut endings) {
                if ending.outcome == Outcome::Undecided
                    && rule.round(&canary, &baseline, (round - 1) % BLOCK == 0, percentiles)?
                {
                    *ending = Ending { outcome: Outcome::RolledBack, rounds: round, excess: 0.0 };
                }
            }
            if endings.iter().all(|ending| ending.outcome != Outcome::Undecided) {
                break;
            }
        }
        Ok(endings)
    }

    /// The upper bounds of the buckets.
    fn bounds(&self) -> Vec<f64> {
        match self.native {
            None => CLASSIC.to_vec(),
            Some(per_doubling) => {
                let step = 1.0 / f64::from(per_doubling);
                let bounds = (0..13 * per_doubling).map(|index| 0.002 * libm::exp2(step * f64::from(index)));
                bounds.chain([f64::INFINITY]).collect()
            }
        }
    }

    /// The least mean time to detect in minutes, as far as these buckets show the change.
    #[must_use]
    pub fn bound(&self) -> Option<f64> {
        if matches!(self.change, Change::None) {
            return None;
        }
        let bounds = self.bounds();
        let weight = self.weight;
        let pairs = shares(&bounds, self.change).into_iter().zip(shares(&bounds, Change::None));
        let information: f64 = pairs
            .map(|(canary, baseline)| {
                let average = weight * canary + (1.0 - weight) * baseline;
                let part = |p: f64| if p > 0.0 { p * libm::log(p / average) } else { 0.0 };
                weight * part(canary) + (1.0 - weight) * part(baseline)
            })
            .sum();
        Some(-libm::log(ALPHA) / (information * self.requests_per_second * 60.0))
    }
}

/// Rounds of a block of 15 seconds.
const BLOCK: u32 = 15 / ROUND;

/// The share of the requests in each bucket.
fn shares(bounds: &[f64], change: Change) -> Vec<f64> {
    let mut below = 0.0;
    bounds
        .iter()
        .map(|&bound| {
            let up_to = if bound.is_finite() { change.share_below(bound) } else { 1.0 };
            up_to - std::mem::replace(&mut below, up_to)
        })
        .collect()
}

fn build(rule: LatencyRule, bounds: &[f64], baseline: &[f64], requests_per_second: f64) -> Result<Running> {
    let ours = |tolerance: f64| -> Result<Running> {
        // Ten minutes of the stable pods, as they are expected.
        let history: Vec<f64> =
            baseline.iter().map(|share| (share * requests_per_second * 600.0).round()).collect();
        let process = ScoreProcess::new(Layout::classic(bounds)?, tolerance, 15.0)?;
        Ok(Running::Davylamp(Box::new(process.with_history(&history)?)))
    };
    match rule {
        LatencyRule::Defaults => ours(0.1),
        LatencyRule::Exact => ours(0.0),
        LatencyRule::Threshold(failures_left) => {
            let limit = ALLOWED * quantile(bounds, baseline)?;
            Ok(Running::Threshold { limit, failures_left })
        }
        LatencyRule::MannWhitney => Ok(Running::MannWhitney(TimePoints::default())),
    }
}

/// A rule at work.
#[derive(Debug)]
enum Running {
    Davylamp(Box<ScoreProcess>),
    Threshold { limit: f64, failures_left: u32 },
    MannWhitney(TimePoints),
}

impl Running {
    fn round(
        &mut self,
        canary: &[f64],
        baseline: &[f64],
        new_block: bool,
        percentiles: Option<(f64, f64)>,
    ) -> Result<bool> {
        match (self, percentiles) {
            (Self::Davylamp(process), _) => {
                process.round(canary, baseline, new_block)?;
                Ok(process.log_e() >= -libm::log(ALPHA))
            }
            (Self::Threshold { limit, failures_left }, Some((canary, _))) if canary > *limit => {
                if let Some(left) = failures_left.checked_sub(1) {
                    *failures_left = left;
                    return Ok(false);
                }
                Ok(true)
            }
            (Self::MannWhitney(points), Some((canary, baseline))) => {
                points.add(canary, baseline);
                Ok(points.high())
            }
            (Self::Threshold { .. } | Self::MannWhitney(_), _) => Ok(false),
        }
    }
}

/// The histograms of a minute.
#[derive(Debug)]
struct Histograms {
    canary: Vec<f64>,
    baseline: Vec<f64>,
}

impl Histograms {
    fn new(buckets: usize) -> Self {
        Self { canary: vec![0.0; buckets], baseline: vec![0.0; buckets] }
    }

    fn add(&mut self, canary: &[f64], baseline: &[f64]) {
        for (sums, counts) in [(&mut self.canary, canary), (&mut self.baseline, baseline)] {
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
    }

    /// The 99th percentiles; begins the next minute.
    fn percentiles(&mut self, bounds: &[f64]) -> Result<(f64, f64)> {
        let whole = std::mem::replace(self, Self::new(bounds.len()));
        Ok((quantile(bounds, &whole.canary)?, quantile(bounds, &whole.baseline)?))
    }
}

/// The 99th percentile; not a number without requests.
fn quantile(bounds: &[f64], counts: &[f64]) -> Result<f64> {
    let cumulative: Vec<f64> = counts
        .iter()
        .scan(0.0, |sum, count| {
            *sum += count;
            Some(*sum)
        })
        .collect();
    Ok(histogram_quantile(0.99, bounds, &cumulative)?.unwrap_or(f64::NAN))
}

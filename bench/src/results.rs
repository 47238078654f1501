//! What the runs of a cell came to, in a form that is the same on every machine: counts are exact, other
//! numbers have six digits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use statrs::function::beta::beta_reg;

use crate::ratio::minutes;

/// How one run ended for one rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Ending {
    pub outcome: Outcome,
    /// Until then, or until the run ended.
    pub rounds: u32,
    /// Requests that went wrong because of the canary, as expected from its rates.
    pub excess: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    RolledBack,
    /// Rolled back before the canary began to differ.
    TooEarly,
    Promoted,
    /// No verdict within `hold.max`.
    Paused,
    Undecided,
}

/// All cells that have been run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Results {
    pub seed: u64,
    pub cells: Vec<CellResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CellResult {
    pub name: String,
    pub group: String,
    pub title: String,
    pub parameters: Value,
    pub runs: u32,
    /// In minutes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kl_bound: Option<f64>,
    /// What the histories led to, and how many of them.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub calibrations: BTreeMap<String, u32>,
    /// What the planner says, in minutes.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub planned: Option<f64>,
    pub rules: Vec<RuleResult>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RuleResult {
    pub rule: String,
    pub outcomes: BTreeMap<Outcome, u32>,
    /// Rollbacks per run, and the 99 % interval of Clopper and Pearson.
    pub fraction: f64,
    pub interval: [f64; 2],
    /// Until a run ended; a run without a decision counts with its whole length.
    pub minutes: Times,
    /// The mean time per Kullback-Leibler bound.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub per_bound: Option<f64>,
    /// Mean over the runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub excess: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Times {
    pub mean: f64,
    pub median: f64,
    pub p90: f64,
}

impl CellResult {
    #[must_use]
    pub fn rule(&self, name: &str) -> Option<&RuleResult> {
        self.rules.iter().find(|rule| rule.rule == name)
    }
}

impl RuleResult {
    /// Of the endings of one rule, in the order of the runs.
    #[must_use]
    pub fn new(rule: String, endings: &[Ending], kl_bound: Option<f64>) -> Self {
        let mut outcomes = BTreeMap::new();
        for ending in endings {
            *outcomes.entry(ending.outcome).or_insert(0) += 1;
        }
        let runs = count(endings.len());
        let rollbacks = f64::from(outcomes.get(&Outcome::RolledBack).copied().unwrap_or_default());
        let mut rounds: Vec<u32> = endings.iter().map(|ending| ending.rounds).collect();
        rounds.sort_unstable();
        let mean = minutes(rounds.iter().copied().map(f64::from).sum::<f64>() / runs);
        let (lower, upper) = clopper_pearson(rollbacks, runs, 0.01);
        let excess = endings.iter().map(|ending| ending.excess).sum::<f64>() / runs;
        Self {
            rule,
            outcomes,
            fraction: six_digits(rollbacks / runs),
            interval: [six_digits(lower), six_digits(upper)],
            minutes: Times {
                mean: six_digits(mean),
                median: six_digits(minutes(quantile(&rounds, 1, 2))),
                p90: six_digits(minutes(quantile(&rounds, 9, 10))),
            },
            per_bound: kl_bound.map(|bound| six_digits(mean / bound)),
            excess: (excess > 0.0).then(|| six_digits(excess)),
        }
    }

    #[must_use]
    pub fn count(&self, outcome: Outcome) -> u32 {
        self.outcomes.get(&outcome).copied().unwrap_or_default()
    }

    #[must_use]
    pub fn runs(&self) -> u32 {
        self.outcomes.values().sum()
    }

    /// The share of the runs that ended so.
    #[must_use]
    pub fn share(&self, outcome: Outcome) -> f64 {
        f64::from(self.count(outcome)) / f64::from(self.runs())
    }
}

/// The smallest value that so large a share of the sorted ones does not exceed.
fn quantile(sorted: &[u32], numerator: usize, denominator: usize) -> f64 {
    let index = (sorted.len() * numerator).div_ceil(denominator).saturating_sub(1);
    sorted.get(index).copied().map_or(0.0, f64::from)
}

/// The interval of a share of which `events` of `trials` were seen, with this error in both tails together.
#[must_use]
pub fn clopper_pearson(events: f64, trials: f64, error: f64) -> (f64, f64) {
    // Both ends solve for the share at which the tail has half of the error.
    let solve = |a: f64, b: f64, tail: f64| {
        let (mut below, mut above) = (0.0, 1.0);
        for _ in 0..60 {
            let middle = f64::midpoint(below, above);
            if beta_reg(a, b, middle) < tail { below = middle } else { above = middle }
        }
        f64::midpoint(below, above)
    };
    let lower = if events > 0.0 { solve(events, trials - events + 1.0, error / 2.0) } else { 0.0 };
    let upper = if events < trials { solve(events + 1.0, trials - events, 1.0 - error / 2.0) } else { 1.0 };
    (lower, upper)
}

/// The number with six significant digits: the bits behind them differ between platforms.
#[must_use]
pub fn six_digits(value: f64) -> f64 {
    format!("{value:.5e}").parse().unwrap_or(value)
}

#[expect(clippy::cast_precision_loss, reason = "some thousands of runs")]
fn count(runs: usize) -> f64 {
    runs as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_is_that_of_the_tables() {
        let (lower, upper) = clopper_pearson(0.0, 100.0, 0.01);
        assert!(lower <= 0.0 && (upper - (1.0 - libm::pow(0.005, 0.01))).abs() < 1e-9);
        let (lower, upper) = clopper_pearson(10.0, 100.0, 0.05);
        assert!((lower - 0.0490).abs() < 1e-4 && (upper - 0.1762).abs() < 1e-4, "{lower} {upper}");
    }

    #[test]
    fn quantiles_are_values_that_occurred() {
        assert!((quantile(&[1, 2, 3, 4], 1, 2) - 2.0).abs() < 1e-9);
        assert!((quantile(&[1, 2, 3, 4], 9, 10) - 4.0).abs() < 1e-9);
        assert!((six_digits(0.123_456_789) - 0.123_457).abs() < 1e-15);
    }
}

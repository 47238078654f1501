//! A canary at one weight and one ratio metric: all rules read the same counts.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use davylamp_stats::{Counts, Detection, Horizon, detect_seconds};
use serde::Serialize;

use crate::history::{self, Calibrations, Setting};
use crate::random::Random;
use crate::results::{Ending, Outcome};
use crate::rules::{ALPHA, Bounded, Davylamp, MannWhitney, Oracle, Rule, Settings, Threshold, ZTest};
use crate::traffic::{MINUTE, ROUND, Service, Split, Traffic};

/// A cell of one metric.
#[derive(Debug, Clone, Serialize)]
pub struct RatioCell {
    pub service: Service,
    pub split: Split,
    /// The cohorts are exchanged for all rules.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub higher_is_better: bool,
    /// A run ends here at the latest.
    pub minutes: u32,
    /// The error rate that the rules with a threshold allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
    #[serde(skip)]
    pub rules: Vec<RatioRule>,
    /// The history is drawn; else it is known to be without bursts and differences between pods.
    pub draws_history: bool,
    #[serde(skip)]
    pub calibrations: Arc<Calibrations>,
    /// Computed when it is first asked for.
    #[serde(skip)]
    pub horizon: Arc<Mutex<Option<Horizon>>>,
}

/// A rule of this cell.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RatioRule {
    /// Tolerance 10 %, floor 0.1 %, and what history says about pods and bursts.
    Defaults,
    /// Tolerance 0, no floor, no margin.
    Exact,
    /// Tolerance 0 with what history says about pods and bursts.
    Calibrated,
    /// Tolerance 0 and the threshold of a rollout that is planned for a regression of this size: no clip, no restarts,
    /// and four times as many events as the bound needs.
    Horizon,
    /// What the canary has as its true ratio is tolerated, no floor, no margin.
    Boundary,
    Threshold(u32),
    /// The level in per cent.
    ZTest(u32),
    MannWhitney,
    Oracle,
}

/// The horizon, in mean numbers of events until the best possible test knows.
const HORIZON: f64 = 4.0;

/// A good canary is rolled out with this ratio in mind.
const HORIZON_RATIO: f64 = 2.0;

/// The rules that people use.
pub const RIVALS: [RatioRule; 6] = [
    RatioRule::Threshold(0),
    RatioRule::Threshold(3),
    RatioRule::Threshold(5),
    RatioRule::ZTest(5),
    RatioRule::ZTest(1),
    RatioRule::MannWhitney,
];

impl RatioRule {
    #[must_use]
    pub fn name(self) -> String {
        match self {
            Self::Defaults => "davylamp".to_owned(),
            Self::Exact => "davylamp, tolerance 0".to_owned(),
            Self::Calibrated => "davylamp, tolerance 0, calibrated".to_owned(),
            Self::Horizon => "davylamp, tolerance 0, finite horizon".to_owned(),
            Self::Boundary => "davylamp, the truth tolerated, no floor".to_owned(),
            Self::Threshold(limit) => format!("threshold, limit {limit}"),
            Self::ZTest(level) => format!("z-test, {level} %"),
            Self::MannWhitney => "Mann-Whitney".to_owned(),
            Self::Oracle => "oracle SPRT".to_owned(),
        }
    }
}

impl RatioCell {
    /// The rules with a threshold allow twice the baseline's rate.
    #[must_use]
    pub fn new(service: Service, split: Split, minutes: u32, rules: &[RatioRule]) -> Self {
        Self {
            service,
            split,
            higher_is_better: false,
            minutes,
            threshold: None,
            rules: rules.to_vec(),
            draws_history: false,
            calibrations: Arc::default(),
            horizon: Arc::default(),
        }
    }

    /// One run: how each rule ended, in the order of the rules.
    pub fn run(&self, name: &str, run: u32) -> Result<Vec<Ending>> {
        let pods = self.split.canary_pods + self.split.baseline_pods;
        let mut traffic = Traffic::new(&self.service, pods, Random::new(name, run));
        let mut past = Random::new(&format!("{name}, history"), run);
        let tau = if self.service.pod_cv > 0.0 {
            history::pod_spread(&self.service, &traffic, 0, pods, &mut past)?
        } else {
            0.0
        };
        let setting = if self.draws_history {
            self.calibrations.of_run(&self.service, 0, &self.split, name, run)?
        } else {
            Setting::clean()
        };
        let mut rules = Vec::new();
        for rule in &self.rules {
            rules.push(self.build(*rule, history::tolerance_factor(tau, &self.split), setting)?);
        }

        let onset = self.service.metrics[0].onset * MINUTE;
        let mut endings =
            vec![
                Ending { outcome: Outcome::Undecided, rounds: self.minutes * MINUTE - onset, excess: 0.0 };
                rules.len()
            ];
        let mut undecided = rules.len();
        let mut of_metrics: Vec<Counts> = Vec::new();
        for round in 1..=self.minutes * MINUTE {
            traffic.round(&self.split, &mut of_metrics);
            let counts = if self.higher_is_better { of_metrics[0].swapped() } else { of_metrics[0] };
            for (rule, ending) in rules.iter_mut().zip(&mut endings) {
                if ending.outcome == Outcome::Undecided && rule.round(&counts)? {
                    let outcome = if round > onset { Outcome::RolledBack } else { Outcome::TooEarly };
                    *ending = Ending { outcome, rounds: round.saturating_sub(onset), excess: 0.0 };
                    undecided -= 1;
                }
            }
            if undecided == 0 {
                break;
            }
        }
        Ok(endings)
    }

    fn build(&self, rule: RatioRule, pod_factor: f64, setting: Setting) -> Result<Box<dyn Rule>> {
        let ours = |settings: Settings| -> Result<Box<dyn Rule>> { Ok(Box::new(Davylamp::new(settings)?)) };
        match rule {
            RatioRule::Defaults => {
                let defaults = setting.apply(Settings::defaults());
                if self.higher_is_better {
                    ours(Settings { rho0: pod_factor / 0.9, floor: None, ..defaults })
                } else {
                    ours(Settings { rho0: defaults.rho0 * pod_factor, ..defaults })
                }
            }
            RatioRule::Exact => ours(Settings::exact()),
            RatioRule::Calibrated => ours(Settings { rho0: pod_factor, ..setting.apply(Settings::exact()) }),
            RatioRule::Horizon => Ok(Box::new(Bounded::new(self.horizon()?)?)),
            RatioRule::Boundary => {
                ours(Settings { rho0: self.service.metrics[0].ratio, ..Settings::exact() })
            }
            RatioRule::Threshold(limit) => {
                let threshold = self.threshold.unwrap_or(2.0 * self.service.metrics[0].rate);
                Ok(Box::new(Threshold::new(threshold, limit)))
            }
            RatioRule::ZTest(1) => Ok(Box::new(ZTest::new(2.326_347_874_040_841))),
            RatioRule::ZTest(_) => Ok(Box::new(ZTest::new(1.644_853_626_951_472_2))),
            RatioRule::MannWhitney => Ok(Box::new(MannWhitney::default())),
            RatioRule::Oracle => {
                let ratio = self.service.metrics[0].ratio;
                Ok(Box::new(Oracle::new(if self.higher_is_better { 1.0 / ratio } else { ratio })))
            }
        }
    }

    fn horizon(&self) -> Result<Horizon> {
        let mut known = self.horizon.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(horizon) = *known {
            return Ok(horizon);
        }
        let metric = self.service.metrics[0];
        let weight = self.split.weight;
        let ratio = if metric.ratio > 1.0 { metric.ratio } else { HORIZON_RATIO };
        let rate = metric.rate * (1.0 - weight + weight * ratio);
        let events = HORIZON * self.bound_for(ratio) * 60.0 * self.service.requests_per_second * rate;
        let horizon = Horizon::new(weight, ALPHA, whole(events))?;
        *known = Some(horizon);
        Ok(horizon)
    }

    /// What the planner says for tolerance 0 without a floor, in minutes.
    pub fn planned(&self) -> Result<Option<f64>> {
        let metric = self.service.metrics[0];
        let traffic = davylamp_stats::Traffic {
            requests_per_second: self.service.requests_per_second,
            weight: self.split.weight,
            rate: metric.rate,
            block_seconds: Settings::exact().block_seconds,
        };
        let seconds = detect_seconds(&traffic, metric.ratio, &Detection::new(1.0, ALPHA))?;
        Ok(seconds.map(|seconds| seconds / 60.0))
    }

    /// The least mean time to detect that any test with this false rollback rate can have, in minutes.
    #[must_use]
    pub fn bound(&self) -> f64 {
        self.bound_for(self.service.metrics[0].ratio)
    }

    fn bound_for(&self, ratio: f64) -> f64 {
        let metric = self.service.metrics[0];
        let bad = metric.rate * ratio;
        let weight = self.split.weight;
        // The closest law without a regression: both cohorts have the average rate.
        let average = weight * bad + (1.0 - weight) * metric.rate;
        let information =
            weight * divergence(bad, average) + (1.0 - weight) * divergence(metric.rate, average);
        -libm::log(ALPHA) / (information * self.service.requests_per_second * 60.0)
    }
}

/// Kullback and Leibler's, of one Bernoulli rate from another.
fn divergence(p: f64, from: f64) -> f64 {
    p * libm::log(p / from) + (1.0 - p) * libm::log((1.0 - p) / (1.0 - from))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "rounds of a block, events of an hour"
)]
fn whole(number: f64) -> u32 {
    number.ceil() as u32
}

/// Minutes of so many rounds.
#[must_use]
pub fn minutes(rounds: f64) -> f64 {
    rounds * f64::from(ROUND) / 60.0
}

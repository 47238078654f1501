//! Whole rollouts: three steps of growing weight, several metrics, and who drives them.
//!
//! Each driver has its own traffic, because the split depends on its decisions; the pods and the service are
//! the same. Takes a service and policies, gives how each rollout ended, when, and what it cost.

use std::sync::Arc;

use anyhow::Result;
use davylamp_stats::{Counts, EventProcess, NonInferiority, combine_log_e};
use serde::Serialize;

use crate::history::{self, Calibrations, Setting};
use crate::random::Random;
use crate::results::{Ending, Outcome};
use crate::rules::{ALPHA, Blocks, Minute, Rule, Settings, Threshold, TimePoints};
use crate::traffic::{MINUTE, ROUND, Service, Split, Traffic};

/// The canary's share of the traffic at each step; after the last, all.
const WEIGHTS: [f64; 3] = [0.05, 0.25, 0.5];

const PODS: u32 = 20;

/// The false promotion rate of each metric and step.
const BETA: f64 = 0.05;

/// The minutes of a step of the drivers that do not measure when they know enough.
const FIXED_STEP: u32 = 5;

/// A service that is rolled out.
#[derive(Debug, Clone, Serialize)]
pub struct RolloutCell {
    pub service: Service,
    /// How each metric of the service is judged.
    pub gates: Vec<Gate>,
    #[serde(skip)]
    pub drivers: Vec<Driver>,
    #[serde(skip)]
    pub calibrations: Arc<Calibrations>,
}

/// How a metric is judged.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Gate {
    pub higher_is_better: bool,
    pub tolerance: f64,
    /// Rates below never roll back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor: Option<f64>,
    /// The rate that is safe without a baseline to compare with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub safe_rate: Option<f64>,
    /// `maxServiceImpact`.
    pub impact: f64,
    /// What the rules with a threshold allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<f64>,
}

/// Who decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    Davylamp(Past),
    /// Nothing tolerated, no floor, and half of the impact or less.
    Strict,
    /// Five minutes a step; a threshold each minute, with this failure limit.
    Threshold(u32),
    /// Five minutes a step; the test of Mann and Whitney at the end of each.
    MannWhitneyPerStep,
    /// The same, each minute on all minutes so far.
    MannWhitneyEachMinute,
}

/// What is known of the time before the rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Past {
    /// Nothing: the pods' rates are taken to differ by 5 %.
    Unknown,
    /// Twelve hours of the stable pods.
    History,
}

/// The rules that people use.
pub const RIVALS: [Driver; 4] =
    [Driver::Threshold(0), Driver::Threshold(3), Driver::MannWhitneyPerStep, Driver::MannWhitneyEachMinute];

/// Timing of our own driver, in rounds.
#[derive(Debug, Clone, Copy)]
struct Timing {
    warmup: u32,
    settle: u32,
    hold_min: u32,
    hold_max: u32,
}

const TIMING: Timing =
    Timing { warmup: 120 / ROUND, settle: 30 / ROUND, hold_min: 3 * MINUTE, hold_max: 60 * MINUTE };

impl Gate {
    /// A metric of which less is better, as a user gets it who writes nothing.
    #[must_use]
    pub fn lower(threshold: f64) -> Self {
        Self {
            higher_is_better: false,
            tolerance: 0.1,
            floor: Some(0.001),
            safe_rate: Some(0.001),
            impact: 0.5,
            threshold: Some(threshold),
        }
    }

    /// One of which more is better.
    #[must_use]
    pub fn higher() -> Self {
        Self {
            higher_is_better: true,
            tolerance: 0.1,
            floor: None,
            safe_rate: None,
            impact: 0.5,
            threshold: None,
        }
    }

    /// Neither tolerance nor floor, and an impact of at most 25 %, of 15 % if more is better.
    fn strict(self) -> Self {
        let impact = if self.higher_is_better { 0.15 } else { 0.25 };
        Self { tolerance: 0.0, floor: None, impact, ..self }
    }

    /// The tolerated ratio of the counts, exchanged if more is better.
    fn rho0(self) -> f64 {
        if self.higher_is_better { 1.0 / (1.0 - self.tolerance) } else { 1.0 + self.tolerance }
    }

    /// What to rule out before the next weight: as a ratio of the counts, exchanged if more is better.
    fn margin(self, next_weight: f64) -> f64 {
        let impact = self.impact / next_weight;
        if self.higher_is_better { 1.0 / (1.0 - impact).max(0.05) } else { 1.0 + impact }
    }

    fn orient(self, counts: &Counts) -> Counts {
        if self.higher_is_better { counts.swapped() } else { *counts }
    }
}

impl Driver {
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Davylamp(Past::Unknown) => "davylamp, no history",
            Self::Davylamp(Past::History) => "davylamp",
            Self::Strict => "davylamp, tolerance 0, impact 25 %",
            Self::Threshold(0) => "threshold, limit 0",
            Self::Threshold(_) => "threshold, limit 3",
            Self::MannWhitneyPerStep => "Mann-Whitney, each step",
            Self::MannWhitneyEachMinute => "Mann-Whitney, each minute",
        }
    }
}

impl RolloutCell {
    #[must_use]
    pub fn new(service: Service, gates: &[Gate], drivers: &[Driver]) -> Self {
        Self { service, gates: gates.to_vec(), drivers: drivers.to_vec(), calibrations: Arc::default() }
    }

    /// One run: how the rollout ended for each driver.
    pub fn run(&self, name: &str, run: u32) -> Result<Vec<Ending>> {
        self.drivers
            .iter()
            .map(|driver| {
                let rollout = Rollout {
                    cell: self,
                    name,
                    run,
                    traffic: Traffic::new(&self.service, PODS, Random::new(name, run)),
                };
                match *driver {
                    Driver::Davylamp(past) => rollout.davylamp(&self.gates, past),
                    Driver::Strict => {
                        let gates: Vec<Gate> = self.gates.iter().map(|gate| gate.strict()).collect();
                        rollout.davylamp(&gates, Past::History)
                    }
                    Driver::Threshold(limit) => rollout.thresholds(limit),
                    Driver::MannWhitneyPerStep => rollout.mann_whitney(FIXED_STEP, true),
                    Driver::MannWhitneyEachMinute => rollout.mann_whitney(1, false),
                }
            })
            .collect()
    }

    /// Requests that are expected to go wrong in a round because of the canary.
    fn excess(&self, weight: f64, round: u32) -> f64 {
        let requests = self.service.requests_per_second * f64::from(ROUND) * weight;
        let begun = self.service.metrics.iter().filter(|metric| round / MINUTE >= metric.onset);
        requests * begun.map(|metric| metric.rate * (metric.ratio - 1.0).abs()).sum::<f64>()
    }
}

/// One rollout of one driver.
struct Rollout<'a> {
    cell: &'a RolloutCell,
    name: &'a str,
    run: u32,
    traffic: Traffic<'a>,
}

/// One metric under our own driver.
struct Judged {
    gate: Gate,
    tau: f64,
    blocks: Blocks,
    regression: EventProcess,
    promotion: NonInferiority,
}

impl Judged {
    fn round(&mut self, counts: &Counts) -> Result<()> {
        if let Some(first) = self.blocks.place(counts) {
            let counts = self.gate.orient(counts);
            self.regression.round(&counts, first)?;
            self.promotion.round(&counts, first)?;
        }
        Ok(())
    }

    /// Other pods are compared from now on.
    fn compare(&mut self, split: &Split) -> Result<()> {
        self.blocks.close();
        let pods = Split { canary_pods: split.warm_pods.max(1), ..*split };
        Ok(self.regression.tolerate(self.gate.rho0() * history::tolerance_factor(self.tau, &pods))?)
    }
}

fn promotion(gate: Gate, tau: f64, step: usize, split: &Split) -> Result<NonInferiority> {
    let next = WEIGHTS.get(step + 1).copied().unwrap_or(1.0);
    // A margin at or below 1 would ask for a canary that is better than the baseline.
    let margin = (gate.margin(next) / history::margin_divisor(tau, split)).max(1.0);
    Ok(NonInferiority::new(margin, gate.safe_rate.map(|rate| (rate, next)))?)
}

impl Rollout<'_> {
    fn davylamp(mut self, gates: &[Gate], past: Past) -> Result<Ending> {
        let Timing { warmup, settle, hold_min, hold_max } = TIMING;
        let mut step = 0;
        let mut split = Split { warm_pods: 0, ..Split::new(WEIGHTS[step], PODS) };
        let mut judged = Vec::new();
        for (index, gate) in gates.iter().enumerate() {
            judged.push(self.judge(index, *gate, past, &split)?);
        }
        let weights = vec![1.0 / f64::from(u32::try_from(judged.len())?); judged.len()];
        let mut evidence = vec![0.0; judged.len()];
        let (mut counts, mut excess, mut age, mut round) = (Vec::new(), 0.0, 0, 0);
        loop {
            round += 1;
            age += 1;
            excess += self.cell.excess(split.weight, round);
            self.traffic.round(&split, &mut counts);
            let mut safe = true;
            for ((metric, counts), evidence) in judged.iter_mut().zip(&counts).zip(&mut evidence) {
                if age > settle {
                    metric.round(counts)?;
                }
                *evidence = metric.regression.log_e();
                safe &= metric.promotion.log_e() >= -libm::log(BETA);
            }
            if combine_log_e(&evidence, &weights)? >= -libm::log(ALPHA) {
                return Ok(Ending { outcome: Outcome::RolledBack, rounds: round, excess });
            }
            if safe && age >= hold_min {
                step += 1;
                let Some(&weight) = WEIGHTS.get(step) else {
                    return Ok(Ending { outcome: Outcome::Promoted, rounds: round, excess });
                };
                split = Split { warm_pods: split.canary_pods, ..Split::new(weight, PODS) };
                age = 0;
                for metric in &mut judged {
                    metric.promotion = promotion(metric.gate, metric.tau, step, &split)?;
                    metric.compare(&split)?;
                }
            } else if age >= hold_max {
                return Ok(Ending { outcome: Outcome::Paused, rounds: round, excess });
            }
            if age == warmup {
                split.warm_pods = split.canary_pods;
                for metric in &mut judged {
                    metric.compare(&split)?;
                }
            }
        }
    }

    /// A metric at the first step.
    fn judge(&self, index: usize, gate: Gate, past: Past, split: &Split) -> Result<Judged> {
        let Self { cell, name, run, traffic } = self;
        let (tau, setting) = match past {
            Past::Unknown => {
                let Settings { block_seconds, clip, .. } = Settings::exact();
                (history::ASSUMED, Setting { block_seconds, clip })
            }
            Past::History => {
                let mut random = Random::new(&format!("{name}, pods of metric {index}"), *run);
                let tau = history::pod_spread(&cell.service, traffic, index, PODS, &mut random)?;
                let clean = cell.service.bursts.is_none() && cell.service.pod_cv <= 0.0;
                let setting = if clean {
                    Setting::clean()
                } else {
                    cell.calibrations.of_run(&cell.service, index, split, name, *run)?
                };
                (tau, setting)
            }
        };
        Ok(Judged {
            gate,
            tau,
            blocks: Blocks::new(setting.block_seconds),
            regression: EventProcess::new(gate.rho0(), setting.block_seconds, gate.floor)?
                .with_clip(setting.clip)?,
            promotion: promotion(gate, tau, 0, split)?,
        })
    }

    /// Steps of a fixed length, and the limits of the metrics that have one.
    fn thresholds(mut self, failure_limit: u32) -> Result<Ending> {
        let mut rules: Vec<Option<Threshold>> = self
            .cell
            .gates
            .iter()
            .map(|gate| gate.threshold.map(|limit| Threshold::new(limit, failure_limit)))
            .collect();
        self.fixed_steps(|_, counts| {
            for (rule, counts) in rules.iter_mut().zip(counts) {
                if let Some(rule) = rule
                    && rule.round(counts)?
                {
                    return Ok(true);
                }
            }
            Ok(false)
        })
    }

    /// Steps of a fixed length; looks each `minutes`, at the points of this step or at all.
    fn mann_whitney(mut self, minutes: u32, forget: bool) -> Result<Ending> {
        let gates = &self.cell.gates;
        let mut metrics = vec![(Minute::default(), TimePoints::default()); gates.len()];
        self.fixed_steps(|round, counts| {
            let mut high = false;
            for ((gate, (minute, points)), counts) in gates.iter().zip(&mut metrics).zip(counts) {
                if let Some(sum) = minute.add(&gate.orient(counts)) {
                    points.add(sum.x_canary / sum.n_canary, sum.x_baseline / sum.n_baseline);
                    if round % (minutes * MINUTE) == 0 {
                        high |= points.high();
                        if forget {
                            *points = TimePoints::default();
                        }
                    }
                }
            }
            Ok(high)
        })
    }

    fn fixed_steps(&mut self, mut rolls_back: impl FnMut(u32, &[Counts]) -> Result<bool>) -> Result<Ending> {
        let (mut counts, mut excess, mut round) = (Vec::new(), 0.0, 0);
        for weight in WEIGHTS {
            let split = Split::new(weight, PODS);
            for _ in 0..FIXED_STEP * MINUTE {
                round += 1;
                excess += self.cell.excess(weight, round);
                self.traffic.round(&split, &mut counts);
                if rolls_back(round, &counts)? {
                    return Ok(Ending { outcome: Outcome::RolledBack, rounds: round, excess });
                }
            }
        }
        Ok(Ending { outcome: Outcome::Promoted, rounds: round, excess })
    }
}

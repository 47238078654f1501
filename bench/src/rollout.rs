//! Whole rollouts: three steps of growing weight, several metrics, and who drives them.
//!
//! Each driver has its own traffic, because the split depends on its decisions; the pods and the service are
//! the same. Takes a service and policies, gives how each rollout ended, when, and what it cost.

use anyhow::Result;
use davylamp_stats::{Counts, NonInferiority, combine_log_e};
use serde::Serialize;

use crate::history;
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
    Davylamp(PodMargin),
    /// Nothing tolerated, no floor, and half of the impact or less.
    Strict,
    /// Five minutes a step; a threshold each minute, with this failure limit.
    Threshold(u32),
    /// Five minutes a step; the test of Mann and Whitney at the end of each.
    MannWhitneyPerStep,
    /// The same, each minute on all minutes so far.
    MannWhitneyEachMinute,
}

/// Where the spread of the pods' rates is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodMargin {
    None,
    /// Without a history, 5 % is assumed.
    Assumed,
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
            Self::Davylamp(PodMargin::None) => "davylamp, no pod margin",
            Self::Davylamp(PodMargin::Assumed) => "davylamp, pods 5 % assumed",
            Self::Davylamp(PodMargin::History) => "davylamp",
            Self::Strict => "davylamp, tolerance 0, impact 25 %",
            Self::Threshold(0) => "threshold, limit 0",
            Self::Threshold(_) => "threshold, limit 3",
            Self::MannWhitneyPerStep => "Mann-Whitney, each step",
            Self::MannWhitneyEachMinute => "Mann-Whitney, each minute",
        }
    }
}

impl RolloutCell {
    /// One run: how the rollout ended for each driver.
    pub fn run(&self, name: &str, run: u32) -> Result<Vec<Ending>> {
        self.drivers
            .iter()
            .map(|driver| {
                let rollout = Rollout {
                    cell: self,
                    traffic: Traffic::new(&self.service, PODS, Random::new(name, run)),
                };
                match *driver {
                    Driver::Davylamp(margin) => {
                        let mut past = Random::new(&format!("{name}, history"), run);
                        rollout.davylamp(&self.gates, margin, &mut past)
                    }
                    Driver::Strict => {
                        let gates: Vec<Gate> = self.gates.iter().map(|gate| gate.strict()).collect();
                        let mut past = Random::new(&format!("{name}, history"), run);
                        rollout.davylamp(&gates, PodMargin::History, &mut past)
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
    traffic: Traffic<'a>,
}

/// One metric under our own driver.
struct Judged {
    gate: Gate,
    tau: f64,
    regression: davylamp_stats::EventProcess,
    promotion: NonInferiority,
}

impl Judged {
    fn begin_step(&mut self, step: usize, split: &Split) -> Result<()> {
        self.promotion = promotion(self.gate, self.tau, step, split)?;
        Ok(())
    }

    fn tolerate(&mut self, split: &Split) -> Result<()> {
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
    fn davylamp(mut self, gates: &[Gate], margin: PodMargin, past: &mut Random) -> Result<Ending> {
        let Timing { warmup, settle, hold_min, hold_max } = TIMING;
        let mut step = 0;
        let mut split = Split { warm_pods: 0, ..Split::new(WEIGHTS[step], PODS) };
        let mut judged = Vec::new();
        for (index, gate) in gates.iter().enumerate() {
            let tau = match margin {
                PodMargin::None => 0.0,
                PodMargin::Assumed => history::FALLBACK,
                PodMargin::History => {
                    history::pod_spread(&self.cell.service, &self.traffic, index, PODS, past)
                }
            };
            let exact = Settings::exact();
            judged.push(Judged {
                gate: *gate,
                tau,
                regression: davylamp_stats::EventProcess::new(gate.rho0(), exact.block_seconds, gate.floor)?,
                promotion: promotion(*gate, tau, step, &split)?,
            });
        }
        let weights = vec![1.0 / f64::from(u32::try_from(judged.len())?); judged.len()];
        let mut blocks = Blocks::new(Settings::exact().block_seconds);
        let (mut counts, mut excess, mut age) = (Vec::new(), 0.0, 0);
        let (mut evidence, mut safe, mut round) = (Vec::new(), false, 0);
        loop {
            round += 1;
            excess += self.cell.excess(split.weight, round);
            self.traffic.round(&split, &mut counts);
            age += 1;
            if age > settle
                && let Some(first) = blocks.place(&counts[0])
            {
                evidence.clear();
                safe = true;
                for (metric, counts) in judged.iter_mut().zip(&counts) {
                    let counts = metric.gate.orient(counts);
                    metric.regression.round(&counts, first)?;
                    metric.promotion.round(&counts, first)?;
                    evidence.push(metric.regression.log_e());
                    safe &= metric.promotion.log_e() >= -libm::log(BETA);
                }
                if combine_log_e(&evidence, &weights)? >= -libm::log(ALPHA) {
                    return Ok(Ending { outcome: Outcome::RolledBack, rounds: round, excess });
                }
            }
            if safe && age >= hold_min {
                step += 1;
                let Some(&weight) = WEIGHTS.get(step) else {
                    return Ok(Ending { outcome: Outcome::Promoted, rounds: round, excess });
                };
                split = Split { warm_pods: split.canary_pods, ..Split::new(weight, PODS) };
                (age, safe) = (0, false);
                blocks.close();
                for metric in &mut judged {
                    metric.begin_step(step, &split)?;
                    metric.tolerate(&split)?;
                }
            } else if age >= hold_max {
                return Ok(Ending { outcome: Outcome::Paused, rounds: round, excess });
            }
            if age == warmup {
                split.warm_pods = split.canary_pods;
                blocks.close();
                for metric in &mut judged {
                    metric.tolerate(&split)?;
                }
            }
        }
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

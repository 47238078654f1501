//! A good canary at one step and one ratio metric: how long until it is promoted?

use anyhow::Result;
use davylamp_stats::{NonInferiority, Promotion, promote_seconds};
use serde::Serialize;

use crate::random::Random;
use crate::results::{Ending, Outcome};
use crate::rules::{Blocks, Settings};
use crate::traffic::{MINUTE, Service, Split, Traffic};

/// The false promotion rate.
const BETA: f64 = 0.05;

/// A step.
#[derive(Debug, Clone, Serialize)]
pub struct PromotionCell {
    pub service: Service,
    pub split: Split,
    /// The traffic weight of the next step.
    pub next_weight: f64,
    /// The ratio to be ruled out.
    pub margin: f64,
    /// The rate that is safe without a baseline to compare with.
    pub safe_rate: f64,
    /// A run ends here at the latest.
    pub minutes: u32,
}

impl PromotionCell {
    /// One run.
    pub fn run(&self, name: &str, run: u32) -> Result<Vec<Ending>> {
        let pods = self.split.canary_pods + self.split.baseline_pods;
        let mut traffic = Traffic::new(&self.service, pods, Random::new(name, run));
        let mut process = NonInferiority::new(self.margin, Some((self.safe_rate, self.next_weight)))?;
        let mut blocks = Blocks::new(Settings::exact().block_seconds);
        let mut counts = Vec::new();
        let last = self.minutes * MINUTE;
        for round in 1..=last {
            traffic.round(&self.split, &mut counts);
            if let Some(first) = blocks.place(&counts[0]) {
                process.round(&counts[0], first)?;
            }
            if process.log_e() >= -libm::log(BETA) {
                return Ok(vec![Ending { outcome: Outcome::Promoted, rounds: round, excess: 0.0 }]);
            }
        }
        Ok(vec![Ending { outcome: Outcome::Undecided, rounds: last, excess: 0.0 }])
    }

    /// What the planner says, in minutes.
    pub fn planned(&self) -> Result<Option<f64>> {
        let traffic = davylamp_stats::Traffic {
            requests_per_second: self.service.requests_per_second,
            weight: self.split.weight,
            rate: self.service.metrics[0].rate,
            block_seconds: Settings::exact().block_seconds,
        };
        let absolute = Some((self.safe_rate, self.next_weight));
        let promotion = Promotion { margin: self.margin, beta: BETA, absolute };
        Ok(promote_seconds(&traffic, &promotion)?.map(|seconds| seconds / 60.0))
    }
}

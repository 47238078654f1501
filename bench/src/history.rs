//! What the stable pods' history says before a rollout: how much pods differ, and how long bursts last.
//!
//! Takes a service, draws the twelve hours before a run, gives the margin for pods and the setting of the
//! blocks.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use davylamp_stats::{PodCounts, calibrate, pod_effect};

use crate::random::Random;
use crate::rules::{ALPHA, Settings};
use crate::traffic::{ROUND, Service, Split, Traffic};

const HOURS: u32 = 12;
const NORMAL_99: f64 = 2.326_347_874_040_841;
const NORMAL_95: f64 = 1.644_853_626_951_472_2;

/// Twelve hours of every pod take long to draw: so many histories are shared by the runs of a cell.
const HISTORIES: u32 = 40;

/// The standard deviation of the logarithms of pods' rates that is assumed without a history.
pub(crate) const ASSUMED: f64 = 0.05;

/// What the tolerated ratio is multiplied by.
pub(crate) fn tolerance_factor(tau: f64, split: &Split) -> f64 {
    libm::exp(NORMAL_99 * tau * spread(split))
}

/// What the margin of non-inferiority is divided by.
pub(crate) fn margin_divisor(tau: f64, split: &Split) -> f64 {
    libm::exp(NORMAL_95 * tau * spread(split))
}

fn spread(split: &Split) -> f64 {
    (1.0 / f64::from(split.canary_pods) + 1.0 / f64::from(split.baseline_pods)).sqrt()
}

/// The spread of a metric over the pods that ran before the rollout, of which those of the baseline stay.
pub(crate) fn pod_spread(
    service: &Service,
    traffic: &Traffic<'_>,
    metric: usize,
    pods: u32,
    random: &mut Random,
) -> Result<f64> {
    let requests = service.requests_per_second * f64::from(HOURS) * 3600.0 / f64::from(pods);
    let bursts = service.bursts.filter(|_| metric == 0);
    let counts: Vec<PodCounts> = (0..pods as usize)
        .map(|pod| {
            let rate = service.metrics[metric].rate * traffic.stable_effect(metric, pod);
            let mut events = random.poisson(requests * rate);
            if let Some(bursts) = bursts {
                let mut begin = random.poisson(bursts.per_hour * f64::from(HOURS) / f64::from(pods));
                while begin >= 1.0 {
                    begin -= 1.0;
                    let size = random.exponential(bursts.mean);
                    events += random.poisson(size);
                }
            }
            PodCounts { events, exposure: requests }
        })
        .collect();
    Ok(pod_effect(&counts)?)
}

/// The settings that the histories of a cell lead to.
#[derive(Debug, Default)]
pub struct Calibrations(Mutex<BTreeMap<(usize, u32), Setting>>);

/// Length and clip of a block.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Setting {
    pub block_seconds: f64,
    pub clip: f64,
}

impl Setting {
    /// What a history without bursts and without differences between pods leads to: the first setting tried.
    pub(crate) fn clean() -> Self {
        Self { block_seconds: f64::from(ROUND), clip: std::f64::consts::LN_10 }
    }

    /// These settings, with this length and this clip.
    pub(crate) fn apply(self, settings: Settings) -> Settings {
        Settings { block_seconds: self.block_seconds, clip: self.clip, ..settings }
    }
}

impl Calibrations {
    /// How many of the histories that were drawn led to each setting.
    #[must_use]
    pub fn counts(&self) -> BTreeMap<String, u32> {
        let mut counts = BTreeMap::new();
        for ((metric, _), setting) in self.0.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            let Setting { block_seconds, clip } = setting;
            *counts.entry(format!("metric {metric}: {block_seconds} s, clip {clip:.2}")).or_insert(0) += 1;
        }
        counts
    }

    /// That of one of the histories of the cell, which is drawn when it is first asked for.
    pub(crate) fn of_run(
        &self,
        service: &Service,
        metric: usize,
        split: &Split,
        name: &str,
        run: u32,
    ) -> Result<Setting> {
        let key = (metric, run % HISTORIES);
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&key).copied();
        if let Some(setting) = known {
            return Ok(setting);
        }
        let random = Random::new(&format!("{name}, history of metric {metric}"), key.1);
        let rounds = rounds(service, metric, split.canary_pods + split.baseline_pods, random);
        let calibration = calibrate(&rounds, split.canary_pods as usize, f64::from(ROUND), ALPHA)?;
        let setting = Setting { block_seconds: calibration.block_seconds, clip: calibration.clip };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(key, setting);
        Ok(setting)
    }
}

/// Every pod in every round, all of them stable.
fn rounds(service: &Service, metric: usize, pods: u32, random: Random) -> Vec<Vec<PodCounts>> {
    let mut traffic = Traffic::new(service, pods, random);
    (0..HOURS * 3600 / ROUND).map(|_| traffic.stable_round(metric, pods)).collect()
}

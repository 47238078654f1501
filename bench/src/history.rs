//! What the stable pods' history says before a rollout: how much pods differ.
//!
//! Takes one run's traffic, draws the twelve hours before it, gives the margin for pods.

use statrs::distribution::{ChiSquared, ContinuousCDF};

use crate::random::Random;
use crate::traffic::{Service, Split, Traffic};

const HOURS: f64 = 12.0;
const NORMAL_99: f64 = 2.326_347_874_040_841;
const NORMAL_95: f64 = 1.644_853_626_951_472_2;

/// The standard deviation of the logarithms of pods' rates that is assumed without a history.
pub(crate) const FALLBACK: f64 = 0.05;

/// What the tolerated ratio is multiplied by.
#[must_use]
pub(crate) fn tolerance_factor(tau: f64, split: &Split) -> f64 {
    libm::exp(NORMAL_99 * tau * spread(split))
}

/// What the margin of non-inferiority is divided by.
#[must_use]
pub(crate) fn margin_divisor(tau: f64, split: &Split) -> f64 {
    libm::exp(NORMAL_95 * tau * spread(split))
}

fn spread(split: &Split) -> f64 {
    (1.0 / f64::from(split.canary_pods) + 1.0 / f64::from(split.baseline_pods)).sqrt()
}

/// The spread of a metric over the pods that ran before the rollout, of which those of the baseline stay.
#[must_use]
pub(crate) fn pod_spread(
    service: &Service,
    traffic: &Traffic<'_>,
    metric: usize,
    pods: u32,
    random: &mut Random,
) -> f64 {
    let requests = service.requests_per_second * HOURS * 3600.0 / f64::from(pods);
    let bursts_of_pod = service.bursts.filter(|_| metric == 0);
    let counts: Vec<(f64, f64)> = (0..pods as usize)
        .map(|pod| {
            let rate = service.metrics[metric].rate * traffic.stable_effect(metric, pod);
            let mut events = random.poisson(requests * rate);
            if let Some(bursts) = bursts_of_pod {
                let mut begin = random.poisson(bursts.per_hour * HOURS / f64::from(pods));
                while begin >= 1.0 {
                    begin -= 1.0;
                    let size = random.exponential(bursts.mean);
                    events += random.poisson(size);
                }
            }
            (events, requests)
        })
        .collect();
    log_spread(&counts)
}

/// The standard deviation of the logarithms of the rates, without the part that counting explains, inflated
/// to its upper quartile.
fn log_spread(counts: &[(f64, f64)]) -> f64 {
    if counts.len() < 3 {
        return FALLBACK;
    }
    #[expect(clippy::cast_precision_loss, reason = "a few pods")]
    let pods = counts.len() as f64;
    let logs: Vec<f64> =
        counts.iter().map(|(events, exposure)| libm::log(events.max(0.5) / exposure)).collect();
    let mean = logs.iter().sum::<f64>() / pods;
    let variance = logs.iter().map(|log| (log - mean) * (log - mean)).sum::<f64>() / (pods - 1.0);
    let counting = counts.iter().map(|(events, _)| 1.0 / events.max(0.5)).sum::<f64>() / pods;
    let quartile = ChiSquared::new(pods - 1.0).map_or(pods - 1.0, |law| law.inverse_cdf(0.25));
    ((variance - counting).max(0.0) * (pods - 1.0) / quartile).sqrt()
}

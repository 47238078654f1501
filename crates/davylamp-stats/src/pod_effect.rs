//! Pods of one version that differ by themselves: how much, and how far a tolerance has to be widened for it.
//!
//! **Null hypothesis.** That of the test whose tolerance is widened, except that the rate of each pod is
//! multiplied by an effect of its own with `ln effect ~ N(0, τ²)`: canary pods may be up to `ρ₀` times as bad
//! apart from it.
//!
//! **Formula.** Of `K` pods over hours, with `x = max(events, ½)`:
//! ```text
//! τ̂²      = max(0, Var_pods ln(x/n) − mean_pods 1/x) · (K − 1)/χ²_{0.25, K−1}
//! spread  = τ̂·√(1/k_C + 1/k_B)                    for k_C and k_B pods
//! ρ₀_eff  = ρ₀·exp(z_{1−α}·spread)                or with the quantile of Student's t
//! m_eff   = m·exp(−z_{1−β}·spread)                for m < 1, where more is better: exp(+…)
//! ```
//! For a latency, `1/x` is replaced by the variance of the hourly `ln` means of a pod, divided by their
//! number; what all pods share in an hour is no variance of theirs and is taken out before. With fewer than
//! three pods `τ̂` is 5 %.
//!
//! **Why it is valid.** The means of `k_C` and `k_B` pods differ by `N(0, spread²)`, so that the ratio of the
//! cohorts exceeds the widened tolerance with probability at most `α` for a canary at `ρ₀`. Fewer events make
//! `τ̂` smaller or greater, not wrong on average; the quantile of `χ²` makes it too large three times in four.
//!
//! **Source.** Cochran (1954), *The combination of estimates from different experiments*, for the difference
//! of the variances; the margin is this crate's.
//!
//! **Cost.** One logarithm per pod, or per pod and hour.
//!
//! **When not to use it.** With less than two hours of history, or for metrics that come from a gateway and
//! not from pods. It is no protection when all canary pods share a bad node.

use crate::calibration::PodCounts;
use crate::counts::number;
use crate::{Error, normal, student};

/// What pods differ by when nothing is known.
pub const DEFAULT_POD_EFFECT: f64 = 0.05;

/// Pods below which the difference between them cannot be estimated.
const FEWEST_PODS: usize = 3;

/// The estimate is raised to what it would be if chance had made it as small as in one case of four.
const OPTIMISTIC: f64 = 0.25;

/// `τ̂`: the standard deviation of `ln rate` between pods of one version, from what each counted over at least
/// two hours. Pods without exposure are left out; with fewer than three, [`DEFAULT_POD_EFFECT`].
///
/// ```
/// use davylamp_stats::{PodCounts, pod_effect};
///
/// // Rates from 0.9 % to 1.1 %; 100 events each explain that by chance.
/// let pods = |requests: f64| {
///     [0.009, 0.011, 0.0095, 0.0105].map(|rate| PodCounts { events: rate * requests, exposure: requests })
/// };
/// assert!(pod_effect(&pods(1e4))? == 0.0);
/// // Not if there are 100 times as many: ±9 %, raised to 14 % because four pods say little.
/// assert!((pod_effect(&pods(1e6))? - 0.1432).abs() < 1e-4);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn pod_effect(pods: &[PodCounts]) -> Result<f64, Error> {
    pods.iter().try_for_each(PodCounts::validate)?;
    let pods = pods.iter().filter(|pod| pod.exposure > 0.0);
    let estimate = |pod: &PodCounts| {
        let events = pod.events.max(0.5);
        Estimate { log_rate: libm::log(events) - libm::log(pod.exposure), variance: 1.0 / events }
    };
    Ok(between(&pods.map(estimate).collect::<Vec<_>>()))
}

/// The same for a latency: for each pod its hours, with the summed seconds as events and the requests as
/// exposure; the hours of all pods are the same. Hours without requests are left out, and pods with fewer
/// than two hours.
///
/// ```
/// use davylamp_stats::{PodCounts, latency_pod_effect};
///
/// // Pods of 100, 110 and 120 ms, a little different from hour to hour, and all of them slow at noon.
/// let hour = |pod: usize, hour: usize| PodCounts {
///     events: 5000.0
///         * [0.100, 0.110, 0.120][pod]
///         * [0.99, 1.0, 1.01][(pod + hour) % 3]
///         * if hour == 4 { 1.5 } else { 1.0 },
///     exposure: 5000.0,
/// };
/// let pods: Vec<Vec<PodCounts>> =
///     (0..3).map(|pod| (0..9).map(|at| hour(pod, at)).collect()).collect();
/// assert!((latency_pod_effect(&pods)? - 0.1694).abs() < 1e-4);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn latency_pod_effect(pods: &[impl AsRef<[PodCounts]>]) -> Result<f64, Error> {
    for pod in pods {
        pod.as_ref().iter().try_for_each(PodCounts::validate)?;
    }
    let pods: Vec<Hours> =
        pods.iter().map(|pod| Hours::new(pod.as_ref())).filter(|pod| pod.count >= 2.0).collect();
    let last = pods.iter().map(|pod| pod.deviations.len()).max().unwrap_or(0);
    let shared: Vec<f64> =
        (0..last).map(|hour| mean(pods.iter().filter_map(|pod| pod.deviation(hour)))).collect();
    let count = number(pods.len());
    let estimate = |pod: &Hours| Estimate {
        log_rate: pod.log_rate,
        // What is shared was estimated from the pods themselves.
        variance: pod.variance(&shared) * count / (count - 1.0) / pod.count,
    };
    Ok(between(&pods.iter().map(estimate).collect::<Vec<_>>()))
}

/// The standard deviation of the logarithm of the ratio of two cohorts that comes from their pods alone.
/// `tau` is at most 10, and there are 1 or more pods on each side.
pub fn pod_spread(tau: f64, pods_canary: u32, pods_baseline: u32) -> Result<f64, Error> {
    Error::unless((0.0..=10.0).contains(&tau), "tau", tau, "a number from 0 to 10")?;
    for (name, pods) in [("pods_canary", pods_canary), ("pods_baseline", pods_baseline)] {
        Error::unless(pods > 0, name, f64::from(pods), "1 or more")?;
    }
    Ok(tau * (1.0 / f64::from(pods_canary) + 1.0 / f64::from(pods_baseline)).sqrt())
}

/// `ρ₀_eff`: the tolerated ratio, widened so that pods alone exceed it with probability at most `alpha`, from
/// 1e-12 to 0.5.
///
/// ```
/// use davylamp_stats::{pod_effect_margin, pod_spread};
///
/// // One canary pod and 19 others that differ by 5 %: "10 %" means 24 %.
/// let tolerated = pod_effect_margin(1.1, pod_spread(0.05, 1, 19)?, 0.01)?;
/// assert!((tolerated - 1.239).abs() < 1e-3);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn pod_effect_margin(rho0: f64, spread: f64, alpha: f64) -> Result<f64, Error> {
    validate("rho0", rho0, spread, "alpha", alpha)?;
    Ok(times_exp(rho0, normal::upper_quantile(alpha) * spread))
}

/// The same with the quantile of Student's t at `df` degrees of freedom, 1 or more, for a `τ̂` that has not
/// been raised.
pub fn pod_effect_margin_student(rho0: f64, spread: f64, alpha: f64, df: u32) -> Result<f64, Error> {
    validate("rho0", rho0, spread, "alpha", alpha)?;
    Error::unless(df >= 1, "df", f64::from(df), "1 or more")?;
    Ok(times_exp(rho0, student::critical_value(alpha, df) * spread))
}

/// `m_eff`: the margin of non-inferiority, moved towards 1 so that pods alone make a canary at the margin
/// look better than that with probability at most `beta`, from 1e-12 to 0.5. A margin below 1 is one for a
/// metric of which more is better.
///
/// ```
/// use davylamp_stats::{pod_effect_promotion_margin, pod_spread};
///
/// let spread = pod_spread(0.05, 5, 15)?;
/// assert!((pod_effect_promotion_margin(1.5, spread, 0.05)? - 1.438).abs() < 1e-3);
/// assert!((pod_effect_promotion_margin(0.8, spread, 0.05)? - 0.835).abs() < 1e-3);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn pod_effect_promotion_margin(margin: f64, spread: f64, beta: f64) -> Result<f64, Error> {
    validate("margin", margin, spread, "beta", beta)?;
    let widened = normal::upper_quantile(beta) * spread;
    Ok(times_exp(margin, if margin < 1.0 { widened } else { -widened }))
}

fn validate(
    name: &'static str,
    ratio: f64,
    spread: f64,
    risk: &'static str,
    probability: f64,
) -> Result<(), Error> {
    Error::unless_ratio(name, ratio)?;
    Error::unless((0.0..=20.0).contains(&spread), "spread", spread, "a number from 0 to 20")?;
    Error::unless((1e-12..=0.5).contains(&probability), risk, probability, "a probability from 1e-12 to 0.5")
}

/// The quantile of a gamma distribution of this shape at `probability`: half of that of `χ²` with twice the
/// shape as degrees of freedom.
fn gamma_quantile(probability: f64, shape: f64) -> f64 {
    let below = |x: f64| {
        let (mut sum, mut term, mut divisor) = (1.0, 1.0, shape);
        while term > 1e-17 * sum {
            divisor += 1.0;
            term *= x / divisor;
            sum += term;
        }
        sum * libm::exp(shape * libm::log(x) - x - libm::lgamma(shape + 1.0))
    };
    let (mut inside, mut outside) = (0.0, shape + 1.0);
    loop {
        let middle = f64::midpoint(inside, outside);
        if middle <= inside || middle >= outside {
            return outside;
        }
        if below(middle) > probability {
            outside = middle;
        } else {
            inside = middle;
        }
    }
}

/// A ratio, changed by a factor, within what can be computed with.
fn times_exp(ratio: f64, log_factor: f64) -> f64 {
    (ratio * libm::exp(log_factor)).clamp(1e-9, 1e9)
}

/// More degrees of freedom are counted as this many, which is a little on the safe side.
const LARGEST_FREEDOM: f64 = 10_000.0;

/// What one pod says about its rate.
struct Estimate {
    log_rate: f64,
    /// Of `log_rate`, by chance.
    variance: f64,
}

/// The standard deviation between pods beyond that of chance, raised.
fn between(pods: &[Estimate]) -> f64 {
    if pods.len() < FEWEST_PODS {
        return DEFAULT_POD_EFFECT;
    }
    let freedom = number(pods.len()) - 1.0;
    let center = mean(pods.iter().map(|pod| pod.log_rate));
    let deviation = |pod: &Estimate| (pod.log_rate - center) * (pod.log_rate - center);
    let total = pods.iter().map(deviation).sum::<f64>() / freedom;
    let by_chance = mean(pods.iter().map(|pod| pod.variance));
    // Of χ² over its mean; of many pods it is close to 1.
    let shape = freedom.min(LARGEST_FREEDOM) / 2.0;
    let optimistic = gamma_quantile(OPTIMISTIC, shape) / shape;
    ((total - by_chance).max(0.0) / optimistic).sqrt()
}

/// The hours of one pod.
struct Hours {
    log_rate: f64,
    /// Of the logarithm of the hour's mean from their mean; `None` for an hour without requests.
    deviations: Vec<Option<f64>>,
    /// Hours with requests.
    count: f64,
}

impl Hours {
    fn new(hours: &[PodCounts]) -> Self {
        let used = |hour: &&PodCounts| hour.events > 0.0 && hour.exposure > 0.0;
        let sum = |value: fn(&PodCounts) -> f64| hours.iter().filter(used).map(value).sum::<f64>();
        let log_mean = |hour: &PodCounts| libm::log(hour.events) - libm::log(hour.exposure);
        let center = mean(hours.iter().filter(used).map(log_mean));
        let deviation = |hour: &PodCounts| used(&hour).then(|| log_mean(hour) - center);
        Self {
            log_rate: libm::log(sum(|hour| hour.events)) - libm::log(sum(|hour| hour.exposure)),
            deviations: hours.iter().map(deviation).collect(),
            count: sum(|_| 1.0),
        }
    }

    fn deviation(&self, hour: usize) -> Option<f64> {
        self.deviations.get(hour).copied().flatten()
    }

    /// Of the hours, apart from what all pods share.
    fn variance(&self, shared: &[f64]) -> f64 {
        let own = self.deviations.iter().zip(shared).filter_map(|(own, shared)| Some((*own)? - shared));
        own.map(|own| own * own).sum::<f64>() / (self.count - 1.0)
    }
}

/// 0 for none.
fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (sum, count) = values.fold((0.0, 0.0), |(sum, count), value| (sum + value, count + 1.0));
    if count > 0.0 { sum / count } else { 0.0 }
}

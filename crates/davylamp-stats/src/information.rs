//! How much a request says, and what follows for the time that any test needs: a bound, and closed forms.
//!
//! **Null hypothesis.** The one that is to be rejected: `H₀: p_C ≤ ρ₀·p_B`.
//!
//! **Formula.** With the traffic weight `w` and the point `(t_C, t_B)` of the null that is nearest to the true
//! rates,
//! ```text
//! I       = w·kl(p_C, t_C) + (1 − w)·kl(p_B, t_B)                     nats per request
//! bound   = ln(1/α)/I                                                 requests
//! detect  = L·max(1, (1.28·ln(1/α) + ln 2)/max_j E[min(Z_j, b)])      Z_j: normal with the moments of ℓ_j
//! promote = (1.35·ln(1/β) + ln 2)/(I·R)                               I of equal rates against the margin
//! remains = 1.35·max(0, ln(1/β) − ln E)/(I·R)                         R requests a second
//! ```
//! **Why it is valid.** A test that reaches `1/α` with certainty under `p`, and with probability at most `α`
//! under every point of the null, needs `E[N]·I ≥ ln(1/α)`. The rest are approximations.
//!
//! **Source.** Wald (1945), *Sequential tests of statistical hypotheses*; Cover and Thomas (2006), *Elements
//! of information theory*, for the divergence.
//!
//! **Cost.** Four logarithms; twelve error functions for the closed form of a detection.
//!
//! **When not to use it.** The closed forms to plan: they know no floor and no absolute alternative, and even
//! without are 16 % below to 19 % above the simulated mean of a detection, 96 % below to 38 % above that of a
//! promotion. [`planner`](crate::planner) is closer.

use std::f64::consts::{FRAC_1_SQRT_2, LN_2};

use crate::event::{LARGEST_CLIP, LOG_RATIO_GRID, RATIO_GRID, canary_share, clip};
use crate::ripr::Rates;
use crate::{Counts, Error};

/// Evidence is lost to the mixture and to the last block: so much more than `ln(1/α)` is needed.
pub const DETECT_OVERHEAD: f64 = 1.28;

/// The same for a promotion, more than `ln(1/β)`.
pub const PROMOTE_OVERHEAD: f64 = 1.35;

/// What a metric is expected to count at a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Traffic {
    /// Requests a second of both cohorts, or exposure of another kind; up to 1e12.
    pub requests_per_second: f64,
    /// The canary's share of them, from 0 to 1.
    pub weight: f64,
    /// Events per request of a healthy version; up to 1e6.
    pub rate: f64,
    /// The length of a block, from 0.1 to 1e6.
    pub block_seconds: f64,
}

impl Traffic {
    /// For a metric of which more is better: a drop of the canary to the share `ratio` of the events is a rise
    /// to `1/ratio` of the baseline, as seen from the canary.
    #[must_use]
    pub fn exchanged(self, ratio: f64) -> Self {
        Self { weight: 1.0 - self.weight, rate: ratio * self.rate, ..self }
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let Self { requests_per_second, weight, rate, block_seconds } = *self;
        let ok = (0.0..=1e12).contains(&requests_per_second);
        Error::unless(ok, "requests_per_second", requests_per_second, "a number from 0 to 1e12")?;
        Error::unless((0.0..=1.0).contains(&weight), "weight", weight, "a share from 0 to 1")?;
        Error::unless((0.0..=1e6).contains(&rate), "rate", rate, "a number from 0 to 1e6")?;
        let ok = (0.1..=1e6).contains(&block_seconds);
        Error::unless(ok, "block_seconds", block_seconds, "a number from 0.1 to 1e6")
    }

    /// A block, without its events.
    pub(crate) fn exposures(&self) -> Counts {
        let requests = self.requests_per_second * self.block_seconds;
        let n_canary = self.weight * requests;
        Counts { n_canary, n_baseline: requests - n_canary, ..Counts::default() }
    }
}

/// `I`: what a request says on average against all rates with `p_C ≤ ρ₀·p_B`, in nats; 0 if the rates are
/// among them, or if one cohort has no traffic.
///
/// ```
/// use davylamp_stats::{information_per_request, bound_requests, ripr::Rates};
///
/// // A canary with 3 % instead of 1 % at a fifth of the traffic.
/// let rates = Rates { canary: 0.03, baseline: 0.01 };
/// let information = information_per_request(&rates, 0.2, 1.0)?;
/// assert!((information - 0.001_913_65).abs() < 1e-8);
/// // No test finds it in fewer than 2406 requests on average.
/// assert!((bound_requests(information, 0.01)?.unwrap() - 2406.49).abs() < 0.01);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn information_per_request(rates: &Rates, weight: f64, rho0: f64) -> Result<f64, Error> {
    rates.validate()?;
    Error::unless((0.0..=1.0).contains(&weight), "weight", weight, "a share from 0 to 1")?;
    Error::unless_ratio("rho0", rho0)?;
    if weight <= 0.0 || weight >= 1.0 {
        return Ok(0.0);
    }
    let null = rates.project_on_ratio(rho0, weight, 1.0 - weight);
    let of = |rate: f64, null: f64| {
        rate * libm::log(rate / null) + (1.0 - rate) * libm::log1p((null - rate) / (1.0 - null))
    };
    let information =
        weight * of(rates.canary, null.canary) + (1.0 - weight) * of(rates.baseline, null.baseline);
    Ok(information.max(0.0))
}

/// The requests that a test of level `alpha` needs on average, whichever test it is; `None` if they say
/// nothing.
pub fn bound_requests(information: f64, alpha: f64) -> Result<Option<f64>, Error> {
    requests(-libm::log(risk("alpha", alpha)?), information)
}

/// How long a promotion still takes whose process is at `log_e`: what a status shows. `None` if the requests
/// say nothing.
pub fn remaining_seconds(
    log_e: f64,
    beta: f64,
    information: f64,
    requests_per_second: f64,
) -> Result<Option<f64>, Error> {
    Error::unless(log_e.abs() <= 1e300, "log_e", log_e, "a finite number")?;
    let missing = (-libm::log(risk("beta", beta)?) - log_e).max(0.0);
    seconds(PROMOTE_OVERHEAD * missing, information, requests_per_second)
}

/// The time until a canary with `ratio` times the rate reaches `1/alpha`, in closed form; `overhead` is
/// [`DETECT_OVERHEAD`]. `None` if it is not expected to.
pub fn closed_form_detect_seconds(
    traffic: &Traffic,
    ratio: f64,
    rho0: f64,
    alpha: f64,
    overhead: f64,
) -> Result<Option<f64>, Error> {
    traffic.validate()?;
    Error::unless_ratio("ratio", ratio)?;
    Error::unless_ratio("rho0", rho0)?;
    let needed = needed("alpha", alpha, overhead)?;
    let block = traffic.exposures();
    if !block.comparable() {
        return Ok(None);
    }
    let Counts { n_canary, n_baseline, .. } = block;
    let (canary, baseline) = (n_canary * traffic.rate * ratio, n_baseline * traffic.rate);
    let cap = clip(rho0, n_canary, n_baseline, LARGEST_CLIP);
    let share = canary_share(rho0, &block);
    let growth = RATIO_GRID.into_iter().zip(LOG_RATIO_GRID).map(|(ratio, log_ratio)| {
        let no_event = -libm::log1p(share * (ratio - 1.0));
        let event = log_ratio + no_event;
        let mean = canary * event + baseline * no_event;
        capped(mean, (canary * event * event + baseline * no_event * no_event).sqrt(), cap).0
    });
    let growth = growth.fold(0.0, f64::max);
    Ok((growth > 0.0).then(|| traffic.block_seconds * (needed / growth).max(1.0)).filter(|t| t.is_finite()))
}

/// The time until a canary that is as good as the baseline reaches `1/beta` against `margin`, in closed form;
/// `overhead` is [`PROMOTE_OVERHEAD`], and the rate a probability. `None` if it is not expected to.
pub fn closed_form_promote_seconds(
    traffic: &Traffic,
    margin: f64,
    beta: f64,
    overhead: f64,
) -> Result<Option<f64>, Error> {
    traffic.validate()?;
    Error::unless_ratio("margin", margin)?;
    let needed = needed("beta", beta, overhead)?;
    let Traffic { requests_per_second, weight, rate, .. } = *traffic;
    if rate <= 0.0 {
        return Ok(None);
    }
    let rates = Rates { canary: rate, baseline: rate };
    let information = information_per_request(&rates, 1.0 - weight, 1.0 / margin)?;
    seconds(needed, information, requests_per_second)
}

/// `overhead·ln(1/risk) + ln 2`.
fn needed(name: &'static str, probability: f64, overhead: f64) -> Result<f64, Error> {
    Error::unless((0.0..=1e3).contains(&overhead), "overhead", overhead, "a number from 0 to 1000")?;
    Ok(LN_2 - overhead * libm::log(risk(name, probability)?))
}

pub(crate) fn risk(name: &'static str, probability: f64) -> Result<f64, Error> {
    let ok = (1e-100..1.0).contains(&probability);
    Error::unless(ok, name, probability, "a probability from 1e-100, below 1")?;
    Ok(probability)
}

fn requests(needed: f64, information: f64) -> Result<Option<f64>, Error> {
    let ok = (0.0..=1e3).contains(&information);
    Error::unless(ok, "information", information, "a number from 0 to 1000")?;
    Ok(Some(needed / information).filter(|requests| requests.is_finite()))
}

fn seconds(needed: f64, information: f64, requests_per_second: f64) -> Result<Option<f64>, Error> {
    let ok = (0.0..=1e12).contains(&requests_per_second);
    Error::unless(ok, "requests_per_second", requests_per_second, "a number from 0 to 1e12")?;
    let seconds = requests(needed, information)?.map(|requests| requests / requests_per_second);
    Ok(seconds.filter(|seconds| seconds.is_finite()))
}

/// Mean and standard deviation of `min(Z, cap)` for a normal `Z`.
pub(crate) fn capped(mean: f64, deviation: f64, cap: f64) -> (f64, f64) {
    let z = (cap - mean) / deviation;
    if !z.is_finite() {
        return (mean.min(cap), 0.0);
    }
    let below = 0.5 * libm::erfc(-z * FRAC_1_SQRT_2);
    let density = libm::exp(-0.5 * z * z) / (2.0 * std::f64::consts::PI).sqrt();
    // Moments of what is missing to the cap.
    let missing = mean - cap;
    let distance = missing * below - deviation * density;
    let square = (missing * missing + deviation * deviation) * below - missing * deviation * density;
    (cap + distance, (square - distance * distance).max(0.0).sqrt())
}

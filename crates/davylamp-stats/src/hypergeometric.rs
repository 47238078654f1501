//! Two proportions, conditional on both margins: the exact factor when the tolerance is an odds ratio.
//!
//! **Null hypothesis.** In every block the odds of an event are not higher for a request of the canary than
//! for one of the baseline: `H₀: p_C/(1 − p_C) ≤ p_B/(1 − p_B)`, with one probability for each cohort. The
//! null that tolerates an odds ratio `ψ₀` has the factor `ℓ(ψ₀·r) − ℓ(ψ₀)`.
//!
//! **Formula.** With `m = x_C + x_B` events, `X ~ Hypergeometric(n_C + n_B, m, n_C)` and an odds ratio `ψ`,
//! ```text
//! ℓ = x_C·ln ψ − ln E[ψ^X]
//! ```
//! The expectation is summed from its largest term outwards, each term from its neighbour by the ratio
//! `ψ·(n_C − x)(m − x)/((x + 1)(n_B − m + x + 1))`, until a term is below `10⁻¹⁷` of the sum. The first term
//! is exact to the last digits at any size, because it is computed from deviations and not as a difference of
//! logarithms of factorials.
//!
//! **Why it is valid.** Given both margins and equal odds, `X` has this distribution whatever the odds are;
//! so `E[e^ℓ] = 1`. With lower odds of the canary `X` is stochastically smaller, and `e^ℓ` increases in `X`
//! when `ψ > 1`.
//!
//! **Source.** Fisher (1935), *The logic of inductive inference*; Turner, Ly and Grünwald (2024), *Generic
//! e-variables for exact sequential k-sample tests that allow for optional stopping*.
//!
//! **Cost.** About 18 standard deviations of `X` terms of four operations: `O(√m)`. Above a standard
//! deviation of 10,000 (every cell of the table above `10⁸`) the sum is replaced by the integral of its
//! normal approximation, rounded up by more than its error, `10⁻⁸`.
//!
//! **When not to use it.** When the tolerance is a ratio of rates, as everywhere else here: the [projection
//! on it](crate::ripr) is as exact. When counts are not whole numbers.

use crate::{Counts, Error};

/// Beyond this standard deviation the sum is an integral.
const LARGEST_DEVIATION: f64 = 1e4;

/// Terms on either side of the largest one. A sum that is not replaced by an integral has no more.
const LARGEST_NUMBER_OF_TERMS: u32 = 200_000;

/// Terms below this share of the sum are left out.
const NEGLIGIBLE: f64 = 1e-17;

/// `ln √(2π)`.
const LOG_ROOT_TWO_PI: f64 = 0.918_938_533_204_672_8;

/// The evidence that the odds ratio is `ψ` rather than 1, and its two parts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct HyperTilt {
    /// `ln E[ψ^X]` under the null.
    pub log_mgf: f64,
    /// `x_C·ln ψ − ln E[ψ^X]`.
    pub log_e: f64,
}

/// The exact conditional factor of one block, or one round, for the odds ratio `psi`, from `1e-9` to `1e9`.
/// Counts must be whole; of more events than exposure as many count as there is exposure.
///
/// ```
/// use davylamp_stats::{Counts, hyper_tilt_log_e};
///
/// let counts = Counts { x_canary: 31.0, x_baseline: 59.0, n_canary: 150.0, n_baseline: 450.0 };
/// let tilt = hyper_tilt_log_e(1.5, &counts)?;
/// assert!((tilt.log_mgf - 10.356_919_819).abs() < 1e-9);
/// assert!((tilt.log_e - 2.212_498_532).abs() < 1e-9);
///
/// // Is the odds ratio above 1.2? Two fifths of the evidence are left.
/// let above = tilt.log_e - hyper_tilt_log_e(1.2, &counts)?.log_e;
/// assert!((above - 0.906_5).abs() < 1e-4);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn hyper_tilt_log_e(psi: f64, counts: &Counts) -> Result<HyperTilt, Error> {
    Error::unless_ratio("psi", psi)?;
    counts.validate()?;
    let Counts { x_canary, x_baseline, n_canary, n_baseline } = *counts;
    for (name, value) in [
        ("x_canary", x_canary),
        ("x_baseline", x_baseline),
        ("n_canary", n_canary),
        ("n_baseline", n_baseline),
    ] {
        Error::unless(value.floor() >= value, name, value, "a whole number")?;
    }
    let (x_canary, x_baseline) = (x_canary.min(n_canary), x_baseline.min(n_baseline));
    if !counts.comparable() || x_canary + x_baseline <= 0.0 {
        return Ok(HyperTilt::default());
    }
    let margins = Margins { events: x_canary + x_baseline, n_canary, n_baseline };
    let log_psi = libm::log(psi);
    let start = margins.mode(psi);
    let log_sum = margins.log_probability(start) + margins.log_sum_from(start, psi);
    let log_e = (x_canary - start) * log_psi - log_sum;
    Ok(HyperTilt { log_mgf: x_canary * log_psi - log_e, log_e })
}

/// What is held fixed: the events of both cohorts, and the exposure of each.
struct Margins {
    events: f64,
    n_canary: f64,
    n_baseline: f64,
}

impl Margins {
    /// The cells of the table with `x` events of the canary: its other requests, the baseline's events, the
    /// baseline's other requests.
    fn cells(&self, x: f64) -> [f64; 4] {
        let x_baseline = self.events - x;
        [x, self.n_canary - x, x_baseline, self.n_baseline - x_baseline]
    }

    /// The most probable number of the canary's events at an odds ratio, or one close to it: the smaller root
    /// of `(ψ − 1)x² − (ψ·(n_C + m) + n_B − m)·x + ψ·n_C·m = 0`.
    fn mode(&self, psi: f64) -> f64 {
        let Self { events, n_canary, n_baseline } = *self;
        let square = psi - 1.0;
        let linear = psi * (n_canary + events) + (n_baseline - events);
        let constant = psi * n_canary * events;
        let root = (linear * linear - 4.0 * square * constant).max(0.0).sqrt();
        let mode =
            if linear > 0.0 { 2.0 * constant / (linear + root) } else { (root - linear) / (-2.0 * square) };
        mode.floor().max(events - n_baseline).max(0.0).min(n_canary).min(events)
    }

    /// `ln P(X = x_C)`.
    ///
    /// Factorials are split as `ln k! = k·ln k − k + s(k)`: the first parts make up the deviance of the table
    /// from its expectation, and what remains is small.
    fn log_probability(&self, x_canary: f64) -> f64 {
        let Self { events, n_canary, n_baseline } = *self;
        let all = n_canary + n_baseline;
        let [a, b, c, d] = self.cells(x_canary);
        let excess = (a * d - b * c) / all;
        let deviance = |cell: f64, excess: f64, rows: f64, columns: f64| {
            let expected = rows / all * columns;
            let relative = excess / expected;
            if cell <= 0.0 {
                expected
            } else if relative > -0.5 {
                cell * libm::log1p(relative) - excess
            } else {
                cell * libm::log(cell / expected) - excess
            }
        };
        let others = all - events;
        let deviance = deviance(a, excess, n_canary, events)
            + deviance(b, -excess, n_canary, others)
            + deviance(c, -excess, n_baseline, events)
            + deviance(d, excess, n_baseline, others);
        let margins = stirling(n_canary) + stirling(n_baseline) + stirling(events) + stirling(others);
        let cells = stirling(a) + stirling(b) + stirling(c) + stirling(d);
        margins - stirling(all) - cells - deviance
    }

    /// `ln(Σ_x P(X = x)·ψ^x / P(X = start)·ψ^start)`.
    fn log_sum_from(&self, start: f64, psi: f64) -> f64 {
        let cells = self.cells(start);
        let variance = 1.0 / cells.iter().map(|cell| 1.0 / cell.max(1.0)).sum::<f64>();
        if variance > LARGEST_DEVIATION * LARGEST_DEVIATION {
            // From the peak, which `start` misses by a little.
            let slope = libm::log(self.ratio(start, psi));
            return LOG_ROOT_TWO_PI + 0.5 * libm::log(variance) + 0.5 * variance * slope * slope + 1e-8;
        }
        let mut sum = 1.0;
        let (mut term, mut x) = (1.0, start);
        for _ in 0..LARGEST_NUMBER_OF_TERMS {
            term *= self.ratio(x, psi);
            x += 1.0;
            sum += term;
            if term <= NEGLIGIBLE * sum {
                break;
            }
        }
        (term, x) = (1.0, start);
        for _ in 0..LARGEST_NUMBER_OF_TERMS {
            x -= 1.0;
            term /= self.ratio(x, psi);
            sum += term;
            if term <= NEGLIGIBLE * sum {
                break;
            }
        }
        libm::log(sum)
    }

    /// How much larger the term of `x_C + 1` is than that of `x_C`: zero after the last one, infinite before
    /// the first.
    fn ratio(&self, x_canary: f64, psi: f64) -> f64 {
        let [a, b, c, d] = self.cells(x_canary);
        psi * (b * c) / ((a + 1.0) * (d + 1.0))
    }
}

/// `ln k! − k·ln k + k`.
pub(crate) fn stirling(k: f64) -> f64 {
    if k <= 0.0 {
        0.0
    } else if k < 16.0 {
        libm::lgamma(k + 1.0) - k * libm::log(k) + k
    } else {
        let inverse = 1.0 / k;
        let square = inverse * inverse;
        let series = 1.0 / 12.0 - square * (1.0 / 360.0 - square * (1.0 / 1260.0 - square / 1680.0));
        LOG_ROOT_TWO_PI + 0.5 * libm::log(k) + inverse * series
    }
}

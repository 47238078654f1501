//! Events with exposure, canary against baseline: the test that finds a regression.
//!
//! **Null hypothesis.** In every block the canary's average event probability, or intensity per unit of
//! exposure, is at most `ρ₀` times the baseline's: `H₀: p_C ≤ ρ₀·p_B`, whatever `p_B` is and however it
//! moves. With an absolute floor `δ`: `p_C ≤ ρ₀·p_B` or `p_C ≤ δ`, either of them in each block.
//!
//! **Formula.** For twelve ratios `r_j` from 1.15 to 40, summed over the rounds of the block,
//! ```text
//! q₀  = ρ₀·n_C/(ρ₀·n_C + n_B)
//! ℓ_j = Σ x_C·ln r_j − (x_C + x_B)·ln(1 + q₀·(r_j − 1))
//! b   = min(ln 10, max(ln(1/q₀), 0.5))             with the q₀ of the block's exposure so far
//! g   = Σ_i v_i·exp(ℓᵃ_i)                          with a floor: the canary alone against δ, in this block
//! ```
//! and every `ℓ_j` enters the capital as `min(ℓ_j, b, ln g)`. Half of the capital starts in reserve and is
//! put to work at the hazard `h = L/(900 s + L·blocks before)` a block, for regressions that begin late. When
//! a block with a floor closes, `v_i` becomes `(1 − h)·v_i·exp(ℓᵃ_i)/g + h/6`.
//!
//! **Why it is valid.** `E[e^ℓ] ≤ exp((u − 1)·Σ_C p + (v − 1)·Σ_B p)` with `z = 1 + q₀·(r − 1)`, `u = r/z`,
//! `v = 1/z`, for any probabilities, also unequal within a cohort; and `ρ₀·n_C·(u − 1) + n_B·(v − 1) = 0`, so
//! that this is at most 1 under the null. What is smaller than a valid factor is valid: hence the cap, and
//! with a floor the smaller of two, whichever null holds in the block.
//!
//! **Source.** Przyborowski and Wilenski (1940) condition on the sum in this way; Grünwald, de Heide and
//! Koolen (2024), *Safe testing*, for the e-value; the composite null, the cap and the floor are this
//! crate's.
//!
//! **Cost.** Twelve logarithms a round, thirteen exponentials a look.
//!
//! **When not to use it.** When events depend on each other over longer than a block, or pods of one version
//! differ by themselves: then the tolerance has to be widened first.

use crate::bernoulli::Bernoulli;
use crate::blocks::{Blocks, Restarts};
use crate::state::{Reader, Writer};
use crate::{Capital, Counts, Error};

/// How many ratios [`RATIO_GRID`] holds.
pub(crate) const RATIOS: usize = 12;

/// The alternatives `r_j`, as multiples of the tolerated ratio: `exp(exp(·))` of equal steps between 1.15 and
/// 40.
#[expect(clippy::unreadable_literal, reason = "the numbers as they are printed")]
pub const RATIO_GRID: [f64; RATIOS] = [
    1.15,
    1.207073381213498,
    1.2884270028116578,
    1.4067044261503416,
    1.5833064632480653,
    1.8566391517572305,
    2.300697020847145,
    3.070914696298575,
    4.530419180748622,
    7.6477540197879215,
    15.478792711003667,
    40.0,
];

/// `ln r_j`.
#[expect(clippy::unreadable_literal, reason = "the numbers as they are printed")]
pub(crate) const LOG_RATIO_GRID: [f64; RATIOS] = [
    0.13976194237515863,
    0.18819873663315154,
    0.25342209666234367,
    0.3412496822543776,
    0.45951535865426896,
    0.6187679456409302,
    0.8332121295661946,
    1.1219754638988693,
    1.510814469595495,
    2.0344120125472362,
    2.7394708748749426,
    3.6888794541139363,
];

/// The same prior for each of the twelve.
pub(crate) const UNIFORM: [f64; RATIOS] = [1.0 / 12.0; RATIOS];

/// The alternatives to an absolute floor, as multiples of it.
const FLOOR_GRID: [f64; 6] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// No block multiplies the capital of an alternative by more than 10.
pub(crate) const LARGEST_CLIP: f64 = std::f64::consts::LN_10;

/// The clip of a block is not below this.
const SMALLEST_CLIP: f64 = 0.5;

/// The log factor of one round for one alternative: the ratio is `r·ρ₀` rather than at most `ρ₀`.
///
/// ```
/// use davylamp_stats::{Counts, event_log_factor};
///
/// // 6 of 640 requests failed on the canary, 22 of 5800 on the baseline: 2.5 times the rate.
/// let counts = Counts { x_canary: 6.0, x_baseline: 22.0, n_canary: 640.0, n_baseline: 5800.0 };
/// let log_e = event_log_factor(1.1, 1.5, &counts)?;
/// assert!((log_e - 0.957).abs() < 5e-4);
///
/// // Nothing happened: the factor is exactly 1.
/// let quiet = Counts { x_canary: 0.0, x_baseline: 0.0, ..counts };
/// assert!(event_log_factor(1.1, 1.5, &quiet)? == 0.0);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn event_log_factor(rho0: f64, ratio: f64, counts: &Counts) -> Result<f64, Error> {
    Error::unless_ratio("rho0", rho0)?;
    Error::unless_ratio("ratio", ratio)?;
    counts.validate()?;
    Ok(one_log_factor(ratio, libm::log(ratio), canary_share(rho0, counts), counts))
}

/// The log factors of one round for [`RATIO_GRID`].
pub(crate) fn log_factors(rho0: f64, counts: &Counts) -> [f64; RATIOS] {
    let share = canary_share(rho0, counts);
    let mut log_factors = LOG_RATIO_GRID;
    for (log_factor, ratio) in log_factors.iter_mut().zip(RATIO_GRID) {
        *log_factor = one_log_factor(ratio, *log_factor, share, counts);
    }
    log_factors
}

fn one_log_factor(ratio: f64, log_ratio: f64, canary_share: f64, counts: &Counts) -> f64 {
    if counts.comparable() {
        counts.x_canary * log_ratio - counts.events() * log_one_plus(canary_share * (ratio - 1.0))
    } else {
        0.0
    }
}

/// `ln(1 + x)` for an `x` that is not negative: the plain logarithm is quicker where it is as exact.
fn log_one_plus(x: f64) -> f64 {
    if x > 0.0625 { libm::log(1.0 + x) } else { libm::log1p(x) }
}

/// `q₀`: the probability that an event is the canary's when its rate is exactly `ρ₀` times the baseline's.
pub(crate) fn canary_share(rho0: f64, counts: &Counts) -> f64 {
    1.0 / (1.0 + counts.n_baseline / counts.n_canary / rho0)
}

/// The test of one metric whose events are bad: evidence that the canary has more than `ρ₀` times as many.
///
/// It runs over all steps of a rollout. A block takes the rounds up to the next one that is marked as the
/// first of a block; the caller decides where blocks begin and drops rounds outside of them. For a metric of
/// which more is better, pass [`Counts::swapped`] and `ρ₀ = 1/(1 − tolerance)`.
///
/// ```
/// use davylamp_stats::{Counts, EventProcess};
///
/// let mut process = EventProcess::new(1.1, 15.0, Some(0.001))?;
/// let healthy = Counts { x_canary: 1.0, x_baseline: 9.0, n_canary: 150.0, n_baseline: 1350.0 };
/// for _ in 0..40 {
///     process.round(&healthy, true)?;
/// }
/// assert!(process.log_e() < 0.0);
///
/// // The canary now fails four times as often. ln(100) = 4.6 is needed at a false alarm rate of 1 %.
/// let regressed = Counts { x_canary: 4.0, ..healthy };
/// let mut blocks = 0;
/// while process.log_e() < 100.0_f64.ln() {
///     process.round(&regressed, true)?;
///     blocks += 1;
/// }
/// assert_eq!(blocks, 7);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct EventProcess {
    rho0: f64,
    /// The largest clip: `ln 10`, or what history has shown a cluster to be.
    largest_clip: f64,
    blocks: Blocks<RATIOS>,
    floor: Option<Floor>,
    /// Exposure of the open block.
    n_canary: f64,
    n_baseline: f64,
    /// What the open block's log factors are capped at.
    cap: f64,
}

impl EventProcess {
    /// A process without evidence. `rho0` is the tolerated ratio, `block_seconds` the nominal length of a
    /// block, `floor` the rate up to which the canary is never worse, below one half.
    pub fn new(rho0: f64, block_seconds: f64, floor: Option<f64>) -> Result<Self, Error> {
        Error::unless_ratio("rho0", rho0)?;
        Ok(Self {
            rho0,
            largest_clip: LARGEST_CLIP,
            blocks: Blocks::new(UNIFORM, block_seconds, Restarts::Fading)?,
            floor: floor.map(Floor::new).transpose()?,
            n_canary: 0.0,
            n_baseline: 0.0,
            cap: f64::INFINITY,
        })
    }

    /// Caps the log factors of each block at `largest`, above 0, instead of at `ln 10`:
    /// [`calibrate`](crate::calibration) says at what.
    pub fn with_clip(self, largest: f64) -> Result<Self, Error> {
        Error::unless(largest > 0.0 && largest.is_finite(), "largest", largest, "a finite number above 0")?;
        Ok(Self { largest_clip: largest, ..self })
    }

    /// Changes the tolerated ratio: the open block is closed, and the next one tests this one.
    pub fn tolerate(&mut self, rho0: f64) -> Result<(), Error> {
        Error::unless_ratio("rho0", rho0)?;
        self.close_block();
        self.rho0 = rho0;
        Ok(())
    }

    /// Takes one round. With `new_block` it is the first of a block: the open one is closed before. Without
    /// an open block, any round is the first of one.
    pub fn round(&mut self, counts: &Counts, new_block: bool) -> Result<(), Error> {
        counts.validate()?;
        if new_block {
            self.close_block();
        }
        self.blocks.open();
        self.n_canary += counts.n_canary;
        self.n_baseline += counts.n_baseline;
        if let Some(floor) = &mut self.floor {
            floor.add(counts)?;
        }
        self.cap = self.cap();
        self.blocks.add(&log_factors(self.rho0, counts))
    }

    /// Closes the open block, if any, because the traffic weight or a cohort changes.
    pub fn close_block(&mut self) {
        if let Some(hazard) = self.blocks.close(self.cap) {
            if let Some(floor) = &mut self.floor {
                floor.close(hazard);
            }
            self.n_canary = 0.0;
            self.n_baseline = 0.0;
            self.cap = f64::INFINITY;
        }
    }

    /// The logarithm of the evidence against the null, with the open block.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        self.blocks.log_e(self.cap)
    }

    /// The state, without the parameters: 230 bytes, 342 with a floor.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { rho0: _, largest_clip: _, blocks, floor, n_canary, n_baseline, cap: _ } = self;
        let mut writer = Writer::new();
        blocks.write(&mut writer);
        writer.numbers(&[*n_canary, *n_baseline]);
        if let Some(floor) = floor {
            floor.capital.write(&mut writer);
        }
        writer.finish()
    }

    /// This process, whose parameters count, with the saved state of another: it continues to the bit like
    /// the one that was saved if the parameters are the same. Another `rho0` or another floor applies from
    /// the next round on.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let mut restored = Self {
            blocks: self.blocks.read(&mut reader)?,
            n_canary: reader.not_negative("n_canary")?,
            n_baseline: reader.not_negative("n_baseline")?,
            floor: self.floor.map(|floor| floor.read(&mut reader)).transpose()?,
            ..self
        };
        reader.finish()?;
        if restored.blocks.is_open() {
            restored.cap = restored.cap();
        }
        Ok(restored)
    }

    /// What the open block's log factors are to be capped at.
    fn cap(&self) -> f64 {
        let clip = clip(self.rho0, self.n_canary, self.n_baseline, self.largest_clip);
        self.floor.as_ref().map_or(clip, |floor| clip.min(floor.log_gain()))
    }
}

/// What one cluster of events that all hit the canary can contribute at most: `ln(1/q₀)` within limits.
pub(crate) fn clip(rho0: f64, n_canary: f64, n_baseline: f64, largest: f64) -> f64 {
    if n_canary > 0.0 {
        libm::log1p(n_baseline / n_canary / rho0).max(SMALLEST_CLIP).min(largest)
    } else {
        largest
    }
}

/// The alternatives to an absolute floor.
pub(crate) fn floor_rate(floor: f64) -> Result<Bernoulli<6>, Error> {
    Error::unless(floor > 0.0 && floor < 0.5, "floor", floor, "a rate above 0 and below 0.5")?;
    Ok(Bernoulli::new(floor, FLOOR_GRID.map(|multiple| multiple * floor)))
}

/// The canary alone against the absolute floor.
#[derive(Debug, Clone, PartialEq)]
struct Floor {
    rate: Bernoulli<6>,
    capital: Capital<6>,
}

impl Floor {
    fn new(floor: f64) -> Result<Self, Error> {
        let rate = floor_rate(floor)?;
        let capital = rate.capital()?;
        Ok(Self { rate, capital })
    }

    fn add(&mut self, counts: &Counts) -> Result<(), Error> {
        self.capital.add(&self.rate.log_factors(counts.x_canary, counts.n_canary))
    }

    /// `ln g`.
    fn log_gain(&self) -> f64 {
        self.capital.log_gain(f64::INFINITY)
    }

    fn close(&mut self, hazard: f64) {
        self.capital.close(f64::INFINITY);
        self.capital.redistribute(hazard);
    }

    fn read(self, reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { capital: self.capital.read(reader)?, rate: self.rate })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithms_are_those_of_the_grid() {
        for (ratio, log_ratio) in RATIO_GRID.into_iter().zip(LOG_RATIO_GRID) {
            assert!((libm::log(ratio) - log_ratio).abs() <= f64::EPSILON * log_ratio, "{ratio}");
        }
    }

    #[test]
    fn the_clip_is_what_one_cluster_contributes_within_limits() {
        // 10 % of the traffic: q₀ = 1.1/(1.1 + 9).
        assert!((clip(1.1, 100.0, 900.0, LARGEST_CLIP) - libm::log(10.1 / 1.1)).abs() < 1e-12);
        // 5 % would allow ln 18, 90 % only ln 1.1.
        assert!(clip(1.1, 50.0, 950.0, LARGEST_CLIP) >= LARGEST_CLIP);
        assert!(clip(1.1, 900.0, 100.0, LARGEST_CLIP) <= SMALLEST_CLIP);
        assert!(clip(1.1, 0.0, 900.0, LARGEST_CLIP) >= LARGEST_CLIP);
        assert!(clip(1.1, 900.0, 0.0, LARGEST_CLIP) <= SMALLEST_CLIP);
        assert!(clip(1.1, 0.0, 0.0, LARGEST_CLIP) >= LARGEST_CLIP);
    }
}

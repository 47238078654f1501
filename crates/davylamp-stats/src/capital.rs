//! Capital that bets on several alternatives at once: the mechanism that all tests share.
//!
//! **Null hypothesis.** That of the factors it is given: in every block, whatever happened before, each
//! factor `e_j` satisfies `E[e_j | past] ≤ 1`.
//!
//! **Formula.** With shares `A_j`, reserve `W`, the open block's `ℓ_j = Σ ln e_j` over its rounds and a cap
//! `b`:
//! ```text
//! block opens    A_j += h·W·π_j,  W ·= 1 − h
//! log E          ln( Σ_j A_j·exp(min(ℓ_j, b)) + W )
//! block closes   A_j ·= exp(min(ℓ_j, b)),  ℓ_j = 0
//! ```
//! **Why it is valid.** A product of factors with expectation at most 1 is a nonnegative supermartingale; so
//! is it with its factor of a block capped, and so is a mixture of them. Moving capital between them keeps
//! the total. By Ville's inequality the total ever reaches `1/α` with probability at most `α`.
//!
//! **Source.** Ville (1939), *Étude critique de la notion de collectif*; Herbster and Warmuth (1998),
//! *Tracking the best expert*, for the moves of capital.
//!
//! **Cost.** `J` exponentials and one logarithm for each look and for each block.
//!
//! **When not to use it.** When the cap or the hazard of a block depends on the events of that block.
//!
//! The open block's gain is taken relative to the shares at its start, so that a block in which every factor
//! is 1 leaves `log E` unchanged to the bit. Shares so small that they vanish (below `1e-200` of the whole)
//! are lost to a restart, or for good; that only lowers the capital.

use crate::Error;
use crate::state::{Reader, Writer};

/// Keeps sums of log factors away from infinity; a round of the largest counts contributes less than `1e17`.
const LARGEST_LOG_FACTOR: f64 = 1e300;

/// Log factors up to this magnitude are put into numbers as they are, larger ones relative to the largest.
const LARGEST_EXPONENT: f64 = 500.0;

/// Shares are kept without division while their sum is between this and its reciprocal.
const SMALLEST_TOTAL: f64 = 1e-100;

/// Capital of 1, spread over `J` alternatives and a reserve.
///
/// ```
/// use davylamp_stats::Capital;
///
/// // Half on two alternatives, half in reserve; the first alternative gains a factor of 8, capped at 4.
/// let mut capital = Capital::new([0.5, 0.5], 0.5)?;
/// capital.add(&[8.0_f64.ln(), 0.0])?;
/// let cap = 4.0_f64.ln();
/// assert!((capital.log_e(cap).exp() - (0.25 * 4.0 + 0.25 + 0.5)).abs() < 1e-12);
///
/// // The next block starts with these shares, after a tenth of the reserve of 0.5 has been put to work.
/// capital.close(cap);
/// capital.restart(0.1);
/// capital.add(&[2.0_f64.ln(), 0.0])?;
/// let expected = 2.0 * (1.0 + 0.025) + (0.25 + 0.025) + 0.45;
/// assert!((capital.log_e(cap).exp() - expected).abs() < 1e-12);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Capital<const J: usize> {
    prior: [f64; J],
    /// Of the capital at the start of the open block, in units of `total`.
    share: [f64; J],
    reserve: f64,
    /// `Σ share + reserve`.
    total: f64,
    /// The logarithm of the capital at the start of the open block.
    wealth: f64,
    /// Of the open block, `ℓ_j`.
    factor: [f64; J],
}

impl<const J: usize> Capital<J> {
    /// Puts the share `first` of a capital of 1 on the alternatives, in the proportions of `prior`, and keeps
    /// the rest in reserve. An alternative with prior 0 takes no part.
    pub fn new(prior: [f64; J], first: f64) -> Result<Self, Error> {
        Error::unless(first > 0.0 && first <= 1.0, "first", first, "a share above 0 and up to 1")?;
        for weight in prior {
            Error::unless((0.0..=1.0).contains(&weight), "prior", weight, "weights from 0 to 1")?;
        }
        let sum: f64 = prior.iter().sum();
        Error::unless((sum - 1.0).abs() < 1e-9, "prior", sum, "weights with the sum 1")?;

        let mut capital = Self {
            prior,
            share: prior.map(|weight| weight * first),
            reserve: 1.0 - first,
            total: 0.0,
            wealth: 0.0,
            factor: [0.0; J],
        };
        capital.total = capital.sum();
        Ok(capital)
    }

    /// Multiplies the open block's factor of each alternative by that of one more round.
    pub fn add(&mut self, log_factors: &[f64; J]) -> Result<(), Error> {
        let mut sums = self.factor;
        for (sum, &log_factor) in sums.iter_mut().zip(log_factors) {
            *sum += log_factor;
            let ok = sum.abs() <= LARGEST_LOG_FACTOR;
            Error::unless(ok, "log_factors", log_factor, "finite numbers with a finite sum")?;
        }
        self.factor = sums;
        Ok(())
    }

    /// Replaces the open block's factor of each alternative, which is known as a whole only.
    pub(crate) fn replace(&mut self, log_factors: &[f64; J]) -> Result<(), Error> {
        let before = std::mem::replace(&mut self.factor, [0.0; J]);
        self.add(log_factors).inspect_err(|_| self.factor = before)
    }

    /// The logarithm of the capital at the start of the open block.
    pub(crate) fn log_e_before(&self) -> f64 {
        self.wealth
    }

    /// The logarithm of the capital, with the open block's log factors capped at `cap` (infinity: no cap).
    #[must_use]
    pub fn log_e(&self, cap: f64) -> f64 {
        self.wealth + self.log_gain(cap)
    }

    /// The logarithm of what the open block has multiplied the capital by.
    #[must_use]
    pub fn log_gain(&self, cap: f64) -> f64 {
        let shift = self.shift(cap);
        let gains = self.gains(cap, shift);
        let sum = self.share.iter().zip(&gains).fold(0.0, |sum, (share, gain)| sum + share * gain);
        shift + libm::log((sum + self.shifted_reserve(shift)) / self.total)
    }

    /// Closes the open block: its capped gain becomes capital. Without rounds since the last close, nothing
    /// changes.
    pub fn close(&mut self, cap: f64) {
        let (shift, before) = (self.shift(cap), self.total);
        let gains = self.gains(cap, shift);
        for (share, gain) in self.share.iter_mut().zip(gains) {
            *share *= gain;
        }
        self.reserve = self.shifted_reserve(shift);
        self.factor = [0.0; J];
        self.total = self.sum();
        self.wealth += shift + libm::log(self.total / before);
        if !(SMALLEST_TOTAL..=1.0 / SMALLEST_TOTAL).contains(&self.total) {
            let total = self.total;
            for share in &mut self.share {
                *share /= total;
            }
            self.reserve /= total;
            self.total = self.sum();
        }
    }

    /// Puts the share `hazard` of the reserve to work, at the start of a block. A hazard outside 0 to 1
    /// counts as the nearer of the two, one that is not a number as 0.
    pub fn restart(&mut self, hazard: f64) {
        let moved = self.reserve * proportion(hazard);
        for (share, prior) in self.share.iter_mut().zip(&self.prior) {
            *share += prior * moved;
        }
        self.reserve -= moved;
        self.total = self.sum();
    }

    /// Gives the share `hazard` of what the alternatives hold back to all of them, in the proportions of the
    /// prior. Only between blocks, and only without a reserve.
    pub(crate) fn redistribute(&mut self, hazard: f64) {
        let hazard = proportion(hazard);
        let moved = hazard * self.total;
        for (share, prior) in self.share.iter_mut().zip(&self.prior) {
            *share = (1.0 - hazard) * *share + prior * moved;
        }
        self.total = self.sum();
    }

    pub(crate) fn write(&self, writer: &mut Writer) {
        let Self { prior: _, share, reserve, total: _, wealth, factor } = self;
        writer.numbers(share);
        writer.numbers(&[*reserve, *wealth]);
        writer.numbers(factor);
    }

    /// Replaces the state of `self`, which brings the prior.
    pub(crate) fn read(mut self, reader: &mut Reader<'_>) -> Result<Self, Error> {
        for share in &mut self.share {
            *share = reader.not_negative("share")?;
        }
        self.reserve = reader.not_negative("reserve")?;
        self.wealth = reader.number("wealth")?;
        for factor in &mut self.factor {
            *factor = reader.number("factor")?;
        }
        self.total = self.sum();
        // Rounding may leave it a little outside of what it was divided for.
        if (0.5 * SMALLEST_TOTAL..=2.0 / SMALLEST_TOTAL).contains(&self.total) {
            Ok(self)
        } else {
            let expected = "shares and a reserve that make up a capital";
            Err(Error::StateField { field: "total", value: self.total, expected })
        }
    }

    /// Summed as the open block is, so that equal terms give equal bits.
    fn sum(&self) -> f64 {
        self.share.iter().fold(0.0, |sum, share| sum + share) + self.reserve
    }

    /// What is subtracted from the log factors so that neither all vanish nor one overflows.
    fn shift(&self, cap: f64) -> f64 {
        let factors = self.share.iter().zip(&self.factor).filter(|(share, _)| **share > 0.0);
        let rest = if self.reserve > 0.0 { 0.0 } else { f64::NEG_INFINITY };
        let largest = factors.fold(rest, |largest, (_, factor)| largest.max(factor.min(cap)));
        if largest.abs() <= LARGEST_EXPONENT { 0.0 } else { largest }
    }

    /// `exp(min(ℓ_j, cap) − shift)`; 0 for an alternative without a share.
    fn gains(&self, cap: f64, shift: f64) -> [f64; J] {
        let mut gains = self.factor;
        for (gain, &share) in gains.iter_mut().zip(&self.share) {
            *gain = if share > 0.0 { libm::exp(gain.min(cap) - shift) } else { 0.0 };
        }
        gains
    }

    /// The reserve, which gains nothing; with a reserve the shift is not negative.
    fn shifted_reserve(&self, shift: f64) -> f64 {
        if shift > 0.0 { self.reserve * libm::exp(-shift) } else { self.reserve }
    }
}

/// `ln(Σ exp(term) + exp(rest))`, without overflow; minus infinity is a term of zero.
pub(crate) fn log_sum_exp(terms: &[f64], rest: f64) -> f64 {
    let largest = terms.iter().fold(rest, |largest, &term| largest.max(term));
    if largest == f64::NEG_INFINITY {
        return largest;
    }
    let sum = terms.iter().fold(libm::exp(rest - largest), |sum, &term| sum + libm::exp(term - largest));
    largest + libm::log(sum)
}

/// `ln(exp(a) + exp(b))`.
pub(crate) fn log_add(a: f64, b: f64) -> f64 {
    let (larger, smaller) = if a >= b { (a, b) } else { (b, a) };
    if smaller == f64::NEG_INFINITY { larger } else { larger + libm::log1p(libm::exp(smaller - larger)) }
}

/// A hazard as a share from 0 to 1.
fn proportion(hazard: f64) -> f64 {
    if hazard.is_nan() { 0.0 } else { hazard.clamp(0.0, 1.0) }
}

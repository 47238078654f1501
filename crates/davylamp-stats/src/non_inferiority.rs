//! Events with exposure, canary against baseline: the test that allows a promotion.
//!
//! **Null hypothesis.** In every block the canary's rate is at least `m` times the baseline's: `H₀: p_C ≥
//! m·p_B`. With the absolute alternative also at least `p₀ = min(δ/w⁺, ½)`: `p_C ≥ m·p_B` and `p_C ≥ p₀`,
//! where `w⁺` is the traffic weight of the next step.
//!
//! **Formula.** The factors of [`EventProcess`](crate::EventProcess) with the cohorts exchanged and `ρ₀ =
//! 1/m`; the factors of a rate against `p₀` with alternatives `p₀/{1.25, 1.5, 2, 3, 5, 10}`; each capped at
//! `ln 10` a block, all capital at work from the start, no restarts; `E = ½·E_ratio + ½·E_absolute`.
//!
//! **Why it is valid.** Each half is a nonnegative supermartingale under its own null, and the joint null
//! implies both; so their average is one, and it ever reaches `1/β` with probability at most `β`. The cap
//! only lowers a factor.
//!
//! **Source.** Grünwald, de Heide and Koolen (2024), *Safe testing*; Vovk and Wang (2021), *E-values:
//! calibration, combination and applications*, for the average.
//!
//! **Cost.** Twelve logarithms a round, twenty exponentials a look.
//!
//! **When not to use it.** Beyond one step: begin anew at each step and after a hold, because evidence from
//! before a regression counts for it.

use crate::bernoulli::Bernoulli;
use crate::capital::log_add;
use crate::event::{LARGEST_CLIP, RATIOS, UNIFORM, log_factors};
use crate::state::{Reader, Writer};
use crate::{Capital, Counts, Error};

/// The alternatives to the absolute rate, as divisors of it.
const ABSOLUTE_GRID: [f64; 6] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// The test of one metric at one step: evidence that the canary is less than `m` times as bad as the
/// baseline, or better than the absolute rate.
///
/// ```
/// use davylamp_stats::{Counts, NonInferiority};
///
/// // No errors at all say nothing about a ratio, but much about a rate: 0.1 % is tolerated, and half of the
/// // traffic comes next.
/// let mut process = NonInferiority::new(2.0, Some((0.001, 0.5)))?;
/// let round = Counts { n_canary: 600.0, n_baseline: 1900.0, ..Counts::default() };
/// let mut rounds = 0;
/// while process.log_e() < 20.0_f64.ln() {
///     process.round(&round, true)?;
///     rounds += 1;
/// }
/// assert_eq!(rounds, 5);
/// assert!(process.log_e_ratio() == 0.0);
/// assert!(process.log_e_absolute() > Some(40.0_f64.ln()));
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct NonInferiority {
    margin: f64,
    ratio: Capital<RATIOS>,
    absolute: Option<Absolute>,
}

impl NonInferiority {
    /// A process without evidence. `margin` is the ratio `m` to be ruled out; `absolute` the tolerated rate
    /// `δ`, above 0 and below 1, and the traffic weight of the next step, above 0 and up to 1 (1 at the last
    /// step).
    pub fn new(margin: f64, absolute: Option<(f64, f64)>) -> Result<Self, Error> {
        Error::unless_ratio("margin", margin)?;
        Ok(Self {
            margin,
            ratio: Capital::new(UNIFORM, 1.0)?,
            absolute: absolute.map(|(delta, next_weight)| Absolute::new(delta, next_weight)).transpose()?,
        })
    }

    /// Changes the margin: the open block is closed, and the next one tests this one.
    pub fn rule_out(&mut self, margin: f64) -> Result<(), Error> {
        Error::unless_ratio("margin", margin)?;
        self.close_block();
        self.margin = margin;
        Ok(())
    }

    /// Takes one round; with `new_block` the open block is closed before.
    pub fn round(&mut self, counts: &Counts, new_block: bool) -> Result<(), Error> {
        counts.validate()?;
        if new_block {
            self.close_block();
        }
        if let Some(absolute) = &mut self.absolute {
            absolute.add(counts)?;
        }
        self.ratio.add(&log_factors(1.0 / self.margin, &counts.swapped()))
    }

    /// Closes the open block, if any.
    pub fn close_block(&mut self) {
        self.ratio.close(LARGEST_CLIP);
        if let Some(absolute) = &mut self.absolute {
            absolute.capital.close(LARGEST_CLIP);
        }
    }

    /// The logarithm of the evidence against the null: the average of the two, or the ratio's alone.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        let ratio = self.log_e_ratio();
        self.log_e_absolute().map_or(ratio, |absolute| log_add(ratio, absolute) - std::f64::consts::LN_2)
    }

    /// The logarithm of the evidence that the ratio is below the margin.
    #[must_use]
    pub fn log_e_ratio(&self) -> f64 {
        self.ratio.log_e(LARGEST_CLIP)
    }

    /// The logarithm of the evidence that the canary's rate is below the absolute one, if there is one.
    #[must_use]
    pub fn log_e_absolute(&self) -> Option<f64> {
        self.absolute.as_ref().map(|absolute| absolute.capital.log_e(LARGEST_CLIP))
    }

    /// The state, without the parameters: 209 bytes, 321 with the absolute alternative.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { margin: _, ratio, absolute } = self;
        let mut writer = Writer::new();
        ratio.write(&mut writer);
        if let Some(absolute) = absolute {
            absolute.capital.write(&mut writer);
        }
        writer.finish()
    }

    /// This process, whose parameters count, with the saved state of another: it continues to the bit like
    /// the one that was saved if the parameters are the same.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let restored = Self {
            margin: self.margin,
            ratio: self.ratio.read(&mut reader)?,
            absolute: self.absolute.map(|absolute| absolute.read(&mut reader)).transpose()?,
        };
        reader.finish()?;
        Ok(restored)
    }
}

/// The alternatives to the rate that is tolerated after a promotion.
pub(crate) fn absolute_rate(delta: f64, next_weight: f64) -> Result<Bernoulli<6>, Error> {
    Error::unless(delta > 0.0 && delta < 1.0, "delta", delta, "a rate above 0 and below 1")?;
    let ok = next_weight > 0.0 && next_weight <= 1.0;
    Error::unless(ok, "next_weight", next_weight, "a share above 0 and up to 1")?;
    let null = (delta / next_weight).min(0.5);
    Ok(Bernoulli::new(null, ABSOLUTE_GRID.map(|divisor| null / divisor)))
}

/// The canary alone against an absolute rate.
#[derive(Debug, Clone, PartialEq)]
struct Absolute {
    rate: Bernoulli<6>,
    capital: Capital<6>,
}

impl Absolute {
    fn new(delta: f64, next_weight: f64) -> Result<Self, Error> {
        let rate = absolute_rate(delta, next_weight)?;
        let capital = rate.capital()?;
        Ok(Self { rate, capital })
    }

    fn add(&mut self, counts: &Counts) -> Result<(), Error> {
        self.capital.add(&self.rate.log_factors(counts.x_canary, counts.n_canary))
    }

    fn read(self, reader: &mut Reader<'_>) -> Result<Self, Error> {
        Ok(Self { capital: self.capital.read(reader)?, rate: self.rate })
    }
}

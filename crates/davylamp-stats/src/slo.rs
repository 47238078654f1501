//! A service level objective: the canary, or the baseline, against an absolute rate instead of each other.
//!
//! **Null hypothesis.** In every block the average event probability is at most `p₀ = burn rate·(1 −
//! objective)`: `H₀: p ≤ p₀`. For an objective that is met with confidence the opposite: `H₀: p ≥ p₀`.
//!
//! **Formula.** `ℓ_j = x·ln(p_j/p₀) + (n − x)·ln((1 − p_j)/(1 − p₀))` summed over the rounds of a block, for
//! six rates `p_j = p₀·{1.25, 1.5, 2, 3, 5, 10}` (those below 1), or `p₀/{1.25, …, 10}`; each capped at
//! `ln 10` a block. Half of the capital starts in reserve and is put to work as in
//! [`EventProcess`](crate::EventProcess), or at the constant hazard `L/600 s` for incidents.
//!
//! **Why it is valid.** Each factor has expectation `Π(1 + s·(p − p₀)) ≤ exp(s·Σ(p − p₀)) ≤ 1` over the
//! requests with `s = (p_j − p₀)/(p₀·(1 − p₀))`, because `s` and `Σ(p − p₀)` have opposite signs under the
//! null. The cap only lowers it.
//!
//! **Source.** Wald (1945), *Sequential tests of statistical hypotheses*; Beyer and others (2018), *The site
//! reliability workbook*, for burn rates.
//!
//! **Cost.** Twelve multiplications a round, seven exponentials a look.
//!
//! **When not to use it.** To roll back: a rate above the objective says nothing about what caused it.

use crate::Error;
use crate::bernoulli::Bernoulli;
use crate::blocks::{Blocks, Restarts};
use crate::counts::validate_count;
use crate::event::LARGEST_CLIP;
use crate::state::{Reader, Writer};

/// How much more, or less, often than allowed the alternatives have events.
const GRID: [f64; 6] = [1.25, 1.5, 2.0, 3.0, 5.0, 10.0];

/// Far below the rate of any event that is ever seen.
const SMALLEST_RATE: f64 = 1e-12;

/// Seconds in which an incident is expected to begin.
const INCIDENT_SECONDS: f64 = 600.0;

/// The log factor of one round for one alternative: the rate is `rate` rather than on the other side of
/// `null`, both of them above 0 and below 1. No more events count than there is exposure.
///
/// ```
/// use davylamp_stats::slo_log_e;
///
/// // 9 of 1100 requests failed where 0.5 % are allowed: some evidence for 1 %.
/// let log_e = slo_log_e(0.005, 0.01, 9.0, 1100.0)?;
/// assert!((log_e - (9.0 * 2.0_f64.ln() + 1091.0 * (0.99_f64 / 0.995).ln())).abs() < 1e-12);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn slo_log_e(null: f64, rate: f64, events: f64, exposure: f64) -> Result<f64, Error> {
    for (name, value) in [("null", null), ("rate", rate)] {
        let ok = (SMALLEST_RATE..1.0).contains(&value);
        Error::unless(ok, name, value, "a rate from 1e-12 to below 1")?;
    }
    validate_count("events", events)?;
    validate_count("exposure", exposure)?;
    let [log_e] = Bernoulli::new(null, [rate]).log_factors(events, exposure);
    Ok(log_e)
}

/// The test of one rate against an absolute one.
///
/// ```
/// use davylamp_stats::SloProcess;
///
/// // 99.5 % at twice the burn rate: 1 % may fail, 3 % do.
/// let mut process = SloProcess::violated(0.01, 15.0)?;
/// let mut blocks = 0;
/// while process.log_e() < 100.0_f64.ln() {
///     process.round(12.0, 400.0, true)?;
///     blocks += 1;
/// }
/// assert_eq!(blocks, 3);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct SloProcess {
    rate: Bernoulli<6>,
    blocks: Blocks<6>,
}

impl SloProcess {
    /// Gathers evidence that the rate is above `null`, which is below 0.8 so that there is an alternative.
    /// `block_seconds` is the nominal length of a block.
    pub fn violated(null: f64, block_seconds: f64) -> Result<Self, Error> {
        Self::above(null, block_seconds, Restarts::Fading)
    }

    /// Gathers evidence that the rate of a baseline is above `null`, by which an incident is noticed: ready
    /// for it at any time alike.
    pub fn incident(null: f64, block_seconds: f64) -> Result<Self, Error> {
        Self::above(null, block_seconds, Restarts::Steady(INCIDENT_SECONDS))
    }

    /// Gathers evidence that the rate is below `null`, itself below 1: the objective is met with confidence.
    pub fn met(null: f64, block_seconds: f64) -> Result<Self, Error> {
        let ok = (SMALLEST_RATE..1.0).contains(&null);
        Error::unless(ok, "null", null, "a rate from 1e-12 to below 1")?;
        Self::new(null, GRID.map(|divisor| null / divisor), block_seconds, Restarts::Fading)
    }

    fn above(null: f64, block_seconds: f64, restarts: Restarts) -> Result<Self, Error> {
        let ok = (SMALLEST_RATE..0.8).contains(&null);
        Error::unless(ok, "null", null, "a rate from 1e-12 to below 0.8")?;
        Self::new(null, GRID.map(|multiple| null * multiple), block_seconds, restarts)
    }

    fn new(null: f64, rates: [f64; 6], block_seconds: f64, restarts: Restarts) -> Result<Self, Error> {
        let rate = Bernoulli::new(null, rates);
        let blocks = Blocks::new(rate.prior(), block_seconds, restarts)?;
        Ok(Self { rate, blocks })
    }

    /// Takes one round. With `new_block` it is the first of a block: the open one is closed before. Without
    /// an open block, any round is the first of one.
    pub fn round(&mut self, events: f64, exposure: f64, new_block: bool) -> Result<(), Error> {
        validate_count("events", events)?;
        validate_count("exposure", exposure)?;
        if new_block {
            self.close_block();
        }
        self.blocks.open();
        self.blocks.add(&self.rate.log_factors(events, exposure))
    }

    /// Closes the open block, if any.
    pub fn close_block(&mut self) {
        self.blocks.close(LARGEST_CLIP);
    }

    /// The logarithm of the evidence against the null, with the open block.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        self.blocks.log_e(LARGEST_CLIP)
    }

    /// The state, without the parameters: 118 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { rate: _, blocks } = self;
        let mut writer = Writer::new();
        blocks.write(&mut writer);
        writer.finish()
    }

    /// This process, whose parameters count, with the saved state of another: it continues to the bit like
    /// the one that was saved if the parameters are the same.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let restored = Self { blocks: self.blocks.read(&mut reader)?, ..self };
        reader.finish()?;
        Ok(restored)
    }
}

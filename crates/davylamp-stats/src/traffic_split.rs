//! The split of the traffic: does the canary get the share of the requests that the weight says?
//!
//! **Null hypothesis.** In each block of 30 seconds, whatever happened before, the canary's share of the
//! requests is above `w·(1 + τ)` with probability one half at most, and so is it below `w·(1 − τ)`.
//!
//! **Formula.** `s = n_C/N`, and two indicators `[s > w·(1 + τ)]` and `[s < w·(1 − τ)]`. Each is an event
//! against the rate ½ with the alternatives 0.75, 0.9 and 0.99, equal parts, without cap, reserve and
//! restarts; `E = ½·E_above + ½·E_below`.
//!
//! **Why it is valid.** An indicator that is 1 with probability `p ≤ ½` gives `E[e^ℓ] = 1 + (p − ½)·s ≤ 1`
//! with `s > 0`. Nothing is assumed about the requests of a block, which share connections and users: only
//! that a correct split does not err to the same side in most blocks.
//!
//! **Source.** Wald (1945), *Sequential tests of statistical hypotheses*, for the sign test; Fabijan and
//! others (2019), *Diagnosing sample ratio mismatch in online controlled experiments*, for what it finds.
//!
//! **Cost.** Six additions a block, eight exponentials a look.
//!
//! **When not to use it.** When connections are pinned to a pod: then the split really is off, for as long as
//! they last. On a part of the pods or in the first minute after a change of the weight.

use crate::bernoulli::Bernoulli;
use crate::capital::log_sum_exp;
use crate::counts::validate_count;
use crate::state::{Reader, Writer};
use crate::{Capital, Error};

/// How often a share that is wrong is found on the wrong side.
const GRID: [f64; 3] = [0.75, 0.9, 0.99];

/// The test of the split over all steps of a rollout: evidence that the canary gets too much, or too little.
///
/// ```
/// use davylamp_stats::TrafficSplit;
///
/// // Twice the traffic that it should have. ln(1000) = 6.9 is needed at a false alarm rate of 0.1 %.
/// let mut split = TrafficSplit::new(0.3)?;
/// let mut blocks = 0;
/// while split.log_e() < 1000.0_f64.ln() {
///     split.block(200.0, 1000.0, 0.1)?;
///     blocks += 1;
/// }
/// assert_eq!(blocks, 13);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct TrafficSplit {
    tolerance: f64,
    rate: Bernoulli<3>,
    above: Capital<3>,
    below: Capital<3>,
}

impl TrafficSplit {
    /// A process without evidence. `tolerance` is the relative deviation `τ` of the share that is tolerated.
    pub fn new(tolerance: f64) -> Result<Self, Error> {
        let ok = tolerance >= 0.0 && tolerance.is_finite();
        Error::unless(ok, "tolerance", tolerance, "a finite number not below 0")?;
        let rate = Bernoulli::new(0.5, GRID);
        let (above, below) = (rate.capital()?, rate.capital()?);
        Ok(Self { tolerance, rate, above, below })
    }

    /// Takes one block: the requests of the canary among all, and the traffic weight from 0 to 1 that was
    /// effective during it. A block without requests says nothing.
    pub fn block(&mut self, n_canary: f64, n_all: f64, weight: f64) -> Result<(), Error> {
        validate_count("n_canary", n_canary)?;
        validate_count("n_all", n_all)?;
        Error::unless(n_canary <= n_all, "n_canary", n_canary, "no more than all requests")?;
        Error::unless((0.0..=1.0).contains(&weight), "weight", weight, "a share from 0 to 1")?;
        if n_all <= 0.0 {
            return Ok(());
        }
        let [too_much, too_little] = self.sides(n_canary, n_all, weight);
        for (capital, event) in [(&mut self.above, too_much), (&mut self.below, too_little)] {
            capital.add(&self.rate.log_factors(f64::from(event), 1.0))?;
            capital.close(f64::INFINITY);
        }
        Ok(())
    }

    /// Whether such a block errs to neither side. One without requests does not.
    #[must_use]
    pub fn is_within(&self, n_canary: f64, n_all: f64, weight: f64) -> bool {
        n_all <= 0.0 || self.sides(n_canary, n_all, weight) == [false; 2]
    }

    /// Too much, and too little.
    fn sides(&self, n_canary: f64, n_all: f64, weight: f64) -> [bool; 2] {
        let share = n_canary / n_all;
        [share > weight * (1.0 + self.tolerance), share < weight * (1.0 - self.tolerance)]
    }

    /// The logarithm of the evidence against the null.
    #[must_use]
    pub fn log_e(&self) -> f64 {
        let log_e = [&self.above, &self.below].map(|capital| capital.log_e(f64::INFINITY));
        log_sum_exp(&log_e, f64::NEG_INFINITY) - std::f64::consts::LN_2
    }

    /// The state, without the parameters: 129 bytes.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let Self { tolerance: _, rate: _, above, below } = self;
        let mut writer = Writer::new();
        above.write(&mut writer);
        below.write(&mut writer);
        writer.finish()
    }

    /// This process, whose parameters count, with the saved state of another: it continues to the bit like
    /// the one that was saved if the parameters are the same.
    pub fn restore(self, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = Reader::new(bytes)?;
        let restored =
            Self { above: self.above.read(&mut reader)?, below: self.below.read(&mut reader)?, ..self };
        reader.finish()?;
        Ok(restored)
    }
}

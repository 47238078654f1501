//! The random numbers of one run: a generator that belongs to the cell and the number of the run, and the
//! draws that the simulations need.
//!
//! Takes names and numbers, never a clock or a thread: a run gives the same counts wherever and whenever it
//! runs.

use rand::{RngExt, SeedableRng};
use rand_distr::{Binomial, Distribution, Exp1, Gamma, Poisson, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Changes every result; a change needs a reason in its commit.
pub const SEED: u64 = 20_261_122;

/// The generator of one run.
#[derive(Debug, Clone)]
pub struct Random(Xoshiro256PlusPlus);

impl Random {
    /// That of run number `run` of the cell, or of another thing that is named.
    #[must_use]
    pub fn new(cell: &str, run: u32) -> Self {
        // FNV-1a; the generator spreads the seed over its state.
        let bytes = SEED.to_le_bytes().into_iter().chain(cell.bytes()).chain(run.to_le_bytes());
        let seed = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        Self(Xoshiro256PlusPlus::seed_from_u64(seed))
    }

    /// True with this probability.
    pub fn chance(&mut self, probability: f64) -> bool {
        self.0.random::<f64>() < probability
    }

    /// A whole number below this one, which is not 0.
    pub fn below(&mut self, bound: u32) -> u32 {
        self.0.random_range(0..bound)
    }

    /// Arrivals, of which `mean` are expected.
    pub fn poisson(&mut self, mean: f64) -> f64 {
        Poisson::new(mean).map_or(0.0, |law| law.sample(&mut self.0))
    }

    /// Events among `trials`, a whole number, each with the same probability (at most 1 counts).
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that was drawn")]
    #[expect(clippy::cast_precision_loss, reason = "far fewer than 2^53 requests")]
    pub fn binomial(&mut self, trials: f64, probability: f64) -> f64 {
        Binomial::new(trials as u64, probability.min(1.0)).map_or(0.0, |law| law.sample(&mut self.0) as f64)
    }

    /// A factor with mean 1 and this coefficient of variation, from a gamma distribution.
    pub fn gamma_factor(&mut self, cv: f64) -> f64 {
        Gamma::new(1.0 / (cv * cv), cv * cv).map_or(1.0, |law| law.sample(&mut self.0))
    }

    /// A factor with mean 1 and this coefficient of variation, from a log-normal distribution.
    pub fn log_normal_factor(&mut self, cv: f64) -> f64 {
        let variance = libm::log1p(cv * cv);
        let normal: f64 = StandardNormal.sample(&mut self.0);
        libm::exp(normal * variance.sqrt() - 0.5 * variance)
    }

    /// A size with this mean, exponentially distributed.
    pub fn exponential(&mut self, mean: f64) -> f64 {
        let size: f64 = Exp1.sample(&mut self.0);
        mean * size
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_has_its_own_numbers_and_always_the_same() {
        let draw = |cell, run| Random::new(cell, run).poisson(1000.0).to_bits();
        assert_eq!(draw("a", 1), draw("a", 1));
        assert_ne!(draw("a", 1), draw("a", 2));
        assert_ne!(draw("a", 1), draw("b", 1));
    }

    #[test]
    fn the_factors_have_the_mean_1_and_their_variation() {
        let mut random = Random::new("factors", 0);
        for draw in [Random::gamma_factor, Random::log_normal_factor] {
            let factors: Vec<f64> = (0..100_000).map(|_| draw(&mut random, 0.5)).collect();
            let mean = factors.iter().sum::<f64>() / 1e5;
            let variance = factors.iter().map(|f| (f - mean) * (f - mean)).sum::<f64>() / 1e5;
            assert!((mean - 1.0).abs() < 0.02 && (variance - 0.25).abs() < 0.03, "{mean} {variance}");
        }
    }
}

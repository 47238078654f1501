//! Random numbers: [`Random`] belongs to a thing by its name, so that what one thing draws changes nothing for another,
//! whatever the order in which they are looked at.

use rand::{RngExt, SeedableRng};
use rand_distr::{Binomial, Distribution, Exp1, Poisson};
use rand_xoshiro::Xoshiro256PlusPlus;

/// The numbers of one thing.
#[derive(Clone, Debug)]
pub(super) struct Random(Xoshiro256PlusPlus);

impl Random {
    pub(super) fn of(seed: u64, thing: &str) -> Self {
        // FNV-1a; the generator spreads the seed over its state.
        let bytes = seed.to_le_bytes().into_iter().chain(thing.bytes());
        let hash = bytes.fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3)
        });
        Self(Xoshiro256PlusPlus::seed_from_u64(hash))
    }

    /// Evenly from 0 to 1.
    pub(super) fn share(&mut self) -> f64 {
        self.0.random()
    }

    /// Arrivals, of which `mean` are expected.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count that was drawn")]
    pub(super) fn poisson(&mut self, mean: f64) -> u64 {
        if mean > 0.0 { Poisson::new(mean).map_or(0, |law| law.sample(&mut self.0) as u64) } else { 0 }
    }

    /// Events among `trials`, each with the same probability.
    pub(super) fn binomial(&mut self, trials: u64, probability: f64) -> u64 {
        Binomial::new(trials, probability.clamp(0.0, 1.0)).map_or(0, |law| law.sample(&mut self.0))
    }

    /// A length with this mean, exponentially distributed.
    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        let length: f64 = Exp1.sample(&mut self.0);
        mean * length
    }
}

//! Random numbers: [`Random`] belongs to a thing by its name, so that what one thing draws changes nothing for another,
//! whatever the order in which they are looked at.

use rand::{RngExt, SeedableRng};
use rand_distr::{Binomial, Distribution, Exp1, Poisson, StandardNormal};
use rand_xoshiro::Xoshiro256PlusPlus;

/// FNV-1a.
pub(super) fn hash(bytes: impl Iterator<Item = u8>) -> u64 {
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3))
}

/// The numbers of one thing.
#[derive(Clone, Debug)]
pub(super) struct Random(Xoshiro256PlusPlus);

impl Random {
    pub(super) fn of(seed: u64, thing: &str) -> Self {
        // The generator spreads the seed over its state.
        Self(Xoshiro256PlusPlus::seed_from_u64(hash(seed.to_le_bytes().into_iter().chain(thing.bytes()))))
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

    /// So many things among kinds with these shares of the whole.
    pub(super) fn divide(&mut self, count: u64, shares: impl ExactSizeIterator<Item = f64>) -> Vec<u64> {
        let (mut left, mut rest, last) = (count, 1.0, shares.len().saturating_sub(1));
        let here = |(index, share): (usize, f64)| {
            let here = match left {
                0 => 0,
                _ if index == last => left,
                _ => self.binomial(left, share / rest),
            };
            left -= here;
            rest = f64::max(rest - share, f64::MIN_POSITIVE);
            here
        };
        shares.enumerate().map(here).collect()
    }

    /// Of the standard normal distribution.
    pub(super) fn normal(&mut self) -> f64 {
        StandardNormal.sample(&mut self.0)
    }

    /// A length with this mean, exponentially distributed.
    pub(super) fn exponential(&mut self, mean: f64) -> f64 {
        let length: f64 = Exp1.sample(&mut self.0);
        mean * length
    }
}

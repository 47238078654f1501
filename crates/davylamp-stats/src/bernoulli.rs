//! A proportion against a fixed rate: the factor of the absolute floor and of non-inferiority without a
//! baseline.
//!
//! **Null hypothesis.** The average event probability of a block is at most `p₀` (alternatives above `p₀`),
//! or at least `p₀` (alternatives below): `H₀: p ≤ p₀`, or `H₀: p ≥ p₀`.
//!
//! **Formula.** `ℓ_i = x·ln(p_i/p₀) + (n − x)·ln((1 − p_i)/(1 − p₀))`, with `x = min(x, n)` in each round.
//!
//! **Why it is valid.** `E[e^ℓ] = Π(1 + s·(p − p₀))` over the requests with `s = (p_i − p₀)/(p₀(1 − p₀))`,
//! and that is at most `exp(s·Σ(p − p₀)) ≤ 1`, because `s` and `Σ(p − p₀)` have opposite signs under the
//! null.
//!
//! **Source.** Wald (1945), *Sequential tests of statistical hypotheses*.
//!
//! **Cost.** Two multiplications per alternative and round; the logarithms are taken once.
//!
//! **When not to use it.** To compare two versions: a rate above `p₀` says nothing about what caused it.

use crate::{Capital, Error};

/// The alternatives `p_i` to one rate `p₀`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bernoulli<const J: usize> {
    /// `ln(p_i/p₀)` and `ln((1 − p_i)/(1 − p₀))`; `None` for a rate that is none, of 1 or more.
    logs: [Option<(f64, f64)>; J],
}

impl<const J: usize> Bernoulli<J> {
    /// `null` must lie between 0 and 1, both excluded, and the alternatives above 0.
    pub(crate) fn new(null: f64, alternatives: [f64; J]) -> Self {
        let logs = |rate: f64| (libm::log(rate / null), libm::log1p((null - rate) / (1.0 - null)));
        Self { logs: alternatives.map(|rate| (rate < 1.0).then(|| logs(rate))) }
    }

    /// A capital of 1, all of it at work.
    pub(crate) fn capital(&self) -> Result<Capital<J>, Error> {
        Capital::new(self.prior(), 1.0)
    }

    /// The same on each alternative that is a rate; at least one has to be.
    pub(crate) fn prior(&self) -> [f64; J] {
        let count = self.logs.iter().flatten().fold(0.0, |count, _| count + 1.0);
        self.logs.map(|logs| if logs.is_some() { 1.0 / count } else { 0.0 })
    }

    /// `ℓ_i` of one round.
    pub(crate) fn log_factors(&self, events: f64, exposure: f64) -> [f64; J] {
        let events = events.min(exposure);
        self.logs
            .map(|logs| logs.map_or(0.0, |(event, no_event)| events * event + (exposure - events) * no_event))
    }
}

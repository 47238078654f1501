//! What happens to each request, drawn from one seeded generator: the same seed gives the same outcomes in the
//! order of the requests' arrival. It reads no clock and counts nothing.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, LogNormal};

/// No request takes longer, however long the tail of the distribution.
const LONGEST: f64 = 60.0;

/// How requests fare in general.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Odds {
    /// The share of requests that fail.
    pub(crate) error: f64,
    /// The share of the other requests that sign up.
    pub(crate) signup: f64,
    /// The mean time until the answer.
    pub(crate) latency: Duration,
    /// The standard deviation of that time, relative to its mean.
    pub(crate) spread: f64,
}

/// How one request fares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) failed: bool,
    pub(crate) signed_up: bool,
    pub(crate) latency: Duration,
}

/// The odds and the generator that decides by them.
#[derive(Debug)]
pub(crate) struct Chance {
    /// Nothing when every answer is immediate.
    latency: Option<LogNormal<f64>>,
    state: Mutex<(Odds, StdRng)>,
}

impl Chance {
    pub(crate) fn new(odds: Odds, seed: u64) -> Result<Self, rand_distr::NormalError> {
        let mean = odds.latency.as_secs_f64();
        let latency = (mean > 0.0).then(|| LogNormal::from_mean_cv(mean, odds.spread)).transpose()?;
        Ok(Self { latency, state: Mutex::new((odds, StdRng::seed_from_u64(seed))) })
    }

    /// From now on this share of requests fails.
    pub(crate) fn set_error(&self, error: f64) {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0.error = error;
    }

    /// The fate of the next request.
    pub(crate) fn draw(&self) -> Outcome {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (odds, generator) = &mut *state;
        let failed = generator.random_bool(odds.error);
        let signed_up = generator.random_bool(odds.signup) && !failed;
        let seconds = self.latency.map_or(0.0, |latency| latency.sample(generator));
        Outcome { failed, signed_up, latency: Duration::from_secs_f64(seconds.min(LONGEST)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ODDS: Odds = Odds { error: 0.1, signup: 0.2, latency: Duration::from_millis(5), spread: 0.5 };

    fn outcomes(odds: Odds, seed: u64) -> Vec<Outcome> {
        let chance = Chance::new(odds, seed).unwrap();
        std::iter::repeat_with(|| chance.draw()).take(10_000).collect()
    }

    #[test]
    fn a_seed_decides_everything() {
        assert_eq!(outcomes(ODDS, 1), outcomes(ODDS, 1));
        assert_ne!(outcomes(ODDS, 1), outcomes(ODDS, 2));
    }

    #[test]
    fn outcomes_follow_the_odds() {
        let outcomes = outcomes(ODDS, 1);
        let errors = outcomes.iter().filter(|outcome| outcome.failed).count();
        let signups = outcomes.iter().filter(|outcome| outcome.signed_up).count();
        let total: Duration = outcomes.iter().map(|outcome| outcome.latency).sum();
        assert!((850..=1150).contains(&errors), "{errors}");
        assert!((1600..=2000).contains(&signups), "{signups}");
        assert!((Duration::from_micros(4800)..Duration::from_micros(5200)).contains(&(total / 10_000)));
        assert!(!outcomes.iter().any(|outcome| outcome.failed && outcome.signed_up));
    }

    #[test]
    fn errors_can_be_switched_on() {
        let chance = Chance::new(Odds { error: 0.0, ..ODDS }, 1).unwrap();
        assert!(!chance.draw().failed);
        chance.set_error(1.0);
        assert!(chance.draw().failed);
    }

    #[test]
    fn latency_is_none_exact_or_bounded() {
        let latencies = |latency, spread| outcomes(Odds { latency, spread, ..ODDS }, 1);
        assert!(latencies(Duration::ZERO, 0.5).iter().all(|outcome| outcome.latency.is_zero()));
        let exact = latencies(Duration::from_millis(5), 0.0);
        assert!(
            exact.iter().all(|outcome| outcome.latency.abs_diff(ODDS.latency) < Duration::from_micros(1))
        );
        let wild = latencies(Duration::from_secs(50), 100.0);
        assert!(wild.iter().all(|outcome| outcome.latency <= Duration::from_secs_f64(LONGEST)));
    }
}

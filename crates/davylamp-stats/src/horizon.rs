//! A lower threshold while there are few events: what a test with a horizon may use instead of `1/α`.
//!
//! **Null hypothesis.** Each event is the canary's with probability at most `q₀`, whatever happened before:
//! that of [`EventProcess`](crate::EventProcess) at a constant traffic weight, `q₀ = ρ₀·w/(ρ₀·w + 1 − w)`.
//!
//! **Formula.** `M_n` is the average over the twelve ratios of `Π r_j^x/(1 + q₀·(r_j − 1))^n` after `n` events,
//! `x` of them the canary's. `c` is the smallest number with `P(max_{n≤N} M_n ≥ c) ≤ α`. The level is split:
//! evidence suffices if `M_n ≥ c(0.8·α)` and `n ≤ N`, or if `M_n ≥ 1/(0.2·α)` at any time.
//!
//! The probability is not simulated but computed: `M_n` depends on `n` and `x` alone and increases in `x`, so
//! that the events walk on a grid to a boundary, which with each event rises by one step or none.
//!
//! **Why it is valid.** The first half by the definition of `c`; a canary with fewer events is further from
//! the boundary. The second by Ville's inequality; both together by the sum of their levels.
//!
//! **Source.** Siegmund (1985), *Sequential analysis*, for truncated tests; Armitage and others (1969),
//! *Repeated significance tests on accumulating data*, for the walk.
//!
//! **Cost.** A few hundred additions and twelve exponentials per event, fourteen times: 60 ms for 10,000 events.
//! Computed once.
//!
//! **When not to use it.** When the weight changes before the horizon, or with a process that has a clip, a
//! floor, a reserve or restarts, whose law is another one. `M` is that of a [`Capital`](crate::Capital) which
//! is all at work and without a cap.

use crate::Error;
use crate::capital::log_sum_exp;
use crate::counts::number;
use crate::event::{LOG_RATIO_GRID, RATIO_GRID, RATIOS};

/// No horizon has more events.
const LARGEST: u32 = 20_000;

/// The part of the level that is spent until the horizon.
const EARLY: f64 = 0.8;

/// Probabilities below this are counted as crossings, without following them.
const NEGLIGIBLE: f64 = 1e-18;

/// Halvings of the logarithm of `1/α`, after which `c` is known to a thousandth.
const HALVINGS: u32 = 14;

/// `c`: what the evidence of the first `events` events, from 1 to 20,000, reaches with probability at most
/// `alpha` if each of them is the canary's with probability `q0`; never more than `1/alpha`.
///
/// ```
/// // Within 300 events 40 is as good as 100 without a horizon.
/// let threshold = davylamp_stats::horizon_threshold(0.1, 0.01, 300)?;
/// assert!((threshold - 40.3).abs() < 0.1);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn horizon_threshold(q0: f64, alpha: f64, events: u32) -> Result<f64, Error> {
    let ok = (1e-6..=1.0 - 1e-6).contains(&q0);
    Error::unless(ok, "q0", q0, "a probability from 1e-6 to 1 - 1e-6")?;
    let ok = (1e-12..1.0).contains(&alpha);
    Error::unless(ok, "alpha", alpha, "a probability from 1e-12, below 1")?;
    let ok = (1..=LARGEST).contains(&events);
    Error::unless(ok, "events", f64::from(events), "a number from 1 to 20000")?;
    let walk = Walk { q0, events, log_null: RATIO_GRID.map(|ratio| libm::log1p(q0 * (ratio - 1.0))) };
    let (mut reached, mut safe) = (0.0, -libm::log(alpha));
    for _ in 0..HALVINGS {
        let middle = f64::midpoint(reached, safe);
        if walk.crosses(middle) <= alpha {
            safe = middle;
        } else {
            reached = middle;
        }
    }
    Ok(libm::exp(safe))
}

/// A test that looks for its decision within so many events, and remains valid after them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Horizon {
    events: u32,
    early: f64,
    late: f64,
}

impl Horizon {
    /// The thresholds of a test of level `alpha`.
    pub fn new(q0: f64, alpha: f64, events: u32) -> Result<Self, Error> {
        let early = libm::log(horizon_threshold(q0, EARLY * alpha, events)?);
        Ok(Self { events, early, late: -libm::log((1.0 - EARLY) * alpha) })
    }

    /// Whether the evidence suffices after so many events.
    ///
    /// ```
    /// let horizon = davylamp_stats::Horizon::new(0.1, 0.01, 300)?;
    /// assert!(horizon.suffices(60.0_f64.ln(), 300));
    /// // Afterwards 500 is needed.
    /// assert!(!horizon.suffices(499.0_f64.ln(), 301));
    /// assert!(horizon.suffices(501.0_f64.ln(), 301));
    /// # Ok::<(), davylamp_stats::Error>(())
    /// ```
    #[must_use]
    pub fn suffices(&self, log_e: f64, events: u32) -> bool {
        log_e >= self.late || log_e >= self.early && events <= self.events
    }
}

/// The number of the canary's events, event by event.
struct Walk {
    q0: f64,
    events: u32,
    /// `ln(1 + q₀·(r_j − 1))`.
    log_null: [f64; RATIOS],
}

impl Walk {
    /// `P(max ln M ≥ log_threshold)`.
    fn crosses(&self, log_threshold: f64) -> f64 {
        let mut boundary = 0;
        while self.log_e(0, boundary) < log_threshold {
            boundary += 1;
        }
        // The probability of each number of events that is not yet at the boundary, from `lowest` on.
        let mut probability = vec![1.0];
        let (mut lowest, mut crossed) = (0, 0.0);
        for events in 1..=self.events {
            if self.log_e(events, boundary) < log_threshold {
                boundary += 1;
            }
            probability.push(0.0);
            let mut from_below = 0.0;
            for current in &mut probability[lowest..] {
                let stays = *current * (1.0 - self.q0);
                let rises = *current * self.q0;
                *current = stays + from_below;
                from_below = rises;
            }
            while probability.len() > boundary {
                crossed += probability.pop().unwrap_or(0.0);
            }
            while let Some(&negligible) = probability.get(lowest).filter(|p| **p < NEGLIGIBLE) {
                crossed += negligible;
                lowest += 1;
            }
        }
        crossed
    }

    /// `ln M` after so many events, of which `x` are the canary's.
    fn log_e(&self, events: u32, x: usize) -> f64 {
        let (events, x) = (f64::from(events), number(x));
        let mut terms = LOG_RATIO_GRID;
        for (term, log_null) in terms.iter_mut().zip(self.log_null) {
            *term = x * *term - events * log_null;
        }
        log_sum_exp(&terms, f64::NEG_INFINITY) - libm::log(12.0)
    }
}

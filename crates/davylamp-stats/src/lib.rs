#![deny(missing_docs)]
//! The statistical tests of a rollout, as plain functions of counts.
//!
//! Takes the events and the exposure of canary and baseline, round by round, and gives evidence: e-values,
//! whose threshold `1/α` is ever reached with probability at most `α` when the null hypothesis is true,
//! however often one looks. It never reads a clock, a file or the network and never decides anything.
//!
//! | Question | Answer |
//! |---|---|
//! | Is the canary worse than tolerated? | [`EventProcess`], [`ProportionProcess`] for rates above 20 % |
//! | And exactly, for one block of whole counts? | [`hyper_tilt_log_e`] |
//! | Is it shown not to be too bad for the next step? | [`NonInferiority`] |
//! | All metrics together, and which one? | [`combine_log_e`], [`attribution`] |
//! | How much worse is it? | [`mantel_haenszel`], [`rr_confidence_sequence`] |
//! | What happened between two scrapes? | [`counter_increment`] |
//!
//! Every test is a factor per kind of metric, with expectation at most 1 under its null hypothesis, and one
//! [`Capital`] that bets on it.
//!
//! **Invariants.** The same input gives the same bits on every platform: logarithms and exponentials come
//! from `libm` only. No input leads to a panic, a result that is not a number or an infinite one; what cannot
//! be used is an [`Error`] that names the argument. A block without events, or with the exposure of one
//! cohort only, leaves the evidence about a ratio unchanged to the bit.

mod bernoulli;
mod blocks;
pub mod capital;
pub mod combine;
pub mod counter;
mod counts;
mod error;
pub mod event;
pub mod hypergeometric;
pub mod interval;
pub mod non_inferiority;
pub mod ripr;
mod state;

pub use capital::Capital;
pub use combine::{attribution, combine_log_e};
pub use counter::{counter_increment, counter_increments};
pub use counts::Counts;
pub use error::Error;
pub use event::{EventProcess, RATIO_GRID, event_log_factor};
pub use hypergeometric::{HyperTilt, hyper_tilt_log_e};
pub use interval::{Interval, mantel_haenszel, rr_confidence_sequence};
pub use non_inferiority::NonInferiority;
pub use ripr::{COMMON_RATE, ProportionProcess};

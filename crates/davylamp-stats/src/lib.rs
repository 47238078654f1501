#![deny(missing_docs)]
//! The statistical tests of a rollout, as plain functions of counts.
//!
//! Takes the events and the exposure of canary and baseline, round by round, and gives evidence: e-values,
//! whose threshold `1/α` is ever reached with probability at most `α` when the null hypothesis is true,
//! however often one looks. It never reads a clock, a file or the network and never decides anything.
//!
//! | Question | Answer |
//! |---|---|
//! | Is the canary worse than tolerated? | [`EventProcess`], [`ScoreProcess`] for a distribution |
//! | Is it shown not to be too bad for the next step? | [`NonInferiority`] |
//! | All metrics together, and which one? | [`combine_log_e`], [`attribution`] |
//! | How much worse is it? | [`mantel_haenszel`], [`rr_confidence_sequence`] |
//! | Which quantile moved? | [`slower_tail`] |
//! | What happened between two scrapes? | [`counter_increment`], [`histogram_increment`] |
//! | Which buckets have two versions in common? | [`Layout`] |
//! | What lies above a boundary? | [`counts_above`], [`tail_boundary`], [`limit_boundary`] |
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
pub mod histogram;
pub mod interval;
pub mod non_inferiority;
mod normal;
pub mod score;
pub mod shift;
mod state;
pub mod tail;

pub use capital::Capital;
pub use combine::{attribution, combine_log_e};
pub use counter::{counter_increment, counter_increments};
pub use counts::Counts;
pub use error::Error;
pub use event::{EventProcess, RATIO_GRID, event_log_factor};
pub use histogram::{Bucket, Layout, classic_buckets, histogram_increment, histogram_quantile};
pub use interval::{Interval, mantel_haenszel, rr_confidence_sequence};
pub use non_inferiority::NonInferiority;
pub use score::{ScoreProcess, Scores, score_log_factor, scores};
pub use shift::shift_histogram;
pub use tail::{Tail, counts_above, limit_boundary, slower_tail, tail_boundary};

#![deny(missing_docs)]
//! The statistical tests of a rollout, as plain functions of counts.
//!
//! Takes the events and the exposure of canary and baseline, round by round, and gives evidence: e-values,
//! whose threshold `1/α` is ever reached with probability at most `α` when the null hypothesis is true,
//! however often one looks. It never reads a clock, a file or the network and never decides anything.
//!
//! | Question | Answer |
//! |---|---|
//! | Is the canary worse than tolerated? | [`EventProcess`]; [`ProportionProcess`] for rates above 20 % |
//! | Is a distribution, such as latency? | [`ScoreProcess`] |
//! | And exactly, for one block of whole counts? | [`hyper_tilt_log_e`] |
//! | Does a request of the canary cost more than tolerated? | [`ShareProcess`] |
//! | Are its pods fuller, or growing faster? | [`pods_t_test`], [`RankProcess`] |
//! | Is an objective violated or met, whatever the baseline does? | [`SloProcess`] |
//! | Does the canary get the traffic that it should? | [`TrafficSplit`] |
//! | Is it shown not to be too bad for the next step? | [`NonInferiority`] |
//! | All metrics together, and which one? | [`combine_log_e`], [`attribution`] |
//! | How much worse is it? | [`mantel_haenszel`], [`rr_confidence_sequence`] |
//! | Which quantile moved? | [`slower_tail`] |
//! | What suffices if only the first events count? | [`horizon_threshold`], [`Horizon`] |
//! | How long will it take? | [`detect_seconds`], [`promote_seconds`], [`remaining_seconds`] |
//! | What happened between two scrapes? | [`counter_increment`], [`histogram_increment`] |
//! | Which buckets have two versions in common? | [`Layout`] |
//! | What lies above a boundary? | [`counts_above`], [`tail_boundary`], [`limit_boundary`] |
//! | How long is a block, and how much may a burst count? | [`calibrate`] |
//! | What does the difference between pods make of a tolerance? | [`pod_effect()`], [`pod_effect_margin`] |
//! | What does it need if there are not many events? | [`Horizon`] |
//! | Is it one odd pod? How much do pods differ by themselves? | [`rank_guard`], [`pearson_dispersion`] |
//!
//! Every test is a factor per kind of metric, with expectation at most 1 under its null hypothesis, and one
//! [`Capital`] that bets on it; only [`pods_t_test`] is a test in the old sense, at looks that are fixed
//! beforehand.
//!
//! **Invariants.** The same input gives the same bits on every platform: logarithms and exponentials come
//! from `libm` only. No input leads to a panic, a result that is not a number or an infinite one; what cannot
//! be used is an [`Error`] that names the argument. A block without events, or with the exposure of one
//! cohort only, leaves the evidence about a ratio unchanged to the bit.

mod bernoulli;
mod blocks;
pub mod calibration;
pub mod capital;
pub mod combine;
pub mod counter;
mod counts;
pub mod dispersion;
mod error;
pub mod event;
pub mod histogram;
pub mod horizon;
pub mod hypergeometric;
pub mod information;
pub mod interval;
pub mod non_inferiority;
mod normal;
pub mod planner;
pub mod pod_effect;
pub mod pods;
pub mod ranks;
pub mod ripr;
pub mod score;
pub mod share;
pub mod shift;
pub mod slo;
mod state;
mod student;
pub mod tail;
pub mod traffic_split;

pub use calibration::{Calibration, PodCounts, calibrate};
pub use capital::Capital;
pub use combine::{attribution, combine_log_e};
pub use counter::{counter_increment, counter_increments};
pub use counts::Counts;
pub use dispersion::pearson_dispersion;
pub use error::Error;
pub use event::{EventProcess, RATIO_GRID, event_log_factor};
pub use histogram::{Bucket, Layout, classic_buckets, histogram_increment, histogram_quantile};
pub use horizon::{Horizon, horizon_threshold};
pub use hypergeometric::{HyperTilt, hyper_tilt_log_e};
pub use information::{
    DETECT_OVERHEAD, PROMOTE_OVERHEAD, Traffic, bound_requests, closed_form_detect_seconds,
    closed_form_promote_seconds, information_per_request, remaining_seconds,
};
pub use interval::{Interval, mantel_haenszel, rr_confidence_sequence};
pub use non_inferiority::NonInferiority;
pub use planner::{
    Detection, Promotion, detect_seconds, often_undecided, promote_seconds, rollout_seconds, smallest_ratio,
};
pub use pod_effect::{
    DEFAULT_POD_EFFECT, latency_pod_effect, pod_effect, pod_effect_margin, pod_effect_margin_student,
    pod_effect_promotion_margin, pod_spread,
};
pub use pods::{Gauge, PodsTest, pods_looks, pods_t_test, t_critical};
pub use ranks::{
    RankProcess, RankTilt, mid_ranks, rank_guard, rank_tilt_log_e, ranksum_p_upper, smallest_rank_p,
};
pub use ripr::{COMMON_RATE, ProportionProcess};
pub use score::{ScoreProcess, Scores, score_log_factor, scores};
pub use share::{SHARE_GRID, ShareProcess, share_log_e};
pub use shift::shift_histogram;
pub use slo::{SloProcess, slo_log_e};
pub use tail::{Tail, counts_above, limit_boundary, slower_tail, tail_boundary};
pub use traffic_split::TrafficSplit;

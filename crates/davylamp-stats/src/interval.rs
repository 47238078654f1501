//! How much worse is the canary: the ratio of the rates, and a confidence sequence for it. For display only.
//!
//! **Null hypothesis.** For each candidate `ρ` two: in every block `p_C ≤ ρ·p_B` (lower end) and `p_C ≥
//! ρ·p_B` (upper).
//!
//! **Formula.** `ratio = Σ x_C·n_B/(n_C + n_B) / Σ x_B·n_C/(n_C + n_B)` over blocks. The lower end is the
//! largest `ρ` on 41 points from 1/8 to 8 whose mixture of event factors reaches `1/α`, without clip, reserve
//! and restarts; refined towards the next point, which does not; the upper end is the same with the cohorts
//! exchanged, inverted.
//!
//! **Why it is valid.** A true ratio is excluded only when the test of it rejects, which each side ever does
//! with probability at most `α`. The evidence falls as `ρ` grows, so one crossing exists between two points;
//! the end that is reported lies on its far side.
//!
//! **Source.** Mantel and Haenszel (1959), *Statistical aspects of the analysis of data from retrospective
//! studies of disease*; Howard and others (2021), *Time-uniform, nonparametric, nonasymptotic confidence
//! sequences*.
//!
//! **Cost.** 60 evaluations of twelve logarithms for each block with events.
//!
//! **When not to use it.** To decide. It has no protection against bursts and assumes one ratio for all
//! blocks: if the ratio changed much, the lower end may even lie above the upper one.

use crate::capital::log_sum_exp;
use crate::event::{LOG_RATIO_GRID, RATIO_GRID, RATIOS};
use crate::{Counts, Error};

/// Candidate ratios are `8^(i/20)` for `i` from −20 to 20.
const STEPS: u32 = 40;

/// `ln 8`.
const LOG_LARGEST: f64 = 3.0 * std::f64::consts::LN_2;

/// Halvings of the last step, after which an end is known to nine digits.
const HALVINGS: u32 = 24;

/// The ratio of the canary's to the baseline's rate over blocks of different rates and weights, after Mantel
/// and Haenszel. `None` when the baseline has no events or a count is not usable.
///
/// ```
/// use davylamp_stats::{Counts, mantel_haenszel};
///
/// // 5 % of the traffic at a rate of 1 %, then 50 % at a rate of 4 %: the pooled counts would say 3.5.
/// let blocks = [
///     Counts { x_canary: 2.0, x_baseline: 19.0, n_canary: 100.0, n_baseline: 1900.0 },
///     Counts { x_canary: 80.0, x_baseline: 40.0, n_canary: 1000.0, n_baseline: 1000.0 },
/// ];
/// let ratio = mantel_haenszel(blocks).unwrap();
/// assert!((ratio - 2.0).abs() < 1e-12);
/// ```
#[must_use]
pub fn mantel_haenszel(blocks: impl IntoIterator<Item = Counts>) -> Option<f64> {
    let (mut canary, mut baseline) = (0.0, 0.0);
    for block in blocks {
        block.validate().ok()?;
        if block.comparable() {
            let exposure = block.n_canary + block.n_baseline;
            canary += block.x_canary * (block.n_baseline / exposure);
            baseline += block.x_baseline * (block.n_canary / exposure);
        }
    }
    Some(canary / baseline).filter(|ratio| ratio.is_finite())
}

/// What the data do not exclude. The lower end is 0 and the upper one infinite when nothing on that side is
/// excluded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Interval {
    /// The lower end.
    pub lower: f64,
    /// The upper end.
    pub upper: f64,
}

/// The confidence sequence for the ratio of the rates: at any time, and at all times together, each end is
/// wrong with probability at most `alpha_each_side`. Ratios are excluded between 1/8 and 8 only.
///
/// ```
/// use davylamp_stats::{Counts, rr_confidence_sequence};
///
/// let block = Counts { x_canary: 25.0, x_baseline: 310.0, n_canary: 1500.0, n_baseline: 28500.0 };
/// let interval = rr_confidence_sequence(&[block], 0.01)?;
/// assert!((interval.lower - 0.67433).abs() < 1e-5);
/// assert!((interval.upper - 2.95425).abs() < 1e-5);
///
/// let interval = rr_confidence_sequence(&[], 0.01)?;
/// assert_eq!((interval.lower, interval.upper), (0.0, f64::INFINITY));
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn rr_confidence_sequence(blocks: &[Counts], alpha_each_side: f64) -> Result<Interval, Error> {
    let ok = alpha_each_side > 0.0 && alpha_each_side < 1.0;
    Error::unless(ok, "alpha_each_side", alpha_each_side, "a probability above 0 and below 1")?;
    blocks.iter().try_for_each(Counts::validate)?;
    let needed = -libm::log(alpha_each_side);
    Ok(Interval {
        lower: largest_excluded(blocks.iter().copied(), needed).unwrap_or(0.0),
        upper: largest_excluded(blocks.iter().map(Counts::swapped), needed)
            .map_or(f64::INFINITY, |excluded| 1.0 / excluded),
    })
}

/// What a block says about each ratio.
struct Block {
    x_canary: f64,
    events: f64,
    /// Exposure of the baseline per exposure of the canary.
    odds: f64,
}

/// The largest ratio for which the evidence that the true one is above it reaches `needed`.
fn largest_excluded(blocks: impl Iterator<Item = Counts>, needed: f64) -> Option<f64> {
    let blocks: Vec<Block> = blocks
        .filter(|counts| counts.comparable() && counts.events() > 0.0)
        .map(|counts| Block {
            x_canary: counts.x_canary,
            events: counts.events(),
            odds: counts.n_baseline / counts.n_canary,
        })
        .collect();
    let excluded = |log_ratio: f64| log_e(&blocks, libm::exp(log_ratio)) >= needed;
    let log_ratio = |point: u32| LOG_LARGEST * (f64::from(point) / f64::from(STEPS / 2) - 1.0);

    // The excluded points are the first ones: find how many.
    let (mut count, mut above) = (0, STEPS + 1);
    while count < above {
        let middle = u32::midpoint(count, above);
        if excluded(log_ratio(middle)) {
            count = middle + 1;
        } else {
            above = middle;
        }
    }
    let mut inside = log_ratio(count.checked_sub(1)?);
    if count <= STEPS {
        let mut outside = log_ratio(count);
        for _ in 0..HALVINGS {
            let middle = f64::midpoint(inside, outside);
            if excluded(middle) {
                inside = middle;
            } else {
                outside = middle;
            }
        }
    }
    Some(libm::exp(inside))
}

/// The logarithm of the evidence that the ratio is above `rho`.
fn log_e(blocks: &[Block], rho: f64) -> f64 {
    let mut log_factors = [0.0; RATIOS];
    for block in blocks {
        let canary_share = 1.0 / (1.0 + block.odds / rho);
        for ((log_factor, ratio), log_ratio) in log_factors.iter_mut().zip(RATIO_GRID).zip(LOG_RATIO_GRID) {
            *log_factor +=
                block.x_canary * log_ratio - block.events * libm::log1p(canary_share * (ratio - 1.0));
        }
    }
    log_sum_exp(&log_factors, f64::NEG_INFINITY) - libm::log(12.0)
}

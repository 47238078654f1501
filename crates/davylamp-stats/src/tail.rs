//! The part of a distribution above a boundary, as events: non-inferiority, a limit on slow requests, and
//! which quantile moved.
//!
//! Takes counts per bucket on one layout and gives [`Counts`]: what was counted above the boundary, of all
//! that was counted. What is tested about them is told in [`EventProcess`](crate::EventProcess) and
//! [`NonInferiority`](crate::NonInferiority).
//!
//! **Null hypothesis.** Theirs: the share of the canary's values above the boundary is at most, or at least,
//! a multiple of the baseline's.
//!
//! **Formula.** For non-inferiority the boundary is the smallest finite one with at most 10 % of the pooled
//! counts above it; for a limit `T`, the smallest finite one not below `T`. For a quantile that moved, it is
//! the one with the largest average of the event factors of the twelve ratios, with tolerance 0: of the
//! counts above it, or of those below it with the cohorts exchanged, whichever are fewer.
//!
//! **Why it is valid.** As there. The boundary must not depend on the data that are then tested: it is chosen
//! from earlier blocks, once for each process. To name a quantile is no test, the largest of many is chosen.
//!
//! **Source.** As there.
//!
//! **Cost.** One addition per bucket; twelve logarithms for each boundary that is asked whether it moved.
//!
//! **When not to use it.** Instead of [`ScoreProcess`](crate::ScoreProcess), for a regression whose place in
//! the distribution is not known: one boundary sees what crosses it and nothing else.

use crate::capital::log_sum_exp;
use crate::event::log_factors;
use crate::histogram::total;
use crate::{Counts, Error};

/// What is above the boundary of non-inferiority, at most.
const TAIL: f64 = 0.1;

/// The boundary whose tail non-inferiority of a distribution is about, as the index of the bucket below it:
/// the lowest finite one with at most 10 % of the pooled counts above it. `None` when there is none or
/// nothing was counted: then nothing can be shown about the tail.
///
/// ```
/// use davylamp_stats::tail_boundary;
///
/// assert_eq!(tail_boundary(&[500.0, 390.0, 95.0, 15.0])?, Some(2));
/// assert_eq!(tail_boundary(&[500.0, 390.0, 110.0])?, None);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn tail_boundary(pooled: &[f64]) -> Result<Option<usize>, Error> {
    let all = total("pooled", pooled, pooled.len())?;
    let mut boundary = None;
    let mut above = 0.0;
    for (index, count) in pooled.iter().enumerate().skip(1).rev() {
        above += count;
        if above > TAIL * all {
            break;
        }
        boundary = Some(index - 1);
    }
    Ok(boundary.filter(|_| all > 0.0))
}

/// The boundary for "slower than `limit`", as the index of the bucket below it: the lowest finite one that is
/// not below the limit. `None` when all of them are.
///
/// ```
/// use davylamp_stats::limit_boundary;
///
/// // 400 ms is no boundary; above 500 ms it is certain that a request took longer.
/// let bounds = [0.1, 0.25, 0.5, 1.0, f64::INFINITY];
/// assert_eq!(limit_boundary(&bounds, 0.4), Some(2));
/// assert_eq!(limit_boundary(&bounds, 0.5), Some(2));
/// assert_eq!(limit_boundary(&bounds, 1.5), None);
/// ```
#[must_use]
pub fn limit_boundary(bounds: &[f64], limit: f64) -> Option<usize> {
    bounds.iter().position(|bound| *bound >= limit && bound.is_finite())
}

/// What was counted above a boundary, as events of all that was counted. `boundary` is the index of the
/// bucket below it.
///
/// ```
/// use davylamp_stats::counts_above;
///
/// let counts = counts_above(1, &[40.0, 50.0, 8.0, 2.0], &[500.0, 420.0, 60.0, 20.0])?;
/// assert_eq!((counts.x_canary, counts.n_canary), (10.0, 100.0));
/// assert_eq!((counts.x_baseline, counts.n_baseline), (80.0, 1000.0));
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn counts_above(boundary: usize, canary: &[f64], baseline: &[f64]) -> Result<Counts, Error> {
    let n_canary = total("canary", canary, canary.len())?;
    let n_baseline = total("baseline", baseline, canary.len())?;
    let above = |counts: &[f64]| counts.iter().skip(boundary.saturating_add(1)).sum();
    Ok(Counts { x_canary: above(canary), x_baseline: above(baseline), n_canary, n_baseline })
}

/// What two histograms say about one boundary.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tail {
    /// The index of the bucket below the boundary.
    pub boundary: usize,
    /// The share of the baseline's values up to the boundary: the quantile that lies there.
    pub quantile: f64,
    /// The share of the canary's values above the boundary.
    pub canary: f64,
    /// The logarithm of the evidence that this is more than in the baseline.
    pub log_e: f64,
}

/// The boundary above which the canary has more of its values with the strongest evidence, and so the
/// quantile that moved. For display only. `None` when there is no evidence at any.
///
/// ```
/// use davylamp_stats::slower_tail;
///
/// // The median is where it was; of the slowest tenth, half as many again have become very slow.
/// let tail = slower_tail(&[500.0, 390.0, 45.0, 65.0], &[5000.0, 3900.0, 900.0, 200.0])?.unwrap();
/// assert_eq!(tail.boundary, 2);
/// assert!((tail.quantile - 0.98).abs() < 1e-12 && (tail.canary - 0.065).abs() < 1e-12);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn slower_tail(canary: &[f64], baseline: &[f64]) -> Result<Option<Tail>, Error> {
    let n_canary = total("canary", canary, canary.len())?;
    let n_baseline = total("baseline", baseline, canary.len())?;
    let (mut x_canary, mut x_baseline) = (0.0, 0.0);
    let mut strongest: Option<Tail> = None;
    for boundary in (0..canary.len().saturating_sub(1)).rev() {
        x_canary += canary[boundary + 1];
        x_baseline += baseline[boundary + 1];
        let above = Counts { x_canary, x_baseline, n_canary, n_baseline };
        let counts = if 2.0 * above.events() <= n_canary + n_baseline {
            above
        } else {
            let (x_canary, x_baseline) = (n_canary - x_canary, n_baseline - x_baseline);
            Counts { x_canary, x_baseline, n_canary, n_baseline }.swapped()
        };
        let log_e = log_sum_exp(&log_factors(1.0, &counts), f64::NEG_INFINITY) - libm::log(12.0);
        if log_e > strongest.map_or(0.0, |tail| tail.log_e) {
            let (quantile, canary) = (1.0 - x_baseline / n_baseline, x_canary / n_canary);
            strongest = Some(Tail { boundary, quantile, canary, log_e });
        }
    }
    Ok(strongest)
}

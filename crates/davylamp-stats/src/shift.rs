//! A tolerance on a distribution: the canary's histogram as if each of its values were divided by `1 + m`.
//!
//! **Null hypothesis.** It states that of the scores: the canary's values, divided by `1 + m`, are
//! stochastically not larger than the baseline's: `H₀: C/(1 + m) ≤_st B`.
//!
//! **Formula.** Of the canary's counts between two boundaries `u` and `v`, those up to `(1 + m)·u` go below
//! `u`. That is the share
//! ```text
//! φ = (S(u) − S(u)^(1−τ)·S(v)^τ)/(S(u) − S(v)),    τ = ln(1 + m)/ln(v/u)
//! ```
//! of them, where `S` is the pooled tail of earlier blocks: all if it says nothing about what is between `u`
//! and `v`, or if there is no `v`. Counts in the lowest bucket stay.
//!
//! **Why it is valid.** `φ` is the share of the values between `u` and `(1 + m)·u` where the tail is a power
//! law; where it falls faster the farther out, as in an exponential or a log-normal one, the share is
//! smaller, so that too much goes down, never too little. A count divided between two buckets gives the
//! geometric mean of their factors, which is not above the arithmetic one, that of a random move with
//! probability `φ`.
//!
//! **Source.** Hill (1975), *A simple general approach to inference about the tail of a distribution*, for
//! tails that are power laws locally; the rest is this crate's.
//!
//! **Cost.** Two logarithms and an exponential per bucket, once a block.
//!
//! **When not to use it.** Where many of the values are one and the same, just below a boundary (a timeout):
//! a canary within its tolerance may have them all above it, and `φ` does not see how near they were.

use crate::Error;
use crate::histogram::{total, validate_bounds};

/// Less than this share of the width of a bucket is nothing.
const ROUNDING: f64 = 1e-12;

/// The canary's counts per bucket as if each value were divided by `1 + tolerance`, bucket by bucket:
/// `bounds` are the upper ones, the last of them infinite, `pooled` the counts of both cohorts in earlier
/// blocks.
///
/// Counts of a bucket not wider than `1 + tolerance` go down by whole buckets first, each of which uses up
/// its width; those above the highest finite bound go down by one. This is exact where buckets are wider than
/// the tolerance or equally wide; [`ScoreProcess`](crate::ScoreProcess) is exact at uneven distances, too.
///
/// ```
/// use davylamp_stats::shift_histogram;
///
/// // Between 0.5 and 1 the tail falls from 20 % to 5 %: a power law of exponent 2. Of the values up to 1.1
/// // times the lower bound there are (1 − 1.1^−2)/(1 − 0.25) = 23 %.
/// let bounds = [0.5, 1.0, f64::INFINITY];
/// let shifted = shift_histogram(&bounds, &[10.0, 100.0, 7.0], &[800.0, 150.0, 50.0], 0.1)?;
/// let share = (1.0 - 1.0 / 1.21) / 0.75;
/// assert!((shifted[0] - (10.0 + 100.0 * share)).abs() < 1e-9);
/// assert!((shifted[1] - (107.0 - 100.0 * share)).abs() < 1e-9);
/// assert!(shifted[2] == 0.0);
/// # Ok::<(), davylamp_stats::Error>(())
/// ```
pub fn shift_histogram(
    bounds: &[f64],
    canary: &[f64],
    pooled: &[f64],
    tolerance: f64,
) -> Result<Vec<f64>, Error> {
    validate_bounds("bounds", bounds)?;
    total("canary", canary, bounds.len())?;
    total("pooled", pooled, bounds.len())?;
    unless_tolerance(tolerance)?;
    let tail = Tail::new(bounds, pooled);
    let mut shifted = vec![0.0; bounds.len()];
    for (from, count) in canary.iter().enumerate() {
        let (mut to, mut left) = (from, libm::log1p(tolerance));
        while to > 0 && left >= tail.log_width(to) * (1.0 - ROUNDING) {
            left = (left - tail.log_width(to)).max(0.0);
            to -= 1;
        }
        let share = tail.share(to, left);
        shifted[to] += count * (1.0 - share);
        shifted[to.saturating_sub(1)] += count * share;
    }
    Ok(shifted)
}

pub(crate) fn unless_tolerance(tolerance: f64) -> Result<(), Error> {
    Error::unless((0.0..=1e9).contains(&tolerance), "tolerance", tolerance, "a number from 0 to 1e9")
}

/// Where the canary's counts of a block go.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Shift {
    moves: Vec<Move>,
}

/// A share of the counts of one bucket.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Move {
    from: usize,
    to: usize,
    share: f64,
}

impl Shift {
    /// From valid bounds, and the pooled counts of earlier blocks, as many as there are bounds.
    pub(crate) fn new(bounds: &[f64], pooled: &[f64], tolerance: f64) -> Self {
        let log_factor = libm::log1p(tolerance);
        let tail = Tail::new(bounds, pooled);
        let mut moves = Vec::with_capacity(2 * bounds.len());
        let mut to = 0;
        for (from, &upper) in bounds.iter().enumerate() {
            let mut gone = 0.0;
            while to < from && bounds[to] * (1.0 + tolerance) <= upper {
                let share = tail.share(from, log_factor + tail.log_bounds[to] - tail.log_bounds[from - 1]);
                if share > gone {
                    moves.push(Move { from, to, share: share - gone });
                    gone = share;
                }
                to += 1;
            }
            if gone < 1.0 {
                moves.push(Move { from, to, share: 1.0 - gone });
            }
        }
        Self { moves }
    }

    pub(crate) fn apply(&self, counts: &[f64]) -> Vec<f64> {
        let mut shifted = vec![0.0; counts.len()];
        for Move { from, to, share } in &self.moves {
            shifted[*to] += counts[*from] * share;
        }
        shifted
    }
}

/// The tail of earlier blocks.
struct Tail {
    /// Minus infinity where values are not above zero.
    log_bounds: Vec<f64>,
    /// The share `1 − S(v)/S(u)` of the tail above `u` that lies in the bucket.
    hazards: Vec<f64>,
}

impl Tail {
    fn new(bounds: &[f64], pooled: &[f64]) -> Self {
        let mut hazards = pooled.to_vec();
        let mut above = 0.0;
        for hazard in hazards.iter_mut().rev() {
            above += *hazard;
            *hazard = if above > 0.0 { *hazard / above } else { 0.0 };
        }
        Self { log_bounds: bounds.iter().map(|bound| libm::log(bound.max(0.0))).collect(), hazards }
    }

    /// `ln(v/u)` of a bucket that is not the lowest; infinite for the last one.
    fn log_width(&self, bucket: usize) -> f64 {
        self.log_bounds[bucket] - self.log_bounds[bucket - 1]
    }

    /// The share of a bucket's values that lie up to `exp(left)` times above its lower bound: `φ`. None in
    /// the lowest bucket, nor below zero.
    fn share(&self, bucket: usize, left: f64) -> f64 {
        if bucket == 0 || self.log_bounds[bucket - 1] == f64::NEG_INFINITY {
            return 0.0;
        }
        let (width, hazard) = (self.log_width(bucket), self.hazards[bucket]);
        if left <= ROUNDING * width.min(1.0) {
            0.0
        } else if width < f64::INFINITY && hazard > 0.0 {
            (-libm::expm1(left / width * libm::log1p(-hazard)) / hazard).min(1.0)
        } else {
            1.0
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNEVEN: [f64; 12] = [0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 1.0, 2.0, f64::INFINITY];

    #[test]
    fn a_power_law_at_its_tolerance_becomes_that_of_the_baseline_at_any_distances() {
        for exponent in [0.5, 2.0, 6.0] {
            for tolerance in [0.01, 0.1, 0.24, 0.4, 1.0, 3.0] {
                let counts =
                    |slower: f64| counts(&UNEVEN, |x| libm::pow((x / slower / 0.05).max(1.0), -exponent));
                let baseline = counts(1.0);
                let shifted = Shift::new(&UNEVEN, &baseline, tolerance).apply(&counts(1.0 + tolerance));
                let (mut above, mut expected) = (0.0, 0.0);
                for bucket in (1..UNEVEN.len()).rev() {
                    above += shifted[bucket];
                    expected += baseline[bucket];
                    // Beyond the highest bound nothing is known, and all goes down; the lowest one is within.
                    let bound = UNEVEN[bucket - 1] * (1.0 + tolerance);
                    assert!(above <= expected * (1.0 + 1e-9), "{exponent} {tolerance} {bucket}");
                    if bound <= 2.0 && bound / (1.0 + tolerance) >= 0.1 {
                        assert!(above >= expected * (1.0 - 1e-9), "{exponent} {tolerance} {bucket}");
                    }
                }
            }
        }
    }

    #[test]
    fn bucket_by_bucket_is_the_same_where_buckets_are_wider_than_the_tolerance() {
        let native: Vec<f64> = (0..20).map(|i| libm::exp2(f64::from(i) / 4.0)).collect();
        let native = [native, vec![f64::INFINITY]].concat();
        let wide = [0.1, 0.25, 0.5, 1.0, 2.5, f64::INFINITY];
        for (bounds, tolerances) in [(&native[..], [0.05, 0.18, 0.0]), (&wide, [0.1, 0.6, 0.99])] {
            let pooled = counts(bounds, |x| libm::exp(-x));
            let canary = counts(bounds, |x| libm::exp(-0.7 * x));
            for tolerance in tolerances {
                let one = shift_histogram(bounds, &canary, &pooled, tolerance).unwrap();
                let other = Shift::new(bounds, &pooled, tolerance).apply(&canary);
                for (one, other) in one.iter().zip(other) {
                    assert!((one - other).abs() <= 1e-9 * (1.0 + one), "{tolerance}: {one} {other}");
                }
            }
        }
    }

    #[test]
    fn nothing_is_lost_and_without_tolerance_nothing_moves() {
        for bounds in
            [&UNEVEN[..], &[-2.0, -1.0, 0.0, 1.0, 2.0, f64::INFINITY], &[1e-300, 1e300, f64::INFINITY]]
        {
            let canary: Vec<f64> = (1_u8..).map(f64::from).take(bounds.len()).collect();
            for pooled in [vec![0.0; bounds.len()], vec![1.0; bounds.len()], canary.clone()] {
                for tolerance in [1e-15, 0.1, 2.0, 1e9] {
                    let shifted = Shift::new(bounds, &pooled, tolerance).apply(&canary);
                    let (before, after): (f64, f64) = (canary.iter().sum(), shifted.iter().sum());
                    assert!((before - after).abs() < 1e-9 && shifted.iter().all(|&count| count >= 0.0));
                }
                assert_eq!(Shift::new(bounds, &pooled, 0.0).apply(&canary), canary);
            }
        }
    }

    /// A million values, of which the share `tail(x)` lies above `x`.
    fn counts(bounds: &[f64], tail: impl Fn(f64) -> f64) -> Vec<f64> {
        let mut below = 1.0;
        let count = |&bound: &f64| {
            let above = if bound < f64::INFINITY { tail(bound) } else { 0.0 };
            1e6 * (std::mem::replace(&mut below, above) - above)
        };
        bounds.iter().map(count).collect()
    }
}

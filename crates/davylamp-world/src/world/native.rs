//! Latency at the resolution of a native histogram: [`Native`] divides what falls into a bucket of the classic one among
//! finer ones, by numbers of its own, so that the classic one is the same with it and without.

use std::ops::RangeInclusive;

use super::pod::{BUCKETS, as_f64};
use super::random::Random;

/// A native histogram, as the HTTP API of Prometheus gives one.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NativeHistogram {
    /// Observations.
    pub count: f64,
    /// Of all of them.
    pub sum: f64,
    /// Those with observations, upwards.
    pub buckets: Vec<Bucket>,
}

/// A bucket of a native histogram.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Bucket {
    /// Which bounds belong to it: 0, the upper one; 1, the lower; 2, neither; 3, both.
    pub boundary_rule: u8,
    /// The lower bound.
    pub lower: f64,
    /// The upper bound.
    pub upper: f64,
    /// Observations in it, not cumulative.
    pub count: f64,
}

/// Buckets in each doubling: schema 3, what client libraries take for a factor of at most 1.1.
const IN_A_DOUBLING: i32 = 8;
/// From 15 µs to 17 min.
const INDICES: RangeInclusive<i32> = -128..=80;
/// Below this share of all requests, what lies beyond a bucket is counted in it.
const NOTHING: f64 = 1e-12;

/// The upper bound of a bucket, in seconds.
fn bound(index: i32) -> f64 {
    libm::exp2(f64::from(index) / f64::from(IN_A_DOUBLING))
}

/// Divides what falls into classic buckets.
#[derive(Debug)]
pub(super) struct Native {
    random: Random,
    indices: RangeInclusive<i32>,
    /// For each classic bucket: positions among the fine ones, and their shares of it.
    parts: Vec<Vec<(usize, f64)>>,
}

impl Native {
    /// `below` is the share of requests that take less than so many seconds.
    pub(super) fn new(below: impl Fn(f64) -> f64, random: Random) -> Self {
        let first = INDICES.clone().find(|index| below(bound(*index)) > NOTHING);
        let last = INDICES.clone().find(|index| below(bound(*index)) >= 1.0 - NOTHING);
        let indices = first.unwrap_or(*INDICES.end())..=last.unwrap_or(*INDICES.end());
        let parts = (0..=BUCKETS.len()).map(|classic| {
            let lower = classic.checked_sub(1).and_then(|i| BUCKETS.get(i)).copied().unwrap_or(0.0);
            let upper = BUCKETS.get(classic).copied().unwrap_or(f64::INFINITY);
            let up_to = |seconds: f64| if seconds.is_finite() { below(seconds) } else { 1.0 };
            let mut parts: Vec<(usize, f64)> = indices
                .clone()
                .enumerate()
                .map(|(position, index)| {
                    let from = if index == *indices.start() { 0.0 } else { bound(index - 1) };
                    let to = if index == *indices.end() { f64::INFINITY } else { bound(index) };
                    let (from, to) = (from.max(lower), to.min(upper));
                    (position, if from < to { up_to(to) - up_to(from) } else { 0.0 })
                })
                .filter(|(_, share)| *share > 0.0)
                .collect();
            let sum: f64 = parts.iter().map(|(_, share)| share).sum();
            for (_, share) in &mut parts {
                *share /= sum;
            }
            parts
        });
        let parts = parts.collect();
        Self { random, indices, parts }
    }

    /// So many more fell into this classic bucket.
    pub(super) fn count(&mut self, counts: &mut Vec<u64>, classic: usize, count: u64) {
        counts.resize(self.indices.clone().count(), 0);
        let Some(parts) = self.parts.get(classic) else { return };
        let divided = self.random.divide(count, parts.iter().map(|(_, share)| *share));
        for ((position, _), here) in parts.iter().zip(divided) {
            if let Some(bucket) = counts.get_mut(*position) {
                *bucket += here;
            }
        }
    }

    /// What was counted, as a histogram.
    pub(super) fn histogram(&self, counts: &[u64], sum: f64) -> NativeHistogram {
        let buckets: Vec<Bucket> = self
            .indices
            .clone()
            .zip(counts)
            .filter(|(_, count)| **count > 0)
            .map(|(index, count)| Bucket {
                boundary_rule: 0,
                lower: bound(index - 1),
                upper: bound(index),
                count: as_f64(*count),
            })
            .collect();
        NativeHistogram { count: buckets.iter().map(|bucket| bucket.count).sum(), sum, buckets }
    }
}

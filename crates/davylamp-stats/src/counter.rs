//! Counters: what was counted between two scrapes.
//!
//! Takes stored samples and gives increments, which is what every test here reads; never a rate or an
//! extrapolation, whose overlapping windows would count the same event in several rounds.
//!
//! **Formula.** `Δ = v₁ − v₀` if `v₁ ≥ v₀`, else `v₁`: a counter that fell was reset to zero in between.
//!
//! **Null hypothesis, validity.** None is tested. Disjoint increments of a series are exact but for what a
//! reset hides: the events between the last scrape and the restart.
//!
//! **Source.** The data model of Prometheus counters.
//!
//! **Cost.** One subtraction per sample.
//!
//! **When not to use it.** On a sum of series: one of them resets and the sum does not fall. Sum the
//! increments.

/// What a counter has counted between two samples; zero if one of them is not a counter's value (negative or
/// not finite).
///
/// ```
/// use davylamp_stats::counter_increment;
///
/// assert_eq!(counter_increment(7.0, 19.0), 12.0);
/// assert_eq!(counter_increment(19.0, 4.0), 4.0); // restarted
/// ```
#[must_use]
pub fn counter_increment(previous: f64, value: f64) -> f64 {
    if !is_count(previous) || !is_count(value) {
        0.0
    } else if value >= previous {
        value - previous
    } else {
        value
    }
}

/// The increments between successive samples of one series. A scrape that is missing (`None`, or no counter's
/// value) is left out: the next increment covers the gap. The first sample is only a base.
///
/// ```
/// use davylamp_stats::counter_increments;
///
/// let samples = [Some(7.0), None, Some(19.0), Some(f64::NAN), Some(4.0)];
/// assert_eq!(counter_increments(&samples), [12.0, 4.0]);
/// ```
#[must_use]
pub fn counter_increments(samples: &[Option<f64>]) -> Vec<f64> {
    let present: Vec<f64> = samples.iter().copied().flatten().filter(|&value| is_count(value)).collect();
    present.windows(2).map(|pair| counter_increment(pair[0], pair[1])).collect()
}

fn is_count(value: f64) -> bool {
    value.is_finite() && value >= 0.0
}

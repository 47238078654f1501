//! What the tests of events read: events and exposure of the two cohorts, of one round or one block.

use crate::Error;

/// Above this a floating point counter no longer counts every event.
const LARGEST: f64 = 9_007_199_254_740_992.0;

/// Events `x` and exposure `n` of the canary and of the baseline, of one round or one block.
///
/// Exposure is usually requests; any unit will do that is the same for both cohorts (pod-seconds, traffic
/// weight times time), and so the number of events may exceed it.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counts {
    /// Events of the canary.
    pub x_canary: f64,
    /// Events of the baseline.
    pub x_baseline: f64,
    /// Exposure of the canary.
    pub n_canary: f64,
    /// Exposure of the baseline.
    pub n_baseline: f64,
}

impl Counts {
    /// The same counts with the cohorts exchanged, for a metric of which more is better and for
    /// non-inferiority.
    #[must_use]
    pub fn swapped(&self) -> Self {
        let Self { x_canary, x_baseline, n_canary, n_baseline } = *self;
        Self { x_canary: x_baseline, x_baseline: x_canary, n_canary: n_baseline, n_baseline: n_canary }
    }

    /// Both cohorts have exposure, so that their rates can be compared.
    pub(crate) fn comparable(&self) -> bool {
        self.n_canary > 0.0 && self.n_baseline > 0.0
    }

    /// Events of both cohorts.
    pub(crate) fn events(&self) -> f64 {
        self.x_canary + self.x_baseline
    }

    pub(crate) fn validate(&self) -> Result<(), Error> {
        let Self { x_canary, x_baseline, n_canary, n_baseline } = *self;
        let fields = [
            ("x_canary", x_canary),
            ("x_baseline", x_baseline),
            ("n_canary", n_canary),
            ("n_baseline", n_baseline),
        ];
        fields.into_iter().try_for_each(|(name, value)| validate_count(name, value))
    }
}

/// Refuses what is no number of events and no exposure.
pub(crate) fn validate_count(name: &'static str, value: f64) -> Result<(), Error> {
    Error::unless((0.0..=LARGEST).contains(&value), name, value, "a number from 0 to 2^53")
}

/// How many there are, as a number to compute with.
#[expect(clippy::cast_precision_loss, reason = "nobody has 2^53 of anything")]
pub(crate) fn number(count: usize) -> f64 {
    count as f64
}

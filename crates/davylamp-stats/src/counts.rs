//! What the tests of events read: events and exposure of the two cohorts, of one round or one block.

use crate::Error;

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
        for (name, value) in fields {
            Error::unless_count(name, value)?;
        }
        Ok(())
    }
}

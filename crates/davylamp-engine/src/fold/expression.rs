//! One expression: its last value, and how many in a row were outside its limits. No error rate is promised for it.

use davylamp_api::Instant;
use davylamp_api::checkpoint::ExpressionCheckpoint;
use davylamp_api::run::ExpressionRecord;

use super::rounded;
use crate::program::ExpressionPlan;

/// Of this weight.
#[derive(Debug, Default)]
pub(super) struct ExpressionFold(ExpressionCheckpoint);

impl ExpressionFold {
    pub(super) fn restore(kept: Option<&ExpressionCheckpoint>) -> Self {
        let mut kept = kept.copied().unwrap_or_default();
        kept.value = kept.value.filter(|value| value.is_finite());
        Self(kept)
    }

    pub(super) const fn checkpoint(&self) -> ExpressionCheckpoint {
        self.0
    }

    /// A row is of one weight.
    pub(super) fn begin(&mut self) {
        self.0 = ExpressionCheckpoint::default();
    }

    /// Its value at that time. None is no value: it ends no row, and is never good.
    pub(super) fn take(&mut self, plan: &ExpressionPlan, value: Option<f64>, at: i64) {
        let kept = &mut self.0;
        (kept.at, kept.value) = (at, value.map(rounded));
        if let Some(value) = kept.value {
            kept.values = kept.values.saturating_add(1);
            kept.outside = if plan.is_outside(value) { kept.outside.saturating_add(1) } else { 0 };
        }
    }

    pub(super) fn exceeded(&self, plan: &ExpressionPlan) -> bool {
        plan.decides && self.0.outside >= plan.consecutive
    }

    pub(super) fn safe(&self, plan: &ExpressionPlan) -> bool {
        let inside = self.0.value.is_some_and(|value| !plan.is_outside(value));
        !plan.decides || (inside && self.0.values >= plan.consecutive)
    }

    /// It was asked, and had no value.
    pub(super) const fn is_silent(&self) -> bool {
        self.0.at > 0 && self.0.value.is_none()
    }

    pub(super) fn record(&self, plan: &ExpressionPlan, until: Option<Instant>) -> ExpressionRecord {
        let ExpressionCheckpoint { at, value, outside, values } = self.0;
        ExpressionRecord {
            name: plan.name.clone(),
            at: Instant::from_millisecond(at).ok().filter(|_| at > 0),
            until,
            value,
            max: plan.max,
            min: plan.min,
            outside,
            consecutive: plan.consecutive,
            values,
            informational: !plan.decides,
        }
    }
}

//! A gauge as it is compared: one number of each pod, by a t-test at looks whose number is fixed beforehand.

use davylamp_api::rollout::{Analysis, Compare, Gauge as Written, Metric, MetricRole, Step};
use davylamp_api::scalar::Percent;
use davylamp_stats::{Gauge, pods_looks};

use super::{MetricPlan, Problem, problem, step_view};
use crate::decision::MetricQuery;
use crate::selector;

/// The part of the false rollback rate that gauges have beside metrics that count.
const SHARE: f64 = 0.2;

/// One gauge.
#[derive(Clone, Debug, PartialEq)]
pub struct GaugePlan {
    /// Its name.
    pub name: String,
    /// Its selector.
    pub query: MetricQuery,
    /// That of what it is divided by.
    pub divided_by: Option<MetricQuery>,
    /// What of it.
    pub compare: Gauge,
    /// Whether it decides anything.
    pub decides: bool,
    /// Worse than the baseline by this share is tolerated.
    pub tolerance: f64,
    /// The total impact on the service that a step may have.
    pub impact: f64,
    /// The false promotion rate of a step.
    pub beta: f64,
    /// How often it may be looked at in a run.
    pub looks: u32,
    /// A look rolls back when `p` is at most this; 0 when it decides nothing.
    pub limit: f64,
}

impl GaugePlan {
    /// So many pods of a cohort are compared, those that are seen first: enough for a test, and a status stays small.
    pub const PODS: u32 = 10;

    /// The ratio that the canary is shown to be below before it gets the next weight.
    #[must_use]
    pub fn margin(&self, next_weight: f64) -> f64 {
        1.0 + self.impact / next_weight
    }

    /// The name under which its divisor is asked for: no metric's, for it has a dot.
    #[must_use]
    pub fn divisor(&self) -> String {
        format!("{}.dividedBy", self.name)
    }
}

pub(super) fn gauge_plan(
    path: &str,
    metric: &Metric,
    written: &Written,
    impact: Percent,
    problems: &mut Vec<Problem>,
) -> GaugePlan {
    let Written { query, divided_by, compare } = written;
    let growth = *compare == Some(Compare::Growth);
    for (field, text) in [("query", Some(query)), ("dividedBy", divided_by.as_ref())] {
        if let Some(Err(wrong)) = text.map(|text| selector::plain(text)) {
            problems.push(problem(&format!("{path}.gauge.{field}"), &wrong.to_string(), wrong.remedy()));
        }
    }
    if growth && divided_by.is_some() {
        problems.push(problem(
            &format!("{path}.gauge.compare"),
            "growth with dividedBy",
            "write level, or leave it out",
        ));
    }
    GaugePlan {
        name: metric.name.clone(),
        query: match divided_by {
            Some(_) => MetricQuery::Counter { counter: query.clone() },
            None => MetricQuery::Gauge { gauge: query.clone() },
        },
        divided_by: divided_by.clone().map(|counter| MetricQuery::Counter { counter }),
        compare: if growth { Gauge::Growth } else { Gauge::Level },
        decides: metric.role != Some(MetricRole::Informational),
        tolerance: metric.tolerance.unwrap_or(Percent::from_basis_points(1_000)).share(),
        impact: metric.max_service_impact.unwrap_or(impact).share(),
        beta: 0.0,
        looks: 0,
        limit: 0.0,
    }
}

/// A growth decides only among pods of one age.
pub(super) fn judge_growths(
    written: &Analysis,
    fresh: bool,
    gauges: &mut [GaugePlan],
    problems: &mut Vec<Problem>,
) {
    let growths = gauges.iter_mut().filter(|gauge| gauge.compare == Gauge::Growth && gauge.decides && !fresh);
    for gauge in growths {
        let written =
            written.metrics.iter().position(|metric| metric.name == gauge.name && metric.role.is_some());
        if let Some(i) = written {
            problems.push(problem(
                &format!("spec.analysis.metrics[{i}].role"),
                &format!(
                    "{}, a growth, decides nothing here: the baseline's pods are of another age",
                    gauge.name
                ),
                "write informational, leave it out, or write spec.strategy.canary.baseline: fresh",
            ));
        }
        gauge.decides = false;
    }
}

/// Divides the false rollback rate between gauges and what counts, and among gauges and their looks. Returns the part of what
/// counts: all of it without a gauge that decides.
pub(super) fn share_budget(
    alpha: f64,
    beta: f64,
    steps: &[Step],
    metrics: &[MetricPlan],
    gauges: &mut [GaugePlan],
) -> f64 {
    let longest = steps.iter().map(|step| step_view(step).hold_max).max().unwrap_or(0);
    #[allow(clippy::cast_precision_loss, reason = "a time in ms")]
    let looks = pods_looks(u32::try_from(steps.len()).unwrap_or(u32::MAX), longest as f64 / 1_000.0);
    let looks = looks.unwrap_or(u32::MAX);
    let deciding = gauges.iter().filter(|gauge| gauge.decides).map(|_| 1.0).sum::<f64>();
    let share = if metrics.iter().any(MetricPlan::decides) { SHARE } else { 1.0 };
    for gauge in gauges {
        gauge.looks = looks;
        gauge.beta = beta;
        gauge.limit = if gauge.decides { share * alpha / (deciding * f64::from(looks)) } else { 0.0 };
    }
    if deciding > 0.0 && share < 1.0 { (1.0 - share) * alpha } else { alpha }
}

//! An expression as it is judged: a number against fixed limits, at each end of a round.

use davylamp_api::rollout::{Cohorts, Expression as Written, Metric, MetricRole};

use super::{Problem, problem, told};
use crate::decision::MetricQuery;
use crate::expression;

const CONSECUTIVE: i32 = 3;

/// One expression.
#[derive(Clone, Debug, PartialEq)]
pub struct ExpressionPlan {
    /// Its name.
    pub name: String,
    /// Its text.
    pub query: MetricQuery,
    /// How its cohorts are told apart, if not by their pods.
    pub told: Option<Cohorts>,
    /// A value above this is outside.
    pub max: Option<f64>,
    /// A value below this is outside.
    pub min: Option<f64>,
    /// So many values in a row outside roll back, and so many are needed for the next step.
    pub consecutive: i32,
    /// A value depends on samples that are so old, ms.
    pub reach: i64,
    /// Whether it decides anything.
    pub decides: bool,
}

impl ExpressionPlan {
    /// Whether the value breaks a limit.
    #[must_use]
    pub fn is_outside(&self, value: f64) -> bool {
        self.max.is_some_and(|max| value > max) || self.min.is_some_and(|min| value < min)
    }
}

pub(super) fn expression_plan(
    path: &str,
    metric: &Metric,
    written: &Written,
    problems: &mut Vec<Problem>,
) -> ExpressionPlan {
    let Written { query, max, min, consecutive } = written;
    let parsed = expression::parse(query);
    if let Err(wrong) = &parsed {
        problems.push(problem(&format!("{path}.expression.query"), &wrong.to_string(), wrong.remedy()));
    }
    let limits = format!("{path}.expression");
    match (max, min) {
        (None, None) => problems.push(problem(&limits, "neither max nor min", "write one of them or both")),
        (Some(max), Some(min)) if min > max => problems.push(problem(
            &format!("{limits}.min"),
            &format!("{min} is more than max {max}"),
            "write no more than max",
        )),
        (Some(_), _) | (None, Some(_)) => {}
    }
    let consecutive = consecutive.unwrap_or(CONSECUTIVE);
    if !(1..=100).contains(&consecutive) {
        problems.push(problem(&format!("{limits}.consecutive"), "not 1 to 100", "write a number like 3"));
    }
    if metric.tolerance.is_some() || metric.max_service_impact.is_some() {
        problems.push(problem(
            &limits,
            "tolerance or maxServiceImpact",
            "leave them out: max and min are its limits",
        ));
    }
    ExpressionPlan {
        name: metric.name.clone(),
        query: MetricQuery::Expression { query: query.clone() },
        told: told(path, metric, problems),
        max: *max,
        min: *min,
        consecutive: consecutive.max(1),
        reach: parsed.map_or(0, |parsed| parsed.reach()),
        decides: metric.role != Some(MetricRole::Informational),
    }
}

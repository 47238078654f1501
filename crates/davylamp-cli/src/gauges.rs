//! What can be said of gauges before a run: how often their pods are compared, and what a look can find.

use davylamp_engine::forecast::StepForecast;
use davylamp_engine::{GaugePlan, Plan};
use davylamp_stats::{DEFAULT_POD_EFFECT, Gauge, pod_spread, t_critical};
use serde::Serialize;

use crate::figures::digits;

/// One gauge.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct GaugeForecast {
    gauge: String,
    /// Looks of a run, at most.
    looks: u32,
    /// A look rolls back at this p; absent when it decides nothing.
    limit: Option<f64>,
    /// None of a growth.
    steps: Vec<Reach>,
}

/// What a look in one step can find.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Reach {
    step: usize,
    /// Of canary and baseline.
    pods: [u32; 2],
    /// The ratio that is found in half of the looks, if pods differ by 5 %; absent with one pod in each cohort.
    ratio: Option<f64>,
}

impl GaugeForecast {
    pub(crate) fn all(plan: &Plan, steps: &[StepForecast], replicas: i32) -> Vec<Self> {
        let cohort = |pods: i32| u32::try_from(pods).unwrap_or(1).clamp(1, GaugePlan::PODS);
        let of_gauge = |gauge: &GaugePlan| {
            let reach = |step: &StepForecast| {
                let pods = [cohort(step.pods), cohort(if plan.fresh { step.pods } else { replicas })];
                Reach { step: step.step, pods, ratio: ratio(gauge, pods) }
            };
            Self {
                gauge: gauge.name.clone(),
                looks: gauge.looks,
                limit: gauge.decides.then_some(gauge.limit),
                // What is found of a growth depends on how much the old version grows.
                steps: steps.iter().filter(|_| gauge.compare == Gauge::Level).map(reach).collect(),
            }
        };
        plan.gauges.iter().map(of_gauge).collect()
    }

    /// One sentence.
    pub(crate) fn text(&self) -> String {
        let Self { gauge, looks, limit, steps } = self;
        let Some(limit) = limit else {
            return format!("{gauge}: informational; its pods are compared, and nothing follows");
        };
        let reach: Vec<_> = steps
            .iter()
            .map(|Reach { step, pods: [canary, baseline], ratio }| match ratio {
                Some(ratio) => format!("{}x in step {step} ({canary} and {baseline} pods)", digits(*ratio)),
                None => format!("nothing in step {step} (one pod in each cohort)"),
            })
            .collect();
        let looks = format!(
            "{gauge}: pods are compared every 10 min and at the end of a step, at most {looks} times, and p of {limit:.6} rolls back."
        );
        if reach.is_empty() {
            return looks;
        }
        let differ = digits(100.0 * DEFAULT_POD_EFFECT);
        format!("{looks} If pods differ by {differ} %, half of the looks find {}.", reach.join(", "))
    }
}

fn ratio(gauge: &GaugePlan, [canary, baseline]: [u32; 2]) -> Option<f64> {
    let df = (canary + baseline).checked_sub(2).filter(|df| *df > 0)?;
    let spread = pod_spread(DEFAULT_POD_EFFECT, canary, baseline).ok()?;
    let t = t_critical(gauge.limit, df).ok()?;
    let ratio = (1.0 + gauge.tolerance) * (t * spread).exp();
    ratio.is_finite().then_some(ratio)
}

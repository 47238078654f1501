//! What presets and templates stand for: the program of a Rollout with the templates that stand beside it in the files, and
//! a line for each metric that comes from them. Reads no file.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow};
use davylamp_api::rollout::{
    Analysis, CohortBy, Compare, Count, Distribution, Expression, Gauge, Metric, Per, Ratio, Throughput,
};
use davylamp_api::template::Scope;
use davylamp_api::{AnalysisTemplateSpec, RolloutSpec};
use davylamp_engine::{Problem, Program, templates};
use serde::Serialize;
use serde_json::Value;

/// A metric that the Rollout does not write itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Expansion {
    /// Its name.
    pub(crate) metric: String,
    /// The preset or the template.
    pub(crate) from: String,
    /// Its kind and its selectors.
    pub(crate) is: String,
}

/// What the engine makes of a Rollout, or all that keeps it from that; and what its presets and templates stand for.
pub(crate) fn compiled(
    name: &str,
    namespace: &str,
    spec: &RolloutSpec,
    objects: &[Value],
) -> Result<(Program, Vec<Expansion>)> {
    let beside = beside(objects, namespace)?;
    let mut missing = Vec::new();
    let find = |scope: Scope, name: &str| {
        let found = beside.get(&(scope, name)).cloned();
        if found.is_none() {
            missing.push(format!("{} {name}", scope.kind().to_lowercase()));
        }
        found
    };
    match templates::compile(name, spec, find) {
        Ok((program, origins)) => {
            let expansions = expansions(&program.conduct.written, &origins);
            Ok((program, expansions))
        }
        Err(problems) => Err(told(name, &problems, &missing)),
    }
}

fn told(name: &str, problems: &[Problem], missing: &[String]) -> anyhow::Error {
    let problems = problems.iter().map(ToString::to_string);
    let missing = missing.iter().map(|template| {
        format!(
            "templates are read from the files: give this one with another -f, as kubectl get {template} -o yaml writes it"
        )
    });
    let lines: Vec<String> = problems.chain(missing).collect();
    anyhow!("{name} cannot be carried out:\n  {}", lines.join("\n  "))
}

/// The templates that the Rollouts of the namespace can use.
fn beside<'o>(
    objects: &'o [Value],
    namespace: &str,
) -> Result<BTreeMap<(Scope, &'o str), AnalysisTemplateSpec>> {
    let mut templates = BTreeMap::new();
    for object in objects {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        let (kind, name) = (text("/kind").unwrap_or_default(), text("/metadata/name").unwrap_or_default());
        let Some(scope) = [Scope::Namespace, Scope::Cluster].into_iter().find(|scope| scope.kind() == kind)
        else {
            continue;
        };
        if scope == Scope::Namespace && text("/metadata/namespace").is_some_and(|other| other != namespace) {
            continue;
        }
        let spec = serde_path_to_error::deserialize(&object["spec"])
            .map_err(|error| anyhow!("{kind} {name}: spec.{}: {}", error.path(), error.inner()))?;
        templates.insert((scope, name), spec);
    }
    Ok(templates)
}

fn expansions(analysis: &Analysis, origins: &BTreeMap<String, String>) -> Vec<Expansion> {
    let of = |metric: &Metric| {
        let from = origins.get(&metric.name)?.clone();
        Some(Expansion { metric: metric.name.clone(), from, is: kind_and_selectors(metric) })
    };
    analysis.metrics.iter().filter_map(of).collect()
}

fn kind_and_selectors(metric: &Metric) -> String {
    let Metric { ratio, count, distribution, gauge, throughput, expression, cohort, .. } = metric;
    let ratio = ratio.as_ref().map(|Ratio { events, total, histogram, slower_than }| {
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        match slower_than {
            Some(than) => format!("ratio of what takes longer than {than} in {}", text(histogram)),
            None => format!("ratio of {} to {}", text(events), text(total)),
        }
    });
    let count = count.as_ref().map(|Count { events, exposure, per }| match (exposure, per) {
        (Some(exposure), _) => format!("count of {events} for {exposure}"),
        (None, Some(Per::PodSeconds)) => format!("count of {events} for each second of a pod"),
        (None, None) => format!("count of {events} for the share of the traffic"),
    });
    let gauge = gauge.as_ref().map(|Gauge { query, divided_by, compare }| {
        let what = if *compare == Some(Compare::Growth) { "growth" } else { "level" };
        let divided_by = divided_by.as_ref().map(|by| format!(" for each of {by}")).unwrap_or_default();
        format!("{what} of {query}{divided_by}")
    });
    let distribution =
        distribution.as_ref().map(|Distribution { histogram }| format!("distribution of {histogram}"));
    let throughput = throughput.as_ref().map(|Throughput { requests }| format!("throughput of {requests}"));
    let expression = expression.as_ref().map(|Expression { query, .. }| format!("expression {query}"));
    let by = cohort.as_ref().filter(|cohort| cohort.by != CohortBy::Pod);
    let by = by.map(|cohort| format!(", {cohort}")).unwrap_or_default();
    let kind = ratio.or(count).or(distribution).or(gauge).or(throughput).or(expression);
    format!("{}{by}", kind.unwrap_or_default())
}

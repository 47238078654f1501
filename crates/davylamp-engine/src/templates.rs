//! What an analysis stands for: [`expand`] takes it as written, and whatever finds a template by scope and name; it gives
//! the same analysis with metrics only, or all that is wrong. Nothing behind it knows of presets or templates.

use std::collections::{BTreeMap, BTreeSet};

use davylamp_api::RolloutSpec;
use davylamp_api::rollout::{Analysis, Count, Distribution, Expression, Gauge, Metric, Ratio, Throughput};
use davylamp_api::scalar::Percent;
use davylamp_api::template::{AnalysisTemplateSpec, Preset, Scope, TemplateRef};

use crate::expression;
use crate::program::{Problem, Program, compared, problem};
use crate::selector::{self, FillError};

/// A template may use one that uses one that uses one.
const DEEPEST: usize = 4;
const MOST_TEMPLATES: usize = 20;
const MOST_METRICS: usize = 10;

/// An analysis with metrics only.
#[derive(Clone, Debug, PartialEq)]
pub struct Expanded {
    /// Without presets and templates. The metrics that were written in it come first, so that they keep their numbers.
    pub analysis: Analysis,
    /// Where each of the others comes from, by its name.
    pub origins: BTreeMap<String, String>,
    /// What is wrong. Unless there is nothing, `analysis` may lack something.
    pub problems: Vec<Problem>,
}

/// Puts metrics in the place of presets and templates.
#[must_use]
pub fn expand(
    written: &Analysis,
    mut find: impl FnMut(Scope, &str) -> Option<AnalysisTemplateSpec>,
) -> Expanded {
    let mut expansion = Expansion {
        find: &mut find,
        own: written.metrics.iter().map(|metric| metric.name.as_str()).collect(),
        metrics: Vec::new(),
        templates: 0,
        problems: Vec::new(),
    };
    expansion.presets("spec.analysis.presets", &written.presets, &[], None);
    for (i, used) in written.templates.iter().enumerate() {
        expansion.template(&format!("spec.analysis.templates[{i}]"), used, &mut Vec::new());
    }
    let Expansion { metrics: found, mut problems, .. } = expansion;
    let origins = found.iter().map(|(metric, origin)| (metric.name.clone(), origin.clone())).collect();
    let mut metrics = written.metrics.clone();
    metrics.extend(found.into_iter().map(|(metric, _)| metric));
    if metrics.len() > MOST_METRICS && metrics.len() > written.metrics.len() {
        let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
        problems.push(problem(
            "spec.analysis",
            &format!("{} metrics with those of presets and templates: {}", names.len(), names.join(", ")),
            "use fewer presets and templates, or templates with fewer metrics: at most 10 in all",
        ));
        metrics.truncate(MOST_METRICS);
    }
    let analysis = Analysis { metrics, presets: Vec::new(), templates: Vec::new(), ..written.clone() };
    Expanded { analysis, origins, problems }
}

/// The program of a spec that may have presets and templates; and where its metrics come from, as in [`Expanded`].
///
/// # Errors
/// All the problems that keep it from being carried out.
pub fn compile(
    name: &str,
    spec: &RolloutSpec,
    find: impl FnMut(Scope, &str) -> Option<AnalysisTemplateSpec>,
) -> Result<(Program, BTreeMap<String, String>), Vec<Problem>> {
    let Some(written) = &spec.analysis else {
        return Program::compile(name, spec).map(|program| (program, BTreeMap::new()));
    };
    let Expanded { analysis, origins, mut problems } = expand(written, find);
    match Program::compile(name, &RolloutSpec { analysis: Some(analysis), ..spec.clone() }) {
        Ok(program) if problems.is_empty() => Ok((program, origins)),
        Ok(_) => Err(problems),
        Err(more) => {
            problems.extend(more);
            Err(problems)
        }
    }
}

struct Expansion<'a, F> {
    find: &'a mut F,
    /// Names of metrics that the Rollout writes itself: they win.
    own: BTreeSet<&'a str>,
    /// All others, and where they come from.
    metrics: Vec<(Metric, String)>,
    /// How many were used.
    templates: usize,
    problems: Vec<Problem>,
}

type Args = BTreeMap<String, String>;

impl<F: FnMut(Scope, &str) -> Option<AnalysisTemplateSpec>> Expansion<'_, F> {
    /// `trail` are the templates that led here, the outermost first.
    fn template(&mut self, path: &str, used: &TemplateRef, trail: &mut Vec<TemplateRef>) {
        let is_it = |outer: &TemplateRef| (outer.scope, &outer.name) == (used.scope, &used.name);
        if let Some(first) = trail.iter().position(is_it) {
            let circle: Vec<_> = trail[first..].iter().chain([used]).map(ToString::to_string).collect();
            self.problem(path, &format!("a circle: {}", circle.join(" uses ")), "leave one of them out");
            return;
        }
        if trail.len() == DEEPEST {
            let wrong = format!("{used} is used by templates that are nested {DEEPEST} deep already");
            self.problem(path, &wrong, "use it further out");
            return;
        }
        self.templates += 1;
        if self.templates > MOST_TEMPLATES {
            let wrong = format!("more than {MOST_TEMPLATES} templates, with those that others use");
            self.problem("spec.analysis.templates", &wrong, "use fewer");
            return;
        }
        if used.scope == Scope::Namespace && trail.last().is_some_and(|outer| outer.scope == Scope::Cluster) {
            self.problem(
                path,
                &format!(
                    "a ClusterAnalysisTemplate uses the {used}, which may be another one in each namespace"
                ),
                "use a ClusterAnalysisTemplate",
            );
            return;
        }
        let Some(spec) = (self.find)(used.scope, &used.name) else {
            let place = if used.scope == Scope::Namespace { " in this namespace" } else { "" };
            self.problem(
                path,
                &format!("there is no {used}{place}"),
                "create it, or correct its name or its scope",
            );
            return;
        };
        let args = self.args(path, used, &spec);
        let names: Vec<_> = spec.metrics.iter().map(|metric| metric.name.as_str()).collect();
        self.presets(&format!("{used}: spec.presets"), &spec.presets, &names, Some(used));
        for (i, metric) in spec.metrics.iter().enumerate() {
            self.metric(&format!("{used}: spec.metrics[{i}]"), metric, &args, used);
        }
        trail.push(used.clone());
        for (i, inner) in spec.templates.iter().enumerate() {
            let path = format!("{used}: spec.templates[{i}]");
            let mut inner = inner.clone();
            for (j, arg) in inner.args.iter_mut().enumerate() {
                match selector::replaced(&arg.value, |name| args.get(name).cloned()) {
                    Ok(value) => arg.value = value,
                    Err(wrong) => self.unfillable(&format!("{path}.args[{j}].value"), &wrong, &args),
                }
            }
            self.template(&path, &inner, trail);
        }
        trail.pop();
    }

    /// What the template was told, or says itself. What is missing is empty, once that is said.
    fn args(&mut self, path: &str, used: &TemplateRef, spec: &AnalysisTemplateSpec) -> Args {
        let names: Vec<_> = spec.args.iter().map(|parameter| parameter.name.as_str()).collect();
        for (i, arg) in used.args.iter().enumerate() {
            if !names.contains(&arg.name.as_str()) {
                let wrong = format!("{used} has no argument {:?}", arg.name);
                self.problem(&format!("{path}.args[{i}].name"), &wrong, &one_of(&names));
            }
        }
        let mut args = Args::new();
        for parameter in &spec.args {
            let said = used.args.iter().find(|arg| arg.name == parameter.name).map(|arg| &arg.value);
            let value = said.or(parameter.value.as_ref()).cloned();
            if value.is_none() {
                let wrong = format!("{used} needs the argument {:?}", parameter.name);
                self.problem(&format!("{path}.args"), &wrong, "add its name and a value");
            }
            args.insert(parameter.name.clone(), value.unwrap_or_default());
        }
        args
    }

    fn presets(&mut self, path: &str, presets: &[Preset], but: &[&str], used: Option<&TemplateRef>) {
        for preset in presets {
            let by = used.map(|used| format!(" of {used}")).unwrap_or_default();
            let origin = format!("preset {}{by}", preset.as_str());
            for metric in preset.metrics() {
                if !but.contains(&metric.name.as_str()) {
                    self.add(path, metric, origin.clone());
                }
            }
        }
    }

    fn metric(&mut self, path: &str, metric: &Metric, args: &Args, used: &TemplateRef) {
        if self.own.contains(metric.name.as_str()) {
            return;
        }
        let mut metric = metric.clone();
        let mut filled = true;
        for (field, text) in selectors(&mut metric) {
            match selector::fill(text, args) {
                Ok(selector) => *text = selector,
                Err(wrong) => {
                    self.unfillable(&format!("{path}.{field}"), &wrong, args);
                    filled = false;
                }
            }
        }
        if let Some(Expression { query, .. }) = &mut metric.expression
            && query.contains("{{args.")
        {
            match expression::fill(query, args) {
                Ok(text) => *query = text,
                Err(wrong) => {
                    self.unfillable(&format!("{path}.expression.query"), &wrong, args);
                    filled = false;
                }
            }
        }
        let mut problems = Vec::new();
        if filled {
            compared(path, &metric, Percent::FULL, &mut problems);
        }
        if filled && problems.is_empty() {
            self.add(&format!("{path}.name"), metric, used.to_string());
        }
        for problem in problems {
            self.tell(problem);
        }
    }

    /// The same metric twice is no clash, however it came.
    fn add(&mut self, path: &str, metric: Metric, origin: String) {
        if self.own.contains(metric.name.as_str()) {
            return;
        }
        match self.metrics.iter().find(|(known, _)| known.name == metric.name) {
            None => self.metrics.push((metric, origin)),
            Some((known, _)) if *known == metric => {}
            Some((_, first)) => {
                let wrong = format!("{first} has another metric {:?}", metric.name);
                let remedy = "rename one of them, or write the one that you want in spec.analysis.metrics";
                self.problem(path, &wrong, remedy);
            }
        }
    }

    fn unfillable(&mut self, path: &str, wrong: &FillError, args: &Args) {
        let remedy = match wrong {
            FillError::Unknown(_) => one_of(&args.keys().map(String::as_str).collect::<Vec<_>>()),
            FillError::Form
            | FillError::Outside
            | FillError::Value(_)
            | FillError::ValueOf(_)
            | FillError::Selector(_)
            | FillError::Expression(_) => wrong.remedy().to_owned(),
        };
        self.problem(path, &wrong.to_string(), &remedy);
    }

    fn problem(&mut self, path: &str, wrong: &str, remedy: &str) {
        self.tell(problem(path, wrong, remedy));
    }

    /// Once, however many ways lead there.
    fn tell(&mut self, problem: Problem) {
        if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

fn one_of(names: &[&str]) -> String {
    if names.is_empty() {
        "leave it out: this template has no args".to_owned()
    } else {
        format!("write one of {}", names.join(", "))
    }
}

/// The texts of a metric in which arguments may stand, and their fields.
fn selectors(metric: &mut Metric) -> impl Iterator<Item = (&'static str, &mut String)> {
    let Metric {
        name: _,
        ratio,
        count,
        distribution,
        gauge,
        throughput,
        // What is no selector is filled elsewhere.
        expression: _,
        cohort: _,
        goal: _,
        role: _,
        tolerance: _,
        floor: _,
        max_service_impact: _,
    } = metric;
    let ratio = ratio.as_mut().map(|Ratio { events, total, histogram, slower_than: _ }| {
        [("ratio.events", events), ("ratio.total", total), ("ratio.histogram", histogram)]
    });
    let ratio = ratio.into_iter().flatten().filter_map(|(field, text)| Some((field, text.as_mut()?)));
    let count = count.as_mut().map(|Count { events, exposure, per: _ }| {
        [("count.events", Some(events)), ("count.exposure", exposure.as_mut())]
    });
    let distribution =
        distribution.as_mut().map(|Distribution { histogram }| ("distribution.histogram", histogram));
    let gauge = gauge.as_mut().map(|Gauge { query, divided_by, compare: _ }| {
        [("gauge.query", Some(query)), ("gauge.dividedBy", divided_by.as_mut())]
    });
    let others = count.into_iter().chain(gauge).flatten().filter_map(|(field, text)| Some((field, text?)));
    let throughput = throughput.as_mut().map(|Throughput { requests }| ("throughput.requests", requests));
    ratio.chain(others).chain(distribution).chain(throughput)
}

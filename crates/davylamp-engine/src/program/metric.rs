//! A metric of which events are counted, as it is compared: what is tolerated, what a canary must be shown to be, and by what.

use davylamp_api::rollout::{
    Analysis, CohortBy, Cohorts, Count, Goal, Metric, MetricRole, Per, Ratio, ServiceForm, Throughput,
};
use davylamp_api::scalar::Percent;
use davylamp_stats::{pod_effect_margin, pod_effect_promotion_margin, pod_spread};
use promql_parser::parser::VectorSelector;

use super::{Problem, problem};
use crate::decision::MetricQuery;
use crate::fold::rounded;
use crate::selector::{self, SelectorError};

/// One metric.
#[derive(Clone, Debug, PartialEq)]
pub struct MetricPlan {
    /// Its name.
    pub name: String,
    /// Its selectors.
    pub query: MetricQuery,
    /// How its cohorts are told apart, if not by their pods.
    pub told: Option<Cohorts>,
    /// Its events are requests.
    pub requests: bool,
    /// What its events are counted for.
    pub exposure: Exposure,
    /// What is better.
    pub goal: Goal,
    /// What follows from it.
    pub role: MetricRole,
    /// Worse than the baseline by this share is tolerated.
    pub tolerance: f64,
    /// The rate below which nothing is rolled back; None for 0 %.
    pub floor: Option<f64>,
    /// The total impact on the service that a step may have.
    pub impact: f64,
    /// Its share of the false rollback rate.
    pub weight: f64,
    /// The false promotion rate of a step.
    pub beta: f64,
    /// What counts as one piece of evidence, ms: whole scrapes.
    pub block: i64,
    /// What ln of a block's e-value is capped at.
    pub clip: f64,
    /// The standard deviation of ln of the rate between pods of one version.
    pub pod_effect: f64,
    /// Of a ratio that decides or has an objective: both cohorts against an absolute rate.
    pub limit: Option<LimitPlan>,
}

/// Rates that can be tested against.
pub(crate) const LIMITS: std::ops::RangeInclusive<f64> = 1e-6..=0.5;
/// Without a floor, rates below this are no incident.
const LOWEST_INCIDENT: f64 = 0.001;
/// So many times the usual rate is an incident.
const UNUSUAL: f64 = 3.0;

/// Both cohorts of a ratio against an absolute rate.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LimitPlan {
    /// What an objective allows, or else several times the usual rate of the stable pods; None while that is unknown.
    pub rate: Option<f64>,
    /// There is an objective.
    pub objective: bool,
    /// Rates below this are no incident.
    pub lowest: f64,
}

impl LimitPlan {
    /// The rate above which a baseline with this usual one is in an incident.
    #[must_use]
    pub fn above_usual(&self, usual: f64) -> f64 {
        // What is written down and read again must not change.
        rounded((UNUSUAL * usual).max(self.lowest).clamp(*LIMITS.start(), *LIMITS.end()))
    }
}

/// What the events of a metric are counted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exposure {
    /// What is counted as well.
    Counted,
    /// Seconds of pods, ready or not.
    PodSeconds,
    /// The share of the traffic, as the weight has it, for so many seconds.
    Traffic,
}

/// Pods of the cohorts that count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CohortPods {
    /// Of the canary.
    pub canary: u32,
    /// Of the baseline.
    pub baseline: u32,
}

impl CohortPods {
    /// One more.
    pub fn add(&mut self, canary: bool) {
        *(if canary { &mut self.canary } else { &mut self.baseline }) += 1;
    }
}

/// Pods alone exceed a tolerated ratio with this probability.
const POD_RISK: f64 = 0.01;

/// The lowest margin of a metric of which more is better.
const LOWEST_MARGIN: f64 = 0.05;

impl MetricPlan {
    /// The tolerated ratio of canary to baseline.
    #[must_use]
    pub fn tolerated(&self) -> f64 {
        match self.goal {
            Goal::Lower => 1.0 + self.tolerance,
            Goal::Higher => 1.0 - self.tolerance,
        }
    }

    /// The ratio that a canary is shown to lie on the good side of before it gets the next weight.
    #[must_use]
    pub fn margin(&self, next_weight: f64) -> f64 {
        match self.goal {
            Goal::Lower => 1.0 + self.impact / next_weight,
            Goal::Higher => (1.0 - self.impact / next_weight).max(LOWEST_MARGIN),
        }
    }

    /// The tolerated ratio, widened by what so many pods differ by themselves.
    #[must_use]
    pub fn tolerated_among(&self, pods: CohortPods) -> f64 {
        let ratio = self.as_harm(self.tolerated());
        self.as_harm(pod_effect_margin(ratio, self.spread(pods), POD_RISK).unwrap_or(ratio))
    }

    /// The margin, narrowed by what so many pods differ by themselves.
    #[must_use]
    pub fn margin_among(&self, next_weight: f64, pods: CohortPods) -> f64 {
        let ratio = self.as_harm(self.margin(next_weight));
        self.as_harm(pod_effect_promotion_margin(ratio, self.spread(pods), self.beta).unwrap_or(ratio))
    }

    /// 0 before any pod counts.
    fn spread(&self, pods: CohortPods) -> f64 {
        pod_spread(self.pod_effect, pods.canary, pods.baseline).unwrap_or(0.0)
    }

    /// A ratio of canary to baseline as the tests see it, for which less is always better.
    #[must_use]
    pub fn as_harm(&self, ratio: f64) -> f64 {
        match self.goal {
            Goal::Lower => ratio,
            Goal::Higher => 1.0 / ratio,
        }
    }

    /// What it counts for is counted: when there is none of it, nothing happens.
    #[must_use]
    pub fn counts_requests(&self) -> bool {
        self.exposure == Exposure::Counted
    }

    /// Whether it decides anything.
    #[must_use]
    pub fn decides(&self) -> bool {
        self.role != MetricRole::Informational
    }
}

pub(super) fn metric_plan(
    path: &str,
    metric: &Metric,
    impact: Percent,
    problems: &mut Vec<Problem>,
) -> MetricPlan {
    let query = metric_query(path, metric, problems);
    let requests = metric.throughput.is_some();
    let goal = if requests { Goal::Higher } else { metric.goal.unwrap_or_default() };
    refuse_others(path, metric, problems);
    let told = told(path, metric, problems);
    let tolerance = metric.tolerance.unwrap_or(Percent::from_basis_points(1_000)).share();
    if goal == Goal::Higher && tolerance >= 1.0 {
        problems.push(problem(
            &format!("{path}.tolerance"),
            "100%",
            "write less: that would tolerate none at all",
        ));
    }
    let floor = metric.floor.unwrap_or(Percent::from_basis_points(10)).share();
    if floor >= 0.5 {
        problems.push(problem(&format!("{path}.floor"), "50% or more", "write less than 50%"));
    }
    let impact = metric.max_service_impact.unwrap_or(impact);
    let exposure = match &metric.count {
        Some(Count { exposure: None, per: Some(Per::PodSeconds), .. }) => Exposure::PodSeconds,
        Some(Count { exposure: None, per: None, .. }) => Exposure::Traffic,
        None if requests => Exposure::Traffic,
        Some(_) | None => Exposure::Counted,
    };
    if told.is_some() && exposure == Exposure::PodSeconds {
        let remedy = "write by: pod, or leave it out: podSeconds are of pods";
        problems.push(problem(&format!("{path}.cohort"), "not by pod", remedy));
    }
    let role = metric.role.unwrap_or_default();
    let lowest = if floor > 0.0 { floor } else { LOWEST_INCIDENT };
    let judged = metric.ratio.is_some() && role != MetricRole::Informational;
    MetricPlan {
        name: metric.name.clone(),
        query,
        told,
        requests,
        exposure,
        goal,
        role,
        tolerance,
        floor: (floor > 0.0 && has_floor(metric)).then_some(floor),
        impact: impact.share(),
        weight: 0.0,
        beta: 0.0,
        block: 0,
        clip: 0.0,
        pod_effect: 0.0,
        limit: judged.then_some(LimitPlan { rate: None, objective: false, lowest }),
    }
}

fn metric_query(path: &str, metric: &Metric, problems: &mut Vec<Problem>) -> MetricQuery {
    let mut usable = |field: &str, read: Result<VectorSelector, SelectorError>| {
        if let Err(wrong) = read {
            problems.push(problem(&format!("{path}.{field}"), &wrong.to_string(), wrong.remedy()));
        }
    };
    if let Some(Throughput { requests }) = &metric.throughput {
        usable("throughput.requests", selector::plain(requests));
        return MetricQuery::Counter { counter: requests.clone() };
    }
    match (metric.ratio.clone(), metric.count.clone(), metric.distribution.clone()) {
        (
            Some(Ratio { events: Some(events), total: Some(total), histogram: None, slower_than: None }),
            None,
            None,
        ) => {
            usable("ratio.events", selector::plain(&events));
            usable("ratio.total", selector::plain(&total));
            MetricQuery::Counters { events, total }
        }
        (
            Some(Ratio { events: None, total: None, histogram: Some(histogram), slower_than: Some(than) }),
            None,
            None,
        ) => {
            usable("ratio.histogram", selector::histogram(&histogram));
            MetricQuery::Slower { histogram, than }
        }
        (None, Some(Count { events, exposure, per }), None) => {
            usable("count.events", selector::plain(&events));
            match (exposure, per) {
                (Some(total), None) => {
                    usable("count.exposure", selector::plain(&total));
                    MetricQuery::Counters { events, total }
                }
                (None, _) => MetricQuery::Counter { counter: events },
                (Some(_), Some(_)) => {
                    problems.push(problem(
                        &format!("{path}.count"),
                        "exposure and per",
                        "write one of them, or neither for the share of the traffic",
                    ));
                    MetricQuery::Counter { counter: events }
                }
            }
        }
        (None, None, Some(distribution)) => {
            usable("distribution.histogram", selector::histogram(&distribution.histogram));
            MetricQuery::Distribution { histogram: distribution.histogram }
        }
        (Some(_), None, None) => {
            problems.push(problem(
                &format!("{path}.ratio"),
                "neither two counters nor a part of a histogram",
                "write events and total, or histogram and slowerThan",
            ));
            MetricQuery::Distribution { histogram: String::new() }
        }
        // Not one kind, which is said elsewhere.
        _ => MetricQuery::Distribution { histogram: String::new() },
    }
}

/// How cohorts are told apart, if not by their pods, with the default filled.
pub(super) fn told(path: &str, metric: &Metric, problems: &mut Vec<Problem>) -> Option<Cohorts> {
    let Cohorts { by, label, form, namespace_label } = metric.cohort.clone()?;
    let path = format!("{path}.cohort");
    let mut wrong = |field: &str, wrong: &str, remedy: &str| {
        problems.push(problem(&format!("{path}{field}"), wrong, remedy));
    };
    if by == CohortBy::Pod && (label.is_some() || form.is_some() || namespace_label.is_some()) {
        wrong("", "labels by pod", "leave out label, form and namespaceLabel: they are the MetricSource's");
    }
    if by == CohortBy::Labels && (label.is_none() || form.is_some()) {
        wrong("", "no label, or a form", "write the label whose value is the pod-template-hash, and no form");
    }
    if form == Some(ServiceForm::Traefik) && namespace_label.is_some() {
        wrong(".namespaceLabel", "beside the form traefik", "leave it out: it stands in the Service's label");
    }
    let label = label.unwrap_or_else(|| "service".to_owned());
    if !selector::is_label(&label) {
        wrong(".label", &format!("{label:?} is no label"), "write a name like service or exported_service");
    }
    (by != CohortBy::Pod).then_some(Cohorts { by, label: Some(label), form, namespace_label })
}

/// What only some kinds have.
pub(super) fn refuse_others(path: &str, metric: &Metric, problems: &mut Vec<Problem>) {
    if metric.goal.is_some() && metric.count.is_none() {
        problems.push(problem(&format!("{path}.goal"), "not of a count", "leave it out here"));
    }
    if metric.floor.is_some() && !has_floor(metric) {
        let wrong = "neither of a ratio nor of a count per podSeconds of which less is better";
        problems.push(problem(&format!("{path}.floor"), wrong, "leave it out"));
    }
    if let Some(impact) = metric.max_service_impact {
        some_impact(&format!("{path}.maxServiceImpact"), impact, problems);
    }
}

fn has_floor(metric: &Metric) -> bool {
    let per = metric.count.as_ref().is_some_and(|count| count.per.is_some());
    metric.ratio.is_some() || (per && metric.goal != Some(Goal::Higher))
}

/// What an objective allows is the limit of its metric, for both cohorts.
pub(super) fn set_objectives(written: &Analysis, metrics: &mut [MetricPlan], problems: &mut Vec<Problem>) {
    for (i, slo) in written.slos.iter().enumerate() {
        let path = format!("spec.analysis.slos[{i}]");
        let allowed = rounded(slo.burn_rate.unwrap_or(1.0) * (1.0 - slo.objective.share()));
        let usable = LIMITS.contains(&allowed);
        if !usable {
            problems.push(problem(
                &path,
                &format!("burnRate times what {} allows is {allowed}", slo.objective),
                "write an objective below 100%, of which burnRate times the rest is at most a half",
            ));
        }
        let ratio = written.metrics.iter().find(|metric| metric.name == slo.metric && metric.ratio.is_some());
        let found = metrics.iter_mut().find(|metric| ratio.is_some() && metric.name == slo.metric);
        let Some(metric) = found else {
            problems.push(problem(
                &format!("{path}.metric"),
                &format!("{:?} is no ratio that is compared", slo.metric),
                "name a metric with events and total, or with slowerThan",
            ));
            continue;
        };
        metric.limit = usable.then_some(LimitPlan { rate: Some(allowed), objective: true, lowest: allowed });
    }
}

pub(super) fn some_impact(path: &str, impact: Percent, problems: &mut Vec<Problem>) {
    if impact == Percent::ZERO {
        problems.push(problem(path, "0%", "write more than 0%: no finite evidence proves equality"));
    }
}

/// Critical metrics share one half of the false rollback rate, the other gating ones the other; one kind alone, all of it.
pub(super) fn share_budget(metrics: &mut [MetricPlan]) {
    let number = |role| metrics.iter().filter(|metric| metric.role == role).map(|_| 1.0).sum::<f64>();
    let (critical, gating) = (number(MetricRole::Critical), number(MetricRole::Gating));
    let half = if critical > 0.0 && gating > 0.0 { 0.5 } else { 1.0 };
    for metric in metrics {
        metric.weight = match metric.role {
            MetricRole::Critical => half / critical,
            MetricRole::Gating => half / gating,
            MetricRole::Informational => 0.0,
        };
    }
}

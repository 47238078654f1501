//! `compile`: from what a user wrote to what the engine works on. The only module that reads spec types.
//!
//! All problems are found, not the first; each names the field, what is wrong, and what to write instead.

mod expression;
mod gauge;
mod metric;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use davylamp_api::RolloutSpec;
use davylamp_api::revision;
use davylamp_api::rollout::{
    Analysis, Approval, Baseline, Canary, CohortBy, Cohorts, Count, Hold, Metric, MetricRole, OnInconclusive,
    OnNoData, OnNoTraffic, RouteRef, SplitAction, Step, Strategy, Then,
};
use davylamp_api::run::{Calibrated, Sampling};
use davylamp_api::scalar::{Duration, Percent};
use davylamp_api::status::ServiceNames;
use serde_json::Value;

pub use self::expression::ExpressionPlan;
pub use self::gauge::GaugePlan;
pub(crate) use self::metric::LIMITS;
pub use self::metric::{CohortPods, Exposure, LimitPlan, MetricPlan};
use self::metric::{metric_plan, refuse_others, set_objectives, share_budget, some_impact, told};
use crate::calibration;
use crate::decision::MetricQuery;
use crate::observed::{Hash, baseline_of};

/// What the engine is asked about.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    /// The generation of the spec.
    pub generation: i64,
    /// What the user asks for; None when there are problems.
    pub program: Option<Program>,
    /// Why it cannot be carried out.
    pub problems: Vec<Problem>,
    /// What the run in flight promised; None without a run, or when its record is lost.
    pub run: Option<Conduct>,
}

/// What is wrong with a spec.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The path of the field.
    pub path: String,
    /// What is wrong.
    pub wrong: String,
    /// What to write instead.
    pub remedy: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; {}", self.path, self.wrong, self.remedy)
    }
}

/// A spec that can be carried out.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// The hash of the template.
    pub hash: Hash,
    /// Images of its containers.
    pub images: Vec<String>,
    /// How many pods carry the full traffic; None when the field is absent.
    pub replicas: Option<i32>,
    /// The pods of a step must be ready by then, ms.
    pub progress_deadline: i64,
    /// The user's own Service.
    pub service: String,
    /// The two Services that we own.
    pub services: ServiceNames,
    /// The user's selector, as text for the scale subresource.
    pub selector: String,
    /// How a release goes.
    pub conduct: Conduct,
}

/// How a release goes: from a spec, or as a run promised it.
#[derive(Clone, Debug, PartialEq)]
pub struct Conduct {
    /// The steps, expanded.
    pub steps: Vec<Step>,
    /// The routes that carry the weights.
    pub routes: Vec<RouteRef>,
    /// What is measured and promised.
    pub analysis: Plan,
    /// The strategy, expanded, for the record of a run.
    pub strategy: Strategy,
    /// The analysis, with metrics only, for the record of a run.
    pub written: Analysis,
    /// What was learnt of each metric before a run; nothing in a spec.
    pub learnt: BTreeMap<String, Calibrated>,
}

/// What is measured and promised.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The `MetricSource`.
    pub source: Option<String>,
    /// The false rollback rate of the whole rollout, without the part of its gauges.
    pub alpha: f64,
    /// The false promotion rate of each metric and step.
    pub beta: f64,
    /// The total impact on the service that a step may have, of metrics without one of their own.
    pub impact: f64,
    /// When `hold.max` has passed.
    pub on_inconclusive: OnInconclusive,
    /// When the canary is silent.
    pub on_no_data: OnNoData,
    /// When both are silent.
    pub on_no_traffic: OnNoTraffic,
    /// How long a pause lasts, ms.
    pub pause_deadline: i64,
    /// What follows.
    pub pause_then: Then,
    /// The age from which samples of a pod count, ms.
    pub warmup: i64,
    /// How long after a change of weight samples do not count, ms.
    pub settle: i64,
    /// The baseline is as many pods of the old version as the canary has, of its age; else all stable pods.
    pub fresh: bool,
    /// How far back the stable pods' metrics are read before a run, ms.
    pub history: i64,
    /// What is counted and compared.
    pub metrics: Vec<MetricPlan>,
    /// What pods are compared in.
    pub gauges: Vec<GaugePlan>,
    /// Whether the canary gets its share of the requests; None where no metric counts them.
    pub split: Option<SplitPlan>,
    /// What has fixed limits, and promises no error rate.
    pub expressions: Vec<ExpressionPlan>,
    /// How the source takes samples; None in a spec.
    pub sampling: Option<Sampling>,
}

/// Whether the canary gets its share of the requests.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SplitPlan {
    /// The index of the metric whose exposure are the requests.
    pub metric: usize,
    /// By so much of the weight the share may be more or less.
    pub tolerance: f64,
    /// The run pauses when it does not.
    pub pauses: bool,
}

impl Plan {
    /// With which pods a canary is compared beside this stable revision.
    #[must_use]
    pub fn baseline(&self, stable: &str) -> Hash {
        if self.fresh { baseline_of(stable) } else { stable.to_owned() }
    }

    /// Nothing is measured.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.metrics.is_empty() && self.gauges.is_empty() && self.expressions.is_empty()
    }

    /// All that is asked for.
    #[must_use]
    pub fn queries(&self) -> BTreeMap<String, MetricQuery> {
        let metrics = self.metrics.iter().map(|metric| (metric.name.clone(), metric.query.clone()));
        let gauges = self.gauges.iter().map(|gauge| (gauge.name.clone(), gauge.query.clone()));
        let divisors = self.gauges.iter().filter_map(|g| Some((g.divisor(), g.divided_by.clone()?)));
        let expressions = self.expressions.iter().map(|one| (one.name.clone(), one.query.clone()));
        metrics.chain(gauges).chain(divisors).chain(expressions).collect()
    }

    /// How the cohorts of some are told apart: all that are not by their pods.
    #[must_use]
    pub fn told(&self) -> BTreeMap<String, Cohorts> {
        let metrics = self.metrics.iter().map(|metric| (&metric.name, &metric.told));
        let all = metrics.chain(self.expressions.iter().map(|one| (&one.name, &one.told)));
        all.filter_map(|(name, told)| Some((name.clone(), told.clone()?))).collect()
    }

    /// Between two scrapes, ms.
    #[must_use]
    pub fn interval(&self) -> i64 {
        self.sampling.map_or(15_000, |sampling| sampling.scrape_interval.millis()).max(1_000)
    }

    /// What silence is counted in, and the evidence where nothing was learnt, ms: whole scrapes, 15 s or longer.
    #[must_use]
    pub fn block(&self) -> i64 {
        calibration::defaults(self.interval()).block.millis()
    }

    /// With another source, and what was learnt of it.
    pub fn calibrate(&mut self, sampling: Option<Sampling>, learnt: &BTreeMap<String, Calibrated>) {
        self.sampling = sampling;
        let interval = self.interval();
        for metric in &mut self.metrics {
            let Calibrated { block, clip, pod_effect, rate, .. } =
                calibration::usable(learnt.get(&metric.name), interval);
            let pod_effect = if metric.told.is_some() { 0.0 } else { pod_effect };
            (metric.block, metric.clip, metric.pod_effect) = (block.millis(), clip, pod_effect);
            if let Some(limit) = metric.limit.as_mut().filter(|limit| !limit.objective) {
                limit.rate = rate.map(|usual| limit.above_usual(usual));
            }
        }
    }
}

/// Pods that a share of the traffic needs when so many carry all of it.
#[must_use]
pub fn pods_for(size: i32, weight: Percent) -> i32 {
    let pods = i64::from(size) * i64::from(weight.basis_points());
    i32::try_from((pods + 9_999) / 10_000).unwrap_or(i32::MAX).max(1)
}

/// The number of a step, counted from 0, and its parts with every default filled.
pub(crate) struct StepView {
    pub(crate) weight: Percent,
    pub(crate) replicas: Option<i32>,
    pub(crate) hold_min: i64,
    pub(crate) hold_max: i64,
    /// Timeout in ms, and what follows.
    pub(crate) approval: Option<(i64, Then)>,
}

pub(crate) fn step_view(step: &Step) -> StepView {
    let hold = step.hold.clone().unwrap_or_default();
    StepView {
        weight: step.weight,
        replicas: step.replicas,
        hold_min: hold.min.unwrap_or(HOLD_MIN).millis(),
        hold_max: hold.max.unwrap_or(HOLD_MAX).millis(),
        approval: step.approval.as_ref().map(|a| {
            (a.timeout.unwrap_or(Duration::from_secs(86_400)).millis(), a.on_timeout.unwrap_or_default())
        }),
    }
}

const HISTORY: Duration = Duration::from_secs(12 * 3_600);
const LONGEST_HISTORY: Duration = Duration::from_secs(24 * 3_600);
const HOLD_MIN: Duration = Duration::from_secs(180);
pub(crate) const HOLD_MAX: Duration = Duration::from_secs(3_600);
/// Their pods are remembered in the status.
const MOST_GAUGES: usize = 4;

impl Program {
    /// From the spec of the Rollout of that name.
    ///
    /// # Errors
    /// All the problems that keep it from being carried out.
    pub fn compile(name: &str, spec: &RolloutSpec) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let services = spec.services.clone().unwrap_or_default();
        let services = ServiceNames {
            stable: services.stable.unwrap_or_else(|| format!("{name}-stable")),
            canary: services.canary.unwrap_or_else(|| format!("{name}-canary")),
        };
        if services.stable == services.canary
            || services.stable == spec.service
            || services.canary == spec.service
        {
            problems.push(problem(
                "spec.services",
                "spec.service, spec.services.stable and spec.services.canary are not three different names",
                "name your own Service in spec.service and two others that the controller may create",
            ));
        }
        let labels = spec.template.0.pointer("/metadata/labels");
        for (key, value) in &spec.selector.match_labels {
            if labels.and_then(|l| l.get(key)).and_then(Value::as_str) != Some(value) {
                problems.push(problem(
                    "spec.selector.matchLabels",
                    &format!("the template does not carry the label {key}={value}"),
                    "write it in spec.template.metadata.labels as well",
                ));
            }
        }
        for key in [
            davylamp_api::labels::POD_TEMPLATE_HASH,
            davylamp_api::labels::ROLE,
            davylamp_api::labels::ROLLOUT,
            davylamp_api::labels::SERVING,
        ] {
            if spec.selector.match_labels.contains_key(key) || labels.and_then(|l| l.get(key)).is_some() {
                problems.push(problem(
                    "spec.template.metadata.labels",
                    &format!("the label {key} is the controller's"),
                    "leave it out here and in spec.selector.matchLabels",
                ));
            }
        }
        if spec.replicas.is_some_and(|n| n < 0) {
            problems.push(problem("spec.replicas", "a number below 0", "write 0 or more"));
        }
        let containers = spec.template.0.pointer("/spec/containers").and_then(Value::as_array);
        if containers.is_none_or(Vec::is_empty) {
            problems.push(problem("spec.template.spec.containers", "no container", "write at least one"));
        }
        let images = containers
            .into_iter()
            .flatten()
            .filter_map(|c| c.get("image").and_then(Value::as_str))
            .take(16)
            .map(|image| image.chars().take(512).collect())
            .collect();
        let analysis = spec.analysis.clone().unwrap_or_default();
        let conduct = Conduct::compile(&spec.strategy, &analysis, None, &BTreeMap::new())
            .map_err(|mut more| problems.append(&mut more));
        match conduct {
            Ok(conduct) if problems.is_empty() => Ok(Self {
                hash: revision::hash(&spec.template.0, 0),
                images,
                replicas: spec.replicas,
                progress_deadline: spec.progress_deadline.unwrap_or(Duration::from_secs(600)).millis(),
                service: spec.service.clone(),
                services,
                selector: spec
                    .selector
                    .match_labels
                    .iter()
                    .map(|(k, v)| format!("{k}={v}"))
                    .chain([format!("{}=true", davylamp_api::labels::SERVING)])
                    .collect::<Vec<_>>()
                    .join(","),
                conduct,
            }),
            Ok(_) | Err(()) => Err(problems),
        }
    }
}

impl Conduct {
    /// From a spec's strategy and analysis, or from a run's, with what its record says of the source.
    ///
    /// # Errors
    /// All the problems that keep it from being carried out.
    pub fn compile(
        strategy: &Strategy,
        written: &Analysis,
        sampling: Option<Sampling>,
        learnt: &BTreeMap<String, Calibrated>,
    ) -> Result<Self, Vec<Problem>> {
        let mut problems = Vec::new();
        let steps = steps(&strategy.canary, written.hold.as_ref(), &mut problems);
        let routes: Vec<RouteRef> =
            strategy.traffic.iter().flat_map(|t| t.gateway_api.routes.iter().cloned()).collect();
        if routes.is_empty() {
            problems.push(problem(
                "spec.strategy.traffic",
                "no route",
                "name the HTTPRoute that carries the weights",
            ));
        }
        if routes.iter().map(|r| (&r.kind, &r.name, &r.rule)).collect::<BTreeSet<_>>().len() < routes.len() {
            problems.push(problem(
                "spec.strategy.traffic",
                "a route is named twice",
                "name each route and rule once",
            ));
        }
        let fresh = strategy.canary.baseline == Some(Baseline::Fresh);
        let mut analysis = plan(written, &steps, fresh, &mut problems);
        analysis.calibrate(sampling, learnt);
        let mut strategy = strategy.clone();
        strategy.canary.steps = Some(steps.clone());
        if problems.is_empty() {
            Ok(Self { steps, routes, analysis, strategy, written: written.clone(), learnt: learnt.clone() })
        } else {
            Err(problems)
        }
    }
}

pub(crate) fn problem(path: &str, wrong: &str, remedy: &str) -> Problem {
    Problem { path: path.to_owned(), wrong: wrong.to_owned(), remedy: remedy.to_owned() }
}

fn steps(canary: &Canary, hold: Option<&Hold>, problems: &mut Vec<Problem>) -> Vec<Step> {
    let default = || {
        [100, 500, 2_500, 5_000]
            .map(|bp| Step { weight: Percent::from_basis_points(bp), ..Step::default() })
            .to_vec()
    };
    let written = canary.steps.clone().unwrap_or_else(default);
    if written.is_empty() || written.len() > 50 {
        problems.push(problem(
            "spec.strategy.canary.steps",
            "not 1 to 50 steps",
            "write 1 to 50 steps, or leave them out",
        ));
    }
    let default = hold.cloned().unwrap_or_default();
    let mut before = Percent::ZERO;
    let mut steps = Vec::new();
    for (i, mut step) in written.into_iter().enumerate() {
        let path = format!("spec.strategy.canary.steps[{i}]");
        if step.weight <= before || step.weight >= Percent::FULL {
            problems.push(problem(
                &format!("{path}.weight"),
                &format!("{} after {before}", step.weight),
                "write a weight above the step before and below 100%; the way to 100% follows the last step by itself",
            ));
        }
        before = before.max(step.weight);
        if step.replicas.is_some_and(|n| n < 1) {
            problems.push(problem(&format!("{path}.replicas"), "no pod", "write 1 or more, or leave it out"));
        }
        let own = step.hold.clone().unwrap_or_default();
        let min = own.min.or(default.min).unwrap_or(HOLD_MIN);
        let max = own.max.or(default.max).unwrap_or_else(|| HOLD_MAX.max(min));
        if max < min {
            problems.push(problem(
                &format!("{path}.hold"),
                &format!("max {max} is shorter than min {min}"),
                "write a max that is longer, here or in spec.analysis.hold",
            ));
        }
        step.hold = Some(Hold { min: Some(min), max: Some(max) });
        step.approval = step.approval.map(|a| Approval {
            timeout: Some(a.timeout.unwrap_or(Duration::from_secs(86_400))),
            on_timeout: Some(a.on_timeout.unwrap_or_default()),
        });
        steps.push(step);
    }
    steps
}

fn plan(written: &Analysis, steps: &[Step], fresh: bool, problems: &mut Vec<Problem>) -> Plan {
    let mut rate = |path: &str, value: Option<Percent>, default: u16| {
        let value = value.unwrap_or_else(|| Percent::from_basis_points(default));
        if value == Percent::ZERO || value.basis_points() > 5_000 {
            problems.push(problem(path, &format!("{value}"), "write more than 0% and at most 50%"));
        }
        value.share()
    };
    let alpha = rate("spec.analysis.falseRollbackRate", written.false_rollback_rate, 100);
    let beta = rate("spec.analysis.falsePromotionRate", written.false_promotion_rate, 500);
    let impact = written.max_service_impact.unwrap_or(Percent::from_basis_points(5_000));
    some_impact("spec.analysis.maxServiceImpact", impact, problems);
    if !written.metrics.is_empty() && written.source.is_none() {
        problems.push(problem(
            "spec.analysis.source",
            "absent",
            "name the MetricSource that holds the metrics",
        ));
    }
    if written.metrics.len() > 10 {
        problems.push(problem("spec.analysis.metrics", "more than 10", "choose at most 10"));
    }
    let mut names = BTreeMap::new();
    let (mut metrics, mut gauges, mut expressions) = (Vec::new(), Vec::new(), Vec::new());
    for (i, metric) in written.metrics.iter().enumerate() {
        if let Some(first) = names.insert(metric.name.clone(), i) {
            problems.push(problem(
                &format!("spec.analysis.metrics[{i}].name"),
                &format!("{:?} is the name of metrics[{first}], too", metric.name),
                "give each metric a name of its own",
            ));
        }
        let path = format!("spec.analysis.metrics[{i}]");
        match compared(&path, metric, impact, problems) {
            Compared::Counts(plan) => metrics.push(MetricPlan { beta, ..plan }),
            Compared::Pods(plan) => gauges.push(plan),
            Compared::Limits(plan) => expressions.push(plan),
        }
    }
    gauge::judge_growths(written, fresh, &mut gauges, problems);
    if fresh {
        refuse_shares(written, problems);
    }
    if gauges.len() > MOST_GAUGES {
        problems.push(problem("spec.analysis.metrics", "more than 4 gauges", "choose at most 4 of them"));
    }
    set_objectives(written, &mut metrics, problems);
    let history = written.calibration.as_ref().and_then(|calibration| calibration.history);
    let history = history.unwrap_or(HISTORY);
    if history > LONGEST_HISTORY {
        problems.push(problem(
            "spec.analysis.calibration.history",
            &history.to_string(),
            "write a duration of at most 24h, or 0s to learn nothing",
        ));
    }
    // A fresh baseline is only a part of what gets the rest of the traffic.
    let split = split(written, &metrics, problems).filter(|_| !fresh);
    share_budget(&mut metrics);
    let alpha = gauge::share_budget(alpha, beta, steps, &metrics, &mut gauges);
    let pause = written.pause.clone().unwrap_or_default();
    Plan {
        source: written.source.clone(),
        alpha,
        beta,
        impact: impact.share(),
        on_inconclusive: written.on_inconclusive.unwrap_or_default(),
        on_no_data: written.on_no_data.unwrap_or_default(),
        on_no_traffic: written.on_no_traffic.unwrap_or_default(),
        pause_deadline: pause.deadline.unwrap_or(Duration::from_secs(86_400)).millis(),
        pause_then: pause.then.unwrap_or_default(),
        warmup: written.warmup.unwrap_or(Duration::from_secs(120)).millis(),
        settle: written.settle.unwrap_or(Duration::from_secs(30)).millis(),
        fresh,
        history: history.millis(),
        metrics,
        gauges,
        split,
        expressions,
        sampling: None,
    }
}

fn split(written: &Analysis, metrics: &[MetricPlan], problems: &mut Vec<Problem>) -> Option<SplitPlan> {
    let split = written.traffic_split.clone().unwrap_or_default();
    let tolerance = split.tolerance.unwrap_or(Percent::from_basis_points(3_000));
    if tolerance == Percent::ZERO {
        problems.push(problem(
            "spec.analysis.trafficSplit.tolerance",
            "0%",
            "write more than 0%: no split is exact; action: inform pauses nothing",
        ));
    }
    Some(SplitPlan {
        metric: metrics.iter().position(|metric| metric.counts_requests() && metric.told.is_none())?,
        tolerance: tolerance.share(),
        pauses: split.action.unwrap_or_default() == SplitAction::Pause,
    })
}

/// How much of the traffic a part of the stable pods gets, nobody says; nor which series are theirs, where pods are not told
/// apart.
fn refuse_shares(written: &Analysis, problems: &mut Vec<Problem>) {
    for (i, metric) in written.metrics.iter().enumerate() {
        let path = format!("spec.analysis.metrics[{i}]");
        let of_share = matches!(metric.count, Some(Count { exposure: None, per: None, .. }));
        if of_share || metric.throughput.is_some() {
            problems.push(problem(
                &format!("{path}.{}", if of_share { "count" } else { "throughput" }),
                &format!(
                    "{} is for shares of the traffic, and nobody says that of a fresh baseline",
                    metric.name
                ),
                "write a count with exposure: a counter of the requests",
            ));
        }
        if metric.cohort.as_ref().is_some_and(|cohort| cohort.by != CohortBy::Pod) {
            problems.push(problem(
                &format!("{path}.cohort"),
                &format!("{} does not tell the pods of a fresh baseline from the others", metric.name),
                "leave it out, or use baseline: stable",
            ));
        }
    }
}

/// One of the ways to compare.
#[derive(Debug)]
pub(crate) enum Compared {
    /// Events, by what each adds to the evidence.
    Counts(MetricPlan),
    /// Pods, at declared looks.
    Pods(GaugePlan),
    /// One number with fixed limits.
    Limits(ExpressionPlan),
}

pub(crate) fn compared(
    path: &str,
    metric: &Metric,
    impact: Percent,
    problems: &mut Vec<Problem>,
) -> Compared {
    let Metric { ratio, count, distribution, gauge, throughput, expression, .. } = metric;
    let kinds = [
        ratio.is_some(),
        count.is_some(),
        distribution.is_some(),
        gauge.is_some(),
        throughput.is_some(),
        expression.is_some(),
    ];
    if kinds.iter().filter(|kind| **kind).count() != 1 {
        let remedy = "write one of ratio, count, throughput, distribution, gauge and expression";
        problems.push(problem(path, "not one kind", remedy));
    }
    if metric.role == Some(MetricRole::Critical) && (gauge.is_some() || expression.is_some()) {
        let remedy = "write gating, or leave it out: only what is counted shares falseRollbackRate so";
        problems.push(problem(&format!("{path}.role"), "critical", remedy));
    }
    match (gauge, expression) {
        (None, None) => Compared::Counts(metric_plan(path, metric, impact, problems)),
        (Some(gauge), _) => {
            refuse_others(path, metric, problems);
            // What is of pods is told apart by them.
            if told(path, metric, problems).is_some() {
                let remedy = "write by: pod, or leave it out: a gauge is of pods";
                problems.push(problem(&format!("{path}.cohort"), "not by pod", remedy));
            }
            Compared::Pods(gauge::gauge_plan(path, metric, gauge, impact, problems))
        }
        (None, Some(written)) => {
            refuse_others(path, metric, problems);
            Compared::Limits(expression::expression_plan(path, metric, written, problems))
        }
    }
}

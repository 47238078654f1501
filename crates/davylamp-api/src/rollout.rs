//! `Rollout`: the workload and how it is released. Written by the user; the controller only patches its status, its
//! finalizer and, once, an absent `replicas`.

use std::fmt;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::scalar::{Duration, Percent, PodTemplate, Selector};
use crate::status::RolloutStatus;
use crate::template::{Preset, TemplateRef};

/// A workload and how its next version is released: step by step, judged by measurement.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "davylamp.dev",
    version = "v1alpha1",
    kind = "Rollout",
    plural = "rollouts",
    shortname = "dlr",
    category = "davylamp",
    namespaced,
    derive = "PartialEq",
    status = "RolloutStatus",
    scale(
        spec_replicas_path = ".spec.replicas",
        status_replicas_path = ".status.replicas",
        label_selector_path = ".status.selector"
    ),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Step", type_ = "integer", json_path = ".status.step.index"),
    printcolumn(name = "Weight", type_ = "string", json_path = ".status.traffic.effective"),
    printcolumn(name = "Evidence", type_ = "string", json_path = ".status.analysis.evidence"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.metadata.name.size() <= 45 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')")
        .message("metadata.name: use at most 45 lower-case letters, digits and '-', beginning with a letter: Services and pods are named after it"),
    validation = Rule::new("self.spec.selector.matchLabels.all(k, k in self.spec.template.metadata.labels && self.spec.template.metadata.labels[k] == self.spec.selector.matchLabels[k])")
        .message("spec.selector.matchLabels: write each of these labels, with the same value, in spec.template.metadata.labels as well"),
    validation = Rule::new("!has(self.spec.services) || !has(self.spec.services.stable) || self.spec.services.stable != self.spec.service")
        .message("spec.services.stable: name another Service than spec.service, which stays yours; leave it out for <name>-stable"),
    validation = Rule::new("!has(self.spec.services) || !has(self.spec.services.canary) || self.spec.services.canary != self.spec.service")
        .message("spec.services.canary: name another Service than spec.service, which stays yours; leave it out for <name>-canary"),
    validation = Rule::new("!has(self.spec.services) || !has(self.spec.services.stable) || !has(self.spec.services.canary) || self.spec.services.stable != self.spec.services.canary")
        .message("spec.services: name two different Services for stable and canary"),
    validation = Rule::new("self.spec.service != self.metadata.name + '-stable' || (has(self.spec.services) && has(self.spec.services.stable))")
        .message("spec.service: <name>-stable is the Service that the controller owns; name your own Service here, or set spec.services.stable"),
    validation = Rule::new("self.spec.service != self.metadata.name + '-canary' || (has(self.spec.services) && has(self.spec.services.canary))")
        .message("spec.service: <name>-canary is the Service that the controller owns; name your own Service here, or set spec.services.canary"),
    validation = Rule::new("(has(self.spec.strategy.canary.baseline) && self.spec.strategy.canary.baseline == 'fresh') || !has(self.spec.analysis) || !has(self.spec.analysis.metrics) || self.spec.analysis.metrics.all(m, !has(m.role) || m.role == 'informational' || !has(m.gauge) || !has(m.gauge.compare) || m.gauge.compare != 'growth')")
        .message("spec.analysis.metrics[].role: write informational, or leave it out: a growth decides only with spec.strategy.canary.baseline: fresh, for other pods are of another age")
)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSpec {
    /// How many pods carry the full traffic. Absent: 1, written once; an autoscaler may own it from then on.
    #[schemars(range(min = 0, max = 10_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// Labels that the pods carry; immutable, as in a Deployment.
    #[x_kube(validation = Rule::new("self == oldSelf").message("spec.selector is immutable: delete the Rollout with --cascade=orphan and create it anew"))]
    pub selector: Selector,
    /// A pod template, as in a Deployment.
    pub template: PodTemplate,
    /// For how long a pod must be ready before it counts, in seconds. Default 0.
    #[schemars(range(min = 0, max = 86_400))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_ready_seconds: Option<i32>,
    /// How many old revisions are kept. Default 10.
    #[schemars(range(min = 0, max = 50))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision_history_limit: Option<i32>,
    /// How many ended runs are kept. Default 10.
    #[schemars(range(min = 0, max = 50))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_history_limit: Option<i32>,
    /// The pods of a step must be ready by then, else the run is rolled back. Default 10m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub progress_deadline: Option<Duration>,
    /// Your Service of the workload: its ports are copied, itself is never written.
    #[schemars(regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"), length(max = 63))]
    pub service: String,
    /// Names of the two Services that the controller owns.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<Services>,
    /// How traffic moves to the new version.
    pub strategy: Strategy,
    /// What is measured, and what is promised.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<Analysis>,
}

/// Names of the two Services that the controller owns and routes name as backends.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Services {
    /// The Service of the stable version. Default `<name>-stable`.
    #[schemars(regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"), length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<String>,
    /// The Service of the canary. Default `<name>-canary`.
    #[schemars(regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"), length(max = 63))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
}

/// How traffic moves to the new version.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Strategy {
    /// Step by step, beside the old version.
    pub canary: Canary,
    /// What carries the weights; all are driven and verified together.
    #[schemars(length(min = 1, max = 8))]
    pub traffic: Vec<Traffic>,
}

/// A release in steps.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.steps) || self.steps.all(s, !s.weight.matches('^[0-9.]{1,6}%$') || (double(s.weight.replace('%', '')) > 0.0 && double(s.weight.replace('%', '')) < 100.0))")
    .message("spec.strategy.canary.steps[].weight: write more than 0% and less than 100%; the way to 100% follows the last step by itself"))]
#[x_kube(validation = Rule::new("!has(self.steps) || self.steps.map(s, s.weight.matches('^[0-9.]{1,6}%$') ? double(s.weight.replace('%', '')) : 0.0).isSorted()")
    .message("spec.strategy.canary.steps[].weight: each step's weight must be higher than the one before; sort the steps"))]
pub struct Canary {
    /// The steps. Absent: 1 %, 5 %, 25 %, 50 %; then all.
    #[schemars(length(min = 1, max = 50))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<Vec<Step>>,
    /// With which pods of the old version the canary is compared. Default stable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<Baseline>,
}

/// With which pods of the old version a canary is compared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Baseline {
    /// With all that are there.
    #[default]
    Stable,
    /// With as many as the canary has, started with it for the time of the run.
    Fresh,
}

/// One step of a canary.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// The share of requests that the new version gets.
    pub weight: Percent,
    /// Pods of the new version. Default: as many as the weight needs, rounded up.
    #[schemars(range(min = 1, max = 10_000))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
    /// For how long the step lasts, at least and at most. Default: `spec.analysis.hold`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// Somebody must promote this step, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<Approval>,
}

/// For how long a step lasts. Counted in the time of the data, from the moment the weight is effective.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Hold {
    /// No promotion before this. Default 3m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<Duration>,
    /// After this without a verdict: `onInconclusive`. Default 60m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<Duration>,
}

/// A step that waits for a person or a tool: a `RolloutAction` with the verb `promote`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// For how long it waits. Default 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// What happens then. Default rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_timeout: Option<Then>,
}

/// What carries the weights. Exactly one kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Traffic {
    /// Routes of the Gateway API.
    #[serde(rename = "gatewayAPI")]
    pub gateway_api: GatewayApi,
}

/// Routes of the Gateway API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GatewayApi {
    /// The routes, in the Rollout's namespace. They name both Services as backends.
    #[schemars(length(min = 1, max = 8))]
    pub routes: Vec<RouteRef>,
}

/// One route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteRef {
    /// The kind of the route.
    pub kind: RouteKind,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// The name of one of its rules. Absent: each rule that names both Services.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
}

/// Kinds of routes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum RouteKind {
    /// `gateway.networking.k8s.io/v1`.
    #[serde(rename = "HTTPRoute")]
    HttpRoute,
}

/// What is measured, and what is promised.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(!has(self.metrics) || self.metrics.size() == 0) && (!has(self.presets) || self.presets.size() == 0) && (!has(self.templates) || self.templates.size() == 0) || has(self.source)")
    .message("spec.analysis.source: name the MetricSource that holds the metrics"))]
#[x_kube(validation = Rule::new("!has(self.slos) || (has(self.presets) && self.presets.size() > 0) || (has(self.templates) && self.templates.size() > 0) || self.slos.all(s, has(self.metrics) && self.metrics.exists(m, m.name == s.metric && has(m.ratio)))")
    .message("spec.analysis.slos[].metric: name a metric of spec.analysis.metrics that is a ratio"))]
pub struct Analysis {
    /// The `MetricSource` to ask.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// The probability that a good version is rolled back: over the whole rollout, all looks, steps and metrics. Default 1%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub false_rollback_rate: Option<Percent>,
    /// The probability that a step passes although a metric is worse than its margin. Default 5%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub false_promotion_rate: Option<Percent>,
    /// The margin of a step is 1 + this / (the next weight). Default 50%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_service_impact: Option<Percent>,
    /// Default for steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<Hold>,
    /// When `hold.max` has passed without a verdict. Default pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_inconclusive: Option<OnInconclusive>,
    /// When the canary is silent and the baseline is not. Default pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_no_data: Option<OnNoData>,
    /// When both are silent. Default pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub on_no_traffic: Option<OnNoTraffic>,
    /// For every pause that the controller makes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pause: Option<Pause>,
    /// Samples of pods that have been ready for less than this are left out, in both cohorts; each pod warms up once in a step.
    /// Default 2m.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warmup: Option<Duration>,
    /// Samples so soon after a change of weight are left out. Default 30s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settle: Option<Duration>,
    /// What is learnt from the stable pods before a run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub calibration: Option<Calibration>,
    /// Metrics that come with the program.
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presets: Vec<Preset>,
    /// Templates whose metrics are compared.
    #[schemars(length(max = 10))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["scope", "name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<TemplateRef>,
    /// What is compared, in place of what presets and templates have under the same name. No metrics at all: steps advance
    /// on pod health alone, and say so.
    #[schemars(length(max = 10))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// Objectives of ratios. A canary that violates one pauses the run; a baseline that does holds it.
    #[schemars(length(max = 10))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["metric"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub slos: Vec<Slo>,
    /// Whether the canary gets the share of the requests that its weight says. Looked at wherever a metric counts requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic_split: Option<TrafficSplit>,
}

/// Whether the canary gets the share of the requests that its weight says, shown at an error rate of 0.1 % of its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficSplit {
    /// By so much of the weight the share may be more or less. Default 30%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Percent>,
    /// What follows when it does not. Default pause.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub action: Option<SplitAction>,
}

/// What follows when the canary does not get its share.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum SplitAction {
    /// Wait; goes on by itself when it gets its share again.
    #[default]
    Pause,
    /// It is said, and nothing else.
    Inform,
}

/// A service level objective. It is violated by more events than `burnRate` times what it allows, shown at an error rate of
/// 1 % of its own.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Slo {
    /// The name of a metric that is a ratio.
    #[schemars(length(min = 1, max = 40))]
    pub metric: String,
    /// The share of good ones, like 99.5%.
    pub objective: Percent,
    /// So many times what the objective allows is too much. Default 1.
    #[schemars(range(min = 0.1, max = 1000.0))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burn_rate: Option<f64>,
}

/// What is learnt from the stable pods before a run: how long bursts of events last, how much one may count, and how much
/// pods of one version differ by themselves.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Calibration {
    /// How far back their metrics are read, at most 24h. Default 12h. With 0s, and where there is no history, nothing is
    /// learnt: blocks of 15s, a block multiplies the evidence by 10 at most, and pods are taken to differ by 5%.
    #[x_kube(validation = Rule::new("duration(self) <= duration('24h')")
        .message("spec.analysis.calibration.history: write a duration of at most 24h, or 0s to learn nothing"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub history: Option<Duration>,
}

/// One thing that is compared between canary and baseline. Exactly one kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("[has(self.ratio), has(self.count), has(self.throughput), has(self.distribution), has(self.gauge), has(self.expression)].filter(k, k).size() == 1")
    .message("metrics[]: write one of ratio, count, throughput, distribution, gauge and expression"))]
#[x_kube(validation = Rule::new("!has(self.cohort) || self.cohort.by == 'pod' || (!has(self.gauge) && (!has(self.count) || !has(self.count.per)))")
    .message("metrics[].cohort: write by: pod, or leave it out: a gauge and a count per podSeconds are of pods"))]
#[x_kube(validation = Rule::new("!has(self.expression) || (!has(self.tolerance) && !has(self.maxServiceImpact))")
    .message("metrics[].expression: leave out tolerance and maxServiceImpact: max and min are its limits"))]
#[x_kube(validation = Rule::new("!has(self.goal) || has(self.count)")
    .message("metrics[].goal: leave it out here: only a count has a goal; of all else less is better"))]
#[x_kube(validation = Rule::new("!has(self.floor) || has(self.ratio) || (has(self.count) && has(self.count.per))")
    .message("metrics[].floor: leave it out here: only a ratio and a count per podSeconds have a floor"))]
pub struct Metric {
    /// Its name in status, events and records.
    #[schemars(regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"), length(max = 40))]
    pub name: String,
    /// Events of so many, as errors of requests. Lower is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<Ratio>,
    /// Events for so much exposure, as orders for requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub count: Option<Count>,
    /// Values, as latencies. Lower is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distribution: Option<Distribution>,
    /// One number of each pod, as its memory. Lower is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gauge: Option<Gauge>,
    /// Requests for the share of the traffic. Higher is better.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throughput: Option<Throughput>,
    /// One number within limits. It promises no error rate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<Expression>,
    /// How the series of canary and baseline are told apart. Default by pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cohort: Option<Cohorts>,
    /// What is better, for a count. Default lower.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub goal: Option<Goal>,
    /// What follows from it. Default gating; of a growth without a fresh baseline, informational.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<MetricRole>,
    /// Worse than the baseline by no more than this is tolerated. Default 10%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tolerance: Option<Percent>,
    /// Rates below this are never a reason to roll back, for a ratio and a count per podSeconds. Default 0.1%.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor: Option<Percent>,
    /// For this metric, in place of `spec.analysis.maxServiceImpact`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_service_impact: Option<Percent>,
}

/// How the series of canary and baseline are told apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.by == 'pod' ? !has(self.label) && !has(self.form) && !has(self.namespaceLabel) : self.by == 'service' || (has(self.label) && !has(self.form))")
    .message("metrics[].cohort: write label with by: labels, label and form with by: service, and neither with by: pod, whose labels are the MetricSource's"))]
#[x_kube(validation = Rule::new("!has(self.form) || self.form != 'traefik' || !has(self.namespaceLabel)")
    .message("metrics[].cohort.namespaceLabel: leave it out: Traefik names the namespace in the label of the Service"))]
pub struct Cohorts {
    /// By what.
    pub by: CohortBy,
    /// The label that names the Service, by service; default `service`. By labels, the one whose value is the
    /// `pod-template-hash` of the revision.
    #[schemars(regex(pattern = r"^[a-zA-Z_][a-zA-Z0-9_]*$"), length(min = 1, max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// How that label names a Service. Default name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub form: Option<ServiceForm>,
    /// The label in which the namespace of the Rollout stands. Default that of the `MetricSource`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_label: Option<NamespaceLabel>,
}

/// "by service".
impl fmt::Display for Cohorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.by, self.label.as_deref().unwrap_or_default()) {
            (CohortBy::Pod, _) => f.write_str("by pod"),
            (CohortBy::Service, _) => f.write_str("by service"),
            (CohortBy::Labels, label) => write!(f, "by label {label}"),
        }
    }
}

/// What tells cohorts apart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum CohortBy {
    /// The names of the pods.
    #[default]
    Pod,
    /// The two Services that the controller owns, as a gateway counts them. Pods are not told apart then: there is no allowance
    /// for how they differ, and no warm-up.
    Service,
    /// The value of a label, as a mesh's version. The same holds.
    Labels,
}

/// How a gateway names a Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ServiceForm {
    /// By its name.
    #[default]
    Name,
    /// As Traefik does for an `HTTPRoute`: `httproute-..-svc-NAMESPACE-NAME-0@kubernetesgateway`.
    Traefik,
    /// As ingress-nginx does: the stable Service's name, and in the label `canary` nothing or `NAMESPACE-NAME-PORT`.
    Nginx,
}

/// Labels that name the namespace of what a gateway or a mesh counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NamespaceLabel {
    /// Where the label of the gateway gave way to that of its target.
    ExportedNamespace,
    /// Of Istio: of the Service that is asked.
    DestinationServiceNamespace,
    /// Of Istio: of the workload that answers.
    DestinationWorkloadNamespace,
}

impl NamespaceLabel {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ExportedNamespace => "exported_namespace",
            Self::DestinationServiceNamespace => "destination_service_namespace",
            Self::DestinationWorkloadNamespace => "destination_workload_namespace",
        }
    }
}

/// Requests, for the share of the traffic that the weight gives a cohort.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Throughput {
    /// A counter, like `http_requests_total`: a plain selector without range or function.
    #[schemars(length(min = 1, max = 1024))]
    pub requests: String,
}

/// Any expression that gives one number. It is asked for at each scrape interval, and compared with fixed limits.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.max) || has(self.min)")
    .message("metrics[].expression: write max, min or both"))]
#[x_kube(validation = Rule::new("!has(self.max) || !has(self.min) || self.min <= self.max")
    .message("metrics[].expression.min: write no more than max"))]
pub struct Expression {
    /// `PromQL`. `{{canary}}` and `{{baseline}}` stand among the matchers of a selector, and for those of the cohort:
    /// `errors_total{code="500", {{canary}}}`. The namespace is added to each selector.
    #[schemars(length(min = 1, max = 2048))]
    pub query: String,
    /// A value above this is outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// A value below this is outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// So many values in a row outside roll back; and so many must be known before the next step. Default 3.
    #[schemars(range(min = 1, max = 100))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub consecutive: Option<i32>,
}

/// What follows from a metric.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum MetricRole {
    /// It may roll back, and must be shown to be good enough for the next step.
    #[default]
    Gating,
    /// The same; all critical metrics together may use half of `falseRollbackRate`. Not of a gauge or an expression.
    Critical,
    /// It is shown, and decides nothing.
    Informational,
}

/// What is better.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Goal {
    /// As of failures.
    #[default]
    Lower,
    /// As of orders.
    Higher,
}

/// A counter, and for how much it counts. Selectors are plain ones without range or function; matchers for pods and namespace
/// are added. With neither `exposure` nor `per`, a cohort's exposure is its share of the traffic as the weight has it, times
/// time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.exposure) || !has(self.per)")
    .message("metrics[].count: write exposure or per, not both; neither of them for the share of the traffic"))]
pub struct Count {
    /// What is counted, like `orders_total`.
    #[schemars(length(min = 1, max = 1024))]
    pub events: String,
    /// Another counter: for how much, like `http_requests_total`.
    #[schemars(length(min = 1, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exposure: Option<String>,
    /// In place of a counter.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per: Option<Per>,
}

/// Exposure that no counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Per {
    /// Seconds in which the pods were watched, ready or not: for restarts and what ends a container.
    PodSeconds,
}

/// One number of each pod. Pods are compared, not points in time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.dividedBy) || !has(self.compare) || self.compare == 'level'")
    .message("metrics[].gauge.compare: write level, or leave it out: with dividedBy there is no growth"))]
pub struct Gauge {
    /// A gauge, like `process_resident_memory_bytes`; with `dividedBy`, a counter, like `process_cpu_seconds_total`. Series of
    /// one target are summed.
    #[schemars(length(min = 1, max = 1024))]
    pub query: String,
    /// A counter, like `http_requests_total`. What is compared is what `query`, then a counter as well, grows by for each of
    /// these.
    #[schemars(length(min = 1, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divided_by: Option<String>,
    /// What of it. Default level.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compare: Option<Compare>,
}

/// What of a gauge.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Compare {
    /// What it is on average.
    #[default]
    Level,
    /// What it has grown by since warm-up. Without a fresh baseline it is shown, and decides nothing: the other pods are of
    /// another age.
    Growth,
}

/// A histogram, all of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Distribution {
    /// The name of a histogram, classic or native, without `_bucket`, perhaps with matchers, like
    /// `http_request_duration_seconds{path!="/health"}`.
    #[schemars(length(min = 1, max = 1024))]
    pub histogram: String,
}

/// Two counters, or the part of a histogram above a bound. Each is a plain selector without range or function; matchers for
/// pods and namespace are added.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.events) == has(self.total) && has(self.histogram) == has(self.slowerThan) && has(self.events) != has(self.histogram)")
    .message("metrics[].ratio: write events and total, or histogram and slowerThan"))]
pub struct Ratio {
    /// What goes wrong, like `http_requests_total{code=~"5.."}`.
    #[schemars(length(min = 1, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub events: Option<String>,
    /// Of how many, like `http_requests_total`.
    #[schemars(length(min = 1, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub total: Option<String>,
    /// The name of a classic histogram without `_bucket`, perhaps with matchers, like `http_request_duration_seconds`.
    #[schemars(length(min = 1, max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub histogram: Option<String>,
    /// What takes longer counts as an event; it must be the bound of a bucket. In a histogram whose name ends in
    /// `_milliseconds` or `_ms` bounds are read as those, else as seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slower_than: Option<Duration>,
}

/// For every pause that the controller makes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pause {
    /// For how long. Default 24h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Duration>,
    /// What happens then. Default rollback.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub then: Option<Then>,
}

/// The end of a pause that nobody ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Then {
    /// All traffic back to the stable version.
    #[default]
    Rollback,
    /// The weight stays, and the Rollout is `Degraded` until somebody decides.
    Keep,
}

/// What happens when `hold.max` has passed without a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnInconclusive {
    /// Wait for somebody.
    #[default]
    Pause,
    /// Take the next step.
    Promote,
    /// Roll back.
    Rollback,
}

/// What happens when the canary is silent and the baseline is not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnNoData {
    /// Wait; goes on by itself when there is data again.
    #[default]
    Pause,
    /// Roll back.
    Rollback,
}

/// What happens when both are silent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum OnNoTraffic {
    /// Wait; goes on by itself when there is traffic again.
    #[default]
    Pause,
    /// Take the next step once `hold.min` has passed.
    Promote,
}

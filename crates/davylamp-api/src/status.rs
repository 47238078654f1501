//! The status of a Rollout: with the samples since its checkpoint, the engine's only memory.
//!
//! Unknown values of an enum read as `Unknown`, so that the status of a newer version can still be read.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};

use crate::Instant;
use crate::action::ActionPhase;
use crate::checkpoint::Checkpoint;
use crate::conditions::Reason;
use crate::rollout::{RouteRef, Step};
use crate::run::{Cohort, DecisionRecord, ExpressionRecord, GaugeRecord, Interval};
use crate::scalar::Percent;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
pub(crate) fn zero(n: &i64) -> bool {
    *n == 0
}

/// What the controller knows and intends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("default" = {"observedGeneration": -1}))]
pub struct RolloutStatus {
    /// The generation of the spec that this status answers; -1 before the first look.
    #[serde(default)]
    #[schemars(extend("default" = null))]
    pub observed_generation: i64,
    /// In one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// In one sentence, with numbers.
    #[schemars(length(max = 2048))]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// Ready, Reconciling, Stalled (kstatus), Available, Valid, `ServicesReady`, `TrafficReady`, `AnalysisReady`,
    /// and Incident from the first one on.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The version that users rely on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<Revision>,
    /// The version that is being tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Revision>,
    /// Revisions that failed, and are not tried again by themselves.
    #[schemars(length(max = 10))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
    /// Where the run stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<StepStatus>,
    /// The state of the machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// What the routes carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<TrafficStatus>,
    /// What was measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<AnalysisStatus>,
    /// What must still be told.
    #[schemars(length(max = 9))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pending: Vec<Pending>,
    /// The number of the last entry that was ever pending.
    #[serde(default, skip_serializing_if = "zero")]
    #[schemars(extend("default" = null))]
    pub told: i64,
    /// Events that were dropped, for the outbox was full.
    #[serde(default, skip_serializing_if = "zero")]
    #[schemars(extend("default" = null))]
    pub dropped: i64,
    /// Outcomes of actions, until their objects say so.
    #[schemars(length(max = 20))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub actions: Vec<ActionOutcome>,
    /// Pods, for the scale subresource: the logical size.
    #[serde(default)]
    #[schemars(extend("default" = null))]
    pub replicas: i32,
    /// The selector, for the scale subresource.
    #[schemars(length(max = 4096))]
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub selector: String,
    /// The run in flight, or the last one.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The newest revision that was ever tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest: Option<Attempt>,
    /// Steps that were edited while the run was on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan: Option<Plan>,
    /// The size when the run began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size_at_start: Option<i32>,
    /// Names of the Services that the run drives, needed without a program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServiceNames>,
    /// The previous stable version, whose pods stay for a while.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<OldPods>,
    /// Foreign writes to our routes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conflicts: Option<Conflicts>,
    /// Since when too few pods of the canary are ready.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity_low_since: Option<Instant>,
    /// The last incident of the baseline in this run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incident: Option<IncidentStatus>,
    /// What goes on after the incident for which the run is held.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held: Option<Held>,
    /// Somebody promoted then: incidents that were noticed before hold nothing.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incidents_after: Option<Instant>,
}

/// An incident of the baseline. Times are those of the data.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IncidentStatus {
    /// The metric that showed it.
    #[schemars(length(max = 40))]
    pub metric: String,
    /// The rate that the baseline exceeded.
    pub limit: f64,
    /// The start of the first block in a row above it.
    #[schemars(with = "Time")]
    pub since: Instant,
    /// When the evidence sufficed.
    #[schemars(with = "Time")]
    pub noticed: Instant,
    /// When it was over.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub over: Option<Instant>,
}

/// Where a run stood when it was held for an incident.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Held {
    /// The state that was left.
    pub from: StateName,
    /// The reason of that state.
    pub reason: Reason,
    /// For how long the step had been judged by then, ms in the time of the data: `hold.max` stands still.
    pub judged: i64,
    /// Until when it is held at the latest.
    #[schemars(with = "Time")]
    pub until: Instant,
}

/// In one word.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Phase {
    /// The newest revision is stable and available.
    Healthy,
    /// Something is under way.
    #[default]
    Progressing,
    /// Somebody, or data, is waited for.
    Paused,
    /// Somebody must act.
    Degraded,
    /// Written by another version.
    #[serde(other)]
    Unknown,
}

/// A revision and its pods.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Revision {
    /// Its number.
    pub revision: i64,
    /// The hash of its template.
    #[schemars(length(max = 32))]
    pub hash: String,
    /// The version of the hash function.
    pub hash_version: i32,
    /// The number of the attempt; 0 for a stable version that was there first.
    #[serde(default)]
    #[schemars(extend("default" = null))]
    pub attempt: i32,
    /// Images of its containers.
    #[schemars(length(max = 16), inner(length(max = 512)))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub images: Vec<String>,
    /// Since when.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Instant>,
    /// Pods asked for.
    pub replicas: i32,
    /// Pods available.
    pub ready_replicas: i32,
}

/// A revision that failed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rejected {
    /// The hash of its template.
    #[schemars(length(max = 32))]
    pub hash: String,
    /// When.
    #[schemars(with = "Time")]
    pub at: Instant,
    /// Why.
    pub reason: Reason,
    /// In which run.
    #[schemars(length(max = 253))]
    pub run: String,
}

/// Where the run stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct StepStatus {
    /// The number of the step, from 1.
    pub index: i32,
    /// Of how many.
    pub of: i32,
    /// Its weight.
    pub weight: Percent,
    /// Somebody promoted it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = null))]
    pub approved: bool,
    /// Somebody promoted all of them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = null))]
    pub full: bool,
    /// An incident began right after its weight, and the weight went back once to see whether that ends it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = null))]
    pub probed: bool,
}

/// States of a canary, in the order of a run that goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum StateName {
    /// Nothing is under way.
    Healthy,
    /// Routes go to 100/0.
    Preparing,
    /// The step waits for its pods.
    Scaling,
    /// The routes take the step's weight.
    Shifting,
    /// Data right after the change is left out.
    Settling,
    /// The cohorts are compared.
    Judging,
    /// Too few pods of the canary are ready, or the baseline is in an incident.
    Holding,
    /// Somebody, or data, is waited for.
    Paused,
    /// The canary gets its full size and all traffic.
    Promoting,
    /// The proven revision becomes stable. The point of no return.
    Finalising,
    /// All traffic goes back.
    RollingBack,
    /// Rolled back, rejected, or never ready.
    Degraded,
    /// Written by another version: traffic is kept.
    #[serde(other)]
    Unknown,
}

impl StateName {
    /// As it stands in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Healthy => "Healthy",
            Self::Preparing => "Preparing",
            Self::Scaling => "Scaling",
            Self::Shifting => "Shifting",
            Self::Settling => "Settling",
            Self::Judging => "Judging",
            Self::Holding => "Holding",
            Self::Paused => "Paused",
            Self::Promoting => "Promoting",
            Self::Finalising => "Finalising",
            Self::RollingBack => "RollingBack",
            Self::Degraded => "Degraded",
            Self::Unknown => "Unknown",
        }
    }
}

/// The state of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct State {
    /// Which.
    pub name: StateName,
    /// Since when.
    #[schemars(with = "Time")]
    pub since: Instant,
    /// Until when at the latest.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Instant>,
    /// Why.
    pub reason: Reason,
    /// The part of Finalising or `RollingBack` that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage: Option<Stage>,
    /// When that part began.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stage_since: Option<Instant>,
}

/// Parts of Finalising and `RollingBack`, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Stage {
    /// The weight of the canary falls to 0.
    Weight,
    /// Gateways and connections follow.
    Settle,
    /// The Service that carries nothing takes the revision that stays.
    Select,
    /// Gateways learn its pods.
    Endpoints,
    /// The user's own weights come back.
    Restore,
    /// Written by another version.
    #[serde(other)]
    Unknown,
}

/// What the routes carry.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficStatus {
    /// What they should carry.
    pub desired: Percent,
    /// What they were last seen to carry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective: Option<Percent>,
    /// Since when.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effective_since: Option<Instant>,
    /// The share of requests that the canary was seen to get in this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_share: Option<Percent>,
    /// The routes that hold our numbers, with the user's own.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub originals: Vec<RouteOriginal>,
    /// The routes are the user's again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = null))]
    pub restore: bool,
}

/// The user's own numbers in a route.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RouteOriginal {
    /// The route.
    pub route: RouteRef,
    /// The numbers, by rule; an absent one is the API's default.
    #[schemars(length(max = 64))]
    pub rules: Vec<RuleWeights>,
}

/// The numbers of one rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RuleWeights {
    /// The position of the rule.
    pub rule: i32,
    /// The number at the stable Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable: Option<i32>,
    /// The number at the canary Service.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<i32>,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisStatus {
    /// Over all metrics.
    pub verdict: Verdict,
    /// ln of the e-value over ln(1/alpha): 100 % rolls back.
    pub evidence: Percent,
    /// One by one.
    #[schemars(length(max = 10))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricStatus>,
    /// Gauges, as at their last look.
    #[schemars(length(max = 4))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gauges: Vec<GaugeRecord>,
    /// Expressions, as at their last value.
    #[schemars(length(max = 10))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expressions: Vec<ExpressionRecord>,
    /// What is remembered of the samples so far: for the controller alone, and another one with each version of it. What cannot
    /// be read is as if it were not there.
    #[schemars(schema_with = "crate::run::opaque")]
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_readable")]
    pub checkpoint: Option<Checkpoint>,
    /// What can be judged with the traffic that there is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outlook: Option<Outlook>,
    /// Since when the source fails.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failing_since: Option<Instant>,
}

/// What the plan of a run says.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outlook {
    /// With so many; it is said anew when there are twice as many, or half.
    pub requests_per_second: f64,
    /// Each step can be judged, if only on average.
    pub judged: bool,
    /// When, and what to change.
    #[schemars(length(max = 1000))]
    pub text: String,
}

/// Of a field whose form the schema leaves open: what cannot be read is as if it were not there.
fn if_readable<'de, T: DeserializeOwned + Default, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    let value = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(value).unwrap_or_default())
}

/// What the data says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// Not yet enough.
    #[default]
    Collecting,
    /// Not worse than the margin.
    Pass,
    /// Worse than tolerated.
    Regressed,
    /// `hold.max` has passed.
    Inconclusive,
    /// The canary is silent, or the source is.
    NoData,
    /// Both are silent.
    NoTraffic,
    /// There are no metrics.
    NotAnalysed,
    /// The baseline is in an incident.
    Incident,
    /// The canary violates a service level objective.
    SloViolated,
    /// The canary does not get the share of the requests that was asked for.
    TrafficSplit,
    /// Written by another version.
    #[serde(other)]
    Unknown,
}

/// One metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricStatus {
    /// Its name.
    #[schemars(length(max = 40))]
    pub name: String,
    /// What its data says.
    pub verdict: Verdict,
    /// Of a distribution: the bound above which values are counted, in the unit of the histogram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// The ratio of the rates over the run (Mantel-Haenszel).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Its confidence sequence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// The tolerated ratio, with what pods differ by themselves.
    pub tolerated: f64,
    /// Its share of the evidence that rolls back.
    pub evidence: Percent,
    /// Its evidence that the step is safe.
    pub safe: Percent,
    /// The canary's counts in this step.
    pub canary: Cohort,
    /// The baseline's.
    pub baseline: Cohort,
}

/// What must still be told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Pending {
    /// The record, with the number that makes it unique within the Rollout: as in a `RolloutRun`.
    #[schemars(schema_with = "crate::run::opaque")]
    #[serde(deserialize_with = "if_readable")]
    pub record: DecisionRecord,
    /// Whose record it belongs to.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// A warning rather than news.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = null))]
    pub warning: bool,
    /// The run ends with it, as this.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
}

/// What became of an action, until its object says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActionOutcome {
    /// Its uid.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Done or rejected.
    pub phase: ActionPhase,
    /// Why, and what to do instead.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When.
    #[schemars(with = "Time")]
    pub at: Instant,
}

/// The newest revision that was ever tried.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Attempt {
    /// Its number.
    pub revision: i64,
    /// Its hash.
    #[schemars(length(max = 32))]
    pub hash: String,
    /// How often it was tried.
    pub attempt: i32,
    /// Deadlines that it missed since somebody last asked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missed: Option<i32>,
    /// Not tried again before this.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Instant>,
}

/// Steps that were edited while the run was on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The generation of the spec that holds them.
    pub generation: i64,
    /// The steps, expanded.
    #[schemars(length(max = 50))]
    pub steps: Vec<Step>,
}

/// Names of the Services that a run drives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceNames {
    /// Of the stable version.
    #[schemars(length(max = 63))]
    pub stable: String,
    /// Of the canary.
    #[schemars(length(max = 63))]
    pub canary: String,
}

/// The previous stable version, whose pods stay for a while.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OldPods {
    /// Its hash.
    #[schemars(length(max = 32))]
    pub hash: String,
    /// Until when; absent while Finalising is on.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Instant>,
}

/// Foreign writes to our routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Conflicts {
    /// How many in this run.
    pub count: i32,
    /// Ours are not put back before this.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Instant>,
}

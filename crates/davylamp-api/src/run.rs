//! `RolloutRun`: one attempt to release one revision: its program, and every decision with its evidence.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Instant;
use crate::rollout::{Analysis, Strategy};
use crate::scalar::Duration;

/// One attempt to release one revision. Owned by its Rollout, written by the controller alone.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "davylamp.dev",
    version = "v1alpha1",
    kind = "RolloutRun",
    plural = "rolloutruns",
    category = "davylamp",
    namespaced,
    derive = "PartialEq",
    status = "RolloutRunStatus",
    printcolumn(name = "Rollout", type_ = "string", json_path = ".spec.rollout"),
    printcolumn(name = "Revision", type_ = "integer", json_path = ".spec.revision"),
    printcolumn(name = "Outcome", type_ = "string", json_path = ".status.outcome"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("spec is immutable: it is what the run promised")
)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRunSpec {
    /// The Rollout.
    #[schemars(length(max = 63))]
    pub rollout: String,
    /// The number of the revision.
    pub revision: i64,
    /// The hash of the revision.
    #[schemars(length(max = 32))]
    pub hash: String,
    /// The number of the attempt, from 1.
    pub attempt: i32,
    /// The version of this program's form.
    pub version: i32,
    /// What the run promised to do, expanded.
    #[schemars(schema_with = "opaque")]
    pub strategy: Strategy,
    /// What the run promised to measure, expanded.
    #[schemars(schema_with = "opaque")]
    pub analysis: Analysis,
    /// How its source takes samples; absent without metrics.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<Sampling>,
}

fn opaque(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({"type": "object", "x-kubernetes-preserve-unknown-fields": true})
}

/// How its source takes samples, as it said when the run began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Sampling {
    /// The interval of scrapes.
    pub scrape_interval: Duration,
    /// The age at which samples are read.
    pub delay: Duration,
}

/// Every decision of the run, append-only.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutRunStatus {
    /// How it ended; absent while in flight.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<String>,
    /// The transitions, oldest first.
    #[schemars(length(max = 201))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub decisions: Vec<DecisionRecord>,
    /// The number of the last record taken from the Rollout's status; lower ones are not taken again.
    pub last: i64,
}

/// One transition: what was seen, what was decided, by which rule.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DecisionRecord {
    /// The number of the record within the Rollout.
    pub number: i64,
    /// When it was decided, in the time of the data where data decided.
    #[schemars(with = "Time")]
    pub at: Instant,
    /// The state that was left.
    #[schemars(length(max = 32))]
    pub from: String,
    /// The state that was entered.
    #[schemars(length(max = 32))]
    pub to: String,
    /// The step, counted from 1; 0 before the first.
    pub step: i32,
    /// The weight of the canary at that moment.
    #[schemars(length(max = 8))]
    pub weight: String,
    /// The rule that decided.
    #[schemars(length(max = 64))]
    pub rule: String,
    /// One sentence with numbers.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// The evidence, by metric.
    #[schemars(length(max = 10))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<MetricRecord>,
    /// Increments whose earlier sample is older than this were left out: the weight was not yet effective and settled.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Instant>,
    /// Pods that were not yet warm at that time, and when they were; at most 50 are listed.
    #[schemars(with = "BTreeMap<String, Time>", extend("maxProperties" = 50))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub young: BTreeMap<String, Instant>,
    /// Records were merged into this one, for the outbox was full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<bool>,
}

/// The evidence of one metric at a decision.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricRecord {
    /// Its name.
    #[schemars(length(max = 40))]
    pub name: String,
    /// The window of this step's data: later samples of increments lie after this moment,
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Instant>,
    /// and at or before this one.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Instant>,
    /// Of a distribution: the bound above which values are counted, in the unit of the histogram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// The canary's counts in that window.
    pub canary: Cohort,
    /// The baseline's.
    pub baseline: Cohort,
    /// The ratio of the rates over the run (Mantel-Haenszel).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ratio: Option<f64>,
    /// Its confidence sequence; an end that is not yet known is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
    /// The tolerated ratio.
    pub tolerated: f64,
    /// ln of the e-value against "not worse than tolerated".
    pub log_e: f64,
    /// ln of the e-value against "worse than the margin of this step".
    pub log_e_non_inferior: f64,
    /// The non-inferiority margin of this step.
    pub margin: f64,
    /// The metric's share of the budget of `falseRollbackRate`.
    pub weight: f64,
}

/// Counts of one cohort.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cohort {
    /// How often the event happened.
    pub events: f64,
    /// Of how many.
    pub exposure: f64,
}

/// A confidence sequence for a ratio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Interval {
    /// The lower end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lower: Option<f64>,
    /// The upper end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<f64>,
}

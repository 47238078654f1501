//! `RolloutRun`: one attempt to release one revision: its program, and every decision with its evidence.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::Instant;
use crate::revision::plain;
use crate::rollout::{Analysis, Strategy};
use crate::scalar::Duration;
use crate::status::{ServiceNames, Verdict};

/// How many pods that are not yet warm a record names.
pub const MOST_YOUNG: usize = 50;

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
    /// The hash of the revision that it is compared with; with a fresh baseline, with extra pods of it.
    #[schemars(length(max = 32))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// The Services of both.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub services: Option<ServiceNames>,
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
    /// What the stable pods' history says about the tests, by metric; what is absent has the defaults.
    #[schemars(extend("maxProperties" = 10))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub calibration: BTreeMap<String, Calibrated>,
}

pub(crate) fn opaque(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
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

/// How one metric is tested, and what that was learnt from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Calibrated {
    /// The length of a block: what happens within one counts as one piece of evidence.
    pub block: Duration,
    /// What ln of a block's e-value is capped at.
    pub clip: f64,
    /// The standard deviation of ln of the rate between pods of one version.
    pub pod_effect: f64,
    /// How often there were events: one more than was seen, of so many, for few say little. Absent where nothing was seen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate: Option<f64>,
    /// What events were counted for in a second, of all stable pods together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub per_second: Option<f64>,
    /// How many pods were seen.
    pub pods: i32,
    /// For how long.
    pub history: Duration,
    /// How many hours of some pods were compared with the other pods, as a canary is with the baseline.
    pub placebos: i32,
    /// How many of them would have been rolled back with this block and this clip.
    pub alarms: i32,
    /// Why not all of it was learnt.
    #[schemars(length(max = 500))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
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
    /// How the counts grew, by metric: to draw it.
    #[schemars(length(max = 10))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub series: Vec<MetricSeries>,
    /// The number of the last record taken from the Rollout's status; lower ones are not taken again.
    pub last: i64,
}

/// How the counts of a metric grew. A row a minute; when there would be more than 240, every second one goes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricSeries {
    /// Its name.
    #[schemars(length(max = 40))]
    pub name: String,
    /// Each: the time of the data in seconds since 1970; of the run so far the canary's events and exposure, and the baseline's;
    /// the share of the evidence that a rollback needs, from 0 to 1.
    #[schemars(length(max = 240))]
    pub rows: Vec<[f64; 6]>,
}

impl MetricSeries {
    /// The most rows.
    pub const ROWS: usize = 240;
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
    /// The gauges, as at their last look.
    #[schemars(length(max = 4))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gauges: Vec<GaugeRecord>,
    /// How the requests were split; absent where no metric counts them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitRecord>,
    /// The expressions, as at the last value.
    #[schemars(length(max = 10))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expressions: Vec<ExpressionRecord>,
    /// Increments whose earlier sample is older than this were left out: the weight was not yet effective and settled.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<Instant>,
    /// At the beginning of a weight: data of the one before was read up to this moment.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Instant>,
    /// Pods that were not yet warm at that time, and when they were, or 9999-01-01 while they are not ready; at most 50 are listed.
    #[schemars(with = "BTreeMap<String, Time>", extend("maxProperties" = MOST_YOUNG))]
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub young: BTreeMap<String, Instant>,
    /// Records were merged into this one, for the outbox was full.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap: Option<bool>,
    /// The digest of the record before, of the first one that of the spec: who changes one must change all that follow.
    #[schemars(length(max = 64))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_digest: Option<String>,
}

impl DecisionRecord {
    /// Its [`digest`].
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&serde_json::to_value(self).unwrap_or_default())
    }
}

/// SHA-256 of JSON with sorted keys, without nulls, and with 1 for 1.0, in hex.
#[must_use]
pub fn digest(value: &Value) -> String {
    let mut hex = String::with_capacity(64);
    for byte in Sha256::digest(plain(value).to_string()) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// The first record that does not name the one before it, or the spec if it is the first.
#[must_use]
pub fn broken<'a>(spec: &Value, decisions: &'a [DecisionRecord]) -> Option<&'a DecisionRecord> {
    let mut previous = digest(spec);
    decisions.iter().find(|record| {
        let named = record.previous_digest.as_ref() == Some(&previous);
        previous = record.digest();
        !named
    })
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
    /// The tolerated ratio, with what pods differ by themselves.
    pub tolerated: f64,
    /// ln of the e-value against "not worse than tolerated".
    pub log_e: f64,
    /// ln of the e-value against "worse than the margin of this step".
    pub log_e_non_inferior: f64,
    /// The non-inferiority margin of this step, with what pods differ by themselves.
    pub margin: f64,
    /// The metric's share of the budget of `falseRollbackRate`.
    pub weight: f64,
    /// Of a ratio: both cohorts against a rate of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitRecord>,
    /// What each pod counts a second without traffic, from probes and scrapes: it is left out where it shows the canary to be good
    /// enough, of both cohorts. Absent where it was not measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<f64>,
    /// Since when its series are read as one sum for each target, because there are too many to read each; absent while each is
    /// read.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summed_since: Option<Instant>,
}

/// Both cohorts of a ratio, each against an absolute rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LimitRecord {
    /// The rate above which the baseline is in an incident, and the canary violates an objective if there is one.
    pub rate: f64,
    /// The baseline's counts since it is not clean any more, block by block; all 0 while it is.
    pub baseline: Cohort,
    /// ln of the e-value against "the baseline is below it"; it stands still during an incident.
    pub log_e_baseline: f64,
    /// The canary's counts of the run, if there is an objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<Cohort>,
    /// ln of the e-value against "the canary is below it", if there is an objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_e_canary: Option<f64>,
}

/// One gauge, as at its last look: one number of each pod, compared by a t-test. Of a level, numbers are what pods are at and
/// ratios; of a growth, what they have grown by and differences.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GaugeRecord {
    /// Its name.
    #[schemars(length(max = 40))]
    pub name: String,
    /// What that look said.
    pub verdict: Verdict,
    /// When it was; absent before the first one of a step.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Instant>,
    /// The end of the data that was read.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Instant>,
    /// The number of the look in the run.
    pub look: i32,
    /// How many were declared; those after them cannot roll back.
    pub looks: i32,
    /// Pods of the canary and of the baseline.
    pub pods: [i32; 2],
    /// The mean of the canary's pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<f64>,
    /// Of the baseline's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<f64>,
    /// The probability of such a difference if the canary is as bad as tolerated; absent with one pod in each cohort.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub p: Option<f64>,
    /// It rolls back at or below this: its share of `falseRollbackRate`; 0 when it decides nothing.
    pub limit: f64,
    /// What is tolerated.
    pub tolerated: f64,
    /// What the canary is below, at `falsePromotionRate`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upper: Option<f64>,
    /// What that must be below for the next step.
    pub margin: f64,
}

/// How the requests were split, of all pods, warm or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SplitRecord {
    /// Those that the canary got, in the whole blocks since the weight is effective.
    pub canary: f64,
    /// Those that the baseline got.
    pub baseline: f64,
    /// ln of the e-value against "the split is as it was asked for"; it stands still once that is shown to be wrong.
    pub log_e: f64,
    /// When that was shown; absent while it is not.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wrong: Option<Instant>,
}

/// One expression, compared with fixed limits: no error rate is promised.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExpressionRecord {
    /// Its name.
    #[schemars(length(max = 40))]
    pub name: String,
    /// For when it was asked last; absent before the first time of a weight.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<Instant>,
    /// The end of the data that was read.
    #[schemars(with = "Option<Time>")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<Instant>,
    /// Its value then; absent when it had none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Above this it is outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
    /// Below this it is outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Values in a row outside, of this weight.
    pub outside: i32,
    /// So many roll back, if it decides anything.
    pub consecutive: i32,
    /// Values of this weight so far.
    pub values: i32,
    /// It is shown, and decides nothing.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    #[schemars(extend("default" = null))]
    pub informational: bool,
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

//! What the fold remembers of the samples so far. Written and read by the controller alone; its form is in no schema, and what
//! cannot be read is as if it were not there.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::run::{Cohort, GaugeRecord};
use crate::scalar::Percent;
use crate::status::zero;

#[allow(clippy::trivially_copy_pass_by_ref, reason = "the shape that serde asks for")]
fn nobody(cohort: &Cohort) -> bool {
    *cohort == Cohort::default()
}

fn nothing(owed: &[f64; 2]) -> bool {
    owed.iter().all(|rest| *rest <= 0.0)
}

/// What is remembered of the samples so far: the base of the next fold. Times are in milliseconds since 1970.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    /// When it was written.
    pub at: i64,
    /// The start of the grid of rounds; 0 while no samples count.
    pub t0: i64,
    /// Only increments that begin after this count.
    pub from: i64,
    /// The end of the last round that was folded.
    pub folded_until: i64,
    /// The same at the weight before; 0 without one.
    #[serde(default)]
    pub closed: i64,
    /// What comes without traffic was looked for.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub watched: bool,
    /// The weight after that of the step: the margin follows from it. None before the first step, and when steps were edited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<Percent>,
    /// What was not seen lately.
    pub silent: Silence,
    /// By metric.
    pub metrics: BTreeMap<String, MetricCheckpoint>,
    /// By gauge.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub gauges: BTreeMap<String, GaugeCheckpoint>,
    /// By expression.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub expressions: BTreeMap<String, ExpressionCheckpoint>,
    /// The age of the step from which gauges may be looked at because all else is shown.
    #[serde(default)]
    pub hold_min: i64,
    /// Of the split of the traffic; absent where no metric counts requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub split: Option<SplitCheckpoint>,
    /// When the newest pod was made that was there when the weight became effective, ms since 1970.
    #[serde(default)]
    pub newest: i64,
    /// Since when young pods are ready.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub young: BTreeMap<String, i64>,
    /// Of pods with more than one target, by "metric pod": up to when it has counted, ms since 1970.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub targets: BTreeMap<String, i64>,
}

/// Time in a row, in ms, in which something was not seen; and what was seen meanwhile.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Silence {
    /// No sample of the canary.
    pub canary_absent: i64,
    /// No sample of the baseline.
    pub baseline_absent: i64,
    /// No request to the canary.
    pub canary_idle: i64,
    /// No request to the baseline.
    pub baseline_idle: i64,
    /// Requests to the baseline while the canary was idle.
    pub baseline_meanwhile: f64,
}

/// What is remembered of one metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MetricCheckpoint {
    /// The capital of the test against "not worse than tolerated", base64; of a distribution with its buckets.
    pub event: String,
    /// Of a distribution: the bound above which values are counted for the other test, in the unit of the histogram.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<f64>,
    /// The capital of the non-inferiority process, base64; absent before the first round of a step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub safe: Option<String>,
    /// The end of the open block; 0 without one.
    pub block_until: i64,
    /// How many pods of canary and baseline counted when it began; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pods: Option<[i32; 2]>,
    /// The start of the first round of this step that counted; 0 without one.
    pub counted_from: i64,
    /// Counts, those of this step first, at most eight rows of canary events, baseline events, canary exposure,
    /// baseline exposure.
    pub rows: Vec<[f64; 4]>,
    /// Of a ratio: both cohorts against a rate of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<LimitCheckpoint>,
    /// What a pod counts a second without traffic; absent while that is not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub background: Option<f64>,
    /// What was left out beyond what there was, of canary and baseline: it is left out of the next round.
    #[serde(default, skip_serializing_if = "nothing")]
    pub owed: [f64; 2],
    /// The data time from which its series were read as one sum for each target; 0 while each is read.
    #[serde(default, skip_serializing_if = "zero")]
    pub summed: i64,
}

/// What is remembered of both cohorts of a ratio against an absolute rate. Times are in milliseconds since 1970; 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LimitCheckpoint {
    /// The rate; 0 while it is being found in the first minutes of the run.
    pub rate: f64,
    /// The capital of the baseline's test, base64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub baseline: Option<String>,
    /// The capital of the canary's, base64, if there is an objective.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<String>,
    /// The canary's counts of the run.
    #[serde(default, skip_serializing_if = "nobody")]
    pub run: Cohort,
    /// The start of the open block, or of what is counted for the rate.
    #[serde(default, skip_serializing_if = "zero")]
    pub from: i64,
    /// The baseline's counts since then.
    #[serde(default, skip_serializing_if = "nobody")]
    pub open: Cohort,
    /// The start of the first block in a row above the rate.
    #[serde(default, skip_serializing_if = "zero")]
    pub above_since: i64,
    /// The baseline's counts of these blocks.
    #[serde(default, skip_serializing_if = "nobody")]
    pub above: Cohort,
    /// The start of the last incident,
    #[serde(default, skip_serializing_if = "zero")]
    pub since: i64,
    /// when it was noticed,
    #[serde(default, skip_serializing_if = "zero")]
    pub noticed: i64,
    /// and when it was over.
    #[serde(default, skip_serializing_if = "zero")]
    pub over: i64,
    /// Blocks in a row below the rate during an incident.
    #[serde(default, skip_serializing_if = "zero")]
    pub clean: i64,
}

/// What is remembered of the split of the traffic. Requests are the canary's and the baseline's; times are in milliseconds since
/// 1970; 0 is none.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SplitCheckpoint {
    /// The capital of its test, base64.
    pub process: String,
    /// The start of the open block.
    #[serde(default, skip_serializing_if = "zero")]
    pub from: i64,
    /// Its requests,
    #[serde(default)]
    pub open: [f64; 2],
    /// and whether there were samples of each.
    #[serde(default)]
    pub heard: [bool; 2],
    /// Requests in the whole blocks of this weight.
    #[serde(default)]
    pub seen: [f64; 2],
    /// When the evidence sufficed that it is wrong.
    #[serde(default, skip_serializing_if = "zero")]
    pub wrong: i64,
    /// Blocks in a row that were right since then.
    #[serde(default, skip_serializing_if = "zero")]
    pub right: i64,
}

/// What is remembered of one gauge.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GaugeCheckpoint {
    /// Of some of the canary's pods, by the end of their names: sums, base64.
    pub canary: BTreeMap<String, String>,
    /// Of some of the baseline's.
    pub baseline: BTreeMap<String, String>,
    /// The looks of this run so far.
    pub looks: i32,
    /// In this step there was one because all else was shown.
    pub asked: bool,
    /// The last one of this step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<GaugeRecord>,
}

/// What is remembered of one expression: of this weight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExpressionCheckpoint {
    /// For when it was asked last, ms since 1970; 0 before the first time.
    pub at: i64,
    /// Its value then, if it had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<f64>,
    /// Values in a row outside.
    pub outside: i32,
    /// Values so far.
    pub values: i32,
}

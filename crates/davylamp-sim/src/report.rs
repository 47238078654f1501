//! What came of a simulation: [`Report`] at its end, [`Frame`] and [`Entry`] on the way. Times are since its start.

use std::collections::BTreeMap;
use std::time::Duration;

use davylamp_api::run::DecisionRecord;
use serde::Serialize;

/// What came of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// All randomness came from it.
    pub seed: u64,
    /// The outcome of the last run, like `Promoted`.
    pub outcome: Option<String>,
    /// The phase at the end.
    pub phase: String,
    /// What the Rollout says at the end.
    pub message: String,
    /// The image of the stable version at the end.
    pub stable: String,
    /// From the last release until its run ended, in ms.
    pub took_ms: Option<u64>,
    /// When the simulation ended, in ms.
    pub ended_ms: u64,
    /// Everything worth telling, in order.
    pub timeline: Vec<Entry>,
    /// Each decision of each run, by its name.
    pub runs: BTreeMap<String, Vec<DecisionRecord>>,
    /// Requests and errors, by image.
    pub versions: BTreeMap<String, Cohort>,
    /// Errors of versions on trial beyond those that the stable version would have made.
    pub errors_of_canary: f64,
    /// Requests that no pod answered, since the first that one did.
    pub lost: u64,
    /// Each write of the controller, its lease not among them.
    pub writes: Vec<Write>,
    /// How many events its watches told after their first lists.
    pub events: u64,
    /// What was expected and did not come.
    pub failures: Vec<String>,
    /// Of all objects at the end: without times, versions and uids, by kind and name.
    #[serde(skip)]
    pub objects: BTreeMap<String, serde_json::Value>,
}

/// Requests and errors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cohort {
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
}

/// Something worth telling.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Entry {
    /// When, in ms.
    pub at_ms: u64,
    /// Of what kind.
    pub kind: Kind,
    /// In one sentence.
    pub text: String,
}

/// Kinds of entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Kind {
    /// A person or the world did something.
    Event,
    /// The controller decided something.
    Decision,
    /// Something broke.
    Fault,
}

/// A write of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Write {
    /// When, in ms.
    pub at_ms: u64,
    /// Its method.
    pub verb: String,
    /// Its path.
    pub path: String,
    /// The code of its answer.
    pub code: u16,
    /// Of its body: SHA-256, the first 16 digits.
    pub digest: String,
}

/// One moment, to be drawn.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Frame {
    /// Since the start.
    pub at: Duration,
    /// The phase, like `Progressing`.
    pub phase: String,
    /// The state of the machine, like `Judging`.
    pub state: String,
    /// The step and how many there are; 0 of 0 at rest.
    pub step: (i32, i32),
    /// The weight of the canary that the route carries, in percent.
    pub weight: f64,
    /// The share of requests that the canary got while each pod was scraped once, in percent.
    pub share: f64,
    /// Ready pods of the stable version, and of the canary.
    pub ready: (u32, u32),
    /// The share of failed requests meanwhile, or in the last ten seconds if that is longer, stable and canary, in percent;
    /// none without requests.
    pub errors: (Option<f64>, Option<f64>),
    /// Evidence that rolls back, and that the step is safe, in percent of what is needed.
    pub evidence: (f64, f64),
    /// Images of the stable version and of the canary.
    pub images: (String, String),
    /// What the Rollout says.
    pub message: String,
    /// The controller runs.
    pub running: bool,
    /// Entries since the frame before.
    pub news: Vec<Entry>,
    /// Requests that no pod answered, so far, since the first that one did.
    pub lost: u64,
    /// Requests so far.
    pub requests: u64,
}

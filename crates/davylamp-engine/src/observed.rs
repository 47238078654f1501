//! What the engine is told of the world: plain values, maps in a fixed order. Nothing here is fetched by the engine.

use std::collections::{BTreeMap, BTreeSet};

use davylamp_api::Instant;
use davylamp_api::action::Verb;
use davylamp_api::rollout::RouteRef;
use davylamp_api::run::Calibrated;
use davylamp_api::status::RuleWeights;
pub use davylamp_stats::{Bucket, classic_buckets};

use crate::decision::HistoryQuery;

/// The hash of a revision's template; with what [`baseline_of`] adds, its extra pods.
pub type Hash = String;

/// What follows a hash to name the `ReplicaSet` of a fresh baseline.
const BASELINE: &str = "-baseline";

/// The fresh baseline of a revision: the same template in a `ReplicaSet` of its own.
#[must_use]
pub fn baseline_of(hash: &str) -> Hash {
    format!("{hash}{BASELINE}")
}

/// The revision that this is a fresh baseline of; None for a revision itself.
#[must_use]
pub fn of_baseline(hash: &str) -> Option<&str> {
    hash.strip_suffix(BASELINE)
}

/// The world of one Rollout at one moment.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// The Rollout itself.
    pub meta: Meta,
    /// What the API server said of the spec's template.
    pub template: Template,
    /// The `RolloutRun`s in flight of this Rollout, with the hash that each releases.
    pub runs: BTreeMap<String, Hash>,
    /// Names of `RolloutRun`s that were found to be taken by ended or foreign ones.
    pub taken_runs: BTreeSet<String>,
    /// The number of the last record that was delivered.
    pub delivered: i64,
    /// Our `ReplicaSet`s, those of fresh baselines as well.
    pub revisions: BTreeMap<Hash, Revision>,
    /// The two Services that we own.
    pub services: BTreeMap<Role, Service>,
    /// The user's own Service.
    pub entrance: Entrance,
    /// The routes of the spec and of the run in flight.
    pub routes: BTreeMap<RouteRef, Route>,
    /// Actions without an outcome, oldest first, then by uid.
    pub actions: Vec<Action>,
    /// The metric source of the run.
    pub source: Source,
    /// Where there is no source at all.
    pub suggested: Option<Suggested>,
    /// Increments since the checkpoint.
    pub samples: Option<Samples>,
    /// What the stable pods' history says.
    pub learnt: Option<Learnt>,
    /// When the last incidents of the baselines of other Rollouts were noticed, by namespace and name.
    pub incidents: BTreeMap<String, Instant>,
}

/// The Rollout itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Its name.
    pub name: String,
    /// It has a deletion timestamp.
    pub deleting: bool,
    /// It carries our finalizer.
    pub finalizer: bool,
    /// Since when it is being deleted.
    pub deleted_at: Option<Instant>,
}

/// What the API server said of the spec's template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Template {
    /// Not yet asked.
    #[default]
    Unchecked,
    /// It takes it.
    Accepted,
    /// It refuses it, with these words.
    Refused(String),
}

/// A `ReplicaSet` of ours.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// Pods asked for.
    pub desired: i32,
    /// Pods that are ready for `minReadySeconds`; 0 while its status is older than its spec.
    pub available: i32,
    /// Pods that exist, by name.
    pub pods: BTreeMap<String, Pod>,
    /// A word on why pods are not ready, as the kubelet or the scheduler says it.
    pub trouble: Option<String>,
    /// Seconds that its pods may take to end.
    pub termination_grace: i64,
}

/// A pod of a revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pod {
    /// Since when it is there.
    pub created_at: Instant,
    /// Since when it is ready; None while it is not.
    pub ready_at: Option<Instant>,
}

/// The two Services that we own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// Of the stable version.
    Stable,
    /// Of the canary.
    Canary,
}

impl Role {
    /// As in the label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stable => "stable",
            Self::Canary => "canary",
        }
    }
}

/// A Service that we own, or whose name we want.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// It exists and is not ours.
    pub foreign: bool,
    /// The revision that it selects.
    pub selects: Option<Hash>,
    /// Ready endpoints, by revision; those of a fresh baseline are none, for nothing may rely on them.
    pub ready: BTreeMap<Hash, i32>,
}

/// The user's own Service.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Entrance {
    /// It does not exist.
    #[default]
    Missing,
    /// It has no ports to copy.
    WithoutPorts,
    /// It has ports.
    Found,
}

/// A route as its object and its gateways say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Route {
    /// The object exists.
    pub found: bool,
    /// Why it cannot be driven, and what to write instead.
    pub unsupported: Option<String>,
    /// The numbers of the rules that name both Services.
    pub rules: Vec<RuleWeights>,
    /// Whether its gateways carry these numbers.
    pub effective: Effective,
    /// Our field manager stands in its managedFields.
    pub ours: bool,
    /// The last other field manager of its spec.
    pub other_manager: Option<String>,
}

/// Whether gateways carry what a route says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Effective {
    /// Each parent says so at the route's generation.
    Yes,
    /// Not yet, or not any more; which, and what it says.
    No(String),
    /// Its controller never says for which generation it speaks.
    #[default]
    Unverifiable,
}

/// A `RolloutAction` without an outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Action {
    /// Its uid.
    pub uid: String,
    /// Its name.
    pub name: String,
    /// What is to be done.
    pub verb: Verb,
    /// The run that is meant.
    pub run: Option<String>,
    /// The step that is meant, from 1.
    pub step: Option<i32>,
    /// All steps.
    pub full: bool,
    /// Why.
    pub reason: Option<String>,
    /// Who asked.
    pub requested_by: Option<String>,
}

/// The metric source that a spec or a run names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Source {
    /// None is named.
    #[default]
    NotNamed,
    /// It does not exist.
    NotFound,
    /// The namespace may not use it.
    NotAllowed,
    /// It exists; scrapes are so many ms apart, and samples are read at the age of so many ms.
    Ready {
        /// The interval of scrapes, ms; None where it does not say: it is learnt with the history.
        scrape_interval_ms: Option<i64>,
        /// The age at which samples are read, ms.
        delay_ms: i64,
    },
}

/// A source that could be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suggested {
    /// An address that answers as a source does.
    pub url: String,
    /// For whom it would be.
    pub namespace: String,
}

/// What the sampler has fetched for a Rollout.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Samples {
    /// The time after which samples were asked for, ms since 1970: [`crate::Query::since`].
    pub since: i64,
    /// All samples up to this data time have been asked for, ms since 1970.
    pub until: i64,
    /// Since when the source fails, and what it says; None while it answers.
    pub failing: Option<(Instant, String)>,
    /// By metric.
    pub metrics: BTreeMap<String, MetricSamples>,
    /// The metrics that were read as one sum for each target: there were too many series to read each.
    pub summed: BTreeSet<String>,
    /// Increments of a time that had been read already without them: those of rounds that are folded are left out.
    pub late: usize,
}

/// What the stable pods' history says, perhaps that nothing could be learnt.
#[derive(Clone, Debug, PartialEq)]
pub struct Learnt {
    /// The answer to this.
    pub of: HistoryQuery,
    /// The interval of scrapes, ms: what was asked with, or what was seen.
    pub scrape_interval_ms: i64,
    /// By metric: of each that was asked for.
    pub metrics: BTreeMap<String, Calibrated>,
}

/// The increments of one metric.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MetricSamples {
    /// By pod, then by target: its labels in one text. A pod that is scraped twice has two.
    pub pods: BTreeMap<String, BTreeMap<String, Vec<Increment>>>,
}

/// What happened at one target between two scrapes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Increment {
    /// The earlier scrape, ms since 1970.
    pub from: i64,
    /// The later scrape, ms since 1970.
    pub to: i64,
    /// Events, summed over the target's series.
    pub events: f64,
    /// Of how many; of a distribution, how many values.
    pub total: f64,
    /// Of a distribution, where the values lie.
    pub buckets: Vec<Bucket>,
}

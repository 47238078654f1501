//! What the engine answers: the next status, what should be (levels, never edges), and when to ask again.

use std::collections::{BTreeMap, BTreeSet};

use davylamp_api::rollout::{Cohorts, RouteRef};
use davylamp_api::scalar::{Duration, Percent};
use davylamp_api::status::{RolloutStatus, RouteOriginal, ServiceNames};
use davylamp_api::{Instant, RolloutRunSpec};

use crate::observed::{Hash, Role};
use crate::pass::pod_prefix;
use crate::program::Plan;

/// The answer of [`crate::decide()`].
#[must_use]
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    /// The next `.status`, verbatim.
    pub status: RolloutStatus,
    /// What should be.
    pub desired: Desired,
    /// When to be called again without an event, and why.
    pub wake: Option<Wake>,
}

/// What should be, in the order in which it is applied.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Desired {
    /// The spec's template is to be checked by the API server.
    pub check: Option<Hash>,
    /// `spec.replicas` is absent and gets this.
    pub fill_replicas: Option<i32>,
    /// A `RolloutRun` of this name exists.
    pub run: Option<(String, RolloutRunSpec)>,
    /// The finalizer is on the Rollout; None: as it is.
    pub finalizer: Option<bool>,
    /// A `ControllerRevision` for each, with its number.
    pub revisions: BTreeMap<Hash, i64>,
    /// A `ReplicaSet` of this size for each; none is created with size 0.
    pub sizes: BTreeMap<Hash, i32>,
    /// The revision that each of our Services selects.
    pub selectors: BTreeMap<Role, Hash>,
    /// What each route says.
    pub weights: BTreeMap<RouteRef, RouteGoal>,
    /// What the sampler asks for.
    pub query: Option<Query>,
    /// What the next run wants to know of the stable pods before it begins.
    pub history: Option<HistoryQuery>,
}

/// What one route says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteGoal {
    /// The canary's share, the rest to stable.
    Weight(Percent),
    /// The user's own numbers, and no trace of ours.
    Restore(RouteOriginal),
}

/// What the sampler asks for, for one Rollout.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query {
    /// The `MetricSource`.
    pub source: String,
    /// Samples after this count, ms since 1970; the newest sample at or before it is the first base.
    pub since: i64,
    /// What the names of the pods of both cohorts begin with; five characters follow.
    pub pods: BTreeSet<String>,
    /// Which of them is which; None where only pods are told apart.
    pub cohorts: Option<Named>,
    /// The selectors of each metric, by name.
    pub metrics: BTreeMap<String, MetricQuery>,
    /// How series are told apart, of metrics that are not told apart by pods.
    pub told: BTreeMap<String, Cohorts>,
    /// The metrics that may be read so, if they are counters.
    pub summable: BTreeSet<String>,
    /// The metrics that are read as one sum for each target, because there were too many series to read each.
    pub summed: BTreeSet<String>,
    /// The interval of scrapes, ms.
    pub scrape_interval_ms: i64,
    /// The age at which samples are read, ms.
    pub delay_ms: i64,
}

impl Query {
    /// What a run asks of both cohorts.
    pub(crate) fn of_run(plan: &Plan, cohorts: Named, since: i64, summed: BTreeSet<String>) -> Option<Self> {
        let sampling = plan.sampling?;
        Some(Self {
            source: plan.source.clone()?,
            since,
            pods: BTreeSet::from([cohorts.canary.pods.clone(), cohorts.baseline.pods.clone()]),
            cohorts: Some(cohorts),
            metrics: plan.queries(),
            told: plan.told(),
            summable: plan.metrics.iter().map(|metric| metric.name.clone()).collect(),
            summed,
            scrape_interval_ms: sampling.scrape_interval.millis(),
            delay_ms: sampling.delay.millis(),
        })
    }
}

/// The two cohorts by all their names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Named {
    /// The new version.
    pub canary: Names,
    /// The old one.
    pub baseline: Names,
}

/// One cohort, as series may name it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// What the names of its pods begin with.
    pub pods: String,
    /// Its Service.
    pub service: String,
    /// Its `pod-template-hash`.
    pub hash: Hash,
}

impl Named {
    /// Of these revisions of a Rollout, and of the Services that it owns, if they are known not to have their usual names.
    #[must_use]
    pub fn of(rollout: &str, canary: &str, baseline: &str, services: Option<&ServiceNames>) -> Self {
        let name = |hash: &str, role: Role, service: Option<&String>| Names {
            pods: pod_prefix(rollout, hash),
            service: service.cloned().unwrap_or_else(|| format!("{rollout}-{}", role.as_str())),
            hash: hash.to_owned(),
        };
        Self {
            canary: name(canary, Role::Canary, services.map(|services| &services.canary)),
            baseline: name(baseline, Role::Stable, services.map(|services| &services.stable)),
        }
    }
}

/// What is to be learnt from the stable pods, for one Rollout.
#[derive(Clone, Debug, PartialEq)]
pub struct HistoryQuery {
    /// Whom and what; its `since` says nothing.
    pub query: Query,
    /// The source does not say how far apart scrapes are: its interval holds only where none are seen.
    pub gaps: bool,
    /// How far back, ms.
    pub length: i64,
    /// The age from which samples of a pod count, ms.
    pub warmup: i64,
    /// Of each step, the weight, and how many pods the canary has if that does not follow from it.
    pub steps: Vec<(Percent, Option<i32>)>,
    /// The false rollback rate.
    pub alpha: f64,
}

/// The selectors of a metric, without matchers for pods and namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MetricQuery {
    /// Two counters.
    Counters {
        /// What is counted.
        events: String,
        /// Of how many.
        total: String,
    },
    /// A counter, for the seconds between its scrapes.
    Counter {
        /// What is counted.
        counter: String,
    },
    /// The values of a gauge, each as so many events of one.
    Gauge {
        /// What is read.
        gauge: String,
    },
    /// One number, with the placeholders of cohorts.
    Expression {
        /// What is asked.
        query: String,
    },
    /// What a histogram counts above a bound.
    Slower {
        /// Without a suffix.
        histogram: String,
        /// The bound of a bucket.
        than: Duration,
    },
    /// All that a histogram counts.
    Distribution {
        /// Without a suffix.
        histogram: String,
    },
}

/// When to be called again without an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wake {
    /// When; never before `now`.
    pub at: Instant,
    /// Why.
    pub why: Why,
}

/// Reasons to wake. Looks at data are woken by the sampler.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// The state's deadline.
    Deadline,
    /// Data counts from then on, or a gateway has had its time.
    Settle,
    /// `hold.min` of a step without metrics.
    HoldMin,
    /// Too few pods for 30 s.
    Capacity,
    /// Our numbers are put back into a route.
    Conflict,
    /// Another attempt after a missed deadline.
    Retry,
    /// The previous version's pods may go.
    OldPods,
    /// The source has been silent for too long.
    NoData,
    /// The checkpoint is written.
    Checkpoint,
    /// Incidents of several Rollouts are over.
    Incident,
}

impl Why {
    /// As a label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deadline => "deadline",
            Self::Settle => "settle",
            Self::HoldMin => "hold-min",
            Self::Capacity => "capacity",
            Self::Conflict => "conflict",
            Self::Retry => "retry",
            Self::OldPods => "old-pods",
            Self::NoData => "no-data",
            Self::Checkpoint => "checkpoint",
            Self::Incident => "incident",
        }
    }
}

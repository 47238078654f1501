//! Conditions of a Rollout (kstatus and our own) and their reasons, as closed sets.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::Instant;

macro_rules! names {
    ($(#[$doc:meta])* $kind:ident { $($(#[$vdoc:meta])* $name:ident),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        pub enum $kind {
            $($(#[$vdoc])* $name,)*
            /// Written by another version.
            #[serde(other)]
            Unknown,
        }

        impl $kind {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// As it stands in the API.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)*
                    Self::Unknown => "Unknown",
                }
            }
        }

        impl std::fmt::Display for $kind {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

names! {
    /// Types of conditions.
    ConditionType {
        /// kstatus: the newest revision is stable and available.
        Ready,
        /// kstatus: something is under way.
        Reconciling,
        /// kstatus: nothing will happen before somebody acts.
        Stalled,
        /// The stable version has its pods.
        Available,
        /// The spec says what can be done.
        Valid,
        /// Both Services stand and select a revision.
        ServicesReady,
        /// The routes carry what is wanted, and their gateways say so.
        TrafficReady,
        /// The metrics answer.
        AnalysisReady,
        /// The baseline is in an incident, or those of other Rollouts are.
        Incident,
    }
}

names! {
    /// Reasons of conditions, transitions, events and records.
    Reason {
        /// All is as it was asked for.
        AsExpected,
        /// The first version is being started; there is nothing to compare it with.
        FirstRelease,
        /// A newer revision is being released.
        NewRevision,
        /// The step waits for its pods.
        ScalingPods,
        /// The routes are being changed.
        ShiftingTraffic,
        /// Data right after a change is left out.
        SettleTime,
        /// Data is being collected.
        Collecting,
        /// The incident that held the run is over; that the canary is good enough must be shown anew.
        IncidentOver,
        /// The evidence of a step, or its hold without metrics, sufficed.
        StepPassed,
        /// The last step has passed.
        LastStepPassed,
        /// The new version carries all traffic.
        Promoted,
        /// Nothing moves any more.
        Completed,
        /// The canary is worse than tolerated.
        Regression,
        /// `hold.max` has passed without a verdict.
        Inconclusive,
        /// The step waits for a promote.
        Approval,
        /// The canary is silent, the baseline is not.
        NoData,
        /// Nothing can be compared: the source fails, or both cohorts are unknown to it.
        SourceUnavailable,
        /// Both cohorts are silent.
        NoTraffic,
        /// Not all steps can be judged within their time.
        TooLittleTraffic,
        /// What pods count without traffic: it is being measured, or it is a large part of all.
        BackgroundTraffic,
        /// There are no metrics.
        NotAnalysed,
        /// Too few pods of the canary are ready.
        Capacity,
        /// The pods were not ready in time.
        ProgressDeadline,
        /// The routes were not effective in time.
        TrafficDeadline,
        /// A pause has ended at its deadline.
        PauseDeadline,
        /// Somebody aborted.
        Abort,
        /// Somebody promoted.
        Promote,
        /// Somebody asked for another attempt.
        Retry,
        /// A newer template, or a step back to the stable one.
        Superseded,
        /// The Rollout is being deleted.
        Deleted,
        /// The run's record was deleted.
        RunLost,
        /// The revision was rejected before.
        Rejected,
        /// The spec cannot be carried out.
        InvalidSpec,
        /// The API server refuses the pod template.
        TemplateRefused,
        /// A route does not exist.
        RouteNotFound,
        /// A route cannot be driven.
        RouteUnsupported,
        /// Somebody else writes the weights.
        RouteConflict,
        /// A gateway has not yet taken the weights.
        RouteNotEffective,
        /// The user's Service does not exist.
        ServiceNotFound,
        /// The user's Service has no ports.
        ServiceWithoutPorts,
        /// A Service of that name belongs to somebody else.
        ServiceTaken,
        /// A Service has no ready pod yet.
        NoEndpoints,
        /// The `MetricSource` does not exist.
        SourceNotFound,
        /// The namespace may not use the `MetricSource`.
        SourceNotAllowed,
        /// A metric matches nothing.
        NoSeries,
        /// Pods are scraped more than once; one target of each is used.
        DuplicateTargets,
        /// Samples arrive later than the source is said to need.
        LateSamples,
        /// The histograms of the two versions have no bucket bound in common.
        BucketsDiffer,
        /// Pods are missing.
        PodsNotReady,
        /// Steps were edited while a run is on.
        StepsEdited,
        /// The baseline is in an incident.
        Incident,
        /// The baselines of several Rollouts are in incidents at once.
        SharedIncident,
        /// The baseline fails whenever the canary has the weight of its step.
        Interference,
        /// The canary violates a service level objective.
        SloViolated,
        /// The canary does not get the share of the requests that was asked for.
        TrafficSplit,
        /// An expression was outside its limits several times in a row.
        Expression,
    }
}

/// A condition as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Its type.
    pub kind: ConditionType,
    /// `Some(true)` is "True", None is "Unknown".
    pub status: Option<bool>,
    /// Why.
    pub reason: Reason,
    /// What was observed, and what to do.
    pub message: String,
}

/// Sets a condition: `lastTransitionTime` moves only with the status, in whole seconds.
pub fn set(conditions: &mut Vec<Condition>, wanted: Wanted, generation: i64, now: Instant) {
    let status = match wanted.status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let now = Instant::from_second(now.as_second()).unwrap_or(now);
    let old = conditions.iter().position(|c| c.type_ == wanted.kind.as_str());
    let since =
        old.map(|i| &conditions[i]).filter(|c| c.status == status).map_or(now, |c| c.last_transition_time.0);
    let new = Condition {
        type_: wanted.kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: wanted.reason.as_str().to_owned(),
        message: wanted.message,
        observed_generation: Some(generation),
        last_transition_time: Time(since),
    };
    match old {
        Some(i) => conditions[i] = new,
        None => conditions.push(new),
    }
}

/// The condition of a type, when it was set.
#[must_use]
pub fn get(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|c| c.type_ == kind.as_str())
}

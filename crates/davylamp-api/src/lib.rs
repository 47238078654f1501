//! The custom resources of Davylamp as Rust types: what a user may write, what the controller answers, and the keys,
//! conditions and rules they share. Takes and gives data only: no client, no clock, no I/O.
#![deny(missing_docs)]
#![allow(unreachable_pub, reason = "the derive of kube generates such items")]

pub mod action;
pub mod checkpoint;
pub mod conditions;
pub mod labels;
pub mod revision;
pub mod rollout;
pub mod run;
pub mod scalar;
pub mod source;
pub mod status;
pub mod template;

pub use action::{RolloutAction, RolloutActionSpec};
pub use k8s_openapi;
pub use kube::core as kube_core;
pub use rollout::{Rollout, RolloutSpec};
pub use run::{RolloutRun, RolloutRunSpec, RolloutRunStatus};
pub use source::{MetricSource, MetricSourceSpec};
pub use status::RolloutStatus;
pub use template::{AnalysisTemplate, AnalysisTemplateSpec, ClusterAnalysisTemplate};

/// A moment, RFC 3339 with milliseconds in the API.
pub type Instant = jiff::Timestamp;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// The definitions of all our kinds, by name.
#[must_use]
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        AnalysisTemplate::crd(),
        ClusterAnalysisTemplate::crd(),
        MetricSource::crd(),
        RolloutAction::crd(),
        RolloutRun::crd(),
        Rollout::crd(),
    ]
}

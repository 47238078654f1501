//! `RolloutAction`: a word by a person or a tool to a run. Spec immutable; the status is the controller's.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::Instant;

/// Promote, abort or retry.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "davylamp.dev",
    version = "v1alpha1",
    kind = "RolloutAction",
    plural = "rolloutactions",
    category = "davylamp",
    namespaced,
    derive = "PartialEq",
    status = "RolloutActionStatus",
    printcolumn(name = "Rollout", type_ = "string", json_path = ".spec.rollout"),
    printcolumn(name = "Verb", type_ = "string", json_path = ".spec.verb"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Message", type_ = "string", json_path = ".status.message"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("spec is immutable: create another RolloutAction"),
    validation = Rule::new("self.spec.verb == 'retry' || has(self.spec.run)")
        .message("spec.run: name the run that you mean, as in .status.run of the Rollout; a late word must not hit another one"),
    validation = Rule::new("self.spec.verb != 'promote' || has(self.spec.step) || (has(self.spec.full) && self.spec.full)")
        .message("spec.step: name the step that you promote, as in .status.step.index, or write full: true for all of them"),
    validation = Rule::new("self.spec.verb == 'promote' || (!has(self.spec.full) && !has(self.spec.step))")
        .message("spec.full and spec.step: only the verb promote takes them")
)]
#[serde(rename_all = "camelCase")]
pub struct RolloutActionSpec {
    /// The Rollout, in the same namespace.
    #[schemars(length(min = 1, max = 63))]
    pub rollout: String,
    /// What is to be done.
    pub verb: Verb,
    /// The run that is meant; needed by all but retry.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<String>,
    /// The step that is meant, counted from 1; needed by promote unless `full`.
    #[schemars(range(min = 1, max = 50))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,
    /// Promote through all steps; the pods come first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub full: Option<bool>,
    /// Why.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Who asked. Not verified by the controller.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requested_by: Option<String>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Verb {
    /// Take the step as passed.
    Promote,
    /// Roll back, and remember the revision as rejected.
    Abort,
    /// Forget that the revision was rejected, and try again.
    Retry,
}

/// What became of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutActionStatus {
    /// Done or rejected.
    pub phase: ActionPhase,
    /// Why, and what to do instead.
    #[schemars(length(max = 1024))]
    pub message: String,
    /// When.
    #[schemars(with = "Time")]
    pub at: Instant,
}

/// What became of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ActionPhase {
    /// It had its effect.
    Done,
    /// It had none; the message says why.
    Rejected,
    /// Written by another version.
    #[serde(other)]
    Unknown,
}

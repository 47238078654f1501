//! The status of a Rollout, written before its effects and guarded by the resourceVersion it was decided on.

use davylamp_api::RolloutStatus;
use davylamp_api::labels::MANAGER_STATUS;
use kube::api::PostParams;
use kube::core::Request;
use serde_json::json;

use crate::call::{CallError, Caller};
use crate::json::Json;
use crate::observe::{Caches, Subject};
use crate::views::RolloutView;

/// Writes statuses.
#[derive(Clone, Debug)]
pub struct StatusWriter {
    caller: Caller,
}

/// Whether the status differs from what stands there, as the API server would store it.
#[must_use]
pub fn differs(subject: &Subject, next: &RolloutStatus) -> bool {
    let next = serde_json::to_value(next).unwrap_or_default();
    Json::from(&next) != subject.view.status
}

impl StatusWriter {
    /// By this caller.
    #[must_use]
    pub const fn new(caller: Caller) -> Self {
        Self { caller }
    }

    /// Writes the status on the version that was decided on. An unchanged status is the guard: the API server checks
    /// the version and writes nothing.
    pub async fn write(
        &self,
        subject: &Subject,
        next: &RolloutStatus,
        caches: &Caches,
    ) -> Result<RolloutView, CallError> {
        let status = if differs(subject, next) {
            serde_json::to_value(next).unwrap_or_default()
        } else {
            subject.view.status.value()
        };
        let body = json!({
            "apiVersion": "davylamp.dev/v1alpha1",
            "kind": "Rollout",
            "metadata": {
                "name": subject.key.name,
                "namespace": subject.key.namespace,
                "uid": subject.uid,
                "resourceVersion": subject.view.metadata.resource_version,
            },
            "spec": subject.view.spec.value(),
            "status": status,
        });
        let path = format!("/apis/davylamp.dev/v1alpha1/namespaces/{}/rollouts", subject.key.namespace);
        let params = PostParams { field_manager: Some(MANAGER_STATUS.to_owned()), ..PostParams::default() };
        let body = body.to_string().into_bytes();
        let request = Request::new(path).replace_subresource("status", &subject.key.name, &params, body);
        let written: RolloutView = self.caller.request("replace RolloutStatus", request).await?;
        caches.rollouts.wrote(written.clone());
        Ok(written)
    }
}

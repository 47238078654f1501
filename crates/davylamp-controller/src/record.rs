//! The status of a Rollout, written before its effects and guarded by the resourceVersion it was decided on.

use std::fmt;
use std::time::Duration;

use davylamp_api::RolloutStatus;
use davylamp_api::labels::MANAGER_STATUS;
use kube::Client;
use kube::api::PostParams;
use kube::core::Request;
use serde_json::{Value, json};

use crate::call::{CallError, counted};
use crate::json::Json;
use crate::observe::{Caches, Subject};
use crate::telemetry::Telemetry;
use crate::views::RolloutView;

/// Writes statuses.
#[derive(Clone)]
pub struct StatusWriter {
    client: Client,
    limit: Duration,
    telemetry: Telemetry,
}

impl fmt::Debug for StatusWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StatusWriter").field("limit", &self.limit).finish_non_exhaustive()
    }
}

/// Whether the status differs from what stands there, as the API server would store it.
#[must_use]
pub fn differs(subject: &Subject, next: &RolloutStatus) -> bool {
    let next = serde_json::to_value(next).unwrap_or_default();
    Json::from(&next) != subject.view.status
}

impl StatusWriter {
    /// With this time for each call.
    #[must_use]
    pub const fn new(client: Client, limit: Duration, telemetry: Telemetry) -> Self {
        Self { client, limit, telemetry }
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
        let written =
            counted(&self.telemetry, self.limit, "replace RolloutStatus", self.put(subject, &body)).await?;
        caches.rollouts.wrote(written.clone());
        Ok(written)
    }

    async fn put(&self, subject: &Subject, body: &Value) -> Result<RolloutView, kube::Error> {
        let path = format!("/apis/davylamp.dev/v1alpha1/namespaces/{}/rollouts", subject.key.namespace);
        let params = PostParams { field_manager: Some(MANAGER_STATUS.to_owned()), ..PostParams::default() };
        let body = serde_json::to_vec(body).map_err(kube::Error::SerdeError)?;
        let request = Request::new(path).replace_subresource("status", &subject.key.name, &params, body);
        self.client.request(request.map_err(kube::Error::BuildRequest)?).await
    }
}

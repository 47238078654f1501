//! One call to the API server, bounded in time. Takes the call as a future, gives its answer or why there is none;
//! never retries. A call is named `"verb Kind"`, such as `"replace Lease"`, and counted by these two words.

use std::fmt;
use std::time::Duration;

use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout};

use crate::telemetry::Telemetry;

/// Why a call gave nothing.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// No answer in time. Whether the server acted on it is not known.
    #[error("{what}: the API server gave no answer within {} ms", after.as_millis())]
    Timeout {
        /// The call.
        what: &'static str,
        /// How long was waited.
        after: Duration,
    },
    /// An answer that is an error, or no connection.
    #[error("{what}: {source}")]
    Api {
        /// The call.
        what: &'static str,
        /// What kube says.
        source: kube::Error,
    },
}

impl CallError {
    /// What the server answered, if it did.
    #[must_use]
    pub fn status(&self) -> Option<&kube::core::Status> {
        match self {
            Self::Api { source: kube::Error::Api(status), .. } => Some(status),
            Self::Api { .. } | Self::Timeout { .. } => None,
        }
    }

    /// Somebody else wrote the object first.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_conflict)
    }

    /// The object is not there.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_not_found)
    }

    /// An object of that name is there already.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.status().is_some_and(kube::core::Status::is_already_exists)
    }

    /// We lack the right, or the namespace is being deleted: it does not get better by itself.
    #[must_use]
    pub fn is_forbidden(&self) -> bool {
        self.status().is_some_and(|status| status.is_forbidden() || status.code == 401)
    }

    /// As a label: a closed set.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Timeout { .. } => "timeout",
            _ if self.is_conflict() => "conflict",
            _ if self.is_not_found() => "not-found",
            _ if self.is_already_exists() => "already-exists",
            _ if self.is_forbidden() => "forbidden",
            Self::Api { source: kube::Error::Api(status), .. } if (400..500).contains(&status.code) => {
                "refused"
            }
            Self::Api { .. } => "failed",
        }
    }
}

/// Waits for a call no longer than `limit`: kube has no read timeout of its own and retries up to fifteen times.
pub async fn bounded<T>(
    limit: Duration,
    what: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, CallError> {
    match timeout(limit, call).await {
        Ok(answer) => answer.map_err(|source| CallError::Api { what, source }),
        Err(_) => Err(CallError::Timeout { what, after: limit }),
    }
}

/// [`bounded`], and counted: writes by kind, verb and result, with their duration; timeouts of any call.
pub async fn counted<T>(
    telemetry: &Telemetry,
    limit: Duration,
    what: &'static str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, CallError> {
    let start = Instant::now();
    let answer = bounded(limit, what, call).await;
    telemetry.call(what, answer.as_ref().map_or_else(CallError::reason, |_| "ok"), start.elapsed());
    answer
}

/// Makes calls: each [`counted`], with the same limit.
#[derive(Clone)]
pub struct Caller {
    client: Client,
    limit: Duration,
    telemetry: Telemetry,
}

impl fmt::Debug for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Caller").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl Caller {
    /// With this time for each call.
    #[must_use]
    pub const fn new(client: Client, limit: Duration, telemetry: Telemetry) -> Self {
        Self { client, limit, telemetry }
    }

    /// The objects of a kind in a namespace, as they are.
    #[must_use]
    pub fn api(&self, namespace: &str, resource: &ApiResource) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, resource)
    }

    /// The client, for what [`Self::api`] does not cover; its calls go through [`Self::call`] too.
    #[must_use]
    pub const fn client(&self) -> &Client {
        &self.client
    }

    /// Makes a call.
    pub async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, CallError> {
        counted(&self.telemetry, self.limit, what, call).await
    }

    /// Sends a request that kube's `Api` has no words for.
    pub async fn request<T: DeserializeOwned>(
        &self,
        what: &'static str,
        request: Result<axum::http::Request<Vec<u8>>, kube::core::request::Error>,
    ) -> Result<T, CallError> {
        let answer = async { self.client.request(request.map_err(kube::Error::BuildRequest)?).await };
        self.call(what, answer).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, reason: &str) -> CallError {
        let source = kube::Error::Api(kube::core::Status::failure("no", reason).with_code(code).boxed());
        CallError::Api { what: "create Event", source }
    }

    #[tokio::test(start_paused = true)]
    async fn gives_up_in_time() {
        let start = Instant::now();
        let error =
            bounded::<()>(Duration::from_secs(5), "get Lease", std::future::pending()).await.unwrap_err();
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert_eq!(error.reason(), "timeout");
        assert_eq!(error.to_string(), "get Lease: the API server gave no answer within 5000 ms");
    }

    #[test]
    fn tells_answers_apart() {
        assert!(refused(409, "Conflict").is_conflict());
        let exists = refused(409, "AlreadyExists");
        assert!(exists.is_already_exists() && !exists.is_conflict());
        assert!(refused(404, "NotFound").is_not_found());
        let reasons: Vec<_> =
            [refused(403, "Forbidden"), refused(422, "Invalid"), refused(500, "InternalError")]
                .iter()
                .map(CallError::reason)
                .collect();
        assert_eq!(reasons, ["forbidden", "refused", "failed"]);
    }
}

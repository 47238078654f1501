//! Writes routes: each write is guarded by the resourceVersion it was made from, bounded in time, and safe to repeat.
//! Never reads: what it starts from is handed in, and what the server answers is handed back.

use davylamp_api::conditions::Reason;
use davylamp_api::labels::MANAGER_TRAFFIC;
use davylamp_api::rollout::RouteRef;
use davylamp_api::scalar::Percent;
use davylamp_api::status::RouteOriginal;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::Request;
use serde_json::Value;

use super::gateway::{Backends, forget_patch, restored, with_weight};
use crate::call::{CallError, Caller};

/// Writes weights into `HTTPRoute`s.
#[derive(Clone, Debug)]
pub struct GatewayRouter {
    caller: Caller,
}

/// Why a route could not be written.
#[derive(Debug, thiserror::Error)]
pub enum TrafficError {
    /// It has changed since it was read, be it only in its status.
    #[error("HTTPRoute {route} has changed since it was read")]
    Conflict {
        /// Its name.
        route: String,
        /// What the API server said.
        #[source]
        source: CallError,
    },
    /// It was not written, or an answer did not come in time.
    #[error("HTTPRoute {route}: {source}")]
    Write {
        /// Its name.
        route: String,
        /// Why.
        source: CallError,
    },
}

impl TrafficError {
    /// The route has changed since it was read: start over with what it is now.
    #[must_use]
    pub const fn is_conflict(&self) -> bool {
        matches!(self, Self::Conflict { .. })
    }

    /// For the condition, the event and the metric.
    #[must_use]
    pub fn reason(&self) -> Reason {
        match self {
            Self::Conflict { .. } => Reason::ShiftingTraffic,
            Self::Write { source, .. } if source.is_not_found() => Reason::RouteNotFound,
            Self::Write { .. } => Reason::RouteNotEffective,
        }
    }
}

impl GatewayRouter {
    /// By this caller.
    #[must_use]
    pub const fn new(caller: Caller) -> Self {
        Self { caller }
    }

    /// Writes the canary's share. Gives the route as written; None when it says so already.
    pub async fn set(
        &self,
        current: &Value,
        target: &RouteRef,
        backends: Backends<'_>,
        canary: Percent,
    ) -> Result<Option<Value>, TrafficError> {
        match with_weight(current, target, backends, canary) {
            Some(next) => self.replace(&target.name, backends.namespace, next).await.map(Some),
            None => Ok(None),
        }
    }

    /// Writes the user's own numbers, then ends our ownership of fields. Gives the route as written; None when there
    /// is nothing to restore or the route is gone.
    pub async fn restore(
        &self,
        current: &Value,
        original: &RouteOriginal,
        backends: Backends<'_>,
    ) -> Result<Option<Value>, TrafficError> {
        match self.restore_found(current, original, backends).await {
            Err(TrafficError::Write { source, .. }) if source.is_not_found() => Ok(None),
            answer => answer,
        }
    }

    async fn restore_found(
        &self,
        current: &Value,
        original: &RouteOriginal,
        backends: Backends<'_>,
    ) -> Result<Option<Value>, TrafficError> {
        let name = &original.route.name;
        let written = match restored(current, original, backends) {
            Some(next) => Some(self.replace(name, backends.namespace, next).await?),
            None => None,
        };
        match forget_patch(written.as_ref().unwrap_or(current)) {
            Some(patch) => self.patch(name, backends.namespace, patch).await.map(Some),
            None => Ok(written),
        }
    }

    async fn replace(&self, name: &str, namespace: &str, mut next: Value) -> Result<Value, TrafficError> {
        // A cached object may lack them; a body must not.
        if let Some(fields) = next.as_object_mut() {
            fields.insert("apiVersion".to_owned(), "gateway.networking.k8s.io/v1".into());
            fields.insert("kind".to_owned(), "HTTPRoute".into());
        }
        let params = PostParams { field_manager: Some(MANAGER_TRAFFIC.to_owned()), ..PostParams::default() };
        let request = requests(namespace).replace(name, &params, next.to_string().into_bytes());
        let answer = self.caller.request("replace HTTPRoute", request).await;
        answer.map_err(|source| failed(name, source, &[409]))
    }

    async fn patch(&self, name: &str, namespace: &str, patch: Value) -> Result<Value, TrafficError> {
        let params =
            PatchParams { field_manager: Some(MANAGER_TRAFFIC.to_owned()), ..PatchParams::default() };
        let patch = Patch::<()>::Json(serde_json::from_value(patch).unwrap_or_default());
        let request = requests(namespace).patch(name, &params, &patch);
        let answer = self.caller.request("patch HTTPRoute", request).await;
        // The answer to a failed `test` is a 422 that says no more.
        answer.map_err(|source| failed(name, source, &[409, 422]))
    }
}

fn failed(name: &str, source: CallError, conflicts: &[u16]) -> TrafficError {
    let route = name.to_owned();
    if source.status().is_some_and(|status| conflicts.contains(&status.code)) {
        TrafficError::Conflict { route, source }
    } else {
        TrafficError::Write { route, source }
    }
}

fn requests(namespace: &str) -> Request {
    Request::new(format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes"))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use axum::http;
    use davylamp_api::rollout::RouteKind;
    use davylamp_api::status::RuleWeights;
    use kube::Client;
    use kube::client::Body;
    use serde_json::json;

    use super::*;
    use crate::telemetry::Telemetry;

    const BACKENDS: Backends<'_> =
        Backends { namespace: "shop", stable: "shop-stable", canary: "shop-canary" };

    type Requests = Arc<Mutex<Vec<(String, Value)>>>;

    /// Takes each write as it is, or answers with this error.
    fn server(error: Option<(u16, &'static str, &'static str)>) -> (GatewayRouter, Requests) {
        let seen = Requests::default();
        let log = seen.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let log = log.clone();
            async move {
                let (head, body) = request.into_parts();
                let kind = head.headers.get("content-type").map_or("", |kind| kind.to_str().unwrap());
                let line = format!("{} {} {kind}", head.method, head.uri);
                let body: Value = serde_json::from_slice(&body.collect_bytes().await.unwrap()).unwrap();
                log.lock().unwrap().push((line, body.clone()));
                let (code, answer) = match error {
                    Some((code, reason, message)) => (
                        code,
                        json!({"status": "Failure", "code": code, "reason": reason, "message": message}),
                    ),
                    None if head.method == http::Method::PUT => {
                        let mut written = body;
                        written["metadata"]["resourceVersion"] = json!("8");
                        written["metadata"]["managedFields"] =
                            json!([{"manager": "kubectl"}, {"manager": MANAGER_TRAFFIC}]);
                        (200, written)
                    }
                    None => (200, json!({"patched": true})),
                };
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, std::convert::Infallible>(http::Response::builder().status(code).body(body).unwrap())
            }
        });
        (router(Client::new(service, "default")), seen)
    }

    fn router(client: Client) -> GatewayRouter {
        let telemetry = Telemetry::default();
        GatewayRouter::new(Caller::new(client, Duration::from_secs(5), telemetry))
    }

    fn target() -> RouteRef {
        RouteRef { kind: RouteKind::HttpRoute, name: "shop".to_owned(), rule: None }
    }

    fn original() -> RouteOriginal {
        RouteOriginal { route: target(), rules: vec![RuleWeights::default()] }
    }

    fn route(stable: i32, canary: i32) -> Value {
        json!({"metadata": {"name": "shop", "resourceVersion": "7"}, "spec": {"rules": [{"backendRefs": [
            {"name": "shop-stable", "weight": stable}, {"name": "shop-canary", "weight": canary},
        ]}]}})
    }

    const PATH: &str =
        "/apis/gateway.networking.k8s.io/v1/namespaces/shop/httproutes/shop?&fieldManager=davylamp%2Ftraffic";

    #[tokio::test]
    async fn a_weight_is_written_once_and_the_answer_handed_back() {
        let (router, seen) = server(None);
        let weight = Percent::from_basis_points(500);
        let written = router.set(&route(1, 0), &target(), BACKENDS, weight).await.unwrap().unwrap();
        assert_eq!(written["metadata"]["resourceVersion"], json!("8"));
        let mut body = route(9_500, 500);
        body["apiVersion"] = json!("gateway.networking.k8s.io/v1");
        body["kind"] = json!("HTTPRoute");
        assert_eq!(*seen.lock().unwrap(), [(format!("PUT {PATH} application/json"), body)]);
        assert_eq!(router.set(&written, &target(), BACKENDS, weight).await.unwrap(), None);
        assert_eq!(seen.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_restore_writes_the_users_numbers_and_then_gives_up_ownership() {
        let (router, seen) = server(None);
        let done = router.restore(&route(9_500, 500), &original(), BACKENDS).await.unwrap().unwrap();
        assert_eq!(done, json!({"patched": true}));
        let seen = seen.lock().unwrap();
        assert_eq!(seen[0].1["spec"]["rules"][0]["backendRefs"][0], json!({"name": "shop-stable"}));
        let patch = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": "8"},
            {"op": "remove", "path": "/metadata/managedFields/1"},
        ]);
        assert_eq!(seen[1], (format!("PATCH {PATH} application/json-patch+json"), patch));
        assert_eq!(seen.len(), 2);
    }

    #[tokio::test]
    async fn nothing_to_restore_is_no_call() {
        let (router, seen) = server(None);
        let mut own = route(0, 0);
        for backend in own["spec"]["rules"][0]["backendRefs"].as_array_mut().unwrap() {
            backend.as_object_mut().unwrap().remove("weight");
        }
        assert_eq!(router.restore(&own, &original(), BACKENDS).await.unwrap(), None);
        assert!(seen.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_conflict_is_told_from_other_errors() {
        for (code, reason, message, conflict) in [
            (409, "Conflict", "the object has been modified", true),
            (422, "Invalid", "spec.rules: Invalid value", false),
            (404, "NotFound", "not found", false),
            (500, "InternalError", "no leader", false),
        ] {
            let (router, _) = server(Some((code, reason, message)));
            let error = router.set(&route(1, 1), &target(), BACKENDS, Percent::ZERO).await.unwrap_err();
            assert_eq!(error.is_conflict(), conflict, "{code} {message}: {error}");
        }
    }

    #[tokio::test]
    async fn a_route_that_changed_before_its_ownership_was_given_up_is_a_conflict() {
        let message = "the server rejected our request due to an error in our request";
        let (router, _) = server(Some((422, "Invalid", message)));
        let mut route = route(0, 0);
        route["spec"] = json!({});
        route["metadata"]["managedFields"] = json!([{"manager": MANAGER_TRAFFIC}]);
        let error = router.restore(&route, &original(), BACKENDS).await.unwrap_err();
        assert!(error.is_conflict(), "{error:?}");
    }

    #[tokio::test]
    async fn a_route_that_is_gone_is_restored() {
        let (router, _) = server(Some((404, "NotFound", "not found")));
        assert_eq!(router.restore(&route(9_500, 500), &original(), BACKENDS).await.unwrap(), None);
        let error = router.set(&route(1, 1), &target(), BACKENDS, Percent::ZERO).await.unwrap_err();
        assert_eq!(error.reason(), Reason::RouteNotFound);
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_does_not_answer_is_left() {
        let silent = tower::service_fn(|_: http::Request<Body>| {
            std::future::pending::<Result<http::Response<Body>, std::convert::Infallible>>()
        });
        let router = router(Client::new(silent, "default"));
        let started = tokio::time::Instant::now();
        let error = router.set(&route(1, 1), &target(), BACKENDS, Percent::ZERO).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "HTTPRoute shop: replace HTTPRoute: the API server gave no answer within 5000 ms"
        );
        assert_eq!(started.elapsed(), Duration::from_secs(5));
    }
}

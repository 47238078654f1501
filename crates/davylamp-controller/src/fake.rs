//! A kube client whose server is a function, for tests of single modules.

use std::sync::Arc;

use axum::http::{Method, Request, Response};
use futures::future::BoxFuture;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};

/// What the server is asked: method, path with query, and the body if there is one.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) body: Value,
}

/// A client that hands each request to `answer`, which gives a code and a body; several lines if it is a text.
pub(crate) fn client<F>(answer: F) -> Client
where
    F: Fn(Asked) -> BoxFuture<'static, (u16, Value)> + Send + Sync + 'static,
{
    let answer = Arc::new(answer);
    let service = tower::service_fn(move |request: Request<Body>| {
        let answer = Arc::clone(&answer);
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect_bytes().await?;
            let asked = Asked {
                method: head.method,
                path: head.uri.to_string(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            let (code, body) = answer(asked).await;
            let text = body.as_str().map_or_else(|| body.to_string(), str::to_owned);
            let response = Response::builder().status(code).body(Body::from(text.into_bytes())).unwrap();
            Ok::<_, kube::Error>(response)
        }
    });
    Client::new(service, "default")
}

/// The answer of an API server that says no.
pub(crate) fn no(code: u16, reason: &str) -> (u16, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no",
                        "reason": reason, "code": code});
    (code, status)
}

//! Everybody but the controller: [`User`] asks the API server directly, without client or faults, as a person with
//! `kubectl` does. Knows nothing of Rollouts.

use std::convert::Infallible;

use bytes::Bytes;
use davylamp_world::ApiServer;
use http::{Method, Request};
use http_body_util::{BodyExt, Full};
use serde_json::{Value, json};
use tower::Service;

/// The server's no, in its own words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refused {
    /// Of HTTP.
    pub(crate) code: u16,
    /// The message of its `Status`.
    pub(crate) message: String,
}

/// How a body changes an object.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Form {
    Whole,
    Apply,
    Merge,
    Json,
}

impl Form {
    const fn content_type(self) -> &'static str {
        match self {
            Self::Whole => "application/json",
            Self::Apply => "application/apply-patch+yaml",
            Self::Merge => "application/merge-patch+json",
            Self::Json => "application/json-patch+json",
        }
    }
}

/// Someone with all rights.
#[derive(Clone, Debug)]
pub(crate) struct User {
    server: ApiServer,
    /// Of objects that name none.
    namespace: String,
}

impl User {
    pub(crate) const fn new(server: ApiServer, namespace: String) -> Self {
        Self { server, namespace }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        form: Form,
        body: &Value,
    ) -> http::Response<davylamp_world::Body> {
        let body = if body.is_null() { Bytes::new() } else { Bytes::from(body.to_string()) };
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap_or_default();
        let headers = request.headers_mut();
        headers.insert("content-type", http::HeaderValue::from_static(form.content_type()));
        headers.insert("user-agent", http::HeaderValue::from_static("kubectl"));
        let answer: Result<_, Infallible> = self.server.clone().call(request).await;
        match answer {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    /// One request and its answer.
    pub(crate) async fn ask(
        &self,
        method: Method,
        path: &str,
        form: Form,
        body: &Value,
    ) -> Result<Value, Refused> {
        let response = self.send(method, path, form, body).await;
        let code = response.status().as_u16();
        let Ok(body) = response.into_body().collect().await;
        let answer: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        if code < 300 {
            return Ok(answer);
        }
        let message = answer.get("message").and_then(Value::as_str).unwrap_or_default().to_owned();
        Err(Refused { code, message })
    }

    /// What changes at a path from now on, after what is there, a line each.
    pub(crate) async fn watch(&self, path: &str) -> davylamp_world::Body {
        let path = format!("{path}?watch=true&timeoutSeconds=1000000000");
        self.send(Method::GET, &path, Form::Whole, &Value::Null).await.into_body()
    }

    /// Where an object of this kind is.
    async fn path(&self, object: &Value) -> Result<String, Refused> {
        let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
        let version = text("/apiVersion");
        let root = if version.contains('/') { format!("/apis/{version}") } else { format!("/api/{version}") };
        let kinds = self.ask(Method::GET, &root, Form::Whole, &Value::Null).await?;
        let kinds = kinds.get("resources").and_then(Value::as_array);
        let kind = kinds.into_iter().flatten().find(|kind| {
            kind.get("kind").and_then(Value::as_str) == Some(text("/kind"))
                && kind.get("name").and_then(Value::as_str).is_some_and(|name| !name.contains('/'))
        });
        let Some(kind) = kind else {
            let message = format!("no kind {:?} in {version:?}", text("/kind"));
            return Err(Refused { code: 404, message });
        };
        let namespace = match text("/metadata/namespace") {
            "" => &self.namespace,
            namespace => namespace,
        };
        let namespaced = kind.get("namespaced").and_then(Value::as_bool).unwrap_or(false);
        let namespace = if namespaced { format!("/namespaces/{namespace}") } else { String::new() };
        let plural = kind.get("name").and_then(Value::as_str).unwrap_or_default();
        Ok(format!("{root}{namespace}/{plural}/{}", text("/metadata/name")))
    }

    /// Creates an object, or makes it this, as `kubectl apply --server-side --force-conflicts` does.
    pub(crate) async fn apply(&self, object: &Value) -> Result<(), Refused> {
        let path = format!("{}?fieldManager=kubectl&force=true", self.path(object).await?);
        self.ask(Method::PATCH, &path, Form::Apply, object).await?;
        Ok(())
    }

    /// Whether an object of this kind, namespace and name is there.
    pub(crate) async fn has(&self, object: &Value) -> Result<bool, Refused> {
        match self.ask(Method::GET, &self.path(object).await?, Form::Whole, &Value::Null).await {
            Ok(_) => Ok(true),
            Err(refused) if refused.code == 404 => Ok(false),
            Err(refused) => Err(refused),
        }
    }

    /// The objects at a path.
    pub(crate) async fn list(&self, path: &str) -> Result<Vec<Value>, Refused> {
        let mut list = self.ask(Method::GET, path, Form::Whole, &Value::Null).await?;
        Ok(match list.get_mut("items").map(Value::take) {
            Some(Value::Array(items)) => items,
            _ => Vec::new(),
        })
    }

    /// Creates a namespace unless it is there.
    pub(crate) async fn namespace(&self, name: &str) -> Result<(), Refused> {
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        self.apply(&namespace).await
    }
}

//! Secrets by name, from the namespace of the controller and no other. What is read is not shown: a [`Hidden`] text has no
//! words for a log, and an error names the secret and its key only.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use davylamp_api::k8s_openapi::api::core::v1::Secret;
use davylamp_api::source::SecretKey;
use kube::api::GetParams;
use kube::core::request::Request;
use kube::{Client, Resource};
use thiserror::Error;

use super::kept::Kept;
use crate::call::bounded;
use crate::metrics::QueryError;

const KEPT: Duration = Duration::from_mins(1);
const CALL_LIMIT: Duration = Duration::from_secs(5);
/// Tokens of accounts, releases of charts and the like stay where they are, even if a source names them.
const TYPES: [&str; 3] = ["Opaque", "kubernetes.io/basic-auth", "kubernetes.io/tls"];

/// A text that is not shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Hidden(String);

impl Hidden {
    pub(crate) const fn new(text: String) -> Self {
        Self(text)
    }

    /// For whom it is meant.
    pub(crate) fn show(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Hidden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("hidden")
    }
}

/// Why a secret cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("key {key} of secret {namespace}/{name}: {problem}")]
pub struct SecretError {
    /// The namespace of the controller.
    pub namespace: String,
    /// The secret.
    pub name: String,
    /// The key that was wanted.
    pub key: String,
    /// What is wrong, and what to do.
    pub problem: &'static str,
}

type Contents = Result<BTreeMap<String, Option<Hidden>>, &'static str>;

/// Reads secrets.
pub(super) struct Secrets {
    /// None where there is no cluster.
    client: Option<Client>,
    namespace: String,
    kept: Kept<String, Arc<Contents>>,
}

impl Secrets {
    pub(super) fn new(client: Option<Client>, namespace: String) -> Self {
        Self { client, namespace, kept: Kept::default() }
    }

    /// A text; `renew` says that what was read last turned out to be refused.
    pub(super) async fn text(&self, at: &SecretKey, renew: bool) -> Result<Hidden, QueryError> {
        let contents = self.kept.get(at.name.clone(), renew, |before| self.read(&at.name, before)).await?;
        let text = match &*contents {
            Ok(contents) => match contents.get(&at.key) {
                Some(Some(text)) if !text.show().is_empty() => return Ok(text.clone()),
                Some(Some(_)) => "it is empty",
                Some(None) => "it is no text",
                None => "there is no such key",
            },
            Err(problem) => problem,
        };
        Err(self.error(at, text))
    }

    pub(super) fn error(&self, at: &SecretKey, problem: &'static str) -> QueryError {
        let SecretKey { name, key } = at.clone();
        QueryError::Secret(Box::new(SecretError { namespace: self.namespace.clone(), name, key, problem }))
    }

    async fn read(
        &self,
        name: &str,
        before: Option<Arc<Contents>>,
    ) -> Result<(Arc<Contents>, Duration), QueryError> {
        let contents = match (self.get(name).await, before) {
            // The server is away: what was read before may still be good.
            (Err(UNREADABLE), Some(before)) if before.is_ok() => before,
            (contents, _) => Arc::new(contents),
        };
        let good = if contents.is_ok() { KEPT } else { super::kept::SOONEST };
        Ok((contents, good))
    }

    async fn get(&self, name: &str) -> Contents {
        let Some(client) = &self.client else { return Err("there is no cluster to read it from") };
        // It becomes a part of a path.
        if name.is_empty() || name.contains(|c: char| !c.is_ascii_alphanumeric() && !"-.".contains(c)) {
            return Err("that is no name of a secret");
        }
        let path = Secret::url_path(&(), Some(&self.namespace));
        let request = Request::new(path).get(name, &GetParams::default()).map_err(|_| UNREADABLE)?;
        // As a text, for kube logs what it cannot read.
        let answer = bounded(CALL_LIMIT, "get Secret", client.request_text(request)).await;
        let text = answer.map_err(|error| {
            if error.is_not_found() {
                "there is no such secret"
            } else if error.is_forbidden() {
                "the controller's account may not get it"
            } else {
                UNREADABLE
            }
        })?;
        let secret: Secret = serde_json::from_str(&text).map_err(|_| UNREADABLE)?;
        if !TYPES.contains(&secret.type_.as_deref().unwrap_or("Opaque")) {
            return Err(
                "its type is none of Opaque, kubernetes.io/basic-auth and kubernetes.io/tls, so it is not sent anywhere",
            );
        }
        let data = secret.data.unwrap_or_default().into_iter();
        Ok(data.map(|(key, value)| (key, text_of(value.0))).collect())
    }
}

const UNREADABLE: &str = "the API server did not give it";

/// Without the newline that an editor or `echo` has left at its end.
fn text_of(value: Vec<u8>) -> Option<Hidden> {
    let text = String::from_utf8(value).ok()?;
    Some(Hidden(text.trim_end_matches(['\r', '\n']).to_owned()))
}

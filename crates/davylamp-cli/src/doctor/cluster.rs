//! What the API server is asked: reads only, each bounded in time. Takes names, gives objects or why there are none;
//! judges nothing.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use davylamp_api::k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use davylamp_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use davylamp_api::k8s_openapi::jiff::fmt::rfc2822::DateTimeParser;
use davylamp_api::{Instant, labels};
use davylamp_controller::call::{CallError, bounded};
use davylamp_controller::clock::Clock;
use http::{Request, StatusCode, header};
use kube::api::{Api, DynamicObject, ListParams};
use kube::client::Body;
use kube::core::{ApiResource, GroupVersionKind};
use kube::{Client, Config};
use serde_json::Value;
use tokio::time::sleep;

/// For each request.
const PATIENCE: Duration = Duration::from_secs(10);
/// A controller at work renews its Lease each two seconds, or more often.
pub(super) const WATCHED: Duration = Duration::from_secs(6);
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
const PAGE: u32 = 500;

/// What was asked for, or why it is not there.
pub(super) type Answer<T> = Result<T, Unread>;

/// Why something could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// The user lacks the right.
    Forbidden,
    /// There is no such thing.
    Missing,
    /// Something else.
    Failed(String),
}

impl From<CallError> for Unread {
    fn from(error: CallError) -> Self {
        match error.status() {
            _ if error.is_forbidden() => Self::Forbidden,
            Some(status) if status.code == 404 => Self::Missing,
            Some(_) | None => Self::Failed(error.to_string()),
        }
    }
}

/// The API server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) url: String,
    /// Unless it tells nobody.
    pub(super) version: Option<String>,
    /// Its time, for ours may be wrong.
    pub(super) now: Instant,
}

/// A Lease that was looked at more than once.
#[derive(Clone, Debug, Default)]
pub(super) struct Sighting {
    pub(super) spec: LeaseSpec,
    /// It changed while we looked: compared with no clock, so no clock can mislead.
    pub(super) renewed: bool,
}

/// The cluster of the current context.
pub(super) struct Cluster {
    client: Client,
    url: String,
}

impl Cluster {
    pub(super) async fn of_context() -> Result<Self> {
        let config = Config::infer().await.context("no cluster: set a context with kubectl config")?;
        let url = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let client = Client::try_from(config).context("no client for this cluster")?;
        Ok(Self { client, url })
    }

    pub(super) fn default_namespace(&self) -> &str {
        self.client.default_namespace()
    }

    /// Fails when it does not answer, or knows nobody by these credentials.
    pub(super) async fn server(&self) -> Result<Server> {
        let url = &self.url;
        let asked = async {
            let request = Request::get("/version").body(Body::empty()).map_err(kube::Error::HttpError)?;
            let answer = self.client.send(request).await?;
            let (status, date) = (answer.status(), answer.headers().get(header::DATE).cloned());
            Ok((status, date, answer.into_body().collect_bytes().await?))
        };
        let (status, date, body) = bounded(PATIENCE, "get /version", asked)
            .await
            .map_err(|error| anyhow!("the API server at {url} does not answer: {}", told(&error)))?;
        if status == StatusCode::UNAUTHORIZED {
            bail!("the API server at {url} does not take the credentials of this context: log in again");
        }
        if status.is_server_error() {
            bail!("the API server at {url} answers {status}");
        }
        let about: Value = serde_json::from_slice(&body).unwrap_or_default();
        let date = date.as_ref().and_then(|date| date.to_str().ok());
        let now = date.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
        Ok(Server {
            url: url.clone(),
            version: about["gitVersion"].as_str().map(str::to_owned),
            now: now.unwrap_or_else(|| Clock::system().now()),
        })
    }

    /// Kinds of a group and version, by their plural; none where it is unknown.
    pub(super) async fn served(&self, group_version: &str) -> Answer<BTreeSet<String>> {
        let asked = self.client.list_api_group_resources(group_version);
        match bounded(PATIENCE, "list kinds", asked).await.map_err(Unread::from) {
            Ok(list) => Ok(list.resources.into_iter().map(|kind| kind.name).collect()),
            Err(Unread::Missing) => Ok(BTreeSet::new()),
            Err(why) => Err(why),
        }
    }

    /// Those of these definitions that there are.
    pub(super) async fn definitions(&self, names: Vec<String>) -> Answer<Vec<CustomResourceDefinition>> {
        let api: Api<CustomResourceDefinition> = Api::all(self.client.clone());
        let mut found = Vec::new();
        for name in names {
            match bounded(PATIENCE, "get CustomResourceDefinition", api.get(&name))
                .await
                .map_err(Unread::from)
            {
                Ok(definition) => found.push(definition),
                Err(Unread::Missing) => {}
                Err(why) => return Err(why),
            }
        }
        Ok(found)
    }

    pub(super) async fn rollouts(&self, namespace: Option<&str>) -> Answer<Vec<DynamicObject>> {
        self.list("list Rollouts", labels::GROUP, labels::VERSION, "Rollout", namespace).await
    }

    pub(super) async fn sources(&self) -> Answer<Vec<DynamicObject>> {
        self.list("list MetricSources", labels::GROUP, labels::VERSION, "MetricSource", None).await
    }

    pub(super) async fn services(&self) -> Answer<Vec<DynamicObject>> {
        self.list("list Services", "", "v1", "Service", None).await
    }

    async fn list(
        &self,
        what: &'static str,
        group: &str,
        version: &str,
        kind: &str,
        namespace: Option<&str>,
    ) -> Answer<Vec<DynamicObject>> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
        let client = self.client.clone();
        let api: Api<DynamicObject> = match namespace {
            Some(namespace) => Api::namespaced_with(client, namespace, &resource),
            None => Api::all_with(client, &resource),
        };
        let mut page = ListParams::default().limit(PAGE);
        let mut found = Vec::new();
        loop {
            let list = bounded(PATIENCE, what, api.list(&page)).await?;
            found.extend(list.items);
            match list.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => page = page.continue_token(&token),
                None => return Ok(found),
            }
        }
    }

    pub(super) async fn lease(&self, namespace: &str, name: &str) -> Answer<LeaseSpec> {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
        let lease = bounded(PATIENCE, "get Lease", api.get(name)).await?;
        Ok(lease.spec.unwrap_or_default())
    }

    /// Looks again at a Lease that somebody holds, until it is another or a controller would have renewed it.
    pub(super) async fn watched(
        &self,
        first: Answer<LeaseSpec>,
        namespace: &str,
        name: &str,
    ) -> Answer<Sighting> {
        let mut spec = first?;
        let before = spec.clone();
        let mut looks = WATCHED.as_millis() / BETWEEN_LOOKS.as_millis();
        while spec.holder_identity.as_deref().is_some_and(|holder| !holder.is_empty()) {
            spec = self.lease(namespace, name).await?;
            if spec != before || looks == 0 {
                break;
            }
            looks -= 1;
            sleep(BETWEEN_LOOKS).await;
        }
        let renewed = spec.renew_time != before.renew_time;
        Ok(Sighting { spec, renewed })
    }
}

/// The last cause: those before it say only what was done.
fn told(error: &CallError) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}

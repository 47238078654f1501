//! Everything that a watch sees of one object, in order: also what lasts for a moment only.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use futures::StreamExt;
use kube::ResourceExt;
use kube::api::{Api, DynamicObject};
use kube::runtime::watcher::{self, Event, watcher};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::cluster::dynamic;
use crate::shop::{NAME, Shop};
use crate::until;

/// One version of the object.
#[derive(Clone, Debug)]
pub struct Seen {
    /// When this process saw it.
    pub at: Instant,
    /// Of the whole cluster: orders the writes of all objects.
    pub revision: u64,
    /// None once it is deleted.
    pub object: Option<Value>,
}

impl Seen {
    /// Some part of it; null where there is none.
    #[must_use]
    pub fn get(&self, pointer: &str) -> &Value {
        self.object.as_ref().and_then(|o| o.pointer(pointer)).unwrap_or(&Value::Null)
    }

    /// The weights of a route's first rule, stable and canary; the API server writes 1 where the user writes none.
    #[must_use]
    pub fn weights(&self) -> [i64; 2] {
        ["0", "1"].map(|i| self.get(&format!("/spec/rules/0/backendRefs/{i}/weight")).as_i64().unwrap_or(-1))
    }

    /// Whether a condition is so. The message is not compared.
    #[must_use]
    pub fn says(&self, condition: &str, status: &str, reason: &str) -> bool {
        let conditions = self.get("/status/conditions").as_array();
        conditions
            .into_iter()
            .flatten()
            .any(|c| c["type"] == condition && c["status"] == status && c["reason"] == reason)
    }

    /// The message of a condition.
    #[must_use]
    pub fn message(&self, condition: &str) -> &str {
        let conditions = self.get("/status/conditions").as_array();
        let condition = conditions.into_iter().flatten().find(|c| c["type"] == condition);
        condition.and_then(|c| c["message"].as_str()).unwrap_or_default()
    }
}

/// A watch from now on; it ends with this value.
#[derive(Debug)]
pub struct Watched {
    seen: Arc<Mutex<Vec<Seen>>>,
    task: JoinHandle<()>,
}

impl Watched {
    /// The route of a shop.
    ///
    /// # Errors
    /// It is not there.
    pub async fn route(shop: &Shop) -> Result<Self> {
        Self::object(shop, "gateway.networking.k8s.io/v1", "HTTPRoute").await
    }

    /// The Rollout of a shop.
    ///
    /// # Errors
    /// It is not there.
    pub async fn rollout(shop: &Shop) -> Result<Self> {
        Self::object(shop, "davylamp.dev/v1alpha1", "Rollout").await
    }

    async fn object(shop: &Shop, api_version: &str, kind: &str) -> Result<Self> {
        let named = json!({"apiVersion": api_version, "kind": kind});
        let api = dynamic(&shop.client, &named, Some(&shop.namespace)).await?;
        let seen = Arc::default();
        let task = tokio::spawn(follow(api, Arc::clone(&seen)));
        let watched = Self { seen, task };
        watched.wait(10, "the watch begins", |_| true).await?;
        Ok(watched)
    }

    /// All versions so far.
    #[must_use]
    pub fn all(&self) -> Vec<Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first version that is so, also one of the past.
    ///
    /// # Errors
    /// There is none within so many seconds.
    pub async fn wait(&self, seconds: u64, what: &str, is: impl Fn(&Seen) -> bool) -> Result<Seen> {
        until(Duration::from_secs(seconds), what, || async { Ok(self.all().into_iter().find(|s| is(s))) })
            .await
            .with_context(|| format!("last seen: {:?}", self.all().last()))
    }

    /// The weights of a route, each time they changed.
    #[must_use]
    pub fn weights(&self) -> Vec<[i64; 2]> {
        let mut weights: Vec<_> =
            self.all().iter().filter(|s| s.object.is_some()).map(Seen::weights).collect();
        weights.dedup();
        weights
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow(api: Api<DynamicObject>, seen: Arc<Mutex<Vec<Seen>>>) {
    let config = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = watcher(api, config).boxed();
    while let Some(event) = events.next().await {
        let (object, there) = match event {
            Ok(Event::Apply(object) | Event::InitApply(object)) => (object, true),
            Ok(Event::Delete(object)) => (object, false),
            Ok(Event::Init | Event::InitDone) => continue,
            Err(_) => {
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let one = Seen {
            at: Instant::now(),
            revision: object.resource_version().and_then(|r| r.parse().ok()).unwrap_or(0),
            object: serde_json::to_value(&object).ok().filter(|_| there),
        };
        seen.lock().unwrap_or_else(PoisonError::into_inner).push(one);
    }
}

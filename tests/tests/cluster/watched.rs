//! The numbers that a shop's route says, one after the other, as the API server tells them: none is missed.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use davylamp_tests::shop::{NAME, Shop};
use davylamp_tests::until;
use futures::StreamExt;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::runtime::watcher::{Config, watcher};
use kube::runtime::{WatchStreamExt, predicates};
use serde_json::Value;
use tokio::task::AbortHandle;
use tokio::time::{Duration, Instant};

/// The numbers of stable and canary, and when they were seen.
type Seen = Arc<Mutex<Vec<([i64; 2], Instant)>>>;

/// Watches until it is dropped.
pub(crate) struct Weights {
    seen: Seen,
    task: AbortHandle,
}

impl Weights {
    /// Begins with what the route says now.
    pub(crate) async fn watch(shop: &Shop) -> Result<Self> {
        let resource =
            ApiResource::from_gvk(&GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "HTTPRoute"));
        let api: Api<DynamicObject> = Api::namespaced_with(shop.client.clone(), &shop.namespace, &resource);
        let seen = Seen::default();
        let into = seen.clone();
        let config = Config::default().fields(&format!("metadata.name={NAME}"));
        let changes = watcher(api, config)
            .applied_objects()
            .predicate_filter(predicates::generation, kube::runtime::PredicateConfig::default());
        let task = tokio::spawn(changes.for_each(move |route| {
            if let Ok(route) = route {
                let mut seen = into.lock().unwrap_or_else(PoisonError::into_inner);
                seen.push((numbers(&route), Instant::now()));
            }
            std::future::ready(())
        }));
        let weights = Self { seen, task: task.abort_handle() };
        until(Duration::from_secs(10), "the route is watched", || {
            let any = !weights.all().is_empty();
            std::future::ready(Ok(any.then_some(())))
        })
        .await?;
        Ok(weights)
    }

    /// All so far.
    pub(crate) fn all(&self) -> Vec<[i64; 2]> {
        self.lock().iter().map(|(weights, _)| *weights).collect()
    }

    /// When these were first seen after that moment.
    pub(crate) async fn reached(&self, weights: [i64; 2], since: Instant) -> Result<Instant> {
        until(Duration::from_secs(60), &format!("the route says {weights:?}"), || {
            let found = self.lock().iter().find(|(w, at)| *w == weights && *at >= since).map(|(_, at)| *at);
            std::future::ready(Ok(found))
        })
        .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<([i64; 2], Instant)>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Weights {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn numbers(route: &DynamicObject) -> [i64; 2] {
    let weight = |i: usize| {
        let weight = route.data.pointer(&format!("/spec/rules/0/backendRefs/{i}/weight"));
        weight.and_then(Value::as_i64).unwrap_or(1)
    };
    [weight(0), weight(1)]
}

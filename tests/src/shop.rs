//! A Rollout of the demo application in a namespace of its own, with its Service and its route.

use std::time::Duration;

use anyhow::{Context, Result};
use davylamp_api::run::RolloutRunStatus;
use davylamp_api::status::{RolloutStatus, StateName};
use davylamp_api::{Rollout, RolloutAction, RolloutRun};
use kube::Client;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{apply, dynamic, namespace};
use crate::until;

/// The name of the Rollout, its Service and its route.
pub const NAME: &str = "shop";

/// What a shop is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Pods.
    pub replicas: i32,
    /// The first version.
    pub version: &'static str,
    /// Its share of errors.
    pub errors: &'static str,
    /// The MetricSource.
    pub source: String,
    /// Annotations of the pods beside those for Prometheus.
    pub annotations: Value,
    /// Merged into the spec of the Rollout.
    pub spec: Value,
    /// The weights in the user's own route, stable and canary; null for none.
    pub weights: [Value; 2],
}

impl Default for Options {
    fn default() -> Self {
        Self {
            replicas: 3,
            version: "v1",
            errors: "2%",
            source: "default".to_owned(),
            annotations: json!({}),
            spec: json!({}),
            weights: [json!(100), json!(0)],
        }
    }
}

/// A Rollout and what belongs to it.
#[derive(Clone)]
#[allow(missing_debug_implementations, reason = "a client has none")]
pub struct Shop {
    /// A client with all rights.
    pub client: Client,
    /// Its namespace.
    pub namespace: String,
    options: Options,
}

impl Shop {
    /// Makes the namespace only.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn plan(client: &Client, in_namespace: &str, options: Options) -> Result<Self> {
        namespace(client, in_namespace).await?;
        Ok(Self { client: client.clone(), namespace: in_namespace.to_owned(), options })
    }

    /// Makes the namespace and all objects; does not wait.
    ///
    /// # Errors
    /// The API server refuses something.
    pub async fn create(client: &Client, in_namespace: &str, options: Options) -> Result<Self> {
        let shop = Self::plan(client, in_namespace, options).await?;
        for object in [shop.service(), shop.route(), shop.rollout()] {
            shop.apply(&object).await?;
        }
        Ok(shop)
    }

    /// As [`Shop::create`], and waits until the first release is Healthy.
    ///
    /// # Errors
    /// It does not become Healthy.
    pub async fn open(client: &Client, in_namespace: &str, options: Options) -> Result<Self> {
        let shop = Self::create(client, in_namespace, options).await?;
        shop.state(StateName::Healthy, 60).await?;
        // The gateway learns the route and the pods a moment later.
        shop.route_accepted().await?;
        Ok(shop)
    }

    /// The host of its requests.
    #[must_use]
    pub fn host(&self) -> String {
        format!("{}.example", self.namespace)
    }

    /// The user's own Service.
    #[must_use]
    pub fn service(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": NAME},
            "spec": {"selector": {"app": NAME}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        })
    }

    /// The user's own route.
    #[must_use]
    pub fn route(&self) -> Value {
        let backend = |role: &str, weight: &Value| {
            let mut backend = json!({"name": format!("{NAME}-{role}"), "port": 80});
            if !weight.is_null() {
                backend["weight"] = weight.clone();
            }
            backend
        };
        let [stable, canary] = &self.options.weights;
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": NAME},
            "spec": {
                "parentRefs": [{"name": "davylamp", "namespace": "gateway"}],
                "hostnames": [self.host()],
                "rules": [{"backendRefs": [backend("stable", stable), backend("canary", canary)]}],
            },
        })
    }

    /// The Rollout.
    #[must_use]
    pub fn rollout(&self) -> Value {
        let o = &self.options;
        let mut spec = json!({
            "replicas": o.replicas,
            "selector": {"matchLabels": {"app": NAME}},
            "template": self.template(o.version, o.errors),
            "progressDeadline": "2m",
            "service": NAME,
            "strategy": {
                "canary": {"steps": [{"weight": "10%"}, {"weight": "30%"}, {"weight": "50%"}]},
                "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": NAME}]}}],
            },
            "analysis": {
                "source": o.source,
                "hold": {"min": "10s", "max": "20m"},
                "warmup": "5s",
                "settle": "3s",
                "metrics": [{
                    "name": "errors",
                    "ratio": {"events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"},
                }],
            },
        });
        merge(&mut spec, &o.spec);
        json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": NAME}, "spec": spec})
    }

    /// A pod template of the demo application.
    #[must_use]
    pub fn template(&self, version: &str, errors: &str) -> Value {
        let mut annotations = json!({"prometheus.io/scrape": "true", "prometheus.io/port": "8080"});
        merge(&mut annotations, &self.options.annotations);
        json!({
            "metadata": {"labels": {"app": NAME}, "annotations": annotations},
            "spec": {
                "automountServiceAccountToken": false,
                "terminationGracePeriodSeconds": 15,
                "containers": [{
                    "name": "app",
                    "image": "davylamp.test/demo-app:1",
                    "imagePullPolicy": "Never",
                    "env": [
                        {"name": "VERSION", "value": version},
                        {"name": "ERROR_RATE", "value": errors},
                        {"name": "LATENCY", "value": "2ms"},
                    ],
                    "ports": [{"containerPort": 8080}],
                    "readinessProbe": {"httpGet": {"path": "/ready", "port": 8080}, "periodSeconds": 1},
                }],
            },
        })
    }

    /// Applies an object into the namespace.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn apply(&self, object: &Value) -> Result<()> {
        apply(&self.client, Some(&self.namespace), object).await
    }

    /// Changes the Rollout.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn patch(&self, patch: &Value) -> Result<()> {
        self.rollouts().patch(NAME, &PatchParams::default(), &Patch::Merge(patch)).await?;
        Ok(())
    }

    /// Applies another version.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn release(&self, version: &str, errors: &str) -> Result<()> {
        self.patch(&json!({"spec": {"template": self.template(version, errors)}})).await
    }

    /// The API of Rollouts.
    #[must_use]
    pub fn rollouts(&self) -> Api<Rollout> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The status as it is.
    ///
    /// # Errors
    /// There is none.
    pub async fn status(&self) -> Result<RolloutStatus> {
        self.rollouts().get(NAME).await?.status.context("no status")
    }

    /// Waits until the status is so.
    ///
    /// # Errors
    /// It is not, within so many seconds.
    pub async fn wait(
        &self,
        seconds: u64,
        what: &str,
        is: impl Fn(&RolloutStatus) -> bool,
    ) -> Result<RolloutStatus> {
        let waited = until(Duration::from_secs(seconds), what, || async {
            Ok(self.rollouts().get_opt(NAME).await?.and_then(|r| r.status).filter(|s| is(s)))
        })
        .await;
        match waited {
            Ok(status) => Ok(status),
            Err(error) => {
                let status =
                    self.status().await.map(|s| format!("{:?}: {}", s.state.map(|s| s.name), s.message));
                Err(error.context(format!("{}: now {status:?}", self.namespace)))
            }
        }
    }

    /// Waits until the machine is in a state, for this generation.
    ///
    /// # Errors
    /// It is not, within so many seconds.
    pub async fn state(&self, name: StateName, seconds: u64) -> Result<RolloutStatus> {
        let generation = self.rollouts().get(NAME).await?.metadata.generation.unwrap_or(0);
        self.wait(seconds, name.as_str(), |s| {
            s.observed_generation >= generation && s.state.as_ref().is_some_and(|s| s.name == name)
        })
        .await
    }

    /// Waits until a step is in a state.
    ///
    /// # Errors
    /// It is not, within so many seconds.
    pub async fn step(&self, index: i32, name: StateName, seconds: u64) -> Result<RolloutStatus> {
        self.wait(seconds, &format!("step {index} {}", name.as_str()), |s| {
            s.step.as_ref().is_some_and(|s| s.index == index)
                && s.state.as_ref().is_some_and(|s| s.name == name)
        })
        .await
    }

    /// Says a word to the run; gives the name of the object.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn act(&self, name: &str, spec: &Value) -> Result<()> {
        let mut spec = spec.clone();
        spec["rollout"] = json!(NAME);
        let object = json!({
            "apiVersion": "davylamp.dev/v1alpha1", "kind": "RolloutAction", "metadata": {"name": name}, "spec": spec,
        });
        let actions: Api<RolloutAction> = Api::namespaced(self.client.clone(), &self.namespace);
        actions.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
        Ok(())
    }

    /// Waits until the word has an outcome; gives phase and message.
    ///
    /// # Errors
    /// It has none within ten seconds.
    pub async fn outcome(&self, name: &str) -> Result<(String, String)> {
        let actions: Api<RolloutAction> = Api::namespaced(self.client.clone(), &self.namespace);
        until(Duration::from_secs(10), "the action has an outcome", || async {
            let status = actions.get(name).await?.status;
            Ok(status.map(|s| (format!("{:?}", s.phase), s.message)))
        })
        .await
    }

    /// The record of a run.
    ///
    /// # Errors
    /// There is none.
    pub async fn run(&self, name: &str) -> Result<RolloutRunStatus> {
        let runs: Api<RolloutRun> = Api::namespaced(self.client.clone(), &self.namespace);
        runs.get(name).await?.status.context("no record")
    }

    /// Waits until the run has ended; gives its record.
    ///
    /// # Errors
    /// It has not, within twenty seconds.
    pub async fn ended(&self, name: &str) -> Result<RolloutRunStatus> {
        until(Duration::from_secs(20), "the run has ended", || async {
            Ok(Some(self.run(name).await?).filter(|r| r.outcome.is_some()))
        })
        .await
    }

    /// Some object of the namespace.
    ///
    /// # Errors
    /// It is not there.
    pub async fn get(&self, api_version: &str, kind: &str, name: &str) -> Result<DynamicObject> {
        let api =
            dynamic(&self.client, &json!({"apiVersion": api_version, "kind": kind}), Some(&self.namespace))
                .await?;
        Ok(api.get(name).await?)
    }

    /// The two numbers in the route, stable and canary.
    ///
    /// # Errors
    /// It is not there.
    pub async fn weights(&self) -> Result<[i64; 2]> {
        let route = self.get("gateway.networking.k8s.io/v1", "HTTPRoute", NAME).await?;
        let weight = |i: usize| {
            route
                .data
                .pointer(&format!("/spec/rules/0/backendRefs/{i}/weight"))
                .and_then(Value::as_i64)
                .unwrap_or(1)
        };
        Ok([weight(0), weight(1)])
    }

    /// Waits until the gateway says that it carries the route as it is.
    ///
    /// # Errors
    /// It does not within ten seconds.
    pub async fn route_accepted(&self) -> Result<()> {
        until(Duration::from_secs(10), "the gateway accepts the route", || async {
            let route = self.get("gateway.networking.k8s.io/v1", "HTTPRoute", NAME).await?;
            let generation = route.metadata.generation;
            let conditions =
                route.data.pointer("/status/parents/0/conditions").and_then(Value::as_array).cloned();
            let all = conditions
                .unwrap_or_default()
                .iter()
                .all(|c| c["status"] == "True" && c["observedGeneration"].as_i64() == generation);
            Ok((all && route.data.pointer("/status/parents/0").is_some()).then_some(()))
        })
        .await
    }

    /// Deletes the Rollout, and waits until it is gone.
    ///
    /// # Errors
    /// It is not gone within so many seconds.
    pub async fn delete(&self, seconds: u64) -> Result<()> {
        self.rollouts().delete(NAME, &DeleteParams::background()).await?;
        until(Duration::from_secs(seconds), "the Rollout is gone", || async {
            Ok(self.rollouts().get_opt(NAME).await?.is_none().then_some(()))
        })
        .await
    }
}

/// Objects are merged, all else is replaced.
pub fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

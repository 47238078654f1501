//! The objects of a simulation: what is there before the controller starts, and what is left at its end. Builds and
//! compares; what happens in between is elsewhere.

use std::collections::BTreeMap;

use davylamp_world::{ApiServer, Scrapes};
use serde_json::{Map, Value, json};

use crate::run::SimError;
use crate::scenario::Scenario;
use crate::user::User;

/// The namespace of the controller and its lease.
pub(crate) const CONTROLLER: &str = "davylamp";

const DEFINITIONS: [&str; 6] = [
    include_str!("../../../deploy/crds/analysistemplates.yaml"),
    include_str!("../../../deploy/crds/clusteranalysistemplates.yaml"),
    include_str!("../../../deploy/crds/metricsources.yaml"),
    include_str!("../../../deploy/crds/rolloutactions.yaml"),
    include_str!("../../../deploy/crds/rolloutruns.yaml"),
    include_str!("../../../deploy/crds/rollouts.yaml"),
];

/// What a scenario's Rollout is called and names.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) service: String,
    pub(crate) stable: String,
    pub(crate) canary: String,
    pub(crate) routes: Vec<String>,
}

impl Names {
    pub(crate) fn of(rollout: &Value) -> Result<Self, SimError> {
        let text = |path: &str| rollout.pointer(path).and_then(Value::as_str).map(str::to_owned);
        let name = text("/metadata/name").ok_or(SimError::Nameless)?;
        let traffic = rollout.pointer("/spec/strategy/traffic").and_then(Value::as_array);
        let routes =
            traffic.into_iter().flatten().filter_map(|t| t.pointer("/gatewayAPI/routes")?.as_array());
        let routes = routes.flatten().filter_map(|route| route.get("name")?.as_str());
        Ok(Self {
            namespace: text("/metadata/namespace").unwrap_or_else(|| "default".to_owned()),
            service: text("/spec/service").unwrap_or_else(|| name.clone()),
            stable: text("/spec/services/stable").unwrap_or_else(|| format!("{name}-stable")),
            canary: text("/spec/services/canary").unwrap_or_else(|| format!("{name}-canary")),
            routes: routes.map(str::to_owned).collect(),
            name,
        })
    }

    /// Where objects of a kind of ours are.
    pub(crate) fn ours(&self, plural: &str) -> String {
        format!("/apis/davylamp.dev/v1alpha1/namespaces/{}/{plural}", self.namespace)
    }

    pub(crate) fn rollout(&self) -> String {
        format!("{}/{}", self.ours("rollouts"), self.name)
    }

    pub(crate) fn route(&self) -> String {
        let route = self.routes.first().map_or("", String::as_str);
        format!("/apis/gateway.networking.k8s.io/v1/namespaces/{}/httproutes/{route}", self.namespace)
    }
}

/// Makes everything that a Rollout needs, and the Rollout.
pub(crate) async fn install(
    server: &ApiServer,
    user: &User,
    names: &Names,
    scenario: &Scenario,
) -> Result<(), SimError> {
    let refused = |what: &str, message: String| SimError::Refused { what: what.to_owned(), message };
    for definition in DEFINITIONS {
        server.install(definition).map_err(|refusal| refused("a definition", refusal.message))?;
    }
    for namespace in [CONTROLLER, "gateway", &names.namespace] {
        user.namespace(namespace).await.map_err(|error| refused(namespace, error.message))?;
    }
    for object in &scenario.objects {
        user.apply(object).await.map_err(|error| refused(&title(object), error.message))?;
    }
    for object in defaults(names, scenario) {
        let refused = |error: crate::user::Refused| refused(&title(&object), error.message);
        if !user.has(&object).await.map_err(refused)? {
            user.apply(&object).await.map_err(refused)?;
        }
    }
    let rollout = &scenario.rollout;
    user.apply(rollout).await.map_err(|error| refused(&title(rollout), error.message))
}

/// What a user has beside a Rollout.
fn defaults(names: &Names, scenario: &Scenario) -> Vec<Value> {
    let Names { namespace, service, stable, canary, routes, .. } = names;
    let at = |path: &str| scenario.rollout.pointer(path).cloned().unwrap_or_default();
    let port = scenario.rollout.pointer("/spec/template/spec/containers/0/ports/0/containerPort");
    let port = port.cloned().unwrap_or_else(|| json!(8080));
    let brought = scenario.objects.iter().find(|object| {
        object.get("kind").and_then(Value::as_str) == Some("Service")
            && object.pointer("/metadata/name").and_then(Value::as_str) == Some(service)
    });
    let front =
        brought.and_then(|object| object.pointer("/spec/ports/0/port")).cloned().unwrap_or_else(|| json!(80));
    let mut objects = vec![
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "simulated"},
            "spec": {"controllerName": "davylamp.dev/simulated-gateway"},
        }),
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
            "metadata": {"name": "davylamp", "namespace": "gateway"},
            "spec": {
                "gatewayClassName": "simulated",
                "listeners": [{"name": "http", "port": 80, "protocol": "HTTP",
                               "allowedRoutes": {"namespaces": {"from": "All"}}}],
            },
        }),
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": service, "namespace": namespace},
            "spec": {"selector": at("/spec/selector/matchLabels"),
                     "ports": [{"name": "http", "port": 80, "targetPort": port}]},
        }),
    ];
    let backend = |name: &str, weight: i32| json!({"name": name, "port": front, "weight": weight});
    objects.extend(routes.iter().map(|route| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": {"name": route, "namespace": namespace},
            "spec": {
                "parentRefs": [{"name": "davylamp", "namespace": "gateway"}],
                "rules": [{"backendRefs": [backend(stable, 100), backend(canary, 0)]}],
            },
        })
    }));
    if let Some(source) = at("/spec/analysis/source").as_str() {
        let Scrapes { interval, late, .. } = scenario.world.scrapes;
        let delay = late.as_millis().div_ceil(1_000) + 1;
        objects.push(json!({
            "apiVersion": "davylamp.dev/v1alpha1", "kind": "MetricSource", "metadata": {"name": source},
            "spec": {"url": "http://prometheus.monitoring:9090", "allowedNamespaces": ["*"],
                     "scrapeInterval": interval.to_string(), "delay": format!("{delay}s")},
        }));
    }
    objects
}

/// Kind and name.
fn title(object: &Value) -> String {
    let text = |path: &str| object.pointer(path).and_then(Value::as_str).unwrap_or_default();
    format!("{}/{}", text("/kind"), text("/metadata/name"))
}

/// What the controller has made of them, so that two ends that are alike are equal.
pub(crate) async fn left(user: &User, names: &Names) -> Result<BTreeMap<String, Value>, SimError> {
    let Names { namespace, .. } = names;
    let mut left = BTreeMap::new();
    for path in [
        names.ours("rollouts"),
        names.ours("rolloutruns"),
        names.ours("rolloutactions"),
        format!("/apis/apps/v1/namespaces/{namespace}/replicasets"),
        format!("/apis/apps/v1/namespaces/{namespace}/controllerrevisions"),
        format!("/api/v1/namespaces/{namespace}/services"),
        format!("/apis/gateway.networking.k8s.io/v1/namespaces/{namespace}/httproutes"),
    ] {
        let objects = user.list(&path).await;
        let objects =
            objects.map_err(|error| SimError::Refused { what: path.clone(), message: error.message })?;
        for mut object in objects {
            normalise(&mut object);
            left.insert(title(&object), object);
        }
    }
    Ok(left)
}

/// Fields that differ from run to run, whatever object they are in.
const OF_THE_RUN: [&str; 16] = [
    "uid",
    "resourceVersion",
    "managedFields",
    "creationTimestamp",
    "deletionTimestamp",
    "generation",
    "observedGeneration",
    "lastTransitionTime",
    "clusterIP",
    "clusterIPs",
    "at",
    "since",
    "stageSince",
    "startedAt",
    "until",
    "message",
];

fn normalise(object: &mut Value) {
    let kind = object.get("kind").and_then(Value::as_str).unwrap_or_default().to_owned();
    // What was measured, and the bookkeeping of what was told.
    let measured: &[&str] = match kind.as_str() {
        "Rollout" => &["analysis", "pending", "told", "dropped", "actions", "capacityLowSince"],
        "RolloutRun" => &["last", "series"],
        _ => &[],
    };
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.retain(|key, _| !measured.contains(&key.as_str()));
        if let Some(Value::Array(decisions)) = status.get_mut("decisions") {
            for decision in decisions.iter_mut().filter_map(Value::as_object_mut) {
                decision.retain(|key, _| matches!(key.as_str(), "from" | "to" | "step" | "weight" | "rule"));
            }
        }
        if let Some(Value::Object(traffic)) = status.get_mut("traffic") {
            traffic.retain(|key, _| !matches!(key.as_str(), "effectiveSince" | "observedShare"));
        }
    }
    strip(object);
}

fn strip(value: &mut Value) {
    match value {
        Value::Object(fields) => strip_fields(fields),
        Value::Array(items) => items.iter_mut().for_each(strip),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn strip_fields(fields: &mut Map<String, Value>) {
    fields.retain(|key, _| !OF_THE_RUN.contains(&key.as_str()));
    fields.values_mut().for_each(strip);
}

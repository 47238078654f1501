//! The server as a client of kube sees it, in paused time.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod apply;
mod custom;
mod garbage;
mod network;
mod reading;
mod routes;
mod watching;
mod writing;

use std::path::Path;

use davylamp_world::{ApiServer, Config};
use kube::Client;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, PostParams};
use kube::core::Status;
use serde_json::{Value, json};

/// A server with our definitions, and a namespace `shop`.
fn server() -> ApiServer {
    let server = ApiServer::new(Config::default());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    for file in ["metricsources.yaml", "rolloutactions.yaml", "rolloutruns.yaml", "rollouts.yaml"] {
        server.install(&std::fs::read_to_string(folder.join(file)).unwrap()).unwrap();
    }
    server.install(r#"{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}"#).unwrap();
    server
}

fn resource(api_version: &str, kind: &str, plural: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version: api_version.to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

fn api(client: &Client, kind: &str) -> Api<DynamicObject> {
    let (api_version, plural) = match kind {
        "ConfigMap" => ("v1", "configmaps"),
        "Service" => ("v1", "services"),
        "Pod" => ("v1", "pods"),
        "ReplicaSet" => ("apps/v1", "replicasets"),
        "Rollout" => ("davylamp.dev/v1alpha1", "rollouts"),
        "RolloutRun" => ("davylamp.dev/v1alpha1", "rolloutruns"),
        "HTTPRoute" => ("gateway.networking.k8s.io/v1", "httproutes"),
        "EndpointSlice" => ("discovery.k8s.io/v1", "endpointslices"),
        other => panic!("{other}"),
    };
    Api::namespaced_with(client.clone(), "shop", &resource(api_version, kind, plural))
}

fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, value: &str) -> DynamicObject {
    object(
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"v": value}},
                  "data": {"v": value}}),
    )
}

fn replica_set(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        },
    })
}

fn rollout(name: &str) -> Value {
    json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": name}},
            "service": name,
            "strategy": {
                "canary": {"steps": [{"weight": "10%"}, {"weight": "50%"}]},
                "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": name}]}}],
            },
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "web", "image": "web:1", "unknown": {"kept": true}}]},
            },
        },
    })
}

async fn create(api: &Api<DynamicObject>, value: Value) -> DynamicObject {
    let params = PostParams { field_manager: Some("creator".to_owned()), ..PostParams::default() };
    api.create(&params, &object(value)).await.unwrap()
}

fn refused<T: std::fmt::Debug>(answer: Result<T, kube::Error>) -> Status {
    match answer {
        Err(kube::Error::Api(status)) => *status,
        other => panic!("{other:?}"),
    }
}

/// As a number, to compare.
fn moment(object: &DynamicObject) -> u64 {
    version(object).parse().unwrap()
}

fn version(object: &DynamicObject) -> String {
    object.metadata.resource_version.clone().unwrap()
}

//! The world around the server: workloads come and go, requests follow the routes, and what was scraped can be asked for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::time::Duration;

use davylamp_api::k8s_openapi::api::apps::v1::ReplicaSet;
use davylamp_api::k8s_openapi::api::core::v1::Pod;
use davylamp_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use davylamp_api::scalar::Percent;
use davylamp_world::{Config, Incident, Setting, World};
use kube::api::{DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::sleep;

const SHOP: &str = "
{apiVersion: gateway.networking.k8s.io/v1, kind: GatewayClass, metadata: {name: edge}, spec: {controllerName: example.com/edge}}
---
{apiVersion: gateway.networking.k8s.io/v1, kind: Gateway, metadata: {name: edge, namespace: default}, spec: {gatewayClassName: edge, listeners: [{name: http, port: 80, protocol: HTTP}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: old, namespace: default, labels: {team: shop}}, spec: {selector: {version: old}, ports: [{port: 80, targetPort: 8080}]}}
---
{apiVersion: v1, kind: Service, metadata: {name: new, namespace: default}, spec: {selector: {version: new}, ports: [{port: 80}]}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: shop, namespace: default}
spec:
  parentRefs: [{name: edge}]
  rules: [{backendRefs: [{name: old, port: 80, weight: 90}, {name: new, port: 80, weight: 10}]}]
";

fn set(version: &str, replicas: i32) -> String {
    format!(
        "
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: {version}, namespace: default}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{version: {version}}}}}
  template:
    metadata: {{labels: {{version: {version}}}}}
    spec: {{containers: [{{name: app, image: 'shop:{version}'}}]}}
"
    )
}

fn world(seed: u64, setting: &Value) -> World {
    let setting: Setting = serde_json::from_value(setting.clone()).unwrap();
    let world = World::new(Config { seed, ..Config::default() }, setting);
    world.server().install(SHOP).unwrap();
    for (version, replicas) in [("old", 4), ("new", 2)] {
        world.server().install(&set(version, replicas)).unwrap();
    }
    tokio::spawn(world.clone().live());
    world
}

async fn after(seconds: u64) {
    sleep(Duration::from_secs(seconds)).await;
}

fn route(client: &Client) -> Api<DynamicObject> {
    let kind = kube::api::ApiResource::from_gvk(&GroupVersionKind::gvk(
        "gateway.networking.k8s.io",
        "v1",
        "HTTPRoute",
    ));
    Api::namespaced_with(client.clone(), "default", &kind)
}

/// Requests and failures by image.
fn count(world: &World) -> BTreeMap<String, (u64, u64)> {
    world.tally().versions
}

#[tokio::test(start_paused = true)]
async fn pods_come_are_ready_and_go_as_a_replica_set_says() {
    let world = world(1, &json!({}));
    let sets: Api<ReplicaSet> = Api::default_namespaced(world.server().client());
    after(2).await;
    let old = sets.get("old").await.unwrap().status.unwrap();
    assert_eq!((old.replicas, old.ready_replicas), (4, None), "no pod is ready at once");
    after(6).await;
    let old = sets.get("old").await.unwrap().status.unwrap();
    assert_eq!((old.replicas, old.ready_replicas, old.available_replicas), (4, Some(4), Some(4)));
    assert_eq!(old.observed_generation, Some(1));

    let fewer = Patch::Merge(json!({"spec": {"replicas": 1}}));
    sets.patch("old", &PatchParams::default(), &fewer).await.unwrap();
    after(1).await;
    let pods: Api<Pod> = Api::default_namespaced(world.server().client());
    let labelled = ListParams::default().labels("version=old");
    let ending = pods.list(&labelled).await.unwrap().items;
    assert_eq!(ending.iter().filter(|pod| pod.metadata.deletion_timestamp.is_some()).count(), 3);
    let slices: Api<EndpointSlice> = Api::default_namespaced(world.server().client());
    let slices = slices.list(&ListParams::default().labels("kubernetes.io/service-name=old")).await.unwrap();
    let slice = slices.items.first().unwrap();
    assert_eq!(slice.metadata.labels.as_ref().unwrap()["team"], "shop");
    let ready: Vec<_> = slice
        .endpoints
        .iter()
        .flatten()
        .filter(|e| e.conditions.as_ref().unwrap().ready == Some(true))
        .collect();
    assert_eq!(ready.len(), 1, "pods that end take no requests");
    after(15).await;
    assert_eq!(pods.list(&labelled).await.unwrap().items.len(), 1);

    sets.delete("old", &DeleteParams::background()).await.unwrap();
    after(15).await;
    assert_eq!(pods.list(&labelled).await.unwrap().items.len(), 0);
}

#[tokio::test(start_paused = true)]
async fn requests_follow_the_weights_and_none_is_lost_when_pods_go() {
    let setting = json!({
        "users": {"requestsPerSecond": 200.0},
        "versions": {"shop:old": {"errors": "1%"}, "shop:new": {"errors": "5%"}},
        "scrapes": {"interval": "5s"},
    });
    let world = world(2, &setting);
    // Until pods are ready there is nobody to answer.
    after(15).await;
    let (lost, before) = (world.tally().lost, count(&world));
    assert!(lost > 500, "{lost}");
    after(600).await;
    let now = count(&world);
    let [old, new] = ["shop:old", "shop:new"].map(|image| {
        let ((requests, errors), then) = (now[image], before.get(image).copied().unwrap_or_default());
        (requests - then.0, errors - then.1)
    });
    // Each within six standard deviations.
    assert!((106_000..=110_000).contains(&old.0) && (11_300..=12_700).contains(&new.0), "{old:?} {new:?}");
    assert!((880..=1_280).contains(&old.1) && (450..=750).contains(&new.1), "{old:?} {new:?}");

    let all_old = json!({"spec": {"rules": [{"backendRefs": [
        {"name": "old", "port": 80, "weight": 1}, {"name": "new", "port": 80, "weight": 0}]}]}});
    let client = world.server().client();
    let changed =
        route(&client).patch("shop", &PatchParams::default(), &Patch::Merge(all_old)).await.unwrap();
    assert_eq!(changed.metadata.generation, Some(2));
    let observed = |route: &DynamicObject| {
        route.data.pointer("/status/parents/0/conditions/0/observedGeneration").and_then(Value::as_i64)
    };
    after(0).await;
    assert_eq!(observed(&route(&client).get("shop").await.unwrap()), Some(1), "a gateway follows later");
    after(5).await;
    assert_eq!(observed(&route(&client).get("shop").await.unwrap()), Some(2));
    let then = count(&world)["shop:new"];
    let sets: Api<ReplicaSet> = Api::default_namespaced(client);
    let fewer = Patch::Merge(json!({"spec": {"replicas": 1}}));
    sets.patch("old", &PatchParams::default(), &fewer).await.unwrap();
    after(60).await;
    assert!(count(&world)["shop:new"].0 - then.0 < 60, "what came before the change is counted later");
    assert_eq!(world.tally().lost, lost);
}

#[tokio::test(start_paused = true)]
async fn connections_that_are_kept_follow_a_weight_slowly() {
    let setting = json!({"users": {"keepAlive": "60s"}, "scrapes": {"interval": "1s"}});
    let world = world(3, &setting);
    after(60).await;
    let swapped = json!({"spec": {"rules": [{"backendRefs": [
        {"name": "old", "port": 80, "weight": 10}, {"name": "new", "port": 80, "weight": 90}]}]}});
    route(&world.server().client())
        .patch("shop", &PatchParams::default(), &Patch::Merge(swapped))
        .await
        .unwrap();
    let mut shares = Vec::new();
    for _ in 0..4 {
        let before = count(&world);
        after(30).await;
        let now = count(&world);
        let [old, new] = ["shop:old", "shop:new"].map(|image| now[image].0 - before[image].0);
        #[allow(clippy::cast_precision_loss, reason = "few")]
        shares.push(new as f64 / (old + new) as f64);
    }
    // 0.9 - 0.8 exp(-t/60), on average over each half minute.
    for (share, expected) in shares.iter().zip([0.27, 0.52, 0.67, 0.76]) {
        assert!((share - expected).abs() < 0.05, "{shares:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn samples_are_asked_for_by_selector_and_time() {
    let setting = json!({"versions": {"shop:new": {"errors": "50%"}}, "scrapes": {"interval": "5s"}});
    let world = world(4, &setting);
    after(61).await;
    let now = Config::default().start.as_millisecond() + 61_000;
    let ask = |promql: &str| world.query(promql, now).unwrap();
    let failed =
        ask("http_requests_total{code=~\"5..\",namespace=\"default\",pod=~\"new-[a-z0-9]{5}\"}[30s]");
    assert_eq!(failed.len(), 2);
    for series in &failed {
        assert_eq!(series.samples.len(), 6, "each five seconds");
        assert!(series.samples.windows(2).all(|pair| pair[0].1 <= pair[1].1 && pair[0].0 < pair[1].0));
        assert_eq!(series.labels["code"], "500");
    }
    assert_eq!(
        ask("http_requests_total{pod=~\"old-.*\"}[10s]").len(),
        4,
        "nothing failed, so no such series"
    );
    assert_eq!(ask("http_request_duration_seconds_bucket{pod=~\"old-.*\",le=\"+Inf\"}[10s]").len(), 4);
    assert!(ask("up[10s]").is_empty());
    assert!(world.query("rate(http_requests_total[10s])", now).is_err());
    world.forget_samples();
    assert!(ask("http_requests_total[30s]").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_incident_hits_all_versions_for_a_while() {
    let world = world(5, &json!({"scrapes": {"interval": "1s"}}));
    after(20).await;
    assert_eq!(count(&world).values().map(|(_, errors)| errors).sum::<u64>(), 0);
    let last = davylamp_api::scalar::Duration::from_secs(10);
    world.incident(Incident { last, errors: Percent::from_basis_points(5_000) });
    after(15).await;
    let hit = count(&world);
    assert!(hit.values().all(|(_, errors)| *errors > 20), "{hit:?}");
    after(15).await;
    let later = count(&world);
    assert_eq!(hit.values().map(|v| v.1).sum::<u64>(), later.values().map(|v| v.1).sum::<u64>());
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_world() {
    let run = async |seed| {
        let world =
            world(seed, &json!({"users": {"bursts": {"perHour": 60, "last": "10s", "errors": "20%"}}}));
        after(300).await;
        let pods: Api<Pod> = Api::default_namespaced(world.server().client());
        let names = pods.list(&ListParams::default()).await.unwrap().items;
        (names.into_iter().filter_map(|pod| pod.metadata.name).collect::<Vec<_>>(), world.tally())
    };
    let (first, again, other) = (run(7).await, run(7).await, run(8).await);
    assert_eq!(first, again);
    assert_ne!(first, other);
}

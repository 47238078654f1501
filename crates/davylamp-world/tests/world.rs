//! The world around the server: workloads come and go, requests follow the routes, and what was scraped can be asked for.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;
use std::time::Duration;

use davylamp_api::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use davylamp_api::k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use davylamp_api::k8s_openapi::api::core::v1::Pod;
use davylamp_api::k8s_openapi::api::discovery::v1::EndpointSlice;
use davylamp_api::scalar::Percent;
use davylamp_world::{Config, Incident, Series, Setting, World};
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
    assert!(world.query("deriv(http_requests_total[10s])", now).is_err());
    world.forget_samples();
    assert!(ask("http_requests_total[30s]").is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_incident_hits_all_versions_for_a_while() {
    let world = world(5, &json!({"scrapes": {"interval": "1s"}}));
    after(20).await;
    assert_eq!(count(&world).values().map(|(_, errors)| errors).sum::<u64>(), 0);
    let last = davylamp_api::scalar::Duration::from_secs(10);
    world.incident(Incident { last, errors: Percent::from_basis_points(5_000), ..Incident::default() });
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

async fn pods(world: &World, version: &str) -> Vec<Value> {
    let pods: Api<Pod> = Api::default_namespaced(world.server().client());
    let list = pods.list(&ListParams::default().labels(&format!("version={version}"))).await.unwrap();
    list.items.iter().map(|pod| serde_json::to_value(pod).unwrap()).collect()
}

/// What a query gives at this time.
fn ask(world: &World, seconds: i64, promql: &str) -> Vec<Series> {
    world.query(promql, Config::default().start.as_millisecond() + seconds * 1_000).unwrap()
}

/// The last value of all series together.
fn last(series: &[Series]) -> f64 {
    series.iter().filter_map(|one| one.samples.last()).map(|(_, value)| value).sum()
}

#[tokio::test(start_paused = true)]
async fn a_container_that_needs_too_much_memory_is_killed_and_begins_anew() {
    let setting = json!({
        "versions": {"shop:new": {"memory": {"start": 100.0, "growth": 60.0, "limit": 200.0}}},
        "pods": {"start": "10s"}, "scrapes": {"interval": "1s"},
    });
    let world = world(11, &setting);
    let status = async |version: &str| {
        let mut found = Vec::new();
        for pod in pods(&world, version).await {
            let container = &pod["status"]["containerStatuses"][0];
            let last = container.pointer("/lastState/terminated").cloned().unwrap_or_default();
            let state = container["state"].as_object().unwrap().keys().next().unwrap().clone();
            found.push((container["ready"] == true, container["restartCount"].clone(), state, last));
        }
        found
    };
    after(102).await;
    assert!(status("new").await.iter().all(|(ready, count, ..)| *ready && *count == 0));
    let lost = world.tally().lost;
    // Each began at 4 s to 6 s, lives for 100 s, and needs as long to begin again.
    after(5).await;
    for (ready, count, state, last) in status("new").await {
        assert!(!ready && count == 0 && state == "waiting", "{state}");
        assert_eq!((&last["reason"], &last["exitCode"]), (&json!("OOMKilled"), &json!(137)));
    }
    after(13).await;
    let lost = world.tally().lost - lost;
    assert!((20..=200).contains(&lost), "ten a second come while both are down: {lost}");
    for (ready, count, state, _) in status("new").await {
        assert!(ready && count == 1 && state == "running", "{state}");
    }
    assert!(
        status("old").await.iter().all(|(ready, count, _, last)| *ready && *count == 0 && last.is_null())
    );
    let restarts =
        ask(&world, 120, "kube_pod_container_status_restarts_total{pod=~\"new-.*\",container=\"app\"}[5s]");
    assert_eq!((restarts.len(), last(&restarts)), (2, 2.0));
    assert_eq!(restarts[0].labels["job"], "kube-state-metrics");
    for series in ask(&world, 120, "http_requests_total{pod=~\"new-.*\",code=\"200\"}[2m]") {
        assert!(series.samples.windows(2).filter(|pair| pair[1].1 < pair[0].1).count() == 1, "no reset");
        let gap = series.samples.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap();
        assert!((4_000..=8_000).contains(&gap), "nobody answers a scrape meanwhile: {gap}");
    }
    let memory = ask(&world, 120, "process_resident_memory_bytes{pod=~\"new-.*\"}[2s]");
    assert!(last(&memory) < 2.0 * 120.0 * 1_048_576.0);
}

#[tokio::test(start_paused = true)]
async fn containers_restart_so_often_on_average_and_no_request_is_counted_twice() {
    let setting = json!({
        "versions": {"shop:new": {"restarts": {"every": "5m"}}}, "scrapes": {"interval": "5s"},
    });
    let world = world(12, &setting);
    // Not longer than samples are remembered.
    after(4_800).await;
    let restarts = |version: &str| {
        let name = "kube_pod_container_status_restarts_total";
        last(&ask(&world, 4_800, &format!("{name}{{pod=~\"{version}-.*\"}}[10s]")))
    };
    // 32 are expected.
    assert!((12.0..=52.0).contains(&restarts("new")) && restarts("old") == 0.0, "{}", restarts("new"));
    for pod in pods(&world, "new").await {
        let last = pod.pointer("/status/containerStatuses/0/lastState/terminated");
        assert_eq!(last.unwrap()["reason"], "Error");
    }
    let counted = |version: &str| {
        let series = ask(&world, 4_800, &format!("http_requests_total{{pod=~\"{version}-.*\"}}[2h]"));
        let of = |one: &Series| {
            let more = |(before, after): (f64, f64)| if after < before { after } else { after - before };
            let pairs = one.samples.windows(2).map(|pair| (pair[0].1, pair[1].1));
            one.samples[0].1 + pairs.map(more).sum::<f64>()
        };
        series.iter().map(of).sum::<f64>()
    };
    #[allow(clippy::cast_precision_loss, reason = "few")]
    let came = |version: &str| count(&world)[version].0 as f64;
    let (old, new) = (counted("old") / came("shop:old"), counted("new") / came("shop:new"));
    assert!((old - 1.0).abs() < 1e-9, "{old}");
    assert!((0.97..1.0).contains(&new), "what came after the last scrape before a restart nobody saw: {new}");
}

#[tokio::test(start_paused = true)]
async fn some_pods_lack_a_label() {
    let of = async |missing: Value| {
        let setting = json!({
            "default": {"errors": "50%"}, "scrapes": {"interval": "5s", "missing": missing},
        });
        let world = world(13, &setting);
        after(60).await;
        let counted = count(&world);
        (world, counted)
    };
    let (world, counted) = of(json!({"label": "code", "share": "50%"})).await;
    let series = ask(&world, 60, "http_requests_total{namespace=\"default\"}[10s]");
    let (without, with): (Vec<_>, Vec<_>) =
        series.into_iter().partition(|one| !one.labels.contains_key("code"));
    assert!(!without.is_empty() && with.len() == 2 * (6 - without.len()), "{}", without.len());
    for one in without {
        let pod = &one.labels["pod"];
        let all = ask(&world, 60, &format!("http_request_duration_seconds_count{{pod=\"{pod}\"}}[10s]"));
        assert_eq!(all[0].samples, one.samples, "both codes are in it");
    }
    let (none, as_many) = of(json!({"label": "code", "share": "0%"})).await;
    assert_eq!(ask(&none, 60, "http_requests_total[10s]").len(), 12);
    assert_eq!(as_many, counted, "who lacks a label counts as others do");
    let (nameless, _) = of(json!({"label": "pod", "share": "100%"})).await;
    assert!(ask(&nameless, 60, "http_requests_total{pod=~\".+\"}[10s]").is_empty());
    assert_eq!(ask(&nameless, 60, "http_requests_total{namespace=\"default\"}[10s]").len(), 12);
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_scraped_twice_have_the_same_series_twice() {
    let world = world(13, &json!({"scrapes": {"interval": "5s", "twice": true}}));
    after(60).await;
    let of = |job: &str| {
        let mut found = ask(&world, 60, &format!("http_requests_total{{job=\"{job}\"}}[10s]"));
        for one in &mut found {
            assert_eq!(one.labels.remove("job").as_deref(), Some(job));
        }
        found
    };
    let both = ask(&world, 60, "http_requests_total[10s]");
    assert_eq!((of("pods").len(), of("pods-again"), both.len()), (6, of("pods"), 12));
}

#[tokio::test(start_paused = true)]
async fn a_native_histogram_has_what_the_classic_one_has() {
    let of = async |native: bool| {
        let setting = json!({
            "default": {"latency": "400ms", "latencySpread": 0.8},
            "scrapes": {"interval": "5s", "nativeHistograms": native},
        });
        let world = world(14, &setting);
        after(120).await;
        world
    };
    let (world, classic) = (of(true).await, of(false).await);
    assert!(ask(&classic, 120, "http_request_duration_seconds[1m]").is_empty());
    let buckets = "http_request_duration_seconds_bucket[1m]";
    assert_eq!(ask(&world, 120, buckets), ask(&classic, 120, buckets), "the classic one is not another one");
    let native = ask(&world, 120, "http_request_duration_seconds{pod=~\".*\"}[1m]");
    assert_eq!(native.len(), 6);
    for series in native {
        assert!(series.samples.is_empty() && series.histograms.len() == 12);
        let (at, histogram) = series.histograms.last().unwrap();
        let pod = &series.labels["pod"];
        let value = |name: &str, more: &str| {
            let found =
                ask(&world, 120, &format!("http_request_duration_seconds_{name}{{pod=\"{pod}\"{more}}}[1m]"));
            *found[0].samples.iter().find(|(then, _)| then == at).map(|(_, value)| value).unwrap()
        };
        let sum =
            |upper: f64| histogram.buckets.iter().filter(|b| b.upper <= upper).map(|b| b.count).sum::<f64>();
        assert!(histogram.count > 100.0 && (histogram.count - value("count", "")).abs() < 0.5);
        assert!((histogram.sum - value("sum", "")).abs() < 1e-9);
        // These bounds both histograms have.
        for bound in ["0.25", "0.5", "1"] {
            let classic = value("bucket", &format!(",le=\"{bound}\""));
            assert!((sum(bound.parse().unwrap()) - classic).abs() < 1e-9, "{bound}");
        }
        assert!(histogram.buckets.len() > 20, "{}", histogram.buckets.len());
        for bucket in &histogram.buckets {
            assert!((bucket.upper / bucket.lower - 2.0_f64.powf(0.125)).abs() < 1e-9 && bucket.count > 0.0);
        }
    }
}

#[allow(clippy::cast_possible_truncation, reason = "milliseconds of a simulated hour")]
#[tokio::test(start_paused = true)]
async fn subqueries_see_each_scrape_at_whole_steps() {
    let world = world(14, &json!({"scrapes": {"interval": "5s", "nativeHistograms": true}}));
    after(120).await;
    let name = "http_request_duration_seconds";
    let start = Config::default().start.as_millisecond();
    let moments = |one: &Series| -> Vec<i64> { one.samples.iter().map(|(at, _)| at - start).collect() };

    let times =
        ask(&world, 121, &format!("max by (pod) (timestamp({name}_count) or timestamp({name}))[20s:2500ms]"));
    assert_eq!(times.len(), 6);
    assert_eq!(moments(&times[0]), [102_500, 105_000, 107_500, 110_000, 112_500, 115_000, 117_500, 120_000]);
    let raw = ask(&world, 120, &format!("{name}_count{{pod=\"{}\"}}[20s]", times[0].labels["pod"]));
    let scraped: Vec<i64> = raw[0].samples.iter().map(|(at, _)| *at).collect();
    let mut seen: Vec<i64> =
        times[0].samples.iter().map(|(_, seconds)| (seconds * 1_000.0).round() as i64).collect();
    seen.dedup();
    assert!(scraped.len() >= 4 && scraped.iter().all(|at| seen.contains(at)), "{scraped:?} {seen:?}");

    let values = format!("(sum by (job,le) ({name}_bucket) or sum by (job) ({name}))[5s:5s]");
    let both = ask(&world, 120, &values);
    let (native, classic): (Vec<_>, Vec<_>) = both.iter().partition(|one| !one.histograms.is_empty());
    assert!(native.len() == 1 && classic.len() > 5);
    let all = classic.iter().find(|one| one.labels["le"] == "+Inf").unwrap().samples[0].1;
    let last_of = |pod: &Series| pod.samples.last().unwrap().1;
    let counts = ask(&world, 120, &format!("{name}_count[10s]"));
    assert!((all - counts.iter().map(last_of).sum::<f64>()).abs() < 1e-9);
    assert!((native[0].histograms[0].1.count - all).abs() < 1e-9);

    for refused in ["deriv(up[5m])", "min(up)[5m:1m]", "avg by (pod) (up)[5m:1m]", "up[5m:]"] {
        assert!(world.query(refused, start).is_err(), "{refused}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_incident_of_a_dependency_hits_the_endpoints_that_need_it() {
    let setting = json!({
        "users": {"requestsPerSecond": 200.0, "endpoints": [
            {"path": "/pay", "share": "20%", "dependency": "bank"}, {"path": "/cart", "share": "30%"},
        ]},
        "versions": {"shop:new": {"errors": "1%", "endpoints": {"/cart": "20%"}}},
        "scrapes": {"interval": "5s"},
    });
    let world = world(15, &setting);
    let value = |seconds: i64, version: &str, path: &str| {
        let of = |code: &str| {
            let labels = format!("pod=~\"{version}-.*\",path=\"{path}\",code=\"{code}\"");
            last(&ask(&world, seconds, &format!("http_requests_total{{{labels}}}[10s]")))
        };
        let failed = of("500");
        (of("200") + failed, failed)
    };
    let share = |(all, failed): (f64, f64)| failed / all;
    after(600).await;
    let [pay, cart, rest] = ["/pay", "/cart", "/"].map(|path| value(600, "old", path).0);
    let all = pay + cart + rest;
    for (part, expected) in [(pay, 0.2), (cart, 0.3), (rest, 0.5)] {
        assert!((part / all - expected).abs() < 0.01, "{}", part / all);
    }
    let classic = ask(&world, 600, "http_request_duration_seconds_count{pod=~\"old-.*\"}[10s]");
    assert!((all - last(&classic)).abs() < 1e-9, "each request is for one endpoint");
    assert!(share(value(600, "old", "/cart")) < 1e-9);
    for (path, expected) in [("/pay", 0.01), ("/cart", 0.2), ("/", 0.01)] {
        let found = share(value(600, "new", path));
        assert!((found - expected).abs() < 0.02, "{path}: {found}");
    }

    world.incident(
        serde_json::from_value(json!({"last": "5m", "errors": "40%", "dependency": "bank"})).unwrap(),
    );
    let before = ["/pay", "/cart", "/"].map(|path| value(600, "old", path));
    after(300).await;
    let now = ["/pay", "/cart", "/"].map(|path| value(900, "old", path));
    let [pay, cart, rest] = [0, 1, 2].map(|i: usize| share((now[i].0 - before[i].0, now[i].1 - before[i].1)));
    assert!((pay - 0.4).abs() < 0.03 && cart < 1e-9 && rest < 1e-9, "{pay} {cart} {rest}");
}

#[tokio::test(start_paused = true)]
async fn an_incident_of_a_node_hits_its_pods() {
    let setting = json!({"pods": {"nodes": 3}, "scrapes": {"interval": "5s"}});
    let world = world(16, &setting);
    after(60).await;
    let node = |pod: &Value| pod["spec"]["nodeName"].as_str().unwrap().to_owned();
    let (old, new) = (pods(&world, "old").await, pods(&world, "new").await);
    let nodes = |pods: &[Value]| {
        pods.iter().fold(BTreeMap::<_, usize>::new(), |mut nodes, pod| {
            *nodes.entry(node(pod)).or_default() += 1;
            nodes
        })
    };
    let mut spread: Vec<usize> = nodes(&old).into_values().collect();
    spread.sort_unstable();
    assert_eq!((spread, nodes(&new).len()), (vec![1, 1, 2], 2));
    let all: Vec<Value> = old.into_iter().chain(new).collect();
    assert!(nodes(&all).into_values().all(|count| count == 2));
    let slices: Api<EndpointSlice> = Api::default_namespaced(world.server().client());
    for endpoint in slices
        .list(&ListParams::default())
        .await
        .unwrap()
        .items
        .iter()
        .flat_map(|s| s.endpoints.iter().flatten())
    {
        let name = endpoint.target_ref.as_ref().unwrap().name.clone().unwrap();
        let pod = all.iter().find(|pod| pod["metadata"]["name"] == name).unwrap();
        assert_eq!(endpoint.node_name.clone(), Some(node(pod)));
    }

    world.incident(serde_json::from_value(json!({"last": "60s", "errors": "50%", "nodes": 1})).unwrap());
    after(60).await;
    let failed: Vec<String> = ask(&world, 120, "http_requests_total{code=\"500\"}[10s]")
        .into_iter()
        .map(|one| one.labels["pod"].clone())
        .collect();
    let bad: Vec<&Value> =
        all.iter().filter(|pod| failed.iter().any(|name| pod["metadata"]["name"] == **name)).collect();
    assert_eq!((bad.len(), node(bad[0])), (2, node(bad[1])), "{failed:?}");
}

const DEPLOYMENT: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: default}
spec:
  replicas: 8
  progressDeadlineSeconds: 60
  selector: {matchLabels: {version: old}}
  template:
    metadata: {labels: {version: old}}
    spec: {containers: [{name: app, image: 'shop:1'}]}
";

#[tokio::test(start_paused = true)]
async fn a_deployment_moves_to_its_newest_template_within_its_limits() {
    let setting: Setting =
        serde_json::from_value(json!({"versions": {"shop:3": {"neverReady": true}}})).unwrap();
    let world = World::new(Config { seed: 17, ..Config::default() }, setting);
    let shop = SHOP.replace("weight: 90", "weight: 1").replace("weight: 10", "weight: 0");
    world.server().install(&shop).unwrap();
    world.server().install(DEPLOYMENT).unwrap();
    tokio::spawn(world.clone().live());
    let client = world.server().client();
    let (deployments, sets): (Api<Deployment>, Api<ReplicaSet>) =
        (Api::default_namespaced(client.clone()), Api::default_namespaced(client));
    let status =
        async || serde_json::to_value(deployments.get("web").await.unwrap()).unwrap()["status"].clone();
    let sizes = async || {
        let sets = sets.list(&ListParams::default()).await.unwrap().items;
        let size = |set: &ReplicaSet| {
            let image =
                set.spec.template.as_ref().unwrap().spec.as_ref().unwrap().containers[0].image.clone();
            let revision =
                set.metadata.annotations.as_ref().unwrap()["deployment.kubernetes.io/revision"].clone();
            (image.unwrap(), (set.spec.replicas.unwrap(), revision))
        };
        sets.iter().map(size).collect::<BTreeMap<_, _>>()
    };
    let release = async |image: &str| {
        let change =
            json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": image}]}}}});
        deployments.patch("web", &PatchParams::default(), &Patch::Merge(change)).await.unwrap();
    };
    let reason = |status: &Value, type_: &str| {
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().find(|c| c["type"] == type_).unwrap()["reason"].as_str().unwrap().to_owned()
    };
    after(20).await;
    let lost = world.tally().lost;
    let first = status().await;
    for field in ["replicas", "updatedReplicas", "readyReplicas", "availableReplicas"] {
        assert_eq!(first[field], 8, "{first}");
    }
    assert_eq!(reason(&first, "Progressing"), "NewReplicaSetAvailable");

    release("shop:2").await;
    let mut both = 0;
    for _ in 0..60 {
        after(1).await;
        let status = status().await;
        let number = |field: &str| status[field].as_i64().unwrap_or(0);
        assert!(number("availableReplicas") >= 6 && number("replicas") <= 10, "{status}");
        both += i32::from((1..8).contains(&number("updatedReplicas")));
    }
    assert!(both > 3, "it took its time");
    let second = status().await;
    assert_eq!(
        (&second["updatedReplicas"], &second["replicas"], &second["observedGeneration"]),
        (&json!(8), &json!(8), &json!(2))
    );
    assert_eq!(reason(&second, "Progressing"), "NewReplicaSetAvailable");
    let (one, two, three, four) = ("1".to_owned(), "2".to_owned(), "3".to_owned(), "4".to_owned());
    assert_eq!(
        sizes().await,
        BTreeMap::from([("shop:1".to_owned(), (0, one)), ("shop:2".to_owned(), (8, two.clone()))])
    );
    assert_eq!(world.tally().lost, lost, "no request is lost");

    release("shop:1").await;
    after(60).await;
    assert_eq!(
        sizes().await,
        BTreeMap::from([("shop:1".to_owned(), (8, three.clone())), ("shop:2".to_owned(), (0, two.clone()))])
    );

    release("shop:3").await;
    after(55).await;
    assert_eq!(reason(&status().await, "Progressing"), "ReplicaSetUpdated");
    after(15).await;
    let stuck = status().await;
    assert_eq!(reason(&stuck, "Progressing"), "ProgressDeadlineExceeded");
    assert_eq!(
        (reason(&stuck, "Available").as_str(), &stuck["availableReplicas"]),
        ("MinimumReplicasAvailable", &json!(6))
    );
    let expected = [("shop:1", (6, three)), ("shop:2", (0, two)), ("shop:3", (4, four))];
    assert_eq!(sizes().await, BTreeMap::from(expected.map(|(image, size)| (image.to_owned(), size))));
    assert_eq!(world.tally().lost, lost);
}

#[tokio::test(start_paused = true)]
async fn an_autoscaler_gives_each_pod_its_requests() {
    let world = world(18, &json!({"scrapes": {"interval": "5s"}}));
    let autoscaler = |name: &str, target: &str| {
        format!(
            "
apiVersion: autoscaling/v2
kind: HorizontalPodAutoscaler
metadata: {{name: {name}, namespace: default}}
spec:
  scaleTargetRef: {{apiVersion: apps/v1, kind: ReplicaSet, name: {target}}}
  minReplicas: 3
  maxReplicas: 12
  metrics:
  - type: Pods
    pods: {{metric: {{name: http_requests_per_second}}, target: {{type: AverageValue, averageValue: '10'}}}}
"
        )
    };
    world.server().install(&autoscaler("shop", "old")).unwrap();
    world.server().install(&autoscaler("nobody", "absent")).unwrap();
    let client = world.server().client();
    let (autoscalers, sets): (Api<HorizontalPodAutoscaler>, Api<ReplicaSet>) =
        (Api::default_namespaced(client.clone()), Api::default_namespaced(client));
    let size = async || sets.get("old").await.unwrap().spec.replicas.unwrap();
    let status = async |name: &str| autoscalers.get_status(name).await.unwrap().status.unwrap();
    let reasons =
        |status: &davylamp_api::k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscalerStatus| {
            let conditions = status.conditions.iter().flatten();
            conditions.filter_map(|c| c.reason.clone()).collect::<Vec<_>>()
        };
    after(1).await;
    assert_eq!(reasons(&status("shop").await), ["ReadyForNewScale", "FailedGetPodsMetric"]);
    assert_eq!(reasons(&status("nobody").await), ["FailedGetScale"]);
    // 90 requests a second.
    after(300).await;
    let most = size().await;
    assert!((9..=11).contains(&most), "{most}");
    let full = status("shop").await;
    assert_eq!((full.current_replicas, full.desired_replicas), (Some(most), most));
    assert_eq!(reasons(&full)[1..], ["ValidMetricFound", "DesiredWithinRange"]);
    let metric = serde_json::to_value(full.current_metrics).unwrap();
    let current = metric.pointer("/0/pods/current/averageValue").unwrap().as_str().unwrap();
    let current: f64 = current
        .strip_suffix('m')
        .map_or_else(|| current.parse().unwrap(), |m| m.parse::<f64>().unwrap() / 1_000.0);
    assert!((current * f64::from(most) - 90.0).abs() < 25.0, "{current}");

    // Far below what three pods are for: at 20 a second it would be chance whether two or three are wanted.
    world.users(8.0);
    after(240).await;
    assert_eq!(size().await, most, "a smaller size must be right for five minutes");
    assert_eq!(reasons(&status("shop").await)[0], "ScaleDownStabilized");
    after(180).await;
    assert_eq!(size().await, 3);
    assert_eq!(reasons(&status("shop").await)[2], "TooFewReplicas");
    world.users(1_000.0);
    after(180).await;
    assert_eq!(size().await, 12);
    assert_eq!(reasons(&status("shop").await)[2], "TooManyReplicas");
}

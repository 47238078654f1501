//! What the API server cannot see to be wrong by the definitions: each is named in a condition, with what to write
//! instead; meanwhile it moves no traffic and no pod, and once it is put right the Rollout goes on by itself.

use anyhow::{Context, Result, ensure};
use davylamp_api::conditions::{ConditionType, get};
use davylamp_api::k8s_openapi::api::core::v1::Service;
use davylamp_api::status::{RolloutStatus, StateName};
use davylamp_tests::cluster::apply;
use davylamp_tests::shop::{NAME, Options, Shop, merge};
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;

use crate::cluster::shared::{nothing_failed, world};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_spec_is_named_and_stops_nobody_else() -> Result<()> {
    let world = world("invalid-spec").await?;
    let shop = world.shop(small()).await?;
    let stable = stable(&shop.status().await?);
    let steps = |steps: Value| json!({"strategy": {"canary": {"steps": steps}}});
    let metric = |events: &str| json!({"analysis": {"metrics": [{"name": "errors", "ratio": {"events": events, "total": "b"}}]}});
    let mut theirs = shop.template("v2", "0%");
    theirs["metadata"]["labels"]["davylamp.dev/serving"] = json!("true");
    let route = json!({"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": NAME}]}});
    for (spec, path, remedy) in [
        (
            steps(json!([{"weight": "10%"}, {"weight": "10%"}])),
            "spec.strategy.canary.steps[1].weight: 10% after 10%",
            "write a weight above the step before",
        ),
        (
            steps(json!([{"weight": "10%", "hold": {"min": "2h"}}])),
            "spec.strategy.canary.steps[0].hold: max 20m is shorter than min 2h",
            "write a max that is longer",
        ),
        (
            metric("rate(a[5m])"),
            "spec.analysis.metrics[0].ratio.events",
            "write only the selector of a counter",
        ),
        (
            metric("a{"),
            "spec.analysis.metrics[0].ratio.events: not a selector",
            "write only the selector of a counter",
        ),
        (
            json!({"analysis": {"metrics": [{"name": "slow", "ratio": {"histogram": "a_bucket", "slowerThan": "1s"}}]}}),
            "spec.analysis.metrics[0].ratio.histogram: not the name of a histogram",
            "write it without _bucket",
        ),
        (
            json!({"analysis": {"falseRollbackRate": "60%"}}),
            "spec.analysis.falseRollbackRate: 60%",
            "at most 50%",
        ),
        (
            json!({"template": theirs}),
            "spec.template.metadata.labels: the label davylamp.dev/serving",
            "leave it out",
        ),
        (
            json!({"strategy": {"traffic": [route, route]}}),
            "spec.strategy.traffic",
            "name each route and rule once",
        ),
    ] {
        write(&shop, &spec).await?;
        let (status, message) = condition(&shop, ConditionType::Valid, "InvalidSpec").await?;
        ensure!(message.contains(path) && message.contains(remedy), "{path}: {message}");
        let stalled = get(&status.conditions, ConditionType::Stalled).map(|c| c.status.as_str());
        ensure!(stalled == Some("True") && status.message.contains(path), "{}", status.message);
        ensure!(self::stable(&status) == stable && status.run.is_none(), "{status:?}");
    }

    // One that is invalid holds up no other one.
    let other = |object: Value| serde_json::from_str::<Value>(&object.to_string().replace(NAME, "other"));
    for object in [shop.service(), shop.route(), shop.rollout()] {
        apply(&world.client, Some(&world.namespace), &other(object)?).await?;
    }
    davylamp_tests::until(std::time::Duration::from_mins(1), "the other one is Healthy", || async {
        let status = shop.rollouts().get("other").await?.status;
        Ok(status.and_then(|s| s.state).filter(|s| s.name == StateName::Healthy))
    })
    .await?;

    write(&shop, &json!({})).await?;
    let (status, _) = condition(&shop, ConditionType::Valid, "AsExpected").await?;
    ensure!(self::stable(&status) == stable && status.run.is_none(), "{status:?}");
    shop.state(StateName::Healthy, 10).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_the_api_server_refuses_is_named_in_its_own_words() -> Result<()> {
    let world = world("bad-template").await?;
    let mut options = small();
    options.spec["template"] = json!({"spec": {"shareProcessNamespaces": true}});
    let shop = Shop::create(&world.client, &world.namespace, options).await?;

    let (status, message) = condition(&shop, ConditionType::Valid, "TemplateRefused").await?;
    ensure!(message.contains("unknown field \"spec.template.spec.shareProcessNamespaces\""), "{message}");
    ensure!(status.stable.is_none(), "{status:?}");

    // The same file without the field.
    let mut right = shop.rollout();
    right["spec"]["template"] = shop.template("v1", "0%");
    shop.apply(&right).await?;
    let stable = stable(&shop.state(StateName::Healthy, 60).await?);

    // A field of a known name with a value of no sense, while a version is at work.
    let mut template = shop.template("v2", "0%");
    template["spec"]["containers"][0]["ports"][0]["containerPort"] = json!(70_000);
    shop.patch(&json!({"spec": {"template": template}})).await?;
    let (status, message) = condition(&shop, ConditionType::Valid, "TemplateRefused").await?;
    ensure!(message.contains("containerPort") && message.contains("between 1 and 65535"), "{message}");
    ensure!(self::stable(&status) == stable && status.run.is_none(), "{status:?}");
    ensure!(get(&status.conditions, ConditionType::Available).is_some_and(|c| c.status == "True"));
    shop.release("v2", "0%").await?;
    shop.wait(30, "the run begins", |s| s.run.as_deref() == Some("shop-2-1")).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_cannot_be_driven_is_waited_for() -> Result<()> {
    let world = world("no-route").await?;
    let mut options = small();
    merge(&mut options.spec, &json!({"analysis": {"metrics": [], "hold": {"min": "1s"}}}));
    let shop = Shop::plan(&world.client, &world.namespace, options).await?;
    shop.apply(&shop.service()).await?;
    shop.apply(&shop.rollout()).await?;
    shop.state(StateName::Healthy, 60).await?;

    let (_, message) = condition(&shop, ConditionType::TrafficReady, "RouteNotFound").await?;
    let expected = "HTTPRoute shop does not exist: create it, with both Services as backends";
    ensure!(message == expected, "{message}");
    shop.release("v2", "0%").await?;
    shop.wait(20, "the run waits", |s| state(s) == Some(StateName::Preparing)).await?;
    condition(&shop, ConditionType::TrafficReady, "RouteNotFound").await?;

    let mut route = shop.route();
    let third = json!({"name": NAME, "port": 80, "weight": 0});
    route["spec"]["rules"][0]["backendRefs"].as_array_mut().context("no backends")?.push(third);
    shop.apply(&route).await?;
    let (status, message) = condition(&shop, ConditionType::TrafficReady, "RouteUnsupported").await?;
    ensure!(
        message.contains("spec.rules[0] has other backends beside shop-stable and shop-canary"),
        "{message}"
    );
    ensure!(message.contains("remove shop, or give them a rule of their own"), "{message}");
    ensure!(state(&status) == Some(StateName::Preparing), "{status:?}");
    ensure!(shop.weights().await? == [100, 0], "the route was written");

    shop.apply(&shop.route()).await?;
    shop.state(StateName::Healthy, 90).await?;
    ensure!(shop.ended("shop-2-1").await?.outcome.as_deref() == Some("Promoted"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_users_service_must_have_ports_to_copy() -> Result<()> {
    let world = world("no-ports").await?;
    let shop = Shop::plan(&world.client, &world.namespace, small()).await?;
    shop.apply(&shop.route()).await?;
    shop.apply(&shop.rollout()).await?;

    let (_, message) = condition(&shop, ConditionType::ServicesReady, "ServiceNotFound").await?;
    ensure!(message.contains("Service shop does not exist: create it"), "{message}");
    let mut service = shop.service();
    service["spec"] = json!({"clusterIP": "None", "selector": {"app": NAME}});
    shop.apply(&service).await?;
    let (_, message) = condition(&shop, ConditionType::ServicesReady, "ServiceWithoutPorts").await?;
    ensure!(message.contains("Service shop has no ports: add the ports of the pods"), "{message}");
    service["spec"]["ports"] = shop.service()["spec"]["ports"].clone();
    shop.apply(&service).await?;
    condition(&shop, ConditionType::ServicesReady, "AsExpected").await?;

    let services: Api<Service> = Api::namespaced(world.client.clone(), &world.namespace);
    for ours in ["shop-stable", "shop-canary"] {
        let spec = services.get(ours).await?.spec.context("no spec")?;
        let ports = serde_json::to_value(spec.ports)?;
        ensure!(
            ports[0]["port"] == 80 && ports[0]["targetPort"] == 8080 && ports[0]["name"] == "http",
            "{ports}"
        );
        ensure!(spec.cluster_ip.is_some_and(|ip| ip != "None"), "the address is not copied");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_service_that_is_not_ours_is_never_touched() -> Result<()> {
    let world = world("taken").await?;
    let shop = Shop::plan(&world.client, &world.namespace, small()).await?;
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "shop-stable", "labels": {"owner": "them"}},
        "spec": {"selector": {"app": "theirs"}, "ports": [{"port": 8080}]},
    });
    shop.apply(&theirs).await?;
    let services: Api<Service> = Api::namespaced(world.client.clone(), &world.namespace);
    let before = services.get("shop-stable").await?;

    for object in [shop.service(), shop.route(), shop.rollout()] {
        shop.apply(&object).await?;
    }
    let (_, message) = condition(&shop, ConditionType::ServicesReady, "ServiceTaken").await?;
    let expected =
        "Service shop-stable exists and is not ours: delete it, or set spec.services.stable to another name";
    ensure!(message == expected, "{message}");
    shop.state(StateName::Healthy, 60).await?;
    shop.release("v2", "0%").await?;
    let (status, _) = condition(&shop, ConditionType::ServicesReady, "ServiceTaken").await?;
    ensure!(status.run.is_none(), "a run began without its Services");
    let after = services.get("shop-stable").await?;
    ensure!(before.metadata.resource_version == after.metadata.resource_version, "{after:?}");

    services.delete("shop-stable", &DeleteParams::default()).await?;
    shop.wait(30, "the run begins", |s| s.run.as_deref() == Some("shop-2-1")).await?;
    condition(&shop, ConditionType::ServicesReady, "AsExpected").await?;
    let ours = services.get("shop-stable").await?;
    ensure!(ours.metadata.uid != before.metadata.uid && ours.metadata.owner_references.is_some(), "{ours:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metric_source_that_cannot_be_asked_is_named_and_waited_for() -> Result<()> {
    let world = world("bad-source").await?;
    let source = async |url: &str, allowed: &str| {
        let source = json!({
            "apiVersion": "davylamp.dev/v1alpha1", "kind": "MetricSource", "metadata": {"name": "bad-source"},
            "spec": {"url": url, "allowedNamespaces": [allowed], "scrapeInterval": "1s", "delay": "3s"},
        });
        apply(&world.client, None, &source).await
    };
    let web = web_page().await?;
    let shop = world.shop(Options { source: "bad-source".to_owned(), ..small() }).await?;
    let load = world.load(&shop, 100)?;
    shop.release("v2", "0%").await?;

    let (status, message) = condition(&shop, ConditionType::AnalysisReady, "SourceNotFound").await?;
    ensure!(
        message.contains("MetricSource bad-source does not exist: ask an admin to create it"),
        "{message}"
    );
    ensure!(status.run.is_none(), "a run began that cannot be judged");
    source(&web, "elsewhere").await?;
    let (status, message) = condition(&shop, ConditionType::AnalysisReady, "SourceNotAllowed").await?;
    ensure!(
        message.contains("MetricSource bad-source does not allow this namespace: ask an admin"),
        "{message}"
    );
    ensure!(status.run.is_none(), "a run began that cannot be judged");
    source(&web, &world.namespace).await?;
    // The history of the pods is asked for a minute long, and the run begins without it.
    shop.step(1, StateName::Judging, 120).await?;
    let (status, message) = condition(&shop, ConditionType::AnalysisReady, "SourceUnavailable").await?;
    ensure!(message.contains("answered HTML, not JSON: is the URL that of Prometheus?"), "{message}");
    // The address is the admin's to know.
    ensure!(!message.contains("127.0.0.1") && !status.message.contains("127.0.0.1"), "{message}");
    ensure!(state(&status) == Some(StateName::Judging), "{status:?}");

    source(&world.cluster.description.prometheus, &world.namespace).await?;
    condition(&shop, ConditionType::AnalysisReady, "AsExpected").await?;
    shop.step(2, StateName::Judging, 120).await?;
    nothing_failed(load)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metric_that_matches_nothing_is_named() -> Result<()> {
    let world = world("no-series").await?;
    let mut options = small();
    options.spec["analysis"]["metrics"][0]["ratio"]["total"] = json!("http_requests_totl");
    let shop = world.shop(options).await?;
    let load = world.load(&shop, 50)?;
    shop.release("v2", "0%").await?;
    shop.step(1, StateName::Judging, 60).await?;

    let (status, message) = condition_within(&shop, ConditionType::AnalysisReady, "NoSeries", 120).await?;

    ensure!(message.contains("metric errors matches nothing for these pods: check its name"), "{message}");
    ensure!(status.step.as_ref().map(|s| s.index) == Some(1), "{status:?}");
    shop.step(1, StateName::Paused, 60).await?;
    ensure!(shop.weights().await? == [8_000, 2_000], "nothing is decided without data");
    nothing_failed(load)?;
    Ok(())
}

/// One pod, two quick steps.
fn small() -> Options {
    let ratio = json!({"events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"});
    let spec = json!({
        "strategy": {"canary": {"steps": [{"weight": "20%"}, {"weight": "50%"}]}},
        "analysis": {"hold": {"min": "5s"}, "metrics": [{"name": "errors", "ratio": ratio, "floor": "10%"}]},
    });
    Options { replicas: 1, errors: "0%", spec, ..Options::default() }
}

/// As `kubectl apply` of the same file with this spec merged into it: what was there before and is no more, goes.
async fn write(shop: &Shop, spec: &Value) -> Result<()> {
    let mut rollout = shop.rollout();
    merge(&mut rollout["spec"], spec);
    shop.apply(&rollout).await
}

async fn condition(shop: &Shop, kind: ConditionType, reason: &str) -> Result<(RolloutStatus, String)> {
    condition_within(shop, kind, reason, 30).await
}

/// Waits until a condition has a reason, for this generation; True only for what is as expected.
async fn condition_within(
    shop: &Shop,
    kind: ConditionType,
    reason: &str,
    seconds: u64,
) -> Result<(RolloutStatus, String)> {
    let generation = shop.rollouts().get(NAME).await?.metadata.generation;
    let status = shop
        .wait(seconds, &format!("{kind} is {reason}"), |s| {
            let condition = get(&s.conditions, kind);
            condition.is_some_and(|c| c.reason == reason && c.observed_generation == generation)
        })
        .await?;
    let condition = get(&status.conditions, kind).context("no condition")?;
    let expected = if reason == "AsExpected" { "True" } else { "False" };
    ensure!(condition.status == expected, "{condition:?}");
    let message = condition.message.clone();
    Ok((status, message))
}

fn stable(status: &RolloutStatus) -> String {
    status.stable.as_ref().map(|s| s.hash.clone()).unwrap_or_default()
}

fn state(status: &RolloutStatus) -> Option<StateName> {
    status.state.as_ref().map(|s| s.name)
}

/// Answers every request with a page for people.
async fn web_page() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let page = "<!doctype html><title>Welcome</title>";
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{page}",
                page.len()
            );
            let _ = stream.read(&mut [0; 4_096]).await;
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    Ok(address)
}

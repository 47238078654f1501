//! What is compared beside errors and latency, on real pods: sign-ups, the memory of the process, and an incident of both
//! versions at once.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::Instant;
use davylamp_api::k8s_openapi::api::core::v1::Pod;
use davylamp_api::run::{Cohort, DecisionRecord, RolloutRunStatus};
use davylamp_api::status::StateName::{Degraded, Healthy, Holding, Judging};
use davylamp_api::status::Verdict;
use davylamp_tests::cluster::DELAY;
use davylamp_tests::own_prometheus::OwnPrometheus;
use davylamp_tests::shop::{Options, Shop};
use davylamp_tests::until;
use davylamp_tests::watched::Watched;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::evidence::{decision, verify, verify_by};
use super::shared::{World, nothing_failed, world};

const RUN: &str = "shop-2-1";

/// Of each kind one, and of the run that they promote each decision is found again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_version_is_promoted_by_metrics_of_all_kinds() -> Result<()> {
    let world = world("good-kinds").await?;
    let slow = json!({
        "name": "slow",
        "floor": "5%",
        "ratio": {"histogram": "http_request_duration_seconds", "slowerThan": "25ms"},
    });
    let shop = world.shop(options(&[errors(), slow, latency(), signups(), memory()])).await?;
    let load = world.load(&shop, 200)?;

    release(&shop, &[]).await?;
    shop.step(1, Judging, 90).await?;
    shop.state(Healthy, 180).await?;

    let run = shop.ended(RUN).await?;
    ensure!(run.outcome.as_deref() == Some("Promoted"), "{run:?}");
    let passed = decision(&run, "LastStepPassed")?;
    let counted: BTreeSet<_> = passed.metrics.iter().map(|metric| &*metric.name).collect();
    ensure!(counted == BTreeSet::from(["errors", "latency", "sign-ups", "slow"]), "{counted:?}");
    ensure!(passed.metrics.iter().all(|metric| metric.log_e_non_inferior > 2.9), "{passed:?}");
    ensure!(passed.metrics.iter().all(|metric| metric.canary.exposure > 500.0), "{passed:?}");
    let [gauge] = &passed.gauges[..] else { anyhow::bail!("{:?}", passed.gauges) };
    ensure!(gauge.verdict == Verdict::Pass && gauge.pods == [3, 3] && gauge.look == 1, "{gauge:?}");
    // A process that answers requests takes some megabytes.
    ensure!([gauge.canary, gauge.baseline].iter().flatten().all(|bytes| *bytes > 1e6), "{gauge:?}");
    ensure!(gauge.upper.is_some_and(|upper| upper < gauge.margin), "{gauge:?}");
    verify(&world, &shop, RUN)?;
    nothing_failed(load)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_loses_sign_ups_is_rolled_back() -> Result<()> {
    let world = world("sign-ups").await?;
    let back = rolled_back(&world, &[errors(), signups()], ("SIGNUP_RATE", "1%")).await?;
    let signups = back.metrics.iter().find(|metric| metric.name == "sign-ups").context("no sign-ups")?;
    let rate = |counts: Cohort| counts.events / counts.exposure;
    ensure!(rate(signups.canary) < 0.5 * rate(signups.baseline), "{signups:?}");
    ensure!(signups.log_e > 4.0, "{signups:?}");
    let errors = back.metrics.iter().find(|metric| metric.name == "errors").context("no errors")?;
    ensure!(errors.log_e < 2.0, "{errors:?}");
    Ok(())
}

/// Which no error and no answer shows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_that_leaks_memory_is_rolled_back() -> Result<()> {
    let world = world("memory-leak").await?;
    let back = rolled_back(&world, &[errors(), memory()], ("LEAK", "64")).await?;
    let [gauge] = &back.gauges[..] else { anyhow::bail!("{:?}", back.gauges) };
    ensure!(gauge.verdict == Verdict::Regressed && gauge.pods == [3, 3], "{gauge:?}");
    let (canary, baseline) = (gauge.canary.unwrap_or_default(), gauge.baseline.unwrap_or_default());
    ensure!(canary > 1.5 * baseline && baseline > 1e6, "{gauge:?}");
    ensure!(gauge.p.is_some_and(|p| p <= gauge.limit), "{gauge:?}");
    ensure!(back.metrics.iter().all(|metric| metric.log_e < 2.0), "{back:?}");
    Ok(())
}

/// Prometheus shows a converted histogram without its empty buckets: at no end there is one without a bound.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_version_is_promoted_by_a_histogram_that_prometheus_converts() -> Result<()> {
    let world = world("converted").await?;
    let mut config = OwnPrometheus::config(world.cluster, &world.namespace)?;
    config["global"]["convert_classic_histograms_to_nhcb"] = json!(true);
    let prometheus = OwnPrometheus::start_with(world.cluster, &world.namespace, &config).await?;
    world.cluster.metric_source(&world.client, "converted", &prometheus.url, DELAY).await?;
    let source = "converted".to_owned();
    let shop = world.shop(Options { source, ..options(&[latency()]) }).await?;
    let load = world.load(&shop, 200)?;

    release(&shop, &[]).await?;
    shop.step(1, Judging, 90).await?;
    shop.state(Healthy, 180).await?;

    let run = shop.ended(RUN).await?;
    let passed = decision(&run, "LastStepPassed")?;
    let [metric] = &passed.metrics[..] else { anyhow::bail!("{:?}", passed.metrics) };
    ensure!(metric.canary.exposure > 500.0 && metric.baseline.exposure > 500.0, "{metric:?}");
    // One of the bounds of the application.
    ensure!(metric.above.is_some_and(|above| [0.0025, 0.005, 0.01].contains(&above)), "{metric:?}");
    verify_by(&prometheus.url, &world, &shop, RUN)?;
    nothing_failed(load)?;
    Ok(())
}

/// What hits both versions is nobody's fault.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[allow(clippy::disallowed_methods, reason = "pods live in real time")]
async fn errors_of_both_versions_hold_a_run_and_then_it_goes_on() -> Result<()> {
    let world = world("incident").await?;
    let mut options = options(&[errors()]);
    // An incident that begins within two minutes of an increase would be probed, and a block of 15 s shows it.
    options.spec["strategy"]["canary"]["steps"] = json!([{"weight": "50%", "hold": {"min": "160s"}}]);
    let shop = world.shop(options).await?;
    let load = world.load(&shop, 200)?;
    // What is usual stands in the history.
    until(Duration::from_mins(1), "some history", || {
        let answered = load.progress().map(|progress| progress.total.answered);
        std::future::ready(Ok(answered.filter(|answered| *answered > 3_000)))
    })
    .await?;
    let route = Watched::route(&shop).await?;
    release(&shop, &[]).await?;
    let begun = shop.step(1, Judging, 90).await?;
    let rose = begun.traffic.as_ref().and_then(|traffic| traffic.effective_since).context("no weight")?;
    let run = begun.run.context("no run")?;
    until(Duration::from_mins(3), "two minutes of the weight", || {
        let age = Instant::now().as_second() - rose.as_second();
        std::future::ready(Ok((age > 121).then_some(())))
    })
    .await?;

    fail(&shop, "60%").await?;
    let held = shop.step(1, Holding, 120).await?;
    ensure!(held.message.contains("of the baseline"), "{}", held.message);
    ensure!(shop.weights().await? == [5_000, 5_000], "the weight changed");
    fail(&shop, "2%").await?;
    shop.state(Healthy, 180).await?;

    let run = shop.ended(&run).await?;
    ensure!(run.outcome.as_deref() == Some("Promoted"), "{run:?}");
    let held = decision(&run, "Incident")?;
    ensure!((&*held.from, &*held.to) == ("Judging", "Holding"), "{held:?}");
    let limit = held.metrics.first().and_then(|metric| metric.limit.as_ref()).context("no limit")?;
    ensure!(limit.baseline.events > 0.3 * limit.baseline.exposure, "{limit:?}");
    ensure!(
        states(&run).iter().all(|state| *state != "RollingBack" && *state != "Paused"),
        "{:?}",
        states(&run)
    );
    let path = [[100, 0], [10_000, 0], [5_000, 5_000], [0, 10_000], [100, 0]];
    ensure!(route.weights() == path, "{:?}", route.weights());
    verify(&world, &shop, RUN)?;
    nothing_failed(load)?;
    Ok(())
}

/// The decision that takes a version back that differs in this variable.
async fn rolled_back(world: &World, metrics: &[Value], differs: (&str, &str)) -> Result<DecisionRecord> {
    let shop = world.shop(options(metrics)).await?;
    let load = world.load(&shop, 200)?;
    release(&shop, &[differs]).await?;
    // Where half of the requests are the canary's, a block of 15 s says no more than a factor of 1.8.
    shop.state(Degraded, 300).await?;
    let run = shop.ended(RUN).await?;
    ensure!(run.outcome.as_deref() == Some("RolledBack"), "{run:?}");
    let back = decision(&run, "Regression")?;
    ensure!(back.to == "RollingBack" && back.step == 1, "{back:?}");
    verify(world, &shop, RUN)?;
    nothing_failed(load)?;
    Ok(back.clone())
}

/// One step with as many pods as the old version has, which is over after a few blocks.
pub(super) fn options(metrics: &[Value]) -> Options {
    let spec = json!({
        "strategy": {"canary": {"steps": [{"weight": "50%", "replicas": 3}]}},
        "analysis": {"hold": {"min": "14s", "max": "5m"}, "metrics": metrics},
    });
    Options { spec, ..Options::default() }
}

pub(super) fn errors() -> Value {
    let ratio = json!({"events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"});
    json!({"name": "errors", "ratio": ratio, "floor": "15%"})
}

fn latency() -> Value {
    json!({"name": "latency", "distribution": {"histogram": "http_request_duration_seconds"}})
}

fn signups() -> Value {
    let count = json!({"events": "signups_total", "exposure": "http_requests_total"});
    json!({"name": "sign-ups", "count": count, "goal": "higher"})
}

fn memory() -> Value {
    json!({"name": "memory", "gauge": {"query": "process_resident_memory_bytes"}})
}

/// Releases a version with these variables.
pub(super) async fn release(shop: &Shop, variables: &[(&str, &str)]) -> Result<()> {
    let mut template = shop.template("v2", "2%");
    let environment = template["spec"]["containers"][0]["env"].as_array_mut().context("no environment")?;
    environment.extend(variables.iter().map(|(name, value)| json!({"name": name, "value": value})));
    shop.patch(&json!({"spec": {"template": template}})).await
}

/// From now on this share of the requests to each pod fails.
async fn fail(shop: &Shop, share: &str) -> Result<()> {
    for address in addresses(shop).await? {
        let mut stream = TcpStream::connect((address.as_str(), 8080)).await?;
        let length = share.len();
        let head = format!("POST /admin/error-rate HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
        stream.write_all(format!("{head}Content-Length: {length}\r\n\r\n{share}").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        ensure!(answer.starts_with("HTTP/1.1 200 "), "{address}: {answer}");
    }
    Ok(())
}

/// Of all pods.
pub(super) async fn addresses(shop: &Shop) -> Result<Vec<String>> {
    let pods: Api<Pod> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let list = pods.list(&ListParams::default().labels("app=shop")).await?;
    Ok(list.into_iter().filter_map(|pod| pod.status?.pod_ip).collect())
}

fn states(run: &RolloutRunStatus) -> Vec<&str> {
    run.decisions.iter().map(|decision| decision.to.as_str()).collect()
}

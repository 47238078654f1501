//! The metrics fail: Prometheus is away, or never answers.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::Instant as Time;
use davylamp_api::status::StateName::{Degraded, Healthy, Judging, Paused};
use davylamp_tests::cluster::DELAY;
use davylamp_tests::own_prometheus::OwnPrometheus;
use davylamp_tests::prometheus::requests;
use davylamp_tests::shop::{NAME, Options};
use davylamp_tests::until;
use davylamp_tests::watched::Watched;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::evidence::{self, decision, ensure_true, verify_by};
use super::shared::world;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_prometheus_holds_the_run_and_then_it_goes_on() -> Result<()> {
    let world = world("prometheus-away").await?;
    let mut prometheus = OwnPrometheus::start(world.cluster, &world.namespace).await?;
    // A Prometheus that starts again answers before it has the samples of its first seconds: what is
    // visible later than the delay is not counted, and here each sample must be.
    world.cluster.metric_source(&world.client, "prometheus-away", &prometheus.url, "10s").await?;
    let options = Options {
        replicas: 4,
        errors: "5%",
        source: "prometheus-away".to_owned(),
        spec: evidence::spec(&json!([{"weight": "50%", "hold": {"min": "20s"}}])),
        ..Options::default()
    };
    let shop = world.shop(options).await?;
    let rollout = Watched::rollout(&shop).await?;
    let load = world.load(&shop, 100)?;
    shop.release("v2", "5%").await?;
    let begun = shop.step(1, Judging, 60).await?;
    let since = begun.traffic.as_ref().and_then(|t| t.effective_since).context("no weight")?;
    let after = |seconds: i64| Time::from_second(since.as_second() + seconds);
    let (from, pods) = (after(4)?, format!("{NAME}-{}-", begun.canary.as_ref().context("no canary")?.hash));
    until(Duration::from_secs(20), "some data before the outage", || async {
        let held = requests(&prometheus.url, &shop.namespace, &pods, from, after(10)?).await?;
        Ok((held > 50.0).then_some(()))
    })
    .await?;

    prometheus.stop().await?;
    let outage = Instant::now();
    let failing = rollout
        .wait(30, "the outage is named", |s| s.says("AnalysisReady", "False", "SourceUnavailable"))
        .await?;
    let message = failing.message("AnalysisReady");
    ensure!(message.contains("the metric source fails since"), "{message}");
    until(Duration::from_secs(90), "a minute without Prometheus", || async {
        Ok((outage.elapsed() > Duration::from_mins(1)).then_some(()))
    })
    .await?;
    prometheus.start_again().await?;
    shop.wait(30, "the source answers again", |s| {
        // Whether the traffic of a test suffices is another matter.
        let mut ready = s.conditions.iter().filter(|c| c.type_ == "AnalysisReady");
        ready.any(|c| c.status == "True" || c.reason == "TooLittleTraffic")
    })
    .await?;
    let held: BTreeSet<_> = rollout
        .all()
        .iter()
        .filter(|s| s.revision >= failing.revision)
        .map(|s| (s.get("/status/step/index").as_i64(), s.get("/status/state/name").to_string()))
        .collect();
    let may = [Judging, Paused].map(|s| (Some(1), json!(s).to_string()));
    ensure!(held.iter().all(|h| may.contains(h)), "the run was not held: {held:?}");

    let status = shop.state(Healthy, 120).await?;
    let name = status.run.context("no run")?;
    let run = shop.ended(&name).await?;
    ensure!(run.outcome.as_deref() == Some("Promoted"), "{run:?}");
    verify_by(&prometheus.url, &world, &shop, &name)?;
    let passed = decision(&run, "LastStepPassed")?;
    ensure_true(&prometheus.url, &["pods"], &shop, &begun, passed).await?;
    let record = passed.metrics.first().context("no evidence")?;
    let before = requests(&prometheus.url, &shop.namespace, &pods, from, after(30)?).await?;
    ensure!(before > 50.0 && before < record.canary.exposure, "{before} before the outage: {record:?}");
    ensure!(load.finish()?.counts.failed == 0);
    Ok(())
}

/// A server that takes every connection, and never answers.
async fn mute() -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(stream);
        }
    });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_takes_two_seconds_though_the_source_never_answers() -> Result<()> {
    let world = world("source-mute").await?;
    world.cluster.metric_source(&world.client, "mute", &mute().await?, DELAY).await?;
    let options = Options {
        replicas: 2,
        source: "mute".to_owned(),
        spec: evidence::spec(&json!([{"weight": "30%"}])),
        ..Options::default()
    };
    let shop = world.shop(options).await?;
    let (route, rollout) = (Watched::route(&shop).await?, Watched::rollout(&shop).await?);
    let load = world.load(&shop, 50)?;
    shop.release("v2", "0%").await?;
    // The history of the pods is asked for a minute long, and the run begins without it.
    shop.step(1, Judging, 120).await?;
    rollout
        .wait(60, "the mute source is named", |s| s.says("AnalysisReady", "False", "SourceUnavailable"))
        .await?;
    ensure!(shop.weights().await? == [7_000, 3_000]);

    let run = shop.status().await?.run.context("no run")?;
    let asked = Instant::now();
    shop.act("abort", &json!({"verb": "abort", "run": run})).await?;

    let zero = route.wait(20, "no weight", |s| s.at >= asked && s.weights()[1] == 0).await?;
    let took = zero.at - asked;
    ensure!(took <= Duration::from_secs(2), "the abort took {took:?}");
    ensure!(shop.outcome("abort").await?.0 == "Done");
    shop.wait(60, "the run is over", |s| s.state.as_ref().is_some_and(|s| s.name == Degraded)).await?;
    ensure!(shop.weights().await? == [100, 0]);
    ensure!(load.finish()?.counts.failed == 0);
    Ok(())
}

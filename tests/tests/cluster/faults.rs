//! What Davylamp relies on fails: Prometheus, and the controller itself.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::run::{DecisionRecord, RolloutRunStatus};
use davylamp_api::status::RolloutStatus;
use davylamp_api::status::StateName::{Degraded, Finalising, Healthy, Judging, Paused, Promoting};
use davylamp_tests::controller::Controller;
use davylamp_tests::own_prometheus::OwnPrometheus;
use davylamp_tests::prometheus::{cohort, requests};
use davylamp_tests::shop::{NAME, Options, Shop};
use davylamp_tests::until;
use davylamp_tests::watched::Watched;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;

use super::audit::Audit;
use super::by_hand;
use super::shared::{alone, world};

/// A spec whose metric is far below its floor: nothing rolls back, and little data shows that a step is safe.
fn judged(steps: &Value) -> Value {
    json!({
        "strategy": {"canary": {"steps": steps}},
        "analysis": {"warmup": "1s", "metrics": [{
            "name": "errors",
            "floor": "15%",
            "ratio": {"events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"},
        }]},
    })
}

/// What a decision was recorded with is what Prometheus holds, for both cohorts.
async fn ensure_true(url: &str, shop: &Shop, begun: &RolloutStatus, decision: &DecisionRecord) -> Result<()> {
    let record = decision.metrics.first().context("no evidence")?;
    for (revision, recorded) in [(&begun.canary, record.canary), (&begun.stable, record.baseline)] {
        let pods = format!("{NAME}-{}-", revision.as_ref().context("no revision")?.hash);
        let held = cohort(url, &shop.namespace, &pods, decision, record).await?;
        ensure!(recorded.exposure > 100.0, "hardly anything was counted: {recorded:?}");
        ensure!(recorded == held, "{recorded:?} was recorded, Prometheus holds {held:?}: {record:?}");
    }
    Ok(())
}

fn decision<'r>(run: &'r RolloutRunStatus, rule: &str) -> Result<&'r DecisionRecord> {
    run.decisions.iter().find(|d| d.rule == rule).with_context(|| format!("no {rule}: {:#?}", run.decisions))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_outage_of_prometheus_holds_the_run_and_then_it_goes_on() -> Result<()> {
    let world = world("prometheus-away").await?;
    let mut prometheus = OwnPrometheus::start(world.cluster, &world.namespace).await?;
    world.cluster.metric_source(&world.client, "prometheus-away", &prometheus.url).await?;
    let options = Options {
        replicas: 4,
        errors: "5%",
        source: "prometheus-away".to_owned(),
        spec: judged(&json!([{"weight": "50%", "hold": {"min": "20s"}}])),
        ..Options::default()
    };
    let shop = world.shop(options).await?;
    let rollout = Watched::rollout(&shop).await?;
    let load = world.load(&shop, 100)?;
    shop.release("v2", "5%").await?;
    let begun = shop.step(1, Judging, 60).await?;
    let since = begun.traffic.as_ref().and_then(|t| t.effective_since).context("no weight")?;
    let after = |seconds: i64| davylamp_api::Instant::from_second(since.as_second() + seconds);
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
        s.conditions.iter().any(|c| c.type_ == "AnalysisReady" && c.status == "True")
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
    let run = shop.ended(&status.run.context("no run")?).await?;
    ensure!(run.outcome.as_deref() == Some("Promoted"), "{run:?}");
    let passed = decision(&run, "LastStepPassed")?;
    ensure_true(&prometheus.url, &shop, &begun, passed).await?;
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
    world.cluster.metric_source(&world.client, "mute", &mute().await?).await?;
    let options = Options {
        replicas: 2,
        source: "mute".to_owned(),
        spec: judged(&json!([{"weight": "30%"}])),
        ..Options::default()
    };
    let shop = world.shop(options).await?;
    let (route, rollout) = (Watched::route(&shop).await?, Watched::rollout(&shop).await?);
    let load = world.load(&shop, 50)?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;
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

/// Whatever became of the controller: users saw each weight once, and each step was decided once.
fn ensure_once(route: &Watched, run: &RolloutRunStatus, weights: &[[i64; 2]]) -> Result<()> {
    ensure!(run.outcome.as_deref() == Some("Promoted"), "{run:?}");
    let seen = route.weights();
    ensure!(seen == weights, "{seen:?}");
    let numbers: Vec<_> = run.decisions.iter().map(|d| d.number).collect();
    ensure!(numbers.is_sorted_by(|a, b| a < b), "records were told twice: {numbers:?}");
    let entered: Vec<_> = run.decisions.iter().filter(|d| d.to == "Scaling").map(|d| d.step).collect();
    ensure!(entered.is_sorted_by(|a, b| a < b), "steps were repeated: {entered:?}");
    let mut moves = BTreeSet::new();
    for d in &run.decisions {
        ensure!(moves.insert((d.step, &d.from, &d.to)), "decided twice: {d:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_killed_again_and_again_ends_as_one_that_was_not() -> Result<()> {
    let mut world = alone("killed").await?;
    let options = Options {
        replicas: 4,
        errors: "5%",
        spec: judged(&json!([{"weight": "25%", "replicas": 2}, {"weight": "50%"}])),
        ..Options::default()
    };
    let shop = world.shop(options).await?;
    let route = Watched::route(&shop).await?;
    let load = world.load(&shop, 100)?;
    shop.release("v2", "5%").await?;

    let begun = shop.step(1, Judging, 60).await?;
    world.kill_controller()?;
    world.start_controller().await?;
    // In whatever state the next step is then.
    shop.wait(120, "the second step", |s| s.step.as_ref().is_some_and(|s| s.index == 2)).await?;
    world.kill_controller()?;
    world.start_controller().await?;
    shop.wait(120, "the end", |s| s.state.as_ref().is_some_and(|s| matches!(s.name, Promoting | Finalising)))
        .await?;
    world.kill_controller()?;
    world.start_controller().await?;

    let status = shop.state(Healthy, 120).await?;
    let run = shop.ended(&status.run.context("no run")?).await?;
    let weights = [[100, 0], [10_000, 0], [7_500, 2_500], [5_000, 5_000], [0, 10_000], [100, 0]];
    ensure_once(&route, &run, &weights)?;
    let url = &world.cluster.description.prometheus;
    ensure_true(url, &shop, &begun, decision(&run, "StepPassed")?).await?;
    ensure_true(url, &shop, &begun, decision(&run, "LastStepPassed")?).await?;
    let summary = load.finish()?;
    ensure!(summary.counts.failed == 0, "{summary:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_two_controllers_writes_and_the_other_takes_over() -> Result<()> {
    let mut world = alone("two-controllers").await?;
    let options = Options { replicas: 2, spec: by_hand::spec(&["20%", "50%"]), ..Options::default() };
    let mut second = Controller::stand_by(world.cluster, &world.client, "second").await?;
    let audit = Audit::begin(world.cluster)?;
    let shop = world.shop(options).await?;
    let route = Watched::route(&shop).await?;
    let load = world.load(&shop, 50)?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;
    let writers: BTreeSet<_> =
        audit.of_the_controller()?.iter().filter(|r| r.writes()).map(|r| r.token().to_owned()).collect();
    ensure!(writers.len() == 1, "one controller writes: {writers:?}");

    let audit = Audit::begin(world.cluster)?;
    world.kill_controller()?;
    second.wait_until_it_leads().await?;
    by_hand::promote(&shop, 1).await?;
    shop.step(2, Judging, 60).await?;
    by_hand::promote(&shop, 2).await?;
    let status = shop.state(Healthy, 90).await?;

    let run = shop.ended(&status.run.context("no run")?).await?;
    let weights = [[100, 0], [10_000, 0], [8_000, 2_000], [5_000, 5_000], [0, 10_000], [100, 0]];
    ensure_once(&route, &run, &weights)?;
    let heirs: BTreeSet<_> =
        audit.of_the_controller()?.iter().filter(|r| r.writes()).map(|r| r.token().to_owned()).collect();
    ensure!(heirs.len() == 1 && heirs.is_disjoint(&writers), "{heirs:?} after {writers:?}");
    let summary = load.finish()?;
    ensure!(summary.counts.failed == 0, "{summary:?}");
    second.stop().await
}

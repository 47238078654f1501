//! How a rollout ends: promoted, or rolled back and remembered; without one failed request, and with a record whose
//! counts are those of Prometheus.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::RolloutRun;
use davylamp_api::conditions::{self, ConditionType, Reason};
use davylamp_api::k8s_openapi::api::core::v1::Pod;
use davylamp_api::k8s_openapi::api::events::v1::Event;
use davylamp_api::run::{MetricRecord, RolloutRunStatus};
use davylamp_api::status::{Phase, RolloutStatus, StateName};
use davylamp_tests::load::{Load, answers};
use davylamp_tests::prometheus::cohort;
use davylamp_tests::shop::{NAME, Options, Shop};
use davylamp_tests::until;
use davylamp_tests::watched::Watched;
use kube::api::{Api, ListParams};
use serde_json::{Value, json};

use crate::cluster::evidence::verify;
use crate::cluster::shared::{World, nothing_failed, world};

/// The user's own numbers.
const USERS: [i64; 2] = [100, 0];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_version_is_promoted_without_a_failed_request() -> Result<()> {
    let world = world("good-version").await?;
    let shop = world.shop(options("0%")).await?;
    let old = pods(&shop).await?;
    let load = world.load(&shop, 200)?;
    let route = Watched::route(&shop).await?;

    shop.release("v2", "0%").await?;
    for (step, share) in [(1, 0.1), (2, 0.3), (3, 0.5)] {
        let status = shop.step(step, StateName::Judging, 90).await?;
        ensure!(kstatus(&status) == ["False", "True", "False"], "step {step}: {:?}", status.conditions);
        share_is(&load, "v2", share).await?;
        let still = shop.status().await?.step.map(|s| s.index);
        ensure!(still == Some(step), "step {step} was too short to be measured");
    }
    let proven = pods_of(&shop, "v2").await?;
    let status = shop.state(StateName::Healthy, 90).await?;

    let run = shop.ended("shop-2-1").await?;
    ensure!(run.outcome.as_deref() == Some("Promoted"), "{run:?}");
    verify(&world, &shop, "shop-2-1")?;
    let step = ["Scaling", "Shifting", "Settling", "Judging"];
    let all = [&["Preparing"][..], &step, &step, &step, &["Promoting", "Finalising", "Healthy"]].concat();
    ensure!(states(&run) == all, "{:?}", states(&run));
    let path = [USERS, [10_000, 0], [9_000, 1_000], [7_000, 3_000], [5_000, 5_000], [0, 10_000], USERS];
    ensure!(route.weights() == path, "{:?}", route.weights());
    at_rest(&shop).await?;
    ensure!(status.phase == Some(Phase::Healthy) && kstatus(&status) == ["True", "False", "False"]);
    ensure!(status.canary.is_none() && status.rejected.is_empty(), "{status:?}");

    // The pods that were judged are the ones that stay; the old ones go when nobody needs them any more.
    let now = until(Duration::from_mins(2), "the old pods are gone", || async {
        Ok(Some(pods(&shop).await?).filter(|now| now.keys().all(|uid| !old.contains_key(uid))))
    })
    .await?;
    ensure!(now.len() == 3 && !proven.is_empty(), "{now:?}");
    ensure!(proven.iter().all(|uid| now.contains_key(uid)), "judged pods were replaced");
    ensure!(now.values().all(|pod| version(pod) == "v2" && restarts(pod) == 0), "{now:?}");
    let summary = nothing_failed(load)?;
    ensure!(summary.counts.answered > 2_000 && !answers(&summary, "v2").is_empty(), "{summary:?}");
    counts_are_those_of_prometheus(&world, &run, &old_hash(&old), &hash(&status)).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_version_is_rolled_back_and_remembered() -> Result<()> {
    let world = world("bad-version").await?;
    let shop = world.shop(options("1%")).await?;
    let stable = shop.status().await?;
    let load = world.load(&shop, 200)?;
    let route = Watched::route(&shop).await?;

    shop.release("v2", "30%").await?;
    let status = shop.state(StateName::Degraded, 120).await?;

    let run = shop.ended("shop-2-1").await?;
    ensure!(run.outcome.as_deref() == Some("RolledBack"), "{run:?}");
    verify(&world, &shop, "shop-2-1")?;
    let back = run.decisions.iter().find(|d| d.to == "RollingBack").context("no rollback")?;
    ensure!(back.rule == "Regression" && back.step == 1 && back.message.contains("of"), "{back:?}");
    let path = [USERS, [10_000, 0], [9_000, 1_000], [10_000, 0], USERS];
    ensure!(route.weights() == path, "{:?}", route.weights());
    at_rest(&shop).await?;
    ensure!(status.phase == Some(Phase::Degraded) && kstatus(&status) == ["False", "False", "True"]);
    ensure!(hash(&status) == hash(&stable), "another revision is stable");
    warned_of(&shop, "Regression").await?;

    // Remembered: not tried again by itself, neither now nor after a detour.
    let [rejected] = &status.rejected[..] else { anyhow::bail!("{:?}", status.rejected) };
    let bad = rejected.hash.clone();
    ensure!(rejected.reason == Reason::Regression && rejected.run == "shop-2-1", "{rejected:?}");
    shop.release("v1", "1%").await?;
    shop.state(StateName::Healthy, 20).await?;
    shop.release("v2", "30%").await?;
    let status = shop.state(StateName::Degraded, 20).await?;
    ensure!(status.message.contains("rejected in run shop-2-1"), "{}", status.message);
    ensure!(runs(&shop).await? == ["shop-2-1"]);

    // Until somebody asks for it.
    shop.act("again", &json!({"verb": "retry"})).await?;
    ensure!(shop.outcome("again").await?.0 == "Done");
    let status = shop.wait(20, "the second attempt", |s| s.run.as_deref() == Some("shop-2-2")).await?;
    let canary = status.canary.context("no canary")?;
    ensure!((canary.attempt, canary.hash) == (2, bad.clone()));
    ensure!(status.rejected.is_empty(), "{:?}", status.rejected);
    shop.state(StateName::Degraded, 120).await?;
    ensure!(shop.ended("shop-2-2").await?.outcome.as_deref() == Some("RolledBack"));
    ensure!(runs(&shop).await? == ["shop-2-1", "shop-2-2"]);

    let summary = nothing_failed(load)?;
    ensure!(summary.counts.answered > 2_000 && !answers(&summary, "v2").is_empty(), "{summary:?}");
    counts_are_those_of_prometheus(&world, &run, &hash(&stable), &bad).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_version_is_rolled_back() -> Result<()> {
    let slow = json!({"histogram": "http_request_duration_seconds", "slowerThan": "25ms"});
    let metric = slower("slow-version", json!({"name": "slow", "ratio": slow, "floor": "5%"})).await?;
    let (canary, baseline) = (&metric.canary, &metric.baseline);
    ensure!(canary.events > 0.9 * canary.exposure && canary.exposure > 0.0, "{metric:?}");
    ensure!(baseline.events < 0.5 * baseline.exposure, "{metric:?}");
    Ok(())
}

/// Nobody has said what is slow.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_with_another_distribution_is_rolled_back() -> Result<()> {
    let latency = json!({"histogram": "http_request_duration_seconds"});
    let metric = slower("other-distribution", json!({"name": "latency", "distribution": latency})).await?;
    ensure!(metric.log_e > 4.0 && metric.tolerated > 1.0, "{metric:?}");
    Ok(())
}

/// The evidence of this metric that takes a version back that is some thirty times slower.
async fn slower(namespace: &str, metric: Value) -> Result<MetricRecord> {
    let world = world(namespace).await?;
    let mut options = options("0%");
    options.spec["analysis"]["metrics"] = json!([metric]);
    let shop = world.shop(options).await?;
    let load = world.load(&shop, 200)?;

    let mut template = shop.template("v2", "0%");
    let environment = template["spec"]["containers"][0]["env"].as_array_mut().context("no environment")?;
    environment.retain(|variable| variable["name"] != "LATENCY");
    environment.push(json!({"name": "LATENCY", "value": "60ms"}));
    shop.patch(&json!({"spec": {"template": template}})).await?;
    shop.state(StateName::Degraded, 120).await?;

    let run = shop.ended("shop-2-1").await?;
    let back = run.decisions.iter().find(|d| d.to == "RollingBack").context("no rollback")?;
    ensure!(back.rule == "Regression" && back.step == 1, "{back:?}");
    verify(&world, &shop, "shop-2-1")?;
    nothing_failed(load)?;
    back.metrics.first().cloned().context("no metric")
}

/// Short steps.
fn options(errors: &'static str) -> Options {
    let ratio = json!({"events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"});
    let metrics = json!([{"name": "errors", "ratio": ratio, "floor": "2%"}]);
    let spec = json!({"analysis": {"hold": {"min": "14s"}, "metrics": metrics}});
    Options { errors, spec, ..Options::default() }
}

/// Ready, Reconciling, Stalled.
fn kstatus(status: &RolloutStatus) -> [&str; 3] {
    [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled]
        .map(|kind| conditions::get(&status.conditions, kind).map_or("", |c| c.status.as_str()))
}

fn states(run: &RolloutRunStatus) -> Vec<&str> {
    run.decisions.iter().map(|d| d.to.as_str()).collect()
}

fn hash(status: &RolloutStatus) -> String {
    status.stable.as_ref().map(|s| s.hash.clone()).unwrap_or_default()
}

/// The numbers in the route and all of its fields are the user's, and nothing holds the Rollout back.
async fn at_rest(shop: &Shop) -> Result<()> {
    ensure!(shop.weights().await? == USERS);
    let route = shop.get("gateway.networking.k8s.io/v1", "HTTPRoute", NAME).await?;
    let fields = route.metadata.managed_fields.unwrap_or_default();
    let writers: Vec<_> = fields.iter().filter(|f| f.subresource.is_none()).map(|f| &f.manager).collect();
    ensure!(writers == [&Some("davylamp-tests".to_owned())], "{writers:?}");
    until(Duration::from_secs(10), "the finalizer is gone", || async {
        let finalizers = shop.rollouts().get(NAME).await?.metadata.finalizers.unwrap_or_default();
        Ok(finalizers.is_empty().then_some(()))
    })
    .await
}

/// Over the next thousand answers, within six standard deviations.
async fn share_is(load: &Load, version: &str, share: f64) -> Result<()> {
    let before = load.progress().context("no requests yet")?.total;
    let after = until(Duration::from_secs(30), "a thousand answers", || {
        let total = load.progress().map(|p| p.total);
        std::future::ready(Ok(total.filter(|t| t.answered >= before.answered + 1_000)))
    })
    .await?;
    let of = |counts: &davylamp_demo::report::Counts| {
        counts.by_version.get(version).map_or(0, |codes| codes.values().sum::<u64>())
    };
    #[allow(clippy::cast_precision_loss, reason = "some thousands")]
    let (got, all) = ((of(&after) - of(&before)) as f64, (after.answered - before.answered) as f64);
    let band = 6.0 * (share * (1.0 - share) / all).sqrt();
    ensure!((got / all - share).abs() < band, "{version} got {got} of {all}, not {share}");
    Ok(())
}

/// By uid, those that are ready.
async fn pods(shop: &Shop) -> Result<BTreeMap<String, Pod>> {
    let pods: Api<Pod> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let list = pods.list(&ListParams::default().labels("app=shop")).await?;
    Ok(list.into_iter().filter_map(|pod| Some((pod.metadata.uid.clone()?, pod))).collect())
}

async fn pods_of(shop: &Shop, wanted: &str) -> Result<Vec<String>> {
    let pods = pods(shop).await?;
    Ok(pods.into_iter().filter(|(_, pod)| version(pod) == wanted).map(|(uid, _)| uid).collect())
}

fn version(pod: &Pod) -> &str {
    let env = pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.env.iter().flatten());
    env.into_iter().find(|e| e.name == "VERSION").and_then(|e| e.value.as_deref()).unwrap_or_default()
}

fn restarts(pod: &Pod) -> i32 {
    let containers = pod.status.iter().flat_map(|s| s.container_statuses.iter().flatten());
    containers.map(|c| c.restart_count).sum()
}

fn old_hash(pods: &BTreeMap<String, Pod>) -> String {
    let labels = pods.values().find_map(|pod| pod.metadata.labels.as_ref());
    labels.and_then(|l| l.get("pod-template-hash")).cloned().unwrap_or_default()
}

async fn runs(shop: &Shop) -> Result<Vec<String>> {
    let runs: Api<RolloutRun> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let list = runs.list(&ListParams::default()).await?;
    Ok(list.into_iter().filter_map(|run| run.metadata.name).collect())
}

async fn warned_of(shop: &Shop, reason: &str) -> Result<()> {
    let events: Api<Event> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let list = events.list(&ListParams::default()).await?;
    let warning = list.iter().find(|e| e.reason.as_deref() == Some(reason)).context("no event")?;
    ensure!(warning.type_.as_deref() == Some("Warning"), "{warning:?}");
    ensure!(warning.regarding.as_ref().and_then(|r| r.name.as_deref()) == Some(NAME), "{warning:?}");
    Ok(())
}

/// Each decision that data made, counted again from the raw samples.
async fn counts_are_those_of_prometheus(
    world: &World,
    run: &RolloutRunStatus,
    stable: &str,
    canary: &str,
) -> Result<()> {
    let url = &world.cluster.description.prometheus;
    let judged: Vec<_> = run.decisions.iter().filter(|d| d.from == "Judging").collect();
    ensure!(!judged.is_empty(), "{run:?}");
    for decision in judged {
        let [metric] = &decision.metrics[..] else { anyhow::bail!("{decision:?}") };
        let count = async |hash: &str| {
            cohort(url, &world.namespace, &format!("{NAME}-{hash}-"), decision, metric).await
        };
        let held = (count(canary).await?, count(stable).await?);
        ensure!(held == (metric.canary, metric.baseline), "Prometheus holds {held:?}: {metric:?}");
        ensure!(metric.canary.exposure > 20.0 && metric.baseline.exposure > 20.0, "{metric:?}");
    }
    Ok(())
}

//! What people say to a run, and when they are told no. Steps without metrics or so long that only words move them.

use anyhow::{Result, ensure};
use davylamp_api::conditions::{ConditionType, Reason, get};
use davylamp_api::k8s_openapi::api::core::v1::Pod;
use davylamp_api::status::{Phase, RolloutStatus, StateName};
use davylamp_tests::shop::{NAME, Options, Shop};
use davylamp_tests::watched::{Seen, Watched};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::{Duration, Instant};

use crate::cluster::evidence::{self, verify};
use crate::cluster::shared::{World, nothing_failed, world};

const RUN: &str = "shop-2-1";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_abort_in_mid_step_takes_all_traffic_back_at_once() -> Result<()> {
    let world = world("abort").await?;
    let shop = shop_that_waits(&world, &json!({})).await?;
    let load = world.load(&shop, 100)?;
    let route = Watched::route(&shop).await?;
    shop.release("v2", "0%").await?;
    shop.step(1, StateName::Judging, 60).await?;

    let said = Instant::now();
    shop.act("stop", &json!({"verb": "abort", "run": RUN, "reason": "smoke", "requestedBy": "ann"})).await?;

    let is_back = |seen: &Seen| seen.at > said && seen.weights() == [10_000, 0];
    let back = route.wait(10, "all traffic is back", is_back).await?.at;
    ensure!(back - said < Duration::from_secs(2), "it took {:?}", back - said);
    let (phase, message) = shop.outcome("stop").await?;
    ensure!(
        phase == "Done" && message.contains("ann (unverified)") && message.contains("smoke"),
        "{message}"
    );
    let status = shop.state(StateName::Degraded, 30).await?;
    ensure!(status.rejected.len() == 1 && status.rejected[0].reason == Reason::Abort, "{status:?}");
    let run = shop.ended(RUN).await?;
    ensure!(run.outcome.as_deref() == Some("RolledBack"));
    ensure!(run.decisions.iter().any(|d| d.rule == "Abort" && d.message == message), "{run:?}");

    // Said again, it finds nothing to stop.
    shop.act("stop-again", &json!({"verb": "abort", "run": RUN})).await?;
    ensure!(rejected(&shop, "stop-again").await? == format!("run {RUN} is not in flight: no run is"));
    nothing_failed(load)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_promote_passes_the_step_that_it_names_and_no_other() -> Result<()> {
    let world = world("promote").await?;
    let shop = shop_that_waits(&world, &json!({})).await?;
    shop.release("v2", "0%").await?;
    shop.step(1, StateName::Judging, 60).await?;

    shop.act("other-run", &json!({"verb": "promote", "run": "shop-1-1", "step": 1})).await?;
    let message = rejected(&shop, "other-run").await?;
    ensure!(message == format!("run shop-1-1 is not in flight: {RUN} is"), "{message}");
    shop.act("early", &json!({"verb": "promote", "run": RUN, "step": 2})).await?;
    let message = rejected(&shop, "early").await?;
    ensure!(message == "step 2 is not the present one: 1 of 3 is", "{message}");
    ensure!(shop.status().await?.step.map(|s| s.index) == Some(1));

    let promote = json!({"verb": "promote", "run": RUN, "step": 1});
    shop.act("one", &promote).await?;
    ensure!(shop.outcome("one").await?.0 == "Done");
    shop.step(2, StateName::Judging, 60).await?;

    // Once: neither more looks at the same object, nor another one with the same words, pass another step.
    for look in 0..3 {
        let touch =
            json!({"metadata": {"labels": {"look": look.to_string()}}, "spec": {"minReadySeconds": look}});
        shop.patch(&touch).await?;
        let generation = shop.rollouts().get(NAME).await?.metadata.generation;
        shop.wait(10, "it is looked at", |s| Some(s.observed_generation) == generation).await?;
    }
    shop.act("one-again", &promote).await?;
    ensure!(rejected(&shop, "one-again").await? == "step 1 is not the present one: 2 of 3 is");
    ensure!(shop.status().await?.step.map(|s| s.index) == Some(2));
    let promoted = shop.run(RUN).await?.decisions.into_iter().filter(|d| d.rule == "Promote").count();
    ensure!(promoted == 1, "promoted {promoted} times");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_promotion_waits_for_its_pods() -> Result<()> {
    let world = world("promote-full").await?;
    // With a metric: of what was counted until the word, and after it, the record must be found again.
    let measured = json!({"analysis": evidence::spec(&json!([]))["analysis"]});
    let shop = shop_that_waits(&world, &measured).await?;
    let load = world.load(&shop, 100)?;
    let route = Watched::route(&shop).await?;
    // Slow to start: a weight that does not wait for the pods would be seen long before them.
    let mut template = shop.template("v2", "0%");
    template["spec"]["containers"][0]["readinessProbe"]["initialDelaySeconds"] = json!(6);
    shop.patch(&json!({"spec": {"template": template}})).await?;
    shop.step(1, StateName::Judging, 60).await?;

    let said = Instant::now();
    shop.act("all", &json!({"verb": "promote", "run": RUN, "full": true})).await?;

    let is_full = |seen: &Seen| seen.weights() == [0, 10_000];
    let full = route.wait(60, "all traffic is at the new version", is_full).await?.at;
    let ready = ready_pods(&shop, "v2").await?;
    ensure!(ready == 3, "{ready} of 3 pods were ready at full weight");
    ensure!(full - said > Duration::from_secs(5), "full weight after {:?}", full - said);
    ensure!(shop.outcome("all").await?.0 == "Done");
    shop.state(StateName::Healthy, 60).await?;
    let run = shop.ended(RUN).await?;
    ensure!(run.outcome.as_deref() == Some("Promoted"));
    let path = [[100, 0], [10_000, 0], [9_000, 1_000], [0, 10_000], [100, 0]];
    ensure!(route.weights() == path, "{:?}", route.weights());
    ensure!(run.decisions.iter().any(|d| d.rule == "Promote" && !d.metrics.is_empty()), "{run:?}");
    verify(&world, &shop, RUN)?;

    // Late: the run has ended.
    shop.act("late", &json!({"verb": "promote", "run": RUN, "step": 1})).await?;
    ensure!(rejected(&shop, "late").await? == format!("run {RUN} is not in flight: no run is"));
    nothing_failed(load)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_step_that_needs_approval_waits_for_it() -> Result<()> {
    let world = world("approval").await?;
    let steps = json!([{"weight": "20%", "approval": {}}, {"weight": "50%"}]);
    let spec = json!({"strategy": {"canary": {"steps": steps}}, "analysis": {"hold": {"min": "5s"}}});
    let shop = shop_that_waits(&world, &spec).await?;
    shop.release("v2", "0%").await?;

    let status = shop.step(1, StateName::Paused, 60).await?;
    ensure!(status.phase == Some(Phase::Paused) && reason(&status) == Some(Reason::Approval));
    ensure!(status.message.contains(&format!("verb promote, run {RUN}, step 1")), "{}", status.message);
    let ready = get(&status.conditions, ConditionType::Ready).map(|c| (c.status.as_str(), c.reason.as_str()));
    ensure!(ready == Some(("False", "Approval")), "{ready:?}");
    ensure!(shop.weights().await? == [8_000, 2_000], "a pause keeps the weight");

    shop.act("yes", &json!({"verb": "promote", "run": RUN, "step": 1, "requestedBy": "bob"})).await?;
    ensure!(shop.outcome("yes").await?.0 == "Done");
    shop.step(2, StateName::Judging, 60).await?;
    // The next step needs none.
    shop.state(StateName::Healthy, 90).await?;
    let run = shop.ended(RUN).await?;
    let approvals = run.decisions.iter().filter(|d| d.rule == "Approval").count();
    ensure!(approvals == 1 && run.outcome.as_deref() == Some("Promoted"), "{run:?}");
    ensure!(run.decisions.iter().any(|d| d.rule == "Promote" && d.message.contains("bob")), "{run:?}");
    ensure!(run.decisions.iter().any(|d| d.rule == "NotAnalysed"), "{run:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_without_a_run_are_rejected() -> Result<()> {
    let world = world("no-run").await?;
    let shop = shop_that_waits(&world, &json!({})).await?;
    let hash = shop.status().await?.stable.map(|s| s.hash).unwrap_or_default();

    for (name, spec, expected) in [
        (
            "retry",
            json!({"verb": "retry"}),
            format!("revision {hash} was not rejected: there is nothing to retry"),
        ),
        ("abort", json!({"verb": "abort", "run": RUN}), format!("run {RUN} is not in flight: no run is")),
        (
            "promote",
            json!({"verb": "promote", "run": RUN, "full": true}),
            format!("run {RUN} is not in flight: no run is"),
        ),
    ] {
        shop.act(name, &spec).await?;
        let message = rejected(&shop, name).await?;
        ensure!(message == expected, "{name}: {message}");
    }
    let status = shop.status().await?;
    ensure!(status.state.map(|s| s.name) == Some(StateName::Healthy) && status.run.is_none());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn words_are_refused_by_the_api_server_when_they_are_not_clear() -> Result<()> {
    let world = world("words").await?;
    let shop = Shop::create(&world.client, &world.namespace, Options::default()).await?;

    for (spec, expected) in [
        (json!({"verb": "abort"}), "spec.run: name the run that you mean"),
        (json!({"verb": "promote", "step": 1}), "spec.run: name the run that you mean"),
        (json!({"verb": "promote", "run": RUN}), "spec.step: name the step that you promote"),
        (json!({"verb": "promote", "run": RUN, "full": false}), "or write full: true for all of them"),
        (json!({"verb": "abort", "run": RUN, "full": true}), "only the verb promote takes them"),
        (json!({"verb": "retry", "step": 1}), "only the verb promote takes them"),
        (json!({"verb": "promote", "run": RUN, "step": 0}), "spec.step"),
    ] {
        let refused = shop.act("unclear", &spec).await.expect_err("it was taken");
        ensure!(format!("{refused:#}").contains(expected), "{spec}: {refused:#}");
    }

    // What was said stays said.
    shop.act("said", &json!({"verb": "retry"})).await?;
    let actions: Api<davylamp_api::RolloutAction> = Api::namespaced(world.client.clone(), &world.namespace);
    let patch = Patch::Merge(json!({"spec": {"reason": "another"}}));
    let refused = actions.patch("said", &PatchParams::default(), &patch).await.expect_err("it was changed");
    ensure!(refused.to_string().contains("spec is immutable: create another RolloutAction"), "{refused}");
    actions.delete("said", &DeleteParams::default()).await?;
    Ok(())
}

/// A shop whose steps last until somebody says a word.
async fn shop_that_waits(world: &World, spec: &Value) -> Result<Shop> {
    let mut all = json!({"analysis": {"metrics": [], "hold": {"min": "15m"}}});
    davylamp_tests::shop::merge(&mut all, spec);
    world.shop(Options { spec: all, errors: "0%", ..Options::default() }).await
}

async fn rejected(shop: &Shop, name: &str) -> Result<String> {
    let (phase, message) = shop.outcome(name).await?;
    ensure!(phase == "Rejected", "{name} is {phase}: {message}");
    Ok(message)
}

fn reason(status: &RolloutStatus) -> Option<Reason> {
    status.state.as_ref().map(|s| s.reason)
}

async fn ready_pods(shop: &Shop, version: &str) -> Result<usize> {
    let pods: Api<Pod> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let list = pods.list(&ListParams::default().labels("app=shop")).await?;
    let of = |pod: &Pod| {
        let env = pod.spec.iter().flat_map(|s| &s.containers).flat_map(|c| c.env.iter().flatten());
        env.into_iter().any(|e| e.name == "VERSION" && e.value.as_deref() == Some(version))
    };
    let ready = |pod: &Pod| {
        let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.into_iter().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    Ok(list.iter().filter(|pod| of(pod) && ready(pod)).count())
}

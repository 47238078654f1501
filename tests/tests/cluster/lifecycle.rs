//! What a user does to a Rollout while a run is on, and at rest: delete, edit, supersede, scale.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::k8s_openapi::api::apps::v1::ReplicaSet;
use davylamp_api::k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use davylamp_api::status::StateName::{Degraded, Healthy, Judging, RollingBack};
use davylamp_tests::shop::{NAME, Options, Shop};
use davylamp_tests::until;
use davylamp_tests::watched::Watched;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PropagationPolicy};
use serde_json::json;

use super::by_hand;
use super::shared::world;

fn options(weights: &[&str]) -> Options {
    Options { replicas: 2, spec: by_hand::spec(weights), ..Options::default() }
}

/// Pods by name, with their uid.
async fn pods(shop: &Shop) -> Result<BTreeMap<String, String>> {
    let pods: Api<Pod> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let pods = pods.list(&ListParams::default().labels(&format!("app={NAME}"))).await?;
    Ok(pods.iter().map(|p| (p.name_any(), p.uid().unwrap_or_default())).collect())
}

/// Pods that the `ReplicaSet` of a revision is asked for, and that are available.
async fn sizes(shop: &Shop, hash: &str) -> Result<(i32, i32)> {
    let sets: Api<ReplicaSet> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let set = sets.get(&format!("{NAME}-{hash}")).await?;
    let available = set.status.and_then(|s| s.available_replicas).unwrap_or(0);
    Ok((set.spec.replicas.unwrap_or(1), available))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_deleted_in_mid_run_takes_its_traffic_back_before_it_goes() -> Result<()> {
    let world = world("deleted-in-mid-run").await?;
    let shop = world.shop(options(&["50%"])).await?;
    let (route, rollout) = (Watched::route(&shop).await?, Watched::rollout(&shop).await?);
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;

    shop.delete(60).await?;

    let gone = rollout.wait(10, "the deletion is seen", |s| s.object.is_none()).await?;
    let seen = route.weights();
    ensure!(seen == [[100, 0], [10_000, 0], [5_000, 5_000], [10_000, 0], [100, 0]], "{seen:?}");
    let back = route.all().into_iter().rfind(|s| s.weights() != [100, 0]).context("no weights")?;
    let restored = route.wait(1, "the user's numbers", |s| s.revision > back.revision).await?;
    ensure!(restored.revision < gone.revision, "the Rollout went before the user's numbers were back");

    // The same again is a first release, with nothing in the way; and at rest nothing holds a Rollout back.
    until(Duration::from_mins(1), "its pods are gone", || async {
        Ok(pods(&shop).await?.is_empty().then_some(()))
    })
    .await?;
    shop.apply(&shop.rollout()).await?;
    let status = shop.state(Healthy, 60).await?;
    ensure!(status.stable.is_some_and(|s| s.revision == 1) && status.run.is_none());
    let at_rest = shop.rollouts().get(NAME).await?;
    ensure!(at_rest.finalizers().is_empty(), "{:?}", at_rest.finalizers());
    let answer = shop.rollouts().delete(NAME, &DeleteParams::background()).await?;
    ensure!(answer.is_right(), "the deletion waits for something: {answer:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_namespace_deleted_in_mid_run_goes_without_waiting_for_a_deadline() -> Result<()> {
    let world = world("deleted-as-a-whole").await?;
    let shop = world.shop(options(&["50%"])).await?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;
    ensure!(!shop.rollouts().get(NAME).await?.finalizers().is_empty(), "nothing holds it back");

    let namespaces: Api<Namespace> = Api::all(world.client.clone());
    namespaces.delete(&world.namespace, &DeleteParams::background()).await?;

    // The namespace controller looks again only after half of the pods' grace period, each time something is left: that
    // alone takes up to a minute. Our own deadlines are five minutes and more.
    until(Duration::from_mins(2), "the namespace is gone", || async {
        Ok(namespaces.get_opt(&world.namespace).await?.is_none().then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_orphaning_deletion_leaves_is_adopted_and_the_pods_stay() -> Result<()> {
    let world = world("orphaned").await?;
    let shop = world.shop(options(&["50%"])).await?;
    let load = world.load(&shop, 50)?;
    let before = pods(&shop).await?;
    let old = shop.rollouts().get(NAME).await?.uid().context("no uid")?;

    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    shop.rollouts().delete(NAME, &orphan).await?;
    until(Duration::from_secs(30), "the Rollout is gone", || async {
        Ok(shop.rollouts().get_opt(NAME).await?.is_none().then_some(()))
    })
    .await?;
    shop.apply(&shop.rollout()).await?;
    shop.state(Healthy, 60).await?;

    let new = shop.rollouts().get(NAME).await?.uid().context("no uid")?;
    ensure!(new != old);
    let sets: Api<ReplicaSet> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let services: Api<Service> = Api::namespaced(shop.client.clone(), &shop.namespace);
    until(Duration::from_secs(20), "ReplicaSet and Services are adopted", || async {
        let sets = sets.list(&ListParams::default()).await?.items.into_iter().map(|s| s.metadata);
        let ours = ListParams::default().labels("davylamp.dev/role");
        let services = services.list(&ours).await?.items.into_iter().map(|s| s.metadata);
        let owners: Vec<_> = sets.chain(services).map(|m| m.owner_references.unwrap_or_default()).collect();
        let adopted = owners.iter().all(|o| o.len() == 1 && o.iter().all(|o| o.uid == new));
        Ok((adopted && owners.len() == 3).then_some(()))
    })
    .await?;
    let after = pods(&shop).await?;
    ensure!(after == before, "{before:?} became {after:?}");

    // What was adopted can be released from.
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;
    by_hand::promote(&shop, 1).await?;
    shop.state(Healthy, 90).await?;
    let summary = load.finish()?;
    ensure!(summary.counts.failed == 0, "{summary:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_invalid_edit_in_mid_run_is_named_and_stops_neither_the_run_nor_an_abort() -> Result<()> {
    let world = world("invalid-edit").await?;
    let shop = world.shop(options(&["20%", "50%"])).await?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;

    let metric = json!({"name": "errors", "ratio": {"events": "rate(errors[1m])", "total": "requests"}});
    let edit = json!({"spec": {"analysis": {
        "source": "default", "hold": {"min": "10m", "max": "1m"}, "metrics": [metric],
    }}});
    shop.patch(&edit).await?;

    let status = shop.wait(20, "the edit is named", |s| {
        s.conditions.iter().any(|c| c.type_ == "Valid" && c.status == "False")
    });
    let status = status.await?;
    let valid = status.conditions.iter().find(|c| c.type_ == "Valid").context("no Valid")?;
    ensure!(valid.reason == "InvalidSpec", "{valid:?}");
    for part in [
        "spec.strategy.canary.steps[0].hold",
        "write a max that is longer",
        "spec.analysis.metrics[0].ratio.events",
        "write only the selector of a counter",
    ] {
        ensure!(valid.message.contains(part), "{part} is not in {}", valid.message);
    }
    ensure!(status.message.contains("The spec is not valid"), "{}", status.message);

    by_hand::promote(&shop, 1).await?;
    shop.step(2, Judging, 60).await?;
    ensure!(shop.weights().await? == [5_000, 5_000]);
    by_hand::abort(&shop).await?;
    let status = shop.wait(60, "the abort is over", |s| s.state.as_ref().is_some_and(|s| s.name == Degraded));
    ensure!(status.await?.rejected.len() == 1);
    ensure!(shop.weights().await? == [100, 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_edited_in_mid_run_go_on_where_the_weight_is_not_lower() -> Result<()> {
    let world = world("steps-edited").await?;
    let shop = world.shop(options(&["20%", "50%"])).await?;
    let route = Watched::route(&shop).await?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;

    // The same weight in the new list keeps the state.
    shop.patch(&json!({"spec": {"strategy": {"canary": {"steps": by_hand::steps(&["5%", "20%", "60%"])}}}}))
        .await?;
    let status = shop.wait(20, "the edit is taken", |s| s.step.as_ref().is_some_and(|s| s.of == 3)).await?;
    let step = status.step.context("no step")?;
    ensure!((step.index, step.weight.to_string().as_str()) == (2, "20%"), "{step:?}");
    ensure!(status.state.is_some_and(|s| s.name == Judging));

    // Else the run goes on at the first step that is not lower.
    shop.patch(&json!({"spec": {"strategy": {"canary": {"steps": by_hand::steps(&["10%", "40%"])}}}}))
        .await?;
    shop.wait(60, "step 2 Judging at 40%", |s| {
        s.step.as_ref().is_some_and(|s| (s.index, s.of) == (2, 2))
            && s.state.as_ref().is_some_and(|s| s.name == Judging)
    })
    .await?;
    ensure!(shop.weights().await? == [6_000, 4_000]);

    by_hand::promote(&shop, 2).await?;
    shop.state(Healthy, 90).await?;
    let seen = route.weights();
    let expected = [[100, 0], [10_000, 0], [8_000, 2_000], [6_000, 4_000], [0, 10_000], [100, 0]];
    ensure!(seen == expected, "{seen:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_newer_template_supersedes_and_the_stable_one_ends_the_run() -> Result<()> {
    let world = world("superseded").await?;
    let shop = world.shop(options(&["30%"])).await?;
    let route = Watched::route(&shop).await?;
    let load = world.load(&shop, 50)?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;
    let first = shop.status().await?.run.context("no run")?;

    shop.release("v3", "0%").await?;
    let status = shop.wait(90, "the newer one is at its step", |s| {
        s.run.as_ref() != Some(&first) && s.state.as_ref().is_some_and(|s| s.name == Judging)
    });
    let status = status.await?;
    ensure!(shop.ended(&first).await?.outcome.as_deref() == Some("Superseded"));
    ensure!(status.stable.is_some_and(|s| s.revision == 1), "the stable revision stays stable");
    ensure!(status.rejected.is_empty(), "nobody rejected anything: {:?}", status.rejected);
    until(Duration::from_secs(20), "requests reach the newer one", || async {
        Ok(load.share("v3").filter(|share| *share > 0.1))
    })
    .await?;
    ensure!(load.share("v2") == Some(0.0), "requests still reach the superseded one");

    shop.release("v1", "2%").await?;
    let status = shop.state(Healthy, 60).await?;
    let second = status.run.context("no run")?;
    ensure!(status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"));
    ensure!(shop.ended(&second).await?.outcome.as_deref() == Some("Superseded"));
    let up_and_back = [[10_000, 0], [7_000, 3_000], [10_000, 0]];
    let expected: Vec<_> = [[100, 0]]
        .into_iter()
        .chain(up_and_back)
        .chain([[100, 0]])
        .chain(up_and_back)
        .chain([[100, 0]])
        .collect();
    let seen = route.weights();
    ensure!(seen == expected, "{seen:?}");
    let summary = load.finish()?;
    ensure!(summary.counts.failed == 0, "{summary:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_size_in_mid_run_reaches_both_versions() -> Result<()> {
    let world = world("scaled").await?;
    let shop = world.shop(options(&["50%"])).await?;
    shop.release("v2", "0%").await?;
    let status = shop.step(1, Judging, 60).await?;
    let (stable, canary) =
        (status.stable.context("no stable")?.hash, status.canary.context("no canary")?.hash);
    ensure!(sizes(&shop, &stable).await? == (2, 2) && sizes(&shop, &canary).await? == (1, 1));
    let scale = |replicas: i32| {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        let rollouts = shop.rollouts();
        async move { rollouts.patch_scale(NAME, &PatchParams::default(), &patch).await }
    };

    scale(4).await?;
    until(Duration::from_mins(1), "both are larger", || async {
        let both = (sizes(&shop, &stable).await?, sizes(&shop, &canary).await?);
        Ok((both == ((4, 4), (2, 2))).then_some(()))
    })
    .await?;
    // A smaller size than at the start waits for the end of the run.
    let scaled = scale(1).await?;
    until(Duration::from_mins(1), "both shrink to the size at the start", || async {
        let both = (sizes(&shop, &stable).await?, sizes(&shop, &canary).await?);
        Ok((both == ((2, 2), (1, 1))).then_some(()))
    })
    .await?;
    let selector = scaled.status.and_then(|s| s.selector).unwrap_or_default();
    ensure!(selector == format!("app={NAME},davylamp.dev/serving=true"), "{selector}");

    by_hand::promote(&shop, 1).await?;
    shop.state(Healthy, 90).await?;
    until(Duration::from_secs(30), "the size of the spec", || async {
        Ok((sizes(&shop, &canary).await? == (1, 1)).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_never_become_ready_are_rolled_back_with_the_words_of_the_kubelet() -> Result<()> {
    let world = world("never-ready").await?;
    let options = options(&["20%"]);
    let shop = world.shop(options).await?;
    let route = Watched::route(&shop).await?;
    let rollout = Watched::rollout(&shop).await?;
    let mut template = shop.template("v2", "0%");
    template["spec"]["containers"][0]["image"] = json!("davylamp.test/nowhere:1");
    shop.patch(&json!({"spec": {"progressDeadline": "15s", "template": template}})).await?;

    let status = shop.state(Degraded, 60).await?;

    let words = "ErrImageNeverPull";
    let rolling_back =
        rollout.wait(1, "the deadline", |s| s.get("/status/state/name") == RollingBack.as_str());
    let message = rolling_back.await?.get("/status/message").as_str().unwrap_or_default().to_owned();
    ensure!(message.contains(words) && message.contains("progressDeadline"), "{message}");
    ensure!(status.message.contains(words), "the cause is gone from {}", status.message);
    let run = shop.ended(&status.run.context("no run")?).await?;
    ensure!(run.outcome.as_deref() == Some("RolledBack"));
    let decision = run.decisions.iter().find(|d| d.to == RollingBack.as_str()).context("no decision")?;
    ensure!(decision.rule == "ProgressDeadline" && decision.message.contains(words), "{decision:?}");
    let seen = route.weights();
    ensure!(
        seen == [[100, 0], [10_000, 0], [100, 0]],
        "the canary got traffic without a ready pod: {seen:?}"
    );
    Ok(())
}

//! What Davylamp does not do: count twice, and ask without need.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::k8s_openapi::api::core::v1::Namespace;
use davylamp_api::status::StateName::{Healthy, Judging};
use davylamp_tests::shop::{NAME, Options, Shop};
use davylamp_tests::until;
use davylamp_tests::watched::Watched;
use kube::api::{Api, DeleteParams};
use serde_json::{Value, json};

use super::audit::{Audit, Request};
use super::by_hand;
use super::evidence::{self, decision, ensure_true, verify};
use super::shared::world;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_are_scraped_twice_count_once() -> Result<()> {
    let world = world("scraped-twice").await?;
    let options = Options {
        replicas: 4,
        errors: "5%",
        annotations: json!({"davylamp.dev/scrape-twice": "true"}),
        spec: evidence::spec(&json!([{"weight": "50%"}])),
        ..Options::default()
    };
    let shop = world.shop(options).await?;
    let rollout = Watched::rollout(&shop).await?;
    let load = world.load(&shop, 100)?;
    shop.release("v2", "5%").await?;
    let begun = shop.step(1, Judging, 60).await?;
    rollout
        .wait(30, "the second scrape is named", |s| s.says("AnalysisReady", "True", "DuplicateTargets"))
        .await?;
    let status = shop.state(Healthy, 120).await?;
    let name = status.run.context("no run")?;
    let run = shop.ended(&name).await?;
    let url = &world.cluster.description.prometheus;
    ensure_true(url, &["pods", "pods-again"], &shop, &begun, decision(&run, "LastStepPassed")?).await?;
    verify(&world, &shop, &name)?;
    ensure!(load.finish()?.counts.failed == 0);
    Ok(())
}

/// The objects of a shop under another name.
fn renamed(object: &Value, name: &str) -> Result<Value> {
    Ok(serde_json::from_str(&object.to_string().replace(NAME, name))?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_asked_for_rollouts_at_rest() -> Result<()> {
    let world = world("at-rest").await?;
    let options = Options { replicas: 1, ..Options::default() };
    let shop = world.shop(options.clone()).await?;
    for object in [shop.service(), shop.route(), shop.rollout()] {
        shop.apply(&renamed(&object, "cart")?).await?;
    }
    let cart = shop.rollouts();
    until(Duration::from_mins(1), "the second one is Healthy", || async {
        let status = cart.get("cart").await?.status;
        Ok(status.and_then(|s| s.state).filter(|s| s.name == Healthy))
    })
    .await?;
    let neighbours = "at-rest-neighbour";
    let spec = by_hand::spec(&["50%"]);
    let neighbour = Shop::open(&world.client, neighbours, Options { spec, ..options }).await?;

    // Opening the neighbour gave what was still to be told of the two the time to be told.
    let audit = Audit::begin(world.cluster)?;
    neighbour.release("v2", "0%").await?;
    neighbour.step(1, Judging, 60).await?;
    by_hand::promote(&neighbour, 1).await?;
    neighbour.state(Healthy, 90).await?;

    let requests = audit.of_the_controller()?;
    let of = |namespace: &str| -> Vec<_> {
        requests.iter().filter(|r| r.namespace() == namespace).map(Request::summary).collect()
    };
    ensure!(
        of(neighbours).len() > 10,
        "the log does not hold what was asked for a run: {:?}",
        of(neighbours)
    );
    ensure!(of(&world.namespace).is_empty(), "asked for Rollouts at rest: {:#?}", of(&world.namespace));
    Api::<Namespace>::all(world.client.clone()).delete(neighbours, &DeleteParams::background()).await?;
    Ok(())
}

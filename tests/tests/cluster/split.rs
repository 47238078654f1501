//! Requests that reach the canary past the route, so that its share is not what the weight says.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::status::StateName::{Judging, Paused};
use davylamp_tests::load::Load;
use davylamp_tests::until;
use serde_json::json;

use super::evidence::{decision, verify};
use super::kinds::{addresses, errors, options, release};
use super::shared::{nothing_failed, world};

/// A client that knows the pods of the new version: the comparison is not what was asked for, and somebody must look.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_past_the_route_pause_a_run() -> Result<()> {
    let world = world("wrong-split").await?;
    let mut options = options(&[errors()]);
    // The share is compared in blocks of 30 s, of which some thirteen are needed.
    options.spec["strategy"]["canary"]["steps"] =
        json!([{"weight": "20%", "replicas": 1, "hold": {"min": "12m", "max": "20m"}}]);
    options.spec["analysis"]["trafficSplit"] = json!({"tolerance": "30%"});
    let shop = world.shop(options).await?;
    let load = world.load(&shop, 100)?;
    let old = addresses(&shop).await?;
    release(&shop, &[]).await?;
    let begun = shop.step(1, Judging, 90).await?;
    let now = addresses(&shop).await?;
    let canary = now.iter().find(|address| !old.contains(address)).context("no pod of the canary")?;
    let past = Load::start(&format!("http://{canary}:8080"), &shop.host(), 50)?;

    let status = shop.step(1, Paused, 600).await?;
    let reason = json!(status.state.as_ref().map(|state| state.reason));
    ensure!(reason == "TrafficSplit", "{status:?}");
    ensure!(status.message.contains("asked for was 20%"), "{}", status.message);
    ensure!(shop.weights().await? == [8_000, 2_000], "the weight changed");
    let run = begun.run.context("no run")?;
    let paused = until(Duration::from_secs(20), "the pause is recorded", || async {
        Ok(decision(&shop.run(&run).await?, "TrafficSplit").ok().cloned())
    })
    .await?;
    ensure!((&*paused.from, &*paused.to) == ("Judging", "Paused"), "{paused:?}");
    verify(&world, &shop, &run)?;
    nothing_failed(past)?;
    nothing_failed(load)?;
    Ok(())
}

//! The controller itself fails, and another goes on where it was; users notice nothing.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use davylamp_api::run::RolloutRunStatus;
use davylamp_api::status::StateName::{Finalising, Healthy, Judging, Promoting};
use davylamp_tests::controller::Controller;
use davylamp_tests::shop::Options;
use davylamp_tests::watched::Watched;
use serde_json::json;

use super::audit::Audit;
use super::by_hand;
use super::evidence::{self, decision, ensure_true, verify};
use super::shared::alone;

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
        spec: evidence::spec(&json!([{"weight": "25%", "replicas": 2}, {"weight": "50%"}])),
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
    // Asked to end, it hands over at once.
    world.stop_controller().await?;
    world.start_controller().await?;

    let status = shop.state(Healthy, 120).await?;
    let name = status.run.context("no run")?;
    let run = shop.ended(&name).await?;
    let weights = [[100, 0], [10_000, 0], [7_500, 2_500], [5_000, 5_000], [0, 10_000], [100, 0]];
    ensure_once(&route, &run, &weights)?;
    let url = &world.cluster.description.prometheus;
    ensure_true(url, &["pods"], &shop, &begun, decision(&run, "StepPassed")?).await?;
    ensure_true(url, &["pods"], &shop, &begun, decision(&run, "LastStepPassed")?).await?;
    verify(&world, &shop, &name)?;
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
    world.kill_controller()?;
    second.wait_until_it_leads().await?;
    by_hand::promote(&shop, 1).await?;
    shop.step(2, Judging, 60).await?;
    by_hand::promote(&shop, 2).await?;
    let status = shop.state(Healthy, 90).await?;

    let run = shop.ended(&status.run.context("no run")?).await?;
    let weights = [[100, 0], [10_000, 0], [8_000, 2_000], [5_000, 5_000], [0, 10_000], [100, 0]];
    ensure_once(&route, &run, &weights)?;
    // Each wrote in its own time: an answer to the one that was killed may still have been under way.
    let mut writers: Vec<_> =
        audit.of_the_controller()?.iter().filter(|r| r.writes()).map(|r| r.token().to_owned()).collect();
    writers.dedup();
    ensure!(writers.len() == 2, "one writes, then the other: {writers:?}");
    let summary = load.finish()?;
    ensure!(summary.counts.failed == 0, "{summary:?}");
    second.stop().await
}

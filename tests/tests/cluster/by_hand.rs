//! Runs without metrics that go on only when the test says so: for what is not about evidence.

use anyhow::{Context, Result, ensure};
use davylamp_tests::shop::Shop;
use serde_json::{Value, json};

/// A spec whose steps wait for a word. Merge it into that of a shop.
pub(crate) fn spec(weights: &[&str]) -> Value {
    json!({
        "strategy": {"canary": {"steps": steps(weights)}},
        "analysis": {"settle": "2s", "metrics": []},
    })
}

/// Steps that wait for a word.
pub(crate) fn steps(weights: &[&str]) -> Value {
    weights.iter().map(|weight| json!({"weight": weight, "hold": {"min": "10m"}})).collect()
}

/// The present step is taken as passed.
pub(crate) async fn promote(shop: &Shop, step: i32) -> Result<()> {
    say(shop, &format!("promote-{step}"), json!({"verb": "promote", "step": step})).await
}

/// All traffic goes back.
pub(crate) async fn abort(shop: &Shop) -> Result<()> {
    say(shop, "abort", json!({"verb": "abort"})).await
}

async fn say(shop: &Shop, verb: &str, mut word: Value) -> Result<()> {
    let run = shop.status().await?.run.context("no run")?;
    let name = format!("{verb}-{run}");
    word["run"] = json!(run);
    shop.act(&name, &word).await?;
    let (phase, message) = shop.outcome(&name).await?;
    ensure!(phase == "Done", "{name}: {phase}: {message}");
    Ok(())
}

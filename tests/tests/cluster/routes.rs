//! The route is the user's: what others write to it, and what it is after a run.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::status::StateName::{Healthy, Judging};
use davylamp_tests::cluster::dynamic;
use davylamp_tests::load::{answered, unanswered};
use davylamp_tests::shop::{NAME, Options, Shop};
use davylamp_tests::until;
use davylamp_tests::watched::Watched;
use kube::api::{Api, DeleteParams, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use super::by_hand;
use super::shared::world;

async fn routes(shop: &Shop) -> Result<Api<DynamicObject>> {
    dynamic(&shop.client, &shop.route(), Some(&shop.namespace)).await
}

async fn route_spec(shop: &Shop) -> Result<Value> {
    Ok(routes(shop).await?.get(NAME).await?.data["spec"].take())
}

async fn weights_become(shop: &Shop, weights: [i64; 2]) -> Result<()> {
    until(Duration::from_secs(20), &format!("the route says {weights:?}"), || async {
        Ok((shop.weights().await? == weights).then_some(()))
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn weights_that_somebody_else_writes_are_put_back_and_other_edits_are_kept() -> Result<()> {
    let world = world("route-edited").await?;
    let options = Options { replicas: 2, spec: by_hand::spec(&["20%"]), ..Options::default() };
    let shop = world.shop(options).await?;
    let rollout = Watched::rollout(&shop).await?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;

    // Somebody applies another text of the route: its numbers, one more host, and a header.
    let mut edited = shop.route();
    edited["spec"]["hostnames"] = json!([shop.host(), "also.example"]);
    edited["spec"]["rules"][0]["filters"] = json!([{
        "type": "ResponseHeaderModifier", "responseHeaderModifier": {"set": [{"name": "x-shop", "value": "open"}]},
    }]);
    let by_gitops = PatchParams::apply("gitops").force();
    routes(&shop).await?.patch(NAME, &by_gitops, &Patch::Apply(&edited)).await?;

    let conflict =
        rollout.wait(20, "a conflict", |s| s.says("TrafficReady", "False", "RouteConflict")).await?;
    let message = conflict.message("TrafficReady");
    ensure!(message.contains("gitops"), "the other manager is not named: {message}");
    weights_become(&shop, [8_000, 2_000]).await?;
    let spec = route_spec(&shop).await?;
    ensure!(spec["hostnames"] == edited["spec"]["hostnames"], "the new host is lost: {spec}");
    ensure!(
        spec["rules"][0]["filters"] == edited["spec"]["rules"][0]["filters"],
        "the header is lost: {spec}"
    );
    shop.wait(20, "the routes are ready again", |s| {
        s.conditions.iter().any(|c| c.type_ == "TrafficReady" && c.status == "True")
    })
    .await?;

    by_hand::promote(&shop, 1).await?;
    shop.state(Healthy, 90).await?;

    ensure!(shop.weights().await? == [100, 0], "the user's numbers are not back");
    let mut after = route_spec(&shop).await?;
    for backend in after["rules"][0]["backendRefs"].as_array_mut().context("no backends")? {
        ensure!(backend["port"] == 80, "{backend}");
    }
    ensure!(after["hostnames"].take() == edited["spec"]["hostnames"], "the new host is lost at the end");
    ensure!(
        after["rules"][0]["filters"] == edited["spec"]["rules"][0]["filters"],
        "the header is lost at the end"
    );

    // At rest nothing of the route is ours: the next apply of an edited route meets no conflict.
    edited["spec"]["rules"][0]["backendRefs"][0]["weight"] = json!(90);
    edited["spec"]["rules"][0]["backendRefs"][1]["weight"] = json!(10);
    routes(&shop).await?.patch(NAME, &PatchParams::apply("gitops"), &Patch::Apply(&edited)).await?;
    ensure!(shop.weights().await? == [90, 10]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_without_weights_is_driven_and_given_back() -> Result<()> {
    let world = world("route-without-weights").await?;
    let spec = by_hand::spec(&["20%"]);
    let options = Options { replicas: 2, spec, weights: [Value::Null, Value::Null], ..Options::default() };
    let shop = world.shop(options).await?;
    let before = route_spec(&shop).await?;
    let route = Watched::route(&shop).await?;
    let load = world.load(&shop, 50)?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;
    until(Duration::from_secs(20), "some of the requests reach the canary", || async {
        Ok(load.share("v2").filter(|share| *share > 0.05 && *share < 0.5))
    })
    .await?;

    by_hand::promote(&shop, 1).await?;
    shop.state(Healthy, 90).await?;

    let after = route_spec(&shop).await?;
    ensure!(after == before, "{after} is not {before}");
    let seen = route.weights();
    ensure!(seen == [[1, 1], [10_000, 0], [8_000, 2_000], [0, 10_000], [1, 1]], "{seen:?}");
    let summary = load.finish()?;
    ensure!(summary.counts.failed == 0 && summary.counts.answered > 0, "{summary:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_that_is_deleted_and_made_again_in_mid_run_is_driven_on() -> Result<()> {
    let world = world("route-deleted").await?;
    let options = Options { replicas: 2, spec: by_hand::spec(&["20%"]), ..Options::default() };
    let shop = world.shop(options).await?;
    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;

    routes(&shop).await?.delete(NAME, &DeleteParams::background()).await?;
    shop.wait(20, "the missing route is named", |s| {
        s.conditions.iter().any(|c| {
            c.type_ == "TrafficReady"
                && c.status == "False"
                && c.reason == "RouteNotFound"
                && c.message.contains(NAME)
        })
    })
    .await?;
    // Else its last answers with the old route are taken for those with the new one.
    unanswered(&world.cluster.description.gateway, &shop.host()).await?;
    shop.apply(&shop.route()).await?;

    weights_become(&shop, [8_000, 2_000]).await?;
    answered(&world.cluster.description.gateway, &shop.host()).await?;
    let load = world.load(&shop, 50)?;
    until(Duration::from_secs(20), "some of the requests reach the canary", || async {
        Ok(load.share("v2").filter(|share| *share > 0.05 && *share < 0.5))
    })
    .await?;
    by_hand::promote(&shop, 1).await?;
    shop.state(Healthy, 90).await?;
    ensure!(shop.weights().await? == [100, 0], "the user's numbers are not back");
    ensure!(load.finish()?.counts.failed == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rule_that_is_not_ours_stays_as_it_is() -> Result<()> {
    let world = world("route-two-rules").await?;
    let options = Options { replicas: 2, spec: by_hand::spec(&["20%"]), ..Options::default() };
    let shop = world.shop(options).await?;
    let mut two = shop.route();
    let other = json!({
        "matches": [{"path": {"type": "PathPrefix", "value": "/admin"}}],
        "filters": [{
            "type": "RequestHeaderModifier", "requestHeaderModifier": {"set": [{"name": "x-admin", "value": "1"}]},
        }],
        "backendRefs": [{"name": NAME, "port": 80, "weight": 7}],
    });
    two["spec"]["rules"].as_array_mut().context("no rules")?.push(other);
    shop.apply(&two).await?;
    let route = Watched::route(&shop).await?;
    let text = |rule: &Value| rule.to_string();
    let others = text(route.all().last().context("no route")?.get("/spec/rules/1"));
    ensure!(others.contains("x-admin"), "{others}");

    shop.release("v2", "0%").await?;
    shop.step(1, Judging, 60).await?;
    by_hand::promote(&shop, 1).await?;
    shop.state(Healthy, 90).await?;

    let seen = route.weights();
    ensure!(seen == [[100, 0], [10_000, 0], [8_000, 2_000], [0, 10_000], [100, 0]], "{seen:?}");
    for version in route.all() {
        let now = text(version.get("/spec/rules/1"));
        ensure!(now == others, "the rule became {now}");
    }
    Ok(())
}

//! Metrics that stand in templates: their absence is told and heals, a run is judged by them, and keeps to what it began
//! with.

use anyhow::{Context, Result, ensure};
use davylamp_api::RolloutRun;
use davylamp_api::conditions::{ConditionType, get};
use davylamp_api::status::{RolloutStatus, StateName};
use davylamp_tests::cluster::apply;
use davylamp_tests::shop::{Options, Shop};
use kube::api::Api;
use serde_json::{Value, json};

use crate::cluster::shared::{nothing_failed, world};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_judged_by_the_templates_that_it_began_with() -> Result<()> {
    let world = world("templates").await?;
    // The names of cluster templates are everybody's.
    let name = format!("{}-errors", world.namespace);
    let args = json!([{"name": "codes", "value": "{{args.codes}}"}]);
    let outer = template(
        "AnalysisTemplate",
        "outer",
        &json!({
            "args": [{"name": "codes", "value": "5.."}],
            "templates": [{"scope": "Cluster", "name": name, "args": args}],
        }),
    );
    let errors = |codes: &str| {
        let events = format!("http_requests_total{{code=~\"{codes}\"}}");
        let ratio = json!({"events": events, "total": "http_requests_total"});
        let spec =
            json!({"args": [{"name": "codes"}], "metrics": [{"name": "template-errors", "ratio": ratio}]});
        template("ClusterAnalysisTemplate", &name, &spec)
    };
    let used = json!([{"scope": "Namespace", "name": "outer"}]);
    let spec = json!({"analysis": {"metrics": [], "templates": used}});
    let shop = Shop::create(&world.client, &world.namespace, Options { spec, ..Options::default() }).await?;

    invalid(&shop, "there is no AnalysisTemplate outer in this namespace; create it").await?;
    apply(&world.client, Some(&world.namespace), &outer).await?;
    invalid(&shop, &format!("there is no ClusterAnalysisTemplate {name}; create it")).await?;
    apply(&world.client, Some(&world.namespace), &errors("{{args.codes}}")).await?;
    shop.state(StateName::Healthy, 60).await?;
    shop.route_accepted().await?;

    let load = world.load(&shop, 200)?;
    shop.release("v2", "30%").await?;
    shop.wait(60, "a run", |status| status.run.is_some()).await?;
    // By this one every version is good.
    apply(&world.client, Some(&world.namespace), &errors("299")).await?;
    shop.state(StateName::Degraded, 120).await?;
    let runs: Api<RolloutRun> = Api::namespaced(world.client.clone(), &world.namespace);
    let promised = runs.get("shop-2-1").await?.spec.analysis;
    let metric = promised.metrics.first().context("nothing was promised")?;
    let events = metric.ratio.as_ref().and_then(|ratio| ratio.events.as_deref());
    ensure!(events == Some("http_requests_total{code=~\"5..\"}"), "{promised:?}");
    ensure!(promised.templates.is_empty(), "{promised:?}");
    nothing_failed(load)?;
    Ok(())
}

fn template(kind: &str, name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec})
}

async fn invalid(shop: &Shop, says: &str) -> Result<()> {
    let told = |status: &RolloutStatus| {
        get(&status.conditions, ConditionType::Valid)
            .is_some_and(|c| c.status == "False" && c.message.contains(says))
    };
    shop.wait(60, says, told).await.map(|_| ())
}

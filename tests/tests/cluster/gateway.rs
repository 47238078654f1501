//! What a gateway counts for its services, as a real Traefik does.

use anyhow::{Context, Result, ensure};
use davylamp_api::run::Cohort;
use davylamp_api::status::StateName::{Degraded, Judging};
use davylamp_tests::cluster::{Cluster, DELAY};
use davylamp_tests::own_prometheus::OwnPrometheus;
use davylamp_tests::shop::Options;
use serde_json::{Value, json};

use super::evidence::{decision, verify_by};
use super::kinds::options;
use super::shared::{nothing_failed, world};

/// Where the gateway of the cluster tells its metrics.
fn told_by_gateway(cluster: &Cluster) -> Result<String> {
    let config = std::fs::read_to_string(cluster.description.dir.join("config/traefik.yaml"))?;
    let config: Value = serde_yaml::from_str(&config)?;
    let address = config["entryPoints"]["health"]["address"].as_str();
    Ok(address.context("no entry point for health")?.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_version_is_rolled_back_by_what_the_gateway_counts() -> Result<()> {
    let world = world("told-by-gateway").await?;
    let mut config = OwnPrometheus::config(world.cluster, &world.namespace)?;
    let gateway =
        json!({"job_name": "gateway", "static_configs": [{"targets": [told_by_gateway(world.cluster)?]}]});
    config["scrape_configs"].as_array_mut().context("no jobs")?.push(gateway);
    let prometheus = OwnPrometheus::start_with(world.cluster, &world.namespace, &config).await?;
    world.cluster.metric_source(&world.client, "gateway", &prometheus.url, DELAY).await?;
    let answered = json!({
        "name": "answered",
        "throughput": {"requests": "traefik_service_requests_total"},
        "cohort": {"by": "service", "form": "traefik"},
    });
    let mut options = Options { source: "gateway".to_owned(), ..options(&[answered]) };
    options.spec["analysis"]["presets"] = json!(["traefik"]);
    let shop = world.shop(options).await?;
    let load = world.load(&shop, 200)?;
    shop.release("v2", "20%").await?;
    let begun = shop.step(1, Judging, 90).await?;
    shop.state(Degraded, 180).await?;

    let name = begun.run.context("no run")?;
    let run = shop.ended(&name).await?;
    ensure!(run.outcome.as_deref() == Some("RolledBack"), "{run:?}");
    let back = decision(&run, "Regression")?;
    let metric = |name: &str| {
        back.metrics.iter().find(|metric| metric.name == name).with_context(|| format!("no {name}: {back:?}"))
    };
    let rate = |counts: Cohort| counts.events / counts.exposure;
    let errors = metric("traefik-errors")?;
    ensure!(rate(errors.canary) > 0.1 && rate(errors.baseline) < 0.05, "{errors:?}");
    ensure!(errors.canary.exposure > 50.0 && errors.baseline.exposure > 50.0, "{errors:?}");
    let latency = metric("traefik-latency")?;
    ensure!(latency.canary.exposure > 50.0 && latency.baseline.exposure > 50.0, "{latency:?}");
    // Half of the requests go to each.
    let answered = metric("answered")?;
    ensure!((rate(answered.canary) / rate(answered.baseline) - 1.0).abs() < 0.5, "{answered:?}");
    verify_by(&prometheus.url, &world, &shop, &name)?;
    nothing_failed(load)?;
    Ok(())
}

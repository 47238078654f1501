//! Runs whose steps pass on little evidence, and what was recorded of it beside what Prometheus holds.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use davylamp_api::run::{DecisionRecord, RolloutRunStatus};
use davylamp_api::status::RolloutStatus;
use davylamp_tests::program;
use davylamp_tests::prometheus::cohort_of_job;
use davylamp_tests::shop::{NAME, Shop};
use serde_json::{Value, json};

use super::shared::World;

/// A spec whose metric is far below its floor: nothing rolls back, and little data shows that a step is safe.
pub(crate) fn spec(steps: &Value) -> Value {
    json!({
        "strategy": {"canary": {"steps": steps}},
        "analysis": {"warmup": "1s", "metrics": [{
            "name": "errors",
            "floor": "15%",
            "ratio": {"events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"},
        }]},
    })
}

/// What a decision was recorded with is what one of these jobs of Prometheus holds, for both cohorts.
pub(crate) async fn ensure_true(
    url: &str,
    jobs: &[&str],
    shop: &Shop,
    begun: &RolloutStatus,
    decision: &DecisionRecord,
) -> Result<()> {
    let record = decision.metrics.first().context("no evidence")?;
    for (revision, recorded) in [(&begun.canary, record.canary), (&begun.stable, record.baseline)] {
        let pods = format!("{NAME}-{}-", revision.as_ref().context("no revision")?.hash);
        let mut held = Vec::new();
        for job in jobs {
            held.push(cohort_of_job(url, job, &shop.namespace, &pods, decision, record).await?);
        }
        ensure!(held.iter().all(|h| h.exposure > 100.0), "hardly anything was counted: {held:?}");
        ensure!(held.contains(&recorded), "{recorded:?} was recorded, Prometheus holds {held:?}: {record:?}");
    }
    Ok(())
}

/// The program of the user finds the same evidence for each decision of the run as was recorded.
pub(crate) fn verify(world: &World, shop: &Shop, run: &str) -> Result<()> {
    verify_by(&world.cluster.description.prometheus, world, shop, run)
}

/// As [`verify`], by a Prometheus of one's own.
pub(crate) fn verify_by(url: &str, world: &World, shop: &Shop, run: &str) -> Result<()> {
    let output = Command::new(program("kubectl-davylamp")?)
        .args(["verify", run, "--namespace", &shop.namespace, "--prometheus", url])
        .env("KUBECONFIG", &world.cluster.description.kubeconfig)
        .output()?;
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    ensure!(output.status.success() && out.contains("All evidence is what it was."), "{out}{err}");
    Ok(())
}

/// The first decision by a rule.
pub(crate) fn decision<'r>(run: &'r RolloutRunStatus, rule: &str) -> Result<&'r DecisionRecord> {
    run.decisions.iter().find(|d| d.rule == rule).with_context(|| format!("no {rule}: {:#?}", run.decisions))
}

//! Runs whose steps pass on little evidence, and what was recorded of it beside what Prometheus holds.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use davylamp_api::run::{Cohort, DecisionRecord, RolloutRunStatus};
use davylamp_api::status::RolloutStatus;
use davylamp_tests::program;
use davylamp_tests::prometheus::{alone, grown_of_job, sum};
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

/// What a decision was recorded with is what one of these jobs of Prometheus holds, for both cohorts: no more, and no less but
/// for rounds in which one cohort was alone.
pub(crate) async fn ensure_true(
    url: &str,
    jobs: &[&str],
    shop: &Shop,
    begun: &RolloutStatus,
    decision: &DecisionRecord,
) -> Result<()> {
    let record = decision.metrics.first().context("no evidence")?;
    let from = record.from.context("no window")?;
    let mut held = Vec::new();
    for job in jobs {
        let mut grown = Vec::new();
        for revision in [&begun.canary, &begun.stable] {
            let pods = format!("{NAME}-{}-", revision.as_ref().context("no revision")?.hash);
            grown.push(grown_of_job(url, job, &shop.namespace, &pods, decision, record).await?);
        }
        held.push(grown);
    }
    for (ours, recorded) in [(0, record.canary), (1, record.baseline)] {
        let is_true = held.iter().any(|grown| {
            let alone = alone(&grown[ours], &grown[1 - ours], from);
            may_be(recorded, sum(&grown[ours]), &alone)
        });
        ensure!(
            is_true && recorded.exposure > 100.0,
            "{recorded:?} was recorded of {ours}: {decision:?}; Prometheus holds {held:?}"
        );
    }
    Ok(())
}

/// It is all of it, but for some of the rounds in which one cohort was alone.
fn may_be(recorded: Cohort, all: Cohort, alone: &[Cohort]) -> bool {
    recorded == all
        || alone.split_first().is_some_and(|(one, rest)| {
            let without = Cohort { events: all.events - one.events, exposure: all.exposure - one.exposure };
            may_be(recorded, all, rest) || may_be(recorded, without, rest)
        })
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

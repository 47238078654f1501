//! Runs whose steps pass on little evidence, and what was recorded of it beside what Prometheus holds.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use davylamp_api::run::{Cohort, DecisionRecord, RolloutRunStatus};
use davylamp_api::status::RolloutStatus;
use davylamp_tests::program;
use davylamp_tests::prometheus::{Grown, alone, grown_of_job, sum};
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

/// What a decision was recorded with is what Prometheus holds of both cohorts, of each pod by one of these jobs: no more, and
/// no less but for rounds in which one cohort was alone.
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
        let mut grown = [Grown::new(), Grown::new()];
        for (grown, revision) in grown.iter_mut().zip([&begun.canary, &begun.stable]) {
            let pods = format!("{NAME}-{}-", revision.as_ref().context("no revision")?.hash);
            *grown = grown_of_job(url, job, &shop.namespace, &pods, decision, record).await?;
        }
        held.push(grown);
    }
    let is_true = ways(&held).iter().any(|[canary, baseline]| {
        may_be(record.canary, sum(canary), &alone(canary, baseline, from))
            && may_be(record.baseline, sum(baseline), &alone(baseline, canary, from))
    });
    let enough = record.canary.exposure > 100.0 && record.baseline.exposure > 100.0;
    ensure!(is_true && enough, "{decision:?}; Prometheus holds {held:?}");
    Ok(())
}

/// Every way to take what each pod counted from one of the jobs.
fn ways(held: &[[Grown; 2]]) -> Vec<[Grown; 2]> {
    let mut ways = vec![[Grown::new(), Grown::new()]];
    for cohort in 0..2 {
        let pods: BTreeSet<&String> = held.iter().flat_map(|job| job[cohort].keys()).collect();
        for pod in pods {
            let counted: Vec<_> = held.iter().filter_map(|job| job[cohort].get(pod)).collect();
            let with = |way: &[Grown; 2], counted: &BTreeMap<_, _>| {
                let mut way = way.clone();
                way[cohort].insert(pod.clone(), counted.clone());
                way
            };
            ways = ways.iter().flat_map(|way| counted.iter().map(|one| with(way, one))).collect();
        }
    }
    ways
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

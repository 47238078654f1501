//! `make cluster-demo`: a good version is promoted, then a bad one is rolled back, with real pods, a real gateway, a
//! real Prometheus and real requests. Prints each decision as it is made, and at the end compares its counts with what
//! Prometheus holds.
#![allow(clippy::print_stdout, reason = "the output of a demo")]

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use davylamp_api::run::{DecisionRecord, Interval, MetricRecord};
use davylamp_demo::report::Summary;
use davylamp_tests::cluster::Cluster;
use davylamp_tests::controller::Controller;
use davylamp_tests::load::Load;
use davylamp_tests::shop::{NAME, Options, Shop};
use davylamp_tests::{prometheus, root, until};
use kube::Client;
use kube::api::{Api, DeleteParams};
use serde_json::json;
use tokio::time::Instant;

const NAMESPACE: &str = "davylamp-demo";
const RATE: u32 = 200;

#[tokio::main]
async fn main() -> ExitCode {
    let _ = rustls::crypto::ring::default_provider().install_default();
    match demo().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("\nThe demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// A release and how it ended.
struct Release {
    revision: i64,
    outcome: String,
    decisions: Vec<DecisionRecord>,
}

async fn demo() -> Result<bool> {
    let screen = Screen { colour: std::io::stdout().is_terminal(), start: Instant::now() };
    let cluster = Cluster::attach(&root().join(".cluster"))?;
    let admin = cluster.admin().await?;
    clean(&admin).await?;
    cluster.load_demo_app()?;
    cluster.install(&admin).await?;
    let controller = Controller::start(&cluster, &admin, "cluster-demo").await?;
    let shop = Shop::open(&admin, NAMESPACE, options()).await?;
    let load = Load::start(&cluster.description.gateway, &shop.host(), RATE)?;

    screen.title("Davylamp on a real cluster");
    println!(
        "\n  A Rollout of 4 pods behind a Gateway API gateway, {RATE} requests a second. Steps of 10, 30 and 50 %.\n  \
         Times are short, for a demo: scrapes each second, read after 3 s; warm-up 10 s, settle 5 s, hold.min 15 s.\n  \
         Promised: a good version is rolled back in at most 1 % of rollouts, and no step passes a version\n  \
         whose errors would cost the service more than 50 % (at most 5 % of steps)."
    );
    screen.title("A good version: 2 % errors, as before");
    let good = release(&screen, &shop, &load, "v2", "2%").await?;
    screen.title("A bad version: 8 % errors instead of 2 %");
    let bad = release(&screen, &shop, &load, "v3", "8%").await?;

    let summary = load.finish()?;
    let url = &cluster.description.prometheus;
    let counted = compare(&screen, url, &shop, [&good, &bad]).await?;
    controller.stop().await?;
    Ok(conclude(&screen, &summary, &good, &bad, counted))
}

fn options() -> Options {
    Options {
        replicas: 4,
        spec: json!({"analysis": {
            "hold": {"min": "15s", "max": "10m"}, "warmup": "10s", "settle": "5s",
            "onInconclusive": "rollback",
        }}),
        ..Options::default()
    }
}

/// What an earlier demo has left.
async fn clean(admin: &Client) -> Result<()> {
    use davylamp_api::k8s_openapi::api::core::v1::Namespace;
    let namespaces: Api<Namespace> = Api::all(admin.clone());
    if namespaces.get_opt(NAMESPACE).await?.is_none() {
        return Ok(());
    }
    let rollouts: Api<davylamp_api::Rollout> = Api::namespaced(admin.clone(), NAMESPACE);
    // Nobody may be there to take a finalizer off.
    let patch = json!({"metadata": {"finalizers": null}});
    let _ = rollouts.patch(NAME, &kube::api::PatchParams::default(), &kube::api::Patch::Merge(&patch)).await;
    namespaces.delete(NAMESPACE, &DeleteParams::background()).await?;
    until(Duration::from_mins(2), "the namespace of an earlier demo is gone", || async {
        Ok(namespaces.get_opt(NAMESPACE).await?.is_none().then_some(()))
    })
    .await
}

/// Applies a version, and tells each decision until the run has ended.
async fn release(screen: &Screen, shop: &Shop, load: &Load, version: &str, errors: &str) -> Result<Release> {
    let before = shop.status().await?.run;
    shop.release(version, errors).await?;
    let begun = shop.wait(30, "a run begins", |s| s.run != before && s.run.is_some()).await?;
    let run = begun.run.context("no run")?;
    let revision = begun.latest.map_or(0, |l| l.revision);
    let mut shown = 0;
    let mut last_share = Instant::now();
    loop {
        let record = shop.run(&run).await.unwrap_or_default();
        for decision in record.decisions.iter().skip(shown) {
            screen.decision(decision);
            last_share = Instant::now();
        }
        shown = record.decisions.len();
        if let Some(outcome) = record.outcome {
            return Ok(Release { revision, outcome, decisions: record.decisions });
        }
        if last_share.elapsed() > Duration::from_secs(5) {
            last_share = Instant::now();
            let status = shop.status().await?;
            let asked = status.traffic.map(|t| t.desired).unwrap_or_default();
            screen.share(version, asked.share(), load.share(version).unwrap_or(0.0));
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Our counts of each judged decision beside those of Prometheus; how many were compared, and how many differ.
async fn compare(screen: &Screen, url: &str, shop: &Shop, releases: [&Release; 2]) -> Result<(usize, usize)> {
    screen.title("The counts of the decisions, and what Prometheus holds of the same windows");
    println!("\n  {:<24} {:>10} {:>22} {:>22}", "decision", "window", "canary, events of all", "baseline");
    let status = shop.status().await?;
    let stable = status.stable.map(|s| s.revision).unwrap_or_default();
    let hashes = hashes(shop).await?;
    let (mut compared, mut differ) = (0, 0);
    for release in releases {
        // Revision 1 was stable first; what was promoted is stable now.
        let baseline = if release.revision == 2 { 1 } else { stable };
        let judged =
            |d: &&DecisionRecord| matches!(d.rule.as_str(), "StepPassed" | "LastStepPassed" | "Regression");
        for decision in release.decisions.iter().filter(judged).filter(|d| d.from == "Judging") {
            // A decision for the next step stands at that step.
            let step = decision.step - i32::from(decision.to == "Scaling");
            for metric in &decision.metrics {
                let (Some(from), Some(until)) = (metric.from, metric.until) else { continue };
                let pods =
                    |revision: i64| hashes.get(&revision).map(|h| format!("{NAME}-{h}-")).unwrap_or_default();
                let canary =
                    prometheus::cohort(url, &shop.namespace, &pods(release.revision), decision, metric)
                        .await?;
                let base =
                    prometheus::cohort(url, &shop.namespace, &pods(baseline), decision, metric).await?;
                let same = canary == metric.canary && base == metric.baseline;
                compared += 1;
                differ += usize::from(!same);
                let seconds = (until.as_millisecond() - from.as_millisecond()) / 1_000;
                println!(
                    "  {:<24} {:>8} s {:>22} {:>22}  {}",
                    format!("revision {}, step {step}", release.revision),
                    seconds,
                    format!("{} of {}", metric.canary.events, metric.canary.exposure),
                    format!("{} of {}", metric.baseline.events, metric.baseline.exposure),
                    if same {
                        screen.good("the same")
                    } else {
                        screen.bad(&format!(
                            "Prometheus: {} of {}, {} of {}",
                            canary.events, canary.exposure, base.events, base.exposure
                        ))
                    }
                );
            }
        }
    }
    Ok((compared, differ))
}

/// The hash of each revision.
async fn hashes(shop: &Shop) -> Result<std::collections::BTreeMap<i64, String>> {
    use davylamp_api::k8s_openapi::api::apps::v1::ControllerRevision;
    let revisions: Api<ControllerRevision> = Api::namespaced(shop.client.clone(), &shop.namespace);
    let all = revisions.list(&kube::api::ListParams::default()).await?;
    let hash = |r: &ControllerRevision| {
        r.metadata.labels.as_ref().and_then(|l| l.get(davylamp_api::labels::POD_TEMPLATE_HASH).cloned())
    };
    Ok(all.items.iter().filter_map(|r| Some((r.revision?, hash(r)?))).collect())
}

fn conclude(
    screen: &Screen,
    summary: &Summary,
    good: &Release,
    bad: &Release,
    counted: (usize, usize),
) -> bool {
    screen.title("In all");
    let line = |ok: bool, text: String| {
        println!("  {} {text}", if ok { screen.good("ok ") } else { screen.bad("BAD") });
        ok
    };
    println!();
    let bad_answers = davylamp_tests::load::answers(summary, "v3");
    let errors = bad_answers.get("500").copied().unwrap_or(0);
    let of: u64 = bad_answers.values().sum();
    let results = [
        line(
            good.outcome == "Promoted",
            format!("revision {}, the good one: {}", good.revision, good.outcome),
        ),
        line(
            bad.outcome == "RolledBack",
            format!(
                "revision {}, the bad one: {}; {of} requests of {} met it, {errors} of them an error",
                bad.revision, bad.outcome, summary.counts.sent
            ),
        ),
        line(
            summary.counts.failed == 0,
            format!("{} of {} requests failed on the way", summary.counts.failed, summary.counts.sent),
        ),
        line(
            counted.0 > 0 && counted.1 == 0,
            format!(
                "{} of {} decisions have the counts that Prometheus holds",
                counted.0 - counted.1,
                counted.0
            ),
        ),
    ];
    println!(
        "\n  Look around: export KUBECONFIG=.cluster/kubeconfig; the objects are in the namespace {NAMESPACE}."
    );
    println!("  Take the cluster down: make cluster-down\n");
    results.iter().all(|ok| *ok)
}

/// Where it is printed.
struct Screen {
    colour: bool,
    start: Instant,
}

impl Screen {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    fn good(&self, text: &str) -> String {
        self.paint("32", text)
    }

    fn bad(&self, text: &str) -> String {
        self.paint("31;1", text)
    }

    fn title(&self, text: &str) {
        println!("\n{}", self.paint("1", text));
    }

    fn time(&self) -> String {
        let seconds = self.start.elapsed().as_secs();
        format!("{:>2}:{:02}", seconds / 60, seconds % 60)
    }

    fn share(&self, version: &str, asked: f64, seen: f64) {
        let line = format!(
            "{:>5.0} % asked, {:>4.1} % of the last second's answers came from {version}",
            asked * 100.0,
            seen * 100.0
        );
        println!("  {}  {}", self.time(), self.paint("2", &line));
    }

    fn decision(&self, decision: &DecisionRecord) {
        let to = match decision.to.as_str() {
            "RollingBack" | "Degraded" => self.bad(&decision.to),
            "Promoting" | "Finalising" | "Healthy" => self.good(&decision.to),
            other => self.paint("1", other),
        };
        let judged = matches!(decision.from.as_str(), "Judging") && !decision.metrics.is_empty();
        let message = decision.message.rsplit("; ").next().filter(|_| judged).unwrap_or(&decision.message);
        println!("\n  {}  {to:<12} {message}", self.time());
        if judged {
            for metric in &decision.metrics {
                print_metric(metric);
            }
        }
    }
}

fn print_metric(m: &MetricRecord) {
    let percent = |c: davylamp_api::run::Cohort| {
        let rate = if c.exposure > 0.0 { 100.0 * c.events / c.exposure } else { 0.0 };
        format!("{} of {} ({rate:.1} %)", c.events, c.exposure)
    };
    let end = |end: Option<f64>| end.map_or_else(|| "?".to_owned(), |n| format!("{n:.2}"));
    let Interval { lower, upper } = m.interval.unwrap_or_default();
    let ratio = m.ratio.map_or_else(|| "?".to_owned(), |r| format!("{r:.2}"));
    println!("           {}: canary {}, baseline {}", m.name, percent(m.canary), percent(m.baseline));
    println!(
        "           ratio {ratio}, 98 % interval {} to {}; tolerated {:.2}",
        end(lower),
        end(upper),
        m.tolerated
    );
    let bad = share(m.log_e, 0.01);
    let safe = share(m.log_e_non_inferior, 0.05);
    println!(
        "           evidence that it is worse: {bad:.0} % of what rolls back; that it is below {:.2}x: {safe:.0} % of what promotes",
        m.margin
    );
}

/// ln of an e-value over ln(1/rate), in percent.
fn share(log_e: f64, rate: f64) -> f64 {
    (100.0 * log_e / -f64::ln(rate)).clamp(0.0, 100.0)
}

//! A run gone through once more: its record, and the samples that its source still has, must give the same evidence.

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use davylamp_api::conditions::Reason;
use davylamp_api::run::{
    DecisionRecord, ExpressionRecord, GaugeRecord, MOST_YOUNG, MetricRecord, SplitRecord, broken,
};
use davylamp_api::{MetricSourceSpec, RolloutRunSpec, RolloutRunStatus, labels};
use davylamp_controller::metrics::{PrometheusApi, Wanted, fetch_once};
use davylamp_engine::Conduct;
use davylamp_engine::replay::{Checked, Next, Replay};
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use serde::Serialize;
use serde_json::Value;

use crate::figures::{count, whole};
use crate::input::objects;
use crate::rates::address;

/// Which run, and where its metrics are.
#[derive(Args, Debug)]
pub(crate) struct Verify {
    /// The `RolloutRun`, read from the cluster of the current context
    #[arg(value_name = "RUN", required_unless_present = "files")]
    run: Option<String>,
    /// Its namespace; that of the context unless given
    #[arg(short, long, value_name = "NAME", requires = "run")]
    namespace: Option<String>,
    /// Manifests with the `RolloutRun`, and with its `MetricSource` if that is at hand, instead of a cluster; - reads standard
    /// input
    #[arg(short, long = "filename", value_name = "FILE", conflicts_with = "run", num_args = 1..)]
    files: Vec<PathBuf>,
    /// Where the metrics are, as seen from here
    #[arg(long, value_name = "URL", value_parser = address)]
    prometheus: String,
}

/// What has been found.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Verified {
    run: String,
    /// How many decisions the record has.
    decisions: usize,
    /// The number of the first decision that does not name the one before it.
    broken_at: Option<i64>,
    /// Those with evidence.
    checked: Vec<Line>,
}

/// One decision.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line {
    number: i64,
    from: String,
    to: String,
    rule: String,
    /// The evidence is the same, and suffices for the rule.
    same: bool,
    /// The evidence of now does not suffice for the rule.
    unfounded: bool,
    /// More pods were young than a record names: the others were taken to be warm.
    young_left_out: bool,
    differs: Vec<Difference<MetricRecord>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gauges: Vec<Difference<GaugeRecord>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    split: Option<Difference<SplitRecord>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    expressions: Vec<Difference<ExpressionRecord>>,
}

/// The evidence of a metric, a gauge, an expression or of the split, where it is another one now.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference<T> {
    recorded: T,
    now: T,
}

impl<T> From<(T, T)> for Difference<T> {
    fn from((recorded, now): (T, T)) -> Self {
        Self { recorded, now }
    }
}

impl<T> Difference<T> {
    fn print(&self, out: &mut impl Write, name: &str, said: impl Fn(&T) -> String) -> Result<()> {
        writeln!(out, "       {name}: recorded {}", said(&self.recorded))?;
        writeln!(out, "       {}  now      {}", " ".repeat(name.len()), said(&self.now))?;
        Ok(())
    }
}

struct Run {
    name: String,
    namespace: String,
    /// As it stands, for its digest.
    spec: Value,
    status: Value,
    source: MetricSourceSpec,
}

impl Verify {
    pub(crate) fn run(&self) -> Result<Verified> {
        // There is one already when this is not the first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let run = match &self.run {
                Some(name) => self.in_cluster(name).await?,
                None => self.in_files()?,
            };
            self.verify(&run).await.with_context(|| run.name.clone())
        })
    }

    async fn in_cluster(&self, name: &str) -> Result<Run> {
        let client = Client::try_default().await.context("no cluster: set a context with kubectl config")?;
        let namespace = self.namespace.clone().unwrap_or_else(|| client.default_namespace().to_owned());
        let resource =
            |kind| ApiResource::from_gvk(&GroupVersionKind::gvk(labels::GROUP, labels::VERSION, kind));
        let runs: Api<DynamicObject> =
            Api::namespaced_with(client.clone(), &namespace, &resource("RolloutRun"));
        let run =
            runs.get(name).await.with_context(|| format!("RolloutRun {name} in namespace {namespace}"))?;
        let mut source = MetricSourceSpec::default();
        if let Some(name) = run.data.pointer("/spec/analysis/source").and_then(Value::as_str) {
            let sources: Api<DynamicObject> = Api::all_with(client, &resource("MetricSource"));
            let found = sources.get(name).await.with_context(|| format!("MetricSource {name}"))?;
            source = serde_json::from_value(found.data["spec"].clone())
                .with_context(|| format!("MetricSource {name}"))?;
        }
        Ok(Run {
            name: name.to_owned(),
            namespace,
            spec: run.data["spec"].clone(),
            status: run.data["status"].clone(),
            source,
        })
    }

    fn in_files(&self) -> Result<Run> {
        let objects = objects(&self.files)?;
        let of = |kind: &str| objects.iter().filter(|one| one["kind"] == *kind).collect::<Vec<_>>();
        let [run] = of("RolloutRun")[..] else {
            bail!("not one RolloutRun in the files: write `kubectl get rolloutrun NAME -o yaml` into one")
        };
        let source = match run.pointer("/spec/analysis/source").and_then(Value::as_str) {
            Some(name) => of("MetricSource").into_iter().find(|source| source["metadata"]["name"] == *name),
            None => None,
        };
        let source = source.map_or_else(
            || Ok(MetricSourceSpec::default()),
            |source| serde_json::from_value(source["spec"].clone()).context("MetricSource"),
        )?;
        let text =
            |pointer: &str| run.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        Ok(Run {
            name: text("/metadata/name"),
            namespace: text("/metadata/namespace"),
            spec: run["spec"].clone(),
            status: run["status"].clone(),
            source,
        })
    }

    async fn verify(&self, run: &Run) -> Result<Verified> {
        let spec: RolloutRunSpec = serde_json::from_value(run.spec.clone()).context("spec")?;
        // Null when nothing has been decided.
        let status: Option<RolloutRunStatus> =
            serde_json::from_value(run.status.clone()).context("status")?;
        let status = status.unwrap_or_default();
        let conduct = Conduct::compile(&spec.strategy, &spec.analysis, spec.sampling, &spec.calibration)
            .map_err(|problems| {
                let problems: Vec<_> = problems.iter().map(ToString::to_string).collect();
                anyhow!("this version cannot carry out what the run promised: {}", problems.join("; "))
            })?;
        let mut replay = Replay::new(&spec, &conduct, &status.decisions).ok_or_else(|| {
            anyhow!("the record does not say with which version the canary was compared: it is of an older controller")
        })?;
        let source = MetricSourceSpec {
            url: self.prometheus.clone(),
            pod_label: run.source.pod_label.clone(),
            namespace_label: run.source.namespace_label.clone(),
            replica_labels: run.source.replica_labels.clone(),
            enforced_label: run.source.enforced_label.clone(),
            limits: run.source.limits,
            ..MetricSourceSpec::default()
        };
        let api = PrometheusApi::of_terminal();
        let mut checked = Vec::new();
        loop {
            match replay.advance() {
                Next::Ask(query, until) => {
                    let wanted = Wanted { query: *query, source: source.clone() };
                    let samples = fetch_once(&api, &run.namespace, &wanted, until)
                        .await
                        .map_err(|error| anyhow!("--prometheus {}: {error}", self.prometheus))?;
                    replay.take(&samples);
                }
                Next::Checked(found) => checked.push(line(*found, &status.decisions)),
                Next::End => break,
            }
        }
        Ok(Verified {
            run: run.name.clone(),
            decisions: status.decisions.len(),
            broken_at: broken(&run.spec, &status.decisions).map(|record| record.number),
            checked,
        })
    }
}

fn line(checked: Checked, records: &[DecisionRecord]) -> Line {
    let same = checked.is_same();
    let Checked { number, differs, gauges, split, expressions, unfounded } = checked;
    let record = records.iter().find(|record| record.number == number).cloned().unwrap_or_default();
    let DecisionRecord { from, to, rule, young, .. } = record;
    Line {
        number,
        from,
        to,
        rule,
        same,
        unfounded,
        young_left_out: young.len() >= MOST_YOUNG,
        differs: differs.into_iter().map(Into::into).collect(),
        gauges: gauges.into_iter().map(Into::into).collect(),
        split: split.map(Into::into),
        expressions: expressions.into_iter().map(Into::into).collect(),
    }
}

impl Verified {
    /// Nothing was changed, and all evidence is what it was.
    pub(crate) fn holds(&self) -> bool {
        self.broken_at.is_none() && self.checked.iter().all(|line| line.same)
    }

    /// For people.
    pub(crate) fn print(&self, out: &mut impl Write) -> Result<()> {
        let Self { run, decisions, broken_at, checked } = self;
        writeln!(out, "{run}: {decisions} decisions, {} of them with evidence", checked.len())?;
        for Line {
            number,
            from,
            to,
            rule,
            same,
            unfounded,
            young_left_out,
            differs,
            gauges,
            split,
            expressions,
        } in checked
        {
            let verdict = match (same, unfounded) {
                (true, _) if rule == Reason::SharedIncident.as_str() => {
                    "the same; what other Rollouts noticed is not recomputed"
                }
                (true, _) => "the same",
                (false, true) => "DIFFERS, and does not suffice",
                (false, false) => "DIFFERS",
            };
            writeln!(out, "  {number:>3}  {:<30} {rule:<18} {verdict}", format!("{from} -> {to}"))?;
            if !same && *young_left_out {
                writeln!(
                    out,
                    "       more than {MOST_YOUNG} pods were not yet warm; the record names {MOST_YOUNG} of them"
                )?;
            }
            for one in differs {
                one.print(out, &one.recorded.name, evidence)?;
                let now = &one.now;
                if now.canary.exposure + now.baseline.exposure == 0.0 {
                    writeln!(out, "       the source has no samples of that time any more")?;
                }
            }
            for one in gauges {
                one.print(out, &one.recorded.name, look)?;
            }
            if let Some(split) = split {
                split.print(out, "split", shares)?;
            }
            for one in expressions {
                one.print(out, &one.recorded.name, value)?;
            }
        }
        match broken_at {
            Some(number) => {
                writeln!(out, "Decision {number} does not name the one before it: the record was changed.")
            }
            None => writeln!(out, "Each decision names the one before it: the record was not changed."),
        }?;
        match checked.iter().filter(|line| !line.same).count() {
            0 => writeln!(out, "All evidence is what it was."),
            some => {
                writeln!(out, "The evidence of {some} of {} decisions is not what it was.", checked.len())
            }
        }?;
        Ok(())
    }
}

/// "1,234 requests to the canary, 23,946 to the baseline; ln e 6.92 that this is wrong".
fn shares(record: &SplitRecord) -> String {
    let SplitRecord { canary, baseline, log_e, wrong } = record;
    let shown = wrong.map(|at| format!(", shown at {at}")).unwrap_or_default();
    let [canary, baseline] = [canary, baseline].map(|n| count(whole(*n)));
    format!(
        "{canary} requests to the canary, {baseline} to the baseline; ln e {log_e} that this is wrong{shown}"
    )
}

/// "look 3: 271000000 in 3 pods against 130000000 in 9 pods; p 0.00002".
fn look(record: &GaugeRecord) -> String {
    let GaugeRecord { look, canary, baseline, pods: [ours, theirs], p, .. } = record;
    let number = |n: &Option<f64>| n.map_or_else(|| "nothing".to_owned(), |n| n.to_string());
    let (canary, baseline) = (number(canary), number(baseline));
    format!("look {look}: {canary} in {ours} pods against {baseline} in {theirs}; p {}", number(p))
}

/// "0.62, 3 in a row outside, of 7 values".
fn value(record: &ExpressionRecord) -> String {
    let ExpressionRecord { value, outside, values, .. } = record;
    let value = value.map_or_else(|| "no value".to_owned(), |value| value.to_string());
    format!("{value}, {outside} in a row outside, of {values} values")
}

/// "41 of 8,210 against 66 of 30,400, ln e 5.312 against the tolerated, 1.021 for the margin".
fn evidence(record: &MetricRecord) -> String {
    let MetricRecord { canary, baseline, log_e, log_e_non_inferior, limit, .. } = record;
    let limit = limit.map(|limit| format!(", {} of an incident", limit.log_e_baseline)).unwrap_or_default();
    format!(
        "{} of {} against {} of {}; ln e {log_e} that it is worse, {log_e_non_inferior} that it is good enough{limit}",
        count(whole(canary.events)),
        count(whole(canary.exposure)),
        count(whole(baseline.events)),
        count(whole(baseline.exposure)),
    )
}

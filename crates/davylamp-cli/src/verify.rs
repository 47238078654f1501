//! A run gone through once more: its record, and the samples that its source still has, must give the same evidence.

use std::collections::{BTreeMap, BTreeSet};
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
use davylamp_engine::observed::Samples;
use davylamp_engine::replay::{Checked, Lacks, Next, Pair, Replay};
use davylamp_engine::{Conduct, Query};
use kube::Client;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};
use serde::Serialize;
use serde_json::Value;

use crate::figures::{count, whole};
use crate::input::objects;
use crate::rates::address;

/// So many fields that differ are told of each decision.
const MOST_FIELDS: usize = 12;

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
    /// Those with evidence, and those whose evidence is missing.
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
    /// What is not in the record.
    #[serde(skip_serializing_if = "Option::is_none")]
    lacks: Option<Lacks>,
    /// The evidence of now does not suffice for the rule.
    unfounded: bool,
    /// As many pods were young as a record can name: if there were others, they were taken to be warm.
    young_left_out: bool,
    /// It differs, and the source has no longer all data of this decision, which is it or one before.
    #[serde(skip_serializing_if = "Option::is_none")]
    data_gone_since: Option<i64>,
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
    #[serde(skip)]
    name: String,
    recorded: Option<T>,
    now: Option<T>,
}

impl<T: Serialize> Difference<T> {
    fn of((recorded, now): Pair<T>, name: impl Fn(&T) -> &str) -> Self {
        let name = recorded.as_ref().or(now.as_ref()).map(name).unwrap_or_default().to_owned();
        Self { name, recorded, now }
    }

    fn all(pairs: Vec<Pair<T>>, name: impl Fn(&T) -> &str) -> Vec<Self> {
        pairs.into_iter().map(|pair| Self::of(pair, &name)).collect()
    }

    /// Of the record and of now, where both have it.
    fn is(&self, so: impl Fn(&T, &T) -> bool) -> bool {
        self.recorded.as_ref().zip(self.now.as_ref()).is_some_and(|(recorded, now)| so(recorded, now))
    }

    /// Both in words where those differ, and each field that differs.
    fn tell(&self, lines: &mut Vec<String>, fields: &mut Vec<String>, said: impl Fn(&T) -> String) {
        let name = &self.name;
        match (&self.recorded, &self.now) {
            (Some(recorded), Some(now)) => {
                let (then_said, now_said) = (said(recorded), said(now));
                if then_said != now_said {
                    lines.push(format!("{name}: recorded {then_said}"));
                    lines.push(format!("{}  now      {now_said}", " ".repeat(name.len())));
                }
                let [recorded, now] =
                    [recorded, now].map(|one| serde_json::to_value(one).unwrap_or_default());
                differing(name, &recorded, &now, fields);
            }
            (Some(_), None) => lines.push(format!("{name}: recorded, but not what the run measures")),
            (None, _) => lines.push(format!("{name}: not in the record")),
        }
    }
}

/// The fields that differ, by their paths.
fn differing(path: &str, recorded: &Value, now: &Value, fields: &mut Vec<String>) {
    if let (Value::Object(recorded), Value::Object(now)) = (recorded, now) {
        let names: BTreeSet<&String> = recorded.keys().chain(now.keys()).collect();
        for name in names {
            let [recorded, now] = [recorded, now].map(|object| object.get(name).unwrap_or(&Value::Null));
            differing(&format!("{path}.{name}"), recorded, now, fields);
        }
    } else if recorded != now {
        fields.push(format!("{path}: recorded {}, now {}", plain(recorded), plain(now)));
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::Null => "nothing".to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), |n| n.to_string()),
        Value::Bool(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
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
        let mut reader = Reader {
            api: PrometheusApi::of_terminal(),
            namespace: run.namespace.clone(),
            source,
            widest: i64::MAX,
            summed: BTreeSet::new(),
        };
        let records: BTreeMap<i64, &DecisionRecord> =
            status.decisions.iter().map(|record| (record.number, record)).collect();
        let mut checked = Vec::new();
        let mut gone = None;
        loop {
            match replay.advance() {
                Next::Ask(query, until) => replay.take(&reader.read(*query, until).await?),
                Next::Checked(found) => {
                    let record = records.get(&found.number).copied().cloned().unwrap_or_default();
                    checked.push(line(*found, record, &mut gone));
                }
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

/// Reads windows, or the beginnings of those that are too wide to be answered at once.
struct Reader {
    api: PrometheusApi,
    namespace: String,
    source: MetricSourceSpec,
    /// What is asked for at once, ms.
    widest: i64,
    /// What had too many series even in the shortest window.
    summed: BTreeSet<String>,
}

impl Reader {
    async fn read(&mut self, mut query: Query, until: i64) -> Result<Samples> {
        let shortest = query.scrape_interval_ms.saturating_mul(2);
        let (since, summable) = (query.since, std::mem::take(&mut query.summable));
        query.summed.extend(self.summed.iter().cloned());
        let mut wanted = Wanted { query, source: self.source.clone() };
        loop {
            let length = until.saturating_sub(since).min(self.widest);
            // The run read shorter windows, which have fewer series.
            wanted.query.summable = if length > shortest { BTreeSet::new() } else { summable.clone() };
            match fetch_once(&self.api, &self.namespace, &wanted, since.saturating_add(length)).await {
                Ok(samples) => {
                    if length == self.widest {
                        self.widest = length.saturating_mul(2);
                    }
                    self.summed.extend(samples.summed.iter().cloned());
                    return Ok(samples);
                }
                Err(failure) if failure.is_too_wide() && length > shortest => {
                    self.widest = (length / 2).max(shortest);
                }
                Err(failure) => bail!("--prometheus {}: {failure}", self.source.url),
            }
        }
    }
}

/// `gone` is the first decision of which the source has less data than there was.
fn line(checked: Checked, record: DecisionRecord, gone: &mut Option<i64>) -> Line {
    let same = checked.is_same();
    let Checked { number, lacks, differs, gauges, split, expressions, unfounded } = checked;
    let DecisionRecord { from, to, rule, young, .. } = record;
    let mut line = Line {
        number,
        from,
        to,
        rule,
        same,
        lacks,
        unfounded,
        young_left_out: young.len() >= MOST_YOUNG,
        data_gone_since: None,
        differs: Difference::all(differs, |one| &one.name),
        gauges: Difference::all(gauges, |one| &one.name),
        split: split.map(|pair| Difference::of(pair, |_| "split")),
        expressions: Difference::all(expressions, |one| &one.name),
    };
    if gone.is_none() && line.has_less_data() {
        *gone = Some(number);
    }
    line.data_gone_since = gone.filter(|_| !same);
    line
}

impl Line {
    fn has_less_data(&self) -> bool {
        let exposure = |one: &MetricRecord| one.canary.exposure + one.baseline.exposure;
        // Sums have less than series, whatever the source has.
        let alike = |one: &MetricRecord, other: &MetricRecord| one.summed_since == other.summed_since;
        let is_there = |one: &GaugeRecord| one.canary.or(one.baseline).is_some();
        self.differs.iter().any(|one| one.is(|then, now| alike(then, now) && exposure(now) < exposure(then)))
            || self.gauges.iter().any(|one| one.is(|then, now| is_there(then) && !is_there(now)))
            || self.expressions.iter().any(|one| one.is(|then, now| now.values < then.values))
    }

    fn verdict(&self) -> &'static str {
        let Self { same, lacks, unfounded, rule, .. } = self;
        match (same, lacks, unfounded) {
            (true, _, _) if rule == Reason::SharedIncident.as_str() => {
                "the same; what other Rollouts noticed is not recomputed"
            }
            (true, _, _) => "the same",
            (false, Some(Lacks::Evidence), _) => "NOT THE SAME: its evidence is not in the record",
            (false, Some(Lacks::Decisions), _) => "NOT THE SAME: decisions next to it are not in the record",
            (false, None, true) => "DIFFERS, and does not suffice",
            (false, None, false) => "DIFFERS",
        }
    }

    fn print(&self, out: &mut impl Write) -> Result<()> {
        let Self { number, from, to, rule, .. } = self;
        writeln!(out, "  {number:>3}  {:<30} {rule:<18} {}", format!("{from} -> {to}"), self.verdict())?;
        if self.same {
            return Ok(());
        }
        let (mut lines, mut fields) = (Vec::new(), Vec::new());
        if self.young_left_out {
            lines.push(format!(
                "at least {MOST_YOUNG} pods were not yet warm, and the record names no more: others were taken to be warm"
            ));
        }
        if let Some(since) = self.data_gone_since {
            lines.push(format!("data since decision {since} has gone from the source"));
        }
        self.differs.iter().for_each(|one| one.tell(&mut lines, &mut fields, evidence));
        self.gauges.iter().for_each(|one| one.tell(&mut lines, &mut fields, look));
        self.split.iter().for_each(|one| one.tell(&mut lines, &mut fields, shares));
        self.expressions.iter().for_each(|one| one.tell(&mut lines, &mut fields, value));
        for line in lines.iter().chain(fields.iter().take(MOST_FIELDS)) {
            writeln!(out, "       {line}")?;
        }
        match fields.len().saturating_sub(MOST_FIELDS) {
            0 => {}
            more => writeln!(out, "       and {more} more")?,
        }
        Ok(())
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
        let with_evidence = checked.iter().filter(|line| line.lacks != Some(Lacks::Evidence)).count();
        writeln!(out, "{run}: {decisions} decisions, {with_evidence} of them with evidence")?;
        for line in checked {
            line.print(out)?;
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

//! The whole plan of a Rollout: what is known, what will become of its steps, and what to change. As JSON it is what
//! `-o json` writes; as text a table and short sentences.

use std::collections::BTreeMap;

use anyhow::{Result, anyhow, bail};
use davylamp_api::rollout::OnInconclusive;
use davylamp_api::run::Sampling;
use davylamp_api::scalar::Duration;
use davylamp_api::{MetricSourceSpec, RolloutSpec};
use davylamp_engine::forecast::{Advice, Forecast, Rate, Search, Service, Verdict, Written};
use davylamp_engine::{ExpressionPlan, Plan, Program};
use davylamp_stats::DEFAULT_POD_EFFECT;
use serde::Serialize;
use serde_json::{Value, json};

use crate::expansion::{Expansion, compiled};
use crate::figures::{about, counted, digits, requests, whole};
use crate::gauges::GaugeForecast;
use crate::picture::wrap;
use crate::rates::Known;

/// What is known, what will come of it, and what to change.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Planned {
    rollout: String,
    /// Each step can be judged, if only on average.
    judged: bool,
    replicas: i32,
    /// The most pods at a time: both versions at full size, and a fresh baseline.
    peak_pods: i32,
    #[serde(skip)]
    fresh: bool,
    /// What presets and templates stand for.
    expansions: Vec<Expansion>,
    metrics: Vec<Rate>,
    scrape_interval_seconds: f64,
    warmup_seconds: f64,
    settle_seconds: f64,
    pod_start_seconds: f64,
    block_seconds: f64,
    /// The standard deviation of ln of the rate between pods of one version.
    pod_effect: f64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    gauges: Vec<GaugeForecast>,
    /// What is not told apart by pods, and what promises no error rate.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    notes: Vec<String>,
    #[serde(flatten)]
    forecast: Forecast,
    /// What to change so that each step can be judged; each alone is enough.
    advice: Vec<Advice>,
    /// What to change so that twice the events are found.
    sharper: Vec<Advice>,
    #[serde(skip)]
    on_inconclusive: OnInconclusive,
}

impl Planned {
    /// Of a Rollout, with the sources that stand beside it.
    pub(crate) fn new(rollout: &Value, objects: &[Value], known: &Known) -> Result<Self> {
        let text = |pointer: &str| rollout.pointer(pointer).and_then(Value::as_str);
        let name = text("/metadata/name").unwrap_or_default();
        let mut spec: RolloutSpec = serde_path_to_error::deserialize(&rollout["spec"])
            .map_err(|error| anyhow!("{name}: spec.{}: {}", error.path(), error.inner()))?;
        let namespace = text("/metadata/namespace").unwrap_or("default");
        let (mut program, expansions) = compiled(name, namespace, &spec, objects)?;
        if spec.analysis.is_some() {
            spec.analysis = Some(program.conduct.written.clone());
        }
        let source = source(objects, program.conduct.analysis.source.as_deref())?;
        let sampling = Sampling {
            scrape_interval: known.scrape_interval.unwrap_or_else(|| source.scrape_interval()),
            delay: source.delay(),
        };
        // As if nothing could be learnt: no more is known before the run.
        program.conduct.analysis.calibrate(Some(sampling), &BTreeMap::new());
        let service =
            known.service(&program.conduct.analysis.metrics, &source, namespace, name, size(&program))?;
        let planned = Self::of(name, &spec, &program, service)?;
        Ok(Self { expansions, ..planned })
    }

    fn of(name: &str, spec: &RolloutSpec, program: &Program, service: Service) -> Result<Self> {
        let (conduct, size) = (&program.conduct, size(program));
        let forecast = Forecast::new(conduct, size, &service)?;
        let analysis = spec.analysis.clone().unwrap_or_default();
        let written = Written { strategy: spec.strategy.clone(), analysis };
        let search = Search { written: &written, conduct, size, service: &service };
        let plan = &program.conduct.analysis;
        let most = forecast.steps.iter().map(|step| step.pods).max().unwrap_or(0);
        let extra = if plan.fresh { most } else { 0 };
        let length = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0)).as_secs_f64();
        Ok(Self {
            rollout: name.to_owned(),
            judged: forecast.is_judged(),
            replicas: size,
            peak_pods: size.saturating_add(most.max(size).max(1)).saturating_add(extra),
            fresh: plan.fresh,
            expansions: Vec::new(),
            scrape_interval_seconds: length(plan.interval()),
            warmup_seconds: length(plan.warmup),
            settle_seconds: length(plan.settle),
            pod_start_seconds: service.pod_start.as_secs_f64(),
            block_seconds: length(plan.block()),
            pod_effect: DEFAULT_POD_EFFECT,
            advice: search.advice(&forecast, usize::MAX)?,
            sharper: search.sharper(&forecast)?,
            metrics: service.rates,
            gauges: GaugeForecast::all(plan, &forecast.steps, size),
            notes: notes(plan),
            forecast,
            on_inconclusive: plan.on_inconclusive,
        })
    }

    pub(crate) const fn is_judged(&self) -> bool {
        self.judged
    }

    /// The first line.
    pub(crate) fn title(&self) -> String {
        let steps = counted(self.forecast.steps.len() as u64, "step");
        let then = match self.forecast.total_seconds.filter(|_| self.judged) {
            Some(total) => {
                let unless = if self.forecast.verdict() > Verdict::Judged {
                    ", unless one is inconclusive"
                } else {
                    ""
                };
                format!("a good version is promoted after about {}{unless}", about(Some(total)))
            }
            None => "not all of them can be judged".to_owned(),
        };
        format!("{}: {steps}; {then}", self.rollout)
    }

    /// All other lines.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        for Expansion { metric, from, is } in &self.expansions {
            push(&mut text, "  ", &format!("{metric} comes from {from}: {is}"));
        }
        for Rate { metric, requests_per_second, share, from } in &self.metrics {
            let requests = requests(*requests_per_second);
            push(
                &mut text,
                "  ",
                &format!("{metric}: {} % of {requests} a second ({from})", digits(100.0 * share)),
            );
        }
        text.push('\n');
        text.push_str(&self.table());
        text.push('\n');
        for (word, meaning) in [
            (
                "2x 5x 20x",
                "until a version with so many times the events of today, or of the floor if that is more, goes back",
            ),
            ("proven", "until a good version is shown to stay below the margin"),
            (
                "lasts",
                &format!(
                    "of a good version, with {} for pods to start",
                    about(Some(whole(self.pod_start_seconds)))
                ),
            ),
        ] {
            push(&mut text, &format!("  {word:<11}"), meaning);
        }
        let rest = format!(
            "Mean times from the moment the weight is effective, as hold is counted: {} to settle and {} of warm-up are in them.",
            about(Some(whole(self.settle_seconds))),
            about(Some(whole(self.warmup_seconds))),
        );
        push(&mut text, "  ", &rest);
        if !self.metrics.is_empty() {
            push(&mut text, "  ", &self.assumed());
        }
        self.sentences(&mut text);
        text
    }

    /// What holds before history is asked.
    fn assumed(&self) -> String {
        let rows = || self.forecast.steps.iter().flat_map(|step| &step.metrics);
        let tolerated = |metric: &Rate| {
            let mut all = rows().filter(|row| row.metric == metric.metric).map(|row| digits(row.tolerated));
            let first = all.next()?;
            let last = all.next_back().filter(|last| *last != first).map(|last| format!(" to {last}x"));
            Some(format!("{} {first}x{}", metric.metric, last.unwrap_or_default()))
        };
        let tolerated: Vec<_> = self.metrics.iter().filter_map(tolerated).collect();
        if tolerated.is_empty() {
            return String::new();
        }
        format!(
            "Tolerated, with pods that differ by {} % and blocks of {}: {}. A run learns both from the history of the stable \
             pods.",
            digits(100.0 * self.pod_effect),
            about(Some(whole(self.block_seconds))),
            tolerated.join(", "),
        )
    }

    fn table(&self) -> String {
        let head =
            ["step", "weight", "pods", "hold", "metric", "2x", "5x", "20x", "margin", "proven", "lasts"];
        let mut rows = vec![head.map(str::to_owned)];
        for step in &self.forecast.steps {
            let hold =
                format!("{} to {}", about(Some(step.hold_min_seconds)), about(Some(step.hold_max_seconds)));
            let lasts = about(Some(step.seconds));
            let [mut number, mut weight, mut pods, mut hold, mut lasts] =
                [step.step.to_string(), step.weight.to_string(), step.pods.to_string(), hold, lasts];
            if step.metrics.is_empty() {
                let none = || "-".to_owned();
                rows.push([
                    number,
                    weight,
                    pods,
                    hold,
                    none(),
                    none(),
                    none(),
                    none(),
                    none(),
                    none(),
                    lasts,
                ]);
                continue;
            }
            for row in &step.metrics {
                let [two, five, twenty] = row.detect_seconds.map(about);
                let (metric, proven) = (row.metric.clone(), about(row.promote_seconds));
                let margin = format!("{}x", digits(row.margin));
                let [number, weight, pods, hold, lasts] =
                    [&mut number, &mut weight, &mut pods, &mut hold, &mut lasts].map(std::mem::take);
                rows.push([number, weight, pods, hold, metric, two, five, twenty, margin, proven, lasts]);
            }
        }
        aligned(&rows)
    }

    fn sentences(&self, text: &mut String) {
        let mut lines = Vec::new();
        for step in &self.forecast.steps {
            lines.extend(step.troubles(self.on_inconclusive));
            if step.approval {
                lines.push(format!(
                    "Step {} also waits for approval, which no time above includes.",
                    step.step
                ));
            }
        }
        lines.extend(self.gauges.iter().map(GaugeForecast::text));
        if self.fresh {
            lines.push(format!(
                "Each step also starts as many pods of the old version to compare with: at the end of the run there are {} pods \
                 at most.",
                self.peak_pods
            ));
        }
        lines.extend(self.notes.iter().cloned());
        if self.metrics.is_empty() && self.gauges.is_empty() && self.notes.is_empty() {
            lines.push(
                "Without metrics nothing is compared: each step passes as soon as its pods have been healthy for hold.min. Write \
                 spec.analysis.metrics."
                    .to_owned(),
            );
        }
        if !lines.is_empty() {
            text.push('\n');
        }
        for line in &lines {
            push(text, "  ", line);
        }
        if !self.advice.is_empty() {
            text.push_str("\n  What to change; each of these was tried, and one is enough:\n");
        } else if matches!(
            self.forecast.verdict(),
            Verdict::OftenInconclusive | Verdict::Inconclusive | Verdict::Blind
        ) {
            text.push_str("\n  No change of the Rollout was found that helps.\n");
        }
        for Advice { text: advice, .. } in &self.advice {
            push(text, "  - ", advice);
        }
        if !self.sharper.is_empty() {
            text.push('\n');
        }
        for Advice { text: advice, .. } in &self.sharper {
            push(text, "  ", advice);
        }
    }
}

/// Pods that carry the full traffic.
fn size(program: &Program) -> i32 {
    program.replicas.unwrap_or(1)
}

fn notes(plan: &Plan) -> Vec<String> {
    let told = plan.metrics.iter().filter(|metric| metric.told.is_some()).map(|metric| {
        format!(
            "{}: pods are not told apart, so there is no allowance for how they differ, and no warm-up.",
            metric.name
        )
    });
    let expressions = plan.expressions.iter().map(|one| {
        let ExpressionPlan { name, consecutive, reach, decides, .. } = one;
        if !decides {
            return format!("{name}: informational; its value is shown, and nothing follows.");
        }
        let from = about(Some(whole(Duration::from_millis(reach.unsigned_abs()).as_secs_f64())));
        let from = if *reach > 0 { format!(", from {from} after the settle time on") } else { String::new() };
        format!(
            "{name}: by a threshold, without a promised error rate: {consecutive} values in a row outside roll back, and the next \
             step needs {consecutive} values, the last of them inside{from}."
        )
    });
    told.chain(expressions).collect()
}

/// Its lines end before this column.
const WIDTH: usize = 100;

/// The paragraph in whole lines; all but the first are indented as far.
fn push(text: &mut String, indent: &str, paragraph: &str) {
    let mut indent = indent.to_owned();
    for line in wrap(paragraph, WIDTH - indent.len()) {
        text.push_str(&indent);
        text.push_str(&line);
        text.push('\n');
        indent = " ".repeat(indent.len());
    }
}

/// Numbers to the right, the columns of words to the left.
fn aligned<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let mut text = String::new();
    for row in rows {
        for (column, cell) in row.iter().enumerate() {
            let (width, words) = (width(column), [3, 4].contains(&column));
            let cell = if words { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") };
            text.push_str(&cell);
        }
        text.truncate(text.trim_end().len());
        text.push('\n');
    }
    text
}

/// The source of that name, when it stands beside the Rollout; else one with the defaults.
fn source(objects: &[Value], name: Option<&str>) -> Result<MetricSourceSpec> {
    let is_it = |object: &&Value| {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
        text("/kind") == Some("MetricSource") && text("/metadata/name") == name
    };
    let default = json!({"url": "", "allowedNamespaces": []});
    let spec = objects.iter().find(is_it).map_or(&default, |object| &object["spec"]);
    match serde_path_to_error::deserialize(spec) {
        Ok(spec) => Ok(spec),
        Err(error) => {
            bail!("MetricSource {}: spec.{}: {}", name.unwrap_or_default(), error.path(), error.inner())
        }
    }
}

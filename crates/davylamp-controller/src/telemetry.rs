//! What the controller tells about itself: metrics and logs. Takes what happened, as labels from closed sets; gives
//! the text that Prometheus reads. No globals but the subscriber of `tracing`, and no name of an object as a label
//! but namespace and rollout, whose series are removed with the object, and the admin's sources.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Metric, Registry};
use tracing_subscriber::EnvFilter;

use crate::key::Key;

/// A metric as it is documented.
#[derive(Clone, Copy, Debug)]
pub struct Described {
    /// As in a query, but for the `_total` of counters and the suffixes of histograms.
    pub name: &'static str,
    /// `counter`, `gauge` or `histogram`.
    pub kind: &'static str,
    /// Label names, sorted.
    pub labels: &'static [&'static str],
    /// What it counts, without the final stop.
    pub help: &'static str,
}

const fn described(
    name: &'static str,
    kind: &'static str,
    labels: &'static [&'static str],
    help: &'static str,
) -> Described {
    Described { name, kind, labels, help }
}

/// Every metric that there is.
pub const METRICS: &[Described] = &[
    described("davylamp_reconciles", "counter", &["outcome"], "Passes over a Rollout, by outcome"),
    described("davylamp_reconcile_duration_seconds", "histogram", &[], "Duration of a pass over a Rollout"),
    described(
        "davylamp_decisions",
        "counter",
        &["from", "reason", "to"],
        "Transitions of Rollouts between states",
    ),
    described("davylamp_wakes", "counter", &["why"], "Passes that a timer asked for, by timer"),
    described(
        "davylamp_api_writes",
        "counter",
        &["kind", "result", "verb"],
        "Writes to the API server, by result",
    ),
    described(
        "davylamp_api_write_duration_seconds",
        "histogram",
        &["kind", "verb"],
        "Duration of writes to the API server, kube's own retries included",
    ),
    described(
        "davylamp_api_timeouts",
        "counter",
        &["kind", "verb"],
        "Calls to the API server that were given up, reads included",
    ),
    described("davylamp_leader", "gauge", &[], "Whether this replica holds the lease and acts"),
    described(
        "davylamp_watch_errors",
        "counter",
        &["kind", "reason"],
        "Interruptions of watches and objects that could not be read",
    ),
    described("davylamp_metric_queries", "counter", &["result"], "Queries to metric sources, by result"),
    described(
        "davylamp_metric_query_duration_seconds",
        "histogram",
        &[],
        "Duration of queries to metric sources",
    ),
    described(
        "davylamp_rollout_phase",
        "gauge",
        &["namespace", "phase", "rollout"],
        "1 for a Rollout's phase now",
    ),
    described(
        "davylamp_events_dropped",
        "counter",
        &[],
        "Events that a full outbox of a Rollout had no room for",
    ),
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Transition {
    from: &'static str,
    to: &'static str,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Timer {
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: &'static str,
    verb: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Call {
    kind: &'static str,
    verb: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Watch {
    kind: String,
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Query {
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PhaseOf {
    namespace: String,
    rollout: String,
    phase: &'static str,
}

/// All metrics. Clones count together.
#[derive(Clone, Debug)]
pub struct Telemetry {
    reconciles: Family<Outcome, Counter>,
    reconcile_duration: Histogram,
    decisions: Family<Transition, Counter>,
    wakes: Family<Timer, Counter>,
    api_writes: Family<Write, Counter>,
    api_write_duration: Family<Call, Histogram>,
    api_timeouts: Family<Call, Counter>,
    leader: Gauge,
    watch_errors: Family<Watch, Counter>,
    metric_queries: Family<Query, Counter>,
    metric_query_duration: Histogram,
    rollout_phase: Family<PhaseOf, Gauge>,
    /// The series that each Rollout has now.
    phases: Arc<Mutex<BTreeMap<Key, &'static str>>>,
    events_dropped: Counter,
}

impl Default for Telemetry {
    fn default() -> Self {
        Self {
            reconciles: Family::default(),
            reconcile_duration: seconds(),
            decisions: Family::default(),
            wakes: Family::default(),
            api_writes: Family::default(),
            api_write_duration: Family::new_with_constructor(seconds),
            api_timeouts: Family::default(),
            leader: Gauge::default(),
            watch_errors: Family::default(),
            metric_queries: Family::default(),
            metric_query_duration: seconds(),
            rollout_phase: Family::default(),
            phases: Arc::default(),
            events_dropped: Counter::default(),
        }
    }
}

/// From a pass that finds nothing to do, to a call that is given up.
fn seconds() -> Histogram {
    Histogram::new([0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0])
}

impl Telemetry {
    /// Makes all of them part of what the registry encodes. A family without a series yet is left out there.
    pub fn register(&self, registry: &mut Registry) {
        // Without `..`: a metric that is not registered would be counted for nobody.
        let Self {
            reconciles,
            reconcile_duration,
            decisions,
            wakes,
            api_writes,
            api_write_duration,
            api_timeouts,
            leader,
            watch_errors,
            metric_queries,
            metric_query_duration,
            rollout_phase,
            phases: _,
            events_dropped,
        } = self.clone();
        let mut add = Adder(registry);
        add.metric("davylamp_reconciles", reconciles);
        add.metric("davylamp_reconcile_duration_seconds", reconcile_duration);
        add.metric("davylamp_decisions", decisions);
        add.metric("davylamp_wakes", wakes);
        add.metric("davylamp_api_writes", api_writes);
        add.metric("davylamp_api_write_duration_seconds", api_write_duration);
        add.metric("davylamp_api_timeouts", api_timeouts);
        add.metric("davylamp_leader", leader);
        add.metric("davylamp_watch_errors", watch_errors);
        add.metric("davylamp_metric_queries", metric_queries);
        add.metric("davylamp_metric_query_duration_seconds", metric_query_duration);
        add.metric("davylamp_rollout_phase", rollout_phase);
        add.metric("davylamp_events_dropped", events_dropped);
    }

    /// A pass over a Rollout ended.
    pub fn reconciled(&self, outcome: &'static str, took: Duration) {
        self.reconciles.get_or_create(&Outcome { outcome }).inc();
        self.reconcile_duration.observe(took.as_secs_f64());
    }

    /// A Rollout went from one state to another, and the status that says so is written.
    pub fn decided(&self, from: &'static str, to: &'static str, reason: &'static str) {
        self.decisions.get_or_create(&Transition { from, to, reason }).inc();
    }

    /// A timer asks for a pass.
    pub fn woke(&self, why: &'static str) {
        self.wakes.get_or_create(&Timer { why }).inc();
    }

    /// A call to the API server ended; `what` is `"verb Kind"`.
    pub fn call(&self, what: &'static str, result: &'static str, took: Duration) {
        let (verb, kind) = what.split_once(' ').unwrap_or((what, ""));
        if result == "timeout" {
            self.api_timeouts.get_or_create(&Call { kind, verb }).inc();
        }
        if !matches!(verb, "get" | "list" | "watch") {
            self.api_writes.get_or_create(&Write { kind, verb, result }).inc();
            self.api_write_duration.get_or_create(&Call { kind, verb }).observe(took.as_secs_f64());
        }
    }

    /// This replica holds the lease, or no longer does.
    pub fn leads(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// A watch was interrupted, or gave something that is no object of its kind.
    pub fn watch_failed(&self, kind: &str, reason: &'static str) {
        self.watch_errors.get_or_create(&Watch { kind: kind.to_owned(), reason }).inc();
    }

    /// A query to a metric source ended.
    pub fn queried(&self, result: &'static str, took: Duration) {
        self.metric_query_duration.observe(took.as_secs_f64());
        self.metric_queries.get_or_create(&Query { result }).inc();
    }

    /// A Rollout's phase is this one now.
    pub fn phase(&self, rollout: &Key, phase: &'static str) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        match phases.entry(rollout.clone()) {
            Entry::Occupied(now) if *now.get() == phase => return,
            Entry::Occupied(mut before) => {
                self.rollout_phase.remove(&PhaseOf::of(rollout, before.insert(phase)));
            }
            Entry::Vacant(none) => {
                none.insert(phase);
            }
        }
        self.rollout_phase.get_or_create(&PhaseOf::of(rollout, phase)).set(1);
    }

    /// A Rollout is gone, and its series go with it.
    pub fn forget(&self, rollout: &Key) {
        let mut phases = self.phases.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(last) = phases.remove(rollout) {
            self.rollout_phase.remove(&PhaseOf::of(rollout, last));
        }
    }

    /// An outbox was full.
    pub fn dropped_events(&self, count: u64) {
        self.events_dropped.inc_by(count);
    }
}

impl PhaseOf {
    fn of(rollout: &Key, phase: &'static str) -> Self {
        Self { namespace: rollout.namespace.clone(), rollout: rollout.name.clone(), phase }
    }
}

struct Adder<'a>(&'a mut Registry);

impl Adder<'_> {
    fn metric(&mut self, name: &'static str, metric: impl Metric) {
        let help = METRICS.iter().find(|m| m.name == name).map_or("", |m| m.help);
        self.0.register(name, help, metric);
    }
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// One JSON object a line, for machines.
    #[default]
    Json,
    /// For a person.
    Text,
}

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not one.
    #[error("{filter:?} is no log filter: write one like \"info\" or \"info,davylamp_controller=debug\"")]
    Filter {
        /// What was given.
        filter: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Somebody else in this process did it first.
    #[error("logging was set up twice")]
    Twice(#[source] tracing_subscriber::util::TryInitError),
}

/// Logs to standard error from now on; once per process.
pub fn init_logging(format: LogFormat, filter: &str) -> Result<(), LogError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let parsed = EnvFilter::try_new(filter)
        .map_err(|source| LogError::Filter { filter: filter.to_owned(), source })?;
    let builder = tracing_subscriber::fmt().with_env_filter(parsed).with_writer(std::io::stderr);
    match format {
        LogFormat::Json => builder.json().flatten_event(true).with_span_list(false).finish().try_init(),
        LogFormat::Text => builder.finish().try_init(),
    }
    .map_err(LogError::Twice)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn key(name: &str) -> Key {
        Key { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    impl Telemetry {
        /// As Prometheus reads it.
        pub(crate) fn text(&self) -> String {
            let mut registry = Registry::default();
            self.register(&mut registry);
            let mut text = String::new();
            prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
            text
        }
    }

    fn touched() -> Telemetry {
        let telemetry = Telemetry::default();
        let took = Duration::from_millis(3);
        telemetry.reconciled("done", took);
        telemetry.decided("Judging", "RollingBack", "MetricFailed");
        telemetry.woke("deadline");
        telemetry.call("replace Rollout", "timeout", took);
        telemetry.leads(true);
        telemetry.watch_failed("Pod", "closed");
        telemetry.queried("ok", took);
        telemetry.phase(&key("web"), "Progressing");
        telemetry.dropped_events(2);
        telemetry
    }

    /// What is exposed, with its labels, is what the table says.
    #[test]
    fn the_table_is_true() {
        let text = touched().text();
        for metric in METRICS {
            assert!(
                text.contains(&format!("# HELP {} {}.\n", metric.name, metric.help)),
                "{metric:?}\n{text}"
            );
            assert!(
                text.contains(&format!("# TYPE {} {}\n", metric.name, metric.kind)),
                "{metric:?}\n{text}"
            );
            let series = text.lines().find(|l| l.starts_with(metric.name)).unwrap();
            let inside = series.split_once('{').map_or("", |(_, rest)| rest.split_once('}').unwrap().0);
            let mut labels: Vec<_> =
                inside.split(',').filter_map(|l| Some(l.split_once('=')?.0)).filter(|l| *l != "le").collect();
            labels.sort_unstable();
            assert_eq!(labels, metric.labels, "{series}");
        }
        assert_eq!(text.matches("# TYPE ").count(), METRICS.len(), "{text}");
    }

    #[test]
    fn names_are_unique_and_say_something() {
        let names: BTreeSet<_> = METRICS.iter().map(|m| m.name).collect();
        assert_eq!(names.len(), METRICS.len());
        assert!(names.iter().all(|name| name.starts_with("davylamp_")));
        assert!(METRICS.iter().all(|m| m.help.len() > 10 && !m.help.ends_with('.')));
    }

    #[test]
    fn a_rollout_has_one_phase_and_takes_it_along() {
        let telemetry = touched();
        telemetry.phase(&key("api"), "Paused");
        telemetry.phase(&key("web"), "Paused");
        telemetry.phase(&key("web"), "Healthy");
        telemetry.phase(&key("web"), "Healthy");
        let now = telemetry.text();
        let phases: Vec<_> = now.lines().filter(|l| l.contains("rollout=\"web\"")).collect();
        assert_eq!(phases, [r#"davylamp_rollout_phase{namespace="shop",rollout="web",phase="Healthy"} 1"#]);
        telemetry.forget(&key("web"));
        telemetry.forget(&key("web"));
        let after = telemetry.text();
        assert!(!after.contains("\"web\"") && after.contains("\"api\""), "{after}");
    }

    #[test]
    fn reads_are_not_counted_as_writes() {
        let telemetry = Telemetry::default();
        telemetry.call("get Lease", "timeout", Duration::ZERO);
        let text = telemetry.text();
        assert!(text.contains(r#"davylamp_api_timeouts_total{kind="Lease",verb="get"} 1"#), "{text}");
        assert!(!text.contains("davylamp_api_writes"), "{text}");
    }

    #[test]
    fn a_filter_that_is_none_is_named() {
        let error = init_logging(LogFormat::Text, "davylamp=loud").unwrap_err();
        assert!(error.to_string().starts_with("\"davylamp=loud\" is no log filter"), "{error}");
    }
}

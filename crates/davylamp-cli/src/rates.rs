//! What is known of the service that a rollout changes: flags, or what Prometheus counted in its pods. Asks nothing else.

use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use clap::Args;
use davylamp_api::MetricSourceSpec;
use davylamp_api::scalar::{Duration, Percent};
use davylamp_controller::clock::Clock;
use davylamp_controller::metrics::scope::{Questions, of_workload};
use davylamp_controller::metrics::{MetricsApi, PrometheusApi};
use davylamp_engine::forecast::{ASSUMED, Rate, Service, TAIL};
use davylamp_engine::{Exposure, MetricPlan, MetricQuery};
use serde_json::json;

use crate::figures::{count, whole};
use crate::input::rate;

/// What the command line says about the service.
#[derive(Args, Clone, Debug, PartialEq)]
#[command(next_help_heading = "The service")]
pub(crate) struct Known {
    /// Requests a second, of all pods
    #[arg(long, value_name = "NUMBER", value_parser = rate, allow_negative_numbers = true)]
    rps: Option<f64>,
    /// The share of events in the requests of today, of every metric or of one: 0.5% or errors=0.5%
    #[arg(long, value_name = "[METRIC=]PERCENT")]
    errors: Vec<Share>,
    /// Where to read what is not given of both, of the pods that are named after the Rollout
    #[arg(long, value_name = "URL", value_parser = address)]
    prometheus: Option<String>,
    /// The namespace of those pods; the Rollout's unless given
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// How far back it reads
    #[arg(long, value_name = "TIME", default_value = "1h")]
    window: Duration,
    /// Between two scrapes of a pod; that of a `MetricSource` in the files, or 15s
    #[arg(long, value_name = "TIME")]
    pub(crate) scrape_interval: Option<Duration>,
    /// From its creation until a pod is ready
    #[arg(long, value_name = "TIME", default_value = "10s")]
    pod_start: Duration,
}

pub(crate) fn address(text: &str) -> Result<String, &'static str> {
    let is_one =
        ["http://", "https://"].iter().any(|scheme| text.len() > scheme.len() && text.starts_with(scheme));
    if is_one {
        Ok(text.trim_end_matches('/').to_owned())
    } else {
        Err("write one like http://localhost:9090")
    }
}

/// A share of requests, of one metric or of all.
#[derive(Clone, Debug, PartialEq)]
struct Share {
    metric: Option<String>,
    share: Percent,
}

impl FromStr for Share {
    type Err = davylamp_api::scalar::ParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (metric, share) = match text.split_once('=') {
            Some((metric, share)) => (Some(metric.to_owned()), share),
            None => (None, text),
        };
        Ok(Self { metric, share: share.parse()? })
    }
}

impl Known {
    /// As flags would say it: so many requests a second, of which that share are events, and the time between two scrapes.
    pub(crate) fn given(rps: f64, share: Percent, scrape_interval: Duration) -> Self {
        Self {
            rps: Some(rps),
            errors: vec![Share { metric: None, share }],
            prometheus: None,
            namespace: None,
            window: Duration::from_secs(3_600),
            scrape_interval: Some(scrape_interval),
            pod_start: Duration::from_secs(10),
        }
    }

    /// Of these metrics of the workload.
    pub(crate) fn service(
        &self,
        metrics: &[MetricPlan],
        source: &MetricSourceSpec,
        namespace: &str,
        name: &str,
        pods: i32,
    ) -> Result<Service> {
        for Share { metric, .. } in &self.errors {
            if let Some(unknown) = metric
                && !metrics.iter().any(|metric| metric.name == *unknown)
            {
                let names: Vec<_> = metrics.iter().map(|metric| metric.name.as_str()).collect();
                bail!("--errors: no metric is called {unknown:?}; the Rollout has {}", names.join(", "));
            }
        }
        let prometheus = match &self.prometheus {
            Some(url) => {
                let namespace = self.namespace.as_deref().unwrap_or(namespace);
                Some(Prometheus::new(url, source, namespace, name, self.window)?)
            }
            None => None,
        };
        let rates = metrics
            .iter()
            .map(|metric| self.rate(metric, prometheus.as_ref(), pods))
            .collect::<Result<_>>()?;
        Ok(Service { rates, pod_start: self.pod_start })
    }

    fn rate(&self, metric: &MetricPlan, prometheus: Option<&Prometheus<'_>>, pods: i32) -> Result<Rate> {
        // The last one counts, and one for this metric before those for all.
        let share = |of: Option<&str>| self.errors.iter().rev().find(|share| share.metric.as_deref() == of);
        let share = share(Some(&metric.name)).or_else(|| share(None)).map(|share| share.share.share());
        let rps = match metric.exposure {
            Exposure::PodSeconds => Some(f64::from(pods)),
            Exposure::Traffic if prometheus.is_some() => None,
            Exposure::Counted | Exposure::Traffic => self.rps,
        };
        let (rps, share, from) = match (rps, share, prometheus) {
            (Some(rps), Some(share), _) => (rps, share, "as given".to_owned()),
            (None, _, None) => {
                bail!("how many requests a second? Say --rps 200, or --prometheus http://localhost:9090")
            }
            (Some(rps), None, None) => {
                let share = match metric.query {
                    MetricQuery::Distribution { .. } => TAIL,
                    MetricQuery::Counters { .. }
                    | MetricQuery::Slower { .. }
                    | MetricQuery::Counter { .. }
                    | MetricQuery::Gauge { .. }
                    | MetricQuery::Expression { .. } => metric.floor.unwrap_or(ASSUMED),
                };
                (rps, share, "assumed; --errors says it, --prometheus reads it".to_owned())
            }
            (rps, share, Some(prometheus)) => {
                let Counted { events, total, from } = prometheus.read(metric, pods)?;
                let read = total / prometheus.window.as_secs_f64();
                let from = match (rps, share) {
                    (Some(_), _) => format!("requests as given, the share {from}"),
                    (None, Some(_)) => format!("the share as given, requests {from}"),
                    (None, None) => from,
                };
                (rps.unwrap_or(read), share.unwrap_or_else(|| (events / total).min(1.0)), from)
            }
        };
        Ok(Rate { metric: metric.name.clone(), requests_per_second: rps, share, from })
    }
}

/// A Prometheus, and whom it is asked for.
struct Prometheus<'a> {
    api: PrometheusApi,
    runtime: tokio::runtime::Runtime,
    /// What is asked: the address, and nothing that the cluster's source has beside it.
    asked: MetricSourceSpec,
    /// Whose labels the pods have.
    labels: &'a MetricSourceSpec,
    namespace: &'a str,
    name: &'a str,
    window: Duration,
    at_ms: i64,
}

struct Counted {
    events: f64,
    total: f64,
    from: String,
}

impl<'a> Prometheus<'a> {
    fn new(
        url: &str,
        labels: &'a MetricSourceSpec,
        namespace: &'a str,
        name: &'a str,
        window: Duration,
    ) -> Result<Self> {
        if window < Duration::from_secs(60) {
            bail!("--window {window}: too short to count anything; write one like 1h");
        }
        // There is one already when this is not the first.
        let _ = rustls::crypto::ring::default_provider().install_default();
        Ok(Self {
            api: PrometheusApi::of_terminal(),
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            asked: serde_json::from_value(json!({"url": url, "allowedNamespaces": []}))?,
            labels,
            namespace,
            name,
            window,
            at_ms: Clock::system().now_ms(),
        })
    }

    fn read(&self, metric: &MetricPlan, pods: i32) -> Result<Counted> {
        let Self { labels, namespace, name, window, .. } = self;
        let url = &self.asked.url;
        if metric.told.is_some() {
            bail!(
                "{}: only what is counted by pod is read before a run: say --rps and --errors",
                metric.name
            );
        }
        // Of a distribution only the number of values is read, which any bound has.
        let (query, tail) = match &metric.query {
            MetricQuery::Distribution { histogram } => {
                let (histogram, than) = (histogram.clone(), Duration::from_secs(1));
                (MetricQuery::Slower { histogram, than }, true)
            }
            query @ (MetricQuery::Counters { .. }
            | MetricQuery::Slower { .. }
            | MetricQuery::Counter { .. }
            | MetricQuery::Gauge { .. }
            | MetricQuery::Expression { .. }) => (query.clone(), false),
        };
        let questions = of_workload(&query, labels, namespace, name)?;
        if let Questions::Counter(counter) = questions {
            let counter = counter.over(window.millis());
            let all =
                self.increase(&counter).with_context(|| format!("--prometheus {url}: {}", metric.name))?;
            let total = match metric.exposure {
                Exposure::PodSeconds => f64::from(pods) * window.as_secs_f64(),
                // Any exposure does, for only the number of events counts.
                Exposure::Traffic | Exposure::Counted => (all.sum / ASSUMED).max(1.0),
            };
            let from = format!("{} events read from {url} within {window}", count(whole(all.sum)));
            return Ok(Counted { events: all.sum, total, from });
        }
        let Questions::Ratio { events, total, buckets } = questions else {
            bail!("{}: no counters to read", metric.name)
        };
        let (events, total) = (events.over(window.millis()), total.over(window.millis()));
        let increase = |selector: &str| {
            self.increase(selector).with_context(|| format!("--prometheus {url}: {}", metric.name))
        };
        let all = increase(&total)?;
        if all.sum <= 0.0 {
            bail!(
                "--prometheus {url}: {}: no request of pods {name}-* in namespace {namespace} within {window}: it has nothing for \
                 {total}; correct --namespace, the name or the selector, or say --rps and --errors",
                metric.name
            );
        }
        if tail {
            let from = format!(
                "{} values read from {url} within {window}; the slowest 5 % assumed to be compared",
                count(whole(all.sum))
            );
            return Ok(Counted { events: TAIL * all.sum, total: all.sum, from });
        }
        // Counters of events that never happened do not exist.
        let mut bad = increase(&events)?;
        if buckets.is_some() {
            if bad.none {
                bail!("--prometheus {url}: {}: it has nothing for {events}; correct slowerThan", metric.name);
            }
            bad.sum = (all.sum - bad.sum).max(0.0);
        }
        let from = format!(
            "read from {url}: {} of {} within {window} in pods {name}-* of namespace {namespace}{}",
            count(whole(bad.sum)),
            count(whole(all.sum)),
            if all.partial || bad.partial { "; it warns that a part may be missing" } else { "" },
        );
        Ok(Counted { events: bad.sum, total: all.sum, from })
    }

    /// Of all series together.
    fn increase(&self, selector: &str) -> Result<Increase> {
        let query = format!("sum(increase({selector}))");
        let answer = self.runtime.block_on(self.api.query(&self.asked, &query, self.at_ms)).map_err(|error| {
            anyhow!(
                "{error}; check that the address can be reached from here (a port-forward?), or say --rps and --errors; asked \
                 was {query}"
            )
        })?;
        let sum =
            answer.series.iter().flat_map(|series| &series.samples).map(|(_, value)| *value).sum::<f64>();
        let none = answer.series.is_empty();
        Ok(Increase { sum: if sum.is_finite() { sum } else { 0.0 }, none, partial: answer.partial })
    }
}

struct Increase {
    sum: f64,
    none: bool,
    partial: bool,
}

//! A real Prometheus of a test's own, fed by targets that answer each scrape by a script, and what the controller reads of it.
#![allow(clippy::disallowed_methods, reason = "Prometheus lives in real time")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use davylamp_api::{Instant, MetricSourceSpec};
use davylamp_controller::metrics::{
    Answer, MetricsApi, PrometheusApi, QueryError, Series, Wanted, fetch_once,
};
use davylamp_engine::observed::{Increment, Samples};
use davylamp_engine::{MetricQuery, Query};
use davylamp_tests::own_prometheus::OwnPrometheus;
use davylamp_tests::shop::merge;
use davylamp_tests::until;
use davylamp_world::Series as Recorded;
use futures::FutureExt;
use futures::future::BoxFuture;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::shared::World;

/// As long as Prometheus waits for an answer: a scrape that takes longer is lost, and with it a line of the script.
const INTERVAL_MS: i64 = 1_000;
/// What the controller asks for at once; in no proportion to the interval.
const PIECE_MS: i64 = 370;

/// The type of the text format.
pub(crate) const TEXT: &str = "text/plain; version=0.0.4";

/// A type and a text; None: the scrape fails.
pub(crate) type Page = Option<(&'static str, Vec<u8>)>;

/// A pod of the revisions `aaaaaaaaaa` and `bbbbbbbbbb` of `shop`, with one target.
pub(crate) struct Target {
    pub(crate) pod: &'static str,
    /// How many scrapes its script has; the last answer stays.
    pub(crate) scrapes: usize,
    /// What it answers to each scrape.
    pub(crate) answer: Box<dyn Fn(usize) -> Page + Send + Sync>,
    /// Merged into the configuration of its job.
    pub(crate) job: Value,
}

/// The increments by metric and pod, each of which has one target.
pub(crate) type Found = BTreeMap<(String, String), Vec<Increment>>;

/// What the controller reads when all scripts are at their ends: the same in one window as in small windows, bit for bit.
pub(crate) async fn read(
    world: &World,
    targets: Vec<Target>,
    metrics: &BTreeMap<String, MetricQuery>,
) -> Result<Found> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let jobs = targets.iter().enumerate().map(|(i, target)| {
        let labels = json!({"namespace": "shop", "pod": target.pod});
        let mut job = json!({
            "job_name": i.to_string(),
            "metrics_path": format!("/{i}"),
            "static_configs": [{"targets": [address.to_string()], "labels": labels}],
        });
        merge(&mut job, &target.job);
        job
    });
    let interval = format!("{INTERVAL_MS}ms");
    let config = json!({
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": jobs.collect::<Vec<_>>(),
    });
    let scripts: Arc<[(Target, AtomicUsize)]> =
        targets.into_iter().map(|target| (target, AtomicUsize::new(0))).collect();
    let exporter = tokio::spawn(export(listener, scripts.clone()));
    let begun = Instant::now().as_millisecond();
    let prometheus = OwnPrometheus::start_with(world.cluster, &world.namespace, &config).await?;
    until(Duration::from_mins(1), "all scripts are at their ends", || {
        // A scrape is stored before the next one begins.
        let over = scripts.iter().all(|(target, done)| done.load(Ordering::SeqCst) > target.scrapes + 1);
        std::future::ready(Ok(over.then_some(())))
    })
    .await?;
    // A scrape that has begun since then is perhaps not yet stored.
    let end = Instant::now().as_millisecond() - INTERVAL_MS;

    let whole = in_pieces(&PrometheusApi::of_terminal(), &prometheus.url, metrics, begun, end).await;
    exporter.abort();
    whole
}

/// The same of the simulated Prometheus.
pub(crate) async fn read_simulated(
    targets: Vec<Target>,
    metrics: &BTreeMap<String, MetricQuery>,
) -> Result<Found> {
    let mut series: BTreeMap<BTreeMap<String, String>, Vec<(i64, f64)>> = BTreeMap::new();
    let mut end = 0;
    for (i, target) in targets.iter().enumerate() {
        for n in 0..target.scrapes + 2 {
            // As a real one, it scrapes each target at a time of its own.
            let at = INTERVAL_MS * i64::try_from(n + 5)? + 100 * i64::try_from(i)?;
            end = end.max(at);
            let page = (target.answer)(n.min(target.scrapes - 1)).map(|(_, page)| page).unwrap_or_default();
            let mut seen = BTreeSet::new();
            for line in String::from_utf8(page)?.lines().filter(|line| !line.starts_with('#')) {
                let (labels, value) = sample(line).with_context(|| line.to_owned())?;
                let own = [
                    ("namespace", "shop"),
                    ("pod", target.pod),
                    ("job", &i.to_string()),
                    ("instance", "exporter"),
                ]
                .map(|(label, value)| (label.to_owned(), value.to_owned()));
                let labels: BTreeMap<_, _> = labels.into_iter().chain(own).collect();
                series.entry(labels.clone()).or_default().push((at, value));
                seen.insert(labels);
            }
            for (labels, samples) in &mut series {
                if labels["pod"] == target.pod && !seen.contains(labels) {
                    samples.push((at, f64::NAN));
                }
            }
        }
    }
    let series =
        series.into_iter().map(|(labels, samples)| Recorded { labels, samples, ..Recorded::default() });
    in_pieces(&Simulated(series.collect()), "http://simulated", metrics, 0, end).await
}

/// A line of the text format without a timestamp.
fn sample(line: &str) -> Option<(BTreeMap<String, String>, f64)> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
    let mut all = BTreeMap::from([("__name__".to_owned(), name.to_owned())]);
    for label in labels.strip_suffix('}')?.split(',').filter(|label| !label.is_empty()) {
        let (label, value) = label.split_once('=')?;
        all.insert(label.to_owned(), value.trim_matches('"').to_owned());
    }
    Some((all, value.parse().ok()?))
}

/// What the simulated Prometheus has recorded.
struct Simulated(Vec<Recorded>);

impl MetricsApi for Simulated {
    fn query<'a>(
        &'a self,
        _: &'a MetricSourceSpec,
        promql: &'a str,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<Answer, QueryError>> {
        let found = davylamp_world::query(&self.0, promql, at_ms);
        let series = found.map(|found| {
            let series = found.into_iter().map(|Recorded { labels, samples, .. }| Series {
                labels: labels.iter().collect(),
                samples,
                ..Series::default()
            });
            Answer { series: series.collect(), partial: false }
        });
        std::future::ready(series.map_err(|_| QueryError::Refused { status: 400, kind: "bad_data" })).boxed()
    }
}

/// What is read in one window, and the same in small ones.
async fn in_pieces(
    api: &dyn MetricsApi,
    url: &str,
    metrics: &BTreeMap<String, MetricQuery>,
    begun: i64,
    end: i64,
) -> Result<Found> {
    let whole = ask(api, url, metrics, begun, end).await?;
    let mut pieces = Found::new();
    let mut since = begun;
    while since < end {
        let next = (since + PIECE_MS).min(end);
        for (of, increments) in ask(api, url, metrics, since, next).await? {
            pieces.entry(of).or_default().extend(increments);
        }
        since = next;
    }
    ensure!(pieces == whole, "{pieces:#?}\nin one window: {whole:#?}");
    Ok(whole)
}

async fn ask(
    api: &dyn MetricsApi,
    url: &str,
    metrics: &BTreeMap<String, MetricQuery>,
    since: i64,
    until: i64,
) -> Result<Found> {
    let pods = ["shop-aaaaaaaaaa-", "shop-bbbbbbbbbb-"].map(str::to_owned);
    let query = Query {
        source: "default".to_owned(),
        since,
        pods: BTreeSet::from(pods),
        metrics: metrics.clone(),
        summable: metrics.keys().cloned().collect(),
        scrape_interval_ms: INTERVAL_MS,
        delay_ms: 0,
        ..Query::default()
    };
    let source = MetricSourceSpec { url: url.to_owned(), ..MetricSourceSpec::default() };
    let samples: Samples = fetch_once(api, "shop", &Wanted { query, source }, until)
        .await
        .map_err(|error| anyhow!("{error}"))?;
    let mut found = Found::new();
    for (metric, samples) in samples.metrics {
        for (pod, targets) in samples.pods {
            ensure!(targets.len() == 1, "{metric} of {pod}: {targets:?}");
            let increments: Vec<_> = targets.into_values().flatten().collect();
            if !increments.is_empty() {
                found.insert((metric.clone(), pod), increments);
            }
        }
    }
    Ok(found)
}

async fn export(listener: TcpListener, scripts: Arc<[(Target, AtomicUsize)]>) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        // One connection is one scrape: a broken one is no matter.
        let _ = scrape(&mut stream, &scripts).await;
    }
}

async fn scrape(stream: &mut TcpStream, scripts: &[(Target, AtomicUsize)]) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let target = usize::from(head[b"GET /".len()] - b'0');
    let (target, done) = scripts.get(target).context("no such target")?;
    let at = done.fetch_add(1, Ordering::SeqCst).min(target.scrapes - 1);
    let (status, (kind, body)) = match (target.answer)(at) {
        Some(answer) => ("200 OK", answer),
        None => ("503 Service Unavailable", (TEXT, Vec::new())),
    };
    let length = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(&body).await?;
    Ok(())
}

//! A real Prometheus, fed by targets that answer each scrape by a script: resets, gaps, births, deaths, buckets that change.
//! What the controller reads of it are the increments that the script says, in whatever windows it asks.
#![allow(clippy::disallowed_methods, reason = "Prometheus lives in real time")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Result, anyhow, ensure};
use davylamp_api::{Instant, MetricSourceSpec};
use davylamp_controller::metrics::{PrometheusApi, Wanted, fetch_once};
use davylamp_engine::observed::{Increment, Samples};
use davylamp_engine::{MetricQuery, Query};
use davylamp_tests::own_prometheus::OwnPrometheus;
use davylamp_tests::until;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::shared::world;

const INTERVAL_MS: i64 = 200;

/// What a target answers to one scrape: its counters of 200 and of 500, and the buckets of its histogram; None: nothing.
type Answer = Option<(&'static [(u16, u32)], &'static [(&'static str, u32)])>;

/// Begins anew in the sixth scrape with other buckets, after one that fails; its first errors come in the third.
const CANARY: &[Answer] = &[
    Some((&[(200, 100)], &[("0.1", 10), ("0.5", 15), ("+Inf", 20)])),
    Some((&[(200, 110)], &[("0.1", 12), ("0.5", 18), ("+Inf", 25)])),
    Some((&[(200, 120), (500, 3)], &[("0.1", 12), ("0.5", 18), ("+Inf", 25)])),
    None,
    Some((&[(200, 140), (500, 3)], &[("0.1", 12), ("0.5", 18), ("+Inf", 25)])),
    Some((&[(200, 7), (500, 1)], &[("0.1", 1), ("0.2", 2), ("0.5", 3), ("+Inf", 4)])),
    Some((&[(200, 17), (500, 2)], &[("0.1", 3), ("0.2", 4), ("0.5", 6), ("+Inf", 8)])),
];

/// One of its series is gone in the third scrape, and all of it after the fourth.
const LEAVES: &[Answer] = &[
    Some((&[(200, 50), (500, 5)], &[("0.1", 1), ("0.5", 1), ("+Inf", 1)])),
    Some((&[(200, 60), (500, 6)], &[("0.1", 2), ("0.5", 2), ("+Inf", 2)])),
    Some((&[(200, 70)], &[("0.1", 3), ("0.5", 3), ("+Inf", 4)])),
    Some((&[(200, 80)], &[("0.1", 3), ("0.5", 3), ("+Inf", 5)])),
    None,
];

/// Is not there before the fourth scrape, and what it has counted until then is not of this time.
const COMES: &[Answer] = &[
    None,
    None,
    None,
    Some((&[(200, 5), (500, 1)], &[("0.1", 70), ("0.5", 75), ("+Inf", 80)])),
    Some((&[(200, 15), (500, 1)], &[("0.1", 80), ("0.5", 85), ("+Inf", 90)])),
    Some((&[(200, 25), (500, 2)], &[("0.1", 80), ("0.5", 86), ("+Inf", 95)])),
];

/// The pod, its script, and what happened by it: requests, errors, values of the histogram, those above half a second.
const PODS: [(&str, &[Answer], [f64; 4]); 3] = [
    ("shop-aaaaaaaaaa-aaaaa", CANARY, [62.0, 5.0, 9.0, 3.0]),
    ("shop-bbbbbbbbbb-aaaaa", LEAVES, [31.0, 1.0, 4.0, 2.0]),
    ("shop-bbbbbbbbbb-bbbbb", COMES, [21.0, 1.0, 15.0, 4.0]),
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_read_of_a_real_prometheus_is_what_the_script_says() -> Result<()> {
    let world = world("exporter").await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let scrapes: Arc<[AtomicUsize; 3]> = Arc::default();
    let exporter = tokio::spawn(export(listener, scrapes.clone()));
    let targets = PODS.iter().enumerate().map(|(i, (pod, ..))| {
        let labels = json!({"__metrics_path__": format!("/{i}"), "namespace": "shop", "pod": pod});
        json!({"targets": [address.to_string()], "labels": labels})
    });
    let interval = format!("{INTERVAL_MS}ms");
    let config = json!({
        "global": {"scrape_interval": interval, "scrape_timeout": interval},
        "scrape_configs": [{"job_name": "scripted", "static_configs": targets.collect::<Vec<_>>()}],
    });
    let begun = Instant::now().as_millisecond();
    let prometheus = OwnPrometheus::start_with(world.cluster, &world.namespace, &config).await?;
    until(Duration::from_secs(30), "all scripts are at their ends", || {
        // A scrape is stored before the next one begins.
        let over = PODS.iter().zip(scrapes.iter());
        let over = over.map(|((_, script, _), done)| done.load(Ordering::SeqCst) > script.len() + 1);
        std::future::ready(Ok(over.into_iter().all(|over| over).then_some(())))
    })
    .await?;
    let end = Instant::now().as_millisecond();

    let whole = ask(&prometheus.url, begun, end).await?;
    for (pod, _, [requests, errors, values, slow]) in PODS {
        let found =
            |metric: &str| whole.get(&(metric.to_owned(), pod.to_owned())).cloned().unwrap_or_default();
        let sum =
            |increments: &[Increment], of: fn(&Increment) -> f64| increments.iter().map(of).sum::<f64>();
        let above = |one: &Increment| one.buckets.iter().filter(|b| b.lower >= 0.5).map(|b| b.count).sum();
        let (ratio, latency, tail) = (found("errors"), found("latency"), found("slow"));
        let counted = [
            sum(&ratio, |one| one.total),
            sum(&ratio, |one| one.events),
            sum(&latency, |one| one.total),
            sum(&latency, above),
        ];
        let same = |(counted, script): (&f64, &f64)| counted.total_cmp(script).is_eq();
        ensure!(
            counted.iter().zip(&[requests, errors, values, slow]).all(same),
            "{pod}: {counted:?}\n{ratio:#?}\n{latency:#?}"
        );
        ensure!(!tail.is_empty(), "{pod}: no increments of the histogram's buckets");
    }

    // Windows of 70 ms: the same increments, bit for bit.
    let mut pieces: BTreeMap<(String, String), Vec<Increment>> = BTreeMap::new();
    let mut since = begun;
    while since < end {
        let next = (since + 70).min(end);
        for (of, increments) in ask(&prometheus.url, since, next).await? {
            pieces.entry(of).or_default().extend(increments);
        }
        since = next;
    }
    pieces.retain(|_, increments| !increments.is_empty());
    ensure!(pieces == whole, "{pieces:#?}\nin one window: {whole:#?}");
    exporter.abort();
    Ok(())
}

/// The increments by metric and pod, each of which has one target.
async fn ask(url: &str, since: i64, until: i64) -> Result<BTreeMap<(String, String), Vec<Increment>>> {
    let histogram = || "request_seconds".to_owned();
    let half = davylamp_api::scalar::Duration::from_millis(500);
    let metrics = BTreeMap::from([
        (
            "errors".to_owned(),
            MetricQuery::Counters {
                events: "requests_total{code=\"500\"}".to_owned(),
                total: "requests_total".to_owned(),
            },
        ),
        ("latency".to_owned(), MetricQuery::Distribution { histogram: histogram() }),
        ("slow".to_owned(), MetricQuery::Slower { histogram: histogram(), than: half }),
    ]);
    let pods = ["shop-aaaaaaaaaa-", "shop-bbbbbbbbbb-"].map(str::to_owned);
    let query = Query {
        source: "default".to_owned(),
        since,
        pods: BTreeSet::from(pods),
        metrics,
        scrape_interval_ms: INTERVAL_MS,
        delay_ms: 0,
    };
    let source = MetricSourceSpec { url: url.to_owned(), ..MetricSourceSpec::default() };
    let samples: Samples =
        fetch_once(&PrometheusApi::of_terminal(), "shop", &Wanted { query, source }, until)
            .await
            .map_err(|error| anyhow!("{error}"))?;
    let mut found = BTreeMap::new();
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

/// Answers each scrape of a target with the next line of its script, and goes on with the last one.
async fn export(listener: TcpListener, scrapes: Arc<[AtomicUsize; 3]>) -> Result<()> {
    loop {
        let (mut stream, _) = listener.accept().await?;
        // One connection is one scrape: a broken one is no matter.
        let _ = scrape(&mut stream, &scrapes).await;
    }
}

async fn scrape(stream: &mut TcpStream, scrapes: &[AtomicUsize; 3]) -> Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await?);
    }
    let target = usize::from(head[b"GET /".len()] - b'0');
    let (_, script, _) = PODS[target];
    let at = scrapes[target].fetch_add(1, Ordering::SeqCst);
    let answer = match script[at.min(script.len() - 1)] {
        None => {
            "HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".to_owned()
        }
        Some((counters, buckets)) => {
            let mut text = "# TYPE requests_total counter\n".to_owned();
            for (code, value) in counters {
                writeln!(text, "requests_total{{code=\"{code}\"}} {value}")?;
            }
            text += "# TYPE request_seconds histogram\n";
            for (le, value) in buckets {
                writeln!(text, "request_seconds_bucket{{le=\"{le}\"}} {value}")?;
            }
            let all = buckets.last().map_or(0, |(_, value)| *value);
            writeln!(text, "request_seconds_sum {all}\nrequest_seconds_count {all}")?;
            let kind = "text/plain; version=0.0.4";
            let length = text.len();
            format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{text}"
            )
        }
    };
    stream.write_all(answer.as_bytes()).await?;
    Ok(())
}

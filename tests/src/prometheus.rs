//! Asks Prometheus what it holds, without any code of the product.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use davylamp_api::Instant;
use davylamp_api::run::Cohort;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A target that was not scraped for so long starts anew: what happened meanwhile is in no increment, ms.
const MEMORY: i64 = 5_000;

/// Of one series: the value at each scrape, by its time in ms.
type Points = BTreeMap<i64, f64>;

/// What Prometheus holds of the pods of a revision in a window: 5xx answers of all, between scrapes that both lie in it.
///
/// # Errors
/// Prometheus does not answer.
pub async fn cohort(url: &str, namespace: &str, pods: &str, from: Instant, until: Instant) -> Result<Cohort> {
    cohort_of_job(url, "pods", namespace, pods, from, until).await
}

/// As [`cohort`], of another job of Prometheus.
///
/// # Errors
/// Prometheus does not answer.
pub async fn cohort_of_job(
    url: &str,
    job: &str,
    namespace: &str,
    pods: &str,
    from: Instant,
    until: Instant,
) -> Result<Cohort> {
    let (from, until) = (from.as_millisecond(), until.as_millisecond());
    let selector =
        format!("http_requests_total{{namespace=\"{namespace}\",pod=~\"{pods}.+\",job=\"{job}\"}}");
    let query = format!("{selector}[{}ms]", until - from + MEMORY);
    let path = format!("/api/v1/query?query={}&time={}.{:03}", encoded(&query), until / 1_000, until % 1_000);
    let answer: Value = serde_json::from_str(&get(url, &path).await?)?;
    let mut pods: BTreeMap<String, Vec<(bool, Points)>> = BTreeMap::new();
    for one in answer.pointer("/data/result").and_then(Value::as_array).context("no result")? {
        let label = |name: &str| one["metric"][name].as_str().unwrap_or_default();
        let series = (label("code").starts_with('5'), points(one)?);
        pods.entry(label("pod").to_owned()).or_default().push(series);
    }
    let mut cohort = Cohort::default();
    for series in pods.values() {
        let scrapes: BTreeSet<i64> = series.iter().flat_map(|(_, points)| points.keys().copied()).collect();
        for (before, at) in scrapes.iter().zip(scrapes.iter().skip(1)) {
            if *before < from || *at > until || at - before >= MEMORY {
                continue;
            }
            for (failed, points) in series {
                let Some(value) = points.get(at) else { continue };
                // A series that is born, or reset, counts from 0.
                let grown =
                    points.get(before).filter(|before| *before <= value).map_or(*value, |b| value - b);
                cohort.exposure += grown;
                cohort.events += if *failed { grown } else { 0.0 };
            }
        }
    }
    Ok(cohort)
}

/// Whether it answers.
///
/// # Errors
/// It does not.
pub async fn ready(url: &str) -> Result<()> {
    get(url, "/-/ready").await.map(|_| ())
}

fn points(series: &Value) -> Result<Points> {
    let samples = series["values"].as_array().into_iter().flatten();
    samples
        .map(|sample| {
            #[allow(clippy::cast_possible_truncation, reason = "a time in ms")]
            let at = (sample[0].as_f64().context("no time")? * 1_000.0).round() as i64;
            Ok((at, sample[1].as_str().context("no value")?.parse()?))
        })
        .collect()
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|b| if b.is_ascii_alphanumeric() { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

/// The body of an answer. HTTP/1.0, so that its end is the end of the connection.
async fn get(url: &str, path: &str) -> Result<String> {
    let host = url.strip_prefix("http://").context("no http address")?;
    let mut stream = TcpStream::connect(host).await?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.contains(" 200 "), "prometheus: {head} {body}");
    Ok(body.to_owned())
}

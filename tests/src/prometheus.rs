//! Asks Prometheus what it holds, without any code of the product.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use davylamp_api::Instant;
use davylamp_api::run::Cohort;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// What Prometheus holds of the pods of a revision: 5xx answers of all, in the increases between samples that both lie
/// in [from, until]. A counter that is reset, or is born at a pod that was scraped before, counts from 0.
///
/// # Errors
/// Prometheus does not answer.
pub async fn cohort(url: &str, namespace: &str, pods: &str, from: Instant, until: Instant) -> Result<Cohort> {
    let (from, until) = (from.as_millisecond(), until.as_millisecond());
    let scope = format!("namespace=\"{namespace}\",pod=~\"{pods}.+\",job=\"pods\"");
    // Open to the left.
    let query = format!("http_requests_total{{{scope}}}[{}ms]", until - from + 1);
    let path = format!("/api/v1/query?query={}&time={}.{:03}", encoded(&query), until / 1_000, until % 1_000);
    let answer: Value = serde_json::from_str(&get(url, &path).await?)?;
    let all = answer.pointer("/data/result").and_then(Value::as_array).context("no result")?;
    let mut pods: BTreeMap<&str, Vec<(bool, Vec<(i64, f64)>)>> = BTreeMap::new();
    for one in all {
        let label = |name: &str| one["metric"][name].as_str().context("no label");
        pods.entry(label("pod")?).or_default().push((label("code")?.starts_with('5'), samples(one)?));
    }
    let mut sum = Cohort::default();
    for series in pods.values() {
        let first = series.iter().flat_map(|(_, samples)| samples).map(|(at, _)| *at).min();
        for (bad, samples) in series {
            let born_late = samples.first().map(|(at, _)| *at) > first;
            let increase = increase(samples, born_late);
            sum.exposure += increase;
            sum.events += if *bad { increase } else { 0.0 };
        }
    }
    Ok(sum)
}

fn samples(series: &Value) -> Result<Vec<(i64, f64)>> {
    let one = |sample: &Value| {
        #[allow(clippy::cast_possible_truncation, reason = "a time in ms")]
        let at = (sample[0].as_f64().context("no time")? * 1_000.0).round() as i64;
        Ok((at, sample[1].as_str().context("no value")?.parse()?))
    };
    series["values"].as_array().into_iter().flatten().map(one).collect()
}

fn increase(samples: &[(i64, f64)], born_late: bool) -> f64 {
    let birth = samples.first().filter(|_| born_late).map_or(0.0, |(_, value)| *value);
    let step = |pair: &[(i64, f64)]| match (pair[0].1, pair[1].1) {
        (before, value) if value >= before => value - before,
        (_, value) => value,
    };
    birth + samples.windows(2).map(step).sum::<f64>()
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

//! Asks Prometheus what it holds, without any code of the product.

use anyhow::{Context, Result, ensure};
use davylamp_api::Instant;
use davylamp_api::run::{Cohort, DecisionRecord, MetricRecord};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The interval of scrapes, ms.
const SCRAPE: i64 = 1_000;

/// The increases of the series of a selector whose later samples lie in (from, until], resets and births counted from 0.
/// Of a pod in `young`, and of others before `after`, those with an earlier sample before that time are left out.
async fn increase(
    url: &str,
    selector: &str,
    record: &DecisionRecord,
    from: Instant,
    until: Instant,
) -> Result<f64> {
    let (from, until) = (from.as_millisecond(), until.as_millisecond());
    let back = 5_000;
    let query = format!("{selector}[{}ms]", until - from + back);
    let path = format!("/api/v1/query?query={}&time={}.{:03}", encoded(&query), until / 1_000, until % 1_000);
    let answer: Value = serde_json::from_str(&get(url, &path).await?)?;
    let series = answer.pointer("/data/result").and_then(Value::as_array).context("no result")?;
    let mut total = 0.0;
    for one in series {
        let pod = one.pointer("/metric/pod").and_then(Value::as_str).unwrap_or_default();
        let after = record.young.get(pod).copied().max(record.after).map_or(0, Instant::as_millisecond);
        let mut before: Option<(i64, f64)> = None;
        for sample in one["values"].as_array().into_iter().flatten() {
            #[allow(clippy::cast_possible_truncation, reason = "a time in ms")]
            let at = (sample[0].as_f64().context("no time")? * 1_000.0).round() as i64;
            let value: f64 = sample[1].as_str().context("no value")?.parse()?;
            // A series that is born counts from 0, at the scrape before.
            let (earlier, base) = before.unwrap_or((at - SCRAPE, 0.0));
            if at > from && at <= until && earlier >= after {
                total += if value >= base { value - base } else { value };
            }
            before = Some((at, value));
        }
    }
    Ok(total)
}

/// What Prometheus holds of the pods of a revision in the window of a decision: 5xx answers of all.
///
/// # Errors
/// Prometheus does not answer, or the decision has no window.
pub async fn cohort(
    url: &str,
    namespace: &str,
    pods: &str,
    record: &DecisionRecord,
    metric: &MetricRecord,
) -> Result<Cohort> {
    let (from, until) = (metric.from.context("no window")?, metric.until.context("no window")?);
    let scope = format!("namespace=\"{namespace}\",pod=~\"{pods}.+\",job=\"pods\"");
    let selector = |code: &str| format!("http_requests_total{{{code}{scope}}}");
    let events = increase(url, &selector("code=~\"5..\","), record, from, until).await?;
    let exposure = increase(url, &selector(""), record, from, until).await?;
    Ok(Cohort { events, exposure })
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

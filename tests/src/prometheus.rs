//! Asks Prometheus what it holds, without any code of the product.

use anyhow::{Context, Result, ensure};
use davylamp_api::Instant;
use davylamp_api::run::Cohort;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The raw samples of a selector in (from, until], with the newest one at or before `from` as the base; the sum of the
/// increases of its series, resets and births counted from 0.
async fn increase(url: &str, selector: &str, from: Instant, until: Instant) -> Result<f64> {
    let (from, until) = (from.as_millisecond(), until.as_millisecond());
    let back = 5_000;
    let query = format!("{selector}[{}ms]", until - from + back);
    let path = format!("/api/v1/query?query={}&time={}.{:03}", encoded(&query), until / 1_000, until % 1_000);
    let answer: Value = serde_json::from_str(&get(url, &path).await?)?;
    let series = answer.pointer("/data/result").and_then(Value::as_array).context("no result")?;
    let mut total = 0.0;
    for one in series {
        let mut before: Option<f64> = None;
        for sample in one["values"].as_array().into_iter().flatten() {
            #[allow(clippy::cast_possible_truncation, reason = "a time in ms")]
            let at = (sample[0].as_f64().context("no time")? * 1_000.0).round() as i64;
            let value: f64 = sample[1].as_str().context("no value")?.parse()?;
            if at > from && at <= until {
                total += match before {
                    Some(before) if value >= before => value - before,
                    // A series that is born, or reset, counts from 0.
                    Some(_) | None => value,
                };
            }
            before = Some(value);
        }
    }
    Ok(total)
}

/// What Prometheus holds of the pods of a revision in a window: 5xx answers of all.
///
/// # Errors
/// Prometheus does not answer.
pub async fn cohort(url: &str, namespace: &str, pods: &str, from: Instant, until: Instant) -> Result<Cohort> {
    let scope = format!("namespace=\"{namespace}\",pod=~\"{pods}.+\",job=\"pods\"");
    let events = increase(url, &format!("http_requests_total{{code=~\"5..\",{scope}}}"), from, until).await?;
    let exposure = increase(url, &format!("http_requests_total{{{scope}}}"), from, until).await?;
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

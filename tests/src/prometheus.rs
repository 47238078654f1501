//! Asks Prometheus what it holds, without any code of the product.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use davylamp_api::Instant;
use davylamp_api::run::{Cohort, DecisionRecord, MetricRecord};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The interval of scrapes of the cluster's Prometheus, ms.
const SCRAPE: i64 = 1_000;
/// A target that was not scraped for so long starts anew: what happened meanwhile is in no increment, ms.
const MEMORY: i64 = 5_000;

/// Of each pod, by the times in ms of a scrape and the one before: what was counted in between.
pub type Grown = BTreeMap<String, BTreeMap<(i64, i64), Cohort>>;

/// Of one series: the value at each scrape, by its time in ms.
type Points = BTreeMap<i64, f64>;

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
    cohort_of_job(url, "pods", namespace, pods, record, metric).await
}

/// As [`cohort`], of another job of Prometheus.
///
/// # Errors
/// Prometheus does not answer, or the decision has no window.
pub async fn cohort_of_job(
    url: &str,
    job: &str,
    namespace: &str,
    pods: &str,
    record: &DecisionRecord,
    metric: &MetricRecord,
) -> Result<Cohort> {
    Ok(sum(&grown_of_job(url, job, namespace, pods, record, metric).await?))
}

/// What grew in the window of a decision, of each pod at each scrape.
///
/// # Errors
/// Prometheus does not answer, or the decision has no window.
pub async fn grown_of_job(
    url: &str,
    job: &str,
    namespace: &str,
    pods: &str,
    record: &DecisionRecord,
    metric: &MetricRecord,
) -> Result<Grown> {
    let (from, until) = (metric.from.context("no window")?, metric.until.context("no window")?);
    let after =
        |pod: &str| record.young.get(pod).copied().max(record.after).map_or(0, Instant::as_millisecond);
    grown(url, &selector(job, namespace, pods), from, until, after).await
}

/// What grew of the first, in each round of scrapes from a moment on in which nothing of the other did. Where Prometheus stops or
/// starts, not all pods are scraped in a round; and a block of evidence begins only with both.
#[must_use]
pub fn alone(grown: &Grown, other: &Grown, from: Instant) -> Vec<Cohort> {
    let rounds = |grown: &Grown| {
        let mut rounds = BTreeMap::<i64, Grown>::new();
        for (pod, growths) in grown {
            for (&(before, at), one) in growths {
                let round = rounds.entry((at - from.as_millisecond() - 1).div_euclid(SCRAPE)).or_default();
                round.entry(pod.clone()).or_default().insert((before, at), *one);
            }
        }
        rounds
    };
    let others = rounds(other);
    rounds(grown).iter().filter(|(round, _)| !others.contains_key(*round)).map(|(_, one)| sum(one)).collect()
}

/// All of it.
#[must_use]
pub fn sum(grown: &Grown) -> Cohort {
    let mut cohort = Cohort::default();
    for one in grown.values().flat_map(BTreeMap::values) {
        cohort.events += one.events;
        cohort.exposure += one.exposure;
    }
    cohort
}

/// The requests to the pods of a revision that Prometheus holds in (from, until].
///
/// # Errors
/// Prometheus does not answer.
pub async fn requests(url: &str, namespace: &str, pods: &str, from: Instant, until: Instant) -> Result<f64> {
    let after = |_: &str| from.as_millisecond();
    Ok(sum(&grown(url, &selector("pods", namespace, pods), from, until, after).await?).exposure)
}

fn selector(job: &str, namespace: &str, pods: &str) -> String {
    format!("http_requests_total{{namespace=\"{namespace}\",pod=~\"{pods}.+\",job=\"{job}\"}}")
}

/// The increases between two scrapes in a row of which the later one lies in (from, until], and the earlier one not
/// before `after` of that pod. A series that is born, or reset, counts from 0.
async fn grown(
    url: &str,
    selector: &str,
    from: Instant,
    until: Instant,
    after: impl Fn(&str) -> i64,
) -> Result<Grown> {
    let (from, until) = (from.as_millisecond(), until.as_millisecond());
    let query = format!("{selector}[{}ms]", until - from + MEMORY);
    let path = format!("/api/v1/query?query={}&time={}.{:03}", encoded(&query), until / 1_000, until % 1_000);
    let answer: Value = serde_json::from_str(&get(url, &path).await?)?;
    let mut pods: BTreeMap<String, Vec<(bool, Points)>> = BTreeMap::new();
    for one in answer.pointer("/data/result").and_then(Value::as_array).context("no result")? {
        let label = |name: &str| one["metric"][name].as_str().unwrap_or_default();
        let series = (label("code").starts_with('5'), points(one)?);
        pods.entry(label("pod").to_owned()).or_default().push(series);
    }
    let mut grown = Grown::new();
    for (pod, series) in &pods {
        let scrapes: BTreeSet<i64> = series.iter().flat_map(|(_, points)| points.keys().copied()).collect();
        for (before, at) in scrapes.iter().zip(scrapes.iter().skip(1)) {
            if *at <= from || *at > until || *before < after(pod) || at - before >= MEMORY {
                continue;
            }
            let one = grown.entry(pod.clone()).or_default().entry((*before, *at)).or_default();
            for (failed, points) in series {
                let Some(value) = points.get(at) else { continue };
                let base = points.get(before).filter(|base| *base <= value).unwrap_or(&0.0);
                one.exposure += value - base;
                one.events += if *failed { value - base } else { 0.0 };
            }
        }
    }
    Ok(grown)
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

//! The query API of Prometheus and of what speaks like it.
//!
//! Asks one question and reads one answer: in bounded time, of bounded size, from the address that the admin wrote and no
//! other. No part of a body that is not understood leaves this module.

use std::borrow::Cow;

use davylamp_api::MetricSourceSpec;
use davylamp_api::source::Limits;
use davylamp_engine::observed::Bucket;
use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::{StatusCode, Url};
use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::access::{Access, Addresses, Pass, exchange};
use super::{Answer, Labels, MetricsApi, Network, QueryError, Series};

/// Prometheus, over HTTP.
#[derive(Debug)]
pub struct PrometheusApi {
    access: Access,
}

impl PrometheusApi {
    /// For all sources. Their secrets are read in the `namespace`; `allowed` are addresses that are else refused. The process
    /// has a default provider of cryptography by then.
    #[must_use]
    pub fn new(client: kube::Client, namespace: String, allowed: Vec<Network>) -> Self {
        Self { access: Access::new(Some(client), namespace, Addresses::of_system(allowed)) }
    }

    /// For a person at a terminal, who has no secrets for it and may ask whatever address they reach.
    #[must_use]
    pub fn of_terminal() -> Self {
        Self { access: Access::new(None, String::new(), Addresses::of_system(Network::ALL.to_vec())) }
    }

    async fn ask(&self, source: &MetricSourceSpec, promql: &str, at_ms: i64) -> Result<Answer, QueryError> {
        let url = address(&source.url)?;
        let limits = source.limits();
        let seconds = format!("{}.{:03}", at_ms.div_euclid(1000), at_ms.rem_euclid(1000));
        let timeout = format!("{}ms", limits.timeout().as_millis());
        // The last two are VictoriaMetrics': by default it repeats older values for the newest 30 seconds, and rounds times.
        let form = [
            ("query", promql),
            ("time", &seconds),
            ("timeout", &timeout),
            ("nocache", "1"),
            ("latency_offset", "1ms"),
        ];
        let pass = self.access.pass(source, false).await?;
        let (mut status, mut body) = self.send(&url, &form, limits, &pass).await?;
        if is_refusal(status) {
            // Perhaps the credentials have changed.
            let renewed = self.access.pass(source, true).await?;
            if renewed != pass {
                (status, body) = self.send(&url, &form, limits, &renewed).await?;
            }
        }
        answer(status, &body)
    }

    async fn send(
        &self,
        url: &Url,
        form: &[(&str, &str)],
        limits: Limits,
        pass: &Pass,
    ) -> Result<(StatusCode, Vec<u8>), QueryError> {
        let request = self.access.post(url.clone(), pass).await?;
        exchange(request.form(form).timeout(limits.timeout()), limits.body()).await
    }
}

impl MetricsApi for PrometheusApi {
    fn query<'a>(
        &'a self,
        source: &'a MetricSourceSpec,
        promql: &'a str,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<Answer, QueryError>> {
        self.ask(source, promql, at_ms).boxed()
    }
}

fn is_refusal(status: StatusCode) -> bool {
    matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN)
}

fn address(base: &str) -> Result<Url, QueryError> {
    let mut url = Url::parse(base).map_err(|_| QueryError::Address)?;
    let anonymous = url.username().is_empty() && url.password().is_none();
    if !matches!(url.scheme(), "http" | "https") || !anonymous {
        return Err(QueryError::Address);
    }
    let path = format!("{}/api/v1/query", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

fn answer(status: StatusCode, body: &[u8]) -> Result<Answer, QueryError> {
    if is_refusal(status) {
        return Err(QueryError::Unauthorized(status.as_u16()));
    }
    let read: Body<Vec<Matrix>> = serde_json::from_slice(body).map_err(|_| unread(status, body))?;
    let partial = read.is_partial();
    let series = result(status, read)?.into_iter().map(|one| Series {
        labels: one.metric,
        samples: one.values.into_iter().chain(one.value).map(|Sample(at, value)| (at, value)).collect(),
        histograms: one.histograms.into_iter().map(|HistogramSample(at, buckets)| (at, buckets)).collect(),
    });
    Ok(Answer { series: series.collect(), partial })
}

/// The result, if it is one of series.
fn result<R>(status: StatusCode, body: Body<R>) -> Result<R, QueryError> {
    if body.status == Status::Error {
        let kind = refusal(body.error_type.as_deref());
        return Err(QueryError::Refused { status: status.as_u16(), kind });
    }
    if !status.is_success() {
        return Err(QueryError::Http(status.as_u16()));
    }
    let data = body.data.ok_or(QueryError::NotPrometheus)?;
    match data.result_type.as_str() {
        "matrix" | "vector" => Ok(data.result),
        "scalar" => Err(QueryError::WrongType("scalar")),
        "string" => Err(QueryError::WrongType("string")),
        _ => Err(QueryError::NotPrometheus),
    }
}

/// Why a body is none of series: it is read once more, without them.
fn unread(status: StatusCode, body: &[u8]) -> QueryError {
    match serde_json::from_slice::<Body<IgnoredAny>>(body) {
        Ok(outline) => result(status, outline).err().unwrap_or(QueryError::NotPrometheus),
        Err(_) if !status.is_success() => QueryError::Http(status.as_u16()),
        Err(error) if error.is_data() => QueryError::NotPrometheus,
        Err(_) => QueryError::NotJson { html: body.trim_ascii_start().starts_with(b"<") },
    }
}

/// Only words that are known to be Prometheus' own are repeated.
fn refusal(kind: Option<&str>) -> &'static str {
    const KNOWN: [&str; 8] = [
        "bad_data",
        "canceled",
        "execution",
        "internal",
        "not_acceptable",
        "not_found",
        "timeout",
        "unavailable",
    ];
    KNOWN.into_iter().find(|known| Some(*known) == kind).unwrap_or("error")
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<R> {
    status: Status,
    data: Option<Data<R>>,
    error_type: Option<String>,
    warnings: Option<Vec<IgnoredAny>>,
    /// `VictoriaMetrics` says so when a storage node did not answer.
    #[serde(default)]
    is_partial: bool,
}

impl<R> Body<R> {
    fn is_partial(&self) -> bool {
        self.is_partial || self.warnings.as_ref().is_some_and(|warnings| !warnings.is_empty())
    }
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Status {
    Success,
    Error,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Data<R> {
    result_type: String,
    result: R,
}

#[derive(Deserialize)]
struct Matrix {
    metric: Labels,
    #[serde(default)]
    values: Vec<Sample>,
    /// Of a native histogram.
    #[serde(default)]
    histograms: Vec<HistogramSample>,
    /// Of an instant vector, which is a sample each.
    value: Option<Sample>,
}

struct Sample(i64, f64);

impl<'de> Deserialize<'de> for Sample {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (seconds, Number(value)) = Deserialize::deserialize(deserializer)?;
        Ok(Self(milliseconds(seconds), value))
    }
}

struct HistogramSample(i64, Vec<Bucket>);

impl<'de> Deserialize<'de> for HistogramSample {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Histogram {
            /// Absent without observations. Which bound belongs to a bucket comes first.
            #[serde(default)]
            buckets: Vec<(IgnoredAny, Number, Number, Number)>,
        }

        let (seconds, Histogram { buckets }) = Deserialize::deserialize(deserializer)?;
        // The bucket of zeros alone, where the histogram has no threshold for them.
        let zeros = f64::MIN_POSITIVE;
        let bucket = |(_, Number(lower), Number(upper), Number(count))| {
            if lower == 0.0 && upper == 0.0 {
                Bucket { lower: -zeros, upper: zeros, count }
            } else {
                Bucket { lower, upper, count }
            }
        };
        Ok(Self(milliseconds(seconds), buckets.into_iter().map(bucket).collect()))
    }
}

/// A number in a string.
struct Number(f64);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

        let Text(text) = Text::deserialize(deserializer)?;
        text.parse().map(Self).map_err(de::Error::custom)
    }
}

/// Saturates; no such time is in a window.
#[allow(clippy::cast_possible_truncation, reason = "a cast saturates")]
fn milliseconds(seconds: f64) -> i64 {
    (seconds * 1_000.0).round() as i64
}

#[cfg(test)]
mod tests;

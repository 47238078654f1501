//! The query API of Prometheus and of what speaks like it.
//!
//! Asks one question and reads one answer: in bounded time, of bounded size, from the address that the admin wrote and no
//! other. No part of a body that is not understood leaves this module.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use davylamp_api::MetricSourceSpec;
use futures::FutureExt;
use futures::future::BoxFuture;
use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use serde::{Deserialize, Deserializer, de};

use super::{Answer, MetricsApi, QUERY_TIMEOUT, QueryError, Series};

/// Of a body, no more is read.
const LARGEST_BODY: usize = 4 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Prometheus, over HTTP.
#[derive(Clone, Debug)]
pub struct PrometheusApi {
    client: Client,
}

impl PrometheusApi {
    /// A client for all sources. The process has a default provider of cryptography by then.
    pub fn new() -> Result<Self, reqwest::Error> {
        Self::with_timeout(QUERY_TIMEOUT)
    }

    fn with_timeout(timeout: Duration) -> Result<Self, reqwest::Error> {
        let client = builder(timeout).build().or_else(|error| {
            // An image without certificates can still ask a source in the cluster by plain HTTP.
            tracing::warn!(%error, "no certificates of authorities found: sources cannot be asked by https");
            builder(timeout).tls_certs_only([]).build()
        })?;
        Ok(Self { client })
    }

    async fn ask(&self, source: &MetricSourceSpec, promql: &str, at_ms: i64) -> Result<Answer, QueryError> {
        let url = address(&source.url)?;
        let seconds = format!("{}.{:03}", at_ms.div_euclid(1000), at_ms.rem_euclid(1000));
        let timeout = format!("{}s", QUERY_TIMEOUT.as_secs());
        let form = [("query", promql), ("time", &seconds), ("timeout", &timeout)];
        let response = self.client.post(url).form(&form).send().await.map_err(|e| broken(&e))?;
        let status = response.status();
        if status.is_redirection() {
            return Err(QueryError::Redirect(status.as_u16()));
        }
        answer(status, &body(response).await?)
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

fn builder(timeout: Duration) -> ClientBuilder {
    Client::builder()
        .user_agent(concat!("davylamp/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(CONNECT_TIMEOUT)
        .timeout(timeout)
        .redirect(redirect::Policy::none())
        // The address that is asked is the one that the admin wrote, whatever the environment says.
        .no_proxy()
}

fn address(base: &str) -> Result<Url, QueryError> {
    let mut url = Url::parse(base).map_err(|_| QueryError::Address)?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(QueryError::Address);
    }
    let path = format!("{}/api/v1/query", url.path().trim_end_matches('/'));
    url.set_path(&path);
    Ok(url)
}

async fn body(mut response: Response) -> Result<Vec<u8>, QueryError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| broken(&e))? {
        if body.len() + chunk.len() > LARGEST_BODY {
            return Err(QueryError::TooLarge(LARGEST_BODY));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// Without the address, which is the admin's to know.
fn broken(error: &reqwest::Error) -> QueryError {
    if error.is_timeout() && !error.is_connect() {
        return QueryError::Timeout;
    }
    if error.is_timeout() {
        return QueryError::Unreachable(format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()));
    }
    let mut cause: &dyn Error = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    // An error without a cause names the address.
    let found = error.source().is_some();
    QueryError::Unreachable(if found { cause.to_string() } else { "the connection failed".to_owned() })
}

fn answer(status: StatusCode, body: &[u8]) -> Result<Answer, QueryError> {
    let outline: Outline = match serde_json::from_slice(body) {
        Ok(outline) => outline,
        Err(_) if !status.is_success() => return Err(QueryError::Http(status.as_u16())),
        Err(error) if error.is_data() => return Err(QueryError::NotPrometheus),
        Err(_) => {
            let html = body.trim_ascii_start().starts_with(b"<");
            return Err(QueryError::NotJson { html });
        }
    };
    if outline.status == Status::Error {
        let kind = refusal(outline.error_type.as_deref());
        return Err(QueryError::Refused { status: status.as_u16(), kind });
    }
    if !status.is_success() {
        return Err(QueryError::Http(status.as_u16()));
    }
    match outline.data.map(|data| data.result_type).as_deref() {
        Some("matrix" | "vector") => {}
        Some("scalar") => return Err(QueryError::WrongType("scalar")),
        Some("string") => return Err(QueryError::WrongType("string")),
        Some(_) | None => return Err(QueryError::NotPrometheus),
    }
    let full: Full = serde_json::from_slice(body).map_err(|_| QueryError::NotPrometheus)?;
    let mut warnings = outline.warnings.unwrap_or_default();
    if outline.is_partial {
        warnings.push("isPartial".to_owned());
    }
    let series = full.data.result.into_iter().map(|one| Series {
        labels: one.metric,
        samples: one.values.into_iter().chain(one.value).map(|Sample(at, value)| (at, value)).collect(),
    });
    Ok(Answer { series: series.collect(), warnings })
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

/// All but the series: read first, so that an answer of another type is named.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Outline {
    status: Status,
    data: Option<OutlineData>,
    error_type: Option<String>,
    warnings: Option<Vec<String>>,
    /// `VictoriaMetrics` says so when a storage node did not answer.
    #[serde(default)]
    is_partial: bool,
}

#[derive(Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Status {
    Success,
    Error,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OutlineData {
    result_type: String,
}

#[derive(Deserialize)]
struct Full {
    data: FullData,
}

#[derive(Deserialize)]
struct FullData {
    result: Vec<Matrix>,
}

#[derive(Deserialize)]
struct Matrix {
    metric: BTreeMap<String, String>,
    /// Absent for native histograms, which are no counters.
    #[serde(default)]
    values: Vec<Sample>,
    /// Of an instant vector, which is a sample each.
    value: Option<Sample>,
}

struct Sample(i64, f64);

impl<'de> Deserialize<'de> for Sample {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Pair<'a>(f64, #[serde(borrow)] Cow<'a, str>);

        let Pair(seconds, value) = Pair::deserialize(deserializer)?;
        let value = value.parse().map_err(de::Error::custom)?;
        #[allow(clippy::cast_possible_truncation, reason = "saturates; no such time is in a window")]
        let at = (seconds * 1000.0).round() as i64;
        Ok(Self(at, value))
    }
}

#[cfg(test)]
mod tests;

//! From the counters of a metric source to increments: what the engine is told of the metrics of a Rollout.
//!
//! [`sampler`] decides when to ask, `history` which part of the past, `batch` asks for all metrics of a Rollout at once,
//! [`scope`] writes what is asked, with `cohorts` where a gateway counts, [`prometheus`] carries it with what `access` knows of
//! the source and reads `labels`, [`increments`] folds the answers, and `histograms` those of a distribution. [`suggestion`] looks for a source where there is none.
//! Nothing here decides anything about a Rollout.

mod access;
mod batch;
mod cohorts;
mod histograms;
mod history;
pub mod increments;
mod labels;
pub mod prometheus;
pub mod sampler;
pub mod scope;
pub mod suggestion;

use std::fmt;
use std::sync::Arc;

use davylamp_api::MetricSourceSpec;
pub use davylamp_engine::observed::Bucket;
use futures::future::BoxFuture;
use thiserror::Error;
use tokio::time::Instant;

pub use self::access::{Network, NoNetwork, SecretError, TokenError};
pub use self::batch::{Failure, fetch_once};
pub use self::history::WantedHistory;
pub use self::labels::Labels;
pub use self::prometheus::PrometheusApi;
pub use self::sampler::{Sampler, Wanted};
use self::scope::ScopeError;
use crate::telemetry::Telemetry;

/// Answers instant queries.
pub trait MetricsApi: Send + Sync {
    /// The value of the expression at a time in ms since 1970: the series of a range selector, or an instant vector.
    fn query<'a>(
        &'a self,
        source: &'a MetricSourceSpec,
        promql: &'a str,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<Answer, QueryError>>;
}

/// Counts the queries of another.
pub struct Counted {
    api: Arc<dyn MetricsApi>,
    telemetry: Telemetry,
}

impl Counted {
    /// Counts what this one answers.
    #[must_use]
    pub fn new(api: Arc<dyn MetricsApi>, telemetry: Telemetry) -> Self {
        Self { api, telemetry }
    }
}

impl fmt::Debug for Counted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counted").finish_non_exhaustive()
    }
}

impl MetricsApi for Counted {
    fn query<'a>(
        &'a self,
        source: &'a MetricSourceSpec,
        promql: &'a str,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<Answer, QueryError>> {
        Box::pin(async move {
            let start = Instant::now();
            let answer = self.api.query(source, promql, at_ms).await;
            self.telemetry
                .queried(answer.as_ref().map_or_else(QueryError::reason, |_| "ok"), start.elapsed());
            answer
        })
    }
}

/// The answer to a range selector; to an instant vector it is series of one sample.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// In no particular order.
    pub series: Vec<Series>,
    /// The source says that something may be missing in it.
    pub partial: bool,
}

/// A series and its samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its labels, its name among them.
    pub labels: Labels,
    /// Times in ms since 1970, and values.
    pub samples: Vec<(i64, f64)>,
    /// The same of a native histogram: the buckets with observations.
    pub histograms: Vec<(i64, Vec<Bucket>)>,
}

/// Why there is no answer that can be used. Of a response's body, only labels of its series are in it.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum QueryError {
    /// The address of the source is none.
    #[error("spec.url is no http or https address: write one like http://prometheus.monitoring:9090")]
    Address,
    /// There was no connection, or it broke.
    #[error("cannot be reached: {0}")]
    Unreachable(String),
    /// It took too long.
    #[error("did not answer within spec.limits.timeout")]
    Timeout,
    /// It is where nobody's metrics are.
    #[error(
        "is at a loopback, link-local or metadata address, which is refused: if that is meant, list it in --allow-addresses of the controller"
    )]
    RefusedAddress,
    /// There was no connection that can be trusted.
    #[error("is not trusted: {0}")]
    Tls(&'static str),
    /// A secret cannot be used.
    #[error(transparent)]
    Secret(Box<SecretError>),
    /// There is no token to ask with.
    #[error("no token from spec.authentication.oauth2.tokenUrl: {0}")]
    Token(#[from] TokenError),
    /// A header cannot be sent.
    #[error("no such header can be sent: correct spec.headers and spec.tenant")]
    Header,
    /// It sends the reader elsewhere.
    #[error("answered with a redirect (HTTP {0}), which is not followed: write the final address")]
    Redirect(u16),
    /// It refuses the query.
    #[error("refused the query: {kind} (HTTP {status})")]
    Refused {
        /// The status of the response.
        status: u16,
        /// The kind of error in Prometheus' own words.
        kind: &'static str,
    },
    /// The credentials are not good enough.
    #[error("answered HTTP {0}: it wants other credentials than spec.authentication and spec.tenant give")]
    Unauthorized(u16),
    /// Something refuses the request before any query is read.
    #[error("answered HTTP {0}: is the URL that of Prometheus?")]
    Http(u16),
    /// The body is no JSON.
    #[error("answered {}, not JSON: is the URL that of Prometheus?", if *.html { "HTML" } else { "something" })]
    NotJson {
        /// It looks like a page.
        html: bool,
    },
    /// The body is JSON, but not of this interface.
    #[error("answered JSON that is not of the query API: is the URL that of Prometheus?")]
    NotPrometheus,
    /// The result is neither of a range selector nor an instant vector.
    #[error("answered with a {0} where samples were asked for")]
    WrongType(&'static str),
    /// The body is too large.
    #[error(
        "answered more than {} MiB: select fewer series, with more matchers or from a recording rule",
        .0 >> 20
    )]
    TooLarge(usize),
    /// There are too many series.
    #[error("{series} series of {pods} pods, more than {most} a pod: {}", narrower(.label.as_deref()))]
    TooManySeries {
        /// How many there are.
        series: usize,
        /// Of so many pods.
        pods: usize,
        /// How many a pod may have.
        most: usize,
        /// The label with the most values.
        label: Option<String>,
    },
    /// There are too many samples.
    #[error(
        "more than {0} samples in one window: select fewer series, with more matchers or from a recording rule"
    )]
    TooManySamples(usize),
    /// The source says that a part of the data is missing.
    #[error(
        "answered with a warning, so a part of the data may be missing: ask it for the metric by hand to read that"
    )]
    Partial,
    /// The selector cannot be used.
    #[error(transparent)]
    Selector(#[from] ScopeError),
    /// The answers are no ratio.
    #[error(transparent)]
    Unmatched(increments::Unmatched),
    /// An expression has several values.
    #[error("{0} series where one number is wanted: aggregate them, as by sum(..) or max(..)")]
    NotOneNumber(usize),
    /// The series of one target have different buckets, so that they cannot be added.
    #[error(
        "the series of one pod have different buckets: select those of one layout, as by route, or give all the same"
    )]
    MixedBuckets,
    /// The histogram has other buckets.
    #[error("the histogram has no bucket with the bound of slowerThan{}", others(.0))]
    NoBucket(Vec<davylamp_api::scalar::Duration>),
}

impl QueryError {
    /// One word for conditions and metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Address => "InvalidAddress",
            Self::Unreachable(_) => "Unreachable",
            Self::Timeout => "Timeout",
            Self::RefusedAddress => "RefusedAddress",
            Self::Tls(_) => "NotTrusted",
            Self::Secret(_) => "SecretUnusable",
            Self::Token(_) => "NoToken",
            Self::Header => "InvalidHeader",
            Self::Redirect(_) => "Redirect",
            Self::Refused { .. } => "Refused",
            Self::Unauthorized(_) => "Unauthorized",
            Self::Http(_) => "HttpError",
            Self::NotJson { .. } | Self::NotPrometheus | Self::WrongType(_) => "NotPrometheus",
            Self::TooLarge(_) | Self::TooManySeries { .. } | Self::TooManySamples(_) => "TooWide",
            Self::Partial => "PartialAnswer",
            Self::Selector(_) => "InvalidSelector",
            Self::Unmatched(_) => "TargetsDiffer",
            Self::NotOneNumber(_) => "NotOneNumber",
            Self::MixedBuckets => "MixedBuckets",
            Self::NoBucket(_) => "NoBucket",
        }
    }

    /// There are more series than may be read one by one, or their answer is too long.
    const fn has_too_many_series(&self) -> bool {
        matches!(self, Self::TooManySeries { .. } | Self::TooLarge(_))
    }
}

fn others(bounds: &[davylamp_api::scalar::Duration]) -> String {
    let bounds: Vec<_> = bounds.iter().map(ToString::to_string).collect();
    if bounds.is_empty() { String::new() } else { format!(": write one of {}", bounds.join(", ")) }
}

fn narrower(label: Option<&str>) -> String {
    match label {
        Some(label) => {
            format!("record `sum without ({label}) (..)` and select that, or match fewer values of {label}")
        }
        None => "select fewer series with more matchers".to_owned(),
    }
}

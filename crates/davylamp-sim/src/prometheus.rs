//! The controller's way to the metrics of the world, with what breaks on it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use davylamp_api::MetricSourceSpec;
use davylamp_controller::metrics::{Answer, Bucket, MetricsApi, QueryError, Series};
use davylamp_world::World;
use futures::future::BoxFuture;

use crate::faults::Faults;

/// A Prometheus that has scraped the pods of a world.
#[derive(Debug)]
pub(crate) struct Prometheus {
    world: World,
    faults: Faults,
    /// Queries that it could not understand: each is told once.
    told: Mutex<BTreeSet<String>>,
}

impl Prometheus {
    pub(crate) const fn new(world: World, faults: Faults) -> Self {
        Self { world, faults, told: Mutex::new(BTreeSet::new()) }
    }

    async fn ask(&self, promql: &str, at_ms: i64) -> Result<Answer, QueryError> {
        let Some(after) = self.faults.metrics_after() else {
            return Err(QueryError::Unreachable("connection refused".to_owned()));
        };
        if !after.is_zero() {
            tokio::time::sleep(after).await;
        }
        let series = self.world.query(promql, at_ms).map_err(|error| {
            let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
            if told.insert(error.clone()) {
                self.faults.note(format!("the simulated Prometheus cannot answer: {error}"));
            }
            QueryError::Refused { status: 400, kind: "bad_data" }
        })?;
        let series = series.into_iter().map(|one| {
            let bucket =
                |b: davylamp_world::Bucket| Bucket { lower: b.lower, upper: b.upper, count: b.count };
            let histograms = one.histograms.into_iter();
            let histograms = histograms.map(|(at, one)| (at, one.buckets.into_iter().map(bucket).collect()));
            Series {
                labels: one.labels.iter().collect(),
                samples: one.samples,
                histograms: histograms.collect(),
            }
        });
        Ok(Answer { series: series.collect(), partial: false })
    }
}

impl MetricsApi for Prometheus {
    fn query<'a>(
        &'a self,
        _: &'a MetricSourceSpec,
        promql: &'a str,
        at_ms: i64,
    ) -> BoxFuture<'a, Result<Answer, QueryError>> {
        Box::pin(self.ask(promql, at_ms))
    }
}

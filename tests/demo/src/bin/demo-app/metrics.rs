//! What the application tells Prometheus. A series of `http_requests_total` begins with the first answer of its
//! code, as in most services: before its first error the application has no series of errors.

use std::time::Duration;
use std::{fmt, fs};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::{Registry, Unit};

/// The media type of [`Metrics::exposition`].
pub(crate) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

const BUCKETS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

#[derive(Debug, Clone, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Code {
    code: u16,
}

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<Code, Counter>,
    duration: Histogram,
    signups: Counter,
    in_flight: Gauge,
    memory: Gauge,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::default();
        let requests = Family::default();
        registry.register("http_requests", "Requests answered", requests.clone());
        let duration = Histogram::new(BUCKETS);
        registry.register_with_unit(
            "http_request_duration",
            "Time from a request to its answer",
            Unit::Seconds,
            duration.clone(),
        );
        let signups = Counter::default();
        registry.register("signups", "Requests that signed up", signups.clone());
        let in_flight = Gauge::default();
        registry.register("http_requests_in_flight", "Requests not answered yet", in_flight.clone());
        let memory = Gauge::default();
        let help = "Memory of the process that is in use";
        registry.register_with_unit("process_resident_memory", help, Unit::Bytes, memory.clone());
        Self { registry, requests, duration, signups, in_flight, memory }
    }

    /// Counts a request as in flight until the guard is dropped.
    pub(crate) fn begin(&self) -> InFlight<'_> {
        self.in_flight.inc();
        InFlight(&self.in_flight)
    }

    pub(crate) fn answered(&self, code: u16, duration: Duration) {
        self.requests.get_or_create(&Code { code }).inc();
        self.duration.observe(duration.as_secs_f64());
    }

    pub(crate) fn signed_up(&self) {
        self.signups.inc();
    }

    /// Everything as text.
    pub(crate) fn exposition(&self) -> Result<String, fmt::Error> {
        if let Some(bytes) = resident() {
            self.memory.set(bytes);
        }
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// As the system says, in bytes.
fn resident() -> Option<i64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse::<i64>().ok()?.checked_mul(1_024)
}

/// A request that is in flight; also one whose client has gone ends by its drop.
#[derive(Debug)]
pub(crate) struct InFlight<'a>(&'a Gauge);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_has_a_series_from_its_first_answer_on() {
        let metrics = Metrics::new();
        assert!(!metrics.exposition().unwrap().contains("http_requests_total"));
        metrics.answered(200, Duration::from_millis(3));
        let text = metrics.exposition().unwrap();
        assert!(text.contains("http_requests_total{code=\"200\"} 1\n"), "{text}");
        assert!(!text.contains("code=\"500\""), "{text}");
        assert!(text.contains("http_request_duration_seconds_bucket{le=\"0.005\"} 1\n"), "{text}");
        assert!(text.contains("http_request_duration_seconds_bucket{le=\"0.0025\"} 0\n"), "{text}");
        assert!(text.contains("signups_total 0\n"), "{text}");
    }

    #[test]
    fn a_request_is_in_flight_until_its_guard_is_dropped() {
        let metrics = Metrics::new();
        let in_flight = metrics.begin();
        assert!(metrics.exposition().unwrap().contains("http_requests_in_flight 1\n"));
        drop(in_flight);
        assert!(metrics.exposition().unwrap().contains("http_requests_in_flight 0\n"));
    }
}

//! The account of a run. It takes what happened to each request and gives the lines to print; it reads no clock.

use std::mem;
use std::time::Duration;

use davylamp_demo::report::{Counts, Failure, Latency, Progress, Summary};
use jiff::Timestamp;

/// How many distinct reasons of failures are kept.
const REASONS: usize = 20;

#[derive(Debug, Default)]
pub(crate) struct Tally {
    /// Since the line before.
    interval: Counts,
    /// Until the line before.
    settled: Counts,
    failures: Vec<Failure>,
    latencies: Vec<Duration>,
}

impl Tally {
    pub(crate) fn sent(&mut self) {
        self.interval.sent += 1;
    }

    pub(crate) fn late(&mut self, requests: u64) {
        self.interval.late += requests;
    }

    pub(crate) fn answered(&mut self, version: &str, status: u16, latency: Duration) {
        self.interval.count_answer(version, status);
        self.latencies.push(latency);
    }

    pub(crate) fn failed(&mut self, reason: String, now: Timestamp) {
        self.interval.failed += 1;
        if let Some(failure) = self.failures.iter_mut().find(|failure| failure.reason == reason) {
            failure.count += 1;
            failure.last = now;
        } else if self.failures.len() < REASONS {
            self.failures.push(Failure { reason, count: 1, first: now, last: now });
        }
    }

    /// How it stands; the next line's interval begins here.
    pub(crate) fn progress(&mut self, at: Timestamp, elapsed: Duration) -> Progress {
        let interval = mem::take(&mut self.interval);
        self.settled.merge(&interval);
        Progress { at, seconds: millis(elapsed) / 1e3, interval, total: self.settled.clone() }
    }

    /// How it went.
    pub(crate) fn summary(self, elapsed: Duration) -> Summary {
        let Self { interval, settled: mut counts, failures, mut latencies } = self;
        counts.merge(&interval);
        latencies.sort_unstable();
        Summary { counts, failures, latency_ms: latency(&latencies), seconds: millis(elapsed) / 1e3 }
    }
}

/// The quantiles of `sorted` by nearest rank.
fn latency(sorted: &[Duration]) -> Option<Latency> {
    let quantile = |percent: usize| sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1));
    Some(Latency {
        p50: millis(*quantile(50)?),
        p95: millis(*quantile(95)?),
        p99: millis(*quantile(99)?),
        max: millis(*sorted.last()?),
    })
}

/// Milliseconds to the microsecond.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}

#[cfg(test)]
mod tests {
    use super::*;

    const THEN: Timestamp = Timestamp::UNIX_EPOCH;
    const LATER: Timestamp = Timestamp::constant(60, 0);

    #[test]
    fn an_interval_begins_where_the_line_before_ended() {
        let mut tally = Tally::default();
        tally.sent();
        tally.answered("v1", 200, Duration::from_millis(1));
        let first = tally.progress(THEN, Duration::from_secs(1));
        assert_eq!((first.interval.answered, first.total.answered), (1, 1));

        tally.sent();
        tally.answered("v2", 500, Duration::from_millis(1));
        let second = tally.progress(THEN, Duration::from_millis(2001));
        assert_eq!(second.seconds.to_string(), "2.001");
        assert_eq!(second.interval.share("v2"), Some(1.0));
        assert_eq!(second.total.share("v2"), Some(0.5));
    }

    #[test]
    fn the_summary_holds_every_interval() {
        let mut tally = Tally::default();
        tally.sent();
        tally.answered("v1", 200, Duration::from_millis(1));
        let _ = tally.progress(THEN, Duration::from_secs(1));
        tally.sent();
        tally.failed("timeout".to_owned(), THEN);
        tally.late(3);
        let counts = tally.summary(Duration::from_secs(2)).counts;
        assert_eq!((counts.sent, counts.answered, counts.failed, counts.late), (2, 1, 1, 3));
    }

    #[test]
    fn an_error_of_the_application_is_an_answer() {
        let mut tally = Tally::default();
        tally.answered("v1", 500, Duration::from_millis(1));
        let counts = tally.summary(Duration::ZERO).counts;
        assert_eq!((counts.answered, counts.failed), (1, 0));
    }

    #[test]
    fn failures_are_kept_by_reason_and_the_first_only() {
        let mut tally = Tally::default();
        for index in 0..REASONS + 5 {
            tally.failed(format!("reason {index}"), THEN);
        }
        tally.failed("reason 0".to_owned(), LATER);
        let summary = tally.summary(Duration::ZERO);
        assert_eq!(summary.counts.failed, 26);
        assert_eq!(summary.failures.len(), REASONS);
        let first = Failure { reason: "reason 0".to_owned(), count: 2, first: THEN, last: LATER };
        assert_eq!(summary.failures[0], first);
    }

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let latencies: Vec<_> = (1..=100).map(Duration::from_millis).collect();
        assert_eq!(latency(&latencies), Some(Latency { p50: 50.0, p95: 95.0, p99: 99.0, max: 100.0 }));
        let one = latency(&[Duration::from_micros(1500)]);
        assert_eq!(one, Some(Latency { p50: 1.5, p95: 1.5, p99: 1.5, max: 1.5 }));
        assert_eq!(latency(&[]), None);
    }
}

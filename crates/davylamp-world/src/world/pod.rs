//! One pod from within: [`Pod`] takes requests, fails some, counts what an application counts, and remembers what was
//! scraped of it.

use std::collections::VecDeque;

use davylamp_api::scalar::Duration;

use super::Series;
use super::random::Random;
use crate::setting::Version;

/// Upper bounds of the buckets of latency, in seconds; one more has none.
pub(super) const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Scrapes that are remembered: more than any query asks for.
const REMEMBERED: usize = 1_000;

/// What an application counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) good: u64,
    pub(super) failed: u64,
    pub(super) sign_ups: u64,
    /// Not cumulative.
    pub(super) buckets: [u64; BUCKETS.len() + 1],
    pub(super) seconds: f64,
}

/// What one scrape saw.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) at: i64,
    /// From when on a query shows it.
    pub(super) visible: i64,
    pub(super) counters: Counters,
    /// In bytes.
    pub(super) memory: f64,
}

/// One pod from within.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) image: String,
    pub(super) address: String,
    version: Version,
    /// Of requests, in each bucket of latency.
    latencies: [f64; BUCKETS.len() + 1],
    random: Random,
    bad: bool,
    /// When its process began, in ms since 1970.
    started: i64,
    counters: Counters,
    /// Requests since the last draw, in expectation: all, and those that fail.
    expected: (f64, f64),
    pub(super) samples: VecDeque<Sample>,
    pub(super) next_scrape: i64,
}

impl Pod {
    pub(super) fn new(
        image: String,
        address: String,
        version: Version,
        mut random: Random,
        started: i64,
    ) -> Self {
        let bad = version.bad_pods.is_some_and(|bad| random.share() < bad.share.share());
        Self {
            image,
            address,
            latencies: latencies(version.latency, version.latency_spread),
            version,
            random,
            bad,
            started,
            counters: Counters::default(),
            expected: (0.0, 0.0),
            samples: VecDeque::new(),
            next_scrape: i64::MAX,
        }
    }

    /// The chance of a request to fail at this time, where nothing is wrong around it.
    fn errors(&self, at: i64) -> f64 {
        let age = at - self.started;
        let Version { errors, warmup, later, bad_pods, .. } = &self.version;
        let cold = warmup.filter(|w| age < w.last.millis()).map(|w| w.errors);
        let old = later.filter(|l| age >= l.after.millis()).map(|l| l.errors);
        let bad = bad_pods.filter(|_| self.bad).map(|b| b.errors);
        [cold, old, bad].into_iter().flatten().fold(errors.share(), |worst, e| worst.max(e.share()))
    }

    /// So many requests are expected to have come around this time; `around` is the chance to fail for reasons beyond it.
    pub(super) fn take(&mut self, requests: f64, at: i64, around: f64) {
        let failing = 1.0 - (1.0 - self.errors(at)) * (1.0 - around);
        self.expected.0 += requests;
        self.expected.1 += requests * failing;
    }

    /// Makes requests of what was expected; gives how many came and how many of them failed.
    pub(super) fn draw(&mut self) -> (u64, u64) {
        let (requests, failing) = std::mem::take(&mut self.expected);
        if requests <= 0.0 {
            return (0, 0);
        }
        let mut came = 0;
        for (index, share) in self.latencies.into_iter().enumerate() {
            let count = self.random.poisson(requests * share);
            if let Some(bucket) = self.counters.buckets.get_mut(index) {
                *bucket += count;
            }
            came += count;
            self.counters.seconds += as_f64(count) * middle(index);
        }
        let failed = self.random.binomial(came, failing / requests);
        self.counters.failed += failed;
        self.counters.good += came - failed;
        let sign_ups = self.version.sign_ups.share();
        if sign_ups > 0.0 {
            self.counters.sign_ups += self.random.binomial(came - failed, sign_ups);
        }
        (came, failed)
    }

    /// Remembers what a scrape sees now; a lost one sees nothing.
    pub(super) fn scrape(&mut self, at: i64, lost: f64, late: Duration) {
        let (was_lost, lateness) = (self.random.share() < lost, self.random.share());
        if was_lost {
            return;
        }
        #[allow(clippy::cast_possible_truncation, reason = "far below 2^53")]
        let visible = at + (late.as_secs_f64() * 1_000.0 * lateness) as i64;
        let minutes = as_f64((at - self.started).unsigned_abs()) / 60_000.0;
        let memory = (self.version.memory.start + self.version.memory.growth * minutes) * 1_048_576.0;
        if self.samples.len() == REMEMBERED {
            self.samples.pop_front();
        }
        self.samples.push_back(Sample { at, visible, counters: self.counters.clone(), memory });
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
pub(super) const fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The share of requests in each bucket, for a log-normal law.
fn latencies(median: Duration, spread: f64) -> [f64; BUCKETS.len() + 1] {
    let median = median.as_secs_f64().max(1e-6);
    let below = |bound: f64| {
        let z = libm::log(bound / median) / spread.max(1e-3);
        0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)
    };
    let mut shares = [0.0; BUCKETS.len() + 1];
    let mut before = 0.0;
    for (share, bound) in shares.iter_mut().zip(BUCKETS.into_iter().map(Some).chain([None])) {
        let up_to = bound.map_or(1.0, below);
        *share = up_to - before;
        before = up_to;
    }
    shares
}

/// About what a request in this bucket takes, in seconds.
fn middle(index: usize) -> f64 {
    let lower = index.checked_sub(1).and_then(|i| BUCKETS.get(i)).copied().unwrap_or(0.0);
    let upper = BUCKETS.get(index).copied().unwrap_or(20.0);
    f64::midpoint(lower, upper)
}

/// The series of a pod with this name, with the labels that tell them apart: what `shown` admits of the samples after `since`.
pub(super) fn series(pod: &Pod, name: &str, since: i64, shown: impl Fn(&Sample) -> bool) -> Vec<Series> {
    let first = pod.samples.partition_point(|sample| sample.at <= since);
    let samples: Vec<&Sample> = pod.samples.range(first..).filter(|sample| shown(sample)).collect();
    let one = |label: Option<(&str, String)>, value: &dyn Fn(&Sample) -> Option<f64>| {
        let labels = label.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        let samples = samples.iter().filter_map(|s| value(s).map(|value| (s.at, value))).collect();
        Series { labels, samples }
    };
    let count = |n: u64| Some(as_f64(n));
    match name {
        "http_requests_total" => vec![
            one(Some(("code", "200".to_owned())), &|s| count(s.counters.good)),
            // A counter that never counted is not there.
            one(Some(("code", "500".to_owned())), &|s| count(s.counters.failed).filter(|n| *n > 0.0)),
        ],
        "signups_total" => vec![one(None, &|s| count(s.counters.sign_ups))],
        "process_resident_memory_bytes" => vec![one(None, &|s| Some(s.memory))],
        "http_request_duration_seconds_count" => {
            vec![one(None, &|s| count(s.counters.buckets.iter().sum()))]
        }
        "http_request_duration_seconds_sum" => vec![one(None, &|s| Some(s.counters.seconds))],
        "http_request_duration_seconds_bucket" => (0..=BUCKETS.len())
            .map(|last| {
                let bound = BUCKETS.get(last).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
                one(Some(("le", bound)), &|s| count(s.counters.buckets.iter().take(last + 1).sum()))
            })
            .collect(),
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use davylamp_api::scalar::Percent;

    use super::*;
    use crate::setting::{BadPods, Later, Warmup};

    fn pod(version: Version) -> Pod {
        Pod::new("a".to_owned(), "10.0.0.1".to_owned(), version, Random::of(1, "a"), 0)
    }

    fn percent(share: u16) -> Percent {
        Percent::from_basis_points(share * 100)
    }

    #[test]
    fn errors_come_with_age_and_from_around() {
        let version = Version {
            errors: percent(1),
            warmup: Some(Warmup { last: Duration::from_secs(10), errors: percent(50) }),
            later: Some(Later { after: Duration::from_secs(60), errors: percent(9) }),
            bad_pods: Some(BadPods { share: percent(0), errors: percent(99) }),
            ..Version::default()
        };
        let pod = pod(version);
        let errors = [0, 10_000, 59_999, 60_000].map(|at| format!("{:.2}", pod.errors(at)));
        assert_eq!(errors, ["0.50", "0.01", "0.01", "0.09"]);
    }

    #[test]
    fn what_is_counted_is_what_was_expected() {
        let mut pod = pod(Version { errors: percent(10), sign_ups: percent(50), ..Version::default() });
        pod.take(100_000.0, 0, 0.5);
        let (came, failed) = pod.draw();
        // Each within six standard deviations.
        assert!((98_100..=101_900).contains(&came), "{came}");
        assert!((54_000..=56_000).contains(&failed), "{failed}");
        assert_eq!(pod.counters.good + pod.counters.failed, pod.counters.buckets.iter().sum::<u64>());
        let middle: u64 = pod.counters.buckets.iter().take(6).sum();
        assert!((49_000..=51_000).contains(&middle), "the median is 50 ms: {middle} below it");
        assert_eq!(pod.draw(), (0, 0));
    }

    #[test]
    fn a_failure_has_no_series_before_the_first() {
        let mut pod = pod(Version::default());
        pod.take(10.0, 0, 0.0);
        pod.draw();
        pod.scrape(1_000, 0.0, Duration::default());
        let series = series(&pod, "http_requests_total", 0, |_| true);
        let lengths: Vec<_> = series.iter().map(|one| (&one.labels["code"], one.samples.len())).collect();
        assert_eq!(lengths, [(&"200".to_owned(), 1), (&"500".to_owned(), 0)]);
    }
}

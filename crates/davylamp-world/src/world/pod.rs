//! One pod from within: [`Pod`] takes requests, fails some, counts what an application counts, and remembers what was
//! scraped of it.

use std::collections::VecDeque;

use davylamp_api::scalar::Duration;

use super::Series;
use super::native::Native;
use super::random::Random;
use crate::setting::{self, Breaks, Memory, Version};

/// Upper bounds of the buckets of latency, in seconds; one more has none.
pub(super) const BUCKETS: [f64; 13] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// What kube-state-metrics says of restarts.
pub(super) const RESTARTS: &str = "kube_pod_container_status_restarts_total";
/// Scrapes that are remembered: twelve hours of them, every ten seconds.
const REMEMBERED: usize = 4_320;

/// What an application counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counters {
    pub(super) good: u64,
    pub(super) failed: u64,
    pub(super) sign_ups: u64,
    /// Of the good ones, those of probes.
    probes: u64,
    /// Not cumulative.
    pub(super) buckets: [u64; BUCKETS.len() + 1],
    pub(super) seconds: f64,
    /// Of each endpoint, if there are any: good and failed.
    endpoints: Vec<(u64, u64)>,
    /// Of the native histogram, if there is one.
    native: Vec<u64>,
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
    /// None of the above is known while the process is down.
    up: bool,
    pub(super) restarts: u32,
}

/// An endpoint of a pod.
#[derive(Debug)]
struct Endpoint {
    path: String,
    share: f64,
    dependency: Option<String>,
    /// The chance of a request to fail, if that is more than anywhere else.
    errors: f64,
    /// Requests since the last draw that fail, in expectation.
    failing: f64,
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
    /// What its share of failures is multiplied by.
    effect: f64,
    /// When its process began, in ms since 1970.
    started: i64,
    counters: Counters,
    /// Requests since the last draw, in expectation: all, and those that fail.
    expected: (f64, f64),
    /// What came and failed since the last draw that was asked for, before the last restart.
    before: (u64, u64),
    endpoints: Vec<Endpoint>,
    /// Which endpoint a request is for, and whether it fails there.
    choices: Random,
    native: Option<Native>,
    /// How often its process began again, as its status says.
    pub(super) restarts: u32,
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
        let spread = version.pod_effect;
        let effect = if spread > 0.0 { libm::exp(spread * random.normal()) } else { 1.0 };
        Self {
            image,
            address,
            latencies: latencies(version.latency, version.latency_spread),
            version,
            random,
            bad,
            effect,
            started,
            counters: Counters::default(),
            expected: (0.0, 0.0),
            before: (0, 0),
            endpoints: Vec::new(),
            choices: Random::of(0, ""),
            native: None,
            restarts: 0,
            samples: VecDeque::new(),
            next_scrape: i64::MAX,
        }
    }

    /// What its version does to all when it has enough of the requests.
    pub(super) const fn harm(&self) -> Option<Breaks> {
        self.version.breaks
    }

    /// It serves these endpoints, and `/`.
    pub(super) fn with_endpoints(mut self, endpoints: &[setting::Endpoint], choices: Random) -> Self {
        if endpoints.is_empty() {
            return self;
        }
        let sum: u32 = endpoints.iter().map(|endpoint| u32::from(endpoint.share.basis_points())).sum();
        let whole = f64::from(sum.max(10_000));
        let serve = |path: &str, share: f64, dependency: Option<&String>| Endpoint {
            path: path.to_owned(),
            share: share / whole,
            dependency: dependency.cloned(),
            errors: self.version.endpoints.get(path).map_or(0.0, |errors| errors.share()),
            failing: 0.0,
        };
        let named = endpoints.iter().map(|endpoint| {
            let share = f64::from(endpoint.share.basis_points());
            serve(&endpoint.path, share, endpoint.dependency.as_ref())
        });
        let mut served: Vec<Endpoint> = named.collect();
        let rest = serve("/", f64::from(10_000_u32.saturating_sub(sum)), None);
        match served.iter_mut().find(|endpoint| endpoint.path == rest.path) {
            Some(root) => root.share += rest.share,
            None if rest.share > 0.0 => served.push(rest),
            None => {}
        }
        self.endpoints = served;
        self.choices = choices;
        self
    }

    /// It serves a native histogram.
    pub(super) fn with_native(mut self, random: Random) -> Self {
        let Version { latency, latency_spread, .. } = self.version;
        self.native = Some(Native::new(|bound| below(latency, latency_spread, bound), random));
        self
    }

    /// Probes until the next scrape, at a constant rate since the process began.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a cast saturates")]
    pub(super) fn probe(&mut self, per_second: f64) {
        let all = (as_f64(self.next_scrape.saturating_sub(self.started).unsigned_abs()) / 1_000.0
            * per_second) as u64;
        let new = all.saturating_sub(self.counters.probes);
        self.counters.probes = all;
        self.counters.good += new;
        self.counters.buckets[0] += new;
    }

    /// Its process ends, and begins again at this time: all is counted anew.
    pub(super) fn restart(&mut self, at: i64) {
        self.before = self.draw();
        self.counters = Counters::default();
        self.started = at;
    }

    /// When its memory has reached the limit.
    pub(super) fn full(&self) -> Option<i64> {
        let Memory { start, growth, limit, .. } = self.version.memory;
        let room = limit? / self.effect - start;
        let minutes = if room > 0.0 { room / growth } else { 0.0 };
        #[allow(clippy::cast_possible_truncation, reason = "a length of time, or the longest of all")]
        (minutes >= 0.0).then(|| self.started.saturating_add((minutes * 60_000.0) as i64))
    }

    /// When a process that begins at this time ends for no reason that is known.
    pub(super) fn breaks(&self, begins: i64, random: &mut Random) -> Option<i64> {
        #[allow(clippy::cast_possible_truncation, reason = "a length of time")]
        self.version.restarts.map(|r| begins + random.exponential(r.every.as_secs_f64() * 1_000.0) as i64)
    }

    /// The chance of a request to fail at this time, where nothing is wrong around it.
    fn errors(&self, at: i64) -> f64 {
        let age = at - self.started;
        let Version { errors, warmup, later, bad_pods, .. } = &self.version;
        let cold = warmup.filter(|w| age < w.last.millis()).map(|w| w.errors);
        let old = later.filter(|l| age >= l.after.millis()).map(|l| l.errors);
        let bad = bad_pods.filter(|_| self.bad).map(|b| b.errors);
        let worst =
            [cold, old, bad].into_iter().flatten().fold(errors.share(), |worst, e| worst.max(e.share()));
        (worst * self.effect).min(1.0)
    }

    /// Requests per second between the last two scrapes after `since`, if there were two.
    pub(super) fn rate(&self, since: i64, now: i64) -> Option<f64> {
        let mut seen =
            self.samples.iter().rev().filter(|s| s.up && s.visible <= now).take_while(|s| s.at > since);
        let (last, before) = (seen.next()?, seen.next()?);
        let count = |sample: &Sample| sample.counters.buckets.iter().sum::<u64>();
        // One that is smaller began at zero.
        let came = count(last).checked_sub(count(before)).unwrap_or_else(|| count(last));
        Some(as_f64(came) * 1_000.0 / as_f64((last.at - before.at).unsigned_abs()))
    }

    /// So many requests are expected to have come around this time; `around` is the chance to fail for reasons beyond it,
    /// by what an endpoint needs.
    pub(super) fn take(&mut self, requests: f64, at: i64, around: impl Fn(Option<&str>) -> f64) {
        let failing = |errors: f64, around: f64| requests * (1.0 - (1.0 - errors) * (1.0 - around));
        let errors = self.errors(at);
        self.expected.0 += requests;
        if self.endpoints.is_empty() {
            self.expected.1 += failing(errors, around(None));
        }
        for endpoint in &mut self.endpoints {
            let around = around(endpoint.dependency.as_deref());
            endpoint.failing += endpoint.share * failing(errors.max(endpoint.errors), around);
        }
    }

    /// Makes requests of what was expected; gives how many came and how many of them failed.
    pub(super) fn draw(&mut self) -> (u64, u64) {
        let (requests, failing) = std::mem::take(&mut self.expected);
        let before = std::mem::take(&mut self.before);
        if requests <= 0.0 {
            return before;
        }
        let mut came = 0;
        for (index, share) in self.latencies.into_iter().enumerate() {
            let count = self.random.poisson(requests * share);
            if let Some(bucket) = self.counters.buckets.get_mut(index) {
                *bucket += count;
            }
            came += count;
            self.counters.seconds += as_f64(count) * middle(index);
            if let Some(native) = &mut self.native {
                native.count(&mut self.counters.native, index, count);
            }
        }
        let failed = if self.endpoints.is_empty() {
            self.random.binomial(came, failing / requests)
        } else {
            self.at_endpoints(came, requests)
        };
        self.counters.failed += failed;
        self.counters.good += came - failed;
        let sign_ups = self.version.sign_ups.share();
        if sign_ups > 0.0 {
            self.counters.sign_ups += self.random.binomial(came - failed, sign_ups);
        }
        (before.0 + came, before.1 + failed)
    }

    /// Counts what came at each endpoint, of so many requests in expectation; gives how many failed.
    fn at_endpoints(&mut self, came: u64, requests: f64) -> u64 {
        let divided = self.choices.divide(came, self.endpoints.iter().map(|endpoint| endpoint.share));
        let mut failed = 0;
        self.counters.endpoints.resize(self.endpoints.len(), (0, 0));
        for ((endpoint, counts), here) in
            self.endpoints.iter_mut().zip(&mut self.counters.endpoints).zip(divided)
        {
            let expected = requests * endpoint.share;
            let failing = std::mem::take(&mut endpoint.failing);
            let bad = if here > 0 { self.choices.binomial(here, failing / expected) } else { 0 };
            counts.0 += here - bad;
            counts.1 += bad;
            failed += bad;
        }
        failed
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
        let memory = self.version.memory.at(minutes) * self.effect * 1_048_576.0;
        if self.samples.len() == REMEMBERED {
            self.samples.pop_front();
        }
        let (counters, up) = (self.counters.clone(), at >= self.started);
        self.samples.push_back(Sample { at, visible, counters, memory, up, restarts: self.restarts });
    }
}

#[allow(clippy::cast_precision_loss, reason = "counts far below 2^53")]
pub(super) const fn as_f64(count: u64) -> f64 {
    count as f64
}

/// The share of requests that take less than this, in seconds, for a log-normal law.
fn below(median: Duration, spread: f64, bound: f64) -> f64 {
    let z = libm::log(bound / median.as_secs_f64().max(1e-6)) / spread.max(1e-3);
    0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)
}

/// The share of requests in each bucket.
fn latencies(median: Duration, spread: f64) -> [f64; BUCKETS.len() + 1] {
    let mut shares = [0.0; BUCKETS.len() + 1];
    let mut before = 0.0;
    for (share, bound) in shares.iter_mut().zip(BUCKETS.into_iter().map(Some).chain([None])) {
        let up_to = bound.map_or(1.0, |bound| below(median, spread, bound));
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
    let shown = pod.samples.range(first..).filter(|sample| shown(sample));
    if name == RESTARTS {
        let samples = shown.map(|s| (s.at, f64::from(s.restarts))).collect();
        return vec![Series { samples, ..Series::default() }];
    }
    let samples: Vec<&Sample> = shown.filter(|sample| sample.up).collect();
    let one = |labels: &[(&str, &str)], value: &dyn Fn(&Sample) -> Option<f64>| {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let samples = samples.iter().filter_map(|s| value(s).map(|value| (s.at, value))).collect();
        Series { labels, samples, ..Series::default() }
    };
    let count = |n: u64| Some(as_f64(n));
    // A counter that never counted is not there.
    let counted = |n: u64| count(n).filter(|n| *n > 0.0);
    match name {
        "http_requests_total" if pod.endpoints.is_empty() => vec![
            one(&[("code", "200")], &|s| count(s.counters.good)),
            one(&[("code", "500")], &|s| counted(s.counters.failed)),
        ],
        "http_requests_total" => {
            let each = pod.endpoints.iter().enumerate().flat_map(|(index, Endpoint { path, .. })| {
                let here = move |s: &Sample| s.counters.endpoints.get(index).copied().unwrap_or_default();
                [
                    one(&[("code", "200"), ("path", path.as_str())], &|s| counted(here(s).0)),
                    one(&[("code", "500"), ("path", path.as_str())], &|s| counted(here(s).1)),
                ]
            });
            each.collect()
        }
        "signups_total" => vec![one(&[], &|s| count(s.counters.sign_ups))],
        "process_cpu_seconds_total" => {
            let each = pod.version.cpu.as_secs_f64() * pod.effect;
            vec![one(&[], &|s| Some(each * as_f64(s.counters.good + s.counters.failed)))]
        }
        "process_resident_memory_bytes" => vec![one(&[], &|s| Some(s.memory))],
        "http_request_duration_seconds_count" => {
            vec![one(&[], &|s| count(s.counters.buckets.iter().sum()))]
        }
        "http_request_duration_seconds_sum" => vec![one(&[], &|s| Some(s.counters.seconds))],
        "http_request_duration_seconds_bucket" => (0..=BUCKETS.len())
            .map(|last| {
                let bound = BUCKETS.get(last).map_or_else(|| "+Inf".to_owned(), ToString::to_string);
                one(&[("le", bound.as_str())], &|s| count(s.counters.buckets.iter().take(last + 1).sum()))
            })
            .collect(),
        "http_request_duration_seconds" => {
            let of = |native: &Native| {
                let histogram =
                    |s: &&Sample| (s.at, native.histogram(&s.counters.native, s.counters.seconds));
                Series { histograms: samples.iter().map(histogram).collect(), ..Series::default() }
            };
            pod.native.iter().map(of).collect()
        }
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
    fn pods_differ_by_effects_of_their_own() {
        let version = Version { errors: percent(1), pod_effect: 0.2, ..Version::default() };
        let logs: Vec<f64> = (0..400)
            .map(|i| {
                let random = Random::of(1, &format!("pod {i}"));
                let pod = Pod::new("a".to_owned(), "10.0.0.1".to_owned(), version.clone(), random, 0);
                libm::log(pod.errors(0) / 0.01)
            })
            .collect();
        let square = logs.iter().map(|log| log * log).sum::<f64>() / 400.0;
        assert!((0.17..0.23).contains(&square.sqrt()), "{square}");
    }

    #[test]
    fn what_is_counted_is_what_was_expected() {
        let mut pod = pod(Version { errors: percent(10), sign_ups: percent(50), ..Version::default() });
        pod.take(100_000.0, 0, |_| 0.5);
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
        pod.take(10.0, 0, |_| 0.0);
        pod.draw();
        pod.scrape(1_000, 0.0, Duration::default());
        let series = series(&pod, "http_requests_total", 0, |_| true);
        let lengths: Vec<_> = series.iter().map(|one| (&one.labels["code"], one.samples.len())).collect();
        assert_eq!(lengths, [(&"200".to_owned(), 1), (&"500".to_owned(), 0)]);
    }
}

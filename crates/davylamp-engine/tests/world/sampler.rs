//! Scrapes of the model's pods, and what a sampler makes of them.

use std::collections::BTreeMap;

use davylamp_engine::observed::{Hash, Increment, MetricSamples, Samples, of_baseline};
use davylamp_engine::{MetricQuery, Query};

use super::{Set, Version, at};

pub(crate) const INTERVAL: i64 = 30_000;
pub(crate) const DELAY: i64 = 15_000;

#[derive(Clone, Debug, Default)]
pub(crate) struct Sampler {
    query: Option<Query>,
    pods: BTreeMap<String, Vec<Increment>>,
    last: i64,
    /// Requests a second over all.
    pub(crate) rate: Option<f64>,
    /// What comes to each pod a second without traffic, and which share of it fails.
    pub(crate) background: f64,
    pub(crate) background_errors: f64,
    /// There are too many series to read each from then on.
    pub(crate) wide_since: Option<i64>,
    pub(crate) failing_since: Option<i64>,
    /// Whatever was ever scraped.
    all: BTreeMap<String, Vec<Increment>>,
    /// A new process has not yet asked.
    pub(crate) nothing_before: i64,
}

impl Sampler {
    pub(crate) fn ask(&mut self, now: i64, query: Option<Query>) {
        if query.is_none() {
            self.pods.clear();
        } else if self.query.is_none() {
            self.last = now - now.rem_euclid(INTERVAL);
        }
        self.query = query;
    }

    pub(crate) fn is_asked(&self) -> bool {
        self.query.is_some()
    }

    pub(crate) fn next(&self, _now: i64) -> Option<i64> {
        self.query.as_ref().map(|_| self.last + INTERVAL)
    }

    pub(crate) fn scrape_is_due(&self, now: i64) -> bool {
        self.next(now).is_some_and(|next| next <= now)
    }

    pub(crate) fn skip(&mut self, now: i64) {
        self.last = now - now.rem_euclid(INTERVAL);
    }

    pub(crate) fn scrape(
        &mut self,
        now: i64,
        traffic: &BTreeMap<Hash, f64>,
        sets: &mut BTreeMap<Hash, Set>,
        versions: &BTreeMap<Hash, Version>,
    ) {
        let (from, to) = (self.last, self.last + INTERVAL);
        self.last = to;
        let keep = self.query.as_ref().map_or(now, |q| q.since);
        let mut ready: BTreeMap<Hash, usize> = BTreeMap::new();
        for (hash, set) in &*sets {
            let pods = set.pods.values().filter(|p| p.ready_at.is_some()).count();
            *ready.entry(of_baseline(hash).unwrap_or(hash).to_owned()).or_insert(0) += pods;
        }
        for (hash, set) in sets {
            let version = of_baseline(hash).unwrap_or(hash);
            // The stable weight is spread over a fresh baseline, too.
            let ready = ready[version];
            let share = traffic.get(version).copied().unwrap_or(0.0);
            let version = versions[version];
            for (name, pod) in set.pods.iter_mut().filter(|(_, p)| p.ready_at.is_some()) {
                if !version.scraped {
                    continue;
                }
                #[allow(clippy::cast_precision_loss, reason = "few pods, short times")]
                let total =
                    (self.rate.unwrap_or(200.0) * share / ready as f64 * (INTERVAL as f64 / 1_000.0)).round();
                #[allow(clippy::cast_precision_loss, reason = "a short time")]
                let background = self.background * (INTERVAL as f64 / 1_000.0);
                let exact = total * version.error_rate + background * self.background_errors + pod.rest;
                let events = exact.floor();
                pod.rest = exact - events;
                let total = total + background;
                let increments = self.pods.entry(name.clone()).or_default();
                increments.retain(|i| i.to > keep);
                let increment = Increment { from, to, events, total, buckets: Vec::new() };
                self.all.entry(name.clone()).or_default().push(increment.clone());
                increments.push(increment);
            }
        }
    }

    pub(crate) fn samples(&self, now: i64) -> Option<Samples> {
        let query = self.query.as_ref().filter(|_| now >= self.nothing_before)?;
        let until = self.failing_since.unwrap_or(now).min(now) - DELAY;
        let failing = self.failing_since.map(|since| (at(since), "connection refused".to_owned()));
        let wide = self.wide_since.is_some_and(|since| now >= since);
        let mut query = query.clone();
        query.summed.extend(wide.then(|| "errors".to_owned()));
        Some(Samples { failing, ..answer(&self.pods, &query, until) })
    }

    /// What a source that keeps everything would answer later.
    pub(crate) fn later(&self, query: &Query, until: i64) -> Samples {
        answer(&self.all, query, until)
    }
}

fn answer(pods: &BTreeMap<String, Vec<Increment>>, query: &Query, until: i64) -> Samples {
    let ours = |pod: &&String| {
        query.pods.iter().any(|prefix| pod.strip_prefix(prefix.as_str()).is_some_and(|end| end.len() == 5))
    };
    let summed = !query.summed.is_empty();
    let pods = pods.iter().filter(|(pod, _)| ours(pod)).map(|(pod, all)| {
        let read = all.iter().filter(|i| i.to > query.since && i.to <= until);
        // A sum falls now and then where no series does.
        let increments: Vec<Increment> =
            read.filter(|i| !summed || i.to / INTERVAL % 5 > 0).cloned().collect();
        (pod.clone(), BTreeMap::from([("target".to_owned(), increments)]))
    });
    let one = MetricSamples { pods: pods.collect() };
    let of = |metric: &MetricQuery| match metric {
        MetricQuery::Expression { .. } => failing(&one, query, until),
        _ => one.clone(),
    };
    Samples {
        since: query.since,
        until,
        failing: None,
        summed: query.summed.clone(),
        late: 0,
        metrics: query.metrics.iter().map(|(name, metric)| (name.clone(), of(metric))).collect(),
    }
}

/// Whatever the expression says: at each end of a round, the share of the canary's requests in it that failed.
fn failing(pods: &MetricSamples, query: &Query, until: i64) -> MetricSamples {
    let canary = &query.cohorts.as_ref().unwrap().canary.pods;
    let increments = || {
        let pods = pods.pods.iter().filter(|(pod, _)| pod.starts_with(canary.as_str()));
        pods.flat_map(|(_, targets)| targets.values().flatten())
    };
    let ends = (1..).map(|n| query.since + n * INTERVAL).take_while(|end| *end <= until);
    let numbers = ends.filter_map(|end| {
        let within = increments().filter(|i| i.to > end - INTERVAL && i.to <= end);
        let (events, total) = within.fold((0.0, 0.0), |(x, n), i| (x + i.events, n + i.total));
        let share = Increment { from: end, to: end, events: events / total, total: 1.0, buckets: Vec::new() };
        (total > 0.0).then_some(share)
    });
    let alone = BTreeMap::from([(String::new(), numbers.collect())]);
    MetricSamples { pods: BTreeMap::from([(String::new(), alone)]) }
}

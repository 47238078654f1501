//! Scrapes of the model's pods, and what a sampler makes of them.

use std::collections::BTreeMap;

use davylamp_engine::Query;
use davylamp_engine::observed::{Hash, Increment, MetricSamples, Samples};

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
        for (hash, set) in sets {
            let ready = set.pods.values().filter(|p| p.ready_at.is_some()).count();
            let share = traffic.get(hash).copied().unwrap_or(0.0);
            let version = versions[hash];
            for (name, pod) in set.pods.iter_mut().filter(|(_, p)| p.ready_at.is_some()) {
                if !version.scraped {
                    continue;
                }
                #[allow(clippy::cast_precision_loss, reason = "few pods, short times")]
                let total =
                    (self.rate.unwrap_or(200.0) * share / ready as f64 * (INTERVAL as f64 / 1_000.0)).round();
                let exact = total * version.error_rate + pod.rest;
                let events = exact.floor();
                pod.rest = exact - events;
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
        Some(Samples { failing, ..answer(&self.pods, query, until) })
    }

    /// What a source that keeps everything would answer later.
    pub(crate) fn later(&self, query: &Query, until: i64) -> Samples {
        answer(&self.all, query, until)
    }
}

fn answer(pods: &BTreeMap<String, Vec<Increment>>, query: &Query, until: i64) -> Samples {
    let ours = |pod: &&String| query.pods.iter().any(|prefix| pod.starts_with(prefix));
    let pods = pods.iter().filter(|(pod, _)| ours(pod)).map(|(pod, all)| {
        let increments: Vec<Increment> =
            all.iter().filter(|i| i.to > query.since && i.to <= until).cloned().collect();
        (pod.clone(), BTreeMap::from([("target".to_owned(), increments)]))
    });
    let one = MetricSamples { pods: pods.collect() };
    Samples {
        since: query.since,
        until,
        failing: None,
        metrics: query.metrics.keys().map(|name| (name.clone(), one.clone())).collect(),
    }
}

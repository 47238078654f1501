//! Who sends requests, and where they arrive: [`Users`] follows the routing, keeps connections for a while, and counts what
//! nobody answered. Time goes in intervals in which nothing changes.

use std::collections::{BTreeMap, BTreeSet};

use super::gateway::Routing;
use super::random::Random;
use super::workloads::Life;
use crate::setting::{self, Breaks, Incident};
use crate::store::Key;

/// Who sends requests.
#[derive(Debug)]
pub(super) struct Users {
    setting: setting::Users,
    routing: Routing,
    /// Where requests go now: with connections that are kept, not yet where the routing says. Has all its pods.
    shares: BTreeMap<Key, f64>,
    nowhere: f64,
    incidents: Vec<Trouble>,
    /// When the next burst begins.
    burst: i64,
    bursts: Random,
    reached: i64,
    unanswered: Random,
    pub(super) lost: u64,
}

/// What goes wrong around pods.
#[derive(Debug)]
struct Trouble {
    until: i64,
    /// The chance of a request to fail.
    errors: f64,
    /// Whom it concerns; absent: everybody.
    dependency: Option<String>,
    nodes: Option<BTreeSet<String>>,
    pods: Option<BTreeSet<Key>>,
}

/// The chance of any request to fail for what versions do to all.
fn broken(shares: &BTreeMap<Key, f64>, pods: &BTreeMap<Key, Life>) -> f64 {
    let mut versions: BTreeMap<&str, (Breaks, f64)> = BTreeMap::new();
    for (key, share) in shares {
        let Some(life) = pods.get(key) else { continue };
        if let Some(breaks) = life.pod.harm() {
            versions.entry(&life.pod.image).or_insert((breaks, 0.0)).1 += share;
        }
    }
    let broken = versions.values().filter(|(breaks, share)| *share > breaks.above.share());
    1.0 - broken.fold(1.0, |good, (breaks, _)| good * (1.0 - breaks.errors.share()))
}

impl Users {
    pub(super) fn new(setting: setting::Users, seed: u64, now: i64) -> Self {
        let mut users = Self {
            setting,
            routing: Routing { nowhere: 1.0, ..Routing::default() },
            shares: BTreeMap::new(),
            nowhere: 0.0,
            incidents: Vec::new(),
            burst: now,
            bursts: Random::of(seed, "bursts"),
            reached: now,
            unanswered: Random::of(seed, "unanswered"),
            lost: 0,
        };
        users.next_burst();
        users
    }

    pub(super) fn rate(&mut self, requests_per_second: f64) {
        self.setting.requests_per_second = requests_per_second;
    }

    /// These are the nodes that it is about, if it is not about all.
    pub(super) fn incident(&mut self, incident: Incident, nodes: Option<BTreeSet<String>>, now: i64) {
        let Incident { last, errors, dependency, nodes: _ } = incident;
        let (until, errors) = (now + last.millis(), errors.share());
        self.incidents.push(Trouble { until, errors, dependency, nodes, pods: None });
    }

    /// When something changes by itself, in ms since 1970.
    pub(super) fn next(&self) -> i64 {
        self.incidents.iter().map(|trouble| trouble.until).min().unwrap_or(i64::MAX).min(self.burst)
    }

    /// Requests until now, in expectation; the routing is another one from now on, if one is given.
    pub(super) fn advance(&mut self, pods: &mut BTreeMap<Key, Life>, now: i64) {
        let ms = now - self.reached;
        if ms > 0 {
            let middle = self.reached + ms / 2;
            self.reached = now;
            #[allow(clippy::cast_precision_loss, reason = "a length of time")]
            let seconds = ms as f64 / 1_000.0;
            let requests = self.setting.requests_per_second * self.of_the_day(middle) * seconds;
            let incidents = &self.incidents;
            let broken = broken(&self.shares, pods);
            let around = |key: &Key, node: &str, dependency: Option<&str>| {
                let concerns = |trouble: &&Trouble| {
                    trouble.nodes.as_ref().is_none_or(|nodes| nodes.contains(node))
                        && trouble.pods.as_ref().is_none_or(|pods| pods.contains(key))
                        && (trouble.dependency.is_none() || trouble.dependency.as_deref() == dependency)
                };
                1.0 - incidents.iter().filter(concerns).fold(1.0 - broken, |good, t| good * (1.0 - t.errors))
            };
            let kept = self.setting.keep_alive.as_secs_f64();
            // The mean over the interval, and the value at its end, of what falls to 0 with the time constant `kept`.
            let (mean, end) = if kept > 0.0 {
                let left = libm::exp(-seconds / kept);
                ((1.0 - left) * kept / seconds, left)
            } else {
                (0.0, 0.0)
            };
            let mut unanswered = self.nowhere + (self.routing.nowhere - self.nowhere) * (1.0 - mean);
            let routing = &self.routing;
            self.shares.retain(|key, from| {
                let to = routing.pods.get(key).copied().unwrap_or(0.0);
                let share = to + (*from - to) * mean;
                match pods.get_mut(key).filter(|life| life.runs(now)) {
                    Some(life) => {
                        let around = |dependency: Option<&str>| around(key, &life.node, dependency);
                        life.pod.take(requests * share, middle, around);
                    }
                    None => unanswered += share,
                }
                *from = to + (*from - to) * end;
                to > 0.0 || *from > 1e-9
            });
            self.nowhere = self.routing.nowhere + (self.nowhere - self.routing.nowhere) * end;
            // Of a share below this, rounding is the reason.
            if unanswered > 1e-9 {
                self.lost += self.unanswered.poisson(requests * unanswered);
            }
        }
        self.incidents.retain(|trouble| trouble.until > now);
        if now >= self.burst {
            let bursts = &self.setting.bursts;
            let (until, errors) = (now + bursts.last.millis(), bursts.errors.share());
            let pods = bursts.pods.map(|count| self.some_pods(count));
            self.incidents.push(Trouble { until, errors, dependency: None, nodes: None, pods });
            self.next_burst();
        }
    }

    pub(super) fn follow(&mut self, routing: Routing) {
        if self.setting.keep_alive.as_millis() == 0 || self.shares.is_empty() {
            self.shares.clone_from(&routing.pods);
            self.nowhere = routing.nowhere;
        } else {
            // Connections to a pod that is no endpoint any more are made anew at once.
            let (mut left, mut sum) = (0.0, 0.0);
            self.shares.retain(|key, share| {
                let stays = routing.pods.contains_key(key);
                *(if stays { &mut sum } else { &mut left }) += *share;
                stays
            });
            for (key, share) in &routing.pods {
                *self.shares.entry(key.clone()).or_default() += left * share;
            }
            self.nowhere = if sum > 0.0 { self.nowhere } else { routing.nowhere };
        }
        self.routing = routing;
    }

    /// The rate at this time, as a factor of the average.
    fn of_the_day(&self, at: i64) -> f64 {
        #[allow(clippy::cast_precision_loss, reason = "a time of the day")]
        let hour = at.rem_euclid(86_400_000) as f64 / 3_600_000.0;
        1.0 + self.setting.daily.share() * libm::cos((hour - 12.0) / 12.0 * std::f64::consts::PI)
    }

    /// So many of those that get requests, by lot.
    fn some_pods(&mut self, count: u32) -> BTreeSet<Key> {
        let mut pods: Vec<(f64, &Key)> = self.shares.keys().map(|key| (self.bursts.share(), key)).collect();
        pods.sort_by(|(a, _), (b, _)| a.total_cmp(b));
        pods.into_iter().take(count as usize).map(|(_, key)| key.clone()).collect()
    }

    fn next_burst(&mut self) {
        let per_hour = self.setting.bursts.per_hour;
        self.burst = if per_hour > 0.0 {
            #[allow(clippy::cast_possible_truncation, reason = "hours in ms")]
            let gap = (self.bursts.exponential(3_600_000.0 / per_hour) as i64).max(1);
            self.burst + gap
        } else {
            i64::MAX
        };
    }
}

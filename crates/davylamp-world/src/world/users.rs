//! Who sends requests, and where they arrive: [`Users`] follows the routing, keeps connections for a while, and counts what
//! nobody answered. Time goes in intervals in which nothing changes.

use std::collections::BTreeMap;

use super::gateway::Routing;
use super::random::Random;
use super::workloads::Life;
use crate::setting::{self, Incident};
use crate::store::Key;

/// Who sends requests.
#[derive(Debug)]
pub(super) struct Users {
    setting: setting::Users,
    routing: Routing,
    /// Where requests go now: with connections that are kept, not yet where the routing says. Has all its pods.
    shares: BTreeMap<Key, f64>,
    nowhere: f64,
    /// Until when it lasts, and the chance to fail.
    incidents: Vec<(i64, f64)>,
    /// When the next burst begins.
    burst: i64,
    bursts: Random,
    reached: i64,
    unanswered: Random,
    pub(super) lost: u64,
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

    pub(super) fn incident(&mut self, incident: Incident, now: i64) {
        self.incidents.push((now + incident.last.millis(), incident.errors.share()));
    }

    /// When something changes by itself, in ms since 1970.
    pub(super) fn next(&self) -> i64 {
        self.incidents.iter().map(|(until, _)| *until).min().unwrap_or(i64::MAX).min(self.burst)
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
            let around = 1.0 - self.incidents.iter().fold(1.0, |good, (_, errors)| good * (1.0 - errors));
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
                    Some(life) => life.pod.take(requests * share, middle, around),
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
        self.incidents.retain(|(until, _)| *until > now);
        if now >= self.burst {
            let bursts = &self.setting.bursts;
            self.incidents.push((now + bursts.last.millis(), bursts.errors.share()));
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

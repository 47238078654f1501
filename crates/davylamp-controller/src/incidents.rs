//! When the baselines of Rollouts were last found in incidents, for all to be held when several are at once. Found in the
//! statuses, so that it may be lost at any moment. Decides nothing.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use davylamp_api::Instant;
use davylamp_api::status::RolloutStatus;

use crate::key::Key;

/// What was noticed longer ago says nothing any more, ms: twice what the engine takes for the same time.
const LATELY: i64 = 240_000;

/// Of all Rollouts.
pub struct Incidents {
    noticed: Mutex<BTreeMap<Key, Instant>>,
    /// Wakes those whom a new one concerns.
    wake: Box<dyn Fn() + Send + Sync>,
}

impl fmt::Debug for Incidents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incidents").finish_non_exhaustive()
    }
}

impl Incidents {
    /// None yet.
    #[must_use]
    pub fn new(wake: impl Fn() + Send + Sync + 'static) -> Self {
        Self { noticed: Mutex::default(), wake: Box::new(wake) }
    }

    /// What the newest status of a Rollout says.
    pub fn note(&self, key: &Key, status: &RolloutStatus) {
        let Some(incident) = &status.incident else { return self.forget(key) };
        let before = self.lock().insert(key.clone(), incident.noticed);
        if before != Some(incident.noticed) {
            (self.wake)();
        }
    }

    /// The Rollout is gone, or its run.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// Of all others, by namespace and name, lately.
    #[must_use]
    pub fn of_others(&self, key: &Key, now: Instant) -> BTreeMap<String, Instant> {
        let lately = |at: &Instant| at.as_millisecond() >= now.as_millisecond() - LATELY;
        let noticed = self.lock();
        let others = noticed.iter().filter(|(other, at)| *other != key && lately(at));
        others.map(|(other, at)| (other.to_string(), *at)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Instant>> {
        self.noticed.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use davylamp_api::status::IncidentStatus;

    use super::*;

    #[test]
    fn others_are_woken_once_by_each_and_told_for_a_while() {
        let woken = Arc::new(AtomicU32::new(0));
        let counted = woken.clone();
        let incidents = Incidents::new(move || {
            counted.fetch_add(1, Ordering::Relaxed);
        });
        let key = |name: &str| Key { namespace: "shop".to_owned(), name: name.to_owned() };
        let at = |ms: i64| Instant::from_millisecond(1_767_225_600_000 + ms).unwrap();
        let status = |ms: i64| RolloutStatus {
            incident: Some(IncidentStatus { noticed: at(ms), ..IncidentStatus::default() }),
            ..RolloutStatus::default()
        };
        incidents.note(&key("a"), &status(0));
        incidents.note(&key("a"), &status(0));
        incidents.note(&key("b"), &status(10));
        assert_eq!(woken.load(Ordering::Relaxed), 2);
        assert_eq!(incidents.of_others(&key("a"), at(20)), BTreeMap::from([("shop/b".to_owned(), at(10))]));
        assert!(incidents.of_others(&key("a"), at(LATELY + 11)).is_empty());
        incidents.note(&key("b"), &RolloutStatus::default());
        assert!(incidents.of_others(&key("a"), at(20)).is_empty());
    }
}

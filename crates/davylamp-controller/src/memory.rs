//! What the process remembers of a Rollout beside its status: answers of slow checks, and what has been delivered.
//! It may be lost at any moment; losing it costs a repeated, idempotent call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use davylamp_engine::observed::{Hash, Template};

use crate::key::Key;

/// Of one Rollout.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Whose: another object of the same name begins anew.
    pub uid: String,
    /// What the API server said of a template.
    pub template: Option<(Hash, Template)>,
    /// Names of runs that ended or foreign ones hold.
    pub taken_runs: BTreeSet<String>,
    /// The number of the last record that was delivered.
    pub delivered: i64,
    /// History is pruned once after each end of a run, and once per process.
    pub pruned: Option<i64>,
}

impl Memory {
    /// What the API server said of this template.
    #[must_use]
    pub fn template_of(&self, hash: Option<&str>) -> Template {
        match &self.template {
            Some((known, answer)) if Some(known.as_str()) == hash => answer.clone(),
            Some(_) | None => Template::Unchecked,
        }
    }
}

/// Of all Rollouts.
#[derive(Debug, Default)]
pub struct Memories(Mutex<BTreeMap<Key, Memory>>);

impl Memories {
    /// Of this Rollout.
    #[must_use]
    pub fn get(&self, key: &Key, uid: &str) -> Memory {
        match self.lock().get(key) {
            Some(memory) if memory.uid == uid => memory.clone(),
            Some(_) | None => Memory { uid: uid.to_owned(), ..Memory::default() },
        }
    }

    /// Changes what is remembered.
    pub fn update(&self, key: &Key, uid: &str, change: impl FnOnce(&mut Memory)) {
        let mut all = self.lock();
        let memory = all.entry(key.clone()).or_default();
        if memory.uid != uid {
            *memory = Memory { uid: uid.to_owned(), ..Memory::default() };
        }
        change(memory);
    }

    /// The Rollout is gone.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

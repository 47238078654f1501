//! What the process remembers of a Rollout beside its status: answers of slow checks, and what has been delivered.
//! It may be lost at any moment; losing it costs a repeated, idempotent call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use davylamp_api::RolloutSpec;
use davylamp_api::template::Scope;
use davylamp_engine::observed::{Hash, Template};
use davylamp_engine::{Conduct, Problem, Program};

use crate::json::Json;
use crate::key::Key;

/// What was made of a text that rarely changes, so that not each pass reads it again.
#[derive(Clone, Debug)]
pub struct Known<T>(Option<(Json, Arc<T>)>);

impl<T> Default for Known<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<T> Known<T> {
    /// Of this text; by `read`, if it is another one than before, or what was made of it is no longer `current`.
    pub fn of(&mut self, text: &Json, current: impl FnOnce(&T) -> bool, read: impl FnOnce() -> T) -> Arc<T> {
        match &self.0 {
            Some((known, made)) if known == text && current(made) => made.clone(),
            Some(_) | None => {
                let made = Arc::new(read());
                self.0 = Some((text.clone(), made.clone()));
                made
            }
        }
    }
}

/// A spec, read: what of it can be carried out, or why it cannot.
#[derive(Clone, Debug)]
pub struct Written {
    /// None when it does not parse.
    pub spec: Option<RolloutSpec>,
    /// None when there are problems.
    pub program: Option<Program>,
    /// Why not.
    pub problems: Vec<Problem>,
    /// The templates that were looked for, and the versions that were found.
    pub templates: Vec<(Scope, String, Option<String>)>,
}

/// Of one Rollout.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Whose: another object of the same name begins anew.
    pub uid: String,
    /// What the API server said of a template.
    pub template: Option<(Hash, Template)>,
    /// The data of the run up to this time is in its series, ms since 1970.
    pub charted: i64,
    /// Names of runs that ended or foreign ones hold.
    pub taken_runs: BTreeSet<String>,
    /// The number of the last record that was delivered.
    pub delivered: i64,
    /// What the user wrote, read.
    pub written: Known<Written>,
    /// What the run in flight promised, read.
    pub promised: Known<Option<Conduct>>,
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

    /// Changes what is remembered, or looks at it.
    pub fn update<R>(&self, key: &Key, uid: &str, change: impl FnOnce(&mut Memory) -> R) -> R {
        let mut all = self.lock();
        let memory = all.entry(key.clone()).or_default();
        if memory.uid != uid {
            *memory = Memory { uid: uid.to_owned(), ..Memory::default() };
        }
        change(memory)
    }

    /// The Rollout is gone.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Key, Memory>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

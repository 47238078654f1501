//! What was worked out before in this process: [`Memo`]. Many servers are made of the same texts, and the same questions
//! are asked of each.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Texts that one remembers; a full one begins anew.
const MOST: usize = 512;

/// By a text, what comes of it.
pub(crate) struct Memo<T>(Mutex<BTreeMap<String, T>>);

impl<T: Clone> Memo<T> {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// What comes of a text, by `make` if it is new.
    pub(crate) fn get<E>(&self, text: &str, make: impl FnOnce() -> Result<T, E>) -> Result<T, E> {
        if let Some(known) = self.lock().get(text) {
            return Ok(known.clone());
        }
        let new = make()?;
        let mut known = self.lock();
        if known.len() >= MOST {
            known.clear();
        }
        known.insert(text.to_owned(), new.clone());
        Ok(new)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, T>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! Values that are read once for all who want them, and kept for a while: so many keys, so long.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::metrics::QueryError;

/// What was used least recently is forgotten.
const MOST: usize = 64;
/// Nothing is read again before this, whoever asks: neither what failed nor what turned out to be refused.
pub(crate) const SOONEST: Duration = Duration::from_secs(5);

/// Values by key.
pub(super) struct Kept<K, V> {
    /// The last one was used last.
    entries: Mutex<Vec<(K, Entry<V>)>>,
}

type Entry<V> = Arc<tokio::sync::Mutex<Option<Reading<V>>>>;

struct Reading<V> {
    at: Instant,
    until: Instant,
    value: Result<V, QueryError>,
}

impl<K, V> Default for Kept<K, V> {
    fn default() -> Self {
        Self { entries: Mutex::default() }
    }
}

impl<K: PartialEq, V: Clone> Kept<K, V> {
    /// The value that is kept, or one that is read now. `read` is given what was kept last, and says for how long the new
    /// one is good. `renew` says that the one that is kept is of no use any more.
    pub(super) async fn get<F>(
        &self,
        key: K,
        renew: bool,
        read: impl FnOnce(Option<V>) -> F,
    ) -> Result<V, QueryError>
    where
        F: Future<Output = Result<(V, Duration), QueryError>>,
    {
        let entry = self.entry(key);
        // Who comes second waits for the first one's answer.
        let mut entry = entry.lock().await;
        let now = Instant::now();
        if let Some(reading) = &*entry
            && now < reading.until
            && !(renew && now >= reading.at + SOONEST)
        {
            return reading.value.clone();
        }
        // It stays in its place: whoever asks may be given up in the middle.
        let before = entry.as_ref().and_then(|reading| reading.value.clone().ok());
        let answer = read(before).await;
        let now = Instant::now();
        let (value, good) = match answer {
            Ok((value, good)) => (Ok(value), good),
            Err(error) => (Err(error), SOONEST),
        };
        *entry = Some(Reading { at: now, until: now + good, value: value.clone() });
        value
    }

    fn entry(&self, key: K) -> Entry<V> {
        let mut entries = self.entries.lock().unwrap_or_else(PoisonError::into_inner);
        let known = entries.iter().position(|(known, _)| *known == key);
        let (key, entry) = known.map_or_else(|| (key, Entry::default()), |at| entries.remove(at));
        if entries.len() >= MOST {
            entries.remove(0);
        }
        entries.push((key, Arc::clone(&entry)));
        entry
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    #[tokio::test(start_paused = true)]
    async fn a_value_is_read_once_a_minute_and_sooner_when_it_is_refused() {
        let (kept, reads) = (Kept::default(), Cell::new(0));
        let get = |renew| {
            kept.get("a", renew, |_| async {
                reads.set(reads.get() + 1);
                Ok((reads.get(), MINUTE))
            })
        };
        assert_eq!((get(false).await, get(false).await, get(true).await), (Ok(1), Ok(1), Ok(1)));
        tokio::time::advance(SOONEST).await;
        assert_eq!((get(false).await, get(true).await, get(true).await), (Ok(1), Ok(2), Ok(2)));
        tokio::time::advance(MINUTE).await;
        assert_eq!(get(false).await, Ok(3));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_is_kept_for_a_moment() {
        let (kept, reads) = (Kept::<_, ()>::default(), Cell::new(0));
        let get = || {
            kept.get("a", true, |_| async {
                reads.set(reads.get() + 1);
                Err(QueryError::Timeout)
            })
        };
        assert_eq!((get().await, get().await), (Err(QueryError::Timeout), Err(QueryError::Timeout)));
        assert_eq!(reads.get(), 1);
        tokio::time::advance(SOONEST).await;
        assert_eq!((get().await, reads.get()), (Err(QueryError::Timeout), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_was_read_outlives_who_gives_up() {
        let kept = Kept::default();
        assert_eq!(kept.get("a", false, |_| async { Ok((1, MINUTE)) }).await, Ok(1));
        tokio::time::advance(MINUTE).await;
        let stuck = kept.get("a", false, |_| std::future::pending());
        assert!(tokio::time::timeout(SOONEST, stuck).await.is_err());
        let next = kept.get("a", false, |before| async move { Ok((before.unwrap_or_default() + 1, MINUTE)) });
        assert_eq!(next.await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_get_one_answer() {
        let kept = Kept::default();
        let (first, second) = tokio::join!(
            kept.get("a", false, |_| async {
                tokio::time::sleep(MINUTE).await;
                Ok((1, MINUTE))
            }),
            kept.get("a", false, |_| async { Ok((2, MINUTE)) }),
        );
        assert_eq!((first, second), (Ok(1), Ok(1)));
    }

    #[tokio::test(start_paused = true)]
    async fn the_least_recently_used_is_forgotten() {
        let kept = Kept::default();
        for key in 0..MOST {
            kept.get(key, false, |_| async { Ok((key, MINUTE)) }).await.unwrap();
        }
        let again = |key: usize| kept.get(key, false, |_| async { Ok((1_000, MINUTE)) });
        assert_eq!((again(0).await, again(1_000).await), (Ok(0), Ok(1_000)));
        assert_eq!((again(0).await, again(1).await), (Ok(0), Ok(1_000)));
    }
}

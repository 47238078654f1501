//! The past of one Rollout's stable pods, read in windows, the newest first: a [`Lesson`] says which is next, takes what was
//! answered, and ends in bounded time with what it has learnt by then. How far apart scrapes are comes first, where the source
//! does not say. Asks nobody itself and reads no clock.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use davylamp_api::MetricSourceSpec;
use davylamp_engine::observed::{Learnt, Samples};
use davylamp_engine::{History, HistoryQuery, Query};
use futures::future::AbortHandle;

use super::QueryError;
use super::batch::{Failure, Texts, texts};
use super::sampler::Wanted;

/// No run is held back for longer.
const PATIENCE_MS: i64 = 60_000;
/// A window that failed is asked for again after so long.
const RETRY_MS: i64 = 5_000;
/// The first window; each that is answered is followed by one twice as long.
const FIRST_WINDOW_MS: i64 = 600_000;
const LONGEST_WINDOW_MS: i64 = 7_200_000;
const SHORTEST_WINDOW_MS: i64 = 60_000;
/// Moments at which a scrape is looked for are so far apart at first: of 200 pods that is an answer of 2 MiB. An answer that is
/// too large is followed by one of half as many.
const FIRST_STEP_MS: i64 = 2_000;
const LONGEST_STEP_MS: i64 = 16_000;

/// What a Rollout wants to learn, and whom to ask.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedHistory {
    /// What.
    pub of: HistoryQuery,
    /// Whom.
    pub source: MetricSourceSpec,
}

/// Where the reading of a past stands.
pub(super) struct Lesson {
    pub(super) wanted: Arc<WantedHistory>,
    pub(super) texts: Arc<Result<Texts, Failure>>,
    running: Option<AbortHandle>,
    begun: bool,
    /// None while it is being learnt from, and then.
    history: Option<History>,
    learnt: Option<(i64, Arc<Learnt>)>,
    /// Between two scrapes, ms; None while nobody knows.
    interval: Option<i64>,
    step: i64,
    /// Everything after `reached` was read; nothing before `oldest` is.
    reached: i64,
    oldest: i64,
    window: i64,
    /// A window was too wide: they grow no more.
    narrow: bool,
    /// The metrics that were read as sums.
    summed: BTreeSet<String>,
    due: i64,
    deadline: i64,
    trouble: Option<String>,
}

/// What a lesson wants next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// How far apart scrapes are, where they are looked for at each of these.
    Gaps {
        /// Until then, ms since 1970.
        until: i64,
        /// Each so many ms.
        step: i64,
    },
    /// The samples of this window.
    Read {
        /// After this, ms since 1970.
        since: i64,
        /// Until then.
        until: i64,
    },
    /// Nothing before this time.
    Wait(i64),
    /// Nothing any more: it is to be learnt from.
    Learn,
    /// Nothing at all.
    Rest,
}

impl Lesson {
    pub(super) fn new(namespace: &str, wanted: WantedHistory, now: i64) -> Self {
        let HistoryQuery { query, length, .. } = &wanted.of;
        let reached = now.saturating_sub(query.delay_ms);
        let texts = texts(namespace, &Wanted { query: query.clone(), source: wanted.source.clone() });
        Self {
            texts: Arc::new(texts),
            running: None,
            begun: false,
            history: Some(History::new(wanted.of.clone())),
            learnt: None,
            interval: (!wanted.of.gaps).then_some(query.scrape_interval_ms),
            step: FIRST_STEP_MS,
            reached,
            oldest: reached.saturating_sub(*length),
            window: FIRST_WINDOW_MS,
            narrow: false,
            summed: BTreeSet::new(),
            due: now,
            deadline: now.saturating_add(PATIENCE_MS),
            trouble: None,
            wanted: Arc::new(wanted),
        }
    }

    pub(super) fn next(&self, now: i64) -> Step {
        let Some(history) = self.history.as_ref().filter(|_| self.running.is_none()) else {
            return Step::Rest;
        };
        if now >= self.deadline || self.reached <= self.oldest || history.is_full() {
            Step::Learn
        } else if self.due > now {
            Step::Wait(self.due.min(self.deadline))
        } else if self.interval.is_none() {
            Step::Gaps { until: self.reached, step: self.step }
        } else {
            Step::Read { since: self.oldest.max(self.reached - self.window), until: self.reached }
        }
    }

    /// The question for this window.
    pub(super) fn question(&self, since: i64) -> Wanted {
        let WantedHistory { of, source } = &*self.wanted;
        let scrape_interval_ms = self.interval.unwrap_or(of.query.scrape_interval_ms);
        let query = Query { since, summed: self.summed.clone(), scrape_interval_ms, ..of.query.clone() };
        Wanted { query, source: source.clone() }
    }

    /// How long an answer is waited for.
    pub(super) fn patience(&self, now: i64) -> Duration {
        Duration::from_millis(self.deadline.saturating_sub(now).max(0).unsigned_abs())
    }

    /// When it ends at the latest.
    pub(super) const fn deadline(&self) -> i64 {
        self.deadline
    }

    /// Something of it is in memory.
    pub(super) fn is_open(&self) -> bool {
        self.begun && self.learnt.is_none()
    }

    pub(super) fn run(&mut self, handle: AbortHandle) {
        self.begun = true;
        self.running = Some(handle);
    }

    pub(super) fn cancel(&self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }

    /// Something may be asked now.
    pub(super) fn is_ready(&self, now: i64) -> bool {
        match self.next(now) {
            Step::Gaps { .. } | Step::Read { .. } => true,
            Step::Wait(_) | Step::Learn | Step::Rest => false,
        }
    }

    /// What came of the question for gaps.
    pub(super) fn settle_gap(&mut self, outcome: Result<Option<i64>, Failure>, now: i64) {
        self.running = None;
        let Some(history) = &mut self.history else { return };
        match outcome {
            Ok(gap) => {
                self.trouble = None;
                let interval = gap.unwrap_or(self.wanted.of.query.scrape_interval_ms);
                history.scraped_each(interval);
                self.interval = Some(interval);
            }
            Err(failure) => {
                self.trouble = Some(failure.to_string());
                if is_too_wide(&failure.error) && self.step < LONGEST_STEP_MS {
                    self.step *= 2;
                } else {
                    self.due = now.saturating_add(RETRY_MS);
                }
            }
        }
    }

    /// What came of the window that begins at `since`.
    pub(super) fn settle(&mut self, since: i64, outcome: Result<Samples, Failure>, now: i64) {
        self.running = None;
        let Some(history) = &mut self.history else { return };
        match outcome {
            Ok(samples) => {
                self.trouble = None;
                self.summed.extend(samples.summed.iter().cloned());
                // Before the first sample there is none.
                self.reached = if history.add(&samples) { since } else { self.oldest };
                if !self.narrow {
                    self.window = (2 * self.window).min(LONGEST_WINDOW_MS);
                }
            }
            Err(failure) => {
                self.trouble = Some(failure.to_string());
                self.summed.extend(failure.summed);
                if is_too_wide(&failure.error) && self.window > SHORTEST_WINDOW_MS {
                    self.narrow = true;
                    self.window = (self.window / 2).max(SHORTEST_WINDOW_MS);
                } else {
                    self.due = now.saturating_add(RETRY_MS);
                }
            }
        }
    }

    /// What was read, and why it is not all.
    pub(super) fn close(&mut self) -> Option<(History, Option<String>)> {
        let trouble = (self.reached > self.oldest).then(|| match &self.trouble {
            Some(trouble) => format!("the history was not read to its end: {trouble}"),
            None => "the history was not read to its end: the source is slow, or it is long".to_owned(),
        });
        self.history.take().map(|history| (history, trouble))
    }

    pub(super) fn finish(&mut self, learnt: Arc<Learnt>, now: i64) {
        self.running = None;
        self.learnt = Some((now, learnt));
    }

    pub(super) fn learnt(&self) -> Option<Arc<Learnt>> {
        self.learnt.as_ref().map(|(_, learnt)| Arc::clone(learnt))
    }

    pub(super) fn is_running(&self) -> bool {
        self.running.is_some()
    }

    /// It was learnt too long ago.
    pub(super) fn is_stale(&self, now: i64) -> bool {
        self.learnt.is_some() && !self.lasts(now) && self.reached <= self.oldest
    }

    /// It holds for another run as well: all was read, and not too long ago.
    pub(super) fn lasts(&self, now: i64) -> bool {
        let whole = self.reached <= self.oldest;
        let age = |at: &i64| now.saturating_sub(*at);
        whole && self.learnt.as_ref().is_some_and(|(at, _)| age(at) < self.wanted.of.length)
    }
}

/// A shorter window may be answered.
pub(super) fn is_too_wide(error: &QueryError) -> bool {
    matches!(error, QueryError::TooLarge(_) | QueryError::TooManySamples(_) | QueryError::Timeout)
}

#[cfg(test)]
mod tests;

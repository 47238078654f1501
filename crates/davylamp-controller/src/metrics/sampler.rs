//! When which metrics are asked for, and what was answered last.
//!
//! [`Sampler::want`] says what a Rollout needs, at each reconcile; [`Sampler::samples`] gives what there is of it, without
//! waiting. In between, one task for each `MetricSource` asks when a scrape is due and wakes the Rollout. A source that never
//! answers delays only the Rollouts that use it, and nothing is asked for a Rollout that wants nothing.

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use davylamp_api::MetricSourceSpec;
use davylamp_api::source::Limits;
use davylamp_engine::observed::{Learnt, Samples};
use davylamp_engine::{MetricQuery, Query};
use futures::future::{AbortHandle, Aborted, BoxFuture, abortable};
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use super::batch::{Failure, Texts, fetch, gap, texts};
use super::history::{Lesson, Step, WantedHistory, is_too_wide};
use super::{MetricsApi, QueryError};
use crate::clock::Clock;
use crate::key::Key;

/// A window is not longer than this: after a pause, the next follows when the engine has read it. One that was too wide is
/// halved, down to one scrape, and read piece by piece: each begins where the one before ended, for the engine moves `since`
/// only once a minute.
const LONGEST_WINDOW_MS: i64 = 600_000;
/// So many rounds are read at once, where each is a question of its own.
const LONGEST_ROUNDS: i64 = 20;
/// Nothing is asked again before this.
const SHORTEST_INTERVAL_MS: i64 = 1_000;
const LONGEST_REASON: usize = 500;
/// Rollouts whose past is in memory at once, for each source.
const MOST_LESSONS: usize = 2;

/// What a Rollout needs.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// What to ask.
    pub query: Query,
    /// Whom.
    pub source: MetricSourceSpec,
}

/// Asks for metrics, and keeps the last answers. Clones are one and the same; the last one ends its tasks.
#[derive(Clone)]
pub struct Sampler {
    inner: Arc<Inner>,
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sampler").finish_non_exhaustive()
    }
}

struct Inner {
    api: Arc<dyn MetricsApi>,
    clock: Clock,
    wake: Box<dyn Fn(&Key) + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    rollouts: BTreeMap<Key, Rollout>,
    lessons: BTreeMap<Key, Lesson>,
    sources: BTreeMap<String, Source>,
}

struct Rollout {
    /// A new one for each change: an answer to an older one is not kept.
    wanted: Arc<Wanted>,
    texts: Arc<Result<Texts, Failure>>,
    /// When to ask next, ms since 1970.
    due: i64,
    running: Option<AbortHandle>,
    samples: Option<Arc<Samples>>,
    /// The metrics that had too many series to read each.
    summed: BTreeSet<String>,
    /// No more is asked for at once, ms.
    window: i64,
}

struct Source {
    changed: Arc<Notify>,
    /// The namespace that was served last.
    served: String,
    /// And the one whose past was read last.
    taught: String,
    /// One; it ends with this.
    _task: JoinSet<()>,
}

impl Sampler {
    /// `wake` is called for a Rollout after each answer, and when its source begins to fail.
    pub fn new(api: Arc<dyn MetricsApi>, clock: Clock, wake: impl Fn(&Key) + Send + Sync + 'static) -> Self {
        let inner = Inner { api, clock, wake: Box::new(wake), state: Mutex::default() };
        Self { inner: Arc::new(inner) }
    }

    /// What the Rollout needs from now on; None for nothing, which forgets it. The same again changes nothing, a later
    /// `since` only asks for less, and any other change is asked for at once. Needs a runtime.
    pub fn want(&self, key: &Key, wanted: Option<Wanted>) {
        let now = self.inner.clock.now_ms();
        let mut state = self.inner.lock();
        let before = state.rollouts.get(key);
        if before.map(|rollout| &*rollout.wanted) == wanted.as_ref() {
            return;
        }
        let before = state.rollouts.remove(key);
        if let Some(before) = &before {
            before.cancel();
            state.changed(&before.wanted.query.source);
        }
        let Some(wanted) = wanted else { return };
        let source = wanted.query.source.clone();
        state.rollouts.insert(key.clone(), Rollout::new(&key.namespace, wanted, before, now));
        self.serve(&mut state, source);
    }

    /// What the Rollout needs to know of its stable pods' past; None for nothing. It is told once, in bounded time; what was
    /// read whole is remembered for the next run. Needs a runtime.
    pub fn learn(&self, key: &Key, wanted: Option<WantedHistory>) {
        let now = self.inner.clock.now_ms();
        let mut state = self.inner.lock();
        let before = state.lessons.get(key);
        let keep = match (before, &wanted) {
            (None, None) => true,
            (Some(before), None) => before.lasts(now),
            (Some(before), Some(wanted)) => *before.wanted == *wanted && !before.is_stale(now),
            (None, Some(_)) => false,
        };
        if keep {
            return;
        }
        if let Some(before) = state.lessons.remove(key) {
            before.cancel();
            state.changed(&before.wanted.of.query.source);
        }
        let Some(wanted) = wanted else { return };
        let source = wanted.of.query.source.clone();
        state.lessons.insert(key.clone(), Lesson::new(&key.namespace, wanted, now));
        self.serve(&mut state, source);
    }

    /// What was learnt of the past that is wanted now, or was before.
    #[must_use]
    pub fn learnt(&self, key: &Key) -> Option<Arc<Learnt>> {
        self.inner.lock().lessons.get(key)?.learnt()
    }

    /// The Rollout is gone.
    pub fn forget(&self, key: &Key) {
        self.want(key, None);
        let mut state = self.inner.lock();
        if let Some(lesson) = state.lessons.remove(key) {
            lesson.cancel();
            state.changed(&lesson.wanted.of.query.source);
        }
    }

    fn serve(&self, state: &mut State, source: String) {
        match state.sources.entry(source) {
            btree_map::Entry::Occupied(known) => known.get().changed.notify_one(),
            btree_map::Entry::Vacant(new) => {
                let source = Source::start(Arc::downgrade(&self.inner), new.key().clone());
                new.insert(source);
            }
        }
    }

    /// What was last answered to what is wanted now, perhaps from an earlier `since` on. None before the first answer or
    /// failure.
    #[must_use]
    pub fn samples(&self, key: &Key) -> Option<Arc<Samples>> {
        self.inner.lock().rollouts.get(key)?.samples.clone()
    }
}

impl Rollout {
    /// What was answered before is kept while it answers what is wanted now. That the source fails is known in any case.
    fn new(namespace: &str, wanted: Wanted, before: Option<Self>, now: i64) -> Self {
        let before = before.filter(|before| before.wanted.query.source == wanted.query.source);
        let continues = before.as_ref().is_some_and(|before| wanted.continues(&before.wanted));
        let known = before.as_ref().filter(|_| continues).map(|before| Arc::clone(&before.texts));
        let texts = known.unwrap_or_else(|| Arc::new(texts(namespace, &wanted)));
        let summed = before.as_ref().filter(|_| continues).map(|before| before.summed.clone());
        let window = before.as_ref().filter(|_| continues).map_or(LONGEST_WINDOW_MS, |before| before.window);
        let mut samples = before.and_then(|before| before.samples);
        let due = match &samples {
            Some(samples) if continues => wanted.readable_after(samples.until),
            Some(_) | None => now,
        };
        if !continues {
            let since = wanted.query.since;
            samples = samples.and_then(|before| before.failing.clone()).map(|failing| {
                Arc::new(Samples { since, until: since, failing: Some(failing), ..Samples::default() })
            });
        }
        let summed = summed.unwrap_or_default();
        Self { wanted: Arc::new(wanted), texts, due, running: None, samples, summed, window }
    }

    fn cancel(&self) {
        if let Some(running) = &self.running {
            running.abort();
        }
    }

    /// What came of the question for so many ms. Returns whether the Rollout is to be woken.
    fn settle(&mut self, key: &Key, asked: i64, outcome: Result<Samples, Failure>, clock: Clock) -> bool {
        self.running = None;
        let now = clock.now_ms();
        let soon = now.saturating_add(SHORTEST_INTERVAL_MS);
        self.due = self.wanted.due_after(now);
        let was_failing = self.samples.as_ref().and_then(|samples| samples.failing.clone());
        match outcome {
            Ok(mut samples) => {
                let before = self.samples.as_ref();
                let late = before.map_or(0, |before| before.late + later_than(before, &samples));
                if late > 0 && before.is_some_and(|before| before.late == 0) {
                    tracing::warn!(
                        namespace = key.namespace,
                        rollout = key.name,
                        "samples come later than spec.delay of the MetricSource says"
                    );
                }
                samples.late = late;
                if was_failing.is_some() {
                    tracing::info!(
                        namespace = key.namespace,
                        rollout = key.name,
                        "metrics can be read again"
                    );
                }
                self.summed.clone_from(&samples.summed);
                if self.window < LONGEST_WINDOW_MS {
                    if samples.until < self.wanted.latest() {
                        self.due = self.wanted.readable_after(samples.until).max(soon);
                    }
                    self.window = self.window.saturating_mul(2).min(LONGEST_WINDOW_MS);
                }
                self.samples = Some(Arc::new(samples));
                true
            }
            Err(failure) => {
                let since = self.wanted.query.since;
                let first = was_failing.is_none();
                self.summed.extend(failure.summed.iter().cloned());
                if is_too_wide(&failure.error) && asked > self.wanted.interval() {
                    self.window = (asked / 2).max(self.wanted.interval());
                    self.due = soon;
                    // It has answered: less is asked for. A source that says nothing may be away, whatever is asked.
                    if !matches!(*failure.error, QueryError::Timeout) {
                        return false;
                    }
                }
                if first {
                    let (reason, error) = (failure.error.reason(), &failure);
                    tracing::info!(
                        namespace = key.namespace,
                        rollout = key.name,
                        reason,
                        %error,
                        "metrics cannot be read"
                    );
                }
                let start = was_failing.map_or_else(|| clock.now(), |(start, _)| start);
                let samples = self
                    .samples
                    .get_or_insert_with(|| Arc::new(Samples { since, until: since, ..Samples::default() }));
                let text = failure.to_string().chars().take(LONGEST_REASON).collect();
                Arc::make_mut(samples).failing = Some((start, text));
                first
            }
        }
    }
}

impl Wanted {
    /// Between two scrapes, ms.
    fn interval(&self) -> i64 {
        self.query.scrape_interval_ms.max(SHORTEST_INTERVAL_MS)
    }

    /// Nothing after this is read before `since` moves.
    const fn latest(&self) -> i64 {
        self.query.since.saturating_add(LONGEST_WINDOW_MS)
    }

    /// What is read next when so much is known, after the first time and up to the second: all since `since`; or in a narrower
    /// window what is not known yet, from the end of a round on.
    fn span(&self, now: i64, known: Option<&Samples>, window: i64) -> (i64, i64) {
        let newest = now.saturating_sub(self.query.delay_ms);
        let interval = self.interval();
        let is_expression = |query: &MetricQuery| matches!(query, MetricQuery::Expression { .. });
        let asks_each_round = self.query.metrics.values().any(is_expression);
        let since = self.query.since;
        let known_until = known.map_or(since, |known| known.until.max(since));
        let rounds = if asks_each_round { LONGEST_ROUNDS.saturating_mul(interval) } else { i64::MAX };
        let until = newest.min(known_until.saturating_add(rounds)).min(self.latest());
        if window >= LONGEST_WINDOW_MS {
            return (since, until);
        }
        let from = known_until.saturating_sub(known_until.saturating_sub(since).rem_euclid(interval));
        (from, until.min(from.saturating_add(window)))
    }

    /// The same is wanted as before, from the same time or a later one. What is to be read as sums is learnt from what was read
    /// here.
    fn continues(&self, before: &Self) -> bool {
        let Self { query, source } = before;
        let moved = Query { since: self.query.since, summed: self.query.summed.clone(), ..query.clone() };
        query.since <= self.query.since && moved == self.query && *source == self.source
    }

    /// When the round of scrapes that ends after that data time can be read. Rounds are counted from `since`.
    fn readable_after(&self, at: i64) -> i64 {
        let Query { since, delay_ms, .. } = self.query;
        let interval = self.interval();
        let rounds = at.saturating_sub(since).div_euclid(interval).max(0).saturating_add(1);
        since.saturating_add(rounds.saturating_mul(interval)).saturating_add(delay_ms)
    }

    /// When the next round can be read.
    fn due_after(&self, now: i64) -> i64 {
        // Numbers that make no sense must not make the source be asked without end.
        let soonest = now.saturating_add(SHORTEST_INTERVAL_MS);
        self.readable_after(now.saturating_sub(self.query.delay_ms)).max(soonest)
    }
}

impl State {
    /// Of those who want something of the source.
    fn limits(&self, source: &str) -> Option<Limits> {
        let rollouts = self.rollouts.values().map(|rollout| (&rollout.wanted.query, &rollout.wanted.source));
        let lessons = self.lessons.values().filter(|lesson| lesson.learnt().is_none());
        let lessons = lessons.map(|lesson| (&lesson.wanted.of.query, &lesson.wanted.source));
        rollouts.chain(lessons).find(|(query, _)| query.source == source).map(|(_, source)| source.limits())
    }

    /// The one that this was asked for.
    fn lesson(&mut self, key: &Key, wanted: &Arc<WantedHistory>) -> Option<&mut Lesson> {
        self.lessons.get_mut(key).filter(|lesson| Arc::ptr_eq(&lesson.wanted, wanted))
    }

    fn changed(&self, source: &str) {
        if let Some(source) = self.sources.get(source) {
            source.changed.notify_one();
        }
    }
}

impl Source {
    fn start(inner: Weak<Inner>, name: String) -> Self {
        let changed = Arc::new(Notify::new());
        let mut task = JoinSet::new();
        task.spawn(serve(inner, name, Arc::clone(&changed)));
        Self { changed, served: String::new(), taught: String::new(), _task: task }
    }
}

type Batch = BoxFuture<'static, Result<Answered, Aborted>>;

enum Answered {
    Samples {
        key: Key,
        wanted: Arc<Wanted>,
        /// Of so many ms.
        asked: i64,
        outcome: Result<Samples, Failure>,
    },
    /// How far apart scrapes are.
    Gap {
        key: Key,
        wanted: Arc<WantedHistory>,
        outcome: Result<Option<i64>, Failure>,
    },
    /// A window of the past, which begins there.
    Past {
        key: Key,
        wanted: Arc<WantedHistory>,
        since: i64,
        outcome: Result<Samples, Failure>,
    },
    Learnt {
        key: Key,
        wanted: Arc<WantedHistory>,
        learnt: Arc<Learnt>,
    },
}

/// What a source's task does next.
enum Next {
    Start(Batch),
    /// For so long, unless something changes.
    Wait(Duration),
    /// Nobody wants anything.
    End,
}

/// The task of one source.
async fn serve(inner: Weak<Inner>, source: String, changed: Arc<Notify>) {
    let mut running = FuturesUnordered::new();
    loop {
        let wait = match inner.upgrade().map_or(Next::End, |inner| inner.next(&source, running.len())) {
            Next::Start(batch) => {
                running.push(batch);
                continue;
            }
            Next::Wait(wait) => wait,
            Next::End => return,
        };
        tokio::select! {
            Some(answered) = running.next() => {
                if let (Ok(answered), Some(inner)) = (answered, inner.upgrade()) {
                    inner.settle(answered);
                }
            }
            () = changed.notified() => {}
            () = sleep(wait) => {}
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn next(&self, source: &str, running: usize) -> Next {
        let now = self.clock.now_ms();
        let state = &mut *self.lock();
        let Some(limits) = state.limits(source) else {
            state.sources.remove(source);
            return Next::End;
        };
        if let Some(batch) = Self::learn(state, source, now) {
            return Next::Start(batch);
        }
        if running < limits.concurrency() {
            let due = self.start_due(state, source, now);
            if let Some(batch) = due.or_else(|| self.read_past(state, source, limits.concurrency(), now)) {
                return Next::Start(batch);
            }
        }
        let idle = state.rollouts.values().filter(|rollout| {
            rollout.wanted.query.source == source && rollout.running.is_none() && rollout.due > now
        });
        let lessons = state.lessons.values().filter(|lesson| lesson.wanted.of.query.source == source);
        let lessons = lessons.map(|lesson| match lesson.next(now) {
            Step::Wait(due) => due,
            Step::Gaps { .. } | Step::Read { .. } => lesson.deadline(),
            // What runs wakes this task by itself.
            Step::Learn | Step::Rest => i64::MAX,
        });
        let due = idle.map(|rollout| rollout.due).chain(lessons).min().unwrap_or(i64::MAX);
        Next::Wait(Duration::from_millis(due.saturating_sub(now).unsigned_abs()))
    }

    /// What was read of a past is learnt from.
    fn learn(state: &mut State, source: &str, now: i64) -> Option<Batch> {
        let mut lessons = state.lessons.iter_mut();
        let (key, lesson) = lessons
            .find(|(_, lesson)| lesson.wanted.of.query.source == source && lesson.next(now) == Step::Learn)?;
        let (history, trouble) = lesson.close()?;
        let (key, wanted) = (key.clone(), Arc::clone(&lesson.wanted));
        let (batch, handle) = abortable(async move {
            let learnt = aside(move || history.learn(trouble.as_deref())).await;
            Answered::Learnt { key, wanted, learnt: Arc::new(learnt) }
        });
        lesson.run(handle);
        Some(batch.boxed())
    }

    /// The next window of a past, when nobody waits for the present: for half of the places at most.
    fn read_past(&self, state: &mut State, source: &str, concurrency: usize, now: i64) -> Option<Batch> {
        let taught = &mut state.sources.get_mut(source)?.taught;
        let key = next_lesson(&state.lessons, source, taught, (concurrency / 2).max(1), now)?;
        let lesson = state.lessons.get_mut(&key)?;
        let step = lesson.next(now);
        taught.clone_from(&key.namespace);
        let (api, wanted) = (Arc::clone(&self.api), Arc::clone(&lesson.wanted));
        let texts = Arc::clone(&lesson.texts);
        let patience = lesson.patience(now);
        let (since, until) = match step {
            Step::Read { since, until } => (since, until),
            Step::Gaps { until, step } => {
                let question = lesson.question(until);
                let (batch, handle) = abortable(async move {
                    let outcome = timeout(patience, gap(&*api, &texts, &question, until, step)).await;
                    let late = |_| Err(Failure::of_source(&question, QueryError::Timeout));
                    Answered::Gap { key, wanted, outcome: outcome.unwrap_or_else(late) }
                });
                lesson.run(handle);
                return Some(batch.boxed());
            }
            Step::Wait(_) | Step::Learn | Step::Rest => return None,
        };
        let question = lesson.question(since);
        let (batch, handle) = abortable(async move {
            let asked = fetch(&*api, &texts, &question, until, None, has_many_series);
            let outcome = timeout(patience, asked).await;
            let outcome = outcome.unwrap_or_else(|_| Err(Failure::of_source(&question, QueryError::Timeout)));
            Answered::Past { key, wanted, since, outcome }
        });
        lesson.run(handle);
        Some(batch.boxed())
    }

    fn start_due(&self, state: &mut State, source: &str, now: i64) -> Option<Batch> {
        let served = &mut state.sources.get_mut(source)?.served;
        loop {
            let key = next_due(&state.rollouts, source, served, now)?;
            let rollout = state.rollouts.get_mut(&key)?;
            let known = rollout.samples.clone();
            let (from, until) = rollout.wanted.span(now, known.as_deref(), rollout.window);
            if until <= from {
                rollout.due = rollout.wanted.due_after(now);
                continue;
            }
            served.clone_from(&key.namespace);
            let (api, wanted) = (Arc::clone(&self.api), Arc::clone(&rollout.wanted));
            let texts = Arc::clone(&rollout.texts);
            let summed = rollout.wanted.query.summed.union(&rollout.summed).cloned().collect();
            let asked = until.saturating_sub(from);
            let too_many =
                if asked > wanted.interval() { has_many_series } else { QueryError::has_too_many_series };
            let (batch, handle) = abortable(async move {
                let query = Query { since: from, summed, ..wanted.query.clone() };
                let question = Wanted { query, ..(*wanted).clone() };
                let outcome = fetch(&*api, &texts, &question, until, known.as_deref(), too_many).await;
                let outcome = outcome.map(|samples| joined(samples, known.as_deref(), wanted.query.since));
                Answered::Samples { key, wanted, asked, outcome }
            });
            rollout.running = Some(handle);
            return Some(batch.boxed());
        }
    }

    fn settle(&self, answered: Answered) {
        let mut state = self.lock();
        let now = self.clock.now_ms();
        let (key, wake) = match answered {
            Answered::Samples { key, wanted, asked, outcome } => {
                let rollout = state.rollouts.get_mut(&key);
                let rollout = rollout.filter(|rollout| Arc::ptr_eq(&rollout.wanted, &wanted));
                let wake = rollout.is_some_and(|rollout| rollout.settle(&key, asked, outcome, self.clock));
                (key, wake)
            }
            Answered::Gap { key, wanted, outcome } => {
                if let Some(lesson) = state.lesson(&key, &wanted) {
                    lesson.settle_gap(outcome, now);
                }
                (key, false)
            }
            Answered::Past { key, wanted, since, outcome } => {
                if let Some(lesson) = state.lesson(&key, &wanted) {
                    lesson.settle(since, outcome, now);
                }
                (key, false)
            }
            Answered::Learnt { key, wanted, learnt } => {
                let lesson = state.lesson(&key, &wanted);
                let wake = lesson.is_some();
                if let Some(lesson) = lesson {
                    lesson.finish(learnt, now);
                }
                (key, wake)
            }
        };
        drop(state);
        if wake {
            (self.wake)(&key);
        }
    }
}

/// Of an answer that is too long a shorter window helps, of this none.
pub(super) fn has_many_series(error: &QueryError) -> bool {
    matches!(error, QueryError::TooManySeries { .. })
}

/// How many increments are there now of a time of which others were read before.
fn later_than(before: &Samples, now: &Samples) -> usize {
    if before.summed != now.summed {
        return 0;
    }
    let (since, until) = (now.since.max(before.since), before.until);
    let read = |samples: &Samples, metric: &str, pod: &str, target: &str| {
        let pods = samples.metrics.get(metric).map(|metric| &metric.pods);
        let increments = pods.and_then(|pods| pods.get(pod)?.get(target)).map_or(&[][..], Vec::as_slice);
        increments.iter().filter(|one| one.to > since && one.to <= until).count()
    };
    let late = now.metrics.iter().flat_map(|(metric, samples)| {
        samples.pods.iter().flat_map(move |(pod, targets)| {
            targets.keys().map(move |target| {
                read(now, metric, pod, target).saturating_sub(read(before, metric, pod, target))
            })
        })
    });
    late.sum()
}

/// A piece, and of what was known before it what is wanted still: an increment is the same in whatever window it is read.
fn joined(mut piece: Samples, known: Option<&Samples>, since: i64) -> Samples {
    let from = std::mem::replace(&mut piece.since, since);
    let known = known.filter(|_| from > since);
    for (metric, samples) in known.into_iter().flat_map(|known| &known.metrics) {
        for (pod, targets) in &samples.pods {
            for (target, increments) in targets {
                let before = increments.iter().filter(|one| one.to > since && one.to <= from);
                let before: Vec<_> = before.cloned().collect();
                if before.is_empty() {
                    continue;
                }
                let pods = &mut piece.metrics.entry(metric.clone()).or_default().pods;
                let after = pods.entry(pod.clone()).or_default().entry(target.clone()).or_default();
                after.splice(0..0, before);
            }
        }
    }
    piece
}

/// Work that takes a while, beside the other tasks. Where one thread does everything it is done at once: so a simulation is
/// what its seed makes it.
async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    if Handle::current().runtime_flavor() == RuntimeFlavor::CurrentThread {
        return work();
    }
    match spawn_blocking(work).await {
        Ok(done) => done,
        // It panicked, and so does this task; or the runtime is about to end.
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => std::future::pending().await,
        },
    }
}

/// The Rollout that is served next: of the next namespace in turn, the one that waits longest.
fn next_due(rollouts: &BTreeMap<Key, Rollout>, source: &str, served: &str, now: i64) -> Option<Key> {
    let idle = rollouts.iter().filter(|(_, rollout)| {
        rollout.wanted.query.source == source && rollout.running.is_none() && rollout.due <= now
    });
    let next = idle
        .min_by_key(|(key, rollout)| (key.namespace.as_str() <= served, &key.namespace, rollout.due, *key));
    next.map(|(key, _)| key.clone())
}

/// The past that is read next: one that was begun, of the next namespace in turn.
fn next_lesson(
    lessons: &BTreeMap<Key, Lesson>,
    source: &str,
    taught: &str,
    places: usize,
    now: i64,
) -> Option<Key> {
    let here = || lessons.iter().filter(|(_, lesson)| lesson.wanted.of.query.source == source);
    if here().filter(|(_, lesson)| lesson.is_running()).count() >= places {
        return None;
    }
    let full = here().filter(|(_, lesson)| lesson.is_open()).count() >= MOST_LESSONS;
    let readable = here().filter(|(_, lesson)| lesson.is_ready(now));
    let next = readable
        .filter(|(_, lesson)| lesson.is_open() || !full)
        .min_by_key(|(key, lesson)| (!lesson.is_open(), key.namespace.as_str() <= taught, *key));
    next.map(|(key, _)| key.clone())
}

#[cfg(test)]
mod tests;

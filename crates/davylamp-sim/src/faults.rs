//! What is broken now: [`Faults`], shared by everything that a fault can touch. It counts the controller's writes and
//! events, says what becomes of each, and keeps a record; it breaks nothing that the scenario does not name, and
//! carries no request itself.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use davylamp_world::World;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::fault::{Fault, What, When};
use crate::report::{Entry, Kind, Write};

/// A lost event is made good by a new list after this.
const UNTIL_LISTED: Duration = Duration::from_mins(1);
/// For how long Prometheus is slow.
const SLOW: Duration = Duration::from_mins(5);

/// Processes of the controller, by number.
pub(crate) type Process = u32;

/// What is broken now. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Faults {
    state: Arc<Mutex<State>>,
    world: World,
    start: Instant,
    /// Told when connections break.
    pub(crate) outage: Arc<Notify>,
}

#[derive(Debug, Default)]
struct State {
    /// Not yet begun, for numbers of writes and events.
    planned: Vec<Fault>,
    /// Meant for the next write, or the next event, whichever number it has.
    next_write: VecDeque<What>,
    next_event: VecDeque<What>,
    living: BTreeMap<Process, AbortHandle>,
    leader: Option<Process>,
    away_until: Option<Instant>,
    outages: u64,
    lag: Duration,
    metrics_away_until: Option<Instant>,
    metrics_slow: Option<(Instant, Duration)>,
    /// When all that has begun is over.
    over: Option<Instant>,
    writes: Vec<Write>,
    events: u64,
    news: Vec<Entry>,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Course {
    /// It is done and answered.
    Well,
    /// It is not done.
    Refuse(u16),
    /// It is done, but the answer is another.
    DoneBut(u16),
    /// The process ends; the write is done before that, or not at all.
    Die { done: bool },
    /// Nobody answers.
    Away,
}

/// What becomes of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// Told after so long.
    Told(Duration),
    /// Never told; at this time its watch ends.
    Lost(Instant),
}

impl Faults {
    /// Everything is well until the first of these; those at a time are begun by [`Faults::begin`].
    pub(crate) fn new(faults: &[Fault], world: World) -> Self {
        let planned = faults.iter().filter(|fault| !matches!(fault.when, When::At(_))).cloned().collect();
        let state = State { planned, ..State::default() };
        Self { state: Arc::new(Mutex::new(state)), world, start: Instant::now(), outage: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Since the start, in ms.
    pub(crate) fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// A process has begun.
    pub(crate) fn started(&self, process: Process, handle: AbortHandle) {
        self.state().living.insert(process, handle);
    }

    /// A process has ended, killed or not.
    pub(crate) fn ended(&self, process: Process) {
        let mut state = self.state();
        state.living.remove(&process);
        state.leader = state.leader.filter(|leader| *leader != process);
    }

    pub(crate) fn lives(&self, process: Process) -> bool {
        self.state().living.contains_key(&process)
    }

    /// A process has written the lease.
    pub(crate) fn leads(&self, process: Process) {
        self.state().leader = Some(process);
    }

    /// Some process may act.
    pub(crate) fn led(&self) -> bool {
        self.state().leader.is_some()
    }

    /// Something breaks now that nobody's write or event has brought about.
    pub(crate) fn begin(&self, what: &What) {
        let mut state = self.state();
        self.break_now(&mut state, what, "now");
    }

    fn break_now(&self, state: &mut State, what: &What, moment: &str) {
        let now = Instant::now();
        let mut until = now;
        let text = match what {
            What::CrashBefore | What::CrashAfter | What::HandOver => {
                state.kill(state.leader.or_else(|| state.living.keys().next().copied()));
                format!("the controller is killed {moment}")
            }
            What::Refuse(_) | What::DoneBut(_) => {
                state.next_write.push_back(what.clone());
                return;
            }
            What::Lose => {
                state.next_event.push_back(what.clone());
                return;
            }
            What::Lag(by) => {
                state.lag = Duration::from_millis(by.as_millis());
                format!("watches tell everything {by} late")
            }
            What::Away(last) => {
                until = now + Duration::from_millis(last.as_millis());
                state.away_until = state.away_until.max(Some(until));
                state.outages += 1;
                self.outage.notify_waiters();
                format!("the API server answers nobody for {last}")
            }
            What::MetricsAway(last) => {
                until = now + Duration::from_millis(last.as_millis());
                state.metrics_away_until = state.metrics_away_until.max(Some(until));
                format!("Prometheus answers nobody for {last}")
            }
            What::MetricsSlow(after) => {
                until = now + SLOW;
                state.metrics_slow = Some((until, Duration::from_millis(after.as_millis())));
                format!("Prometheus answers after {after}, for five minutes")
            }
            What::MetricsEmpty => {
                self.world.forget_samples();
                "Prometheus has lost all samples".to_owned()
            }
        };
        state.over = state.over.max(Some(until));
        self.tell(state, text);
    }

    fn tell(&self, state: &mut State, text: String) {
        state.news.push(Entry { at_ms: self.now_ms(), kind: Kind::Fault, text });
    }

    /// Something else went wrong that the reader should know of.
    pub(crate) fn note(&self, text: String) {
        self.tell(&mut self.state(), text);
    }

    /// What is new since the last call.
    pub(crate) fn news(&self) -> Vec<Entry> {
        std::mem::take(&mut self.state().news)
    }

    /// When all that has begun until now is over.
    pub(crate) fn over(&self) -> Option<Instant> {
        self.state().over
    }

    /// The API server does not answer.
    pub(crate) fn away(&self) -> bool {
        self.state().away()
    }

    /// How often connections have broken.
    pub(crate) fn outages(&self) -> u64 {
        self.state().outages
    }

    /// A write: its place in the record, and what becomes of it.
    pub(crate) fn write(&self, process: Process, write: Write) -> (usize, Course) {
        let mut state = self.state();
        let asked = format!("{} {}", write.verb, write.path);
        let index = state.writes.len();
        state.writes.push(write);
        let number = u64::try_from(index).unwrap_or(u64::MAX).saturating_add(1);
        let mut dies = None;
        for what in state.take(&When::Write(number)) {
            match what {
                What::CrashBefore | What::HandOver => dies = Some(false),
                What::CrashAfter => dies = Some(true),
                What::Refuse(_) | What::DoneBut(_) => state.next_write.push_front(what),
                What::Lose
                | What::Lag(_)
                | What::Away(_)
                | What::MetricsAway(_)
                | What::MetricsSlow(_)
                | What::MetricsEmpty => self.break_now(&mut state, &what, ""),
            }
        }
        if let Some(done) = dies {
            let when = if done { "after" } else { "before" };
            self.tell(&mut state, format!("the controller is killed {when} write {number}: {asked}"));
            // A write that is to be done is done by its process.
            if !done {
                state.kill(Some(process));
            }
            state.over = state.over.max(Some(Instant::now()));
            return (index, Course::Die { done });
        }
        if state.away() {
            return (index, Course::Away);
        }
        let (course, text) = match state.next_write.pop_front() {
            Some(What::Refuse(code)) => (Course::Refuse(code), format!("is refused with {code}")),
            Some(What::DoneBut(code)) => {
                (Course::DoneBut(code), format!("is done, but answered with {code}"))
            }
            _ => return (index, Course::Well),
        };
        self.tell(&mut state, format!("write {number} {text}: {asked}"));
        (index, course)
    }

    /// The answer to a write.
    pub(crate) fn written(&self, index: usize, code: u16) {
        if let Some(write) = self.state().writes.get_mut(index) {
            write.code = code;
        }
    }

    /// A process is killed now.
    pub(crate) fn kill(&self, process: Process) {
        self.state().kill(Some(process));
    }

    /// What becomes of an event that a watch is to tell.
    pub(crate) fn event(&self, process: Process, path: &str) -> Fate {
        let mut state = self.state();
        state.events += 1;
        let number = state.events;
        for what in state.take(&When::Event(number)) {
            match what {
                What::CrashBefore | What::CrashAfter | What::HandOver => {
                    self.tell(&mut state, format!("the controller is killed at event {number} of {path}"));
                    state.kill(Some(process));
                }
                What::Lose => state.next_event.push_front(what),
                What::Refuse(_)
                | What::DoneBut(_)
                | What::Lag(_)
                | What::Away(_)
                | What::MetricsAway(_)
                | What::MetricsSlow(_)
                | What::MetricsEmpty => self.break_now(&mut state, &what, ""),
            }
        }
        if state.next_event.pop_front().is_some() {
            let until = Instant::now() + UNTIL_LISTED;
            state.over = state.over.max(Some(until));
            self.tell(&mut state, format!("event {number} of {path} is lost"));
            return Fate::Lost(until);
        }
        Fate::Told(state.lag)
    }

    /// By how much watches are late.
    pub(crate) fn lag(&self) -> Duration {
        self.state().lag
    }

    /// None when Prometheus does not answer, else after how long it does.
    pub(crate) fn metrics_after(&self) -> Option<Duration> {
        let (state, now) = (self.state(), Instant::now());
        if state.metrics_away_until.is_some_and(|until| now < until) {
            return None;
        }
        Some(state.metrics_slow.filter(|(until, _)| now < *until).map_or(Duration::ZERO, |(_, after)| after))
    }

    /// All writes in order, and the number of events.
    pub(crate) fn record(&self) -> (Vec<Write>, u64) {
        let state = self.state();
        (state.writes.clone(), state.events)
    }
}

impl State {
    fn away(&self) -> bool {
        self.away_until.is_some_and(|until| Instant::now() < until)
    }

    fn kill(&mut self, process: Option<Process>) {
        let Some(process) = process else { return };
        if let Some(handle) = self.living.remove(&process) {
            handle.abort();
        }
        self.leader = self.leader.filter(|leader| *leader != process);
    }

    /// Faults that are planned for this moment.
    fn take(&mut self, moment: &When) -> Vec<What> {
        self.planned.extract_if(.., |fault| fault.when == *moment).map(|fault| fault.what).collect()
    }
}

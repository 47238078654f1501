//! The time in the world: a start, and from then on as much more as passes for the runtime, which a test can pause.

use davylamp_api::Instant;

/// Says what time it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    start: Instant,
    since: tokio::time::Instant,
}

impl Clock {
    /// It is `start` now.
    pub(crate) fn starting_at(start: Instant) -> Self {
        Self { start, since: tokio::time::Instant::now() }
    }

    /// The time.
    pub(crate) fn now(&self) -> Instant {
        self.start.saturating_add(self.since.elapsed()).unwrap_or(self.start)
    }

    /// The time in whole seconds, as metadata has it.
    pub(crate) fn seconds(&self) -> String {
        let now = self.now();
        Instant::from_second(now.as_second()).unwrap_or(now).to_string()
    }

    /// The time so many seconds from now, likewise.
    pub(crate) fn in_seconds(&self, seconds: i64) -> String {
        let then = self.now().as_second().saturating_add(seconds);
        Instant::from_second(then).unwrap_or(self.start).to_string()
    }
}

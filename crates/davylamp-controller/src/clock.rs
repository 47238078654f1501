//! The time: the system's, or a start plus the runtime's, which a test can pause. Nothing else here reads a clock.

use davylamp_api::Instant;

/// Says what time it is, in whole milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    virtual_start: Option<(Instant, tokio::time::Instant)>,
}

impl Clock {
    /// The time of the system.
    #[must_use]
    pub const fn system() -> Self {
        Self { virtual_start: None }
    }

    /// `start`, and from now on as much more as passes for the runtime.
    #[must_use]
    pub fn virtual_from(start: Instant) -> Self {
        Self { virtual_start: Some((start, tokio::time::Instant::now())) }
    }

    /// The time, truncated to milliseconds.
    #[must_use]
    pub fn now(&self) -> Instant {
        let now = match self.virtual_start {
            None => system_now(),
            Some((start, since)) => start.saturating_add(since.elapsed()).unwrap_or(start),
        };
        Instant::from_millisecond(now.as_millisecond()).unwrap_or(now)
    }

    /// The time in milliseconds since 1970.
    #[must_use]
    pub fn now_ms(&self) -> i64 {
        self.now().as_millisecond()
    }
}

#[allow(clippy::disallowed_methods, reason = "the one place where the system's clock is read")]
fn system_now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn virtual_time_is_the_runtimes() {
        let start: Instant = "2026-03-01T12:00:00.0009Z".parse().unwrap();
        let clock = Clock::virtual_from(start);
        assert_eq!(clock.now().to_string(), "2026-03-01T12:00:00Z");
        tokio::time::sleep(Duration::from_hours(24)).await;
        assert_eq!(clock.now().to_string(), "2026-03-02T12:00:00Z");
    }

    #[test]
    fn system_time_has_whole_milliseconds() {
        assert_eq!(Clock::system().now().subsec_nanosecond() % 1_000_000, 0);
    }
}

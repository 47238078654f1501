//! When each request is due: at a constant rate from the beginning, whatever became of the ones before. A request
//! that nobody could take in time is left out, so that no burst follows a slow while. It reads no clock.

use std::time::Duration;

use tokio::time::Instant;

/// A request may be this much behind its time; then it is left out.
const TOLERANCE: Duration = Duration::from_millis(100);

/// Hands out the times of requests, each once.
#[derive(Debug)]
pub(crate) struct Schedule {
    begin: Instant,
    /// No request is due then or later.
    end: Instant,
    /// Requests per second.
    rate: u64,
    /// The index of the next request.
    next: u64,
    /// How many there are at most.
    limit: u64,
}

/// What a free connection gets to do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Claim {
    /// When to send its request; nothing if there are no more.
    pub(crate) due: Option<Instant>,
    /// How many requests were left out before.
    pub(crate) late: u64,
}

impl Schedule {
    pub(crate) fn new(begin: Instant, duration: Duration, rate: u32, limit: u64) -> Self {
        Self { begin, end: begin + duration, rate: rate.into(), next: 0, limit }
    }

    /// The next request that is not too late at `now`.
    #[must_use]
    pub(crate) fn claim(&mut self, now: Instant) -> Claim {
        let mut late = 0;
        while let Some(due) = self.due() {
            self.next += 1;
            if now <= due + TOLERANCE {
                return Claim { due: Some(due), late };
            }
            late += 1;
        }
        Claim { due: None, late }
    }

    fn due(&self) -> Option<Instant> {
        let due = self.begin + Duration::from_nanos(self.next * 1_000_000_000 / self.rate);
        (self.next < self.limit && due < self.end).then_some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_mins(1);

    fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    #[test]
    fn requests_are_due_at_a_constant_rate() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, MINUTE, 200, 1_000_000);
        for index in 0..5 {
            assert_eq!(schedule.claim(begin), Claim { due: Some(begin + millis(5 * index)), late: 0 });
        }
    }

    #[test]
    fn the_number_of_requests_is_rate_times_duration() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, Duration::from_secs(2), 3, 1_000_000);
        let claims = std::iter::from_fn(|| schedule.claim(begin).due).count();
        assert_eq!(claims, 6);
    }

    #[test]
    fn the_limit_ends_it_earlier() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, MINUTE, 100, 2);
        assert!(schedule.claim(begin).due.is_some());
        assert!(schedule.claim(begin).due.is_some());
        assert_eq!(schedule.claim(begin), Claim { due: None, late: 0 });
    }

    #[test]
    fn a_request_nobody_could_take_in_time_is_left_out() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, MINUTE, 100, 1_000_000);
        let now = begin + Duration::from_secs(1);
        assert_eq!(schedule.claim(now), Claim { due: Some(now - TOLERANCE), late: 90 });
        assert_eq!(schedule.claim(now), Claim { due: Some(now - TOLERANCE + millis(10)), late: 0 });
    }

    #[test]
    fn what_is_left_at_the_end_is_late() {
        let begin = Instant::now();
        let mut schedule = Schedule::new(begin, Duration::from_secs(1), 10, 1_000_000);
        assert_eq!(schedule.claim(begin + MINUTE), Claim { due: None, late: 10 });
    }
}

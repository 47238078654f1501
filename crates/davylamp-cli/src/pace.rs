//! How quickly virtual time passes for those who watch: [`Speed`], as it is written, and [`Pace`], which keeps it. The one
//! place here that reads the system's clock.

use std::str::FromStr;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// `60x`, or `max`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Speed {
    /// So many virtual seconds a second.
    Times(f64),
    /// As quickly as the machine can.
    Max,
}

impl FromStr for Speed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "max" {
            return Ok(Self::Max);
        }
        let times = text.strip_suffix('x').and_then(|number| number.parse().ok());
        match times {
            Some(times) if (0.1..=100_000.0).contains(&times) => Ok(Self::Times(times)),
            _ => Err("write a speed like 60x, or max".to_owned()),
        }
    }
}

/// Keeps a speed from its first moment on.
#[derive(Debug)]
pub(crate) struct Pace {
    speed: Speed,
    start: Instant,
    drawn: Option<Instant>,
}

const BETWEEN_DRAWINGS: Duration = Duration::from_millis(100);

impl Pace {
    pub(crate) fn new(speed: Speed) -> Self {
        Self { speed, start: now(), drawn: None }
    }

    /// Blocks until so much virtual time may have passed.
    pub(crate) fn keep(&self, at: Duration) {
        if let Speed::Times(times) = self.speed {
            sleep((self.start + at.div_f64(times)).saturating_duration_since(now()));
        }
    }

    /// Whether the last drawing is so old that another one is worth it.
    pub(crate) fn draws(&mut self) -> bool {
        let now = now();
        let due = self.drawn.is_none_or(|drawn| now.duration_since(drawn) >= BETWEEN_DRAWINGS);
        if due {
            self.drawn = Some(now);
        }
        due
    }
}

#[allow(
    clippy::disallowed_methods,
    reason = "a speed is kept by the system's clock; no figure depends on it"
)]
fn now() -> Instant {
    Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn speeds_are_times_or_max() {
        assert_eq!("60x".parse(), Ok(Speed::Times(60.0)));
        assert_eq!("0.5x".parse(), Ok(Speed::Times(0.5)));
        assert_eq!("max".parse(), Ok(Speed::Max));
        for text in ["", "x", "60", "0x", "-1x", "NaNx", "infx", "fast"] {
            assert!(text.parse::<Speed>().is_err(), "{text}");
        }
    }
}

//! Numbers as people read them at a terminal.

use std::time::Duration;

pub(crate) use davylamp_engine::figures::{about, count, counted, digits, requests, whole};

/// A time since the start, like `4:07` or `1:04:07`.
pub(crate) fn clock(at: Duration) -> String {
    let s = at.as_secs();
    match s / 3_600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

/// A length of time to the second, like `4m7s`.
pub(crate) fn length(ms: u64) -> String {
    davylamp_api::scalar::Duration::from_millis(ms.saturating_add(500) / 1_000 * 1_000).to_string()
}

/// A part of a whole in percent: `0.52 %`; nothing of nothing is `-`.
pub(crate) fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.2} %", 100.0 * float(part) / float(whole)) }
}

/// To be calculated with, not counted.
#[allow(clippy::cast_precision_loss, reason = "nobody counts that far")]
pub(crate) const fn float(n: u64) -> f64 {
    n as f64
}

/// A whole number as an index.
pub(crate) fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_them() {
        assert_eq!(clock(Duration::from_secs(247)), "4:07");
        assert_eq!(clock(Duration::from_secs(3_847)), "1:04:07");
        assert_eq!(length(247_300), "4m7s");
        assert_eq!([share(1, 200), share(0, 0)], ["0.50 %", "-"]);
    }
}

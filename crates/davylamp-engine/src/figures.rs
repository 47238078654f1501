//! Numbers as people read them.

use std::time::Duration;

/// A time since the start, like `4:07` or `1:04:07`.
#[must_use]
pub fn clock(at: Duration) -> String {
    let s = at.as_secs();
    match s / 3_600 {
        0 => format!("{}:{:02}", s / 60, s % 60),
        hours => format!("{hours}:{:02}:{:02}", s / 60 % 60, s % 60),
    }
}

/// A length of time to the second, like `4m7s`.
#[must_use]
pub fn length(ms: u64) -> String {
    davylamp_api::scalar::Duration::from_millis(ms.saturating_add(500) / 1_000 * 1_000).to_string()
}

/// A length of time as people say it, or never.
#[must_use]
pub fn about(seconds: Option<u64>) -> String {
    let Some(s) = seconds else { return "never".to_owned() };
    match s {
        0..600 => davylamp_api::scalar::Duration::from_secs(s).to_string(),
        600..36_000 => davylamp_api::scalar::Duration::from_secs((s + 30) / 60 * 60).to_string(),
        36_000..360_000 => format!("{}h", (s + 1_800) / 3_600),
        360_000.. => format!("{}d", count((s + 43_200) / 86_400)),
    }
}

/// With separators: `12,345`.
#[must_use]
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 request`, `2 requests`.
#[must_use]
pub fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A part of a whole in percent: `0.52 %`; nothing of nothing is `-`.
#[must_use]
pub fn share(part: u64, whole: u64) -> String {
    if whole == 0 { "-".to_owned() } else { format!("{:.2} %", 100.0 * float(part) / float(whole)) }
}

/// As many digits behind the point as say something.
#[must_use]
pub fn digits(x: f64) -> String {
    let text = if x < 0.1 { format!("{x:.4}") } else { format!("{x:.2}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// To be calculated with, not counted.
#[allow(clippy::cast_precision_loss, reason = "nobody counts that far")]
#[must_use]
pub const fn float(n: u64) -> f64 {
    n as f64
}

/// To the nearest whole, from 0 on.
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "it is no less than 0 and saturates"
)]
#[must_use]
pub fn whole(x: f64) -> u64 {
    x.max(0.0).round() as u64
}

/// A whole number as an index.
#[must_use]
pub fn index(n: u64) -> usize {
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
        assert_eq!(
            [count(0), count(999), count(1_000), count(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([counted(1, "run"), counted(2, "run")], ["1 run", "2 runs"]);
        assert_eq!([share(1, 200), share(0, 0)], ["0.50 %", "-"]);
        assert_eq!(
            [None, Some(59), Some(599), Some(5_430), Some(90_000), Some(1_000_000_000)].map(about),
            ["never", "59s", "9m59s", "1h31m", "25h", "11,574d"]
        );
        assert_eq!([whole(-3.0), whole(2.5)], [0, 3]);
    }
}

//! Numbers as people read them.

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

/// So many requests, of those in one second: `0.5 requests`, `1,234 requests`.
#[must_use]
pub fn requests(rate: f64) -> String {
    match digits(rate).as_str() {
        "1" => counted(1, "request"),
        few if rate < 10.0 => format!("{few} requests"),
        _ => counted(whole(rate), "request"),
    }
}

/// To the nearest number with two digits that say something, from ten on.
#[must_use]
pub fn two_digits(x: f64) -> f64 {
    if x < 10.0 { x } else { libm::round(x / unit(x)) * unit(x) }
}

/// Rounded up to the next such number, at least to a whole one.
#[must_use]
pub fn two_digits_up(x: f64) -> f64 {
    let unit = unit(x).max(1.0);
    libm::ceil(x / unit) * unit
}

fn unit(x: f64) -> f64 {
    libm::pow(10.0, libm::floor(libm::log10(x)) - 1.0)
}

/// As many digits behind the point as say something.
#[must_use]
pub fn digits(x: f64) -> String {
    let text = if x < 0.1 { format!("{x:.4}") } else { format!("{x:.2}") };
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn people_can_read_them() {
        assert_eq!(
            [count(0), count(999), count(1_000), count(1_234_567)],
            ["0", "999", "1,000", "1,234,567"]
        );
        assert_eq!([counted(1, "run"), counted(2, "run")], ["1 run", "2 runs"]);
        assert_eq!(
            [0.52, 1.0, 9.5, 1_234.4].map(requests),
            ["0.52 requests", "1 request", "9.5 requests", "1,234 requests"]
        );
        let rates = [0.12, 12.4, 213.0, 9_961.0];
        assert_eq!(rates.map(two_digits).map(digits), ["0.12", "12", "210", "10000"]);
        assert_eq!(rates.map(two_digits_up).map(digits), ["1", "13", "220", "10000"]);
        assert_eq!([whole(-3.0), whole(2.5)], [0, 3]);
    }
}

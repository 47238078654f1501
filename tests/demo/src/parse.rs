//! How flags and the environment write shares, ratios and durations. Every function takes the text and gives
//! the value or what is wrong with it; none has a default.

use std::time::Duration;

use jiff::SignedDuration;

/// What is wrong with a value.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseError {
    #[error("write a number, as in `2%` or `0.02`")]
    NotANumber,
    #[error("a ratio is not negative")]
    Negative,
    #[error("a share is at most 100%, which is 1; two percent are `2%` or `0.02`")]
    MoreThanAll,
    #[error("write a duration with its unit, as in `5ms`, `60s` or `1m 30s`")]
    NotADuration,
}

/// A part of a whole, from 0 to 1: `2%` and `0.02` are the same.
pub fn share(text: &str) -> Result<f64, ParseError> {
    ratio(text).and_then(|ratio| if ratio <= 1.0 { Ok(ratio) } else { Err(ParseError::MoreThanAll) })
}

/// A number that is finite and not negative, with or without a percent sign.
pub fn ratio(text: &str) -> Result<f64, ParseError> {
    let text = text.trim();
    let (number, divisor) = text.strip_suffix('%').map_or((text, 1.0), |number| (number.trim_end(), 100.0));
    match number.parse::<f64>() {
        Ok(value) if value < 0.0 => Err(ParseError::Negative),
        Ok(value) if value.is_finite() => Ok(value / divisor),
        _ => Err(ParseError::NotANumber),
    }
}

/// A duration with its unit, such as `5ms`, `60s` or `1m 30s`.
pub fn duration(text: &str) -> Result<Duration, ParseError> {
    let signed: SignedDuration = text.trim().parse().map_err(|_| ParseError::NotADuration)?;
    signed.try_into().map_err(|_| ParseError::NotADuration)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_a_percentage_or_a_fraction() {
        assert_eq!(share("2%"), Ok(0.02));
        assert_eq!(share(" 0.5 % "), Ok(0.005));
        assert_eq!(share("0.02"), Ok(0.02));
        assert_eq!(share("0"), Ok(0.0));
        assert_eq!(share("100%"), Ok(1.0));
        assert_eq!(share("1"), Ok(1.0));
    }

    #[test]
    fn a_share_is_neither_negative_nor_more_than_all() {
        assert_eq!(share("2"), Err(ParseError::MoreThanAll));
        assert_eq!(share("101%"), Err(ParseError::MoreThanAll));
        assert_eq!(share("-1%"), Err(ParseError::Negative));
        for text in ["", "%", "two", "NaN", "inf", "2%%"] {
            assert_eq!(share(text), Err(ParseError::NotANumber), "{text:?}");
        }
    }

    #[test]
    fn a_ratio_may_exceed_one() {
        assert_eq!(ratio("150%"), Ok(1.5));
        assert_eq!(ratio("2"), Ok(2.0));
    }

    #[test]
    fn a_duration_has_a_unit() {
        assert_eq!(duration("5ms"), Ok(Duration::from_millis(5)));
        assert_eq!(duration("60s"), Ok(Duration::from_mins(1)));
        assert_eq!(duration("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(duration("0s"), Ok(Duration::ZERO));
        for text in ["", "5", "-5s", "soon"] {
            assert_eq!(duration(text), Err(ParseError::NotADuration), "{text:?}");
        }
    }
}

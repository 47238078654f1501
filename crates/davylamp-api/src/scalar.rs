//! Bounded scalars whose schema says what to write: [`Percent`], [`Duration`], [`Selector`] and [`PodTemplate`].

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A share from 0 % to 100 % with a resolution of 0.01 %, written like `"2.5%"`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Percent(u16);

impl Percent {
    /// Nothing.
    pub const ZERO: Self = Self(0);
    /// All of it.
    pub const FULL: Self = Self(10_000);

    /// From hundredths of a percent; more than 10,000 is taken as 100 %.
    #[must_use]
    pub const fn from_basis_points(bp: u16) -> Self {
        if bp > 10_000 { Self::FULL } else { Self(bp) }
    }

    /// In hundredths of a percent, 0 to 10,000.
    #[must_use]
    pub const fn basis_points(self) -> u16 {
        self.0
    }

    /// As a share from 0 to 1.
    #[must_use]
    pub fn share(self) -> f64 {
        f64::from(self.0) / 10_000.0
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, rest) = (self.0 / 100, self.0 % 100);
        match (rest, rest % 10) {
            (0, _) => write!(f, "{whole}%"),
            (_, 0) => write!(f, "{whole}.{}%", rest / 10),
            _ => write!(f, "{whole}.{rest:02}%"),
        }
    }
}

/// A text that is no percentage, duration or the like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParseError(String);

impl fmt::Display for ParseError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ParseError {}

impl FromStr for Percent {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused =
            || ParseError(format!("{text:?} is no percentage from 0% to 100%: write one like \"2.5%\""));
        let number = text.strip_suffix('%').ok_or_else(refused)?;
        let (whole, rest) = number.split_once('.').unwrap_or((number, "0"));
        let digits =
            |s: &str, max: usize| (1..=max).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole, 3) || !digits(rest, 2) {
            return Err(refused());
        }
        let hundredths = rest.parse::<u32>().map_err(|_| refused())? * if rest.len() == 1 { 10 } else { 1 };
        let bp = whole.parse::<u32>().map_err(|_| refused())? * 100 + hundredths;
        match u16::try_from(bp) {
            Ok(bp) if bp <= 10_000 => Ok(Self(bp)),
            _ => Err(refused()),
        }
    }
}

/// A length of time, written as in Go: `"1h30m"`, `"90s"`, `"500ms"`. Milliseconds inside, at most 1,000 hours.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Duration(u64);

const LONGEST_MS: u64 = 1_000 * 3_600_000;

impl Duration {
    /// From milliseconds; more than 1,000 hours is taken as 1,000 hours.
    #[must_use]
    pub const fn from_millis(ms: u64) -> Self {
        if ms > LONGEST_MS { Self(LONGEST_MS) } else { Self(ms) }
    }

    /// From seconds.
    #[must_use]
    pub const fn from_secs(s: u64) -> Self {
        Self::from_millis(s.saturating_mul(1_000))
    }

    /// In milliseconds.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// In milliseconds, to be added to a time.
    #[must_use]
    #[allow(clippy::cast_possible_wrap, reason = "at most 1,000 hours")]
    pub const fn millis(self) -> i64 {
        self.0 as i64
    }

    /// In seconds.
    #[must_use]
    #[allow(clippy::cast_precision_loss, reason = "at most 1,000 hours")]
    pub fn as_secs_f64(self) -> f64 {
        self.0 as f64 / 1_000.0
    }
}

impl fmt::Display for Duration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let mut left = self.0;
        for (unit, ms) in [("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)] {
            if left >= ms {
                write!(f, "{}{unit}", left / ms)?;
                left %= ms;
            }
        }
        Ok(())
    }
}

impl FromStr for Duration {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let refused = || {
            ParseError(format!(
                "{text:?} is no duration of at most 1000h: write one like \"90s\" or \"1h30m\""
            ))
        };
        let mut left = text;
        let mut total = 0_u64;
        if left.is_empty() || left.len() > 32 {
            return Err(refused());
        }
        while !left.is_empty() {
            let digits = left.bytes().take_while(u8::is_ascii_digit).count();
            let number: u64 = left[..digits].parse().map_err(|_| refused())?;
            left = &left[digits..];
            let (unit, ms) = [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)]
                .into_iter()
                .find(|(unit, _)| left.starts_with(unit))
                .ok_or_else(refused)?;
            left = &left[unit.len()..];
            total = number.checked_mul(ms).and_then(|n| total.checked_add(n)).ok_or_else(refused)?;
        }
        if total > LONGEST_MS { Err(refused()) } else { Ok(Self(total)) }
    }
}

macro_rules! text_scalar {
    ($kind:ident, $max:literal, $rule:literal, $message:literal) => {
        impl Serialize for $kind {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $kind {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }

        impl JsonSchema for $kind {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($kind).into()
            }

            fn inline_schema() -> bool {
                true
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "type": "string",
                    "maxLength": $max,
                    "x-kubernetes-validations": [{"rule": $rule, "message": $message}]
                })
            }
        }
    };
}

text_scalar!(
    Percent,
    8,
    r"self.matches('^(100([.]0{1,2})?|[0-9]{1,2}([.][0-9]{1,2})?)%$')",
    "write a percentage from 0% to 100% with at most two decimals, like \"2.5%\""
);
text_scalar!(
    Duration,
    32,
    r"self.matches('^([0-9]{1,9}(ms|s|m|h)){1,4}$') && duration(self) <= duration('1000h')",
    "write a duration of at most 1000h, like \"90s\" or \"1h30m\""
);

/// A label selector without expressions, bounded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Labels that a pod must carry.
    #[schemars(schema_with = "label_map")]
    pub match_labels: BTreeMap<String, String>,
}

fn label_map(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 63}
    })
}

/// A pod template as the user wrote it: opaque, so that no field of a newer Kubernetes is lost.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodTemplate(pub serde_json::Value);

impl JsonSchema for PodTemplate {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "PodTemplate".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // Lists keyed by name, so that the server-side apply of one container's image owns that container alone.
        let named = |max: u32| {
            json_schema!({
                "type": "array",
                "maxItems": max,
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["name"],
                "items": {
                    "type": "object",
                    "required": ["name"],
                    "properties": {"name": {"type": "string", "maxLength": 253}},
                    "x-kubernetes-preserve-unknown-fields": true
                }
            })
        };
        json_schema!({
            "type": "object",
            "required": ["metadata", "spec"],
            "x-kubernetes-preserve-unknown-fields": true,
            "properties": {
                "metadata": {
                    "type": "object",
                    "required": ["labels"],
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {"labels": {
                        "type": "object",
                        "maxProperties": 64,
                        "additionalProperties": {"type": "string", "maxLength": 63}
                    }}
                },
                "spec": {
                    "type": "object",
                    "required": ["containers"],
                    "x-kubernetes-preserve-unknown-fields": true,
                    "properties": {
                        "containers": named(64),
                        "initContainers": named(64),
                        "volumes": named(128)
                    }
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_keep_their_text() {
        for text in ["0%", "0.01%", "2.5%", "33.33%", "99.9%", "100%"] {
            assert_eq!(text.parse::<Percent>().unwrap().to_string(), text);
        }
        for text in ["", "%", "5", "-1%", "101%", "100.01%", "1.234%", "1e1%", " 5%", "5 %", ".5%", "5.%"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }

    #[test]
    fn durations_are_read_as_in_go() {
        for (text, ms) in
            [("0s", 0), ("500ms", 500), ("90s", 90_000), ("1h30m", 5_400_000), ("1m500ms", 60_500)]
        {
            assert_eq!(text.parse::<Duration>().unwrap().as_millis(), ms);
        }
        assert_eq!("90s".parse::<Duration>().unwrap().to_string(), "1m30s");
        for text in ["", "10 minutes", "5", "m", "-1s", "1001h", "99999999999999999999s", "1.5h"] {
            assert!(text.parse::<Duration>().is_err(), "{text}");
        }
    }
}

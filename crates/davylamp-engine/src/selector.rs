//! The selectors that a user writes for a counter: plain ones, to which matchers can be added. Takes the text, gives the
//! parsed selector or what is wrong with it; knows no pods and sends nothing. [`fill`] puts values in the place of
//! `{{args.NAME}}`.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use promql_parser::label::MatchOp;
use promql_parser::parser::{self, Expr, VectorSelector};

use crate::expression::ExpressionError;

/// A longer text is refused unread: the parser's work and depth grow with it.
pub const LONGEST: usize = 4096;

/// Why a text cannot be used as a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// It is too long.
    #[error("longer than {LONGEST} characters")]
    TooLong,
    /// It is no `PromQL`.
    #[error("not a selector: {0}")]
    Syntax(String),
    /// It is `PromQL`, and not a vector selector.
    #[error("{0} is not a plain selector: counters are read raw and compared scrape by scrape")]
    NotPlain(&'static str),
    /// It has `offset` or `@`.
    #[error("a selector with {0}: the time is chosen by the analysis")]
    Time(&'static str),
    /// It has alternatives between its matchers.
    #[error("a selector that joins matchers by `or`")]
    Or,
    /// It selects something of a histogram, or nothing by name.
    #[error("not the name of a histogram")]
    NoHistogram,
}

impl SelectorError {
    /// What to write instead.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::TooLong => "shorten it",
            Self::Syntax(_) | Self::NotPlain(_) => {
                "write only the selector of a counter, like http_requests_total{code=~\"5..\"}"
            }
            Self::Time(_) => "leave it out",
            Self::Or => "write one regular expression, like code=~\"500|503\"",
            Self::NoHistogram => {
                "write it without _bucket, _count or _sum and without le, like http_request_duration_seconds{path!=\"/health\"}"
            }
        }
    }
}

/// A selector without range, `offset`, `@`, `or`, function or operator.
pub fn plain(text: &str) -> Result<VectorSelector, SelectorError> {
    if text.len() > LONGEST {
        return Err(SelectorError::TooLong);
    }
    let kind = match parser::parse(text).map_err(SelectorError::Syntax)? {
        Expr::VectorSelector(selector) => return no_extras(selector),
        Expr::MatrixSelector(_) => "a range selector",
        Expr::Subquery(_) => "a subquery",
        Expr::Call(_) => "a function call",
        Expr::Aggregate(_) => "an aggregation",
        Expr::Binary(_) | Expr::Unary(_) => "an operation",
        Expr::Paren(_) => "an expression in parentheses",
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => "a literal",
        Expr::Extension(_) => "this expression",
    };
    Err(SelectorError::NotPlain(kind))
}

/// The same of a histogram, by its name without a suffix.
pub fn histogram(text: &str) -> Result<VectorSelector, SelectorError> {
    let selector = plain(text)?;
    let part = |name: &String| ["_bucket", "_count", "_sum"].iter().any(|suffix| name.ends_with(suffix));
    let whole = selector.name.as_ref().is_some_and(|name| !part(name));
    if whole && selector.matchers.matchers.iter().all(|matcher| matcher.name != "le") {
        Ok(selector)
    } else {
        Err(SelectorError::NoHistogram)
    }
}

/// A label of the old kind, which needs no quotes.
#[must_use]
pub fn is_label(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

fn no_extras(selector: VectorSelector) -> Result<VectorSelector, SelectorError> {
    if selector.offset.is_some() {
        Err(SelectorError::Time("`offset`"))
    } else if selector.at.is_some() {
        Err(SelectorError::Time("`@`"))
    } else if !selector.matchers.or_matchers.is_empty() {
        Err(SelectorError::Or)
    } else {
        Ok(selector)
    }
}

/// Why values cannot stand in a text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    /// Something begins as if a value should stand there.
    #[error("{{{{ begins no {{{{args.NAME}}}}")]
    Form,
    /// There is no such value.
    #[error("{{{{args.{0}}}}} is no argument of this template")]
    Unknown(String),
    /// It is no plain selector even without values.
    #[error(transparent)]
    Selector(SelectorError),
    /// Something other than a value of a label would be replaced.
    #[error("{{{{args.NAME}}}} outside of a matcher's value")]
    Outside,
    /// It is fine without the values, and not with them.
    #[error("with the values of its arguments it is no selector: {0}")]
    Value(SelectorError),
    /// It is no expression even without values.
    #[error(transparent)]
    Expression(ExpressionError),
    /// It is an expression without the values, and not with them.
    #[error("with the values of its arguments it is no expression: {0}")]
    ValueOf(ExpressionError),
}

impl FillError {
    /// What to write instead.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::Form | Self::Unknown(_) => "write {{args.NAME}} with the name of an argument",
            Self::Selector(_) => {
                "write a plain selector, and {{args.NAME}} only in double quotes, like requests_total{route=\"{{args.route}}\"}"
            }
            Self::Outside => {
                "write {{args.NAME}} only in double quotes, like requests_total{route=\"{{args.route}}\"}"
            }
            Self::Expression(wrong) => wrong.remedy(),
            Self::Value(_) | Self::ValueOf(_) => {
                "give other values: in =~ and !~ they must be regular expressions"
            }
        }
    }
}

/// The selector with values in the place of each `{{args.NAME}}`. It can only stand in the value of a matcher, and no value
/// can end it: the result is the same selector with other values.
pub fn fill(text: &str, values: &BTreeMap<String, String>) -> Result<String, FillError> {
    if !text.contains("{{") {
        return Ok(text.to_owned());
    }
    let filled = replaced(text, |name| values.get(name).map(|value| escaped(value)))?;
    // Braces mean something in regular expressions: while the form is looked at, these characters of no script stand there.
    let mark = |name: &str| format!("\u{e000}{name}\u{e001}");
    let marked = replaced(text, |name| Some(mark(name)))?;
    let mut wanted = plain(&marked).map_err(FillError::Selector)?;
    for matcher in &mut wanted.matchers.matchers {
        for (name, value) in values {
            matcher.value = matcher.value.replace(&mark(name), value);
        }
    }
    let found = plain(&filled).map_err(FillError::Value)?;
    if is_same(&wanted, &found) { Ok(filled) } else { Err(FillError::Outside) }
}

/// The text with something else in the place of each `{{args.NAME}}`.
pub fn replaced(text: &str, value: impl Fn(&str) -> Option<String>) -> Result<String, FillError> {
    let mut replaced = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("{{") {
        let (name, after) =
            after.strip_prefix("args.").and_then(|after| after.split_once("}}")).ok_or(FillError::Form)?;
        replaced.push_str(before);
        replaced.push_str(&value(name).ok_or_else(|| FillError::Unknown(name.to_owned()))?);
        rest = after;
    }
    replaced.push_str(rest);
    Ok(replaced)
}

/// So that it is read as it stands, within single quotes or double ones.
pub(crate) fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => escaped.push_str(r"\\"),
            c if matches!(c, '"' | '\'' | '`') || c.is_control() => {
                // Writing to a string cannot fail.
                let _ = write!(escaped, "\\u{:04x}", u32::from(c));
            }
            c => escaped.push(c),
        }
    }
    escaped
}

pub(crate) fn is_same(one: &VectorSelector, other: &VectorSelector) -> bool {
    let kind = |op: &MatchOp| match op {
        MatchOp::Equal => "=",
        MatchOp::NotEqual => "!=",
        MatchOp::Re(_) => "=~",
        MatchOp::NotRe(_) => "!~",
    };
    let parts = |selector: &VectorSelector| {
        let matchers = selector.matchers.matchers.iter();
        matchers.map(|m| (m.name.clone(), kind(&m.op), m.value.clone())).collect::<Vec<_>>()
    };
    one.name == other.name && parts(one) == parts(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_plain_is_named() {
        for (text, says) in [
            ("rate(up[5m])", "a function call is not a plain selector"),
            ("sum(up)", "an aggregation is not a plain selector"),
            ("up[5m]", "a range selector is not a plain selector"),
            ("up[5m:1m]", "a subquery is not a plain selector"),
            ("up or up", "an operation is not a plain selector"),
            ("-up", "an operation is not a plain selector"),
            ("(up)", "an expression in parentheses is not a plain selector"),
            ("1", "a literal is not a plain selector"),
            ("up offset 5m", "a selector with `offset`"),
            ("up @ 1", "a selector with `@`"),
            ("up @ start()", "a selector with `@`"),
            ("up{a=\"b\" or c=\"d\"}", "a selector that joins matchers by `or`"),
            ("up{", "not a selector: unexpected end of input inside braces"),
            ("{}", "not a selector: vector selector must contain at least one non-empty matcher"),
            ("up{a=\"b\"} up", "not a selector"),
            ("", "not a selector"),
        ] {
            let error = plain(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        assert_eq!(plain(&"(".repeat(LONGEST + 1)), Err(SelectorError::TooLong));
        assert!(histogram("latency_seconds{path=\"/\"}").is_ok());
        for text in ["latency_seconds_bucket", "latency_seconds_count", "{path=\"/\"}", "latency{le=\"1\"}"] {
            assert_eq!(histogram(text), Err(SelectorError::NoHistogram), "{text}");
        }
    }
}

//! The selectors that a user writes for a counter: plain ones, to which matchers can be added. Takes the text, gives the
//! parsed selector or what is wrong with it; knows no pods and sends nothing.

use promql_parser::parser::{self, Expr, VectorSelector};

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

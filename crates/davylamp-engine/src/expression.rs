//! Expressions of a user: any `PromQL` that gives one number, with `{{canary}}` and `{{baseline}}` among the matchers of its
//! selectors. [`parse`] takes the text; [`Expression::bound`] writes it anew from what the parser understood, with more
//! matchers at each selector, wherever it stands. Knows no pods and sends nothing.

use std::collections::BTreeMap;

use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::value::ValueType;
use promql_parser::parser::{self, AtModifier, Expr, Offset, VectorSelector};

use crate::selector::{FillError, escaped, is_same, replaced};

/// A longer text is refused unread.
const LONGEST: usize = 2_048;
/// Expressions within expressions.
const DEEPEST: usize = 64;
/// No value may depend on what is older, ms.
const FARTHEST: i64 = 3_600_000;
/// The label of a matcher that stands where a cohort's will: no label has this character of no script.
const MARK: &str = "\u{e000}";
/// As they are written, and as matchers that the parser understands.
const PLACEHOLDERS: [(&str, &str); 2] =
    [("{{canary}}", "\"\u{e000}\"=\"canary\""), ("{{baseline}}", "\"\u{e000}\"=\"baseline\"")];

/// One of the two cohorts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The new version.
    Canary,
    /// The old one.
    Baseline,
}

/// One that can be bound.
#[derive(Clone, Debug, PartialEq)]
pub struct Expression {
    expr: Expr,
    reach: i64,
}

/// Why a text cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExpressionError {
    /// It is too long, or too deep.
    #[error("longer than {LONGEST} characters, or nested more than {DEEPEST} deep")]
    TooLong,
    /// It is no `PromQL`.
    #[error("not an expression: {0}")]
    Syntax(String),
    /// Its value is no number.
    #[error("its value is {0}, not a number")]
    NoNumber(&'static str),
    /// A placeholder stands somewhere else.
    #[error(
        "{{{{canary}}}} and {{{{baseline}}}} stand elsewhere than among the matchers of a selector, or both at one"
    )]
    Placeholder,
    /// It chooses its time itself.
    #[error("{0}: the time is chosen by the analysis")]
    Time(&'static str),
    /// It needs what is too old.
    #[error("its value depends on more than the last hour")]
    TooFar,
    /// It has alternatives between its matchers.
    #[error("a selector that joins matchers by `or`")]
    Or,
    /// It selects more than its selectors say.
    #[error("the function {0} reads series that no selector names")]
    Function(&'static str),
    /// It does not mean the same when it is written anew.
    #[error("it cannot be written anew with the namespace in each selector")]
    Unsure,
}

impl ExpressionError {
    /// What to write instead.
    #[must_use]
    pub const fn remedy(&self) -> &'static str {
        match self {
            Self::TooLong => "shorten it, or record a part of it by a rule",
            Self::Syntax(_) | Self::Placeholder => {
                "write PromQL, and placeholders like sum(rate(errors_total{code=\"500\", {{canary}}}[1m]))"
            }
            Self::NoNumber(_) => "write what gives one number, like sum(rate(errors_total{{{canary}}}[1m]))",
            Self::Time(_) => "leave it out",
            Self::TooFar => "write shorter ranges and offsets",
            Self::Or => "write one regular expression, like code=~\"500|503\"",
            Self::Function(_) => "join what it would add by an operator, as with * on (..) group_left",
            Self::Unsure => "write it in a simpler way, or record it by a rule",
        }
    }
}

/// Reads a text.
pub fn parse(text: &str) -> Result<Expression, ExpressionError> {
    if text.len() > LONGEST {
        return Err(ExpressionError::TooLong);
    }
    let marked = marked(text);
    if marked.contains("{{") {
        return Err(ExpressionError::Placeholder);
    }
    let mut expr = parser::parse(&marked).map_err(ExpressionError::Syntax)?;
    let reach = reach(&expr, DEEPEST)?;
    let mut found = 0;
    each_selector(&mut expr, &mut |selector: &mut VectorSelector| {
        let marks = selector.matchers.matchers.iter().filter(|matcher| matcher.name == MARK).count();
        found += marks;
        if marks > 1 { Err(ExpressionError::Placeholder) } else { Ok(()) }
    })?;
    // One in a string, or a mark of the user's own.
    if found != PLACEHOLDERS.iter().map(|(placeholder, _)| text.matches(placeholder).count()).sum::<usize>()
        || text.contains(MARK)
    {
        return Err(ExpressionError::Placeholder);
    }
    match expr.value_type() {
        ValueType::Scalar | ValueType::Vector => {}
        ValueType::Matrix => return Err(ExpressionError::NoNumber("a range")),
        ValueType::String => return Err(ExpressionError::NoNumber("a text")),
    }
    if reach > FARTHEST {
        return Err(ExpressionError::TooFar);
    }
    let expression = Expression { expr, reach };
    // What cannot be written is refused here already.
    expression.bound::<ExpressionError>(|_| Ok(vec![Matcher::new(MatchOp::Equal, "namespace", "a")]))?;
    Ok(expression)
}

impl Expression {
    /// How far back its value depends on samples, ms.
    #[must_use]
    pub const fn reach(&self) -> i64 {
        self.reach
    }

    /// The text with more matchers at each selector, which depend on the cohort that it names. Its value is always a vector.
    pub fn bound<E: From<ExpressionError>>(
        &self,
        matchers: impl Fn(Option<Side>) -> Result<Vec<Matcher>, E>,
    ) -> Result<String, E> {
        let mut expr = self.expr.clone();
        each_selector(&mut expr, &mut |selector: &mut VectorSelector| {
            let own = &mut selector.matchers.matchers;
            let mark = own.iter().find(|matcher| matcher.name == MARK);
            let side = mark.map(|mark| if mark.value == "canary" { Side::Canary } else { Side::Baseline });
            own.retain(|matcher| matcher.name != MARK);
            own.extend(matchers(side)?);
            // As the parser writes them.
            own.sort_by_cached_key(ToString::to_string);
            Ok::<(), E>(())
        })?;
        let text = expr.to_string();
        if text.chars().any(char::is_control) || parser::parse(&text).as_ref() != Ok(&expr) {
            return Err(ExpressionError::Unsure.into());
        }
        Ok(if expr.value_type() == ValueType::Scalar { format!("vector({text})") } else { text })
    }
}

fn marked(text: &str) -> String {
    PLACEHOLDERS.iter().fold(text.to_owned(), |text, (placeholder, mark)| text.replace(placeholder, mark))
}

/// The text with values in the place of each `{{args.NAME}}`, which can only stand in the value of a matcher. The other
/// placeholders stay.
pub(crate) fn fill(text: &str, values: &BTreeMap<String, String>) -> Result<String, FillError> {
    let text = marked(text);
    let filled = replaced(&text, |name| values.get(name).map(|value| escaped(value)))?;
    let stand_in = |name: &str| format!("\u{e001}{name}\u{e002}");
    let parsed = |text: &str| parser::parse(text).map_err(ExpressionError::Syntax);
    let mut wanted = parsed(&replaced(&text, |name| Some(stand_in(name)))?).map_err(FillError::Expression)?;
    let mut found = parsed(&filled).map_err(FillError::ValueOf)?;
    let taken = |expr| taken(expr).map_err(FillError::Expression);
    let (mut theirs, ours) = (taken(&mut wanted)?, taken(&mut found)?);
    for matcher in theirs.iter_mut().flat_map(|selector| &mut selector.matchers.matchers) {
        for (name, value) in values {
            matcher.value = matcher.value.replace(&stand_in(name), value);
        }
    }
    let same = |(one, other): (&VectorSelector, &VectorSelector)| {
        is_same(one, other) && (&one.offset, &one.at) == (&other.offset, &other.at)
    };
    if wanted != found || theirs.len() != ours.len() || !theirs.iter().zip(&ours).all(same) {
        return Err(FillError::Outside);
    }
    Ok(PLACEHOLDERS.iter().fold(filled, |text, (placeholder, mark)| text.replace(mark, placeholder)))
}

/// Its selectors; nothing stays in their places.
fn taken(expr: &mut Expr) -> Result<Vec<VectorSelector>, ExpressionError> {
    let mut selectors = Vec::new();
    each_selector(expr, &mut |selector: &mut VectorSelector| {
        if !selector.matchers.or_matchers.is_empty() {
            return Err(ExpressionError::Or);
        }
        selectors.push(std::mem::take(selector));
        Ok(())
    })?;
    Ok(selectors)
}

/// All of them, those in the parameters of aggregations too.
fn each_selector<E>(
    expr: &mut Expr,
    found: &mut impl FnMut(&mut VectorSelector) -> Result<(), E>,
) -> Result<(), E> {
    match expr {
        Expr::VectorSelector(selector) => found(selector),
        Expr::MatrixSelector(selector) => found(&mut selector.vs),
        Expr::Subquery(subquery) => each_selector(&mut subquery.expr, found),
        Expr::Paren(paren) => each_selector(&mut paren.expr, found),
        Expr::Unary(unary) => each_selector(&mut unary.expr, found),
        Expr::Binary(binary) => {
            each_selector(&mut binary.lhs, found)?;
            each_selector(&mut binary.rhs, found)
        }
        Expr::Aggregate(aggregate) => {
            aggregate.param.iter_mut().try_for_each(|param| each_selector(param, found))?;
            each_selector(&mut aggregate.expr, found)
        }
        Expr::Call(call) => call.args.args.iter_mut().try_for_each(|arg| each_selector(arg, found)),
        // No parser makes extensions.
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) | Expr::Extension(_) => Ok(()),
    }
}

/// How far back samples are needed, in ms; and refuses what no part of an expression may be.
fn reach(expr: &Expr, depth: usize) -> Result<i64, ExpressionError> {
    let depth = depth.checked_sub(1).ok_or(ExpressionError::TooLong)?;
    let ms = |duration: std::time::Duration| i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
    let of_time = |offset: &Option<Offset>, at: &Option<AtModifier>| match (offset, at) {
        (_, Some(_)) => Err(ExpressionError::Time("`@`")),
        (Some(Offset::Neg(_)), None) => Err(ExpressionError::Time("a negative `offset`")),
        (Some(Offset::Pos(offset)), None) => Ok(ms(*offset)),
        (None, None) => Ok(0),
    };
    let of_selector = |selector: &VectorSelector| {
        if !selector.matchers.or_matchers.is_empty() {
            return Err(ExpressionError::Or);
        }
        of_time(&selector.offset, &selector.at)
    };
    match expr {
        Expr::VectorSelector(selector) => of_selector(selector),
        Expr::MatrixSelector(selector) => Ok(of_selector(&selector.vs)?.saturating_add(ms(selector.range))),
        Expr::Subquery(subquery) => {
            let own = of_time(&subquery.offset, &subquery.at)?.saturating_add(ms(subquery.range));
            Ok(reach(&subquery.expr, depth)?.saturating_add(own))
        }
        Expr::Paren(paren) => reach(&paren.expr, depth),
        Expr::Unary(unary) => reach(&unary.expr, depth),
        Expr::Binary(binary) => Ok(reach(&binary.lhs, depth)?.max(reach(&binary.rhs, depth)?)),
        Expr::Aggregate(aggregate) => {
            let param = aggregate.param.as_ref().map_or(Ok(0), |param| reach(param, depth))?;
            Ok(reach(&aggregate.expr, depth)?.max(param))
        }
        Expr::Call(call) if call.func.name == "info" => Err(ExpressionError::Function("info")),
        Expr::Call(call) => {
            call.args.args.iter().try_fold(0, |most: i64, arg| Ok(most.max(reach(arg, depth)?)))
        }
        Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Ok(0),
        Expr::Extension(_) => Err(ExpressionError::Unsure),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bound(text: &str) -> Result<String, ExpressionError> {
        parse(text)?.bound(|side| {
            let side = side.map(|side| Matcher::new(MatchOp::Equal, "side", &format!("{side:?}")));
            Ok(side.into_iter().chain([Matcher::new(MatchOp::Equal, "ns", "shop")]).collect())
        })
    }

    #[test]
    fn each_selector_gets_its_matchers() {
        for (text, becomes) in [
            ("up{{{canary}}}", r#"up{ns="shop",side="Canary"}"#),
            ("{{{baseline}}}", r#"{ns="shop",side="Baseline"}"#),
            (
                "sum(rate(a{b='c', {{canary}}}[1m])) / (sum(rate(a{{{baseline}}}[1m] offset 5m)) or vector(0))",
                r#"sum(rate(a{b="c",ns="shop",side="Canary"}[1m])) / (sum(rate(a{ns="shop",side="Baseline"}[1m] offset 5m)) or vector(0))"#,
            ),
            ("topk(scalar(up), a)", r#"topk(scalar(up{ns="shop"}), a{ns="shop"})"#),
            ("max_over_time(a[1h:1m]) # all", r#"max_over_time(a{ns="shop"}[1h:1m])"#),
            ("1 + 1", "vector(1 + 1)"),
            ("scalar(up)", r#"vector(scalar(up{ns="shop"}))"#),
        ] {
            assert_eq!(bound(text).as_deref(), Ok(becomes), "{text}");
        }
    }

    #[test]
    fn what_cannot_be_bound_is_named() {
        for (text, says) in [
            ("sum(", "not an expression: "),
            ("up[5m]", "its value is a range"),
            ("\"{{canary}}\"", "not an expression: "),
            ("'a'", "its value is a text"),
            ("up{a='{{canary}}'}", "stand elsewhere"),
            ("label_replace(up, 'a', '{{canary}}', 'b', '')", "stand elsewhere"),
            ("up{{{canary}}, {{baseline}}}", "stand elsewhere"),
            ("up{{{canaries}}}", "stand elsewhere"),
            ("up{'\u{e000}'='canary'}", "stand elsewhere"),
            (r#"up{"\ue000"="canary"}"#, "stand elsewhere"),
            ("up @ 5", "`@`"),
            ("sum(rate(up[5m] @ end()))", "`@`"),
            ("up offset -5m", "a negative `offset`"),
            ("max_over_time(up[5m:1m] offset -5m)", "a negative `offset`"),
            ("max_over_time(rate(up[30m])[31m:1m])", "more than the last hour"),
            ("up{a='b' or c='d'}", "by `or`"),
            ("info(up)", "the function info"),
        ] {
            let error = bound(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
        for text in ["(".repeat(70) + "1" + &")".repeat(70), "1+".repeat(100) + "1", "1".repeat(3_000)] {
            assert_eq!(bound(&text), Err(ExpressionError::TooLong), "{text}");
        }
    }

    #[test]
    fn values_depend_on_ranges_and_offsets() {
        for (text, seconds) in [("up", 0), ("rate(a[1m]) + rate(b[5m] offset 2m)", 420)] {
            assert_eq!(parse(text).unwrap().reach(), seconds * 1_000, "{text}");
        }
        assert_eq!(parse("max_over_time(rate(a[1m])[10m:1m])").unwrap().reach(), 660_000);
    }

    #[test]
    fn arguments_fill_values_of_matchers_only() {
        let values = BTreeMap::from([("a".to_owned(), "/pay\"} or up{x=\"".to_owned())]);
        let filled = fill("sum(rate(b{c=\"{{args.a}}\", {{canary}}}[1m]))", &values).unwrap();
        assert_eq!(filled, r#"sum(rate(b{c="/pay\u0022} or up{x=\u0022", {{canary}}}[1m]))"#);
        assert!(bound(&filled).unwrap().contains("ns=\"shop\""));
        for text in ["rate(a[{{args.a}}])", "label_replace(a, 'b', '{{args.a}}', 'c', '')", "{{args.b}}"] {
            assert!(fill(text, &values).is_err(), "{text}");
        }
    }
}

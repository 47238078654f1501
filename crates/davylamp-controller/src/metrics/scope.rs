//! Selectors of a user, bound to the pods and the namespace of one Rollout.
//!
//! Takes the text of a plain vector selector, gives the text of a range selector that also carries our matchers. It never
//! pastes the user's text: what is sent is written anew from what the parser understood, so nothing can escape its braces.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use promql_parser::label::Matcher;
use promql_parser::parser::{self, Expr, VectorSelector};
use thiserror::Error;

/// A longer text is refused unread: the parser's work and depth grow with it.
const LONGEST: usize = 4096;
/// What the API server appends to the name of a pod of a `ReplicaSet`.
const GENERATED: &str = "[a-z0-9]{5}";

/// What a selector is bound to.
#[derive(Clone, Copy, Debug)]
pub struct Scope<'a> {
    /// The label that names a namespace.
    pub namespace_label: &'a str,
    /// The namespace.
    pub namespace: &'a str,
    /// The label that names a pod.
    pub pod_label: &'a str,
    /// What the names of the pods begin with: their generated rest follows. None is refused, for it would match all.
    pub pods: &'a BTreeSet<String>,
}

/// Why a text cannot be used as a selector, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum SelectorError {
    /// It is too long.
    #[error("the selector is longer than {LONGEST} characters: shorten it")]
    TooLong,
    /// It is no `PromQL`.
    #[error("not a selector: {0}; write one like http_requests_total{{code=~\"5..\"}}")]
    Syntax(String),
    /// It is `PromQL`, and not a vector selector.
    #[error(
        "{0} is not a plain selector: counters are read raw and compared scrape by scrape, so write only the selector, like http_requests_total{{code=~\"5..\"}}"
    )]
    NotPlain(&'static str),
    /// It has `offset` or `@`.
    #[error("the selector has {0}: leave it out, for the time is chosen by the analysis")]
    Time(&'static str),
    /// It has alternatives between its matchers.
    #[error(
        "the selector joins matchers by `or`: write one regular expression instead, like code=~\"500|503\""
    )]
    Or,
    /// The label of the source is no label name.
    #[error("{0:?} is no label name: correct spec.podLabel or spec.namespaceLabel of the MetricSource")]
    Label(String),
    /// There are no pods to ask for.
    #[error("there is no pod to measure")]
    NoPods,
}

/// Whether the text is a plain vector selector: a name, matchers or both, without range, `offset`, `@`, `or`, function or operator.
pub fn check(text: &str) -> Result<(), SelectorError> {
    plain(text).map(drop)
}

/// The samples of the last `range_ms` of the selected series in the scope.
pub fn scoped(text: &str, scope: &Scope<'_>, range_ms: i64) -> Result<String, SelectorError> {
    let selector = plain(text)?;
    for label in [scope.namespace_label, scope.pod_label] {
        if !is_label(label) {
            return Err(SelectorError::Label(label.to_owned()));
        }
    }
    if scope.pods.is_empty() {
        return Err(SelectorError::NoPods);
    }
    let pods: Vec<_> = scope.pods.iter().map(|prefix| literal(prefix) + GENERATED).collect();
    let mut query = selector.name.unwrap_or_default();
    query.push('{');
    for matcher in &selector.matchers.matchers {
        write_matcher(&mut query, matcher);
    }
    let (namespace, pods) = (quoted(scope.namespace), quoted(&pods.join("|")));
    let _ = write!(
        query,
        "{}={namespace},{}=~{pods}}}[{}ms]",
        scope.namespace_label,
        scope.pod_label,
        range_ms.max(1)
    );
    Ok(query)
}

fn plain(text: &str) -> Result<VectorSelector, SelectorError> {
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

fn write_matcher(query: &mut String, matcher: &Matcher) {
    let name = if is_label(&matcher.name) { matcher.name.clone() } else { quoted(&matcher.name) };
    let _ = write!(query, "{name}{}{},", matcher.op, quoted(&matcher.value));
}

fn is_label(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// As a string of `PromQL`.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// As a regular expression that matches only this text.
fn literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            literal.push('\\');
        }
        literal.push(c);
    }
    literal
}

#[cfg(test)]
mod tests {
    use promql_parser::label::MatchOp;
    use promql_parser::parser::token::{T_EQL_REGEX, T_NEQ};
    use proptest::prelude::*;

    use super::*;

    fn scoped_to(text: &str, namespace: &str, pods: &[&str]) -> Result<String, SelectorError> {
        let pods = pods.iter().map(|&pod| pod.to_owned()).collect();
        let scope = Scope { namespace_label: "namespace", namespace, pod_label: "pod", pods: &pods };
        scoped(text, &scope, 97_500)
    }

    #[test]
    fn matchers_are_added_to_the_users() {
        let text = scoped_to("http_requests_total{code=~\"5..\"}", "shop", &["web-a-", "web-b-"]).unwrap();
        assert_eq!(
            text,
            r#"http_requests_total{code=~"5..",namespace="shop",pod=~"web-a-[a-z0-9]{5}|web-b-[a-z0-9]{5}"}[97500ms]"#
        );
        let text = scoped_to(" up # all\n", "shop", &["web.a"]).unwrap();
        assert_eq!(text, r#"up{namespace="shop",pod=~"web\\.a[a-z0-9]{5}"}[97500ms]"#);
        let text = scoped_to("{'http.requests', 'code.class'!='5'}", "shop", &["a"]).unwrap();
        assert_eq!(
            text,
            r#"{__name__="http.requests","code.class"!="5",namespace="shop",pod=~"a[a-z0-9]{5}"}[97500ms]"#
        );
    }

    #[test]
    fn a_matcher_of_the_user_on_our_labels_only_narrows() {
        let text = scoped_to("up{namespace=~\".*\",pod!=\"x\"}", "shop", &["a"]).unwrap();
        assert_eq!(text, r#"up{namespace=~".*",pod!="x",namespace="shop",pod=~"a[a-z0-9]{5}"}[97500ms]"#);
    }

    #[test]
    fn all_else_is_refused_with_what_to_write() {
        for (text, says) in [
            ("rate(up[5m])", "a function call is not a plain selector"),
            ("sum(up)", "an aggregation is not a plain selector"),
            ("up[5m]", "a range selector is not a plain selector"),
            ("up[5m:1m]", "a subquery is not a plain selector"),
            ("up or up", "an operation is not a plain selector"),
            ("-up", "an operation is not a plain selector"),
            ("(up)", "an expression in parentheses is not a plain selector"),
            ("1", "a literal is not a plain selector"),
            ("up offset 5m", "the selector has `offset`"),
            ("up @ 1", "the selector has `@`"),
            ("up @ start()", "the selector has `@`"),
            ("up{a=\"b\" or c=\"d\"}", "the selector joins matchers by `or`"),
            ("up{", "not a selector: unexpected end of input inside braces"),
            ("{}", "not a selector: vector selector must contain at least one non-empty matcher"),
            ("up{a=\"b\"} up", "not a selector"),
            ("", "not a selector"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
            assert_eq!(scoped_to(text, "shop", &["a"]).unwrap_err().to_string(), error);
        }
        assert_eq!(check(&"(".repeat(LONGEST + 1)), Err(SelectorError::TooLong));
        assert_eq!(scoped_to("up", "shop", &[]), Err(SelectorError::NoPods));
    }

    #[test]
    fn labels_of_the_source_are_checked() {
        let pods = BTreeSet::from(["a".to_owned()]);
        let scope =
            Scope { namespace_label: "x=~\".*\"} or up{y", namespace: "n", pod_label: "pod", pods: &pods };
        assert!(matches!(scoped("up", &scope, 1), Err(SelectorError::Label(_))));
    }

    /// What the server would read, by an independent way: the parser.
    fn assert_bound(query: &str, namespace: &str, pods: &[&str]) {
        let Ok(Expr::MatrixSelector(selector)) = parser::parse(query) else {
            panic!("no range selector: {query}")
        };
        assert!(selector.vs.matchers.or_matchers.is_empty() && selector.vs.offset.is_none(), "{query}");
        assert!(selector.vs.at.is_none(), "{query}");
        let mut ours = selector.vs.matchers.matchers.iter().rev();
        let (pod, tenant) = (ours.next().unwrap(), ours.next().unwrap());
        assert_eq!((&tenant.op, tenant.name.as_str()), (&MatchOp::Equal, "namespace"));
        assert_eq!(tenant.value, namespace);
        assert!(pod.name == "pod" && matches!(pod.op, MatchOp::Re(_)), "{query}");
        for prefix in pods {
            assert!(pod.is_match(&format!("{prefix}x7k2p")), "{query}");
            assert!(!pod.is_match(prefix) && !pod.is_match(&format!("{prefix}canary-x7k2p")), "{query}");
        }
        assert!(!pod.is_match("") && !pod.is_match("another"), "{query}");
    }

    #[test]
    fn hostile_texts_stay_inside_the_braces() {
        for text in [
            r#"up{a="\"} or up # "}"#,
            r"up{a='\'} or up #'}",
            "up{a=`\"} or up{b=\"`}",
            "up{a=`\n} or up #`}",
            r#"up{a="\n\t\x07\u0000"}"#,
            "{__name__=\"up} or up{\"}",
            "{\"up\\\"} or up{\"}",
            "{\"a\\\"}or\"=\"b\", b=\"c\"}",
            "up{a=\"b\",}#}",
            "up#{\n{a=\"b\"}",
            "or{or=\"or\"}",
        ] {
            let query = scoped_to(text, "shop", &["a"]).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_bound(&query, "shop", &["a"]);
        }
    }

    fn any_matcher() -> impl Strategy<Value = String> {
        ("[a-z_][a-z0-9_]{0,8}", prop::sample::select(vec!["=", "!=", "=~", "!~"]), any::<String>(), 0..3_u8)
            .prop_map(|(label, op, value, quotes)| match quotes {
                0 => format!("{label}{op}{}", quoted(&value)),
                1 => format!("{label}{op}`{}`", value.replace('`', "")),
                _ => format!("{}{op}{}", quoted(&value), quoted(&value)),
            })
    }

    proptest! {
        #[test]
        fn accepted_selectors_keep_their_meaning_and_get_bound(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,12}",
            matchers in prop::collection::vec(any_matcher(), 0..4),
            namespace in any::<String>(),
            pods in prop::collection::btree_set("[a-z0-9.|*()$^\\\\-]{8,16}", 1..4),
        ) {
            let text = format!("{name}{{{}}}", matchers.join(","));
            let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
            if let Ok(query) = scoped_to(&text, &namespace, &pods) {
                assert_bound(&query, &namespace, &pods);
                let (before, after) = (plain(&text).unwrap(), parser::parse(&query).unwrap());
                let Expr::MatrixSelector(after) = after else { panic!("{query}") };
                prop_assert_eq!(&before.name, &after.vs.name);
                let kept = after.vs.matchers.matchers.len() - 2;
                prop_assert_eq!(&before.matchers.matchers[..], &after.vs.matchers.matchers[..kept]);
            }
        }

        #[test]
        fn no_text_escapes(text in r#"(up|a|or|by|rate|sum|offset|1|5m|[{}()\[\]"'`#,=~!@:\\ \n]){0,24}"#) {
            if let Ok(query) = scoped_to(&text, "shop", &["a"]) {
                assert_bound(&query, "shop", &["a"]);
            }
        }
    }

    #[test]
    fn text_of_matchers_is_the_parsers_own() {
        for (op, text) in [(T_EQL_REGEX, "=~"), (T_NEQ, "!=")] {
            let matcher = Matcher::new_matcher(op, "a".to_owned(), "b\\d\"".to_owned()).unwrap();
            let mut query = String::new();
            write_matcher(&mut query, &matcher);
            assert_eq!(query, format!(r#"a{text}"b\\d\"","#));
        }
    }
}

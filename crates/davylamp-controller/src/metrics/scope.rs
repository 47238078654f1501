//! Selectors of a user, bound to the cohorts and the namespace of one Rollout.
//!
//! Takes the text of a plain vector selector, gives the text of a range selector that also carries our matchers; or that of
//! an expression, of which each selector carries them. It never pastes the user's text: what is sent is written anew from what
//! the parser understood, so nothing can escape its braces.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use davylamp_api::MetricSourceSpec;
use davylamp_api::scalar::Duration;
use davylamp_api::source::EnforcedLabel;
use davylamp_engine::MetricQuery;
use davylamp_engine::expression::{self, ExpressionError};
use davylamp_engine::selector::{SelectorError, histogram, is_label, plain};
use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser::VectorSelector;
use promql_parser::parser::token::T_EQL_REGEX;
use thiserror::Error;

use super::cohorts::Sides;
use super::increments::target_labels;

/// What the API server appends to the name of a pod of a `ReplicaSet`.
pub(super) const GENERATED: &str = "[a-z0-9]{5}";

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
    /// The labels that tell targets apart beside those that are known.
    pub replica_labels: &'a [String],
    /// What the source demands of all.
    pub enforced: Option<&'a EnforcedLabel>,
}

impl Scope<'_> {
    /// The matcher that each query carries.
    pub(super) fn namespace(&self) -> Matcher {
        Matcher::new(MatchOp::Equal, self.namespace_label, self.namespace)
    }
}

/// The label has a value that matches as a whole.
pub(super) fn regex(label: &str, values: String) -> Result<Matcher, ScopeError> {
    Matcher::new_matcher(T_EQL_REGEX, label.to_owned(), values).map_err(|_| ScopeError::NoCohorts)
}

/// Why a selector cannot be bound.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ScopeError {
    /// It is not a plain one.
    #[error("{0}: {remedy}", remedy = .0.remedy())]
    Selector(#[from] SelectorError),
    /// It is no expression that can be bound.
    #[error("{0}: {remedy}", remedy = .0.remedy())]
    Expression(#[from] ExpressionError),
    /// The label of the source is no label name.
    #[error(
        "{0:?} is no label name: correct spec.podLabel, spec.namespaceLabel, spec.replicaLabels or spec.enforcedLabel of the MetricSource"
    )]
    Label(String),
    /// There are no pods to ask for.
    #[error("there is no pod to measure")]
    NoPods,
    /// The cohorts cannot be told apart.
    #[error("it is not known which series are the canary's")]
    NoCohorts,
}

/// A selector with all its matchers.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bound(String);

impl Bound {
    /// The samples of the last `range_ms` of its series.
    #[must_use]
    pub fn over(&self, range_ms: i64) -> String {
        format!("{}[{}ms]", self.0, range_ms.max(1))
    }

    /// Its value at one moment.
    #[must_use]
    pub fn at_once(&self) -> String {
        self.0.clone()
    }
}

/// What is asked for a metric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Questions {
    /// Events of so many, in raw samples.
    Ratio {
        /// What is counted; of a histogram, what is not: it is below the bound.
        events: Bound,
        /// Of how many.
        total: Bound,
        /// All buckets, if there is a histogram.
        buckets: Option<Bound>,
    },
    /// A counter for the time between its samples, in raw samples.
    Counter(Bound),
    /// The values of a gauge, in raw samples.
    Gauge(Bound),
    /// All buckets of a histogram.
    Distribution(Folded),
    /// One number.
    Expression(Bound),
}

/// The labels that tell targets apart, the pod's first: series are read as one for each target, however many it has, at whole
/// multiples of a step, whenever they are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Targets(String);

impl Targets {
    /// `told` is the label that tells cohorts apart.
    pub(super) fn of(scope: &Scope<'_>, told: &str) -> Self {
        let mut all = vec![scope.pod_label];
        for label in target_labels(scope.replica_labels).chain([told]) {
            if !all.contains(&label) {
                all.push(label);
            }
        }
        Self(all.join(","))
    }

    /// The sums over the series of each target, each `step_ms` of the last `range_ms`.
    #[must_use]
    pub fn sums(&self, Bound(series): &Bound, range_ms: i64, step_ms: i64) -> String {
        format!("sum by ({}) ({series}){}", self.0, ranged(range_ms, step_ms))
    }

    /// When each target was scraped, in seconds, at the same moments.
    #[must_use]
    pub fn times(&self, Bound(series): &Bound, range_ms: i64, step_ms: i64) -> String {
        format!("max by ({}) (timestamp({series})){}", self.0, ranged(range_ms, step_ms))
    }
}

/// A histogram with all its matchers, read as one for each target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Folded {
    buckets: Bound,
    native: Bound,
    by: Targets,
}

impl Folded {
    /// The sums over the series of each target, by bucket if it is a classic one.
    #[must_use]
    pub fn values(&self, range_ms: i64, step_ms: i64) -> String {
        let Self { buckets: Bound(buckets), native: Bound(native), by: Targets(by) } = self;
        let range = ranged(range_ms, step_ms);
        format!("(sum by ({by},le) ({buckets}) or sum by ({by}) ({native})){range}")
    }

    /// When each target was scraped, in seconds, at the same moments.
    #[must_use]
    pub fn times(&self, range_ms: i64, step_ms: i64) -> String {
        let Self { buckets: Bound(buckets), native: Bound(native), by: Targets(by) } = self;
        let range = ranged(range_ms, step_ms);
        format!("max by ({by}) (timestamp({buckets}) or timestamp({native})){range}")
    }
}

fn ranged(range_ms: i64, step_ms: i64) -> String {
    format!("[{}ms:{}ms]", range_ms.max(1), step_ms.max(1))
}

/// What is asked for the metric in the scope.
pub fn bind(metric: &MetricQuery, scope: &Scope<'_>) -> Result<Questions, ScopeError> {
    if scope.pods.is_empty() {
        return Err(ScopeError::NoPods);
    }
    let pods: Vec<_> = scope.pods.iter().map(|prefix| literal(prefix) + GENERATED).collect();
    questions(metric, scope, scope.pod_label, &of_pods(scope, pods.join("|"))?)
}

/// The same of a metric whose cohorts are told apart otherwise, or of an expression.
pub(super) fn bind_sides(
    metric: &MetricQuery,
    scope: &Scope<'_>,
    sides: &Sides,
) -> Result<Questions, ScopeError> {
    let MetricQuery::Expression { query } = metric else {
        return questions(metric, scope, sides.label(), &sides.matchers()?);
    };
    let text = expression::parse(query)?.bound(|side| {
        let ours = side.map_or_else(|| vec![scope.namespace()], |side| sides.matchers_of(side));
        enforced(scope, ours)
    })?;
    Ok(Questions::Expression(Bound(text)))
}

/// The same of all pods of the workload of this name, whichever their revision, and whether a Rollout or a Deployment
/// owns them.
pub fn of_workload(
    metric: &MetricQuery,
    source: &MetricSourceSpec,
    namespace: &str,
    name: &str,
) -> Result<Questions, ScopeError> {
    let (namespace_label, pod_label) = (source.namespace_label(), source.pod_label());
    let enforced = source.enforced_label.as_ref();
    let (pods, replica_labels) = (&BTreeSet::new(), source.replica_labels());
    let scope = Scope { namespace_label, namespace, pod_label, pods, replica_labels, enforced };
    let pods = of_pods(&scope, format!("{}-[a-z0-9]+-{GENERATED}", literal(name)))?;
    questions(metric, &scope, pod_label, &pods)
}

fn of_pods(scope: &Scope<'_>, pods: String) -> Result<Vec<Matcher>, ScopeError> {
    Ok(vec![scope.namespace(), regex(scope.pod_label, pods)?])
}

/// `told` is the label that tells cohorts apart, `ours` are the matchers that make series theirs.
fn questions(
    metric: &MetricQuery,
    scope: &Scope<'_>,
    told: &str,
    ours: &[Matcher],
) -> Result<Questions, ScopeError> {
    let ours = enforced(scope, ours.to_vec())?;
    let bound = |selector: VectorSelector, suffix: &str| bound(selector, suffix, None, &ours);
    Ok(match metric {
        MetricQuery::Expression { .. } => return Err(ScopeError::NoCohorts),
        MetricQuery::Counters { events, total } => Questions::Ratio {
            events: bound(plain(events)?, ""),
            total: bound(plain(total)?, ""),
            buckets: None,
        },
        MetricQuery::Counter { counter } => Questions::Counter(bound(plain(counter)?, "")),
        MetricQuery::Gauge { gauge } => Questions::Gauge(bound(plain(gauge)?, "")),
        MetricQuery::Slower { histogram: text, than } => {
            let selector = histogram(text)?;
            let below = bound_of(selector.name.as_deref().unwrap_or_default(), *than);
            Questions::Ratio {
                events: self::bound(selector.clone(), "_bucket", Some(&regex("le", below)?), &ours),
                total: bound(selector.clone(), "_count"),
                buckets: Some(bound(selector, "_bucket")),
            }
        }
        MetricQuery::Distribution { histogram: text } => {
            let selector = histogram(text)?;
            Questions::Distribution(Folded {
                buckets: bound(selector.clone(), "_bucket"),
                native: bound(selector, ""),
                by: Targets::of(scope, told),
            })
        }
    })
}

/// What a bucket with that bound says in `le`, however many zeros there are: a regular expression.
fn bound_of(histogram: &str, than: Duration) -> String {
    let (ms, scale) = (than.as_millis(), if in_milliseconds(histogram) { 1 } else { 1_000 });
    let (whole, rest) = (ms / scale, ms % scale);
    if rest == 0 {
        format!(r"{whole}(\.0+)?")
    } else {
        format!(r"{whole}\.{}0*", format!("{rest:03}").trim_end_matches('0'))
    }
}

/// By the name's unit, as Prometheus' conventions have it.
pub(super) fn in_milliseconds(histogram: &str) -> bool {
    ["_milliseconds", "_ms"].iter().any(|unit| histogram.ends_with(unit))
}

/// With what the source demands of all, when its labels are labels.
fn enforced(scope: &Scope<'_>, ours: Vec<Matcher>) -> Result<Vec<Matcher>, ScopeError> {
    let named = scope.replica_labels.iter().chain(scope.enforced.map(|label| &label.name));
    for label in [scope.namespace_label, scope.pod_label].into_iter().chain(named.map(String::as_str)) {
        if !is_label(label) {
            return Err(ScopeError::Label(label.to_owned()));
        }
    }
    let enforced =
        scope.enforced.map(|EnforcedLabel { name, value }| Matcher::new(MatchOp::Equal, name, value));
    Ok(ours.into_iter().chain(enforced).collect())
}

/// The selector of `name` and suffix with its own matchers, one more, and ours.
fn bound(selector: VectorSelector, suffix: &str, more: Option<&Matcher>, ours: &[Matcher]) -> Bound {
    let mut query = selector.name.unwrap_or_default();
    query.push_str(suffix);
    query.push('{');
    for matcher in selector.matchers.matchers.iter().chain(more).chain(ours) {
        write_matcher(&mut query, matcher);
    }
    // The comma behind the last one.
    query.pop();
    query.push('}');
    Bound(query)
}

fn write_matcher(query: &mut String, matcher: &Matcher) {
    let name = if is_label(&matcher.name) { matcher.name.clone() } else { quoted(&matcher.name) };
    let _ = write!(query, "{name}{}{},", matcher.op, quoted(&matcher.value));
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
pub(super) fn literal(text: &str) -> String {
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
pub(super) mod tests {
    use davylamp_engine::Named;
    use promql_parser::parser::token::T_NEQ;
    use promql_parser::parser::{self, Expr};
    use proptest::prelude::*;

    use super::*;

    fn events(text: &str, scope: &Scope<'_>) -> Result<Bound, ScopeError> {
        let ratio = MetricQuery::Counters { events: text.to_owned(), total: "up".to_owned() };
        Ok(ratio_of(bind(&ratio, scope)?).0)
    }

    fn ratio_of(questions: Questions) -> (Bound, Bound, Option<Bound>) {
        let Questions::Ratio { events, total, buckets } = questions else { panic!("{questions:?}") };
        (events, total, buckets)
    }

    fn scoped_to(text: &str, namespace: &str, pods: &[&str]) -> Result<String, ScopeError> {
        let pods = pods.iter().map(|&pod| pod.to_owned()).collect();
        let scope = Scope {
            namespace_label: "namespace",
            namespace,
            pod_label: "pod",
            pods: &pods,
            replica_labels: &[],
            enforced: None,
        };
        let query = events(text, &scope)?.over(97_500);
        for (name, value) in [("cluster", "a\"} or up{\\"), ("namespace", "other")] {
            let label = EnforcedLabel { name: name.to_owned(), value: value.to_owned() };
            let enforced = events(text, &Scope { enforced: Some(&label), ..scope })?.over(97_500);
            assert_enforced(&query, &enforced, &label);
        }
        Ok(query)
    }

    /// The same query, with one more matcher at its end.
    fn assert_enforced(query: &str, enforced: &str, label: &EnforcedLabel) {
        let (before, after) = (parser::parse(query).unwrap(), parser::parse(enforced).unwrap());
        let (Expr::MatrixSelector(before), Expr::MatrixSelector(after)) = (before, after) else {
            panic!("no range selector: {enforced}")
        };
        let (last, others) = after.vs.matchers.matchers.split_last().unwrap();
        assert_eq!((&before.vs.name, before.range), (&after.vs.name, after.range));
        assert_eq!(others, before.vs.matchers.matchers, "{enforced}");
        assert!(after.vs.matchers.or_matchers.is_empty(), "{enforced}");
        assert_eq!((&last.name, &last.op, &last.value), (&label.name, &MatchOp::Equal, &label.value));
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
    fn pods_of_a_workload_are_those_of_all_its_revisions() {
        let source: MetricSourceSpec =
            serde_json::from_value(serde_json::json!({"url": "", "allowedNamespaces": [], "podLabel": "p"}))
                .unwrap();
        let ratio = MetricQuery::Counters { events: "down".to_owned(), total: "up{a=\"b\"}".to_owned() };
        let (_, total, _) = ratio_of(of_workload(&ratio, &source, "shop", "web.a").unwrap());
        let text = total.over(3_600_000);
        assert_eq!(text, r#"up{a="b",namespace="shop",p=~"web\\.a-[a-z0-9]+-[a-z0-9]{5}"}[3600000ms]"#);
    }

    #[test]
    fn a_histogram_is_asked_for_one_bucket_and_its_count() {
        let pods = BTreeSet::from(["web-a-".to_owned()]);
        let scope = Scope {
            namespace_label: "namespace",
            namespace: "shop",
            pod_label: "pod",
            pods: &pods,
            replica_labels: &[],
            enforced: None,
        };
        let asked = |histogram: &str, ms| {
            let than = Duration::from_millis(ms);
            ratio_of(bind(&MetricQuery::Slower { histogram: histogram.to_owned(), than }, &scope).unwrap())
        };
        let (events, total, buckets) = asked("latency_seconds{path!=\"/health\"}", 500);
        let rest = r#"namespace="shop",pod=~"web-a-[a-z0-9]{5}"}[1ms]"#;
        let text = |bound: &Bound| bound.over(1).strip_suffix(rest).unwrap().to_owned();
        assert_eq!(text(&events), r#"latency_seconds_bucket{path!="/health",le=~"0\\.50*","#);
        assert_eq!(text(&total), "latency_seconds_count{path!=\"/health\",");
        assert_eq!(text(&buckets.unwrap()), "latency_seconds_bucket{path!=\"/health\",");

        for (histogram, ms, there, not_there) in [
            ("a_seconds", 500, &["0.5", "0.50", "0.500"][..], &["0.05", "0.55", "05", "+Inf"][..]),
            ("a_seconds", 1_000, &["1", "1.0"], &["10", "1.5", "0.1"]),
            ("a_seconds", 25, &["0.025"], &["0.25", "0.0255"]),
            ("a_milliseconds", 500, &["500", "500.0"], &["0.5", "5000"]),
        ] {
            let asked = asked(histogram, ms).0.over(1);
            let Expr::MatrixSelector(selector) = parser::parse(&asked).unwrap() else { panic!("{asked}") };
            let le = selector.vs.matchers.matchers.iter().find(|matcher| matcher.name == "le").unwrap();
            assert!(there.iter().all(|bound| le.is_match(bound)), "{asked}");
            assert!(!not_there.iter().any(|bound| le.is_match(bound)), "{asked}");
        }
    }

    fn folded(text: &str, namespace: &str) -> Result<Folded, ScopeError> {
        let pods = BTreeSet::from(["web-a-".to_owned()]);
        let scope = Scope {
            namespace_label: "namespace",
            namespace,
            pod_label: "pod",
            pods: &pods,
            replica_labels: &[],
            enforced: None,
        };
        match bind(&MetricQuery::Distribution { histogram: text.to_owned() }, &scope)? {
            Questions::Distribution(folded) => Ok(folded),
            other @ (Questions::Ratio { .. }
            | Questions::Counter(_)
            | Questions::Gauge(_)
            | Questions::Expression(_)) => {
                panic!("{other:?}")
            }
        }
    }

    #[test]
    fn a_distribution_is_asked_for_as_sums_and_times_of_targets() {
        let folded = folded("latency_seconds{path!=\"/health\"}", "shop").unwrap();
        let by = "pod,container,endpoint,instance,job,prometheus,prometheus_replica,replica,service";
        let matchers = r#"{path!="/health",namespace="shop",pod=~"web-a-[a-z0-9]{5}"}"#;
        assert_eq!(
            folded.values(60_000, 7_500),
            format!(
                "(sum by ({by},le) (latency_seconds_bucket{matchers}) or sum by ({by}) \
                 (latency_seconds{matchers}))[60000ms:7500ms]"
            )
        );
        assert_eq!(
            folded.times(60_000, 7_500),
            format!(
                "max by ({by}) (timestamp(latency_seconds_bucket{matchers}) or \
                 timestamp(latency_seconds{matchers}))[60000ms:7500ms]"
            )
        );
    }

    /// The vector selectors of an expression.
    pub(in crate::metrics) fn selectors(expr: &Expr) -> Vec<&VectorSelector> {
        match expr {
            Expr::VectorSelector(selector) => vec![selector],
            Expr::MatrixSelector(selector) => vec![&selector.vs],
            Expr::Subquery(subquery) => selectors(&subquery.expr),
            Expr::Paren(paren) => selectors(&paren.expr),
            Expr::Unary(unary) => selectors(&unary.expr),
            Expr::Aggregate(aggregate) => {
                let param = aggregate.param.iter().flat_map(|param| selectors(param));
                param.chain(selectors(&aggregate.expr)).collect()
            }
            Expr::Binary(binary) => [selectors(&binary.lhs), selectors(&binary.rhs)].concat(),
            Expr::Call(call) => call.args.args.iter().flat_map(|argument| selectors(argument)).collect(),
            Expr::NumberLiteral(_) | Expr::StringLiteral(_) => Vec::new(),
            Expr::Extension(_) => panic!("{expr:?}"),
        }
    }

    #[test]
    fn a_matcher_of_the_user_on_our_labels_only_narrows() {
        let text = scoped_to("up{namespace=~\".*\",pod!=\"x\"}", "shop", &["a"]).unwrap();
        assert_eq!(text, r#"up{namespace=~".*",pod!="x",namespace="shop",pod=~"a[a-z0-9]{5}"}[97500ms]"#);
    }

    #[test]
    fn what_cannot_be_bound_is_named() {
        assert_eq!(
            scoped_to("rate(up[5m])", "shop", &["a"]).unwrap_err().to_string(),
            "a function call is not a plain selector: counters are read raw and compared scrape by scrape: write only \
             the selector of a counter, like http_requests_total{code=~\"5..\"}"
        );
        assert_eq!(scoped_to("up", "shop", &[]), Err(ScopeError::NoPods));
    }

    #[test]
    fn labels_of_the_source_are_checked() {
        let pods = BTreeSet::from(["a".to_owned()]);
        let hostile = "x=~\".*\"} or up{y";
        let label = EnforcedLabel { name: hostile.to_owned(), value: String::new() };
        let good = Scope {
            namespace_label: "ns",
            namespace: "n",
            pod_label: "pod",
            pods: &pods,
            replica_labels: &[],
            enforced: None,
        };
        for scope in [
            Scope { namespace_label: hostile, ..good },
            Scope { pod_label: hostile, ..good },
            Scope { replica_labels: &[hostile.to_owned()], ..good },
            Scope { enforced: Some(&label), ..good },
        ] {
            assert_eq!(events("up", &scope), Err(ScopeError::Label(hostile.to_owned())));
        }
    }

    /// What the server would read, by an independent way: the parser.
    fn assert_bound(query: &str, namespace: &str, pods: &[&str]) {
        let Ok(Expr::MatrixSelector(selector)) = parser::parse(query) else {
            panic!("no range selector: {query}")
        };
        assert_selector_bound(&selector.vs, namespace, pods);
    }

    fn assert_selector_bound(query: &VectorSelector, namespace: &str, pods: &[&str]) {
        assert!(query.matchers.or_matchers.is_empty() && query.offset.is_none(), "{query}");
        assert!(query.at.is_none(), "{query}");
        let mut ours = query.matchers.matchers.iter().rev();
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

    /// Plain selectors, of names that may have to stand in quotes too.
    pub(in crate::metrics) fn any_selector() -> impl Strategy<Value = String> {
        let matchers = || prop::collection::vec(any_matcher(), 0..3);
        prop_oneof![
            3 => ("[a-zA-Z_:][a-zA-Z0-9_:]{0,12}", matchers())
                .prop_map(|(name, own)| format!("{name}{{{}}}", own.join(","))),
            1 => (any::<String>(), matchers())
                .prop_map(|(name, own)| format!("{{{}}}", [vec![quoted(&name)], own].concat().join(","))),
        ]
        .prop_filter("a plain selector", |text| plain(text).is_ok())
    }

    fn expression_of(text: &str, namespace: &str, enforced: &EnforcedLabel) -> Result<String, ScopeError> {
        let pods = BTreeSet::from(["web-a-".to_owned()]);
        let scope = Scope {
            namespace_label: "namespace",
            namespace,
            pod_label: "pod",
            pods: &pods,
            replica_labels: &[],
            enforced: Some(enforced),
        };
        let sides = Sides::of_pods(&Named::of("web", "a", "b", None), &scope)?;
        let asked = bind_sides(&MetricQuery::Expression { query: text.to_owned() }, &scope, &sides)?;
        let Questions::Expression(bound) = asked else { panic!("{asked:?}") };
        Ok(bound.at_once())
    }

    #[test]
    fn an_expression_names_its_cohorts() {
        let label = EnforcedLabel { name: "cluster".to_owned(), value: "eu".to_owned() };
        let text =
            "sum(rate(e{c=\"5\", {{canary}}}[1m])) / sum(rate(e{{{baseline}}}[1m])) * topk(scalar(x), y)";
        assert_eq!(
            expression_of(text, "shop", &label).unwrap(),
            r#"sum(rate(e{c="5",cluster="eu",namespace="shop",pod=~"web-a-[a-z0-9]{5}"}[1m])) / sum(rate(e{cluster="eu",namespace="shop",pod=~"web-b-[a-z0-9]{5}"}[1m])) * topk(scalar(x{cluster="eu",namespace="shop"}), y{cluster="eu",namespace="shop"})"#
        );
    }

    /// Expressions of many kinds, one within the other.
    pub(in crate::metrics) fn any_expression() -> impl Strategy<Value = String> {
        let selector = ("[a-z_:]{1,6}", prop::collection::vec(any_matcher(), 0..3), 0..3_u8)
            .prop_map(|(name, mut matchers, side)| {
                match side {
                    0 => matchers.push("{{canary}}".to_owned()),
                    1 => matchers.insert(0, "{{baseline}}".to_owned()),
                    _ => {}
                }
                format!("{name}{{{}}}", matchers.join(","))
            })
            .boxed();
        let leaf = prop_oneof![
            4 => selector.clone(),
            2 => selector.prop_map(|selector| format!("rate({selector}[5m] offset 1m)")),
            1 => Just("42".to_owned()),
            1 => Just("time()".to_owned()),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            let ops = vec!["+", "/", "and on (a)", "> bool", "or", "* on (a) group_left (b)", "unless"];
            let calls = vec![
                "sum by (a) (X)",
                "-X",
                "(X)",
                "topk(3, X)",
                "topk(scalar(X), up)",
                "clamp(X, 0, 1)",
                "max_over_time((X)[5m:30s])",
                "count_values(\"a\", X)",
                "vector(scalar(X))",
                "absent(X)",
                "label_replace(X, \"a\", \"$1\", \"b\", \"(.*)\")",
                "histogram_quantile(0.9, X)",
            ];
            prop_oneof![
                (inner.clone(), prop::sample::select(ops), inner.clone())
                    .prop_map(|(a, op, b)| format!("{a} {op} {b}")),
                (inner, prop::sample::select(calls)).prop_map(|(x, call)| call.replace('X', &x)),
            ]
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
        fn each_selector_of_a_distribution_is_bound(
            name in "[a-zA-Z_:][a-zA-Z0-9_:]{0,12}",
            matchers in prop::collection::vec(any_matcher(), 0..4),
            namespace in any::<String>(),
        ) {
            if let Ok(folded) = folded(&format!("{name}{{{}}}", matchers.join(",")), &namespace) {
                for query in [folded.values(60_000, 500), folded.times(60_000, 500)] {
                    let Ok(expr) = parser::parse(&query) else { panic!("{query}") };
                    prop_assert!(matches!(expr, Expr::Subquery(_)), "{}", query);
                    let selectors = selectors(&expr);
                    prop_assert_eq!(selectors.len(), 2);
                    for selector in selectors {
                        assert_selector_bound(selector, &namespace, &["web-a-"]);
                    }
                }
            }
        }

        /// Of any expression that is accepted, each selector has the namespace, and what the source demands.
        #[test]
        fn each_selector_of_an_expression_is_bound(text in any_expression(), namespace in any::<String>()) {
            let label = EnforcedLabel { name: "cluster".to_owned(), value: namespace.clone() };
            if let Ok(query) = expression_of(&text, &namespace, &label) {
                let Ok(expr) = parser::parse(&query) else { panic!("{query}") };
                let Ok(before) = parser::parse(&text.replace("{{canary}}", "z=\"1\"").replace("{{baseline}}", "z=\"1\"")) else {
                    panic!("{text}")
                };
                let found = selectors(&expr);
                prop_assert_eq!(found.len(), selectors(&before).len(), "{}", text);
                for selector in found {
                    let has = |name: &str| {
                        let mut all = selector.matchers.matchers.iter();
                        all.any(|m| m.name == name && m.op == MatchOp::Equal && m.value == namespace)
                    };
                    prop_assert!(has("namespace") && has("cluster"), "{} lacks one in {}", selector, query);
                    prop_assert!(selector.matchers.or_matchers.is_empty() && selector.at.is_none(), "{}", query);
                }
            }
        }

        #[test]
        fn no_text_of_an_expression_escapes(
            text in r#"(up|a|or|by|rate|sum|topk|info|offset|1|5m|\{\{canary\}\}|[{}()\[\]"'`#,=~!@:\\ \n]){0,24}"#
        ) {
            let label = EnforcedLabel { name: "cluster".to_owned(), value: "a".to_owned() };
            if let Ok(query) = expression_of(&text, "shop", &label) {
                let Ok(expr) = parser::parse(&query) else { panic!("{query}") };
                for selector in selectors(&expr) {
                    let all = &selector.matchers.matchers;
                    let has = |name: &str, value: &str| all.iter().any(|m| m.name == name && m.value == value);
                    prop_assert!(has("namespace", "shop") && has("cluster", "a"), "{}", query);
                }
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

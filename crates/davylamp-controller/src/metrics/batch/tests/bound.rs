//! Whatever is asked, and however the cohorts are told apart: each selector is of the Rollout's namespace.

use davylamp_api::rollout::{NamespaceLabel, ServiceForm};
use davylamp_api::source::EnforcedLabel;
use davylamp_engine::{expression, selector};
use promql_parser::label::{MatchOp, Matcher};
use promql_parser::parser;
use proptest::prelude::*;

use super::*;
use crate::metrics::scope::of_workload;
use crate::metrics::scope::tests::{any_expression, any_selector, selectors};

/// The ways to tell cohorts apart.
fn forms() -> Vec<Option<Cohorts>> {
    let told = |by, label: &str, form, namespace_label| {
        Some(Cohorts { by, label: Some(label.to_owned()), form, namespace_label })
    };
    let (service, destination) = ("exported_service", Some(NamespaceLabel::DestinationServiceNamespace));
    vec![
        None,
        Some(Cohorts::default()),
        Some(by_service()),
        told(CohortBy::Service, "destination", Some(ServiceForm::Name), destination),
        told(CohortBy::Service, service, Some(ServiceForm::Traefik), None),
        told(CohortBy::Service, service, Some(ServiceForm::Nginx), None),
        told(CohortBy::Service, service, Some(ServiceForm::Nginx), Some(NamespaceLabel::ExportedNamespace)),
        told(CohortBy::Labels, "version", None, None),
        told(CohortBy::Labels, "version", None, Some(NamespaceLabel::DestinationWorkloadNamespace)),
    ]
}

/// As Traefik names the Services of a Rollout in that namespace.
fn names_of_traefik(namespace: &str) -> [String; 2] {
    ["web-canary", "web-stable"].map(|service| format!("{namespace}-{service}-80@kubernetesgateway"))
}

/// All that is asked with these texts. The source has the total of a histogram and no bucket, so that its bounds are asked for.
fn asked(texts: &Result<Texts, Failure>, wanted: &Wanted, namespace: &str) -> Vec<String> {
    #[allow(clippy::cast_precision_loss, reason = "small")]
    let seconds = |n: i64| (n, (n * STEP) as f64 / 1_000.0);
    let [traefik, _] = names_of_traefik(namespace);
    let labels = [
        (wanted.source.pod_label(), "web-new-aaaaa"),
        ("service", "web-canary"),
        ("destination", "web-canary"),
        ("exported_service", traefik.as_str()),
        ("version", "new"),
    ];
    // The values do as times of scrapes as well.
    let total = series(&labels, &[seconds(1), seconds(2), seconds(3)]);
    let answer = |text: &str, _: i64| if text.contains("_count{") { vec![total.clone()] } else { Vec::new() };
    let source = Source { answer, asked: Mutex::default() };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    drop(runtime.block_on(fetch(&source, texts, wanted, 3 * STEP, None, QueryError::has_too_many_series)));
    source.asked.into_inner().unwrap().into_iter().map(|(text, _)| text).collect()
}

/// What the server would read, by the parser. Traefik names the namespace together with the Service, and nowhere else.
fn assert_bound(query: &str, told: Option<&Cohorts>, namespace: &str, source: &MetricSourceSpec) {
    let Ok(expr) = parser::parse(query) else { panic!("{query}") };
    let their_label = told.and_then(|told| told.namespace_label).map(NamespaceLabel::as_str);
    let traefik = told.filter(|told| told.form == Some(ServiceForm::Traefik));
    let other = names_of_traefik(&format!("{namespace}x"));
    for selector in selectors(&expr) {
        let all = &selector.matchers.matchers;
        let has = |label: &str, value: &str| {
            all.iter().any(|one| one.name == label && one.op == MatchOp::Equal && one.value == value)
        };
        let by_label = [Some(source.namespace_label()), their_label].into_iter().flatten();
        let is_named = |one: &Matcher| {
            let matches = |names: &[String; 2]| names.iter().any(|name| one.is_match(name));
            let is_told = traefik.is_some_and(|told| told.label.as_deref() == Some(one.name.as_str()));
            is_told && matches(&names_of_traefik(namespace)) && !matches(&other)
        };
        let is_ours = by_label.into_iter().any(|label| has(label, namespace)) || all.iter().any(is_named);
        assert!(is_ours, "{selector} of {query}, {told:?}");
        assert!(selector.matchers.or_matchers.is_empty() && selector.at.is_none(), "{query}");
        if let Some(EnforcedLabel { name, value }) = &source.enforced_label {
            assert!(has(name, value), "{selector} of {query}, {told:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Of pods and of gateways, of a workload before a run, in raw samples and in sums, of each kind of metric.
    #[test]
    fn each_selector_of_whatever_is_asked_is_bound(
        events in any_selector(),
        total in any_selector(),
        times in any_selector().prop_filter("a histogram", |text| selector::histogram(text).is_ok()),
        than in 1..5_000_u64,
        query in any_expression().prop_filter("an expression", |text| expression::parse(text).is_ok()),
        namespace in prop_oneof!["[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", any::<String>()],
        enforced in prop::option::of(any::<String>()),
        (namespace_label, pod_label) in prop::sample::select(vec![("namespace", "pod"), ("their_ns", "p")]),
        told in prop::sample::select(forms()),
    ) {
        let source = MetricSourceSpec {
            namespace_label: Some(namespace_label.to_owned()),
            pod_label: Some(pod_label.to_owned()),
            enforced_label: enforced.map(|value| EnforcedLabel { name: "cluster".to_owned(), value }),
            ..MetricSourceSpec::default()
        };
        for metric in [
            MetricQuery::Counters { events: events.clone(), total },
            MetricQuery::Counter { counter: events.clone() },
            MetricQuery::Gauge { gauge: events },
            MetricQuery::Slower { histogram: times.clone(), than: Duration::from_millis(than) },
            MetricQuery::Distribution { histogram: times },
            MetricQuery::Expression { query },
        ] {
            let mut wanted = Wanted { source: source.clone(), ..wanted(metric.clone(), told.clone()) };
            let scope = Scope {
                namespace_label,
                namespace: &namespace,
                pod_label,
                pods: &BTreeSet::new(),
                replica_labels: &[],
                enforced: None,
            };
            let of_workload = of_workload(&metric, &source, &namespace, "web").map(|questions| {
                let text = Text { questions, targets: Targets::of(&scope, pod_label), sides: None };
                Texts::from([("metric".to_owned(), text)])
            });
            let no_texts = |error: ScopeError| Failure::of_source(&wanted, error.into());
            let of_workload = of_workload.map_err(no_texts);
            for (texts, told) in [(texts(&namespace, &wanted), told.as_ref()), (of_workload, None)] {
                // One with a strange namespace is not always sure to be written as it is meant, and is of no workload.
                if matches!(metric, MetricQuery::Expression { .. }) && texts.is_err() {
                    continue;
                }
                prop_assert!(texts.is_ok(), "{:?}", texts);
                for sums in [false, true] {
                    wanted.query.summed = sums.then(|| "metric".to_owned()).into_iter().collect();
                    let asked = asked(&texts, &wanted, &namespace);
                    prop_assert!(!asked.is_empty(), "{:?}", metric);
                    if matches!(metric, MetricQuery::Slower { .. }) {
                        let with_bounds = if sums { 4 } else { 3 };
                        prop_assert_eq!(asked.len(), with_bounds, "{:?}", asked);
                    }
                    for query in asked {
                        assert_bound(&query, told, &namespace, &source);
                    }
                }
            }
        }
    }
}

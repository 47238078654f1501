//! What presets and templates stand for, what is wrong with them, and that no argument changes the shape of a selector.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::collections::BTreeMap;

use davylamp_api::rollout::{Analysis, Distribution, Gauge, Metric, Ratio};
use davylamp_api::template::Preset;
use davylamp_api::{AnalysisTemplateSpec, RolloutSpec};
use davylamp_engine::selector::{self, fill, plain};
use davylamp_engine::templates::{Expanded, compile, expand};
use promql_parser::label::MatchOp;
use proptest::prelude::*;
use serde_json::{Value, json};

/// Templates by kind and name, like `{"ClusterAnalysisTemplate http": {...}}`.
fn expanded(written: Value, library: &Value) -> Expanded {
    let written: Analysis = serde_json::from_value(written).unwrap();
    expand(&written, |scope, name| {
        let spec = library.get(format!("{} {name}", scope.kind()))?;
        Some(serde_json::from_value(spec.clone()).unwrap())
    })
}

fn names(expanded: &Expanded) -> Vec<&str> {
    expanded.analysis.metrics.iter().map(|metric| metric.name.as_str()).collect()
}

fn told(expanded: &Expanded) -> Vec<String> {
    expanded.problems.iter().map(ToString::to_string).collect()
}

fn spec(analysis: &Value) -> RolloutSpec {
    let route = json!({"kind": "HTTPRoute", "name": "shop"});
    let spec = json!({
        "selector": {"matchLabels": {"app": "shop"}},
        "template": {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": [{"name": "a", "image": "b"}]}},
        "service": "shop",
        "strategy": {"canary": {}, "traffic": [{"gatewayAPI": {"routes": [route]}}]},
        "analysis": analysis,
    });
    serde_json::from_value(spec).unwrap()
}

fn ratio(name: &str, events: &str) -> Value {
    json!({"name": name, "ratio": {"events": events, "total": "requests_total"}})
}

fn cluster(name: &str) -> Value {
    json!({"scope": "Cluster", "name": name})
}

#[test]
fn a_preset_gives_way_to_metrics_of_the_same_name_only() {
    let own = ratio("http-errors", "mistakes_total");
    let all = expanded(
        json!({"source": "default", "warmup": "5s", "presets": ["http", "linkerd"], "metrics": [own]}),
        &json!({}),
    );
    assert_eq!(told(&all), [""; 0]);
    assert_eq!(names(&all), ["http-errors", "http-latency", "linkerd-errors", "linkerd-latency"]);
    assert_eq!(serde_json::to_value(&all.analysis.metrics[0]).unwrap(), own);
    assert_eq!(
        all.origins.into_iter().collect::<Vec<_>>(),
        [
            ("http-latency", "preset http"),
            ("linkerd-errors", "preset linkerd"),
            ("linkerd-latency", "preset linkerd")
        ]
        .map(|(name, origin)| (name.to_owned(), origin.to_owned()))
    );
    let rest = Analysis { metrics: Vec::new(), ..all.analysis };
    assert_eq!(serde_json::to_value(rest).unwrap(), json!({"source": "default", "warmup": "5s"}));
}

#[test]
fn each_preset_can_be_carried_out() {
    for preset in Preset::ALL {
        let spec = spec(&json!({"source": "default", "presets": [preset]}));
        let (program, _) = compile("shop", &spec, |_, _| None).unwrap();
        let plan = &program.conduct.analysis;
        let metrics = plan.metrics.len() + plan.gauges.len();
        assert_eq!(metrics, preset.metrics().len(), "{}", preset.as_str());
    }
}

#[test]
fn arguments_are_said_or_have_a_default_and_are_passed_on() {
    let library = json!({
        "AnalysisTemplate shop": {
            "args": [{"name": "route"}, {"name": "codes", "value": "5.."}],
            "metrics": [
                ratio("errors", "requests_total{route=\"{{args.route}}\",code=~\"{{args.codes}}|429\"}"),
                ratio("named", "{__name__=\"a_{{args.route}}\"}"),
            ],
            "templates": [{"scope": "Cluster", "name": "slow", "args": [{"name": "path", "value": "/v1{{args.route}}"}]}],
        },
        "ClusterAnalysisTemplate slow": {
            "args": [{"name": "path"}],
            "metrics": [{"name": "slow", "distribution": {"histogram": "seconds{path='{{args.path}}'}"}}],
        },
    });
    let args = json!([{"name": "route", "value": "/pay \"now\"\\"}]);
    let used = json!({"scope": "Namespace", "name": "shop", "args": args});
    let all = expanded(json!({"source": "a", "templates": [used]}), &library);
    assert_eq!(told(&all), [""; 0]);
    let [errors, named, slow] = all.analysis.metrics.as_slice() else { panic!("{all:?}") };
    let events = errors.ratio.as_ref().unwrap().events.as_deref().unwrap();
    assert_eq!(events, r#"requests_total{route="/pay \u0022now\u0022\\",code=~"5..|429"}"#);
    let events = named.ratio.as_ref().unwrap().events.as_deref().unwrap();
    assert_eq!(events, r#"{__name__="a_/pay \u0022now\u0022\\"}"#);
    let histogram = &slow.distribution.as_ref().unwrap().histogram;
    assert_eq!(histogram, r"seconds{path='/v1/pay \u0022now\u0022\\'}");
    let selector = selector::plain(histogram).unwrap();
    assert_eq!(selector.matchers.matchers[0].value, "/v1/pay \"now\"\\");
    assert_eq!(all.origins["slow"], "ClusterAnalysisTemplate slow");
}

#[test]
fn all_that_is_wrong_is_said_at_once() {
    let library = json!({
        "ClusterAnalysisTemplate base": {
            "args": [{"name": "route"}, {"name": "codes", "value": "5.."}],
            "metrics": [
                ratio("form", "a{b=\"{{ args.route }}\"}"),
                ratio("unknown", "a{b=\"{{args.rout}}\"}"),
                ratio("outside", "a{{args.route}}"),
                ratio("query", "rate(a{b=\"{{args.route}}\"}[5m])"),
                ratio("plain", "sum(a)"),
            ],
            "templates": [
                {"scope": "Namespace", "name": "own"},
                {"scope": "Cluster", "name": "none", "args": [{"name": "a", "value": "{{args.b}}"}]},
            ],
        },
        "AnalysisTemplate bare": {},
        "AnalysisTemplate regex": {
            "args": [{"name": "codes"}],
            "metrics": [ratio("errors", "a{code=~\"{{args.codes}}\"}")],
        },
    });
    let all = expanded(
        json!({"templates": [
            {"scope": "Cluster", "name": "base", "args": [{"name": "rote", "value": "/"}]},
            {"scope": "Namespace", "name": "base"},
            {"scope": "Namespace", "name": "bare", "args": [{"name": "a", "value": "b"}]},
            {"scope": "Namespace", "name": "regex", "args": [{"name": "codes", "value": "5("}]},
        ]}),
        &library,
    );
    let expected = [
        "spec.analysis.templates[0].args[0].name: ClusterAnalysisTemplate base has no argument \"rote\"; write one of route, codes",
        "spec.analysis.templates[0].args: ClusterAnalysisTemplate base needs the argument \"route\"; add its name and a value",
        "ClusterAnalysisTemplate base: spec.metrics[0].ratio.events: {{ begins no {{args.NAME}}; write {{args.NAME}} with the name of an argument",
        "ClusterAnalysisTemplate base: spec.metrics[1].ratio.events: {{args.rout}} is no argument of this template; write one of codes, route",
        "ClusterAnalysisTemplate base: spec.metrics[2].ratio.events: not a selector: ",
        "ClusterAnalysisTemplate base: spec.metrics[3].ratio.events: a function call is not a plain selector",
        "ClusterAnalysisTemplate base: spec.metrics[4].ratio.events: an aggregation is not a plain selector",
        "ClusterAnalysisTemplate base: spec.templates[0]: a ClusterAnalysisTemplate uses the AnalysisTemplate own, which may be another one in each namespace; use a ClusterAnalysisTemplate",
        "ClusterAnalysisTemplate base: spec.templates[1].args[0].value: {{args.b}} is no argument of this template; write one of codes, route",
        "ClusterAnalysisTemplate base: spec.templates[1]: there is no ClusterAnalysisTemplate none; create it",
        "spec.analysis.templates[1]: there is no AnalysisTemplate base in this namespace; create it, or correct its name or its scope",
        "spec.analysis.templates[2].args[0].name: AnalysisTemplate bare has no argument \"a\"; leave it out: this template has no args",
        "AnalysisTemplate regex: spec.metrics[0].ratio.events: with the values of its arguments it is no selector: ",
    ];
    let told = told(&all);
    for (told, expected) in told.iter().zip(expected) {
        assert!(told.starts_with(expected), "{told:?} does not begin with {expected:?}");
    }
    assert_eq!(told.len(), expected.len(), "{told:#?}");
    assert_eq!(names(&all), [""; 0]);
}

#[test]
fn a_name_may_have_one_meaning_and_the_rollouts_own_ends_a_clash() {
    let library = json!({
        "ClusterAnalysisTemplate one": {"presets": ["http"], "metrics": [ratio("errors", "a_total")]},
        "ClusterAnalysisTemplate two": {
            "presets": ["http"],
            "metrics": [ratio("errors", "b_total"), ratio("http-errors", "c_total")],
        },
        "ClusterAnalysisTemplate outer": {"templates": [cluster("one")]},
    });
    // The same metrics by three ways are the same.
    let same = json!({"presets": ["http"], "templates": [cluster("one"), cluster("outer")]});
    let same = expanded(same, &library);
    assert_eq!((told(&same), names(&same)), (Vec::new(), vec!["http-errors", "http-latency", "errors"]));

    let two = json!([cluster("one"), cluster("two")]);
    let clash = expanded(json!({"templates": two}), &library);
    assert_eq!(
        told(&clash),
        [
            "ClusterAnalysisTemplate two: spec.metrics[0].name: ClusterAnalysisTemplate one has another metric \"errors\"; rename one of them, or write the one that you want in spec.analysis.metrics",
            "ClusterAnalysisTemplate two: spec.metrics[1].name: preset http of ClusterAnalysisTemplate one has another metric \"http-errors\"; rename one of them, or write the one that you want in spec.analysis.metrics",
        ]
    );
    let own = json!([ratio("errors", "d_total"), ratio("http-errors", "e_total")]);
    let ended = expanded(json!({"templates": two, "metrics": own}), &library);
    assert_eq!((told(&ended), names(&ended)), (Vec::new(), vec!["errors", "http-errors", "http-latency"]));
    let events = ended.analysis.metrics[0].ratio.as_ref().unwrap().events.as_deref();
    assert_eq!(events, Some("d_total"));
}

#[test]
fn circles_are_named_and_depth_and_number_are_bounded() {
    let chain = |names: &[&str], last: Value| -> Value {
        let links = names.windows(2).map(|pair| {
            (format!("ClusterAnalysisTemplate {}", pair[0]), json!({"templates": [cluster(pair[1])]}))
        });
        let end = (format!("ClusterAnalysisTemplate {}", names[names.len() - 1]), last);
        links.chain([end]).collect::<serde_json::Map<_, _>>().into()
    };
    let use_a = json!({"templates": [cluster("a")]});

    let circle = expanded(use_a.clone(), &chain(&["a", "b", "c", "b"], json!({"templates": [cluster("c")]})));
    assert_eq!(
        told(&circle),
        [
            "ClusterAnalysisTemplate c: spec.templates[0]: a circle: ClusterAnalysisTemplate b uses ClusterAnalysisTemplate c uses ClusterAnalysisTemplate b; leave one of them out"
        ]
    );
    let leaf = json!({"metrics": [ratio("errors", "a_total")]});
    let four = expanded(use_a.clone(), &chain(&["a", "b", "c", "d"], leaf.clone()));
    assert_eq!((told(&four), names(&four)), (Vec::new(), vec!["errors"]));
    let five = expanded(use_a, &chain(&["a", "b", "c", "d", "e"], leaf.clone()));
    assert_eq!(
        told(&five),
        [
            "ClusterAnalysisTemplate d: spec.templates[0]: ClusterAnalysisTemplate e is used by templates that are nested 4 deep already; use it further out"
        ]
    );

    // Each uses all ten of the next row: a thousand ways.
    let row = |letter: &str| (0..10).map(|i| cluster(&format!("{letter}{i}"))).collect::<Value>();
    let mut library = serde_json::Map::new();
    for i in 0..10 {
        library.insert(format!("ClusterAnalysisTemplate a{i}"), json!({"templates": row("b")}));
        library.insert(format!("ClusterAnalysisTemplate b{i}"), json!({"templates": row("c")}));
        library.insert(format!("ClusterAnalysisTemplate c{i}"), leaf.clone());
    }
    let many = expanded(json!({"templates": row("a")}), &library.into());
    assert_eq!(
        told(&many),
        ["spec.analysis.templates: more than 20 templates, with those that others use; use fewer"]
    );
    let full = expanded(
        json!({"presets": ["http"], "metrics": (0..9).map(|i| ratio(&format!("m{i}"), "a_total")).collect::<Value>()}),
        &json!({}),
    );
    assert_eq!(
        told(&full),
        [
            "spec.analysis: 11 metrics with those of presets and templates: m0, m1, m2, m3, m4, m5, m6, m7, m8, http-errors, http-latency; use fewer presets and templates, or templates with fewer metrics: at most 10 in all"
        ]
    );
}

#[test]
fn kinds_and_cohorts_that_do_not_fit_are_named() {
    let ratio = json!({"events": "a", "total": "b"});
    let metric = |more: Value| {
        let mut metric = json!({"name": "a"});
        metric.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        metric
    };
    let labels = json!({"by": "labels", "label": "x", "form": "traefik"});
    let traefik = json!({"by": "service", "form": "traefik", "namespaceLabel": "exported_namespace"});
    for (more, says) in [
        (json!({"ratio": ratio, "cohort": {"by": "pod", "label": "a"}}), "cohort: labels by pod"),
        (json!({"ratio": ratio, "cohort": {"by": "labels"}}), "cohort: no label, or a form"),
        (json!({"ratio": ratio, "cohort": labels}), "cohort: no label, or a form"),
        (json!({"ratio": ratio, "cohort": traefik}), "cohort.namespaceLabel: beside the form traefik"),
        (
            json!({"ratio": ratio, "cohort": {"by": "service", "label": "a-b"}}),
            "cohort.label: \"a-b\" is no label",
        ),
        (json!({"gauge": {"query": "a"}, "cohort": {"by": "service"}}), "cohort: not by pod"),
        (
            json!({"count": {"events": "a", "per": "podSeconds"}, "cohort": {"by": "service"}}),
            "cohort: not by pod",
        ),
        (json!({"throughput": {"requests": "rate(a[1m])"}}), "throughput.requests: a function call"),
        (json!({"throughput": {"requests": "a"}, "goal": "higher"}), "goal: not of a count"),
        (json!({"throughput": {"requests": "a"}, "ratio": ratio}), "metrics[0]: not one kind"),
        (json!({"expression": {"query": "a"}}), "expression: neither max nor min"),
        (json!({"expression": {"query": "a", "max": 1, "min": 2}}), "expression.min: 2 is more than max 1"),
        (json!({"expression": {"query": "a[5m]", "max": 1}}), "expression.query: its value is a range"),
        (
            json!({"expression": {"query": "a", "max": 1, "consecutive": 0}}),
            "expression.consecutive: not 1 to 100",
        ),
        (json!({"expression": {"query": "a", "max": 1}, "tolerance": "5%"}), "expression: tolerance or"),
        (json!({"expression": {"query": "a", "max": 1}, "floor": "5%"}), "floor: neither of a ratio"),
    ] {
        let spec = spec(&json!({"source": "default", "metrics": [metric(more.clone())]}));
        let problems = compile("shop", &spec, |_, _| None).unwrap_err();
        let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
        assert!(told.iter().any(|told| told.contains(says)), "{more}: {told:?} lacks {says:?}");
    }
}

#[test]
fn arguments_stand_in_expressions() {
    let query = "sum(rate(errors_total{route=\"{{args.route}}\", {{canary}}}[1m]))";
    let library = json!({
        "AnalysisTemplate shop": {
            "args": [{"name": "route"}],
            "metrics": [
                {"name": "failing", "expression": {"query": query, "max": 1}},
                {"name": "wide", "expression": {"query": "rate(a[{{args.route}}])", "max": 1}},
            ],
        },
    });
    let args = json!([{"name": "route", "value": "/pay"}]);
    let used = json!({"scope": "Namespace", "name": "shop", "args": args});
    let all = expanded(json!({"source": "a", "templates": [used]}), &library);
    assert_eq!(names(&all), ["failing"]);
    let filled = &all.analysis.metrics[0].expression.as_ref().unwrap().query;
    assert_eq!(filled, "sum(rate(errors_total{route=\"/pay\", {{canary}}}[1m]))");
    let told = told(&all);
    let path = "AnalysisTemplate shop: spec.metrics[1].expression.query: ";
    assert!(told.len() == 1 && told[0].starts_with(path), "{told:?}");
}

#[test]
fn problems_of_the_rollout_and_of_its_templates_come_together() {
    let mut spec = spec(&json!({
        "presets": ["http"],
        "templates": [{"scope": "Namespace", "name": "none"}],
        "metrics": [ratio("errors", "sum(a)")],
    }));
    let problems = compile("shop", &spec, |_, _| None).unwrap_err();
    let paths: Vec<_> = problems.iter().map(|problem| problem.path.as_str()).collect();
    assert_eq!(
        paths,
        ["spec.analysis.templates[0]", "spec.analysis.source", "spec.analysis.metrics[0].ratio.events"]
    );
    let analysis = spec.analysis.as_mut().unwrap();
    analysis.source = Some("default".to_owned());
    analysis.metrics.clear();
    let (program, origins) = compile("shop", &spec, |_, _| Some(AnalysisTemplateSpec::default())).unwrap();
    assert_eq!(program.conduct.written.metrics, Preset::Http.metrics());
    assert_eq!((program.conduct.written.presets.len(), program.conduct.written.templates.len()), (0, 0));
    assert_eq!(program.conduct.analysis.metrics.len(), 2);
    assert_eq!(origins.len(), 2);
}

/// As the guide writes it.
fn row(preset: Preset, metric: &Metric) -> String {
    let text = match metric {
        Metric { ratio: Some(Ratio { events: Some(events), total: Some(total), .. }), .. } => {
            format!("ratio of `{events}` to `{total}`")
        }
        Metric { distribution: Some(Distribution { histogram }), .. } => {
            format!("distribution of `{histogram}`")
        }
        Metric { gauge: Some(Gauge { query, .. }), .. } => format!("gauge `{query}`"),
        other => panic!("{other:?}"),
    };
    let by = if metric.cohort.is_some() { ", by service" } else { "" };
    format!("| `{}` | `{}` | {}{by} |\n", preset.as_str(), metric.name, text.replace('|', "\\|"))
}

#[test]
fn the_guide_says_what_presets_stand_for() {
    let table: String = Preset::ALL
        .iter()
        .flat_map(|preset| preset.metrics().into_iter().map(|metric| row(*preset, &metric)))
        .collect();
    let guide = include_str!("../../../docs/src/metrics.md");
    assert!(guide.contains(&format!("|---|---|---|\n{table}\n")), "the guide should say\n{table}");
}

#[test]
fn a_preset_is_written_as_it_is_called() {
    for preset in Preset::ALL {
        assert_eq!(serde_json::to_value(preset).unwrap(), preset.as_str());
    }
}

/// Where a value may stand, in each kind of quotes, and the operator before it.
const PLACES: [(&str, &str); 5] = [
    (r#"requests_total{route="{{args.a}}",code="200"}"#, "="),
    (r#"requests_total{route='{{args.a}}',code="200"}"#, "="),
    (r#"requests_total{route!="{{args.a}}",code="200"}"#, "!="),
    (r#"requests_total{route=~"{{args.a}}",code="200"}"#, "=~"),
    (r"requests_total{route=`{{args.a}}`,code='200'}", "`"),
];

proptest! {
    /// Whatever stands there is what the label is compared with, and nothing else is another selector.
    #[test]
    fn a_value_stays_a_value(
        value in prop_oneof![
            any::<String>(),
            r#"[a-z"'`\\{}(),=~!|\n# /.*+-]{0,20}"#,
            Just(r#"",code=~".*"#.to_owned()),
            Just(r#""} or up{a=""#.to_owned()),
            Just("{{args.a}}".to_owned()),
            Just("\\".to_owned()),
        ],
    ) {
        for (text, place) in PLACES {
            let filled = fill(text, &BTreeMap::from([("a".to_owned(), value.clone())]));
            let Ok(filled) = filled else {
                // Not each value is a regular expression, and not each character can stand in back quotes.
                prop_assert!(["=~", "`"].contains(&place), "{:?}: {:?}", text, filled);
                continue;
            };
            let selector = plain(&filled).unwrap();
            prop_assert_eq!(selector.name.as_deref(), Some("requests_total"));
            let [route, code] = selector.matchers.matchers.as_slice() else {
                return Err(TestCaseError::fail(format!("{filled:?}: {selector:?}")));
            };
            prop_assert_eq!((route.name.as_str(), &route.value), ("route", &value));
            prop_assert_eq!((code.name.as_str(), code.value.as_str()), ("code", "200"));
            prop_assert_eq!(&code.op, &MatchOp::Equal);
        }
    }
}

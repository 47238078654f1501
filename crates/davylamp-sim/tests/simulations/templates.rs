//! Rollouts whose metrics stand in templates: they are judged by them, wait for those that are missing, and keep to what a
//! run began with.

use davylamp_sim::{Report, Scenario, simulate};

const SHOP: &str = r"
rollout:
  apiVersion: davylamp.dev/v1alpha1
  kind: Rollout
  metadata: {name: web}
  spec:
    replicas: 3
    selector: {matchLabels: {app: web}}
    service: web
    template:
      metadata: {labels: {app: web}}
      spec: {containers: [{name: web, image: 'web:1'}]}
    strategy:
      canary: {steps: [{weight: 20%}, {weight: 50%}]}
      traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: web}]}}]
    analysis:
      source: default
      warmup: 10s
      settle: 5s
      hold: {min: 60s}
      templates: [{scope: Cluster, name: judged, args: [{name: codes, value: 5..}]}]
world:
  users: {requestsPerSecond: 300}
  default: {errors: 0.5%}
  versions: {'web:2': {errors: 10%}}
  scrapes: {interval: 5s}
";

const JUDGED: &str = r"
  apiVersion: davylamp.dev/v1alpha1
  kind: ClusterAnalysisTemplate
  metadata: {name: judged}
  spec:
    args: [{name: codes}]
    templates: [{scope: Cluster, name: inner, args: [{name: codes, value: '{{args.codes}}'}]}]
";

const INNER: &str = r#"
  apiVersion: davylamp.dev/v1alpha1
  kind: ClusterAnalysisTemplate
  metadata: {name: inner}
  spec:
    args: [{name: codes}]
    metrics:
    - name: errors
      ratio: {events: 'http_requests_total{code=~"{{args.codes}}"}', total: http_requests_total}
"#;

fn report(text: &str) -> Report {
    let scenario: Scenario = serde_yaml::from_str(text).unwrap();
    let report = simulate(&scenario, 5, &mut |_| {}).unwrap();
    assert_eq!(report.failures, [""; 0], "{}: {:#?}", report.message, report.timeline);
    report
}

/// As an item of a list at the margin.
fn item(object: &str) -> String {
    format!("-{}", &object.trim_start_matches('\n')[1..])
}

/// As what an event applies.
fn apply(when: &str, object: &str) -> String {
    format!("- {when}\n  do:\n    apply:{}", object.replace('\n', "\n    "))
}

/// What a run promised to measure.
fn promised(report: &Report, run: &str) -> serde_json::Value {
    report.objects[&format!("RolloutRun/{run}")]["spec"]["analysis"].clone()
}

#[test]
fn a_rollout_is_judged_by_a_template_and_its_run_says_by_what() {
    let report = report(&format!(
        "{SHOP}\nobjects:\n{}{}\nevents:\n- {{at: 20s, do: {{release: 'web:2'}}}}\nexpect: {{outcome: RolledBack, phase: Degraded, stable: 'web:1', within: 5m}}\n",
        item(JUDGED),
        item(INNER),
    ));
    let analysis = promised(&report, "web-2-1");
    assert_eq!(
        analysis["metrics"][0]["ratio"]["events"], r#"http_requests_total{code=~"5.."}"#,
        "{analysis}"
    );
    assert_eq!((analysis.get("templates"), analysis.get("presets")), (None, None));
    assert!(report.message.contains("errors"), "{}", report.message);
}

#[test]
fn a_template_that_is_missing_is_told_and_the_rollout_goes_on_when_it_is_there() {
    let ended = report(&format!("{SHOP}\nobjects:\n{}\nexpect: {{phase: Degraded}}\n", item(JUDGED)));
    for part in [
        "ClusterAnalysisTemplate judged: spec.templates[0]: there is no ClusterAnalysisTemplate inner",
        "create it, or correct its name",
    ] {
        assert!(ended.message.contains(part), "{}", ended.message);
    }
    assert_eq!(ended.stable, "");
    // The inner one is not named in the Rollout, and yet wakes it.
    report(&format!(
        "{SHOP}\nobjects:\n{}\nevents:\n{}\n- {{at: 2m, do: {{release: 'web:2'}}}}\nexpect: {{outcome: RolledBack, phase: Degraded, stable: 'web:1'}}\n",
        item(JUDGED),
        apply("at: 70s", INNER),
    ));
}

#[test]
fn a_template_that_changes_counts_from_the_next_run_on() {
    // Nothing has the code 4.., so by the changed one the version would pass.
    let changed = INNER.replace("{{args.codes}}", "4..");
    let judged = "since: {state: Judging, step: 1}\n  at: 1s";
    let report = report(&format!(
        "{SHOP}\nobjects:\n{}{}\nevents:\n- {{at: 20s, do: {{release: 'web:2'}}}}\n{}\n- {{since: {{state: Degraded}}, at: 5s, do: {{action: retry}}}}\nexpect: {{outcome: Promoted, phase: Healthy, stable: 'web:2'}}\n",
        item(JUDGED),
        item(INNER),
        apply(judged, &changed),
    ));
    let events = |run: &str| promised(&report, run)["metrics"][0]["ratio"]["events"].clone();
    assert_eq!(events("web-2-1"), r#"http_requests_total{code=~"5.."}"#);
    assert_eq!(events("web-2-2"), r#"http_requests_total{code=~"4.."}"#);
    let first = report.runs["web-2-1"].last().unwrap();
    assert_eq!((first.to.as_str(), first.step), ("Degraded", 1), "{first:?}");
}

//! Good canaries on services that are not as calm as the tests assume: what history says of them keeps them from being
//! rolled back, and without it some are. A few seeds by default, as many as `DAVYLAMP_SEEDS` says otherwise.
#![allow(clippy::disallowed_methods, reason = "how much is tested is said by the environment")]

use davylamp_sim::{Report, Scenario, simulate};
use serde_json::Value;

const SEEDS: u64 = 12;

/// Two of ten pods are the canary for an hour, after three hours of the stable version.
const SERVICE: &str = "
rollout:
  apiVersion: davylamp.dev/v1alpha1
  kind: Rollout
  metadata: {name: shop}
  spec:
    replicas: 10
    selector: {matchLabels: {app: shop}}
    template:
      metadata: {labels: {app: shop}}
      spec:
        containers: [{name: app, image: 'shop:1'}]
    service: shop
    strategy:
      canary: {steps: [{weight: 20%, hold: {min: 1h, max: 1h}}]}
      traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: shop}]}}]
    analysis:
      source: default
      onInconclusive: promote
      calibration: {history: 3h}
      metrics:
      - name: errors
        ratio: {events: 'http_requests_total{code=~\"5..\"}', total: http_requests_total}
world:
  users: {requestsPerSecond: 200}
  default: {errors: 1%}
events:
- {at: 3h1m, do: {release: 'shop:2'}}
last: 5h
";

const BURSTS: &str =
    "users: {requestsPerSecond: 200, bursts: {perHour: 40, last: 30s, errors: 30%, pods: 1}}";
const UNEVEN: &str = "default: {errors: 1%, podEffect: 0.2}";

fn scenario(changes: &[(&str, &str)]) -> Scenario {
    let mut text = SERVICE.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

/// How the run of a seed ended.
fn outcome(scenario: &Scenario, seed: u64) -> String {
    let report = simulate(scenario, seed, &mut |_| {}).unwrap();
    report.outcome.unwrap_or(report.phase)
}

const OFF: (&str, &str) = ("calibration: {history: 3h}", "calibration: {history: 0s}");

fn protected(world: (&str, &str)) {
    let asked = std::env::var("DAVYLAMP_SEEDS").ok();
    let seeds = asked.as_ref().map_or(SEEDS, |seeds| seeds.parse().unwrap());
    let (learnt, blind) = (scenario(&[world]), scenario(&[world, OFF]));
    for seed in 1..=seeds {
        assert_eq!(outcome(&learnt, seed), "Promoted", "seed {seed}");
    }
    let rolled_back = (1..=seeds).filter(|seed| outcome(&blind, *seed) == "RolledBack");
    // One is enough, and all are counted when many are asked for.
    let count = rolled_back.take(if asked.is_some() { usize::MAX } else { 1 }).count();
    eprintln!("{seeds} seeds: without history {count} are rolled back");
    assert!(count > 0, "without history nothing goes wrong either");
}

#[test]
fn bursts_of_half_a_minute_roll_no_good_canary_back() {
    protected(("users: {requestsPerSecond: 200}", BURSTS));
}

#[test]
fn pods_that_differ_roll_no_good_canary_back() {
    protected(("default: {errors: 1%}", UNEVEN));
}

/// The record of the run, and how long after the release it was written, in seconds.
fn record(scenario: &Scenario) -> (Value, u64, Report) {
    let report = simulate(scenario, 1, &mut |_| {}).unwrap();
    assert_eq!(report.failures, [""; 0], "{:#?}", report.timeline);
    let runs: Vec<_> = report
        .writes
        .iter()
        .filter(|write| write.verb == "POST" && write.path.ends_with("/rolloutruns") && write.code == 201)
        .collect();
    assert_eq!(runs.len(), 1, "one release has one run");
    let released = report.timeline.iter().find(|entry| entry.text.contains("release of")).unwrap().at_ms;
    let calibration = report.objects["RolloutRun/shop-2-1"]["spec"]["calibration"]["errors"].clone();
    (calibration, (runs[0].at_ms - released) / 1_000, report)
}

const SHORT: (&str, &str) = ("hold: {min: 1h, max: 1h}", "hold: {min: 3m, max: 1h}");

#[test]
fn what_was_learnt_stands_in_the_record() {
    let (calibration, waited, _) = record(&scenario(&[SHORT]));
    assert_eq!(
        (&calibration["block"], &calibration["reason"]),
        (&"15s".into(), &Value::Null),
        "{calibration}"
    );
    assert_eq!((&calibration["pods"], &calibration["placebos"]), (&10.into(), &20.into()), "{calibration}");
    assert!(calibration["podEffect"].as_f64().unwrap() < 0.05, "{calibration}");
    assert!(waited <= 1, "{waited} s");
}

#[test]
fn a_young_version_has_no_history_and_is_released_at_once() {
    let (calibration, waited, _) = record(&scenario(&[SHORT, ("at: 3h1m", "at: 10m")]));
    assert_eq!(calibration["reason"], "less than 1h was seen: the defaults hold");
    assert_eq!((&calibration["block"], &calibration["podEffect"]), (&"15s".into(), &0.05.into()));
    assert!(waited <= 1, "{waited} s");
}

#[test]
fn a_source_that_fails_holds_a_run_back_for_a_minute() {
    let away = "faults: [{when: {at: 3h50s}, what: {metricsAway: 3m}}]\nlast: 5h";
    let (calibration, waited, report) = record(&scenario(&[SHORT, ("last: 5h", away)]));
    let reason = calibration["reason"].as_str().unwrap();
    assert!(
        reason.starts_with("the history was not read to its end: metric errors: MetricSource default: "),
        "{reason}"
    );
    assert_eq!(calibration["podEffect"], 0.05);
    assert!((59..=62).contains(&waited), "{waited} s");
    assert_eq!(report.outcome.as_deref(), Some("Promoted"));
}

#[test]
fn a_controller_that_is_killed_while_it_reads_begins_anew() {
    let killed = "faults: [{when: {at: 3h50s}, what: {metricsSlow: 4s}}, {when: {at: 3h1m10s}, what: crashAfter}]\nlast: 5h";
    let (calibration, waited, _) = record(&scenario(&[SHORT, ("last: 5h", killed)]));
    let (whole, ..) = record(&scenario(&[SHORT]));
    assert_eq!(
        (&calibration["reason"], &calibration["pods"]),
        (&Value::Null, &whole["pods"]),
        "{calibration}"
    );
    assert_eq!(calibration["block"], whole["block"]);
    assert!((20..60).contains(&waited), "{waited} s");
}

/// The condition `AnalysisReady` when the time is over: its status and reason.
fn analysis_ready(changes: &[(&str, &str)]) -> [String; 2] {
    let report = simulate(&scenario(changes), 1, &mut |_| {}).unwrap();
    let conditions = &report.objects["Rollout/shop"]["status"]["conditions"];
    let is_it = |condition: &&Value| condition["type"] == "AnalysisReady";
    let found = conditions.as_array().unwrap().iter().find(is_it).unwrap();
    ["status", "reason"].map(|field| found[field].as_str().unwrap().to_owned())
}

#[test]
fn a_run_begins_with_what_can_be_judged() {
    assert_eq!(analysis_ready(&[("last: 5h", "last: 3h5m")]), ["True", "AsExpected"]);
    let thin = ("requestsPerSecond: 200", "requestsPerSecond: 1");
    assert_eq!(analysis_ready(&[SHORT, thin, ("last: 5h", "last: 3h5m")]), ["False", "TooLittleTraffic"]);
}

#[test]
fn another_traffic_is_said_anew() {
    let thin = ("requestsPerSecond: 200", "requestsPerSecond: 1");
    let more = "do: {release: 'shop:2'}}\n- {at: 3h8m, do: {users: 200}}";
    let more = ("do: {release: 'shop:2'}}", more);
    assert_eq!(analysis_ready(&[thin, more, ("last: 5h", "last: 3h7m")]), ["False", "TooLittleTraffic"]);
    assert_eq!(analysis_ready(&[thin, more, ("last: 5h", "last: 3h20m")]), ["True", "AsExpected"]);
}

//! Scenarios as texts, and that one seed gives one report.

use davylamp_sim::{Scenario, simulate};

const RELEASE: &str = "
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
      canary: {steps: [{weight: 20%}]}
      traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: web}]}}]
    analysis:
      source: default
      warmup: 10s
      settle: 5s
      hold: {min: 15s}
      metrics:
      - name: errors
        ratio: {events: 'http_requests_total{code=~\"5..\"}', total: http_requests_total}
world:
  users: {requestsPerSecond: 300}
  default: {errors: 0.5%}
  versions: {'web:2': {errors: 10%}}
  scrapes: {interval: 5s, lost: 2%}
events:
- {at: 20s, do: {release: 'web:2'}}
faults:
- {when: {write: 20}, what: crashAfter}
- {when: {event: 70}, what: lose}
expect: {outcome: RolledBack, phase: Degraded, stable: 'web:1', within: 5m}
";

#[test]
fn one_seed_gives_one_report_and_another_seed_another() {
    let scenario: Scenario = serde_yaml::from_str(RELEASE).unwrap();
    let report = |seed| {
        let mut frames = Vec::new();
        let report = simulate(&scenario, seed, &mut |frame| frames.push(frame.clone())).unwrap();
        assert_eq!(report.failures, [""; 0], "seed {seed}: {:#?}", report.timeline);
        assert_eq!(report.lost, 0);
        let news: usize = frames.iter().map(|frame| frame.news.len()).sum();
        assert_eq!(news, report.timeline.len(), "each entry is shown once");
        (frames, serde_json::to_string(&report).unwrap())
    };
    let first = report(7);
    assert!(first == report(7), "two runs differ");
    assert!(first.1 != report(8).1);
}

#[test]
fn errors_of_the_canary_are_those_beyond_the_usual() {
    let scenario: Scenario = serde_yaml::from_str(RELEASE).unwrap();
    let report = simulate(&scenario, 3, &mut |_| {}).unwrap();
    let canary = report.versions["web:2"];
    #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
    let (requests, errors) = (canary.requests as f64, canary.errors as f64);
    assert!(requests > 100.0);
    let expected = 0.005f64.mul_add(-requests, errors);
    assert!(
        (report.errors_of_canary - expected).abs() < 0.01 * requests,
        "{} {canary:?}",
        report.errors_of_canary
    );
}

#[test]
fn a_text_that_is_wrong_names_the_field() {
    for (from, to, expected) in [
        ("{at: 20s, do: {release", "{at: 20s, do: {relaese", "events[0].do: unknown variant `relaese`"),
        ("at: 20s", "at: 20", "events[0]: \"20\" is no duration"),
        ("crashAfter", "crash", "faults[0].what: unknown variant `crash`"),
        ("{event: 70}", "{evnet: 70}", "faults[1].when: unknown variant `evnet`"),
        ("errors: 10%", "errors: 10", "world.versions.web:2: \"10\" is no percentage"),
        ("within: 5m", "in: 5m", "expect: unknown field `in`"),
        ("world:", "wrold:", "unknown field `wrold`"),
    ] {
        let error = serde_yaml::from_str::<Scenario>(&RELEASE.replace(from, to)).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn what_the_server_refuses_is_an_error_that_names_it() {
    let text = RELEASE.replace("weight: 20%", "weight: 120%");
    let error = simulate(&serde_yaml::from_str(&text).unwrap(), 1, &mut |_| {}).unwrap_err().to_string();
    assert!(error.starts_with("Rollout/web is refused: ") && error.contains("weight"), "{error}");
    let text = RELEASE.replace("metadata: {name: web}", "metadata: {}");
    let error = simulate(&serde_yaml::from_str(&text).unwrap(), 1, &mut |_| {}).unwrap_err().to_string();
    assert_eq!(error, "the scenario's rollout has no metadata.name");
}

#[test]
fn an_endpoint_that_is_none_is_an_error_that_names_it() {
    let endpoint = "endpoints: [{path: /pay, share: 20%, dependency: bank}]";
    let text = RELEASE.replace("requestsPerSecond: 300", &format!("requestsPerSecond: 300, {endpoint}"));
    let incident = "- {at: 20s, do: {incident: {last: 1s, errors: 5%, dependency: bnak}}}\nfaults:";
    for (text, expected) in [
        (text.replace("faults:", incident), "dependency \"bnak\""),
        (text.replace("errors: 10%", "endpoints: {/pya: 10%}"), "path \"/pya\""),
    ] {
        let error = simulate(&serde_yaml::from_str(&text).unwrap(), 1, &mut |_| {}).unwrap_err().to_string();
        assert_eq!(error, format!("{expected} is of no endpoint in world.users.endpoints"));
    }
}

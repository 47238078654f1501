//! The controller through faults, at a first release: what a Rollout needs is there in the end, and what broke broke as
//! it was written.

use davylamp_api::scalar::Duration;
use davylamp_sim::{Fault, Kind, Report, Scenario, What, When, Write, simulate};

const SCENARIO: &str = "
rollout:
  apiVersion: davylamp.dev/v1alpha1
  kind: Rollout
  metadata: {name: web, namespace: shop}
  spec:
    replicas: 3
    selector: {matchLabels: {app: web}}
    service: web
    template:
      metadata: {labels: {app: web}}
      spec: {containers: [{name: web, image: 'web:1'}]}
    strategy:
      canary: {steps: [{weight: 10%}]}
      traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: web}]}}]
last: 5m
";

fn run(when: When, what: What) -> Report {
    let mut scenario: Scenario = serde_yaml::from_str(SCENARIO).unwrap();
    scenario.faults = vec![Fault { when, what }];
    let report = simulate(&scenario, 1, &mut |_| {}).unwrap();
    assert_eq!(report.phase, "Healthy", "{:?}: {}", scenario.faults, report.message);
    assert_eq!(report.failures, [""; 0], "{:?}", scenario.faults);
    report
}

fn clean() -> Report {
    simulate(&serde_yaml::from_str(SCENARIO).unwrap(), 1, &mut |_| {}).unwrap()
}

fn broke(report: &Report) -> Vec<&str> {
    report.timeline.iter().filter(|e| e.kind == Kind::Fault).map(|e| e.text.as_str()).collect()
}

fn asked(writes: &[Write]) -> Vec<(&str, &str)> {
    writes.iter().map(|write| (write.verb.as_str(), write.path.as_str())).collect()
}

#[test]
fn a_killed_controller_is_replaced_once_its_lease_has_run_out() {
    let clean = clean();
    for (what, done) in [(What::CrashBefore, false), (What::CrashAfter, true), (What::HandOver, false)] {
        let report = run(When::Write(2), what.clone());
        assert_eq!(report.objects, clean.objects, "{what:?}");
        let [first, second, next, ..] = report.writes.as_slice() else { panic!("{:?}", report.writes) };
        assert_eq!((first.at_ms, second.at_ms), (0, 0));
        let codes = [first.code, second.code];
        assert!(codes.iter().all(|code| *code != 0) == done, "{what:?}: {codes:?}");
        assert!((15_000..19_000).contains(&next.at_ms), "{what:?}: {next:?}");
        assert_eq!(broke(&report).len(), 1);
    }
}

#[test]
fn a_refused_write_is_made_again() {
    let clean = clean();
    for code in [409, 429, 500] {
        let report = run(When::Write(3), What::Refuse(code));
        assert_eq!(report.objects, clean.objects, "{code}");
        let refused: Vec<_> = report.writes.iter().filter(|write| write.code == code).collect();
        let [refused] = refused.as_slice() else { panic!("{refused:?}") };
        let again = report.writes.iter().filter(|w| (&w.verb, &w.path) == (&refused.verb, &refused.path));
        assert!(again.count() > 1, "{code}");
    }
}

#[test]
fn a_write_whose_answer_is_an_error_may_be_done() {
    let report = run(When::Write(3), What::DoneBut(504));
    assert_eq!(report.objects, clean().objects);
    assert_eq!(report.writes.iter().filter(|write| write.code == 504).count(), 1);
}

#[test]
fn a_lost_event_is_made_good_by_a_list() {
    let clean = clean();
    for event in [1, clean.events / 2, clean.events] {
        let report = run(When::Event(event), What::Lose);
        assert_eq!(report.objects, clean.objects, "event {event}");
        assert!(broke(&report)[0].ends_with("is lost"), "{:?}", broke(&report));
        assert!(report.ended_ms >= 120_000, "a minute until the list, and a minute of rest");
    }
}

#[test]
fn late_events_delay_and_change_nothing_else() {
    let report = run(When::At(Duration::from_secs(0)), What::Lag(Duration::from_secs(3)));
    assert_eq!(report.objects, clean().objects);
}

#[test]
fn nobody_writes_while_the_server_is_away() {
    let away = Duration::from_secs(30);
    let report = run(When::At(Duration::from_secs(2)), What::Away(away));
    assert_eq!(report.objects, clean().objects);
    let meanwhile = |write: &&Write| (2_000..32_000).contains(&write.at_ms);
    assert!(report.writes.iter().filter(meanwhile).all(|write| write.code == 0), "{:?}", report.writes);
    // The lease could not be renewed.
    let texts = broke(&report);
    assert!(texts.iter().any(|text| text.starts_with("the controller ends: the lease was")), "{texts:?}");
}

#[test]
fn without_faults_nothing_is_said_to_break() {
    let report = clean();
    assert_eq!(broke(&report), [""; 0]);
    let needed = ("POST", "/apis/apps/v1/namespaces/shop/replicasets");
    assert!(asked(&report.writes).contains(&needed), "{:?}", report.writes);
    assert!(report.writes.iter().all(|write| write.digest.len() == 16));
}

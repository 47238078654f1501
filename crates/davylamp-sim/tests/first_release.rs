//! The controller on an API server through faults: what a Rollout needs is there in the end, whatever breaks meanwhile.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use davylamp_sim::{Fault, Report, Scenario, What, When, simulate};

const ROLLOUT: &str = "
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
last: 3m
";

fn run(faults: &[Fault]) -> Report {
    let mut scenario: Scenario = serde_yaml::from_str(ROLLOUT).unwrap();
    scenario.faults = faults.to_vec();
    simulate(&scenario, 1, &mut |_| {}).unwrap()
}

#[test]
fn look() {
    let t = std::time::Instant::now();
    let report = run(&[]);
    eprintln!("{:?}", t.elapsed());
    eprintln!("{}", serde_json::to_string_pretty(&report).unwrap());
    eprintln!("{}", serde_json::to_string_pretty(&report.objects).unwrap());
    let r = run(&[Fault { when: When::Write(3), what: What::CrashAfter }]);
    eprintln!("{}", serde_json::to_string_pretty(&r).unwrap());
    assert_eq!(r.objects, report.objects);
}

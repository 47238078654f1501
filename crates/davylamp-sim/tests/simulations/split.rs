//! A gateway that sends other shares than the route says is found; one that is right never is.

use davylamp_sim::{Report, Scenario, simulate};
use serde_json::{Value, json};

const WRONG: &str = include_str!("../../../../examples/scenarios/wrong-split.yaml");

const SEEDS: u64 = 20;

fn report(scenario: &Scenario, seed: u64) -> Report {
    let report = simulate(scenario, seed, &mut |_| {}).unwrap();
    assert_eq!(report.failures, [""; 0], "seed {seed}: {}: {:#?}", report.message, report.timeline);
    report
}

fn scenario(change: impl FnOnce(&mut Value)) -> Scenario {
    let mut text: Value = serde_yaml::from_str(WRONG).unwrap();
    change(&mut text);
    serde_json::from_value(text).unwrap()
}

#[test]
fn a_gateway_that_doubles_the_weight_is_found() {
    let scenario = serde_yaml::from_str(WRONG).unwrap();
    for seed in 1..=SEEDS {
        let report = report(&scenario, seed);
        let last = report.runs["shop-2-1"].last().unwrap();
        assert_eq!((last.rule.as_str(), last.step), ("TrafficSplit", 1), "seed {seed}: {last:?}");
        let message = &last.message;
        let got = message.strip_prefix("the canary got ").and_then(|rest| rest.split_once('%')).unwrap().0;
        assert!((19.0..21.0).contains(&got.parse::<f64>().unwrap()), "seed {seed}: {message}");
    }
}

#[test]
fn a_gateway_that_is_right_pauses_nobody_though_requests_are_few_and_connections_last() {
    let scenario = scenario(|text| {
        text["world"]["gateway"] = json!({});
        text["world"]["users"] = json!({"requestsPerSecond": 2, "keepAlive": "30s"});
        text["rollout"]["spec"]["analysis"]["onInconclusive"] = json!("promote");
        text["last"] = json!("4h");
        text["expect"] = json!({"phase": "Healthy", "stable": "shop:2"});
    });
    for seed in 1..=SEEDS {
        let report = report(&scenario, seed);
        let rules: Vec<_> = report.runs["shop-2-1"].iter().map(|record| record.rule.as_str()).collect();
        assert!(!rules.contains(&"TrafficSplit"), "seed {seed}: {rules:?}");
    }
}

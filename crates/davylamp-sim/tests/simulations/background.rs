//! Probes come to each pod, whatever its weight: measured without traffic and left out, they do not bend the split.

use davylamp_sim::{Report, Scenario, simulate};
use serde_json::{Value, json};

const PROBES: &str = include_str!("../../../../examples/scenarios/probes.yaml");

const SEEDS: u64 = 10;

fn reports(change: impl FnOnce(&mut Value)) -> impl Iterator<Item = Report> {
    let mut text: Value = serde_yaml::from_str(PROBES).unwrap();
    change(&mut text);
    let scenario: Scenario = serde_json::from_value(text).unwrap();
    (1..=SEEDS).map(move |seed| {
        let report = simulate(&scenario, seed, &mut |_| {}).unwrap();
        assert_eq!(report.failures, [""; 0], "seed {seed}: {}: {:#?}", report.message, report.timeline);
        report
    })
}

#[test]
fn probes_are_measured_and_left_out_of_a_thin_step() {
    for report in reports(|_| {}) {
        let records = &report.runs["shop-2-1"];
        let rules: Vec<_> = records.iter().map(|record| record.rule.as_str()).collect();
        assert!(rules.contains(&"BackgroundTraffic") && !rules.contains(&"TrafficSplit"), "{rules:?}");
        let judged: Vec<_> = records.iter().flat_map(|record| &record.metrics).collect();
        assert!(!judged.is_empty());
        for metric in judged {
            let background = metric.background.unwrap();
            assert!((0.27..0.33).contains(&background), "{background}");
        }
    }
}

#[test]
fn what_is_not_measured_seems_to_be_a_wrong_split() {
    // Without a history it is not known that the traffic is thin.
    let reports = reports(|text| {
        text["rollout"]["spec"]["analysis"]["calibration"] = json!({"history": "0s"});
        text["expect"] = json!({"phase": "Paused", "stable": "shop:1"});
    });
    for report in reports {
        let last = report.runs["shop-2-1"].last().unwrap();
        assert_eq!((last.rule.as_str(), last.step), ("TrafficSplit", 1), "{last:?}");
    }
}

//! A fresh baseline: what fills as pods grow older is told from a leak, and nothing of it is left.

use davylamp_api::run::{DecisionRecord, GaugeRecord};
use davylamp_api::status::Verdict;
use davylamp_sim::{Report, Scenario, simulate};
use serde_json::json;

const LEAK: &str = include_str!("../../../../examples/scenarios/leak-fresh.yaml");

const SEEDS: u64 = 5;

/// The last decision of that rule, and its gauge.
fn told<'a>(report: &'a Report, run: &str, rule: &str) -> (&'a DecisionRecord, &'a GaugeRecord) {
    let found = report.runs[run].iter().rfind(|record| record.rule == rule && !record.gauges.is_empty());
    let record = found.unwrap_or_else(|| panic!("{run} has no {rule}: {:#?}", report.timeline));
    (record, &record.gauges[0])
}

#[test]
fn a_leak_is_told_from_what_fills_with_age() {
    let scenario: Scenario = serde_yaml::from_str(LEAK).unwrap();
    for seed in 1..=SEEDS {
        let report = simulate(&scenario, seed, &mut |_| {}).unwrap();
        assert_eq!(report.failures, [""; 0], "seed {seed}: {}: {:#?}", report.message, report.timeline);
        let (_, good) = told(&report, "shop-2-1", "LastStepPassed");
        assert_eq!((good.verdict, good.pods), (Verdict::Pass, [5, 5]), "seed {seed}: {good:?}");
        let (record, leak) = told(&report, "shop-3-1", "Regression");
        assert_eq!(leak.verdict, Verdict::Regressed, "seed {seed}: {}", record.message);
        let mut sets = 0;
        for (name, object) in &report.objects {
            if name.starts_with("ReplicaSet/") && name.ends_with("-baseline") {
                sets += 1;
                assert_eq!(object["spec"]["selector"]["matchLabels"]["davylamp.dev/role"], "baseline");
                assert_eq!(object["spec"]["replicas"], 0);
            }
        }
        assert_eq!(sets, 2, "seed {seed}");
    }
}

#[test]
fn a_fresh_baseline_is_kept_and_goes_with_its_revision() {
    let mut scenario: Scenario = serde_yaml::from_str(LEAK).unwrap();
    scenario.rollout["spec"]["revisionHistoryLimit"] = json!(1);
    let report = simulate(&scenario, 1, &mut |_| {}).unwrap();
    assert_eq!(report.failures, [""; 0]);
    let of = |kind: &str| {
        let mut names: Vec<_> = report.objects.keys().filter(|name| name.starts_with(kind)).collect();
        names.sort();
        names.into_iter().map(|name| name.trim_start_matches(kind)).collect::<Vec<_>>()
    };
    let (mut sets, revisions) = (of("ReplicaSet/"), of("ControllerRevision/"));
    let baselines: Vec<_> = sets.extract_if(.., |name| name.ends_with("-baseline")).collect();
    // That in use and the one that was rejected; the baseline is that of the one in use.
    assert_eq!((sets.len(), baselines.len()), (2, 1), "{sets:?} {baselines:?}");
    assert_eq!(sets, revisions);
    assert!(sets.iter().any(|set| baselines[0] == format!("{set}-baseline")), "{sets:?} {baselines:?}");
}

#[test]
fn against_pods_that_are_older_a_good_version_seems_to_leak() {
    let mut scenario: Scenario = serde_yaml::from_str(LEAK).unwrap();
    scenario.rollout["spec"]["strategy"]["canary"]["baseline"] = json!("stable");
    scenario.events.truncate(1);
    scenario.expect = davylamp_sim::Expect::default();
    let report = simulate(&scenario, 1, &mut |_| {}).unwrap();
    let (_, good) = told(&report, "shop-2-1", "LastStepPassed");
    assert!(good.p.unwrap() < 0.001 && good.verdict == Verdict::Collecting, "{good:?}");
}

//! What an analysis may be told to do instead of waiting for somebody, and an objective of the canary.

use davylamp_api::run::{Cohort, DecisionRecord};
use davylamp_api::scalar::Duration;
use davylamp_sim::{Report, Scenario, simulate};
use serde_json::{Value, json};

const GOOD: &str = include_str!("../../../../examples/scenarios/good.yaml");
const THIN: &str = include_str!("../../../../examples/scenarios/thin-traffic.yaml");

const SEEDS: u64 = 3;

fn scenario(text: &str, change: impl FnOnce(&mut Value)) -> Scenario {
    let mut scenario: Value = serde_yaml::from_str(text).unwrap();
    change(&mut scenario);
    serde_json::from_value(scenario).unwrap()
}

/// The decisions of the release, which ended as expected.
fn decisions(scenario: &Scenario, seed: u64) -> Vec<DecisionRecord> {
    let report = simulate(scenario, seed, &mut |_| {}).unwrap();
    let Report { failures, message, timeline, mut runs, .. } = report;
    assert_eq!(failures, [""; 0], "seed {seed}: {message}: {timeline:#?}");
    runs.remove("shop-2-1").unwrap()
}

/// From where to where that rule led.
fn led<'a>(decisions: &'a [DecisionRecord], rule: &str) -> Vec<(&'a str, &'a str)> {
    let by_rule = decisions.iter().filter(|record| record.rule == rule && record.from != record.to);
    by_rule.map(|record| (record.from.as_str(), record.to.as_str())).collect()
}

fn rolled_back() -> Value {
    json!({"outcome": "RolledBack", "phase": "Degraded", "stable": "shop:1"})
}

#[test]
fn an_objective_that_only_the_canary_violates_pauses_its_run() {
    let scenario = scenario(GOOD, |text| {
        text["world"]["versions"] = json!({"shop:1": {"errors": "5%"}, "shop:2": {"errors": "9%"}});
        let analysis = &mut text["rollout"]["spec"]["analysis"];
        // It is tolerated beside the baseline, and has time to be seen before its step may pass.
        analysis["metrics"][0]["tolerance"] = json!("100%");
        analysis["hold"] = json!({"min": "5m", "max": "10m"});
        analysis["slos"] = json!([{"metric": "errors", "objective": "94%"}]);
        text["expect"] = json!({"phase": "Paused", "stable": "shop:1"});
    });
    for seed in 1..=SEEDS {
        let decisions = decisions(&scenario, seed);
        let last = decisions.last().unwrap();
        let found = (last.from.as_str(), last.to.as_str(), last.rule.as_str(), last.step);
        assert_eq!(found, ("Judging", "Paused", "SloViolated", 1), "seed {seed}: {last:?}");
        let limit = last.metrics[0].limit.unwrap();
        let Cohort { events, exposure } = limit.canary.unwrap();
        assert!(events > limit.rate * exposure, "seed {seed}: {limit:?}");
        assert!(limit.log_e_canary.unwrap() >= 4.6, "seed {seed}: {limit:?}");
        assert!(led(&decisions, "Incident").is_empty(), "seed {seed}: the baseline keeps it");
    }
}

#[test]
fn a_canary_without_data_is_rolled_back_where_that_is_asked_for() {
    // What the pods of the new version are called is found out first.
    let mut short = scenario(GOOD, |_| {});
    short.last = Duration::from_secs(120);
    let report = simulate(&short, 1, &mut |_| {}).unwrap();
    let image =
        |object: &Value| object.pointer("/spec/template/spec/containers/0/image") == Some(&json!("shop:2"));
    let sets = || {
        report.objects.iter().filter_map(|(name, object)| Some((name.strip_prefix("ReplicaSet/")?, object)))
    };
    let (canary, _) = sets().find(|(_, object)| image(object)).unwrap();
    let others = format!("pod!~\"{canary}-.*\"");

    let scenario = scenario(GOOD, |text| {
        let analysis = &mut text["rollout"]["spec"]["analysis"];
        // As if nobody scraped them.
        analysis["metrics"][0]["ratio"] = json!({
            "events": format!("http_requests_total{{code=~\"5..\",{others}}}"),
            "total": format!("http_requests_total{{{others}}}"),
        });
        analysis["onNoData"] = json!("rollback");
        text["expect"] = rolled_back();
    });
    for seed in 1..=SEEDS {
        let decisions = decisions(&scenario, seed);
        let led = led(&decisions, "NoData");
        assert_eq!(led, [("Judging", "RollingBack"), ("RollingBack", "Degraded")], "seed {seed}");
    }
}

#[test]
fn a_step_without_a_verdict_is_rolled_back_where_that_is_asked_for() {
    let scenario = scenario(THIN, |text| {
        text["rollout"]["spec"]["analysis"]["onInconclusive"] = json!("rollback");
        text["expect"] = rolled_back();
    });
    for seed in 1..=SEEDS {
        let decisions = decisions(&scenario, seed);
        let led = led(&decisions, "Inconclusive");
        assert_eq!(led, [("Judging", "RollingBack"), ("RollingBack", "Degraded")], "seed {seed}");
    }
}

#[test]
fn steps_without_traffic_pass_where_that_is_asked_for() {
    let scenario = scenario(GOOD, |text| {
        text["world"]["users"]["requestsPerSecond"] = json!(0);
        text["rollout"]["spec"]["analysis"]["onNoTraffic"] = json!("promote");
    });
    for seed in 1..=SEEDS {
        let decisions = decisions(&scenario, seed);
        let led = led(&decisions, "NoTraffic");
        let next = ("Judging", "Scaling");
        assert_eq!(led, [next, next, ("Judging", "Promoting")], "seed {seed}: three steps, none judged");
        assert!(decisions.iter().all(|record| record.rule != "StepPassed" && record.to != "Paused"));
    }
}

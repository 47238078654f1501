//! While a step is judged, the status of its Rollout is written once a minute: each write is told to all who watch.

use davylamp_sim::{Entry, Kind, Report, Scenario, simulate};
use serde_json::{Value, json};

const GOOD: &str = include_str!("../../../../examples/scenarios/good.yaml");

const SEEDS: u64 = 2;
const MINUTE: u64 = 60_000;
/// Whatever else is found at a time: a condition that turns.
const MORE: usize = 2;

/// A good version that is judged for ten minutes at each of three steps.
fn report(scrapes: &Value, seed: u64) -> Report {
    let mut text: Value = serde_yaml::from_str(GOOD).unwrap();
    text["world"]["scrapes"] = scrapes.clone();
    text["rollout"]["spec"]["analysis"]["hold"] = json!({"min": "10m", "max": "20m"});
    text["expect"] = json!({"outcome": "Promoted", "phase": "Healthy", "stable": "shop:2"});
    let scenario: Scenario = serde_json::from_value(text).unwrap();
    let report = simulate(&scenario, seed, &mut |_| {}).unwrap();
    assert_eq!(report.failures, [""; 0], "seed {seed}: {}: {:#?}", report.message, report.timeline);
    report
}

/// When the status was written.
fn written(report: &Report) -> Vec<u64> {
    let of_status = |path: &str| path.ends_with("/rollouts/shop/status");
    let writes = report.writes.iter().filter(|write| of_status(&write.path) && write.code == 200);
    writes.map(|write| write.at_ms).collect()
}

/// From the decision that led to Judging to the next one.
fn judged(report: &Report) -> Vec<(u64, u64)> {
    let decisions: Vec<&Entry> =
        report.timeline.iter().filter(|entry| entry.kind == Kind::Decision).collect();
    let begins = |entry: &Entry| entry.text.contains(" → Judging ");
    let windows = decisions.windows(2).filter(|pair| begins(pair[0]));
    windows.map(|pair| (pair[0].at_ms, pair[1].at_ms)).collect()
}

fn is_written_once_a_minute(report: &Report, what: &str) {
    let (written, judged) = (written(report), judged(report));
    assert_eq!(judged.len(), 3, "{what}: {:#?}", report.timeline);
    for (from, to) in judged {
        assert!(to - from >= 9 * MINUTE, "{what}: {:#?}", report.timeline);
        let meanwhile: Vec<_> = written.iter().filter(|at| (from + 1..to).contains(*at)).collect();
        let most = usize::try_from((to - from) / MINUTE).unwrap() + MORE;
        assert!(meanwhile.len() <= most, "{what}: {} of {most}: {meanwhile:?}", meanwhile.len());
        assert!(meanwhile.len() >= 5, "{what}: the checkpoints are written: {meanwhile:?}");
    }
    // Each transition changes the status at once, and when the routes and the pods are as it says.
    let decisions = report.timeline.iter().filter(|entry| entry.kind == Kind::Decision).count();
    let minutes = usize::try_from(report.ended_ms / MINUTE).unwrap();
    assert!(written.len() <= 4 * decisions + minutes + 10, "{what}: {} for {decisions}", written.len());
}

#[test]
fn a_step_that_is_judged_is_written_once_a_minute() {
    for seed in 1..=SEEDS {
        let report = report(&json!({"interval": "5s"}), seed);
        is_written_once_a_minute(&report, &format!("seed {seed}"));
    }
}

#[test]
fn a_step_whose_pods_are_scraped_twice_is_written_once_a_minute() {
    for seed in 1..=SEEDS {
        let report = report(&json!({"interval": "5s", "twice": true}), seed);
        is_written_once_a_minute(&report, &format!("twice, seed {seed}"));
    }
}

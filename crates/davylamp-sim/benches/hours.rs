//! What a simulation costs, and what comes of a thousand of them: written to `bench/results/simulation.json`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for a person to look at")]
#![allow(clippy::disallowed_methods, reason = "measures real time")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use davylamp_sim::{Scenario, simulate};
use serde_json::json;

const HOUR: &str = include_str!("hour.yaml");
const GOOD: &str = include_str!("../../../examples/scenarios/good.yaml");
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/results/simulation.json");
const SEEDS: u64 = 1_000;

fn main() {
    let hour: Scenario = serde_yaml::from_str(HOUR).unwrap();
    let mut seconds: Vec<f64> = (1..=9)
        .map(|seed| {
            let start = Instant::now();
            let report = simulate(&hour, seed, &mut |_| {}).unwrap();
            assert_eq!(report.outcome.as_deref(), Some("Promoted"), "seed {seed}");
            start.elapsed().as_secs_f64()
        })
        .collect();
    seconds.sort_by(f64::total_cmp);
    println!("an hour with 20 pods and 3 metrics: {:.3} s (median of {})", seconds[4], seconds.len());

    let good: Scenario = serde_yaml::from_str(GOOD).unwrap();
    let (next, outcomes) = (AtomicU64::new(1), Mutex::new(BTreeMap::<String, u64>::new()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > SEEDS {
                        break;
                    }
                    let report = simulate(&good, seed, &mut |_| {}).unwrap();
                    let outcome = report.outcome.unwrap_or(report.phase);
                    *outcomes.lock().unwrap().entry(outcome).or_default() += 1;
                }
            });
        }
    });
    let wall = start.elapsed().as_secs_f64();
    let outcomes = outcomes.into_inner().unwrap();
    println!("{SEEDS} seeds of the good canary: {wall:.0} s on {cores} cores: {outcomes:?}");

    let rounded = |seconds: f64| (seconds * 1_000.0).round() / 1_000.0;
    let results = json!({
        "hour": {"pods": 20, "metrics": 3, "scrapeSeconds": 15, "medianSeconds": rounded(seconds[4])},
        "good": {"seeds": SEEDS, "cores": cores, "seconds": rounded(wall), "outcomes": outcomes},
    });
    std::fs::write(RESULTS, format!("{results:#}\n")).unwrap();
}

//! What a simulation costs, and what comes of a thousand of them: written to `bench/results/simulation.json`.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for a person to look at")]
#![allow(clippy::disallowed_methods, reason = "measures real time")]

mod seeds;

use std::collections::BTreeMap;
use std::time::Instant;

use davylamp_sim::{Scenario, simulate};
use serde_json::json;

use self::seeds::each_of;

const HOUR: &str = include_str!("hour.yaml");
const GOOD: &str = include_str!("../../../examples/scenarios/good.yaml");
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/results/simulation.json");
const SEEDS: u64 = 1_000;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    let start = Instant::now();
    let ended = each_of(&good, SEEDS, |report| report.outcome.unwrap_or(report.phase));
    let wall = start.elapsed().as_secs_f64();
    let mut outcomes = BTreeMap::<String, u64>::new();
    for outcome in ended {
        *outcomes.entry(outcome).or_default() += 1;
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    println!("{SEEDS} seeds of the good canary: {wall:.0} s on {cores} cores: {outcomes:?}");

    let rounded = |seconds: f64| (seconds * 1_000.0).round() / 1_000.0;
    let results = json!({
        "hour": {"pods": 20, "metrics": 3, "scrapeSeconds": 15, "medianSeconds": rounded(seconds[4])},
        "good": {"seeds": SEEDS, "cores": cores, "seconds": rounded(wall), "outcomes": outcomes},
    });
    std::fs::write(RESULTS, format!("{results:#}\n")).unwrap();
}

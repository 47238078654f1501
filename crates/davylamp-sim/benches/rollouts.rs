//! What comes of a thousand rollouts in each of some worlds: written to `bench/results/rollouts.json` and the page of the guide
//! as soon as a cell is done. Only cells whose name holds the argument are run, and the page is written even if there is none;
//! with `DAVYLAMP_SEEDS`, fewer rollouts of each, and nothing is written.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for a person to look at")]
#![allow(
    clippy::disallowed_methods,
    reason = "how much is measured is said by the environment; measures real time"
)]

mod seeds;

use std::collections::BTreeMap;
use std::time::Instant;

use davylamp_sim::{Report, Scenario};
use serde_json::{Value, json};

use self::seeds::each_of;

const SERVICE: &str = include_str!("rollouts.yaml");
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/results/rollouts.json");
const TEXT: &str = include_str!("rollouts.md");
const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/src/rollouts.md");
const SEEDS: u64 = 1_000;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CANARY: &str = "shop:2: {errors: 1%, latency: 100ms, signUps: 5%}";
const USERS: &str = "{requestsPerSecond: 200}";
const RELEASE: &str = "- {at: 2h10m, do: {release: 'shop:2'}}";
const BOTH: &str = "errors: 1%,";

/// The name of each cell, and what is different in its world.
const CELLS: [(&str, &[(&str, &str)]); 10] = [
    ("good", &[]),
    ("errors x2", &[(CANARY, "shop:2: {errors: 2%, latency: 100ms, signUps: 5%}")]),
    ("errors x5", &[(CANARY, "shop:2: {errors: 5%, latency: 100ms, signUps: 5%}")]),
    ("25 % slower", &[(CANARY, "shop:2: {errors: 1%, latency: 125ms, signUps: 5%}")]),
    ("20 % fewer sign-ups", &[(CANARY, "shop:2: {errors: 1%, latency: 100ms, signUps: 4%}")]),
    (
        "good, x20 errors in both for 5 min",
        &[(
            RELEASE,
            "- {at: 2h10m, do: {release: 'shop:2'}}\n- {at: 2h20m, do: {incident: {last: 5m, errors: 19%}}}",
        )],
    ),
    (
        "good, bursts of 30 s in single pods",
        &[(USERS, "{requestsPerSecond: 200, bursts: {perHour: 40, last: 30s, errors: 30%, pods: 1}}")],
    ),
    ("good, pods differ by 20 %", &[(BOTH, "errors: 1%, podEffect: 0.2,")]),
    ("good, no requests", &[(USERS, "{requestsPerSecond: 0}")]),
    ("good, 2 requests a second", &[(USERS, "{requestsPerSecond: 2}")]),
];

fn main() {
    let asked = std::env::var("DAVYLAMP_SEEDS").ok().map(|seeds| seeds.parse().unwrap());
    let only = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let seeds = asked.unwrap_or(SEEDS);
    let mut results = std::fs::read_to_string(RESULTS)
        .map_or_else(|_| json!({"seeds": SEEDS}), |text| serde_json::from_str(&text).unwrap());
    if asked.is_none() {
        write(&results);
    }
    for (name, changes) in CELLS {
        if only.as_ref().is_some_and(|only| !name.contains(only)) {
            continue;
        }
        let found = cell(changes, seeds);
        print!("{}", row(name, &found));
        if asked.is_none() {
            results["cells"][name] = found;
            write(&results);
        }
    }
}

fn write(results: &Value) {
    std::fs::write(RESULTS, format!("{results:#}\n")).unwrap();
    let rows = CELLS.iter().filter_map(|(name, _)| Some(row(name, results["cells"].get(*name)?)));
    std::fs::write(PAGE, TEXT.replace("{rows}", rows.collect::<String>().trim_end())).unwrap();
}

/// A line of the table.
fn row(name: &str, found: &Value) -> String {
    let count = |outcome: &str| found["outcomes"][outcome].as_u64().unwrap_or(0);
    let minutes = |field: &str| found[field].as_f64().unwrap();
    format!(
        "| {name} | {} | {} | {} | {:.1} | {:.1} | {} |\n",
        count("RolledBack"),
        count("Promoted"),
        count("Paused"),
        minutes("medianMinutes"),
        minutes("minutesOfNineInTen"),
        found["errorsOfCanary"],
    )
}

fn cell(changes: &[(&str, &str)], seeds: u64) -> Value {
    let mut text = SERVICE.to_owned();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let scenario: Scenario = serde_yaml::from_str(&text).unwrap();
    let start = Instant::now();
    let found = each_of(&scenario, seeds, of);
    let seconds = start.elapsed().as_secs();
    let mut outcomes = BTreeMap::<&str, u64>::new();
    for (_, outcome, _) in &found {
        *outcomes.entry(outcome).or_default() += 1;
    }
    // They are sorted by the time that they took.
    let at = |tenths: usize| found[(found.len() * tenths / 10).min(found.len() - 1)].0;
    let minutes = |ms: u64| f64::from(u32::try_from(ms / 1_000).unwrap()) / 60.0;
    let (median, slowest) = (minutes(at(5)), minutes(at(9)));
    let failed = found.iter().map(|(.., errors)| errors).sum::<i64>() / i64::try_from(found.len()).unwrap();
    let rounded = |minutes: f64| (minutes * 10.0).round() / 10.0;
    json!({
        "outcomes": outcomes,
        "medianMinutes": rounded(median),
        "minutesOfNineInTen": rounded(slowest),
        "errorsOfCanary": failed,
        "seconds": seconds,
    })
}

/// How long it took until it ended or paused in ms, how it ended, and how many requests failed because of the canary.
#[allow(clippy::cast_possible_truncation, reason = "fewer than all requests")]
fn of(report: Report) -> (u64, String, i64) {
    let run = report.runs.values().next_back();
    let lasted = run.and_then(|run| {
        let (first, last) = (run.first()?.at, run.last()?.at);
        u64::try_from(last.as_millisecond() - first.as_millisecond()).ok()
    });
    let errors = report.errors_of_canary.round() as i64;
    (report.took_ms.or(lasted).unwrap_or(0), report.outcome.unwrap_or(report.phase), errors)
}

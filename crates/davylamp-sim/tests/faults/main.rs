//! Each story, run with each fault at each place: it must end as it does without. A tenth of the cases runs by default, always
//! the same, all of them with `DAVYLAMP_FAULTS=all`; `DAVYLAMP_FAULTS="good"` runs all faults of one story.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr, reason = "a test")]

mod scenarios;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use davylamp_api::run::{DecisionRecord, MetricRecord};
use davylamp_api::scalar::Duration;
use davylamp_sim::{Fault, Happening, Report, Scenario, What, When, simulate};
use serde_json::Value;
use sha2::{Digest, Sha256};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const SEED: u64 = 1;

/// Faults that once made a story end otherwise: they always run.
const EVER_FAILED: &[&str] = &[];

/// Stories in which something comes at a fixed time and may find the run at another step when a fault has delayed it: it
/// must end in the same way, with the same version behind the same route, but not by the same decisions.
const TIMED: &[&str] = &["late regression", "no data"];

/// Where a story may end otherwise, and why that is right.
const MAY_DIFFER: &[(&str, &[&str], &str)] = &[
    (
        "never ready",
        &[
            "metrics slow",
            "away at",
            "event 79 lost",
            "event 80 lost",
            "event 81 lost",
            "event 82 lost",
            "event 83 lost",
            "event 84 lost",
            "event 85 lost",
            "event 86 lost",
        ],
        NEXT_ATTEMPT,
    ),
    (
        "no data",
        &["event 48 lost"],
        "the first release is not yet seen to be ready when the next one comes, and is superseded",
    ),
    ("abort", &["event 87 lost"], LATE_WORD),
    ("promote", &["event 87 lost"], LATE_WORD),
    ("retry", &["event 87 lost"], LATE_WORD),
    ("new template in mid-run", &["event 87 lost"], LATE_WORD),
    ("scale in mid-run", &["event 109 lost"], "that its new pods are ready is seen a minute late: it holds"),
    ("capacity lost", &["event 88 lost"], "that pods are gone is seen a minute late, after their silence"),
    (
        "capacity lost",
        &["event 98 lost"],
        "that pods are back is seen a minute late, after the deadline of the step",
    ),
];
const NEXT_ATTEMPT: &str = "it lasts until the next attempt, which comes by itself after two minutes";
const LATE_WORD: &str = "the word is heard a minute late, when the run is at its next step";

/// One fault in one story.
struct Case<'a> {
    story: &'a str,
    scenario: &'a Scenario,
    clean: &'a Report,
    name: String,
    fault: Fault,
}

/// What must be the same: the decisions of each run, and what is left at the end.
#[derive(Debug, PartialEq)]
struct Ending {
    decisions: BTreeMap<String, Vec<String>>,
    objects: BTreeMap<String, Value>,
    phase: String,
    stable: String,
    outcome: Option<String>,
}

impl Ending {
    fn of(story: &str, report: &Report) -> Self {
        if TIMED.contains(&story) {
            let kept = |name: &&String| name.starts_with("HTTPRoute/") || name.starts_with("Service/");
            let objects = report.objects.iter().filter(|(name, _)| kept(name));
            return Self {
                decisions: BTreeMap::new(),
                objects: objects.map(|(name, object)| (name.clone(), object.clone())).collect(),
                phase: report.phase.clone(),
                stable: report.stable.clone(),
                outcome: report.outcome.clone(),
            };
        }
        let chain = |records: &[DecisionRecord]| {
            records.iter().map(|r| format!("{} -> {} ({}, step {})", r.from, r.to, r.rule, r.step)).collect()
        };
        Self {
            decisions: report.runs.iter().map(|(run, records)| (run.clone(), chain(records))).collect(),
            objects: report.objects.iter().map(|(n, o)| (n.clone(), lasting(o, &report.stable))).collect(),
            phase: report.phase.clone(),
            stable: report.stable.clone(),
            outcome: report.outcome.clone(),
        }
    }

    /// Where they differ, in a few lines.
    fn difference(&self, other: &Self) -> Option<String> {
        if self == other {
            return None;
        }
        let mut lines = Vec::new();
        for (run, chain) in &self.decisions {
            let found = other.decisions.get(run);
            if found != Some(chain) {
                lines.push(format!("  decisions of {run}:\n    clean {chain:#?}\n    now   {found:#?}"));
            }
        }
        for name in self.objects.keys().chain(other.objects.keys()) {
            let (clean, now) = (self.objects.get(name), other.objects.get(name));
            if clean != now {
                let text = |value: Option<&Value>| value.map(ToString::to_string);
                lines.push(format!("  {name}:\n    clean {:?}\n    now   {:?}", text(clean), text(now)));
            }
        }
        let ends = |e: &Self| (e.phase.clone(), e.stable.clone(), e.outcome.clone());
        if ends(self) != ends(other) {
            lines.push(format!("  clean {:?}, now {:?}", ends(self), ends(other)));
        }
        lines.dedup();
        Some(lines.join("\n"))
    }
}

/// Without what goes on while the Rollout is at rest: times, a new attempt later, and pods of the version before, which go
/// after a while.
fn lasting(object: &Value, stable: &str) -> Value {
    let mut object = object.clone();
    let mut without = |parent: &str, field: &str| {
        if let Some(parent) = object.pointer_mut(parent).and_then(Value::as_object_mut) {
            parent.remove(field);
        }
    };
    without("/status", "old");
    without("/status/state", "deadline");
    without("/status/latest", "notBefore");
    // A run that begins later has seen more of the past.
    without("/spec", "calibration");
    // And says another thing of what the traffic suffices for.
    let conditions = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut);
    for condition in conditions.into_iter().flatten().filter(|one| one["reason"] == "TooLittleTraffic") {
        condition["status"] = "True".into();
        condition["reason"] = "AsExpected".into();
    }
    let image = object.pointer("/spec/template/spec/containers/0/image").and_then(Value::as_str);
    if object["kind"] == "ReplicaSet" && image != Some(stable) {
        object["status"] = Value::Null;
        object["spec"]["replicas"] = Value::Null;
    }
    object
}

fn faults(clean: &Report) -> Vec<(String, Fault)> {
    let mut faults = Vec::new();
    let at_writes = [
        ("killed before", What::CrashBefore),
        ("killed after", What::CrashAfter),
        ("handed over at", What::HandOver),
        ("409 at", What::Refuse(409)),
        ("429 at", What::Refuse(429)),
        ("500 at", What::Refuse(500)),
        ("504 although done at", What::DoneBut(504)),
        ("reads lag from", What::Lag(Duration::from_secs(2))),
    ];
    for number in 1..=clean.writes.len() as u64 {
        for (name, what) in &at_writes {
            let fault = Fault { when: When::Write(number), what: what.clone() };
            faults.push((format!("{name} write {number}"), fault));
        }
    }
    for number in 1..=clean.events {
        faults.push((format!("event {number} lost"), Fault { when: When::Event(number), what: What::Lose }));
    }
    for seconds in (5..240).step_by(15) {
        let at = When::At(Duration::from_secs(seconds));
        for (name, what) in [
            ("server away", What::Away(Duration::from_secs(60))),
            ("metrics slow", What::MetricsSlow(Duration::from_secs(8))),
            ("metrics away", What::MetricsAway(Duration::from_secs(20))),
        ] {
            faults.push((format!("{name} at {seconds} s"), Fault { when: at.clone(), what }));
        }
    }
    faults
}

/// The same tenth each time.
fn is_chosen(name: &str) -> bool {
    Sha256::digest(name.as_bytes())[0] < 26
}

/// Where another process counted otherwise, in those decisions until which both decided by the same data: that of the run, and
/// what was learnt before it, of which the limit of an incident tells. Adds how many there are with evidence.
fn miscounted(clean: &Report, now: &Report, compared: &AtomicUsize) -> Option<String> {
    let window = |record: &DecisionRecord| {
        let learnt = |metric: &MetricRecord| metric.limit.as_ref().map(|limit| limit.rate.to_bits());
        let of_metrics: Vec<_> =
            record.metrics.iter().map(|metric| (metric.from, metric.until, learnt(metric))).collect();
        (record.rule.clone(), record.step, record.after, of_metrics)
    };
    let found = |run: &String| now.runs.get(run).map_or(&[][..], Vec::as_slice);
    let pairs = clean.runs.iter().flat_map(|(run, records)| {
        records.iter().zip(found(run)).take_while(|(then, now)| window(then) == window(now))
    });
    let mut with_evidence = pairs.filter(|(then, _)| !then.metrics.is_empty());
    let differs = |(then, now): (&DecisionRecord, &DecisionRecord)| {
        compared.fetch_add(1, Ordering::Relaxed);
        // As text, which tells all bits.
        let [clean, found] = [then, now].map(|record| serde_json::to_string(&record.metrics).unwrap());
        let told =
            || format!("  {} was counted otherwise:\n    clean {clean}\n    now   {found}", then.number);
        (clean != found).then(told)
    };
    with_evidence.find_map(differs)
}

fn run(case: &Case<'_>, compared: &AtomicUsize) -> Option<String> {
    let mut scenario = case.scenario.clone();
    scenario.faults.push(case.fault.clone());
    let report = match simulate(&scenario, SEED, &mut |_| {}) {
        Ok(report) => report,
        Err(error) => return Some(error.to_string()),
    };
    let ended = matches!(case.fault.what, What::CrashBefore | What::CrashAfter | What::HandOver);
    // What the controller answers to pods comes a second later then, so that they, or the traffic, are others.
    let of_pods = |what: &Happening| matches!(what, Happening::Scale(_) | Happening::Lose(_));
    let scaled = case.scenario.events.iter().any(|event| of_pods(&event.what));
    let difference = Ending::of(case.story, case.clean).difference(&Ending::of(case.story, &report));
    if ended && !scaled {
        difference.or_else(|| miscounted(case.clean, &report, compared))
    } else {
        difference
    }
}

/// Does it on all cores, in order of the list as far as that goes.
fn on_all_cores<T: Sync, R: Send>(list: &[T], work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let (next, results) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..cores {
            scope.spawn(|| {
                while let Some((index, item)) =
                    Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|i| Some((i, list.get(i)?)))
                {
                    let result = work(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((index, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(index, _)| *index);
    results.into_iter().map(|(_, result)| result).collect()
}

#[test]
fn each_story_ends_as_it_should() {
    let stories = scenarios::all();
    let failures = on_all_cores(&stories, |(name, scenario)| {
        let report = simulate(scenario, SEED, &mut |_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
        (!report.failures.is_empty()).then(|| {
            let told: Vec<_> =
                report.timeline.iter().map(|e| format!("    {:>7} ms {}", e.at_ms, e.text)).collect();
            format!("{name}, seed {SEED}: {:?}\n{}", report.failures, told.join("\n"))
        })
    });
    let failures: Vec<_> = failures.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn each_story_ends_the_same_whatever_breaks() {
    #[allow(clippy::disallowed_methods, reason = "how much runs is said outside of the test")]
    let chosen = std::env::var("DAVYLAMP_FAULTS").unwrap_or_default();
    let stories = scenarios::all();
    let clean = on_all_cores(&stories, |(_, scenario)| simulate(scenario, SEED, &mut |_| {}).unwrap());
    let mut cases = Vec::new();
    for ((story, scenario), clean) in stories.iter().zip(&clean) {
        for (name, fault) in faults(clean) {
            let name = format!("{story}: {name}");
            let wanted = match chosen.as_str() {
                "all" => true,
                "" => is_chosen(&name) || EVER_FAILED.contains(&name.as_str()),
                only => only == *story || only == name,
            };
            if wanted {
                cases.push(Case { story, scenario, clean, name, fault });
            }
        }
    }
    assert!(!cases.is_empty(), "no story or fault is named {chosen:?}");
    let compared = AtomicUsize::new(0);
    let failures = on_all_cores(&cases, |case| {
        let difference = run(case, &compared)?;
        let right = MAY_DIFFER.iter().any(|(story, faults, _)| {
            *story == case.story && faults.iter().any(|fault| case.name.contains(fault))
        });
        let otherwise =
            (!right).then(|| format!("DAVYLAMP_FAULTS={:?}, seed {SEED}:\n{difference}", case.name));
        if let Some(otherwise) = &otherwise {
            eprintln!("{otherwise}");
        }
        otherwise
    });
    let failures: Vec<_> = failures.into_iter().flatten().collect();
    let compared = compared.into_inner();
    eprintln!(
        "{} stories with faults, {} ended otherwise; {compared} decisions were counted by another process",
        cases.len(),
        failures.len()
    );
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(compared > 0 || !chosen.is_empty(), "no decision was compared");
}

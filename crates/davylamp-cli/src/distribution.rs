//! What came of many runs, each from its own seed: how they ended, how long it took, and whom it cost what.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write};
use std::num::NonZero;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;

use anyhow::Result;
use davylamp_sim::{Report, Scenario, simulate};
use serde::Serialize;

use crate::figures::{count, counted, float, index, length, whole};

/// Of each run, what is needed.
struct Run {
    seed: u64,
    ended: String,
    took_ms: Option<u64>,
    errors_of_canary: f64,
    lost: u64,
    failures: Vec<String>,
}

impl Run {
    fn of(report: Report) -> Self {
        Self {
            seed: report.seed,
            took_ms: report.took_ms.or_else(|| lasted(&report)),
            ended: report.outcome.unwrap_or(report.phase),
            errors_of_canary: report.errors_of_canary,
            lost: report.lost,
            failures: report.failures,
        }
    }
}

/// From the first decision of the last run until its last, when it has no end.
fn lasted(report: &Report) -> Option<u64> {
    let run = report.runs.values().max_by_key(|run| run.last().map(|last| last.number))?;
    let ms = run.last()?.at.as_millisecond() - run.first()?.at.as_millisecond();
    u64::try_from(ms).ok()
}

/// Of all runs.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Distribution {
    /// The first seed.
    seed: u64,
    runs: u64,
    /// The shortest and the longest time from the last release, in ms: the ends of the histograms.
    range_ms: Option<(u64, u64)>,
    /// How they ended, most of them first: their outcome, or the phase when the run had no end.
    outcomes: Vec<Ending>,
    /// Users who met an error because of the canary, in a run.
    errors_of_canary: Errors,
    /// Requests that no pod answered, in all runs.
    lost: u64,
    /// Runs of which something else was expected.
    failed: u64,
    /// The seeds of the first of them, and what was missing.
    failures: BTreeMap<u64, Vec<String>>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ending {
    outcome: String,
    runs: u64,
    share: f64,
    /// From the last release, in ms.
    took_ms: Option<Times>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Times {
    median: u64,
    p90: u64,
    /// How many of the runs fall in each part of the range.
    histogram: Vec<u64>,
}

#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Errors {
    mean: f64,
    p90: f64,
}

/// So many seeds of failed runs are told.
const TOLD: usize = 5;
/// Parts of a histogram.
const PARTS: u64 = 24;

/// Runs the scenario from each seed, on all processors; tells on standard error how far it is when that is a terminal.
pub(crate) fn distribution(scenario: &Scenario, seed: u64, runs: u64) -> Result<Distribution> {
    let threads = thread::available_parallelism().map_or(1, NonZero::get);
    let next = AtomicU64::new(0);
    let mut reports = Vec::new();
    thread::scope(|scope| -> Result<()> {
        let (sender, receiver) = mpsc::channel();
        for _ in 0..threads {
            let (sender, next) = (sender.clone(), &next);
            scope.spawn(move || {
                loop {
                    let i = next.fetch_add(1, Ordering::Relaxed);
                    if i >= runs {
                        break;
                    }
                    let report = simulate(scenario, seed.wrapping_add(i), &mut |_| {});
                    // Nobody listens after the first error.
                    if sender.send(report.map(|report| (i, Run::of(report)))).is_err() {
                        break;
                    }
                }
            });
        }
        drop(sender);
        let progress = io::stderr().is_terminal();
        for report in receiver {
            reports.push(report?);
            if progress {
                write!(io::stderr(), "\r{} of {runs}", reports.len())?;
            }
        }
        if progress {
            write!(io::stderr(), "\r\u{1b}[K")?;
        }
        Ok(())
    })?;
    reports.sort_by_key(|(i, _)| *i);
    Ok(Distribution::of(seed, &reports.into_iter().map(|(_, run)| run).collect::<Vec<_>>()))
}

impl Distribution {
    fn of(seed: u64, runs: &[Run]) -> Self {
        let took = || runs.iter().filter_map(|run| run.took_ms);
        let range = took().min().zip(took().max());
        let mut ends: BTreeMap<&str, Vec<Option<u64>>> = BTreeMap::new();
        for run in runs {
            ends.entry(&run.ended).or_default().push(run.took_ms);
        }
        let total = runs.len() as u64;
        let mut outcomes: Vec<_> = ends
            .into_iter()
            .map(|(outcome, took)| Ending {
                outcome: outcome.to_owned(),
                runs: took.len() as u64,
                share: float(took.len() as u64) / float(total),
                took_ms: range.and_then(|range| Times::of(took.into_iter().flatten().collect(), range)),
            })
            .collect();
        outcomes.sort_by_key(|outcome| std::cmp::Reverse(outcome.runs));
        let mut errors: Vec<_> = runs.iter().map(|run| run.errors_of_canary).collect();
        errors.sort_by(f64::total_cmp);
        let failed: Vec<_> = runs.iter().filter(|run| !run.failures.is_empty()).collect();
        Self {
            seed,
            runs: total,
            range_ms: range,
            outcomes,
            errors_of_canary: Errors {
                mean: errors.iter().sum::<f64>() / float(total),
                p90: rank(&errors, 90).unwrap_or_default(),
            },
            lost: runs.iter().map(|run| run.lost).sum(),
            failed: failed.len() as u64,
            failures: failed.iter().take(TOLD).map(|run| (run.seed, run.failures.clone())).collect(),
        }
    }

    /// Whether every run was as expected.
    pub(crate) const fn is_expected(&self) -> bool {
        self.failed == 0
    }

    /// As a table.
    pub(crate) fn table(&self) -> String {
        let mut text = String::new();
        let last = self.seed.wrapping_add(self.runs - 1);
        // A String takes everything.
        let _ = writeln!(text, "{}, seeds {} to {last}\n", counted(self.runs, "run"), self.seed);
        let axis = self
            .range_ms
            .map_or_else(String::new, |(from, to)| format!("{:<12}{:>14}", length(from), length(to)));
        let _ = writeln!(
            text,
            "  {:<14}{:>7}{:>9}{:>10}{:>10}  {axis}",
            "outcome", "runs", "share", "median", "90 %"
        );
        for Ending { outcome, runs, share, took_ms } in &self.outcomes {
            let _ = write!(text, "  {outcome:<14}{:>7}{:>7.1} %", count(*runs), 100.0 * share);
            let _ = match took_ms {
                Some(Times { median, p90, histogram }) => {
                    writeln!(text, "{:>10}{:>10}  {}", length(*median), length(*p90), bars(histogram))
                }
                None => writeln!(text, "{:>10}{:>10}", "-", "-"),
            };
        }
        let Errors { mean, p90 } = self.errors_of_canary;
        let _ = writeln!(
            text,
            "\n  in a run, because of the canary: {:.1} users met an error on average; in 90 % of runs {} at most",
            mean.max(0.0),
            count(whole(p90))
        );
        let _ = writeln!(text, "  in all runs: {} found no pod", counted(self.lost, "request"));
        match self.failed {
            0 => text.push_str("  all that was expected came"),
            failed => {
                let _ = write!(text, "  FAILED    {}; the first of them:", counted(failed, "run"));
                for (seed, failures) in &self.failures {
                    let _ = write!(text, "\n    --seed {seed}: {}", failures.join("; "));
                }
            }
        }
        text
    }
}

impl Times {
    fn of(mut took: Vec<u64>, (from, to): (u64, u64)) -> Option<Self> {
        took.sort_unstable();
        let mut histogram = vec![0; index(PARTS)];
        for ms in &took {
            let part = (ms.saturating_sub(from) * PARTS / (to - from).max(1)).min(PARTS - 1);
            if let Some(count) = histogram.get_mut(index(part)) {
                *count += 1;
            }
        }
        Some(Self { median: rank(&took, 50)?, p90: rank(&took, 90)?, histogram })
    }
}

/// Of sorted values, the first that is no less than so many percent of them.
fn rank<T: Copy>(sorted: &[T], percent: usize) -> Option<T> {
    sorted.get((sorted.len() * percent).div_ceil(100).saturating_sub(1)).copied()
}

fn bars(histogram: &[u64]) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = histogram.iter().copied().max().unwrap_or(0).max(1);
    let bar = |n: &u64| match n {
        0 => ' ',
        n => BARS[index(n * 8).div_ceil(index(most)) - 1],
    };
    format!("▕{}▏", histogram.iter().map(bar).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(seed: u64, ended: &str, took_ms: Option<u64>) -> Run {
        Run { seed, ended: ended.to_owned(), took_ms, errors_of_canary: 2.0, lost: 1, failures: Vec::new() }
    }

    #[test]
    fn runs_are_counted_by_their_end() {
        let mut runs: Vec<_> = (1..=9).map(|seed| run(seed, "Promoted", Some(seed * 60_000))).collect();
        runs.push(Run { failures: vec!["no".to_owned()], ..run(10, "Paused", None) });
        let distribution = Distribution::of(1, &runs);
        let shares: Vec<_> = distribution.outcomes.iter().map(|o| (o.outcome.as_str(), o.runs)).collect();
        assert_eq!(shares, [("Promoted", 9), ("Paused", 1)]);
        let times = distribution.outcomes[0].took_ms.as_ref().unwrap();
        assert_eq!((times.median, times.p90), (300_000, 540_000));
        assert_eq!(times.histogram.iter().sum::<u64>(), 9);
        assert!(!distribution.is_expected());
        let table = distribution.table();
        for part in ["10 runs, seeds 1 to 10", "90.0 %", "5m", "10 requests found no pod", "--seed 10: no"] {
            assert!(table.contains(part), "{part} in\n{table}");
        }
    }

    #[test]
    fn ranks_are_of_the_values_themselves() {
        assert_eq!([rank(&[1, 2, 3], 50), rank(&[1, 2, 3], 90), rank(&[1], 50)], [Some(2), Some(3), Some(1)]);
        assert_eq!(rank::<u64>(&[], 50), None);
        assert_eq!(bars(&[0, 1, 8]), "▕ ▁█▏");
    }
}

//! Runs cells on all cores. Which thread takes which run does not matter: a run has its own numbers, and the
//! endings are put back into the order of the runs.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Result, anyhow};

use crate::cells::Cell;
use crate::results::{CellResult, Ending, RuleResult, six_digits};

/// Runs that a thread takes at once.
const CHUNK: u32 = 20;

/// All runs of one cell.
pub fn cell(cell: &Cell, runs: u32, threads: u32) -> Result<CellResult> {
    let next = AtomicU32::new(0);
    let work = || -> Result<Vec<(u32, Vec<Ending>)>> {
        let mut endings = Vec::new();
        loop {
            let first = next.fetch_add(CHUNK, Ordering::Relaxed);
            if first >= runs {
                return Ok(endings);
            }
            for run in first..(first + CHUNK).min(runs) {
                endings.push((run, cell.run(run)?));
            }
        }
    };
    let mut endings = Vec::new();
    std::thread::scope(|scope| -> Result<()> {
        let workers: Vec<_> = (0..threads.max(1)).map(|_| scope.spawn(work)).collect();
        for worker in workers {
            endings.extend(worker.join().map_err(|_| anyhow!("a run of {} has panicked", cell.name))??);
        }
        Ok(())
    })?;
    endings.sort_unstable_by_key(|(run, _)| *run);

    let bound = cell.bound();
    let rules = cell.rules().into_iter().enumerate().map(|(index, rule)| {
        let endings: Vec<Ending> = endings.iter().map(|(_, of_run)| of_run[index]).collect();
        RuleResult::new(rule, &endings, bound)
    });
    Ok(CellResult {
        name: cell.name.clone(),
        group: cell.group.name().to_owned(),
        title: cell.title.clone(),
        parameters: cell.parameters()?,
        runs,
        kl_bound: bound.map(six_digits),
        calibrations: cell.calibrations(),
        planned: cell.planned()?.map(six_digits),
        rules: rules.collect(),
    })
}

/// How far the runs are, on standard error.
#[derive(Debug)]
pub struct Progress {
    begun: Instant,
    total: f64,
    done: f64,
}

impl Progress {
    /// `total` is the sum of all costs.
    #[must_use]
    pub fn new(total: f64) -> Self {
        Self { begun: Instant::now(), total, done: 0.0 }
    }

    /// One more cell is done, which took so many seconds.
    #[expect(clippy::print_stderr, reason = "this is what the user watches")]
    pub fn add(&mut self, cell: &CellResult, cost: f64, seconds: f64) {
        self.done += cost;
        let elapsed = self.begun.elapsed().as_secs_f64();
        let left = elapsed * (self.total - self.done) / self.done / 60.0;
        eprintln!("{seconds:6.1} s  {:60} {left:5.1} min left", cell.name);
    }
}

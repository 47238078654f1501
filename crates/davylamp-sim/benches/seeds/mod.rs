//! Many seeds of a scenario, on all cores.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use davylamp_sim::{Report, Scenario, simulate};

/// What `of` says of each report, sorted.
pub(crate) fn each_of<T: Ord + Send>(
    scenario: &Scenario,
    seeds: u64,
    of: impl Fn(Report) -> T + Sync,
) -> Vec<T> {
    let (next, found) = (AtomicU64::new(1), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed > seeds {
                        break;
                    }
                    let one = of(simulate(scenario, seed, &mut |_| {}).unwrap());
                    found.lock().unwrap().push(one);
                }
            });
        }
    });
    let mut found = found.into_inner().unwrap();
    found.sort_unstable();
    found
}

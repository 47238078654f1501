//! The split of the traffic: whether the canary gets the share of the requests that its weight says.
//!
//! Takes the requests of all pods of both cohorts, warm or not, for else the share of those that start would be left out.
//! Invariant: it depends on rounds alone, so that a replay finds the same.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use davylamp_api::Instant;
use davylamp_api::checkpoint::SplitCheckpoint;
use davylamp_api::run::SplitRecord;
use davylamp_stats::TrafficSplit;

use super::{EXPECTED, LATEST, MOST, rounded};
use crate::observed::Increment;
use crate::program::SplitPlan;

/// The probability that a split that is right is ever said to be wrong.
const FALSE_ALARM: f64 = 0.001;
/// Connections follow a weight only after a while, ms.
const SKIPPED: i64 = 60_000;
/// A block is so long, ms, or longer: until enough requests of the canary are expected. Of fewer, more than half of all blocks may
/// lie to one side by chance alone: of 0.3, three of four blocks have none.
const BLOCK: i64 = 30_000;
/// So many blocks in a row that are right show that it is right again.
const RIGHT: i64 = 4;

/// Requests in a round, of the canary and of the baseline.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Requests {
    counts: [f64; 2],
    /// There were samples of them.
    heard: [bool; 2],
}

impl Requests {
    /// So much of the increment comes without traffic.
    pub(super) fn add(&mut self, increment: &Increment, left_out: f64, canary: bool) {
        let cohort = usize::from(!canary);
        self.counts[cohort] += increment.total - left_out;
        self.heard[cohort] = true;
    }
}

/// Of a whole run.
#[derive(Debug)]
pub(super) struct Split {
    /// Without evidence.
    fresh: TrafficSplit,
    process: TrafficSplit,
    /// After a change of weight so much is left out, ms.
    skipped: i64,
    /// All but the capital.
    kept: SplitCheckpoint,
}

impl Split {
    pub(super) fn restore(plan: SplitPlan, settle: i64, kept: Option<&SplitCheckpoint>) -> Option<Self> {
        let fresh = TrafficSplit::new(plan.tolerance).ok()?;
        let kept = readable(kept.cloned().unwrap_or_default());
        let bytes = BASE64.decode(&kept.process).ok();
        let process = bytes.and_then(|bytes| fresh.clone().restore(&bytes).ok());
        let process = process.unwrap_or_else(|| fresh.clone());
        Some(Self { fresh, process, skipped: settle.max(SKIPPED), kept })
    }

    pub(super) fn checkpoint(&self) -> SplitCheckpoint {
        SplitCheckpoint { process: BASE64.encode(self.process.to_bytes()), ..self.kept.clone() }
    }

    /// Another weight is effective.
    pub(super) fn begin(&mut self) {
        self.kept.seen = [0.0; 2];
    }

    /// The weight or a cohort changes: the open block is of neither.
    pub(super) fn close(&mut self) {
        (self.kept.from, self.kept.open, self.kept.heard) = (0, [0.0; 2], [false; 2]);
    }

    /// Takes the round that ends then, when the weight was effective for so long. Of no weight nothing is a share.
    pub(super) fn take(&mut self, requests: &Requests, end: i64, age: i64, interval: i64, weight: f64) {
        // Increments of a round begin in the one before.
        if weight <= 0.0 || age - 2 * interval < self.skipped {
            return;
        }
        let kept = &mut self.kept;
        if kept.from == 0 {
            kept.from = end - interval;
        }
        add(&mut kept.open, requests.counts);
        for (all, now) in kept.heard.iter_mut().zip(requests.heard) {
            *all |= now;
        }
        let all = kept.open.iter().sum::<f64>();
        if end - kept.from >= BLOCK && weight * all >= EXPECTED {
            self.end_block(end, weight);
        }
    }

    /// Counts are finite; a test that refuses them keeps its capital. More may have been left out than came.
    fn end_block(&mut self, end: i64, weight: f64) {
        let (open, heard) = (self.kept.open.map(|count| count.max(0.0)), self.kept.heard);
        self.close();
        // What is not scraped is missing, and got an unknown share.
        if heard != [true; 2] {
            return;
        }
        add(&mut self.kept.seen, open);
        let [canary, baseline] = open;
        let all = canary + baseline;
        if self.is_wrong() {
            let right = self.process.is_within(canary, all, weight);
            self.kept.right = if right { self.kept.right.saturating_add(1) } else { 0 };
            if self.kept.right >= RIGHT {
                self.forgive();
            }
        } else if self.process.block(canary, all, weight).is_ok()
            && self.process.log_e() >= -libm::log(FALSE_ALARM)
        {
            self.kept.wrong = end;
        }
    }

    /// It is tested anew.
    pub(super) fn forgive(&mut self) {
        self.process = self.fresh.clone();
        (self.kept.wrong, self.kept.right) = (0, 0);
    }

    pub(super) fn is_wrong(&self) -> bool {
        self.kept.wrong > 0
    }

    pub(super) fn record(&self) -> SplitRecord {
        let [canary, baseline] = self.kept.seen;
        let wrong = Instant::from_millisecond(self.kept.wrong).ok().filter(|_| self.is_wrong());
        SplitRecord { canary, baseline, log_e: rounded(self.process.log_e()), wrong }
    }
}

fn add(sum: &mut [f64; 2], counts: [f64; 2]) {
    for (sum, n) in sum.iter_mut().zip(counts) {
        *sum = (*sum + n).min(MOST);
    }
}

/// A checkpoint by hand or by another version holds any numbers.
fn readable(mut kept: SplitCheckpoint) -> SplitCheckpoint {
    for time in [&mut kept.from, &mut kept.wrong] {
        *time = (*time).clamp(0, LATEST);
    }
    kept.open = kept.open.map(|count| count.clamp(-MOST, MOST));
    kept.seen = kept.seen.map(|count| count.clamp(0.0, MOST));
    kept
}

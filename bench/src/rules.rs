//! Rules that roll a canary back, all driven by the same counts: ours, those that people use today, and the
//! best possible one.
//!
//! Each takes the counts of one ratio metric round by round and says at which it rolls back; none knows what
//! the service is really like, but for the oracle.

use anyhow::Result;
use davylamp_stats::{Capital, Counts, EventProcess, Horizon, RATIO_GRID, event_log_factor};

use crate::traffic::{MINUTE, ROUND};

/// The false rollback rate of our rules and of the oracle.
pub const ALPHA: f64 = 0.01;

/// A rule in use.
pub trait Rule {
    /// Takes the next round; true if the canary is rolled back.
    fn round(&mut self, counts: &Counts) -> Result<bool>;
}

/// How our rule is configured.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Settings {
    /// The tolerated ratio, with the pod margin.
    pub rho0: f64,
    pub floor: Option<f64>,
    pub block_seconds: f64,
    pub clip: f64,
    /// What the evidence must reach, as a logarithm.
    pub needed: f64,
}

impl Settings {
    /// No tolerance, no floor, no margin: what detection is measured with.
    #[must_use]
    pub fn exact() -> Self {
        Self {
            rho0: 1.0,
            floor: None,
            block_seconds: 15.0,
            clip: std::f64::consts::LN_10,
            needed: -libm::log(ALPHA),
        }
    }

    /// What a user gets who writes nothing, but for the margin for pods.
    #[must_use]
    pub fn defaults() -> Self {
        Self { rho0: 1.1, floor: Some(0.001), ..Self::exact() }
    }
}

/// Ours: rounds are put into blocks, and the evidence is looked at in each round.
#[derive(Debug)]
pub struct Davylamp {
    process: Blocked,
    needed: f64,
}

impl Davylamp {
    pub fn new(settings: Settings) -> Result<Self> {
        Ok(Self { process: Blocked::new(settings)?, needed: settings.needed })
    }
}

impl Rule for Davylamp {
    fn round(&mut self, counts: &Counts) -> Result<bool> {
        self.process.round(counts)?;
        Ok(self.process.log_e() >= self.needed)
    }
}

/// The mixture of our alternatives with the thresholds of a finite horizon.
#[derive(Debug)]
pub struct Bounded {
    capital: Capital<12>,
    horizon: Horizon,
    events: u32,
}

impl Bounded {
    pub fn new(horizon: Horizon) -> Result<Self> {
        Ok(Self { capital: Capital::new([1.0 / 12.0; 12], 1.0)?, horizon, events: 0 })
    }
}

impl Rule for Bounded {
    fn round(&mut self, counts: &Counts) -> Result<bool> {
        let mut log_factors = RATIO_GRID;
        for log_factor in &mut log_factors {
            *log_factor = event_log_factor(1.0, *log_factor, counts)?;
        }
        self.capital.add(&log_factors)?;
        self.events = self.events.saturating_add(whole(counts.x_canary + counts.x_baseline));
        Ok(self.horizon.suffices(self.capital.log_e(f64::INFINITY), self.events))
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "the events of a round")]
fn whole(events: f64) -> u32 {
    events as u32
}

/// An event process whose blocks begin with the first round in which both cohorts have requests, and last
/// their length.
#[derive(Debug)]
pub struct Blocked {
    process: EventProcess,
    blocks: Blocks,
}

impl Blocked {
    pub fn new(settings: Settings) -> Result<Self> {
        let Settings { rho0, floor, block_seconds, clip, needed: _ } = settings;
        let process = EventProcess::new(rho0, block_seconds, floor)?.with_clip(clip)?;
        Ok(Self { process, blocks: Blocks::new(block_seconds) })
    }

    pub fn round(&mut self, counts: &Counts) -> Result<()> {
        if let Some(first) = self.blocks.place(counts) {
            self.process.round(counts, first)?;
        }
        Ok(())
    }

    /// The traffic weight changes, and with it the margin for pods.
    pub fn tolerate(&mut self, rho0: f64) -> Result<()> {
        self.blocks.close();
        Ok(self.process.tolerate(rho0)?)
    }

    #[must_use]
    pub fn log_e(&self) -> f64 {
        self.process.log_e()
    }
}

/// Where blocks begin and end.
#[derive(Debug, Clone)]
pub struct Blocks {
    rounds: u32,
    /// Rounds of the open block that are still to come.
    left: u32,
}

impl Blocks {
    #[must_use]
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a few seconds")]
    pub fn new(seconds: f64) -> Self {
        Self { rounds: (seconds as u32 / ROUND).max(1), left: 0 }
    }

    /// Whether the round counts, and if so whether it is the first of a block.
    pub fn place(&mut self, counts: &Counts) -> Option<bool> {
        let first = self.left == 0;
        if first {
            if counts.n_canary <= 0.0 || counts.n_baseline <= 0.0 {
                return None;
            }
            self.left = self.rounds;
        }
        self.left -= 1;
        Some(first)
    }

    /// The next round is the first of a block.
    pub fn close(&mut self) {
        self.left = 0;
    }
}

/// The share of the canary's bad requests of the last minute is too high more than so many times.
#[derive(Debug)]
pub struct Threshold {
    limit: f64,
    failures_left: u32,
    minute: Minute,
}

impl Threshold {
    #[must_use]
    pub fn new(limit: f64, failure_limit: u32) -> Self {
        Self { limit, failures_left: failure_limit, minute: Minute::default() }
    }
}

impl Rule for Threshold {
    fn round(&mut self, counts: &Counts) -> Result<bool> {
        if let Some(minute) = self.minute.add(counts)
            && minute.x_canary > self.limit * minute.n_canary
        {
            match self.failures_left.checked_sub(1) {
                Some(left) => self.failures_left = left,
                None => return Ok(true),
            }
        }
        Ok(false)
    }
}

/// The one-sided test of two proportions on all counts so far, each minute.
#[derive(Debug)]
pub struct ZTest {
    critical: f64,
    minute: Minute,
    sum: Counts,
}

impl ZTest {
    /// `critical` is the quantile of the normal distribution.
    #[must_use]
    pub fn new(critical: f64) -> Self {
        Self { critical, minute: Minute::default(), sum: Counts::default() }
    }
}

impl Rule for ZTest {
    fn round(&mut self, counts: &Counts) -> Result<bool> {
        let Some(minute) = self.minute.add(counts) else { return Ok(false) };
        add(&mut self.sum, &minute);
        let Counts { x_canary, x_baseline, n_canary, n_baseline } = self.sum;
        let pooled = (x_canary + x_baseline) / (n_canary + n_baseline);
        let error = (pooled * (1.0 - pooled) * (1.0 / n_canary + 1.0 / n_baseline)).sqrt();
        Ok(error > 0.0 && (x_canary / n_canary - x_baseline / n_baseline) / error > self.critical)
    }
}

/// The test of Mann and Whitney on the rates of all minutes so far, each minute: the interval of the shift
/// lies beyond a quarter of its estimate.
#[derive(Debug, Default)]
pub struct MannWhitney {
    minute: Minute,
    points: TimePoints,
}

impl Rule for MannWhitney {
    fn round(&mut self, counts: &Counts) -> Result<bool> {
        Ok(self.minute.add(counts).is_some_and(|minute| {
            self.points.add(minute.x_canary / minute.n_canary, minute.x_baseline / minute.n_baseline);
            self.points.high()
        }))
    }
}

/// Points in time of two cohorts, and all differences between them.
#[derive(Debug, Clone, Default)]
pub struct TimePoints {
    canary: Vec<f64>,
    baseline: Vec<f64>,
    differences: Vec<f64>,
}

impl TimePoints {
    /// One point of each; one that is not a number is left out.
    pub fn add(&mut self, canary: f64, baseline: f64) {
        if canary.is_finite() && baseline.is_finite() {
            self.differences.extend(self.baseline.iter().map(|other| canary - other));
            self.canary.push(canary);
            self.differences.extend(self.canary.iter().map(|other| other - baseline));
            self.baseline.push(baseline);
        }
    }

    /// The lower end of the 98 % interval of the shift lies above a quarter of the Hodges-Lehmann estimate.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "an index into a list")]
    #[expect(clippy::cast_precision_loss, reason = "some thousands of differences")]
    pub fn high(&mut self) -> bool {
        const NORMAL_99: f64 = 2.326_347_874_040_841;
        let points = self.canary.len() as f64;
        let pairs = points * points;
        let rank = (0.5 * pairs - NORMAL_99 * (pairs * (2.0 * points + 1.0) / 12.0).sqrt()).floor();
        if rank < 1.0 {
            return false;
        }
        let middle = self.differences.len() / 2;
        let (below, estimate, _) = self.differences.select_nth_unstable_by(middle, f64::total_cmp);
        let (_, lower, _) = below.select_nth_unstable_by(rank as usize - 1, f64::total_cmp);
        *estimate > 0.0 && *lower > 0.25 * *estimate
    }
}

/// Wald's test for the one true ratio: what nobody can have, because nobody knows it.
#[derive(Debug)]
pub struct Oracle {
    ratio: f64,
    log_e: f64,
}

impl Oracle {
    #[must_use]
    pub fn new(ratio: f64) -> Self {
        Self { ratio, log_e: 0.0 }
    }
}

impl Rule for Oracle {
    fn round(&mut self, counts: &Counts) -> Result<bool> {
        self.log_e += event_log_factor(1.0, self.ratio, counts)?;
        Ok(self.log_e >= -libm::log(ALPHA))
    }
}

/// Adds rounds up to minutes.
#[derive(Debug, Clone, Default)]
pub struct Minute {
    rounds: u32,
    sum: Counts,
}

impl Minute {
    /// The counts of the minute that ends with this round, if one does.
    pub fn add(&mut self, counts: &Counts) -> Option<Counts> {
        add(&mut self.sum, counts);
        self.rounds += 1;
        (self.rounds == MINUTE).then(|| std::mem::take(self).sum)
    }
}

fn add(sum: &mut Counts, counts: &Counts) {
    sum.x_canary += counts.x_canary;
    sum.x_baseline += counts.x_baseline;
    sum.n_canary += counts.n_canary;
    sum.n_baseline += counts.n_baseline;
}

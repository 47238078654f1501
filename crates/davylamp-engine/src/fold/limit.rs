//! Both cohorts of a ratio, each against an absolute rate: incidents of the baseline, and the canary's objective.
//!
//! Invariant: it depends on rounds alone, so that a replay finds the same incidents.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use davylamp_api::Instant;
use davylamp_api::checkpoint::LimitCheckpoint;
use davylamp_api::run::{Cohort, LimitRecord};
use davylamp_api::status::IncidentStatus;
use davylamp_stats::{Counts, SloProcess};

use super::metric::block_seconds;
use super::{LATEST, MOST, rounded};
use crate::program::{LIMITS, LimitPlan, MetricPlan};

/// The probability that a baseline that stays below its rate is ever said to be in an incident.
const FALSE_INCIDENT: f64 = 0.001;
/// The probability that a canary that keeps its objective is ever said to violate it.
const FALSE_VIOLATION: f64 = 0.01;
/// So many blocks in a row below the rate end an incident.
const CLEAN: i64 = 3;
/// Without history the usual rate is that of so much of the beginning, ms.
const BEGINNING: i64 = 180_000;

/// Of one metric.
#[derive(Debug)]
pub(super) struct Limit {
    plan: LimitPlan,
    block: i64,
    block_seconds: f64,
    /// All but the capital.
    kept: LimitCheckpoint,
    /// None before the rate is known.
    baseline: Option<SloProcess>,
    /// None without an objective.
    canary: Option<SloProcess>,
}

impl Limit {
    pub(super) fn restore(plan: &MetricPlan, kept: Option<&LimitCheckpoint>) -> Option<Self> {
        let limit = plan.limit?;
        let mut kept = readable(kept.cloned().unwrap_or_default());
        kept.rate = limit.rate.unwrap_or(kept.rate);
        let capital = |text: &Option<String>| BASE64.decode(text.as_ref()?).ok();
        let (baseline, canary) = (capital(&kept.baseline), capital(&kept.canary));
        let mut restored = Self {
            plan: limit,
            block: plan.block,
            block_seconds: block_seconds(plan),
            kept,
            baseline: None,
            canary: None,
        };
        let with = |fresh: Option<SloProcess>, capital: Option<Vec<u8>>| {
            let continued = fresh.clone().zip(capital).and_then(|(fresh, bytes)| fresh.restore(&bytes).ok());
            continued.or(fresh)
        };
        restored.baseline = with(restored.fresh_baseline(), baseline);
        restored.canary = with(restored.fresh_canary(), canary);
        Some(restored)
    }

    fn fresh_baseline(&self) -> Option<SloProcess> {
        SloProcess::incident(self.kept.rate, self.block_seconds).ok()
    }

    fn fresh_canary(&self) -> Option<SloProcess> {
        SloProcess::violated(self.kept.rate, self.block_seconds).ok().filter(|_| self.plan.objective)
    }

    pub(super) fn checkpoint(&self) -> LimitCheckpoint {
        let capital = |process: &Option<SloProcess>| Some(BASE64.encode(process.as_ref()?.to_bytes()));
        LimitCheckpoint {
            baseline: capital(&self.baseline),
            canary: capital(&self.canary),
            ..self.kept.clone()
        }
    }

    /// Takes the round that ends then. Counts are finite and not negative by construction; a test that refuses them keeps
    /// its capital.
    pub(super) fn take(&mut self, counts: &Counts, end: i64, interval: i64) {
        let Counts { x_canary, n_canary, x_baseline, n_baseline } = *counts;
        if self.kept.from == 0 {
            self.kept.from = end - interval;
        }
        add(&mut self.kept.open, x_baseline, n_baseline);
        if self.baseline.is_none() {
            self.find_rate(end);
            return;
        }
        if let Some(canary) = self.canary.as_mut().filter(|_| n_canary > 0.0) {
            add(&mut self.kept.run, x_canary, n_canary);
            let _ = canary.round(x_canary, n_canary, false);
        }
        let on = self.is_on();
        if let Some(baseline) = self.baseline.as_mut().filter(|_| n_baseline > 0.0 && !on) {
            let _ = baseline.round(x_baseline, n_baseline, false);
            if baseline.log_e() >= -libm::log(FALSE_INCIDENT) {
                let LimitCheckpoint { from, above_since, .. } = self.kept;
                self.kept.since = if above_since > 0 { above_since } else { from };
                (self.kept.noticed, self.kept.over, self.kept.clean) = (end, 0, 0);
            }
        }
        if end - self.kept.from >= self.block {
            self.end_block(end);
        }
    }

    fn find_rate(&mut self, end: i64) {
        let Cohort { events, exposure } = self.kept.open;
        if end - self.kept.from >= BEGINNING && exposure > 0.0 {
            self.kept.rate = self.plan.above_usual((events + 1.0) / exposure);
            self.baseline = self.fresh_baseline();
            (self.kept.from, self.kept.open) = (0, Cohort::default());
        }
    }

    fn end_block(&mut self, end: i64) {
        self.close_processes();
        let open = std::mem::take(&mut self.kept.open);
        let from = std::mem::take(&mut self.kept.from);
        if open.exposure <= 0.0 {
            return;
        }
        let clean = open.events < self.kept.rate * open.exposure;
        if self.is_on() {
            self.kept.clean = if clean { self.kept.clean.saturating_add(1) } else { 0 };
            if self.kept.clean >= CLEAN {
                self.kept.over = end;
                self.baseline = self.fresh_baseline();
            }
        }
        let over = clean && !self.is_on();
        if over {
            (self.kept.above_since, self.kept.above) = (0, Cohort::default());
        } else {
            if self.kept.above_since == 0 {
                self.kept.above_since = from;
            }
            add(&mut self.kept.above, open.events, open.exposure);
        }
    }

    /// The weight or a cohort changes.
    pub(super) fn close(&mut self) {
        self.close_processes();
        if self.baseline.is_some() {
            (self.kept.from, self.kept.open) = (0, Cohort::default());
        }
    }

    fn close_processes(&mut self) {
        self.baseline.iter_mut().chain(&mut self.canary).for_each(SloProcess::close_block);
    }

    /// The objective is tested anew: somebody knows that it is violated, and goes on.
    pub(super) fn forgive(&mut self) {
        self.canary = self.fresh_canary();
        self.kept.run = Cohort::default();
    }

    /// The baseline is in an incident.
    pub(super) fn is_on(&self) -> bool {
        self.kept.noticed > 0 && self.kept.over == 0
    }

    /// The last whole block of the baseline lies above the rate.
    pub(super) fn is_above(&self) -> bool {
        self.kept.above_since > 0
    }

    /// The last incident of the baseline.
    pub(super) fn incident(&self, metric: &str) -> Option<IncidentStatus> {
        let time = |ms: i64| Instant::from_millisecond(ms).ok();
        Some(IncidentStatus {
            metric: metric.to_owned(),
            limit: rounded(self.kept.rate),
            since: time(self.kept.since)?,
            noticed: time(self.kept.noticed).filter(|_| self.kept.noticed > 0)?,
            over: time(self.kept.over).filter(|_| self.kept.over > 0),
        })
    }

    /// The canary violates its objective.
    pub(super) fn is_violated(&self) -> bool {
        self.canary.as_ref().is_some_and(|canary| canary.log_e() >= -libm::log(FALSE_VIOLATION))
    }

    /// None before the rate is known.
    pub(super) fn record(&self) -> Option<LimitRecord> {
        let log_e = |process: &SloProcess| rounded(process.log_e());
        let mut baseline = self.kept.above;
        if self.is_on() || self.kept.above_since > 0 {
            add(&mut baseline, self.kept.open.events, self.kept.open.exposure);
        }
        Some(LimitRecord {
            rate: rounded(self.kept.rate),
            baseline,
            log_e_baseline: self.baseline.as_ref().map(log_e)?,
            canary: self.canary.as_ref().map(|_| self.kept.run),
            log_e_canary: self.canary.as_ref().map(log_e),
        })
    }
}

fn add(cohort: &mut Cohort, events: f64, exposure: f64) {
    cohort.events = (cohort.events + events).min(MOST);
    cohort.exposure = (cohort.exposure + exposure).min(MOST);
}

/// A checkpoint by hand or by another version holds any numbers.
fn readable(mut kept: LimitCheckpoint) -> LimitCheckpoint {
    if !LIMITS.contains(&kept.rate) {
        kept.rate = 0.0;
    }
    for time in [&mut kept.from, &mut kept.above_since, &mut kept.since, &mut kept.noticed, &mut kept.over] {
        *time = (*time).clamp(0, LATEST);
    }
    for cohort in [&mut kept.run, &mut kept.open, &mut kept.above] {
        *cohort =
            Cohort { events: cohort.events.clamp(0.0, MOST), exposure: cohort.exposure.clamp(0.0, MOST) };
    }
    kept
}

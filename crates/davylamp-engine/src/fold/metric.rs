//! One metric: its two tests, the counts that are shown, and its part of the checkpoint.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use davylamp_api::Instant;
use davylamp_api::checkpoint::MetricCheckpoint;
use davylamp_api::rollout::Goal;
use davylamp_api::run::{Cohort, Interval, MetricRecord};
use davylamp_api::status::{MetricStatus, Verdict};
use davylamp_stats::{
    Bucket, Counts, EventProcess, Layout, NonInferiority, ScoreProcess, counts_above, tail_boundary,
};

use super::limit::Limit;
use super::{LATEST, MOST, percent, rounded};
use crate::decision::MetricQuery;
use crate::observed::Increment;
use crate::program::{CohortPods, MetricPlan};

/// Rows of counts in a checkpoint.
const ROWS: usize = 8;
/// So many values must be known before the tail of a distribution is chosen.
const KNOWN: f64 = 100.0;

/// What was counted in a step so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counted {
    /// For so long, ms.
    pub(crate) ms: i64,
    pub(crate) canary: Cohort,
    pub(crate) baseline: Cohort,
}

/// What a round holds of one metric.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) counts: Counts,
    /// How much of the exposure of canary and baseline comes without traffic.
    left_out: [f64; 2],
    /// Of a distribution.
    canary: Vec<Bucket>,
    baseline: Vec<Bucket>,
    /// With exposure.
    pods: CohortPods,
    /// Warm or not.
    present: CohortPods,
}

impl Seen {
    /// So much of the increment comes without traffic.
    pub(super) fn add(&mut self, increment: &Increment, left_out: f64, canary: bool) {
        self.left_out[usize::from(!canary)] += left_out;
        let counts = &mut self.counts;
        let (x, n, buckets) = if canary {
            (&mut counts.x_canary, &mut counts.n_canary, &mut self.canary)
        } else {
            (&mut counts.x_baseline, &mut counts.n_baseline, &mut self.baseline)
        };
        *x += increment.events;
        *n += increment.total;
        buckets.extend(&increment.buckets);
    }

    pub(super) fn add_pod(&mut self, canary: bool) {
        self.pods.add(canary);
    }

    pub(super) fn add_present(&mut self, canary: bool) {
        self.present.add(canary);
    }

    /// With the cohorts' shares of the traffic in place of the seconds of their pods: each of those that are there gets as much
    /// as the others of its cohort.
    pub(super) fn of_traffic(&self, share: f64) -> Self {
        let part = |seconds: f64, share: f64, pods: u32| seconds * share / f64::from(pods.max(1));
        let mut seen = self.clone();
        seen.counts.n_canary = part(self.counts.n_canary, share, self.present.canary);
        seen.counts.n_baseline = part(self.counts.n_baseline, 1.0 - share, self.present.baseline);
        seen
    }

    /// Both cohorts have exposure.
    pub(super) fn both(&self) -> bool {
        self.counts.n_canary > 0.0 && self.counts.n_baseline > 0.0
    }
}

/// The buckets of a round cannot be counted in common ones.
#[derive(Debug)]
pub(super) struct Incomparable;

/// The evidence of one metric.
#[derive(Debug)]
pub(super) struct MetricFold {
    test: Test,
    safe: NonInferiority,
    pub(super) block_until: i64,
    /// That counted at the start of the block: so much is tolerated in all of it.
    pods: CohortPods,
    pub(super) counted_from: i64,
    /// Counts, those of this step first: canary events, baseline events, canary exposure, baseline exposure.
    rows: Vec<[f64; 4]>,
    /// Of a ratio.
    pub(super) limit: Option<Limit>,
    /// What a pod counts a second without traffic; None while that is not known.
    pub(super) background: Option<f64>,
    /// What was left out beyond what there was, of canary and baseline.
    owed: [f64; 2],
    /// The data time from which its series were read as sums; 0 while each is read.
    pub(super) summed: i64,
}

/// The test against "not worse than tolerated".
#[derive(Debug)]
enum Test {
    Event(EventProcess),
    Score(Score),
}

/// Of a distribution.
#[derive(Debug)]
struct Score {
    /// None before the first values.
    process: Option<ScoreProcess>,
    /// Above this bound values are counted for the test of non-inferiority. Chosen at the start of a block, from those
    /// before.
    above: Option<f64>,
}

impl Score {
    /// What is counted above the bound, of all; None while there is no bound. The block is closed when its buckets must
    /// change.
    fn round(
        &mut self,
        plan: &MetricPlan,
        tolerance: f64,
        seen: &Seen,
        new_block: bool,
    ) -> Result<Option<Counts>, Incomparable> {
        let Seen { canary, baseline, .. } = seen;
        let both = [canary.as_slice(), baseline].concat();
        if both.iter().any(|bucket| bucket.count > 0.0) {
            self.cover(plan, tolerance, &both)?;
        }
        let Some(process) = &mut self.process else { return Ok(None) };
        let on = |buckets| process.layout().on(buckets).map_err(|_| Incomparable);
        let (canary, baseline) = (on(canary)?, on(baseline)?);
        if new_block {
            // In range by construction; else the tolerance stays.
            let _ = process.tolerate(tolerance);
            process.close_block();
            self.above = self.above.or_else(|| tail(process));
        }
        process.round(&canary, &baseline, false).map_err(|_| Incomparable)?;
        let index = self.above.and_then(|above| position(process.layout(), above));
        index.map(|index| counts_above(index, &canary, &baseline).map_err(|_| Incomparable)).transpose()
    }

    /// The layout of the process becomes one that holds these buckets, too.
    fn cover(&mut self, plan: &MetricPlan, tolerance: f64, buckets: &[Bucket]) -> Result<(), Incomparable> {
        let layout = Layout::of(buckets).ok_or(Incomparable)?;
        let Some(process) = &mut self.process else {
            self.process = score_process(plan, layout, tolerance);
            return Ok(());
        };
        let common = process.layout().common(&layout).ok_or(Incomparable)?;
        if common != *process.layout() {
            process.relayout(common);
            self.above = self.above.filter(|above| position(process.layout(), *above).is_some());
        }
        Ok(())
    }
}

fn tail(process: &ScoreProcess) -> Option<f64> {
    let pooled = process.pooled();
    let known = pooled.iter().sum::<f64>() >= KNOWN;
    let index = tail_boundary(&pooled).ok().flatten().filter(|_| known)?;
    process.layout().bounds().get(index).copied()
}

/// The index of the bucket below the bound.
fn position(layout: &Layout, above: f64) -> Option<usize> {
    layout.bounds().iter().position(|bound| bound.total_cmp(&above).is_eq())
}

impl Test {
    #[allow(clippy::expect_used, reason = "`compile` keeps the arguments in the documented range")]
    fn new(plan: &MetricPlan, pods: CohortPods) -> Self {
        if matches!(plan.query, MetricQuery::Distribution { .. }) {
            return Self::Score(Score { process: None, above: None });
        }
        let process = EventProcess::new(tolerated(plan, pods), block_seconds(plan), plan.floor);
        Self::Event(process.and_then(|process| process.with_clip(plan.clip)).expect("arguments in range"))
    }

    /// With that capital, if it is one.
    fn restored(self, plan: &MetricPlan, pods: CohortPods, kept: &MetricCheckpoint) -> Option<Self> {
        let bytes = BASE64.decode(&kept.event).ok()?;
        match self {
            Self::Event(process) => process.restore(&bytes).ok().map(Self::Event),
            Self::Score(_) => {
                // Any layout: that of the capital takes its place.
                let layout = Layout::classic(&[1.0, f64::INFINITY]).ok()?;
                let process = score_process(plan, layout, tolerated(plan, pods) - 1.0)?;
                let process = Some(process.restore(&bytes).ok()?);
                Some(Self::Score(Score { process, above: kept.above }))
            }
        }
    }
}

fn score_process(plan: &MetricPlan, layout: Layout, tolerance: f64) -> Option<ScoreProcess> {
    let process = ScoreProcess::new(layout, tolerance.max(0.0), block_seconds(plan));
    process.and_then(|process| process.with_clip(plan.clip)).ok()
}

/// As the tests see it.
fn tolerated(plan: &MetricPlan, pods: CohortPods) -> f64 {
    plan.as_harm(plan.tolerated_among(pods))
}

/// As the test sees it.
fn margin(plan: &MetricPlan, next_weight: f64, pods: CohortPods) -> f64 {
    plan.as_harm(plan.margin_among(next_weight, pods))
}

#[allow(clippy::cast_precision_loss, reason = "a block is shorter than a day")]
pub(super) fn block_seconds(plan: &MetricPlan) -> f64 {
    plan.block as f64 / 1_000.0
}

#[allow(clippy::expect_used, reason = "`compile` and the clamp keep the arguments in the documented range")]
fn non_inferiority(plan: &MetricPlan, next_weight: f64, pods: CohortPods) -> NonInferiority {
    let margin = margin(plan, next_weight, pods);
    NonInferiority::new(margin, plan.floor.map(|floor| (floor, next_weight))).expect("arguments in range")
}

impl MetricFold {
    pub(super) fn restore(plan: &MetricPlan, kept: Option<&MetricCheckpoint>, next_weight: f64) -> Self {
        let pods = kept.and_then(|kept| kept.pods).unwrap_or_default();
        let [canary, baseline] = pods.map(|pods| u32::try_from(pods).unwrap_or(0));
        let pods = CohortPods { canary, baseline };
        let test = || Test::new(plan, pods);
        let safe = || non_inferiority(plan, next_weight, pods);
        let kept_safe = kept
            .and_then(|k| BASE64.decode(k.safe.as_ref()?).ok())
            .and_then(|bytes| safe().restore(&bytes).ok());
        Self {
            test: kept.and_then(|kept| test().restored(plan, pods, kept)).unwrap_or_else(test),
            safe: kept_safe.unwrap_or_else(safe),
            pods,
            block_until: kept.map_or(0, |k| k.block_until),
            counted_from: kept.map_or(0, |k| k.counted_from),
            rows: kept
                .map(|k| k.rows.iter().take(ROWS).map(|r| r.map(|n| n.clamp(0.0, MOST))).collect())
                .unwrap_or_default(),
            limit: Limit::restore(plan, kept.and_then(|kept| kept.limit.as_ref())),
            background: kept.and_then(|kept| kept.background).filter(|rate| (0.0..=MOST).contains(rate)),
            owed: kept.map_or([0.0; 2], |kept| kept.owed.map(|rest| rest.clamp(0.0, MOST))),
            summed: kept.map_or(0, |kept| kept.summed.clamp(0, LATEST)),
        }
    }

    pub(super) fn checkpoint(&self) -> MetricCheckpoint {
        let (event, above) = match &self.test {
            Test::Event(process) => (process.to_bytes(), None),
            Test::Score(score) => {
                (score.process.as_ref().map(ScoreProcess::to_bytes).unwrap_or_default(), score.above)
            }
        };
        MetricCheckpoint {
            event: BASE64.encode(event),
            above,
            safe: Some(BASE64.encode(self.safe.to_bytes())),
            block_until: self.block_until,
            pods: (self.pods != CohortPods::default()).then(|| {
                [self.pods.canary, self.pods.baseline].map(|pods| i32::try_from(pods).unwrap_or(i32::MAX))
            }),
            counted_from: self.counted_from,
            rows: self.rows.clone(),
            limit: self.limit.as_ref().map(Limit::checkpoint),
            background: self.background,
            owed: self.owed,
            summed: self.summed,
        }
    }

    pub(super) fn close(&mut self) {
        match &mut self.test {
            Test::Event(process) => process.close_block(),
            Test::Score(score) => score.process.iter_mut().for_each(ScoreProcess::close_block),
        }
        self.safe.close_block();
        self.owed = [0.0; 2];
        self.limit.iter_mut().for_each(Limit::close);
        self.block_until = 0;
    }

    pub(super) fn prove_anew(&mut self, plan: &MetricPlan, next_weight: f64) {
        self.safe = non_inferiority(plan, next_weight, self.pods);
    }

    pub(super) fn begin_step(&mut self, plan: &MetricPlan, next_weight: f64) {
        self.prove_anew(plan, next_weight);
        if let Test::Score(score) = &mut self.test {
            score.above = None;
        }
        self.counted_from = 0;
        self.new_row();
    }

    fn new_row(&mut self) {
        if self.rows.first() != Some(&[0.0; 4]) {
            self.rows.insert(0, [0.0; 4]);
        }
        while self.rows.len() > ROWS {
            let last = self.rows.pop().unwrap_or_default();
            if let Some(before) = self.rows.last_mut() {
                for (sum, n) in before.iter_mut().zip(last) {
                    *sum += n;
                }
            }
        }
    }

    /// Takes a round; whether it counted. Counts are finite and not negative by construction; a test that refuses them
    /// keeps its capital.
    pub(super) fn take(
        &mut self,
        plan: &MetricPlan,
        seen: &Seen,
        new_block: bool,
        next_weight: f64,
    ) -> Result<bool, Incomparable> {
        if new_block {
            self.pods = seen.pods;
            // In range by construction; else the margin stays.
            let _ = self.safe.rule_out(margin(plan, next_weight, self.pods));
        }
        let rho0 = tolerated(plan, self.pods);
        let users = self.of_users(seen);
        let counts = match &mut self.test {
            Test::Event(process) => {
                if new_block {
                    let _ = process.tolerate(rho0);
                }
                let harm = match plan.goal {
                    Goal::Lower => seen.counts,
                    Goal::Higher => seen.counts.swapped(),
                };
                let users = users.unwrap_or(harm);
                if process.round(&harm, new_block).is_err() || self.safe.round(&users, new_block).is_err() {
                    return Ok(false);
                }
                seen.counts
            }
            Test::Score(score) => {
                let before = score.above;
                let counts = score.round(plan, rho0 - 1.0, seen, new_block)?;
                if before.is_some() && score.above != before {
                    // What was shown is about another bound.
                    self.safe = non_inferiority(plan, next_weight, self.pods);
                    self.new_row();
                }
                let Some(counts) = counts else { return Ok(false) };
                if self.safe.round(&counts, new_block).is_err() {
                    return Ok(false);
                }
                counts
            }
        };
        if self.rows.is_empty() {
            self.rows.push([0.0; 4]);
        }
        let Counts { x_canary, x_baseline, n_canary, n_baseline } = counts;
        let row = self.rows.iter_mut().take(1).flatten();
        for (sum, n) in row.zip([x_canary, x_baseline, n_canary, n_baseline]) {
            *sum += n;
        }
        Ok(true)
    }

    /// Without what comes without traffic, if that is known. In one round more may be left out than there is: the rest is of the
    /// next ones, but of no more than ten.
    fn of_users(&mut self, seen: &Seen) -> Option<Counts> {
        self.background.filter(|background| *background > 0.0)?;
        let mut counts = seen.counts;
        let cohorts = [
            (&mut counts.n_canary, counts.x_canary, seen.left_out[0]),
            (&mut counts.n_baseline, counts.x_baseline, seen.left_out[1]),
        ];
        for ((exposure, events, left_out), owed) in cohorts.into_iter().zip(&mut self.owed) {
            let rest = *exposure - left_out - *owed;
            *owed = (events - rest).clamp(0.0, 10.0 * left_out);
            *exposure = rest.max(events);
        }
        Some(counts)
    }

    pub(super) fn log_e(&self) -> f64 {
        match &self.test {
            Test::Event(process) => process.log_e(),
            Test::Score(score) => score.process.as_ref().map_or(0.0, ScoreProcess::log_e),
        }
    }

    pub(super) fn log_e_safe(&self) -> f64 {
        self.safe.log_e()
    }

    pub(super) fn counted(&self, until: i64) -> Counted {
        let ms = if self.counted_from > 0 { (until - self.counted_from).max(0) } else { 0 };
        Counted { ms, canary: self.canary(), baseline: self.baseline() }
    }

    pub(super) fn record(&self, plan: &MetricPlan, alpha: f64, next_weight: f64, until: i64) -> MetricRecord {
        let time = |ms: i64| Instant::from_millisecond(ms).ok().filter(|_| ms > 0);
        MetricRecord {
            name: plan.name.clone(),
            from: time(self.counted_from),
            until: time(until),
            above: self.above(),
            canary: self.canary(),
            baseline: self.baseline(),
            ratio: self.ratio().map(rounded),
            interval: self.interval(alpha),
            tolerated: rounded(plan.tolerated_among(self.pods)),
            log_e: rounded(self.log_e()),
            log_e_non_inferior: rounded(self.log_e_safe()),
            margin: rounded(plan.margin_among(next_weight, self.pods)),
            weight: rounded(plan.weight),
            limit: self.limit.as_ref().and_then(Limit::record),
            background: self.background,
            summed_since: time(self.summed),
        }
    }

    pub(super) fn status(&self, plan: &MetricPlan, alpha: f64, beta: f64) -> MetricStatus {
        let evidence =
            if plan.decides() { (self.log_e() + libm::log(plan.weight)) / -libm::log(alpha) } else { 0.0 };
        let safe = self.log_e_safe() / -libm::log(beta);
        let verdict = match (evidence >= 1.0, safe >= 1.0) {
            (true, _) => Verdict::Regressed,
            (false, true) => Verdict::Pass,
            (false, false) => Verdict::Collecting,
        };
        MetricStatus {
            name: plan.name.clone(),
            verdict,
            above: self.above(),
            ratio: self.ratio().map(rounded),
            interval: self.interval(alpha),
            tolerated: rounded(plan.tolerated_among(self.pods)),
            evidence: percent(evidence),
            safe: percent(safe),
            canary: self.canary(),
            baseline: self.baseline(),
        }
    }

    fn above(&self) -> Option<f64> {
        match &self.test {
            Test::Event(_) => None,
            Test::Score(score) => score.above,
        }
    }

    fn canary(&self) -> Cohort {
        self.rows.first().map_or_else(Cohort::default, |r| Cohort { events: r[0], exposure: r[2] })
    }

    fn baseline(&self) -> Cohort {
        self.rows.first().map_or_else(Cohort::default, |r| Cohort { events: r[1], exposure: r[3] })
    }

    fn counts(&self) -> impl Iterator<Item = Counts> + '_ {
        self.rows.iter().map(|r| Counts {
            x_canary: r[0],
            x_baseline: r[1],
            n_canary: r[2],
            n_baseline: r[3],
        })
    }

    fn ratio(&self) -> Option<f64> {
        davylamp_stats::mantel_haenszel(self.counts()).filter(|ratio| ratio.is_finite())
    }

    /// Its ends are absent where the data does not reach them.
    fn interval(&self, alpha: f64) -> Option<Interval> {
        let counts: Vec<Counts> = self.counts().collect();
        let interval = davylamp_stats::rr_confidence_sequence(&counts, alpha).ok()?;
        Some(Interval {
            lower: (interval.lower > 0.0).then(|| rounded(interval.lower)),
            upper: interval.upper.is_finite().then(|| rounded(interval.upper)),
        })
    }
}

//! One gauge: one number of each pod, compared at declared looks. Keeps sums of at most [`GaugePlan::PODS`] pods a cohort, not values.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD as BASE64;
use davylamp_api::Instant;
use davylamp_api::checkpoint::GaugeCheckpoint;
use davylamp_api::run::GaugeRecord;
use davylamp_api::status::Verdict;
use davylamp_stats::{Gauge, PodsTest, pods_t_test};

use super::rounded;
use crate::observed::Increment;
use crate::program::GaugePlan;

const PODS: usize = GaugePlan::PODS as usize;
/// With fewer pods of the canary no bound is asked for.
const FEW: usize = 3;
/// A value this far below the mean of all pods counts as this part of it.
const FLOOR: f64 = 0.01;
/// A growth is read off stretches of so many ms.
const STRETCH: i64 = 180_000;
/// What a growth has reached before the end of its first stretch; values below 0 are none.
const NOT_YET: f64 = -1.0;

/// What a round holds of one pod.
#[derive(Clone, Debug)]
pub(super) struct Value {
    pub(super) canary: bool,
    /// The end of its name.
    pub(super) pod: String,
    pub(super) events: f64,
    pub(super) total: f64,
}

impl Value {
    /// Of a gauge that is divided, a counter's increments are: what is divided, and what divides.
    pub(super) fn of(pod: &str, canary: bool, increment: &Increment, divided: bool, by: bool) -> Self {
        let &Increment { events, total, .. } = increment;
        let (events, total) = match (by, divided) {
            (true, _) => (0.0, events),
            (false, true) => (events, 0.0),
            (false, false) => (events, total),
        };
        Self { canary, pod: pod.to_owned(), events, total }
    }
}

/// The sums of one pod.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    events: f64,
    total: f64,
    /// Of a level: the sum of logarithms. Of one that is divided: how often what is divided was seen. Of a growth: the mean of
    /// the last stretch.
    reached: f64,
    /// Of a growth: the first value.
    first: f64,
}

/// The evidence of one gauge.
#[derive(Debug)]
pub(super) struct GaugeFold {
    canary: BTreeMap<String, Sums>,
    baseline: BTreeMap<String, Sums>,
    looks: u32,
    pub(super) asked: bool,
    last: Option<GaugeRecord>,
}

impl GaugeFold {
    pub(super) fn restore(kept: Option<&GaugeCheckpoint>) -> Self {
        let pods = |kept: &BTreeMap<String, String>| {
            let pods = kept.iter().filter_map(|(pod, sums)| Some((pod.clone(), Sums::read(sums)?)));
            pods.take(PODS).collect()
        };
        Self {
            canary: kept.map(|k| pods(&k.canary)).unwrap_or_default(),
            baseline: kept.map(|k| pods(&k.baseline)).unwrap_or_default(),
            looks: kept.map_or(0, |k| u32::try_from(k.looks).unwrap_or(0)),
            asked: kept.is_some_and(|k| k.asked),
            last: kept.and_then(|k| k.last.clone()),
        }
    }

    pub(super) fn checkpoint(&self) -> GaugeCheckpoint {
        let pods = |pods: &BTreeMap<String, Sums>| {
            pods.iter().map(|(pod, sums)| (pod.clone(), sums.written())).collect()
        };
        GaugeCheckpoint {
            canary: pods(&self.canary),
            baseline: pods(&self.baseline),
            looks: i32::try_from(self.looks).unwrap_or(i32::MAX),
            asked: self.asked,
            last: self.last.clone(),
        }
    }

    /// A level is that of the step, for it may depend on the load; a growth goes on.
    pub(super) fn begin_step(&mut self, plan: &GaugePlan) {
        if plan.compare == Gauge::Level {
            self.canary.clear();
            self.baseline.clear();
        }
        self.asked = false;
        self.last = None;
    }

    /// Takes a round that ended at that age of the weight, ms, and lasted so long.
    pub(super) fn take(&mut self, plan: &GaugePlan, values: &[Value], age: i64, interval: i64) {
        let all = self.canary.values_mut().chain(self.baseline.values_mut());
        if plan.compare == Gauge::Growth && passed(age, interval, STRETCH) {
            // A pod that was warm only near the end of a stretch has not grown in it.
            #[allow(clippy::cast_precision_loss, reason = "times in ms")]
            let half = STRETCH as f64 / interval as f64 / 2.0;
            for sums in all.filter(|sums| sums.total >= half) {
                sums.reached = sums.events / sums.total;
                (sums.events, sums.total) = (0.0, 0.0);
            }
        }
        for Value { canary, pod, events, total } in values {
            let cohort = if *canary { &mut self.canary } else { &mut self.baseline };
            if cohort.len() >= PODS && !cohort.contains_key(pod) {
                continue;
            }
            let sums = cohort.entry(pod.clone()).or_insert_with(|| match plan.compare {
                Gauge::Growth => Sums { first: *events, reached: NOT_YET, ..Sums::default() },
                Gauge::Level => Sums::default(),
            });
            sums.events += events;
            sums.total += total;
            if plan.divided_by.is_some() && *total <= 0.0 {
                sums.reached += 1.0;
            }
        }
        if plan.compare == Gauge::Level && plan.divided_by.is_none() {
            let floor = self.floor();
            for Value { canary, pod, events, total } in values {
                let cohort = if *canary { &mut self.canary } else { &mut self.baseline };
                if let Some(sums) = cohort.get_mut(pod) {
                    sums.reached += total * libm::log((events / total).max(floor));
                }
            }
        }
    }

    /// Of the values so far.
    fn floor(&self) -> f64 {
        let pods = || self.canary.values().chain(self.baseline.values()).filter(|sums| sums.total > 0.0);
        let sum: f64 = pods().map(|sums| sums.events / sums.total).sum();
        (FLOOR * sum / pods().map(|_| 1.0).sum::<f64>().max(1.0)).max(f64::MIN_POSITIVE)
    }

    /// A declared look, at the end of a round; false when there is nothing to look at.
    pub(super) fn look(&mut self, plan: &GaugePlan, next_weight: f64, at: i64) -> bool {
        let (canary, baseline) = (numbers(plan, &self.canary), numbers(plan, &self.baseline));
        if canary.is_empty() || baseline.is_empty() {
            return false;
        }
        let test = pods_t_test(&canary, &baseline, plan.compare, plan.tolerance).ok().flatten();
        let upper = test.and_then(|test| test.upper_bound(plan.beta).ok()).filter(|upper| upper.is_finite());
        let margin = plan.margin(next_weight);
        let regressed = |test: PodsTest| plan.decides && self.looks < plan.looks && test.p <= plan.limit;
        let verdict = match test {
            Some(test) if regressed(test) => Verdict::Regressed,
            // A ratio to what does not grow has no bound: there is only no evidence of harm.
            _ if plan.compare == Gauge::Growth && plan.decides => Verdict::Pass,
            _ if plan.compare == Gauge::Growth => Verdict::Collecting,
            // So few pods show no more than that there is no evidence of harm; one of each not even that.
            _ if canary.len() < FEW || upper.is_some_and(|upper| upper < margin) => Verdict::Pass,
            _ => Verdict::Collecting,
        };
        if test.is_some() && plan.decides {
            self.looks = self.looks.saturating_add(1);
        }
        self.last = Some(GaugeRecord {
            verdict,
            at: Instant::from_millisecond(at).ok(),
            canary: typical(plan, &canary),
            baseline: typical(plan, &baseline),
            p: test.map(|test| rounded(test.p)),
            upper: upper.map(rounded),
            margin: rounded(margin),
            ..self.record(plan, None)
        });
        true
    }

    /// The last look has shown that the canary is worse than tolerated.
    pub(super) fn regressed(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.verdict == Verdict::Regressed)
    }

    /// The last look has shown nothing against the next step.
    pub(super) fn safe(&self) -> bool {
        self.last.as_ref().is_some_and(|last| last.verdict == Verdict::Pass)
    }

    /// As at the last look, if there was one.
    pub(super) fn record(&self, plan: &GaugePlan, until: Option<Instant>) -> GaugeRecord {
        let number = |n: usize| i32::try_from(n).unwrap_or(i32::MAX);
        let of = |pods| number(numbers(plan, pods).len());
        let last = self.last.clone().filter(|last| last.at.is_some() && until.is_some());
        let new = || GaugeRecord {
            name: plan.name.clone(),
            looks: i32::try_from(plan.looks).unwrap_or(i32::MAX),
            look: i32::try_from(self.looks).unwrap_or(i32::MAX),
            pods: [of(&self.canary), of(&self.baseline)],
            limit: plan.limit,
            tolerated: rounded(1.0 + plan.tolerance),
            ..GaugeRecord::default()
        };
        GaugeRecord { until, ..last.unwrap_or_else(new) }
    }
}

impl Sums {
    fn written(&self) -> String {
        let Self { events, total, reached, first } = self;
        // The last one is of growths only.
        let numbers = [events, total, reached, first];
        let some = if first.to_bits() == 0 { &numbers[..3] } else { &numbers[..] };
        BASE64.encode(some.iter().map(|n| n.to_le_bytes()).collect::<Vec<_>>().concat())
    }

    fn read(text: &str) -> Option<Self> {
        let bytes = BASE64.decode(text).ok()?;
        let numbers: Vec<f64> =
            bytes.chunks_exact(8).filter_map(|b| Some(f64::from_le_bytes(b.try_into().ok()?))).collect();
        let (&[events, total, reached], first) = numbers.split_first_chunk()?;
        let &first = first.first().unwrap_or(&0.0);
        numbers.iter().all(|n| n.is_finite()).then_some(Self { events, total, reached, first })
    }
}

/// Whether that age, a multiple of the stretch, lies in the round.
pub(super) fn passed(age: i64, interval: i64, stretch: i64) -> bool {
    age.div_euclid(stretch) > (age - interval).div_euclid(stretch)
}

/// One of each pod.
fn numbers(plan: &GaugePlan, pods: &BTreeMap<String, Sums>) -> Vec<[f64; 1]> {
    let number = |sums: &Sums| match plan.compare {
        Gauge::Growth if sums.reached < 0.0 => f64::NAN,
        Gauge::Growth => sums.reached - sums.first,
        Gauge::Level if plan.divided_by.is_some() && sums.reached > 0.0 => sums.events / sums.total,
        Gauge::Level if plan.divided_by.is_some() => f64::NAN,
        Gauge::Level => libm::exp(sums.reached / sums.total),
    };
    pods.values().map(|sums| [number(sums)]).filter(|[number]| number.is_finite()).collect()
}

/// The mean of the pods, as the test has it.
fn typical(plan: &GaugePlan, pods: &[[f64; 1]]) -> Option<f64> {
    let count = pods.iter().map(|_| 1.0).sum::<f64>();
    let mean = |of: fn(f64) -> f64| pods.iter().flatten().map(|n| of(*n)).sum::<f64>() / count;
    let typical = match plan.compare {
        Gauge::Growth => mean(|n| n),
        Gauge::Level => libm::exp(mean(|n| libm::log(n.max(f64::MIN_POSITIVE)))),
    };
    typical.is_finite().then(|| rounded(typical))
}

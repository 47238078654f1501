//! How long the steps of a Rollout will take: until a bad canary goes back, and until a good one is shown to be good.
//!
//! Takes what the engine compiled and what is known of the service; gives mean times, counted as `hold` is from the moment
//! a weight is effective. The tests, their parameters and the data that they leave out are those of the engine. Pure.

mod advice;

use davylamp_api::rollout::{Goal, OnInconclusive, Step};
use davylamp_api::scalar::{Duration, Percent};
use davylamp_stats::{Detection, Error, Promotion, Traffic, detect_seconds, promote_seconds};
use serde::Serialize;

pub use self::advice::{Advice, Search, Written};
use crate::figures::{about, digits, whole};
use crate::program::{CohortPods, Conduct, MetricPlan, Plan, pods_for};

/// So many times as many events has a canary that is to be found.
const TIMES: [f64; 3] = [2.0, 5.0, BLIND];
/// Where that is not found, nothing is.
const BLIND: f64 = 20.0;
/// A verdict takes so many times its mean in one case of ten.
const SLOW: f64 = 2.0;
/// Fewer events than any real service has; of none there is no multiple.
const SMALLEST_RATE: f64 = 1e-7;

/// Of a share that nobody knows: the default of `floor`.
pub const ASSUMED: f64 = 0.001;
/// Of the values of a distribution, those that are compared: at most a tenth.
pub const TAIL: f64 = 0.05;

/// What is known of the service.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// In the order of the metrics.
    pub rates: Vec<Rate>,
    /// From its creation until a pod is ready.
    pub pod_start: Duration,
}

/// What a metric counts, in all pods together.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Rate {
    /// Its name.
    pub metric: String,
    /// What it counts its events for.
    pub requests_per_second: f64,
    /// Events per request of the version of now.
    pub share: f64,
    /// Where both come from.
    pub from: String,
}

/// What will become of a rollout. Times in seconds; none is never.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Forecast {
    /// One by one.
    pub steps: Vec<StepForecast>,
    /// From the release until a good version is promoted and the routes are the user's again, approvals not included.
    pub total_seconds: Option<u64>,
}

/// One step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StepForecast {
    /// Counted from 1.
    pub step: usize,
    /// The canary's share of the traffic.
    pub weight: Percent,
    /// Of the canary.
    pub pods: i32,
    /// It passes no earlier.
    pub hold_min_seconds: u64,
    /// It ends by then.
    pub hold_max_seconds: u64,
    /// Somebody must approve it, too.
    pub approval: bool,
    /// The worst of its metrics.
    pub verdict: Verdict,
    /// With the start of its pods.
    pub seconds: u64,
    /// Those that decide.
    pub metrics: Vec<Row>,
}

/// One metric in one step.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Row {
    /// Its name.
    pub metric: String,
    /// The tolerated ratio, with what pods differ by.
    pub tolerated: f64,
    /// The ratio that a canary must be shown to lie on the good side of.
    pub margin: f64,
    /// Until a canary that is 2, 5 and 20 times worse goes back.
    pub detect_seconds: [Option<u64>; 3],
    /// Until one that is as good as the stable version is shown to lie below the margin.
    pub promote_seconds: Option<u64>,
    /// In one case of ten it takes longer.
    pub promote_slow_seconds: Option<u64>,
    /// What can be said of it.
    pub verdict: Verdict,
    /// On which side of the margin it is good.
    #[serde(skip)]
    pub goal: Goal,
}

/// What can be said at the end of a step, the worst last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Verdict {
    /// A good canary passes within `hold.max`, and a very bad one is found.
    Judged,
    /// The same on average, but in more than one case of ten not within `hold.max`.
    OftenInconclusive,
    /// `hold.max` passes before a good canary is shown to be good.
    Inconclusive,
    /// Even twenty times the events are not found within `hold.max`.
    Blind,
    /// There is no metric.
    NotAnalysed,
}

impl Forecast {
    /// Of all steps, when so many pods carry the full traffic.
    ///
    /// # Errors
    /// Rates that are none.
    pub fn new(conduct: &Conduct, size: i32, service: &Service) -> Result<Self, Error> {
        let plan = &conduct.analysis;
        let mut steps = Vec::new();
        for i in 0..conduct.steps.len() {
            steps.extend(StepForecast::new(conduct, size, service, i)?);
        }
        let stuck =
            |step: &StepForecast| plan.on_inconclusive != OnInconclusive::Promote && step.is_inconclusive();
        // The other pods, all traffic, and the routes given back: each waits for the settle time.
        let end = service.pod_start.as_secs_f64() + 2.0 * seconds(plan.settle);
        let total = steps.iter().map(|step| step.seconds).sum::<u64>() + whole(end);
        Ok(Self { total_seconds: (!steps.iter().any(stuck)).then_some(total), steps })
    }

    /// The worst of all steps.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        self.steps.iter().map(|step| step.verdict).max().unwrap_or(Verdict::NotAnalysed)
    }

    /// Every step can be judged, if only on average.
    #[must_use]
    pub fn is_judged(&self) -> bool {
        self.verdict() <= Verdict::OftenInconclusive
    }

    /// When twice the events of the metric are found first, and in which step; none when in no step within its `hold.max`.
    #[must_use]
    pub fn soonest(&self, metric: &str) -> Option<(u64, usize)> {
        let rows = self.steps.iter().flat_map(|step| step.metrics.iter().map(move |row| (step, row)));
        let times = rows.filter(|(_, row)| row.metric == metric).filter_map(|(step, row)| {
            let [twice, ..] = row.detect_seconds;
            Some((twice.filter(|time| *time <= step.hold_max_seconds)?, step.step))
        });
        times.min()
    }
}

impl StepForecast {
    /// Of the step of that index; None when there is none.
    fn new(conduct: &Conduct, size: i32, service: &Service, i: usize) -> Result<Option<Self>, Error> {
        let Some((timing, hold)) = Timing::of(conduct, size, i) else { return Ok(None) };
        let (plan, step) = (&conduct.analysis, timing.step);
        let [min, max] = hold.map(|length| ceil(length.as_secs_f64()));
        let mut metrics = Vec::new();
        let deciding = plan.metrics.iter().zip(&service.rates).filter(|(metric, _)| metric.decides());
        for (metric, rate) in deciding {
            metrics.push(timing.row(metric, rate, max)?);
        }
        let none = if plan.is_empty() { Verdict::NotAnalysed } else { Verdict::Judged };
        let verdict = metrics.iter().map(|row| row.verdict).max().unwrap_or(none);
        let slowest = metrics.iter().map(|row| row.promote_seconds.unwrap_or(u64::MAX)).max();
        let judged = slowest.unwrap_or(0).clamp(min, max.max(min));
        let start = if timing.grows { service.pod_start.as_secs_f64() } else { 0.0 };
        // Samples are read when they are old enough, by whole rounds.
        let delay = plan.sampling.map_or(0.0, |sampling| sampling.delay.as_secs_f64());
        let behind = if metrics.is_empty() { 0.0 } else { delay + 0.5 * timing.interval() };
        Ok(Some(Self {
            step: i + 1,
            weight: step.weight,
            pods: pods_of(size, step),
            hold_min_seconds: min,
            hold_max_seconds: max,
            approval: step.approval.is_some(),
            verdict,
            seconds: judged.saturating_add(whole(start + behind)),
            metrics,
        }))
    }

    /// Whether its verdict is the best one, which is asked many times.
    fn is_judged(conduct: &Conduct, size: i32, service: &Service, i: usize) -> Result<bool, Error> {
        let Some((timing, [_, max])) = Timing::of(conduct, size, i) else { return Ok(true) };
        let longest = ceil(max.as_secs_f64());
        let plan = &conduct.analysis;
        for (metric, rate) in plan.metrics.iter().zip(&service.rates).filter(|(metric, _)| metric.decides()) {
            let [_, slow] = timing.promoted(metric, rate)?;
            if late(slow, longest) || late(timing.detected(metric, rate, BLIND)?, longest) {
                return Ok(false);
            }
        }
        Ok(!plan.is_empty())
    }

    /// What cannot be said in time, and what follows, in a sentence for each metric.
    pub fn troubles(&self, on_inconclusive: OnInconclusive) -> impl Iterator<Item = String> {
        self.metrics.iter().filter_map(move |row| self.trouble(row, on_inconclusive))
    }

    fn trouble(&self, row: &Row, on_inconclusive: OnInconclusive) -> Option<String> {
        let max = about(Some(self.hold_max_seconds));
        let then = match on_inconclusive {
            OnInconclusive::Pause => "pauses",
            OnInconclusive::Promote => "is taken as passed",
            OnInconclusive::Rollback => "is rolled back",
        };
        let (number, metric) = (self.step, &row.metric);
        let (side, bad) = match row.goal {
            Goal::Lower => ("below", format!("twenty times the events of {metric} are")),
            Goal::Higher => ("above", format!("a twentieth of the {metric} is")),
        };
        let shown_to_be = format!("{metric} is shown {side} {}x", digits(row.margin));
        Some(match row.verdict {
            Verdict::Judged | Verdict::NotAnalysed => return None,
            Verdict::OftenInconclusive => format!(
                "Step {number} is often inconclusive: one time in ten it takes more than {} until {shown_to_be}; after \
                 {max} the step {then}.",
                about(row.promote_slow_seconds)
            ),
            Verdict::Inconclusive => {
                let shown = row
                    .promote_seconds
                    .map_or_else(|| "never".to_owned(), |time| format!("only after {}", about(Some(time))));
                format!(
                    "Step {number} ends inconclusive: {shown_to_be} {shown}; after {max} the step {then}."
                )
            }
            Verdict::Blind => format!("Step {number} is blind: even {bad} not found within {max}."),
        })
    }

    /// `hold.max` passes first.
    fn is_inconclusive(&self) -> bool {
        self.metrics.iter().any(|row| row.promote_seconds.is_none_or(|time| time > self.hold_max_seconds))
    }
}

impl Row {
    /// The shortest `hold.max` that would do.
    fn needs(&self) -> Option<u64> {
        Some(self.promote_slow_seconds?.max(self.detect_seconds[2]?))
    }
}

/// One step: how its data comes.
struct Timing<'a> {
    plan: &'a Plan,
    step: &'a Step,
    /// There are more pods than before.
    grows: bool,
    weight: f64,
    /// The baseline's share of the requests.
    rest: f64,
    next: f64,
    /// The share of the canary's pods that were there before the step.
    warm: f64,
    /// That count when all are warm.
    pods: CohortPods,
}

impl<'a> Timing<'a> {
    /// Of the step of that index, with the ends of its hold; None when there is none.
    fn of(conduct: &'a Conduct, size: i32, i: usize) -> Option<(Self, [Duration; 2])> {
        let (plan, steps) = (&conduct.analysis, &conduct.steps);
        let step = steps.get(i)?;
        let next = steps.get(i + 1).map_or(Percent::FULL, |next| next.weight).share();
        let before = i.checked_sub(1).and_then(|i| steps.get(i)).map_or(0, |step| pods_of(size, step));
        let now = pods_of(size, step);
        let baseline = if plan.fresh { now } else { size.max(1) };
        let hold = step.hold.clone().unwrap_or_default();
        let timing = Self {
            plan,
            step,
            grows: now > before,
            weight: step.weight.share(),
            rest: rest(plan, size, step),
            next,
            warm: f64::from(before.min(now)) / f64::from(now.max(1)),
            pods: CohortPods {
                canary: u32::try_from(now).unwrap_or(1).max(1),
                baseline: u32::try_from(baseline).unwrap_or(1).max(1),
            },
        };
        Some((timing, [hold.min, hold.max].map(Option::unwrap_or_default)))
    }

    fn row(&self, metric: &MetricPlan, rate: &Rate, longest: u64) -> Result<Row, Error> {
        let [promote, slow] = self.promoted(metric, rate)?;
        let mut detect = [None; 3];
        for (found, times) in detect.iter_mut().zip(TIMES) {
            *found = self.detected(metric, rate, times)?;
        }
        let verdict = match (late(detect[2], longest), late(promote, longest), late(slow, longest)) {
            (true, _, _) => Verdict::Blind,
            (false, true, _) => Verdict::Inconclusive,
            (false, false, true) => Verdict::OftenInconclusive,
            (false, false, false) => Verdict::Judged,
        };
        Ok(Row {
            metric: metric.name.clone(),
            tolerated: metric.tolerated_among(self.pods),
            margin: self.margin(metric),
            detect_seconds: detect,
            promote_seconds: promote,
            promote_slow_seconds: slow,
            verdict,
            goal: metric.goal,
        })
    }

    fn margin(&self, metric: &MetricPlan) -> f64 {
        metric.margin_among(self.next, self.pods)
    }

    /// Until a canary that is as good as the stable version is shown to be: the mean, and in one case of ten.
    fn promoted(&self, metric: &MetricPlan, rate: &Rate) -> Result<[Option<u64>; 2], Error> {
        let promotion = Promotion {
            margin: metric.as_harm(self.margin(metric)),
            beta: self.plan.beta,
            absolute: metric.floor.map(|floor| (floor, self.next)),
        };
        self.times(metric, rate, |traffic| promote_seconds(traffic, &promotion))
    }

    /// Until a canary that is so many times worse goes back.
    fn detected(&self, metric: &MetricPlan, rate: &Rate, times: f64) -> Result<Option<u64>, Error> {
        let tolerated = metric.as_harm(metric.tolerated_among(self.pods));
        let detection =
            Detection { floor: metric.floor, ..Detection::new(tolerated, self.plan.alpha * metric.weight) };
        let mut rate = Rate { share: rate.share.max(SMALLEST_RATE), ..rate.clone() };
        let ratio = match metric.goal {
            // What lies below the floor is none of the test's business.
            Goal::Lower => (times * rate.share.max(metric.floor.unwrap_or(0.0))).min(1.0) / rate.share,
            // The stable version then has more, and is on the other side of the test.
            Goal::Higher => {
                rate.share /= times;
                times
            }
        };
        let [mean, _] = self.times(metric, &rate, |traffic| detect_seconds(traffic, ratio, &detection))?;
        Ok(mean)
    }

    /// The mean and the slow time since the weight is effective, when so much data is needed on average.
    fn times(
        &self,
        metric: &MetricPlan,
        rate: &Rate,
        needed: impl Fn(&Traffic) -> Result<Option<f64>, Error>,
    ) -> Result<[Option<u64>; 2], Error> {
        let (goal, block_seconds) = (metric.goal, seconds(metric.block));
        let traffic = |warm: f64| {
            let canary = self.weight * warm;
            let all = canary + self.rest * if self.plan.fresh { warm } else { 1.0 };
            let share = canary / all;
            Traffic {
                requests_per_second: rate.requests_per_second * all,
                weight: if goal == Goal::Higher { 1.0 - share } else { share },
                rate: rate.share,
                block_seconds,
            }
        };
        let Some(all) = needed(&traffic(1.0))? else { return Ok([None; 2]) };
        let cold = seconds(self.plan.warmup - self.plan.settle).max(0.0);
        let early = if cold > 0.0 && self.warm > 0.0 { needed(&traffic(self.warm))? } else { None };
        Ok([1.0, SLOW].map(|times| {
            let all = times * all;
            // Until its new pods are warm the canary is judged by the others.
            let data = match early.map(|early| times * early) {
                Some(early) if early <= cold => early,
                Some(early) => cold + (1.0 - cold / early) * all,
                None => cold + all,
            };
            // Half a scrape until the first sample that counts, half until the round of the last one ends.
            Some(ceil(seconds(self.plan.settle) + data + self.interval()))
        }))
    }

    fn interval(&self) -> f64 {
        seconds(self.plan.interval())
    }
}

fn late(time: Option<u64>, longest: u64) -> bool {
    time.is_none_or(|time| time > longest)
}

/// Of the canary, when so many carry the full traffic.
fn pods_of(size: i32, step: &Step) -> i32 {
    step.replicas.unwrap_or_else(|| pods_for(size, step.weight))
}

/// The share of the requests that the baseline gets beside such a step: the stable weight is spread over the pods of a fresh
/// one, too.
pub(crate) fn rest(plan: &Plan, size: i32, step: &Step) -> f64 {
    let (all, now) = (size.max(1), pods_of(size, step).max(0));
    let part = if plan.fresh { f64::from(now) / f64::from(all.saturating_add(now)) } else { 1.0 };
    (1.0 - step.weight.share()) * part
}

#[allow(clippy::cast_precision_loss, reason = "at most 1,000 hours")]
fn seconds(ms: i64) -> f64 {
    ms as f64 / 1_000.0
}

fn ceil(seconds: f64) -> u64 {
    whole(seconds.ceil())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use davylamp_api::rollout::Baseline;
    use davylamp_api::run::Sampling;
    use davylamp_stats::{pod_effect_margin, pod_effect_promotion_margin, pod_spread};
    use serde_json::{Value, json};

    use super::*;

    /// These steps, with this analysis beside its one metric.
    pub(super) fn written(steps: Value, analysis: &Value) -> Written {
        let mut spec = json!({
            "strategy": {"canary": {}, "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": "shop"}]}}]},
            "analysis": {"source": "default", "metrics": [
                {"name": "errors", "ratio": {"events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"}},
            ]},
        });
        if !steps.is_null() {
            spec["strategy"]["canary"]["steps"] = steps;
        }
        for (key, value) in analysis.as_object().cloned().unwrap_or_default() {
            spec["analysis"][key] = value;
        }
        serde_json::from_value(spec).unwrap()
    }

    pub(super) fn conduct(Written { strategy, analysis }: &Written) -> Conduct {
        let sampling = Sampling { scrape_interval: Duration::from_secs(5), delay: Duration::from_secs(3) };
        Conduct::compile(strategy, analysis, Some(sampling), &BTreeMap::new()).unwrap()
    }

    /// Of each metric.
    pub(super) fn service(rps: f64, rate: f64) -> Service {
        let rate = |metric: &str| Rate {
            metric: metric.to_owned(),
            requests_per_second: rps,
            share: rate,
            from: "as given".to_owned(),
        };
        Service { rates: vec![rate("errors"), rate("slow")], pod_start: Duration::from_secs(10) }
    }

    #[test]
    fn rows_are_the_planners_with_what_is_left_out() {
        let spec = written(
            json!([{"weight": "10%"}, {"weight": "40%"}]),
            &json!({"warmup": "60s", "settle": "20s", "maxServiceImpact": "40%", "falseRollbackRate": "2%"}),
        );
        let forecast = Forecast::new(&conduct(&spec), 10, &service(200.0, 0.005)).unwrap();
        let [first, second] = &forecast.steps[..] else { panic!("{forecast:?}") };
        assert_eq!((first.pods, second.pods), (1, 4));
        // Ten pods that differ by 5 % are the baseline of one and of four.
        let spread = |canary| pod_spread(0.05, canary, 10).unwrap();
        let margin = |margin, canary| pod_effect_promotion_margin(margin, spread(canary), 0.05).unwrap();
        let tolerated = |canary| pod_effect_margin(1.1, spread(canary), 0.01).unwrap();
        let of = |step: &StepForecast| (step.metrics[0].margin, step.metrics[0].tolerated);
        assert_eq!((of(first), of(second)), ((margin(2.0, 1), tolerated(1)), (margin(1.4, 4), tolerated(4))));

        // Blocks are of three scrapes. The only pod of the first step is warm after a minute.
        let traffic = Traffic { requests_per_second: 200.0, weight: 0.1, rate: 0.005, block_seconds: 15.0 };
        let promotion = Promotion { margin: margin(2.0, 1), beta: 0.05, absolute: Some((0.001, 0.4)) };
        let promote = promote_seconds(&traffic, &promotion).unwrap().unwrap();
        assert_eq!(first.metrics[0].promote_seconds, Some(ceil(60.0 + promote + 5.0)));
        assert_eq!(first.metrics[0].promote_slow_seconds, Some(ceil(60.0 + 2.0 * promote + 5.0)));
        let detection = Detection { floor: Some(0.001), ..Detection::new(tolerated(1), 0.02) };
        let detect = detect_seconds(&traffic, 5.0, &detection).unwrap().unwrap();
        assert_eq!(first.metrics[0].detect_seconds[1], Some(ceil(60.0 + detect + 5.0)));

        // In the second step one of four pods is warm from the start: for 40 seconds a tenth of all requests count.
        let detection = Detection { rho0: tolerated(4), ..detection };
        let all = Traffic { weight: 0.4, ..traffic };
        let early = Traffic { requests_per_second: 140.0, weight: 1.0 / 7.0, ..traffic };
        let found = |traffic: &Traffic| detect_seconds(traffic, 2.0, &detection).unwrap().unwrap();
        let data = 40.0 + (1.0 - 40.0 / found(&early)) * found(&all);
        let expected = ceil(20.0 + data + 5.0);
        assert!(
            second.metrics[0].detect_seconds[0].unwrap().abs_diff(expected) <= 1,
            "{expected}: {second:?}"
        );

        let steps: u64 = forecast.steps.iter().map(|step| step.seconds).sum();
        assert_eq!(forecast.total_seconds, Some(steps + 10 + 40));
    }

    #[test]
    fn a_fresh_baseline_gets_a_part_of_the_requests() {
        let mut spec = written(json!([{"weight": "40%"}]), &Value::Null);
        spec.strategy.canary.baseline = Some(Baseline::Fresh);
        let forecast = Forecast::new(&conduct(&spec), 10, &service(200.0, 0.005)).unwrap();
        let spread = pod_spread(0.05, 4, 4).unwrap();
        let margin = pod_effect_promotion_margin(1.5, spread, 0.05).unwrap();
        // Four of fourteen pods get it of what the canary does not get; they are warm as late.
        let all = 0.4 + 0.6 * 4.0 / 14.0;
        let traffic =
            Traffic { requests_per_second: 200.0 * all, weight: 0.4 / all, rate: 0.005, block_seconds: 15.0 };
        let promotion = Promotion { margin, beta: 0.05, absolute: Some((0.001, 1.0)) };
        let promote = promote_seconds(&traffic, &promotion).unwrap().unwrap();
        let planned = forecast.steps[0].metrics[0].promote_seconds.unwrap();
        assert!(planned.abs_diff(ceil(120.0 + promote + 5.0)) <= 1, "{planned} {promote}");
    }

    #[test]
    fn each_metric_has_its_share_of_false_rollbacks() {
        let two = json!({"metrics": [
            {"name": "errors", "ratio": {"events": "a", "total": "b"}, "floor": "0%"},
            {"name": "slow", "ratio": {"events": "c", "total": "b"}, "tolerance": "0%"},
        ]});
        let spec = written(json!([{"weight": "20%"}]), &two);
        let forecast = Forecast::new(&conduct(&spec), 10, &service(100.0, 0.01)).unwrap();
        let rows = &forecast.steps[0].metrics;
        let traffic = Traffic { requests_per_second: 100.0, weight: 0.2, rate: 0.01, block_seconds: 15.0 };
        let spread = pod_spread(0.05, 2, 10).unwrap();
        let detection = |rho0| Detection::new(pod_effect_margin(rho0, spread, 0.01).unwrap(), 0.005);
        for (row, detection) in
            rows.iter().zip([detection(1.1), Detection { floor: Some(0.001), ..detection(1.0) }])
        {
            let detect = detect_seconds(&traffic, 2.0, &detection).unwrap().unwrap();
            assert_eq!(row.detect_seconds[0], Some(ceil(120.0 + detect + 5.0)), "{}", row.metric);
        }
    }

    #[test]
    fn what_cannot_be_said_in_time_is_named() {
        let of = |rps, max: &str, on: &str| {
            let spec =
                written(json!([{"weight": "10%"}]), &json!({"hold": {"max": max}, "onInconclusive": on}));
            Forecast::new(&conduct(&spec), 10, &service(rps, 0.005)).unwrap()
        };
        let row = of(20.0, "60m", "pause").steps[0].metrics[0].clone();
        let minutes = |seconds: Option<u64>| format!("{}s", seconds.unwrap());
        assert_eq!(of(20.0, &minutes(row.needs()), "pause").verdict(), Verdict::Judged);
        assert_eq!(of(20.0, &minutes(row.promote_seconds), "pause").verdict(), Verdict::OftenInconclusive);
        let short = of(20.0, &minutes(row.promote_seconds.map(|s| s - 1)), "pause");
        assert_eq!((short.verdict(), short.total_seconds), (Verdict::Inconclusive, None));
        let promoted = of(20.0, &minutes(row.promote_seconds.map(|s| s - 1)), "promote");
        assert_eq!(promoted.verdict(), Verdict::Inconclusive);
        assert!(promoted.total_seconds.is_some());
        assert_eq!(of(0.01, "60m", "pause").verdict(), Verdict::Blind);
        assert_eq!(of(0.0, "60m", "pause").steps[0].metrics[0].detect_seconds, [None; 3]);
    }

    #[test]
    fn a_service_without_events_is_measured_by_the_floor() {
        let spec = written(json!([{"weight": "50%"}]), &Value::Null);
        let row = |rate| {
            Forecast::new(&conduct(&spec), 10, &service(200.0, rate)).unwrap().steps[0].metrics[0].clone()
        };
        let (none, few) = (row(0.0), row(0.000_1));
        for (none, few) in none.detect_seconds.iter().zip(few.detect_seconds) {
            assert!(none.unwrap().abs_diff(few.unwrap()) < 120, "{none:?} {few:?}");
        }
    }

    #[test]
    fn without_metrics_the_shortest_hold_counts() {
        let spec = written(json!([{"weight": "50%"}]), &json!({"metrics": []}));
        let forecast = Forecast::new(&conduct(&spec), 10, &service(1.0, 0.0)).unwrap();
        assert_eq!((forecast.verdict(), forecast.steps[0].seconds), (Verdict::NotAnalysed, 190));
        assert!(!forecast.is_judged());
    }
}

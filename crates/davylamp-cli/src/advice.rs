//! What to change in a Rollout: when a step cannot be judged, and when twice the events are found nowhere.
//!
//! Takes the Rollout, what is known of the service and its forecast; gives changes, the least first. Each was tried in
//! a forecast of its own, and alone is enough.

use anyhow::Result;
use davylamp_api::RolloutSpec;
use davylamp_api::rollout::{Hold, Step};
use davylamp_api::scalar::{Duration, Percent};
use davylamp_engine::{MetricPlan, Program};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::figures::{about, count, whole};
use crate::forecast::{Forecast, Rate, Service, StepForecast, Verdict};

/// A change that is enough.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Advice {
    /// In a sentence.
    pub(crate) text: String,
    /// Of the Rollout, for `kubectl patch --type merge`; none when another thing must change.
    pub(crate) patch: Option<Value>,
    /// So many times the requests of now, when that is what must change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) times_requests: Option<f64>,
}

/// Nobody watches a step for longer.
const LONGEST: u64 = 24 * 3_600;
/// More requests than this are no advice.
const MOST_TIMES: f64 = 1e6;
/// Weights that people write, in hundredths of a percent.
const WEIGHTS: [u16; 22] = [
    10, 20, 50, 100, 150, 200, 300, 400, 500, 600, 800, 1_000, 1_200, 1_500, 2_000, 2_500, 3_000, 3_500,
    4_000, 4_500, 5_000, 6_000,
];
/// Floors that people write, in hundredths of a percent.
const FLOORS: [u16; 12] = [0, 1, 2, 5, 10, 15, 20, 30, 50, 100, 200, 500];

/// What is changed, and for whom.
pub(crate) struct Search<'a> {
    pub(crate) name: &'a str,
    pub(crate) spec: &'a RolloutSpec,
    pub(crate) program: &'a Program,
    pub(crate) service: &'a Service,
}

impl Search<'_> {
    /// Changes with which each step is judged; none when it is already, when nothing is compared, or when nothing helps.
    pub(crate) fn advice(&self, forecast: &Forecast) -> Result<Vec<Advice>> {
        if matches!(forecast.verdict(), Verdict::Judged | Verdict::NotAnalysed) {
            return Ok(Vec::new());
        }
        let mut found = Vec::new();
        for change in
            [self.other_weights(), self.longer_hold(forecast), self.more_impact(), self.other_floor(forecast)]
        {
            found.extend(change?);
        }
        if found.is_empty() {
            found.extend(self.one_step()?);
        }
        let alone = found.is_empty();
        found.extend(self.more_requests(forecast, alone)?);
        Ok(found)
    }

    /// Floors with which a step finds twice the events of a metric, where none does now; they make nothing worse.
    pub(crate) fn sharper(&self, forecast: &Forecast) -> Result<Vec<Advice>> {
        let mut found = Vec::new();
        for MetricPlan { name, floor, .. } in &self.program.conduct.analysis.metrics {
            let Some(now) = floor.filter(|_| soonest(forecast, name).is_none()) else { continue };
            for floor in
                FLOORS.into_iter().rev().map(Percent::from_basis_points).filter(|floor| floor.share() < now)
            {
                let changed = self.with_floor(&[name], floor);
                let Some(program) = self.compiled(&changed) else { continue };
                let then = Forecast::new(&program, self.service)?;
                let Some((time, step)) =
                    soonest(&then, name).filter(|_| then.verdict() <= forecast.verdict())
                else {
                    continue;
                };
                let text = format!(
                    "Twice the events of {name} are found in no step; with the floor {floor} step {step} finds them in {}.",
                    about(Some(time))
                );
                found.push(self.change(&changed, text)?);
                break;
            }
        }
        Ok(found)
    }

    /// The engine's own reading of a changed spec, with the scrapes of this one.
    fn compiled(&self, spec: &RolloutSpec) -> Option<Program> {
        let mut program = Program::compile(self.name, spec).ok()?;
        program.conduct.analysis.sampling = self.program.conduct.analysis.sampling;
        Some(program)
    }

    fn works(&self, spec: &RolloutSpec, service: &Service) -> Result<bool> {
        let Some(program) = self.compiled(spec) else { return Ok(false) };
        for i in 0..program.conduct.steps.len() {
            if !passes(&program, service, i)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn found(&self, changed: &RolloutSpec, text: String) -> Result<Option<Advice>> {
        if !self.works(changed, self.service)? {
            return Ok(None);
        }
        self.change(changed, text).map(Some)
    }

    fn change(&self, changed: &RolloutSpec, text: String) -> Result<Advice> {
        let patch = difference(&serde_json::to_value(self.spec)?, &serde_json::to_value(changed)?);
        Ok(Advice { text, patch: Some(json!({"spec": patch})), times_requests: None })
    }

    /// As they are written, or the defaults.
    fn steps(&self) -> Vec<Step> {
        let written = self.spec.strategy.canary.steps.clone();
        let default =
            || self.program.conduct.steps.iter().map(|step| Step { weight: step.weight, ..Step::default() });
        written.unwrap_or_else(|| default().collect())
    }

    fn with_steps(&self, steps: Vec<Step>) -> RolloutSpec {
        let mut spec = self.spec.clone();
        spec.strategy.canary.steps = Some(steps);
        spec
    }

    /// The smallest weights that do; a step for which there is none is left out.
    fn other_weights(&self) -> Result<Option<Advice>> {
        let mut steps = self.steps();
        let mut i = 0;
        while i < steps.len() {
            let judged = |steps: &[Step]| -> Result<bool> {
                let Some(program) = self.compiled(&self.with_steps(steps.to_vec())) else { return Ok(false) };
                let before = i == 0 || passes(&program, self.service, i - 1)?;
                Ok(before && passes(&program, self.service, i)?)
            };
            if judged(&steps)? {
                i += 1;
                continue;
            }
            let own = steps[i].weight;
            let next = steps.get(i + 1).map_or(Percent::FULL, |next| next.weight);
            let mut better = None;
            for weight in
                WEIGHTS.map(Percent::from_basis_points).into_iter().filter(|w| *w > own && *w < next)
            {
                let mut changed = steps.clone();
                // Pods that were counted out for the weight before are too few for a larger one.
                changed[i] = Step { weight, replicas: None, ..changed[i].clone() };
                if judged(&changed)? {
                    better = Some(changed);
                    break;
                }
            }
            if let Some(better) = better {
                steps = better;
                i += 1;
            } else {
                steps.remove(i);
                i = i.saturating_sub(1);
            }
        }
        if steps.is_empty() {
            return Ok(None);
        }
        let weights: Vec<_> = steps.iter().map(|step| step.weight.to_string()).collect();
        let text = format!("other steps: the weights {}", weights.join(", "));
        self.found(&self.with_steps(steps), text)
    }

    fn longer_hold(&self, forecast: &Forecast) -> Result<Option<Advice>> {
        let Some((changed, max)) = with_hold(self.spec, forecast) else { return Ok(None) };
        let own = self.steps().iter().any(|step| step.hold.as_ref().is_some_and(|hold| hold.max.is_some()));
        let own = if own { ", and the same for steps with a hold.max of their own" } else { "" };
        let text = format!("longer steps: spec.analysis.hold.max {max}{own}");
        self.found(&changed, text)
    }

    fn more_impact(&self) -> Result<Option<Advice>> {
        let with = |percent: u16| with_impact(self.spec, Percent::from_basis_points(100 * percent));
        let now = whole((100.0 * self.program.conduct.analysis.impact).floor());
        let (mut outside, mut inside) = (u16::try_from(now).unwrap_or(100), 100);
        if outside >= inside || !self.works(&with(inside), self.service)? {
            return Ok(None);
        }
        while inside - outside > 1 {
            let middle = u16::midpoint(inside, outside);
            if self.works(&with(middle), self.service)? { inside = middle } else { outside = middle }
        }
        let text = format!(
            "a larger margin: spec.analysis.maxServiceImpact {inside}%; all requests together may then have that many more \
             events at the next weight"
        );
        self.found(&with(inside), text)
    }

    fn with_floor(&self, names: &[&str], floor: Percent) -> RolloutSpec {
        let mut spec = self.spec.clone();
        for metric in spec.analysis.iter_mut().flat_map(|analysis| &mut analysis.metrics) {
            if metric.ratio.is_some() && names.contains(&metric.name.as_str()) {
                metric.floor = Some(floor);
            }
        }
        spec
    }

    /// Of the metrics that fail; the nearest that does, and a smaller one rather than a larger one.
    fn other_floor(&self, forecast: &Forecast) -> Result<Option<Advice>> {
        let rows = || forecast.steps.iter().flat_map(|step| &step.metrics);
        let fails =
            |plan: &&MetricPlan| rows().any(|row| row.metric == plan.name && row.verdict > Verdict::Judged);
        let written = self.spec.analysis.iter().flat_map(|analysis| &analysis.metrics);
        let ratios: Vec<_> =
            written.filter(|metric| metric.ratio.is_some()).map(|metric| &metric.name).collect();
        let metrics =
            self.program.conduct.analysis.metrics.iter().filter(|plan| ratios.contains(&&plan.name));
        let failing: Vec<_> = metrics.filter(fails).collect();
        let Some(first) = failing.first() else { return Ok(None) };
        let now = first.floor.unwrap_or(0.0);
        let names: Vec<_> = failing.iter().map(|plan| plan.name.as_str()).collect();
        let floors = || FLOORS.into_iter().map(Percent::from_basis_points);
        let smaller = floors().rev().filter(|floor| floor.share() < now);
        let larger = floors().filter(|floor| floor.share() > now);
        for floor in smaller.chain(larger) {
            let (size, but) = if floor.share() < now {
                ("smaller", "")
            } else {
                ("larger", "; a canary with fewer events than that is never rolled back")
            };
            let text = format!("a {size} floor: {floor} for {}{but}", names.join(" and "));
            if let Some(found) = self.found(&self.with_floor(&names, floor), text)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// When nothing else does: half of the traffic says most, a longer step more, and a larger margin needs least.
    fn one_step(&self) -> Result<Option<Advice>> {
        let half =
            self.with_steps(vec![Step { weight: Percent::from_basis_points(5_000), ..Step::default() }]);
        let own = self.program.conduct.analysis.impact;
        for (spec, more) in [
            (half.clone(), ""),
            (
                with_impact(&half, Percent::FULL),
                ", with twice the events accepted: spec.analysis.maxServiceImpact 100%",
            ),
        ] {
            let Some(program) = self.compiled(&spec).filter(|program| program.conduct.analysis.impact >= own)
            else {
                continue;
            };
            let Some((changed, max)) = with_hold(&spec, &Forecast::new(&program, self.service)?) else {
                continue;
            };
            let text = format!("one step of 50%, and a longer one: spec.analysis.hold.max {max}{more}");
            if let Some(found) = self.found(&changed, text)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn more_requests(&self, forecast: &Forecast, alone: bool) -> Result<Option<Advice>> {
        let with = |times: f64| Service {
            rates: self
                .service
                .rates
                .iter()
                .map(|rate| Rate { requests_per_second: rate.requests_per_second * times, ..rate.clone() })
                .collect(),
            ..self.service.clone()
        };
        let (mut outside, mut inside) = (1.0_f64, 2.0);
        while !self.works(self.spec, &with(inside))? {
            (outside, inside) = (inside, 2.0 * inside);
            if inside > MOST_TIMES {
                return Ok(None);
            }
        }
        while inside > 1.05 * outside {
            let middle = (inside * outside).sqrt();
            if self.works(self.spec, &with(middle))? { inside = middle } else { outside = middle }
        }
        let rows = forecast.steps.iter().flat_map(|step| &step.metrics);
        let worst = rows.max_by_key(|row| (row.verdict, row.promote_seconds.unwrap_or(u64::MAX)));
        let Some(rate) =
            self.service.rates.iter().find(|rate| worst.is_some_and(|row| row.metric == rate.metric))
        else {
            return Ok(None);
        };
        let requests = two_digits(rate.requests_per_second * inside);
        let times = requests / rate.requests_per_second;
        let events =
            |times: f64| count(whole(two_digits(rate.requests_per_second * rate.share * times * 86_400.0)));
        let text = format!(
            "{}: {} has {} events a day; this Rollout needs {}, at {} requests a second",
            if alone { "this service has too little traffic for any steps" } else { "more traffic" },
            rate.metric,
            events(1.0),
            events(times),
            count(whole(requests)),
        );
        if !self.works(self.spec, &with(times))? {
            return Ok(None);
        }
        Ok(Some(Advice { text, patch: None, times_requests: Some(times) }))
    }
}

/// When twice the events of the metric are found first, and in which step; none when in no step within its `hold.max`.
fn soonest(forecast: &Forecast, metric: &str) -> Option<(u64, usize)> {
    let rows = forecast.steps.iter().flat_map(|step| step.metrics.iter().map(move |row| (step, row)));
    let times = rows.filter(|(_, row)| row.metric == metric).filter_map(|(step, row)| {
        let [twice, ..] = row.detect_seconds;
        Some((twice.filter(|time| *time <= step.hold_max_seconds)?, step.step))
    });
    times.min()
}

/// Judged, and not only on average.
fn passes(program: &Program, service: &Service, i: usize) -> Result<bool> {
    Ok(StepForecast::new(program, service, i)?.is_none_or(|step| step.verdict == Verdict::Judged))
}

fn with_impact(spec: &RolloutSpec, impact: Percent) -> RolloutSpec {
    let mut spec = spec.clone();
    spec.analysis.get_or_insert_default().max_service_impact = Some(impact);
    spec
}

/// With the shortest `hold.max` that does, rounded up to what people write.
fn with_hold(spec: &RolloutSpec, forecast: &Forecast) -> Option<(RolloutSpec, Duration)> {
    let mut longest = 0;
    for row in forecast.steps.iter().flat_map(|step| &step.metrics) {
        longest = longest.max(row.needs()?);
    }
    let round = if longest > 3 * 3_600 { 1_800 } else { 300 };
    let seconds = longest.div_ceil(round) * round;
    if seconds > LONGEST {
        return None;
    }
    let max = Duration::from_secs(seconds);
    let mut spec = spec.clone();
    let raise = |hold: &mut Hold| hold.max = Some(hold.max.unwrap_or(max).max(max));
    raise(spec.analysis.get_or_insert_default().hold.get_or_insert_default());
    let own = spec.strategy.canary.steps.iter_mut().flatten().filter_map(|step| step.hold.as_mut());
    own.filter(|hold| hold.max.is_some()).for_each(raise);
    Some((spec, max))
}

/// Rounded up, so that what did still does.
fn two_digits(x: f64) -> f64 {
    let unit = 10_f64.powf(x.log10().floor() - 1.0).max(1.0);
    (x / unit).ceil() * unit
}

/// A merge patch that makes the second of the first.
fn difference(before: &Value, after: &Value) -> Value {
    let (Value::Object(before), Value::Object(after)) = (before, after) else { return after.clone() };
    let gone = before.keys().filter(|key| !after.contains_key(*key)).map(|key| (key.clone(), Value::Null));
    let changed = after.iter().filter(|(key, value)| before.get(*key) != Some(value));
    let changed = changed.map(|(key, value)| {
        (key.clone(), before.get(key).map_or_else(|| value.clone(), |before| difference(before, value)))
    });
    Value::Object(gone.chain(changed).collect::<Map<_, _>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forecast::tests::{program, service, spec};

    fn merge(target: &mut Value, patch: &Value) {
        let (Value::Object(into), Value::Object(fields)) = (&mut *target, patch) else {
            *target = patch.clone();
            return;
        };
        for (key, value) in fields {
            if value.is_null() {
                into.remove(key);
            } else {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
    }

    fn searched(spec: &RolloutSpec, service: &Service) -> Vec<Advice> {
        let program = program(spec);
        let forecast = Forecast::new(&program, service).unwrap();
        Search { name: "shop", spec, program: &program, service }.advice(&forecast).unwrap()
    }

    /// Each advice, applied as its reader would, leads to a plan that needs none.
    fn tried(spec: &RolloutSpec, service: &Service) -> Vec<Advice> {
        let found = searched(spec, service);
        for one in &found {
            let mut changed = json!({"spec": spec});
            merge(&mut changed, one.patch.as_ref().unwrap_or(&Value::Null));
            let changed = if one.patch.is_some() {
                serde_json::from_value(changed["spec"].clone()).unwrap()
            } else {
                spec.clone()
            };
            let mut service = service.clone();
            for rate in &mut service.rates {
                rate.requests_per_second *= one.times_requests.unwrap_or(1.0);
            }
            let forecast = Forecast::new(&program(&changed), &service).unwrap();
            assert_eq!(forecast.verdict(), Verdict::Judged, "{one:?}: {forecast:?}");
        }
        found
    }

    /// What each begins with.
    fn told(found: &[Advice]) -> Vec<&str> {
        found.iter().filter_map(|one| one.text.split([':', ',']).next()).collect()
    }

    #[test]
    fn a_plan_that_works_needs_none() {
        assert_eq!(
            tried(&spec(json!([{"weight": "10%"}, {"weight": "50%"}]), &Value::Null), &service(400.0, 0.005)),
            []
        );
    }

    #[test]
    fn thin_traffic_has_its_remedies() {
        let of = |rps: f64, floor: &str| {
            let metrics = json!([{"name": "errors", "ratio": {"events": "a", "total": "b"}, "floor": floor}]);
            let found = tried(&spec(Value::Null, &json!({"metrics": metrics})), &service(rps, 0.005));
            told(&found).into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of(20.0, "0.1%"), ["longer steps", "a larger margin", "a larger floor", "more traffic"]);
        assert_eq!(of(2.0, "2%"), ["other steps", "longer steps", "a larger floor", "more traffic"]);
        assert_eq!(of(2.0, "10%"), ["other steps", "a smaller floor", "more traffic"]);
        assert_eq!(of(0.8, "0.1%"), ["one step of 50%", "more traffic"]);
        assert_eq!(of(0.01, "0.1%"), ["this service has too little traffic for any steps"]);
    }

    #[test]
    fn steps_of_their_own_hold_are_changed_too() {
        let steps = json!([{"weight": "10%", "hold": {"max": "4m"}}, {"weight": "50%"}]);
        let found = tried(&spec(steps, &Value::Null), &service(100.0, 0.005));
        let hold = found.iter().find(|one| one.text.contains("hold.max")).unwrap();
        assert_ne!(
            hold.patch.as_ref().unwrap()["spec"]["strategy"]["canary"]["steps"][0]["hold"]["max"],
            "4m"
        );
    }

    #[test]
    fn a_service_without_events_needs_a_floor() {
        let metrics = json!([{"name": "errors", "ratio": {"events": "a", "total": "b"}, "floor": "0%"}]);
        let spec = spec(json!([{"weight": "50%"}]), &json!({"metrics": metrics}));
        let found = tried(&spec, &service(200.0, 0.0));
        assert_eq!(told(&found), ["a larger floor"]);
        assert_eq!(tried(&spec, &service(0.0, 0.0)), []);
    }

    #[test]
    fn a_floor_that_hides_twice_the_events_is_named() {
        let sharper = |floor: &str, rps: f64| {
            let metrics = json!([{"name": "errors", "ratio": {"events": "a", "total": "b"}, "floor": floor}]);
            let spec = spec(Value::Null, &json!({"metrics": metrics}));
            let (program, service) = (program(&spec), service(rps, 0.005));
            let forecast = Forecast::new(&program, &service).unwrap();
            Search { name: "shop", spec: &spec, program: &program, service: &service }
                .sharper(&forecast)
                .unwrap()
        };
        let [one] = &sharper("0.1%", 20.0)[..] else { panic!("{:?}", sharper("0.1%", 20.0)) };
        assert_eq!(
            one.patch.as_ref().unwrap()["spec"]["analysis"]["metrics"][0]["floor"],
            "0.02%",
            "{one:?}"
        );
        assert_eq!(sharper("0%", 20.0), []);
        assert_eq!(sharper("0.1%", 2_000.0), []);
    }

    #[test]
    fn a_merge_patch_says_what_differs() {
        let before = json!({"a": 1, "b": {"c": [1, 2], "d": 2}, "e": 3});
        let after = json!({"a": 1, "b": {"c": [1], "d": 2}, "f": {"g": 1}});
        let patch = difference(&before, &after);
        assert_eq!(patch, json!({"b": {"c": [1]}, "e": null, "f": {"g": 1}}));
        let mut merged = before;
        merge(&mut merged, &patch);
        assert_eq!(merged, after);
    }
}

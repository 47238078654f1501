//! What to change when a rollout will not work: each change was tried in a forecast, and with it every step is judged.
//!
//! Takes the Rollout, what is known of the service and its forecast; gives changes, each alone enough, the least first.

use anyhow::Result;
use davylamp_api::RolloutSpec;
use davylamp_api::rollout::{Hold, Step};
use davylamp_api::scalar::{Duration, Percent};
use davylamp_engine::{MetricPlan, Program};
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::figures::{count, whole};
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

/// All that helps; empty when nothing must change.
pub(crate) fn advice(
    name: &str,
    spec: &RolloutSpec,
    program: &Program,
    service: &Service,
) -> Result<Vec<Advice>> {
    let forecast = Forecast::new(program, service)?;
    match forecast.verdict() {
        Verdict::Judged => return Ok(Vec::new()),
        Verdict::NotAnalysed => {
            let text = "write spec.analysis.metrics: without them each step passes as soon as its pods have been healthy for \
                        hold.min"
                .to_owned();
            return Ok(vec![Advice { text, patch: None, times_requests: None }]);
        }
        Verdict::OftenInconclusive | Verdict::Inconclusive | Verdict::Blind => {}
    }
    let search = Search { name, spec, program, service };
    let mut found = Vec::new();
    for change in [
        search.other_weights(),
        search.longer_hold(&forecast),
        search.more_impact(),
        search.other_floor(&forecast),
    ] {
        found.extend(change?);
    }
    if found.is_empty() {
        found.extend(search.one_step()?);
    }
    let alone = found.is_empty();
    found.extend(search.more_requests(&forecast, alone)?);
    Ok(found)
}

struct Search<'a> {
    name: &'a str,
    spec: &'a RolloutSpec,
    program: &'a Program,
    service: &'a Service,
}

impl Search<'_> {
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
        let patch = difference(&serde_json::to_value(self.spec)?, &serde_json::to_value(changed)?);
        Ok(Some(Advice { text, patch: Some(json!({"spec": patch})), times_requests: None }))
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
        let with = |percent: u16| {
            let mut spec = self.spec.clone();
            spec.analysis.get_or_insert_default().max_service_impact =
                Some(Percent::from_basis_points(100 * percent));
            spec
        };
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

    /// Of the metrics that fail; the nearest that does, and a smaller one rather than a larger one.
    fn other_floor(&self, forecast: &Forecast) -> Result<Option<Advice>> {
        let fails = |name: &str| {
            let rows = forecast.steps.iter().flat_map(|step| &step.metrics);
            rows.filter(|row| row.metric == name).any(|row| row.verdict > Verdict::Judged)
        };
        let failing = |plan: &&MetricPlan| fails(&plan.name);
        let Some(floor) = self.program.conduct.analysis.metrics.iter().find(failing).map(|plan| plan.floor)
        else {
            return Ok(None);
        };
        let now = floor.unwrap_or(0.0);
        let share = |bp: u16| Percent::from_basis_points(bp).share();
        let smaller = FLOORS.into_iter().rev().filter(|bp| share(*bp) < now);
        let larger = FLOORS.into_iter().filter(|bp| share(*bp) > now);
        for bp in smaller.chain(larger) {
            let floor = Percent::from_basis_points(bp);
            let mut changed = self.spec.clone();
            let mut names = Vec::new();
            for metric in changed.analysis.iter_mut().flat_map(|analysis| &mut analysis.metrics) {
                if fails(&metric.name) {
                    metric.floor = Some(floor);
                    names.push(metric.name.clone());
                }
            }
            let names = names.join(" and ");
            let text = if floor.share() < now {
                format!("a smaller floor: {floor} for {names}")
            } else {
                format!("a larger floor: {floor} for {names}; below it nothing is ever rolled back")
            };
            if let Some(found) = self.found(&changed, text)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    /// When nothing else does: half of the traffic says most, and a longer step more.
    fn one_step(&self) -> Result<Option<Advice>> {
        let half =
            self.with_steps(vec![Step { weight: Percent::from_basis_points(5_000), ..Step::default() }]);
        let Some(program) = self.compiled(&half) else { return Ok(None) };
        let Some((changed, max)) = with_hold(&half, &Forecast::new(&program, self.service)?) else {
            return Ok(None);
        };
        self.found(&changed, format!("one step of 50%, and a longer one: spec.analysis.hold.max {max}"))
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
        let worst = forecast.steps.iter().flat_map(|step| &step.metrics).max_by_key(|row| row.verdict);
        let Some(rate) =
            self.service.rates.iter().find(|rate| worst.is_some_and(|row| row.metric == rate.metric))
        else {
            return Ok(None);
        };
        let requests = two_digits(rate.requests_per_second * inside);
        let times = requests / rate.requests_per_second;
        let events =
            |times: f64| count(whole(two_digits(rate.requests_per_second * rate.rate * times * 86_400.0)));
        let text = format!(
            "{}: {} has {} events a day; this Rollout needs {}, which are {} requests a second",
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

/// Judged, and not only on average.
fn passes(program: &Program, service: &Service, i: usize) -> Result<bool> {
    Ok(StepForecast::new(program, service, i)?.is_none_or(|step| step.verdict == Verdict::Judged))
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

    /// Each advice, applied as its reader would, leads to a plan that needs none.
    fn tried(spec: &RolloutSpec, service: &Service) -> Vec<Advice> {
        let found = advice("shop", spec, &program(spec), service).unwrap();
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

    fn told(found: &[Advice]) -> Vec<&str> {
        found.iter().map(|one| one.text.split([':', '(']).next().unwrap_or_default()).collect()
    }

    #[test]
    fn a_plan_that_works_needs_none() {
        assert_eq!(
            tried(&spec(json!([{"weight": "10%"}, {"weight": "50%"}]), Value::Null), &service(400.0, 0.005)),
            []
        );
    }

    #[test]
    fn thin_traffic() {
        for rps in [0.2, 2.0, 20.0] {
            let found = tried(&spec(Value::Null, Value::Null), &service(rps, 0.005));
            assert!(!found.is_empty(), "{rps}");
        }
    }

    #[test]
    fn steps_of_their_own_hold_are_changed_too() {
        let steps = json!([{"weight": "10%", "hold": {"max": "4m"}}, {"weight": "50%"}]);
        let found = tried(&spec(steps, Value::Null), &service(100.0, 0.005));
        let hold = found.iter().find(|one| one.text.contains("hold.max")).unwrap();
        assert_ne!(
            hold.patch.as_ref().unwrap()["spec"]["strategy"]["canary"]["steps"][0]["hold"]["max"],
            "4m"
        );
    }

    #[test]
    fn a_service_without_events_needs_a_floor() {
        let metrics = json!([{"name": "errors", "ratio": {"events": "a", "total": "b"}, "floor": "0%"}]);
        let spec = spec(json!([{"weight": "50%"}]), json!({"metrics": metrics}));
        let found = tried(&spec, &service(200.0, 0.0));
        assert_eq!(told(&found), ["a larger floor"]);
        assert_eq!(tried(&spec, &service(0.0, 0.0)), []);
    }

    #[test]
    fn without_metrics_there_is_nothing_to_tune() {
        let spec = spec(json!([{"weight": "50%"}]), json!({"metrics": []}));
        let found = advice("shop", &spec, &program(&spec), &service(1.0, 0.0)).unwrap();
        assert_eq!(told(&found), ["write spec.analysis.metrics"]);
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

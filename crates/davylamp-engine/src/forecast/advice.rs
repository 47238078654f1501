//! What to change in a Rollout: when a step cannot be judged, and when twice the events are found nowhere.
//!
//! Takes the Rollout, what is known of the service and its forecast; gives changes, the least first. Each was tried in
//! a forecast of its own, and alone is enough.

use davylamp_api::rollout::{Analysis, Hold, Step, Strategy};
use davylamp_api::scalar::{Duration, Percent};
use davylamp_stats::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{Forecast, Rate, Service, StepForecast, Verdict};
use crate::figures::{about, count, two_digits_up, whole};
use crate::program::{Conduct, HOLD_MAX, MetricPlan};

/// A change that is enough.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Advice {
    /// In a sentence.
    pub text: String,
    /// Of the Rollout, for `kubectl patch --type merge`; none when another thing must change.
    pub patch: Option<Value>,
    /// So many times the requests of now, when that is what must change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub times_requests: Option<f64>,
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

/// What may be changed of a spec.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Written {
    /// How a release goes.
    pub strategy: Strategy,
    /// What is measured and promised, with metrics only.
    pub analysis: Analysis,
}

/// What is changed, and for whom.
#[derive(Debug)]
pub struct Search<'a> {
    /// As the user has it.
    pub written: &'a Written,
    /// The same, as it is carried out.
    pub conduct: &'a Conduct,
    /// Pods that carry the full traffic.
    pub size: i32,
    /// What is known of the service.
    pub service: &'a Service,
}

impl Search<'_> {
    /// Changes with which each step is judged, at most so many; none when it is already, when nothing is compared, or when
    /// nothing helps. Takes about a millisecond for each step and metric of each change that is tried, some twenty a step.
    ///
    /// # Errors
    /// Rates that are none.
    pub fn advice(&self, forecast: &Forecast, most: usize) -> Result<Vec<Advice>, Error> {
        let mut found = Vec::new();
        if matches!(forecast.verdict(), Verdict::Judged | Verdict::NotAnalysed) || most == 0 {
            return Ok(found);
        }
        let changes: [&dyn Fn() -> Result<Option<Advice>, Error>; 4] =
            [&|| self.other_weights(), &|| self.longer_hold(forecast), &|| self.more_impact(), &|| {
                self.other_floor(forecast)
            }];
        for change in changes {
            found.extend(change()?);
            if found.len() == most {
                return Ok(found);
            }
        }
        if found.is_empty() {
            found.extend(self.one_step()?);
        }
        if found.len() < most {
            let alone = found.is_empty();
            found.extend(self.more_requests(forecast, alone)?);
        }
        Ok(found)
    }

    /// Floors with which a step finds twice the events of a metric, where none does now; they make nothing worse.
    ///
    /// # Errors
    /// Rates that are none.
    pub fn sharper(&self, forecast: &Forecast) -> Result<Vec<Advice>, Error> {
        let mut found = Vec::new();
        for MetricPlan { name, floor, .. } in &self.conduct.analysis.metrics {
            let Some(now) = floor.filter(|_| forecast.soonest(name).is_none()) else { continue };
            for floor in
                FLOORS.into_iter().rev().map(Percent::from_basis_points).filter(|floor| floor.share() < now)
            {
                let changed = self.with_floor(&[name], floor);
                let Some(conduct) = self.compiled(&changed) else { continue };
                let then = Forecast::new(&conduct, self.size, self.service)?;
                let Some((time, step)) = then.soonest(name).filter(|_| then.verdict() <= forecast.verdict())
                else {
                    continue;
                };
                let text = format!(
                    "Twice the events of {name} are found in no step; with the floor {floor} step {step} finds them in {}.",
                    about(Some(time))
                );
                found.push(self.change(&changed, text));
                break;
            }
        }
        Ok(found)
    }

    /// The engine's own reading of a changed spec, with the scrapes of this one.
    fn compiled(&self, spec: &Written) -> Option<Conduct> {
        let Conduct { analysis, learnt, .. } = self.conduct;
        Conduct::compile(&spec.strategy, &spec.analysis, analysis.sampling, learnt).ok()
    }

    fn works(&self, spec: &Written, service: &Service) -> Result<bool, Error> {
        let Some(conduct) = self.compiled(spec) else { return Ok(false) };
        for i in 0..conduct.steps.len() {
            if !StepForecast::is_judged(&conduct, self.size, service, i)? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn found(&self, changed: &Written, text: String) -> Result<Option<Advice>, Error> {
        if !self.works(changed, self.service)? {
            return Ok(None);
        }
        Ok(Some(self.change(changed, text)))
    }

    fn change(&self, changed: &Written, text: String) -> Advice {
        let patch = difference(&as_json(self.written), &as_json(changed));
        Advice { text, patch: Some(json!({"spec": patch})), times_requests: None }
    }

    /// As they are written, or the defaults.
    fn steps(&self) -> Vec<Step> {
        let written = self.written.strategy.canary.steps.clone();
        let default =
            || self.conduct.steps.iter().map(|step| Step { weight: step.weight, ..Step::default() });
        written.unwrap_or_else(|| default().collect())
    }

    fn with_steps(&self, steps: Vec<Step>) -> Written {
        let mut spec = self.written.clone();
        spec.strategy.canary.steps = Some(steps);
        spec
    }

    /// The smallest weights that do; a step for which there is none is left out.
    fn other_weights(&self) -> Result<Option<Advice>, Error> {
        let mut steps = self.steps();
        let mut i = 0;
        while i < steps.len() {
            let judged = |steps: &[Step]| -> Result<bool, Error> {
                let Some(conduct) = self.compiled(&self.with_steps(steps.to_vec())) else { return Ok(false) };
                let before = i == 0 || StepForecast::is_judged(&conduct, self.size, self.service, i - 1)?;
                Ok(before && StepForecast::is_judged(&conduct, self.size, self.service, i)?)
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

    fn longer_hold(&self, forecast: &Forecast) -> Result<Option<Advice>, Error> {
        let Some((changed, max)) = with_hold(self.written, forecast) else { return Ok(None) };
        // Where the steps are expanded, each has what is the default.
        let default = self.written.analysis.hold.as_ref().and_then(|hold| hold.max).unwrap_or(HOLD_MAX);
        let own =
            |step: &Step| step.hold.as_ref().and_then(|hold| hold.max).is_some_and(|max| max != default);
        let own = self.steps().iter().any(own);
        let own = if own { ", and the same for steps with a hold.max of their own" } else { "" };
        let text = format!("longer steps: spec.analysis.hold.max {max}{own}");
        self.found(&changed, text)
    }

    fn more_impact(&self) -> Result<Option<Advice>, Error> {
        let with = |percent: u16| with_impact(self.written, Percent::from_basis_points(100 * percent));
        let now = whole((100.0 * self.conduct.analysis.impact).floor());
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

    fn with_floor(&self, names: &[&str], floor: Percent) -> Written {
        let mut spec = self.written.clone();
        for metric in &mut spec.analysis.metrics {
            if metric.ratio.is_some() && names.contains(&metric.name.as_str()) {
                metric.floor = Some(floor);
            }
        }
        spec
    }

    /// Of the metrics that fail; the nearest that does, and a smaller one rather than a larger one.
    fn other_floor(&self, forecast: &Forecast) -> Result<Option<Advice>, Error> {
        let rows = || forecast.steps.iter().flat_map(|step| &step.metrics);
        let fails =
            |plan: &&MetricPlan| rows().any(|row| row.metric == plan.name && row.verdict > Verdict::Judged);
        let written = self.written.analysis.metrics.iter();
        let ratios: Vec<_> =
            written.filter(|metric| metric.ratio.is_some()).map(|metric| &metric.name).collect();
        let metrics = self.conduct.analysis.metrics.iter().filter(|plan| ratios.contains(&&plan.name));
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
    fn one_step(&self) -> Result<Option<Advice>, Error> {
        let half =
            self.with_steps(vec![Step { weight: Percent::from_basis_points(5_000), ..Step::default() }]);
        let own = self.conduct.analysis.impact;
        for (spec, more) in [
            (half.clone(), ""),
            (
                with_impact(&half, Percent::FULL),
                ", with twice the events accepted: spec.analysis.maxServiceImpact 100%",
            ),
        ] {
            let Some(conduct) = self.compiled(&spec).filter(|conduct| conduct.analysis.impact >= own) else {
                continue;
            };
            let Some((changed, max)) = with_hold(&spec, &Forecast::new(&conduct, self.size, self.service)?)
            else {
                continue;
            };
            let text = format!("one step of 50%, and a longer one: spec.analysis.hold.max {max}{more}");
            if let Some(found) = self.found(&changed, text)? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    fn more_requests(&self, forecast: &Forecast, alone: bool) -> Result<Option<Advice>, Error> {
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
        while !self.works(self.written, &with(inside))? {
            (outside, inside) = (inside, 2.0 * inside);
            if inside > MOST_TIMES {
                return Ok(None);
            }
        }
        while inside > 1.05 * outside {
            let middle = (inside * outside).sqrt();
            if self.works(self.written, &with(middle))? { inside = middle } else { outside = middle }
        }
        let rows = forecast.steps.iter().flat_map(|step| &step.metrics);
        let worst = rows.max_by_key(|row| (row.verdict, row.promote_seconds.unwrap_or(u64::MAX)));
        let Some(rate) =
            self.service.rates.iter().find(|rate| worst.is_some_and(|row| row.metric == rate.metric))
        else {
            return Ok(None);
        };
        // Rounded up, so that what did still does.
        let requests = two_digits_up(rate.requests_per_second * inside);
        let times = requests / rate.requests_per_second;
        let events = |times: f64| {
            count(whole(two_digits_up(rate.requests_per_second * rate.share * times * 86_400.0)))
        };
        let text = format!(
            "{}: {} has {} events a day; this Rollout needs {}, at {} requests a second",
            if alone { "this service has too little traffic for any steps" } else { "more traffic" },
            rate.metric,
            events(1.0),
            events(times),
            count(whole(requests)),
        );
        if !self.works(self.written, &with(times))? {
            return Ok(None);
        }
        Ok(Some(Advice { text, patch: None, times_requests: Some(times) }))
    }
}

fn with_impact(spec: &Written, impact: Percent) -> Written {
    let mut spec = spec.clone();
    spec.analysis.max_service_impact = Some(impact);
    spec
}

/// With the shortest `hold.max` that does, rounded up to what people write.
fn with_hold(spec: &Written, forecast: &Forecast) -> Option<(Written, Duration)> {
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
    raise(spec.analysis.hold.get_or_insert_default());
    let own = spec.strategy.canary.steps.iter_mut().flatten().filter_map(|step| step.hold.as_mut());
    own.filter(|hold| hold.max.is_some()).for_each(raise);
    Some((spec, max))
}

/// Null of what cannot be written, which is nothing that was read.
fn as_json(written: &Written) -> Value {
    serde_json::to_value(written).unwrap_or_default()
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
    use crate::forecast::tests::{conduct, service, written};

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

    fn searched(spec: &Written, service: &Service) -> Vec<Advice> {
        let conduct = conduct(spec);
        let forecast = Forecast::new(&conduct, 10, service).unwrap();
        Search { written: spec, conduct: &conduct, size: 10, service }.advice(&forecast, usize::MAX).unwrap()
    }

    /// Each advice, applied as its reader would, leads to a plan that needs none.
    fn tried(spec: &Written, service: &Service) -> Vec<Advice> {
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
            let forecast = Forecast::new(&conduct(&changed), 10, &service).unwrap();
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
            tried(
                &written(json!([{"weight": "10%"}, {"weight": "50%"}]), &Value::Null),
                &service(400.0, 0.005)
            ),
            []
        );
    }

    #[test]
    fn thin_traffic_has_its_remedies() {
        let of = |rps: f64, floor: &str| {
            let metrics = json!([{"name": "errors", "ratio": {"events": "a", "total": "b"}, "floor": floor}]);
            let found = tried(&written(Value::Null, &json!({"metrics": metrics})), &service(rps, 0.005));
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
        let found = tried(&written(steps, &Value::Null), &service(100.0, 0.005));
        let hold = found.iter().find(|one| one.text.contains("hold.max")).unwrap();
        assert_ne!(
            hold.patch.as_ref().unwrap()["spec"]["strategy"]["canary"]["steps"][0]["hold"]["max"],
            "4m"
        );
    }

    #[test]
    fn a_service_without_events_needs_a_floor() {
        let metrics = json!([{"name": "errors", "ratio": {"events": "a", "total": "b"}, "floor": "0%"}]);
        let spec = written(json!([{"weight": "50%"}]), &json!({"metrics": metrics}));
        let found = tried(&spec, &service(200.0, 0.0));
        assert_eq!(told(&found), ["a larger floor"]);
        assert_eq!(tried(&spec, &service(0.0, 0.0)), []);
    }

    #[test]
    fn a_floor_that_hides_twice_the_events_is_named() {
        let sharper = |floor: &str, rps: f64| {
            let metrics = json!([{"name": "errors", "ratio": {"events": "a", "total": "b"}, "floor": floor}]);
            let spec = written(Value::Null, &json!({"metrics": metrics}));
            let (conduct, service) = (conduct(&spec), service(rps, 0.005));
            let forecast = Forecast::new(&conduct, 10, &service).unwrap();
            Search { written: &spec, conduct: &conduct, size: 10, service: &service }
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

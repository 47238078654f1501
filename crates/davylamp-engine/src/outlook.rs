//! What the condition `AnalysisReady` says of a run: whether its steps can be judged with the traffic that there is, in the words
//! of the plan. Found when a run begins, from the history of the stable pods, and again when the traffic is another one.

use davylamp_api::rollout::{Goal, Step};
use davylamp_api::run::Calibrated;
use davylamp_api::scalar::Duration;
use davylamp_api::status::Outlook;

use crate::decision::MetricQuery;
use crate::explain::bounded;
use crate::figures::{about, requests, two_digits};
use crate::fold::{Counted, Fold, rounded};
use crate::forecast::{ASSUMED, Forecast, Rate, Search, Service, TAIL, Verdict, Written, rest};
use crate::pass::Pass;
use crate::program::{Conduct, Exposure, MetricPlan};

/// Traffic that was watched for less than this says little, ms.
const WATCHED: i64 = 300_000;
/// So many times as much, or as little, is another traffic.
const ANOTHER: f64 = 2.0;
/// Pods are taken to need so long to start.
const POD_START: Duration = Duration::from_secs(10);
/// Advice that a condition has room for.
const MOST_ADVICE: usize = 2;

/// Changes are looked for where that takes little time: for so many verdicts, one a step and metric.
const MOST_VERDICTS: usize = 40;

/// What is known now; what was known before unless the traffic has become another.
pub(crate) fn of(pass: &Pass<'_>, fold: &Fold<'_>) -> Option<Outlook> {
    let before = pass.status.analysis.as_ref().and_then(|analysis| analysis.outlook.clone());
    let conduct = pass.conduct?;
    let compared = compared(conduct, pass);
    let seen = fold.counted().find(|(plan, _)| tells_traffic(plan));
    let seen = seen.and_then(|(plan, counted)| Some((&plan.name, watched(&counted)? / compared)));
    let usual = |name: &str| conduct.learnt.get(name).and_then(usual);
    let times = seen.and_then(|(name, seen)| Some(seen / usual(name)?.0));
    let said = before.as_ref().map(|outlook| outlook.requests_per_second);
    let is_another = |rate: f64, said: f64| rate > ANOTHER * said || ANOTHER * rate < said;
    match (said, seen) {
        (Some(said), Some((_, seen))) if is_another(seen, said) => {}
        (Some(_), _) => return before,
        (None, _) => {}
    }

    // What was seen just now says more about the traffic than what is usual, when the two are far from each other.
    let times = times.filter(|times| is_another(*times, 1.0)).unwrap_or(1.0);
    let rates = fold.counted().map(|(plan, counted)| {
        let (per_second, share) = match usual(&plan.name) {
            // Pods are not more for more requests.
            Some(known) if plan.exposure == Exposure::PodSeconds => known,
            Some((per_second, share)) => (per_second * times, share),
            None if plan.decides() => (watched(&counted)? / compared, share_of(&counted)),
            None => (0.0, None),
        };
        Some(rate(plan, per_second, share))
    });
    let service = Service { rates: rates.collect::<Option<_>>()?, pod_start: POD_START };
    let requests_per_second = match seen {
        Some((_, seen)) => Some(seen),
        None => traffic(conduct, &service),
    };
    let (judged, text) = words(conduct, pass.size().max(1), &service)?;
    let requests_per_second = rounded(requests_per_second.unwrap_or(0.0));
    Some(Outlook { requests_per_second, judged, text: bounded(text, 900) })
}

/// Its exposure is the requests.
fn tells_traffic(plan: &MetricPlan) -> bool {
    plan.decides() && plan.counts_requests()
}

/// All requests a second, if a metric counts them.
fn traffic(conduct: &Conduct, service: &Service) -> Option<f64> {
    let mut metrics = service.rates.iter().zip(&conduct.analysis.metrics);
    metrics.find(|(_, plan)| tells_traffic(plan)).map(|(rate, _)| rate.requests_per_second)
}

/// The share of the traffic that both cohorts get in this step.
fn compared(conduct: &Conduct, pass: &Pass<'_>) -> f64 {
    let weight = pass.weight();
    let step = pass.status.step.as_ref().and_then(|step| usize::try_from(step.index).ok()?.checked_sub(1));
    let replicas = step.and_then(|step| conduct.steps.get(step)).and_then(|step| step.replicas);
    let step = Step { weight, replicas, ..Step::default() };
    (weight.share() + rest(&conduct.analysis, pass.size(), &step)).clamp(0.01, 1.0)
}

/// Exposure a second of the stable pods, and events for it, before the run.
fn usual(learnt: &Calibrated) -> Option<(f64, Option<f64>)> {
    learnt.per_second.filter(|rate| rate.is_finite() && *rate > 0.0).map(|rate| (rate, learnt.rate))
}

/// Exposure a second of both cohorts in this step.
fn watched(counted: &Counted) -> Option<f64> {
    let all = counted.canary.exposure + counted.baseline.exposure;
    #[allow(clippy::cast_precision_loss, reason = "a time in ms")]
    (counted.ms >= WATCHED && all > 0.0).then(|| 1_000.0 * all / counted.ms as f64)
}

/// One event more than was seen, for few say little.
fn share_of(Counted { baseline, .. }: &Counted) -> Option<f64> {
    (baseline.exposure > 0.0).then(|| (baseline.events + 1.0) / baseline.exposure)
}

fn rate(plan: &MetricPlan, per_second: f64, share: Option<f64>) -> Rate {
    let (requests_per_second, share) = match (&plan.query, plan.exposure) {
        (MetricQuery::Distribution { .. }, _) => (per_second, TAIL),
        // Any exposure does, for only the number of events counts.
        (_, Exposure::Traffic) => (per_second * share.unwrap_or(0.0) / ASSUMED, ASSUMED),
        (_, Exposure::Counted | Exposure::PodSeconds) => {
            (per_second, share.unwrap_or_else(|| plan.floor.unwrap_or(ASSUMED)).min(1.0))
        }
    };
    Rate { metric: plan.name.clone(), requests_per_second, share, from: String::new() }
}

/// Whether all steps can be judged, and what becomes of a good version and of a bad one.
fn words(conduct: &Conduct, size: i32, service: &Service) -> Option<(bool, String)> {
    let forecast = Forecast::new(conduct, size, service).ok()?;
    let traffic = traffic(conduct, service)
        .map(|rate| format!("at about {} a second ", requests(two_digits(rate))))
        .unwrap_or_default();
    let deciding = || conduct.analysis.metrics.iter().filter(|plan| plan.decides());
    if forecast.is_judged() {
        let total = about(forecast.total_seconds);
        let unless =
            if forecast.verdict() > Verdict::Judged { ", unless a step is inconclusive" } else { "" };
        let found = deciding().map(|plan| {
            let worse = match plan.goal {
                Goal::Lower => format!("twice the events of {}", plan.name),
                Goal::Higher => format!("half of the {}", plan.name),
            };
            match forecast.soonest(&plan.name) {
                Some((time, step)) => format!("{worse} is found after {} in step {step}", about(Some(time))),
                None => format!("{worse} is found in no step"),
            }
        });
        let found = found.collect::<Vec<_>>().join(", ");
        return Some((
            true,
            format!("{traffic}a good version is promoted after about {total}{unless}; {found}"),
        ));
    }
    let written = Written { strategy: conduct.strategy.clone(), analysis: conduct.written.clone() };
    let search = Search { written: &written, conduct, size, service };
    let small = conduct.steps.len() * deciding().count() <= MOST_VERDICTS;
    let most = if small { MOST_ADVICE } else { 0 };
    let advice: Vec<_> =
        search.advice(&forecast, most).unwrap_or_default().into_iter().map(|advice| advice.text).collect();
    let change = match &advice[..] {
        [] if !small => "`kubectl davylamp plan` looks for a change that helps.".to_owned(),
        [] => "No change of the Rollout was found that helps.".to_owned(),
        some => format!("To change: {}.", some.join("; or ")),
    };
    let on_inconclusive = conduct.analysis.on_inconclusive;
    let troubles: Vec<_> = forecast.steps.iter().flat_map(|step| step.troubles(on_inconclusive)).collect();
    Some((false, format!("{traffic}not all steps can be judged. {change} {}", troubles.join(" "))))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use davylamp_api::rollout::{Analysis, Strategy};
    use davylamp_api::run::Sampling;
    use serde_json::{Value, json};

    use super::*;

    fn said(steps: &Value, per_second: f64, metric: &Value) -> (bool, String) {
        let strategy: Strategy = serde_json::from_value(json!({
            "canary": {"steps": steps},
            "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": "shop"}]}}],
        }))
        .unwrap();
        let analysis: Analysis =
            serde_json::from_value(json!({"source": "default", "metrics": [metric]})).unwrap();
        let sampling = Sampling { scrape_interval: Duration::from_secs(15), delay: Duration::from_secs(15) };
        let conduct = Conduct::compile(&strategy, &analysis, Some(sampling), &BTreeMap::new()).unwrap();
        let rates = conduct.analysis.metrics.iter().map(|plan| rate(plan, per_second, Some(0.01))).collect();
        words(&conduct, 10, &Service { rates, pod_start: POD_START }).unwrap()
    }

    #[test]
    fn words_are_those_of_the_plan() {
        let errors = json!({"name": "errors", "ratio": {"events": "e", "total": "t"}});
        let steps = json!([{"weight": "20%"}, {"weight": "50%"}]);
        let (judged, text) = said(&steps, 213.0, &errors);
        assert!(judged, "{text}");
        assert!(
            text.starts_with("at about 210 requests a second a good version is promoted after about "),
            "{text}"
        );
        assert!(
            text.contains("; twice the events of errors is found after ") && text.ends_with(" in step 2"),
            "{text}"
        );

        let (judged, text) = said(&steps, 1.0, &errors);
        assert!(!judged, "{text}");
        for part in [
            "at about 1 request a second not all steps can be judged. To change: ",
            ". Step 1 ",
            "; after 1h the step pauses.",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }

        let orders = json!({"name": "orders", "count": {"events": "e", "exposure": "t"}, "goal": "higher"});
        let (_, text) = said(&steps, 500.0, &orders);
        assert!(text.contains("; half of the orders is found after "), "{text}");
    }
}

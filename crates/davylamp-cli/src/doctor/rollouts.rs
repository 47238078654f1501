//! Rollouts that are not as they should be. Takes them as they were read, gives a finding for each thing that is wrong
//! with some: what a controller says of a whole cluster is said once.

use std::collections::BTreeMap;
use std::time::Duration;

use davylamp_api::Instant;
use davylamp_api::conditions::{ConditionType, Reason};
use davylamp_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition as Told;
use davylamp_api::status::Phase;
use davylamp_engine::SUGGESTED;
use davylamp_engine::figures::about;
use kube::api::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::finding::{Affected, Check, Condition, Finding, Level, counted};

/// So many Rollouts are named.
const MOST: usize = 50;
/// A controller at work looks at a spec much sooner.
const SOON: Duration = Duration::from_mins(1);
/// Conditions whose message may be that of another.
const SUMMARIES: [ConditionType; 2] = [ConditionType::Stalled, ConditionType::Reconciling];

/// What is wrong: the worst first, for its level is the first field compared.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wrong {
    level: std::cmp::Reverse<Level>,
    condition: Option<Condition>,
    message: String,
}

pub(super) fn findings(rollouts: &[DynamicObject], within: Option<&str>, now: Instant) -> Vec<Finding> {
    let check = Check::Rollouts;
    let place = within.map(|name| format!(" in namespace {name}")).unwrap_or_default();
    if rollouts.is_empty() {
        return vec![Finding::ok(check, format!("none{place}"))];
    }
    let sick: Vec<_> = rollouts
        .iter()
        .map(|rollout| (rollout, wrongs(rollout, now)))
        .filter(|(_, wrongs)| !wrongs.is_empty())
        .collect();
    let (all, well) = (rollouts.len(), rollouts.len() - sick.len());
    let mut findings = Vec::new();
    if well > 0 {
        let of = if well == all { "all".to_owned() } else { format!("{well} of {all}") };
        findings.push(Finding::ok(check, format!("{of} as they should be{place}")));
    }
    let mut named: BTreeMap<Wrong, Vec<Affected>> = BTreeMap::new();
    for (rollout, wrongs) in sick.iter().take(MOST) {
        let metadata = &rollout.metadata;
        let [namespace, name] =
            [&metadata.namespace, &metadata.name].map(|text| text.clone().unwrap_or_default());
        for (wrong, since) in wrongs {
            let since_seconds = seconds(*since, now);
            let affected = Affected { namespace: namespace.clone(), name: name.clone(), since_seconds };
            named.entry(wrong.clone()).or_default().push(affected);
        }
    }
    findings.extend(named.into_iter().map(|(wrong, rollouts)| finding(wrong, rollouts)));
    if let Some(rest) = sick.get(MOST..).filter(|rest| !rest.is_empty()) {
        let worst =
            rest.iter().flat_map(|(_, wrongs)| wrongs).any(|(wrong, _)| wrong.level.0 == Level::Problem);
        let seen = format!("{} not as they should be", counted(rest.len(), "more Rollout"));
        let next = "look at one namespace at a time: kubectl davylamp doctor -n NAME";
        let make = if worst { Finding::problem } else { Finding::warning };
        findings.push(make(check, seen, next));
    }
    findings
}

/// "`AnalysisReady` is False (`SourceNotFound`): market/shop for 12m, market/blog for 3h", and its message.
fn finding(wrong: Wrong, rollouts: Vec<Affected>) -> Finding {
    let Wrong { level, condition, message } = wrong;
    let names = rollouts.iter().map(|Affected { namespace, name, since_seconds }| {
        format!("{namespace}/{name} for {}", about(Some(*since_seconds)))
    });
    let names = names.collect::<Vec<_>>().join(", ");
    let (seen, next) = match &condition {
        Some(Condition { kind, status, reason })
            if kind == ConditionType::Reconciling.as_str() && status == "True" =>
        {
            (format!("paused ({reason}): {names}"), message)
        }
        Some(Condition { kind, status, reason }) => {
            (format!("{kind} is {status} ({reason}): {names}"), message)
        }
        None => (format!("nobody looks at the spec as it is now: {names}"), message),
    };
    let make = if level.0 == Level::Problem { Finding::problem } else { Finding::warning };
    Finding { condition, rollouts, ..make(Check::Rollouts, seen, next) }
}

/// With the time since when; None when it is not told.
fn wrongs(rollout: &DynamicObject, now: Instant) -> Vec<(Wrong, Option<Instant>)> {
    let status = &rollout.data["status"];
    let phase: Phase = read(&status["phase"]).unwrap_or_default();
    let told: Vec<Told> = status["conditions"].as_array().into_iter().flatten().filter_map(read).collect();
    let wrong: Vec<_> = told.iter().filter_map(|told| Some((level(told, phase)?, told))).collect();
    // What only sums up what others say is told by those.
    let says_more = |(level, told): &(Level, &Told)| {
        !SUMMARIES.iter().any(|kind| kind.as_str() == told.type_)
            || !wrong.iter().any(|(other_level, other)| {
                other.type_ != told.type_
                    && other_level >= level
                    && !other.message.is_empty()
                    && told.message.contains(&other.message)
            })
    };
    let mut found: Vec<_> = wrong
        .iter()
        .filter(|one| says_more(one))
        .map(|(level, told)| {
            let condition = Condition {
                kind: told.type_.clone(),
                status: told.status.clone(),
                reason: told.reason.clone(),
            };
            let message = without_suggestion(&told.message).to_owned();
            let level = std::cmp::Reverse(*level);
            (Wrong { level, condition: Some(condition), message }, Some(told.last_transition_time.0))
        })
        .collect();
    if let Some(since) = unseen_since(rollout).filter(|since| seconds(Some(*since), now) >= SOON.as_secs()) {
        let level = std::cmp::Reverse(Level::Problem);
        let message = "is a controller at work? Then its log says what holds it up".to_owned();
        found.push((Wrong { level, condition: None, message }, Some(since)));
    }
    found
}

/// None when it is as it should be, or says nothing of its own.
fn level(told: &Told, phase: Phase) -> Option<Level> {
    let Told { type_, status, reason, .. } = told;
    let kind = ConditionType::ALL.iter().find(|kind| kind.as_str() == type_)?;
    let is = |reasons: &[Reason]| reasons.iter().any(|one| one.as_str() == reason);
    // What passes when pods and gateways have caught up.
    let passes = phase == Phase::Progressing
        && is(&[Reason::PodsNotReady, Reason::NoEndpoints, Reason::RouteNotEffective]);
    match (kind, status.as_str()) {
        (ConditionType::AnalysisReady, "False") if is(&[Reason::TooLittleTraffic]) => Some(Level::Warning),
        (ConditionType::Available | ConditionType::ServicesReady | ConditionType::TrafficReady, "False")
            if passes =>
        {
            Some(Level::Warning)
        }
        (
            ConditionType::Valid
            | ConditionType::Available
            | ConditionType::ServicesReady
            | ConditionType::TrafficReady
            | ConditionType::AnalysisReady,
            "False",
        )
        | (ConditionType::Stalled, "True") => Some(Level::Problem),
        (ConditionType::AnalysisReady, "True")
            if is(&[Reason::DuplicateTargets, Reason::LateSamples, Reason::TrafficSplit]) =>
        {
            Some(Level::Warning)
        }
        (ConditionType::Reconciling, "True") if phase == Phase::Paused => Some(Level::Warning),
        (ConditionType::Incident, "True") => Some(Level::Warning),
        // That it is not ready is what the others explain.
        _ => None,
    }
}

/// A manifest that the message has stands with the sources.
fn without_suggestion(message: &str) -> &str {
    let before = message.split_once(SUGGESTED).and_then(|(before, _)| before.rsplit_once("; "));
    before.map_or(message, |(before, _)| before)
}

/// When the spec was last written, where the status does not answer it yet: or a little later, never earlier.
fn unseen_since(rollout: &DynamicObject) -> Option<Instant> {
    let metadata = &rollout.metadata;
    let observed = rollout.data["status"]["observedGeneration"].as_i64().unwrap_or(-1);
    if observed >= metadata.generation? {
        return None;
    }
    let written = metadata.managed_fields.iter().flatten();
    let written = written.filter(|entry| entry.subresource.as_deref() != Some("status"));
    let written = written.filter_map(|entry| entry.time.as_ref()).map(|time| time.0).max();
    written.or_else(|| metadata.creation_timestamp.as_ref().map(|time| time.0))
}

fn seconds(since: Option<Instant>, now: Instant) -> u64 {
    let passed = since.map(|since| now.as_second().saturating_sub(since.as_second()));
    passed.and_then(|seconds| u64::try_from(seconds).ok()).unwrap_or(0)
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_value(value.clone()).ok()
}

/// For tests here and beside.
#[cfg(test)]
pub(super) fn rollout(namespace: &str, name: &str, phase: &str, conditions: &Value) -> DynamicObject {
    serde_json::from_value(serde_json::json!({
        "apiVersion": "davylamp.dev/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": name, "namespace": namespace, "generation": 1},
        "spec": {"analysis": {"source": "default"}},
        "status": {"observedGeneration": 1, "phase": phase, "conditions": conditions},
    }))
    .unwrap()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn now() -> Instant {
        "2026-01-01T12:00:00Z".parse().unwrap()
    }

    /// Each since an hour.
    fn told(conditions: &[(&str, &str, &str, &str)]) -> Value {
        let one = |(kind, status, reason, message): &(&str, &str, &str, &str)| {
            json!({"type": kind, "status": status, "reason": reason, "message": message,
                   "lastTransitionTime": "2026-01-01T11:00:00Z"})
        };
        conditions.iter().map(one).collect()
    }

    fn lines(findings: &[Finding]) -> Vec<(Level, &str, &str)> {
        findings.iter().map(|f| (f.level, f.seen.as_str(), f.next.as_str())).collect()
    }

    fn healthy(name: &str) -> DynamicObject {
        let conditions = told(&[
            ("Ready", "True", "Completed", "revision 1 carries all traffic"),
            ("Reconciling", "False", "Completed", ""),
            ("Stalled", "False", "Completed", ""),
            ("Valid", "True", "AsExpected", "the spec can be carried out"),
            ("AnalysisReady", "True", "AsExpected", "the metric source answers"),
        ]);
        rollout("market", name, "Healthy", &conditions)
    }

    const NOT_FOUND: &str = "MetricSource default does not exist: ask an admin to create it, or name another in \
        spec.analysis.source";

    #[test]
    fn those_that_are_well_are_only_counted() {
        assert_eq!(
            lines(&findings(&[], Some("market"), now())),
            [(Level::Ok, "none in namespace market", "")]
        );
        let all = [healthy("shop"), healthy("blog")];
        assert_eq!(lines(&findings(&all, None, now())), [(Level::Ok, "all as they should be", "")]);
    }

    #[test]
    fn what_many_have_is_told_once() {
        let with = |message: &str| told(&[("AnalysisReady", "False", "SourceNotFound", message)]);
        let suggests =
            format!("{NOT_FOUND}; http://prometheus.monitoring.svc:9090{SUGGESTED}{{kind: MetricSource}}");
        let all = [
            healthy("well"),
            rollout("market", "shop", "Healthy", &with(NOT_FOUND)),
            rollout("market", "blog", "Progressing", &with(&suggests)),
        ];
        let found = findings(&all, None, now());
        assert_eq!(
            lines(&found),
            [
                (Level::Ok, "1 of 3 as they should be", ""),
                (
                    Level::Problem,
                    "AnalysisReady is False (SourceNotFound): market/shop for 1h, market/blog for 1h",
                    NOT_FOUND
                ),
            ]
        );
        let names: Vec<_> =
            found[1].rollouts.iter().map(|one| (one.name.as_str(), one.since_seconds)).collect();
        assert_eq!(names, [("shop", 3_600), ("blog", 3_600)]);
    }

    #[test]
    fn a_summary_is_left_out_when_another_condition_says_it() {
        let invalid = told(&[
            ("Stalled", "True", "Completed", "Healthy. The spec is not valid: spec.service: write one"),
            ("Valid", "False", "InvalidSpec", "spec.service: write one"),
        ]);
        let found = findings(&[rollout("market", "shop", "Degraded", &invalid)], None, now());
        let valid = "Valid is False (InvalidSpec): market/shop for 1h";
        assert_eq!(lines(&found), [(Level::Problem, valid, "spec.service: write one")]);

        let rejected = told(&[("Stalled", "True", "Regression", "rolled back; apply another template")]);
        let found = findings(&[rollout("market", "shop", "Degraded", &rejected)], None, now());
        let stalled = "Stalled is True (Regression): market/shop for 1h";
        assert_eq!(lines(&found), [(Level::Problem, stalled, "rolled back; apply another template")]);
    }

    #[test]
    fn what_passes_by_itself_or_waits_for_a_word_is_a_warning() {
        for (phase, condition, level) in [
            ("Progressing", ("Available", "False", "PodsNotReady", "2 of 3 pods"), Some(Level::Warning)),
            ("Healthy", ("Available", "False", "PodsNotReady", "2 of 3 pods"), Some(Level::Problem)),
            ("Progressing", ("TrafficReady", "False", "RouteNotFound", "create it"), Some(Level::Problem)),
            ("Progressing", ("AnalysisReady", "False", "TooLittleTraffic", "wait"), Some(Level::Warning)),
            ("Progressing", ("AnalysisReady", "True", "DuplicateTargets", "remove"), Some(Level::Warning)),
            ("Progressing", ("AnalysisReady", "True", "NotAnalysed", "no metrics"), None),
            ("Progressing", ("Reconciling", "True", "Collecting", "step 1"), None),
            ("Paused", ("Reconciling", "True", "Approval", "promote"), Some(Level::Warning)),
            ("Progressing", ("Incident", "True", "Incident", "held"), Some(Level::Warning)),
            ("Progressing", ("Ready", "False", "Collecting", "step 1"), None),
            ("Progressing", ("NewInTwoYears", "False", "Some", ""), None),
        ] {
            let found = findings(&[rollout("market", "shop", phase, &told(&[condition]))], None, now());
            let worst = found.iter().map(|finding| finding.level).max().filter(|level| *level != Level::Ok);
            assert_eq!(worst, level, "{phase} {condition:?}");
        }
    }

    #[test]
    fn a_spec_that_nobody_looks_at_is_a_problem_after_a_minute() {
        let written = |time: &str, generation: i64| {
            let mut rollout = healthy("shop");
            rollout.metadata.generation = Some(generation);
            let by = |time: &str, subresource: &str| json!({"manager": "a", "time": time, "subresource": subresource});
            let entries = json!([by(time, ""), by("2026-01-01T11:59:59Z", "status")]);
            rollout.metadata.managed_fields = serde_json::from_value(entries).unwrap();
            findings(&[rollout], None, now())
        };
        assert_eq!(written("2026-01-01T11:00:00Z", 1)[0].level, Level::Ok);
        assert_eq!(written("2026-01-01T11:59:30Z", 2)[0].level, Level::Ok);
        let found = written("2026-01-01T11:55:00Z", 2);
        assert_eq!(found[0].seen, "nobody looks at the spec as it is now: market/shop for 5m");
        assert_eq!(found[0].level, Level::Problem);
    }

    #[test]
    fn fifty_are_named_and_the_rest_is_counted() {
        let with = |i: usize| {
            let conditions = told(&[("Valid", "False", "InvalidSpec", "spec.service: write one")]);
            rollout("market", &format!("shop-{i}"), "Degraded", &conditions)
        };
        let found = findings(&(0..62).map(with).collect::<Vec<_>>(), None, now());
        let [named, rest] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!(named.rollouts.len(), 50);
        assert_eq!(
            (rest.level, rest.seen.as_str()),
            (Level::Problem, "12 more Rollouts not as they should be")
        );
    }
}

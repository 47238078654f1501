//! What users read: messages of transitions, conditions and phase. Says what was observed, what it was compared with,
//! and what to do next; decides nothing.

use davylamp_api::conditions::{self, ConditionType, Reason, Wanted};
use davylamp_api::rollout::RouteRef;
use davylamp_api::run::{Cohort, ExpressionRecord, GaugeRecord, Interval, MetricRecord, SplitRecord};
use davylamp_api::scalar::Percent;
use davylamp_api::status::{IncidentStatus, Phase, RolloutStatus, Stage, StateName, Verdict};

use crate::fold::Fold;
use crate::observed::{Action, Role, Source, Suggested, Template};
use crate::pass::{Pass, later};
use crate::program::{Conduct, GaugePlan, MetricPlan, Plan};
use crate::rest::services_ready;
use crate::{background, figures, incidents};

/// At most so many bytes, cut at a character.
pub(crate) fn bounded(text: String, most: usize) -> String {
    if text.len() <= most {
        return text;
    }
    let cut = (0..=most.saturating_sub(3)).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
    format!("{}...", &text[..cut])
}

/// "1 pod is", "3 pods are".
pub(crate) fn pods(n: i32) -> String {
    if n == 1 { "1 pod is".to_owned() } else { format!("{n} pods are") }
}

/// 8210 as "8,210".
fn count(n: f64) -> String {
    figures::count(figures::whole(n))
}

fn ratio(n: f64) -> String {
    if n >= 9.95 { format!("{n:.0}x") } else { format!("{n:.2}x") }
}

fn interval(interval: Option<Interval>, alpha: f64) -> String {
    let ends = interval.map(|interval| (interval.lower, interval.upper)).unwrap_or_default();
    let range = match ends {
        (Some(lower), Some(upper)) => format!("{lower:.2}-{upper:.2}"),
        (Some(lower), None) => format!("above {lower:.2}"),
        (None, Some(upper)) => format!("below {upper:.2}"),
        (None, None) => return String::new(),
    };
    format!(" ({range}, {:.0} %)", (1.0 - 2.0 * alpha) * 100.0)
}

/// "errors 2.30x baseline (1.40-3.90, 98 %): 41 of 8,210 against 66 of 30,400; tolerated 1.10x". Of a distribution the part
/// above a bound is counted.
fn sentence(m: &MetricRecord, plan: &MetricPlan, alpha: f64) -> String {
    let above = m.above.map(|above| format!(" above {above}")).unwrap_or_default();
    let compared = match m.ratio {
        Some(n) => format!(" {} baseline{}", ratio(n), interval(m.interval, alpha)),
        None if m.canary.events > 0.0 => format!(" only in the canary{}", interval(m.interval, alpha)),
        None => String::new(),
    };
    let informational = if m.weight > 0.0 { "" } else { " (informational)" };
    let counted = [m.canary, m.baseline].map(|cohort| {
        let Cohort { events, exposure } = cohort;
        if plan.requests {
            // What is exposed is a share of the traffic.
            let share = exposure / (m.canary.exposure + m.baseline.exposure).max(f64::MIN_POSITIVE);
            return format!("{} requests for {} of the traffic", count(events), self::share(share));
        }
        format!("{} of {}", count(events), count(exposure))
    });
    let told = plan.told.as_ref().map(|told| format!(" ({told}: no allowance for how pods differ)"));
    format!(
        "{}{above}{compared}: {}; tolerated {}{}{informational}",
        m.name,
        counted.join(" against "),
        ratio(m.tolerated),
        told.unwrap_or_default(),
    )
}

/// "p99 0.62, where at most 0.50 is wanted (2 of 3 in a row outside, 40 values; by a threshold, without a promised error
/// rate)".
fn expression_sentence(e: &ExpressionRecord) -> String {
    let ExpressionRecord { name, value, max, min, outside, consecutive, values, informational, .. } = e;
    let value = value.map_or_else(|| "has no value".to_owned(), quantity);
    let limits: Vec<_> = [("at most", max), ("at least", min)]
        .iter()
        .filter_map(|(word, limit)| Some(format!("{word} {}", quantity((**limit)?))))
        .collect();
    let informational = if *informational { "; informational" } else { "" };
    format!(
        "{name} {value}, where {} is wanted ({outside} of {consecutive} in a row outside, {values} values; by a threshold, \
         without a promised error rate{informational})",
        limits.join(" and ")
    )
}

/// "memory 1.52x baseline: 412M against 271M in 3 and 9 pods; p 0.00002, rolls back at 0.00008; below 1.71x with 95 %;
/// tolerated 1.10x".
fn gauge_sentence(g: &GaugeRecord, plan: &GaugePlan, fresh: bool) -> String {
    let name = &g.name;
    let [canary_pods, baseline_pods] = g.pods;
    let growth = plan.compare == davylamp_stats::Gauge::Growth;
    let (Some(canary), Some(baseline)) = (g.canary, g.baseline) else {
        return format!("{name}: not yet looked at in {canary_pods} and {baseline_pods} pods");
    };
    let compared = if growth {
        format!("{name} grew by {} against {}", quantity(canary), quantity(baseline))
    } else if baseline > 0.0 {
        let (canary_is, baseline_is) = (quantity(canary), quantity(baseline));
        format!("{name} {} baseline: {canary_is} against {baseline_is}", ratio(canary / baseline))
    } else {
        format!("{name} {} against {}", quantity(canary), quantity(baseline))
    };
    let p = g.p.map(|p| if p < 1e-6 { "; p below 0.000001".to_owned() } else { format!("; p {p:.6}") });
    let p = p.unwrap_or_default();
    let limit = match g.p {
        Some(_) if g.limit > 0.0 && g.look <= g.looks => format!(", rolls back at {:.6}", g.limit),
        Some(_) if g.limit > 0.0 => format!(", rolls back no more after {} looks", g.looks),
        Some(_) | None => String::new(),
    };
    let upper = g.upper.filter(|_| !growth);
    let upper =
        upper.map(|upper| format!("; below {} with {:.0} %", ratio(upper), (1.0 - plan.beta) * 100.0));
    let meaning = match (growth, g.p) {
        (true, _) if !plan.decides && !fresh => " (informational: the baseline's pods are of another age)",
        (_, _) if !plan.decides => " (informational)",
        (_, None) => " (informational: one pod in each cohort)",
        (true, Some(_)) if g.verdict == Verdict::Pass => " (no evidence of harm: a growth shows no more)",
        (false, Some(_)) if g.verdict == Verdict::Pass && canary_pods < 3 => {
            " (no evidence of harm: fewer than 3 pods show no more)"
        }
        (_, Some(_)) => "",
    };
    format!(
        "{compared} in {canary_pods} and {baseline_pods} pods{p}{limit}{}; tolerated {}{meaning}",
        upper.unwrap_or_default(),
        ratio(g.tolerated),
    )
}

/// 271,234,567 as "271M".
fn quantity(n: f64) -> String {
    let (n, unit) = [(1e9, "G"), (1e6, "M"), (1e3, "k")]
        .into_iter()
        .find(|(unit, _)| n.abs() >= *unit)
        .map_or((n, ""), |(unit, name)| (n / unit, name));
    match n.abs() {
        0.0 => "0".to_owned(),
        size if size < 0.095 => format!("{n:.6}"),
        size if size < 9.95 => format!("{n:.2}{unit}"),
        _ => format!("{n:.0}{unit}"),
    }
}

/// "below 3.00x", or with names where margins differ: "errors below 3.00x and orders above 0.70x".
fn margins(records: &[MetricRecord]) -> String {
    let side = |m: &MetricRecord| {
        let side = if m.margin < 1.0 { "above" } else { "below" };
        format!("{side} {}", ratio(m.margin))
    };
    let deciding: Vec<_> = records.iter().filter(|m| m.weight > 0.0).collect();
    match deciding.split_first() {
        Some((first, rest)) if rest.iter().all(|m| side(m) == side(first)) => side(first),
        Some(_) => {
            deciding.iter().map(|m| format!("{} {}", m.name, side(m))).collect::<Vec<_>>().join(" and ")
        }
        None => String::new(),
    }
}

fn sentences(pass: &Pass<'_>, only: Option<&[usize]>) -> String {
    let (Some(fold), Some(conduct)) = (&pass.fold, pass.conduct) else { return "no metrics".to_owned() };
    let records = fold.records();
    let chosen = records.iter().enumerate().filter(|(i, _)| only.is_none_or(|only| only.contains(i)));
    let chosen = chosen.filter_map(|(i, m)| Some((m, conduct.analysis.metrics.get(i)?)));
    let metrics = chosen.map(|(m, plan)| sentence(m, plan, conduct.analysis.alpha));
    let gauges = if only.is_none() { gauge_sentences(pass, |_| true) } else { Vec::new() };
    let expressions = if only.is_none() { fold.expressions() } else { Vec::new() };
    let expressions = expressions.iter().map(expression_sentence);
    metrics.chain(gauges).chain(expressions).collect::<Vec<_>>().join("; ")
}

/// Why an expression rolls back.
pub(crate) fn exceeded(pass: &Pass<'_>, which: &[usize]) -> String {
    let records = pass.fold.as_ref().map(Fold::expressions).unwrap_or_default();
    let sentences: Vec<_> = which.iter().filter_map(|i| records.get(*i)).map(expression_sentence).collect();
    format!("{}: all traffic goes back", sentences.join("; "))
}

fn gauge_sentences(pass: &Pass<'_>, which: impl Fn(&GaugeRecord) -> bool) -> Vec<String> {
    let (Some(fold), Some(conduct)) = (&pass.fold, pass.conduct) else { return Vec::new() };
    let gauges = fold.gauges().into_iter().zip(&conduct.analysis.gauges);
    let fresh = conduct.analysis.fresh;
    gauges.filter(|(g, _)| which(g)).map(|(g, plan)| gauge_sentence(&g, plan, fresh)).collect()
}

pub(crate) fn regression(pass: &Pass<'_>) -> String {
    if !pass.fold.as_ref().is_some_and(Fold::counts_regressed) {
        let gauges = gauge_sentences(pass, |g| g.verdict == Verdict::Regressed);
        return format!("{}: all traffic goes back", gauges.join("; "));
    }
    let culprits = pass.fold.as_ref().map(Fold::culprits).unwrap_or_default();
    let alpha = pass.conduct.map_or(0.01, |c| c.analysis.alpha);
    format!(
        "{}; evidence 100 % at a false rollback rate of {}: all traffic goes back",
        sentences(pass, Some(&culprits)),
        crate::fold::percent(alpha)
    )
}

pub(crate) fn passed(pass: &Pass<'_>) -> String {
    let records = pass.fold.as_ref().map(Fold::records).unwrap_or_default();
    let beta = pass.conduct.map_or(0.05, |c| c.analysis.beta);
    if !records.iter().any(|record| record.weight > 0.0) {
        return sentences(pass, None);
    }
    format!(
        "{}; shown to be {} at a false promotion rate of {}",
        sentences(pass, None),
        margins(&records),
        crate::fold::percent(beta)
    )
}

pub(crate) fn inconclusive(pass: &Pass<'_>) -> String {
    format!(
        "hold.max has passed without a verdict: {}; promote, abort, or apply another template",
        sentences(pass, None)
    )
}

/// A time as it stands in records, in whole seconds.
fn time(at: davylamp_api::Instant) -> davylamp_api::Instant {
    davylamp_api::Instant::from_second(at.as_second()).unwrap_or(at)
}

fn share(n: f64) -> String {
    format!("{:.2} %", 100.0 * n)
}

/// "errors of the baseline: 312 of 5,100 (6.12 %) since 2026-01-01T12:03:15Z, above 1.50 %".
fn incident(pass: &Pass<'_>) -> Option<String> {
    let fold = pass.fold.as_ref()?;
    let incident = fold.incident()?;
    let limit = fold.records().into_iter().find(|record| record.name == incident.metric)?.limit?;
    let Cohort { events, exposure } = limit.baseline;
    Some(format!(
        "{} of the baseline: {} of {} ({}) since {}, above {}",
        incident.metric,
        count(events),
        count(exposure),
        share(events / exposure.max(1.0)),
        time(incident.since),
        share(limit.rate)
    ))
}

/// Names some of them.
fn shared(pass: &Pass<'_>) -> String {
    let names: Vec<_> = pass.observed.incidents.keys().map(String::as_str).take(3).collect();
    let own = pass.fold.as_ref().is_some_and(Fold::in_incident);
    let own = if own { "this Rollout, " } else { "" };
    format!("several Rollouts have had incidents within two minutes: {own}{}", names.join(", "))
}

/// Why a run is held.
pub(crate) fn held(pass: &Pass<'_>, reason: Reason) -> String {
    if reason == Reason::SharedIncident {
        return format!("{}; nothing is promoted meanwhile, and it goes on by itself", shared(pass));
    }
    let incident = incident(pass).unwrap_or_else(|| "the baseline is in an incident".to_owned());
    format!("{incident}; nothing is promoted until it is below for three blocks")
}

pub(crate) fn stepped_back(pass: &Pass<'_>, before: Percent, again: bool) -> String {
    let incident = incident(pass).unwrap_or_else(|| "the baseline is in an incident".to_owned());
    let weight = pass.weight();
    if again {
        format!("{incident}, again right after {weight}: back to {before}, to stay there")
    } else {
        format!(
            "{incident}, right after {weight}: back to {before} for two minutes, to see whether that ends it"
        )
    }
}

pub(crate) fn interference(pass: &Pass<'_>) -> String {
    let (step, now) = (pass.step_weight(), pass.weight());
    format!(
        "twice the baseline failed right after {step} went to the canary, which seems to break what both need; {now} is kept: fix what they share and promote this step, abort, or apply another template"
    )
}

pub(crate) fn held_too_long(pass: &Pass<'_>) -> String {
    let why = if pass.reason() == Reason::SharedIncident {
        shared(pass)
    } else {
        incident(pass).unwrap_or_else(|| "the weight did not go back in time".to_owned())
    };
    format!("{why}; held for an hour: it goes on when that is over; promote if this is usual now, or abort")
}

pub(crate) fn over(pass: &Pass<'_>) -> String {
    let own = pass.fold.as_ref().filter(|_| pass.reason() != Reason::SharedIncident);
    let incident = own.and_then(Fold::incident);
    match incident.and_then(|incident| Some((incident.over?, incident))) {
        Some((over, incident)) => format!(
            "the incident that began at {} is over: {} of the baseline below {} since three blocks, at {}",
            time(incident.since),
            incident.metric,
            share(incident.limit),
            time(over)
        ),
        None => "the incidents of several Rollouts are over".to_owned(),
    }
}

/// "errors 41 of 1,200 (3.42 %), where 1.00 % are allowed".
pub(crate) fn violated(pass: &Pass<'_>, metrics: &[usize]) -> String {
    let records = pass.fold.as_ref().map(Fold::records).unwrap_or_default();
    let sentence = |record: &MetricRecord| {
        let limit = record.limit?;
        let Cohort { events, exposure } = limit.canary?;
        let (name, rate) = (&record.name, share(events / exposure.max(1.0)));
        let allowed = share(limit.rate);
        Some(format!(
            "{name} of the canary: {} of {} ({rate}), where {allowed} is allowed",
            count(events),
            count(exposure)
        ))
    };
    let violated: Vec<String> = metrics.iter().filter_map(|i| sentence(records.get(*i)?)).collect();
    format!(
        "{}; the objective is violated, whoever is the cause: promote this step, abort, or apply another template",
        violated.join("; ")
    )
}

/// "the canary got 4.9% of the requests (1,234 of 25,180), asked for was 10%".
fn split(pass: &Pass<'_>) -> String {
    let (fold, asked) = (pass.fold.as_ref(), pass.weight());
    match fold.and_then(|fold| Some((fold.observed_share()?, fold.split()?))) {
        Some((got, SplitRecord { canary, baseline, .. })) => {
            let (canary, all) = (count(canary), count(canary + baseline));
            format!("the canary got {got} of the requests ({canary} of {all}), asked for was {asked}")
        }
        None => "the canary did not get the share of the requests that was asked for".to_owned(),
    }
}

const WRONG_SPLIT: &str = "look for another route or client that reaches the pods directly, for connections or sessions that \
    stay with their pod, and for a mesh that balances by itself";

pub(crate) fn misrouted(pass: &Pass<'_>) -> String {
    format!(
        "{}: {WRONG_SPLIT}; it goes on by itself when that is over; else promote this step, abort, or apply another template",
        split(pass)
    )
}

pub(crate) fn asked_by(action: &Action) -> String {
    let who = action.requested_by.as_ref().map(|w| format!(" by {w} (unverified)")).unwrap_or_default();
    let why = action.reason.as_ref().map(|w| format!(" ({w})")).unwrap_or_default();
    format!("{who}{why}")
}

pub(crate) fn trouble(pass: &Pass<'_>, hash: &str) -> String {
    let trouble = pass.observed.revisions.get(hash).and_then(|r| r.trouble.as_ref());
    trouble.map(|t| format!(" ({t})")).unwrap_or_default()
}

pub(crate) fn deadline(pass: &Pass<'_>, reason: Reason) -> String {
    let hash = pass.canary_hash();
    match (reason, pass.state()) {
        (Reason::ProgressDeadline, StateName::Promoting) => format!(
            "{} of {} pods of the new revision were ready by progressDeadline{}",
            pass.available(&hash),
            pass.size(),
            trouble(pass, &hash)
        ),
        (Reason::ProgressDeadline, StateName::Preparing) => {
            "pods of an earlier run's baseline were not gone by progressDeadline".to_owned()
        }
        (Reason::ProgressDeadline, _) => {
            let (need, fresh) = (pass.need(), pass.fresh_baseline());
            let (of, hash) = match fresh.filter(|_| pass.available(&hash) >= need) {
                Some(baseline) => (" of the baseline", baseline),
                None => ("", hash),
            };
            let (ready, why) = (pass.available(&hash), trouble(pass, &hash));
            format!("{ready} of {need} pods{of} of the step were ready by progressDeadline{why}")
        }
        (Reason::RunLost, _) => "the record of the run is gone".to_owned(),
        _ => {
            let wanted = conditions::get(&pass.status.conditions, ConditionType::TrafficReady);
            format!(
                "the routes were not effective in time{}",
                wanted.map(|c| format!(": {}", c.message)).unwrap_or_default()
            )
        }
    }
}

pub(crate) fn rolled_back(pass: &Pass<'_>, stable: i64) -> String {
    let what = if pass.reason() == Reason::Superseded {
        "nothing of the superseded revision is left"
    } else if crate::ending::tried_again(pass.reason()) {
        "rolled back; it is tried again by itself"
    } else {
        "rolled back; apply another template, or create a RolloutAction with the verb retry"
    };
    let trouble = trouble(pass, &pass.canary_hash());
    format!("all traffic is at revision {stable} ({}){trouble}; {what}", pass.reason())
}

pub(crate) fn route_missing(pass: &Pass<'_>, target: &RouteRef) -> (Reason, String) {
    match pass.observed.routes.get(target).filter(|r| r.found) {
        Some(route) => {
            let why = route.unsupported.clone().unwrap_or_else(|| "not yet driven".to_owned());
            (Reason::RouteUnsupported, format!("HTTPRoute {}: {why}", target.name))
        }
        None => (
            Reason::RouteNotFound,
            format!("HTTPRoute {} does not exist: create it, with both Services as backends", target.name),
        ),
    }
}

pub(crate) fn route_conflict(pass: &Pass<'_>) -> String {
    let manager =
        pass.observed.routes.values().find_map(|r| r.other_manager.as_deref()).unwrap_or("somebody");
    format!(
        "{manager} keeps writing the weights: stop it for the time of a rollout, then promote this step or abort"
    )
}

/// A source that answers, with nothing.
pub(crate) fn nothing_scraped(plan: &Plan) -> String {
    let interval = plan.sampling.unwrap_or_default().scrape_interval;
    format!(
        "the source has no sample of either cohort: check the metrics' names, the labels of pods and namespace, and that the \
         pods are scraped each {interval}, as this run takes it; else correct spec.scrapeInterval of the MetricSource"
    )
}

pub(crate) fn source_failing(pass: &Pass<'_>) -> String {
    match source_usable_of(pass) {
        Err((_, why)) => why,
        Ok(()) => {
            "no data arrives, and the metric source does not say why: check the controller's log".to_owned()
        }
    }
}

/// In the message of `AnalysisReady`, where an address may be a metric source: it stands between the last `; ` before this
/// and this, and a manifest follows.
pub const SUGGESTED: &str = " answers as one does, so this may do, if you trust who runs it: ";

/// A manifest for an admin to apply.
fn suggestion(name: &str, Suggested { url, namespace }: &Suggested) -> String {
    format!(
        "; {url}{SUGGESTED}{{apiVersion: davylamp.dev/v1alpha1, kind: MetricSource, metadata: {{name: {name}}}, spec: {{url: \
         '{url}', allowedNamespaces: [{namespace}]}}}}"
    )
}

/// The source that a conduct names can be asked.
pub(crate) fn source_usable(pass: &Pass<'_>, conduct: &Conduct) -> Result<(), (Reason, String)> {
    if conduct.analysis.is_empty() {
        return Ok(());
    }
    let name = conduct.analysis.source.as_deref().unwrap_or_default();
    match pass.observed.source {
        Source::Ready { .. } => Ok(()),
        Source::NotFound | Source::NotNamed => Err((
            Reason::SourceNotFound,
            format!(
                "MetricSource {name} does not exist: ask an admin to create it, or name another in spec.analysis.source{}",
                pass.observed
                    .suggested
                    .as_ref()
                    .map(|suggested| suggestion(name, suggested))
                    .unwrap_or_default()
            ),
        )),
        Source::NotAllowed => Err((
            Reason::SourceNotAllowed,
            format!(
                "MetricSource {name} does not allow this namespace: ask an admin to add it to spec.allowedNamespaces"
            ),
        )),
    }
}

fn source_usable_of(pass: &Pass<'_>) -> Result<(), (Reason, String)> {
    let spec = pass.input.program.as_ref().map(|p| &p.conduct);
    let Some(conduct) = pass.conduct.or(spec) else { return Ok(()) };
    source_usable(pass, conduct)?;
    match pass.observed.samples.as_ref().and_then(|s| s.failing.as_ref()) {
        Some((since, why)) => {
            let since = jiff::Timestamp::from_second(since.as_second()).unwrap_or(*since);
            Err((Reason::SourceUnavailable, format!("the metric source fails since {since}: {why}")))
        }
        None => Ok(()),
    }
}

pub(crate) fn verdict(pass: &Pass<'_>, fold: &Fold<'_>) -> Verdict {
    match (pass.state(), pass.reason()) {
        (_, Reason::Regression | Reason::Expression) => Verdict::Regressed,
        (StateName::Paused, Reason::Inconclusive) => Verdict::Inconclusive,
        (StateName::Paused, Reason::NoData | Reason::SourceUnavailable) => Verdict::NoData,
        (StateName::Paused, Reason::NoTraffic) => Verdict::NoTraffic,
        (StateName::Paused, Reason::SloViolated) => Verdict::SloViolated,
        (StateName::Paused, Reason::TrafficSplit) => Verdict::TrafficSplit,
        (_, reason) if incidents::is_reason(reason) => Verdict::Incident,
        _ if fold.condemned() => Verdict::Regressed,
        _ if fold.safe() => Verdict::Pass,
        _ => Verdict::Collecting,
    }
}

// Phase, message and conditions.

pub(crate) fn conditions(pass: &mut Pass<'_>, before: &RolloutStatus) {
    let valid = valid(pass);
    let invalid = valid.as_ref().is_some_and(|v| v.status == Some(false));
    let message = message(pass, before, valid.as_ref().filter(|_| invalid).map(|v| v.message.clone()));
    let reason = pass.reason();
    let available = available(pass);
    let kept = pass.state() == StateName::Paused && pass.past_deadline();
    let newer = pass.input.program.as_ref().filter(|p| p.hash != pass.stable_hash());
    // A revision that was never tried, and about which nobody has yet said no, is under way.
    let begins = newer.is_some_and(|p| {
        !invalid
            && !pass.observed.meta.deleting
            && !pass.status.rejected.iter().any(|r| r.hash == p.hash)
            && pass.status.latest.as_ref().is_none_or(|l| l.hash != p.hash || l.missed.is_none())
    });
    let newer = newer.is_some();
    let short = pass.status.capacity_low_since.filter(|_| !available.0);
    let too_short = short.is_some_and(|since| later(since, pass.progress_deadline()) <= pass.now);
    // kstatus: exactly one of Ready, Reconciling and Stalled is True.
    let (phase, which) = match pass.state() {
        _ if pass.status.stable.is_none() && invalid => (Phase::Degraded, ConditionType::Stalled),
        _ if pass.status.stable.is_none() => (Phase::Progressing, ConditionType::Reconciling),
        StateName::Healthy if invalid => (Phase::Degraded, ConditionType::Stalled),
        StateName::Healthy if !available.0 => {
            let phase = if too_short { Phase::Degraded } else { Phase::Progressing };
            (phase, ConditionType::Reconciling)
        }
        StateName::Healthy if newer => (Phase::Progressing, ConditionType::Reconciling),
        StateName::Healthy => (Phase::Healthy, ConditionType::Ready),
        StateName::Degraded if begins && pass.proven() => (Phase::Progressing, ConditionType::Reconciling),
        StateName::Degraded => (Phase::Degraded, ConditionType::Stalled),
        StateName::Paused if kept => (Phase::Degraded, ConditionType::Stalled),
        StateName::Paused => (Phase::Paused, ConditionType::Reconciling),
        StateName::RollingBack | StateName::Finalising if pass.past_deadline() => {
            (Phase::Degraded, ConditionType::Stalled)
        }
        StateName::Preparing
        | StateName::Scaling
        | StateName::Shifting
        | StateName::Settling
        | StateName::Judging
        | StateName::Holding
        | StateName::Promoting
        | StateName::Finalising
        | StateName::RollingBack
        | StateName::Unknown => (Phase::Progressing, ConditionType::Reconciling),
    };
    pass.status.phase = Some(phase);
    pass.status.message = bounded(message.clone(), 2_048);
    let mut wanted: Vec<Wanted> = [ConditionType::Ready, ConditionType::Reconciling, ConditionType::Stalled]
        .into_iter()
        .map(|kind| Wanted {
            kind,
            status: Some(kind == which),
            reason,
            message: bounded(message.clone(), 1_024),
        })
        .collect();
    wanted.extend(valid);
    wanted.push(Wanted {
        kind: ConditionType::Available,
        status: Some(available.0),
        reason: if available.0 { Reason::AsExpected } else { Reason::PodsNotReady },
        message: available.1,
    });
    wanted.extend(services(pass));
    wanted.push(traffic(pass));
    wanted.extend(analysis(pass));
    wanted.extend(incident_condition(pass));
    let (generation, now) = (pass.input.generation, pass.now);
    for condition in wanted {
        conditions::set(&mut pass.status.conditions, condition, generation, now);
    }
}

/// It is there from the first incident on.
fn incident_condition(pass: &Pass<'_>) -> Option<Wanted> {
    let kind = ConditionType::Incident;
    let on = pass.status.incident.as_ref().filter(|incident| incident.over.is_none());
    let shared_now = pass.in_flight() && incidents::shared_until(pass).is_some();
    let (status, reason, message) = match on {
        _ if shared_now => (true, Reason::SharedIncident, shared(pass)),
        Some(incident) => {
            let IncidentStatus { metric, limit, since, .. } = incident;
            let (limit, since) = (share(*limit), time(*since));
            (true, Reason::Incident, format!("{metric} of the baseline above {limit} since {since}"))
        }
        None => {
            conditions::get(&pass.status.conditions, kind)?;
            (false, Reason::AsExpected, "no incident is on".to_owned())
        }
    };
    Some(Wanted { kind, status: Some(status), reason, message: bounded(message, 1_024) })
}

fn message(pass: &Pass<'_>, before: &RolloutStatus, invalid: Option<String>) -> String {
    let told = pass.status.pending.last().filter(|_| pass.moved).map(|p| p.record.message.clone());
    let state = match told {
        Some(told) => format!("{}: {told}", place(pass)),
        None if !before.message.is_empty() => {
            before.message.split(INVALID).next().unwrap_or_default().trim_end_matches(". ").to_owned()
        }
        None => "waits for the first look at its template".to_owned(),
    };
    match invalid {
        Some(invalid) => format!("{state}. {INVALID}{invalid}"),
        None => state,
    }
}

const INVALID: &str = "The spec is not valid: ";

fn place(pass: &Pass<'_>) -> String {
    let state = pass.state().as_str();
    match (&pass.status.step, &pass.status.canary) {
        (Some(step), Some(canary)) => format!(
            "{state}, step {} of {}, {} to revision {}",
            step.index,
            step.of,
            pass.weight(),
            canary.revision
        ),
        _ => state.to_owned(),
    }
}

fn valid(pass: &Pass<'_>) -> Option<Wanted> {
    let kind = ConditionType::Valid;
    if !pass.input.problems.is_empty() {
        let text = pass.input.problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
        return Some(Wanted {
            kind,
            status: Some(false),
            reason: Reason::InvalidSpec,
            message: bounded(text, 1_024),
        });
    }
    let program = pass.input.program.as_ref()?;
    if pass.wanted().is_some_and(|p| p.hash == program.hash) {
        return Some(Wanted {
            kind,
            status: Some(true),
            reason: Reason::AsExpected,
            message: "the spec can be carried out".to_owned(),
        });
    }
    match &pass.observed.template {
        Template::Refused(why) => Some(Wanted {
            kind,
            status: Some(false),
            reason: Reason::TemplateRefused,
            message: bounded(format!("spec.template: the API server refuses it: {why}"), 1_024),
        }),
        Template::Unchecked | Template::Accepted => None,
    }
}

fn available(pass: &Pass<'_>) -> (bool, String) {
    let hash = pass.stable_hash();
    let (ready, size) = (pass.available(&hash), pass.size());
    // While the new revision carries all traffic it is its pods that count, and they did before it became stable.
    (
        ready >= size && pass.status.stable.is_some(),
        format!("{ready} of {size} pods of the stable revision are available{}", trouble(pass, &hash)),
    )
}

fn services(pass: &Pass<'_>) -> Option<Wanted> {
    let program = pass.input.program.as_ref()?;
    let service = pass.observed.services.get(&Role::Stable);
    let ready = pass.size() == 0 || service.is_some_and(|s| s.ready.values().any(|n| *n > 0));
    let (status, reason, message) = match services_ready(pass, program) {
        Err((reason, message)) => (false, reason, message),
        Ok(()) if ready => (true, Reason::AsExpected, "both Services stand and have pods".to_owned()),
        Ok(()) => (
            false,
            Reason::NoEndpoints,
            format!("no pod is ready behind Service {}", program.services.stable),
        ),
    };
    Some(Wanted { kind: ConditionType::ServicesReady, status: Some(status), reason, message })
}

fn traffic(pass: &mut Pass<'_>) -> Wanted {
    let kind = ConditionType::TrafficReady;
    let result = match &pass.status.traffic {
        Some(traffic) => {
            let (weight, restore) = (traffic.desired, traffic.restore);
            let missing = pass
                .conduct
                .and_then(|c| c.routes.iter().find(|r| !traffic.originals.iter().any(|o| o.route == **r)));
            match missing {
                Some(target) => Err(route_missing(pass, target)),
                None if restore => pass.routes_restored(),
                None => pass.routes_carry(weight),
            }
        }
        None => at_rest(pass),
    };
    let conflicts = pass.status.conflicts.clone().filter(|c| c.next.is_some());
    let (status, reason, message) = match (conflicts, result) {
        (Some(c), Err(_)) => (
            false,
            Reason::RouteConflict,
            format!("{} ({} times in this run)", route_conflict(pass), c.count),
        ),
        (_, Err((reason, message))) => (false, reason, message),
        (_, Ok(())) => {
            (true, Reason::AsExpected, format!("the routes send {} to the canary", at_weight(pass)))
        }
    };
    Wanted { kind, status: Some(status), reason, message: bounded(message, 1_024) }
}

fn at_weight(pass: &Pass<'_>) -> Percent {
    if pass.state() == StateName::Finalising && pass.stage() == Stage::Restore {
        Percent::ZERO
    } else {
        pass.weight()
    }
}

/// At rest both Services select the stable revision: any weights are right, but the routes should be there.
fn at_rest(pass: &Pass<'_>) -> Result<(), (Reason, String)> {
    for target in pass.input.program.as_ref().map(|p| p.conduct.routes.as_slice()).unwrap_or_default() {
        match pass.observed.routes.get(target) {
            Some(route) if route.found && route.unsupported.is_none() => {}
            Some(_) | None => return Err(route_missing(pass, target)),
        }
    }
    Ok(())
}

fn analysis(pass: &Pass<'_>) -> Option<Wanted> {
    let kind = ConditionType::AnalysisReady;
    let spec = pass.input.program.as_ref().map(|p| &p.conduct);
    let conduct = pass.conduct.or(spec)?;
    if conduct.analysis.is_empty() {
        let message = "no metrics: steps advance on pod health alone; add spec.analysis.metrics".to_owned();
        return Some(Wanted { kind, status: Some(true), reason: Reason::NotAnalysed, message });
    }
    let (status, reason, message) = match source_usable_of(pass) {
        Err((reason, message)) => (false, reason, message),
        Ok(()) => found_before(pass)
            .or_else(|| incomparable(pass))
            .or_else(|| duplicates(pass))
            .or_else(|| late(pass))
            .or_else(|| wrong_split(pass))
            .or_else(|| no_series(pass))
            .or_else(|| no_value(pass))
            .or_else(|| background::warning(pass))
            .unwrap_or_else(|| outlook(pass)),
    };
    Some(Wanted { kind, status: Some(status), reason, message: bounded(message, 1_024) })
}

fn wrong_split(pass: &Pass<'_>) -> Option<(bool, Reason, String)> {
    let fold = pass.fold.as_ref().filter(|fold| fold.split_is_wrong())?;
    Some((!fold.is_misrouted(), Reason::TrafficSplit, format!("{}: {WRONG_SPLIT}", split(pass))))
}

/// Nothing is asked then.
const AT_REST: &str = "a metric source is there, and is asked in a run; how long the steps of one take, and whether they can be \
                       judged, says: kubectl davylamp plan -f ROLLOUT --prometheus URL";

/// Whether the steps of the run can be judged, as far as that is known.
fn outlook(pass: &Pass<'_>) -> (bool, Reason, String) {
    let answers = "the metric source answers".to_owned();
    let of_run = pass.status.analysis.as_ref().filter(|_| pass.in_flight());
    match of_run.and_then(|analysis| analysis.outlook.as_ref()) {
        Some(outlook) if outlook.judged => (true, Reason::AsExpected, format!("{answers}; {}", outlook.text)),
        Some(outlook) => (false, Reason::TooLittleTraffic, outlook.text.clone()),
        None if pass.observed.samples.is_some() => (true, Reason::AsExpected, answers),
        None => (true, Reason::AsExpected, AT_REST.to_owned()),
    }
}

/// What is found in rounds stands until others are folded.
fn found_before(pass: &Pass<'_>) -> Option<(bool, Reason, String)> {
    pass.fold.as_ref().filter(|fold| fold.is_open() && !fold.moved())?;
    let before = conditions::get(&pass.status.conditions, ConditionType::AnalysisReady)?;
    let found = [Reason::DuplicateTargets, Reason::BucketsDiffer];
    let reason = found.into_iter().find(|reason| before.reason == reason.as_str())?;
    Some((before.status == "True", reason, before.message.clone()))
}

fn duplicates(pass: &Pass<'_>) -> Option<(bool, Reason, String)> {
    let pods = pass.fold.as_ref().map(|f| f.duplicates.len()).filter(|n| *n > 0)?;
    let message = format!(
        "{pods} pods are scraped more than once; one target of each is used: remove the second scrape"
    );
    Some((true, Reason::DuplicateTargets, message))
}

fn late(pass: &Pass<'_>) -> Option<(bool, Reason, String)> {
    pass.observed.samples.as_ref().filter(|samples| samples.late > 0)?;
    let delay = pass.conduct?.analysis.sampling?.delay;
    let message = format!(
        "samples arrive later than {delay} after their scrape, and what is late is left out: ask an admin to raise spec.delay of \
         the MetricSource"
    );
    Some((true, Reason::LateSamples, message))
}

fn incomparable(pass: &Pass<'_>) -> Option<(bool, Reason, String)> {
    let metric = pass.fold.as_ref()?.incomparable.first()?;
    let message = format!(
        "metric {metric}: the histograms of the two versions have no bucket bound in common: give both the same buckets, or \
         make the metric informational"
    );
    Some((false, Reason::BucketsDiffer, message))
}

/// A metric that matches nothing while the data flows for a while is misspelt, or its pods are not scraped.
fn no_series(pass: &Pass<'_>) -> Option<(bool, Reason, String)> {
    let samples = pass.observed.samples.as_ref()?;
    let from = pass.status.analysis.as_ref()?.checkpoint.as_ref().filter(|c| c.t0 > 0)?.from;
    // Right after a checkpoint there is nothing new of any metric.
    let long = samples.until >= from.max(samples.since).saturating_add(45_000);
    let before = conditions::get(&pass.status.conditions, ConditionType::AnalysisReady);
    if !long && before.is_none_or(|before| before.reason != Reason::NoSeries.as_str()) {
        return None;
    }
    let plan = &pass.conduct?.analysis;
    let is_expression = |name: &String| plan.expressions.iter().any(|one| one.name == *name);
    let mut metrics = samples.metrics.iter().filter(|(name, _)| !is_expression(name));
    let (empty, _) = metrics.find(|(_, m)| m.pods.values().all(|t| t.values().all(Vec::is_empty)))?;
    let told = plan.metrics.iter().find(|metric| metric.name == *empty).and_then(|m| m.told.as_ref());
    let hint = match told {
        None => "for these pods: check its name, and the labels that the MetricSource names".to_owned(),
        Some(told) => format!("{told}: check its name, and its cohort's labels"),
    };
    Some((false, Reason::NoSeries, format!("metric {empty} matches nothing {hint}")))
}

fn no_value(pass: &Pass<'_>) -> Option<(bool, Reason, String)> {
    let name = pass.fold.as_ref()?.silent_expression()?;
    let message = format!(
        "expression {name} has no value, which never counts as good: check its names and labels; where nothing counts as 0, \
         add `or vector(0)`"
    );
    Some((false, Reason::NoSeries, message))
}

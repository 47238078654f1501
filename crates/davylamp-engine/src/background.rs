//! What pods count without traffic: probes and scrapes. They come to each pod at one rate, whatever its weight, so where there
//! is little traffic they dilute errors and bend the split. The rate is measured at the canary's pods before the first weight,
//! and left out of the exposure of both cohorts.

use davylamp_api::conditions::Reason;
use davylamp_api::status::StateName;

use crate::decision::MetricQuery;
use crate::explain;
use crate::figures::about;
use crate::fold::rounded;
use crate::observed::Increment;
use crate::pass::Pass;
use crate::program::{Conduct, MetricPlan};

/// Where a stable pod usually counts more a second, probes and scrapes are too few to matter.
const BUSY: f64 = 5.0;
/// From this part of what is usually counted on, the selectors should leave them out.
const MUCH: f64 = 0.2;
/// Each pod is watched for so many scrape intervals,
const WATCHED: i64 = 3;
/// and waited for this many, for it must be found by the source first.
const PATIENCE: i64 = 7;

/// It is being measured: since when, ms since 1970.
pub(crate) fn watched_since(pass: &Pass<'_>) -> Option<i64> {
    let state = pass.status.state.as_ref()?;
    let measures = state.name == StateName::Scaling && state.reason == Reason::BackgroundTraffic;
    measures.then(|| state.since.as_millisecond())
}

/// Before the first weight, with all pods ready. True when that is being waited for from now on, false when it still is; None
/// when there is nothing to wait for.
pub(crate) fn measure(pass: &mut Pass<'_>) -> Option<bool> {
    let conduct = pass.conduct?;
    let size = pass.size();
    let fold = pass.fold.as_ref()?;
    let quiet = fold.backgrounds().filter(|(plan, known)| known.is_none() && is_quiet(conduct, plan, size));
    let quiet: Vec<String> = quiet.map(|(plan, _)| plan.name.clone()).collect();
    if quiet.is_empty() {
        return None;
    }
    let sampling = conduct.analysis.sampling?;
    let interval = sampling.scrape_interval.millis();
    let Some(since) = watched_since(pass) else {
        let patience = PATIENCE.saturating_mul(interval).saturating_add(sampling.delay.millis());
        let message = format!(
            "{} ready: before traffic comes, what probes and scrapes count there is measured, for at most {}",
            explain::pods(pass.need()),
            about(u64::try_from(patience / 1_000).ok()),
        );
        pass.go(StateName::Scaling, Reason::BackgroundTraffic, Some(patience), message);
        return Some(true);
    };
    let over = pass.past_deadline();
    let seen: Vec<Seen> = quiet.iter().map(|metric| seen(pass, metric, since)).collect();
    let pods = i64::from(pass.need());
    if !over && seen.iter().any(|seen| seen.ms < WATCHED.saturating_mul(interval).saturating_mul(pods)) {
        return Some(false);
    }
    if let Some(fold) = &mut pass.fold {
        for (metric, seen) in quiet.iter().zip(seen) {
            fold.leave_out(metric, seen.rate());
        }
    }
    None
}

/// It counts requests at pods, and usually few.
fn is_quiet(conduct: &Conduct, plan: &MetricPlan, size: i32) -> bool {
    let counts = matches!(plan.query, MetricQuery::Counters { .. } | MetricQuery::Slower { .. });
    let is_few = |usual: f64| usual > 0.0 && usual < BUSY * f64::from(size.max(1));
    counts && plan.counts_requests() && plan.told.is_none() && usual(conduct, plan).is_some_and(is_few)
}

/// What all stable pods count a second, with what comes without traffic.
fn usual(conduct: &Conduct, plan: &MetricPlan) -> Option<f64> {
    conduct.learnt.get(&plan.name)?.per_second.filter(|rate| rate.is_finite())
}

/// What was counted without traffic.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// For so long, in sum over the pods, ms.
    ms: i64,
    total: f64,
}

impl Seen {
    /// Of one pod, a second.
    #[allow(clippy::cast_precision_loss, reason = "a time in ms")]
    fn rate(self) -> f64 {
        if self.ms > 0 { rounded(1_000.0 * self.total / self.ms as f64) } else { 0.0 }
    }
}

/// At the canary's pods, since they are ready.
fn seen(pass: &Pass<'_>, metric: &str, since: i64) -> Seen {
    let hash = pass.canary_hash();
    let pods = pass.observed.revisions.get(&hash).map(|revision| &revision.pods);
    let metric = pass.observed.samples.as_ref().and_then(|samples| samples.metrics.get(metric));
    let mut seen = Seen::default();
    for (pod, ready) in pods.into_iter().flatten().filter_map(|(pod, state)| Some((pod, state.ready_at?))) {
        let from = since.max(ready.as_millisecond());
        let targets = metric.and_then(|metric| metric.pods.get(pod));
        // As elsewhere, one target of each pod.
        let target = targets.and_then(|targets| targets.values().find(|increments| !increments.is_empty()));
        for Increment { from: begin, to, total, .. } in target.into_iter().flatten() {
            if *begin >= from {
                seen.ms = seen.ms.saturating_add(to - begin);
                seen.total += total;
            }
        }
    }
    seen
}

/// What `AnalysisReady` says where it is a large part of all.
pub(crate) fn warning(pass: &Pass<'_>) -> Option<(bool, Reason, String)> {
    let conduct = pass.conduct.filter(|_| pass.status.canary.is_some())?;
    let fold = pass.fold.as_ref()?;
    let part = |(plan, background): (&MetricPlan, Option<f64>)| {
        let all = usual(conduct, plan).filter(|usual| *usual > 0.0)?;
        let part = background? * f64::from(pass.size().max(1)) / all;
        (part > MUCH).then(|| (plan.name.clone(), part.min(1.0)))
    };
    let (metric, part) = fold.backgrounds().find_map(part)?;
    let percent = libm::round(100.0 * part);
    let message = format!(
        "metric {metric}: {percent:.0} % of what it counts at the usual traffic comes without it, from probes and scrapes: leave \
         them out of its selectors, as with {{path!~\"/healthz|/metrics\"}}"
    );
    Some((false, Reason::BackgroundTraffic, message))
}

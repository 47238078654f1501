//! What pods count without traffic: probes and scrapes. They come to each pod at one rate, whatever its weight, so where there
//! is little traffic they dilute errors and bend the split. The rate is measured at the canary's pods before the first weight,
//! and left out where they would let something seem better than it is: of the split, of silence, and of what shows a canary to
//! be good enough. What shows it to be worse counts all, for what comes without traffic may be real users on a way of their own,
//! whose errors count as well.

use davylamp_api::conditions::Reason;
use davylamp_api::rollout::Goal;
use davylamp_api::status::StateName;

use crate::explain;
use crate::figures::about;
use crate::fold::{Fold, rounded};
use crate::observed::Increment;
use crate::pass::Pass;
use crate::program::{Conduct, MetricPlan};

/// Where a stable pod usually counts more a second, probes and scrapes are too few to matter.
const BUSY: f64 = 5.0;
/// From this part of what is usually counted on, the selectors should leave them out.
const MUCH: f64 = 0.2;
/// And above this part it is no background.
const MOST: f64 = 0.5;
/// Each pod is watched for so many scrape intervals,
const WATCHED: i64 = 3;
/// and waited for this many, for it must be found by the source first.
const PATIENCE: i64 = 7;
/// With scrapes farther apart, ms, it takes too long.
const LONGEST_INTERVAL: i64 = 120_000;

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
    let quiet: Vec<&MetricPlan> =
        conduct.analysis.metrics.iter().filter(|plan| is_quiet(conduct, plan, size)).collect();
    let sampling = conduct.analysis.sampling?;
    let interval = sampling.scrape_interval.millis();
    if quiet.is_empty() || interval > LONGEST_INTERVAL {
        return None;
    }
    let Some(since) = watched_since(pass) else {
        // Once in a run, and before any data counts: pods that come and go are not waited for again and again.
        if fold.was_watched() || fold.is_open() || fold.closed().is_some() {
            return None;
        }
        let patience = PATIENCE.saturating_mul(interval).saturating_add(sampling.delay.millis());
        let message = format!(
            "{} ready: before traffic comes, what probes and scrapes count there is measured, for at most {}",
            explain::pods(pass.need()),
            about(u64::try_from(patience / 1_000).ok()),
        );
        pass.go(StateName::Scaling, Reason::BackgroundTraffic, Some(patience), message);
        pass.fold.iter_mut().for_each(Fold::watch);
        return Some(true);
    };
    let seen: Vec<Seen> = quiet.iter().map(|plan| seen(pass, &plan.name, since)).collect();
    // Scrapes are not always as far from each other as they should be.
    let enough = (WATCHED * interval - interval / 2).saturating_mul(i64::from(pass.need()));
    if !pass.past_deadline() && seen.iter().any(|seen| seen.ms < enough) {
        return Some(false);
    }
    if let Some(fold) = &mut pass.fold {
        for (plan, seen) in quiet.into_iter().zip(seen) {
            if let Some(rate) = usual(conduct, plan).and_then(|usual| seen.background(usual, size)) {
                fold.leave_out(&plan.name, rate);
            }
        }
    }
    None
}

/// It is a ratio of requests at pods, and usually of few.
fn is_quiet(conduct: &Conduct, plan: &MetricPlan, size: i32) -> bool {
    let is_few = |usual: f64| usual > 0.0 && usual < BUSY * f64::from(size.max(1));
    let is_ratio = plan.limit.is_some() && plan.goal == Goal::Lower;
    is_ratio && plan.told.is_none() && usual(conduct, plan).is_some_and(is_few)
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
    events: f64,
}

impl Seen {
    /// Of one pod, a second; None when nothing was seen, or when it is no background: what fails or is a large part of all may be
    /// users that reach the pods on another way.
    #[allow(clippy::cast_precision_loss, reason = "a time in ms")]
    fn background(self, usual: f64, size: i32) -> Option<f64> {
        let rate = rounded(1_000.0 * self.total / self.ms.max(1) as f64);
        let is_background = self.events <= 0.0 && rate * f64::from(size.max(1)) <= MOST * usual;
        (self.ms > 0 && is_background).then_some(rate)
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
        for Increment { from: begin, to, total, events, .. } in target.into_iter().flatten() {
            if *begin >= from {
                seen.ms = seen.ms.saturating_add(to - begin);
                seen.total += total;
                seen.events += events;
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
        "metric {metric}: {percent:.0} % of what it counts at the usual traffic comes without it, from probes, scrapes, or clients \
         past the route: leave them out of its selectors, as with {{path!~\"/healthz|/metrics\"}}"
    );
    Some((false, Reason::BackgroundTraffic, message))
}

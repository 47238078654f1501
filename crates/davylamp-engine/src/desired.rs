//! From the status to what should be: levels, never edges. Reads what the transitions left, decides nothing itself.

use std::collections::{BTreeMap, BTreeSet};

use davylamp_api::RolloutRunSpec;
use davylamp_api::conditions::Reason;
use davylamp_api::run::Sampling;
use davylamp_api::scalar::{Duration, Percent};
use davylamp_api::status::{Stage, StateName};

use crate::decision::{Desired, Query, RouteGoal};
use crate::observed::{Hash, Role, Source, Template};
use crate::pass::{Pass, pod_prefix, run_name};
use crate::states::{next_attempt, ready_to_start};

pub(crate) fn desired(pass: &Pass<'_>) -> Desired {
    let mut desired = Desired {
        check: check(pass),
        fill_replicas: pass
            .input
            .program
            .as_ref()
            .filter(|p| p.replicas.is_none())
            .map(|_| pass.status.replicas),
        run: new_run(pass),
        finalizer: None,
        revisions: revisions(pass),
        sizes: sizes(pass),
        selectors: selectors(pass),
        weights: weights(pass),
        query: query(pass),
    };
    let held = pass.status.traffic.as_ref().is_some_and(|t| !t.originals.is_empty());
    let too_late =
        pass.observed.meta.deleting && pass.state() == StateName::RollingBack && pass.past_deadline();
    desired.finalizer = match (held && !too_late, pass.observed.meta.finalizer) {
        (true, false) if !pass.observed.meta.deleting => Some(true),
        (false, true) => Some(false),
        _ => None,
    };
    desired
}

fn check(pass: &Pass<'_>) -> Option<Hash> {
    let program = pass.input.program.as_ref().filter(|_| !pass.observed.meta.deleting)?;
    (pass.wanted().is_none() && pass.observed.template == Template::Unchecked).then(|| program.hash.clone())
}

/// The record of the next run comes first; only the pass that observes it begins the run.
fn new_run(pass: &Pass<'_>) -> Option<(String, RolloutRunSpec)> {
    let at_rest = matches!(pass.state(), StateName::Healthy | StateName::Degraded);
    if !at_rest || pass.observed.meta.deleting || pass.status.stable.as_ref()?.started_at.is_none() {
        return None;
    }
    let program = pass.wanted().filter(|p| p.hash != pass.stable_hash())?;
    let latest = pass.status.latest.as_ref().filter(|l| l.hash == program.hash);
    let waits = latest.and_then(|l| l.not_before).is_some_and(|at| at > pass.now);
    if waits
        || pass.status.rejected.iter().any(|r| r.hash == program.hash)
        || ready_to_start(pass, program).is_err()
    {
        return None;
    }
    let (revision, attempt) = next_attempt(pass, program);
    let ms = |ms: i64| Duration::from_millis(u64::try_from(ms).unwrap_or(0));
    let sampling = match pass.observed.source {
        Source::Ready { scrape_interval_ms, delay_ms } => {
            Some(Sampling { scrape_interval: ms(scrape_interval_ms), delay: ms(delay_ms) })
        }
        Source::NotNamed | Source::NotFound | Source::NotAllowed => None,
    };
    let spec = RolloutRunSpec {
        rollout: pass.observed.meta.name.clone(),
        revision,
        hash: program.hash.clone(),
        attempt,
        version: 1,
        strategy: program.conduct.strategy.clone(),
        analysis: program.conduct.written.clone(),
        sampling,
    };
    Some((run_name(&spec.rollout, revision, attempt), spec))
}

fn revisions(pass: &Pass<'_>) -> BTreeMap<Hash, i64> {
    let both = [&pass.status.stable, &pass.status.canary];
    both.into_iter().flatten().map(|r| (r.hash.clone(), r.revision)).collect()
}

fn sizes(pass: &Pass<'_>) -> BTreeMap<Hash, i32> {
    let mut sizes = BTreeMap::new();
    for (hash, revision) in &pass.observed.revisions {
        if revision.desired > 0 {
            sizes.insert(hash.clone(), 0);
        }
    }
    let Some(stable) = &pass.status.stable else { return BTreeMap::new() };
    let size = pass.size();
    if let Some(old) = &pass.status.old
        && pass.observed.revisions.get(&old.hash).is_some_and(|r| r.desired > 0)
    {
        let kept = pass.observed.revisions.get(&old.hash).map_or(size, |r| r.desired);
        sizes.insert(old.hash.clone(), kept);
    }
    if let Some(canary) = &pass.status.canary {
        let now = pass.observed.revisions.get(&canary.hash).map_or(0, |r| r.desired);
        let carried = pass.pods_for(pass.weight());
        let wanted = match pass.state() {
            StateName::Preparing => None,
            StateName::Scaling
            | StateName::Shifting
            | StateName::Settling
            | StateName::Judging
            | StateName::Holding
            | StateName::Paused
                if pass.step().is_some() =>
            {
                // Never fewer than the weight that is carried now needs.
                Some(if pass.weight() > Percent::ZERO {
                    pass.need().max(carried.min(now))
                } else {
                    pass.need()
                })
            }
            StateName::Promoting => Some(size),
            // As they are: pods go only when no route sends them anything.
            _ => (now > 0).then_some(now),
        };
        match wanted {
            Some(wanted) => sizes.insert(canary.hash.clone(), wanted),
            None => sizes.remove(&canary.hash),
        };
    }
    if pass.state() == StateName::Unknown {
        sizes.clear();
    }
    sizes.insert(stable.hash.clone(), size);
    sizes
}

/// A selector moves only while its Service has weight 0 on every verified router; the states see to it.
fn selectors(pass: &Pass<'_>) -> BTreeMap<Role, Hash> {
    let mut selectors = BTreeMap::new();
    let Some(stable) = &pass.status.stable else { return selectors };
    let old = pass.status.old.as_ref().map(|o| o.hash.clone());
    let state = pass.state();
    let before = state == StateName::Finalising && pass.stage() < Stage::Select;
    selectors.insert(Role::Stable, old.filter(|_| before).unwrap_or_else(|| stable.hash.clone()));
    let canary = match (&pass.status.canary, state) {
        (None, _) => Some(stable.hash.clone()),
        (Some(_), StateName::Preparing) => Some(stable.hash.clone()),
        (Some(_), StateName::Scaling) if pass.weight() == Percent::ZERO => Some(stable.hash.clone()),
        (Some(_), StateName::RollingBack) if pass.stage() >= Stage::Select => Some(stable.hash.clone()),
        // As it is: it is not known whether it has moved, and it may carry weight.
        (Some(_), StateName::RollingBack | StateName::Unknown) => None,
        (Some(canary), _) => Some(canary.hash.clone()),
    };
    if let Some(canary) = canary {
        selectors.insert(Role::Canary, canary);
    }
    selectors
}

fn weights(pass: &Pass<'_>) -> BTreeMap<davylamp_api::rollout::RouteRef, RouteGoal> {
    let Some(traffic) = &pass.status.traffic else { return BTreeMap::new() };
    let conflict = pass.state() == StateName::Paused && pass.reason() == Reason::RouteConflict;
    if conflict || !pass.put_back {
        return BTreeMap::new();
    }
    traffic
        .originals
        .iter()
        .filter(|o| pass.observed.routes.get(&o.route).is_some_and(|r| r.found))
        .map(|o| {
            let goal = if traffic.restore {
                RouteGoal::Restore(o.clone())
            } else {
                RouteGoal::Weight(traffic.desired)
            };
            (o.route.clone(), goal)
        })
        .collect()
}

fn query(pass: &Pass<'_>) -> Option<Query> {
    let plan = &pass.conduct?.analysis;
    let fold = pass.fold.as_ref().filter(|f| f.is_open() && pass.weight() > Percent::ZERO)?;
    let sampling = plan.sampling?;
    let since = pass.status.analysis.as_ref()?.checkpoint.as_ref().filter(|c| c.t0 > 0)?.folded_until;
    let prefix = |hash: &str| pod_prefix(&pass.observed.meta.name, hash);
    Some(Query {
        source: plan.source.clone()?,
        since: since.min(fold.folded_until()),
        pods: BTreeSet::from([prefix(&pass.stable_hash()), prefix(&pass.canary_hash())]),
        metrics: plan.metrics.iter().map(|m| (m.name.clone(), m.query.clone())).collect(),
        scrape_interval_ms: sampling.scrape_interval.millis(),
        delay_ms: sampling.delay.millis(),
    })
}

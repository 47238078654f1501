//! From the status to what should be: levels, never edges. Reads what the transitions left, decides nothing itself.

use std::collections::{BTreeMap, BTreeSet};

use davylamp_api::RolloutRunSpec;
use davylamp_api::run::Sampling;
use davylamp_api::scalar::{Duration, Percent};
use davylamp_api::status::{Stage, StateName};

use crate::background;
use crate::calibration;
use crate::conflicts;
use crate::decision::{Desired, HistoryQuery, Query, RouteGoal, Why};
use crate::observed::{Hash, Role, Source, Template, of_baseline};
use crate::pass::{Pass, later, pod_prefix, run_name};
use crate::program::{Conduct, Program};
use crate::rest::{next_attempt, ready_to_start};

/// The interval of scrapes that nobody says and nothing shows, ms.
const UNSAID: i64 = 15_000;

pub(crate) fn desired(pass: &mut Pass<'_>) -> Desired {
    let next = NextRun::of(pass);
    let mut desired = Desired {
        check: check(pass),
        fill_replicas: pass
            .input
            .program
            .as_ref()
            .filter(|p| p.replicas.is_none())
            .map(|_| pass.status.replicas),
        run: next.as_ref().and_then(|next| next.record(pass)),
        finalizer: None,
        revisions: revisions(pass),
        sizes: sizes(pass),
        selectors: selectors(pass),
        weights: weights(pass),
        query: query(pass),
        history: next.and_then(|next| next.history),
    };
    desired.finalizer = finalizer(pass);
    desired
}

/// On while a route holds our numbers; a deletion waits for them, and for what must be told, no longer than its deadline.
fn finalizer(pass: &mut Pass<'_>) -> Option<bool> {
    let meta = &pass.observed.meta;
    let untold = pass.status.pending.iter().any(|p| p.record.number > pass.observed.delivered);
    let held =
        pass.status.traffic.as_ref().is_some_and(|t| !t.originals.is_empty()) || (meta.deleting && untold);
    let until = meta.deleted_at.filter(|_| meta.deleting).map(|at| later(at, pass.progress_deadline()));
    let too_late = held && until.is_some_and(|at| pass.reached(at, Why::Deadline));
    match (held && !too_late, meta.finalizer) {
        (true, false) if !meta.deleting => Some(true),
        (false, true) => Some(false),
        _ => None,
    }
}

fn check(pass: &Pass<'_>) -> Option<Hash> {
    let program = pass.input.program.as_ref().filter(|_| !pass.observed.meta.deleting)?;
    (pass.wanted().is_none() && pass.observed.template == Template::Unchecked).then(|| program.hash.clone())
}

/// The run that begins next, when nothing is missing but its record, and what is to be learnt for it.
struct NextRun<'a> {
    program: &'a Program,
    revision: i64,
    attempt: i32,
    history: Option<HistoryQuery>,
}

impl<'a> NextRun<'a> {
    fn of(pass: &Pass<'a>) -> Option<Self> {
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
        Some(Self { program, revision, attempt, history: history(pass, &program.conduct) })
    }

    /// The record comes first; only the pass that observes it begins the run. None before all is learnt.
    fn record(&self, pass: &Pass<'_>) -> Option<(String, RolloutRunSpec)> {
        let Self { program, revision, attempt, history } = self;
        let mut sampling = sampling(pass);
        let mut calibration = if let Some(history) = history {
            let learnt = pass.observed.learnt.as_ref().filter(|learnt| learnt.of == *history)?;
            if let Some(sampling) = &mut sampling {
                sampling.scrape_interval = ms(learnt.scrape_interval_ms);
            }
            learnt.metrics.clone()
        } else {
            let interval = sampling.map_or(UNSAID, |sampling| sampling.scrape_interval.millis());
            calibration::unlearnt(&program.conduct.analysis, interval.max(1_000))
        };
        calibration.extend(calibration::without_pods(&program.conduct.analysis));
        let spec = RolloutRunSpec {
            rollout: pass.observed.meta.name.clone(),
            revision: *revision,
            hash: program.hash.clone(),
            baseline: Some(pass.stable_hash()),
            services: Some(program.services.clone()),
            attempt: *attempt,
            version: 1,
            strategy: program.conduct.strategy.clone(),
            analysis: program.conduct.written.clone(),
            sampling,
            calibration,
        };
        Some((run_name(&spec.rollout, *revision, *attempt), spec))
    }
}

/// As the source says it.
fn sampling(pass: &Pass<'_>) -> Option<Sampling> {
    match pass.observed.source {
        Source::Ready { scrape_interval_ms, delay_ms } => {
            Some(Sampling { scrape_interval: ms(scrape_interval_ms.unwrap_or(UNSAID)), delay: ms(delay_ms) })
        }
        Source::NotNamed | Source::NotFound | Source::NotAllowed => None,
    }
}

fn ms(ms: i64) -> Duration {
    Duration::from_millis(u64::try_from(ms).unwrap_or(0))
}

/// What such a run wants to know of the stable pods; None for nothing.
fn history(pass: &Pass<'_>, conduct: &Conduct) -> Option<HistoryQuery> {
    let plan = &conduct.analysis;
    let of_pods = || plan.metrics.iter().filter(|metric| metric.told.is_none());
    let sampling = sampling(pass).filter(|_| plan.history > 0 && of_pods().next().is_some())?;
    Some(HistoryQuery {
        query: Query {
            source: plan.source.clone()?,
            since: 0,
            pods: BTreeSet::from([pod_prefix(&pass.observed.meta.name, &pass.stable_hash())]),
            cohorts: None,
            metrics: of_pods().map(|m| (m.name.clone(), m.query.clone())).collect(),
            told: BTreeMap::new(),
            summable: of_pods().map(|m| m.name.clone()).collect(),
            summed: BTreeSet::new(),
            scrape_interval_ms: sampling.scrape_interval.millis(),
            delay_ms: sampling.delay.millis(),
        },
        gaps: matches!(pass.observed.source, Source::Ready { scrape_interval_ms: None, .. }),
        length: plan.history,
        warmup: plan.warmup,
        steps: conduct.steps.iter().map(|step| (step.weight, step.replicas)).collect(),
        alpha: plan.alpha,
    })
}

fn revisions(pass: &Pass<'_>) -> BTreeMap<Hash, i64> {
    let both = [&pass.status.stable, &pass.status.canary];
    both.into_iter().flatten().map(|r| (r.hash.clone(), r.revision)).collect()
}

/// A fresh baseline goes with the old pods, else with the end of the run. What an earlier run has left is of another age: it
/// goes before the first step.
fn baseline_stays(pass: &Pass<'_>, of: &str) -> bool {
    let old = pass.status.old.as_ref().is_some_and(|old| old.hash == of);
    let fresh = pass.conduct.is_none_or(|conduct| conduct.analysis.fresh);
    let in_use = pass.status.canary.is_some() && fresh && pass.state() != StateName::Preparing;
    old || (in_use && pass.stable_hash() == of)
}

/// What is absent stays as it is: an observation may be old, and pods go only when no route sends them anything.
fn sizes(pass: &Pass<'_>) -> BTreeMap<Hash, i32> {
    let Some(stable) = &pass.status.stable else { return BTreeMap::new() };
    let mut sizes = BTreeMap::new();
    let observed = pass.observed;
    let kept = [&pass.status.stable, &pass.status.canary].into_iter().flatten().map(|r| &r.hash);
    let kept: Vec<&Hash> = kept
        .chain(pass.status.old.as_ref().map(|o| &o.hash))
        .chain(observed.services.values().filter_map(|s| s.selects.as_ref()))
        .chain(observed.services.values().flat_map(|s| &s.ready).filter(|(_, n)| **n > 0).map(|(h, _)| h))
        .collect();
    for (hash, _) in observed.revisions.iter().filter(|(_, r)| r.desired > 0) {
        let stays = of_baseline(hash).map_or_else(|| kept.contains(&hash), |of| baseline_stays(pass, of));
        if pass.state() != StateName::Unknown && !stays {
            sizes.insert(hash.clone(), 0);
        }
    }
    if let Some(canary) = &pass.status.canary {
        let need = pass.need();
        let exact = pass.state() == StateName::Judging;
        let (wanted, baseline) = match pass.state() {
            StateName::Scaling
            | StateName::Shifting
            | StateName::Settling
            | StateName::Holding
            | StateName::Paused
            | StateName::Judging => (Some(need), pass.fresh_baseline()),
            StateName::Promoting => (Some(pass.size().max(1)), None),
            StateName::Preparing
            | StateName::RollingBack
            | StateName::Finalising
            | StateName::Healthy
            | StateName::Degraded
            | StateName::Unknown => (None, None),
        };
        for hash in [Some(canary.hash.clone()), baseline].into_iter().flatten() {
            let now = observed.revisions.get(&hash).map_or(0, |r| r.desired);
            let wanted = wanted.filter(|wanted| now < *wanted || exact);
            sizes.extend(wanted.map(|wanted| (hash, wanted)));
        }
    }
    sizes.insert(stable.hash.clone(), pass.size());
    sizes
}

/// What the states ask for, without a move that would take traffic somewhere. What is absent stays as it is.
fn selectors(pass: &Pass<'_>) -> BTreeMap<Role, Hash> {
    let mut selectors = BTreeMap::new();
    let Some(stable) = &pass.status.stable else { return selectors };
    let old = pass.status.old.as_ref().map(|o| &o.hash);
    let state = pass.state();
    let before = state == StateName::Finalising && pass.stage() < Stage::Select;
    selectors.insert(Role::Stable, old.filter(|_| before).unwrap_or(&stable.hash).clone());
    let canary = match (&pass.status.canary, state) {
        (None, _) | (Some(_), StateName::Preparing) => Some(&stable.hash),
        (Some(_), StateName::RollingBack) => {
            (pass.stage() >= Stage::Select && pass.stage() != Stage::Unknown).then_some(&stable.hash)
        }
        (Some(canary), _) => {
            let carries = pass.weight() > Percent::ZERO;
            let moves = matches!(state, StateName::Shifting | StateName::Promoting);
            (moves || (carries && state != StateName::Unknown)).then_some(&canary.hash)
        }
    };
    let selects = |role| pass.observed.services.get(&role).and_then(|s| s.selects.as_ref());
    let canary = canary.or_else(|| selects(Role::Canary).is_none().then_some(&stable.hash));
    selectors.extend(canary.map(|hash| (Role::Canary, hash.clone())));
    selectors
        .retain(|role, to| selects(*role).is_none_or(|from| from == to || may_move(pass, *role, from, to)));
    selectors
}

/// A selector moves only while its Service carries nothing on any route, and never to a revision with fewer ready pods
/// than it takes. What is no revision of ours is put right at once.
fn may_move(pass: &Pass<'_>, role: Role, from: &Hash, to: &Hash) -> bool {
    if pass.status.traffic.is_none() {
        let (ready, before) = (pass.available(to), pass.available(from));
        return ready >= before.min(pass.size());
    }
    let ours = [&pass.status.stable, &pass.status.canary].into_iter().flatten().map(|r| &r.hash);
    if !ours.chain(pass.status.old.as_ref().map(|o| &o.hash)).any(|hash| hash == from) {
        return true;
    }
    if pass.state() == StateName::RollingBack {
        return pass.carries_nothing(role) || pass.past_deadline();
    }
    pass.carries_nothing(role) && pass.available(to) > 0
}

fn weights(pass: &Pass<'_>) -> BTreeMap<davylamp_api::rollout::RouteRef, RouteGoal> {
    let Some(traffic) = &pass.status.traffic else { return BTreeMap::new() };
    if !conflicts::put_back(pass) {
        return BTreeMap::new();
    }
    traffic
        .originals
        .iter()
        .filter(|o| pass.observed.routes.get(&o.route).is_some_and(|r| r.found))
        .filter(|o| traffic.restore || !pass.rises_uncovered(&o.route))
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
    let fold = pass.fold.as_ref()?;
    let since = if let Some(since) = background::watched_since(pass) {
        since
    } else {
        let checkpoint = pass.status.analysis.as_ref()?.checkpoint.as_ref();
        let folded_until = checkpoint.filter(|c| c.t0 > 0 && fold.is_open())?.folded_until;
        folded_until.min(fold.folded_until())
    };
    Query::of_run(plan, pass.cohorts(plan)?, since, fold.summed())
}

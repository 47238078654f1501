//! One pass of `decide`: its arguments, the status it is changing, and what every state needs to know of them.

use davylamp_api::Instant;
use davylamp_api::conditions::{self, ConditionType, Reason};
use davylamp_api::rollout::{RouteRef, Step};
use davylamp_api::run::DecisionRecord;
use davylamp_api::scalar::Percent;
use davylamp_api::status::{
    Pending, Revision, RolloutStatus, RuleWeights, Stage, State, StateName, TrafficStatus,
};

use crate::decision::{Named, Wake, Why};
use crate::explain;
use crate::fold::Fold;
use crate::observed::{Effective, Hash, Observed, Role, Route, Template, baseline_of};
use crate::program::{Conduct, Input, Plan, StepView, pods_for, step_view};

/// Routes must be effective within this, ms.
pub(crate) const ROUTER_DEADLINE: i64 = 300_000;
/// A full outbox.
const OUTBOX: usize = 8;

/// One pass.
pub(crate) struct Pass<'a> {
    pub(crate) input: &'a Input,
    pub(crate) observed: &'a Observed,
    pub(crate) conduct: Option<&'a Conduct>,
    pub(crate) now: Instant,
    /// The time of the transition that is being made: `now`, or that of the look.
    pub(crate) at: Instant,
    pub(crate) status: RolloutStatus,
    pub(crate) fold: Option<Fold<'a>>,
    /// A transition was made in this pass.
    pub(crate) moved: bool,
    pub(crate) wakes: Vec<Wake>,
}

impl<'a> Pass<'a> {
    pub(crate) fn new(input: &'a Input, status: RolloutStatus, observed: &'a Observed, now: Instant) -> Self {
        let mut pass = Self {
            input,
            observed,
            conduct: None,
            now,
            at: now,
            status,
            fold: None,
            moved: false,
            wakes: Vec::new(),
        };
        pass.conduct = input.run.as_ref().filter(|_| pass.in_flight());
        pass.fold = pass.continue_fold();
        pass
    }

    fn continue_fold(&self) -> Option<Fold<'a>> {
        let conduct = self.conduct.filter(|c| !c.analysis.is_empty())?;
        let checkpoint = self.status.analysis.as_ref().and_then(|a| a.checkpoint.clone()).unwrap_or_default();
        let mut fold = Fold::new(&conduct.analysis, &checkpoint, self.weight(), self.next_weight());
        let cohorts = self.cohorts(&conduct.analysis)?;
        if let Some(samples) = &self.observed.samples {
            fold.take(samples, self.observed, &cohorts);
        }
        Some(fold)
    }

    /// Who is compared with whom.
    pub(crate) fn cohorts(&self, plan: &Plan) -> Option<Named> {
        let (canary, stable) = (self.status.canary.as_ref()?, self.status.stable.as_ref()?);
        let baseline = plan.baseline(&stable.hash);
        Some(Named::of(&self.observed.meta.name, &canary.hash, &baseline, self.status.services.as_ref()))
    }

    // The state.

    pub(crate) fn state(&self) -> StateName {
        self.status.state.as_ref().map_or(StateName::Healthy, |s| s.name)
    }

    pub(crate) fn reason(&self) -> Reason {
        self.status.state.as_ref().map_or(Reason::AsExpected, |s| s.reason)
    }

    pub(crate) fn stage(&self) -> Stage {
        self.status.state.as_ref().and_then(|s| s.stage).unwrap_or(Stage::Weight)
    }

    /// A run is on.
    pub(crate) fn in_flight(&self) -> bool {
        self.status.canary.is_some() || self.state() == StateName::Finalising
    }

    /// The stable revision has once been available: it can be gone back to.
    pub(crate) fn proven(&self) -> bool {
        self.status.stable.as_ref().is_some_and(|s| s.started_at.is_some())
    }

    pub(crate) fn progress_deadline(&self) -> i64 {
        self.input.program.as_ref().map_or(600_000, |p| p.progress_deadline)
    }

    /// The next look at the data, and its time.
    pub(crate) fn look(&mut self) -> Option<Instant> {
        let at = self.fold.as_mut()?.look()?;
        Some(Instant::from_millisecond(at).unwrap_or(self.now).min(self.now))
    }

    pub(crate) fn past_deadline(&self) -> bool {
        self.status.state.as_ref().and_then(|s| s.deadline).is_some_and(|d| d <= self.now)
    }

    /// Wakes at that time; true when it has come.
    pub(crate) fn reached(&mut self, at: Instant, why: Why) -> bool {
        if at <= self.now {
            return true;
        }
        self.wakes.push(Wake { at, why });
        false
    }

    /// Enters a state, and tells it. `deadline` is in ms from now.
    pub(crate) fn go(&mut self, to: StateName, reason: Reason, deadline: Option<i64>, message: String) {
        let from = self.status.state.as_ref().map(|s| s.name);
        let deadline = deadline.map(|ms| later(self.now, ms));
        self.status.state =
            Some(State { name: to, since: self.at, deadline, reason, stage: None, stage_since: None });
        self.moved = true;
        self.tell(from, to, reason, message);
    }

    pub(crate) fn go_stage(&mut self, stage: Stage) {
        if let Some(state) = &mut self.status.state {
            state.stage = Some(stage);
            state.stage_since = Some(self.now);
        }
        self.moved = true;
    }

    fn tell(&mut self, from: Option<StateName>, to: StateName, reason: Reason, message: String) {
        self.status.told = self.status.told.saturating_add(1);
        let judged = self.fold.as_ref().filter(|fold| self.weight() > Percent::ZERO || fold.is_open());
        let (after, young) = judged.map(Fold::left_out).unwrap_or_default();
        let record = DecisionRecord {
            number: self.status.told,
            at: self.at,
            from: from.map_or("", StateName::as_str).to_owned(),
            to: to.as_str().to_owned(),
            step: self.status.step.as_ref().map_or(0, |s| s.index),
            weight: self.status.traffic.as_ref().map_or(Percent::ZERO, |t| t.desired).to_string(),
            rule: reason.as_str().to_owned(),
            message: explain::bounded(message, 1_024),
            metrics: judged.map(Fold::records).unwrap_or_default(),
            gauges: judged.map(Fold::gauges).unwrap_or_default(),
            split: judged.and_then(Fold::split),
            expressions: judged.map(Fold::expressions).unwrap_or_default(),
            after,
            before: judged.filter(|_| to == StateName::Settling).and_then(Fold::closed),
            young,
            gap: None,
            previous_digest: None,
        };
        let warning = matches!(to, StateName::RollingBack | StateName::Degraded | StateName::Holding)
            || (to == StateName::Paused && reason != Reason::Approval);
        self.status.pending.push(Pending { record, run: self.status.run.clone(), warning, outcome: None });
        if self.status.pending.len() > OUTBOX {
            self.status.pending.remove(0);
            self.status.dropped = self.status.dropped.saturating_add(1);
            if let Some(first) = self.status.pending.first_mut() {
                first.record.gap = Some(true);
            }
        }
        if let Some(fold) = &mut self.fold {
            fold.decided(reason.as_str());
        }
    }

    /// The record that was told last ends the run.
    pub(crate) fn end_run(&mut self, outcome: &str) {
        if let Some(last) = self.status.pending.last_mut() {
            last.outcome = Some(outcome.to_owned());
        }
    }

    // Revisions and their pods.

    pub(crate) fn stable_hash(&self) -> Hash {
        self.status.stable.as_ref().map(|r| r.hash.clone()).unwrap_or_default()
    }

    pub(crate) fn canary_hash(&self) -> Hash {
        self.status.canary.as_ref().map(|r| r.hash.clone()).unwrap_or_default()
    }

    /// The pods that a fresh baseline is; None without one.
    pub(crate) fn fresh_baseline(&self) -> Option<Hash> {
        self.conduct.filter(|c| c.analysis.fresh).map(|_| baseline_of(&self.stable_hash()))
    }

    /// So many pods of the canary are ready, and of a fresh baseline.
    pub(crate) fn ready_to_compare(&self) -> i32 {
        let baseline = self.fresh_baseline().map(|hash| self.available(&hash));
        self.available(&self.canary_hash()).min(baseline.unwrap_or(i32::MAX))
    }

    pub(crate) fn available(&self, hash: &str) -> i32 {
        self.observed.revisions.get(hash).map_or(0, |r| r.available)
    }

    /// Ready endpoints of a revision behind a Service that selects it; 0 when it selects another.
    pub(crate) fn endpoints(&self, role: Role, hash: &str) -> i32 {
        match self.observed.services.get(&role) {
            Some(service) if !service.foreign && service.selects.as_deref() == Some(hash) => {
                service.ready.get(hash).copied().unwrap_or(0)
            }
            Some(_) | None => 0,
        }
    }

    /// The size that carries the full traffic.
    pub(crate) fn size(&self) -> i32 {
        let wanted = self.input.program.as_ref().and_then(|p| p.replicas).unwrap_or(self.status.replicas);
        if self.in_flight() { wanted.max(self.status.size_at_start.unwrap_or(0)) } else { wanted }.max(0)
    }

    /// Pods that a share of the traffic needs.
    pub(crate) fn pods_for(&self, weight: Percent) -> i32 {
        pods_for(self.size(), weight)
    }

    /// Pods that the present step needs.
    pub(crate) fn need(&self) -> i32 {
        let own = self.step().and_then(|s| s.replicas);
        own.unwrap_or_else(|| self.pods_for(self.step_weight())).max(1)
    }

    /// Pods that were asked for the weight of now, which may be that of an earlier step.
    pub(crate) fn need_now(&self) -> i32 {
        let (weight, size) = (self.weight(), self.pods_for(self.weight()));
        let own = self.steps().iter().filter(|s| s.weight == weight).find_map(|s| s.replicas);
        own.unwrap_or_else(|| size.min(self.need())).max(1)
    }

    pub(crate) fn note_pods(&mut self) {
        let observed = self.observed;
        let note = |revision: Option<&mut Revision>| {
            if let Some(revision) = revision {
                let seen = observed.revisions.get(&revision.hash);
                revision.replicas = seen.map_or(0, |r| r.desired);
                revision.ready_replicas = seen.map_or(0, |r| r.available);
            }
        };
        note(self.status.stable.as_mut());
        note(self.status.canary.as_mut());
    }

    // Steps.

    fn steps(&self) -> &[Step] {
        if let Some(plan) = &self.status.plan {
            return &plan.steps;
        }
        self.conduct.map_or(&[], |c| &c.steps)
    }

    /// The present step, with every default filled.
    pub(crate) fn step(&self) -> Option<StepView> {
        let index = usize::try_from(self.status.step.as_ref()?.index).ok()?.checked_sub(1)?;
        self.steps().get(index).map(step_view)
    }

    pub(crate) fn step_weight(&self) -> Percent {
        self.step()
            .map(|s| s.weight)
            .or_else(|| self.status.step.as_ref().map(|s| s.weight))
            .unwrap_or_default()
    }

    /// The step that is present or was last and has this weight: its index, and the weight before.
    pub(crate) fn step_of(&self, weight: Percent) -> Option<(i32, Percent)> {
        let present = usize::try_from(self.status.step.as_ref()?.index).ok()?;
        let done = self.steps().get(..present)?;
        let at = done.iter().rposition(|step| step.weight == weight).filter(|at| at + 2 >= present)?;
        let before = at.checked_sub(1).and_then(|before| done.get(before));
        Some((i32::try_from(at).ok()? + 1, before.map_or(Percent::ZERO, |step| step.weight)))
    }

    /// The weight after the present step: that of the next one, or all.
    pub(crate) fn next_weight(&self) -> Percent {
        let next = self.status.step.as_ref().and_then(|s| usize::try_from(s.index).ok()).unwrap_or(0);
        self.steps().get(next).map_or(Percent::FULL, |s| s.weight)
    }

    pub(crate) fn is_last_step(&self) -> bool {
        let index = self.status.step.as_ref().and_then(|s| usize::try_from(s.index).ok()).unwrap_or(0);
        index >= self.steps().len()
    }

    // Traffic.

    /// What the routes should carry now.
    pub(crate) fn weight(&self) -> Percent {
        self.status.traffic.as_ref().map_or(Percent::ZERO, |t| t.desired)
    }

    pub(crate) fn traffic(&mut self) -> &mut TrafficStatus {
        self.status.traffic.get_or_insert_with(TrafficStatus::default)
    }

    pub(crate) fn settle(&self) -> i64 {
        self.conduct.map_or(30_000, |c| c.analysis.settle)
    }

    /// The routes are about to be written: a gateway that says nothing is given its time from now on.
    pub(crate) fn weights_change(&mut self) {
        let now = self.now;
        if let Some(state) = &mut self.status.state {
            state.stage_since = Some(now);
        }
        self.moved = true;
    }

    /// The weight is written into the status; effects follow. Closes the window of data.
    pub(crate) fn set_weight(&mut self, weight: Percent) {
        if let Some(fold) = &mut self.fold {
            fold.close();
        }
        let traffic = self.traffic();
        traffic.desired = weight;
        traffic.effective = None;
        traffic.effective_since = None;
        if let Some(conflicts) = &mut self.status.conflicts {
            conflicts.next = None;
        }
        self.weights_change();
    }

    /// All routes of the run carry the weight, and their gateways say so; else which does not, and why.
    pub(crate) fn routes_carry(&mut self, weight: Percent) -> Result<(), (Reason, String)> {
        let originals = self.status.traffic.as_ref().map(|t| t.originals.clone()).unwrap_or_default();
        if originals.is_empty() {
            return Err((Reason::RouteNotFound, "no route is driven".to_owned()));
        }
        for original in originals {
            self.route_carries(&original.route, weight)?;
        }
        Ok(())
    }

    /// No route that exists says otherwise. One that is gone, or names us no more, carries nothing of ours.
    pub(crate) fn existing_carry(&mut self, weight: Percent) -> bool {
        let originals = self.status.traffic.as_ref().map(|t| t.originals.clone()).unwrap_or_default();
        originals.iter().all(|o| match self.route_carries(&o.route, weight) {
            Ok(()) | Err((Reason::RouteNotFound | Reason::RouteUnsupported, _)) => true,
            Err(_) => false,
        })
    }

    fn route_carries(&mut self, target: &RouteRef, weight: Percent) -> Result<(), (Reason, String)> {
        let name = &target.name;
        let Some(route) = self.observed.routes.get(target).filter(|r| r.found) else {
            return Err((
                Reason::RouteNotFound,
                format!("HTTPRoute {name} does not exist: create it, with both Services as backends"),
            ));
        };
        if let Some(why) = &route.unsupported {
            return Err((Reason::RouteUnsupported, format!("HTTPRoute {name}: {why}")));
        }
        if !carries(route, weight) {
            return Err((Reason::RouteNotEffective, format!("HTTPRoute {name} is being written")));
        }
        match &route.effective {
            Effective::Yes => Ok(()),
            Effective::No(why) => Err((Reason::RouteNotEffective, format!("HTTPRoute {name}: {why}"))),
            Effective::Unverifiable
                if self.status.traffic.as_ref().is_some_and(|t| t.effective == Some(weight)) =>
            {
                Ok(())
            }
            Effective::Unverifiable => {
                let since = self.status.state.as_ref().map_or(self.now, |s| s.stage_since.unwrap_or(s.since));
                let settle = 2 * self.settle();
                if self.reached(later(since, settle), Why::Settle) {
                    Ok(())
                } else {
                    Err((
                        Reason::RouteNotEffective,
                        format!(
                            "HTTPRoute {name}: its gateway says no generation; waiting twice the settle time"
                        ),
                    ))
                }
            }
        }
    }

    /// No route sends the Service anything, and no gateway says that it still does.
    pub(crate) fn carries_nothing(&self, role: Role) -> bool {
        let routes = self.status.traffic.iter().flat_map(|t| t.originals.iter().map(|o| &o.route));
        routes.filter_map(|route| self.observed.routes.get(route)).all(|route| {
            let nothing = route.rules.iter().all(|rule| match role {
                Role::Stable => rule.stable == Some(0),
                Role::Canary => rule.canary == Some(0),
            });
            !route.found
                || route.unsupported.is_some()
                || (nothing && !matches!(route.effective, Effective::No(_)))
        })
    }

    /// To write our weight would raise the canary's, and the pods behind it are not there now.
    pub(crate) fn rises_uncovered(&self, route: &RouteRef) -> bool {
        let Some(traffic) = &self.status.traffic else { return false };
        let falling = matches!(self.state(), StateName::RollingBack | StateName::Finalising);
        let weight = i64::from(traffic.desired.basis_points());
        let Some(rules) = self.observed.routes.get(route).map(|r| &r.rules).filter(|_| !falling) else {
            return false;
        };
        let rises = rules.iter().any(|r| {
            let (stable, canary) =
                (i64::from(r.stable.unwrap_or(1).max(0)), i64::from(r.canary.unwrap_or(1).max(0)));
            canary * 10_000 < weight * (stable + canary) || stable + canary == 0
        });
        let (need, full) = if self.state() == StateName::Promoting {
            (self.size().max(1), Percent::FULL)
        } else {
            (self.need(), self.step_weight())
        };
        let endpoints = i64::from(self.endpoints(Role::Canary, &self.canary_hash()));
        rises && endpoints * 10 * i64::from(full.basis_points()) < i64::from(need) * 8 * weight
    }

    /// A route that exists holds neither our numbers nor our name any more.
    pub(crate) fn routes_restored(&self) -> Result<(), (Reason, String)> {
        for original in self.status.traffic.iter().flat_map(|t| &t.originals) {
            let Some(route) = self.observed.routes.get(&original.route).filter(|r| r.found) else { continue };
            let ours = ours(self.weight());
            let theirs =
                |rule: &RuleWeights| original.rules.contains(rule) || (rule.stable, rule.canary) != ours;
            if route.ours || !route.rules.iter().all(theirs) {
                return Err((
                    Reason::RouteNotEffective,
                    format!("HTTPRoute {} is being restored", original.route.name),
                ));
            }
            if let Effective::No(why) = &route.effective {
                return Err((Reason::RouteNotEffective, format!("HTTPRoute {}: {why}", original.route.name)));
            }
        }
        Ok(())
    }

    // The template of the spec.

    /// The spec's revision, when it can be carried out and the API server takes its template.
    pub(crate) fn wanted(&self) -> Option<&'a crate::program::Program> {
        let program = self.input.program.as_ref()?;
        self.template_accepted(&program.hash).then_some(program)
    }

    fn template_accepted(&self, hash: &str) -> bool {
        let used = [&self.status.stable, &self.status.canary].into_iter().flatten().any(|r| r.hash == hash);
        used || self.observed.template == Template::Accepted || self.checked_before()
    }

    /// The API server has been asked about this generation.
    pub(crate) fn checked_before(&self) -> bool {
        conditions::get(&self.status.conditions, ConditionType::Valid)
            .is_some_and(|c| c.status == "True" && c.observed_generation == Some(self.input.generation))
            && matches!(self.observed.template, Template::Unchecked)
    }
}

/// What the names of a revision's pods begin with: the API server cuts it, and adds five characters.
pub(crate) fn pod_prefix(rollout: &str, hash: &str) -> String {
    format!("{rollout}-{hash}-").chars().take(58).collect()
}

/// All rules of the route say that weight.
pub(crate) fn carries(route: &Route, weight: Percent) -> bool {
    !route.rules.is_empty() && route.rules.iter().all(|r| (r.stable, r.canary) == ours(weight))
}

/// The numbers of a weight, stable first.
fn ours(weight: Percent) -> (Option<i32>, Option<i32>) {
    let canary = i32::from(weight.basis_points());
    (Some(10_000 - canary), Some(canary))
}

/// That many ms later, at most at the end of time.
pub(crate) fn later(at: Instant, ms: i64) -> Instant {
    at.as_millisecond()
        .checked_add(ms)
        .and_then(|ms| Instant::from_millisecond(ms).ok())
        .unwrap_or(Instant::MAX)
}

/// Names of runs are made of the revision and the attempt.
pub(crate) fn run_name(rollout: &str, revision: i64, attempt: i32) -> String {
    format!("{rollout}-{revision}-{attempt}")
}

#[cfg(test)]
mod tests {
    use super::{baseline_of, pod_prefix};

    #[test]
    fn pods_of_a_baseline_are_told_from_those_of_its_revision_by_their_length() {
        let hash = "5d8f9c77b1";
        assert_eq!(pod_prefix("shop", &baseline_of(hash)), "shop-5d8f9c77b1-baseline-");
        let longest = "a".repeat(45);
        let [stable, baseline] = [hash.to_owned(), baseline_of(hash)].map(|hash| pod_prefix(&longest, &hash));
        assert_eq!((stable.len(), baseline.len()), (57, 58));
        assert_eq!(baseline, format!("{stable}b"));
    }
}

//! What the controller does with the engine's answers: write-ahead, effects in order, the outbox; and a crash between.

use davylamp_api::status::{RolloutStatus, RuleWeights};
use davylamp_engine::observed::{Learnt, Observed, of_baseline};
use davylamp_engine::{Conduct, Decision, Desired, History, HistoryQuery, RouteGoal, decide};

use super::{INTERVAL, Turn, World, at, check};

impl World {
    /// Passes until nothing changes any more.
    pub(crate) fn reconcile(&mut self) {
        for _ in 0..60 {
            if self.gone || !std::mem::take(&mut self.changed) {
                return;
            }
            self.pass();
        }
        panic!("no end of passes at the same moment: {}\n{}", self.status.message, self.story());
    }

    fn pass(&mut self) {
        self.passes += 1;
        let observed = match self.seen.take().filter(|_| std::mem::take(&mut self.stale)) {
            Some(old) => {
                self.changed = true;
                Observed { actions: self.observe().actions, delivered: self.delivered, ..old }
            }
            None => self.observe(),
        };
        self.seen = Some(observed.clone());
        let input = self.input(&self.status);
        let before = self.status.clone();
        let decision = decide(&input, &before, &observed, at(self.now));
        let turn = Turn { input, before: &before, observed, decision };
        check::turn(self, &turn);
        let Turn { observed, decision, .. } = turn;
        let Decision { status, desired, wake } = decision;
        self.note_trace(&before, &status);
        if status != before {
            self.changed = true;
            self.status = status;
        }
        self.wake = wake.map(|w| w.at.as_millisecond());
        self.sampler.ask(self.now, desired.query.clone());
        let budget = self.crash_after.take().unwrap_or(usize::MAX);
        self.apply(&desired, &observed, budget);
        // The outbox: idempotent, and again after a crash.
        if budget == usize::MAX {
            for pending in self.status.pending.iter().filter(|p| p.record.number > self.delivered) {
                self.records.push(pending.record.clone());
                if pending.outcome.is_some()
                    && let Some(run) = &pending.run
                {
                    self.runs.remove(run);
                }
            }
            let last = self.status.pending.iter().map(|p| p.record.number).max();
            self.delivered = self.delivered.max(last.unwrap_or(0));
        }
        for outcome in &self.status.actions {
            if self.actions.remove(&outcome.uid).is_some() {
                self.outcomes.insert(outcome.uid.clone(), (outcome.phase, outcome.message.clone()));
                self.changed = true;
            }
        }
        let held = self.routes.values().any(|r| r.ours);
        if let Some(since) = self.deleting.filter(|_| !self.finalizer) {
            self.gone = true;
            assert!(!held || self.now >= since + 300_000, "the finalizer went too early");
        }
    }

    /// Nothing was scraped before a run, but what is usual may be known, and how far apart scrapes are.
    fn learn(&self, of: HistoryQuery) -> Learnt {
        let (gaps, mut history) = (of.gaps, History::new(of));
        if gaps {
            history.scraped_each(INTERVAL);
        }
        let mut learnt = history.learn(None);
        for metric in learnt.metrics.values_mut() {
            metric.rate = self.usual;
            metric.per_second = self.usual_traffic;
        }
        learnt
    }

    fn note_trace(&mut self, before: &RolloutStatus, after: &RolloutStatus) {
        for pending in after.pending.iter().filter(|p| p.record.number > before.told) {
            self.trace.push(pending.record.to.clone());
        }
    }

    fn has_template(&self, hash: &str) -> bool {
        self.history_of_templates.contains(of_baseline(hash).unwrap_or(hash))
    }

    fn apply(&mut self, desired: &Desired, observed: &Observed, mut budget: usize) {
        let mut effect = || {
            budget = budget.saturating_sub(1);
            budget > 0
        };
        if let Some(hash) = &desired.check
            && effect()
            && self.checked.insert(hash.clone())
        {
            self.changed = true;
        }
        if let Some(replicas) = desired.fill_replicas
            && effect()
        {
            self.edit(|spec| spec.replicas = Some(replicas));
        }
        if let Some((name, spec)) = &desired.run
            && !self.runs.contains_key(name)
            && effect()
        {
            let conduct =
                Conduct::compile(&spec.strategy, &spec.analysis, spec.sampling, &spec.calibration).unwrap();
            self.conducts.insert(name.clone(), conduct);
            self.runs.insert(name.clone(), spec.clone());
            self.changed = true;
        }
        let learnt = desired.history.clone().map(|of| self.learn(of));
        if learnt.is_some() && learnt != self.learnt {
            self.learnt = learnt;
            self.changed = true;
        }
        if let Some(on) = desired.finalizer
            && self.finalizer != on
            && effect()
        {
            assert!(
                !(on && self.deleting.is_some()),
                "the API server adds no finalizer to what is being deleted"
            );
            self.finalizer = on;
            self.changed = true;
        }
        for hash in desired.revisions.keys() {
            self.history_of_templates.insert(hash.clone());
        }
        for (role, hash) in &desired.selectors {
            let now = self.services.get(role).and_then(|s| s.selects.clone());
            let foreign = self.services.get(role).is_some_and(|s| s.foreign);
            if now.as_ref() == Some(hash) || foreign || !effect() {
                continue;
            }
            check::selector(self, *role, now.as_deref(), hash, observed);
            self.services.entry(*role).or_default().selects = Some(hash.clone());
            self.seen = None;
            self.pods_changed();
        }
        for (hash, size) in &desired.sizes {
            let now = self.sets.get(hash).map_or(0, |s| s.desired);
            if now == *size || !effect() {
                continue;
            }
            check::size(self, hash, now, *size);
            assert!(now > 0 || self.has_template(hash), "no template for {hash}");
            self.sets.entry(hash.clone()).or_default().desired = *size;
            self.seen = None;
            self.fill(hash);
        }
        for (target, goal) in &desired.weights {
            let delay = self.route_delay;
            let due = self.now + delay;
            let Some(route) = self.routes.get_mut(target).filter(|r| r.found && !r.unsupported) else {
                continue;
            };
            let (rules, ours) = match goal {
                RouteGoal::Weight(weight) => {
                    let canary = i32::from(weight.basis_points());
                    let ours = |r: &RuleWeights| RuleWeights {
                        rule: r.rule,
                        stable: Some(10_000 - canary),
                        canary: Some(canary),
                    };
                    (route.rules.iter().map(ours).collect::<Vec<_>>(), true)
                }
                RouteGoal::Restore(original) => {
                    let theirs = |r: &RuleWeights| {
                        original.rules.iter().find(|o| o.rule == r.rule).copied().unwrap_or(*r)
                    };
                    (route.rules.iter().map(theirs).collect(), false)
                }
            };
            if (route.rules == rules && route.ours == ours) || !effect() {
                continue;
            }
            route.ours = ours;
            if route.rules != rules {
                route.rules = rules;
                route.due = Some(due);
            }
            self.seen = None;
            self.changed = true;
        }
    }
}

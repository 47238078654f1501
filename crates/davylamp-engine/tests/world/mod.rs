//! A small model world for the engine: pods, Services, routes, gateways and a metric source, driven in virtual time
//! like the controller drives the real one. Every pass is checked against the invariants of the engine.
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::struct_excessive_bools, reason = "what a world is like, and what is to go wrong in it")]

mod check;
mod controller;
mod sampler;

use std::collections::{BTreeMap, BTreeSet};

use davylamp_api::action::{ActionPhase, Verb};
use davylamp_api::rollout::{RouteKind, RouteRef, Step};
use davylamp_api::scalar::{Duration, PodTemplate};
use davylamp_api::status::{RolloutStatus, RuleWeights, StateName};
use davylamp_api::{Instant, RolloutRunSpec, RolloutSpec, revision};
use davylamp_engine::observed::{
    Action, Effective, Entrance, Hash, Learnt, Meta, Observed, Pod, Revision, Role, Route, Service, Source,
    Template, of_baseline,
};
use davylamp_engine::{Conduct, Decision, Input, Program};
use serde_json::json;

pub(crate) use sampler::{DELAY, INTERVAL};

/// 2026-01-01, in ms.
pub(crate) const START: i64 = 1_767_225_600_000;

/// How a version behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Version {
    /// Its pods are ready after so long; None: never.
    pub(crate) ready_after: Option<i64>,
    /// Of so many of its requests, one fails.
    pub(crate) error_rate: f64,
    /// Its pods are scraped.
    pub(crate) scraped: bool,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Set {
    pub(crate) desired: i32,
    pub(crate) pods: BTreeMap<String, PodModel>,
    born: u32,
}

#[derive(Clone, Debug)]
pub(crate) struct PodModel {
    created_at: i64,
    pub(crate) ready_at: Option<i64>,
    due: Option<i64>,
    /// Failures not yet whole, for rates that are exact.
    rest: f64,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct ServiceModel {
    pub(crate) foreign: bool,
    pub(crate) selects: Option<Hash>,
    /// What the gateway and the `EndpointSlice`s know.
    pub(crate) ready: BTreeMap<Hash, i32>,
    due: Option<(i64, BTreeMap<Hash, i32>)>,
}

#[derive(Clone, Debug)]
pub(crate) struct RouteModel {
    pub(crate) found: bool,
    pub(crate) unsupported: bool,
    pub(crate) verifiable: bool,
    pub(crate) rules: Vec<RuleWeights>,
    /// What the user wrote last while no run was on.
    pub(crate) user: Vec<RuleWeights>,
    /// The user's own numbers are not known for sure.
    pub(crate) ambiguous: bool,
    pub(crate) ours: bool,
    pub(crate) carried: Vec<RuleWeights>,
    due: Option<i64>,
    /// The gateway takes nothing any more.
    pub(crate) stuck: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) now: i64,
    pub(crate) spec: RolloutSpec,
    pub(crate) generation: i64,
    pub(crate) invalid: bool,
    pub(crate) status: RolloutStatus,
    pub(crate) deleting: Option<i64>,
    pub(crate) finalizer: bool,
    pub(crate) gone: bool,
    pub(crate) runs: BTreeMap<String, RolloutRunSpec>,
    conducts: BTreeMap<String, Conduct>,
    program: Result<Program, Vec<davylamp_engine::Problem>>,
    pub(crate) sets: BTreeMap<Hash, Set>,
    pub(crate) versions: BTreeMap<Hash, Version>,
    /// Versions whose pods the world took away, or that somebody broke.
    pub(crate) hurt: BTreeSet<Hash>,
    pub(crate) services: BTreeMap<Role, ServiceModel>,
    pub(crate) routes: BTreeMap<RouteRef, RouteModel>,
    pub(crate) actions: BTreeMap<String, Action>,
    pub(crate) outcomes: BTreeMap<String, (ActionPhase, String)>,
    pub(crate) entrance: Entrance,
    pub(crate) source: Source,
    pub(crate) sampler: sampler::Sampler,
    pub(crate) learnt: Option<Learnt>,
    /// How often requests failed before a run.
    pub(crate) usual: Option<f64>,
    /// How many requests a second there were.
    pub(crate) usual_traffic: Option<f64>,
    /// What other Rollouts have noticed.
    pub(crate) incidents: BTreeMap<String, Instant>,
    /// Of so many requests to any version, one more fails.
    pub(crate) around: f64,
    /// The same while the canary gets more than this share.
    pub(crate) breaks_above: Option<f64>,
    /// The gateways send the canary so many times what its weight says.
    pub(crate) misroutes: f64,
    pub(crate) checked: BTreeSet<Hash>,
    pub(crate) refused: BTreeSet<Hash>,
    history_of_templates: BTreeSet<Hash>,
    pub(crate) delivered: i64,
    pub(crate) endpoints_delay: i64,
    pub(crate) route_delay: i64,
    wake: Option<i64>,
    changed: bool,
    /// The next pass that has effects makes only so many of them.
    pub(crate) crash_after: Option<usize>,
    /// The next pass sees what an earlier one saw.
    pub(crate) stale: bool,
    seen: Option<Observed>,
    /// State names with weights, one for each change.
    pub(crate) trace: Vec<String>,
    pub(crate) records: Vec<davylamp_api::run::DecisionRecord>,
    pub(crate) passes: u64,
    /// Every request has once found a pod.
    served: bool,
}

/// What one pass did.
pub(crate) struct Turn<'a> {
    pub(crate) input: Input,
    pub(crate) before: &'a RolloutStatus,
    pub(crate) observed: Observed,
    pub(crate) decision: Decision,
}

pub(crate) fn at(ms: i64) -> Instant {
    Instant::from_millisecond(ms).unwrap()
}

pub(crate) fn secs(s: u64) -> Duration {
    Duration::from_secs(s)
}

pub(crate) fn route(name: &str) -> RouteRef {
    RouteRef { kind: RouteKind::HttpRoute, name: name.to_owned(), rule: None }
}

pub(crate) fn weights(stable: Option<i32>, canary: Option<i32>) -> Vec<RuleWeights> {
    vec![RuleWeights { rule: 0, stable, canary }]
}

pub(crate) fn template(version: u32) -> PodTemplate {
    PodTemplate(json!({
        "metadata": {"labels": {"app": "shop"}},
        "spec": {"containers": [{"name": "app", "image": format!("shop:{version}")}]}
    }))
}

pub(crate) fn hash(version: u32) -> Hash {
    revision::hash(&template(version).0, 0)
}

pub(crate) fn step(weight: &str) -> Step {
    Step { weight: weight.parse().unwrap(), ..Step::default() }
}

/// A Rollout with one route, short holds, and one metric when asked for.
pub(crate) fn spec(steps: &[Step], metrics: bool) -> RolloutSpec {
    let metrics = if metrics {
        json!([{"name": "errors", "ratio": {"events": "http_requests_total{code=~\"5..\"}", "total": "http_requests_total"}}])
    } else {
        json!([])
    };
    serde_json::from_value(json!({
        "replicas": 10,
        "selector": {"matchLabels": {"app": "shop"}},
        "template": template(1),
        "progressDeadline": "5m",
        "service": "shop",
        "strategy": {
            "canary": {"steps": steps},
            "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": "shop"}]}}]
        },
        "analysis": {
            "source": "prometheus",
            "hold": {"min": "2m", "max": "10m"},
            "warmup": "30s",
            "pause": {"deadline": "1h", "then": "rollback"},
            "metrics": metrics
        }
    }))
    .unwrap()
}

impl World {
    pub(crate) fn new(spec: RolloutSpec) -> Self {
        let routes = spec
            .strategy
            .traffic
            .iter()
            .flat_map(|t| &t.gateway_api.routes)
            .map(|r| {
                let rules = weights(Some(1), Some(0));
                let route = RouteModel {
                    found: true,
                    unsupported: false,
                    verifiable: true,
                    user: rules.clone(),
                    carried: rules.clone(),
                    rules,
                    ambiguous: false,
                    ours: false,
                    due: None,
                    stuck: false,
                };
                (r.clone(), route)
            })
            .collect();
        let version = Version { ready_after: Some(10_000), error_rate: 0.01, scraped: true };
        let mut world = Self {
            now: START,
            generation: 1,
            invalid: false,
            status: RolloutStatus::default(),
            deleting: None,
            finalizer: false,
            gone: false,
            runs: BTreeMap::new(),
            conducts: BTreeMap::new(),
            program: Err(Vec::new()),
            sets: BTreeMap::new(),
            versions: (1..=4).map(|v| (hash(v), version)).collect(),
            hurt: BTreeSet::new(),
            services: BTreeMap::new(),
            routes,
            actions: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            entrance: Entrance::Found,
            source: Source::Ready { scrape_interval_ms: Some(INTERVAL), delay_ms: DELAY },
            sampler: sampler::Sampler::default(),
            learnt: None,
            usual: None,
            usual_traffic: None,
            incidents: BTreeMap::new(),
            around: 0.0,
            breaks_above: None,
            misroutes: 1.0,
            checked: BTreeSet::new(),
            refused: BTreeSet::new(),
            history_of_templates: BTreeSet::new(),
            delivered: 0,
            endpoints_delay: 1_000,
            route_delay: 500,
            wake: None,
            changed: true,
            crash_after: None,
            stale: false,
            seen: None,
            trace: Vec::new(),
            records: Vec::new(),
            passes: 0,
            served: false,
            spec,
        };
        world.compile();
        world
    }

    /// A Rollout whose first release is done.
    pub(crate) fn settled(spec: RolloutSpec) -> Self {
        let mut world = Self::new(spec);
        world.run_for(60_000);
        assert_eq!(world.state(), StateName::Healthy, "{}", world.status.message);
        world.trace.clear();
        world
    }

    // What users do.

    pub(crate) fn edit(&mut self, edit: impl FnOnce(&mut RolloutSpec)) {
        edit(&mut self.spec);
        self.generation += 1;
        self.compile();
        self.changed = true;
    }

    pub(crate) fn release(&mut self, version: u32) {
        self.edit(|spec| spec.template = template(version));
    }

    pub(crate) fn act(&mut self, verb: Verb, run: Option<String>, step: Option<i32>, full: bool) -> String {
        let uid = format!("uid-{}", self.actions.len() + self.outcomes.len());
        let action = Action {
            uid: uid.clone(),
            name: format!("action-{}", self.actions.len() + self.outcomes.len()),
            verb,
            run,
            step,
            full,
            reason: Some("because".to_owned()),
            requested_by: Some("somebody".to_owned()),
        };
        self.actions.insert(uid.clone(), action);
        self.changed = true;
        uid
    }

    /// Promotes the present step.
    pub(crate) fn promote(&mut self) -> String {
        let step = self.status.step.as_ref().map(|s| s.index);
        self.act(Verb::Promote, self.status.run.clone(), step, false)
    }

    pub(crate) fn abort(&mut self) -> String {
        self.act(Verb::Abort, self.status.run.clone(), None, false)
    }

    pub(crate) fn delete(&mut self) {
        self.deleting.get_or_insert(self.now);
        self.changed = true;
    }

    pub(crate) fn write_route(&mut self, route: &RouteRef, stable: Option<i32>, canary: Option<i32>) {
        let (state, known) = (self.state(), self.originals_known(route));
        let restoring = self.status.traffic.as_ref().is_some_and(|t| t.restore);
        let due = self.now + self.route_delay;
        let at_rest = self.status.traffic.is_none() && state != StateName::Finalising;
        let Some(model) = self.routes.get_mut(route).filter(|r| r.found) else { return };
        model.rules = weights(stable, canary);
        model.due = Some(due);
        if at_rest {
            model.user.clone_from(&model.rules);
        } else if !known || restoring {
            model.ambiguous = true;
        }
        self.changed = true;
    }

    fn originals_known(&self, route: &RouteRef) -> bool {
        self.status.traffic.iter().flat_map(|t| &t.originals).any(|o| o.route == *route)
    }

    pub(crate) fn delete_route(&mut self, route: &RouteRef) {
        let Some(model) = self.routes.get_mut(route) else { return };
        model.found = false;
        model.ours = false;
        model.carried.clear();
        self.changed = true;
    }

    pub(crate) fn create_route(&mut self, route: &RouteRef) {
        let (due, known) = (self.now + self.route_delay, self.originals_known(route));
        let in_flight = self.status.canary.is_some();
        let Some(model) = self.routes.get_mut(route).filter(|r| !r.found) else { return };
        model.found = true;
        model.rules.clone_from(&model.user);
        model.due = Some(due);
        model.ambiguous |= in_flight && !known;
        self.changed = true;
    }

    /// The first of this version's pods go; new ones come.
    pub(crate) fn lose_pods(&mut self, hash: &str, count: usize) {
        self.hurt.insert(hash.to_owned());
        if let Some(set) = self.sets.get_mut(hash) {
            for name in set.pods.keys().take(count).cloned().collect::<Vec<_>>() {
                set.pods.remove(&name);
            }
        }
        self.fill(hash);
    }

    pub(crate) fn break_version(&mut self, hash: &str) {
        self.hurt.insert(hash.to_owned());
        if let Some(version) = self.versions.get_mut(hash) {
            version.ready_after = None;
        }
        for pod in self.pods_of(hash) {
            (pod.ready_at, pod.due) = (None, None);
        }
        self.pods_changed();
    }

    pub(crate) fn heal_version(&mut self, hash: &str) {
        let now = self.now;
        if let Some(version) = self.versions.get_mut(hash) {
            version.ready_after = version.ready_after.or(Some(10_000));
        }
        for pod in self.pods_of(hash) {
            if pod.ready_at.is_none() && pod.due.is_none() {
                pod.due = Some(now + 10_000);
            }
        }
    }

    /// Those of its fresh baseline as well.
    fn pods_of<'a>(&'a mut self, version: &'a str) -> impl Iterator<Item = &'a mut PodModel> {
        let of_it = move |hash: &str| of_baseline(hash).unwrap_or(hash) == version;
        self.sets.iter_mut().filter(move |(hash, _)| of_it(hash)).flat_map(|(_, set)| set.pods.values_mut())
    }

    fn compile(&mut self) {
        self.program = if self.invalid {
            Err(vec![davylamp_engine::Problem {
                path: "spec".to_owned(),
                wrong: "wrong".to_owned(),
                remedy: "write it right".to_owned(),
            }])
        } else {
            Program::compile("shop", &self.spec)
        };
    }

    // What the world says.

    pub(crate) fn state(&self) -> StateName {
        self.status.state.as_ref().map_or(StateName::Healthy, |s| s.name)
    }

    pub(crate) fn weight(&self) -> u16 {
        self.status.traffic.as_ref().map_or(0, |t| t.desired.basis_points())
    }

    pub(crate) fn condition(&self, kind: &str) -> Option<(&str, &str)> {
        let found = self.status.conditions.iter().find(|c| c.type_ == kind)?;
        Some((&found.status, &found.reason))
    }

    /// The share of the requests that each revision gets; "" is what no pod answers.
    pub(crate) fn traffic(&self) -> BTreeMap<Hash, f64> {
        let mut traffic = BTreeMap::new();
        let routes: Vec<_> = self.routes.values().filter(|r| r.found && !r.carried.is_empty()).collect();
        for route in &routes {
            for rule in &route.carried {
                let numbers = [
                    (Role::Stable, f64::from(rule.stable.unwrap_or(1))),
                    (Role::Canary, f64::from(rule.canary.unwrap_or(1))),
                ];
                let sum: f64 = numbers.iter().map(|(_, n)| n).sum();
                #[allow(clippy::cast_precision_loss, reason = "few")]
                let parts = (routes.len() * route.carried.len()) as f64;
                for (role, number) in numbers.into_iter().filter(|(_, n)| *n > 0.0) {
                    let canary = f64::from(rule.canary.unwrap_or(1)) / sum;
                    let got = (canary * self.misroutes).min(1.0);
                    let factor = match role {
                        Role::Canary => got / canary,
                        Role::Stable => (1.0 - got) / (1.0 - canary),
                    };
                    let share = number / sum / parts * if canary < 1.0 { factor } else { 1.0 };
                    let ready = self.services.get(&role).map(|s| s.ready.clone()).unwrap_or_default();
                    let all: i32 = ready.values().sum();
                    if all == 0 {
                        *traffic.entry(String::new()).or_insert(0.0) += share;
                    }
                    for (hash, n) in ready.into_iter().filter(|(_, n)| *n > 0) {
                        *traffic.entry(hash).or_insert(0.0) += share * f64::from(n) / f64::from(all.max(1));
                    }
                }
            }
        }
        traffic
    }

    /// Any route that exists sends something to that Service, as the gateways have it.
    pub(crate) fn carries(&self, role: Role) -> bool {
        self.routes.values().filter(|r| r.found).flat_map(|r| &r.carried).any(|rule| match role {
            Role::Stable => rule.stable.unwrap_or(1) > 0,
            Role::Canary => rule.canary.unwrap_or(1) > 0,
        })
    }

    pub(crate) fn ready_pods(&self, hash: &str) -> i32 {
        let pods = self.sets.get(hash).into_iter().flat_map(|s| s.pods.values());
        i32::try_from(pods.filter(|p| p.ready_at.is_some()).count()).unwrap()
    }

    pub(crate) fn input(&self, status: &RolloutStatus) -> Input {
        let run = status.run.as_ref().filter(|run| self.runs.contains_key(*run));
        Input {
            generation: self.generation,
            program: self.program.as_ref().ok().cloned(),
            problems: self.program.as_ref().err().cloned().unwrap_or_default(),
            run: run.and_then(|run| self.conducts.get(run).cloned()),
        }
    }

    pub(crate) fn observe(&self) -> Observed {
        let template = match &self.program {
            Ok(program) if self.refused.contains(&program.hash) && self.checked.contains(&program.hash) => {
                Template::Refused("no such field".to_owned())
            }
            Ok(program) if self.checked.contains(&program.hash) => Template::Accepted,
            _ => Template::Unchecked,
        };
        let revisions = self.sets.iter().map(|(hash, set)| {
            let pods = set.pods.iter().map(|(name, pod)| {
                let PodModel { created_at, ready_at, .. } = pod;
                (name.clone(), Pod { created_at: at(*created_at), ready_at: ready_at.map(at) })
            });
            let revision = Revision {
                desired: set.desired,
                available: self.ready_pods(hash),
                pods: pods.collect(),
                trouble: None,
                termination_grace: 30,
            };
            (hash.clone(), revision)
        });
        let services = self.services.iter().map(|(role, s)| {
            let service = Service { foreign: s.foreign, selects: s.selects.clone(), ready: s.ready.clone() };
            (*role, service)
        });
        let routes = self.routes.iter().map(|(target, r)| {
            let effective = match (r.verifiable, r.due) {
                (false, _) => Effective::Unverifiable,
                (true, None) => Effective::Yes,
                (true, Some(_)) => Effective::No("Programmed at an older generation".to_owned()),
            };
            let route = Route {
                found: r.found,
                unsupported: r.unsupported.then(|| "names only one of the Services".to_owned()),
                rules: if r.unsupported || !r.found { Vec::new() } else { r.rules.clone() },
                effective,
                ours: r.ours,
                other_manager: Some("kubectl".to_owned()),
            };
            (target.clone(), route)
        });
        Observed {
            meta: Meta {
                name: "shop".to_owned(),
                deleting: self.deleting.is_some(),
                finalizer: self.finalizer,
                deleted_at: self.deleting.map(at),
            },
            template,
            runs: self.runs.iter().map(|(name, run)| (name.clone(), run.hash.clone())).collect(),
            taken_runs: BTreeSet::new(),
            delivered: self.delivered,
            revisions: revisions.collect(),
            services: services.collect(),
            entrance: self.entrance,
            routes: routes.collect(),
            actions: self.actions.values().cloned().collect(),
            source: self.source.clone(),
            suggested: None,
            samples: self.sampler.samples(self.now),
            learnt: self.learnt.clone(),
            incidents: self.incidents.clone(),
        }
    }

    // What the world does by itself.

    fn fill(&mut self, hash: &str) {
        let now = self.now;
        let version = of_baseline(hash).unwrap_or(hash);
        let ready_after = self.versions.get(version).and_then(|v| v.ready_after);
        if let Some(set) = self.sets.get_mut(hash) {
            let desired = usize::try_from(set.desired).unwrap_or(0);
            while set.pods.len() < desired {
                set.born += 1;
                let name = format!("shop-{hash}-{:05}", set.born);
                let due = ready_after.map(|after| now + after);
                set.pods.insert(name, PodModel { created_at: now, ready_at: None, due, rest: 0.0 });
            }
            while set.pods.len() > desired {
                set.pods.pop_last();
            }
        }
        self.pods_changed();
    }

    fn pods_changed(&mut self) {
        let due = self.now + self.endpoints_delay;
        let roles: Vec<Role> = self.services.keys().copied().collect();
        for role in roles {
            let selects = self.services[&role].selects.clone();
            let truth: BTreeMap<Hash, i32> =
                selects.iter().map(|h| (h.clone(), self.ready_pods(h))).filter(|(_, n)| *n > 0).collect();
            let service = self.services.get_mut(&role).unwrap();
            // A pod that is gone answers nobody; what is new is learned with a delay.
            let same = service.due.as_ref().map_or(&service.ready, |(_, ready)| ready) == &truth;
            if !same {
                service.due = Some((due, truth));
            }
        }
        self.changed = true;
    }

    fn next_due(&self) -> Option<i64> {
        let pods = self.sets.values().flat_map(|s| s.pods.values()).filter_map(|p| p.due);
        let services = self.services.values().filter_map(|s| s.due.as_ref().map(|(due, _)| *due));
        let routes = self.routes.values().filter(|r| !r.stuck).filter_map(|r| r.due);
        pods.chain(services).chain(routes).chain(self.sampler.next(self.now)).min()
    }

    fn happen(&mut self) {
        let now = self.now;
        let mut pods = false;
        for pod in self.sets.values_mut().flat_map(|s| s.pods.values_mut()) {
            if pod.due.is_some_and(|due| due <= now) {
                (pod.ready_at, pod.due) = (Some(now), None);
                pods = true;
            }
        }
        if pods {
            self.pods_changed();
        }
        for service in self.services.values_mut() {
            if let Some((_, ready)) = service.due.take_if(|(due, _)| *due <= now) {
                service.ready = ready;
                self.changed = true;
            }
        }
        for route in self.routes.values_mut().filter(|r| !r.stuck) {
            if route.due.take_if(|due| *due <= now).is_some() {
                if route.found {
                    route.carried.clone_from(&route.rules);
                }
                self.changed = true;
            }
        }
        if self.sampler.scrape_is_due(now) {
            let traffic = self.traffic();
            let broken = self
                .breaks_above
                .is_some_and(|above| traffic.get(&hash(2)).is_some_and(|share| *share > above));
            let around = if broken { 0.2 } else { self.around };
            let mut versions = self.versions.clone();
            for version in versions.values_mut() {
                version.error_rate = (version.error_rate + around).min(1.0);
            }
            self.sampler.scrape(now, &traffic, &mut self.sets, &versions);
            self.changed |= self.sampler.is_asked();
        }
        check::moment(self);
    }

    /// Nothing is to come by itself.
    pub(crate) fn rests(&self) -> bool {
        let state = self.status.state.as_ref();
        let kept = self.state() == StateName::Paused && state.and_then(|s| s.deadline) <= Some(at(self.now));
        kept || (self.status.traffic.is_none() && self.wake.is_none() && self.next_due().is_none())
    }

    /// The last states.
    pub(crate) fn story(&self) -> String {
        let last = self.trace.len().saturating_sub(30);
        self.trace[last..].join(" > ")
    }

    pub(crate) fn poke(&mut self) {
        self.changed = true;
    }

    /// Time jumps: nothing is scraped, and nobody looks, meanwhile.
    pub(crate) fn jump(&mut self, ms: i64) {
        self.now += ms;
        self.sampler.skip(self.now);
        self.happen();
        self.changed = true;
    }

    pub(crate) fn run_for(&mut self, ms: i64) {
        let end = self.now + ms;
        self.run_until(end, |_| false);
    }

    /// True when the condition was met before the end.
    pub(crate) fn run_until(&mut self, end: i64, mut until: impl FnMut(&Self) -> bool) -> bool {
        loop {
            self.reconcile();
            if self.gone || until(self) {
                return until(self);
            }
            let next = self.wake.into_iter().chain(self.next_due()).min().unwrap_or(end).max(self.now + 1);
            if next > end {
                self.now = end;
                return false;
            }
            self.now = next;
            self.changed |= self.wake.is_some_and(|wake| wake <= next);
            self.happen();
        }
    }

    pub(crate) fn until(&mut self, name: StateName) {
        let reached = self.run_until(self.now + 6 * 3_600_000, |w| w.state() == name);
        assert!(reached, "{name:?} was not reached: {}\n{}", self.status.message, self.story());
    }
}

//! From the caches to what the engine is told. Pure: no network, no clock, no decision.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use davylamp_api::action::RolloutAction;
use davylamp_api::rollout::RouteRef;
use davylamp_api::scalar::Duration;
use davylamp_api::source::MetricSource;
use davylamp_api::status::RolloutStatus;
use davylamp_api::template::{AnalysisTemplate, AnalysisTemplateSpec, ClusterAnalysisTemplate, Scope};
use davylamp_api::{Instant, RolloutRunSpec, RolloutSpec, labels};
use davylamp_engine::observed::{
    Action, Entrance, Hash, Meta, Observed, Pod, Revision, Role, Route, Service, Source, Suggested,
    baseline_of,
};
use davylamp_engine::{Conduct, Input, Problem, templates};

use crate::cache::Cache;
use crate::json::Json;
use crate::key::Key;
use crate::memory::{Memories, Memory, Written};
use crate::metrics::Sampler;
use crate::metrics::suggestion::{Suggestion, addresses};
use crate::objects::BASELINE;
use crate::traffic::{self, Backends, Parents};
use crate::views::{
    EndpointSliceView, GatewayClassView, GatewayView, PodView, ReplicaSetView, RolloutView, RouteView,
    RunView, ServiceView, label, owner,
};

/// So many characters the API server adds to the name of a pod.
const GENERATED: usize = 5;

/// Everything that is watched.
#[derive(Clone, Debug)]
pub struct Caches {
    /// Rollouts.
    pub rollouts: Cache<RolloutView>,
    /// Runs in flight.
    pub runs: Cache<RunView>,
    /// Actions.
    pub actions: Cache<RolloutAction>,
    /// Metric sources.
    pub sources: Cache<MetricSource>,
    /// Templates of metrics.
    pub templates: Cache<AnalysisTemplate>,
    /// Those that all namespaces share.
    pub cluster_templates: Cache<ClusterAnalysisTemplate>,
    /// `ReplicaSet`s with our label.
    pub replica_sets: Cache<ReplicaSetView>,
    /// Pods with our label.
    pub pods: Cache<PodView>,
    /// All Services.
    pub services: Cache<ServiceView>,
    /// `EndpointSlice`s with our label.
    pub slices: Cache<EndpointSliceView>,
    /// Routes.
    pub routes: Cache<RouteView>,
    /// Gateways.
    pub gateways: Cache<GatewayView>,
    /// Gateway classes.
    pub classes: Cache<GatewayClassView>,
}

/// One Rollout at one moment, and who it is.
#[derive(Clone, Debug)]
pub struct Subject {
    /// Its name.
    pub key: Key,
    /// Its uid.
    pub uid: String,
    /// As cached.
    pub view: Arc<RolloutView>,
    /// What the user wrote; None when it does not parse.
    pub spec: Option<RolloutSpec>,
    /// What we know.
    pub status: RolloutStatus,
    /// What is decided about.
    pub input: Input,
}

impl Subject {
    /// Parses the spec and compiles it, once for each text and the templates that it uses; a status that cannot be read
    /// begins anew.
    #[must_use]
    pub fn new(view: Arc<RolloutView>, caches: &Caches, memories: &Memories) -> Self {
        let key = Key::of(&*view);
        let uid = view.metadata.uid.clone().unwrap_or_default();
        let status = if view.status.is_null() {
            RolloutStatus { observed_generation: -1, ..RolloutStatus::default() }
        } else {
            view.status.parse().unwrap_or_else(|error| {
                tracing::warn!(rollout = %key, %error, "the status cannot be read; it begins anew");
                RolloutStatus { observed_generation: -1, ..RolloutStatus::default() }
            })
        };
        let run = status.run.as_ref().and_then(|run| caches.run(&key, run));
        let (written, promised) = memories.update(&key, &uid, |memory| {
            let promised =
                run.map(|run| memory.promised.of(&run.spec, |_| true, || promise(&key.name, &run.spec)));
            let current = |written: &Written| caches.have(&key.namespace, &written.templates);
            (memory.written.of(&view.spec, current, || read(&key, &view.spec, caches)), promised)
        });
        let Written { spec, program, problems, templates: _ } = Arc::unwrap_or_clone(written);
        let generation = view.metadata.generation.unwrap_or(0);
        let run = promised.and_then(Arc::unwrap_or_clone);
        let input = Input { generation, program, problems, run };
        Self { key, uid, view, spec, status, input }
    }

    /// The names of our two Services: of the run in flight, else of the spec.
    #[must_use]
    pub fn service_names(&self) -> Option<davylamp_api::status::ServiceNames> {
        self.status.services.clone().or_else(|| self.input.program.as_ref().map(|p| p.services.clone()))
    }

    /// The routes of the run in flight and of the spec.
    #[must_use]
    pub fn routes(&self) -> BTreeSet<RouteRef> {
        let spec = self.input.program.iter().flat_map(|p| &p.conduct.routes);
        let run = self.input.run.iter().flat_map(|r| &r.routes);
        let held = self.status.traffic.iter().flat_map(|t| &t.originals).map(|o| &o.route);
        spec.chain(run).chain(held).cloned().collect()
    }

    /// The name of the metric source: of the run in flight, else of the spec.
    #[must_use]
    pub fn source(&self) -> Option<&str> {
        let spec = self.input.program.as_ref().map(|p| &p.conduct);
        let conduct = self.input.run.as_ref().filter(|_| self.status.canary.is_some()).or(spec)?;
        conduct.analysis.source.as_deref().filter(|_| !conduct.analysis.is_empty())
    }
}

fn read(key: &Key, spec: &Json, caches: &Caches) -> Written {
    let problems = |problems| Written { spec: None, program: None, problems, templates: Vec::new() };
    let parsed = match spec.parse::<RolloutSpec>() {
        Ok(parsed) => parsed,
        Err(error) => {
            return problems(vec![Problem {
                path: "spec".to_owned(),
                wrong: error.to_string(),
                remedy: "correct the field; kubectl explain rollout.spec lists them".to_owned(),
            }]);
        }
    };
    let mut used = Vec::new();
    let find = |scope, name: &str| {
        let (version, template) = caches.template(&key.namespace, scope, name).unzip();
        used.push((scope, name.to_owned(), version));
        template
    };
    let written = match templates::compile(&key.name, &parsed, find) {
        Ok((program, _)) => Written { program: Some(program), ..problems(Vec::new()) },
        Err(found) => problems(found),
    };
    Written { spec: Some(parsed), templates: used, ..written }
}

/// What a run of this Rollout promised.
fn promise(rollout: &str, spec: &Json) -> Option<Conduct> {
    let run = spec.parse::<RolloutRunSpec>().ok().filter(|run| run.rollout == rollout)?;
    Conduct::compile(&run.strategy, &run.analysis, run.sampling, &run.calibration).ok()
}

impl Caches {
    /// Waits until each has had its first list.
    pub async fn ready(&self) {
        self.rollouts.ready().await;
        self.runs.ready().await;
        self.actions.ready().await;
        self.sources.ready().await;
        self.templates.ready().await;
        self.cluster_templates.ready().await;
        self.replica_sets.ready().await;
        self.pods.ready().await;
        self.services.ready().await;
        self.slices.ready().await;
        self.routes.ready().await;
        self.gateways.ready().await;
        self.classes.ready().await;
    }

    fn run(&self, rollout: &Key, name: &str) -> Option<Arc<RunView>> {
        self.runs.get(&Key { namespace: rollout.namespace.clone(), name: name.to_owned() })
    }

    /// A template as a Rollout of that namespace sees it, and its version.
    fn template(&self, namespace: &str, scope: Scope, name: &str) -> Option<(String, AnalysisTemplateSpec)> {
        let key = |namespace: &str| Key { namespace: namespace.to_owned(), name: name.to_owned() };
        let (metadata, spec) = match scope {
            Scope::Namespace => {
                let template = self.templates.get(&key(namespace))?;
                (template.metadata.clone(), template.spec.clone())
            }
            Scope::Cluster => {
                let template = self.cluster_templates.get(&key(""))?;
                (template.metadata.clone(), template.spec.0.clone())
            }
        };
        Some((metadata.resource_version.unwrap_or_default(), spec))
    }

    /// Whether these are still the newest versions, and what was not there still is not.
    fn have(&self, namespace: &str, used: &[(Scope, String, Option<String>)]) -> bool {
        used.iter().all(|(scope, name, version)| {
            self.template(namespace, *scope, name).map(|(version, _)| version) == *version
        })
    }

    /// `ReplicaSet`s of the Rollout: those that it owns, and those of its name that nobody owns.
    #[must_use]
    pub fn replica_sets_of(&self, key: &Key, uid: &str) -> BTreeMap<Hash, Arc<ReplicaSetView>> {
        self.replica_sets
            .list(Some(&key.namespace), |set| {
                label(set, labels::ROLLOUT) == Some(&key.name) && mine(set, uid)
            })
            .into_iter()
            .filter_map(|set| Some((revision(&*set)?, set)))
            .collect()
    }

    /// A Service by its name.
    #[must_use]
    pub fn service(&self, namespace: &str, name: &str) -> Option<Arc<ServiceView>> {
        self.services.get(&Key { namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// A route as the API server gave it.
    #[must_use]
    pub fn route(&self, namespace: &str, target: &RouteRef) -> Option<Arc<RouteView>> {
        self.routes.get(&Key { namespace: namespace.to_owned(), name: target.name.clone() })
    }
}

/// What a `ReplicaSet` or a pod is of: a revision, or its fresh baseline.
fn revision(object: &impl kube::Resource) -> Option<Hash> {
    let hash = label(object, labels::POD_TEMPLATE_HASH)?;
    let is_baseline = label(object, labels::ROLE) == Some(BASELINE);
    Some(if is_baseline { baseline_of(hash) } else { hash.to_owned() })
}

/// Owned by it, or by nobody: what `--cascade=orphan` left is adopted.
pub fn mine(object: &impl kube::Resource, uid: &str) -> bool {
    owner(object).is_none_or(|owner| owner == uid)
}

/// A Service that is ours to write.
#[must_use]
pub fn is_our_service(service: &ServiceView, key: &Key, uid: &str) -> bool {
    label(service, labels::ROLLOUT) == Some(&key.name)
        && label(service, labels::ROLE).is_some()
        && mine(service, uid)
}

impl Parents for Caches {
    fn controller_name(&self, namespace: &str, gateway: &str) -> Option<String> {
        let gateway =
            self.gateways.get(&Key { namespace: namespace.to_owned(), name: gateway.to_owned() })?;
        let class = Key { namespace: String::new(), name: gateway.spec.gateway_class_name.clone() };
        self.classes.get(&class).map(|class| class.spec.controller_name.clone())
    }
}

/// An address where the source that the Rollout lacks may be, if there is no source at all.
fn suggested(source: &Source, key: &Key, caches: &Caches, suggestion: &Suggestion) -> Option<Suggested> {
    if *source != Source::NotFound || !caches.sources.keys().is_empty() {
        return None;
    }
    let url = suggestion.current(|| {
        let services = caches.services.list(None, |_| true);
        let of = |service: &'_ Arc<ServiceView>| {
            let (meta, service) = (&service.metadata, Arc::clone(service));
            Some((meta.namespace.clone()?, meta.name.clone()?, move || service.spec.value()))
        };
        addresses(services.iter().filter_map(of))
    })?;
    Some(Suggested { url, namespace: key.namespace.clone() })
}

/// The world of one Rollout, from the caches, the sample buffer, and what other Rollouts have noticed.
#[must_use]
pub fn world(
    subject: &Subject,
    caches: &Caches,
    sampler: &Sampler,
    suggestion: &Suggestion,
    memory: &Memory,
    incidents: BTreeMap<String, Instant>,
) -> Observed {
    let Subject { key, uid, view, .. } = subject;
    let metadata = &view.metadata;
    let source = source(subject, caches);
    Observed {
        meta: Meta {
            name: key.name.clone(),
            deleting: metadata.deletion_timestamp.is_some(),
            finalizer: metadata.finalizers.iter().flatten().any(|f| f == labels::ROUTE_FINALIZER),
            deleted_at: metadata.deletion_timestamp.as_ref().map(|t| t.0),
        },
        template: memory.template_of(subject.input.program.as_ref().map(|p| p.hash.as_str())),
        runs: runs(subject, caches),
        taken_runs: memory.taken_runs.clone(),
        delivered: memory.delivered,
        revisions: revisions(key, uid, caches),
        services: services(subject, caches),
        entrance: entrance(subject, caches),
        routes: routes(subject, caches),
        actions: actions(key, caches),
        suggested: suggested(&source, key, caches, suggestion),
        source,
        samples: sampler.samples(key).map(|samples| (*samples).clone()),
        learnt: sampler.learnt(key).map(|learnt| (*learnt).clone()),
        incidents,
    }
}

fn runs(subject: &Subject, caches: &Caches) -> BTreeMap<String, Hash> {
    let Key { namespace, name } = &subject.key;
    caches
        .runs
        .list(Some(namespace), |run| label(run, labels::ROLLOUT) == Some(name) && mine(run, &subject.uid))
        .iter()
        .filter_map(|run| {
            let spec = run.spec.parse::<RolloutRunSpec>().ok()?;
            Some((run.metadata.name.clone()?, spec.hash))
        })
        .collect()
}

fn revisions(key: &Key, uid: &str, caches: &Caches) -> BTreeMap<Hash, Revision> {
    let mut revisions: BTreeMap<Hash, Revision> = caches
        .replica_sets_of(key, uid)
        .into_iter()
        .map(|(hash, set)| {
            let desired = set.spec.replicas.unwrap_or(1);
            let failure =
                set.status.conditions.iter().find(|c| c.r#type == "ReplicaFailure" && c.status == "True");
            let revision = Revision {
                desired,
                // An older status may count pods that the newer spec no longer asks for.
                available: set.status.available_replicas.unwrap_or(0).min(desired),
                pods: BTreeMap::new(),
                trouble: failure.and_then(|c| c.message.clone()).map(short),
                termination_grace: set.spec.template.spec.termination_grace_period_seconds.unwrap_or(30),
            };
            (hash, revision)
        })
        .collect();
    for pod in caches.pods.list(Some(&key.namespace), |pod| label(pod, labels::ROLLOUT) == Some(&key.name)) {
        let Some(revision) = revision(&*pod).and_then(|hash| revisions.get_mut(&hash)) else { continue };
        let ready = pod.status.conditions.iter().find(|c| c.r#type == "Ready" && c.status == "True");
        if ready.is_none() && revision.trouble.is_none() {
            revision.trouble = trouble(&pod);
        }
        let ready_at = ready.and_then(|c| c.last_transition_time.as_ref()).map(|t| t.0);
        let created_at = pod.metadata.creation_timestamp.as_ref().map_or(Instant::UNIX_EPOCH, |t| t.0);
        revision.pods.insert(pod.metadata.name.clone().unwrap_or_default(), Pod { created_at, ready_at });
    }
    revisions
}

/// Why a pod is not ready, as the kubelet or the scheduler says it.
fn trouble(pod: &PodView) -> Option<String> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let waiting = pod.status.init_container_statuses.iter().chain(&pod.status.container_statuses).find_map(
        |container| {
            let waiting = container.state.waiting.as_ref()?;
            let reason = waiting
                .reason
                .as_deref()
                .filter(|r| !matches!(*r, "ContainerCreating" | "PodInitializing"))?;
            let message = waiting.message.as_ref().map(|m| format!(": {m}")).unwrap_or_default();
            Some(format!("pod {name}: container {} {reason}{message}", container.name))
        },
    );
    let unscheduled = || {
        let condition =
            pod.status.conditions.iter().find(|c| c.r#type == "PodScheduled" && c.status == "False")?;
        Some(format!("pod {name} is not scheduled: {}", condition.message.as_deref().unwrap_or_default()))
    };
    waiting.or_else(unscheduled).map(short)
}

fn short(text: String) -> String {
    if text.chars().count() > 300 { text.chars().take(300).chain("...".chars()).collect() } else { text }
}

fn services(subject: &Subject, caches: &Caches) -> BTreeMap<Role, Service> {
    let Some(names) = subject.service_names() else { return BTreeMap::new() };
    let Key { namespace, name: rollout } = &subject.key;
    let mut services = BTreeMap::new();
    for (role, name) in [(Role::Stable, &names.stable), (Role::Canary, &names.canary)] {
        let Some(view) = caches.service(namespace, name) else { continue };
        if !is_our_service(&view, &subject.key, &subject.uid) {
            services.insert(role, Service { foreign: true, ..Service::default() });
            continue;
        }
        let selects = view
            .spec
            .value()
            .pointer(&format!("/selector/{}", labels::POD_TEMPLATE_HASH))
            .and_then(|hash| hash.as_str().map(str::to_owned));
        let mut ready = BTreeMap::new();
        let of_it = |slice: &EndpointSliceView| label(slice, "kubernetes.io/service-name") == Some(name);
        for endpoint in
            caches.slices.list(Some(namespace), of_it).iter().flat_map(|s| s.endpoints.iter().flatten())
        {
            let pod = endpoint.target_ref.name.as_deref().unwrap_or_default();
            let hash =
                pod.strip_prefix(rollout.as_str()).and_then(|rest| rest.strip_prefix('-')?.split_once('-'));
            // What is longer than a generated name is a fresh baseline's.
            if let Some((hash, _)) = hash.filter(|(_, generated)| generated.len() == GENERATED)
                && endpoint.conditions.ready.unwrap_or(true)
            {
                *ready.entry(hash.to_owned()).or_insert(0) += 1;
            }
        }
        services.insert(role, Service { foreign: false, selects, ready });
    }
    services
}

fn entrance(subject: &Subject, caches: &Caches) -> Entrance {
    let service =
        subject.input.program.as_ref().and_then(|p| caches.service(&subject.key.namespace, &p.service));
    match service.map(|s| s.spec.value()) {
        None => Entrance::Missing,
        Some(spec) if spec.get("ports").and_then(|p| p.as_array()).is_none_or(Vec::is_empty) => {
            Entrance::WithoutPorts
        }
        Some(_) => Entrance::Found,
    }
}

fn routes(subject: &Subject, caches: &Caches) -> BTreeMap<RouteRef, Route> {
    let Some(names) = subject.service_names() else { return BTreeMap::new() };
    let namespace = &subject.key.namespace;
    let backends = Backends { namespace, stable: &names.stable, canary: &names.canary };
    let observe = |target: RouteRef| {
        let route = caches.route(namespace, &target).map(|route| route.value());
        (target.clone(), traffic::observe(route.as_ref(), &target, backends, caches))
    };
    subject.routes().into_iter().map(observe).collect()
}

fn actions(key: &Key, caches: &Caches) -> Vec<Action> {
    let open = |a: &RolloutAction| {
        a.spec.rollout == key.name && a.status.is_none() && a.metadata.deletion_timestamp.is_none()
    };
    let mut actions = caches.actions.list(Some(&key.namespace), open);
    let order =
        |a: &RolloutAction| (a.metadata.creation_timestamp.as_ref().map(|t| t.0), a.metadata.uid.clone());
    actions.sort_by_key(|a| order(a));
    actions
        .iter()
        .map(|action| Action {
            uid: action.metadata.uid.clone().unwrap_or_default(),
            name: action.metadata.name.clone().unwrap_or_default(),
            verb: action.spec.verb,
            run: action.spec.run.clone(),
            step: action.spec.step,
            full: action.spec.full.unwrap_or(false),
            reason: action.spec.reason.clone(),
            requested_by: action.spec.requested_by.clone(),
        })
        .collect()
}

fn source(subject: &Subject, caches: &Caches) -> Source {
    let Some(name) = subject.source() else { return Source::NotNamed };
    let Some(source) = caches.sources.get(&Key { namespace: String::new(), name: name.to_owned() }) else {
        return Source::NotFound;
    };
    if !source.spec.allows(&subject.key.namespace) {
        return Source::NotAllowed;
    }
    Source::Ready {
        scrape_interval_ms: source.spec.scrape_interval.map(Duration::millis),
        delay_ms: source.spec.delay().millis(),
    }
}

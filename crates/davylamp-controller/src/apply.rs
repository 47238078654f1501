//! From what should be to what is written. [`plan`] is pure: it compares the desired with the caches and lists what is
//! missing, in the order in which it must happen; [`Applier::execute`] does one of it, bounded in time and safe to repeat.

use axum::http::uri::InvalidUri;
use davylamp_api::labels::{self, MANAGER, MANAGER_SCALE, MANAGER_STATUS};
use davylamp_api::rollout::RouteRef;
use davylamp_api::{RolloutRunSpec, RolloutSpec};
use davylamp_engine::observed::{Hash, Role, Template, of_baseline};
use davylamp_engine::{Desired, RouteGoal};
use kube::Resource;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::Request;
use kube::core::request::Error::BuildRequest;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::call::{CallError, Caller};
use crate::memory::{Memories, Memory};
use crate::objects::{self, APPLIED};
use crate::observe::{Caches, Subject};
use crate::traffic::{self, Backends, GatewayRouter, TrafficError};
use crate::views::{ReplicaSetView, owner};

/// One thing that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// The API server is asked about the template, and writes nothing.
    Check(Hash),
    /// `spec.replicas` was absent.
    FillReplicas(i32),
    /// The record of a run.
    CreateRun(String, Box<RolloutRunSpec>),
    /// Our finalizer comes or goes.
    Finalizer(bool),
    /// A Service is created, or takes what it should be.
    Service(Role, String, Hash),
    /// The template of a revision is kept, and only then its `ReplicaSet` created; the number is that of the revision.
    CreateReplicaSet(Hash, i64, i32),
    /// An orphan becomes ours.
    Adopt(Hash),
    /// A `ReplicaSet` takes a size.
    Scale(Hash, i32),
    /// A route takes a weight, or its user's numbers.
    Route(RouteRef, RouteGoal),
}

impl Effect {
    /// It changes nothing that a stale decision could harm.
    #[must_use]
    pub const fn is_harmless(&self) -> bool {
        matches!(self, Self::Check(_))
    }
}

/// Why something was not written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The API server did not take it.
    #[error(transparent)]
    Call(#[from] CallError),
    /// A route was not written.
    #[error(transparent)]
    Traffic(#[from] TrafficError),
    /// The template of a revision is nowhere to be found.
    #[error("the template of revision {0} is lost: its ReplicaSet and its ControllerRevision are both gone")]
    TemplateLost(Hash),
    /// An object of ours cannot be built without a valid spec.
    #[error("{0} cannot be written while the spec is not valid")]
    NeedsSpec(&'static str),
}

impl ApplyError {
    /// Somebody else wrote the object first: start over.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        match self {
            Self::Call(call) => call.is_conflict(),
            Self::Traffic(traffic) => traffic.is_conflict(),
            Self::TemplateLost(_) | Self::NeedsSpec(_) => false,
        }
    }

    /// As a label.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Call(call) => call.reason(),
            Self::Traffic(traffic) => traffic.reason().as_str(),
            Self::TemplateLost(_) => "template-lost",
            Self::NeedsSpec(_) => "needs-spec",
        }
    }
}

/// What is missing, in the order in which it must happen.
#[must_use]
pub fn plan(subject: &Subject, desired: &Desired, caches: &Caches, memory: &Memory) -> Vec<Effect> {
    let mut effects = Vec::new();
    let Subject { key, uid, .. } = subject;
    effects.extend(desired.check.clone().map(Effect::Check));
    effects.extend(desired.fill_replicas.map(Effect::FillReplicas));
    if let Some((name, spec)) = &desired.run
        && !memory.taken_runs.contains(name)
        && caches
            .runs
            .get(&crate::key::Key { namespace: key.namespace.clone(), name: name.clone() })
            .is_none()
    {
        effects.push(Effect::CreateRun(name.clone(), Box::new(spec.clone())));
    }
    if desired.finalizer == Some(true) {
        effects.push(Effect::Finalizer(true));
    }
    let sets = caches.replica_sets_of(key, uid);
    // What an orphaning deletion lets go must not be taken back: it would be deleted with its owner.
    let deleting = subject.view.metadata.deletion_timestamp.is_some();
    // Nor is anything made anew for a Rollout that goes; in a namespace that goes as well, nothing can be.
    if let Some(names) = subject.service_names() {
        for (role, hash) in &desired.selectors {
            let name = match role {
                Role::Stable => &names.stable,
                Role::Canary => &names.canary,
            };
            let there = caches.service(&key.namespace, name).is_some();
            if (there || !deleting) && service_differs(subject, caches, *role, name, hash) {
                effects.push(Effect::Service(*role, name.clone(), hash.clone()));
            }
        }
    }
    // Up before down: capacity first.
    let mut down = Vec::new();
    for (hash, size) in &desired.sizes {
        match sets.get(hash) {
            None => {
                let number = desired.revisions.get(of_baseline(hash).unwrap_or(hash)).filter(|_| !deleting);
                effects.extend(number.map(|number| Effect::CreateReplicaSet(hash.clone(), *number, *size)));
            }
            Some(set) => {
                if owner(&**set).is_none() && !deleting {
                    effects.push(Effect::Adopt(hash.clone()));
                }
                let now = set.spec.replicas.unwrap_or(1);
                if now < *size {
                    effects.push(Effect::Scale(hash.clone(), *size));
                } else if now > *size {
                    down.push(Effect::Scale(hash.clone(), *size));
                }
            }
        }
    }
    for (target, goal) in &desired.weights {
        if route_differs(subject, caches, target, goal) {
            effects.push(Effect::Route(target.clone(), goal.clone()));
        }
    }
    effects.extend(down);
    if desired.finalizer == Some(false) {
        effects.push(Effect::Finalizer(false));
    }
    effects
}

/// None where only the selector can be kept right: without a valid spec or the user's Service, and while the Rollout is
/// being deleted, for the body names it as the owner.
fn service_body(subject: &Subject, caches: &Caches, role: Role, name: &str, hash: &Hash) -> Option<Value> {
    if subject.view.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let spec = subject.spec.as_ref()?;
    let users = caches.service(&subject.key.namespace, &spec.service)?.spec.value();
    users.get("ports")?.as_array().filter(|ports| !ports.is_empty())?;
    Some(objects::service(subject, spec, name, role, hash, &users))
}

fn service_differs(subject: &Subject, caches: &Caches, role: Role, name: &str, hash: &Hash) -> bool {
    let Some(now) = caches.service(&subject.key.namespace, name) else {
        return service_body(subject, caches, role, name, hash).is_some();
    };
    if !crate::observe::is_our_service(&now, &subject.key, &subject.uid) {
        return false;
    }
    let selector = format!("/selector/{}", labels::POD_TEMPLATE_HASH);
    let selects = now.spec.value().pointer(&selector).and_then(Value::as_str).map(str::to_owned);
    let Some(body) = service_body(subject, caches, role, name, hash) else {
        return selects.as_deref() != Some(hash);
    };
    let applied = now.metadata.annotations.as_ref().and_then(|a| a.get(APPLIED)).map(String::as_str);
    selects.as_deref() != Some(hash)
        || applied
            != body
                .pointer(&format!("/metadata/annotations/{}", APPLIED.replace('/', "~1")))
                .and_then(Value::as_str)
        || owner(&*now).is_none()
}

fn route_differs(subject: &Subject, caches: &Caches, target: &RouteRef, goal: &RouteGoal) -> bool {
    let (Some(names), Some(route)) = (subject.service_names(), caches.route(&subject.key.namespace, target))
    else {
        return false;
    };
    let backends =
        Backends { namespace: &subject.key.namespace, stable: &names.stable, canary: &names.canary };
    let route = route.value();
    match goal {
        RouteGoal::Weight(weight) => traffic::with_weight(&route, target, backends, *weight).is_some(),
        RouteGoal::Restore(original) => {
            traffic::restored(&route, original, backends).is_some() || traffic::forget_patch(&route).is_some()
        }
    }
}

/// Writes to the API server.
#[derive(Clone, Debug)]
pub struct Applier {
    caller: Caller,
    router: GatewayRouter,
}

fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    ApiResource {
        group: group.to_owned(),
        version: version.to_owned(),
        api_version,
        kind: kind.to_owned(),
        plural: plural.to_owned(),
    }
}

pub(crate) fn replica_sets() -> ApiResource {
    resource("apps", "v1", "ReplicaSet", "replicasets")
}

pub(crate) fn controller_revisions() -> ApiResource {
    resource("apps", "v1", "ControllerRevision", "controllerrevisions")
}

/// An object of a kind of ours.
pub(crate) fn ours(kind: &str, plural: &str) -> ApiResource {
    resource(labels::GROUP, labels::VERSION, kind, plural)
}

/// The object as one of our views.
fn view<K: DeserializeOwned>(object: &DynamicObject) -> Option<K> {
    serde_json::from_value(serde_json::to_value(object).ok()?).ok()
}

impl Applier {
    /// By this caller.
    #[must_use]
    pub fn new(caller: Caller) -> Self {
        Self { router: GatewayRouter::new(caller.clone()), caller }
    }

    /// Does one thing.
    pub async fn execute(
        &self,
        subject: &Subject,
        effect: &Effect,
        caches: &Caches,
        memories: &Memories,
    ) -> Result<(), ApplyError> {
        match effect {
            Effect::Check(hash) => self.check(subject, hash, memories).await,
            Effect::FillReplicas(size) => self.fill_replicas(subject, *size).await,
            Effect::CreateRun(name, spec) => self.create_run(subject, name, spec, memories).await,
            Effect::Finalizer(on) => self.finalizer(subject, *on).await,
            Effect::Service(role, name, hash) => self.service(subject, *role, name, hash, caches).await,
            Effect::CreateReplicaSet(hash, number, size) => {
                self.create_replica_set(subject, hash, *number, *size, caches).await
            }
            Effect::Adopt(hash) => {
                let patch = json!({"metadata": {"ownerReferences": [objects::owner_reference(subject)]}});
                self.patch_replica_set(subject, hash, patch, caches).await
            }
            Effect::Scale(hash, size) => {
                self.patch_replica_set(subject, hash, json!({"spec": {"replicas": size}}), caches).await
            }
            Effect::Route(target, goal) => self.route(subject, target, goal, caches).await,
        }
    }

    /// The API server's own words become the condition.
    async fn check(&self, subject: &Subject, hash: &Hash, memories: &Memories) -> Result<(), ApplyError> {
        let spec = subject.spec.as_ref().ok_or(ApplyError::NeedsSpec("the template"))?;
        // Another name than that of the ReplicaSet, which may exist: its selector is immutable.
        let mut body = objects::replica_set(subject, spec, &spec.template.0, hash, 0, 0);
        let name = format!("{}-check", objects::revision_name(&subject.key.name, hash));
        body["metadata"]["name"] = json!(name);
        let answer = match self.dry_run(&subject.key.namespace, &body).await {
            Ok(_) => Template::Accepted,
            Err(error) => match error.status() {
                Some(status) if matches!(status.code, 400 | 403 | 422) => {
                    Template::Refused(status.message.replace(&name, &subject.key.name))
                }
                _ => return Err(error.into()),
            },
        };
        memories.update(&subject.key, &subject.uid, |m| m.template = Some((hash.clone(), answer)));
        Ok(())
    }

    /// Creates nothing, strictly. Not by server-side apply: to what is unknown in an object, that answers "internal error",
    /// and it refuses lists which a creation takes.
    async fn dry_run(&self, namespace: &str, body: &Value) -> Result<DynamicObject, CallError> {
        let url = DynamicObject::url_path(&replica_sets(), Some(namespace));
        let params = PostParams { dry_run: true, field_manager: Some(MANAGER.to_owned()) };
        let request = Request::new(url).create(&params, body.to_string().into_bytes());
        // A parameter that kube knows for patches only.
        let request = request.and_then(|mut request| {
            let strict = format!("{}&fieldValidation=Strict", request.uri());
            *request.uri_mut() = strict.parse().map_err(|error: InvalidUri| BuildRequest(error.into()))?;
            Ok(request)
        });
        self.caller.request("check ReplicaSet", request).await
    }

    async fn fill_replicas(&self, subject: &Subject, size: i32) -> Result<(), ApplyError> {
        let rollout = ours("Rollout", "rollouts");
        let body = json!({
            "apiVersion": rollout.api_version, "kind": rollout.kind,
            "metadata": {"name": subject.key.name, "uid": subject.uid},
            "spec": {"replicas": size},
        });
        let params = PatchParams::apply(MANAGER_SCALE);
        let api = self.caller.api(&subject.key.namespace, &rollout);
        self.caller
            .call("apply Rollout", api.patch(&subject.key.name, &params, &Patch::Apply(&body)))
            .await?;
        Ok(())
    }

    async fn create_run(
        &self,
        subject: &Subject,
        name: &str,
        spec: &RolloutRunSpec,
        memories: &Memories,
    ) -> Result<(), ApplyError> {
        let api = self.caller.api(&subject.key.namespace, &ours("RolloutRun", "rolloutruns"));
        match self.create(&api, "create RolloutRun", &objects::run(subject, name, spec)).await {
            Err(error) if error.is_already_exists() => {}
            other => return other.map(|_| ()).map_err(Into::into),
        }
        // It is ours when it is of this object and hash, and still in flight; the watch brings it then.
        let there = self.caller.call("get RolloutRun", api.get_opt(name)).await?;
        let usable = there.is_some_and(|run| {
            owner(&run) == Some(subject.uid.as_str())
                && crate::views::label(&run, labels::ACTIVE) == Some("true")
                && run.data.pointer("/spec/hash").and_then(Value::as_str) == Some(&spec.hash)
        });
        if !usable {
            memories.update(&subject.key, &subject.uid, |m| {
                m.taken_runs.insert(name.to_owned());
            });
        }
        Ok(())
    }

    async fn finalizer(&self, subject: &Subject, on: bool) -> Result<(), ApplyError> {
        let metadata = &subject.view.metadata;
        let mut finalizers = metadata.finalizers.clone().unwrap_or_default();
        finalizers.retain(|f| f != labels::ROUTE_FINALIZER);
        if on {
            finalizers.push(labels::ROUTE_FINALIZER.to_owned());
        }
        let patch = json!({"metadata": {
            "uid": subject.uid, "resourceVersion": metadata.resource_version, "finalizers": finalizers,
        }});
        let params = PatchParams { field_manager: Some(MANAGER_STATUS.to_owned()), ..PatchParams::default() };
        let api = self.caller.api(&subject.key.namespace, &ours("Rollout", "rollouts"));
        match self
            .caller
            .call("patch Rollout", api.patch(&subject.key.name, &params, &Patch::Merge(&patch)))
            .await
        {
            Err(error) if error.is_not_found() && !on => Ok(()),
            other => other.map(|_| ()).map_err(Into::into),
        }
    }

    async fn create_replica_set(
        &self,
        subject: &Subject,
        hash: &Hash,
        number: i64,
        size: i32,
        caches: &Caches,
    ) -> Result<(), ApplyError> {
        let spec = subject.spec.as_ref().ok_or(ApplyError::NeedsSpec("a ReplicaSet"))?;
        let revision = of_baseline(hash).unwrap_or(hash);
        let template = match own_template(subject, revision) {
            Some(template) => {
                self.keep_template(subject, revision, number, &template).await?;
                template
            }
            None => self.kept_template(subject, revision).await?,
        };
        let body = objects::replica_set(subject, spec, &template, hash, number, size);
        let api = self.caller.api(&subject.key.namespace, &replica_sets());
        if let Some(created) = self.create_or_keep(&api, "create ReplicaSet", &body).await?
            && let Some(view) = view::<ReplicaSetView>(&created)
        {
            caches.replica_sets.wrote(view);
        }
        Ok(())
    }

    async fn keep_template(
        &self,
        subject: &Subject,
        hash: &str,
        number: i64,
        template: &Value,
    ) -> Result<(), ApplyError> {
        let body = objects::controller_revision(subject, template, hash, number);
        let api = self.caller.api(&subject.key.namespace, &controller_revisions());
        self.create_or_keep(&api, "create ControllerRevision", &body).await.map(|_| ())
    }

    /// Somebody deleted the `ReplicaSet` of a revision that is not the spec's any more.
    async fn kept_template(&self, subject: &Subject, hash: &str) -> Result<Value, ApplyError> {
        let api = self.caller.api(&subject.key.namespace, &controller_revisions());
        let name = objects::revision_name(&subject.key.name, hash);
        let kept = self.caller.call("get ControllerRevision", api.get_opt(&name)).await?;
        kept.and_then(|r| r.data.pointer("/data/template").cloned())
            .ok_or_else(|| ApplyError::TemplateLost(hash.to_owned()))
    }

    async fn patch_replica_set(
        &self,
        subject: &Subject,
        hash: &Hash,
        patch: Value,
        caches: &Caches,
    ) -> Result<(), ApplyError> {
        let api = self.caller.api(&subject.key.namespace, &replica_sets());
        let name = objects::revision_name(&subject.key.name, hash);
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        let set =
            self.caller.call("patch ReplicaSet", api.patch(&name, &params, &Patch::Merge(&patch))).await?;
        if let Some(view) = view::<ReplicaSetView>(&set) {
            caches.replica_sets.wrote(view);
        }
        Ok(())
    }

    async fn service(
        &self,
        subject: &Subject,
        role: Role,
        name: &str,
        hash: &Hash,
        caches: &Caches,
    ) -> Result<(), ApplyError> {
        let api = self.caller.api(&subject.key.namespace, &resource("", "v1", "Service", "services"));
        let exists = caches.service(&subject.key.namespace, name).is_some();
        let written = match (service_body(subject, caches, role, name, hash), exists) {
            (Some(body), true) => {
                // A merge replaces the list of ports whole; an apply would keep those that the user has taken away.
                let params =
                    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                Some(self.caller.call("patch Service", api.patch(name, &params, &Patch::Merge(&body))).await?)
            }
            // Create, not apply: a Service that somebody has made meanwhile is not taken over.
            (Some(body), false) => self.create_or_keep(&api, "create Service", &body).await?,
            (None, true) => {
                let patch = json!({"spec": {"selector": {labels::POD_TEMPLATE_HASH: hash}}});
                let params =
                    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
                Some(
                    self.caller
                        .call("patch Service", api.patch(name, &params, &Patch::Merge(&patch)))
                        .await?,
                )
            }
            (None, false) => None,
        };
        if let Some(view) = written.as_ref().and_then(view) {
            caches.services.wrote(view);
        }
        Ok(())
    }

    async fn route(
        &self,
        subject: &Subject,
        target: &RouteRef,
        goal: &RouteGoal,
        caches: &Caches,
    ) -> Result<(), ApplyError> {
        let namespace = &subject.key.namespace;
        let (Some(names), Some(route)) = (subject.service_names(), caches.route(namespace, target)) else {
            return Ok(());
        };
        let backends = Backends { namespace, stable: &names.stable, canary: &names.canary };
        let route = route.value();
        let written = match goal {
            RouteGoal::Weight(weight) => self.router.set(&route, target, backends, *weight).await?,
            RouteGoal::Restore(original) => self.router.restore(&route, original, backends).await?,
        };
        if let Some(view) = written.and_then(|route| serde_json::from_value(route).ok()) {
            caches.routes.wrote(view);
        }
        Ok(())
    }

    async fn create(
        &self,
        api: &Api<DynamicObject>,
        what: &'static str,
        body: &Value,
    ) -> Result<Option<DynamicObject>, CallError> {
        let params = PostParams { field_manager: Some(MANAGER.to_owned()), ..PostParams::default() };
        let object = async {
            let object: DynamicObject =
                serde_json::from_value(body.clone()).map_err(kube::Error::SerdeError)?;
            api.create(&params, &object).await
        };
        self.caller.call(what, object).await.map(Some)
    }

    /// What is there already was made by an earlier pass, or is seen by the next one for what it is.
    async fn create_or_keep(
        &self,
        api: &Api<DynamicObject>,
        what: &'static str,
        body: &Value,
    ) -> Result<Option<DynamicObject>, ApplyError> {
        match self.create(api, what, body).await {
            Err(error) if error.is_already_exists() => Ok(None),
            other => other.map_err(Into::into),
        }
    }
}

/// The template of the spec, when it is of this hash.
fn own_template(subject: &Subject, hash: &str) -> Option<Value> {
    let RolloutSpec { template, .. } = subject.spec.as_ref()?;
    (davylamp_api::revision::hash(&template.0, 0) == hash).then(|| template.0.clone())
}

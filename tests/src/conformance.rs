//! One script of API behaviour, for a real server and for the one in memory: [`answers`] takes a client and an empty
//! namespace, does the same to both and gives each step's answer without what may differ (uids, versions, times), so that
//! two lists can be compared for equality. The step is responsible for what it reads of an answer: all of an error, all of
//! an object of ours, and of a built-in object what it is about.
//!
//! No controller of ours may run meanwhile: it would write to the Rollouts here.

use std::time::Duration;

use anyhow::{Context, Result, bail};
use futures::TryStreamExt;
use kube::Client;
use kube::api::{
    Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, Preconditions,
    PropagationPolicy, WatchEvent, WatchParams,
};
use serde::Serialize;
use serde_json::{Value, json};

use crate::until;

/// What one step was answered.
pub type Answer = (&'static str, Value);

/// All steps, in order.
///
/// # Errors
/// A step that the others need was refused, or nothing came where something must.
pub async fn answers(client: &Client, namespace: &str) -> Result<Vec<Answer>> {
    let mut script = Script { client: client.clone(), namespace: namespace.to_owned(), said: Vec::new() };
    script.lists().await?;
    script.watches().await?;
    script.replaces().await?;
    script.subresources().await?;
    script.applies().await?;
    script.routes().await?;
    script.rules().await?;
    script.patches().await?;
    script.built_in().await?;
    script.deletions().await?;
    script.families().await?;
    Ok(script.said)
}

struct Script {
    client: Client,
    namespace: String,
    said: Vec<Answer>,
}

type Objects = Api<DynamicObject>;

impl Script {
    fn api(&self, api_version: &str, kind: &str, plural: &str) -> Objects {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let resource = ApiResource {
            group: group.to_owned(),
            version: version.to_owned(),
            api_version: api_version.to_owned(),
            kind: kind.to_owned(),
            plural: plural.to_owned(),
        };
        Api::namespaced_with(self.client.clone(), &self.namespace, &resource)
    }

    fn rollouts(&self) -> Objects {
        self.api("davylamp.dev/v1alpha1", "Rollout", "rollouts")
    }

    fn config_maps(&self) -> Objects {
        self.api("v1", "ConfigMap", "configmaps")
    }

    fn replica_sets(&self) -> Objects {
        self.api("apps/v1", "ReplicaSet", "replicasets")
    }

    /// Notes an answer whole, or its error.
    fn note<T: Serialize>(&mut self, step: &'static str, answer: Result<T, kube::Error>) -> Result<()> {
        let said = match answer {
            Ok(answer) => serde_json::to_value(answer)?,
            Err(kube::Error::Api(status)) => {
                let causes = status.details.map(|details| details.causes).unwrap_or_default();
                json!({"code": status.code, "reason": status.reason, "message": status.message,
                       "causes": causes.iter().map(|c| json!([c.reason, c.field, c.message])).collect::<Vec<_>>()})
            }
            Err(other) => bail!("{step}: {other}"),
        };
        self.said.push((step, alike(said, &self.namespace)));
        Ok(())
    }

    fn note_value(&mut self, step: &'static str, said: &Value) {
        self.said.push((step, alike(said.clone(), &self.namespace)));
    }

    async fn lists(&mut self) -> Result<()> {
        let api = self.config_maps();
        for (name, value) in [("list-a", "1"), ("list-b", "2"), ("list-c", "3")] {
            api.create(&params(), &config_map(name, value)).await?;
        }
        let all = ListParams::default().labels("step=list");
        let first = api.list(&all.clone().limit(2)).await?;
        self.note_value("a first page", &names(&first.items));
        let token = first.metadata.continue_.context("no token")?;
        api.delete("list-c", &DeleteParams::default()).await?;
        api.create(&params(), &config_map("list-d", "1")).await?;
        let second = api.list(&all.clone().limit(2).continue_token(&token)).await?;
        let same = second.metadata.resource_version == first.metadata.resource_version;
        self.note_value("a second page, of the same moment", &json!([names(&second.items), same]));
        for (step, labels, fields) in [
            ("a set of values", "step=list,v in (1,2)", ""),
            ("not of a set", "step=list,v notin (1)", ""),
            ("a label that is absent", "step=list,!absent", ""),
            ("a name", "step=list", "metadata.name=list-b"),
        ] {
            let found = api.list(&ListParams::default().labels(labels).fields(fields)).await?;
            self.note_value(step, &names(&found.items));
        }
        self.note(
            "a field that nobody selects by",
            api.list(&ListParams::default().fields("data.v=1")).await,
        )?;
        self.note("an object that is not there", api.get("nothing").await)
    }

    async fn watches(&mut self) -> Result<()> {
        let api = self.config_maps();
        let created = api.create(&params(), &config_map("watched", "1")).await?;
        let from = created.metadata.resource_version.clone().context("no version")?;
        let mut next = created;
        for value in ["2", "1"] {
            next.metadata.labels.get_or_insert_default().insert("v".to_owned(), value.to_owned());
            next = api.replace("watched", &params(), &next).await?;
        }
        api.delete("watched", &DeleteParams::default()).await?;
        let watch = WatchParams::default().labels("v=1").timeout(2);
        let events: Vec<WatchEvent<DynamicObject>> = api.watch(&watch, &from).await?.try_collect().await?;
        let told: Vec<Value> = events.iter().filter_map(told).collect();
        self.note_value("changes and lost labels", &told.into());
        // Before any object of the kind was there.
        let watch = self.rollouts().watch(&WatchParams::default().timeout(5), "1").await?;
        let events: Vec<_> = watch.try_collect().await?;
        let code = events.iter().find_map(|event| match event {
            WatchEvent::Error(status) => Some(json!([status.code, status.reason])),
            WatchEvent::Added(_)
            | WatchEvent::Modified(_)
            | WatchEvent::Deleted(_)
            | WatchEvent::Bookmark(_) => None,
        });
        self.note_value("a version that is forgotten", &code.unwrap_or_default());
        Ok(())
    }

    async fn replaces(&mut self) -> Result<()> {
        let api = self.rollouts();
        let created = api.create(&params(), &rollout("replaced")).await?;
        self.note("a Rollout", Ok(&created))?;
        self.note("its name again", api.create(&params(), &rollout("replaced")).await)?;
        // The defaults of a status are stored by the first write after the creation.
        let stored = api.replace("replaced", &params(), &created).await?;
        let kept = stored.metadata.resource_version == created.metadata.resource_version;
        self.note_value("the first replace stores the defaults", &kept.into());
        let created = stored;
        let same = api.replace("replaced", &params(), &created).await?;
        let kept = same.metadata.resource_version == created.metadata.resource_version;
        self.note_value("an unchanged replace writes nothing", &kept.into());
        let same = api.replace_status("replaced", &params(), &created).await?;
        let kept = same.metadata.resource_version == created.metadata.resource_version;
        self.note_value("nor does an unchanged status", &kept.into());
        let mut next = created.clone();
        next.data["spec"]["replicas"] = json!(3);
        self.note("a changed spec is counted", api.replace("replaced", &params(), &next).await)?;
        self.note("a stale replace", api.replace("replaced", &params(), &next).await)?;
        self.note("a stale, unchanged status", api.replace_status("replaced", &params(), &created).await)?;
        next.metadata.resource_version = None;
        self.note("a replace without a version", api.replace("replaced", &params(), &next).await)
    }

    async fn subresources(&mut self) -> Result<()> {
        let api = self.rollouts();
        let mut next = api.get("replaced").await?;
        next.data["status"] = json!({"phase": "Progressing", "observedGeneration": 1});
        next.data["spec"]["replicas"] = json!(9);
        next.metadata.labels = Some([("not".to_owned(), "taken".to_owned())].into());
        let written = api.replace_status("replaced", &params(), &next).await?;
        self.note("a status is written alone", Ok(&written))?;
        next = written;
        next.data["status"] = json!({"phase": "Degraded"});
        self.note("and not with the object", api.replace("replaced", &params(), &next).await)?;
        let scale = api.get_scale("replaced").await?;
        self.note_value("a scale", &json!(scale.spec));
        let patch = json!({"spec": {"replicas": 4}});
        let scaled = api.patch_scale("replaced", &PatchParams::default(), &Patch::Merge(&patch)).await?;
        self.note_value("another scale", &json!(scaled.spec));
        let now = api.get("replaced").await?;
        self.note_value(
            "is a change of the spec",
            &json!([now.data["spec"]["replicas"], now.metadata.generation]),
        );
        let mut bare = rollout("bare");
        bare.data["spec"].as_object_mut().context("no spec")?.remove("replicas");
        api.create(&params(), &bare).await?;
        self.note("a scale without a size", api.get_scale("bare").await)
    }

    async fn applies(&mut self) -> Result<()> {
        let api = self.rollouts();
        let mut body = serde_json::to_value(rollout("applied"))?;
        body["metadata"] = json!({"name": "applied", "labels": {"team": "a"}});
        body["spec"].as_object_mut().context("no spec")?.remove("nonsense");
        body.as_object_mut().context("no fields")?.remove("status");
        let apply = async |manager: &str, body: &Value| {
            api.patch("applied", &PatchParams::apply(manager), &Patch::Apply(body)).await
        };
        let first = apply("user", &body).await?;
        self.note("an apply creates", Ok(&first))?;
        let stored = apply("user", &body).await?;
        let kept = stored.metadata.resource_version == first.metadata.resource_version;
        self.note_value("the first apply stores the defaults", &kept.into());
        let first = stored;
        let again = apply("user", &body).await?;
        let kept = again.metadata.resource_version == first.metadata.resource_version;
        self.note_value("again, it writes nothing", &kept.into());
        let image = json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "spec": {
            "replicas": 7, "template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}});
        self.note("two conflicts", apply("updater", &image).await)?;
        let forced = PatchParams::apply("updater").force();
        self.note("by force", api.patch("applied", &forced, &Patch::Apply(&image)).await)?;
        let spec = body["spec"].as_object_mut().context("no spec")?;
        spec.remove("replicas");
        body["spec"]["template"]["spec"]["containers"][0] = json!({"name": "web"});
        body["metadata"].as_object_mut().context("no metadata")?.remove("labels");
        self.note("what is not applied any more goes", apply("user", &body).await)?;
        let unknown =
            json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "spec": {"nothing": 1}});
        self.note("what the schema does not know", apply("user", &unknown).await)
    }

    async fn routes(&mut self) -> Result<()> {
        let api = self.api("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes");
        let user = PatchParams::apply("user");
        let applied = api.patch("web", &user, &Patch::Apply(&route(100))).await?;
        self.note_value("the defaults of a route", &applied.data["spec"]);
        let mut next = applied.clone();
        next.data["spec"]["rules"][0]["backendRefs"][0]["weight"] = json!(90);
        let written = api.replace("web", &by("davylamp/traffic"), &next).await?;
        self.note("the user's next apply", api.patch("web", &user, &Patch::Apply(&route(99))).await)?;
        let entries = written.metadata.managed_fields.clone().unwrap_or_default();
        let ours = entries.iter().position(|entry| entry.manager.as_deref() == Some("davylamp/traffic"));
        let forget = json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": written.metadata.resource_version},
            {"op": "remove", "path": format!("/metadata/managedFields/{}", ours.context("not ours")?)},
        ]);
        let forget = Patch::<()>::Json(serde_json::from_value(forget)?);
        let params =
            PatchParams { field_manager: Some("davylamp/traffic".to_owned()), ..PatchParams::default() };
        api.patch("web", &params, &forget).await?;
        let applied = api.patch("web", &user, &Patch::Apply(&route(99))).await?;
        self.note_value("once we have left", &applied.data["spec"]["rules"][0]["backendRefs"]);
        Ok(())
    }

    async fn rules(&mut self) -> Result<()> {
        let api = self.rollouts();
        let with = |path: &str, value: Value| -> Result<DynamicObject> {
            let mut body = serde_json::to_value(rollout("ruled"))?;
            *body.pointer_mut(path).context("no such path")? = value;
            Ok(serde_json::from_value(body)?)
        };
        let steps = "/spec/strategy/canary/steps";
        for (step, path, value) in [
            ("too large", "/spec/replicas", json!(10_001)),
            ("of another type", "/spec/replicas", json!("two")),
            ("another pattern", "/spec/service", json!("Web")),
            ("too few", steps, json!([])),
            ("what is required", "/spec", json!({})),
            ("falling weights", steps, json!([{"weight": "50%"}, {"weight": "10%"}])),
            ("no weight", steps, json!([{"weight": "0%"}])),
            ("no percentage", steps, json!([{"weight": "ten"}])),
            ("a selector that selects nothing", "/spec/template/metadata/labels", json!({"x": "y"})),
            ("the name of our own Service", "/spec/service", json!("ruled-stable")),
            (
                "the same container twice",
                "/spec/template/spec/containers",
                json!([{"name": "a"}, {"name": "a"}]),
            ),
        ] {
            self.note(step, api.create(&params(), &with(path, value)?).await)?;
        }
        let mut next = api.create(&params(), &rollout("ruled")).await?;
        next.data["spec"]["selector"] = json!({"matchLabels": {"app": "ruled", "x": "y"}});
        next.data["spec"]["template"]["metadata"]["labels"] = json!({"app": "ruled", "x": "y"});
        self.note("what must not change", api.replace("ruled", &params(), &next).await)
    }

    async fn patches(&mut self) -> Result<()> {
        let api = self.config_maps();
        api.create(&params(), &config_map("patched", "1")).await?;
        let test = json!([{"op": "test", "path": "/data/v", "value": "2"}]);
        let test = Patch::<()>::Json(serde_json::from_value(test)?);
        self.note("a test that fails", api.patch("patched", &PatchParams::default(), &test).await)?;
        let merge = json!({"metadata": {"labels": null}, "data": {"v": null, "w": "3"}});
        let merged = api.patch("patched", &PatchParams::default(), &Patch::Merge(&merge)).await?;
        self.note_value("a merge", &json!([merged.metadata.labels, merged.data["data"]]));
        let rollouts = self.rollouts();
        let strategic = Patch::Strategic(json!({"spec": {"replicas": 1}}));
        let refused = rollouts.patch("replaced", &PatchParams::default(), &strategic).await;
        let code = refused.err().and_then(|e| if let kube::Error::Api(s) = e { Some(s.code) } else { None });
        self.note_value("a form that custom kinds do not take", &json!(code));
        Ok(())
    }

    async fn built_in(&mut self) -> Result<()> {
        let create = async |body: &Value| -> Result<DynamicObject, kube::Error> {
            let path = format!(
                "/apis/apps/v1/namespaces/{}/replicasets?dryRun=All&fieldValidation=Strict",
                self.namespace
            );
            let request = http::Request::post(path).body(body.to_string().into_bytes());
            self.client.request(request.map_err(kube::Error::HttpError)?).await
        };
        let good = replica_set("strict");
        let mut unknown = good.clone();
        unknown["spec"]["template"]["spec"]["shareProcessNamespaces"] = json!(true);
        let mut port = good.clone();
        port["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{"containerPort": 70_000}]);
        let mut selector = good.clone();
        selector["spec"]["selector"]["matchLabels"] = json!({"app": "other"});
        let mut image = good.clone();
        image["spec"]["template"]["spec"]["containers"] = json!([{"name": "web"}]);
        let answers = [
            ("a strict dry run", create(&good).await.map(|_| Value::Null)),
            ("an unknown field", create(&unknown).await.map(|_| Value::Null)),
            ("no port", create(&port).await.map(|_| Value::Null)),
            ("a template that is not selected", create(&selector).await.map(|_| Value::Null)),
            ("no image", create(&image).await.map(|_| Value::Null)),
        ];
        for (step, answer) in answers {
            self.note(step, answer)?;
        }
        let there = self.replica_sets().get_opt("strict").await?.is_some();
        self.note_value("creates nothing", &there.into());
        let slices = self.api("discovery.k8s.io/v1", "EndpointSlice", "endpointslices");
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "loop"},
            "addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}],
        });
        self.note("a loopback address", slices.create(&params(), &serde_json::from_value(slice)?).await)
    }

    async fn deletions(&mut self) -> Result<()> {
        let api = self.rollouts();
        let mut held = rollout("held");
        held.metadata.finalizers = Some(vec!["davylamp.dev/conformance".to_owned()]);
        api.create(&params(), &held).await?;
        let preconditions = Some(Preconditions { resource_version: Some("1".to_owned()), uid: None });
        let guarded = DeleteParams { preconditions, ..DeleteParams::default() };
        let refused = api.delete("held", &guarded).await;
        let code = refused.err().and_then(|e| if let kube::Error::Api(s) = e { Some(s.code) } else { None });
        self.note_value("of another version", &json!(code));
        let marked = api.delete("held", &DeleteParams::default()).await?.left();
        self.note_value("marked", &json!(marked.map(|o| (o.metadata.generation, o.metadata.finalizers))));
        let more = json!({"metadata": {"finalizers": ["davylamp.dev/conformance", "davylamp.dev/more"]}});
        let patch = Patch::Merge(&more);
        self.note("held by more", api.patch("held", &PatchParams::default(), &patch).await)?;
        let none = json!({"metadata": {"finalizers": null}});
        api.patch("held", &PatchParams::default(), &Patch::Merge(&none)).await?;
        self.note("let go", api.get("held").await)
    }

    async fn families(&mut self) -> Result<()> {
        let (rollouts, sets) = (self.rollouts(), self.replica_sets());
        for (owner, policy) in [
            ("parent", PropagationPolicy::Background),
            ("front", PropagationPolicy::Foreground),
            ("orphaner", PropagationPolicy::Orphan),
        ] {
            let there = rollouts.create(&params(), &rollout(owner)).await?;
            let child = format!("{owner}-child");
            let mut set = replica_set(&child);
            set["spec"]["replicas"] = json!(0);
            set["metadata"]["ownerReferences"] = json!([reference(&there)]);
            sets.create(&params(), &serde_json::from_value(set)?).await?;
            let how = DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() };
            rollouts.delete(owner, &how).await?;
            let wait = Duration::from_mins(1);
            until(wait, owner, || async {
                let parent = rollouts.get_opt(owner).await?;
                let child = sets.get_opt(&child).await?;
                let settled = if owner == "orphaner" {
                    child.is_some_and(|c| c.metadata.owner_references.is_none())
                } else {
                    child.is_none()
                };
                Ok((parent.is_none() && settled).then_some(()))
            })
            .await?;
        }
        let again = rollouts.create(&params(), &rollout("orphaner")).await?;
        let adopt = json!({"metadata": {"ownerReferences": [reference(&again)]}});
        let adopted = sets.patch("orphaner-child", &PatchParams::default(), &Patch::Merge(&adopt)).await?;
        let owners = adopted.metadata.owner_references.unwrap_or_default();
        self.note_value("an orphan is adopted", &json!(owners.iter().map(|o| &o.name).collect::<Vec<_>>()));
        rollouts.delete("orphaner", &DeleteParams::default()).await?;
        until(Duration::from_mins(1), "the adopted goes, too", || async {
            Ok(sets.get_opt("orphaner-child").await?.is_none().then_some(()))
        })
        .await
    }
}

fn by(manager: &str) -> PostParams {
    PostParams { field_manager: Some(manager.to_owned()), ..PostParams::default() }
}

fn params() -> PostParams {
    by("conformance")
}

fn config_map(name: &str, value: &str) -> DynamicObject {
    let step = name.split('-').next().unwrap_or_default();
    object(json!({"apiVersion": "v1", "kind": "ConfigMap", "data": {"v": value},
                  "metadata": {"name": name, "labels": {"step": step, "v": value}}}))
}

fn rollout(name: &str) -> DynamicObject {
    object(json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": name},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": name}},
            "service": name,
            "strategy": {
                "canary": {"steps": [{"weight": "10%"}, {"weight": "50%"}]},
                "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": name}]}}],
            },
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "web", "image": "web:1", "unknown": {"kept": true}}]},
            },
            "nonsense": 1,
        },
        "status": {"phase": "Healthy"},
    }))
}

fn replica_set(name: &str) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "web", "image": "web:1"}]},
            },
        },
    })
}

fn route(weight: i32) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web"},
        "spec": {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [
            {"name": "web-stable", "port": 80, "weight": weight}, {"name": "web-canary", "port": 80}]}]},
    })
}

fn reference(owner: &DynamicObject) -> Value {
    json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "name": owner.metadata.name,
           "uid": owner.metadata.uid, "controller": true, "blockOwnerDeletion": true})
}

/// Of our own making: it is one.
fn object(value: Value) -> DynamicObject {
    serde_json::from_value(value).unwrap_or_else(|_| DynamicObject {
        types: None,
        metadata: kube::core::ObjectMeta::default(),
        data: Value::Null,
    })
}

fn names(objects: &[DynamicObject]) -> Value {
    objects.iter().map(|object| json!(object.metadata.name)).collect()
}

fn told(event: &WatchEvent<DynamicObject>) -> Option<Value> {
    let (what, object) = match event {
        WatchEvent::Added(object) => ("added", object),
        WatchEvent::Modified(object) => ("modified", object),
        WatchEvent::Deleted(object) => ("deleted", object),
        WatchEvent::Bookmark(_) | WatchEvent::Error(_) => return None,
    };
    // Others have labels like ours: the controllers of the cluster write ConfigMaps, too.
    let label = object.metadata.labels.as_ref()?.get("v")?;
    Some(json!([what, object.metadata.name, label]))
}

/// Without what may differ.
fn alike(mut value: Value, namespace: &str) -> Value {
    match &mut value {
        Value::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                *field = match name.as_str() {
                    "uid" | "resourceVersion" | "creationTimestamp" | "time" | "deletionTimestamp" => {
                        format!("<{name}>").into()
                    }
                    _ => alike(field.take(), namespace),
                };
                // They stand by second and then by name, so in two orders if the script is under way at the full second.
                if let ("managedFields", Value::Array(entries)) = (name.as_str(), field) {
                    entries.sort_by_cached_key(Value::to_string);
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(|v| *v = alike(v.take(), namespace)),
        Value::String(text) => *text = text.replace(namespace, "<namespace>"),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
    value
}

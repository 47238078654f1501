//! The objects that we own, as JSON: built from what the user wrote, never from what a binding knows of it.

use davylamp_api::labels;
use davylamp_api::{RolloutRunSpec, RolloutSpec, revision};
use davylamp_engine::observed::{Hash, Role, of_baseline};
use serde_json::{Map, Value, json};

use crate::observe::Subject;

/// The annotation that says which body a Service was last written with.
pub const APPLIED: &str = "davylamp.dev/applied";
/// The annotation that numbers a revision.
pub const REVISION: &str = "davylamp.dev/revision";

/// The role of a fresh baseline's pods.
pub const BASELINE: &str = "baseline";

/// The reference of an object to its Rollout.
#[must_use]
pub fn owner_reference(subject: &Subject) -> Value {
    json!({
        "apiVersion": format!("{}/{}", labels::GROUP, labels::VERSION),
        "kind": "Rollout",
        "name": subject.key.name,
        "uid": subject.uid,
        "controller": true,
        "blockOwnerDeletion": true,
    })
}

fn metadata(subject: &Subject, name: &str, more: &[(&str, &str)]) -> Value {
    let mut all = Map::new();
    all.insert(labels::ROLLOUT.to_owned(), json!(subject.key.name));
    for (key, value) in more {
        all.insert((*key).to_owned(), json!(value));
    }
    json!({
        "name": name,
        "namespace": subject.key.namespace,
        "labels": all,
        "ownerReferences": [owner_reference(subject)],
    })
}

/// The name of a revision's `ReplicaSet` and `ControllerRevision`.
#[must_use]
pub fn revision_name(rollout: &str, hash: &str) -> String {
    format!("{rollout}-{hash}")
}

/// A `ReplicaSet` of a revision, or of its fresh baseline. The selector of the user, and the hash; the template of the user,
/// and our labels. By its hash a baseline's pods are behind the stable Service; its role keeps it from pods of the
/// revision's own `ReplicaSet`, and that leaves the baseline's alone because they have an owner.
#[must_use]
pub fn replica_set(
    subject: &Subject,
    spec: &RolloutSpec,
    template: &Value,
    hash: &str,
    number: i64,
    size: i32,
) -> Value {
    let mut template = template.clone();
    let mut selector = spec.selector.match_labels.clone();
    let name = revision_name(&subject.key.name, hash);
    let of = of_baseline(hash);
    let role = of.map(|_| (labels::ROLE, BASELINE));
    let own: Vec<_> = [(labels::POD_TEMPLATE_HASH, of.unwrap_or(hash))].into_iter().chain(role).collect();
    selector.extend(own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    let more = [(labels::ROLLOUT, subject.key.name.as_str()), (labels::SERVING, "true")];
    for (key, value) in own.iter().chain(&more) {
        if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
            labels.insert((*key).to_owned(), json!(value));
        }
    }
    let mut metadata = metadata(subject, &name, &own);
    metadata["annotations"] = json!({REVISION: number.to_string()});
    json!({
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": metadata,
        "spec": {
            "replicas": size,
            "minReadySeconds": spec.min_ready_seconds.unwrap_or(0),
            "selector": {"matchLabels": selector},
            "template": template,
        },
    })
}

/// A `ControllerRevision`: the template as the user wrote it, and how its hash was made.
#[must_use]
pub fn controller_revision(subject: &Subject, template: &Value, hash: &str, number: i64) -> Value {
    let mut metadata =
        metadata(subject, &revision_name(&subject.key.name, hash), &[(labels::POD_TEMPLATE_HASH, hash)]);
    metadata["annotations"] = json!({labels::HASH_VERSION: revision::HASH_VERSION.to_string()});
    json!({
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": metadata,
        "data": {"template": template},
        "revision": number,
    })
}

/// A Service of ours: the ports of the user's, and one revision.
#[must_use]
pub fn service(
    subject: &Subject,
    spec: &RolloutSpec,
    name: &str,
    role: Role,
    hash: &Hash,
    users: &Value,
) -> Value {
    let mut selector: Map<String, Value> =
        spec.selector.match_labels.iter().map(|(k, v)| (k.clone(), json!(v))).collect();
    selector.insert(labels::POD_TEMPLATE_HASH.to_owned(), json!(hash));
    let mut body = Map::new();
    body.insert("selector".to_owned(), Value::Object(selector));
    for field in
        ["sessionAffinity", "sessionAffinityConfig", "ipFamilies", "ipFamilyPolicy", "trafficDistribution"]
    {
        if let Some(value) = users.get(field).filter(|v| !v.is_null()) {
            body.insert(field.to_owned(), value.clone());
        }
    }
    let ports = users.get("ports").and_then(Value::as_array).into_iter().flatten();
    let copied = ["name", "port", "targetPort", "protocol", "appProtocol"];
    body.insert(
        "ports".to_owned(),
        ports
            .map(|port| {
                copied
                    .iter()
                    .filter_map(|f| Some(((*f).to_owned(), port.get(*f)?.clone())))
                    .collect::<Map<_, _>>()
            })
            .map(Value::Object)
            .collect(),
    );
    let body = Value::Object(body);
    let mut metadata = metadata(subject, name, &[(labels::ROLE, role.as_str())]);
    metadata["annotations"] = json!({APPLIED: revision::hash(&body, 0)});
    json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": body})
}

/// The record of a run.
#[must_use]
pub fn run(subject: &Subject, name: &str, spec: &RolloutRunSpec) -> Value {
    let hash = [(labels::ACTIVE, "true"), (labels::POD_TEMPLATE_HASH, spec.hash.as_str())];
    json!({
        "apiVersion": format!("{}/{}", labels::GROUP, labels::VERSION),
        "kind": "RolloutRun",
        "metadata": metadata(subject, name, &hash),
        "spec": spec,
    })
}

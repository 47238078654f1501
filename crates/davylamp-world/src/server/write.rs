//! Writing: creations and changes, whoever asks in whichever form. Each goes the same way: what the server owns is put
//! back, unknown fields go and defaults come, the owners of fields are booked, the object is checked, counted and stored;
//! or nothing is written, when nothing would change.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::read::shown;
use super::{Call, State, builtin};
use crate::apply::managers::{Managers, Writer};
use crate::apply::typed::unmergeable;
use crate::kinds::Kind;
use crate::patch::{Form, patched};
use crate::refusal::{About, Problem, Refusal, Wrong};
use crate::schema;
use crate::store::Key;
use crate::walk::Walk;

/// Of metadata, what only the server writes.
const SERVERS: &[&str] = &[
    "uid",
    "creationTimestamp",
    "generation",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "selfLink",
];

impl State {
    pub(super) fn create(&mut self, call: &Call<'_>, body: Value) -> Result<Value, Refusal> {
        self.create_with(call, body, None)
    }

    fn create_with(
        &mut self,
        call: &Call<'_>,
        body: Value,
        managers: Option<Managers>,
    ) -> Result<Value, Refusal> {
        let kind = &call.kind;
        let mut new = taken(call, body)?;
        let name = self.name(&mut new);
        let about = kind.about(&name);
        if !text(&new, "/metadata/resourceVersion").is_empty() {
            return Err(Refusal::bad_request("resourceVersion should not be set on objects to be created"));
        }
        self.namespace_takes(call, &name)?;
        let metadata = metadata(&mut new);
        for field in SERVERS {
            metadata.remove(*field);
        }
        if kind.namespaced {
            metadata.insert("namespace".to_owned(), call.path.namespace.clone().into());
        } else {
            metadata.remove("namespace");
        }
        if kind.status {
            object(&mut new).remove("status");
        }
        settled(call, &mut new)?;
        let undefaulted = kind.custom && kind.status && new.get("status").is_some();
        let mut managers = managers.unwrap_or_else(|| {
            let mut managers = Managers::default();
            managers.update(&kind.schema, &writer(call, &kind.api_version()), &json!({}), &new);
            managers
        });
        // What the server writes itself has no owner.
        builtin::fill(kind, &mut new, self.store.version());
        let found = problems(kind, &new, None);
        if !found.is_empty() {
            return Err(Refusal::invalid(about, &found));
        }
        let (table, key) = (kind.table(), (text(&new, "/metadata/namespace").to_owned(), name.clone()));
        if self.store.get(&table, &key).is_some() {
            return Err(Refusal::already_exists(about));
        }
        let uid = self.uid(&format!("{}/{}/{}", kind.plural, call.path.namespace, name));
        let metadata = self::metadata(&mut new);
        metadata.insert("uid".to_owned(), uid.into());
        metadata.insert("creationTimestamp".to_owned(), call.now.clone().into());
        if kind.generation {
            metadata.insert("generation".to_owned(), 1.into());
        }
        std::mem::take(&mut managers).put(&mut new);
        if kind.plural == "customresourcedefinitions" {
            self.define(&mut new, &call.now).map_err(|problem| {
                Refusal::invalid(about, &[Problem::invalid("spec", Value::Null, problem)])
            })?;
        }
        if call.query.dry_run() {
            return Ok(shown(kind, &new).into_owned());
        }
        if undefaulted {
            self.undefaulted.insert((table.clone(), key.clone()));
        }
        let stored = self.store.write(&table, &key, new, false);
        Ok(shown(kind, &stored).into_owned())
    }

    /// The name of a new object, generated if it has none.
    fn name(&mut self, new: &mut Value) -> String {
        let prefix = text(new, "/metadata/generateName").to_owned();
        let name = text(new, "/metadata/name").to_owned();
        if !name.is_empty() || prefix.is_empty() {
            return name;
        }
        let name = format!("{}{}", prefix.get(..58).unwrap_or(&prefix), self.suffix(&prefix));
        metadata(new).insert("name".to_owned(), name.clone().into());
        name
    }

    fn namespace_takes(&self, call: &Call<'_>, name: &str) -> Result<(), Refusal> {
        if !call.kind.namespaced {
            return Ok(());
        }
        let wanted = &call.path.namespace;
        let about = About { group: "", kind: "Namespace", plural: "namespaces", name: wanted };
        let namespaces = crate::kinds::Table { group: String::new(), plural: "namespaces".to_owned() };
        let found = self.store.get(&namespaces, &(String::new(), wanted.clone()));
        let namespace = found.ok_or_else(|| Refusal::not_found(about))?;
        if namespace.path("/metadata/deletionTimestamp").is_some() {
            let why =
                format!("unable to create new content in namespace {wanted} because it is being terminated");
            let mut refusal = Refusal::forbidden(call.kind.about(name), &why);
            let message = format!("namespace {wanted} is being terminated");
            refusal.details["causes"] = json!([
                {"reason": "NamespaceTerminating", "message": message, "field": "metadata.namespace"}
            ]);
            return Err(refusal);
        }
        Ok(())
    }

    pub(super) fn put(&mut self, call: &Call<'_>, body: Value) -> Result<Value, Refusal> {
        let live = self.live(call)?;
        let new = taken(call, body)?;
        if text(&new, "/metadata/resourceVersion").is_empty()
            && (call.kind.custom
                || matches!(call.kind.plural.as_str(), "leases" | "customresourcedefinitions"))
        {
            let detail = "must be specified for an update";
            let problem = Problem::invalid("metadata.resourceVersion", 0.into(), detail);
            // A real server, too, names the resource here, not the kind.
            let about = call.kind.about(&call.path.name);
            return Err(Refusal::invalid(About { kind: about.plural, ..about }, &[problem]));
        }
        self.replace(call, &live, new, None)
    }

    pub(super) fn patch(&mut self, call: &Call<'_>, form: Form, patch: &Value) -> Result<Value, Refusal> {
        let live = self.live(call)?;
        let new = patched(form, call.kind.schema.at(), &shown(&call.kind, &live), patch)?;
        let new = taken(call, new)?;
        self.replace(call, &live, new, None)
    }

    /// Gives the code, too: an object that is not there is created.
    pub(super) fn apply(&mut self, call: &Call<'_>, body: Value) -> Result<(u16, Value), Refusal> {
        let kind = &call.kind;
        if call.query.text("fieldManager").is_empty() {
            let problem = Problem::required("fieldManager", "is required for apply patch");
            let about = About { group: "meta.k8s.io", kind: "PatchOptions", plural: "", name: "" };
            return Err(Refusal::invalid(about, &[problem]));
        }
        let mut applied = body;
        for (field, expected) in [("apiVersion", kind.api_version()), ("kind", kind.kind.clone())] {
            if applied.get(field).and_then(Value::as_str) != Some(&expected) {
                return Err(Refusal::bad_request(format!(
                    "invalid object type: {field} of the patch must be {expected:?}"
                )));
            }
        }
        if applied.path("/metadata/managedFields").is_some_and(|list| !list.is_null()) {
            return Err(Refusal::bad_request("metadata.managedFields must be nil"));
        }
        let written =
            ["namespace", "name"].map(|field| text(&applied, &format!("/metadata/{field}")).to_owned());
        metadata(&mut applied).insert("name".to_owned(), call.path.name.clone().into());
        let applied = taken(call, applied)?;
        let at = kind.schema.at();
        if let Some(why) = unmergeable(at, &applied, "") {
            let message = format!(
                "failed to create typed patch object ({}; {}/{}, Kind={}): {why}",
                written.join("/"),
                kind.group,
                kind.version,
                kind.kind
            );
            // An error that a real server has no reason for.
            return Err(Refusal::new(500, "", message));
        }
        let force = call.query.flag("force");
        let version = kind.api_version();
        let live = match self.store.get(&kind.table(), &call.key()).cloned() {
            Some(live) => live,
            None if call.path.subresource.is_empty() => {
                if !text(&applied, "/metadata/uid").is_empty() {
                    let why = format!(
                        "uid mismatch: the provided object specified uid {}, and no existing object was found",
                        text(&applied, "/metadata/uid")
                    );
                    return Err(Refusal::conflict(kind.about(&call.path.name), &why));
                }
                let mut managers = Managers::default();
                let new =
                    managers.apply(&kind.schema, &writer(call, &version), &json!({}), &applied, force)?;
                return self.create_with(call, new, Some(managers)).map(|created| (201, created));
            }
            None => return Err(Refusal::not_found(kind.about(&call.path.name))),
        };
        let mut managers = Managers::of(&live);
        let mut new = managers.apply(&kind.schema, &writer(call, &version), &live, &applied, force)?;
        // Only what was asked for is compared.
        for field in ["uid", "resourceVersion"] {
            if applied.path(&format!("/metadata/{field}")).is_none() {
                metadata(&mut new).remove(field);
            }
        }
        self.replace(call, &live, new, Some(managers)).map(|object| (200, object))
    }

    /// Makes `new` of `live`.
    pub(super) fn replace(
        &mut self,
        call: &Call<'_>,
        live: &Arc<Value>,
        mut new: Value,
        managers: Option<Managers>,
    ) -> Result<Value, Refusal> {
        let kind = call.kind.clone();
        let about = kind.about(&call.path.name);
        let (uid, live_uid) = (text(&new, "/metadata/uid"), text(live, "/metadata/uid"));
        if !uid.is_empty() && uid != live_uid {
            return Err(Refusal::precondition(about, &call.path.namespace, "UID", uid, live_uid));
        }
        let version = text(&new, "/metadata/resourceVersion");
        if !version.is_empty() && version != text(live, "/metadata/resourceVersion") {
            return Err(Refusal::stale(about));
        }
        let mut managers = managers.map_or_else(
            || {
                let own = if call.path.subresource.is_empty() {
                    Managers::of_write(live, &new)
                } else {
                    Managers::of(live)
                };
                (own, true)
            },
            |applied| (applied, false),
        );
        keep_the_servers(call, live, &mut new);
        settled(call, &mut new)?;
        if managers.1 {
            managers.0.update(&kind.schema, &writer(call, &kind.api_version()), live, &new);
        }
        managers.0.put(&mut new);
        let key = (text(live, "/metadata/namespace").to_owned(), text(live, "/metadata/name").to_owned());
        if new == **live && !self.undefaulted.contains(&(kind.table(), key.clone())) {
            return Ok(shown(&kind, live).into_owned());
        }
        let mut found = problems(&kind, &new, Some(live));
        let added = new_finalizers(live, &new);
        // Of a custom kind it is looked at twice.
        found.extend(added.iter().filter(|_| kind.custom).cloned());
        found.extend(added);
        if !found.is_empty() {
            return Err(Refusal::invalid(about, &found));
        }
        if kind.generation && counts(&kind, live, &new) {
            let generation = live.path("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
            metadata(&mut new).insert("generation".to_owned(), (generation + 1).into());
        }
        if kind.plural == "customresourcedefinitions" && !call.query.dry_run() {
            self.define(&mut new, &call.now).map_err(|problem| {
                Refusal::invalid(about, &[Problem::invalid("spec", Value::Null, problem)])
            })?;
        }
        if call.query.dry_run() {
            return Ok(shown(&kind, &new).into_owned());
        }
        let stored = self.commit(&kind, &key, new);
        Ok(shown(&kind, &stored).into_owned())
    }

    /// Stores an object; removes it, if it is to go and nothing keeps it any more.
    pub(crate) fn commit(&mut self, kind: &Kind, key: &Key, object: Value) -> Arc<Value> {
        let metadata = |field: &str| object.path(&format!("/metadata/{field}"));
        let held = metadata("finalizers").and_then(Value::as_array).is_some_and(|list| !list.is_empty())
            || metadata("deletionGracePeriodSeconds").and_then(Value::as_i64).is_some_and(|s| s > 0)
            || (kind.plural == "namespaces"
                && object.path("/spec/finalizers").is_some_and(|list| *list != json!([])));
        let gone = metadata("deletionTimestamp").is_some() && !held;
        if gone && kind.plural == "customresourcedefinitions" {
            self.kinds.forget(&object);
        }
        self.undefaulted.remove(&(kind.table(), key.clone()));
        self.store.write(&kind.table(), key, object, gone)
    }

    /// Serves what a definition defines, and says so in its status.
    fn define(&mut self, definition: &mut Value, now: &str) -> Result<(), String> {
        self.kinds.define(definition)?;
        let names = definition.path("/spec/names").cloned().unwrap_or_default();
        let condition = |type_: &str, reason: &str| json!({"type": type_, "status": "True", "reason": reason, "lastTransitionTime": now});
        let versions = definition.path("/spec/versions").and_then(Value::as_array);
        let stored: Vec<Value> =
            versions.into_iter().flatten().filter_map(|v| v.get("name").cloned()).collect();
        if definition.get("status").is_none() {
            definition["status"] = json!({
                "acceptedNames": names,
                "storedVersions": stored,
                "conditions": [
                    condition("NamesAccepted", "NoConflicts"),
                    condition("Established", "InitialNamesAccepted"),
                ],
            });
        }
        Ok(())
    }
}

/// Unknown fields and nulls go, defaults come.
fn settled(call: &Call<'_>, new: &mut Value) -> Result<(), Refusal> {
    let kind = &call.kind;
    let at = kind.schema.at();
    let mut unknown = Vec::new();
    schema::null_fields(at, new);
    schema::prune(at, new, "", &mut unknown);
    if call.query.text("fieldValidation") == "Strict" && !unknown.is_empty() {
        let unknown: Vec<String> = unknown.iter().map(|path| format!("unknown field {path:?}")).collect();
        return Err(Refusal::bad_request(format!(
            "{} in version {:?} cannot be handled as a {}: strict decoding error: {}",
            kind.kind,
            kind.version,
            kind.kind,
            unknown.join(", ")
        )));
    }
    schema::default(at, new);
    builtin::default(kind, new);
    let fields = object(new);
    fields.insert("kind".to_owned(), kind.kind.clone().into());
    fields.insert("apiVersion".to_owned(), kind.api_version().into());
    let metadata = metadata(new);
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        let empty = |value: &Value| {
            value.as_object().is_some_and(Map::is_empty) || value.as_array().is_some_and(Vec::is_empty)
        };
        if metadata.get(field).is_some_and(empty) {
            metadata.remove(field);
        }
    }
    Ok(())
}

fn writer<'a>(call: &'a Call<'_>, api_version: &'a str) -> Writer<'a> {
    Writer {
        manager: call.manager,
        api_version,
        subresource: &call.path.subresource,
        time: &call.now,
        has_status: call.kind.status,
    }
}

/// A body as it is stored; refused if it is no object of this kind, name and namespace.
fn taken(call: &Call<'_>, mut body: Value) -> Result<Value, Refusal> {
    let Call { kind, path, .. } = call;
    if !body.is_object() {
        return Err(Refusal::bad_request("Object 'Kind' is missing in 'null'"));
    }
    if kind.plural == "events" && kind.group.is_empty() {
        body = builtin::from_core(&body);
    }
    let expected = if kind.plural == "events" { "Event" } else { kind.kind.as_str() };
    match text(&body, "/kind") {
        "" => {}
        there if there != expected => {
            return Err(Refusal::bad_request(format!(
                "{there} in version {:?} cannot be handled as a {expected}: no kind {there:?} is registered for \
                 version {:?}",
                text(&body, "/apiVersion"),
                kind.api_version()
            )));
        }
        _ => {}
    }
    if !metadata_of(&body).is_none_or(Value::is_object) {
        return Err(Refusal::bad_request("metadata must be an object"));
    }
    let (name, namespace) = (text(&body, "/metadata/name"), text(&body, "/metadata/namespace"));
    if !path.name.is_empty() && !name.is_empty() && name != path.name {
        return Err(Refusal::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            path.name
        )));
    }
    if kind.namespaced && !namespace.is_empty() && namespace != path.namespace {
        return Err(Refusal::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    metadata(&mut body);
    Ok(body)
}

/// What a write to this endpoint does not change is as it was.
fn keep_the_servers(call: &Call<'_>, live: &Value, new: &mut Value) {
    match call.path.subresource.as_str() {
        "status" => {
            let status = new.get("status").cloned();
            *new = live.clone();
            put_or_remove(object(new), "status", status);
            return;
        }
        "finalize" => {
            let finalizers = new.path("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
            *new = live.clone();
            new["spec"]["finalizers"] = finalizers;
            return;
        }
        _ => {}
    }
    if call.kind.status {
        put_or_remove(object(new), "status", live.get("status").cloned());
    }
    let was = |field: &str| live.path(&format!("/metadata/{field}")).cloned();
    let metadata = metadata(new);
    for field in SERVERS.iter().chain(&["name", "namespace", "resourceVersion"]) {
        put_or_remove(metadata, field, was(field));
    }
}

fn put_or_remove(fields: &mut Map<String, Value>, name: &str, value: Option<Value>) {
    match value {
        Some(value) => drop(fields.insert(name.to_owned(), value)),
        None => drop(fields.remove(name)),
    }
}

/// Whether a generation counts this change: of a built-in kind, one of its spec; of a custom one, of all but metadata and
/// status.
fn counts(kind: &Kind, was: &Value, is: &Value) -> bool {
    if !kind.custom && is.get("spec").is_some() {
        return was.get("spec") != is.get("spec");
    }
    own(kind, was).ne(own(kind, is))
}

fn own<'a>(kind: &Kind, object: &'a Value) -> impl Iterator<Item = (&'a String, &'a Value)> {
    let has_status = kind.status;
    let fields = object.as_object().into_iter().flatten();
    fields.filter(move |(name, _)| *name != "metadata" && !(has_status && *name == "status"))
}

fn problems(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<Problem> {
    let mut found = Vec::new();
    if old.is_none() {
        found.extend(bad_name(kind, text(new, "/metadata/name")));
    }
    if kind.custom {
        found.extend(schema::validate(kind.schema.at(), new, old));
        if let Some(problem) = no_size(kind, new) {
            // Before the last word, which is about all of them.
            found.insert(found.len().saturating_sub(1), problem);
        }
    } else {
        let types = schema::validate(kind.schema.at(), new, old);
        // Of a built-in kind only what cannot be read at all; the rest is in the words of its own rules.
        found.extend(types.into_iter().filter(|problem| problem.what == Wrong::Type));
        found.extend(builtin::problems(kind, new, old));
    }
    found
}

/// A size that cannot be read as one.
fn no_size(kind: &Kind, new: &Value) -> Option<Problem> {
    let path = &kind.scale.as_ref()?.spec;
    let value = new.path(path).filter(|value| !value.is_null() && !value.is_i64())?;
    let (shown, type_) = match value {
        Value::String(text) => (text.clone(), "string"),
        Value::Bool(flag) => (flag.to_string(), "bool"),
        Value::Number(number) => (number.to_string(), "float64"),
        Value::Null | Value::Array(_) | Value::Object(_) => return None,
    };
    let path = path.replace('/', ".");
    let detail = format!("{path} accessor error: {shown} is of the type {type_}, expected int64");
    Some(Problem::invalid(path, 0.into(), detail))
}

fn bad_name(kind: &Kind, name: &str) -> Option<Problem> {
    if name.is_empty() {
        return Some(Problem::required("metadata.name", "name or generateName is required"));
    }
    let (service, namespace) = (kind.plural == "services", kind.plural == "namespaces");
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fits = |c: char| letter(c) || c == '-' || (c == '.' && !service && !namespace);
    let starts =
        if service { name.starts_with(|c: char| c.is_ascii_lowercase()) } else { name.starts_with(letter) };
    let long = if service || namespace { 63 } else { 253 };
    let dots = name.split('.').all(|part| part.starts_with(letter) && part.ends_with(letter));
    if kind.group == "rbac.authorization.k8s.io"
        || (starts && dots && name.chars().all(fits) && name.len() <= long)
    {
        return None;
    }
    let detail = if service {
        "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an alphabetic \
         character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for validation \
         is '[a-z]([-a-z0-9]*[a-z0-9])?')"
    } else if namespace {
        "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end \
         with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
    } else {
        "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start \
         and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
         '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
    };
    Some(Problem::invalid("metadata.name", name.into(), detail))
}

/// While an object is being deleted, nothing more may hold it.
fn new_finalizers(live: &Value, new: &Value) -> Option<Problem> {
    live.path("/metadata/deletionTimestamp")?;
    let list = |object: &Value| {
        object.path("/metadata/finalizers").and_then(Value::as_array).cloned().unwrap_or_default()
    };
    let (old, new) = (list(live), list(new));
    let added: Vec<String> = new.iter().filter(|f| !old.contains(f)).map(ToString::to_string).collect();
    (!added.is_empty()).then(|| {
        let detail = format!(
            "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
            added.join(", ")
        );
        Problem::forbidden("metadata.finalizers", detail)
    })
}

fn metadata_of(object: &Value) -> Option<&Value> {
    object.get("metadata").filter(|metadata| !metadata.is_null())
}

pub(crate) fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.path(path).and_then(Value::as_str).unwrap_or_default()
}

/// The fields of an object; an empty one is made of anything else.
pub(crate) fn object(value: &mut Value) -> &mut Map<String, Value> {
    if let Value::Object(fields) = value {
        return fields;
    }
    *value = Value::Object(Map::new());
    object(value)
}

/// The metadata of an object, made if it has none.
pub(crate) fn metadata(value: &mut Value) -> &mut Map<String, Value> {
    object(object(value).entry("metadata").or_insert(Value::Null))
}

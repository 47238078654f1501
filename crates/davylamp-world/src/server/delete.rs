//! Deleting: at once, or marked and kept until its finalizers and its dependents are gone.

use std::sync::Arc;

use serde_json::{Value, json};

use super::read::{Scope, shown};
use super::write::{metadata, text};
use super::{Call, State};
use crate::clock::Clock;
use crate::kinds::Kind;
use crate::refusal::Refusal;
use crate::request::Query;
use crate::store::Key;
use crate::walk::Walk;

/// Dependents lose their owner and stay.
pub(crate) const ORPHAN: &str = "orphan";
/// Dependents go first.
pub(crate) const FOREGROUND: &str = "foregroundDeletion";

/// What a deletion is asked with, in its body or its query.
#[derive(Debug, Default)]
pub(crate) struct Options {
    policy: String,
    grace: Option<i64>,
    uid: String,
    version: String,
    dry_run: bool,
}

impl Options {
    fn of(body: &Value, query: &Query) -> Self {
        let either = |path: &str, key: &str| {
            let said = text(body, path);
            if said.is_empty() { query.text(key).to_owned() } else { said.to_owned() }
        };
        let grace = body.get("gracePeriodSeconds").and_then(Value::as_i64);
        let orphan = body.get("orphanDependents").and_then(Value::as_bool).unwrap_or(false);
        let policy = either("/propagationPolicy", "propagationPolicy");
        Self {
            policy: if policy.is_empty() && orphan { "Orphan".to_owned() } else { policy },
            grace: grace.or_else(|| query.text("gracePeriodSeconds").parse().ok()),
            uid: text(body, "/preconditions/uid").to_owned(),
            version: text(body, "/preconditions/resourceVersion").to_owned(),
            dry_run: query.dry_run() || body.path("/dryRun/0").is_some_and(|all| all == "All"),
        }
    }
}

impl State {
    pub(super) fn delete(&mut self, call: &Call<'_>, body: &Value) -> Result<Value, Refusal> {
        let options = Options::of(body, call.query);
        let live = self.live(call)?;
        let about = call.kind.about(&call.path.name);
        for (field, words, wanted) in
            [("uid", "UID", &options.uid), ("resourceVersion", "ResourceVersion", &options.version)]
        {
            let there = text(&live, &format!("/metadata/{field}"));
            if !wanted.is_empty() && wanted != there {
                return Err(Refusal::precondition(about, &call.path.namespace, words, wanted, there));
            }
        }
        if let Some(left) = self.remove(&call.kind, &call.key(), &live, &options, call.clock) {
            return Ok(shown(&call.kind, &left).into_owned());
        }
        let uid = text(&live, "/metadata/uid");
        let mut details = json!({"name": call.path.name, "kind": call.kind.plural, "uid": uid});
        if !call.kind.group.is_empty() {
            details["group"] = call.kind.group.clone().into();
        }
        Ok(
            json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}),
        )
    }

    pub(super) fn delete_all(&mut self, call: &Call<'_>, body: &Value) -> Result<Value, Refusal> {
        let (options, scope) = (Options::of(body, call.query), Scope::of(call)?);
        let table = call.kind.table();
        let found: Vec<(Key, Arc<Value>)> = self
            .store
            .list(&table)
            .filter(|(key, object)| scope.holds(&call.kind, key, object))
            .map(|(key, object)| (key.clone(), object.clone()))
            .collect();
        let mut items = Vec::new();
        for (key, object) in found {
            let left = self.remove(&call.kind, &key, &object, &options, call.clock).unwrap_or(object);
            items.push(shown(&call.kind, &left).into_owned());
        }
        let version = self.store.version().to_string();
        Ok(json!({"kind": format!("{}List", call.kind.kind), "apiVersion": call.kind.api_version(),
                  "metadata": {"resourceVersion": version}, "items": items}))
    }

    /// Gives the object if it is still there.
    pub(crate) fn remove(
        &mut self,
        kind: &Kind,
        key: &Key,
        live: &Arc<Value>,
        options: &Options,
        clock: Clock,
    ) -> Option<Arc<Value>> {
        let mut next = (**live).clone();
        let held = match options.policy.as_str() {
            "Orphan" => Some(ORPHAN),
            "Foreground" => Some(FOREGROUND),
            _ => None,
        };
        let deleting = live.path("/metadata/deletionTimestamp").is_some();
        let running = kind.plural == "pods" && !text(live, "/spec/nodeName").is_empty();
        let usual = live.path("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(30);
        let ended = matches!(text(live, "/status/phase"), "Succeeded" | "Failed");
        let grace = if running && !ended { options.grace.unwrap_or(usual).max(0) } else { 0 };
        let was = live.path("/metadata/deletionGracePeriodSeconds").and_then(Value::as_i64);
        let fields = metadata(&mut next);
        if let Some(held) = held {
            let finalizers = fields.entry("finalizers").or_insert_with(|| json!([]));
            if let Some(list) = finalizers.as_array_mut() {
                // The last word counts.
                list.retain(|f| f != ORPHAN && f != FOREGROUND);
                list.push(held.into());
            }
        }
        if !deleting || was.is_some_and(|was| grace < was) {
            let at = clock.in_seconds(grace);
            fields.insert("deletionTimestamp".to_owned(), at.into());
            fields.insert("deletionGracePeriodSeconds".to_owned(), grace.into());
            if let Some(generation) = fields.get("generation").and_then(Value::as_i64).filter(|_| !deleting) {
                fields.insert("generation".to_owned(), (generation + 1).into());
            }
        }
        if kind.plural == "namespaces" {
            next["status"] = json!({"phase": "Terminating"});
        }
        if options.dry_run || next == **live {
            return Some(live.clone());
        }
        let stored = self.commit(kind, key, next);
        self.store.get(&kind.table(), key).is_some().then_some(stored)
    }
}

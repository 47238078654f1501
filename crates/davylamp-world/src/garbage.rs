//! What goes by itself: dependents without an owner, what orphaning and foreground deletions wait for, and everything in
//! a namespace that is being deleted. [`ApiServer::collect_garbage`] does all there is to do now;
//! [`ApiServer::garbage_collector`] does it again and again, a while after each write, as a real cluster does.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::clock::Clock;
use crate::kinds::Table;
use crate::server::delete::{FOREGROUND, ORPHAN, Options};
use crate::server::write::{metadata, text};
use crate::server::{ApiServer, State};
use crate::store::Key;
use crate::walk::Walk;

/// An object with its place.
type Placed = (Table, Key, Arc<Value>);

impl ApiServer {
    /// Does all there is to do.
    pub fn collect_garbage(&self) {
        let clock = self.inner.clock;
        let mut state = self.state();
        // Each round brings at least one object nearer to its end.
        while state.collect(clock) {}
    }

    /// Does it again and again, `delay` after each write. Never ends.
    pub async fn garbage_collector(self, delay: Duration) {
        loop {
            self.inner.garbage.notified().await;
            tokio::time::sleep(delay).await;
            self.collect_garbage();
        }
    }
}

impl State {
    /// One round; whether anything was done.
    fn collect(&mut self, clock: Clock) -> bool {
        let before = self.store.version();
        let all: Vec<Placed> = self
            .store
            .tables()
            .into_iter()
            .flat_map(|table| {
                let objects = self.store.list(&table);
                objects.map(|(key, object)| (table.clone(), key.clone(), object.clone())).collect::<Vec<_>>()
            })
            .collect();
        let alive: BTreeSet<&str> = all.iter().map(|(_, _, object)| text(object, "/metadata/uid")).collect();
        let mut dependents: BTreeMap<&str, Vec<&Placed>> = BTreeMap::new();
        for placed in &all {
            for owner in owners(&placed.2) {
                dependents.entry(text(owner, "/uid")).or_default().push(placed);
            }
        }
        for placed in &all {
            let (table, key, object) = placed;
            let uid = text(object, "/metadata/uid");
            let deleting = object.path("/metadata/deletionTimestamp").is_some();
            let of_it = dependents.get(uid).map(Vec::as_slice).unwrap_or_default();
            if self.kinds.of_table(table).is_none() {
                // Its definition is gone.
                self.store.write(table, key, (**object).clone(), true);
            } else if deleting && holds(object, ORPHAN) {
                for dependent in of_it {
                    self.disown(dependent, &|owner| text(owner, "/uid") == uid);
                }
                self.release(placed, ORPHAN);
            } else if deleting && holds(object, FOREGROUND) {
                for dependent in of_it {
                    self.collect_one(dependent, clock);
                }
                let blocks = |dependent: &&&Placed| {
                    owners(&dependent.2).any(|owner| {
                        text(owner, "/uid") == uid && owner.get("blockOwnerDeletion") == Some(&json!(true))
                    })
                };
                if of_it.iter().filter(blocks).count() == 0 {
                    self.release(placed, FOREGROUND);
                }
            } else if deleting && table.plural == "namespaces" {
                self.empty(placed, &all, clock);
            } else if !deleting && owners(object).next().is_some() {
                let gone = |owner: &Value| !alive.contains(text(owner, "/uid"));
                if owners(object).all(gone) {
                    self.collect_one(placed, clock);
                } else if owners(object).any(gone) {
                    self.disown(placed, &gone);
                }
            }
        }
        self.store.version() != before
    }

    /// Deletes an object, unless it is being deleted.
    fn collect_one(&mut self, (table, key, _): &Placed, clock: Clock) {
        let now = self.store.get(table, key).cloned();
        if let (Some(kind), Some(live)) = (self.kinds.of_table(table).cloned(), now)
            && live.path("/metadata/deletionTimestamp").is_none()
        {
            self.remove(&kind, key, &live, &Options::default(), clock);
        }
    }

    fn disown(&mut self, placed: &Placed, drop: &dyn Fn(&Value) -> bool) {
        self.edit(placed, |object| {
            let fields = metadata(object);
            if let Some(list) = fields.get_mut("ownerReferences").and_then(Value::as_array_mut) {
                list.retain(|owner| !drop(owner));
                if list.is_empty() {
                    fields.remove("ownerReferences");
                }
            }
        });
    }

    fn release(&mut self, placed: &Placed, finalizer: &str) {
        self.edit(placed, |object| {
            let fields = metadata(object);
            if let Some(list) = fields.get_mut("finalizers").and_then(Value::as_array_mut) {
                list.retain(|held| held != finalizer);
                if list.is_empty() {
                    fields.remove("finalizers");
                }
            }
        });
    }

    fn edit(&mut self, (table, key, _): &Placed, change: impl FnOnce(&mut Value)) {
        let now = self.store.get(table, key).cloned();
        let (Some(kind), Some(live)) = (self.kinds.of_table(table).cloned(), now) else { return };
        let mut next = (*live).clone();
        change(&mut next);
        if next != *live {
            self.commit(&kind, key, next);
        }
    }

    /// Deletes what is in a namespace; once it is empty, lets it go.
    fn empty(&mut self, namespace: &Placed, all: &[Placed], clock: Clock) {
        let within: Vec<&Placed> = all.iter().filter(|(_, key, _)| key.0 == namespace.1.1).collect();
        for placed in &within {
            self.collect_one(placed, clock);
        }
        if within.is_empty() {
            self.edit(namespace, |object| object["spec"] = json!({"finalizers": []}));
        }
    }
}

fn owners(object: &Value) -> impl Iterator<Item = &Value> {
    object.path("/metadata/ownerReferences").and_then(Value::as_array).into_iter().flatten()
}

fn holds(object: &Value, finalizer: &str) -> bool {
    let list = object.path("/metadata/finalizers").and_then(Value::as_array);
    list.into_iter().flatten().any(|held| held == finalizer)
}

//! What the server remembers: [`Store`], objects by kind and key, one counter of versions for all, and for each kind its
//! last changes, from which watches and older lists are served. Knows nothing of what objects mean.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use crate::kinds::Table;
use crate::walk::Walk;

/// Which object of a kind: namespace, empty for the cluster, and name.
pub(crate) type Key = (String, String);

/// One change of one object.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) key: Key,
    /// None: it was created.
    pub(crate) before: Option<Arc<Value>>,
    /// None: it was deleted, as it stands in `last`.
    pub(crate) after: Option<Arc<Value>>,
    /// The object with the version of the change.
    pub(crate) last: Arc<Value>,
}

#[derive(Debug)]
struct Objects {
    present: BTreeMap<Key, Arc<Value>>,
    changes: VecDeque<Change>,
    /// Changes up to this version are forgotten.
    forgotten: u64,
    told: watch::Sender<u64>,
}

/// All objects.
#[derive(Debug)]
pub(crate) struct Store {
    version: u64,
    tables: BTreeMap<Table, Objects>,
    kept: usize,
    /// Changes of all kinds up to this version are forgotten.
    forgotten: u64,
    /// There may be something to collect.
    littered: bool,
}

/// The version is forgotten; the oldest that is not.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forgotten(pub(crate) u64);

impl Store {
    /// Keeps so many changes of each kind.
    pub(crate) const fn new(kept: usize) -> Self {
        Self { version: 1, tables: BTreeMap::new(), kept, forgotten: 0, littered: false }
    }

    /// The version of the last change.
    pub(crate) const fn version(&self) -> u64 {
        self.version
    }

    fn table(&mut self, table: &Table) -> &mut Objects {
        let forgotten = self.forgotten;
        self.tables.entry(table.clone()).or_insert_with(|| Objects {
            present: BTreeMap::new(),
            changes: VecDeque::new(),
            forgotten,
            told: watch::Sender::new(0),
        })
    }

    pub(crate) fn get(&self, table: &Table, key: &Key) -> Option<&Arc<Value>> {
        self.tables.get(table)?.present.get(key)
    }

    /// All objects of a kind, in the order of their keys.
    pub(crate) fn list(&self, table: &Table) -> impl Iterator<Item = (&Key, &Arc<Value>)> {
        self.tables.get(table).into_iter().flat_map(|table| &table.present)
    }

    /// The version of a kind's last change.
    pub(crate) fn last(&self, table: &Table) -> u64 {
        self.tables.get(table).map_or(0, |table| *table.told.borrow())
    }

    /// All tables, in order.
    pub(crate) fn tables(&self) -> Vec<Table> {
        self.tables.keys().cloned().collect()
    }

    /// Stores an object, or removes it, and gives it with its new version.
    pub(crate) fn write(&mut self, table: &Table, key: &Key, mut object: Value, remove: bool) -> Arc<Value> {
        self.version += 1;
        let (version, kept) = (self.version, self.kept);
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.insert("resourceVersion".to_owned(), version.to_string().into());
        }
        let object = Arc::new(object);
        let table = self.table(table);
        let before = if remove {
            table.present.remove(key)
        } else {
            table.present.insert(key.clone(), object.clone())
        };
        let littered = remove
            || object.path("/metadata/deletionTimestamp").is_some()
            || owners(&object) != before.as_deref().and_then(owners);
        let after = (!remove).then(|| object.clone());
        table.changes.push_back(Change { version, key: key.clone(), before, after, last: object.clone() });
        while table.changes.len() > kept {
            table.forgotten = table.changes.pop_front().map_or(table.forgotten, |change| change.version);
        }
        table.told.send_replace(version);
        self.littered |= littered;
        object
    }

    /// Whether there may be something to collect since this was asked last.
    pub(crate) const fn take_littered(&mut self) -> bool {
        std::mem::replace(&mut self.littered, false)
    }

    /// Forgets all changes, as a compaction of etcd does.
    pub(crate) fn compact(&mut self) {
        self.forgotten = self.version;
        for table in self.tables.values_mut() {
            table.changes.clear();
            table.forgotten = self.version;
        }
    }

    /// Tells of each change of a kind.
    pub(crate) fn told(&mut self, table: &Table) -> watch::Receiver<u64> {
        self.table(table).told.subscribe()
    }

    /// The changes after a version.
    pub(crate) fn since(&self, table: &Table, version: u64) -> Result<Vec<Change>, Forgotten> {
        let table = self.tables.get(table);
        let forgotten = table.map_or(self.forgotten, |table| table.forgotten);
        if version < forgotten {
            return Err(Forgotten(forgotten));
        }
        let Some(table) = table else { return Ok(Vec::new()) };
        let start = table.changes.partition_point(|change| change.version <= version);
        Ok(table.changes.iter().skip(start).cloned().collect())
    }

    /// The objects as they were at a version.
    pub(crate) fn list_at(
        &self,
        table: &Table,
        version: u64,
    ) -> Result<BTreeMap<Key, Arc<Value>>, Forgotten> {
        let mut objects = self.tables.get(table).map(|table| table.present.clone()).unwrap_or_default();
        for change in self.since(table, version)?.into_iter().rev() {
            match change.before {
                Some(before) => objects.insert(change.key, before),
                None => objects.remove(&change.key),
            };
        }
        Ok(objects)
    }
}

fn owners(object: &Value) -> Option<&Value> {
    object.path("/metadata/ownerReferences")
}

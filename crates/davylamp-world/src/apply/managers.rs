//! The managers of an object: [`Managers`] is its `metadata.managedFields`. [`Managers::update`] books a write as it is,
//! [`Managers::apply`] merges what a manager wants and finds out whom it would overrule. Both leave an entry's time alone
//! when its fields stay the same, so that a repeated write changes nothing.

use serde_json::{Value, json};

use super::fields::{Fields, field};
use super::typed::{difference, fields, merge, remove};
use crate::refusal::Refusal;
use crate::schema::Schema;
use crate::walk::Walk;

/// One entry.
#[derive(Clone, Debug, PartialEq)]
struct Entry {
    manager: String,
    apply: bool,
    api_version: String,
    subresource: String,
    time: String,
    fields: Fields,
}

/// Who writes, where and when.
#[derive(Clone, Debug)]
pub(crate) struct Writer<'a> {
    pub(crate) manager: &'a str,
    pub(crate) api_version: &'a str,
    /// Empty for the object itself.
    pub(crate) subresource: &'a str,
    pub(crate) time: &'a str,
    /// Status is a subresource of its own.
    pub(crate) has_status: bool,
}

/// All entries of an object.
#[derive(Clone, Debug, Default)]
pub(crate) struct Managers(Vec<Entry>);

const KEY: &str = "managedFields";

/// Of metadata, what nobody owns.
const UNOWNED: &[&str] = &[
    "name",
    "namespace",
    "creationTimestamp",
    "selfLink",
    "uid",
    "generation",
    "managedFields",
    "resourceVersion",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
];

impl Managers {
    /// From an object.
    pub(crate) fn of(object: &Value) -> Self {
        let entries = object.path("/metadata/managedFields").and_then(Value::as_array);
        Self(entries.into_iter().flatten().filter_map(Entry::parse).collect())
    }

    /// For a write to the object itself, which may bring its own list: an empty one means what is there, a list of one
    /// empty entry means none.
    pub(crate) fn of_write(live: &Value, new: &Value) -> Self {
        let list = new.path("/metadata/managedFields").and_then(Value::as_array);
        match list.map(Vec::as_slice) {
            Some([only]) if only.as_object().is_some_and(serde_json::Map::is_empty) => Self::default(),
            None | Some([]) => Self::of(live),
            Some(_) => Self::of(new),
        }
    }

    /// Writes the entries into an object.
    pub(crate) fn put(mut self, object: &mut Value) {
        self.0.retain(|entry| !entry.fields.is_empty());
        self.0.sort_by(|a, b| {
            // Applies first, which have no order of time among them.
            let time = |e: &Entry| if e.apply { String::new() } else { e.time.clone() };
            (!a.apply, time(a), &a.manager, &a.subresource).cmp(&(
                !b.apply,
                time(b),
                &b.manager,
                &b.subresource,
            ))
        });
        let list: Vec<Value> = self.0.iter().map(Entry::text).collect();
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            if list.is_empty() {
                metadata.remove(KEY);
            } else {
                metadata.insert(KEY.to_owned(), list.into());
            }
        }
    }

    /// Books that `writer` made `new` of `live`.
    pub(crate) fn update(&mut self, schema: &Schema, writer: &Writer<'_>, live: &Value, new: &Value) {
        let mut found = difference(Some(schema.at()), live, new);
        found.changed = owned(&found.changed, writer);
        found.gone = owned(&found.gone, writer);
        if found.changed.is_empty() && found.gone.is_empty() {
            return;
        }
        let mut mine = Fields::default();
        for entry in &mut self.0 {
            let left = entry.fields.without(&found.gone);
            if entry.is(writer, false) {
                mine = left.clone();
                entry.fields = left;
            } else {
                entry.fields = left.without(&found.changed);
            }
        }
        mine.merge(found.changed);
        self.set(writer, false, mine);
    }

    /// Merges what `writer` applies into `live`, without what it has applied before and does not any more.
    pub(crate) fn apply(
        &mut self,
        schema: &Schema,
        writer: &Writer<'_>,
        live: &Value,
        applied: &Value,
        force: bool,
    ) -> Result<Value, Refusal> {
        let at = Some(schema.at());
        let wanted = owned(&fields(at, applied), writer);
        let mut merged = merge(at, live, applied);
        let changed = difference(at, live, &merged).changed;
        let mut conflicts = Vec::new();
        for entry in self.0.iter_mut().filter(|entry| !entry.is(writer, true)) {
            let common = entry.fields.common(&changed);
            if common.is_empty() {
                continue;
            }
            if force {
                entry.fields = entry.fields.without(&common);
            } else {
                let who = entry.shown();
                conflicts.extend(common.paths().into_iter().map(|path| (who.clone(), path)));
            }
        }
        if !conflicts.is_empty() {
            return Err(refusal(&conflicts));
        }
        let before = self.0.iter().find(|entry| entry.is(writer, true)).map(|entry| &entry.fields);
        if let Some(before) = before {
            let gone = before.with_parents().without(&wanted.with_parents());
            let mut kept = wanted.clone();
            for entry in self.0.iter().filter(|entry| !entry.is(writer, true)) {
                kept.merge(entry.fields.clone());
            }
            remove(at, &mut merged, &gone, &kept);
        }
        self.set(writer, true, wanted);
        Ok(merged)
    }

    fn set(&mut self, writer: &Writer<'_>, apply: bool, fields: Fields) {
        match self.0.iter_mut().find(|entry| entry.is(writer, apply)) {
            Some(entry) if apply && entry.fields == fields => {}
            Some(entry) => {
                entry.fields = fields;
                writer.time.clone_into(&mut entry.time);
            }
            None => self.0.push(Entry {
                manager: writer.manager.to_owned(),
                apply,
                api_version: writer.api_version.to_owned(),
                subresource: writer.subresource.to_owned(),
                time: writer.time.to_owned(),
                fields,
            }),
        }
    }
}

/// What a write can own: nothing that is the server's, and only the part that its endpoint writes.
fn owned(fields: &Fields, writer: &Writer<'_>) -> Fields {
    let mut owned = fields.clone();
    owned.below.remove("f:apiVersion");
    owned.below.remove("f:kind");
    if writer.subresource == "status" {
        owned.below.retain(|step, _| step == "f:status");
    } else if writer.has_status {
        owned.below.remove("f:status");
    }
    if let Some(metadata) = owned.below.get_mut("f:metadata") {
        metadata.own = false;
        for name in UNOWNED {
            metadata.below.remove(&field(name));
        }
    }
    owned.below.retain(|_, below| !below.is_empty());
    owned
}

fn refusal(conflicts: &[(String, String)]) -> Refusal {
    let message = if let [(who, path)] = conflicts {
        format!("Apply failed with 1 conflict: conflict with {who}: {path}")
    } else {
        let mut managers: Vec<&String> = conflicts.iter().map(|(who, _)| who).collect();
        managers.sort();
        managers.dedup();
        let mut lines = Vec::new();
        for manager in managers {
            lines.push(format!("conflicts with {manager}:"));
            lines.extend(conflicts.iter().filter(|(who, _)| who == manager).map(|(_, p)| format!("- {p}")));
        }
        format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
    };
    let cause = |(who, path): &(String, String)| json!({"reason": "FieldManagerConflict", "message": format!("conflict with {who}"), "field": path});
    let details = json!({"causes": conflicts.iter().map(cause).collect::<Vec<_>>()});
    Refusal { details, ..Refusal::new(409, "Conflict", message) }
}

impl Entry {
    fn is(&self, writer: &Writer<'_>, apply: bool) -> bool {
        self.apply == apply
            && self.manager == writer.manager
            && self.subresource == writer.subresource
            && (apply || self.api_version == writer.api_version)
    }

    fn parse(value: &Value) -> Option<Self> {
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        Some(Self {
            manager: text("manager"),
            apply: text("operation") == "Apply",
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: text("time"),
            fields: Fields::parse(value.get("fieldsV1")?),
        })
    }

    fn text(&self) -> Value {
        let operation = if self.apply { "Apply" } else { "Update" };
        let mut entry = json!({
            "manager": self.manager, "operation": operation, "apiVersion": self.api_version,
            "time": self.time, "fieldsType": "FieldsV1", "fieldsV1": self.fields.text(),
        });
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.clone().into();
        }
        entry
    }

    /// As messages name it.
    fn shown(&self) -> String {
        let mut shown = format!("{:?}", self.manager);
        if !self.subresource.is_empty() {
            shown = format!("{shown} with subresource {:?}", self.subresource);
        }
        if !self.apply {
            shown = format!("{shown} using {}", self.api_version);
        }
        shown
    }
}

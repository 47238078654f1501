//! Events have two forms, of the core group and of `events.k8s.io`, and are the same objects. They are stored in the
//! second; these are the ways from and to the first.

use serde_json::Value;

/// Core, then stored.
const NAMES: &[(&str, &str)] = &[
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

/// As it is stored.
pub(crate) fn from_core(event: &Value) -> Value {
    renamed(event, "events.k8s.io/v1", NAMES.iter().copied())
}

/// As the core group has it.
pub(crate) fn to_core(event: &Value) -> Value {
    renamed(event, "v1", NAMES.iter().map(|(core, stored)| (*stored, *core)))
}

fn renamed<'a>(event: &Value, version: &str, names: impl Iterator<Item = (&'a str, &'a str)>) -> Value {
    let mut next = event.clone();
    if let Some(fields) = next.as_object_mut() {
        for (from, to) in names {
            if let Some(value) = fields.remove(from) {
                fields.insert(to.to_owned(), value);
            }
        }
        fields.insert("apiVersion".to_owned(), version.into());
    }
    next
}

//! What a server does to an object before it looks at it: unknown fields and meaningless nulls go, defaults come. Takes
//! an object and its schema, and changes the object; refuses nothing.

use serde_json::Value;

use super::{At, Type};

/// Removes what the schema does not know, and adds the path of each such field to `unknown`.
pub(crate) fn prune(at: At<'_>, value: &mut Value, path: &str, unknown: &mut Vec<String>) {
    let Some(node) = at.node() else { return };
    match value {
        Value::Object(fields) => {
            // An object of which nothing more is known has no fields, unless it says that it keeps them.
            let open = node.preserve || node.type_ != Type::Object;
            if !open {
                fields.retain(|name, _| {
                    let known = at.field(name).is_some();
                    if !known {
                        unknown.push(join(path, name));
                    }
                    known
                });
            }
            for (name, field) in fields.iter_mut() {
                if let Some(at) = at.field(name) {
                    prune(at, field, &join(path, name), unknown);
                }
            }
        }
        Value::Array(list) => {
            if let Some(item) = at.item() {
                for (index, value) in list.iter_mut().enumerate() {
                    prune(item, value, &format!("{path}[{index}]"), unknown);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The path of a field.
pub(super) fn join(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

/// Removes nulls of fields that are known and may not be null.
pub(crate) fn null_fields(at: At<'_>, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            let may = |name: &str| at.field(name).and_then(At::node).is_none_or(|node| node.nullable);
            fields.retain(|name, field| !field.is_null() || may(name));
            for (name, field) in fields.iter_mut() {
                if let Some(at) = at.field(name) {
                    null_fields(at, field);
                }
            }
        }
        Value::Array(list) => {
            if let Some(item) = at.item() {
                for value in list {
                    null_fields(item, value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Adds the defaults of absent fields.
pub(crate) fn default(at: At<'_>, value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, at) in at.properties() {
                if let Some(default) = at.node().and_then(|node| node.default.as_ref())
                    && !fields.contains_key(name)
                {
                    fields.insert(name.to_owned(), default.clone());
                }
            }
            for (name, field) in fields.iter_mut() {
                if let Some(at) = at.field(name) {
                    default(at, field);
                }
            }
        }
        Value::Array(list) => {
            if let Some(item) = at.item() {
                for value in list {
                    default(item, value);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

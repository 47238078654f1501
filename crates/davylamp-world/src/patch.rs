//! Patches of three forms: [`patched`] takes an object and a patch and gives the object as it should be. Server-side
//! apply is no patch of a text, and is not here.

use json_patch::Patch;
use serde_json::{Map, Value};

use crate::refusal::Refusal;
use crate::schema::{At, ListType};

/// The forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Form {
    /// From the type of the content.
    pub(crate) fn of(content_type: &str) -> Option<Self> {
        match content_type.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Some(Self::Json),
            "application/merge-patch+json" => Some(Self::Merge),
            "application/strategic-merge-patch+json" => Some(Self::Strategic),
            "application/apply-patch+yaml" => Some(Self::Apply),
            _ => None,
        }
    }
}

/// The object with the patch; `at` says how lists are merged in the strategic form.
pub(crate) fn patched(form: Form, at: At<'_>, object: &Value, patch: &Value) -> Result<Value, Refusal> {
    let mut next = object.clone();
    match form {
        Form::Json => {
            let patch: Patch = serde_json::from_value(patch.clone())
                .map_err(|error| Refusal::bad_request(format!("error decoding patch: {error}")))?;
            json_patch::patch(&mut next, &patch).map_err(|_| {
                Refusal::new(422, "Invalid", "the server rejected our request due to an error in our request")
            })?;
        }
        Form::Merge => json_patch::merge(&mut next, patch),
        Form::Strategic => strategic(Some(at), &mut next, patch),
        Form::Apply => return Err(Refusal::internal("an apply is no patch")),
    }
    Ok(next)
}

fn strategic(at: Option<At<'_>>, value: &mut Value, patch: &Value) {
    match (&mut *value, patch) {
        (Value::Object(fields), Value::Object(patch)) if !replaces(patch) => {
            for (name, new) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
                if new.is_null() {
                    fields.remove(name);
                } else {
                    let below = at.and_then(|at| at.field(name));
                    strategic(below, fields.entry(name.clone()).or_insert(Value::Null), new);
                }
            }
        }
        (Value::Array(list), Value::Array(patch)) => match at.and_then(At::node).map(|node| &node.list) {
            Some(ListType::Map(keys)) => {
                // The first of the keys: as it was before there were more.
                let key = keys.first().map_or("name", String::as_str);
                for element in patch {
                    let found = list.iter().position(|there| there.get(key) == element.get(key));
                    let delete = element.get("$patch").is_some_and(|word| word == "delete");
                    match (found.and_then(|index| list.get_mut(index)), found) {
                        (Some(_), Some(index)) if delete => {
                            list.remove(index);
                        }
                        (Some(there), _) => strategic(at.and_then(At::item), there, element),
                        (None, _) if delete => {}
                        (None, _) => list.push(element.clone()),
                    }
                }
            }
            Some(ListType::Set) => {
                let new: Vec<Value> = patch.iter().filter(|value| !list.contains(value)).cloned().collect();
                list.extend(new);
            }
            Some(ListType::Atomic) | None => patch.clone_into(list),
        },
        _ => *value = cleaned(patch),
    }
}

fn replaces(patch: &Map<String, Value>) -> bool {
    patch.get("$patch").is_some_and(|word| word == "replace")
}

/// Without nulls and words to the server.
fn cleaned(patch: &Value) -> Value {
    match patch {
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .filter(|(name, value)| !name.starts_with('$') && !value.is_null())
                .map(|(name, value)| (name.clone(), cleaned(value)))
                .collect(),
        ),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => patch.clone(),
    }
}

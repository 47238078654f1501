//! Whether an object keeps to its schema. Takes it, and what it was before; gives every [`Problem`], in the order of the
//! fields. What has not changed is not looked at again: an object that was valid under an older schema stays writable.

use davylamp_api::Instant;
use serde_json::Value;

use super::fill::join;
use super::{At, Limits, ListType, Type, cel};
use crate::refusal::{Problem, Wrong};

/// Checks structure first, and the rules only when nothing there is in their way.
pub(crate) fn validate(at: At<'_>, value: &Value, before: Option<&Value>) -> Vec<Problem> {
    let mut found = Vec::new();
    structure(at, value, before, "", &mut found);
    if found.iter().any(Problem::blocks) {
        found.push(Problem::invalid(
            "<nil>",
            Value::Null,
            "some validation rules were not checked because the object was invalid; correct the existing errors to \
             complete validation",
        ));
    } else {
        rules(at, value, before, "", &mut found);
    }
    found
}

fn structure(at: At<'_>, value: &Value, before: Option<&Value>, path: &str, found: &mut Vec<Problem>) {
    if before == Some(value) {
        return;
    }
    let Some(node) = at.node() else { return };
    if value.is_null() && node.nullable {
        return;
    }
    if !is(node.type_, value) {
        let there = name_of(value);
        let detail = format!("{} in body must be of type {}: {there:?}", shown(path), node.type_.name());
        let field = shown(path).to_owned();
        found.push(Problem { what: Wrong::Type, field, value: Some(there.into()), detail });
        return;
    }
    limits(&node.limits, value, path, found);
    match value {
        Value::Object(fields) => {
            for name in &node.required {
                if !fields.contains_key(name) {
                    found.push(Problem::required(join(path, name), ""));
                }
            }
            for (name, field) in fields {
                if let Some(at) = at.field(name) {
                    let before = before.and_then(|before| before.get(name));
                    structure(at, field, before, &join(path, name), found);
                }
            }
        }
        Value::Array(list) => {
            if let Some(item) = at.item() {
                for (index, value) in list.iter().enumerate() {
                    let before = correlated(&node.list, value, before);
                    structure(item, value, before, &format!("{path}[{index}]"), found);
                }
            }
            duplicates(&node.list, list, path, found);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn rules(at: At<'_>, value: &Value, before: Option<&Value>, path: &str, found: &mut Vec<Problem>) {
    let Some(node) = at.node() else { return };
    if before == Some(value) || (value.is_null() && node.nullable) {
        return;
    }
    for broken in cel::broken(&node.rules, at, value, before) {
        let scalar = !matches!(value, Value::Object(_) | Value::Array(_));
        found.push(Problem {
            what: Wrong::Invalid,
            field: shown(&format!("{path}{}", broken.field)).to_owned(),
            value: scalar.then(|| value.clone()),
            detail: broken.words,
        });
    }
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                if let Some(at) = at.field(name) {
                    let before = before.and_then(|before| before.get(name));
                    rules(at, field, before, &join(path, name), found);
                }
            }
        }
        Value::Array(list) => {
            if let Some(item) = at.item() {
                for (index, value) in list.iter().enumerate() {
                    let before = correlated(&node.list, value, before);
                    rules(item, value, before, &format!("{path}[{index}]"), found);
                }
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The root has no name.
fn shown(path: &str) -> &str {
    if path.is_empty() { "<nil>" } else { path.trim_start_matches('.') }
}

/// What an element was before; of an atomic list, nobody knows.
fn correlated<'a>(list: &ListType, value: &Value, before: Option<&'a Value>) -> Option<&'a Value> {
    let ListType::Map(keys) = list else { return None };
    let same = |other: &&Value| keys.iter().all(|key| other.get(key) == value.get(key));
    before?.as_array()?.iter().find(same)
}

fn duplicates(list: &ListType, values: &[Value], path: &str, found: &mut Vec<Problem>) {
    let key = |value: &Value| match list {
        ListType::Atomic => None,
        ListType::Set => Some(value.clone()),
        ListType::Map(keys) => {
            Some(keys.iter().filter_map(|key| Some((key.clone(), value.get(key)?.clone()))).collect())
        }
    };
    let mut seen: Vec<Value> = Vec::new();
    for (index, value) in values.iter().enumerate() {
        let Some(key) = key(value) else { return };
        if seen.contains(&key) {
            let field = format!("{path}[{index}]");
            found.push(Problem { what: Wrong::Duplicate, field, value: Some(key), detail: String::new() });
        } else {
            seen.push(key);
        }
    }
}

/// Whether a value is of a type.
pub(super) fn is(type_: Type, value: &Value) -> bool {
    match type_ {
        Type::Object => value.is_object(),
        Type::Array => value.is_array(),
        Type::String => value.is_string(),
        Type::Integer => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        Type::Number => value.is_number(),
        Type::Boolean => value.is_boolean(),
        Type::IntOrString => value.is_string() || value.is_i64() || value.is_u64(),
        Type::Any => true,
    }
}

fn name_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn limits(limits: &Limits, value: &Value, path: &str, found: &mut Vec<Problem>) {
    let here = shown(path);
    let mut bad = |detail: String| found.push(Problem::invalid(here, value.clone(), detail));
    if let Some(number) = value.as_f64() {
        if let Some(maximum) = limits.maximum.filter(|maximum| number > *maximum) {
            bad(format!("{here} in body should be less than or equal to {maximum}"));
        }
        if let Some(minimum) = limits.minimum.filter(|minimum| number < *minimum) {
            bad(format!("{here} in body should be greater than or equal to {minimum}"));
        }
    }
    if let Some(text) = value.as_str() {
        if let Some(minimum) = limits.min_length.filter(|minimum| text.chars().count() < *minimum) {
            bad(format!("{here} in body should be at least {minimum} chars long"));
        }
        if let Some(pattern) = limits.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
            bad(format!("{here} in body should match '{pattern}'"));
        }
        if limits.date_time && text.parse::<Instant>().is_err() {
            bad(format!("{here} in body must be of type date-time: {text:?}"));
        }
        if let Some(maximum) = limits.max_length.filter(|maximum| text.chars().count() > *maximum) {
            let detail = format!("may not be more than {maximum} bytes");
            found.push(Problem { what: Wrong::TooLong, field: here.to_owned(), value: None, detail });
        }
    }
    let many = |count: usize, maximum: usize| Problem {
        what: Wrong::TooMany,
        field: here.to_owned(),
        value: Some(count.into()),
        detail: format!("must have at most {maximum} items"),
    };
    if let Some(list) = value.as_array() {
        if let Some(maximum) = limits.max_items.filter(|maximum| list.len() > *maximum) {
            found.push(many(list.len(), maximum));
        }
        if let Some(minimum) = limits.min_items.filter(|minimum| list.len() < *minimum) {
            let detail = format!("{here} in body should have at least {minimum} items");
            found.push(Problem::invalid(here, list.len().into(), detail));
        }
    }
    if let Some(fields) = value.as_object() {
        if let Some(maximum) = limits.max_properties.filter(|maximum| fields.len() > *maximum) {
            found.push(many(fields.len(), maximum));
        }
        if let Some(minimum) = limits.min_properties.filter(|minimum| fields.len() < *minimum) {
            let detail = format!("{here} in body should have at least {minimum} properties");
            found.push(Problem::invalid(here, fields.len().into(), detail));
        }
    }
    if !limits.allowed.is_empty() && !limits.allowed.contains(value) {
        let quoted = |allowed: &Value| match allowed.as_str() {
            Some(text) => format!("{text:?}"),
            None => format!("{:?}", allowed.to_string()),
        };
        let supported: Vec<String> = limits.allowed.iter().map(quoted).collect();
        let detail = format!("supported values: {}", supported.join(", "));
        let field = here.to_owned();
        found.push(Problem { what: Wrong::Unsupported, field, value: Some(value.clone()), detail });
    }
}

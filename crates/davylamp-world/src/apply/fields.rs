//! Sets of fields: [`Fields`], a tree whose steps are written as in `fieldsV1` (`f:name`, `k:{"name":"a"}`, `v:1`). Takes
//! and gives that form, and has the operations of sets.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

/// A set of fields.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields {
    /// The place itself belongs to the set.
    pub(crate) own: bool,
    /// What lies below.
    pub(crate) below: BTreeMap<String, Self>,
}

impl Fields {
    /// A place without anything below.
    pub(crate) fn leaf() -> Self {
        Self { own: true, below: BTreeMap::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        !self.own && self.below.values().all(Self::is_empty)
    }

    /// Adds what lies below a step.
    pub(crate) fn add(&mut self, step: String, fields: Self) {
        if !fields.is_empty() {
            self.below.entry(step).or_default().merge(fields);
        }
    }

    /// Adds all of another set.
    pub(crate) fn merge(&mut self, other: Self) {
        self.own |= other.own;
        for (step, fields) in other.below {
            self.add(step, fields);
        }
    }

    /// Without the members of another set.
    pub(crate) fn without(&self, other: &Self) -> Self {
        let mut left = Self { own: self.own && !other.own, below: BTreeMap::new() };
        for (step, fields) in &self.below {
            let kept = match other.below.get(step) {
                Some(gone) => fields.without(gone),
                None => fields.clone(),
            };
            left.add(step.clone(), kept);
        }
        left
    }

    /// The members of both.
    pub(crate) fn common(&self, other: &Self) -> Self {
        let mut both = Self { own: self.own && other.own, below: BTreeMap::new() };
        for (step, fields) in &self.below {
            if let Some(there) = other.below.get(step) {
                both.add(step.clone(), fields.common(there));
            }
        }
        both
    }

    /// The same set with each place that leads to a named field as a member.
    pub(crate) fn with_parents(&self) -> Self {
        let below: BTreeMap<_, _> =
            self.below.iter().map(|(step, fields)| (step.clone(), fields.with_parents())).collect();
        Self { own: self.own || below.keys().any(|step| step.starts_with("f:")), below }
    }

    /// The text of each member.
    pub(crate) fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        self.collect("", &mut paths);
        paths
    }

    fn collect(&self, path: &str, paths: &mut Vec<String>) {
        if self.own {
            paths.push(path.to_owned());
        }
        for (step, fields) in &self.below {
            fields.collect(&format!("{path}{}", shown(step)), paths);
        }
    }

    /// From `fieldsV1`.
    pub(crate) fn parse(value: &Value) -> Self {
        let mut fields = Self::default();
        let Some(map) = value.as_object() else { return fields };
        for (step, below) in map {
            if step == "." {
                fields.own = true;
            } else {
                let mut below_it = Self::parse(below);
                // An empty object is the place itself.
                below_it.own |= below.as_object().is_some_and(Map::is_empty);
                fields.below.insert(step.clone(), below_it);
            }
        }
        fields
    }

    /// As `fieldsV1`.
    pub(crate) fn text(&self) -> Value {
        let mut map = Map::new();
        if self.own && !self.below.is_empty() {
            map.insert(".".to_owned(), json!({}));
        }
        for (step, below) in &self.below {
            map.insert(step.clone(), below.text());
        }
        Value::Object(map)
    }
}

/// The step to a field.
pub(crate) fn field(name: &str) -> String {
    format!("f:{name}")
}

/// A step as messages have it.
fn shown(step: &str) -> String {
    match step.split_once(':') {
        Some(("f", name)) => format!(".{name}"),
        Some(("k", keys)) => {
            let keys: Map<String, Value> = serde_json::from_str(keys).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
            format!("[{}]", keys.join(","))
        }
        Some(("v", value)) => format!("[={value}]"),
        _ => step.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_that_of_managed_fields() {
        let text = json!({"f:spec": {"f:replicas": {}, "f:ports": {
            ".": {}, "k:{\"port\":80,\"protocol\":\"TCP\"}": {".": {}, "f:port": {}}}}});
        let fields = Fields::parse(&text);
        assert_eq!(fields.text(), text);
        assert_eq!(
            fields.paths(),
            [
                ".spec.ports",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
                ".spec.replicas"
            ]
        );
    }

    #[test]
    fn sets_are_sets() {
        let a = Fields::parse(&json!({"f:a": {}, "f:b": {"f:c": {}, "f:d": {}}}));
        let b = Fields::parse(&json!({"f:b": {"f:c": {}}}));
        assert_eq!(a.without(&b).text(), json!({"f:a": {}, "f:b": {"f:d": {}}}));
        assert_eq!(a.common(&b), b);
        let mut both = a.without(&b);
        both.merge(b.clone());
        assert_eq!(both, a);
        assert!(b.without(&a).is_empty());
    }
}

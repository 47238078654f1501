//! The structure of a kind: [`Schema`], compiled once from the JSON schema of a definition or of a built-in type. What
//! walks over it lies beside: defaults and pruning, validation, rules.

mod builtin;
mod cel;
mod compile;
mod fill;
mod validate;

pub(crate) use builtin::{Builtin, Trait, builtin, metadata_schema};
pub(crate) use compile::compile;
pub(crate) use fill::{default, null_fields, prune};
pub(crate) use validate::validate;

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::Value;

/// What a value is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Type {
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
    /// Not said.
    Any,
}

impl Type {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Array => "array",
            Self::String => "string",
            Self::Integer => "integer",
            Self::Number => "number",
            Self::Boolean => "boolean",
            Self::IntOrString => "integer,string",
            Self::Any => "any",
        }
    }
}

/// How two versions of a list are merged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum ListType {
    /// As a whole.
    #[default]
    Atomic,
    /// Value by value.
    Set,
    /// Element by element, by these keys.
    Map(Vec<String>),
}

/// A level of a schema.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) type_: Type,
    pub(crate) nullable: bool,
    /// What it does not name is kept.
    pub(crate) preserve: bool,
    pub(crate) properties: BTreeMap<String, usize>,
    pub(crate) additional: Option<usize>,
    pub(crate) required: Vec<String>,
    pub(crate) items: Option<usize>,
    pub(crate) list: ListType,
    /// Merged as a whole.
    pub(crate) atomic: bool,
    pub(crate) default: Option<Value>,
    pub(crate) limits: Limits,
    pub(crate) rules: Vec<cel::Rule>,
}

/// What a value must keep to.
#[derive(Debug, Default)]
pub(crate) struct Limits {
    pub(crate) allowed: Vec<Value>,
    pub(crate) pattern: Option<Regex>,
    pub(crate) minimum: Option<f64>,
    pub(crate) maximum: Option<f64>,
    pub(crate) min_length: Option<usize>,
    pub(crate) max_length: Option<usize>,
    pub(crate) min_items: Option<usize>,
    pub(crate) max_items: Option<usize>,
    pub(crate) min_properties: Option<usize>,
    pub(crate) max_properties: Option<usize>,
    pub(crate) date_time: bool,
}

/// A compiled schema; clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Schema {
    nodes: Arc<Vec<Node>>,
    root: usize,
}

impl Schema {
    pub(crate) fn at(&self) -> At<'_> {
        At { nodes: &self.nodes, at: self.root }
    }
}

/// A place in a schema.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At<'a> {
    nodes: &'a [Node],
    at: usize,
}

impl<'a> At<'a> {
    /// What is said here.
    pub(crate) fn node(self) -> Option<&'a Node> {
        self.nodes.get(self.at)
    }

    const fn to(self, at: usize) -> Self {
        Self { nodes: self.nodes, at }
    }

    /// The place of a field, if it is known.
    pub(crate) fn field(self, name: &str) -> Option<Self> {
        let node = self.node()?;
        node.properties.get(name).copied().or(node.additional).map(|at| self.to(at))
    }

    /// The place of a field that has a name of its own, not that of a map's key.
    pub(crate) fn property(self, name: &str) -> Option<Self> {
        self.node()?.properties.get(name).map(|at| self.to(*at))
    }

    /// The place of a list's elements.
    pub(crate) fn item(self) -> Option<Self> {
        self.node()?.items.map(|at| self.to(at))
    }

    /// Fields with names, in order.
    pub(crate) fn properties(self) -> impl Iterator<Item = (&'a str, Self)> {
        let node = self.node();
        node.into_iter().flat_map(move |n| n.properties.iter().map(move |(k, at)| (k.as_str(), self.to(*at))))
    }
}

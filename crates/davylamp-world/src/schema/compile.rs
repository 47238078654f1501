//! From a JSON schema, with its references, to a [`Schema`]. What it does not know it leaves out: combinations of
//! schemas (`anyOf` and the like) are not looked at.

use std::collections::BTreeMap;
use std::sync::Arc;

use regex::Regex;
use serde_json::{Map, Value};

use super::cel::Rule;
use super::{Limits, ListType, Node, Schema, Type};

/// Compiles `root`, whose references lead into `definitions`. The error says what cannot be compiled.
pub(crate) fn compile(root: &Value, definitions: &Map<String, Value>) -> Result<Schema, String> {
    let mut compiler = Compiler { definitions, known: BTreeMap::new(), nodes: Vec::new() };
    let root = compiler.node(root)?;
    Ok(Schema { nodes: Arc::new(compiler.finish()), root })
}

/// Compiles several roots that share their definitions.
pub(super) fn compile_all(roots: &[Value], definitions: &Map<String, Value>) -> Result<Vec<Schema>, String> {
    let mut compiler = Compiler { definitions, known: BTreeMap::new(), nodes: Vec::new() };
    let roots: Vec<usize> = roots.iter().map(|root| compiler.node(root)).collect::<Result<_, _>>()?;
    let nodes = Arc::new(compiler.finish());
    Ok(roots.into_iter().map(|root| Schema { nodes: nodes.clone(), root }).collect())
}

struct Compiler<'a> {
    definitions: &'a Map<String, Value>,
    known: BTreeMap<String, usize>,
    /// None while a node is being built: types may contain themselves.
    nodes: Vec<Option<Node>>,
}

impl Compiler<'_> {
    fn finish(self) -> Vec<Node> {
        // All are there: each place is filled by whoever made it.
        self.nodes.into_iter().flatten().collect()
    }

    fn node(&mut self, schema: &Value) -> Result<usize, String> {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str) {
            let name = name.rsplit('/').next().unwrap_or(name);
            if let Some(at) = self.known.get(name) {
                return Ok(*at);
            }
            let definitions = self.definitions;
            let target = definitions.get(name).ok_or_else(|| format!("no definition of {name}"))?;
            let at = self.nodes.len();
            self.known.insert(name.to_owned(), at);
            return self.build(target);
        }
        if let Some([only]) = schema.get("allOf").and_then(Value::as_array).map(Vec::as_slice)
            && schema.get("type").is_none()
        {
            return self.node(only);
        }
        self.build(schema)
    }

    fn build(&mut self, schema: &Value) -> Result<usize, String> {
        let at = self.nodes.len();
        self.nodes.push(None);
        let flag = |key: &str| schema.get(key).and_then(Value::as_bool).unwrap_or(false);
        let mut properties = BTreeMap::new();
        for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
            properties.insert(name.clone(), self.node(field)?);
        }
        let additional = match schema.get("additionalProperties") {
            Some(inner @ Value::Object(_)) => Some(self.node(inner)?),
            _ => None,
        };
        let items = schema.get("items").map(|items| self.node(items)).transpose()?;
        let rules = schema.get("x-kubernetes-validations").and_then(Value::as_array);
        let node = Node {
            type_: type_of(schema),
            nullable: flag("nullable"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            properties,
            additional,
            required: texts(schema.get("required")),
            items,
            list: match text(schema, "x-kubernetes-list-type") {
                Some("map") => ListType::Map(texts(schema.get("x-kubernetes-list-map-keys"))),
                Some("set") => ListType::Set,
                _ => ListType::Atomic,
            },
            atomic: text(schema, "x-kubernetes-map-type") == Some("atomic"),
            default: schema.get("default").cloned(),
            limits: limits(schema)?,
            rules: rules.into_iter().flatten().map(Rule::compile).collect::<Result<_, _>>()?,
        };
        if let Some(place) = self.nodes.get_mut(at) {
            *place = Some(node);
        }
        Ok(at)
    }
}

fn type_of(schema: &Value) -> Type {
    if schema.get("x-kubernetes-int-or-string").is_some() {
        return Type::IntOrString;
    }
    match text(schema, "type") {
        Some("object") => Type::Object,
        Some("array") => Type::Array,
        Some("string") => Type::String,
        Some("integer") => Type::Integer,
        Some("number") => Type::Number,
        Some("boolean") => Type::Boolean,
        _ => Type::Any,
    }
}

fn limits(schema: &Value) -> Result<Limits, String> {
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    let count =
        |key: &str| schema.get(key).and_then(Value::as_u64).and_then(|count| usize::try_from(count).ok());
    let pattern = text(schema, "pattern").map(Regex::new).transpose().map_err(|error| error.to_string())?;
    Ok(Limits {
        allowed: schema.get("enum").and_then(Value::as_array).cloned().unwrap_or_default(),
        pattern,
        minimum: number("minimum"),
        maximum: number("maximum"),
        min_length: count("minLength"),
        max_length: count("maxLength"),
        min_items: count("minItems"),
        max_items: count("maxItems"),
        min_properties: count("minProperties"),
        max_properties: count("maxProperties"),
        date_time: text(schema, "format") == Some("date-time"),
    })
}

fn text<'a>(schema: &'a Value, key: &str) -> Option<&'a str> {
    schema.get(key).and_then(Value::as_str)
}

fn texts(list: Option<&Value>) -> Vec<String> {
    let list = list.and_then(Value::as_array).into_iter().flatten();
    list.filter_map(Value::as_str).map(str::to_owned).collect()
}

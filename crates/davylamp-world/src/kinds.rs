//! The kinds that are served: [`Kind`], of a built-in type or of a `CustomResourceDefinition`; [`Kinds`] finds one by its
//! path. Holds no objects.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock};

use serde_json::{Map, Value, json};

use crate::memo::Memo;
use crate::refusal::About;
use crate::schema::{Builtin, Schema, Trait, builtin, compile, metadata_schema};
use crate::walk::Walk;

/// Where a custom kind keeps its scale, as pointers.
#[derive(Clone, Debug)]
pub(crate) struct Scale {
    pub(crate) spec: String,
    pub(crate) status: String,
    pub(crate) selector: Option<String>,
}

/// A kind that is served.
#[derive(Debug)]
#[allow(clippy::struct_field_names, clippy::struct_excessive_bools, reason = "the words of the API")]
pub(crate) struct Kind {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) kind: String,
    pub(crate) plural: String,
    pub(crate) singular: String,
    pub(crate) short: Vec<String>,
    pub(crate) categories: Vec<String>,
    pub(crate) namespaced: bool,
    pub(crate) custom: bool,
    pub(crate) status: bool,
    pub(crate) generation: bool,
    pub(crate) scale: Option<Scale>,
    pub(crate) schema: Schema,
}

impl Kind {
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// For words about one of its objects.
    pub(crate) fn about<'a>(&'a self, name: &'a str) -> About<'a> {
        About { group: &self.group, kind: &self.kind, plural: &self.plural, name }
    }

    /// Under which its objects are stored: events have two groups and are the same objects.
    pub(crate) fn table(&self) -> Table {
        let group =
            if self.plural == "events" && self.group.is_empty() { "events.k8s.io" } else { &self.group };
        Table { group: group.to_owned(), plural: self.plural.clone() }
    }

    /// Fields by which its objects can be selected, beside the name; None for kinds that a server has no words for.
    pub(crate) fn selectable(&self) -> Option<&'static [&'static str]> {
        let fields: &[&str] = match (self.group.as_str(), self.kind.as_str()) {
            ("", "Pod") => &["spec.nodeName", "status.phase", "status.podIP", "spec.restartPolicy"],
            ("", "Event") => &[
                "involvedObject.name",
                "involvedObject.kind",
                "involvedObject.uid",
                "involvedObject.namespace",
                "reason",
                "type",
            ],
            ("", "Secret") => &["type"],
            ("", "Namespace") => &["status.phase"],
            ("apps", "ReplicaSet") => &["status.replicas"],
            ("events.k8s.io", "Event") => &[
                "regarding.name",
                "regarding.kind",
                "regarding.uid",
                "regarding.namespace",
                "reason",
                "type",
            ],
            _ if self.custom => &[],
            _ => return None,
        };
        Some(fields)
    }
}

/// Where objects are stored.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Table {
    pub(crate) group: String,
    pub(crate) plural: String,
}

static BUILT_IN: LazyLock<Vec<Arc<Kind>>> =
    LazyLock::new(|| builtin().iter().map(|kind| Arc::new(of_builtin(kind))).collect());

fn of_builtin(built: &Builtin) -> Kind {
    let has = |wanted: Trait| built.traits.contains(&wanted);
    Kind {
        group: built.group.to_owned(),
        version: built.version.to_owned(),
        kind: built.kind.to_owned(),
        plural: built.plural.to_owned(),
        singular: built.kind.to_lowercase(),
        short: built.short.iter().map(|&short| short.to_owned()).collect(),
        categories: Vec::new(),
        namespaced: !has(Trait::Cluster),
        custom: false,
        status: has(Trait::Status),
        generation: has(Trait::Generation),
        scale: has(Trait::Scale).then(|| Scale {
            spec: "/spec/replicas".to_owned(),
            status: "/status/replicas".to_owned(),
            selector: None,
        }),
        schema: built.schema.clone(),
    }
}

/// All kinds that are served.
#[derive(Debug)]
pub(crate) struct Kinds {
    by_path: BTreeMap<(String, String, String), Arc<Kind>>,
}

impl Default for Kinds {
    fn default() -> Self {
        let mut kinds = Self { by_path: BTreeMap::new() };
        BUILT_IN.iter().for_each(|kind| kinds.add(kind.clone()));
        kinds
    }
}

impl Kinds {
    fn add(&mut self, kind: Arc<Kind>) {
        self.by_path.insert((kind.group.clone(), kind.version.clone(), kind.plural.clone()), kind);
    }

    pub(crate) fn get(&self, group: &str, version: &str, plural: &str) -> Option<&Arc<Kind>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned()))
    }

    /// In the order of group, version and plural.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Kind>> {
        self.by_path.values()
    }

    /// The kind of an object.
    pub(crate) fn of_kind(&self, group: &str, kind: &str) -> Option<&Arc<Kind>> {
        self.all().find(|k| k.group == group && k.kind == kind)
    }

    /// The kind of a table.
    pub(crate) fn of_table(&self, table: &Table) -> Option<&Arc<Kind>> {
        self.all().find(|k| k.group == table.group && k.plural == table.plural)
    }

    /// Serves what a definition defines, in place of what it defined before. The error says what is wrong with it.
    pub(crate) fn define(&mut self, definition: &Value) -> Result<(), String> {
        let kinds = of_definition(definition)?;
        self.forget(definition);
        for kind in kinds {
            self.add(Arc::new(kind));
        }
        Ok(())
    }

    /// Serves no more what a definition defined; gives where its objects are.
    pub(crate) fn forget(&mut self, definition: &Value) -> Table {
        let text = |path: &str| definition.path(path).and_then(Value::as_str).unwrap_or_default().to_owned();
        let table = Table { group: text("/spec/group"), plural: text("/spec/names/plural") };
        self.by_path.retain(|(group, _, plural), _| *group != table.group || *plural != table.plural);
        table
    }
}

fn of_definition(definition: &Value) -> Result<Vec<Kind>, String> {
    let spec = definition.get("spec").ok_or("spec is missing")?;
    let text = |path: &str| spec.path(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let texts = |path: &str| -> Vec<String> {
        let list = spec.path(path).and_then(Value::as_array).into_iter().flatten();
        list.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    let versions = spec.get("versions").and_then(Value::as_array).into_iter().flatten();
    let served = versions.filter(|v| v.get("served").and_then(Value::as_bool).unwrap_or(false));
    served
        .map(|version| {
            let subresource = |path: &str| version.path(&format!("/subresources/{path}"));
            let pointer = |path: &str| {
                let path = subresource(path).and_then(Value::as_str)?;
                Some(path.replace('.', "/"))
            };
            let kind = text("/names/kind");
            let singular = text("/names/singular");
            Ok(Kind {
                group: text("/group"),
                version: version.get("name").and_then(Value::as_str).unwrap_or_default().to_owned(),
                singular: if singular.is_empty() { kind.to_lowercase() } else { singular },
                kind,
                plural: text("/names/plural"),
                short: texts("/names/shortNames"),
                categories: texts("/names/categories"),
                namespaced: text("/scope") == "Namespaced",
                custom: true,
                status: subresource("status").is_some(),
                generation: true,
                scale: subresource("scale").is_some().then(|| Scale {
                    spec: pointer("scale/specReplicasPath").unwrap_or_default(),
                    status: pointer("scale/statusReplicasPath").unwrap_or_default(),
                    selector: pointer("scale/labelSelectorPath"),
                }),
                schema: schema_of(version)?,
            })
        })
        .collect()
}

static COMPILED: Memo<Schema> = Memo::new();

fn schema_of(version: &Value) -> Result<Schema, String> {
    let root = version
        .path("/schema/openAPIV3Schema")
        .cloned()
        .unwrap_or_else(|| json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true}));
    COMPILED.get(&root.to_string(), || whole(root))
}

/// With what every object has: its kind, its version and metadata.
fn whole(mut root: Value) -> Result<Schema, String> {
    let (metadata, definitions) = metadata_schema();
    let fields = root.as_object_mut().ok_or("the schema is no object")?;
    let properties = fields.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    for (name, schema) in [
        ("apiVersion", json!({"type": "string"})),
        ("kind", json!({"type": "string"})),
        ("metadata", metadata.clone()),
    ] {
        if let Some(properties) = properties.as_object_mut() {
            properties.insert(name.to_owned(), schema);
        }
    }
    compile(&root, definitions)
}

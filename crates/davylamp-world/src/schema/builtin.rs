//! The schemas of the kinds that every API server has, from the types of `k8s-openapi`, compiled once per process. How
//! lists are merged is not in those types; [`LISTS`] and [`ATOMIC`] say it, as the published API reference does.

use std::sync::LazyLock;

use davylamp_api::k8s_openapi::api;
use davylamp_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use davylamp_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::Schema;
use super::compile::compile_all;

/// Lists that are merged element by element: type, field, keys; without keys value by value.
const LISTS: &[(&str, &str, &[&str])] = &[
    ("apps.v1.DeploymentStatus", "conditions", &["type"]),
    ("apps.v1.ReplicaSetStatus", "conditions", &["type"]),
    ("core.v1.Container", "env", &["name"]),
    ("core.v1.Container", "ports", &["containerPort", "protocol"]),
    ("core.v1.Container", "volumeDevices", &["devicePath"]),
    ("core.v1.Container", "volumeMounts", &["mountPath"]),
    ("core.v1.EphemeralContainer", "env", &["name"]),
    ("core.v1.EphemeralContainer", "ports", &["containerPort", "protocol"]),
    ("core.v1.EphemeralContainer", "volumeMounts", &["mountPath"]),
    ("core.v1.NamespaceStatus", "conditions", &["type"]),
    ("core.v1.PodSpec", "containers", &["name"]),
    ("core.v1.PodSpec", "ephemeralContainers", &["name"]),
    ("core.v1.PodSpec", "hostAliases", &["ip"]),
    ("core.v1.PodSpec", "imagePullSecrets", &["name"]),
    ("core.v1.PodSpec", "initContainers", &["name"]),
    ("core.v1.PodSpec", "resourceClaims", &["name"]),
    ("core.v1.PodSpec", "schedulingGates", &["name"]),
    ("core.v1.PodSpec", "topologySpreadConstraints", &["topologyKey", "whenUnsatisfiable"]),
    ("core.v1.PodSpec", "volumes", &["name"]),
    ("core.v1.PodStatus", "conditions", &["type"]),
    ("core.v1.PodStatus", "podIPs", &["ip"]),
    ("core.v1.ResourceRequirements", "claims", &["name"]),
    ("core.v1.ServiceAccount", "secrets", &["name"]),
    ("core.v1.ServiceSpec", "ports", &["port", "protocol"]),
    ("core.v1.ServiceStatus", "conditions", &["type"]),
    ("discovery.v1.Endpoint", "addresses", &[]),
    ("meta.v1.ObjectMeta", "finalizers", &[]),
    ("meta.v1.ObjectMeta", "ownerReferences", &["uid"]),
];

/// Objects that are merged as a whole; with a field, that field of the type.
const ATOMIC: &[(&str, &str)] = &[
    ("core.v1.ConfigMapKeySelector", ""),
    ("core.v1.EndpointAddress", ""),
    ("core.v1.EndpointPort", ""),
    ("core.v1.LocalObjectReference", ""),
    ("core.v1.NodeSelector", ""),
    ("core.v1.NodeSelectorTerm", ""),
    ("core.v1.ObjectFieldSelector", ""),
    ("core.v1.ObjectReference", ""),
    ("core.v1.PodSpec", "nodeSelector"),
    ("core.v1.ResourceFieldSelector", ""),
    ("core.v1.SecretKeySelector", ""),
    ("core.v1.ServiceSpec", "selector"),
    ("core.v1.TypedLocalObjectReference", ""),
    ("discovery.v1.EndpointPort", ""),
    ("meta.v1.LabelSelector", ""),
    ("meta.v1.OwnerReference", ""),
    ("rbac.v1.RoleRef", ""),
    ("rbac.v1.Subject", ""),
];

/// A kind that every API server has.
#[derive(Debug)]
pub(crate) struct Builtin {
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    pub(crate) kind: &'static str,
    pub(crate) plural: &'static str,
    pub(crate) short: &'static [&'static str],
    pub(crate) traits: &'static [Trait],
    pub(crate) schema: Schema,
}

/// What a kind has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trait {
    Cluster,
    Status,
    Scale,
    /// Its spec is counted.
    Generation,
}

struct Entry(
    &'static str,
    &'static str,
    &'static str,
    &'static str,
    &'static [&'static str],
    &'static [Trait],
);

struct Built {
    kinds: Vec<Builtin>,
    metadata: Value,
    definitions: Map<String, Value>,
}

static BUILT: LazyLock<Built> = LazyLock::new(build);

/// All built-in kinds.
pub(crate) fn builtin() -> &'static [Builtin] {
    &BUILT.kinds
}

/// The schema of metadata, and the definitions it refers to.
pub(crate) fn metadata_schema() -> (&'static Value, &'static Map<String, Value>) {
    (&BUILT.metadata, &BUILT.definitions)
}

fn build() -> Built {
    use Trait::{Cluster, Generation, Scale, Status};
    let mut generator = SchemaGenerator::default();
    let mut table: Vec<(Entry, Value)> = Vec::new();
    let mut add = |entry: Entry, schema: schemars::Schema| table.push((entry, schema.to_value()));
    macro_rules! kinds {
        ($($type:ty: $group:literal $version:literal $kind:literal $plural:literal $short:expr, $traits:expr;)*) => {
            $(add(
                Entry($group, $version, $kind, $plural, $short, $traits),
                schema_of::<$type>(&mut generator),
            );)*
        };
    }
    kinds! {
        api::core::v1::Namespace: "" "v1" "Namespace" "namespaces" &["ns"], &[Cluster, Status];
        api::core::v1::Node: "" "v1" "Node" "nodes" &["no"], &[Cluster, Status];
        api::core::v1::Pod: "" "v1" "Pod" "pods" &["po"], &[Status, Generation];
        api::core::v1::Service: "" "v1" "Service" "services" &["svc"], &[Status];
        api::core::v1::ServiceAccount: "" "v1" "ServiceAccount" "serviceaccounts" &["sa"], &[];
        api::core::v1::ConfigMap: "" "v1" "ConfigMap" "configmaps" &["cm"], &[];
        api::core::v1::Secret: "" "v1" "Secret" "secrets" &[], &[];
        api::core::v1::Event: "" "v1" "Event" "events" &["ev"], &[];
        api::core::v1::Endpoints: "" "v1" "Endpoints" "endpoints" &["ep"], &[];
        api::events::v1::Event: "events.k8s.io" "v1" "Event" "events" &["ev"], &[];
        api::discovery::v1::EndpointSlice: "discovery.k8s.io" "v1" "EndpointSlice" "endpointslices" &[], &[Generation];
        api::apps::v1::ReplicaSet: "apps" "v1" "ReplicaSet" "replicasets" &["rs"], &[Status, Scale, Generation];
        api::apps::v1::Deployment: "apps" "v1" "Deployment" "deployments" &["deploy"], &[Status, Scale, Generation];
        api::apps::v1::ControllerRevision: "apps" "v1" "ControllerRevision" "controllerrevisions" &[], &[];
        api::coordination::v1::Lease: "coordination.k8s.io" "v1" "Lease" "leases" &[], &[];
        api::autoscaling::v2::HorizontalPodAutoscaler: "autoscaling" "v2" "HorizontalPodAutoscaler"
            "horizontalpodautoscalers" &["hpa"], &[Status];
        api::rbac::v1::ClusterRole: "rbac.authorization.k8s.io" "v1" "ClusterRole" "clusterroles" &[], &[Cluster];
        api::rbac::v1::ClusterRoleBinding: "rbac.authorization.k8s.io" "v1" "ClusterRoleBinding"
            "clusterrolebindings" &[], &[Cluster];
        api::rbac::v1::Role: "rbac.authorization.k8s.io" "v1" "Role" "roles" &[], &[];
        api::rbac::v1::RoleBinding: "rbac.authorization.k8s.io" "v1" "RoleBinding" "rolebindings" &[], &[];
        CustomResourceDefinition: "apiextensions.k8s.io" "v1" "CustomResourceDefinition"
            "customresourcedefinitions" &["crd", "crds"], &[Cluster, Status, Generation];
    }
    let metadata = schema_of::<ObjectMeta>(&mut generator).to_value();
    let mut definitions = generator.take_definitions(true);
    for (type_, field, keys) in LISTS {
        if let Some(list) = definition(&mut definitions, type_).and_then(|d| d.pointer_mut(&at(field))) {
            let list_type = if keys.is_empty() { "set" } else { "map" };
            list["x-kubernetes-list-type"] = list_type.into();
            list["x-kubernetes-list-map-keys"] = json!(keys);
        }
    }
    for (type_, field) in ATOMIC {
        let place = definition(&mut definitions, type_)
            .and_then(|d| if field.is_empty() { Some(d) } else { d.pointer_mut(&at(field)) });
        if let Some(place) = place {
            place["x-kubernetes-map-type"] = "atomic".into();
        }
    }
    // A quantity may be written as a number; a schema of a definition is whatever the server takes, and so is the data of a
    // ControllerRevision.
    for open in ["api.resource.Quantity", "apiextensions.v1.JSONSchemaProps", "runtime.RawExtension"] {
        if let Some(place) = definition(&mut definitions, open) {
            *place = json!({"x-kubernetes-preserve-unknown-fields": true});
        }
    }
    let roots: Vec<Value> = table.iter().map(|(_, schema)| schema.clone()).collect();
    // Of our own making: what cannot be compiled is no kind, and the tests see that all are.
    let schemas = compile_all(&roots, &definitions).unwrap_or_default();
    let kinds = table
        .into_iter()
        .zip(schemas)
        .map(|((Entry(group, version, kind, plural, short, traits), _), schema)| Builtin {
            group,
            version,
            kind,
            plural,
            short,
            traits,
            schema,
        })
        .collect();
    Built { kinds, metadata, definitions }
}

fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> schemars::Schema {
    generator.subschema_for::<T>()
}

fn at(field: &str) -> String {
    format!("/properties/{field}")
}

/// The definition whose full name ends so.
fn definition<'a>(definitions: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Value> {
    let ending = format!(".{name}");
    definitions.iter_mut().find(|(full, _)| full.ends_with(&ending)).map(|(_, definition)| definition)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::ListType;

    #[test]
    fn every_entry_of_the_tables_names_a_type_and_a_field() {
        let mut definitions = BUILT.definitions.clone();
        for (type_, field) in LISTS.iter().map(|(t, f, _)| (t, f)).chain(ATOMIC.iter().map(|(t, f)| (t, f))) {
            let there = definition(&mut definitions, type_);
            let there = if field.is_empty() { there } else { there.and_then(|d| d.pointer_mut(&at(field))) };
            assert!(there.is_some(), "{type_} {field}");
        }
        assert_eq!(builtin().len(), 21);
    }

    #[test]
    fn containers_are_told_apart_by_name() {
        let set = builtin().iter().find(|k| k.kind == "ReplicaSet").unwrap();
        let path = ["spec", "template", "spec", "containers"];
        let at = path.iter().fold(set.schema.at(), |at, field| at.property(field).unwrap());
        assert_eq!(at.node().unwrap().list, ListType::Map(vec!["name".to_owned()]));
    }
}

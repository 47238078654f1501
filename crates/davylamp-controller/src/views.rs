//! Objects as the controller caches them: only the fields that are read, and as text what belongs to the user.

use std::borrow::Cow;
use std::collections::BTreeMap;

use davylamp_api::k8s_openapi::api;
use davylamp_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::Resource;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::json::Json;

macro_rules! view {
    ($(#[$doc:meta])* $name:ident of $of:path { $($(#[$fdoc:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Resource, Deserialize)]
        #[resource(inherit = $of, crates(k8s_openapi = davylamp_api::k8s_openapi))]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            /// Its metadata.
            pub metadata: ObjectMeta,
            $($(#[$fdoc])* #[serde(default)] pub $field: $kind,)*
        }
    };
}

macro_rules! part {
    ($(#[$doc:meta])* $name:ident { $($(#[$fdoc:meta])* $field:ident: $kind:ty),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, Deserialize)]
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $($(#[$fdoc])* pub $field: $kind,)*
        }
    };
}

view! {
    /// A Rollout: spec and status as text, so that a spec of another version stays readable.
    RolloutView of davylamp_api::Rollout {
        /// As the user wrote it.
        spec: Json,
        /// As we wrote it.
        status: Json,
    }
}

view! {
    /// A run in flight; its status is only written.
    RunView of davylamp_api::RolloutRun {
        /// Its program.
        spec: Json,
    }
}

view! {
    /// A `ReplicaSet` without its template.
    ReplicaSetView of api::apps::v1::ReplicaSet {
        /// What is asked for.
        spec: ReplicaSetSpec,
        /// What there is.
        status: ReplicaSetStatus,
    }
}

part! {
    /// What is asked for.
    ReplicaSetSpec {
        /// Pods.
        replicas: Option<i32>,
        /// For how long a pod must be ready.
        min_ready_seconds: Option<i32>,
        /// Of the pods.
        template: Template,
    }
}

part! {
    /// The part of a pod template that is read.
    Template {
        /// Of the pod.
        spec: TemplateSpec,
    }
}

part! {
    /// The part of a pod's spec that is read.
    TemplateSpec {
        /// How long a pod may take to end.
        termination_grace_period_seconds: Option<i64>,
    }
}

part! {
    /// What there is.
    ReplicaSetStatus {
        /// Pods that are ready for long enough.
        available_replicas: Option<i32>,
        /// Trouble with creating pods.
        conditions: Vec<PlainCondition>,
    }
}

part! {
    /// A condition of an older kind.
    PlainCondition {
        /// Its type.
        r#type: String,
        /// True, False or Unknown.
        status: String,
        /// Why, in one word.
        reason: Option<String>,
        /// Why, in words.
        message: Option<String>,
        /// Since when.
        last_transition_time: Option<Time>,
    }
}

view! {
    /// A pod of ours.
    PodView of api::core::v1::Pod {
        /// How it fares.
        status: PodStatus,
    }
}

part! {
    /// How a pod fares.
    PodStatus {
        /// Ready, and why not scheduled.
        conditions: Vec<PlainCondition>,
        /// Why containers wait.
        container_statuses: Vec<ContainerStatus>,
        /// Why init containers wait.
        init_container_statuses: Vec<ContainerStatus>,
    }
}

part! {
    /// How a container fares.
    ContainerStatus {
        /// Its name.
        name: String,
        /// What it does.
        state: ContainerState,
    }
}

part! {
    /// What a container does.
    ContainerState {
        /// It waits.
        waiting: Option<Waiting>,
    }
}

part! {
    /// Why a container waits.
    Waiting {
        /// In one word.
        reason: Option<String>,
        /// In words.
        message: Option<String>,
    }
}

view! {
    /// A Service: ours, or a user's for its ports.
    ServiceView of api::core::v1::Service {
        /// As it stands.
        spec: Json,
    }
}

view! {
    /// Endpoints behind a Service of ours.
    EndpointSliceView of api::discovery::v1::EndpointSlice {
        /// They.
        endpoints: Option<Vec<Endpoint>>,
    }
}

part! {
    /// One endpoint.
    Endpoint {
        /// Whether it takes requests.
        conditions: EndpointConditions,
        /// Its pod.
        target_ref: TargetRef,
    }
}

part! {
    /// Whether an endpoint takes requests.
    EndpointConditions {
        /// Absent is yes.
        ready: Option<bool>,
    }
}

part! {
    /// The pod of an endpoint.
    TargetRef {
        /// Its name.
        name: Option<String>,
    }
}

/// An `HTTPRoute`, as text.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RouteView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// As it stands.
    #[serde(default)]
    pub spec: Json,
    /// What its gateways say.
    #[serde(default)]
    pub status: Json,
}

impl RouteView {
    /// As the API server gave it.
    #[must_use]
    pub fn value(&self) -> Value {
        let mut value = json!({
            "apiVersion": "gateway.networking.k8s.io/v1",
            "kind": "HTTPRoute",
            "metadata": self.metadata,
            "spec": self.spec.value(),
        });
        if !self.status.is_null() {
            value["status"] = self.status.value();
        }
        value
    }
}

/// A Gateway: its class.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct GatewayView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its class.
    #[serde(default)]
    pub spec: GatewaySpec,
}

part! {
    /// Its class.
    GatewaySpec {
        /// Its name.
        gateway_class_name: String,
    }
}

/// A `GatewayClass`: its controller.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct GatewayClassView {
    /// Its metadata.
    pub metadata: ObjectMeta,
    /// Its controller.
    #[serde(default)]
    pub spec: GatewayClassSpec,
}

part! {
    /// Its controller.
    GatewayClassSpec {
        /// Its name.
        controller_name: String,
    }
}

macro_rules! gateway_kind {
    ($name:ident, $kind:literal, $plural:literal) => {
        impl Resource for $name {
            type DynamicType = ();
            type Scope = kube::core::DynamicResourceScope;

            fn kind((): &()) -> Cow<'_, str> {
                $kind.into()
            }

            fn group((): &()) -> Cow<'_, str> {
                "gateway.networking.k8s.io".into()
            }

            fn version((): &()) -> Cow<'_, str> {
                "v1".into()
            }

            fn plural((): &()) -> Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}

gateway_kind!(RouteView, "HTTPRoute", "httproutes");
gateway_kind!(GatewayView, "Gateway", "gateways");
gateway_kind!(GatewayClassView, "GatewayClass", "gatewayclasses");

/// Labels of an object.
pub fn label<'a>(object: &'a impl Resource, key: &str) -> Option<&'a str> {
    object.meta().labels.as_ref().and_then(|l: &BTreeMap<String, String>| l.get(key)).map(String::as_str)
}

/// The uid of the object's controlling owner.
pub fn owner(object: &impl Resource) -> Option<&str> {
    let owners = object.meta().owner_references.as_deref().unwrap_or_default();
    owners.iter().find(|o| o.controller == Some(true)).map(|o| o.uid.as_str())
}

/// Drops what nobody reads.
pub fn trim<K: Resource>(object: &mut K) {
    object.meta_mut().managed_fields = None;
}

/// Keeps everything: a route's managed fields are read.
pub fn keep<K>(_: &mut K) {}

//! `AnalysisTemplate` and `ClusterAnalysisTemplate`: metrics that several Rollouts share, and [`Preset`], metrics that come
//! with the program. Written by users and admins; the controller only reads them.

use std::fmt;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::rollout::{CohortBy, Cohorts, Distribution, Gauge, Metric, NamespaceLabel, Ratio, ServiceForm};

/// Metrics that Rollouts of this namespace share.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "davylamp.dev",
    version = "v1alpha1",
    kind = "AnalysisTemplate",
    plural = "analysistemplates",
    category = "davylamp",
    namespaced,
    derive = "PartialEq",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisTemplateSpec {
    /// What whoever uses it may or must say.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Parameter>,
    /// Metrics that come with the program.
    #[schemars(length(max = 4), extend("x-kubernetes-list-type" = "set"))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub presets: Vec<Preset>,
    /// What is compared. `{{args.NAME}}` stands for the value of an argument, within the quotes of a matcher.
    #[schemars(length(max = 10))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metric>,
    /// Templates whose metrics are compared, too. `{{args.NAME}}` may stand in the values of their arguments.
    #[schemars(length(max = 10))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["scope", "name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub templates: Vec<TemplateRef>,
}

/// Metrics that Rollouts of all namespaces share.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "davylamp.dev",
    version = "v1alpha1",
    kind = "ClusterAnalysisTemplate",
    plural = "clusteranalysistemplates",
    category = "davylamp",
    derive = "PartialEq",
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(transparent)]
pub struct ClusterAnalysisTemplateSpec(pub AnalysisTemplateSpec);

/// What whoever uses a template may or must say.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Parameter {
    /// Its name, as in `{{args.NAME}}`.
    #[schemars(regex(pattern = r"^[a-z]([-a-z0-9]*[a-z0-9])?$"), length(max = 40))]
    pub name: String,
    /// What it is where nobody says anything. Absent: it must be said.
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// A template, and what it is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TemplateRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Which of the two kinds it is of.
    pub scope: Scope,
    /// What it is told.
    #[schemars(length(max = 16))]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Argument>,
}

impl fmt::Display for TemplateRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.scope.kind(), self.name)
    }
}

/// What a template is told.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Argument {
    /// The name of one of its `args`.
    #[schemars(length(min = 1, max = 40))]
    pub name: String,
    /// What stands in its place.
    #[schemars(length(max = 512))]
    pub value: String,
}

/// Where a template is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Scope {
    /// An `AnalysisTemplate` of the Rollout's namespace.
    #[default]
    Namespace,
    /// A `ClusterAnalysisTemplate`.
    Cluster,
}

impl Scope {
    /// The kind of its templates.
    #[must_use]
    pub const fn kind(self) -> &'static str {
        match self {
            Self::Namespace => "AnalysisTemplate",
            Self::Cluster => "ClusterAnalysisTemplate",
        }
    }
}

/// Metrics by the names that a library or a proxy gives them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Preset {
    /// `http_requests_total` and `http_request_duration_seconds`.
    Http,
    /// `grpc_server_handled_total` and `grpc_server_handling_seconds`.
    Grpc,
    /// `istio_requests_total` and `istio_request_duration_milliseconds`, of sidecars.
    Istio,
    /// `response_total` and `response_latency_ms`.
    Linkerd,
    /// `envoy_http_downstream_rq_xx` and `envoy_http_downstream_rq_time`, of sidecars whose listener has the `stat_prefix`
    /// `ingress_http`.
    Envoy,
    /// `traefik_service_requests_total` and `traefik_service_request_duration_seconds`, of a gateway, by service.
    Traefik,
    /// `nginx_ingress_controller_requests` and `nginx_ingress_controller_request_duration_seconds`, of ingress-nginx, by
    /// service.
    Nginx,
    /// `jvm_memory_used_bytes`.
    #[serde(rename = "jvm-memory")]
    JvmMemory,
}

/// Not probes and scrapes, where a label says what was asked for.
macro_rules! of_users {
    () => {
        r#"path!~"/(healthz?|livez|readyz|metrics)",handler!~"/(healthz?|livez|readyz|metrics)""#
    };
}

impl Preset {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Http,
        Self::Grpc,
        Self::Istio,
        Self::Linkerd,
        Self::Envoy,
        Self::Traefik,
        Self::Nginx,
        Self::JvmMemory,
    ];

    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Grpc => "grpc",
            Self::Istio => "istio",
            Self::Linkerd => "linkerd",
            Self::Envoy => "envoy",
            Self::Traefik => "traefik",
            Self::Nginx => "nginx",
            Self::JvmMemory => "jvm-memory",
        }
    }

    /// What it stands for. Their names never change: a metric of the same name takes the place of one of them.
    #[must_use]
    pub fn metrics(self) -> Vec<Metric> {
        let (events, total, histogram) = match self {
            Self::Http => (
                concat!("http_requests_total{", of_users!(), r#",code=~"5.."}"#),
                concat!("http_requests_total{", of_users!(), "}"),
                concat!("http_request_duration_seconds{", of_users!(), "}"),
            ),
            Self::Grpc => (
                r#"grpc_server_handled_total{grpc_service!="grpc.health.v1.Health",grpc_code=~"Unknown|DeadlineExceeded|Unimplemented|Internal|Unavailable|DataLoss|UNKNOWN|DEADLINE_EXCEEDED|UNIMPLEMENTED|INTERNAL|UNAVAILABLE|DATA_LOSS"}"#,
                r#"grpc_server_handled_total{grpc_service!="grpc.health.v1.Health"}"#,
                r#"grpc_server_handling_seconds{grpc_service!="grpc.health.v1.Health"}"#,
            ),
            Self::Istio => (
                r#"istio_requests_total{reporter="destination",response_code=~"5.."}"#,
                r#"istio_requests_total{reporter="destination"}"#,
                r#"istio_request_duration_milliseconds{reporter="destination"}"#,
            ),
            // The port is the proxy's own: probes and scrapes.
            Self::Linkerd => (
                r#"response_total{direction="inbound",target_port!="4191",classification="failure"}"#,
                r#"response_total{direction="inbound",target_port!="4191"}"#,
                r#"response_latency_ms{direction="inbound",target_port!="4191"}"#,
            ),
            Self::Envoy => (
                r#"envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="ingress_http",envoy_response_code_class="5"}"#,
                r#"envoy_http_downstream_rq_xx{envoy_http_conn_manager_prefix="ingress_http"}"#,
                r#"envoy_http_downstream_rq_time{envoy_http_conn_manager_prefix="ingress_http"}"#,
            ),
            Self::Traefik => (
                r#"traefik_service_requests_total{code=~"5.."}"#,
                "traefik_service_requests_total",
                "traefik_service_request_duration_seconds",
            ),
            Self::Nginx => (
                r#"nginx_ingress_controller_requests{status=~"5.."}"#,
                "nginx_ingress_controller_requests",
                "nginx_ingress_controller_request_duration_seconds",
            ),
            Self::JvmMemory => {
                let query = r#"jvm_memory_used_bytes{area="heap"}"#.to_owned();
                let gauge = Some(Gauge { query, ..Gauge::default() });
                return vec![Metric { name: self.as_str().to_owned(), gauge, ..Metric::default() }];
            }
        };
        let cohort = self.cohort();
        let ratio =
            Ratio { events: Some(events.to_owned()), total: Some(total.to_owned()), ..Ratio::default() };
        let distribution = Distribution { histogram: histogram.to_owned() };
        vec![
            Metric {
                name: format!("{}-errors", self.as_str()),
                ratio: Some(ratio),
                cohort: cohort.clone(),
                ..Metric::default()
            },
            Metric {
                name: format!("{}-latency", self.as_str()),
                distribution: Some(distribution),
                cohort,
                ..Metric::default()
            },
        ]
    }

    /// Of what counts for several pods: how it names them, and where their namespace stands.
    fn cohort(self) -> Option<Cohorts> {
        let by_service = |label: &str, form, namespace_label| {
            Some(Cohorts {
                by: CohortBy::Service,
                label: Some(label.to_owned()),
                form: Some(form),
                namespace_label,
            })
        };
        match self {
            // The namespace stands in the name.
            Self::Traefik => by_service("service", ServiceForm::Traefik, None),
            Self::Nginx => {
                let namespace = Some(NamespaceLabel::ExportedNamespace);
                by_service("exported_service", ServiceForm::Nginx, namespace)
            }
            Self::Http | Self::Grpc | Self::Istio | Self::Linkerd | Self::Envoy | Self::JvmMemory => None,
        }
    }
}

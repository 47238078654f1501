//! `MetricSource`: where metrics live and who may ask for them. Written by admins; tenants only name it.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use crate::scalar::Duration;

/// A Prometheus-compatible server, its label names, and the namespaces that may use it.
#[derive(CustomResource, KubeSchema, Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "davylamp.dev",
    version = "v1alpha1",
    kind = "MetricSource",
    plural = "metricsources",
    category = "davylamp",
    derive = "PartialEq",
    printcolumn(name = "URL", type_ = "string", json_path = ".spec.url"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct MetricSourceSpec {
    /// The base address, as in `http://prometheus.monitoring:9090`.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@ ]+(/[^?#@ ]*)?$')")
        .message("spec.url: write the base address without user, query or fragment, like http://prometheus.monitoring:9090"))]
    pub url: String,
    /// The label that names a pod. Default `pod`.
    #[schemars(regex(pattern = r"^[a-zA-Z_][a-zA-Z0-9_]*$"), length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_label: Option<String>,
    /// The label that names a namespace. Default `namespace`.
    #[schemars(regex(pattern = r"^[a-zA-Z_][a-zA-Z0-9_]*$"), length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_label: Option<String>,
    /// Namespaces whose Rollouts may use this source; `"*"` alone allows all.
    #[schemars(length(max = 1000), inner(length(min = 1, max = 63)))]
    #[x_kube(validation = Rule::new("self.size() > 0").message("spec.allowedNamespaces: list the namespaces that may use this source, or write [\"*\"]"))]
    pub allowed_namespaces: Vec<String>,
    /// The interval of scrapes. Default 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrape_interval: Option<Duration>,
    /// Samples younger than this are not yet read: some may still arrive. At least the scrape timeout. Default 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
}

impl MetricSourceSpec {
    /// The label that names a pod.
    #[must_use]
    pub fn pod_label(&self) -> &str {
        self.pod_label.as_deref().unwrap_or("pod")
    }

    /// The label that names a namespace.
    #[must_use]
    pub fn namespace_label(&self) -> &str {
        self.namespace_label.as_deref().unwrap_or("namespace")
    }

    /// The interval of scrapes.
    #[must_use]
    pub fn scrape_interval(&self) -> Duration {
        self.scrape_interval.unwrap_or(Duration::from_secs(15))
    }

    /// The age at which samples are read.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay.unwrap_or(Duration::from_secs(15))
    }

    /// Whether Rollouts of the namespace may use this source.
    #[must_use]
    pub fn allows(&self, namespace: &str) -> bool {
        self.allowed_namespaces.iter().any(|n| n == "*" || n == namespace)
    }
}

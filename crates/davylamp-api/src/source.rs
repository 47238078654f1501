//! `MetricSource`: where metrics live and who may ask for them. Written by admins; tenants only name it. Secrets are only
//! named here: they are read in the namespace of the controller.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::{Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::scalar::Duration;

/// The largest body, in MiB.
const LARGEST_BODY: usize = 16;
const MOST_SERIES_A_POD: usize = 1_000;
const MOST_SAMPLES: usize = 2_000_000;
const MOST_AT_ONCE: usize = 16;
const LONGEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A Prometheus-compatible server, its label names, and the namespaces that may use it.
#[derive(CustomResource, KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[x_kube(validation = Rule::new("!has(self.tls) || self.url.startsWith('https://')")
    .message("spec.tls: it is used with https only: write spec.url with https://"))]
#[x_kube(validation = Rule::new("self.url.startsWith('https://') || (has(self.insecureCredentials) && self.insecureCredentials) || !(has(self.authentication) || (has(self.headers) && self.headers.exists(h, has(h.secret))))")
    .message("spec.url: write https://, for credentials can be read on the way; or accept that with insecureCredentials: true"))]
#[x_kube(validation = Rule::new("!has(self.authentication) || !has(self.authentication.oauth2) || self.authentication.oauth2.tokenUrl.startsWith('https://') || (has(self.insecureCredentials) && self.insecureCredentials)")
    .message("spec.authentication.oauth2.tokenUrl: write https://, for credentials can be read on the way; or accept that with insecureCredentials: true"))]
pub struct MetricSourceSpec {
    /// The base address, as in `http://prometheus.monitoring:9090`.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@ ]+(/[^?#@ ]*)?$')")
        .message("spec.url: write the base address without user, query or fragment, like http://prometheus.monitoring:9090"))]
    pub url: String,
    /// How the server is recognised, and how we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
    /// Who asks. Absent: nobody.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub authentication: Option<Authentication>,
    /// Credentials may be sent by plain http, where everybody on the way can read them. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub insecure_credentials: Option<bool>,
    /// What else is sent with each query.
    #[schemars(length(max = 16))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Vec<Header>>,
    /// Whose data is asked for, where a server keeps that of several tenants apart by a header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<Tenant>,
    /// The label that names a pod. Default `pod`.
    #[schemars(regex(pattern = r"^[a-zA-Z_][a-zA-Z0-9_]*$"), length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_label: Option<String>,
    /// The label that names a namespace. Default `namespace`.
    #[schemars(regex(pattern = r"^[a-zA-Z_][a-zA-Z0-9_]*$"), length(max = 128))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_label: Option<String>,
    /// Labels that tell apart the servers which read the same targets, where their samples are kept side by side: each target
    /// then counts once. `prometheus`, `prometheus_replica` and `replica` are known.
    #[schemars(length(max = 8), inner(regex(pattern = r"^[a-zA-Z_][a-zA-Z0-9_]*$"), length(max = 128)))]
    #[x_kube(merge_strategy = ListMerge::Set)]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replica_labels: Option<Vec<String>>,
    /// A matcher that each selector gets, after those of the user: nobody sees series without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub enforced_label: Option<EnforcedLabel>,
    /// Namespaces whose Rollouts may use this source; `"*"` alone allows all.
    #[schemars(length(max = 1000), inner(length(min = 1, max = 63)))]
    #[x_kube(validation = Rule::new("self.size() > 0").message("spec.allowedNamespaces: list the namespaces that may use this source, or write [\"*\"]"))]
    pub allowed_namespaces: Vec<String>,
    /// The interval of scrapes. Absent: the median gap between those of the stable pods, seen when a run begins; 15s where
    /// none are seen, or `spec.analysis.calibration.history` of the Rollout is 0s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scrape_interval: Option<Duration>,
    /// Samples younger than this are not yet read: some may still arrive. At least the scrape timeout. Default 15s.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delay: Option<Duration>,
    /// What a query may cost.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Limits>,
}

/// A value in a secret in the namespace of the controller. The secret is of the type `Opaque`, `kubernetes.io/basic-auth`
/// or `kubernetes.io/tls`.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SecretKey {
    /// The secret.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"), length(max = 253))]
    pub name: String,
    /// The key in it.
    #[schemars(regex(pattern = r"^[-._a-zA-Z0-9]+$"), length(max = 253))]
    pub key: String,
}

/// How a server is recognised, and how we are. There is no way to take any certificate: name its authority instead.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tls {
    /// Who signs the server's certificate. Absent: the authorities that the controller's image knows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca: Option<Authority>,
    /// A secret of the type `kubernetes.io/tls`, whose certificate is shown to the server.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"), length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_certificate: Option<String>,
    /// The name in the server's certificate, where it is not the host of the URL.
    #[schemars(regex(pattern = r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"), length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server_name: Option<String>,
}

/// Certificates of authorities, as PEM.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.pem) != has(self.secret)").message("tls.ca: write either pem or secret"))]
pub struct Authority {
    /// The certificates themselves.
    #[schemars(length(max = 65536))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pem: Option<String>,
    /// Where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretKey>,
}

/// Who asks, in one of these ways.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.basic) ? 1 : 0) + (has(self.bearer) ? 1 : 0) + (has(self.oauth2) ? 1 : 0) == 1")
    .message("spec.authentication: write one of basic, bearer and oauth2"))]
pub struct Authentication {
    /// By a name and a password.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub basic: Option<Basic>,
    /// By a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bearer: Option<Bearer>,
    /// By a token that another server gives for client credentials (RFC 6749, section 4.4).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth2: Option<OAuth2>,
}

/// A name and a password.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Basic {
    /// The name.
    #[schemars(regex(pattern = r"^[^:\x00-\x1f\x7f]+$"), length(max = 253))]
    pub username: String,
    /// Where the password is.
    pub password: SecretKey,
}

/// A token.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bearer {
    /// Where the token is.
    pub token: SecretKey,
}

/// Client credentials, and who gives a token for them.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.tls) || self.tokenUrl.startsWith('https://')")
    .message("spec.authentication.oauth2.tls: it is used with https only: write tokenUrl with https://"))]
pub struct OAuth2 {
    /// The address of the token endpoint, as in `https://login.example.com/oauth2/token`.
    #[schemars(length(max = 2048))]
    #[x_kube(validation = Rule::new("self.matches('^https?://[^/?#@ ]+(/[^#@ ]*)?$')")
        .message("spec.authentication.oauth2.tokenUrl: write an address without user or fragment, like https://login.example.com/oauth2/token"))]
    pub token_url: String,
    /// The client.
    #[schemars(length(min = 1, max = 253))]
    pub client_id: String,
    /// Where the client's secret is. Both are sent by HTTP basic authentication.
    pub client_secret: SecretKey,
    /// What the token is for.
    #[schemars(length(max = 16), inner(regex(pattern = r"^[!#-\[\]-~]+$"), length(max = 253)))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<String>>,
    /// What else the endpoint wants to be told, such as `audience`.
    #[schemars(schema_with = "parameters")]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parameters: Option<BTreeMap<String, String>>,
    /// How the endpoint is recognised, and how we are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
}

fn parameters(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "nullable": true,
        "maxProperties": 16,
        "additionalProperties": {"type": "string", "maxLength": 2048}
    })
}

/// A header and its value.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.value) != has(self.secret)").message("spec.headers[]: write either value or secret"))]
pub struct Header {
    /// The name.
    #[schemars(regex(pattern = r"^[a-zA-Z0-9-]+$"), length(max = 64))]
    #[x_kube(validation = Rule::new("!self.matches('(?i)^(host|authorization|accept-encoding|connection|expect|keep-alive|te|trailer|transfer-encoding|upgrade|content-.*|proxy-.*)$')")
        .message("spec.headers[].name: this one is the controller's own; credentials stand in spec.authentication"))]
    pub name: String,
    /// The value, where everybody may see it.
    #[schemars(regex(pattern = r"^[ -~]*$"), length(max = 4096))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where the value is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<SecretKey>,
}

/// Whose data is asked for.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Tenant {
    /// The header that names a tenant. Default `X-Scope-OrgID`, as Mimir and Cortex have it.
    #[schemars(regex(pattern = r"^[a-zA-Z0-9-]+$"), length(max = 64))]
    #[x_kube(validation = Rule::new("!self.matches('(?i)^(host|authorization|accept-encoding|connection|expect|keep-alive|te|trailer|transfer-encoding|upgrade|content-.*|proxy-.*)$')")
        .message("spec.tenant.header: this one is the controller's own; write one like X-Scope-OrgID"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// The tenant; several are joined by `|`.
    #[schemars(regex(pattern = r"^[!-~]+$"), length(max = 1024))]
    pub value: String,
}

impl Tenant {
    /// The header that names a tenant.
    #[must_use]
    pub fn header(&self) -> &str {
        self.header.as_deref().unwrap_or("X-Scope-OrgID")
    }
}

/// A label and the only value of it that is seen.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct EnforcedLabel {
    /// The label.
    #[schemars(regex(pattern = r"^[a-zA-Z_][a-zA-Z0-9_]*$"), length(max = 128))]
    pub name: String,
    /// Its value.
    #[schemars(length(min = 1, max = 1024))]
    pub value: String,
}

/// What a query may cost. Each has an upper bound, for one source must not starve the others.
#[derive(KubeSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// A query is given up after so long, tokens and secrets included. Default 10s, at most 1m.
    #[x_kube(validation = Rule::new("duration(self) >= duration('1s') && duration(self) <= duration('1m')")
        .message("spec.limits.timeout: write a duration from 1s to 1m"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<Duration>,
    /// No more of an answer is read, in MiB. Default 4.
    #[schemars(range(min = 1, max = LARGEST_BODY))]
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "bodyMiB")]
    pub body_mib: Option<i32>,
    /// Series for each pod in one answer. Default 50.
    #[schemars(range(min = 1, max = MOST_SERIES_A_POD))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub series_per_pod: Option<i32>,
    /// Samples of one Rollout at one time. Default 500000.
    #[schemars(range(min = 1, max = MOST_SAMPLES))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub samples: Option<i32>,
    /// Rollouts that are asked for at once, each with two queries at most. Default 4.
    #[schemars(range(min = 1, max = MOST_AT_ONCE))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<i32>,
}

impl Limits {
    /// After this a query is given up.
    #[must_use]
    pub fn timeout(&self) -> std::time::Duration {
        let timeout = self.timeout.unwrap_or(Duration::from_secs(10));
        std::time::Duration::from_millis(timeout.min(LONGEST_TIMEOUT).as_millis())
    }

    /// In bytes.
    #[must_use]
    pub fn body(&self) -> usize {
        bounded(self.body_mib, 4, LARGEST_BODY) << 20
    }

    /// Series for each pod in one answer.
    #[must_use]
    pub fn series_per_pod(&self) -> usize {
        bounded(self.series_per_pod, 50, MOST_SERIES_A_POD)
    }

    /// Samples of one Rollout at one time.
    #[must_use]
    pub fn samples(&self) -> usize {
        bounded(self.samples, 500_000, MOST_SAMPLES)
    }

    /// Rollouts that are asked for at once.
    #[must_use]
    pub fn concurrency(&self) -> usize {
        bounded(self.concurrency, 4, MOST_AT_ONCE)
    }
}

fn bounded(value: Option<i32>, default: usize, most: usize) -> usize {
    value.and_then(|value| usize::try_from(value).ok()).unwrap_or(default).clamp(1, most)
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

    /// Labels that tell apart the servers which read the same targets, beside those that are known.
    #[must_use]
    pub fn replica_labels(&self) -> &[String] {
        self.replica_labels.as_deref().unwrap_or_default()
    }

    /// The interval of scrapes, as long as nobody has seen any.
    #[must_use]
    pub fn scrape_interval(&self) -> Duration {
        self.scrape_interval.unwrap_or(Duration::from_secs(15))
    }

    /// The age at which samples are read.
    #[must_use]
    pub fn delay(&self) -> Duration {
        self.delay.unwrap_or(Duration::from_secs(15))
    }

    /// What a query may cost.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.limits.unwrap_or_default()
    }

    /// Whether Rollouts of the namespace may use this source.
    #[must_use]
    pub fn allows(&self, namespace: &str) -> bool {
        self.allowed_namespaces.iter().any(|n| n == "*" || n == namespace)
    }
}

//! What a world is like: [`Setting`], written by whoever simulates something. Only data: what follows from it is
//! elsewhere.

use std::collections::BTreeMap;

use davylamp_api::scalar::{Duration, Percent};
use serde::Deserialize;

/// A service's users, its versions, and the habits of its cluster. All that is left out is quiet, quick and healthy.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Setting {
    /// Who sends requests.
    pub users: Users,
    /// How a version behaves, by the image of its first container; others behave like `default`.
    pub versions: BTreeMap<String, Version>,
    /// How a version behaves that is not named.
    pub default: Version,
    /// How pods come and go.
    pub pods: Pods,
    /// How quickly the gateway follows.
    pub gateway: Gateway,
    /// How metrics are read.
    pub scrapes: Scrapes,
}

/// Who sends requests.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Users {
    /// Requests a second, on average.
    pub requests_per_second: f64,
    /// How far the day's peak lies above the average, and its lowest hour below it, at noon and at midnight UTC.
    pub daily: Percent,
    /// Bursts of errors that hit both versions alike.
    pub bursts: Bursts,
    /// For how long a client keeps its connection and with it its pod, whatever the weights say meanwhile.
    pub keep_alive: Duration,
    /// What they ask for; requests of no endpoint here go to `/`. If there is any, `http_requests_total` has a label
    /// `path`.
    pub endpoints: Vec<Endpoint>,
}

impl Default for Users {
    fn default() -> Self {
        Self {
            requests_per_second: 100.0,
            daily: Percent::default(),
            bursts: Bursts::default(),
            keep_alive: Duration::default(),
            endpoints: Vec::new(),
        }
    }
}

/// What a part of the requests ask for.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Endpoint {
    /// Its path, the label of its series.
    pub path: String,
    /// Its share of all requests.
    pub share: Percent,
    /// What else it needs: an incident may name it. Absent: nothing.
    #[serde(default)]
    pub dependency: Option<String>,
}

/// Bursts of errors that hit both versions alike, at random times: all pods, or some.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Bursts {
    /// How many, on average.
    pub per_hour: f64,
    /// How long each is.
    pub last: Duration,
    /// The share of requests that fail beyond the usual.
    pub errors: Percent,
    /// So many pods are hit by each, by lot, of whatever version; absent: all.
    pub pods: Option<u32>,
}

/// How a version behaves.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Version {
    /// The share of its requests that fail.
    pub errors: Percent,
    /// The median time of an answer.
    pub latency: Duration,
    /// The standard deviation of the logarithm of that time.
    pub latency_spread: f64,
    /// The share of requests that end in a sign-up.
    pub sign_ups: Percent,
    /// Memory of a pod at its start and what it grows by each minute, in MiB.
    pub memory: Memory,
    /// Processor time of a request.
    pub cpu: Duration,
    /// What changes when a pod has served for a while; absent: nothing.
    pub later: Option<Later>,
    /// What is different in a pod's first moments; absent: nothing.
    pub warmup: Option<Warmup>,
    /// Some pods are worse than others; absent: none.
    pub bad_pods: Option<BadPods>,
    /// The standard deviation of the logarithm of a pod's share of failures, memory and processor time, by which pods differ for as
    /// long as they live.
    pub pod_effect: f64,
    /// Its pods are never ready.
    pub never_ready: bool,
    /// What it does to all versions when it has enough of the requests; absent: nothing.
    pub breaks: Option<Breaks>,
    /// Its containers end by themselves; absent: never, but for memory beyond its limit.
    pub restarts: Option<Restarts>,
    /// The share of requests that fail at a path of `users.endpoints`, if it is more than anywhere else.
    pub endpoints: BTreeMap<String, Percent>,
}

impl Default for Version {
    fn default() -> Self {
        Self {
            errors: Percent::default(),
            latency: Duration::from_millis(50),
            latency_spread: 0.5,
            sign_ups: Percent::default(),
            memory: Memory::default(),
            cpu: Duration::from_millis(5),
            later: None,
            warmup: None,
            bad_pods: None,
            pod_effect: 0.0,
            never_ready: false,
            breaks: None,
            restarts: None,
            endpoints: BTreeMap::new(),
        }
    }
}

/// Containers that end by themselves: counters begin at zero, and the pod needs `pods.start` to be ready again.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Restarts {
    /// For how long a container runs, on average.
    pub every: Duration,
}

/// A version that breaks what all versions need, like a database.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Breaks {
    /// While it has more than this share of the requests.
    pub above: Percent,
    /// The share of all requests that fail beyond the usual.
    pub errors: Percent,
}

/// Memory of a pod.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Memory {
    /// At its start, in MiB.
    pub start: f64,
    /// More in each minute, in MiB.
    pub growth: f64,
    /// Where its container is killed and begins anew, in MiB, its cache left out; absent: nowhere.
    pub limit: Option<f64>,
    /// What fills as its process grows older; absent: nothing.
    pub cache: Option<Filling>,
}

/// What fills as a process grows older, quickly at first.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Filling {
    /// When full, in MiB.
    pub size: f64,
    /// After so long it is half full, and after as long again half of the rest.
    pub half: Duration,
}

impl Memory {
    /// At an age in minutes, in MiB.
    pub(crate) fn at(&self, minutes: f64) -> f64 {
        let empty = |cache: Filling| (-minutes * 60.0 / cache.half.as_secs_f64().max(1.0)).exp2();
        let cached = self.cache.map_or(0.0, |cache| cache.size * (1.0 - empty(cache)));
        self.start + self.growth * minutes + cached
    }
}

impl Default for Memory {
    fn default() -> Self {
        Self { start: 100.0, growth: 0.0, limit: None, cache: None }
    }
}

/// What changes when a pod has served for a while.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Later {
    /// Once a pod is as old as this.
    pub after: Duration,
    /// The share of its requests that fail from then on.
    pub errors: Percent,
}

/// What is different in a pod's first moments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Warmup {
    /// Until a pod is as old as this.
    pub last: Duration,
    /// The share of its requests that fail meanwhile.
    pub errors: Percent,
}

/// Some pods are worse than others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct BadPods {
    /// The chance of a pod to be one.
    pub share: Percent,
    /// The share of its requests that fail.
    pub errors: Percent,
}

/// How pods come and go.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Pods {
    /// From its creation until a pod is ready, on average.
    pub start: Duration,
    /// From the request to end until a pod is gone.
    pub stop: Duration,
    /// Pods that the cluster has room for; absent: enough.
    pub room: Option<u32>,
    /// Nodes over which the pods of a `ReplicaSet` are spread: `node-1` and so on; absent: one, `node`.
    pub nodes: Option<u32>,
    /// Requests of probes to each pod a second. They are counted as others, but not by path, and succeed.
    pub probes_per_second: f64,
}

impl Default for Pods {
    fn default() -> Self {
        Self {
            start: Duration::from_secs(5),
            stop: Duration::from_secs(10),
            room: None,
            nodes: None,
            probes_per_second: 0.0,
        }
    }
}

/// How quickly the gateway follows.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Gateway {
    /// From a change of a route or of endpoints until requests follow it; its status follows half a second later.
    pub lag: Duration,
    /// It sends a Service another share than the route says; absent: none.
    pub misroutes: Option<Misroutes>,
}

impl Default for Gateway {
    fn default() -> Self {
        Self { lag: Duration::from_millis(500), misroutes: None }
    }
}

/// Another share of the requests than a route says.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Misroutes {
    /// The Service that it is about.
    pub service: String,
    /// It gets so many times its share, at most all; the others of the rule share the rest.
    pub times: f64,
}

/// How metrics are read.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Scrapes {
    /// Between two scrapes of a pod.
    pub interval: Duration,
    /// The share of scrapes that fail.
    pub lost: Percent,
    /// How late a sample may become visible.
    pub late: Duration,
    /// Some pods' series lack a label; absent: none.
    pub missing: Option<Missing>,
    /// Whether `http_request_duration_seconds` is served as a native histogram too.
    pub native_histograms: bool,
    /// Whether each pod is scraped by a second job too, `pods-again`.
    pub twice: bool,
}

impl Default for Scrapes {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            lost: Percent::default(),
            late: Duration::default(),
            missing: None,
            native_histograms: false,
            twice: false,
        }
    }
}

/// Some pods' series lack a label: those that differ in nothing else are one, their sum.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Missing {
    /// Which.
    pub label: String,
    /// The chance of a pod to be one of them.
    pub share: Percent,
}

/// Something that happens for a while, to the whole service or to a part of it: it hits all versions alike.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Incident {
    /// How long it lasts.
    pub last: Duration,
    /// The share of requests that fail beyond the usual.
    pub errors: Percent,
    /// Only requests of endpoints that need it fail; absent: all.
    pub dependency: Option<String>,
    /// Only pods on so many nodes fail, which the seed chooses; absent: on all.
    pub nodes: Option<u32>,
}

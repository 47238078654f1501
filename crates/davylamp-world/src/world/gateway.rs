//! A gateway that follows a while later: [`Gateway`] reads routes and endpoints, takes them into use after its lag, and says
//! so in the routes' status a little after that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use http::Method;
use serde_json::{Value, json};

use super::workloads::{Look, table, time};
use crate::server::write::text;
use crate::setting::Misroutes;
use crate::store::Key;

/// From the use of a route until its status says so, in ms.
const STATUS_LAG: i64 = 500;
const API: &str = "gateway.networking.k8s.io";

/// Where requests go: the share of each pod, and of those that no pod answers.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Routing {
    pub(super) pods: BTreeMap<Key, f64>,
    pub(super) nowhere: f64,
}

/// A gateway.
#[derive(Debug, Default)]
pub(super) struct Gateway {
    /// As last planned, and what is still to be taken into use.
    planned: Routing,
    coming: VecDeque<(i64, Routing)>,
    /// When each route's generation is to be confirmed.
    confirming: BTreeMap<Key, (i64, i64)>,
}

impl Gateway {
    /// The newest routing that is due; and when there is more to do.
    pub(super) fn look(&mut self, look: &Look<'_>) -> (Option<Routing>, i64) {
        let all = |group: &str, plural: &str| look.server.all(&table(group, plural));
        let routes = all(API, "httproutes");
        let endpoints = Endpoints::read(&all("discovery.k8s.io", "endpointslices"));
        let wanted = of_all(&routes, &endpoints, look.setting.gateway.misroutes.as_ref());
        let at = look.now + look.setting.gateway.lag.millis();
        if wanted != self.planned {
            self.planned.clone_from(&wanted);
            self.coming.push_back((at, wanted));
        }
        let mut next = i64::MAX;
        for route in &routes {
            let generation = route.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or(0);
            let key =
                (text(route, "/metadata/namespace").to_owned(), text(route, "/metadata/name").to_owned());
            let due = self
                .confirming
                .entry(key)
                .and_modify(|(of, due)| {
                    if *of != generation {
                        (*of, *due) = (generation, at + STATUS_LAG);
                    }
                })
                .or_insert((generation, at + STATUS_LAG))
                .1;
            if due > look.now {
                next = next.min(due);
            } else {
                confirm(look, route, generation, &endpoints);
            }
        }
        let mut due = None;
        while self.coming.front().is_some_and(|(at, _)| *at <= look.now) {
            due = self.coming.pop_front().map(|(_, routing)| routing);
        }
        let coming = self.coming.front().map_or(i64::MAX, |(at, _)| *at);
        (due, next.min(coming))
    }
}

/// The ready pods of each Service.
struct Endpoints(BTreeMap<Key, Vec<Key>>);

impl Endpoints {
    fn read(slices: &[std::sync::Arc<Value>]) -> Self {
        let mut ready: BTreeMap<Key, Vec<Key>> = BTreeMap::new();
        for slice in slices {
            let namespace = text(slice, "/metadata/namespace");
            let service = text(slice, "/metadata/labels/kubernetes.io~1service-name");
            let pods = ready.entry((namespace.to_owned(), service.to_owned())).or_default();
            let endpoints = slice.pointer("/endpoints").and_then(Value::as_array);
            for endpoint in endpoints.into_iter().flatten() {
                if endpoint.pointer("/conditions/ready") == Some(&Value::Bool(true)) {
                    pods.push((namespace.to_owned(), text(endpoint, "/targetRef/name").to_owned()));
                }
            }
        }
        Self(ready)
    }
}

fn backends(route: &Value) -> impl Iterator<Item = (Key, f64)> {
    let namespace = text(route, "/metadata/namespace");
    let backends = route.pointer("/spec/rules/0/backendRefs").and_then(Value::as_array);
    backends.into_iter().flatten().map(move |backend| {
        let namespace = backend.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
        let weight = backend.get("weight").and_then(Value::as_f64).unwrap_or(1.0);
        ((namespace.to_owned(), text(backend, "/name").to_owned()), weight)
    })
}

/// Each service has as many users; those of several routes go by the first.
fn of_all(routes: &[std::sync::Arc<Value>], endpoints: &Endpoints, misroutes: Option<&Misroutes>) -> Routing {
    let mut all = Routing::default();
    let mut known: BTreeSet<BTreeSet<Key>> = BTreeSet::new();
    for route in routes {
        if known.insert(backends(route).map(|(service, _)| service).collect()) {
            let Routing { pods, nowhere } = routing(route, endpoints, misroutes);
            all.pods.extend(pods);
            all.nowhere += nowhere;
        }
    }
    if known.is_empty() { Routing { nowhere: 1.0, ..all } } else { all }
}

/// The share of each backend: its part of the weights, unless one gets another.
fn shares(route: &Value, misroutes: Option<&Misroutes>) -> Vec<(Key, f64)> {
    let sum: f64 = backends(route).map(|(_, weight)| weight).sum();
    if sum <= 0.0 {
        return Vec::new();
    }
    let mut shares: Vec<_> = backends(route).map(|(service, weight)| (service, weight / sum)).collect();
    let Some(Misroutes { service: named, times }) = misroutes else { return shares };
    let of: f64 = shares.iter().filter(|((_, name), _)| name == named).map(|(_, share)| share).sum();
    // All or nothing leaves nothing to be shared otherwise.
    if of > 0.0 && of < 1.0 {
        let got = (of * times).clamp(0.0, 1.0);
        for ((_, name), share) in &mut shares {
            *share *= if name == named { got / of } else { (1.0 - got) / (1.0 - of) };
        }
    }
    shares
}

fn routing(route: &Value, endpoints: &Endpoints, misroutes: Option<&Misroutes>) -> Routing {
    let shares = shares(route, misroutes);
    let mut routing = Routing::default();
    if shares.is_empty() {
        return Routing { nowhere: 1.0, ..routing };
    }
    for (service, share) in shares.into_iter().filter(|(_, share)| *share > 0.0) {
        let pods = endpoints.0.get(&service).map(Vec::as_slice).unwrap_or_default();
        if pods.is_empty() {
            routing.nowhere += share;
        }
        #[allow(clippy::cast_precision_loss, reason = "a number of pods")]
        let each = share / pods.len() as f64;
        for pod in pods {
            *routing.pods.entry(pod.clone()).or_default() += each;
        }
    }
    routing
}

/// Says in the route's status that each of its parents carries it.
fn confirm(look: &Look<'_>, route: &Value, generation: i64, endpoints: &Endpoints) {
    let (namespace, name) = (text(route, "/metadata/namespace"), text(route, "/metadata/name"));
    let resolved = backends(route).all(|(service, _)| endpoints.0.contains_key(&service));
    let get = |path: &str| look.server.ask("gateway", &Method::GET, path, Value::Null).ok().flatten();
    let parents = route.pointer("/spec/parentRefs").and_then(Value::as_array);
    let mut entries = Vec::new();
    for parent in parents.into_iter().flatten() {
        let of = parent.get("namespace").and_then(Value::as_str).unwrap_or(namespace);
        let path = format!("/apis/{API}/v1/namespaces/{of}/gateways/{}", text(parent, "/name"));
        let Some(gateway) = get(&path) else { continue };
        let path = format!("/apis/{API}/v1/gatewayclasses/{}", text(&gateway, "/spec/gatewayClassName"));
        let Some(class) = get(&path) else { continue };
        let controller = text(&class, "/spec/controllerName");
        let before = route.pointer("/status/parents").and_then(Value::as_array);
        let before = before
            .into_iter()
            .flatten()
            .find(|entry| text(entry, "/controllerName") == controller && entry["parentRef"] == *parent);
        let condition = |type_: &str, is: bool, reason: &str| {
            let status = if is { "True" } else { "False" };
            let conditions = before.and_then(|b| b["conditions"].as_array());
            let since = conditions
                .into_iter()
                .flatten()
                .find(|c| c["type"] == type_ && c["status"] == status)
                .map_or_else(|| json!(time(look.now)), |c| c["lastTransitionTime"].clone());
            json!({"type": type_, "status": status, "reason": reason, "message": "",
                   "observedGeneration": generation, "lastTransitionTime": since})
        };
        entries.push(json!({
            "parentRef": parent, "controllerName": controller,
            "conditions": [
                condition("Accepted", true, "Accepted"),
                condition("ResolvedRefs", resolved, if resolved { "ResolvedRefs" } else { "BackendNotFound" }),
            ],
        }));
    }
    if route.pointer("/status/parents").is_none_or(|parents| *parents != json!(entries)) {
        let path = format!("/apis/{API}/v1/namespaces/{namespace}/httproutes/{name}/status");
        look.write("gateway", &Method::PATCH, &path, json!({"status": {"parents": entries}}));
    }
}

//! Whether the gateways of a route carry what it says, by the word of each parent's own controller and at the route's
//! generation. Pure; never says yes to what no controller has confirmed.

use std::fmt;

use davylamp_engine::observed::Effective;
use serde_json::Value;

use super::gateway::{list, text};

const GROUP: &str = "gateway.networking.k8s.io";

/// What the caches know of Gateways.
pub trait Parents {
    /// The `controllerName` of the Gateway's class; None when the Gateway or its class does not exist.
    fn controller_name(&self, namespace: &str, gateway: &str) -> Option<String>;
}

/// Where a controller's status is not what the Gateway API asks for. What status itself shows (entries of removed
/// parents at Envoy Gateway, "core" for the core group and no generation at Linkerd) needs no row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Quirk {
    /// `parentRef.port` is left out.
    OmitsPort,
    /// `observedGeneration` is the object's when status is written, not the one that was translated.
    StampsGeneration,
}

const QUIRKS: &[(&str, Quirk)] = &[
    ("gateway.nginx.org/nginx-gateway-controller", Quirk::OmitsPort),
    ("kgateway.dev/kgateway", Quirk::StampsGeneration),
];

/// Whether each parent carries the route as it is.
pub(super) fn effective(route: &Value, namespace: &str, parents: &impl Parents) -> Effective {
    let refs = list(route, "/spec/parentRefs");
    if refs.is_empty() {
        return Effective::No("it has no parentRefs: name the Gateway that carries it".to_owned());
    }
    let mut answer = Effective::Yes;
    for parent in refs.iter().map(|value| Parent::read(value, namespace)) {
        match carried(route, &parent, namespace, parents) {
            Effective::Yes => {}
            Effective::Unverifiable => answer = Effective::Unverifiable,
            no @ Effective::No(_) => return no,
        }
    }
    answer
}

/// A `parentRef`, of the spec or of status.
#[derive(PartialEq)]
struct Parent<'a> {
    group: &'a str,
    kind: &'a str,
    namespace: &'a str,
    name: &'a str,
    section: &'a str,
    port: Option<i64>,
}

impl<'a> Parent<'a> {
    fn read(value: &'a Value, namespace: &'a str) -> Self {
        Self {
            group: match text(value, "group", GROUP) {
                "core" => "",
                group => group,
            },
            kind: text(value, "kind", "Gateway"),
            namespace: text(value, "namespace", namespace),
            name: text(value, "name", ""),
            section: text(value, "sectionName", ""),
            port: value.get("port").and_then(Value::as_i64),
        }
    }
}

impl fmt::Display for Parent<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}/{}", self.kind, self.namespace, self.name)?;
        match self.section {
            "" => Ok(()),
            section => write!(f, " ({section})"),
        }
    }
}

/// Whether one parent carries the route. More than one controller may answer for a parent that is no Gateway: the best
/// answer counts, for a mesh that was removed leaves its last one behind.
fn carried(route: &Value, parent: &Parent<'_>, namespace: &str, parents: &impl Parents) -> Effective {
    let is_gateway = parent.group == GROUP && parent.kind == "Gateway";
    let controller = is_gateway.then(|| parents.controller_name(parent.namespace, parent.name));
    let Some(controller) = controller.map_or(Some(None), |known| known.map(Some)) else {
        return Effective::No(format!("{parent} or its GatewayClass does not exist"));
    };
    let generation = route.pointer("/metadata/generation").and_then(Value::as_i64);
    let mut answer = None;
    for entry in list(route, "/status/parents") {
        let author = text(entry, "controllerName", "");
        let is_of = entry.get("parentRef").is_some_and(|value| {
            let mut of = Parent::read(value, namespace);
            if QUIRKS.contains(&(author, Quirk::OmitsPort)) {
                of.port = of.port.or(parent.port);
            }
            of == *parent
        });
        if !is_of || controller.as_deref().is_some_and(|controller| controller != author) {
            continue;
        }
        answer = match (answer, confirmed(entry, author, parent, generation)) {
            (_, Effective::Yes) => return Effective::Yes,
            (None | Some(Effective::No(_)), next) => Some(next),
            (earlier, _) => earlier,
        };
    }
    answer.unwrap_or_else(|| Effective::No(format!("{parent} has not answered yet")))
}

/// What one controller says.
fn confirmed(entry: &Value, author: &str, parent: &Parent<'_>, generation: Option<i64>) -> Effective {
    let conditions = list(entry, "/conditions");
    let condition = |kind| conditions.iter().find(|condition| text(condition, "type", "") == kind);
    let observed = |condition: &Value| condition.get("observedGeneration").and_then(Value::as_i64);
    let has_generation = conditions.iter().any(|condition| observed(condition).is_some_and(|g| g > 0));
    for kind in ["Accepted", "ResolvedRefs"] {
        let Some(condition) = condition(kind) else {
            return Effective::No(format!("{parent} does not say {kind} yet"));
        };
        if has_generation && (generation.is_none() || observed(condition) != generation) {
            return Effective::No(format!(
                "{parent} says {kind} of generation {}, the route is at {}",
                observed(condition).unwrap_or_default(),
                generation.unwrap_or_default()
            ));
        }
        let status = text(condition, "status", "Unknown");
        if status != "True" {
            let reason = text(condition, "reason", "no reason");
            let message = Some(text(condition, "message", "")).filter(|message| !message.is_empty());
            let message = message.map(|message| format!(": {message}")).unwrap_or_default();
            return Effective::No(format!("{parent} says {kind} {status} ({reason}){message}"));
        }
    }
    // A route that is in part invalid may be carried as it was before.
    let in_part = condition("PartiallyInvalid").is_some_and(|c| text(c, "status", "") == "True");
    if in_part || !has_generation || QUIRKS.contains(&(author, Quirk::StampsGeneration)) {
        return Effective::Unverifiable;
    }
    Effective::Yes
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Gateways of one class: any, but for those of this name.
    struct Class(&'static str);

    impl Parents for Class {
        fn controller_name(&self, _: &str, gateway: &str) -> Option<String> {
            (gateway != "missing").then(|| self.0.to_owned())
        }
    }

    const EDGE: Class = Class("traefik.io/gateway-controller");

    fn traefik() -> Value {
        serde_json::from_str(include_str!("recorded/traefik.json")).unwrap()
    }

    fn why(route: &Value) -> String {
        let answer = effective(route, "shop", &EDGE);
        let Effective::No(why) = answer else { panic!("{answer:?}") };
        why
    }

    #[test]
    fn each_implementation_is_read_by_its_own_habits() {
        let recorded = [
            ("traefik.io/gateway-controller", include_str!("recorded/traefik.json"), Effective::Yes),
            // An entry of a removed parent stays.
            (
                "gateway.envoyproxy.io/gatewayclass-controller",
                include_str!("recorded/envoy-gateway.json"),
                Effective::Yes,
            ),
            ("istio.io/gateway-controller", include_str!("recorded/istio.json"), Effective::Yes),
            ("io.cilium/gateway-controller", include_str!("recorded/cilium-mesh.json"), Effective::Yes),
            // The port is left out, the namespace written out.
            (
                "gateway.nginx.org/nginx-gateway-controller",
                include_str!("recorded/nginx-gateway-fabric.json"),
                Effective::Yes,
            ),
            // The generation is the object's.
            ("kgateway.dev/kgateway", include_str!("recorded/kgateway.json"), Effective::Unverifiable),
            // No generation; "core" for the core group.
            ("linkerd.io/policy-controller", include_str!("recorded/linkerd.json"), Effective::Unverifiable),
        ];
        for (controller, status, expected) in recorded {
            let mut route: Value = serde_json::from_str(status).unwrap();
            assert_eq!(effective(&route, "shop", &Class(controller)), expected, "{controller}");
            route["status"]["parents"] = json!([]);
            assert!(
                matches!(effective(&route, "shop", &Class(controller)), Effective::No(_)),
                "{controller}"
            );
        }
    }

    #[test]
    fn an_older_generation_is_not_effective() {
        let mut route = traefik();
        route["metadata"]["generation"] = json!(3);
        assert_eq!(why(&route), "Gateway gateway/davylamp says Accepted of generation 2, the route is at 3");
    }

    #[test]
    fn an_unresolved_backend_is_named() {
        let mut route = traefik();
        route["status"]["parents"][0]["conditions"][1] = json!({
            "type": "ResolvedRefs", "status": "False", "reason": "BackendNotFound", "observedGeneration": 2,
            "message": "Cannot load HTTPBackendRef shop/missing: getting service: service \"missing\" not found",
        });
        assert_eq!(
            why(&route),
            "Gateway gateway/davylamp says ResolvedRefs False (BackendNotFound): Cannot load HTTPBackendRef \
             shop/missing: getting service: service \"missing\" not found"
        );
    }

    #[test]
    fn a_condition_that_is_not_yet_there_is_not_true() {
        let mut route = traefik();
        route["status"]["parents"][0]["conditions"].as_array_mut().unwrap().pop();
        assert_eq!(why(&route), "Gateway gateway/davylamp does not say ResolvedRefs yet");
    }

    #[test]
    fn only_the_controller_of_the_class_speaks_for_a_gateway() {
        let mut route = traefik();
        route["status"]["parents"][0]["controllerName"] = json!("somebody.else/controller");
        assert_eq!(why(&route), "Gateway gateway/davylamp has not answered yet");
    }

    #[test]
    fn every_parent_must_say_so() {
        let mut route = traefik();
        let edge = route["spec"]["parentRefs"][0].clone();
        for (field, value, expected) in [
            ("name", json!("missing"), "Gateway gateway/missing or its GatewayClass does not exist"),
            ("sectionName", json!("https"), "Gateway gateway/davylamp (https) has not answered yet"),
            ("port", json!(8443), "Gateway gateway/davylamp has not answered yet"),
            ("namespace", json!("other"), "Gateway other/davylamp has not answered yet"),
        ] {
            let mut second = edge.clone();
            second[field] = value;
            route["spec"]["parentRefs"] = json!([edge, second]);
            assert_eq!(why(&route), expected);
        }
        route["spec"]["parentRefs"] = json!([]);
        assert!(why(&route).starts_with("it has no parentRefs"));
    }

    #[test]
    fn a_mesh_that_was_removed_does_not_outvote_the_one_in_use() {
        let mut route: Value = serde_json::from_str(include_str!("recorded/cilium-mesh.json")).unwrap();
        let mut removed = route["status"]["parents"][0].clone();
        removed["controllerName"] = json!("removed.example/mesh");
        removed["conditions"][0]["observedGeneration"] = json!(2);
        for order in [0, 1] {
            let mut both = route.clone();
            both["status"]["parents"].as_array_mut().unwrap().insert(order, removed.clone());
            assert_eq!(effective(&both, "shop", &EDGE), Effective::Yes);
        }
        route["status"]["parents"] = json!([removed]);
        assert_eq!(why(&route), "Service shop/shop says Accepted of generation 2, the route is at 7");
    }

    #[test]
    fn a_route_that_is_in_part_invalid_is_not_taken_as_verified() {
        let mut route = traefik();
        let partial = json!({"type": "PartiallyInvalid", "status": "True", "observedGeneration": 2});
        route["status"]["parents"][0]["conditions"].as_array_mut().unwrap().push(partial);
        assert_eq!(effective(&route, "shop", &EDGE), Effective::Unverifiable);
    }
}

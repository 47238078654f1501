//! What a server refuses in objects of built-in kinds. Takes an object with its defaults, and what it was before; gives
//! problems in the words of a real server.

use std::net::IpAddr;

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::refusal::{Problem, Wrong};
use crate::walk::Walk;

/// What is wrong with an object.
pub(crate) fn problems(kind: &Kind, new: &Value, old: Option<&Value>) -> Vec<Problem> {
    let mut found = Vec::new();
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Service") => service(new, old, &mut found),
        ("", "Pod") => {
            pod_spec(new.get("spec"), "spec", &mut found);
        }
        ("apps", "ReplicaSet" | "Deployment") => workload(new, old, &mut found),
        ("apps", "ControllerRevision") => immutable(new, old, "/data", "data", &mut found),
        ("discovery.k8s.io", "EndpointSlice") => endpoint_slice(new, old, &mut found),
        ("coordination.k8s.io", "Lease") => lease(new, &mut found),
        ("events.k8s.io", "Event") => event(new, old, &mut found),
        _ => {}
    }
    found
}

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.path(path).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(object: &'a Value, path: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    object.path(path).and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn immutable(new: &Value, old: Option<&Value>, path: &str, field: &str, found: &mut Vec<Problem>) {
    let Some(old) = old else { return };
    if new.path(path) != old.path(path) {
        let value = new.path(path).cloned().unwrap_or_default();
        found.push(Problem::invalid(field, value, "field is immutable"));
    }
}

fn port(number: Option<&Value>, field: &str, found: &mut Vec<Problem>) {
    match number.and_then(Value::as_i64) {
        None => found.push(Problem::required(field, "")),
        Some(number) if !(1..=65_535).contains(&number) => {
            let detail = "must be between 1 and 65535, inclusive";
            found.push(Problem::invalid(field, number.into(), detail));
        }
        Some(_) => {}
    }
}

fn service(new: &Value, old: Option<&Value>, found: &mut Vec<Problem>) {
    let external = text(new, "/spec/type") == "ExternalName";
    let headless = text(new, "/spec/clusterIP") == "None";
    let ports: Vec<_> = list(new, "/spec/ports").collect();
    if ports.is_empty() && !external && !headless {
        found.push(Problem::required("spec.ports", ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for (index, one) in &ports {
        let field = format!("spec.ports[{index}]");
        let name = text(one, "/name");
        if name.is_empty() && ports.len() > 1 {
            found.push(Problem::required(format!("{field}.name"), ""));
        } else if !name.is_empty() && names.contains(&name) {
            let field = format!("{field}.name");
            found.push(Problem {
                what: Wrong::Duplicate,
                field,
                value: Some(name.into()),
                detail: String::new(),
            });
        }
        names.push(name);
        port(one.get("port"), &format!("{field}.port"), found);
    }
    if old.is_some_and(|old| text(old, "/spec/type") != "ExternalName") && !external {
        immutable(new, old, "/spec/clusterIP", "spec.clusterIP", found);
    }
}

fn workload(new: &Value, old: Option<&Value>, found: &mut Vec<Problem>) {
    if let Some(replicas) = new.path("/spec/replicas").and_then(Value::as_i64).filter(|r| *r < 0) {
        let detail = "must be greater than or equal to 0";
        found.push(Problem::invalid("spec.replicas", replicas.into(), detail));
    }
    let selector = new.path("/spec/selector");
    let wanted = selector.and_then(|s| s.get("matchLabels")).and_then(Value::as_object);
    let labels = new.path("/spec/template/metadata/labels");
    if selector.is_none() {
        found.push(Problem::required("spec.selector", ""));
    } else if selector.is_some_and(|s| *s == json!({})) {
        let detail = "empty selector is invalid for deployment";
        found.push(Problem::invalid("spec.selector", json!({}), detail));
    } else if wanted.into_iter().flatten().any(|(key, value)| labels.and_then(|l| l.get(key)) != Some(value))
    {
        let value = labels.cloned().unwrap_or(Value::Null);
        let detail = "`selector` does not match template `labels`";
        found.push(Problem::invalid("spec.template.metadata.labels", value, detail));
    }
    pod_spec(new.path("/spec/template/spec"), "spec.template.spec", found);
    let policy = text(new, "/spec/template/spec/restartPolicy");
    if !policy.is_empty() && policy != "Always" {
        found.push(Problem {
            what: Wrong::Unsupported,
            field: "spec.template.spec.restartPolicy".to_owned(),
            value: Some(policy.into()),
            detail: "supported values: \"Always\"".to_owned(),
        });
    }
    immutable(new, old, "/spec/selector", "spec.selector", found);
}

fn pod_spec(spec: Option<&Value>, field: &str, found: &mut Vec<Problem>) {
    let nothing = Value::Null;
    let spec = spec.unwrap_or(&nothing);
    if list(spec, "/containers").next().is_none() {
        found.push(Problem::required(format!("{field}.containers"), ""));
    }
    let mut names: Vec<&str> = Vec::new();
    for kind in ["initContainers", "containers"] {
        for (index, container) in list(spec, &format!("/{kind}")) {
            let field = format!("{field}.{kind}[{index}]");
            let name = text(container, "/name");
            if name.is_empty() {
                found.push(Problem::required(format!("{field}.name"), ""));
            } else if names.contains(&name) {
                let field = format!("{field}.name");
                let value = Some(name.into());
                found.push(Problem { what: Wrong::Duplicate, field, value, detail: String::new() });
            } else if !is_label(name) {
                found.push(Problem::invalid(format!("{field}.name"), name.into(), LABEL));
            }
            names.push(name);
            if text(container, "/image").is_empty() {
                found.push(Problem::required(format!("{field}.image"), ""));
            }
            for (index, one) in list(container, "/ports") {
                let field = format!("{field}.ports[{index}].containerPort");
                port(one.get("containerPort"), &field, found);
            }
            let volumes: Vec<&str> =
                list(spec, "/volumes").map(|(_, volume)| text(volume, "/name")).collect();
            for (index, mount) in list(container, "/volumeMounts") {
                let volume = text(mount, "/name");
                if !volumes.contains(&volume) {
                    found.push(Problem {
                        what: Wrong::NotFound,
                        field: format!("{field}.volumeMounts[{index}].name"),
                        value: Some(volume.into()),
                        detail: String::new(),
                    });
                }
            }
        }
    }
}

const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";

fn is_label(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= 63
        && name.starts_with(fits)
        && name.ends_with(fits)
        && name.chars().all(|c| fits(c) || c == '-')
}

fn endpoint_slice(new: &Value, old: Option<&Value>, found: &mut Vec<Problem>) {
    let family = text(new, "/addressType");
    if family.is_empty() {
        found.push(Problem::required("addressType", ""));
    }
    immutable(new, old, "/addressType", "addressType", found);
    for (index, endpoint) in list(new, "/endpoints") {
        let field = format!("endpoints[{index}].addresses");
        let mut addresses = list(endpoint, "/addresses").peekable();
        if addresses.peek().is_none() {
            found.push(Problem::required(&field, "must contain at least 1 address"));
        }
        for (index, address) in addresses {
            let (field, value) = (format!("{field}[{index}]"), address.clone());
            let mut bad = |detail: &str| found.push(Problem::invalid(&field, value.clone(), detail));
            if family == "FQDN" {
                continue;
            }
            match address.as_str().and_then(|text| text.parse::<IpAddr>().ok()) {
                None => bad("must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)"),
                Some(ip) if ip.is_unspecified() => bad(&format!("may not be unspecified ({ip})")),
                Some(ip) if ip.is_loopback() => {
                    bad("may not be in the loopback range (127.0.0.0/8, ::1/128)");
                }
                Some(IpAddr::V4(ip)) if ip.is_link_local() => {
                    bad("may not be in the link-local range (169.254.0.0/16, fe80::/10)");
                }
                Some(_) => {}
            }
        }
    }
}

fn lease(new: &Value, found: &mut Vec<Problem>) {
    let number = |field: &str| new.path(&format!("/spec/{field}")).and_then(Value::as_i64);
    if let Some(seconds) = number("leaseDurationSeconds").filter(|seconds| *seconds <= 0) {
        found.push(Problem::invalid("spec.leaseDurationSeconds", seconds.into(), "must be greater than 0"));
    }
    if let Some(count) = number("leaseTransitions").filter(|count| *count < 0) {
        let detail = "must be greater than or equal to 0";
        found.push(Problem::invalid("spec.leaseTransitions", count.into(), detail));
    }
}

fn event(new: &Value, old: Option<&Value>, found: &mut Vec<Problem>) {
    if old.is_some() || !text(new, "/deprecatedFirstTimestamp").is_empty() {
        return;
    }
    for field in ["eventTime", "reportingController", "reportingInstance", "action", "reason"] {
        if text(new, &format!("/{field}")).is_empty() {
            found.push(Problem::required(field, ""));
        }
    }
    if text(new, "/note").len() > 1024 {
        let value = new.get("note").cloned().unwrap_or_default();
        found.push(Problem::invalid("message", value, "can have at most 1024 characters"));
    }
    let type_ = text(new, "/type");
    if !matches!(type_, "Normal" | "Warning") {
        found.push(Problem::invalid("type", type_.into(), "has invalid value: "));
    }
    let (regarding, own) = (text(new, "/regarding/namespace"), text(new, "/metadata/namespace"));
    if own != regarding && !(regarding.is_empty() && own == "default") {
        let detail = "does not match event.namespace";
        found.push(Problem::invalid("involvedObject.namespace", regarding.into(), detail));
    }
}

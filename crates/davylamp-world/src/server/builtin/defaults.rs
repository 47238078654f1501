//! Defaults of built-in kinds, and what a server fills in when an object is created.

use serde_json::{Map, Value, json};

use crate::kinds::Kind;
use crate::walk::Walk;

/// Adds what a user may leave out.
pub(crate) fn default(kind: &Kind, object: &mut Value) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Service") => service(object),
        ("", "Pod") => {
            if let Some(spec) = object.get_mut("spec") {
                pod_spec(spec);
            }
        }
        ("", "Secret") => {
            secret(object);
        }
        ("apps", "ReplicaSet") => {
            set(object, "/spec", "replicas", 1.into());
            template(object);
        }
        ("apps", "Deployment") => {
            set(object, "/spec", "replicas", 1.into());
            set(object, "/spec", "revisionHistoryLimit", 10.into());
            set(object, "/spec", "progressDeadlineSeconds", 600.into());
            set(object, "/spec", "strategy", json!({"type": "RollingUpdate"}));
            if object.path("/spec/strategy/type").is_some_and(|t| t == "RollingUpdate") {
                let rolling = json!({"maxSurge": "25%", "maxUnavailable": "25%"});
                set(object, "/spec/strategy", "rollingUpdate", rolling);
            }
            template(object);
        }
        ("discovery.k8s.io", "EndpointSlice") => {
            for port in list(object, "/ports") {
                add(port, "name", "".into());
                add(port, "protocol", "TCP".into());
            }
        }
        ("", "Namespace") => {
            let name = object.path("/metadata/name").cloned().unwrap_or_default();
            set(object, "/metadata", "labels", json!({}));
            set(object, "/metadata/labels", "kubernetes.io/metadata.name", name);
            set(object, "", "spec", json!({}));
            set(object, "/spec", "finalizers", json!(["kubernetes"]));
        }
        _ => {}
    }
}

/// What the server itself writes into a new object; `number` is another one for each object.
pub(crate) fn fill(kind: &Kind, object: &mut Value, number: u64) {
    match (kind.group.as_str(), kind.kind.as_str()) {
        ("", "Service") => {
            let headless = object.path("/spec/clusterIP").is_some_and(|ip| ip == "None");
            let external = object.path("/spec/type").is_some_and(|type_| type_ == "ExternalName");
            if !external {
                let ip = if headless {
                    "None".to_owned()
                } else {
                    format!("10.96.{}.{}", number / 250 % 250, number % 250 + 1)
                };
                set(object, "/spec", "clusterIP", ip.clone().into());
                set(object, "/spec", "clusterIPs", json!([ip]));
                set(object, "/spec", "ipFamilies", json!(["IPv4"]));
                set(object, "/spec", "ipFamilyPolicy", "SingleStack".into());
            }
            set(object, "", "status", json!({"loadBalancer": {}}));
        }
        ("", "Pod") => set(object, "", "status", json!({"phase": "Pending", "qosClass": "BestEffort"})),
        ("", "Namespace") => set(object, "", "status", json!({"phase": "Active"})),
        ("apps", "ReplicaSet") => set(object, "", "status", json!({"replicas": 0})),
        ("apps", "Deployment") => set(object, "", "status", json!({})),
        _ => {}
    }
}

fn service(object: &mut Value) {
    set(object, "", "spec", json!({}));
    set(object, "/spec", "type", "ClusterIP".into());
    set(object, "/spec", "sessionAffinity", "None".into());
    if object.path("/spec/type").is_some_and(|type_| type_ != "ExternalName") {
        set(object, "/spec", "internalTrafficPolicy", "Cluster".into());
    }
    for port in list(object, "/spec/ports") {
        add(port, "protocol", "TCP".into());
        if let Some(number) = port.get("port").cloned() {
            add(port, "targetPort", number);
        }
    }
}

fn secret(object: &mut Value) {
    use base64::Engine;
    set(object, "", "type", "Opaque".into());
    let Some(texts) = object.as_object_mut().and_then(|fields| fields.remove("stringData")) else { return };
    set(object, "", "data", json!({}));
    for (name, text) in texts.as_object().into_iter().flatten() {
        let text = base64::engine::general_purpose::STANDARD.encode(text.as_str().unwrap_or_default());
        if let Some(data) = object.get_mut("data").and_then(Value::as_object_mut) {
            data.insert(name.clone(), text.into());
        }
    }
}

fn template(object: &mut Value) {
    set(object, "/spec/template", "metadata", json!({}));
    if let Some(spec) = object.pointer_mut("/spec/template/spec") {
        pod_spec(spec);
    }
}

fn pod_spec(spec: &mut Value) {
    for (name, value) in [
        ("restartPolicy", json!("Always")),
        ("dnsPolicy", json!("ClusterFirst")),
        ("schedulerName", json!("default-scheduler")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("securityContext", json!({})),
    ] {
        add(spec, name, value);
    }
    for containers in ["/containers", "/initContainers"] {
        for container in list(spec, containers) {
            let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
            let name = image.rsplit('/').next().unwrap_or_default();
            let latest = !image.contains('@') && (!name.contains(':') || name.ends_with(":latest"));
            let pull = if latest { "Always" } else { "IfNotPresent" };
            add(container, "imagePullPolicy", pull.into());
            add(container, "terminationMessagePath", "/dev/termination-log".into());
            add(container, "terminationMessagePolicy", "File".into());
            add(container, "resources", json!({}));
            for port in list(container, "/ports") {
                add(port, "protocol", "TCP".into());
            }
            for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
                if let Some(probe) = container.get_mut(probe) {
                    for (name, value) in [
                        ("timeoutSeconds", 1),
                        ("periodSeconds", 10),
                        ("successThreshold", 1),
                        ("failureThreshold", 3),
                    ] {
                        add(probe, name, value.into());
                    }
                }
            }
        }
    }
}

fn list<'a>(object: &'a mut Value, path: &str) -> impl Iterator<Item = &'a mut Value> {
    object.pointer_mut(path).and_then(Value::as_array_mut).into_iter().flatten()
}

fn set(object: &mut Value, path: &str, name: &str, value: Value) {
    if let Some(place) = object.pointer_mut(path) {
        add(place, name, value);
    }
}

fn add(place: &mut Value, name: &str, value: Value) {
    if let Some(fields) = place.as_object_mut() {
        let fields: &mut Map<String, Value> = fields;
        fields.entry(name).or_insert(value);
    }
}

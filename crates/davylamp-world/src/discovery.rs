//! What the server says about itself: its version, its groups and their kinds, as clients ask before they do anything.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::kinds::{Kind, Kinds};

/// The newest version of Kubernetes that is supported.
const VERSION: (&str, &str) = ("1", "37");

/// None when the path is no question of this kind.
pub(crate) fn answer(kinds: &Kinds, path: &str) -> Option<Value> {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
    match parts.as_slice() {
        ["version"] => Some(version()),
        ["healthz" | "livez" | "readyz"] => Some("ok".into()),
        ["api"] => Some(json!({"kind": "APIVersions", "versions": ["v1"], "serverAddressByClientCIDRs": []})),
        ["apis"] => {
            let groups: Vec<Value> =
                versions(kinds).into_iter().map(|(name, list)| group(name, &list)).collect();
            Some(json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}))
        }
        ["api", version] => resources(kinds, "", version),
        ["apis", name] => {
            let list = versions(kinds).remove(*name)?;
            let mut group = group(name, &list);
            group["kind"] = "APIGroup".into();
            group["apiVersion"] = "v1".into();
            Some(group)
        }
        ["apis", group, version] => resources(kinds, group, version),
        _ => None,
    }
}

fn version() -> Value {
    let (major, minor) = VERSION;
    json!({
        "major": major, "minor": minor, "gitVersion": format!("v{major}.{minor}.0-davylamp"), "gitCommit": "",
        "gitTreeState": "clean", "buildDate": "1970-01-01T00:00:00Z", "goVersion": "", "compiler": "rustc",
        "platform": "",
    })
}

/// Of each group but the core.
fn versions(kinds: &Kinds) -> BTreeMap<&str, Vec<&str>> {
    let mut groups: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for kind in kinds.all().filter(|kind| !kind.group.is_empty()) {
        let list = groups.entry(&kind.group).or_default();
        if !list.contains(&kind.version.as_str()) {
            list.push(&kind.version);
        }
    }
    groups
}

fn group(name: &str, versions: &[&str]) -> Value {
    let version = |version: &&str| json!({"groupVersion": format!("{name}/{version}"), "version": version});
    // Of several, the last in the order of names: v1 after its betas' time.
    let preferred = versions.last().map(version).unwrap_or_default();
    json!({"name": name, "versions": versions.iter().map(version).collect::<Vec<_>>(), "preferredVersion": preferred})
}

fn resources(kinds: &Kinds, group: &str, version: &str) -> Option<Value> {
    let of_it: Vec<&Kind> =
        kinds.all().filter(|k| k.group == group && k.version == version).map(AsRef::as_ref).collect();
    let first = of_it.first()?;
    let list: Vec<Value> = of_it.iter().flat_map(|kind| resource(kind)).collect();
    Some(json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": first.api_version(),
                "resources": list}))
}

fn resource(kind: &Kind) -> Vec<Value> {
    let verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
    let mut itself = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.namespaced, "kind": kind.kind,
        "verbs": verbs,
    });
    if !kind.short.is_empty() {
        itself["shortNames"] = json!(kind.short);
    }
    if !kind.categories.is_empty() {
        itself["categories"] = json!(kind.categories);
    }
    let mut all = vec![itself];
    let below = ["get", "patch", "update"];
    if kind.status {
        all.push(json!({"name": format!("{}/status", kind.plural), "singularName": "",
                        "namespaced": kind.namespaced, "kind": kind.kind, "verbs": below}));
    }
    if kind.scale.is_some() {
        all.push(
            json!({"name": format!("{}/scale", kind.plural), "singularName": "", "group": "autoscaling",
                        "version": "v1", "namespaced": kind.namespaced, "kind": "Scale", "verbs": below}),
        );
    }
    all
}

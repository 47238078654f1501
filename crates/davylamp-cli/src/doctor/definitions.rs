//! Whether the API server serves our kinds as this program has them, and those of the Gateway API. Takes what was read,
//! gives findings.

use std::collections::BTreeSet;

use davylamp_api::k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion,
};
use davylamp_api::labels;
use serde_json::Value;

use super::cluster::Answer;
use super::finding::{Check, Finding, counted};

pub(super) const OURS: &str = "davylamp.dev/v1alpha1";
pub(super) const GATEWAY_API: &str = "gateway.networking.k8s.io/v1";

/// Of the Gateway API, what the controller watches.
const WATCHED: [(&str, &str); 3] =
    [("httproutes", "HTTPRoute"), ("gateways", "Gateway"), ("gatewayclasses", "GatewayClass")];
/// The newest that the controller is tested with.
const INSTALL_GATEWAY_API: &str = "kubectl apply --server-side -f \
    https://github.com/kubernetes-sigs/gateway-api/releases/download/v1.5.1/standard-install.yaml";
const INSTALL: &str = "kubectl apply --server-side -f deploy/crds -f deploy/controller.yaml";
const UPDATE: &str = "kubectl apply --server-side -f deploy/crds";

/// Of our definitions.
pub(super) fn names() -> Vec<String> {
    davylamp_api::crds().into_iter().filter_map(|definition| definition.metadata.name).collect()
}

pub(super) fn ours(
    served: &Answer<BTreeSet<String>>,
    installed: &Answer<Vec<CustomResourceDefinition>>,
) -> Vec<Finding> {
    let served = match served {
        Ok(served) => served,
        Err(why) => {
            return vec![Finding::unread(Check::Definitions, &format!("list the kinds of {OURS}"), why)];
        }
    };
    let wanted = davylamp_api::crds();
    let plural = |definition: &CustomResourceDefinition| definition.spec.names.plural.clone();
    let missing: Vec<_> = wanted.iter().map(plural).filter(|plural| !served.contains(plural)).collect();
    if missing.len() == wanted.len() {
        let seen = format!("Davylamp is not installed: no kind of {OURS} is served");
        let next = "an admin installs it, from a checkout of this version:";
        return vec![Finding::problem(Check::Definitions, seen, next).with_command(INSTALL)];
    }
    let mut findings = Vec::new();
    if !missing.is_empty() {
        let seen = format!("not served at {OURS}: {}{}", missing.join(", "), unestablished(installed));
        let next = "the controller waits for them; apply all definitions, from a checkout of this version:";
        findings.push(Finding::problem(Check::Definitions, seen, next).with_command(UPDATE));
    }
    let kinds = format!("{} of {OURS}", counted(wanted.len() - missing.len(), "kind"));
    match installed {
        Ok(installed) => match different(&wanted, installed) {
            Some(finding) => findings.push(finding),
            None if missing.is_empty() => {
                findings.push(Finding::ok(Check::Definitions, format!("{kinds}, as this program has them")));
            }
            None => {}
        },
        Err(why) => {
            if missing.is_empty() {
                findings.push(Finding::ok(Check::Definitions, kinds));
            }
            let what = "read definitions, so they are not compared with those of this program";
            findings.push(Finding::unread(Check::Definitions, what, why));
        }
    }
    findings
}

/// Why definitions that are there are not served, as far as they say.
fn unestablished(installed: &Answer<Vec<CustomResourceDefinition>>) -> String {
    let conditions = installed.iter().flatten().filter_map(|definition| definition.status.as_ref());
    let conditions = conditions.flat_map(|status| status.conditions.iter().flatten());
    let no = conditions.filter(|condition| condition.status == "False");
    let no = no.filter(|condition| ["Established", "NamesAccepted"].contains(&condition.type_.as_str()));
    let why: BTreeSet<_> = no.filter_map(|condition| condition.message.as_deref()).collect();
    why.into_iter().flat_map(|why| ["; ", why]).collect()
}

/// Where the schemas of this version are not those of this program.
fn different(wanted: &[CustomResourceDefinition], installed: &[CustomResourceDefinition]) -> Option<Finding> {
    let mut how = Vec::new();
    let (mut older, mut newer) = (false, false);
    for wanted in wanted {
        let there = installed.iter().find(|there| there.metadata.name == wanted.metadata.name);
        let (Some(ours), Some(theirs)) = (version(wanted), there.and_then(version)) else { continue };
        if ours.schema == theirs.schema {
            continue;
        }
        let [ours, theirs] = [ours, theirs].map(fields);
        let lacks: Vec<_> = ours.difference(&theirs).collect();
        let has: Vec<_> = theirs.difference(&ours).collect();
        (older, newer) = (older || !lacks.is_empty(), newer || !has.is_empty());
        let plural = &wanted.spec.names.plural;
        how.push(match (lacks.is_empty(), has.is_empty()) {
            (false, _) => format!("{plural} lacks {}", some(&lacks)),
            (true, false) => format!("{plural} has {} that is unknown here", some(&has)),
            (true, true) => format!("{plural} has other rules or descriptions"),
        });
    }
    let seen = format!("not those of this program ({}): {}", env!("CARGO_PKG_VERSION"), how.join("; "));
    if how.is_empty() {
        None
    } else if newer && !older {
        let next = "this program is the older one: use that of the controller's version";
        Some(Finding::warning(Check::Definitions, seen, next))
    } else {
        let next = "fields that a definition lacks are dropped; apply those of the controller's version, from its checkout:";
        Some(Finding::warning(Check::Definitions, seen, next).with_command(UPDATE))
    }
}

fn version(definition: &CustomResourceDefinition) -> Option<&CustomResourceDefinitionVersion> {
    definition.spec.versions.iter().find(|version| version.name == labels::VERSION)
}

/// "spec.analysis.slos and 3 more fields".
fn some(fields: &[&String]) -> String {
    // Those above come with all below them.
    let highest: Vec<_> = fields
        .iter()
        .filter(|field| !fields.iter().any(|other| field.starts_with(&format!("{other}."))))
        .collect();
    match highest.as_slice() {
        [one] => (**one).clone(),
        [first, rest @ ..] => format!("{first} and {}", counted(rest.len(), "more field")),
        [] => String::new(),
    }
}

/// The path of each field of the schema.
fn fields(version: &CustomResourceDefinitionVersion) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let schema = version.schema.as_ref().and_then(|schema| schema.open_api_v3_schema.as_ref());
    walk(&serde_json::to_value(schema).unwrap_or_default(), "", &mut found);
    found
}

fn walk(schema: &Value, path: &str, found: &mut BTreeSet<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        walk(field, &path, found);
        found.insert(path);
    }
    for inner in ["items", "additionalProperties"].into_iter().filter_map(|inner| schema.get(inner)) {
        walk(inner, path, found);
    }
}

pub(super) fn gateway_api(served: &Answer<BTreeSet<String>>) -> Finding {
    let check = Check::GatewayApi;
    match served {
        Ok(served) => {
            let missing: Vec<_> = WATCHED
                .iter()
                .filter(|(plural, _)| !served.contains(*plural))
                .map(|(_, kind)| *kind)
                .collect();
            if missing.is_empty() {
                return Finding::ok(check, format!("HTTPRoute at {GATEWAY_API}"));
            }
            let seen = format!("not served at {GATEWAY_API}: {}", missing.join(", "));
            let next = "the controller waits for it, and moves traffic by nothing else; an admin installs it, with a \
                        gateway that implements it:";
            Finding::problem(check, seen, next).with_command(INSTALL_GATEWAY_API)
        }
        Err(why) => Finding::unread(check, &format!("list the kinds of {GATEWAY_API}"), why),
    }
}

#[cfg(test)]
mod tests {
    use super::super::cluster::Unread;
    use super::super::finding::Level;
    use super::*;

    fn all_served() -> BTreeSet<String> {
        davylamp_api::crds().into_iter().map(|definition| definition.spec.names.plural).collect()
    }

    /// Ours, but for what is done to the schema of `MetricSource`.
    fn changed(change: impl FnOnce(&mut Value)) -> Vec<CustomResourceDefinition> {
        let mut definitions = serde_json::to_value(davylamp_api::crds()).unwrap();
        let sources = definitions.as_array_mut().unwrap().iter_mut();
        let mut sources = sources.filter(|one| one["metadata"]["name"] == "metricsources.davylamp.dev");
        change(&mut sources.next().unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]);
        serde_json::from_value(definitions).unwrap()
    }

    fn one(findings: Vec<Finding>) -> Finding {
        let [finding] = <[Finding; 1]>::try_from(findings).unwrap();
        finding
    }

    #[test]
    fn those_of_this_program_are_fine() {
        assert_eq!(OURS, format!("{}/{}", labels::GROUP, labels::VERSION));
        let finding = one(ours(&Ok(all_served()), &Ok(changed(|_| {}))));
        assert_eq!(finding.level, Level::Ok);
        assert_eq!(finding.seen, "6 kinds of davylamp.dev/v1alpha1, as this program has them");
    }

    #[test]
    fn others_are_told_with_who_is_to_be_updated() {
        let spec = "/properties/spec/properties";
        let older = changed(|schema| {
            schema.pointer_mut(spec).unwrap().as_object_mut().unwrap().remove("authentication");
        });
        let finding = one(ours(&Ok(all_served()), &Ok(older)));
        assert_eq!(finding.level, Level::Warning);
        assert!(finding.seen.ends_with(": metricsources lacks spec.authentication"), "{}", finding.seen);
        assert_eq!(finding.command.as_deref(), Some("kubectl apply --server-side -f deploy/crds"));

        let newer = changed(|schema| {
            schema.pointer_mut(spec).unwrap()["new"] = serde_json::json!({"type": "string"});
        });
        let finding = one(ours(&Ok(all_served()), &Ok(newer)));
        assert!(
            finding.seen.ends_with(": metricsources has spec.new that is unknown here"),
            "{}",
            finding.seen
        );
        assert!(finding.next.contains("this program is the older one"), "{}", finding.next);
        assert_eq!(finding.command, None);

        let reworded = changed(|schema| schema["description"] = "Another.".into());
        let finding = one(ours(&Ok(all_served()), &Ok(reworded)));
        assert!(finding.seen.ends_with("other rules or descriptions"), "{}", finding.seen);
    }

    #[test]
    fn what_is_not_served_is_a_problem() {
        let finding = one(ours(&Ok(BTreeSet::new()), &Ok(Vec::new())));
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.seen.starts_with("Davylamp is not installed"), "{}", finding.seen);

        let mut served = all_served();
        served.remove("rollouts");
        let mut taken = davylamp_api::crds();
        taken.last_mut().unwrap().status = serde_json::from_value(serde_json::json!({
            "conditions": [{"type": "NamesAccepted", "status": "False", "message": "\"dlr\" is already in use"}],
        }))
        .unwrap();
        let finding = one(ours(&Ok(served), &Ok(taken)));
        assert_eq!(finding.seen, "not served at davylamp.dev/v1alpha1: rollouts; \"dlr\" is already in use");
    }

    #[test]
    fn without_the_right_only_the_comparison_is_left_out() {
        let findings = ours(&Ok(all_served()), &Err(Unread::Forbidden));
        let levels: Vec<_> = findings.iter().map(|finding| finding.level).collect();
        assert_eq!(levels, [Level::Ok, Level::LeftOut]);
        assert!(findings[1].seen.starts_with("you may not read definitions"), "{}", findings[1].seen);
    }

    #[test]
    fn the_gateway_api_is_needed_whole() {
        let served = |plurals: &[&str]| Ok(plurals.iter().map(|&plural| plural.to_owned()).collect());
        assert_eq!(gateway_api(&served(&["httproutes", "gateways", "gatewayclasses"])).level, Level::Ok);
        let finding = gateway_api(&served(&["httproutes"]));
        assert_eq!(finding.level, Level::Problem);
        assert_eq!(finding.seen, "not served at gateway.networking.k8s.io/v1: Gateway, GatewayClass");
    }
}

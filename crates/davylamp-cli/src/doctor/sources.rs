//! Whether there is a place where metrics are kept, and whether Rollouts may ask there. Takes what was read; gives findings,
//! and where there is no `MetricSource` one to adapt. Secrets are not looked at: only the controller may read them.

use std::collections::BTreeSet;

use davylamp_api::conditions::ConditionType;
use davylamp_api::source::{Authentication, Header, MetricSource, MetricSourceSpec, Tls};
use davylamp_controller::metrics::suggestion::addresses;
use davylamp_engine::SUGGESTED;
use kube::api::DynamicObject;
use serde_json::Value;

use super::cluster::Answer;
use super::finding::{Check, Finding};

/// Where nothing is known.
const SOMEWHERE: &str = "http://prometheus.monitoring:9090";

/// There is none: one to adapt.
pub(super) fn none(rollouts: &[DynamicObject], services: &Answer<Vec<DynamicObject>>) -> Finding {
    let check = Check::MetricSources;
    let wanted: Vec<_> = rollouts.iter().filter_map(|rollout| Some((rollout, named(rollout)?))).collect();
    if wanted.is_empty() && !rollouts.is_empty() {
        let next = "no Rollout names one: steps advance on pod health alone";
        return Finding::warning(check, "none", next);
    }
    let named: BTreeSet<_> = wanted.iter().map(|(_, name)| *name).collect();
    let seen = match named.len() {
        0 => "none: what Rollouts compare is asked for there".to_owned(),
        _ => format!("none, and Rollouts name {}", list(&named)),
    };
    let (url, why) = address(rollouts, services);
    let mut namespaces: BTreeSet<_> =
        wanted.iter().filter_map(|(rollout, _)| rollout.metadata.namespace.clone()).collect();
    if namespaces.is_empty() {
        namespaces.insert("*".to_owned());
    }
    let spec = MetricSourceSpec {
        url,
        allowed_namespaces: namespaces.into_iter().collect(),
        ..MetricSourceSpec::default()
    };
    let source = MetricSource::new(named.first().copied().unwrap_or("default"), spec);
    let next = format!("{why}; an admin may apply this, with `kubectl apply -f -`:");
    Finding { manifest: serde_yaml::to_string(&source).ok(), ..Finding::problem(check, seen, next) }
}

/// Where metrics may be, and why it is thought so.
fn address(rollouts: &[DynamicObject], services: &Answer<Vec<DynamicObject>>) -> (String, String) {
    if let Some(url) = rollouts.iter().find_map(suggested) {
        return (url.clone(), format!("the controller asked {url}, which answers as Prometheus does"));
    }
    let all = services.iter().flatten().filter_map(|service| {
        let metadata = &service.metadata;
        Some((metadata.namespace.clone()?, metadata.name.clone()?, || service.data["spec"].clone()))
    });
    let mut usual = addresses(all).into_iter();
    let Some(url) = usual.next() else {
        let why = match services {
            Ok(_) => "no Service has a name that is usual for Prometheus or its like: write your address",
            Err(_) => "Services could not be looked through for one: write your address",
        };
        return (SOMEWHERE.to_owned(), why.to_owned());
    };
    let others: Vec<_> = usual.collect();
    let others =
        if others.is_empty() { String::new() } else { format!(", and so may {}", others.join(", ")) };
    let why = format!("by its name {url} may be one, which was not asked{others}");
    (url, why)
}

/// The address that the controller found, if it told one to this Rollout.
fn suggested(rollout: &DynamicObject) -> Option<String> {
    let conditions = rollout.data["status"]["conditions"].as_array()?;
    let told = conditions.iter().find(|one| one["type"] == ConditionType::AnalysisReady.as_str())?;
    let (before, _) = told["message"].as_str()?.split_once(SUGGESTED)?;
    before.rsplit_once("; ").map(|(_, url)| url.to_owned())
}

/// The source that a Rollout names.
fn named(rollout: &DynamicObject) -> Option<&str> {
    rollout.data.pointer("/spec/analysis/source").and_then(Value::as_str)
}

/// There are some; `all` when the Rollouts are those of all namespaces.
pub(super) fn each(sources: &[DynamicObject], rollouts: &[DynamicObject], all: bool) -> Vec<Finding> {
    let check = Check::MetricSources;
    let name = |source: &DynamicObject| source.metadata.name.clone().unwrap_or_default();
    let names: BTreeSet<_> = sources.iter().map(name).collect();
    let names: BTreeSet<_> = names.iter().map(String::as_str).collect();
    let (mut secrets, mut warnings) = (BTreeSet::new(), Vec::new());
    for source in sources {
        let name = name(source);
        let spec: MetricSourceSpec = match serde_json::from_value(source.data["spec"].clone()) {
            Ok(spec) => spec,
            Err(error) => {
                let seen = format!("{name}: spec: {error}");
                let next = "it is of another version than this program";
                warnings.push(Finding::warning(check, seen, next));
                continue;
            }
        };
        let of_it = secrets_of(&spec);
        if let Some(url) = plain(&spec, !of_it.is_empty()) {
            let seen = format!("{name} sends credentials to {url}, where everybody on the way can read them");
            warnings.push(Finding::warning(check, seen, "write https:// where the server takes it"));
        }
        secrets.extend(of_it);
        let namespaces: BTreeSet<_> =
            rollouts.iter().filter_map(|rollout| rollout.metadata.namespace.as_deref()).collect();
        if all && !namespaces.is_empty() && !namespaces.iter().any(|namespace| spec.allows(namespace)) {
            let allowed: BTreeSet<_> = spec.allowed_namespaces.iter().map(String::as_str).collect();
            let seen = format!("{name} allows {}; Rollouts are in {}", list(&allowed), list(&namespaces));
            let next = "an admin adds a namespace to its spec.allowedNamespaces, or nobody can use it";
            warnings.push(Finding::warning(check, seen, next));
        }
    }
    let secrets: BTreeSet<_> = secrets.iter().map(String::as_str).collect();
    let unseen = match secrets.len() {
        0 => String::new(),
        1 => format!("; Secret {} is not looked at", list(&secrets)),
        _ => format!("; Secrets {} are not looked at", list(&secrets)),
    };
    let mut findings = vec![Finding::ok(check, format!("{}{unseen}", list(&names)))];
    findings.append(&mut warnings);
    findings
}

/// The address to which credentials go as everybody can read them.
fn plain(spec: &MetricSourceSpec, secret: bool) -> Option<&str> {
    let token = spec.authentication.as_ref().and_then(|one| one.oauth2.as_ref());
    let token = token.map(|oauth2| oauth2.token_url.as_str());
    let url = Some(spec.url.as_str()).filter(|_| secret || spec.authentication.is_some());
    [url, token].into_iter().flatten().find(|url| url.starts_with("http://"))
}

/// The names of the Secrets that the controller reads for it.
fn secrets_of(spec: &MetricSourceSpec) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut of_tls = |Tls { ca, client_certificate, server_name: _ }: &Tls| {
        names.extend(ca.as_ref().and_then(|ca| ca.secret.as_ref()).map(|secret| secret.name.clone()));
        names.extend(client_certificate.clone());
    };
    spec.tls.iter().for_each(&mut of_tls);
    let Authentication { basic, bearer, oauth2 } = spec.authentication.clone().unwrap_or_default();
    oauth2.iter().filter_map(|oauth2| oauth2.tls.as_ref()).for_each(of_tls);
    names.extend(basic.map(|basic| basic.password.name));
    names.extend(bearer.map(|bearer| bearer.token.name));
    names.extend(oauth2.map(|oauth2| oauth2.client_secret.name));
    let headers = spec.headers.iter().flatten();
    names.extend(headers.filter_map(|Header { secret, .. }| Some(secret.as_ref()?.name.clone())));
    names
}

/// "a, b and 3 more".
fn list(names: &BTreeSet<&str>) -> String {
    const MOST: usize = 5;
    let told = names.iter().take(MOST).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(MOST) {
        0 => told,
        more => format!("{told} and {more} more"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::cluster::Unread;
    use super::super::finding::Level;
    use super::super::rollouts::rollout;
    use super::*;

    fn object(kind: &str, namespace: Option<&str>, name: &str, spec: &Value) -> DynamicObject {
        let metadata = json!({"name": name, "namespace": namespace});
        serde_json::from_value(json!({"apiVersion": "v1", "kind": kind, "metadata": metadata, "spec": spec}))
            .unwrap()
    }

    fn source(name: &str, spec: &Value) -> DynamicObject {
        object("MetricSource", None, name, spec)
    }

    fn spec_of(finding: &Finding) -> Value {
        serde_yaml::from_str::<Value>(finding.manifest.as_deref().unwrap()).unwrap()["spec"].clone()
    }

    #[test]
    fn what_the_controller_found_is_written_down_for_all_who_want_it() {
        let message =
            format!("MetricSource prom does not exist; http://mimir.mimir.svc:80/prometheus{SUGGESTED}{{}}");
        let told = json!([{"type": "AnalysisReady", "status": "False", "message": message}]);
        let mut rollouts =
            [rollout("market", "shop", "Healthy", &told), rollout("blog", "blog", "Healthy", &json!([]))];
        rollouts[0].data["spec"]["analysis"]["source"] = "prom".into();
        rollouts[1].data["spec"]["analysis"]["source"] = "prom".into();
        let finding = none(&rollouts, &Ok(Vec::new()));
        assert_eq!((finding.level, finding.seen.as_str()), (Level::Problem, "none, and Rollouts name prom"));
        assert_eq!(
            finding.manifest.as_deref(),
            Some(
                "apiVersion: davylamp.dev/v1alpha1\nkind: MetricSource\nmetadata:\n  name: prom\nspec:\n  \
                 url: http://mimir.mimir.svc:80/prometheus\n  allowedNamespaces:\n  - blog\n  - market\n"
            )
        );
    }

    #[test]
    fn else_services_with_usual_names_are_told() {
        let spec = json!({"selector": {"app": "prometheus"}, "ports": [{"port": 9090}]});
        let service = |name| object("Service", Some("monitoring"), name, &spec);
        let services = ["shop", "prometheus-server", "prometheus-operated"].map(service).to_vec();
        let finding = none(&[], &Ok(services));
        assert!(
            finding.next.contains("prometheus-operated.monitoring.svc:9090 may be one"),
            "{}",
            finding.next
        );
        assert!(
            finding.next.contains("so may http://prometheus-server.monitoring.svc:9090"),
            "{}",
            finding.next
        );
        let expected =
            json!({"url": "http://prometheus-operated.monitoring.svc:9090", "allowedNamespaces": ["*"]});
        assert_eq!(spec_of(&finding), expected);

        let finding = none(&[], &Err(Unread::Forbidden));
        assert!(finding.next.starts_with("Services could not be looked through"), "{}", finding.next);
        assert_eq!(spec_of(&finding)["url"], SOMEWHERE);
    }

    #[test]
    fn nobody_needs_one_where_no_rollout_names_one() {
        let mut without = rollout("market", "shop", "Healthy", &json!([]));
        without.data["spec"] = json!({});
        assert_eq!(none(&[without], &Ok(Vec::new())).level, Level::Warning);
    }

    #[test]
    fn secrets_are_named_and_credentials_by_plain_http_are_a_warning() {
        let key = |name: &str| json!({"name": name, "key": "k"});
        let sources = [
            source("default", &json!({"url": "http://prometheus:9090", "allowedNamespaces": ["*"]})),
            source(
                "plain",
                &json!({"url": "http://mimir", "allowedNamespaces": ["*"], "authentication": {"bearer": {"token": key("a")}}}),
            ),
            source(
                "token",
                &json!({"url": "https://mimir", "allowedNamespaces": ["*"], "tls": {"clientCertificate": "b"},
                       "authentication": {"oauth2": {"tokenUrl": "http://login", "clientId": "x", "clientSecret": key("c")}}}),
            ),
            source(
                "safe",
                &json!({"url": "https://mimir", "allowedNamespaces": ["*"], "headers": [{"name": "X", "secret": key("d")}]}),
            ),
        ];
        let found = each(&sources, &[], true);
        let seen: Vec<_> = found.iter().map(|finding| (finding.level, finding.seen.as_str())).collect();
        assert_eq!(
            seen,
            [
                (Level::Ok, "default, plain, safe, token; Secrets a, b, c, d are not looked at"),
                (
                    Level::Warning,
                    "plain sends credentials to http://mimir, where everybody on the way can read them"
                ),
                (
                    Level::Warning,
                    "token sends credentials to http://login, where everybody on the way can read them"
                ),
            ]
        );
    }

    #[test]
    fn a_source_for_nobody_is_a_warning_where_all_rollouts_are_known() {
        let sources =
            [source("default", &json!({"url": "http://prometheus:9090", "allowedNamespaces": ["shop"]}))];
        let rollouts = [rollout("market", "shop", "Healthy", &json!([]))];
        let found = each(&sources, &rollouts, true);
        assert_eq!(found[1].seen, "default allows shop; Rollouts are in market");
        assert_eq!(each(&sources, &rollouts, false).len(), 1);
        assert_eq!(each(&sources, &[], true).len(), 1);
        assert_eq!(each(&[source("odd", &json!({"url": 1}))], &[], true)[1].level, Level::Warning);
    }
}

//! What a gateway or a mesh counts for many pods: which of its series are the canary's, and which the baseline's.
//!
//! Takes the names of both cohorts and gives matchers, never without the namespace. Takes the series that were answered and
//! gives them as if each target were a pod of its cohort: so increments are taken within one target, and summed by cohort.

use davylamp_api::rollout::{CohortBy, Cohorts, ServiceForm};
use davylamp_engine::expression::Side;
use davylamp_engine::{Named, Names};
use promql_parser::label::{MatchOp, Matcher};

use super::Series;
use super::scope::{GENERATED, Scope, ScopeError, literal, regex};

/// What ingress-nginx names the Service of a canary by.
const NGINX_CANARY: &str = "canary";

/// How the series of a metric tell the cohorts apart.
#[derive(Clone, Debug)]
pub(super) struct Sides {
    label: String,
    canary: Cohort,
    baseline: Cohort,
    /// What the series of both carry: the namespace, if it does not stand in the label.
    also: Vec<Matcher>,
}

#[derive(Clone, Debug)]
struct Cohort {
    /// What the names of its pods begin with.
    pods: String,
    /// The values of the label.
    values: Matcher,
}

impl Sides {
    /// As the metric says it.
    pub(super) fn told(told: &Cohorts, named: &Named, scope: &Scope<'_>) -> Result<Self, ScopeError> {
        let label = told.label.as_deref().unwrap_or("service");
        let namespace_label = told.namespace_label.map_or(scope.namespace_label, |label| label.as_str());
        let namespace = Scope { namespace_label, ..*scope }.namespace();
        let ns = literal(scope.namespace);
        match (told.by, told.form.unwrap_or_default()) {
            (CohortBy::Pod, _) => Self::of_pods(named, scope),
            (CohortBy::Labels, _) => Self::of(label, named, vec![namespace], |names| literal(&names.hash)),
            (CohortBy::Service, ServiceForm::Name) => {
                Self::of(label, named, vec![namespace], |names| literal(&names.service))
            }
            (CohortBy::Service, ServiceForm::Traefik) => {
                Self::of(label, named, Vec::new(), |names| traefik(&ns, &literal(&names.service)))
            }
            (CohortBy::Service, ServiceForm::Nginx) => {
                let service = Matcher::new(MatchOp::Equal, label, &named.baseline.service);
                Self::of(NGINX_CANARY, named, vec![namespace, service], |names| {
                    // Requests to the stable Service have none.
                    let is_canary = names.service == named.canary.service;
                    if is_canary {
                        format!("{ns}-{}-[a-z0-9]+", literal(&names.service))
                    } else {
                        String::new()
                    }
                })
            }
        }
    }

    /// By the names of pods.
    pub(super) fn of_pods(named: &Named, scope: &Scope<'_>) -> Result<Self, ScopeError> {
        Self::of(scope.pod_label, named, vec![scope.namespace()], |names| literal(&names.pods) + GENERATED)
    }

    fn of(
        label: &str,
        named: &Named,
        also: Vec<Matcher>,
        values: impl Fn(&Names) -> String,
    ) -> Result<Self, ScopeError> {
        let cohort = |names: &Names| {
            Ok::<_, ScopeError>(Cohort { pods: names.pods.clone(), values: regex(label, values(names))? })
        };
        Ok(Self {
            label: label.to_owned(),
            canary: cohort(&named.canary)?,
            baseline: cohort(&named.baseline)?,
            also,
        })
    }

    /// The label that tells them apart.
    pub(super) fn label(&self) -> &str {
        &self.label
    }

    /// Of the series of both.
    pub(super) fn matchers(&self) -> Result<Vec<Matcher>, ScopeError> {
        let both = format!("{}|{}", self.canary.values.value, self.baseline.values.value);
        Ok(self.also.iter().cloned().chain([regex(&self.label, both)?]).collect())
    }

    /// Of the series of one.
    pub(super) fn matchers_of(&self, side: Side) -> Vec<Matcher> {
        let cohort = match side {
            Side::Canary => &self.canary,
            Side::Baseline => &self.baseline,
        };
        self.also.iter().chain([&cohort.values]).cloned().collect()
    }

    /// Each target and each value of the label becomes a pod of its cohort; what is of neither is left out.
    pub(super) fn as_pods(&self, series: &[Series], pod_label: &str) -> Vec<Series> {
        let as_pod = |one: &Series| {
            let value = one.labels.get(&self.label).unwrap_or_default();
            let cohort =
                [&self.canary, &self.baseline].into_iter().find(|side| side.values.is_match(value))?;
            let target = one.labels.get(pod_label).filter(|_| self.label != pod_label);
            let target = target.or_else(|| one.labels.get("instance")).unwrap_or_default();
            let pod = format!("{}{target} {value}", cohort.pods);
            let others = one.labels.iter().filter(|(name, _)| *name != self.label && *name != pod_label);
            let labels = others.chain([(pod_label, pod.as_str())]).collect();
            Some(Series { labels, samples: one.samples.clone(), histograms: one.histograms.clone() })
        };
        series.iter().filter_map(as_pod).collect()
    }
}

/// Route, gateway, entry point and rule with a hash, then the Service and its place among the backends, as in 3.7.15; in older
/// ones the Service and its port.
fn traefik(ns: &str, service: &str) -> String {
    format!(
        "(?:httproute-{ns}-[a-z0-9-]+-gw-[a-z0-9-]+-[0-9]+-[0-9a-f]{{20}}-svc-{ns}-{service}-[0-9]+|{ns}-{service}-(?:http-)?[0-9]+)@kubernetesgateway"
    )
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use davylamp_api::rollout::NamespaceLabel;

    use super::*;

    fn sides(told: &Cohorts, namespace: &str, services: [&str; 2]) -> Sides {
        let cohort = |service: &str, hash: &str| Names {
            pods: format!("shop-{hash}-"),
            service: service.to_owned(),
            hash: hash.to_owned(),
        };
        let named = Named { canary: cohort(services[0], "new"), baseline: cohort(services[1], "old") };
        let pods = BTreeSet::new();
        let scope = Scope {
            namespace_label: "namespace",
            namespace,
            pod_label: "pod",
            pods: &pods,
            replica_labels: &[],
            enforced: None,
        };
        Sides::told(told, &named, &scope).unwrap()
    }

    fn by_service(label: &str, form: ServiceForm, namespace_label: Option<NamespaceLabel>) -> Cohorts {
        Cohorts { by: CohortBy::Service, label: Some(label.to_owned()), form: Some(form), namespace_label }
    }

    fn text(matchers: &[Matcher]) -> String {
        matchers.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
    }

    #[test]
    fn series_are_asked_for_within_the_namespace() {
        let shop = |told: &Cohorts| sides(told, "shop", ["web-canary", "web-stable"]);
        let of_traefik =
            format!(r#"service=~"{}|{}""#, traefik("shop", "web-canary"), traefik("shop", "web-stable"));
        for (told, both) in [
            (
                by_service("service", ServiceForm::Name, None),
                r#"namespace="shop",service=~"web-canary|web-stable""#,
            ),
            (
                by_service(
                    "destination",
                    ServiceForm::Name,
                    Some(NamespaceLabel::DestinationServiceNamespace),
                ),
                r#"destination_service_namespace="shop",destination=~"web-canary|web-stable""#,
            ),
            (by_service("service", ServiceForm::Traefik, None), of_traefik.as_str()),
            (
                by_service("exported_service", ServiceForm::Nginx, Some(NamespaceLabel::ExportedNamespace)),
                r#"exported_namespace="shop",exported_service="web-stable",canary=~"shop-web-canary-[a-z0-9]+|""#,
            ),
            (
                Cohorts { by: CohortBy::Labels, label: Some("version".to_owned()), ..Cohorts::default() },
                r#"namespace="shop",version=~"new|old""#,
            ),
        ] {
            let sides = shop(&told);
            assert_eq!(text(&sides.matchers().unwrap()), both, "{told:?}");
            for side in [Side::Canary, Side::Baseline] {
                let one = sides.matchers_of(side);
                assert_eq!(one[..one.len() - 1], sides.also, "{told:?}");
                assert_eq!(one.last().unwrap().name, sides.label);
            }
        }
    }

    /// What is counted for a Service, by all the forms of its name that a gateway may use.
    #[test]
    fn names_of_traefik_are_those_of_this_service_in_this_namespace() {
        let own = |namespace, service| {
            sides(&by_service("service", ServiceForm::Traefik, None), namespace, [service, "other"])
                .canary
                .values
        };
        let shop = own("shop", "web-canary");
        // As Traefik 3.7.15 names it, and as older ones do.
        let now = "httproute-shop-web-gw-shop-gw-ep-web-0-7d3767222d9001cc3a95-svc-shop-web-canary-1@kubernetesgateway";
        for name in
            [now, "shop-web-canary-80@kubernetesgateway", "shop-web-canary-http-8080@kubernetesgateway"]
        {
            assert!(shop.is_match(name), "{name}");
        }
        for (from, to) in [
            ("svc-shop-", "svc-other-"),
            ("httproute-shop-", "httproute-other-"),
            ("web-canary-1", "web-canary-x-1"),
            ("web-canary-1", "web-canary"),
            ("web-canary-1", "web-stable-0"),
            ("-svc-", "-wrr-"),
            ("7d37", "7d3"),
        ] {
            let other = now.replace(from, to);
            assert!(!shop.is_match(&other), "{other}");
        }
        for name in [
            "shop-web-canary-80@kubernetes",
            "shop-web-canary-80@kubernetescrd",
            "shop-web-canary-2-80@kubernetesgateway",
            "shop-web-canary-80-80@kubernetesgateway",
            "myshop-web-canary-80@kubernetesgateway",
            "shop-2-web-canary-80@kubernetesgateway",
            "shop-web-canary-80",
            "shop-web-canary@kubernetesgateway",
            "",
        ] {
            assert!(!shop.is_match(name), "{name}");
        }
        // These two cannot be told apart, and the guide says so.
        let name = "a-b-c-80@kubernetesgateway";
        assert!(own("a-b", "c").is_match(name) && own("a", "b-c").is_match(name));
        assert!(!own("a.b", "c").is_match("axb-c-80@kubernetesgateway"));
    }

    #[test]
    fn targets_of_a_gateway_stay_apart_and_the_rest_is_left_out() {
        let sides = sides(&by_service("service", ServiceForm::Name, None), "shop", ["new", "old"]);
        let series = |labels: &[(&str, &str)]| Series {
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Series::default()
        };
        let pods: Vec<String> = sides
            .as_pods(
                &[
                    series(&[("service", "new"), ("pod", "gw-1"), ("instance", "10.0.0.1:80")]),
                    series(&[("service", "new"), ("instance", "10.0.0.2:80")]),
                    series(&[("service", "old"), ("pod", "gw-1")]),
                    series(&[("service", "newer"), ("pod", "gw-1")]),
                    series(&[("pod", "gw-1")]),
                ],
                "pod",
            )
            .into_iter()
            .map(|one| {
                assert_eq!(one.labels.get("service"), None);
                one.labels["pod"].to_owned()
            })
            .collect();
        assert_eq!(pods, ["shop-new-gw-1 new", "shop-new-10.0.0.2:80 new", "shop-old-gw-1 old"]);
    }
}

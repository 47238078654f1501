//! What hits everybody: nobody is rolled back for it, and a canary that causes it is found.

use davylamp_sim::{Report, Scenario, simulate};
use serde_json::Value;

const INCIDENT: &str = include_str!("../../../../examples/scenarios/incident.yaml");
const INTERFERENCE: &str = include_str!("../../../../examples/scenarios/interference.yaml");

const SEEDS: u64 = 20;

fn report(scenario: &Scenario, seed: u64) -> Report {
    let report = simulate(scenario, seed, &mut |_| {}).unwrap();
    assert_eq!(report.failures, [""; 0], "seed {seed}: {}: {:#?}", report.message, report.timeline);
    report
}

/// The rules of a run, in their order.
fn rules(report: &Report, run: &str) -> Vec<String> {
    let decisions = report.objects[&format!("RolloutRun/{run}")]["status"]["decisions"].as_array().unwrap();
    decisions.iter().map(|decision| decision["rule"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn an_incident_that_hits_both_versions_is_held_and_survived() {
    let scenario = serde_yaml::from_str(INCIDENT).unwrap();
    for seed in 1..=SEEDS {
        let rules = rules(&report(&scenario, seed), "shop-2-1");
        assert!(rules.iter().any(|rule| rule == "Incident"), "seed {seed}: {rules:?}");
    }
}

#[test]
fn a_version_that_breaks_a_shared_database_is_found_and_paused() {
    let scenario = serde_yaml::from_str(INTERFERENCE).unwrap();
    for seed in 1..=SEEDS {
        let report = report(&scenario, seed);
        let rules = rules(&report, "shop-2-1");
        assert_eq!(rules.iter().filter(|rule| *rule == "Interference").count(), 3, "seed {seed}: {rules:?}");
        let route = &report.objects["HTTPRoute/shop"]["spec"]["rules"][0]["backendRefs"];
        assert_eq!((&route[0]["weight"], &route[1]["weight"]), (&Value::from(9_000), &Value::from(1_000)));
    }
}

/// A Rollout with its Service and route, on trial for at least ten minutes, that is judged by one path.
fn service(name: &str, path: &str, version: u32) -> [String; 3] {
    let service = format!(
        "{{apiVersion: v1, kind: Service, metadata: {{name: {name}}}, spec: {{selector: {{app: {name}}}, \
         ports: [{{port: 80, targetPort: 8080}}]}}}}"
    );
    let backends =
        format!("[{{name: {name}-stable, port: 80}}, {{name: {name}-canary, port: 80, weight: 0}}]");
    let route = format!(
        "{{apiVersion: gateway.networking.k8s.io/v1, kind: HTTPRoute, metadata: {{name: {name}}}, spec: {{\
         parentRefs: [{{name: davylamp, namespace: gateway}}], rules: [{{backendRefs: {backends}}}]}}}}"
    );
    let ratio = format!(
        "{{events: 'http_requests_total{{code=~\"5..\",path=\"{path}\"}}', total: 'http_requests_total{{path=\"{path}\"}}'}}"
    );
    let rollout = format!(
        "{{apiVersion: davylamp.dev/v1alpha1, kind: Rollout, metadata: {{name: {name}}}, spec: {{replicas: 4, \
         selector: {{matchLabels: {{app: {name}}}}}, service: {name}, template: {{metadata: {{labels: {{app: {name}}}}}, \
         spec: {{containers: [{{name: app, image: '{name}:{version}'}}]}}}}, \
         strategy: {{canary: {{steps: [{{weight: 20%}}, {{weight: 50%}}]}}, traffic: [{{gatewayAPI: {{routes: \
         [{{kind: HTTPRoute, name: {name}}}]}}}}]}}, \
         analysis: {{source: default, warmup: 10s, settle: 5s, hold: {{min: 10m}}, metrics: [{{name: errors, ratio: {ratio}}}]}}}}}}"
    );
    [service, route, rollout]
}

#[test]
fn incidents_of_two_services_hold_a_third_until_they_are_over() {
    let [shop_service, shop_route, shop] = service("shop", "/cart", 1);
    let of = |name: &str, version: u32| service(name, "/pay", version);
    let objects: Vec<String> =
        [of("a", 1), of("b", 1)].concat().into_iter().chain([shop_service, shop_route]).collect();
    let text = format!(
        "rollout: {shop}\nobjects:\n- {}\nworld:\n  users: {{requestsPerSecond: 400, endpoints: [{{path: /pay, share: 30%, \
         dependency: bank}}, {{path: /cart, share: 50%}}]}}\n  default: {{errors: 0.5%}}\n  scrapes: {{interval: 5s}}\n\
         events:\n- {{at: 60s, do: {{release: 'shop:2'}}}}\n- {{at: 60s, do: {{apply: {}}}}}\n- {{at: 60s, do: {{apply: {}}}}}\n\
         - {{at: 6m, do: {{incident: {{last: 5m, errors: 20%, dependency: bank}}}}}}\n\
         last: 90m\nexpect: {{outcome: Promoted, phase: Healthy, stable: 'shop:2'}}\n",
        objects.join("\n- "),
        of("a", 2)[2],
        of("b", 2)[2],
    );
    let scenario = serde_yaml::from_str(&text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    let report = report(&scenario, 1);
    let held = rules(&report, "shop-2-1");
    assert_eq!(held.iter().filter(|rule| *rule == "SharedIncident").count(), 1, "{held:?}");
    assert!(!held.iter().any(|rule| rule == "Incident"), "its own baseline is clean: {held:?}");
    for run in ["a-2-1", "b-2-1"] {
        let held = rules(&report, run);
        assert!(held.iter().any(|rule| rule == "Incident"), "{run}: {held:?}");
        assert!(!held.iter().any(|rule| rule == "Regression" || rule == "Interference"), "{run}: {held:?}");
    }
    let conditions = report.objects["Rollout/shop"]["status"]["conditions"].as_array().unwrap();
    let condition = conditions.iter().find(|condition| condition["type"] == "Incident").unwrap();
    assert_eq!(condition["status"], "False");
}

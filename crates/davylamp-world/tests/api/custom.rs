//! Our own kinds: pruning, defaults, limits and rules of their definitions.

use super::*;

async fn problem(body: Value) -> String {
    let client = server().client();
    refused(api(&client, "Rollout").create(&PostParams::default(), &object(body)).await).message
}

#[tokio::test(start_paused = true)]
async fn unknown_fields_go_but_not_those_of_a_template() {
    let client = server().client();
    let mut body = rollout("web");
    body["spec"]["nonsense"] = json!(1);
    let created = create(&api(&client, "Rollout"), body).await;
    assert_eq!(created.data["spec"].get("nonsense"), None);
    assert_eq!(created.data["spec"]["template"]["spec"]["containers"][0]["unknown"]["kept"], true);
}

#[tokio::test(start_paused = true)]
async fn limits_are_named_as_a_real_server_names_them() {
    let with = |path: &str, value: Value| {
        let mut body = rollout("web");
        *body.pointer_mut(path).unwrap() = value;
        body
    };
    for (body, expected) in [
        (
            with("/spec/replicas", json!(10_001)),
            "spec.replicas: Invalid value: 10001: spec.replicas in body should be less than or equal to 10000",
        ),
        (
            with("/spec/replicas", json!("two")),
            "spec.replicas: Invalid value: \"string\": spec.replicas in body must be of type integer: \"string\"",
        ),
        (
            with("/spec/service", json!("Web")),
            "spec.service: Invalid value: \"Web\": spec.service in body should match '^[a-z]([-a-z0-9]*[a-z0-9])?$'",
        ),
        (
            with("/spec/strategy/canary/steps", json!([])),
            "spec.strategy.canary.steps in body should have at least 1 items",
        ),
        (with("/spec", json!({})), "spec.service: Required value"),
    ] {
        let said = problem(body).await;
        assert!(
            said.starts_with("Rollout.davylamp.dev \"web\" is invalid: ") && said.contains(expected),
            "{said}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn rules_hold() {
    let steps = |weights: &[&str]| {
        let mut body = rollout("web");
        body["spec"]["strategy"]["canary"]["steps"] =
            weights.iter().map(|weight| json!({"weight": weight})).collect();
        body
    };
    let mut unselected = rollout("web");
    unselected["spec"]["template"]["metadata"]["labels"] = json!({"other": "x"});
    let mut own = rollout("web");
    own["spec"]["service"] = json!("web-stable");
    let mut deadline = rollout("web");
    deadline["spec"]["progressDeadline"] = json!("1001h");
    let long = rollout(&"a".repeat(46));
    for (body, expected) in [
        (steps(&["50%", "10%"]), "each step's weight must be higher than the one before; sort the steps"),
        (steps(&["0%"]), "write more than 0% and less than 100%"),
        (steps(&["ten"]), "Invalid value: \"ten\": write a percentage from 0% to 100%"),
        (unselected, "<nil>: Invalid value: spec.selector.matchLabels: write each of these labels"),
        (own, "spec.service: <name>-stable is the Service that the controller owns"),
        (deadline, "spec.progressDeadline: Invalid value: \"1001h\": write a duration of at most 1000h"),
        (long, "metadata.name: use at most 45 lower-case letters"),
    ] {
        let said = problem(body).await;
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test(start_paused = true)]
async fn rules_of_changes_compare_with_what_was() {
    let client = server().client();
    let api = api(&client, "Rollout");
    let mut created = create(&api, rollout("web")).await;
    created.data["spec"]["selector"] = json!({"matchLabels": {"app": "web", "x": "y"}});
    created.data["spec"]["template"]["metadata"]["labels"] = json!({"app": "web", "x": "y"});
    let status = refused(api.replace("web", &PostParams::default(), &created).await);
    assert_eq!(status.code, 422);
    assert!(status.message.contains("spec.selector is immutable"), "{}", status.message);
    assert_eq!(status.details.unwrap().causes[0].field, "spec.selector");
}

#[tokio::test(start_paused = true)]
async fn a_kind_goes_with_its_definition() {
    let server = server();
    let client = server.client();
    create(&api(&client, "Rollout"), rollout("web")).await;
    let crds = resource("apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions");
    let crds: Api<DynamicObject> = Api::all_with(client.clone(), &crds);
    let crd = crds.get("rollouts.davylamp.dev").await.unwrap();
    assert_eq!(crd.data["status"]["conditions"][1]["type"], "Established");
    crds.delete("rollouts.davylamp.dev", &DeleteParams::default()).await.unwrap();
    server.collect_garbage();
    assert_eq!(refused(api(&client, "Rollout").get("web").await).code, 404);
}

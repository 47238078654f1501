//! A route as the controller writes it: the definitions of the Gateway API are there, and its user stays its owner.

use kube::api::{Patch, PatchParams};

use super::*;

fn route(weight: i32) -> Value {
    json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web"},
        "spec": {"parentRefs": [{"name": "edge"}], "rules": [{"backendRefs": [
            {"name": "web-stable", "port": 80, "weight": weight}, {"name": "web-canary", "port": 80, "weight": 0}]}]},
    })
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_is_removed_from_the_list_conflicts_no_more() {
    let client = server().client();
    let api = api(&client, "HTTPRoute");
    let user = PatchParams::apply("user");
    let applied = api.patch("web", &user, &Patch::Apply(&route(100))).await.unwrap();
    assert_eq!(applied.data["spec"]["rules"][0]["backendRefs"][0]["kind"], "Service");
    assert_eq!(applied.data["spec"]["rules"][0]["matches"][0]["path"]["value"], "/");

    let mut next = applied.clone();
    next.data["spec"]["rules"][0]["backendRefs"][0]["weight"] = json!(90);
    let ours = PostParams { field_manager: Some("davylamp/traffic".to_owned()), ..PostParams::default() };
    let written = api.replace("web", &ours, &next).await.unwrap();
    assert_eq!(written.metadata.generation, Some(2));
    let status = refused(api.patch("web", &user, &Patch::Apply(&route(99))).await);
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"davylamp/traffic\" using gateway.networking.k8s.io/v1: \
         .spec.rules"
    );

    let entries = written.metadata.managed_fields.clone().unwrap();
    let at = entries.iter().position(|e| e.manager.as_deref() == Some("davylamp/traffic")).unwrap();
    let forget: json_patch::Patch = serde_json::from_value(json!([
        {"op": "test", "path": "/metadata/resourceVersion", "value": version(&written)},
        {"op": "remove", "path": format!("/metadata/managedFields/{at}")},
    ]))
    .unwrap();
    let params = PatchParams { field_manager: ours.field_manager, ..PatchParams::default() };
    let forgotten = api.patch("web", &params, &Patch::<()>::Json(forget)).await.unwrap();
    assert!(moment(&forgotten) > moment(&written));
    assert_eq!(forgotten.metadata.generation, Some(2));
    api.patch("web", &user, &Patch::Apply(&route(99))).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn an_absent_weight_is_one() {
    let client = server().client();
    let mut body = route(1);
    body["spec"]["rules"][0]["backendRefs"][0].as_object_mut().unwrap().remove("weight");
    let created = create(&api(&client, "HTTPRoute"), body).await;
    assert_eq!(created.data["spec"]["rules"][0]["backendRefs"][0]["weight"], 1);
}

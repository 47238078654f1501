//! Server-side apply: who owns what, who overrules whom.

use kube::api::{Patch, PatchParams};

use super::*;

fn service(ports: &[&Value]) -> Value {
    json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
           "spec": {"selector": {"app": "web"}, "ports": ports}})
}

async fn apply(
    api: &Api<DynamicObject>,
    manager: &str,
    force: bool,
    body: &Value,
) -> Result<DynamicObject, kube::Error> {
    let params = PatchParams { force, ..PatchParams::apply(manager) };
    api.patch("web", &params, &Patch::Apply(body)).await
}

#[tokio::test(start_paused = true)]
async fn what_is_not_applied_any_more_goes_unless_another_owns_it() {
    let client = server().client();
    let api = api(&client, "Service");
    let (http, admin) = (json!({"name": "http", "port": 80}), json!({"name": "admin", "port": 81}));
    let first = apply(&api, "a", false, &service(&[&http, &admin])).await.unwrap();
    assert_eq!(first.data["spec"]["ports"].as_array().unwrap().len(), 2);
    let again = apply(&api, "a", false, &service(&[&http, &admin])).await.unwrap();
    assert_eq!(version(&again), version(&first));
    let fewer = apply(&api, "a", false, &service(&[&http])).await.unwrap();
    assert_eq!(fewer.data["spec"]["ports"].as_array().unwrap().len(), 1);
    assert_eq!(fewer.data["spec"]["ports"][0]["name"], "http");

    let labelled = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"labels": {"x": "1"}},
                          "spec": {"selector": {"app": "web"}}});
    apply(&api, "b", false, &labelled).await.unwrap();
    let bare = json!({"apiVersion": "v1", "kind": "Service", "spec": {"ports": [http]}});
    let left = apply(&api, "a", false, &bare).await.unwrap();
    assert_eq!(left.data["spec"]["selector"], json!({"app": "web"}));
}

#[tokio::test(start_paused = true)]
async fn a_conflict_names_the_manager_and_the_field_and_force_takes_it() {
    let client = server().client();
    let api = api(&client, "Rollout");
    let mut body = rollout("web");
    apply(&api, "user", false, &body).await.unwrap();
    let size = json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "spec": {"replicas": 7}});
    let status = refused(apply(&api, "autoscaler", false, &size).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(status.message, "Apply failed with 1 conflict: conflict with \"user\": .spec.replicas");
    let cause = &status.details.unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("FieldManagerConflict", ".spec.replicas"));
    let taken = apply(&api, "autoscaler", true, &size).await.unwrap();
    assert_eq!(taken.data["spec"]["replicas"], 7);
    let status = refused(apply(&api, "user", false, &body).await);
    assert_eq!(status.message, "Apply failed with 1 conflict: conflict with \"autoscaler\": .spec.replicas");
    body["spec"].as_object_mut().unwrap().remove("replicas");
    let kept = apply(&api, "user", false, &body).await.unwrap();
    assert_eq!(kept.data["spec"]["replicas"], 7);
}

#[tokio::test(start_paused = true)]
async fn one_container_of_a_template_can_be_applied_alone() {
    let client = server().client();
    let api = api(&client, "Rollout");
    let mut body = rollout("web");
    let containers = &mut body["spec"]["template"]["spec"]["containers"];
    containers.as_array_mut().unwrap().push(json!({"name": "log", "image": "log:1"}));
    create(&api, body).await;
    let image = json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout",
        "spec": {"template": {"spec": {"containers": [{"name": "web", "image": "web:2"}]}}}});
    let status = refused(apply(&api, "updater", false, &image).await);
    assert_eq!(
        status.message,
        "Apply failed with 1 conflict: conflict with \"creator\" using davylamp.dev/v1alpha1: \
         .spec.template.spec.containers[name=\"web\"].image"
    );
    let merged = apply(&api, "updater", true, &image).await.unwrap();
    let containers = merged.data["spec"]["template"]["spec"]["containers"].as_array().unwrap();
    assert_eq!((containers.len(), &containers[0]["image"]), (2, &json!("web:2")));
    assert_eq!(containers[0]["unknown"], json!({"kept": true}));
}

#[tokio::test(start_paused = true)]
async fn entries_say_who_wrote_what_and_how() {
    let client = server().client();
    let api = api(&client, "Rollout");
    let created = create(&api, rollout("web")).await;
    let patch = json!({"status": {"phase": "Healthy"}});
    let params = PatchParams { field_manager: Some("writer".to_owned()), ..PatchParams::default() };
    api.patch_status("web", &params, &Patch::Merge(&patch)).await.unwrap();
    let size = json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "spec": {"replicas": 2}});
    let written = apply(&api, "size", false, &size).await.unwrap();
    let entries = serde_json::to_value(written.metadata.managed_fields).unwrap();
    let brief: Vec<_> = entries
        .as_array()
        .unwrap()
        .iter()
        .map(|e| (e["manager"].clone(), e["operation"].clone(), e["subresource"].clone()))
        .collect();
    assert_eq!(
        brief,
        [
            (json!("size"), json!("Apply"), Value::Null),
            (json!("creator"), json!("Update"), Value::Null),
            (json!("writer"), json!("Update"), json!("status")),
        ]
    );
    assert_eq!(entries[0]["fieldsV1"], json!({"f:spec": {"f:replicas": {}}}));
    assert_eq!(entries[2]["fieldsV1"], json!({"f:status": {"f:phase": {}}}));
    assert_eq!(entries[1]["time"], serde_json::to_value(&created.metadata.creation_timestamp).unwrap());
}

#[tokio::test(start_paused = true)]
async fn what_the_schema_does_not_know_cannot_be_applied() {
    let client = server().client();
    let mut body = replica_set("web");
    body["spec"]["template"]["spec"]["nothing"] = json!(1);
    let status = refused(apply(&api(&client, "ReplicaSet"), "a", false, &body).await);
    assert_eq!(status.code, 500);
    assert!(
        status.message.contains(".spec.template.spec.nothing: field not declared in schema"),
        "{}",
        status.message
    );
}

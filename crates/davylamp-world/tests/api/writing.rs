//! Create, replace, patch, delete, and what they leave alone.

use kube::api::{Patch, PatchParams, Preconditions};

use super::*;

#[tokio::test(start_paused = true)]
async fn a_replace_is_guarded_by_its_version_and_writes_nothing_when_nothing_changes() {
    let client = server().client();
    let api = api(&client, "Rollout");
    let created = create(&api, rollout("web")).await;
    assert_eq!(created.metadata.generation, Some(1));
    // The defaults of the status are stored by the first write after the creation.
    let stored = api.replace("web", &PostParams::default(), &created).await.unwrap();
    assert!(moment(&stored) > moment(&created));
    let created = stored;
    let same = api.replace("web", &PostParams::default(), &created).await.unwrap();
    assert_eq!(version(&same), version(&created));

    let mut next = created.clone();
    next.data["spec"]["replicas"] = json!(3);
    let next = api.replace("web", &PostParams::default(), &next).await.unwrap();
    assert_eq!(next.metadata.generation, Some(2));

    let status = refused(api.replace("web", &PostParams::default(), &created).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(
        status.message,
        "Operation cannot be fulfilled on rollouts.davylamp.dev \"web\": the object has been modified; please apply \
         your changes to the latest version and try again"
    );
    let status = refused(api.replace_status("web", &PostParams::default(), &created).await);
    assert_eq!(status.code, 409);

    let mut other = next.clone();
    other.metadata.uid = Some("another".to_owned());
    assert_eq!(refused(api.replace("web", &PostParams::default(), &other).await).code, 409);
    other = next;
    other.metadata.resource_version = None;
    let status = refused(api.replace("web", &PostParams::default(), &other).await);
    assert_eq!(
        status.message,
        "rollouts.davylamp.dev \"web\" is invalid: metadata.resourceVersion: Invalid value: 0: must be specified for \
         an update"
    );
}

#[tokio::test(start_paused = true)]
async fn status_and_spec_are_written_apart() {
    let client = server().client();
    let api = api(&client, "Rollout");
    let mut with_status = rollout("web");
    with_status["status"] = json!({"phase": "Healthy"});
    let created = create(&api, with_status).await;
    assert_eq!(created.data["status"], json!({"observedGeneration": -1}));
    let mut next = created.clone();
    next.data["status"] = json!({"phase": "Progressing", "observedGeneration": 1});
    next.data["spec"]["replicas"] = json!(9);
    next.metadata.labels = Some([("a".to_owned(), "b".to_owned())].into());
    let written = api.replace_status("web", &PostParams::default(), &next).await.unwrap();
    assert_eq!(written.data["status"]["phase"], "Progressing");
    assert_eq!(written.data["spec"]["replicas"], 2);
    assert_eq!((written.metadata.labels, written.metadata.generation), (None, Some(1)));
    next.metadata.resource_version = written.metadata.resource_version;
    next.data["status"] = json!({"phase": "Degraded"});
    let written = api.replace("web", &PostParams::default(), &next).await.unwrap();
    assert_eq!(written.data["status"]["phase"], "Progressing");
    assert_eq!((written.data["spec"]["replicas"].clone(), written.metadata.generation), (json!(9), Some(2)));
}

#[tokio::test(start_paused = true)]
async fn scale_is_a_small_view_that_needs_its_field() {
    let client = server().client();
    let api = api(&client, "Rollout");
    create(&api, rollout("web")).await;
    let scale = api.get_scale("web").await.unwrap();
    assert_eq!(scale.spec.unwrap().replicas, Some(2));
    let patch = json!({"spec": {"replicas": 5}});
    api.patch_scale("web", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let now = api.get("web").await.unwrap();
    assert_eq!((now.data["spec"]["replicas"].clone(), now.metadata.generation), (json!(5), Some(2)));
    let mut bare = rollout("bare");
    bare["spec"].as_object_mut().unwrap().remove("replicas");
    create(&api, bare).await;
    let status = refused(api.get_scale("bare").await);
    assert_eq!((status.code, status.reason.as_str()), (500, "InternalError"));
    assert!(status.message.contains("the spec replicas field \".spec.replicas\" does not exist"));
}

#[tokio::test(start_paused = true)]
async fn patches_of_json_are_tested_and_merges_remove() {
    let client = server().client();
    let api = api(&client, "ConfigMap");
    let created = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let patch = |version: &str| -> json_patch::Patch {
        serde_json::from_value(json!([
            {"op": "test", "path": "/metadata/resourceVersion", "value": version},
            {"op": "replace", "path": "/data/v", "value": "2"},
        ]))
        .unwrap()
    };
    let send = async |version: &str| {
        api.patch("a", &PatchParams::default(), &Patch::<()>::Json(patch(version))).await
    };
    let status = refused(send("1").await);
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert_eq!(status.message, "the server rejected our request due to an error in our request");
    let patched = send(&version(&created)).await.unwrap();
    assert_eq!(patched.data["data"]["v"], "2");
    let merge = json!({"metadata": {"labels": {"v": null}}, "data": {"w": "3"}});
    let merged = api.patch("a", &PatchParams::default(), &Patch::Merge(&merge)).await.unwrap();
    assert_eq!(merged.metadata.labels, None);
    assert_eq!(merged.data["data"], json!({"v": "2", "w": "3"}));
}

#[tokio::test(start_paused = true)]
async fn a_strict_dry_run_creates_nothing_and_names_what_it_does_not_know() {
    let client = server().client();
    let api = api(&client, "ReplicaSet");
    let create = async |body: &Value| {
        let request = http::Request::post(
            "/apis/apps/v1/namespaces/shop/replicasets?dryRun=All&fieldValidation=Strict",
        )
        .body(body.to_string().into_bytes())
        .unwrap();
        client.request::<DynamicObject>(request).await
    };
    let mut body = replica_set("web");
    assert!(create(&body).await.unwrap().metadata.uid.is_some());
    assert!(api.get_opt("web").await.unwrap().is_none());
    body["spec"]["template"]["spec"]["shareProcessNamespaces"] = json!(true);
    let status = refused(create(&body).await);
    assert_eq!(
        status.message,
        "ReplicaSet in version \"v1\" cannot be handled as a ReplicaSet: strict decoding error: unknown field \
         \"spec.template.spec.shareProcessNamespaces\""
    );
    let mut body = replica_set("web");
    body["spec"]["template"]["spec"]["containers"][0]["ports"] = json!([{"containerPort": 70000}]);
    let status = refused(create(&body).await);
    assert_eq!(
        status.message,
        "ReplicaSet.apps \"web\" is invalid: spec.template.spec.containers[0].ports[0].containerPort: Invalid value: \
         70000: must be between 1 and 65535, inclusive"
    );
}

#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_finalizers_and_asks_for_the_right_object() {
    let client = server().client();
    let api = api(&client, "Rollout");
    let mut held = rollout("web");
    held["metadata"]["finalizers"] = json!(["davylamp.dev/routes"]);
    let created = create(&api, held).await;
    let preconditions = Some(Preconditions { uid: Some("another".to_owned()), resource_version: None });
    let params = DeleteParams { preconditions, ..DeleteParams::default() };
    assert_eq!(refused(api.delete("web", &params).await).code, 409);
    let left = api.delete("web", &DeleteParams::default()).await.unwrap().left().unwrap();
    assert_eq!((left.metadata.deletion_grace_period_seconds, left.metadata.generation), (Some(0), Some(2)));
    let more = json!({"metadata": {"finalizers": ["davylamp.dev/routes", "a/b"]}});
    let status = refused(api.patch("web", &PatchParams::default(), &Patch::Merge(&more)).await);
    assert!(status.message.contains("no new finalizers can be added if the object is being deleted"));
    let none = json!({"metadata": {"uid": created.metadata.uid, "finalizers": []}});
    api.patch("web", &PatchParams::default(), &Patch::Merge(&none)).await.unwrap();
    assert!(api.get_opt("web").await.unwrap().is_none());
    assert_eq!(refused(api.get("web").await).message, "rollouts.davylamp.dev \"web\" not found");
}

#[tokio::test(start_paused = true)]
async fn a_name_is_given_once() {
    let client = server().client();
    let api = api(&client, "ConfigMap");
    api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let status = refused(api.create(&PostParams::default(), &config_map("a", "2")).await);
    assert_eq!((status.code, status.reason.as_str()), (409, "AlreadyExists"));
    assert_eq!(status.message, "configmaps \"a\" already exists");
    let elsewhere: Api<DynamicObject> =
        Api::namespaced_with(client, "nowhere", &resource("v1", "ConfigMap", "configmaps"));
    let status = refused(elsewhere.create(&PostParams::default(), &config_map("a", "1")).await);
    assert_eq!(status.message, "namespaces \"nowhere\" not found");
}

#[tokio::test(start_paused = true)]
async fn a_loopback_address_is_no_endpoint() {
    let client = server().client();
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": {"name": "a"},
        "addressType": "IPv4", "endpoints": [{"addresses": ["127.0.0.1"]}],
    });
    let status = refused(api(&client, "EndpointSlice").create(&PostParams::default(), &object(slice)).await);
    assert!(status.message.contains(
        "endpoints[0].addresses[0]: Invalid value: \"127.0.0.1\": may not be in the loopback range"
    ));
}

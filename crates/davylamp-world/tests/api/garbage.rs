//! What goes by itself.

use std::time::Duration;

use kube::api::{ListParams, Patch, PatchParams, PropagationPolicy};

use super::*;

fn owned(name: &str, owner: &DynamicObject) -> Value {
    let mut set = replica_set(name);
    set["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "name": owner.metadata.name,
        "uid": owner.metadata.uid, "controller": true, "blockOwnerDeletion": true,
    }]);
    set
}

async fn family() -> (ApiServer, Client) {
    let server = server();
    let client = server.client();
    let owner = create(&api(&client, "Rollout"), rollout("web")).await;
    create(&api(&client, "ReplicaSet"), owned("web-1", &owner)).await;
    (server, client)
}

fn policy(policy: PropagationPolicy) -> DeleteParams {
    DeleteParams { propagation_policy: Some(policy), ..DeleteParams::default() }
}

#[tokio::test(start_paused = true)]
async fn dependents_follow_their_owner_a_while_later() {
    let (server, client) = family().await;
    tokio::spawn(server.garbage_collector(Duration::from_millis(100)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let sets = api(&client, "ReplicaSet");
    assert!(sets.get_opt("web-1").await.unwrap().is_some());
    api(&client, "Rollout").delete("web", &DeleteParams::default()).await.unwrap();
    assert!(sets.get_opt("web-1").await.unwrap().is_some());
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(sets.get_opt("web-1").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn orphans_stay_and_can_be_adopted() {
    let (server, client) = family().await;
    let rollouts = api(&client, "Rollout");
    rollouts.delete("web", &policy(PropagationPolicy::Orphan)).await.unwrap();
    assert!(rollouts.get_opt("web").await.unwrap().is_some());
    server.collect_garbage();
    assert!(rollouts.get_opt("web").await.unwrap().is_none());
    let sets = api(&client, "ReplicaSet");
    assert_eq!(sets.get("web-1").await.unwrap().metadata.owner_references, None);
    let owner = create(&rollouts, rollout("web")).await;
    let adopted = json!({"metadata": owned("web-1", &owner)["metadata"]});
    sets.patch("web-1", &PatchParams::default(), &Patch::Merge(&adopted)).await.unwrap();
    server.collect_garbage();
    assert!(sets.get_opt("web-1").await.unwrap().is_some());
}

#[tokio::test(start_paused = true)]
async fn in_the_foreground_dependents_go_first() {
    let (server, client) = family().await;
    let rollouts = api(&client, "Rollout");
    let left = rollouts.delete("web", &policy(PropagationPolicy::Foreground)).await.unwrap().left().unwrap();
    assert_eq!(left.metadata.finalizers.unwrap(), ["foregroundDeletion"]);
    server.collect_garbage();
    assert!(rollouts.get_opt("web").await.unwrap().is_none());
    assert!(api(&client, "ReplicaSet").get_opt("web-1").await.unwrap().is_none());
}

#[tokio::test(start_paused = true)]
async fn a_namespace_takes_all_with_it_and_nothing_new() {
    let (server, client) = family().await;
    let namespaces = resource("v1", "Namespace", "namespaces");
    let namespaces: Api<DynamicObject> = Api::all_with(client.clone(), &namespaces);
    namespaces.delete("shop", &DeleteParams::default()).await.unwrap();
    let status =
        refused(api(&client, "ConfigMap").create(&PostParams::default(), &config_map("a", "1")).await);
    assert_eq!(status.code, 403);
    server.collect_garbage();
    assert!(namespaces.get_opt("shop").await.unwrap().is_none());
    assert!(api(&client, "ReplicaSet").list(&ListParams::default()).await.unwrap().items.is_empty());
}

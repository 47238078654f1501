//! Get and list.

use kube::api::ListParams;

use super::*;

#[tokio::test(start_paused = true)]
async fn a_list_in_pages_shows_one_moment() {
    let client = server().client();
    let api = api(&client, "ConfigMap");
    for name in ["a", "b", "c", "d"] {
        api.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    let first = api.list(&ListParams::default().limit(2)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(2));
    api.delete("c", &DeleteParams::default()).await.unwrap();
    api.create(&PostParams::default(), &config_map("e", "1")).await.unwrap();
    let token = first.metadata.continue_.clone().unwrap();
    let second = api.list(&ListParams::default().continue_token(&token)).await.unwrap();
    let names: Vec<_> = second.items.iter().map(|o| o.metadata.name.clone().unwrap()).collect();
    assert_eq!(names, ["c", "d"]);
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_page_after_compaction_is_410_and_tells_how_to_go_on() {
    let server = server();
    let api = api(&server.client(), "ConfigMap");
    for name in ["a", "b", "c"] {
        api.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    let first = api.list(&ListParams::default().limit(1)).await.unwrap();
    api.delete("b", &DeleteParams::default()).await.unwrap();
    server.compact();
    let token = first.metadata.continue_.unwrap();
    let status = refused(api.list(&ListParams::default().continue_token(&token)).await);
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    let token = status.metadata.unwrap().continue_.unwrap();
    let rest = api.list(&ListParams::default().continue_token(&token)).await.unwrap();
    assert_eq!(rest.items.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn selectors_choose() {
    let client = server().client();
    let api = api(&client, "ConfigMap");
    for (name, value) in [("a", "1"), ("b", "2"), ("c", "3")] {
        api.create(&PostParams::default(), &config_map(name, value)).await.unwrap();
    }
    for (labels, fields, expected) in [
        ("v in (1,2)", "", 2),
        ("v notin (1,2)", "", 1),
        ("!v", "", 0),
        ("v!=1", "metadata.name=b", 1),
        ("", "metadata.namespace=shop", 3),
    ] {
        let found = api.list(&ListParams::default().labels(labels).fields(fields)).await.unwrap();
        assert_eq!(found.items.len(), expected, "{labels} {fields}");
    }
    let status = refused(api.list(&ListParams::default().fields("data.v=1")).await);
    assert_eq!(status.code, 400);
}

#[tokio::test(start_paused = true)]
async fn kinds_are_discovered() {
    let client = server().client();
    let group = kube::discovery::group(&client, "davylamp.dev").await.unwrap();
    assert_eq!(group.recommended_resources().len(), 4);
    let info = client.apiserver_version().await.unwrap();
    assert_eq!((info.major.as_str(), info.minor.as_str()), ("1", "37"));
    let unknown = resource("davylamp.dev/v1alpha1", "Nothing", "nothings");
    let status = refused(Api::<DynamicObject>::all_with(client, &unknown).list(&ListParams::default()).await);
    assert_eq!(status.message, "the server could not find the requested resource");
}

#[tokio::test(start_paused = true)]
async fn an_event_is_the_same_in_both_groups() {
    let client = server().client();
    let new = resource("events.k8s.io/v1", "Event", "events");
    let event = json!({
        "apiVersion": "events.k8s.io/v1", "kind": "Event", "metadata": {"name": "web.1", "namespace": "shop"},
        "eventTime": "2026-01-01T00:00:00.000000Z", "reason": "Begun", "action": "Begin", "type": "Normal",
        "note": "it began", "reportingController": "davylamp.dev/controller", "reportingInstance": "a",
        "regarding": {"kind": "Rollout", "name": "web", "namespace": "shop"},
    });
    create(&Api::namespaced_with(client.clone(), "shop", &new), event).await;
    let old = resource("v1", "Event", "events");
    let core: Api<DynamicObject> = Api::namespaced_with(client, "shop", &old);
    let found = core.list(&ListParams::default().fields("involvedObject.name=web")).await.unwrap();
    assert_eq!(found.items[0].data["message"], "it began");
    assert_eq!(found.items[0].types.as_ref().unwrap().api_version, "v1");
}

#[tokio::test(start_paused = true)]
async fn the_same_seed_gives_the_same_objects() {
    let mut seen = Vec::new();
    for _ in 0..2 {
        let client = server().client();
        let api = api(&client, "ConfigMap");
        let mut generated = config_map("x", "1");
        generated.metadata.name = None;
        generated.metadata.generate_name = Some("conf-".to_owned());
        let created = api.create(&PostParams::default(), &generated).await.unwrap();
        assert_eq!(created.metadata.name.as_ref().unwrap().len(), "conf-".len() + 5);
        seen.push(serde_json::to_value(&created).unwrap());
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0]["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
}

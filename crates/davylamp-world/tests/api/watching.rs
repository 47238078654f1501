//! Watches, and kube's own watcher on them.

use std::pin::pin;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::api::{WatchEvent, WatchParams};
use kube::runtime::watcher;
use tokio::time::Instant;

use super::*;

fn told(event: &WatchEvent<DynamicObject>) -> String {
    let name = |o: &DynamicObject| o.metadata.name.clone().unwrap();
    match event {
        WatchEvent::Added(o) => format!("+{}", name(o)),
        WatchEvent::Modified(o) => format!("~{}", name(o)),
        WatchEvent::Deleted(o) => format!("-{}", name(o)),
        WatchEvent::Bookmark(_) => "mark".to_owned(),
        WatchEvent::Error(status) => status.code.to_string(),
    }
}

#[tokio::test(start_paused = true)]
async fn changes_are_told_in_order_and_a_lost_label_is_a_deletion() {
    let client = server().client();
    let api = api(&client, "ConfigMap");
    let created = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    let watch =
        api.watch(&WatchParams::default().labels("v=1").timeout(10), &version(&created)).await.unwrap();
    for value in ["2", "1"] {
        let mut next = api.get("a").await.unwrap();
        next.metadata.labels.as_mut().unwrap().insert("v".to_owned(), value.to_owned());
        api.replace("a", &PostParams::default(), &next).await.unwrap();
    }
    api.create(&PostParams::default(), &config_map("b", "2")).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let start = Instant::now();
    let events: Vec<_> = watch.try_collect().await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_secs(10));
    assert_eq!(events.iter().map(told).collect::<Vec<_>>(), ["-a", "+a", "-a"]);
    let WatchEvent::Deleted(left) = &events[0] else { panic!() };
    assert_eq!(left.metadata.labels.as_ref().unwrap()["v"], "1");
    assert!(moment(left) > moment(&created));
}

#[tokio::test(start_paused = true)]
async fn bookmarks_come_each_minute_with_the_version_of_all_kinds() {
    let server = server();
    let client = server.client();
    let api = api(&client, "ConfigMap");
    let params = WatchParams::default().timeout(150);
    let watch = api.watch(&params, "0").await.unwrap();
    create(&super::api(&client, "ReplicaSet"), replica_set("web")).await;
    let events: Vec<_> = watch.try_collect().await.unwrap();
    assert_eq!(events.iter().map(told).collect::<Vec<_>>(), ["mark", "mark"]);
    let WatchEvent::Bookmark(mark) = &events[0] else { panic!() };
    let set = super::api(&client, "ReplicaSet").get("web").await.unwrap();
    assert_eq!(mark.metadata.resource_version, version(&set));
}

#[tokio::test(start_paused = true)]
async fn a_forgotten_version_ends_a_watch_with_410() {
    let server = server();
    let client = server.client();
    let api = api(&client, "ConfigMap");
    let created = api.create(&PostParams::default(), &config_map("a", "1")).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    server.compact();
    let watch = api.watch(&WatchParams::default(), &version(&created)).await.unwrap();
    let events: Vec<_> = watch.try_collect().await.unwrap();
    assert_eq!(events.iter().map(told).collect::<Vec<_>>(), ["410"]);
}

#[tokio::test(start_paused = true)]
async fn the_watcher_of_kube_lives_through_compactions_for_a_day() {
    let server = server();
    let client = server.client();
    let api = api(&client, "ConfigMap");
    let mut events = pin!(watcher(api.clone(), watcher::Config::default().page_size(1)));
    for name in ["a", "b"] {
        api.create(&PostParams::default(), &config_map(name, "1")).await.unwrap();
    }
    let mut next = async || events.next().await.unwrap();
    assert!(matches!(next().await.unwrap(), watcher::Event::Init));
    for _ in 0..2 {
        assert!(matches!(next().await.unwrap(), watcher::Event::InitApply(_)));
    }
    assert!(matches!(next().await.unwrap(), watcher::Event::InitDone));
    let writer = api.clone();
    tokio::spawn(async move {
        for hour in 0..24 {
            tokio::time::sleep(Duration::from_hours(1)).await;
            if hour % 6 == 0 {
                server.compact();
            }
            writer.create(&PostParams::default(), &config_map(&format!("h{hour}"), "1")).await.unwrap();
        }
    });
    let mut seen = 0;
    while seen < 24 {
        match next().await {
            Ok(watcher::Event::Apply(_)) => seen += 1,
            Ok(other) => panic!("{other:?}"),
            Err(error) => panic!("{error}"),
        }
    }
}

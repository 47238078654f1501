//! The server over HTTP, in real time.

use tokio::net::TcpListener;

use super::*;

#[tokio::test]
async fn it_is_the_same_over_http() {
    let server = server();
    create(&api(&server.client(), "Rollout"), rollout("web")).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(davylamp_world::serve(server, listener));
    let client = Client::try_from(kube::Config::new(format!("http://{address}").parse().unwrap())).unwrap();
    let there = api(&client, "Rollout").get("web").await.unwrap();
    assert_eq!(there.data["spec"]["service"], "web");
    let mut list = std::pin::pin!(kube::runtime::watcher(
        api(&client, "Rollout"),
        kube::runtime::watcher::Config::default()
    ));
    let first = futures::StreamExt::next(&mut list).await.unwrap().unwrap();
    assert!(matches!(first, kube::runtime::watcher::Event::Init));
}

//! The whole controller on a server in memory, in paused time: it starts, leads, writes what a Rollout needs, and hands
//! over when it is told to end.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use davylamp_api::MetricSourceSpec;
use davylamp_api::k8s_openapi::api::apps::v1::ReplicaSet;
use davylamp_api::k8s_openapi::api::coordination::v1::Lease;
use davylamp_api::k8s_openapi::api::core::v1::Service;
use davylamp_controller::clock::Clock;
use davylamp_controller::metrics::{Answer, MetricsApi, QueryError};
use davylamp_controller::{Config, leader, run};
use davylamp_world::ApiServer;
use futures::FutureExt;
use futures::future::BoxFuture;
use kube::api::ListParams;
use kube::{Api, Client};
use tokio::net::TcpListener;
use tokio::time::{Instant, sleep};

struct Silent;

impl MetricsApi for Silent {
    fn query<'a>(
        &'a self,
        _: &'a MetricSourceSpec,
        _: &'a str,
        _: i64,
    ) -> BoxFuture<'a, Result<Answer, QueryError>> {
        std::future::pending().boxed()
    }
}

fn server() -> ApiServer {
    let server = ApiServer::new(davylamp_world::Config::default());
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    for file in std::fs::read_dir(root.join("deploy/crds")).unwrap() {
        let path = file.unwrap().path();
        server.install(&std::fs::read_to_string(path).unwrap()).unwrap();
    }
    server.install(SHOP).unwrap();
    server
}

const SHOP: &str = "
{apiVersion: v1, kind: Namespace, metadata: {name: davylamp}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: shop}}
---
{apiVersion: v1, kind: Service, metadata: {name: web, namespace: shop}, spec: {selector: {app: web}, ports: [{port: 80}]}}
---
apiVersion: davylamp.dev/v1alpha1
kind: Rollout
metadata: {name: web, namespace: shop}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  service: web
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: web, image: 'web:1'}]}
  strategy:
    canary: {steps: [{weight: 10%}]}
    traffic: [{gatewayAPI: {routes: [{kind: HTTPRoute, name: web}]}}]
";

async fn holder(client: &Client) -> Option<String> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), "davylamp");
    leases.get_opt("controller").await.unwrap()?.spec?.holder_identity
}

#[tokio::test(start_paused = true)]
async fn it_leads_writes_what_a_rollout_needs_and_hands_over() {
    let server = server();
    let client = server.client();
    let config = Config {
        namespace: "davylamp".to_owned(),
        lease: "controller".to_owned(),
        identity: "a".to_owned(),
        election: leader::Config::default(),
        call_limit: Duration::from_secs(5),
        concurrency: 4,
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let clock = Clock::virtual_from("2026-01-01T00:00:00Z".parse().unwrap());
    let start = Instant::now();
    let looked = async {
        sleep(Duration::from_mins(2)).await;
        assert_eq!(holder(&client).await.as_deref(), Some("a"));
        let sets: Api<ReplicaSet> = Api::namespaced(client.clone(), "shop");
        let sets = sets.list(&ListParams::default()).await.unwrap().items;
        let sizes: Vec<_> = sets.iter().map(|set| set.spec.replicas).collect();
        assert_eq!(sizes, [Some(3)]);
        let services: Api<Service> = Api::namespaced(client.clone(), "shop");
        let ours = services.list(&ListParams::default().labels("davylamp.dev/rollout=web")).await.unwrap();
        let names: Vec<_> =
            ours.items.iter().filter_map(|service| service.metadata.name.as_deref()).collect();
        assert_eq!(names, ["web-canary", "web-stable"]);
        let rollouts: Api<davylamp_api::Rollout> = Api::namespaced(client.clone(), "shop");
        let status = rollouts.get("web").await.unwrap().status.unwrap();
        assert_eq!(status.observed_generation, 1);
    };
    Box::pin(run(client.clone(), clock, Arc::new(Silent), listener, config, looked)).await.unwrap();
    assert_eq!(start.elapsed(), Duration::from_mins(2));
    assert_eq!(holder(&client).await.as_deref(), Some(""));
}

//! `doctor`, as people run it: on API servers in memory and on one that refuses, over HTTP.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test")]

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::Duration;

use davylamp_api::Instant;
use davylamp_controller::clock::Clock;
use davylamp_world::{ApiServer, serve};
use kube::api::{Api, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};
use tokio::runtime::{Builder, Runtime};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Against the API server at this address.
fn doctor(address: SocketAddr, words: &str) -> Output {
    let kubeconfig = std::env::temp_dir().join(format!("davylamp-doctor-{}", address.port()));
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "it",
        "clusters": [{"name": "it", "cluster": {"server": format!("http://{address}")}}],
        "users": [{"name": "it", "user": {}}],
        "contexts": [{"name": "it", "context": {"cluster": "it", "user": "it", "namespace": "market"}}],
    });
    std::fs::write(&kubeconfig, config.to_string()).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-davylamp"));
    command.arg("doctor").args(words.split_whitespace()).env("KUBECONFIG", &kubeconfig);
    let output = command.stdin(Stdio::null()).output().unwrap();
    std::fs::remove_file(kubeconfig).unwrap();
    output
}

/// What it wrote, as if at the usual address.
fn text(output: &Output, address: SocketAddr) -> String {
    let text =
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    text.replace(&address.to_string(), "127.0.0.1:6443")
}

/// A cluster to which things are added before somebody looks at it.
struct Cluster {
    server: ApiServer,
    runtime: Runtime,
}

impl Cluster {
    fn new() -> Self {
        let server = ApiServer::new(davylamp_world::Config::default());
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let cluster = Self { server, runtime };
        for name in ["davylamp-system", "market", "blog", "monitoring"] {
            cluster.install(&json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}));
        }
        cluster
    }

    /// With our definitions, as they are after this is done to their text.
    fn installed(change: impl Fn(&str) -> String) -> Self {
        let cluster = Self::new();
        for (_, text) in davylamp_controller::crd::files().unwrap() {
            cluster.server.install(&change(&text)).unwrap();
        }
        cluster
    }

    fn install(&self, object: &Value) {
        self.server.install(&object.to_string()).unwrap();
    }

    /// A Rollout, and what a controller has said of it, by which it is in this phase.
    fn rollout(&self, namespace: &str, name: &str, phase: &str, conditions: &[Value]) {
        let rollout = json!({
            "apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [{"name": name, "image": "a:1"}]}},
                "service": name,
                "strategy": {"canary": {}, "traffic": [{"gatewayAPI": {"routes": [{"kind": "HTTPRoute", "name": name}]}}]},
                "analysis": {"source": "default", "presets": ["http"]},
            },
        });
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("davylamp.dev", "v1alpha1", "Rollout"));
        let status = json!({"status": {"observedGeneration": 1, "phase": phase, "replicas": 1, "conditions": conditions}});
        self.runtime.block_on(async {
            let api: Api<DynamicObject> = Api::namespaced_with(self.server.client(), namespace, &kind);
            api.create(&PostParams::default(), &serde_json::from_value(rollout).unwrap()).await.unwrap();
            api.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        });
    }

    fn lease(&self) {
        self.install(&json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": {"name": "davylamp-controller", "namespace": "davylamp-system"},
            "spec": {"holderIdentity": "davylamp-controller_7_1", "leaseDurationSeconds": 15,
                     "renewTime": "2026-01-01T00:00:00.000000Z"},
        }));
    }

    /// Answers from now on; whoever holds the lease renews it if `at_work`.
    fn open(self, at_work: bool) -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let Self { server, runtime } = self;
        thread::spawn(move || {
            runtime.block_on(async {
                if at_work {
                    tokio::spawn(renew(server.clone()));
                }
                serve(server, tokio::net::TcpListener::from_std(listener).unwrap()).await
            })
        });
        address
    }
}

async fn renew(server: ApiServer) {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("coordination.k8s.io", "v1", "Lease"));
    let api: Api<DynamicObject> = Api::namespaced_with(server.client(), "davylamp-system", &kind);
    for second in 1..60 {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let time = format!("2026-01-01T00:00:{second:02}.000000Z");
        let patch = Patch::Merge(json!({"spec": {"renewTime": time}}));
        api.patch("davylamp-controller", &PatchParams::default(), &patch).await.unwrap();
    }
}

/// A condition that has been so for these minutes.
fn told(kind: &str, status: &str, reason: &str, minutes: i64, message: &str) -> Value {
    let since = Clock::system().now().as_second() - 60 * minutes;
    let since = Instant::from_second(since).unwrap();
    json!({"type": kind, "status": status, "reason": reason, "message": message,
           "lastTransitionTime": since.to_string(), "observedGeneration": 1})
}

/// Where a few things are wrong.
fn sick() -> SocketAddr {
    let cluster = Cluster::installed(|text| text.replace("outlook:", "prospect:"));
    cluster.lease();
    let missing = "MetricSource default does not exist: ask an admin to create it, or name another in spec.analysis.source";
    let suggests = format!(
        "{missing}; http://prometheus-operated.monitoring.svc:9090 answers as one does, so this may do, if you trust who runs it: {{apiVersion: \
         davylamp.dev/v1alpha1, kind: MetricSource, metadata: {{name: default}}, spec: {{url: \
         'http://prometheus-operated.monitoring.svc:9090', allowedNamespaces: [market]}}}}"
    );
    let well = told("Ready", "True", "Completed", 600, "Healthy");
    cluster.rollout("blog", "blog", "Healthy", std::slice::from_ref(&well));
    cluster.rollout("market", "search", "Healthy", std::slice::from_ref(&well));
    cluster.rollout(
        "market",
        "cart",
        "Healthy",
        &[well.clone(), told("AnalysisReady", "False", "SourceNotFound", 25, missing)],
    );
    cluster.rollout(
        "market",
        "shop",
        "Healthy",
        &[well, told("AnalysisReady", "False", "SourceNotFound", 180, &suggests)],
    );
    cluster.rollout("market", "payments", "Degraded", &[told(
        "Stalled",
        "True",
        "Regression",
        42,
        "Degraded: all traffic is at revision 6 (Regression); rolled back; apply another template, or create a \
         RolloutAction with the verb retry",
    )]);
    cluster.rollout("blog", "feed", "Paused", &[told(
        "Reconciling",
        "True",
        "Approval",
        17,
        "Paused, step 3 of 4, 50% to revision 4: the step has passed and waits for a RolloutAction with the verb promote",
    )]);
    cluster.open(true)
}

/// All of these, in this order, wherever lines are broken.
fn assert_written(address: SocketAddr, words: &str, code: i32, parts: &[&str]) {
    let output = doctor(address, words);
    let written = text(&output, address);
    let on_one_line = written.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut rest = on_one_line.as_str();
    for part in parts {
        let found = rest.split_once(part);
        rest = found.unwrap_or_else(|| panic!("no {part:?} in its place in\n{written}")).1;
    }
    assert_eq!(output.status.code(), Some(code), "{written}");
}

#[test]
fn what_is_wrong_is_told_with_what_to_do() {
    let address = sick();
    let parts = [
        "ok API server v1.37.0-davylamp at http://127.0.0.1:6443",
        "warning definitions not those of this program",
        "ok controller davylamp-controller_7_1 is at work",
        "problem MetricSources none, and Rollouts name default",
        "kind: MetricSource",
        "url: http://prometheus-operated.monitoring.svc:9090",
        "ok Rollouts 2 of 6 as they should be",
        "market/cart for 25m, market/shop for 3h",
        "Stalled is True (Regression): market/payments for 42m",
        "warning Rollouts paused (Approval): blog/feed for 17m",
        "3 problems, 2 warnings.",
    ];
    assert_written(address, "", 1, &parts);
}

#[test]
fn programs_read_the_same() {
    let address = sick();
    let output = doctor(address, "-n market -o json");
    let found: Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(&output, address)));
    assert_eq!(
        (&found["problems"], &found["warnings"], &found["leftOut"]),
        (&3.into(), &1.into(), &0.into())
    );
    let findings = found["findings"].as_array().unwrap();
    let source = findings.iter().find(|one| one["check"] == "metricSources").unwrap();
    assert!(source["manifest"].as_str().unwrap().contains("url: http://prometheus-operated"), "{source}");
    let waiting = findings.iter().find(|one| one["condition"]["type"] == "AnalysisReady").unwrap();
    assert_eq!(waiting["condition"]["reason"], "SourceNotFound");
    assert_eq!(waiting["rollouts"][0]["name"], "cart");
    let guide = std::fs::read_to_string(root().join("docs/src/doctor.md")).unwrap();
    for object in [&found, source, waiting, &waiting["condition"], &waiting["rollouts"][0]] {
        for name in object.as_object().unwrap().keys() {
            assert!(guide.contains(&format!("`{name}`")), "{name} is not in the guide");
        }
    }
}

#[test]
fn a_cluster_without_faults_has_no_problem() {
    let cluster = Cluster::installed(str::to_owned);
    cluster.lease();
    cluster.install(&json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "MetricSource", "metadata": {"name": "default"},
        "spec": {"url": "http://prometheus.monitoring:9090", "allowedNamespaces": ["*"]},
    }));
    cluster.rollout("market", "shop", "Healthy", &[told("Ready", "True", "Completed", 600, "Healthy")]);
    assert_written(cluster.open(true), "", 0, &["ok Rollouts all as they should be", "Nothing is wrong."]);
}

#[test]
fn a_cluster_without_davylamp_says_how_it_is_installed() {
    let address = Cluster::new().open(false);
    let output = doctor(address, "");
    let written = text(&output, address);
    assert_eq!(output.status.code(), Some(1), "{written}");
    assert!(written.contains("Davylamp is not installed"), "{written}");
    assert!(
        written.contains("kubectl apply --server-side -f deploy/crds -f deploy/controller.yaml"),
        "{written}"
    );
    assert!(written.contains("no way to list Rollouts: they are not served"), "{written}");
}

#[test]
fn a_controller_that_does_not_renew_is_noticed() {
    let cluster = Cluster::installed(str::to_owned);
    cluster.lease();
    let address = cluster.open(false);
    let output = doctor(address, "");
    let written = text(&output, address);
    assert_eq!(output.status.code(), Some(1), "{written}");
    let words = written.split_whitespace().collect::<Vec<_>>().join(" ");
    assert!(words.contains("but did not renew it for 6s, last at 2026-01-01T00:00:00Z"), "{written}");
}

#[test]
fn what_one_may_not_read_is_left_out() {
    let refusal = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Forbidden", "code": 403,
                         "message": "no"});
    let address = answering(move |path| match path {
        "/version" => (200, json!({"gitVersion": "v1.36.2"})),
        path if path.starts_with("/apis/davylamp.dev/v1alpha1/namespaces/market/rollouts?") => (
            200,
            json!({"kind": "RolloutList", "apiVersion": "davylamp.dev/v1alpha1", "metadata": {}, "items": []}),
        ),
        _ => (403, refusal.clone()),
    });
    assert_written(
        address,
        "",
        0,
        &[
            "left out definitions you may not",
            "left out controller you may not",
            "ok Rollouts none in namespace market",
        ],
    );
}

#[test]
fn without_an_answer_it_could_not_look() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let output = doctor(address, "");
    assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", text(&output, address));
    let told = text(&output, address);
    assert!(told.starts_with("error: the API server at http://127.0.0.1:6443 does not answer: "), "{told}");

    let address = answering(|_| (401, json!({"kind": "Status", "code": 401, "reason": "Unauthorized"})));
    let output = doctor(address, "");
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output, address).contains("does not take the credentials"), "{}", text(&output, address));
}

/// An API server of few words: code and object by path.
fn answering(answer: impl Fn(&str) -> (u16, Value) + Send + 'static) -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut lines = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            let first = lines.next().unwrap_or_default();
            lines.take_while(|line| !line.is_empty()).for_each(drop);
            let (code, body) = answer(first.split(' ').nth(1).unwrap_or_default());
            let body = body.to_string();
            let head = format!(
                "HTTP/1.1 {code} .\r\ncontent-type: application/json\r\ncontent-length: {}",
                body.len()
            );
            // Whoever asked may be gone.
            let _ = write!(stream, "{head}\r\nconnection: close\r\n\r\n{body}");
        }
    });
    address
}

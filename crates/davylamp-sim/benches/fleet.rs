//! What 200 Rollouts with five metrics each cost the controller, at rest and while all of them are judged: its program, over
//! HTTP and in real time, in a simulated cluster with its Prometheus. Written to `bench/results/fleet.json`; with
//! `DAVYLAMP_SECONDS` it is measured for so long only, with `DAVYLAMP_ROLLOUTS` there are fewer or more, and nothing is
//! written.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a measurement for a person to look at")]
#![allow(
    clippy::disallowed_methods,
    reason = "how long is measured is said by the environment; measures real time"
)]

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt::Write as _;
use std::fs::{File, read_to_string};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::routing::get;
use axum::{Form, Router};
use davylamp_world::{Config, Series, Setting, World};
use http::{Method, Request, Response, StatusCode};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::sleep;
use tower::{Service, service_fn};

const FLEET: &str = include_str!("fleet.yaml");
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../bench/results/fleet.json");
const DEFINITIONS: [&str; 6] = [
    include_str!("../../../deploy/crds/analysistemplates.yaml"),
    include_str!("../../../deploy/crds/clusteranalysistemplates.yaml"),
    include_str!("../../../deploy/crds/metricsources.yaml"),
    include_str!("../../../deploy/crds/rolloutactions.yaml"),
    include_str!("../../../deploy/crds/rolloutruns.yaml"),
    include_str!("../../../deploy/crds/rollouts.yaml"),
];
const ROLLOUTS: u32 = 200;
const NAMESPACES: u32 = 10;
const SCRAPE: f64 = 15.0;
/// What is measured: at rest, and while all are judged.
const REST: u64 = 60;
const JUDGING: u64 = 300;
/// What is left out before it.
const CALM: u64 = 30;
const SETTLED: u64 = 120;
/// Until all Rollouts are where they should be.
const PATIENCE: Duration = Duration::from_mins(15);

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(measure());
}

async fn measure() {
    let from = |name| std::env::var(name).ok().map(|number| number.parse::<u32>().unwrap());
    let (shorter, others) = (from("DAVYLAMP_SECONDS").map(u64::from), from("DAVYLAMP_ROLLOUTS"));
    let seconds = |usual: u64| usual.min(shorter.unwrap_or(usual));
    let fleet_size = others.unwrap_or(ROLLOUTS);
    let fleet: Value = serde_yaml::from_str(FLEET).unwrap();
    let setting: Setting = serde_json::from_value(fleet["world"].clone()).unwrap();
    let config = Config { start: davylamp_api::Instant::now(), remembered: 100_000, ..Config::default() };
    let world = World::new(config, setting);
    let asked_for = Arc::<Asked>::default();
    let prometheus = serve_prometheus(world.clone(), asked_for.clone()).await;
    let api = serve_api(world.clone(), asked_for.clone()).await;
    let client = world.server().client();
    install(&world, &client, prometheus, fleet_size).await;
    tokio::spawn(world.live());
    let mut controller = Controller::start(api, fleet_size);

    println!("{fleet_size} Rollouts with 5 metrics, 10 pods of the old version and 10 of the new one");
    let took = controller.wait(&client, "Healthy").await;
    println!("their pods run after {took} s");
    println!();
    println!("|  | CPU of a core | memory | at most | writes / s | queries / s | MB / s | a round |");
    println!("|---|--:|--:|--:|--:|--:|--:|--:|");
    sleep(Duration::from_secs(seconds(CALM))).await;
    let rest = controller.spend(&asked_for, seconds(REST)).await;
    rest.print("at rest");
    assert_eq!(rest.queries, 0, "nothing is asked for at rest");

    for (namespace, name) in names(fleet_size) {
        release(&client, &namespace, &name).await;
    }
    let took = controller.wait(&client, "Judging").await;
    sleep(Duration::from_secs(seconds(SETTLED))).await;
    let judging = controller.spend(&asked_for, seconds(JUDGING)).await;
    judging.print("judging");
    controller.wait(&client, "Judging").await;
    println!();
    println!("all are judged {took} s after the release; the world needs {:.0} % of a core", judging.world);
    for (what, count) in &judging.writes {
        println!("{count} x {what}");
    }
    let trouble = asked_for.0.lock().unwrap().trouble.take();
    assert!(trouble.is_none(), "the simulated Prometheus was asked what it does not know: {trouble:?}");
    // Each metric has at least one query of its own; all are asked for at each scrape, or the figures are of a world that
    // could not keep up.
    let behind = (judging.round() - judging.round().round()).abs();
    assert!(
        judging.round() > 4.0 && behind < 0.2,
        "{:.2} queries a round: the world is slow",
        judging.round()
    );

    if shorter.is_none() && others.is_none() {
        let results = json!({
            "rollouts": fleet_size, "metrics": 5, "podsOfRollout": 20, "scrapeSeconds": SCRAPE,
            "atRest": rest.json(), "judging": judging.json(),
        });
        std::fs::write(RESULTS, format!("{results:#}\n")).unwrap();
    }
}

/// What the controller has asked for so far.
#[derive(Default)]
struct Asked(Mutex<Counts>);

#[derive(Clone, Default)]
struct Counts {
    /// By verb and kind.
    writes: BTreeMap<String, u32>,
    queries: u32,
    bytes: u64,
    /// The first question that could not be answered.
    trouble: Option<String>,
}

/// The API server of the world, which counts.
async fn serve_api(world: World, asked: Arc<Asked>) -> SocketAddr {
    let server = world.server().clone();
    let service = service_fn(move |request: Request<Body>| {
        let (mut server, asked) = (server.clone(), asked.clone());
        let what = (request.method() != Method::GET).then(|| what(request.method(), request.uri().path()));
        async move {
            let answer: Result<Response<davylamp_world::Body>, Infallible> = server.call(request).await;
            let answer = answer?;
            if let Some(what) = what {
                let refused = if answer.status().is_success() { "" } else { ", refused" };
                *asked.0.lock().unwrap().writes.entry(what + refused).or_default() += 1;
            }
            Ok::<_, Infallible>(answer.map(Body::new))
        }
    });
    listen(Router::new().fallback_service(service)).await
}

/// The verb, the kind and the subresource, as in `PATCH rollouts/status`.
fn what(method: &Method, path: &str) -> String {
    let mut parts = path.split('/').skip_while(|part| *part != "namespaces").skip(2);
    let (kind, sub) = (parts.next().unwrap_or("others"), parts.nth(1));
    let sub = sub.map(|sub| format!("/{sub}")).unwrap_or_default();
    format!("{method} {kind}{sub}")
}

async fn listen(router: Router) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

#[derive(Deserialize)]
struct Question {
    query: String,
    time: f64,
}

/// What has scraped the pods of the world, and counts.
async fn serve_prometheus(world: World, asked: Arc<Asked>) -> SocketAddr {
    let router = Router::new().route("/api/v1/query", get(answer).post(answer)).with_state((world, asked));
    listen(router).await
}

#[allow(clippy::cast_possible_truncation, reason = "a time in ms")]
async fn answer(
    State((world, asked)): State<(World, Arc<Asked>)>,
    Form(Question { query, time }): Form<Question>,
) -> (StatusCode, String) {
    let answer = world.query(&query, (time * 1_000.0).round() as i64);
    let mut counts = asked.0.lock().unwrap();
    counts.queries += 1;
    match answer {
        Ok(series) => {
            let text = matrix(&series);
            counts.bytes += text.len() as u64;
            (StatusCode::OK, text)
        }
        Err(error) => {
            counts.trouble.get_or_insert_with(|| format!("{query}: {error}"));
            let text = json!({"status": "error", "errorType": "bad_data", "error": error}).to_string();
            (StatusCode::BAD_REQUEST, text)
        }
    }
}

/// As Prometheus writes it. There are no native histograms in this world.
fn matrix(series: &[Series]) -> String {
    let mut text = r#"{"status":"success","data":{"resultType":"matrix","result":["#.to_owned();
    for (index, one) in series.iter().enumerate() {
        let comma = if index > 0 { "," } else { "" };
        let labels = serde_json::to_string(&one.labels).unwrap();
        write!(text, r#"{comma}{{"metric":{labels},"values":["#).unwrap();
        for (index, (at, value)) in one.samples.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            write!(text, r#"{comma}[{}.{:03},"{value}"]"#, at / 1_000, at % 1_000).unwrap();
        }
        text.push_str("]}");
    }
    text.push_str("]}}");
    text
}

/// Namespace and name of each Rollout.
fn names(count: u32) -> impl Iterator<Item = (String, String)> {
    (0..count).map(|i| (format!("team-{}", i % NAMESPACES), format!("shop-{i}")))
}

/// All that is there before the controller starts.
async fn install(world: &World, client: &Client, prometheus: SocketAddr, count: u32) {
    for definition in DEFINITIONS {
        assert!(world.server().install(definition).is_ok(), "a definition is refused");
    }
    let gateways = "/apis/gateway.networking.k8s.io/v1";
    let teams = (0..NAMESPACES).map(|i| format!("team-{i}"));
    for name in teams.chain(["davylamp-system", "gateway"].map(str::to_owned)) {
        create(client, "/api/v1/namespaces", &json!({"metadata": {"name": name}})).await;
    }
    let class = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass", "metadata": {"name": "simulated"},
        "spec": {"controllerName": "davylamp.dev/simulated-gateway"},
    });
    create(client, &format!("{gateways}/gatewayclasses"), &class).await;
    let gateway = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "davylamp"},
        "spec": {"gatewayClassName": "simulated", "listeners": [{
            "name": "http", "port": 80, "protocol": "HTTP", "allowedRoutes": {"namespaces": {"from": "All"}},
        }]},
    });
    create(client, &format!("{gateways}/namespaces/gateway/gateways"), &gateway).await;
    let source = json!({
        "apiVersion": "davylamp.dev/v1alpha1", "kind": "MetricSource", "metadata": {"name": "default"},
        "spec": {"url": format!("http://{prometheus}"), "allowedNamespaces": ["*"]},
    });
    create(client, "/apis/davylamp.dev/v1alpha1/metricsources", &source).await;
    for (namespace, name) in names(count) {
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"selector": {"app": name}, "ports": [{"name": "http", "port": 80, "targetPort": 8080}]},
        });
        create(client, &format!("/api/v1/namespaces/{namespace}/services"), &service).await;
        let backend =
            |role: &str, weight: u32| json!({"name": format!("{name}-{role}"), "port": 80, "weight": weight});
        let route = json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": name},
            "spec": {
                "parentRefs": [{"name": "davylamp", "namespace": "gateway"}],
                "rules": [{"backendRefs": [backend("stable", 100), backend("canary", 0)]}],
            },
        });
        create(client, &format!("{gateways}/namespaces/{namespace}/httproutes"), &route).await;
        let text = FLEET.replace("NAMESPACE", &namespace).replace("NAME", &name);
        let fleet: Value = serde_yaml::from_str(&text).unwrap();
        create(client, &rollouts(&namespace), &fleet["rollout"]).await;
    }
}

fn rollouts(namespace: &str) -> String {
    format!("/apis/davylamp.dev/v1alpha1/namespaces/{namespace}/rollouts")
}

async fn create(client: &Client, path: &str, object: &Value) {
    let request = Request::post(path).header("content-type", "application/json");
    let created = client.request::<Value>(request.body(object.to_string().into_bytes()).unwrap()).await;
    assert!(created.is_ok(), "{path}: {created:?}");
}

async fn release(client: &Client, namespace: &str, name: &str) {
    let patch = r#"[{"op": "replace", "path": "/spec/template/spec/containers/0/image", "value": "shop:2"}]"#;
    let request = Request::patch(format!("{}/{name}", rollouts(namespace)));
    let request = request.header("content-type", "application/json-patch+json");
    let released = client.request::<Value>(request.body(patch.as_bytes().to_vec()).unwrap()).await;
    assert!(released.is_ok(), "{name}: {released:?}");
}

/// The program that is measured. It ends with this.
struct Controller {
    child: Child,
    folder: PathBuf,
    rollouts: u32,
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Controller {
    fn start(api: SocketAddr, rollouts: u32) -> Self {
        // Cargo puts this program into a folder beside those of the workspace.
        let program =
            std::env::current_exe().unwrap().parent().unwrap().with_file_name("davylamp-controller");
        assert!(program.exists(), "no {}: build it with `make bench-fleet`", program.display());
        let folder = std::env::temp_dir().join(format!("davylamp-fleet-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "world",
            "clusters": [{"name": "world", "cluster": {"server": format!("http://{api}")}}],
            "users": [{"name": "world", "user": {}}],
            "contexts": [{"name": "world", "context": {"cluster": "world", "user": "world"}}],
        });
        let kubeconfig = folder.join("kubeconfig");
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        let log = File::create(folder.join("log")).unwrap();
        let child = Command::new(program)
            .args(["run", "--listen", "127.0.0.1:0", "--allow-addresses", "127.0.0.0/8"])
            // Renewed as often as ever; a world that stops for a moment is not to end what is measured.
            .args(["--lease-seconds", "60"])
            .env("KUBECONFIG", &kubeconfig)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        Self { child, folder, rollouts }
    }

    /// Until all Rollouts are in this state; gives how many seconds that took.
    async fn wait(&mut self, client: &Client, wanted: &str) -> u64 {
        let start = Instant::now();
        loop {
            let request = Request::get("/apis/davylamp.dev/v1alpha1/rollouts").body(Vec::new()).unwrap();
            let list = client.request::<Value>(request).await.unwrap();
            let mut counts = BTreeMap::<&str, u32>::new();
            for rollout in list["items"].as_array().unwrap() {
                let status = &rollout["status"];
                let seen = status["observedGeneration"] == rollout["metadata"]["generation"];
                let state = status["state"]["name"].as_str().filter(|_| seen).unwrap_or("unseen");
                *counts.entry(state).or_default() += 1;
            }
            if counts.get(wanted) == Some(&self.rollouts) {
                return start.elapsed().as_secs();
            }
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the controller ended: {ended:?}\n{}", self.last_words());
            let late = start.elapsed() > PATIENCE;
            assert!(!late, "not {wanted} after {PATIENCE:?}: {counts:?}\n{}", self.last_words());
            sleep(Duration::from_secs(1)).await;
        }
    }

    fn last_words(&self) -> String {
        let log = read_to_string(self.folder.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// What it costs for so long.
    async fn spend(&mut self, asked: &Asked, seconds: u64) -> Spent {
        let pid = self.child.id().to_string();
        let before = (asked.0.lock().unwrap().clone(), cpu(&pid), cpu("self"));
        let start = Instant::now();
        sleep(Duration::from_secs(seconds)).await;
        let share = |from: f64, to: f64| (to - from) / start.elapsed().as_secs_f64() * 100.0;
        let after = asked.0.lock().unwrap().clone();
        let ended = self.child.try_wait().unwrap();
        assert!(ended.is_none(), "the controller ended: {ended:?}\n{}", self.last_words());
        let writes = after.writes.into_iter().filter_map(|(what, count)| {
            let count = count - before.0.writes.get(&what).unwrap_or(&0);
            (count > 0).then_some((what, count))
        });
        Spent {
            rollouts: self.rollouts,
            seconds: start.elapsed().as_secs_f64(),
            cpu: share(before.1, cpu(&pid)),
            world: share(before.2, cpu("self")),
            memory: memory(&pid, "VmRSS:"),
            most: memory(&pid, "VmHWM:"),
            writes: writes.collect(),
            queries: after.queries - before.0.queries,
            bytes: after.bytes - before.0.bytes,
        }
    }
}

/// The CPU time of a process, threads that have ended included, in seconds.
fn cpu(pid: &str) -> f64 {
    let text = read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The name in parentheses may hold anything. Linux counts in hundredths, whatever the kernel's own clock.
    let fields: Vec<&str> = text.rsplit_once(") ").unwrap().1.split(' ').collect();
    fields[11..13].iter().map(|ticks| ticks.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

/// In MB.
fn memory(pid: &str, field: &str) -> f64 {
    let text = read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<f64>().unwrap() * 1_024.0 / 1e6
}

/// What a while has cost.
struct Spent {
    rollouts: u32,
    seconds: f64,
    /// In percent of a core: the controller, and the world.
    cpu: f64,
    world: f64,
    /// In MB: now, and the most so far.
    memory: f64,
    most: f64,
    writes: BTreeMap<String, u32>,
    queries: u32,
    bytes: u64,
}

impl Spent {
    fn written(&self) -> f64 {
        f64::from(self.writes.values().sum::<u32>()) / self.seconds
    }

    fn queried(&self) -> f64 {
        f64::from(self.queries) / self.seconds
    }

    /// Queries of a Rollout between two scrapes.
    fn round(&self) -> f64 {
        self.queried() * SCRAPE / f64::from(self.rollouts)
    }

    #[allow(clippy::cast_precision_loss, reason = "far below 2^53")]
    fn megabytes(&self) -> f64 {
        self.bytes as f64 / 1e6 / self.seconds
    }

    fn print(&self, name: &str) {
        println!(
            "| {name} | {:.1} % | {:.0} MB | {:.0} MB | {:.1} | {:.1} | {:.1} | {:.2} |",
            self.cpu,
            self.memory,
            self.most,
            self.written(),
            self.queried(),
            self.megabytes(),
            self.round(),
        );
    }

    fn json(&self) -> Value {
        let rounded = |number: f64| (number * 10.0).round() / 10.0;
        json!({
            "seconds": self.seconds.round(), "cpuPercent": rounded(self.cpu), "memoryMB": rounded(self.memory),
            "mostMemoryMB": rounded(self.most), "writes": self.writes, "queries": self.queries,
            "megabytes": rounded(self.megabytes() * self.seconds), "worldCpuPercent": rounded(self.world),
        })
    }
}

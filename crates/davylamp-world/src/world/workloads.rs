//! What a cluster's own controllers and kubelets do: [`Workloads`] makes pods of `ReplicaSet`s, lets them start, be ready
//! and end, and writes their endpoints. Carries no request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use davylamp_api::Instant;
use davylamp_api::scalar::Percent;
use http::Method;
use serde_json::{Value, json};

use super::deployment::deployments;
use super::pod::Pod;
use super::random::Random;
use crate::ApiServer;
use crate::kinds::Table;
use crate::server::write::text;
use crate::setting::{self, Setting};
use crate::store::Key;
use crate::walk::Walk;

/// How a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// There is no room for it.
    Waiting,
    Starting,
    Unready,
    Ready,
}

/// A pod as its kubelet sees it.
#[derive(Debug)]
pub(super) struct Life {
    pub(super) pod: Pod,
    uid: String,
    /// As last written.
    stage: Option<Stage>,
    /// When its process runs, and when it is ready if nothing hinders it.
    runs_at: i64,
    ready_at: i64,
    /// When and of what its process ends by itself; None: not drawn yet.
    end: Option<(i64, End)>,
    /// How often that happened, and the last time in the words of a status.
    restarts: u32,
    terminated: Value,
    random: Random,
    pub(super) container: String,
    pub(super) node: String,
    /// Its series lack a label.
    pub(super) lacks_label: bool,
    /// When it ends, once it is asked to.
    stops_at: Option<i64>,
    /// Its node is away.
    lost: bool,
    /// When it was seen to be gone; its samples stay for a while.
    gone_at: Option<i64>,
}

/// Of what a process ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Memory,
    Error,
}

impl End {
    /// The reason in a status, and the code of the exit.
    const fn words(self) -> (&'static str, i32) {
        match self {
            Self::Memory => ("OOMKilled", 137),
            Self::Error => ("Error", 1),
        }
    }
}

/// For how long samples of pods that are gone are kept, in ms.
const KEPT: i64 = 3_600_000;
/// A process lasts so long at least, in ms: one that ends at once must not stop the time.
const SHORTEST_LIFE: i64 = 1_000;

impl Life {
    /// Whether its process takes requests.
    pub(super) fn runs(&self, now: i64) -> bool {
        self.gone_at.is_none()
            && self.stage.is_some_and(|stage| stage != Stage::Waiting)
            && now >= self.runs_at
            && !self.lost
    }

    /// When its process ends by itself, if it is not known to.
    fn end(&mut self) -> (i64, End) {
        *self.end.get_or_insert_with(|| {
            let full = self.pod.full().map(|at| (at, End::Memory));
            let breaks = self.pod.breaks(self.runs_at, &mut self.random).map(|at| (at, End::Error));
            let first = full.into_iter().chain(breaks).min_by_key(|(at, _)| *at);
            let (at, end) = first.unwrap_or((i64::MAX, End::Error));
            (at.max(self.runs_at.saturating_add(SHORTEST_LIFE)), end)
        })
    }

    /// Its process ends, and begins again as it began first.
    fn restart(&mut self, end: End, look: &Look<'_>) {
        let (reason, code) = end.words();
        self.terminated = json!({"terminated": {
            "reason": reason, "exitCode": code, "startedAt": time(self.runs_at), "finishedAt": time(look.now),
        }});
        // It is seen to be down, however quick.
        let half = look.half_a_start(&mut self.random).max(1);
        (self.runs_at, self.ready_at) = (look.now + half, look.now + 2 * half);
        (self.end, self.restarts) = (None, self.restarts + 1);
        self.pod.restart(self.runs_at);
    }
}

/// What runs in the cluster.
#[derive(Debug, Default)]
pub(super) struct Workloads {
    pub(super) pods: BTreeMap<Key, Life>,
    addresses: u32,
    unready_images: BTreeSet<String>,
}

pub(super) fn table(group: &str, plural: &str) -> Table {
    Table { group: group.to_owned(), plural: plural.to_owned() }
}

pub(super) fn time(ms: i64) -> String {
    let at = Instant::from_second(ms.div_euclid(1_000)).unwrap_or(Instant::UNIX_EPOCH);
    at.to_string()
}

pub(super) fn key_of(object: &Value) -> Key {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

/// Whether the labels of an object are these, and there are some.
pub(super) fn has_labels(object: &Value, wanted: Option<&Value>) -> bool {
    let labels = object.pointer("/metadata/labels");
    wanted.and_then(Value::as_object).filter(|wanted| !wanted.is_empty()).is_some_and(|wanted| {
        wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    })
}

pub(super) fn number(object: &Value, path: &str) -> Option<i64> {
    object.path(path).and_then(Value::as_i64)
}

/// The owner that controls an object.
pub(super) fn controller(object: &Value) -> Option<&Value> {
    let references = object.pointer("/metadata/ownerReferences").and_then(Value::as_array);
    references?.iter().find(|one| one["controller"] == true)
}

/// A condition for `reason` and with a message; what it was before says since when.
pub(super) fn condition(
    status: &Value,
    type_: &str,
    is: bool,
    (reason, message): (&str, &str),
    look: &Look<'_>,
) -> Value {
    let is = if is { "True" } else { "False" };
    let before = status["conditions"].as_array().into_iter().flatten();
    let same = before.into_iter().find(|c| c["type"] == type_ && c["status"] == is);
    let since = same.map_or_else(|| time(look.now).into(), |c| c["lastTransitionTime"].clone());
    json!({"type": type_, "status": is, "reason": reason, "message": message, "lastTransitionTime": since})
}

fn is_true(pod: &Value, condition: &str) -> Option<i64> {
    let conditions = pod.pointer("/status/conditions").and_then(Value::as_array)?;
    let found = conditions.iter().find(|c| text(c, "/type") == condition && text(c, "/status") == "True")?;
    text(found, "/lastTransitionTime").parse::<Instant>().ok().map(Instant::as_millisecond)
}

/// One look at the cluster.
pub(super) struct Look<'a> {
    pub(super) server: &'a ApiServer,
    pub(super) setting: &'a Setting,
    pub(super) seed: u64,
    pub(super) now: i64,
}

impl Look<'_> {
    /// A request of ours that is refused is repeated at the next look, if it still has a reason.
    pub(super) fn write(&self, by: &str, method: &Method, path: &str, body: Value) {
        let _ = self.server.ask(by, method, path, body);
    }

    /// Half of the time the image is pulled, half the process begins; each a fifth more or less. In ms.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    fn half_a_start(&self, random: &mut Random) -> i64 {
        (self.setting.pods.start.millis() as f64 * (0.4 + 0.2 * random.share())) as i64
    }
}

/// The names of the nodes.
pub(super) fn nodes(pods: &setting::Pods) -> Vec<String> {
    pods.nodes.map_or_else(
        || vec!["node".to_owned()],
        |nodes| (1..=nodes.max(1)).map(|n| format!("node-{n}")).collect(),
    )
}

impl Workloads {
    /// Does all that is due; gives when there is more, in ms since 1970.
    pub(super) fn look(&mut self, look: &Look<'_>) -> i64 {
        let mut next = self.kubelet(look);
        next = next.min(deployments(look));
        next = next.min(replica_sets(look));
        endpoint_slices(look);
        next
    }

    /// This share of the pods of an image is lost.
    pub(super) fn lose(&mut self, image: &str, share: Percent) {
        let is_of_it = |life: &&mut Life| life.gone_at.is_none() && life.pod.image == image;
        let of_it: Vec<&mut Life> = self.pods.values_mut().filter(is_of_it).collect();
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let count = (of_it.len() as f64 * share.share()).ceil() as usize;
        for life in of_it.into_iter().take(count) {
            life.lost = true;
        }
    }

    fn present(&self) -> impl Iterator<Item = &Life> {
        self.pods.values().filter(|life| life.gone_at.is_none())
    }

    pub(super) fn restore(&mut self) {
        for life in self.pods.values_mut() {
            life.lost = false;
        }
    }

    /// Whether pods of this image become ready.
    pub(super) fn ready(&mut self, image: &str, ready: bool) {
        if ready {
            self.unready_images.remove(image);
        } else {
            self.unready_images.insert(image.to_owned());
        }
    }

    fn kubelet(&mut self, look: &Look<'_>) -> i64 {
        let mut next = i64::MAX;
        let objects = look.server.all(&table("", "pods"));
        let present: BTreeSet<Key> = objects.iter().map(|pod| key_of(pod)).collect();
        for (_, life) in self.pods.iter_mut().filter(|(key, _)| !present.contains(key)) {
            life.gone_at.get_or_insert(look.now);
            life.pod.next_scrape = i64::MAX;
        }
        self.pods.retain(|_, life| life.gone_at.is_none_or(|at| look.now - at < KEPT));
        for object in objects {
            let key = key_of(&object);
            let known = self.pods.get(&key).is_some_and(|life| life.uid == text(&object, "/metadata/uid"));
            if !known {
                self.addresses += 1;
                let life = born(look, &object, self.addresses);
                self.pods.insert(key.clone(), life);
            }
            let scheduled = self.present().filter(|life| life.stage != Some(Stage::Waiting)).count();
            let Some(life) = self.pods.get_mut(&key) else { continue };
            let path = format!("/api/v1/namespaces/{}/pods/{}", key.0, key.1);
            if object.pointer("/metadata/deletionTimestamp").is_some() {
                let stops_at = *life.stops_at.get_or_insert_with(|| {
                    let grace = number(&object, "/metadata/deletionGracePeriodSeconds").unwrap_or(30);
                    look.now + look.setting.pods.stop.millis().min(grace * 1_000)
                });
                if look.now >= stops_at {
                    look.write("kubelet", &Method::DELETE, &path, json!({"gracePeriodSeconds": 0}));
                } else {
                    next = next.min(stops_at);
                }
                continue;
            }
            let room = look.setting.pods.room.is_none_or(|room| scheduled <= room as usize);
            if life.stage.is_none_or(|stage| stage == Stage::Waiting) && !room {
                life.show(Stage::Waiting, look, &object, &path);
                continue;
            }
            if life.stage == Some(Stage::Waiting) {
                // It begins only now.
                let start = life.ready_at - life.runs_at;
                life.runs_at = look.now + start;
                life.ready_at = look.now + 2 * start;
            }
            if look.now >= life.runs_at {
                let (at, end) = life.end();
                if look.now >= at {
                    life.restart(end, look);
                } else {
                    next = next.min(at);
                }
            }
            let hindered = life.lost
                || self.unready_images.contains(&life.pod.image)
                || version(look.setting, &life.pod.image).never_ready;
            let stage = match () {
                () if look.now < life.runs_at => Stage::Starting,
                () if look.now < life.ready_at || hindered => Stage::Unready,
                () => Stage::Ready,
            };
            life.show(stage, look, &object, &path);
            for due in [life.runs_at, life.ready_at] {
                next = next.min(if due > look.now { due } else { i64::MAX });
            }
            if life.pod.next_scrape == i64::MAX && look.now >= life.runs_at {
                let interval = look.setting.scrapes.interval.millis().max(1);
                let offset = Random::of(look.seed, &format!("scrape {}", key.1)).share();
                #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
                let offset = (offset * interval as f64) as i64;
                life.pod.next_scrape =
                    (look.now - offset).div_euclid(interval) * interval + offset + interval;
            }
        }
        next
    }
}

fn version<'a>(setting: &'a Setting, image: &str) -> &'a crate::setting::Version {
    setting.versions.get(image).unwrap_or(&setting.default)
}

/// A pod that is seen for the first time.
fn born(look: &Look<'_>, object: &Value, number: u32) -> Life {
    let name = text(object, "/metadata/name");
    let image = text(object, "/spec/containers/0/image").to_owned();
    let of = |thing: &str| Random::of(look.seed, &format!("{thing} {name}"));
    let half = look.half_a_start(&mut of("start"));
    let runs_at = look.now + half;
    let address = format!("10.{}.{}.{}", 64 + (number >> 16) % 64, (number >> 8) & 255, number & 255);
    let Setting { users, scrapes, .. } = look.setting;
    let version = version(look.setting, &image).clone();
    let mut pod = Pod::new(image, address, version, of("pod"), runs_at)
        .with_endpoints(&users.endpoints, of("endpoints"));
    if scrapes.native_histograms {
        pod = pod.with_native(of("native"));
    }
    Life {
        pod,
        uid: text(object, "/metadata/uid").to_owned(),
        stage: None,
        runs_at,
        ready_at: runs_at + half,
        end: None,
        restarts: 0,
        terminated: Value::Null,
        random: of("restarts"),
        container: text(object, "/spec/containers/0/name").to_owned(),
        node: text(object, "/spec/nodeName").to_owned(),
        lacks_label: scrapes
            .missing
            .as_ref()
            .is_some_and(|missing| of("missing").share() < missing.share.share()),
        stops_at: None,
        lost: false,
        gone_at: None,
    }
}

impl Life {
    /// Writes the status, if it is another one.
    fn show(&mut self, stage: Stage, look: &Look<'_>, object: &Value, path: &str) {
        if self.stage == Some(stage) {
            return;
        }
        self.stage = Some(stage);
        let now = time(look.now);
        let condition = |type_: &str, is: bool, reason: &str| {
            let mut condition = json!({"type": type_, "status": if is { "True" } else { "False" }, "lastTransitionTime": now});
            if !is && !reason.is_empty() {
                condition["reason"] = reason.into();
            }
            condition
        };
        let ready = stage == Stage::Ready;
        let running = matches!(stage, Stage::Unready | Stage::Ready);
        let mut scheduled = condition("PodScheduled", stage != Stage::Waiting, "Unschedulable");
        if stage == Stage::Waiting {
            let nodes = nodes(&look.setting.pods).len();
            scheduled["message"] = format!("0/{nodes} nodes are available: {nodes} Too many pods.").into();
        }
        let containers = object.pointer("/spec/containers").and_then(Value::as_array);
        let restarted = self.restarts > 0;
        // One that has ended is counted when it runs again.
        self.pod.restarts = self.restarts - u32::from(restarted && !running);
        let container = |container: &Value| {
            let doing = match (running, restarted) {
                (true, _) => json!({"running": {"startedAt": time(self.runs_at)}}),
                (false, true) => json!({"waiting": {"reason": "CrashLoopBackOff"}}),
                (false, false) => json!({"waiting": {"reason": "ContainerCreating"}}),
            };
            let mut status = json!({
                "name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
                "started": running, "restartCount": self.pod.restarts, "state": doing,
            });
            if restarted {
                status["lastState"] = self.terminated.clone();
            }
            status
        };
        let statuses: Vec<Value> = containers.into_iter().flatten().map(container).collect();
        let mut status = json!({
            "phase": if running || restarted { "Running" } else { "Pending" },
            "conditions": [
                scheduled,
                condition("Initialized", running || restarted, "ContainersNotInitialized"),
                condition("ContainersReady", ready, "ContainersNotReady"),
                condition("Ready", ready, "ContainersNotReady"),
            ],
            "containerStatuses": statuses,
        });
        if running {
            status["podIP"] = self.pod.address.clone().into();
            status["podIPs"] = json!([{"ip": self.pod.address}]);
        }
        look.write("kubelet", &Method::PATCH, &format!("{path}/status"), json!({"status": status}));
    }
}

fn replica_sets(look: &Look<'_>) -> i64 {
    let mut next = i64::MAX;
    let mut owned: BTreeMap<String, Vec<Arc<Value>>> = BTreeMap::new();
    let mut load: BTreeMap<String, usize> =
        nodes(&look.setting.pods).into_iter().map(|node| (node, 0)).collect();
    for pod in look.server.all(&table("", "pods")) {
        if let Some(load) = load.get_mut(text(&pod, "/spec/nodeName")) {
            *load += 1;
        }
        if let Some(controller) = controller(&pod) {
            owned.entry(text(controller, "/uid").to_owned()).or_default().push(pod);
        }
    }
    for set in look.server.all(&table("apps", "replicasets")) {
        if set.pointer("/metadata/deletionTimestamp").is_some() {
            continue;
        }
        let (namespace, name) = key_of(&set);
        let pods = owned.remove(text(&set, "/metadata/uid")).unwrap_or_default();
        let mut living: Vec<Arc<Value>> =
            pods.into_iter().filter(|pod| pod.pointer("/metadata/deletionTimestamp").is_none()).collect();
        let wanted = usize::try_from(number(&set, "/spec/replicas").unwrap_or(1)).unwrap_or(0);
        let mut taken: Vec<String> =
            living.iter().map(|pod| text(pod, "/spec/nodeName").to_owned()).collect();
        for _ in living.len()..wanted {
            // The node with the fewest pods of the set, then with the fewest of all.
            let own = |node: &String| taken.iter().filter(|one| *one == node).count();
            let Some((node, load)) = load.iter_mut().min_by_key(|(node, load)| (own(node), **load)) else {
                break;
            };
            *load += 1;
            taken.push(node.clone());
            look.write(
                "replicaset-controller",
                &Method::POST,
                &format!("/api/v1/namespaces/{namespace}/pods"),
                pod_of(&set, node),
            );
        }
        if living.len() > wanted {
            // Those that serve nobody first, then the youngest.
            living.sort_by_key(|pod| {
                let ready = is_true(pod, "Ready");
                (ready.is_none(), ready, text(pod, "/metadata/creationTimestamp").to_owned(), key_of(pod))
            });
            for pod in living.drain(wanted..) {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{}", text(&pod, "/metadata/name"));
                look.write("replicaset-controller", &Method::DELETE, &path, Value::Null);
            }
        }
        let patience = number(&set, "/spec/minReadySeconds").unwrap_or(0) * 1_000;
        let mut available = 0;
        for since in living.iter().filter_map(|pod| is_true(pod, "Ready")) {
            if look.now >= since + patience {
                available += 1;
            } else {
                next = next.min(since + patience);
            }
        }
        let ready = living.iter().filter(|pod| is_true(pod, "Ready").is_some()).count();
        let mut status =
            json!({"replicas": living.len(), "observedGeneration": set["metadata"]["generation"]});
        for (field, count) in [
            ("fullyLabeledReplicas", living.len()),
            ("readyReplicas", ready),
            ("availableReplicas", available),
        ] {
            if count > 0 {
                status[field] = count.into();
            }
        }
        if set.get("status") != Some(&status) {
            let mut changed = (*set).clone();
            changed["status"] = status;
            let path = format!("/apis/apps/v1/namespaces/{namespace}/replicasets/{name}/status");
            look.write("replicaset-controller", &Method::PUT, &path, changed);
        }
    }
    next
}

fn pod_of(set: &Value, node: &str) -> Value {
    let mut pod = set.pointer("/spec/template").cloned().unwrap_or_default();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["generateName"] = format!("{}-", text(set, "/metadata/name")).into();
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set["metadata"]["name"], "uid": set["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    }]);
    pod["spec"]["nodeName"] = node.into();
    pod
}

/// One slice for each Service that selects something.
fn endpoint_slices(look: &Look<'_>) {
    let pods = look.server.all(&table("", "pods"));
    let slices = look.server.all(&table("discovery.k8s.io", "endpointslices"));
    for service in look.server.all(&table("", "services")) {
        if service.pointer("/metadata/deletionTimestamp").is_some() {
            continue;
        }
        let selector = service.pointer("/spec/selector");
        let (namespace, name) = key_of(&service);
        let endpoints: Vec<Value> = pods
            .iter()
            .filter(|pod| text(pod, "/metadata/namespace") == namespace && has_labels(pod, selector))
            .filter(|pod| !text(pod, "/status/podIP").is_empty())
            .map(|pod| {
                let ends = pod.pointer("/metadata/deletionTimestamp").is_some();
                let ready = is_true(pod, "Ready").is_some();
                let node = pod.pointer("/spec/nodeName").and_then(Value::as_str).unwrap_or("node");
                json!({
                    "addresses": [pod["status"]["podIP"]],
                    "conditions": {"ready": ready && !ends, "serving": ready, "terminating": ends},
                    "nodeName": node,
                    "targetRef": {"kind": "Pod", "namespace": namespace, "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]},
                })
            })
            .collect();
        if selector.and_then(Value::as_object).is_none_or(serde_json::Map::is_empty) {
            continue;
        }
        let mut labels = service.pointer("/metadata/labels").cloned().unwrap_or_else(|| json!({}));
        labels["kubernetes.io/service-name"] = name.clone().into();
        labels["endpointslice.kubernetes.io/managed-by"] = "endpointslice-controller.k8s.io".into();
        let found = slices.iter().find(|slice| {
            text(slice, "/metadata/namespace") == namespace
                && slice.pointer("/metadata/labels/kubernetes.io~1service-name") == Some(&json!(name))
        });
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        if let Some(slice) = found {
            if slice["endpoints"] != json!(endpoints) || slice["metadata"]["labels"] != labels {
                let mut changed = (**slice).clone();
                changed["endpoints"] = endpoints.into();
                changed["metadata"]["labels"] = labels;
                let path = format!("{path}/{}", text(slice, "/metadata/name"));
                look.write("endpointslice-controller", &Method::PUT, &path, changed);
            }
            continue;
        }
        let slice = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {
                "generateName": format!("{name}-"), "labels": labels,
                "ownerReferences": [{
                    "apiVersion": "v1", "kind": "Service", "name": name, "uid": service["metadata"]["uid"],
                    "controller": true, "blockOwnerDeletion": true,
                }],
            },
            "addressType": "IPv4", "endpoints": endpoints,
            "ports": slice_ports(&service),
        });
        look.write("endpointslice-controller", &Method::POST, &path, slice);
    }
}

fn slice_ports(service: &Value) -> Value {
    let ports = service.pointer("/spec/ports").and_then(Value::as_array);
    let port = |port: &Value| {
        let number = port["targetPort"].as_i64().or_else(|| port["port"].as_i64());
        json!({"name": port.get("name").cloned().unwrap_or_else(|| "".into()), "port": number, "protocol": "TCP"})
    };
    ports.into_iter().flatten().map(port).collect()
}

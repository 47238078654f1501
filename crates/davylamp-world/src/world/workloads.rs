//! What a cluster's own controllers and kubelets do: [`Workloads`] makes pods of `ReplicaSet`s, lets them start, be ready
//! and end, and writes their endpoints. Carries no request.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use davylamp_api::Instant;
use davylamp_api::scalar::Percent;
use http::Method;
use serde_json::{Value, json};

use super::pod::Pod;
use super::random::Random;
use crate::ApiServer;
use crate::kinds::Table;
use crate::server::write::text;
use crate::setting::Setting;
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
    /// When it ends, once it is asked to.
    stops_at: Option<i64>,
    /// Its node is away.
    lost: bool,
    /// When it was seen to be gone; its samples stay for a while.
    gone_at: Option<i64>,
}

/// For how long samples of pods that are gone are kept, in ms.
const KEPT: i64 = 3_600_000;

impl Life {
    /// Whether its process takes requests.
    pub(super) fn runs(&self, now: i64) -> bool {
        self.gone_at.is_none()
            && self.stage.is_some_and(|stage| stage != Stage::Waiting)
            && now >= self.runs_at
            && !self.lost
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

fn key_of(object: &Value) -> Key {
    (text(object, "/metadata/namespace").to_owned(), text(object, "/metadata/name").to_owned())
}

/// Whether the labels of an object are these, and there are some.
fn has_labels(object: &Value, wanted: Option<&Value>) -> bool {
    let labels = object.pointer("/metadata/labels");
    wanted.and_then(Value::as_object).filter(|wanted| !wanted.is_empty()).is_some_and(|wanted| {
        wanted.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    })
}

fn number(object: &Value, path: &str) -> Option<i64> {
    object.path(path).and_then(Value::as_i64)
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
}

impl Workloads {
    /// Does all that is due; gives when there is more, in ms since 1970.
    pub(super) fn look(&mut self, look: &Look<'_>) -> i64 {
        let mut next = self.kubelet(look);
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
    let mut random = Random::of(look.seed, &format!("start {name}"));
    // Half of the time the image is pulled, half the process begins; each a fifth more or less.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)]
    let half = (look.setting.pods.start.millis() as f64 * (0.4 + 0.2 * random.share())) as i64;
    let runs_at = look.now + half;
    let address = format!("10.{}.{}.{}", 64 + (number >> 16) % 64, (number >> 8) & 255, number & 255);
    let pod = Pod::new(
        image.clone(),
        address,
        version(look.setting, &image).clone(),
        Random::of(look.seed, &format!("pod {name}")),
        runs_at,
    );
    Life {
        pod,
        uid: text(object, "/metadata/uid").to_owned(),
        stage: None,
        runs_at,
        ready_at: runs_at + half,
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
            scheduled["message"] = "0/1 nodes are available: 1 Too many pods.".into();
        }
        let containers = object.pointer("/spec/containers").and_then(Value::as_array);
        let container = |container: &Value| {
            let doing = if running {
                json!({"running": {"startedAt": time(self.runs_at)}})
            } else {
                json!({"waiting": {"reason": "ContainerCreating"}})
            };
            json!({"name": container["name"], "image": container["image"], "imageID": "", "ready": ready,
                   "started": running, "restartCount": 0, "state": doing})
        };
        let statuses: Vec<Value> = containers.into_iter().flatten().map(container).collect();
        let mut status = json!({
            "phase": if running { "Running" } else { "Pending" },
            "conditions": [
                scheduled,
                condition("Initialized", running, "ContainersNotInitialized"),
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
    for pod in look.server.all(&table("", "pods")) {
        let references = pod.pointer("/metadata/ownerReferences").and_then(Value::as_array);
        let controls = |one: &&Value| one["controller"] == true;
        if let Some(controller) = references.into_iter().flatten().find(controls) {
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
        for _ in living.len()..wanted {
            look.write(
                "replicaset-controller",
                &Method::POST,
                &format!("/api/v1/namespaces/{namespace}/pods"),
                pod_of(&set),
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

fn pod_of(set: &Value) -> Value {
    let mut pod = set.pointer("/spec/template").cloned().unwrap_or_default();
    pod["apiVersion"] = "v1".into();
    pod["kind"] = "Pod".into();
    pod["metadata"]["generateName"] = format!("{}-", text(set, "/metadata/name")).into();
    pod["metadata"]["ownerReferences"] = json!([{
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set["metadata"]["name"], "uid": set["metadata"]["uid"],
        "controller": true, "blockOwnerDeletion": true,
    }]);
    pod["spec"]["nodeName"] = "node".into();
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
                json!({
                    "addresses": [pod["status"]["podIP"]],
                    "conditions": {"ready": ready && !ends, "serving": ready, "terminating": ends},
                    "nodeName": "node",
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

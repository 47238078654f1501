//! What the Deployment controller does: [`deployments`] makes a `ReplicaSet` of each template, and moves the size from the
//! old ones to the newest within what the strategy allows. Makes no pod.

use std::sync::Arc;

use davylamp_api::Instant;
use http::Method;
use serde_json::{Value, json};

use super::random::hash;
use super::workloads::{Look, condition, controller, has_labels, key_of, number, table, time};
use crate::server::write::text;

const HASH: &str = "pod-template-hash";
const REVISION: &str = "deployment.kubernetes.io/revision";
/// Of which no word is made.
const LETTERS: &str = "bcdfghjklmnpqrstvwxz2456789";
const BY: &str = "deployment-controller";

/// Does all that is due; gives when there is more, in ms since 1970.
pub(super) fn deployments(look: &Look<'_>) -> i64 {
    let mut next = i64::MAX;
    let all = look.server.all(&table("apps", "deployments"));
    let living = |object: &&Arc<Value>| object.pointer("/metadata/deletionTimestamp").is_none();
    for object in all.iter().filter(living) {
        let (namespace, name) = key_of(object);
        let uid = text(object, "/metadata/uid");
        let mut sets = look.server.all(&table("apps", "replicasets"));
        sets.retain(|set| living(&set) && key_of(set).0 == namespace);
        for set in &sets {
            if controller(set).is_none() && has_labels(set, object.pointer("/spec/selector/matchLabels")) {
                let owner = json!({"metadata": {"ownerReferences": [owner(object)]}});
                look.write(BY, &Method::PATCH, &path("replicasets", set), owner);
            }
        }
        sets.retain(|set| controller(set).is_some_and(|owner| text(owner, "/uid") == uid));
        sets.sort_by_key(|set| (revision(set), key_of(set)));
        let index = sets.iter().position(|set| template(set) == object["spec"]["template"]);
        let newest = index.map(|index| sets.remove(index));
        let deployment = Deployment { object, name, newest, old: sets };
        if object.pointer("/spec/paused") != Some(&Value::Bool(true)) {
            deployment.roll(look);
        }
        next = next.min(deployment.report(look));
    }
    next
}

fn path(plural: &str, object: &Value) -> String {
    let (namespace, name) = key_of(object);
    format!("/apis/apps/v1/namespaces/{namespace}/{plural}/{name}")
}

fn owner(deployment: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "name": deployment["metadata"]["name"],
        "uid": deployment["metadata"]["uid"], "controller": true, "blockOwnerDeletion": true,
    })
}

fn revision(set: &Value) -> i64 {
    let annotations = set.pointer("/metadata/annotations");
    annotations.and_then(|a| a[REVISION].as_str()).and_then(|r| r.parse().ok()).unwrap_or(0)
}

/// As its Deployment has it.
fn template(set: &Value) -> Value {
    let mut template = set.pointer("/spec/template").cloned().unwrap_or_default();
    if let Some(labels) = template.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) {
        labels.remove(HASH);
    }
    template
}

fn size(set: &Value) -> i64 {
    number(set, "/spec/replicas").unwrap_or(0)
}

fn available(set: &Value) -> i64 {
    number(set, "/status/availableReplicas").unwrap_or(0)
}

/// A number, or a percentage of `of`; `more` is added before it is rounded down.
fn part(value: &Value, of: i64, more: i64) -> i64 {
    let percent = || value.as_str()?.strip_suffix('%')?.parse::<i64>().ok();
    value.as_i64().or_else(|| percent().map(|percent| (of * percent + more) / 100)).unwrap_or(0)
}

struct Deployment<'a> {
    object: &'a Arc<Value>,
    name: String,
    newest: Option<Arc<Value>>,
    /// In the order of their revisions.
    old: Vec<Arc<Value>>,
}

impl Deployment<'_> {
    fn wanted(&self) -> i64 {
        number(self.object, "/spec/replicas").unwrap_or(1)
    }

    /// How many pods more than wanted there may be, and how many fewer may serve.
    fn slack(&self) -> (i64, i64) {
        let wanted = self.wanted();
        if text(self.object, "/spec/strategy/type") == "Recreate" {
            return (0, wanted);
        }
        let rolling = &self.object["spec"]["strategy"]["rollingUpdate"];
        let (surge, fewer) =
            (part(&rolling["maxSurge"], wanted, 99), part(&rolling["maxUnavailable"], wanted, 0));
        if surge == 0 && fewer == 0 { (0, 1) } else { (surge, fewer) }
    }

    fn all(&self) -> impl Iterator<Item = &Arc<Value>> {
        self.old.iter().chain(&self.newest)
    }

    /// One step: the newest grows, or the others shrink.
    fn roll(&self, look: &Look<'_>) {
        let recreates = text(self.object, "/spec/strategy/type") == "Recreate";
        let total: i64 = self.all().map(|set| size(set)).sum();
        let (surge, fewer) = self.slack();
        let is = self.newest.as_ref().map_or(0, |set| size(set));
        let room = self.wanted() + surge - total;
        let grown = if recreates && total > is { is } else { (is + room.max(0)).min(self.wanted()) };
        let Some(newest) = &self.newest else { return self.create(grown, look) };
        if is != grown {
            return scale(newest, grown, look);
        }
        self.count(newest, look);
        let least = self.wanted() - fewer;
        let mut spare = total - least - (is - available(newest));
        let mut serving: i64 = self.all().map(|set| available(set)).sum();
        for set in &self.old {
            let (size, serves) = (size(set), available(set));
            // Pods that serve nobody go first, and cost nothing.
            let idle = (size - serves).clamp(0, spare.max(0));
            let busy = serves.min(spare - idle).min(serving - least).max(0);
            if idle + busy > 0 {
                scale(set, size - idle - busy, look);
                spare -= idle + busy;
                serving -= busy;
            }
        }
        if total == is {
            let kept = usize::try_from(number(self.object, "/spec/revisionHistoryLimit").unwrap_or(10));
            for set in self.old.iter().rev().skip(kept.unwrap_or(10)) {
                look.write(BY, &Method::DELETE, &path("replicasets", set), Value::Null);
            }
        }
    }

    fn create(&self, replicas: i64, look: &Look<'_>) {
        let mut template = self.object["spec"]["template"].clone();
        let hash = hash(template.to_string().bytes());
        let letter = |place: u32| LETTERS.chars().nth(usize::try_from((hash >> (6 * place)) % 27).ok()?);
        let hash: String = (0..10).filter_map(letter).collect();
        template["metadata"]["labels"][HASH] = hash.clone().into();
        let mut selector = self.object["spec"]["selector"].clone();
        selector["matchLabels"][HASH] = hash.clone().into();
        let last = self.old.last().map_or(0, |set| revision(set));
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {
                "name": format!("{}-{hash}", self.name), "labels": template["metadata"]["labels"],
                "annotations": {REVISION: (last + 1).to_string()}, "ownerReferences": [owner(self.object)],
            },
            "spec": {"replicas": replicas, "selector": selector, "template": template},
        });
        if let Some(seconds) = self.object.pointer("/spec/minReadySeconds") {
            set["spec"]["minReadySeconds"] = seconds.clone();
        }
        let path = format!("/apis/apps/v1/namespaces/{}/replicasets", key_of(self.object).0);
        look.write(BY, &Method::POST, &path, set);
    }

    /// The newest has the highest revision, and the Deployment says so.
    fn count(&self, newest: &Value, look: &Look<'_>) {
        let last = self.old.last().map_or(0, |set| revision(set));
        let number = revision(newest).max(last + 1);
        let annotation = json!({"metadata": {"annotations": {REVISION: number.to_string()}}});
        for (plural, object) in [("replicasets", newest), ("deployments", &**self.object)] {
            if revision(object) != number {
                look.write(BY, &Method::PATCH, &path(plural, object), annotation.clone());
            }
        }
    }

    /// Writes the status, if it is another one; gives when it will be by time alone.
    fn report(&self, look: &Look<'_>) -> i64 {
        let sum = |field: &str| -> i64 {
            self.all().filter_map(|set| number(set, &format!("/status/{field}"))).sum()
        };
        let (replicas, serving) = (sum("replicas"), sum("availableReplicas"));
        let newest = self.newest.as_ref();
        let updated = newest.and_then(|set| number(set, "/status/replicas")).unwrap_or(0);
        let total: i64 = self.all().map(|set| size(set)).sum();
        let mut status = json!({"observedGeneration": self.object["metadata"]["generation"]});
        for (field, count) in [
            ("replicas", replicas),
            ("updatedReplicas", updated),
            ("readyReplicas", sum("readyReplicas")),
            ("availableReplicas", serving),
            ("unavailableReplicas", total - serving),
        ] {
            if count > 0 {
                status[field] = count.into();
            }
        }
        let before = &self.object["status"];
        let enough = serving >= self.wanted() - self.slack().1;
        let why = if enough {
            ("MinimumReplicasAvailable", "Deployment has minimum availability.")
        } else {
            ("MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        };
        let mut serves = condition(before, "Available", enough, why, look);
        updated_at(&mut serves, before, false, look);
        let complete = [replicas, updated, serving] == [self.wanted(); 3];
        let (progress, due) = self.progress(&status, complete, look);
        status["conditions"] = json!([serves, progress]);
        if *before != status {
            let mut changed = (**self.object).clone();
            changed["status"] = status;
            look.write(BY, &Method::PUT, &format!("{}/status", path("deployments", self.object)), changed);
        }
        due
    }

    /// The condition of that name, and when it will be another one by time alone.
    fn progress(&self, status: &Value, complete: bool, look: &Look<'_>) -> (Value, i64) {
        let before = &self.object["status"];
        let last = find(before, "Progressing");
        let was = last.map_or("", |last| text(last, "/reason"));
        let count = |status: &Value, field: &str| number(status, field).unwrap_or(0);
        let left = |status: &Value| count(status, "/replicas") - count(status, "/updatedReplicas");
        let name = self.newest.as_ref().map(|set| key_of(set).1).unwrap_or_default();
        let condition = |is: bool, reason: &str, message: &str| {
            condition(before, "Progressing", is, (reason, message), look)
        };
        if complete || (was == AVAILABLE && left(status) == 0) {
            let message = format!("ReplicaSet {name:?} has successfully progressed.");
            let mut progress = condition(true, AVAILABLE, &message);
            updated_at(&mut progress, before, false, look);
            return (progress, i64::MAX);
        }
        let more = |field: &&str| count(status, field) > count(before, field);
        let moved = matches!(was, "" | AVAILABLE)
            || ["/updatedReplicas", "/readyReplicas", "/availableReplicas"].iter().any(more)
            || left(status) < left(before);
        let patience = number(self.object, "/spec/progressDeadlineSeconds").unwrap_or(600) * 1_000;
        let since = last.and_then(|last| text(last, "/lastUpdateTime").parse::<Instant>().ok());
        let due = since.filter(|_| !moved).map_or(look.now, Instant::as_millisecond) + patience;
        let late = look.now >= due || (was == EXCEEDED && !moved);
        let mut progress = if late {
            let message = format!("ReplicaSet {name:?} has timed out progressing.");
            condition(false, EXCEEDED, &message)
        } else {
            condition(true, "ReplicaSetUpdated", &format!("ReplicaSet {name:?} is progressing."))
        };
        updated_at(&mut progress, before, moved, look);
        (progress, if late { i64::MAX } else { due })
    }
}

const AVAILABLE: &str = "NewReplicaSetAvailable";
const EXCEEDED: &str = "ProgressDeadlineExceeded";

fn find<'a>(status: &'a Value, condition: &str) -> Option<&'a Value> {
    status["conditions"].as_array()?.iter().find(|c| c["type"] == condition)
}

/// When it was updated: as before, if its reason is as before and nothing moved.
fn updated_at(condition: &mut Value, before: &Value, moved: bool, look: &Look<'_>) {
    let same =
        find(before, text(condition, "/type")).filter(|c| !moved && c["reason"] == condition["reason"]);
    condition["lastUpdateTime"] =
        same.map_or_else(|| time(look.now).into(), |same| same["lastUpdateTime"].clone());
}

fn scale(set: &Value, replicas: i64, look: &Look<'_>) {
    let size = json!({"spec": {"replicas": replicas}});
    look.write(BY, &Method::PATCH, &format!("{}/scale", path("replicasets", set)), size);
}

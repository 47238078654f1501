//! Kubernetes events: a [`Recorder`] that creates one for each occurrence. Takes what happened and a name that is the
//! same whenever the same occurrence is told again; gives whether it stands there. It is bounded in time and never
//! changes what its caller does.
//!
//! kube's own recorder merges events of one reason and drops the later notes.

use davylamp_api::Instant;
use davylamp_api::k8s_openapi::api::core::v1::ObjectReference;
use davylamp_api::k8s_openapi::api::events::v1::Event;
use davylamp_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tracing::{debug, info};

use crate::call::Caller;

/// What the API server takes at most, in bytes.
const LONGEST_NOTE: usize = 1024;
/// Likewise, for reason, action and instance.
const LONGEST_WORD: usize = 128;

/// Whether somebody should look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
    /// As it should be.
    Normal,
    /// Not as it should be.
    Warning,
}

impl Type {
    /// As it stands in the API.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Something that happened to an object.
#[derive(Clone, Debug)]
pub struct Occurrence {
    /// The event's name: a DNS name, the same each time this occurrence is told.
    pub name: String,
    /// Whether somebody should look.
    pub type_: Type,
    /// Why, in `PascalCase`.
    pub reason: String,
    /// What was done, in `PascalCase`.
    pub action: String,
    /// In words; cut at 1 KiB.
    pub note: String,
    /// When it happened, not when it is told.
    pub at: Instant,
}

/// Tells occurrences.
#[derive(Clone, Debug)]
pub struct Recorder {
    caller: Caller,
    instance: String,
}

impl Recorder {
    /// In the name of `instance`, this replica.
    #[must_use]
    pub fn new(caller: Caller, instance: &str) -> Self {
        Self { caller, instance: shortened(instance, LONGEST_WORD) }
    }

    /// Tells an occurrence, and whether it stands there now, by this call or by an earlier one. A failure is logged.
    pub async fn publish(&self, regarding: &ObjectReference, occurrence: &Occurrence) -> bool {
        // Where the API server wants events of cluster-scoped objects.
        let namespace = regarding.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.caller.client().clone(), namespace);
        let event = self.event(namespace, regarding, occurrence);
        let parameters = PostParams::default();
        let created = api.create(&parameters, &event);
        match self.caller.call("create Event", created).await {
            Ok(_) => true,
            Err(error) if error.is_already_exists() => {
                debug!(event = occurrence.name, "the event stands there already");
                true
            }
            Err(error) => {
                info!(event = occurrence.name, namespace, %error, "an event was not told");
                false
            }
        }
    }

    fn event(&self, namespace: &str, regarding: &ObjectReference, occurrence: &Occurrence) -> Event {
        let Occurrence { name, type_, reason, action, note, at } = occurrence;
        Event {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: Some(namespace.to_owned()),
                ..ObjectMeta::default()
            },
            type_: Some(type_.as_str().to_owned()),
            reason: Some(shortened(reason, LONGEST_WORD)),
            action: Some(shortened(action, LONGEST_WORD)),
            note: Some(shortened(note, LONGEST_NOTE)),
            event_time: Some(MicroTime(*at)),
            regarding: Some(regarding.clone()),
            reporting_controller: Some("davylamp.dev/controller".to_owned()),
            reporting_instance: Some(self.instance.clone()),
            ..Event::default()
        }
    }
}

/// At most so many bytes, whole characters; the cut is seen.
fn shortened(text: &str, limit: usize) -> String {
    if text.len() <= limit {
        return text.to_owned();
    }
    let kept = text.floor_char_boundary(limit.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..kept])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Arc, Mutex};
    use std::time::Duration;

    use futures::FutureExt;
    use serde_json::Value;

    use super::*;
    use crate::fake;
    use crate::telemetry::Telemetry;

    type Stored = Arc<Mutex<BTreeMap<String, Value>>>;

    fn recorder() -> (Recorder, Stored) {
        let stored = Stored::default();
        let server = Arc::clone(&stored);
        let client = fake::client(move |asked| {
            let server = Arc::clone(&server);
            async move {
                let name = asked.body["metadata"]["name"].as_str().unwrap().to_owned();
                match name.as_str() {
                    "slow" => return std::future::pending().await,
                    "forbidden" => return fake::no(403, "Forbidden"),
                    _ => {}
                }
                let mut stored = server.lock().unwrap();
                if stored.contains_key(&name) {
                    return fake::no(409, "AlreadyExists");
                }
                stored.insert(name, asked.body.clone());
                (201, asked.body)
            }
            .boxed()
        });
        (
            Recorder::new(Caller::new(client, Duration::from_secs(5), Telemetry::default()), "replica-a"),
            stored,
        )
    }

    fn occurrence(name: &str, note: &str) -> Occurrence {
        Occurrence {
            name: name.to_owned(),
            type_: Type::Warning,
            reason: "MetricFailed".to_owned(),
            action: "RollBack".to_owned(),
            note: note.to_owned(),
            at: "2026-07-22T10:00:00.5Z".parse().unwrap(),
        }
    }

    fn web() -> ObjectReference {
        ObjectReference {
            namespace: Some("shop".to_owned()),
            name: Some("web".to_owned()),
            ..ObjectReference::default()
        }
    }

    #[tokio::test]
    async fn tells_once_and_says_yes_twice() {
        let (recorder, stored) = recorder();
        assert!(recorder.publish(&web(), &occurrence("web-1.3", "first")).await);
        assert!(recorder.publish(&web(), &occurrence("web-1.3", "again")).await);
        let stored = stored.lock().unwrap();
        assert_eq!(stored.len(), 1);
        let event = &stored["web-1.3"];
        assert_eq!(event["metadata"]["namespace"], "shop");
        assert_eq!(event["note"], "first");
        assert_eq!(event["type"], "Warning");
        assert_eq!(event["eventTime"], "2026-07-22T10:00:00.500000Z");
        assert_eq!(event["reportingInstance"], "replica-a");
        assert_eq!(event["regarding"]["name"], "web");
    }

    #[tokio::test(start_paused = true)]
    async fn neither_silence_nor_refusal_is_the_callers_concern() {
        let (recorder, stored) = recorder();
        let start = tokio::time::Instant::now();
        assert!(!recorder.publish(&web(), &occurrence("slow", "")).await);
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert!(!recorder.publish(&web(), &occurrence("forbidden", "")).await);
        assert!(stored.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_long_note_is_cut_between_characters() {
        let (recorder, stored) = recorder();
        assert!(recorder.publish(&web(), &occurrence("long", &"ü".repeat(600))).await);
        let stored = stored.lock().unwrap();
        let note = stored["long"]["note"].as_str().unwrap();
        assert!(note.len() <= 1024 && note.ends_with("ü…"), "{} bytes", note.len());
    }
}

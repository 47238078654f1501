//! What the API server said last, one [`Cache`] a kind. [`watch`] takes an API and fills a cache from it; the cache
//! gives objects by key or in key order, and calls back with each object that changed or went away. It makes no call
//! but its own list and watch.
//!
//! **Our own writes are seen at once.** [`Cache::wrote`] keeps what the server returned until the watch has passed it.
//! Versions are compared as numbers, as the API has promised since 1.35 and etcd has always done; one that is no
//! number counts as the oldest. This saves passes; that no stale object is acted upon is the guard's part.
//!
//! **Nothing that a user writes stalls a watch.** An object that is not of its type is logged and counted, and the
//! cache keeps the version before it, if there was one: to take it for deleted would have effects.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::key::Key;
use crate::telemetry::Telemetry;

/// A page of a list arrives within this time, the back-off after an error included; kube would wait for ever.
const PAGE_LIMIT: Duration = Duration::from_secs(90);

/// What is cached: a kind with a fixed group and version.
pub trait Kind:
    Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

impl<K> Kind for K where
    K: Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + Sync + 'static
{
}

/// The objects of a kind as last seen. Clones share them.
#[derive(Clone, Debug)]
pub struct Cache<K: Kind> {
    store: Store<K>,
    own: Arc<Mutex<Own<K>>>,
    trim: fn(&mut K),
    ready: tokio::sync::watch::Sender<bool>,
}

#[derive(Debug)]
struct Own<K> {
    /// What we wrote and the watch has not brought yet.
    written: BTreeMap<Key, Arc<K>>,
    /// The version that the watch has reached.
    reached: u64,
}

impl<K: Kind> Cache<K> {
    fn new(store: Store<K>, trim: fn(&mut K)) -> Self {
        let own = Own { written: BTreeMap::new(), reached: 0 };
        Self { store, own: Arc::new(Mutex::new(own)), trim, ready: tokio::sync::watch::Sender::new(false) }
    }

    /// The newest version that we know of.
    #[must_use]
    pub fn get(&self, key: &Key) -> Option<Arc<K>> {
        // First what we wrote: it is dropped only after the store has what replaces it.
        let written = self.own().written.get(key).cloned();
        let stored = self.store.get(&reference(key));
        newer(written, stored)
    }

    /// The newest version of each object that `keep` wants, in one namespace or in all, in the order of their keys.
    /// Looks at every object of the kind.
    pub fn list(&self, namespace: Option<&str>, keep: impl Fn(&K) -> bool) -> Vec<Arc<K>> {
        let within = |object: &K| {
            namespace.is_none_or(|wanted| object.meta().namespace.as_deref().unwrap_or_default() == wanted)
        };
        let written = self.own().written.clone();
        let mut found = by_key(self.store.state_filter(|object| within(object) && keep(object)));
        for (key, object) in written.into_iter().filter(|(_, object)| within(object)) {
            let newest = newer(Some(object), self.store.get(&reference(&key)));
            match newest.filter(|object| keep(object)) {
                Some(object) => found.insert(key, object),
                None => found.remove(&key),
            };
        }
        found.into_values().collect()
    }

    /// Every key, in order.
    #[must_use]
    pub fn keys(&self) -> Vec<Key> {
        self.list(None, |_| true).iter().map(|object| Key::of(&**object)).collect()
    }

    /// Keeps what the server returned for a write of ours, unless the watch has already brought it, or what came
    /// after it.
    pub fn wrote(&self, mut object: K) {
        (self.trim)(&mut object);
        let (key, wrote) = (Key::of(&object), version(&object));
        let mut own = self.own();
        if wrote > own.reached && own.written.get(&key).is_none_or(|before| wrote > version(&**before)) {
            own.written.insert(key, Arc::new(object));
        }
    }

    /// Drops what we wrote and the watch has now passed. To be called when the store has the event. A finished list
    /// drops everything: what it lacks may have been deleted unseen.
    pub fn saw(&self, event: &Event<K>) {
        match event {
            Event::Apply(object) | Event::Delete(object) => {
                let (key, seen) = (Key::of(object), version(object));
                let mut own = self.own();
                own.reached = own.reached.max(seen);
                if own.written.get(&key).is_some_and(|written| version(&**written) <= seen) {
                    own.written.remove(&key);
                }
            }
            Event::InitDone => {
                let listed = self.store.state().iter().map(|object| version(&**object)).max();
                *self.own() = Own { written: BTreeMap::new(), reached: listed.unwrap_or(0) };
                self.ready.send_replace(true);
            }
            Event::Init | Event::InitApply(_) => {}
        }
    }

    /// Waits for the first complete list.
    pub async fn ready(&self) {
        // The sender lives in `self`, so the channel cannot close.
        let _ = self.ready.subscribe().wait_for(|ready| *ready).await;
    }

    /// The store that the watch fills, for `kube::runtime::applier`: without what we wrote.
    #[must_use]
    pub fn store(&self) -> Store<K> {
        self.store.clone()
    }

    fn own(&self) -> MutexGuard<'_, Own<K>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn newer<K: Kind>(written: Option<Arc<K>>, stored: Option<Arc<K>>) -> Option<Arc<K>> {
    match (written, stored) {
        (Some(written), Some(stored)) if version(&*written) > version(&*stored) => Some(written),
        (written, stored) => stored.or(written),
    }
}

fn by_key<K: Kind>(objects: Vec<Arc<K>>) -> BTreeMap<Key, Arc<K>> {
    objects.into_iter().map(|object| (Key::of(&*object), object)).collect()
}

fn reference<K: Kind>(key: &Key) -> ObjectRef<K> {
    let reference = ObjectRef::new(&key.name);
    if key.namespace.is_empty() { reference } else { reference.within(&key.namespace) }
}

fn version(object: &impl Resource) -> u64 {
    object.meta().resource_version.as_ref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// A cache, and the task that keeps it up to date and never ends. `trim` removes what nobody reads before an object
/// is kept. `changed` is called after the cache has an object's new version, or no longer has the object; after a list
/// for what is new, different or gone since the list before, in the order of the keys.
pub fn watch<K: Kind>(
    api: Api<DeserializeGuard<K>>,
    config: watcher::Config,
    trim: fn(&mut K),
    telemetry: Telemetry,
    changed: impl FnMut(&K) + Send + 'static,
) -> (Cache<K>, impl Future<Output = ()> + Send + 'static) {
    let (store, writer) = reflector::store();
    let cache = Cache::new(store, trim);
    let feed = Feed { cache: cache.clone(), writer, telemetry, changed };
    (cache, feed.run(api, config.page_size(500)))
}

struct Feed<K: Kind, F> {
    cache: Cache<K>,
    writer: Writer<K>,
    telemetry: Telemetry,
    changed: F,
}

impl<K: Kind, F: FnMut(&K)> Feed<K, F> {
    async fn run(mut self, api: Api<DeserializeGuard<K>>, config: watcher::Config) {
        loop {
            let mut events = pin!(watcher(api.clone(), config.clone()).default_backoff());
            let mut listing = true;
            loop {
                // Between lists, silence is no sign: kube itself reconnects a watch that has nothing to tell.
                let next =
                    if listing { timeout(PAGE_LIMIT, events.next()).await } else { Ok(events.next().await) };
                match next {
                    Ok(Some(Ok(event))) => {
                        listing = matches!(event, Event::Init | Event::InitApply(_));
                        self.take(event);
                    }
                    Ok(Some(Err(error))) => {
                        listing = matches!(error, watcher::Error::InitialListFailed(_));
                        self.failed(&error);
                    }
                    Ok(None) => break,
                    Err(_) => {
                        warn!(kind = %K::kind(&()), after = ?PAGE_LIMIT, "a list got no answer; another one is made");
                        self.telemetry.watch_failed(&K::kind(&()), "timeout");
                        break;
                    }
                }
            }
        }
    }

    fn take(&mut self, event: Event<DeserializeGuard<K>>) {
        let event = match event {
            Event::Apply(guard) => self.read(guard).map(Event::Apply),
            Event::InitApply(guard) => self.read(guard).map(Event::InitApply),
            Event::Delete(guard) => self.read_deleted(guard).map(Event::Delete),
            Event::Init => Some(Event::Init),
            Event::InitDone => Some(Event::InitDone),
        };
        if let Some(event) = event {
            self.apply(event.modify(self.cache.trim));
        }
    }

    /// The object, or the version before if this one is malformed.
    fn read(&self, guard: DeserializeGuard<K>) -> Option<K> {
        let key = Key::of(&guard);
        match guard.0 {
            Ok(object) if !key.name.is_empty() => Some(object),
            Ok(_) => None,
            Err(invalid) => {
                let kept = self.cache.store.get(&reference(&key));
                warn!(
                    kind = %K::kind(&()), object = %key, error = invalid.error, kept = kept.is_some(),
                    "an object is malformed; its last good version, if any, is used"
                );
                self.telemetry.watch_failed(&K::kind(&()), "malformed");
                kept.map(Arc::unwrap_or_clone)
            }
        }
    }

    /// What was deleted, malformed or not, as far as we have had it.
    fn read_deleted(&self, guard: DeserializeGuard<K>) -> Option<K> {
        let key = Key::of(&guard);
        guard.0.map_or_else(
            |invalid| {
                let mut known = Arc::unwrap_or_clone(self.cache.get(&key)?);
                *known.meta_mut() = invalid.metadata;
                Some(known)
            },
            Some,
        )
    }

    fn apply(&mut self, event: Event<K>) {
        let before = match &event {
            Event::InitDone => by_key(self.cache.store.state()),
            Event::Init | Event::InitApply(_) | Event::Apply(_) | Event::Delete(_) => BTreeMap::new(),
        };
        self.writer.apply_watcher_event(&event);
        self.cache.saw(&event);
        match event {
            Event::Apply(object) | Event::Delete(object) => (self.changed)(&object),
            Event::InitDone => self.listed(before),
            Event::Init | Event::InitApply(_) => {}
        }
    }

    fn listed(&mut self, before: BTreeMap<Key, Arc<K>>) {
        let mut changed = by_key(self.cache.store.state());
        for (key, old) in before {
            match changed.get(&key) {
                Some(new) if new.meta().resource_version == old.meta().resource_version => {
                    changed.remove(&key);
                }
                Some(_) => {}
                None => {
                    changed.insert(key, old);
                }
            }
        }
        for object in changed.values() {
            (self.changed)(object);
        }
    }

    /// A watch that ends is everyday life; one that cannot start is not.
    fn failed(&self, error: &watcher::Error) {
        let kind = K::kind(&());
        let reason = match error {
            watcher::Error::InitialListFailed(_) => "list",
            watcher::Error::WatchStartFailed(_) => "start",
            watcher::Error::WatchError(_) => "expired",
            watcher::Error::WatchFailed(_) => "broken",
            watcher::Error::NoResourceVersion => "no-version",
        };
        self.telemetry.watch_failed(&kind, reason);
        if matches!(reason, "expired" | "broken") {
            info!(%kind, reason, %error, "a watch was interrupted and is resumed");
        } else {
            warn!(%kind, reason, %error, "a watch could not start and is tried again: check that the kind is installed and our right to list and watch it");
        }
    }
}

#[cfg(test)]
mod tests {
    use davylamp_api::k8s_openapi::api::core::v1::ConfigMap;
    use futures::FutureExt;
    use serde_json::{Value, json};
    use tokio::sync::mpsc;

    use super::*;
    use crate::fake;

    fn raw(name: &str, version: u64) -> Value {
        json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": version.to_string(),
                            "managedFields": [{"manager": "x"}]}})
    }

    fn object(name: &str, version: u64) -> ConfigMap {
        serde_json::from_value(raw(name, version)).unwrap()
    }

    fn key(name: &str) -> Key {
        Key { namespace: "shop".to_owned(), name: name.to_owned() }
    }

    fn trim(object: &mut ConfigMap) {
        object.metadata.managed_fields = None;
    }

    type Tell = Box<dyn FnMut(&ConfigMap)>;

    struct Fixture {
        feed: Feed<ConfigMap, Tell>,
        changes: std::sync::mpsc::Receiver<String>,
    }

    impl Fixture {
        fn new() -> Self {
            let (store, writer) = reflector::store();
            let (sender, changes) = std::sync::mpsc::channel();
            let tell: Tell = Box::new(move |object| sender.send(shown(object)).unwrap());
            let cache = Cache::new(store, trim);
            Self { feed: Feed { cache, writer, telemetry: Telemetry::default(), changed: tell }, changes }
        }

        fn listed(&mut self, objects: impl IntoIterator<Item = ConfigMap>) {
            self.event(Event::Init);
            for object in objects {
                self.event(Event::InitApply(object));
            }
            self.event(Event::InitDone);
        }

        fn event(&mut self, event: Event<ConfigMap>) {
            let guard = |object| DeserializeGuard(Ok(object));
            self.feed.take(match event {
                Event::Apply(object) => Event::Apply(guard(object)),
                Event::InitApply(object) => Event::InitApply(guard(object)),
                Event::Delete(object) => Event::Delete(guard(object)),
                Event::Init => Event::Init,
                Event::InitDone => Event::InitDone,
            });
        }

        fn at(&self, name: &str) -> Option<u64> {
            self.feed.cache.get(&key(name)).map(|object| version(&*object))
        }

        fn all(&self) -> Vec<String> {
            self.feed.cache.list(Some("shop"), |_| true).iter().map(|object| shown(object)).collect()
        }

        fn changed(&self) -> Vec<String> {
            self.changes.try_iter().collect()
        }

        fn kept(&self) -> usize {
            self.feed.cache.own().written.len()
        }
    }

    fn shown(object: &ConfigMap) -> String {
        format!("{}@{}", Key::of(object).name, version(object))
    }

    #[test]
    fn our_write_is_seen_until_the_watch_has_passed_it() {
        let mut f = Fixture::new();
        f.listed([object("a", 5), object("b", 7)]);
        f.feed.cache.wrote(object("a", 9));
        assert_eq!((f.at("a"), f.at("b")), (Some(9), Some(7)));
        assert_eq!(f.all(), ["a@9", "b@7"]);
        f.feed.cache.wrote(object("a", 8));
        assert_eq!(f.at("a"), Some(9), "answers may overtake each other");
        assert!(f.feed.cache.get(&key("a")).unwrap().metadata.managed_fields.is_none(), "trimmed alike");

        f.event(Event::Apply(object("a", 8)));
        assert_eq!((f.at("a"), f.kept()), (Some(9), 1));
        f.event(Event::Apply(object("a", 9)));
        assert_eq!((f.at("a"), f.kept()), (Some(9), 0));
        f.event(Event::Apply(object("a", 12)));
        assert_eq!(f.at("a"), Some(12));
    }

    #[test]
    fn versions_are_numbers() {
        let mut f = Fixture::new();
        f.listed([object("a", 99)]);
        f.feed.cache.wrote(object("a", 100));
        assert_eq!(f.at("a"), Some(100));
        f.event(Event::Apply(object("a", 101)));
        assert_eq!((f.at("a"), f.kept()), (Some(101), 0));
    }

    #[test]
    fn what_we_created_is_there_and_what_was_deleted_is_not() {
        let mut f = Fixture::new();
        f.listed([]);
        f.feed.cache.wrote(object("new", 4));
        assert_eq!((f.at("new"), f.all()), (Some(4), vec!["new@4".to_owned()]));
        f.event(Event::Delete(object("new", 6)));
        assert_eq!((f.at("new"), f.kept()), (None, 0));

        // The deletion of an object's forerunner says nothing about the object.
        f.feed.cache.wrote(object("new", 9));
        f.event(Event::Delete(object("new", 8)));
        assert_eq!(f.at("new"), Some(9));
    }

    #[test]
    fn an_answer_slower_than_the_watch_changes_nothing() {
        let mut f = Fixture::new();
        f.listed([object("a", 5)]);
        f.event(Event::Delete(object("a", 8)));
        f.feed.cache.wrote(object("a", 7));
        assert_eq!((f.at("a"), f.kept()), (None, 0));
        f.event(Event::Apply(object("a", 20)));
        f.feed.cache.wrote(object("a", 19));
        assert_eq!((f.at("a"), f.kept()), (Some(20), 0));
    }

    #[test]
    fn a_new_list_is_the_truth_once_it_is_complete() {
        let mut f = Fixture::new();
        f.listed([object("a", 5)]);
        f.feed.cache.wrote(object("a", 9));
        f.feed.cache.wrote(object("ghost", 10));
        f.event(Event::Init);
        f.event(Event::InitApply(object("a", 11)));
        assert_eq!((f.at("a"), f.at("ghost")), (Some(9), Some(10)), "until then, the world before");
        f.event(Event::InitDone);
        assert_eq!((f.at("a"), f.at("ghost"), f.kept()), (Some(11), None, 0));
    }

    #[test]
    fn lists_filter_the_newest_version_in_order() {
        let mut f = Fixture::new();
        f.listed([object("c", 3), object("a", 1), object("b", 2)]);
        let even = |cache: &Cache<ConfigMap>| -> Vec<String> {
            cache.list(None, |object| version(object) % 2 == 0).iter().map(|o| shown(o)).collect()
        };
        assert_eq!(even(&f.feed.cache), ["b@2"]);
        f.feed.cache.wrote(object("c", 10));
        f.feed.cache.wrote(object("b", 11));
        assert_eq!(even(&f.feed.cache), ["c@10"]);
        assert_eq!(f.feed.cache.keys(), [key("a"), key("b"), key("c")]);
        assert!(f.feed.cache.list(Some("other"), |_| true).is_empty());
    }

    #[test]
    fn changes_are_told_after_the_fact_and_after_a_list_for_what_differs() {
        let mut f = Fixture::new();
        f.event(Event::Init);
        f.event(Event::InitApply(object("b", 2)));
        f.event(Event::InitApply(object("a", 1)));
        assert!(f.changed().is_empty(), "nobody could find them yet");
        f.event(Event::InitDone);
        assert_eq!(f.changed(), ["a@1", "b@2"]);
        f.event(Event::Apply(object("c", 3)));
        f.event(Event::Delete(object("a", 4)));
        assert_eq!(f.changed(), ["c@3", "a@4"]);
        f.listed([object("b", 2), object("d", 7)]);
        assert_eq!(f.changed(), ["c@3", "d@7"], "c went away unseen, b is as it was");
    }

    fn list(version: u64, items: &[Value]) -> Value {
        json!({"kind": "ConfigMapList", "apiVersion": "v1",
               "metadata": {"resourceVersion": version.to_string()}, "items": items})
    }

    fn malformed(name: &str, version: u64) -> Value {
        let mut object = raw(name, version);
        object["data"] = json!("not a map");
        object
    }

    /// Serves the list of each turn, and then a watch with the turn's lines; after the last, silence.
    fn watched(
        turns: Vec<(Value, Vec<Value>)>,
    ) -> (Cache<ConfigMap>, mpsc::UnboundedReceiver<String>, Telemetry) {
        let turns = Mutex::new(turns.into_iter());
        let lines = Mutex::new(Vec::new());
        let client = fake::client(move |asked| {
            if asked.path.contains("watch=true") {
                let lines: Vec<Value> = std::mem::take(&mut *lines.lock().unwrap());
                if lines.is_empty() {
                    return std::future::pending().boxed();
                }
                let text = lines.iter().map(Value::to_string).collect::<Vec<_>>().join("\n") + "\n";
                return std::future::ready((200, Value::String(text))).boxed();
            }
            match turns.lock().unwrap().next() {
                Some((Value::Null, _)) | None => std::future::pending().boxed(),
                Some((list, watch)) => {
                    *lines.lock().unwrap() = watch;
                    let code = list["code"].as_u64().and_then(|code| u16::try_from(code).ok());
                    std::future::ready((code.unwrap_or(200), list)).boxed()
                }
            }
        });
        let (sender, changes) = mpsc::unbounded_channel();
        let telemetry = Telemetry::default();
        let tell = move |object: &ConfigMap| sender.send(shown(object)).unwrap();
        let (cache, task) =
            watch(Api::all(client), watcher::Config::default(), trim, telemetry.clone(), tell);
        tokio::spawn(task);
        (cache, changes, telemetry)
    }

    async fn next(changes: &mut mpsc::UnboundedReceiver<String>) -> String {
        timeout(Duration::from_mins(10), changes.recv()).await.unwrap().unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_malformed_object_neither_stalls_the_others_nor_is_taken_for_deleted() {
        let event = |kind: &str, object: Value| json!({"type": kind, "object": object});
        let expired = event("ERROR", fake::no(410, "Expired").1);
        let (cache, mut changes, telemetry) = watched(vec![
            (
                list(10, &[raw("a", 1), malformed("b", 2)]),
                vec![event("MODIFIED", malformed("a", 11)), event("ADDED", raw("c", 12)), expired],
            ),
            (
                list(20, &[malformed("a", 13), raw("c", 12), raw("d", 14)]),
                vec![event("DELETED", malformed("a", 21))],
            ),
        ]);
        cache.ready().await;
        assert_eq!(next(&mut changes).await, "a@1");
        assert_eq!(next(&mut changes).await, "a@1", "its new version is not usable");
        assert_eq!(next(&mut changes).await, "c@12");
        assert_eq!(next(&mut changes).await, "d@14");
        assert_eq!(next(&mut changes).await, "a@21");
        assert_eq!(cache.keys(), [key("c"), key("d")]);
        assert!(cache.get(&key("c")).unwrap().metadata.managed_fields.is_none());
        let told = telemetry.text();
        assert!(told.contains(r#"kind="ConfigMap",reason="malformed"} 3"#), "{told}");
        assert!(told.contains(r#"reason="expired"} 1"#), "{told}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_list_that_fails_or_gets_no_answer_is_made_again() {
        let (cache, mut changes, telemetry) = watched(vec![
            (fake::no(500, "InternalError").1, vec![]),
            (Value::Null, vec![]),
            (list(10, &[raw("a", 1)]), vec![]),
        ]);
        assert!(timeout(Duration::from_mins(1), cache.ready()).await.is_err());
        assert_eq!(next(&mut changes).await, "a@1");
        cache.ready().await;
        let told = telemetry.text();
        assert!(told.contains(r#"reason="list"} 1"#) && told.contains(r#"reason="timeout"} 1"#), "{told}");
    }
}

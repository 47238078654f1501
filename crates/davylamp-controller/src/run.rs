//! The life of the process: caches are warm before the lease is held, the lease is held before anything is written, and
//! its loss ends the process.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use davylamp_api::labels;
use futures::{StreamExt, stream};
use kube::runtime::reflector::ObjectRef;
use kube::runtime::{applier, controller, watcher};
use kube::{Api, Client, Resource};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tracing::{error, info};

use crate::apply::Applier;
use crate::cache::{self, Kind};
use crate::call::Caller;
use crate::clock::Clock;
use crate::events::Recorder;
use crate::incidents::Incidents;
use crate::key::Key;
use crate::leader::{self, Elector};
use crate::memory::Memories;
use crate::metrics::suggestion::Suggestion;
use crate::metrics::{Counted, MetricsApi, Sampler};
use crate::observe::Caches;
use crate::outbox::Outbox;
use crate::reconcile::{Context, error_policy, reconcile};
use crate::record::StatusWriter;
use crate::server::{Readiness, Served, serve};
use crate::telemetry::Telemetry;
use crate::views::{self, RolloutView, label};

/// What a process is told at its start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The namespace of the lease.
    pub namespace: String,
    /// The name of the lease.
    pub lease: String,
    /// Another one in every process.
    pub identity: String,
    /// The times of the lease.
    pub election: leader::Config,
    /// The time for each call to the API server.
    pub call_limit: Duration,
    /// Rollouts that are worked on at once.
    pub concurrency: u16,
}

/// Why the process ended.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// Another replica acts now.
    #[error("the lease was lost")]
    Lost(#[from] leader::Lost),
    /// The probes cannot be served.
    #[error("the HTTP server ended")]
    Server(#[source] std::io::Error),
    /// A task that never ends did.
    #[error("the {0} ended")]
    Ended(&'static str),
}

/// Goes on until `shutdown`, which is a clean end, or until the lease is lost.
pub async fn run(
    client: Client,
    clock: Clock,
    metrics: Arc<dyn MetricsApi>,
    listener: TcpListener,
    config: Config,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), RunError> {
    let telemetry = Telemetry::default();
    let mut registry = Registry::default();
    telemetry.register(&mut registry);
    let readiness = Readiness::waiting_for(&["caches"]);
    let served = Served { registry: Arc::new(registry), readiness: readiness.clone() };
    let mut tasks: JoinSet<Result<(), RunError>> = JoinSet::new();
    tasks.spawn(
        async move { serve(listener, served, std::future::pending()).await.map_err(RunError::Server) },
    );

    let queue = Queue::default();
    let (caches, keys) = watch_all(&client, &telemetry, &queue, &mut tasks);
    let held = Wakes { queue: queue.clone(), rollouts: caches.rollouts.clone() };
    let (found, woken) = (held.clone(), queue.clone());
    let metrics = Arc::new(Counted::new(metrics, telemetry.clone()));
    let suggestion = Suggestion::new(metrics.clone(), clock, move || found.wake_sourceless());
    let sampler = Sampler::new(metrics, clock, move |key| woken.push(key.clone()));
    let caller = Caller::new(client.clone(), config.call_limit, telemetry.clone());
    let recorder = Recorder::new(caller.clone(), &config.identity);
    let context = Arc::new(Context {
        clock,
        caches: caches.clone(),
        sampler,
        suggestion,
        memories: Memories::default(),
        incidents: Incidents::new(move || held.wake_driven()),
        writer: StatusWriter::new(caller.clone()),
        applier: Applier::new(caller.clone()),
        outbox: Outbox::new(caller, recorder),
        telemetry: telemetry.clone(),
    });
    tokio::pin!(shutdown);
    tokio::select! {
        () = caches.ready() => {}
        () = &mut shutdown => return Ok(()),
        ended = tasks.join_next() => return Err(failed(ended)),
    }
    readiness.done("caches");
    info!("caches are warm");

    let lease = Key { namespace: config.namespace.clone(), name: config.lease.clone() };
    let elector =
        Elector::new(client, lease, config.identity.clone(), config.election, move || clock.now(), telemetry);
    let mut held = tokio::select! {
        held = elector.acquire() => held,
        () = &mut shutdown => return Ok(()),
        ended = tasks.join_next() => return Err(failed(ended)),
    };
    queue.open();
    note_incidents(&context);
    let work = work(context, &caches, keys, config.concurrency);
    let ended = tokio::select! {
        lost = held.keep() => Err(lost.into()),
        () = work => Err(RunError::Ended("queue")),
        ended = tasks.join_next() => Err(failed(ended)),
        () = &mut shutdown => Ok(()),
    };
    if ended.is_ok() {
        held.release().await;
    }
    ended
}

fn failed(ended: Option<Result<Result<(), RunError>, tokio::task::JoinError>>) -> RunError {
    match ended {
        Some(Ok(Err(error))) => error,
        Some(Ok(Ok(())) | Err(_)) | None => RunError::Ended("a task"),
    }
}

/// As far as the statuses know: before the first pass, so that none of them goes on alone.
fn note_incidents(context: &Context) {
    let noticed = |rollout: &RolloutView| rollout.status.as_str().contains("\"incident\":{");
    for rollout in context.caches.rollouts.list(None, noticed) {
        if let Ok(status) = rollout.status.parse() {
            context.incidents.note(&Key::of(&*rollout), &status);
        }
    }
}

async fn work(context: Arc<Context>, caches: &Caches, keys: mpsc::UnboundedReceiver<Key>, concurrency: u16) {
    let forget = context.clone();
    let all = stream::iter(caches.rollouts.keys());
    let queued = stream::unfold(keys, |mut keys| async move { Some((keys.recv().await?, keys)) });
    let requests = all.chain(queued).filter_map(move |key| {
        let known = forget.caches.rollouts.get(&key).is_some();
        if !known {
            forget.sampler.forget(&key);
            forget.telemetry.forget(&key);
            forget.memories.forget(&key);
            forget.incidents.forget(&key);
        }
        let request = ObjectRef::<RolloutView>::new(&key.name).within(&key.namespace);
        std::future::ready(known.then_some(Ok::<_, Infallible>(request)))
    });
    let config = controller::Config::default().concurrency(concurrency);
    let pass = |rollout, context| Box::pin(reconcile(rollout, context));
    applier(pass, error_policy, context, caches.rollouts.store(), requests, config)
        .for_each(|result| {
            if let Err(error) = result
                && !matches!(
                    error,
                    controller::Error::ReconcilerFailed(..) | controller::Error::ObjectNotFound(_)
                )
            {
                error!(%error, "the queue failed");
            }
            std::future::ready(())
        })
        .await;
}

/// Keys of Rollouts that are to be looked at; what comes while not leading is dropped, for all are looked at then.
#[derive(Clone, Debug)]
struct Queue {
    sender: mpsc::UnboundedSender<Key>,
    receiver: Arc<std::sync::Mutex<Option<mpsc::UnboundedReceiver<Key>>>>,
    open: Arc<AtomicBool>,
}

impl Default for Queue {
    fn default() -> Self {
        let (sender, receiver) = mpsc::unbounded_channel();
        Self {
            sender,
            receiver: Arc::new(std::sync::Mutex::new(Some(receiver))),
            open: Arc::new(AtomicBool::new(false)),
        }
    }
}

impl Queue {
    fn push(&self, key: Key) {
        if self.open.load(Ordering::Acquire) {
            // The receiver ends with the process.
            let _ = self.sender.send(key);
        }
    }

    fn open(&self) {
        self.open.store(true, Ordering::Release);
    }

    fn receiver(&self) -> mpsc::UnboundedReceiver<Key> {
        let taken = self.receiver.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        taken.unwrap_or_else(|| mpsc::unbounded_channel().1)
    }
}

struct Watches<'a> {
    client: &'a Client,
    telemetry: &'a Telemetry,
    tasks: &'a mut JoinSet<Result<(), RunError>>,
}

impl Watches<'_> {
    fn add<K: Kind>(
        &mut self,
        selector: Option<&str>,
        trim: fn(&mut K),
        changed: impl FnMut(&K) + Send + 'static,
    ) -> cache::Cache<K> {
        let config = match selector {
            Some(selector) => watcher::Config::default().labels(selector),
            None => watcher::Config::default(),
        };
        let api = Api::all(self.client.clone());
        let (cache, task) = cache::watch(api, config, trim, self.telemetry.clone(), changed);
        self.tasks.spawn(async move {
            task.await;
            Err(RunError::Ended("watch"))
        });
        cache
    }
}

fn watch_all(
    client: &Client,
    telemetry: &Telemetry,
    queue: &Queue,
    tasks: &mut JoinSet<Result<(), RunError>>,
) -> (Caches, mpsc::UnboundedReceiver<Key>) {
    let mut watches = Watches { client, telemetry, tasks };
    let owned = Some(labels::ROLLOUT);
    let active = format!("{}=true", labels::ACTIVE);
    let q = queue.clone();
    let rollouts = watches.add(None, views::trim, move |r: &RolloutView| q.push(Key::of(r)));
    let q = queue.clone();
    let actions = watches.add(None, views::trim, move |a: &davylamp_api::RolloutAction| {
        let namespace = a.metadata.namespace.clone().unwrap_or_default();
        q.push(Key { namespace, name: a.spec.rollout.clone() });
    });
    let q = Wakes { queue: queue.clone(), rollouts: rollouts.clone() };
    let caches = Caches {
        runs: watches.add(Some(&active), views::trim, q.by_label()),
        replica_sets: watches.add(owned, views::trim, q.by_label()),
        pods: watches.add(owned, views::trim, q.by_label()),
        slices: watches.add(owned, views::trim, q.by_label()),
        services: watches.add(None, views::trim, q.by_name("service")),
        routes: watches.add(None, views::keep, q.by_name("name")),
        sources: watches.add(None, views::trim, q.by_name("source")),
        templates: watches.add(None, views::trim, q.with_templates()),
        cluster_templates: watches.add(None, views::trim, q.with_templates()),
        gateways: watches.add(None, views::trim, q.in_flight()),
        classes: watches.add(None, views::trim, q.in_flight()),
        rollouts,
        actions,
    };
    (caches, queue.receiver())
}

/// Finds the Rollouts that an object is of.
#[derive(Clone)]
struct Wakes {
    queue: Queue,
    rollouts: cache::Cache<RolloutView>,
}

impl Wakes {
    fn by_label<K: Resource>(&self) -> impl FnMut(&K) + Send + 'static {
        let queue = self.queue.clone();
        move |object: &K| {
            if let Some(name) = label(object, labels::ROLLOUT) {
                let namespace = object.meta().namespace.clone().unwrap_or_default();
                queue.push(Key { namespace, name: name.to_owned() });
            }
        }
    }

    /// Rollouts whose spec names the object in this field; the text is compact, so this finds all, and at worst more.
    fn by_name<K: Resource>(&self, field: &'static str) -> impl FnMut(&K) + Send + 'static {
        let (wakes, mut label) = (self.clone(), self.by_label::<K>());
        move |object: &K| {
            label(object);
            let meta = object.meta();
            let mention = format!("\"{field}\":\"{}\"", meta.name.as_deref().unwrap_or_default());
            let mentions =
                |r: &RolloutView| r.spec.as_str().contains(&mention) || r.status.as_str().contains(&mention);
            wakes.wake(meta.namespace.as_deref(), mentions);
        }
    }

    /// Rollouts that use templates, for those may use others: in the namespace of the object, if it has one.
    fn with_templates<K: Resource>(&self) -> impl FnMut(&K) + Send + 'static {
        let wakes = self.clone();
        move |object: &K| {
            let uses = |r: &RolloutView| r.spec.as_str().contains("\"templates\":[{");
            wakes.wake(object.meta().namespace.as_deref(), uses);
        }
    }

    /// Rollouts whose routes are driven.
    fn in_flight<K: Resource>(&self) -> impl FnMut(&K) + Send + 'static {
        let wakes = self.clone();
        move |_: &K| wakes.wake_driven()
    }

    fn wake_sourceless(&self) {
        self.wake(None, |r| r.status.as_str().contains("\"SourceNotFound\""));
    }

    fn wake_driven(&self) {
        self.wake(None, |r| r.status.as_str().contains("\"originals\""));
    }

    fn wake(&self, namespace: Option<&str>, which: impl Fn(&RolloutView) -> bool) {
        for rollout in self.rollouts.list(namespace, which) {
            self.queue.push(Key::of(&*rollout));
        }
    }
}

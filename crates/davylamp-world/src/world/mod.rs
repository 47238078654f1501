//! The world around an API server: [`World`] lets workloads come and go, carries users' requests to pods, and keeps what
//! a Prometheus would have scraped of them.

mod autoscaler;
mod deployment;
mod gateway;
mod native;
mod pod;
mod promql;
mod random;
mod users;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use davylamp_api::scalar::Percent;
use promql_parser::label::Matcher;
use promql_parser::parser::VectorSelector;
use tokio::time::{Instant, sleep, sleep_until};

pub use self::native::{Bucket, NativeHistogram};
pub use self::promql::query;

use self::autoscaler::Autoscalers;
use self::gateway::Gateway;
use self::random::Random;
use self::users::Users;
use self::workloads::{Look, Workloads};
use crate::setting::{Incident, Missing, Setting};
use crate::{ApiServer, Config};

/// From a write until the cluster's controllers have seen it.
const REACTION: Duration = Duration::from_millis(50);
/// From a deletion until what belongs to the object goes.
const GARBAGE: Duration = Duration::from_millis(200);

/// What the cluster's parts look at: a change of nothing else concerns them.
const SEEN: [(&str, &str); 9] = [
    ("", "pods"),
    ("", "services"),
    ("apps", "deployments"),
    ("apps", "replicasets"),
    ("autoscaling", "horizontalpodautoscalers"),
    ("discovery.k8s.io", "endpointslices"),
    ("gateway.networking.k8s.io", "gatewayclasses"),
    ("gateway.networking.k8s.io", "gateways"),
    ("gateway.networking.k8s.io", "httproutes"),
];

/// A cluster with its users, in one process. Clones are the same world.
#[derive(Clone, Debug)]
pub struct World {
    server: ApiServer,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    seed: u64,
    setting: Setting,
    workloads: Workloads,
    gateway: Gateway,
    users: Users,
    autoscalers: Autoscalers,
    /// What the cluster's parts have seen, and when they have more to do.
    seen: [u64; 9],
    due: i64,
    /// Samples until then are forgotten.
    forgotten: i64,
    tally: Tally,
}

/// Requests and errors so far, as counted at the scrapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// By image: requests, and those that failed.
    pub versions: BTreeMap<String, (u64, u64)>,
    /// Requests that no pod answered.
    pub lost: u64,
}

/// A series and its samples.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Series {
    /// Its labels, its name among them.
    pub labels: BTreeMap<String, String>,
    /// Times in ms since 1970, and values.
    pub samples: Vec<(i64, f64)>,
    /// The same of a native histogram, which has no values.
    pub histograms: Vec<(i64, NativeHistogram)>,
}

impl World {
    /// A new cluster, at the start of its server's time.
    #[must_use]
    pub fn new(config: Config, setting: Setting) -> Self {
        let server = ApiServer::new(config);
        let now = server.inner.clock.now().as_millisecond();
        let inner = Inner {
            seed: config.seed,
            workloads: Workloads::default(),
            gateway: Gateway::default(),
            users: Users::new(setting.users.clone(), config.seed, now),
            autoscalers: Autoscalers::default(),
            seen: [0; 9],
            due: i64::MIN,
            forgotten: i64::MIN,
            tally: Tally::default(),
            setting,
        };
        Self { server, inner: Arc::new(Mutex::new(inner)) }
    }

    /// Its API server.
    #[must_use]
    pub const fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Its life; never ends.
    pub async fn live(self) {
        let garbage = self.server.clone().garbage_collector(GARBAGE);
        let life = async {
            loop {
                let next = self.look();
                tokio::select! {
                    biased;
                    () = sleep_until(next) => {}
                    () = self.stirred() => sleep(REACTION).await,
                }
            }
        };
        tokio::join!(garbage, life);
    }

    /// Errors that hit all versions alike, from now on for a while.
    pub fn incident(&self, incident: Incident) {
        self.change(|inner, now| {
            let nodes = incident.nodes.map(|count| inner.some_nodes(count, now));
            inner.users.incident(incident, nodes, now);
        });
    }

    /// Another rate of requests a second, from now on.
    pub fn users(&self, requests_per_second: f64) {
        self.change(|inner, _| inner.users.rate(requests_per_second));
    }

    /// This share of the pods of an image is lost, until [`World::restore`].
    pub fn lose(&self, image: &str, share: Percent) {
        self.change(|inner, _| inner.workloads.lose(image, share));
    }

    /// Lost pods come back.
    pub fn restore(&self) {
        self.change(|inner, _| inner.workloads.restore());
    }

    /// Whether pods of this image become ready.
    pub fn ready(&self, image: &str, ready: bool) {
        self.change(|inner, _| inner.workloads.ready(image, ready));
    }

    /// Forgets all samples until now.
    pub fn forget_samples(&self) {
        self.change(|inner, now| inner.forgotten = now);
    }

    /// Requests and errors so far, as counted at the scrapes.
    #[must_use]
    pub fn tally(&self) -> Tally {
        let inner = self.inner();
        Tally { lost: inner.users.lost, ..inner.tally.clone() }
    }

    /// The samples of a range selector, like `http_requests_total{code=~"5.."}[90s]`, or of a subquery, at a time in ms since
    /// 1970. What is wrong with it is the error.
    pub fn query(&self, promql: &str, at_ms: i64) -> Result<Vec<Series>, String> {
        promql::answer(promql, at_ms, &|selector, times| self.select(selector, &times))
    }

    fn select(&self, selector: &VectorSelector, times: &RangeInclusive<i64>) -> Vec<Series> {
        let name = selector.name.clone().unwrap_or_default();
        let matchers: &[Matcher] = &selector.matchers.matchers;
        let now = self.now();
        let inner = self.inner();
        let mut found = Vec::new();
        let jobs: &[&str] = if name == pod::RESTARTS {
            &["kube-state-metrics"]
        } else if inner.setting.scrapes.twice {
            &["pods", "pods-again"]
        } else {
            &["pods"]
        };
        let targets = inner.workloads.pods.iter().flat_map(|pod| jobs.iter().map(move |job| (pod, *job)));
        for (((namespace, pod), life), job) in targets {
            let instance =
                if name == pod::RESTARTS { "kube-state-metrics:8080" } else { life.pod.address.as_str() };
            let mut own = BTreeMap::from(
                [
                    ("__name__", name.as_str()),
                    ("namespace", namespace),
                    ("pod", pod),
                    ("instance", instance),
                    ("job", job),
                ]
                .map(|(key, value)| (key.to_owned(), value.to_owned())),
            );
            let missing = inner.setting.scrapes.missing.as_ref().filter(|_| life.lacks_label);
            if name == pod::RESTARTS {
                own.insert("container".to_owned(), life.container.clone());
            } else if let Some(Missing { label, .. }) = missing {
                own.remove(label);
            }
            let holds = |labels: &BTreeMap<String, String>, matcher: &Matcher| {
                matcher.is_match(labels.get(&matcher.name).map_or("", String::as_str))
            };
            let of_target = matchers.iter().filter(|matcher| own.contains_key(&matcher.name));
            if !of_target.into_iter().all(|matcher| holds(&own, matcher)) {
                continue;
            }
            let since = inner.forgotten.max(times.start() - 1);
            let shown = |sample: &pod::Sample| sample.at <= *times.end() && sample.visible <= now;
            let mut series = pod::series(&life.pod, &name, since, shown);
            if let Some(Missing { label, .. }) = missing {
                series = without(label, series);
            }
            let of_series: Vec<&Matcher> =
                matchers.iter().filter(|matcher| !own.contains_key(&matcher.name)).collect();
            for mut one in series {
                let empty = one.samples.is_empty() && one.histograms.is_empty();
                if !empty && of_series.iter().all(|matcher| holds(&one.labels, matcher)) {
                    one.labels.extend(own.clone());
                    found.push(one);
                }
            }
        }
        found
    }

    fn now(&self) -> i64 {
        self.server.inner.clock.now().as_millisecond()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is changed from outside holds from now on; the world looks at it at once.
    fn change(&self, change: impl FnOnce(&mut Inner, i64)) {
        let now = self.now();
        let inner = &mut *self.inner();
        inner.users.advance(&mut inner.workloads.pods, now);
        change(inner, now);
        inner.due = now;
        self.server.inner.written.notify_one();
    }

    /// Until there is something to look at before it is due.
    async fn stirred(&self) {
        loop {
            self.server.inner.written.notified().await;
            let seen = self.seen();
            let inner = self.inner();
            if seen != inner.seen || inner.due <= self.now() {
                return;
            }
        }
    }

    fn seen(&self) -> [u64; 9] {
        let state = self.server.state();
        SEEN.map(|(group, plural)| state.store.last(&workloads::table(group, plural)))
    }

    /// Does all that is due; gives when there is more.
    fn look(&self) -> Instant {
        let now = self.now();
        let inner = &mut *self.inner();
        inner.users.advance(&mut inner.workloads.pods, now);
        let seen = self.seen();
        if seen != inner.seen || now >= inner.due {
            inner.seen = seen;
            let look = Look { server: &self.server, setting: &inner.setting, seed: inner.seed, now };
            let workloads = inner.workloads.look(&look);
            let (routing, gateway) = inner.gateway.look(&look);
            if let Some(routing) = routing {
                inner.users.follow(routing);
            }
            let autoscalers = inner.autoscalers.look(&look, &inner.workloads.pods);
            inner.due = workloads.min(gateway).min(autoscalers);
        }
        let next = inner.due.min(inner.users.next()).min(inner.scrape(now));
        let wait = u64::try_from(next.saturating_sub(now)).unwrap_or(0);
        Instant::now() + Duration::from_millis(wait.min(86_400_000))
    }
}

/// Series that differ in this label alone become one: their sum.
fn without(label: &str, series: Vec<Series>) -> Vec<Series> {
    let mut found: Vec<Series> = Vec::new();
    for mut one in series {
        one.labels.remove(label);
        if let Some(same) = found.iter_mut().find(|same| same.labels == one.labels) {
            let mut sums: BTreeMap<i64, f64> = same.samples.iter().copied().collect();
            for (at, value) in one.samples {
                *sums.entry(at).or_default() += value;
            }
            same.samples = sums.into_iter().collect();
        } else {
            found.push(one);
        }
    }
    found
}

impl Inner {
    /// So many nodes, by lot.
    fn some_nodes(&self, count: u32, now: i64) -> BTreeSet<String> {
        let lot = |node: &String| Random::of(self.seed, &format!("incident {now} {node}")).share();
        let mut nodes = workloads::nodes(&self.setting.pods);
        nodes.sort_by(|a, b| lot(a).total_cmp(&lot(b)));
        nodes.into_iter().take(count as usize).collect()
    }

    /// Scrapes all pods whose turn it is; gives when the next one's is.
    fn scrape(&mut self, now: i64) -> i64 {
        let (scrapes, probes) = (&self.setting.scrapes, self.setting.pods.probes_per_second);
        let mut next = i64::MAX;
        for life in self.workloads.pods.values_mut() {
            let pod = &mut life.pod;
            while pod.next_scrape <= now {
                let (came, failed) = pod.draw();
                pod.probe(probes);
                let (requests, errors) = self.tally.versions.entry(pod.image.clone()).or_default();
                *requests += came;
                *errors += failed;
                pod.scrape(pod.next_scrape, scrapes.lost.share(), scrapes.late);
                pod.next_scrape += scrapes.interval.millis().max(1);
            }
            next = next.min(pod.next_scrape);
        }
        next
    }
}

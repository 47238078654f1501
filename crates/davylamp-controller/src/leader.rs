//! Leader election by client-go's protocol on a `Lease`. Takes a client, a name and an identity; gives [`Held`] once
//! the lease is ours, and [`Lost`] when we may no longer act. It never compares a time in the lease with a clock: a
//! lease has expired when we have seen it unchanged for its duration on our own monotonic clock, and ours counts from
//! before the request that renewed it. So skewed clocks do no harm; only clocks of different speed could, by more
//! than the third that lies between the deadline and the duration.
//!
//! This is no fence: a write of a former leader may arrive late. The guard on each status is what stops it.

use std::time::Duration;

use davylamp_api::Instant as WallTime;
use davylamp_api::k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use davylamp_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::call::{CallError, counted};
use crate::key::Key;
use crate::telemetry::Telemetry;

/// The times of the protocol; client-go's by default.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// How long others leave an unchanged lease alone. In whole seconds.
    pub lease_duration: Duration,
    /// How long we go on without a renewal: at most two thirds of `lease_duration`, whatever is written here.
    pub renew_deadline: Duration,
    /// Between two looks, and between two renewals.
    pub retry_period: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
        }
    }
}

/// Why we may no longer act. The process is to end: what it still does, another may do, too.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// The lease names another holder.
    #[error("the lease is held by {by}")]
    Taken {
        /// Its identity.
        by: String,
    },
    /// No renewal succeeded for the deadline.
    #[error("the lease was not renewed for {} s; the last attempt: {last}", after.as_secs())]
    Unrenewed {
        /// Since the last renewal was asked for.
        after: Duration,
        /// What the last attempt gave.
        last: String,
    },
}

/// A candidate.
pub struct Elector {
    api: Api<Lease>,
    lease: Key,
    identity: String,
    config: Config,
    now: Box<dyn Fn() -> WallTime + Send + Sync>,
    telemetry: Telemetry,
    seen: Option<Seen>,
}

/// The lease as it was last read or written.
struct Seen {
    lease: Lease,
    /// Since when its spec has been this.
    since: Instant,
}

/// What one attempt gave.
enum Attempt {
    /// Written by a request sent then: from then on, others leave it alone.
    Ours(Instant),
    Theirs(String),
    /// Somebody was faster; the next look tells who.
    Raced,
}

impl std::fmt::Debug for Elector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Elector")
            .field("lease", &self.lease)
            .field("identity", &self.identity)
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl Elector {
    /// `identity` must be another one in every process, such as `hostname_uuid`. `now` is written into the lease for
    /// those who read it, and decides nothing.
    #[must_use]
    pub fn new(
        client: Client,
        lease: Key,
        identity: String,
        mut config: Config,
        now: impl Fn() -> WallTime + Send + Sync + 'static,
        telemetry: Telemetry,
    ) -> Self {
        config.lease_duration = Duration::from_secs(config.lease_duration.as_secs().max(3));
        config.renew_deadline = config.renew_deadline.min(config.lease_duration * 2 / 3);
        let api = Api::namespaced(client, &lease.namespace);
        Self { api, lease, identity, config, now: Box::new(now), telemetry, seen: None }
    }

    /// Waits until the lease is ours.
    pub async fn acquire(mut self) -> Held {
        info!(lease = %self.lease, identity = self.identity, "a candidate for the lease");
        let mut holder = None;
        loop {
            match self.attempt(self.call_limit()).await {
                Ok(Attempt::Ours(renewed)) => {
                    info!(lease = %self.lease, identity = self.identity, "leading");
                    self.telemetry.leads(true);
                    return Held { elector: self, renewed };
                }
                Ok(Attempt::Theirs(by)) if holder.as_ref() != Some(&by) => {
                    info!(lease = %self.lease, holder = by, "waiting for the lease");
                    holder = Some(by);
                }
                Ok(Attempt::Theirs(_) | Attempt::Raced) => {}
                Err(error) if error.is_forbidden() => warn!(
                    lease = %self.lease, %error,
                    "no right to the lease: the service account needs get, create and update on leases of coordination.k8s.io"
                ),
                Err(error) => info!(lease = %self.lease, %error, "the lease could not be looked at"),
            }
            sleep(self.config.retry_period).await;
        }
    }

    /// Two attempts fit before the deadline even if the first gets no answer.
    fn call_limit(&self) -> Duration {
        self.config.renew_deadline / 2
    }

    /// Looks at the lease, and writes it if it is free, expired or ours; each call takes `limit` at most.
    async fn attempt(&mut self, limit: Duration) -> Result<Attempt, CallError> {
        let before = Instant::now();
        let Some(lease) = self.read(limit).await? else {
            let lease = self.ours(Lease::default());
            let parameters = PostParams::default();
            let created = self.api.create(&parameters, &lease);
            let created = counted(&self.telemetry, limit, "create Lease", created).await;
            return self.written(created, before);
        };
        self.see(&lease);
        let spec = lease.spec.clone().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if !holder.is_empty() && holder != self.identity && !self.expired(&spec, before) {
            return Ok(Attempt::Theirs(holder.to_owned()));
        }
        self.write(self.ours(lease), limit).await
    }

    async fn read(&self, limit: Duration) -> Result<Option<Lease>, CallError> {
        counted(&self.telemetry, limit, "get Lease", self.api.get_opt(&self.lease.name)).await
    }

    /// Guarded by the resourceVersion that was read.
    async fn write(&mut self, lease: Lease, limit: Duration) -> Result<Attempt, CallError> {
        let parameters = PostParams::default();
        let asked = Instant::now();
        let replaced = self.api.replace(&self.lease.name, &parameters, &lease);
        let replaced = counted(&self.telemetry, limit, "replace Lease", replaced).await;
        self.written(replaced, asked)
    }

    fn written(&mut self, answer: Result<Lease, CallError>, asked: Instant) -> Result<Attempt, CallError> {
        match answer {
            Ok(lease) => {
                self.see(&lease);
                Ok(Attempt::Ours(asked))
            }
            Err(error) if error.is_conflict() || error.is_already_exists() || error.is_not_found() => {
                debug!(lease = %self.lease, %error, "somebody else wrote the lease");
                Ok(Attempt::Raced)
            }
            Err(error) => Err(error),
        }
    }

    /// Counted from the arrival of the answer: a renewal during the request must not shorten another's time.
    fn see(&mut self, lease: &Lease) {
        let since = match &self.seen {
            Some(seen) if seen.lease.spec == lease.spec => seen.since,
            Some(_) | None => Instant::now(),
        };
        self.seen = Some(Seen { lease: lease.clone(), since });
    }

    /// Whether the spec, read by a request sent `before`, has stood for its duration.
    fn expired(&self, spec: &LeaseSpec, before: Instant) -> bool {
        let duration = spec
            .lease_duration_seconds
            .and_then(|seconds| u64::try_from(seconds).ok())
            .map_or(self.config.lease_duration, Duration::from_secs);
        self.seen.as_ref().is_some_and(|seen| before.saturating_duration_since(seen.since) >= duration)
    }

    /// The same lease with us as the holder.
    fn ours(&self, lease: Lease) -> Lease {
        let now = MicroTime((self.now)());
        let exists = lease.metadata.resource_version.is_some();
        let mut spec = lease.spec.unwrap_or_default();
        if spec.holder_identity.as_ref() != Some(&self.identity) {
            spec.holder_identity = Some(self.identity.clone());
            spec.acquire_time = Some(now.clone());
            spec.lease_transitions =
                Some(spec.lease_transitions.unwrap_or(0).saturating_add(i32::from(exists)));
        }
        spec.renew_time = Some(now);
        spec.lease_duration_seconds =
            Some(i32::try_from(self.config.lease_duration.as_secs()).unwrap_or(i32::MAX));
        let metadata = ObjectMeta { name: Some(self.lease.name.clone()), ..lease.metadata };
        Lease { metadata, spec: Some(spec) }
    }
}

/// The lease is ours, as long as [`keep`](Self::keep) is polled.
#[derive(Debug)]
pub struct Held {
    elector: Elector,
    /// When the last successful renewal was asked for.
    renewed: Instant,
}

impl Held {
    /// Renews the lease until it is lost. May be dropped at any moment, to [`release`](Self::release).
    pub async fn keep(&mut self) -> Lost {
        let lost = self.renew().await;
        self.elector.telemetry.leads(false);
        lost
    }

    async fn renew(&mut self) -> Lost {
        let deadline = self.elector.config.renew_deadline;
        let mut last = "none was made".to_owned();
        loop {
            let left = deadline.saturating_sub(self.renewed.elapsed());
            sleep(self.elector.config.retry_period.min(left)).await;
            let left = deadline.saturating_sub(self.renewed.elapsed());
            if left.is_zero() {
                return Lost::Unrenewed { after: self.renewed.elapsed(), last };
            }
            // The bound on both calls together: an answer after the deadline is worth nothing.
            let attempt = tokio::time::timeout(left, self.attempt()).await;
            match attempt {
                Ok(Ok(Attempt::Ours(asked))) => self.renewed = asked,
                Ok(Ok(Attempt::Theirs(by))) => return Lost::Taken { by },
                Ok(Ok(Attempt::Raced)) => "somebody else wrote the lease".clone_into(&mut last),
                Ok(Err(error)) => {
                    warn!(lease = %self.elector.lease, %error, "the lease was not renewed");
                    last = error.to_string();
                }
                Err(_) => "no answer before the deadline".clone_into(&mut last),
            }
        }
    }

    /// Renews what we wrote last, without a look; with one when somebody else has written since.
    async fn attempt(&mut self) -> Result<Attempt, CallError> {
        let limit = self.elector.call_limit();
        let Some(seen) = &self.elector.seen else { return self.elector.attempt(limit).await };
        let lease = self.elector.ours(seen.lease.clone());
        match self.elector.write(lease, limit).await? {
            // Another holder would be new to us, so its time cannot have run out: it is never taken over here.
            Attempt::Raced => self.elector.attempt(limit).await,
            settled @ (Attempt::Ours(_) | Attempt::Theirs(_)) => Ok(settled),
        }
    }

    /// Gives the lease back, so that another need not wait for it to expire. To be called after the last write; if it
    /// fails, the lease expires by itself.
    pub async fn release(self) -> bool {
        self.elector.telemetry.leads(false);
        let lease = &self.elector.lease;
        match self.give_back().await {
            Ok(released) => {
                info!(%lease, released, "no longer leading");
                released
            }
            Err(error) => {
                info!(%lease, %error, "the lease was not released and will expire");
                false
            }
        }
    }

    /// With a look: a renewal may have been dropped on its way, so what was written last is not known.
    async fn give_back(&self) -> Result<bool, CallError> {
        let Elector { api, lease: key, identity, now, telemetry, .. } = &self.elector;
        let limit = self.elector.call_limit();
        let Some(mut lease) = self.elector.read(limit).await? else { return Ok(false) };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(identity))
        else {
            return Ok(false);
        };
        let now = MicroTime(now());
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.acquire_time = Some(now.clone());
        spec.renew_time = Some(now);
        let parameters = PostParams::default();
        counted(telemetry, limit, "replace Lease", api.replace(&key.name, &parameters, &lease)).await?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::Method;
    use futures::FutureExt;
    use serde_json::{Value, json};
    use tokio::time::timeout;

    use super::*;
    use crate::fake;

    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    enum Mode {
        #[default]
        Well,
        Failing,
        Silent,
        /// Writes are done, but nobody hears of it.
        Deaf,
    }

    #[derive(Default)]
    struct Server {
        lease: Option<Value>,
        version: u64,
        mode: Mode,
        asked: Vec<Method>,
    }

    impl Server {
        fn answer(&mut self, method: &Method, mut body: Value) -> (u16, Value) {
            let current = self.lease.as_ref().map(|lease| lease["metadata"]["resourceVersion"].clone());
            match (method.as_str(), current) {
                ("GET", Some(_)) => return (200, self.lease.clone().unwrap()),
                ("GET" | "PUT", None) => return fake::no(404, "NotFound"),
                ("POST", Some(_)) => return fake::no(409, "AlreadyExists"),
                ("PUT", Some(version)) if version != body["metadata"]["resourceVersion"] => {
                    return fake::no(409, "Conflict");
                }
                _ => {}
            }
            self.version += 1;
            body["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.lease = Some(body.clone());
            (200, body)
        }

        fn spec(&self) -> &Value {
            &self.lease.as_ref().unwrap()["spec"]
        }
    }

    type Shared = Arc<Mutex<Server>>;

    fn candidate(server: &Shared, identity: &str, skew: i64) -> Elector {
        let shared = Arc::clone(server);
        let client = fake::client(move |asked| {
            let shared = Arc::clone(&shared);
            async move {
                let (mode, answer) = {
                    let mut server = shared.lock().unwrap();
                    server.asked.push(asked.method.clone());
                    let answer = match server.mode {
                        Mode::Well | Mode::Deaf => server.answer(&asked.method, asked.body),
                        Mode::Failing | Mode::Silent => fake::no(500, "InternalError"),
                    };
                    (server.mode, answer)
                };
                if matches!(mode, Mode::Silent | Mode::Deaf) { std::future::pending().await } else { answer }
            }
            .boxed()
        });
        let start = Instant::now();
        let now = move || {
            let elapsed = i64::try_from(start.elapsed().as_millis()).unwrap();
            WallTime::from_millisecond(1_800_000_000_000 + skew + elapsed).unwrap()
        };
        let lease = Key { namespace: "davylamp".to_owned(), name: "controller".to_owned() };
        Elector::new(client, lease, identity.to_owned(), Config::default(), now, Telemetry::default())
    }

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_creates_the_lease_as_client_go_writes_it() {
        let server = Shared::default();
        candidate(&server, "a", 0).acquire().await;
        assert_eq!(
            *server.lock().unwrap().spec(),
            json!({"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 0,
                   "acquireTime": "2027-01-15T08:00:00.000000Z", "renewTime": "2027-01-15T08:00:00.000000Z"})
        );
    }

    #[tokio::test(start_paused = true)]
    async fn only_one_of_two_holds() {
        let server = Shared::default();
        let mut a = candidate(&server, "a", 0).acquire().await;
        let hour = s(3_600);
        let b = timeout(hour, candidate(&server, "b", 0).acquire());
        let (kept, waited) = tokio::join!(timeout(hour, a.keep()), b);
        assert!(kept.is_err() && waited.is_err());
        let server = server.lock().unwrap();
        assert_eq!(server.spec()["holderIdentity"], "a");
        assert_eq!(server.spec()["acquireTime"], "2027-01-15T08:00:00.000000Z");
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_is_one_call() {
        let server = Shared::default();
        let mut a = candidate(&server, "a", 0).acquire().await;
        server.lock().unwrap().asked.clear();
        timeout(s(61), a.keep()).await.unwrap_err();
        assert_eq!(server.lock().unwrap().asked, vec![Method::PUT; 30]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_holder_is_followed_after_the_duration_whatever_the_clocks_say() {
        for skew in [-86_400_000, 0, 86_400_000] {
            let server = Shared::default();
            candidate(&server, "a", 0).acquire().await;
            let start = Instant::now();
            candidate(&server, "b", skew).acquire().await;
            let waited = start.elapsed();
            assert!((s(15)..=s(17)).contains(&waited), "{skew}: {waited:?}");
            assert_eq!(server.lock().unwrap().spec()["leaseTransitions"], 1);
            assert_eq!(server.lock().unwrap().spec()["holderIdentity"], "b");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_holder_stops_before_another_may_start() {
        for mode in [Mode::Failing, Mode::Silent] {
            let server = Shared::default();
            let mut a = candidate(&server, "a", 0).acquire().await;
            timeout(s(61), a.keep()).await.unwrap_err();
            let renewed = a.renewed;
            server.lock().unwrap().mode = mode;
            let lost = a.keep().await;
            assert_eq!(renewed.elapsed(), s(10), "{mode:?}");
            assert!(matches!(lost, Lost::Unrenewed { .. }), "{lost:?}");
            assert!(a.elector.telemetry.text().contains("\ndavylamp_leader 0\n"));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_failure_is_no_loss() {
        let server = Shared::default();
        let mut a = candidate(&server, "a", 0).acquire().await;
        let outages = async {
            for mode in [Mode::Failing, Mode::Silent, Mode::Deaf] {
                server.lock().unwrap().mode = mode;
                sleep(s(7)).await;
                server.lock().unwrap().mode = Mode::Well;
                sleep(s(60)).await;
            }
        };
        tokio::select! {
            lost = a.keep() => panic!("{lost}"),
            () = outages => {}
        }
        assert_eq!(server.lock().unwrap().spec()["leaseTransitions"], 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_by_somebody_else_is_looked_at() {
        let server = Shared::default();
        let mut a = candidate(&server, "a", 0).acquire().await;
        // A label: the version changes, the holder does not.
        {
            let mut server = server.lock().unwrap();
            let mut labelled = server.lease.clone().unwrap();
            labelled["metadata"]["labels"] = json!({"team": "x"});
            assert_eq!(server.answer(&Method::PUT, labelled).0, 200);
        }
        timeout(s(9), a.keep()).await.unwrap_err();
        {
            let mut server = server.lock().unwrap();
            assert_eq!(server.lease.as_ref().unwrap()["metadata"]["labels"]["team"], "x");
            let mut taken = server.lease.clone().unwrap();
            taken["spec"]["holderIdentity"] = json!("b");
            assert_eq!(server.answer(&Method::PUT, taken).0, 200);
        }
        assert_eq!(a.keep().await, Lost::Taken { by: "b".to_owned() });
        assert!(!a.release().await);
        assert_eq!(server.lock().unwrap().spec()["holderIdentity"], "b");
    }

    #[tokio::test(start_paused = true)]
    async fn a_deleted_lease_is_made_again() {
        let server = Shared::default();
        let mut a = candidate(&server, "a", 0).acquire().await;
        server.lock().unwrap().lease = None;
        timeout(s(9), a.keep()).await.unwrap_err();
        assert_eq!(server.lock().unwrap().spec()["holderIdentity"], "a");
    }

    #[tokio::test(start_paused = true)]
    async fn a_released_lease_is_free_at_once() {
        let server = Shared::default();
        let mut a = candidate(&server, "a", 0).acquire().await;
        timeout(s(5), a.keep()).await.unwrap_err();
        assert!(a.release().await);
        {
            let server = server.lock().unwrap();
            assert_eq!(server.spec()["holderIdentity"], "");
            assert_eq!(server.spec()["leaseDurationSeconds"], 1);
        }
        let start = Instant::now();
        candidate(&server, "b", 0).acquire().await;
        assert!(start.elapsed() < s(1));
        assert_eq!(server.lock().unwrap().spec()["leaseTransitions"], 1);
        assert_eq!(server.lock().unwrap().spec()["leaseDurationSeconds"], 15);
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_who_see_it_free_one_gets_it() {
        let server = Shared::default();
        candidate(&server, "gone", 0).acquire().await.release().await;
        let limit = s(60);
        let a = timeout(limit, async { candidate(&server, "a", 0).acquire().await.keep().await });
        let b = timeout(limit, async { candidate(&server, "b", 0).acquire().await.keep().await });
        let (a, b) = tokio::join!(a, b);
        assert!(a.is_err() && b.is_err(), "nobody lost it: {a:?} {b:?}");
        assert_eq!(server.lock().unwrap().spec()["leaseTransitions"], 1);
    }
}

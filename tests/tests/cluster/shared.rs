//! The one cluster of this process, and the one controller on it. A test enters with [`world`] beside others, or with
//! [`alone`] when it ends the controller, which runs again before the next one enters.

use std::fs::File;
use std::ops::Deref;
use std::path::PathBuf;
use std::sync::{Mutex as Latch, PoisonError};

use anyhow::{Context, Result, anyhow, ensure};
use davylamp_demo::report::Summary;
use davylamp_tests::cluster::Cluster;
use davylamp_tests::controller::Controller;
use davylamp_tests::load::{Load, answered};
use davylamp_tests::shop::{Options, Shop};
use kube::Client;
use kube::api::{Api, DeleteParams, ObjectMeta, PostParams};
use tokio::sync::{Mutex, MutexGuard, OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

use davylamp_api::k8s_openapi::api::core::v1::Namespace;

/// Lives until the process ends: the cluster then sees its standard input close, and the controller loses its lease.
static SHARED: OnceCell<Result<Shared, String>> = OnceCell::const_new();

struct Shared {
    cluster: Cluster,
    calm: RwLock<()>,
    /// None when a test has ended it.
    controller: Mutex<Option<Controller>>,
    /// Namespaces of tests that are over; their pods would take room on the node.
    left: Latch<Vec<String>>,
}

/// A namespace for one test on the shared cluster, with the shared controller at work.
pub(crate) struct World {
    pub(crate) cluster: &'static Cluster,
    /// With all rights, and of the runtime of this test.
    pub(crate) client: Client,
    pub(crate) namespace: String,
    shared: &'static Shared,
    _calm: Option<RwLockReadGuard<'static, ()>>,
}

/// A [`World`] in which no other test runs.
pub(crate) struct Alone {
    world: World,
    controller: MutexGuard<'static, Option<Controller>>,
    _calm: RwLockWriteGuard<'static, ()>,
}

/// Ends the requests of a load, of which each one must have had its answer.
pub(crate) fn nothing_failed(load: Load) -> Result<Summary> {
    let summary = load.finish()?;
    ensure!(summary.counts.failed == 0 && summary.counts.answered > 0, "{summary:#?}");
    Ok(summary)
}

/// For a test that leaves cluster and controller as they are. The name becomes the namespace.
pub(crate) async fn world(name: &str) -> Result<World> {
    let shared = shared().await?;
    let calm = shared.calm.read().await;
    World::enter(shared, name, &mut *shared.controller.lock().await, Some(calm)).await
}

/// For a test that ends the shared controller.
pub(crate) async fn alone(name: &str) -> Result<Alone> {
    let shared = shared().await?;
    let calm = shared.calm.write().await;
    let mut controller = shared.controller.lock().await;
    let world = World::enter(shared, name, &mut controller, None).await?;
    Ok(Alone { world, controller, _calm: calm })
}

impl World {
    async fn enter(
        shared: &'static Shared,
        name: &str,
        controller: &mut Option<Controller>,
        calm: Option<RwLockReadGuard<'static, ()>>,
    ) -> Result<Self> {
        let client = shared.cluster.admin().await?;
        mend(controller, &shared.cluster, &client).await?;
        let left = std::mem::take(&mut *shared.left.lock().unwrap_or_else(PoisonError::into_inner));
        for namespace in left {
            let namespaces: Api<Namespace> = Api::all(client.clone());
            let deleted = namespaces.delete(&namespace, &DeleteParams::background()).await;
            // A test may have deleted its own.
            if let Err(error) = deleted
                && !matches!(&error, kube::Error::Api(status) if status.is_not_found())
            {
                return Err(error.into());
            }
        }
        // Not one that is there, such as that of the gateway: it is deleted with the test.
        let metadata = ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() };
        let own = Namespace { metadata, ..Namespace::default() };
        Api::all(client.clone()).create(&PostParams::default(), &own).await?;
        Ok(Self { cluster: &shared.cluster, client, namespace: name.to_owned(), shared, _calm: calm })
    }

    /// A shop whose first release is Healthy, and answers.
    pub(crate) async fn shop(&self, options: Options) -> Result<Shop> {
        let shop = Shop::open(&self.client, &self.namespace, options).await?;
        answered(&self.cluster.description.gateway, &shop.host()).await?;
        Ok(shop)
    }

    /// Requests to a shop.
    pub(crate) fn load(&self, shop: &Shop, rate: u32) -> Result<Load> {
        Load::start(&self.cluster.description.gateway, &shop.host(), rate)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let mut left = self.shared.left.lock().unwrap_or_else(PoisonError::into_inner);
        left.push(std::mem::take(&mut self.namespace));
    }
}

impl Deref for Alone {
    type Target = World;

    fn deref(&self) -> &World {
        &self.world
    }
}

impl Alone {
    /// SIGKILL.
    pub(crate) fn kill_controller(&mut self) -> Result<()> {
        self.controller.take().context("no controller")?.kill()
    }

    /// SIGTERM, and a clean end.
    pub(crate) async fn stop_controller(&mut self) -> Result<()> {
        self.controller.take().context("no controller")?.stop().await
    }

    /// Starts it again, and waits until it leads.
    pub(crate) async fn start_controller(&mut self) -> Result<()> {
        ensure!(self.controller.is_none(), "the controller runs");
        *self.controller = Some(Controller::start(self.cluster, &self.client, "controller").await?);
        Ok(())
    }
}

/// It runs again when a test has ended it. That one has ended by itself is an error, once: the next test gets another.
async fn mend(controller: &mut Option<Controller>, cluster: &Cluster, client: &Client) -> Result<()> {
    if let Some(running) = controller {
        let alive = running.ensure_alive();
        if alive.is_err() {
            *controller = None;
        }
        return alive;
    }
    *controller = Some(Controller::start(cluster, client, "controller").await?);
    Ok(())
}

async fn shared() -> Result<&'static Shared> {
    let shared = SHARED.get_or_init(|| async { start().await.map_err(|error| format!("{error:#}")) }).await;
    shared.as_ref().map_err(|error| anyhow!("no cluster: {error}"))
}

async fn start() -> Result<Shared> {
    // One provider for all clients of this process.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("cluster");
    std::fs::create_dir_all(&dir)?;
    // A cluster of an earlier run that is on its way down, or of another run, holds it.
    File::options().create(true).append(true).open(dir.join("lock"))?.lock()?;
    let cluster = Cluster::start(&dir)?;
    cluster.load_demo_app()?;
    cluster.install(&cluster.admin().await?).await?;
    Ok(Shared { cluster, calm: RwLock::default(), controller: Mutex::default(), left: Latch::default() })
}

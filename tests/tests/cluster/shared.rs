//! The one cluster of this process, and the one controller on it.

use anyhow::Result;
use davylamp_tests::cluster::Cluster;
use davylamp_tests::controller::Controller;
use kube::Client;
use tokio::sync::{Mutex, OnceCell, RwLock, RwLockReadGuard};

/// The cluster and its controller. A test that needs both undisturbed holds `calm` for reading; one that stops a part
/// that others rely on holds it for writing.
pub(crate) struct Shared {
    pub(crate) cluster: Cluster,
    pub(crate) admin: Client,
    pub(crate) controller: Mutex<Option<Controller>>,
    calm: RwLock<()>,
}

static SHARED: OnceCell<Shared> = OnceCell::const_new();

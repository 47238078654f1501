//! The world around an API server: [`World`] lets workloads come and go, carries users' requests to pods, and keeps what
//! a Prometheus would have scraped of them.

use std::collections::BTreeMap;

use davylamp_api::scalar::Percent;

use crate::setting::{Incident, Setting};
use crate::{ApiServer, Config};

/// A cluster with its users, in one process. Clones are the same world.
#[derive(Clone, Debug)]
pub struct World {
    server: ApiServer,
}

/// Requests and errors so far.
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
}

impl World {
    /// A new cluster, at the start of its server's time.
    #[must_use]
    pub fn new(config: Config, _setting: Setting) -> Self {
        Self { server: ApiServer::new(config) }
    }

    /// Its API server.
    #[must_use]
    pub const fn server(&self) -> &ApiServer {
        &self.server
    }

    /// Its life; never ends.
    pub async fn live(self) {
        std::future::pending().await
    }

    /// Errors that hit all versions alike, from now on for a while.
    pub fn incident(&self, _incident: Incident) {}

    /// Another rate of requests a second, from now on.
    pub fn users(&self, _requests_per_second: f64) {}

    /// This share of the pods of an image is lost, and none comes back until [`World::restore`].
    pub fn lose(&self, _image: &str, _share: Percent) {}

    /// Lost pods come back.
    pub fn restore(&self) {}

    /// Whether pods of this image become ready.
    pub fn ready(&self, _image: &str, _ready: bool) {}

    /// The samples of a range selector, like `http_requests_total{code=~"5.."}[90s]`, at a time in ms since 1970.
    pub fn query(&self, _promql: &str, _at_ms: i64) -> Result<Vec<Series>, String> {
        Ok(Vec::new())
    }

    /// Forgets all samples until now.
    pub fn forget_samples(&self) {}

    /// Requests and errors so far.
    #[must_use]
    pub fn tally(&self) -> Tally {
        Tally::default()
    }
}

//! Who asked the API server for what, from its audit log.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use anyhow::{Context, Result};
use davylamp_tests::cluster::Cluster;
use serde_json::Value;

/// The account of the controller.
pub(crate) const CONTROLLER: &str = "system:serviceaccount:davylamp-system:davylamp-controller";

/// Requests from one moment on.
pub(crate) struct Audit {
    log: PathBuf,
    from: u64,
}

/// One request that was answered.
pub(crate) struct Request(Value);

impl Audit {
    /// From now on.
    pub(crate) fn begin(cluster: &Cluster) -> Result<Self> {
        let log = cluster.description.audit_log.clone();
        let from = std::fs::metadata(&log)?.len();
        Ok(Self { log, from })
    }

    /// Requests of the controller's account, in the order of their answers.
    pub(crate) fn of_the_controller(&self) -> Result<Vec<Request>> {
        let mut log = File::open(&self.log)?;
        log.seek(SeekFrom::Start(self.from))?;
        let mut text = String::new();
        log.read_to_string(&mut text)?;
        // The last line may be half written.
        let (lines, _) = text.rsplit_once('\n').unwrap_or_default();
        lines
            .lines()
            .map(|line| serde_json::from_str(line).map(Request).with_context(|| line.to_owned()))
            .filter(|request| request.as_ref().map_or(true, |r| r.0["user"]["username"] == CONTROLLER))
            .collect()
    }
}

impl Request {
    fn text(&self, pointer: &str) -> &str {
        self.0.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
    }

    /// The namespace of its object; empty for a watch of all.
    pub(crate) fn namespace(&self) -> &str {
        self.text("/objectRef/namespace")
    }

    /// Whether it may change something. Leases are how replicas agree on who does.
    pub(crate) fn writes(&self) -> bool {
        !matches!(self.text("/verb"), "get" | "list" | "watch")
            && self.text("/objectRef/resource") != "leases"
    }

    /// The token that it came with.
    pub(crate) fn token(&self) -> &str {
        self.text("/user/extra/authentication.kubernetes.io~1credential-id/0").trim_start_matches("JTI=")
    }

    /// What it was, in short.
    pub(crate) fn summary(&self) -> String {
        format!("{} {}", self.text("/verb"), self.text("/requestURI"))
    }
}

//! A Prometheus of a test's own, which scrapes its namespace alone and which it may stop: others go on with theirs.

use std::fs::File;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{prometheus, until};

/// Runs or is stopped; the address and the data stay. Ends with this value.
#[derive(Debug)]
pub struct OwnPrometheus {
    /// Where it answers.
    pub url: String,
    program: PathBuf,
    folder: PathBuf,
    child: Option<Child>,
}

impl OwnPrometheus {
    /// Starts one with the configuration of the cluster's.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start(cluster: &Cluster, namespace: &str) -> Result<Self> {
        Self::start_with(cluster, namespace, &Self::config(cluster, namespace)?).await
    }

    /// The configuration of the cluster's, for this namespace alone.
    ///
    /// # Errors
    /// There is none.
    pub fn config(cluster: &Cluster, namespace: &str) -> Result<Value> {
        let shared = cluster.description.dir.join("config/prometheus.yaml");
        let mut config: Value = serde_yaml::from_str(&std::fs::read_to_string(shared)?)?;
        for job in config["scrape_configs"].as_array_mut().context("no jobs")? {
            job["kubernetes_sd_configs"][0]["namespaces"] = json!({"names": [namespace]});
        }
        Ok(config)
    }

    /// Starts one with this configuration, named after the namespace.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_with(cluster: &Cluster, namespace: &str, config: &Value) -> Result<Self> {
        let folder = cluster.description.dir.join(format!("prometheus-{namespace}"));
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("config.yaml"), config.to_string())?;
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let program = cluster.description.programs.get("prometheus").context("no prometheus")?.clone();
        let mut own = Self { url: format!("http://{address}"), program, folder, child: None };
        own.start_again().await?;
        Ok(own)
    }

    /// Starts it after a stop.
    ///
    /// # Errors
    /// It does not become ready.
    pub async fn start_again(&mut self) -> Result<()> {
        let log = File::options().create(true).append(true).open(self.folder.join("log"))?;
        let address = self.url.trim_start_matches("http://");
        let child = Command::new(&self.program)
            .arg(format!("--config.file={}", self.folder.join("config.yaml").display()))
            .arg(format!("--storage.tsdb.path={}", self.folder.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .arg("--scrape.discovery-reload-interval=1s")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .context("prometheus cannot be started")?;
        self.child = Some(child);
        until(Duration::from_secs(30), "prometheus is ready", || async {
            prometheus::ready(&self.url).await.map(Some)
        })
        .await
    }

    /// SIGTERM, and waits for its end.
    ///
    /// # Errors
    /// It does not end within ten seconds.
    pub async fn stop(&mut self) -> Result<()> {
        let mut child = self.child.take().context("it does not run")?;
        let status = Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
        ensure!(status.success(), "no signal");
        until(Duration::from_secs(10), "prometheus ends", || {
            let ended = child.try_wait();
            std::future::ready(ended.map_err(Into::into))
        })
        .await?;
        Ok(())
    }
}

impl Drop for OwnPrometheus {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

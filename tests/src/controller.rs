//! The real controller, as a process of its own with the rights of `deploy/controller.yaml` and no others.

use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use davylamp_api::k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use davylamp_api::k8s_openapi::api::core::v1::ServiceAccount;
use kube::Client;
use kube::api::{Api, PostParams};
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::{program, until};

/// A running controller; it ends with this value, at once.
#[derive(Debug)]
pub struct Controller {
    child: Child,
    /// Where it logs, in JSON.
    pub log: PathBuf,
    /// Where it serves its probes.
    pub address: String,
}

impl Controller {
    /// Starts one, and waits until it leads.
    ///
    /// # Errors
    /// It does not lead within half a minute.
    pub async fn start(cluster: &Cluster, admin: &Client, name: &str) -> Result<Self> {
        let mut controller = Self::spawn(cluster, admin, name).await?;
        controller.wait_until_it_leads().await?;
        Ok(controller)
    }

    /// Starts one beside another, and waits until it could lead.
    ///
    /// # Errors
    /// It is not there within half a minute.
    pub async fn stand_by(cluster: &Cluster, admin: &Client, name: &str) -> Result<Self> {
        let mut controller = Self::spawn(cluster, admin, name).await?;
        until(Duration::from_secs(30), "the caches of the controller are warm", || {
            let warm = controller.logged(|line| line.contains("\"caches are warm\""));
            std::future::ready(warm)
        })
        .await?;
        Ok(controller)
    }

    /// Waits until it leads.
    ///
    /// # Errors
    /// It does not within half a minute.
    pub async fn wait_until_it_leads(&mut self) -> Result<()> {
        let identity = format!("_{}_", self.child.id());
        until(Duration::from_secs(30), "the controller leads", || {
            let led = self.logged(|line| line.contains("\"leading\"") && line.contains(&identity));
            std::future::ready(led)
        })
        .await
    }

    async fn spawn(cluster: &Cluster, admin: &Client, name: &str) -> Result<Self> {
        let kubeconfig = kubeconfig(cluster, admin, name).await?;
        let log = cluster.description.dir.join(format!("{name}.log"));
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let file = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(program("davylamp-controller")?)
            .args(["run", "--listen", &address, "--name", name, "--lease-seconds", "10"])
            .args(["--log", "info,davylamp_controller=debug"])
            // Prometheus, and what stands in for it, is on this host.
            .args(["--allow-addresses", "127.0.0.0/8"])
            .env("KUBECONFIG", &kubeconfig)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(file)
            .spawn()
            .context("davylamp-controller cannot be started")?;
        Ok(Self { child, log, address })
    }

    /// It has not ended by itself.
    ///
    /// # Errors
    /// It has; with its last words.
    pub fn ensure_alive(&mut self) -> Result<()> {
        if let Some(status) = self.child.try_wait()? {
            let log = std::fs::read_to_string(&self.log).unwrap_or_default();
            let tail: Vec<&str> = log.lines().rev().take(5).collect();
            anyhow::bail!("the controller ended, {status}: {tail:?}");
        }
        Ok(())
    }

    fn logged(&mut self, is: impl Fn(&str) -> bool) -> Result<Option<()>> {
        self.ensure_alive()?;
        let log = std::fs::read_to_string(&self.log)?;
        Ok(log.lines().any(is).then_some(()))
    }

    /// SIGKILL, and it is gone.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and a clean end.
    ///
    /// # Errors
    /// It does not end well.
    pub async fn stop(mut self) -> Result<()> {
        let status = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status()?;
        ensure!(status.success(), "no signal");
        let ended = until(Duration::from_secs(20), "the controller ends", || {
            let ended = self.child.try_wait();
            std::future::ready(ended.map_err(Into::into))
        })
        .await?;
        ensure!(ended.success(), "the controller ended badly: {ended}");
        Ok(())
    }
}

impl Drop for Controller {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// The admin's kubeconfig with the token of the controller's account.
async fn kubeconfig(cluster: &Cluster, admin: &Client, name: &str) -> Result<PathBuf> {
    let accounts: Api<ServiceAccount> = Api::namespaced(admin.clone(), "davylamp-system");
    let request = TokenRequest {
        spec: Some(TokenRequestSpec { expiration_seconds: Some(86_400), ..TokenRequestSpec::default() }),
        ..TokenRequest::default()
    };
    let token = accounts
        .create_token_request("davylamp-controller", &PostParams::default(), &request)
        .await?
        .status
        .context("no token")?
        .token;
    let text = std::fs::read_to_string(&cluster.description.kubeconfig)?;
    let mut config: Value = serde_yaml::from_str(&text)?;
    for user in config.get_mut("users").and_then(Value::as_array_mut).into_iter().flatten() {
        user["user"] = json!({"token": token});
    }
    let path = Path::new(&cluster.description.dir).join(format!("{name}.kubeconfig"));
    std::fs::write(&path, config.to_string())?;
    Ok(path)
}

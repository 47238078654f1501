//! A cluster of its own: `tests/cluster/cluster up --foreground`, bound to the life of this process.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use davylamp_api::k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config, discovery};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{program, root};

/// How late a sample may become visible and still be counted, where nothing disturbs Prometheus.
pub const DELAY: &str = "3s";

/// What `cluster.json` says.
#[derive(Clone, Debug, Deserialize)]
pub struct Description {
    /// Its folder.
    pub dir: PathBuf,
    /// Of an admin.
    pub kubeconfig: PathBuf,
    /// The program.
    pub kubectl: PathBuf,
    /// The address of the gateway.
    pub gateway: String,
    /// The address of Prometheus.
    pub prometheus: String,
    /// Every request to the API server, a line each.
    pub audit_log: PathBuf,
    /// Of each component.
    pub logs: PathBuf,
    /// The program of each component.
    pub programs: BTreeMap<String, PathBuf>,
}

/// A cluster that lives as long as this value; or one that was there before.
#[derive(Debug)]
pub struct Cluster {
    /// Where everything is.
    pub description: Description,
    child: Option<(Child, ChildStdin)>,
}

const FIELD_MANAGER: &str = "davylamp-tests";

impl Cluster {
    /// Starts one in this folder; all of it ends with this process.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start(dir: &Path) -> Result<Self> {
        let mut child = script()
            .args(["up", "--foreground", "--dir"])
            .arg(dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("tests/cluster/cluster cannot be started")?;
        let stdin = child.stdin.take().context("no stdin")?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no stdout")?).read_line(&mut line)?;
        ensure!(!line.trim().is_empty(), "the cluster did not come up; its words are above");
        let description = serde_json::from_str(&std::fs::read_to_string(line.trim())?)?;
        Ok(Self { description, child: Some((child, stdin)) })
    }

    /// One that `make cluster` has started.
    ///
    /// # Errors
    /// There is none in this folder.
    pub fn attach(dir: &Path) -> Result<Self> {
        let text =
            std::fs::read_to_string(dir.join("cluster.json")).context("no cluster: run `make cluster`")?;
        Ok(Self { description: serde_json::from_str(&text)?, child: None })
    }

    /// A client with all rights.
    ///
    /// # Errors
    /// The kubeconfig is no good.
    pub async fn admin(&self) -> Result<Client> {
        let kubeconfig = Kubeconfig::read_from(&self.description.kubeconfig)?;
        let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        Ok(Client::try_from(config)?)
    }

    /// The demo application, as `davylamp.test/demo-app:1`.
    ///
    /// # Errors
    /// It is not built, or not taken.
    pub fn load_demo_app(&self) -> Result<()> {
        let app = program("demo-app")?;
        let status = script()
            .args(["load-image", "--dir"])
            .arg(&self.description.dir)
            .args(["davylamp.test/demo-app:1"])
            .arg(app)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        ensure!(status.success(), "the demo application was not loaded");
        Ok(())
    }

    /// The definitions, the controller's account and its rights, and a MetricSource `default` for all namespaces.
    ///
    /// # Errors
    /// The API server refuses something.
    pub async fn install(&self, admin: &Client) -> Result<()> {
        let mut files: Vec<PathBuf> =
            std::fs::read_dir(root().join("deploy/crds"))?.map(|f| Ok(f?.path())).collect::<Result<_>>()?;
        files.sort();
        files.push(root().join("deploy/controller.yaml"));
        for file in files {
            apply_text(admin, None, &std::fs::read_to_string(&file)?)
                .await
                .with_context(|| format!("{}", file.display()))?;
        }
        crate::until(std::time::Duration::from_secs(20), "the definitions are served", || async {
            let group = discovery::group(admin, "davylamp.dev").await?;
            Ok((group.recommended_resources().len() >= davylamp_api::crds().len()).then_some(()))
        })
        .await?;
        self.metric_source(admin, "default", &self.description.prometheus, DELAY).await
    }

    /// A MetricSource with the short times of the tests; `delay` is how late a sample may become
    /// visible and still be counted.
    ///
    /// # Errors
    /// The API server refuses it.
    pub async fn metric_source(&self, admin: &Client, name: &str, url: &str, delay: &str) -> Result<()> {
        let source = json!({
            "apiVersion": "davylamp.dev/v1alpha1",
            "kind": "MetricSource",
            "metadata": {"name": name},
            "spec": {"url": url, "allowedNamespaces": ["*"], "scrapeInterval": "1s", "delay": delay},
        });
        apply(admin, None, &source).await
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some((mut child, stdin)) = self.child.take() {
            // Its stdin is its life.
            drop(stdin);
            let _ = child.wait();
        }
    }
}

fn script() -> Command {
    Command::new(root().join("tests/cluster/cluster"))
}

/// Applies each document of a YAML text, into the namespace where one is needed.
///
/// # Errors
/// The API server refuses one.
pub async fn apply_text(client: &Client, namespace: Option<&str>, text: &str) -> Result<()> {
    for document in documents(text)? {
        apply(client, namespace, &document).await?;
    }
    Ok(())
}

/// The documents of a YAML text.
///
/// # Errors
/// It is no YAML.
pub fn documents(text: &str) -> Result<Vec<Value>> {
    use serde::Deserialize as _;
    let mut documents = Vec::new();
    for document in serde_yaml::Deserializer::from_str(text) {
        let value = Value::deserialize(document)?;
        if !value.is_null() {
            documents.push(value);
        }
    }
    Ok(documents)
}

/// Applies one object.
///
/// # Errors
/// The API server refuses it.
pub async fn apply(client: &Client, namespace: Option<&str>, object: &Value) -> Result<()> {
    let name = object.pointer("/metadata/name").and_then(Value::as_str).context("no name")?;
    let own = object.pointer("/metadata/namespace").and_then(Value::as_str);
    let api = dynamic(client, object, own.or(namespace)).await?;
    api.patch(name, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(object)).await?;
    Ok(())
}

/// The API of an object's kind.
///
/// # Errors
/// The kind is not served.
pub async fn dynamic(client: &Client, object: &Value, namespace: Option<&str>) -> Result<Api<DynamicObject>> {
    let text = |field: &str| object.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    let (group, version) = api_version.rsplit_once('/').unwrap_or(("", &api_version));
    let gvk = kube::core::GroupVersionKind::gvk(group, version, &kind);
    let (resource, capabilities) = discovery::pinned_kind(client, &gvk).await?;
    match (capabilities.scope, namespace) {
        (discovery::Scope::Cluster, _) => Ok(Api::all_with(client.clone(), &resource)),
        (discovery::Scope::Namespaced, Some(namespace)) => {
            Ok(Api::namespaced_with(client.clone(), namespace, &resource))
        }
        (discovery::Scope::Namespaced, None) => bail!("{kind} needs a namespace"),
    }
}

/// A namespace, made when it is not there.
///
/// # Errors
/// The API server refuses it.
pub async fn namespace(client: &Client, name: &str) -> Result<()> {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let api: Api<Namespace> = Api::all(client.clone());
    api.patch(name, &PatchParams::apply(FIELD_MANAGER), &Patch::Apply(&object)).await?;
    Ok(())
}

//! The command line: `run` and `crd`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use davylamp_controller::clock::Clock;
use davylamp_controller::metrics::{Network, PrometheusApi};
use davylamp_controller::telemetry::{LogFormat, init_logging};
use davylamp_controller::{Config, leader, reconcile, run};
use tokio::net::TcpListener;

/// Progressive delivery for Kubernetes, judged by measurement.
#[derive(Debug, Parser)]
#[command(name = "davylamp-controller", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Watch Rollouts and carry them out.
    Run(RunArguments),
    /// Print the custom resource definitions, for `kubectl apply --server-side -f -`.
    Crd {
        /// Write them into this folder instead, a file each.
        #[arg(long)]
        directory: Option<PathBuf>,
    },
}

#[derive(Debug, clap::Args)]
struct RunArguments {
    /// Where /metrics, /healthz and /readyz are served.
    #[arg(long, env = "DAVYLAMP_LISTEN", default_value = "0.0.0.0:8080")]
    listen: SocketAddr,
    /// The namespace of the Lease, and of the Secrets that a `MetricSource` names.
    #[arg(long, env = "POD_NAMESPACE", default_value = "davylamp-system")]
    namespace: String,
    /// The name of the Lease.
    #[arg(long, env = "DAVYLAMP_LEASE", default_value = "davylamp-controller")]
    lease: String,
    /// The name of this replica; a part that is unique to the process is added.
    #[arg(long, env = "POD_NAME", default_value = "davylamp-controller")]
    name: String,
    /// Seconds that others leave an unrenewed Lease alone.
    #[arg(long, env = "DAVYLAMP_LEASE_SECONDS", default_value_t = 15, value_parser = clap::value_parser!(u64).range(3..=300))]
    lease_seconds: u64,
    /// Rollouts that are worked on at once.
    #[arg(long, env = "DAVYLAMP_CONCURRENCY", default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// Ranges of loopback, link-local or metadata addresses at which metrics may be asked for, such as
    /// `127.0.0.0/8,::1/128`. Others of their kind are refused, whatever a `MetricSource` says; all else is allowed.
    #[arg(long, env = "DAVYLAMP_ALLOW_ADDRESSES", value_delimiter = ',')]
    allow_addresses: Vec<Network>,
    /// What is logged, as in "info" or "debug,hyper=warn".
    #[arg(long, env = "DAVYLAMP_LOG", default_value = "info")]
    log: String,
    /// How a line of the log looks.
    #[arg(long, env = "DAVYLAMP_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    // Before any client is made: two providers are compiled in by nobody, and none is chosen without this.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = match Arguments::parse().command {
        Command::Crd { directory: None } => print_crds(),
        Command::Crd { directory: Some(directory) } => write_crds(&directory),
        Command::Run(arguments) => run_controller(arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(error = reconcile::chain(error.as_ref()), "the controller ends");
            say(&format!("davylamp-controller: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

#[allow(clippy::print_stderr, reason = "the last word of a process that fails before it can log")]
fn say(text: &str) {
    eprintln!("{text}");
}

#[allow(clippy::print_stdout, reason = "the output that was asked for")]
fn print_crds() -> anyhow::Result<()> {
    print!("{}", davylamp_controller::crd::yaml()?);
    Ok(())
}

fn write_crds(directory: &Path) -> anyhow::Result<()> {
    for (name, text) in davylamp_controller::crd::files()? {
        let path = directory.join(name);
        std::fs::write(&path, text).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

#[tokio::main]
async fn run_controller(arguments: RunArguments) -> anyhow::Result<()> {
    init_logging(arguments.log_format, &arguments.log)?;
    let clock = Clock::system();
    let mut config = kube::Config::infer()
        .await
        .context("no cluster: run in a pod with a service account, or set KUBECONFIG")?;
    // Longer than any watch lasts: a connection that died silently is given up.
    config.read_timeout = Some(Duration::from_secs(330));
    let client = kube::Client::try_from(config).context("no client for this cluster")?;
    let listener = TcpListener::bind(arguments.listen).await.with_context(|| {
        format!("{} cannot be listened on: choose another with --listen", arguments.listen)
    })?;
    let lease = Duration::from_secs(arguments.lease_seconds);
    let metrics = PrometheusApi::new(client.clone(), arguments.namespace.clone(), arguments.allow_addresses);
    let config = Config {
        namespace: arguments.namespace,
        lease: arguments.lease,
        identity: format!("{}_{}_{}", arguments.name, std::process::id(), clock.now_ms()),
        election: leader::Config {
            lease_duration: lease,
            renew_deadline: lease * 2 / 3,
            retry_period: Duration::from_secs(2).min(lease / 5),
        },
        call_limit: Duration::from_secs(5),
        concurrency: arguments.concurrency,
    };
    run(client, clock, Arc::new(metrics), listener, config, shutdown()).await?;
    Ok(())
}

/// SIGTERM, or control-C.
async fn shutdown() {
    use tokio::signal::unix::{SignalKind, signal};
    let Ok(mut term) = signal(SignalKind::terminate()) else { return std::future::pending().await };
    tokio::select! {
        _ = term.recv() => {}
        _ = tokio::signal::ctrl_c() => {}
    }
    tracing::info!("told to end");
}

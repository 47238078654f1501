//! The demonstration application: an HTTP server that fails, delays and signs up requests as its environment
//! says, and shows it to Prometheus. It needs nothing but its own file, and ends in order on SIGTERM or SIGINT.

mod chance;
mod metrics;
mod service;

use std::future::{self, IntoFuture as _};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use axum::http::HeaderValue;
use axum::serve::ListenerExt as _;
use clap::Parser;
use davylamp_demo::parse;
use davylamp_demo::termination::Termination;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

use crate::chance::{Chance, Odds};
use crate::service::Service;

/// How long requests in flight may take after the drain before the process ends without them.
const GRACE: Duration = Duration::from_secs(10);

/// An application with metrics, to try a Rollout on
///
/// Every path is the application, but for /metrics, /ready and /healthz, and /admin/error-rate: what is posted there, such as
/// 20%, is the share of errors of this process from then on.
#[derive(Debug, Parser)]
struct Args {
    /// Address to listen on
    #[arg(long, env = "ADDRESS", default_value = "0.0.0.0")]
    address: IpAddr,

    /// Port to listen on; with 0 the system chooses, and the first line of output tells
    #[arg(long, env = "PORT", default_value_t = 8080)]
    port: u16,

    /// Version that every answer names in the header x-demo
    #[arg(long, env = "VERSION", default_value = "v1")]
    version: HeaderValue,

    /// Share of requests answered with 500, such as 2% or 0.02
    #[arg(long, env = "ERROR_RATE", default_value = "0", value_parser = parse::share)]
    error_rate: f64,

    /// Mean time until an answer
    #[arg(long, env = "LATENCY", default_value = "5ms", value_parser = parse::duration)]
    latency: Duration,

    /// Standard deviation of that time, relative to its mean; the distribution is log-normal
    #[arg(long, env = "LATENCY_SPREAD", default_value = "0.5", value_parser = parse::ratio)]
    latency_spread: f64,

    /// Share of the requests answered with 200 that sign up
    #[arg(long, env = "SIGNUP_RATE", default_value = "10%", value_parser = parse::share)]
    signup_rate: f64,

    /// Memory that each request takes and leaves behind, in KiB; `process_resident_memory_bytes` shows it
    #[arg(long, env = "LEAK", default_value_t = 0)]
    leak: usize,

    /// Time from the start until it is ready
    #[arg(long, env = "STARTUP_DELAY", default_value = "0s", value_parser = parse::duration)]
    startup_delay: Duration,

    /// Time to serve on after SIGTERM or SIGINT
    #[arg(long, env = "DRAIN", default_value = "5s", value_parser = parse::duration)]
    drain: Duration,

    /// Seed of the chances, to repeat a run; another one each time by default
    #[arg(long, env = "SEED")]
    seed: Option<u64>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let mut termination = Termination::catch().context("catch signals")?;
    let args = Args::parse();
    let seed = args.seed.unwrap_or_else(any_seed);
    let odds = Odds {
        error: args.error_rate,
        signup: args.signup_rate,
        latency: args.latency,
        spread: args.latency_spread,
    };
    let chance = Chance::new(odds, seed).context("latency")?;
    let leak = args.leak.saturating_mul(1_024);
    let service = Arc::new(Service::new(args.version, chance, leak, Instant::now() + args.startup_delay));

    let address = SocketAddr::new(args.address, args.port);
    let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
    log(&format!("listening on {}, seed {seed}", listener.local_addr()?));
    // Small answers leave at once.
    let listener = listener.tap_io(|stream| drop(stream.set_nodelay(true)));

    let (drained, over) = oneshot::channel();
    let router = service.router();
    let drain = async move {
        termination.requested().await;
        service.drain();
        log("draining");
        sleep(args.drain).await;
        // The receiver goes only when the server has ended.
        let _ = drained.send(());
    };
    tokio::select! {
        served = axum::serve(listener, router).with_graceful_shutdown(drain).into_future() => {
            served.context("serve")?;
            log("ended, every request answered");
        }
        () = grace(over) => log("ended, with requests in flight"),
    }
    Ok(())
}

/// A seed from the system, which the standard library asks for its hash tables' keys.
fn any_seed() -> u64 {
    RandomState::new().hash_one(())
}

/// Ends a while after the drain; never if there is none.
async fn grace(drained: oneshot::Receiver<()>) {
    match drained.await {
        Ok(()) => sleep(GRACE).await,
        Err(_) => future::pending().await,
    }
}

/// Without a reader of its output the application serves all the same.
fn log(message: &str) {
    let _ = writeln!(io::stdout(), "{message}");
}

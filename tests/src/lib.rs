//! A real cluster, the real controller, a shop with real pods and real requests: what the cluster tests and
//! `make cluster-demo` are made of. Starts and ends only processes of its own, by id.
#![allow(clippy::missing_panics_doc, clippy::doc_markdown, reason = "a harness for tests")]

pub mod cluster;
pub mod conformance;
pub mod controller;
pub mod load;
pub mod own_prometheus;
pub mod prometheus;
pub mod shop;
pub mod watched;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// The root of the checkout.
#[must_use]
pub fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().map(PathBuf::from).unwrap_or_default()
}

/// A program that `make` builds, beside this one.
///
/// # Errors
/// It is not there.
pub fn program(name: &str) -> Result<PathBuf> {
    let here = std::env::current_exe()?;
    let folders = here.ancestors().skip(1).take(3);
    let target =
        here.ancestors().find(|a| a.ends_with("debug") || a.ends_with("release")).and_then(|a| a.parent());
    let fixed = target.map(|t| t.join("x86_64-unknown-linux-gnu/demo"));
    for folder in fixed.into_iter().chain(folders.map(PathBuf::from)) {
        let program = folder.join(name);
        if program.is_file() {
            return Ok(program);
        }
    }
    bail!("{name} is not built: run `make programs` first")
}

/// Asks again and again until there is an answer, at most for so long.
///
/// # Errors
/// The time is over; the last error of `ask` is in it.
pub async fn until<T, F>(within: Duration, what: &str, mut ask: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<Option<T>>>,
{
    let start = tokio::time::Instant::now();
    let mut last = None;
    loop {
        match ask().await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(error) => last = Some(error),
        }
        if start.elapsed() > within {
            return match last {
                Some(error) => Err(error).with_context(|| format!("not within {within:?}: {what}")),
                None => bail!("not within {within:?}: {what}"),
            };
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

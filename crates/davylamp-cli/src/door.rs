//! A door for others: the API server of a simulation, on a loopback address, for `kubectl` to look into.

use std::net::{SocketAddr, TcpListener};
use std::thread;

use anyhow::{Context, Result, bail};
use davylamp_world::{ApiServer, serve};

/// A listener at which nobody answers yet.
#[derive(Debug)]
pub(crate) struct Door {
    listener: TcpListener,
    address: SocketAddr,
}

impl Door {
    pub(crate) fn new(address: SocketAddr) -> Result<Self> {
        if !address.ip().is_loopback() {
            bail!(
                "--listen {address}: the simulated API server knows no users; write a loopback address like 127.0.0.1:8001"
            );
        }
        let listener = TcpListener::bind(address).with_context(|| format!("--listen {address}"))?;
        listener.set_nonblocking(true)?;
        Ok(Self { address: listener.local_addr()?, listener })
    }

    /// What to write to look in.
    pub(crate) fn hint(&self) -> String {
        format!("kubectl --server http://{} get rollouts,rolloutruns,replicasets,pods", self.address)
    }

    /// Answers from now on, in a thread of its own, until the process ends.
    pub(crate) fn open(&self, server: &ApiServer) -> Result<()> {
        let (server, listener) = (server.clone(), self.listener.try_clone()?);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        thread::spawn(move || {
            runtime.block_on(async {
                // Whoever asks meets a closed door when it fails.
                if let Ok(listener) = tokio::net::TcpListener::from_std(listener) {
                    let _ = serve(server, listener).await;
                }
            });
        });
        Ok(())
    }
}

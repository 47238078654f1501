//! What kubelet and Prometheus ask: `/healthz`, `/readyz` and `/metrics`. Takes a listener and what to tell; never
//! asks the API server, so a probe costs nothing and its answer does not depend on anybody else.

use std::collections::BTreeSet;
use std::future::ready;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::FutureExt;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

/// A request is answered within this time, or with an error.
const LIMIT: Duration = Duration::from_secs(5);

/// What the process still waits for before it is of use. Clones share it. A replica that does not lead is ready:
/// taking over at once is its use.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<Mutex<BTreeSet<&'static str>>>);

impl Readiness {
    /// Not ready before each of these is [`done`](Self::done).
    #[must_use]
    pub fn waiting_for(parts: &[&'static str]) -> Self {
        Self(Arc::new(Mutex::new(parts.iter().copied().collect())))
    }

    /// One thing less to wait for.
    pub fn done(&self, part: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(part);
    }

    /// What is missing, in words.
    #[must_use]
    pub fn missing(&self) -> Option<String> {
        let parts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<_> = parts.iter().copied().collect();
        (!names.is_empty()).then(|| format!("waiting for: {}", names.join(", ")))
    }
}

/// What there is to tell.
#[derive(Clone, Debug)]
pub struct Served {
    /// Of `/metrics`.
    pub registry: Arc<Registry>,
    /// Of `/readyz`.
    pub readiness: Readiness,
}

/// Answers until `shutdown`, and a few seconds longer to those who have asked before.
pub async fn serve(
    listener: TcpListener,
    served: Served,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let router = Router::new()
        .route("/healthz", get(|| ready("ok\n")))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(served)
        .layer(from_fn(bound));
    let shutdown = shutdown.shared();
    let serving = axum::serve(listener, router).with_graceful_shutdown(shutdown.clone());
    tokio::select! {
        ended = serving => ended,
        () = shutdown.then(|()| sleep(LIMIT)) => Ok(()),
    }
}

async fn bound(request: Request, next: Next) -> Response {
    timeout(LIMIT, next.run(request))
        .await
        .unwrap_or_else(|_| (StatusCode::SERVICE_UNAVAILABLE, "no answer in time\n").into_response())
}

async fn readyz(State(served): State<Served>) -> (StatusCode, String) {
    match served.readiness.missing() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing + "\n"),
    }
}

async fn metrics(State(served): State<Served>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &served.registry) {
        Ok(()) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;
    use tokio::sync::oneshot;

    use super::*;
    use crate::telemetry::Telemetry;

    async fn ask(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn answers_probes_and_scrapes_until_told_to_stop() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let telemetry = Telemetry::default();
        let mut registry = Registry::default();
        telemetry.register(&mut registry);
        let readiness = Readiness::waiting_for(&["resources", "caches"]);
        let served = Served { registry: Arc::new(registry), readiness: readiness.clone() };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(serve(listener, served, stopped.map(|_| ())));

        let health = ask(address, "/healthz").await;
        assert!(health.starts_with("HTTP/1.1 200") && health.ends_with("ok\n"), "{health}");

        let before = ask(address, "/readyz").await;
        assert!(before.starts_with("HTTP/1.1 503"), "{before}");
        assert!(before.ends_with("waiting for: caches, resources\n"), "{before}");
        readiness.done("resources");
        assert!(ask(address, "/readyz").await.ends_with("waiting for: caches\n"));
        readiness.done("caches");
        assert!(ask(address, "/readyz").await.starts_with("HTTP/1.1 200"));

        telemetry.leads(true);
        let scrape = ask(address, "/metrics").await;
        assert!(
            scrape.contains("content-type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n")
        );
        assert!(scrape.contains("\ndavylamp_leader 1\n") && scrape.ends_with("# EOF\n"), "{scrape}");

        assert!(ask(address, "/").await.starts_with("HTTP/1.1 404"));

        stop.send(()).unwrap();
        task.await.unwrap().unwrap();
        assert!(TcpStream::connect(address).await.is_err());
    }
}

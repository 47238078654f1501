//! The routes. `/metrics`, `/ready`, `/healthz` and `/admin` are for the platform and counted nowhere; every other path is
//! the application, whose answers carry the version.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::middleware::map_response_with_state;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use davylamp_demo::{VERSION_HEADER, parse};
use tokio::time::{Instant, sleep};

use crate::chance::Chance;
use crate::metrics::{self, Metrics};

#[derive(Debug)]
pub(crate) struct Service {
    version: HeaderValue,
    chance: Chance,
    metrics: Metrics,
    /// Bytes that each request leaves behind, and what they have left.
    leak: usize,
    left: Mutex<Vec<Box<[u8]>>>,
    /// From then on it is ready.
    started: Instant,
    draining: AtomicBool,
}

impl Service {
    pub(crate) fn new(version: HeaderValue, chance: Chance, leak: usize, started: Instant) -> Self {
        let (left, draining) = (Mutex::default(), AtomicBool::new(false));
        Self { version, chance, metrics: Metrics::new(), leak, left, started, draining }
    }

    pub(crate) fn router(self: &Arc<Self>) -> Router {
        Router::new()
            .route("/metrics", get(expose))
            .route("/ready", get(ready))
            .route("/healthz", get(async || "ok\n"))
            .route("/admin/error-rate", post(set_error_rate))
            .fallback(answer)
            .layer(map_response_with_state(Arc::clone(self), part))
            .with_state(Arc::clone(self))
    }

    /// From now on it is not ready, and every answer ends its connection, so that clients which keep theirs
    /// have left before the end. It serves on.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

async fn answer(State(service): State<Arc<Service>>) -> Response {
    let begun = Instant::now();
    let _in_flight = service.metrics.begin();
    let outcome = service.chance.draw();
    if !outcome.latency.is_zero() {
        sleep(outcome.latency).await;
    }
    if outcome.signed_up {
        service.metrics.signed_up();
    }
    let (status, body) = if outcome.failed {
        (StatusCode::INTERNAL_SERVER_ERROR, "this one failed\n")
    } else {
        (StatusCode::OK, "hello\n")
    };
    if service.leak > 0 {
        // Written to, so that it is resident.
        let left = vec![1; service.leak].into_boxed_slice();
        service.left.lock().unwrap_or_else(PoisonError::into_inner).push(left);
    }
    service.metrics.answered(status.as_u16(), begun.elapsed());
    (status, [(HeaderName::from_static(VERSION_HEADER), service.version.clone())], body).into_response()
}

async fn expose(State(service): State<Arc<Service>>) -> Response {
    match service.metrics.exposition() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
    }
}

async fn set_error_rate(State(service): State<Arc<Service>>, rate: String) -> (StatusCode, String) {
    match parse::share(&rate) {
        Ok(error) => {
            service.chance.set_error(error);
            (StatusCode::OK, "set\n".to_owned())
        }
        Err(error) => (StatusCode::BAD_REQUEST, format!("{error}\n")),
    }
}

async fn ready(State(service): State<Arc<Service>>) -> (StatusCode, &'static str) {
    if service.is_draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if Instant::now() < service.started {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    } else {
        (StatusCode::OK, "ready\n")
    }
}

/// Asks the client to leave while the application drains.
async fn part(State(service): State<Arc<Service>>, mut response: Response) -> Response {
    if service.is_draining() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

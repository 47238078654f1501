//! The same server over HTTP, so that `kubectl` can look into it. For real time: where time is paused, nothing waits for
//! a network.

use std::convert::Infallible;

use axum::body::Body;
use http::{Request, Response};
use tokio::net::TcpListener;
use tower::{Service, service_fn};

use crate::server::ApiServer;

/// Answers everybody who can reach the listener, as long as it is polled. It knows no users: give it a loopback address.
pub async fn serve(server: ApiServer, listener: TcpListener) -> std::io::Result<()> {
    let service = service_fn(move |request: Request<Body>| {
        let mut server = server.clone();
        async move {
            let answer: Result<Response<crate::server::Body>, Infallible> = server.call(request).await;
            answer.map(|answer| answer.map(Body::new))
        }
    });
    axum::serve(listener, axum::Router::new().fallback_service(service)).await
}

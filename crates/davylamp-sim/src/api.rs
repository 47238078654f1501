//! The way of one process of the controller to the API server: [`FaultyApi`], a server as good as the real one until a
//! fault touches it. Takes requests, gives the server's own answers or those that [`Faults`] says; decides nothing.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io::{Error, ErrorKind};
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use davylamp_world::{ApiServer, Refusal};
use futures::future::BoxFuture;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body as Asked;
use sha2::{Digest, Sha256};
use tokio::time::{Instant, sleep_until};
use tower::Service;

use crate::faults::{Course, Fate, Faults, Process};
use crate::report::Write;

type Body = UnsyncBoxBody<Bytes, Error>;

/// The API server as one process of the controller meets it.
#[derive(Clone, Debug)]
pub(crate) struct FaultyApi {
    server: ApiServer,
    faults: Faults,
    process: Process,
}

impl Service<Request<Asked>> for FaultyApi {
    type Response = Response<Body>;
    type Error = Error;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Asked>) -> Self::Future {
        let api = self.clone();
        Box::pin(async move { api.answer(request).await })
    }
}

impl FaultyApi {
    pub(crate) const fn new(server: ApiServer, faults: Faults, process: Process) -> Self {
        Self { server, faults, process }
    }

    async fn answer(self, request: Request<Asked>) -> Result<Response<Body>, Error> {
        if !self.faults.lives(self.process) {
            return std::future::pending().await;
        }
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.map_err(Error::other)?;
        let path = head.uri.path().to_owned();
        let is_watch =
            head.uri.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
        let (is_read, is_lease) = (head.method == Method::GET, path.contains("/leases"));
        let verb = head.method.to_string();
        let digest = if is_read { String::new() } else { digest(&body) };
        let request = Request::from_parts(head, Full::new(body));
        if is_read || is_lease {
            if self.faults.away() {
                return Err(refused());
            }
            let response = self.forward(request).await;
            if is_lease && !is_read && response.status().is_success() {
                self.faults.leads(self.process);
            }
            return Ok(if is_watch {
                response.map(|body| self.told(body, path))
            } else {
                response.map(real)
            });
        }

        let write = Write { at_ms: self.faults.now_ms(), verb, path, code: 0, digest };
        let (index, course) = self.faults.write(self.process, write);
        match course {
            Course::Well => {
                let response = self.forward(request).await;
                self.faults.written(index, response.status().as_u16());
                Ok(response.map(real))
            }
            Course::Refuse(code) => {
                self.faults.written(index, code);
                Ok(refusal(code))
            }
            Course::DoneBut(code) => {
                self.forward(request).await;
                self.faults.written(index, code);
                Ok(refusal(code))
            }
            Course::Die { done } => {
                if done {
                    let response = self.forward(request).await;
                    self.faults.written(index, response.status().as_u16());
                    self.faults.kill(self.process);
                }
                std::future::pending().await
            }
            Course::Away => Err(refused()),
        }
    }

    async fn forward(&self, request: Request<Full<Bytes>>) -> Response<davylamp_world::Body> {
        let answer: Result<_, Infallible> = self.server.clone().call(request).await;
        match answer {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    fn told(self, body: davylamp_world::Body, path: String) -> Body {
        let outages = self.faults.outages();
        let told =
            Told { api: self, body, path, lines: VecDeque::new(), gone_at: None, ended: false, outages };
        let lines = futures::stream::unfold(told, |mut told| async move {
            let line = told.next().await?;
            Some((line.map(Frame::data), told))
        });
        UnsyncBoxBody::new(StreamBody::new(lines))
    }
}

fn real(body: davylamp_world::Body) -> Body {
    body.map_err(|never| match never {}).boxed_unsync()
}

fn refused() -> Error {
    Error::new(ErrorKind::ConnectionRefused, "connection refused")
}

/// The first 16 digits of the SHA-256.
fn digest(body: &[u8]) -> String {
    let mut digits = String::new();
    for byte in Sha256::digest(body).iter().take(8) {
        digits.extend([byte >> 4, byte & 15].map(|half| char::from_digit(half.into(), 16).unwrap_or('0')));
    }
    digits
}

/// As a server says it.
fn refusal(code: u16) -> Response<Body> {
    let (reason, message) = match code {
        409 => (
            "Conflict",
            "the object has been modified; please apply your changes to the latest version and try again",
        ),
        429 => (
            "TooManyRequests",
            "the server has received too many requests and has asked us to try again later",
        ),
        500 => ("InternalError", "Internal error occurred: etcdserver: leader changed"),
        504 => (
            "Timeout",
            "Timeout: request did not complete within requested timeout - context deadline exceeded",
        ),
        _ => ("", "the server was unable to complete the request"),
    };
    let status = status(code, reason, message);
    let mut response =
        Response::new(Full::new(Bytes::from(status)).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response
}

fn status(code: u16, reason: &'static str, message: &str) -> String {
    let refusal =
        Refusal { code, reason, message: message.to_owned(), details: serde_json::Value::Null, go_on: None };
    refusal.status().to_string()
}

/// A watch: what the server tells, and what the controller hears of it.
struct Told {
    api: FaultyApi,
    body: davylamp_world::Body,
    path: String,
    /// Not yet heard, and when they are.
    lines: VecDeque<(Instant, Bytes)>,
    /// An event was lost: then it ends, so that all is listed again.
    gone_at: Option<Instant>,
    /// The server has nothing more to tell.
    ended: bool,
    /// How often connections had broken when it began.
    outages: u64,
}

impl Told {
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            let outage = self.api.faults.outage.clone();
            let mut outage = pin!(outage.notified());
            // Seen before it is looked at, so that nothing is missed in between.
            outage.as_mut().enable();
            if self.over() {
                return None;
            }
            let now = Instant::now();
            let broken = self.api.faults.outages() != self.outages;
            if self.gone_at.is_some_and(|gone| broken || gone <= now) {
                self.end();
                let status = status(410, "Expired", "too old resource version");
                return Some(Ok(Bytes::from(format!("{{\"type\":\"ERROR\",\"object\":{status}}}\n"))));
            }
            if broken {
                self.end();
                return Some(Err(ErrorKind::UnexpectedEof.into()));
            }
            if self.lines.front().is_some_and(|(due, _)| *due <= now) {
                return self.lines.pop_front().map(|(_, line)| Ok(line));
            }
            let until = self.lines.front().map(|(due, _)| *due).into_iter().chain(self.gone_at).min();
            tokio::select! {
                biased;
                () = &mut outage => {}
                frame = self.body.frame(), if !self.ended => match frame {
                    Some(Ok(frame)) => self.hear(frame.into_data().unwrap_or_default()),
                    Some(Err(never)) => match never {},
                    None => self.ended = true,
                },
                () = sleep_until(until.unwrap_or(now)), if until.is_some() => {}
            }
        }
    }

    fn over(&self) -> bool {
        self.ended && self.lines.is_empty() && self.gone_at.is_none()
    }

    fn end(&mut self) {
        self.ended = true;
        self.gone_at = None;
        self.lines.clear();
    }

    /// A line is an event or a bookmark.
    fn hear(&mut self, line: Bytes) {
        let is_event = [&b"{\"type\":\"ADDED\""[..], b"{\"type\":\"MODIFIED\"", b"{\"type\":\"DELETED\""]
            .iter()
            .any(|start| line.starts_with(start));
        let lag = if is_event {
            match self.api.faults.event(self.api.process, &self.path) {
                Fate::Told(lag) => lag,
                Fate::Lost(gone) => {
                    self.gone_at = Some(self.gone_at.map_or(gone, |before| before.min(gone)));
                    return;
                }
            }
        } else {
            self.api.faults.lag()
        };
        self.lines.push_back((Instant::now() + lag, line));
    }
}

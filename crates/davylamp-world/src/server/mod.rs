//! The server: [`ApiServer`] takes requests and gives answers; its state is behind one lock that is never held over an
//! await, so that each request is one step. What a request does lies beside, by verb.

mod builtin;
pub(crate) mod delete;
mod read;
mod scale;
mod watch;
pub(crate) mod write;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use davylamp_api::Instant;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body::Body as HttpBody;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::sync::Notify;
use tower::Service;

use crate::clock::Clock;
use crate::kinds::{Kind, Kinds, Table};
use crate::memo::Memo;
use crate::patch::Form;
use crate::refusal::Refusal;
use crate::request::{Path, Query};
use crate::store::{Key, Store};
use crate::walk::Walk;

/// Definitions that are installed in every cluster with a gateway.
const GATEWAY_API: &str = include_str!("../gateway.yaml");

/// What a server is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// From which all that is random comes: uids and generated names.
    pub seed: u64,
    /// What time it is.
    pub start: Instant,
    /// How many changes of each kind are remembered; a watch or a list from before them is answered with 410.
    pub remembered: usize,
}

impl Default for Config {
    fn default() -> Self {
        // 2026-01-01.
        let start = Instant::from_second(1_767_225_600).unwrap_or(Instant::UNIX_EPOCH);
        Self { seed: 1, start, remembered: 10_000 }
    }
}

/// A Kubernetes API server. Clones are the same server.
#[derive(Clone, Debug)]
pub struct ApiServer {
    pub(crate) inner: Arc<Inner>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    state: Mutex<State>,
    pub(crate) clock: Clock,
    /// Told when there may be something to collect.
    pub(crate) garbage: Notify,
    /// Told of each request that may have changed something.
    pub(crate) written: Notify,
}

/// Everything that changes.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) store: Store,
    pub(crate) kinds: Kinds,
    /// New objects to which defaults were added after their status was taken away: a real server shows them with these
    /// defaults but has stored them without, so that the next write is one even if it changes nothing.
    undefaulted: BTreeSet<(Table, Key)>,
    seed: u64,
    /// How often, for each thing: what one draws changes nothing for another.
    drawn: BTreeMap<String, u64>,
}

/// A request that is understood.
pub(crate) struct Call<'a> {
    pub(crate) kind: Arc<Kind>,
    pub(crate) path: &'a Path,
    pub(crate) query: &'a Query,
    /// The field manager.
    pub(crate) manager: &'a str,
    /// The time, in seconds.
    pub(crate) now: String,
    pub(crate) clock: Clock,
}

/// An answer: a code and an object, or a stream of events.
pub(crate) enum Answer {
    Object(u16, Value),
    Watch(Box<watch::Watch>),
}

/// The body of an answer.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

impl ApiServer {
    /// A server with the built-in kinds, the Gateway API and the namespaces of a new cluster.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let Config { seed, start, remembered } = config;
        let state = State {
            store: Store::new(remembered),
            kinds: Kinds::default(),
            undefaulted: BTreeSet::new(),
            seed,
            drawn: BTreeMap::new(),
        };
        let clock = Clock::starting_at(start);
        let server =
            Inner { state: Mutex::new(state), clock, garbage: Notify::new(), written: Notify::new() };
        let server = Self { inner: Arc::new(server) };
        // Of our own making: both are taken, and the tests see it.
        let _ = server.install(GATEWAY_API);
        for name in ["default", "kube-system"] {
            let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            let _ =
                server.call(&Method::POST, "/api/v1/namespaces", "", "application/json", "world", namespace);
        }
        server
    }

    /// A client of this server, in the namespace `default`.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(self.clone(), "default")
    }

    /// Forgets all changes until now, as a compaction of etcd does: older watches and lists are answered with 410.
    pub fn compact(&self) {
        self.state().store.compact();
    }

    /// Makes each definition of a YAML text known, as `kubectl create -f` does; also any other object of the cluster.
    pub fn install(&self, yaml: &str) -> Result<(), Refusal> {
        for object in DOCUMENTS.get(yaml, || documents(yaml))?.iter() {
            let text = |path: &str| object.path(path).and_then(Value::as_str).unwrap_or_default();
            let (group, kind) = (text("/apiVersion").split_once('/').map_or("", |(g, _)| g), text("/kind"));
            let found = self.state().kinds.of_kind(group, kind).cloned();
            let kind =
                found.ok_or_else(|| Refusal::bad_request(format!("no kind {kind} in group {group:?}")))?;
            let root = if group.is_empty() {
                "/api/v1".to_owned()
            } else {
                format!("/apis/{group}/{}", kind.version)
            };
            let namespace = match text("/metadata/namespace") {
                "" => String::new(),
                namespace => format!("/namespaces/{namespace}"),
            };
            let path = format!("{root}{namespace}/{}", kind.plural);
            self.call(&Method::POST, &path, "", "application/json", "world", object.clone())?;
        }
        Ok(())
    }

    /// One request by a part of the cluster.
    pub(crate) fn ask(
        &self,
        by: &str,
        method: &Method,
        path: &str,
        body: Value,
    ) -> Result<Option<Value>, Refusal> {
        let form = if method == Method::PATCH { "application/merge-patch+json" } else { "application/json" };
        match self.call(method, path, "", form, by, body)? {
            Answer::Object(_, object) => Ok(Some(object)),
            Answer::Watch(_) => Ok(None),
        }
    }

    /// All objects of a kind, in the order of their keys.
    pub(crate) fn all(&self, table: &Table) -> Vec<Arc<Value>> {
        self.state().store.list(table).map(|(_, object)| object.clone()).collect()
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request to objects.
    fn call(
        &self,
        method: &Method,
        path: &str,
        query: &str,
        content_type: &str,
        agent: &str,
        body: Value,
    ) -> Result<Answer, Refusal> {
        let (query, clock) = (Query::parse(query), self.inner.clock);
        let mut state = self.state();
        let Some(path) = Path::parse(path) else {
            let answer = crate::discovery::answer(&state.kinds, path);
            return answer.map(|answer| Answer::Object(200, answer)).ok_or_else(Refusal::no_path);
        };
        let kind = state.kinds.get(&path.group, &path.version, &path.plural).cloned();
        let kind = kind.ok_or_else(Refusal::no_path)?;
        let manager = match query.text("fieldManager") {
            "" => agent.split('/').next().unwrap_or_default(),
            manager => manager,
        };
        let call = Call { kind, path: &path, query: &query, manager, now: clock.seconds(), clock };
        let subresource = match path.subresource.as_str() {
            "" => true,
            "status" => call.kind.status,
            "scale" => call.kind.scale.is_some(),
            "finalize" => call.kind.plural == "namespaces",
            _ => false,
        };
        if !subresource || (path.namespace.is_empty() && call.kind.namespaced && !path.name.is_empty()) {
            return Err(Refusal::no_path());
        }
        let answer = match (method.as_str(), path.name.is_empty(), path.subresource.as_str()) {
            ("GET", _, _) if query.flag("watch") => {
                watch::Watch::new(self.clone(), &mut state, &call).map(|watch| Answer::Watch(Box::new(watch)))
            }
            ("GET", true, _) => state.list(&call).map(|list| Answer::Object(200, list)),
            ("GET", false, "scale") => state.scale(&call).map(|scale| Answer::Object(200, scale)),
            ("GET", false, _) => state.get(&call).map(|object| Answer::Object(200, object)),
            ("POST", true, _) => state.create(&call, body).map(|object| Answer::Object(201, object)),
            ("PUT", false, "scale") => state.put_scale(&call, &body).map(|scale| Answer::Object(200, scale)),
            ("PUT", false, _) => state.put(&call, body).map(|object| Answer::Object(200, object)),
            ("PATCH", false, subresource) => {
                let form = Form::of(content_type).filter(|f| *f != Form::Strategic || !call.kind.custom);
                match form {
                    None => Err(Refusal::new(
                        415,
                        "UnsupportedMediaType",
                        "the body of the request was in an unknown format - accepted media types include: \
                         application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
                    )),
                    Some(form) if subresource == "scale" => {
                        state.patch_scale(&call, form, &body).map(|scale| Answer::Object(200, scale))
                    }
                    Some(Form::Apply) => state.apply(&call, body).map(|(code, o)| Answer::Object(code, o)),
                    Some(form) => state.patch(&call, form, &body).map(|o| Answer::Object(200, o)),
                }
            }
            ("DELETE", false, "") => state.delete(&call, &body).map(|answer| Answer::Object(200, answer)),
            ("DELETE", true, _) => state.delete_all(&call, &body).map(|list| Answer::Object(200, list)),
            _ => Err(Refusal::no_method()),
        };
        if state.store.take_littered() {
            self.inner.garbage.notify_one();
        }
        drop(state);
        if method != Method::GET {
            self.inner.written.notify_one();
        }
        answer
    }

    async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + 'static,
        B::Error: std::fmt::Display,
    {
        let (head, body) = request.into_parts();
        let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let answer = match body.collect().await {
            Err(error) => Err(Refusal::bad_request(error.to_string())),
            Ok(body) => match parsed(&body.to_bytes()) {
                Err(error) => Err(error),
                Ok(body) => {
                    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
                    let agent = match header("user-agent") {
                        "" => "unknown",
                        agent => agent,
                    };
                    self.call(&head.method, path, query, header("content-type"), agent, body)
                }
            },
        };
        let (code, body) = match answer {
            Ok(Answer::Object(code, object)) => (code, full(&object)),
            Ok(Answer::Watch(watch)) => (200, watch.body()),
            Err(refusal) => (refusal.code, full(&refusal.status())),
        };
        let mut response = Response::new(body);
        *response.status_mut() = http::StatusCode::from_u16(code).unwrap_or_default();
        let json = http::HeaderValue::from_static("application/json");
        response.headers_mut().insert(http::header::CONTENT_TYPE, json);
        response
    }
}

static DOCUMENTS: Memo<Arc<[Value]>> = Memo::new();

/// The documents of a YAML text that hold something.
fn documents(yaml: &str) -> Result<Arc<[Value]>, Refusal> {
    let documents = serde_yaml::Deserializer::from_str(yaml).map(Value::deserialize);
    let documents = documents.filter(|document| !matches!(document, Ok(Value::Null)));
    documents.collect::<Result<_, _>>().map_err(|error| Refusal::bad_request(error.to_string()))
}

fn full(object: &Value) -> Body {
    Full::new(Bytes::from(object.to_string())).boxed_unsync()
}

/// JSON, or YAML, which clients may send for an apply.
fn parsed(body: &Bytes) -> Result<Value, Refusal> {
    if body.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(body).or_else(|error| {
        serde_yaml::from_slice(body).map_err(|_| {
            Refusal::bad_request(format!("couldn't get version/kind; json parse error: {error}"))
        })
    })
}

impl<B> Service<Request<B>> for ApiServer
where
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: std::fmt::Display,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = self.clone();
        Box::pin(async move { Ok(server.answer(request).await) })
    }
}

impl State {
    /// Bytes that the seed gives to a thing; other ones each time.
    fn draw(&mut self, thing: &str) -> [u8; 16] {
        let drawn = self.drawn.entry(thing.to_owned()).or_default();
        *drawn += 1;
        let digest =
            Sha256::digest([&self.seed.to_be_bytes(), &drawn.to_be_bytes(), thing.as_bytes()].concat());
        let mut bytes = [0; 16];
        bytes.iter_mut().zip(digest).for_each(|(to, from)| *to = from);
        bytes
    }

    pub(crate) fn uid(&mut self, of: &str) -> String {
        let mut bytes = self.draw(of);
        // Version 4, of the usual variant.
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut text = String::new();
        for (index, byte) in bytes.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.extend([byte >> 4, byte & 15].map(|half| char::from_digit(half.into(), 16).unwrap_or('0')));
        }
        text
    }

    /// The end of a generated name.
    fn suffix(&mut self, prefix: &str) -> String {
        const LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
        let bytes = self.draw(prefix);
        let letter = |byte: &u8| LETTERS.get(usize::from(*byte) % LETTERS.len()).map(|b| char::from(*b));
        bytes.iter().take(5).filter_map(letter).collect()
    }
}

impl Call<'_> {
    pub(crate) fn key(&self) -> Key {
        (self.path.namespace.clone(), self.path.name.clone())
    }
}

//! One connection that is kept between requests and opened anew when it has ended. It gives the answer to each
//! request or the reason why there is none, and never sends a request twice.

use std::time::Duration;

use anyhow::{Context as _, bail};
use davylamp_demo::VERSION_HEADER;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{HOST, HeaderValue};
use hyper::{Request, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::target::Target;

/// Whose answers are longer is not the application.
const LONGEST_BODY: usize = 1 << 20;

/// What every request has in common.
#[derive(Debug)]
pub(crate) struct Exchange {
    pub(crate) target: Target,
    /// The header `host`.
    pub(crate) host: HeaderValue,
    /// The longest time from the beginning of a request, or of its connection, to the end of its answer.
    pub(crate) timeout: Duration,
}

/// The application's answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) version: String,
    pub(crate) status: u16,
}

type Sender = SendRequest<Empty<Bytes>>;

#[derive(Debug)]
pub(crate) struct Client<'a> {
    exchange: &'a Exchange,
    kept: Option<Sender>,
}

impl<'a> Client<'a> {
    pub(crate) fn new(exchange: &'a Exchange) -> Self {
        Self { exchange, kept: None }
    }

    /// Sends a request and reads its whole answer. The error's text is the same for every failure of its kind.
    pub(crate) async fn request(&mut self) -> anyhow::Result<Answer> {
        let limit = self.exchange.timeout;
        timeout(limit, self.request_unbounded()).await.unwrap_or_else(|_| bail!("no answer within {limit:?}"))
    }

    async fn request_unbounded(&mut self) -> anyhow::Result<Answer> {
        let (mut sender, kept) = match self.reuse().await {
            Some(sender) => (sender, true),
            None => (self.connect().await?, false),
        };
        let mut result = sender.try_send_request(self.message()).await;
        // A message that comes back was not written: the kept connection had ended before.
        if kept && result.as_ref().is_err_and(|error| error.message().is_some()) {
            sender = self.connect().await?;
            result = sender.try_send_request(self.message()).await;
        }
        let connection = if kept { "kept" } else { "new" };
        let response = result
            .map_err(hyper::client::conn::TrySendError::into_error)
            .with_context(|| format!("no answer on a {connection} connection"))?;

        let (head, body) = response.into_parts();
        Limited::new(body, LONGEST_BODY)
            .collect()
            .await
            .map_err(anyhow::Error::from_boxed)
            .context("answer broke off")?;
        self.kept = Some(sender);
        match head.headers.get(VERSION_HEADER) {
            Some(version) => Ok(Answer {
                version: String::from_utf8_lossy(version.as_bytes()).into_owned(),
                status: head.status.as_u16(),
            }),
            None => bail!("answer without {VERSION_HEADER}: {}", head.status),
        }
    }

    /// The kept connection if it is still open.
    async fn reuse(&mut self) -> Option<Sender> {
        let mut sender = self.kept.take()?;
        sender.ready().await.ok().map(|()| sender)
    }

    async fn connect(&self) -> anyhow::Result<Sender> {
        let stream = TcpStream::connect(self.exchange.target.address).await.context("connect")?;
        stream.set_nodelay(true).context("connect")?;
        let (sender, connection) = handshake(TokioIo::new(stream)).await.context("connect")?;
        // Its errors reach the request that they end.
        tokio::spawn(connection);
        Ok(sender)
    }

    fn message(&self) -> Request<Empty<Bytes>> {
        let mut message = Request::new(Empty::new());
        *message.uri_mut() = Uri::from(self.exchange.target.path.clone());
        message.headers_mut().insert(HOST, self.exchange.host.clone());
        message
    }
}

//! Watches: [`Watch`] tells each change of a kind from a version on, in order, and ends at its time or when the version
//! is forgotten. An object that comes to match a selector is told as added, one that ceases to as deleted.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream;
use http_body::Frame;
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep_until, timeout_at};

use super::read::{Scope, shown, version};
use super::{ApiServer, Body, Call, State};
use crate::kinds::{Kind, Table};
use crate::refusal::Refusal;
use crate::store::Change;

/// Between two bookmarks.
const BOOKMARKS: Duration = Duration::from_mins(1);
/// When the client says nothing: a real server draws between 30 and 60 minutes.
const LONGEST: u64 = 2_700;

/// A watch.
pub(crate) struct Watch {
    server: ApiServer,
    kind: Arc<Kind>,
    table: Table,
    scope: Scope,
    /// Told so far.
    reached: u64,
    told: tokio::sync::watch::Receiver<u64>,
    ready: VecDeque<Bytes>,
    bookmarks: Option<Instant>,
    end: Instant,
    over: bool,
}

impl Watch {
    pub(super) fn new(server: ApiServer, state: &mut State, call: &Call<'_>) -> Result<Self, Refusal> {
        let (kind, table, scope) = (call.kind.clone(), call.kind.table(), Scope::of(call)?);
        let (query, newest) = (call.query, state.store.version());
        let from = match query.text("resourceVersion") {
            "" => 0,
            text => version(text)?,
        };
        let initial = query.flag("sendInitialEvents");
        let seconds = query.number("timeoutSeconds").filter(|seconds| *seconds > 0).unwrap_or(LONGEST);
        let marks = query.flag("allowWatchBookmarks");
        let mut watch = Self {
            server,
            told: state.store.told(&table),
            kind,
            table,
            scope,
            reached: from,
            ready: VecDeque::new(),
            bookmarks: marks.then(|| Instant::now() + BOOKMARKS),
            end: Instant::now() + Duration::from_secs(seconds),
            over: false,
        };
        if initial || from == 0 {
            for (key, object) in state.store.list(&watch.table) {
                if watch.scope.holds(&watch.kind, key, object) {
                    watch.ready.push_back(line("ADDED", &shown(&watch.kind, object)));
                }
            }
            watch.reached = newest;
            if initial && marks {
                let mut mark = watch.mark();
                mark["metadata"]["annotations"] = json!({"k8s.io/initial-events-end": "true"});
                watch.ready.push_back(line("BOOKMARK", &mark));
            }
        }
        Ok(watch)
    }

    /// As the body of an answer, a line for each event.
    pub(super) fn body(self) -> Body {
        let lines = stream::unfold(self, |mut watch| async move {
            let line = watch.next().await?;
            Some((Ok(Frame::data(line)), watch))
        });
        UnsyncBoxBody::new(StreamBody::new(lines))
    }

    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(line) = self.ready.pop_front() {
                return Some(line);
            }
            if self.over || Instant::now() >= self.end {
                return None;
            }
            // Seen before it is read, so that nothing is missed in between.
            self.told.borrow_and_update();
            self.read();
            if !self.ready.is_empty() || self.over {
                continue;
            }
            let mark = self.bookmarks.filter(|mark| *mark < self.end);
            match timeout_at(mark.unwrap_or(self.end), self.told.changed()).await {
                Ok(Ok(())) => {}
                // The server is gone.
                Ok(Err(_)) => sleep_until(self.end).await,
                Err(_) => {
                    if let Some(mark) = mark {
                        self.bookmarks = Some(mark + BOOKMARKS);
                        // There may be changes of other kinds only.
                        let newest = self.server.state().store.version();
                        self.read();
                        self.reached = self.reached.max(newest);
                        self.ready.push_back(line("BOOKMARK", &self.mark()));
                    }
                }
            }
        }
    }

    fn read(&mut self) {
        let changes = self.server.state().store.since(&self.table, self.reached);
        match changes {
            Ok(changes) => {
                for change in changes {
                    self.reached = change.version;
                    let event = self.event(&change);
                    self.ready.extend(event);
                }
            }
            Err(forgotten) => {
                let message = format!("too old resource version: {} ({})", self.reached, forgotten.0);
                self.ready.push_back(line("ERROR", &Refusal::expired(message).status()));
                self.over = true;
            }
        }
    }

    fn event(&self, change: &Change) -> Option<Bytes> {
        let holds = |object: &Option<Arc<Value>>| {
            object.as_ref().is_some_and(|object| self.scope.holds(&self.kind, &change.key, object))
        };
        let (was, is) = (holds(&change.before), holds(&change.after));
        let type_ = match (was, is) {
            (false, true) => "ADDED",
            (true, true) => "MODIFIED",
            (true, false) => "DELETED",
            (false, false) => return None,
        };
        let left = change.before.as_ref().filter(|_| change.after.is_some() && !is);
        let object = match left {
            // As it was when it still matched, with the version of the change.
            Some(before) => {
                let mut before = (**before).clone();
                before["metadata"]["resourceVersion"] = change.version.to_string().into();
                Arc::new(before)
            }
            None => change.last.clone(),
        };
        Some(line(type_, &shown(&self.kind, &object)))
    }

    fn mark(&self) -> Value {
        json!({"kind": self.kind.kind, "apiVersion": self.kind.api_version(),
               "metadata": {"resourceVersion": self.reached.to_string(), "creationTimestamp": null}})
    }
}

fn line(type_: &str, object: &Value) -> Bytes {
    Bytes::from(format!("{{\"type\":\"{type_}\",\"object\":{object}}}\n"))
}

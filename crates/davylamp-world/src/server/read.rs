//! Reading: one object, and lists in pages that all show one moment.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use super::{Call, State, builtin};
use crate::kinds::Kind;
use crate::refusal::Refusal;
use crate::selector::{Fields, Labels};
use crate::store::Key;

/// An object as a kind shows it: only events have two forms.
pub(super) fn shown<'a>(kind: &Kind, object: &'a Value) -> Cow<'a, Value> {
    if kind.plural == "events" && kind.group.is_empty() {
        Cow::Owned(builtin::to_core(object))
    } else {
        Cow::Borrowed(object)
    }
}

/// What a list or a watch is about.
#[derive(Clone, Debug)]
pub(super) struct Scope {
    namespace: String,
    name: String,
    labels: Labels,
    fields: Fields,
}

impl Scope {
    pub(super) fn of(call: &Call<'_>) -> Result<Self, Refusal> {
        Ok(Self {
            namespace: call.path.namespace.clone(),
            name: call.path.name.clone(),
            labels: Labels::parse(call.query.text("labelSelector"))?,
            fields: Fields::parse(call.query.text("fieldSelector"), call.kind.selectable())?,
        })
    }

    pub(super) fn holds(&self, kind: &Kind, key: &Key, object: &Value) -> bool {
        (self.namespace.is_empty() || self.namespace == key.0)
            && (self.name.is_empty() || self.name == key.1)
            && self.labels.matches(object)
            && self.fields.matches(&shown(kind, object))
    }
}

/// Where a page ends: the version that all pages show, 0 for the newest, and the last key.
struct Continue(u64, Key);

impl Continue {
    fn parse(text: &str) -> Result<Self, Refusal> {
        let wrong = || Refusal::bad_request("continue key is not valid");
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| wrong())?;
        let (version, key) = serde_json::from_slice(&bytes).map_err(|_| wrong())?;
        Ok(Self(version, key))
    }

    fn text(&self) -> String {
        URL_SAFE_NO_PAD.encode(json!([self.0, self.1]).to_string())
    }
}

impl State {
    /// The object that a call names.
    pub(super) fn live(&self, call: &Call<'_>) -> Result<Arc<Value>, Refusal> {
        let found = self.store.get(&call.kind.table(), &call.key()).cloned();
        found.ok_or_else(|| Refusal::not_found(call.kind.about(&call.path.name)))
    }

    pub(super) fn get(&self, call: &Call<'_>) -> Result<Value, Refusal> {
        self.live(call).map(|object| shown(&call.kind, &object).into_owned())
    }

    pub(super) fn list(&self, call: &Call<'_>) -> Result<Value, Refusal> {
        let (kind, table) = (&call.kind, call.kind.table());
        let scope = Scope::of(call)?;
        let wanted = call.query.text("resourceVersion");
        let wanted: u64 = if wanted.is_empty() { 0 } else { version(wanted)? };
        let exact = call.query.text("resourceVersionMatch") == "Exact";
        let from = match call.query.text("continue") {
            "" => None,
            text => Some(Continue::parse(text)?),
        };
        let newest = self.store.version();
        if wanted > newest {
            return Err(too_large(wanted, newest));
        }
        let at = match &from {
            Some(Continue(0, _)) => newest,
            Some(Continue(version, _)) => *version,
            None if exact => wanted,
            None => newest,
        };
        let objects: BTreeMap<Key, Arc<Value>> = if at == newest {
            self.store.list(&table).map(|(key, object)| (key.clone(), object.clone())).collect()
        } else {
            self.store.list_at(&table, at).map_err(|_| match &from {
                Some(Continue(_, key)) => expired_page(key.clone()),
                None => Refusal::expired("The resourceVersion for the provided list is too old."),
            })?
        };
        let limit = call.query.number("limit").and_then(|limit| usize::try_from(limit).ok()).unwrap_or(0);
        let after = from.map(|Continue(_, key)| key);
        let mut found = objects
            .iter()
            .filter(|(key, _)| after.as_ref().is_none_or(|after| *key > after))
            .filter(|(key, object)| scope.holds(kind, key, object));
        let mut items = Vec::new();
        let mut metadata = json!({"resourceVersion": at.to_string()});
        let mut last = None;
        while limit == 0 || items.len() < limit {
            let Some((key, object)) = found.next() else { break };
            items.push(shown(kind, object).into_owned());
            last = Some(key.clone());
        }
        let left = found.count();
        if let Some(key) = last.filter(|_| left > 0) {
            metadata["continue"] = Continue(at, key).text().into();
            if call.query.text("labelSelector").is_empty() && call.query.text("fieldSelector").is_empty() {
                metadata["remainingItemCount"] = left.into();
            }
        }
        let list_kind = format!("{}List", kind.kind);
        Ok(json!({"kind": list_kind, "apiVersion": kind.api_version(), "metadata": metadata, "items": items}))
    }
}

pub(super) fn version(text: &str) -> Result<u64, Refusal> {
    text.parse().map_err(|_| {
        Refusal::bad_request(format!(
            "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

fn too_large(wanted: u64, newest: u64) -> Refusal {
    let message = format!("Timeout: Too large resource version: {wanted}, current: {newest}");
    let details = json!({"causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                         "retryAfterSeconds": 1});
    Refusal { details, ..Refusal::new(504, "Timeout", message) }
}

/// With what the list can be gone on with, though it then shows another moment.
fn expired_page(key: Key) -> Refusal {
    let mut refusal = Refusal::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list \
         without the continue parameter, or use the continue token in this response to retrieve the remainder of the \
         results. Continuing with the provided token results in an inconsistent list - objects that were created, \
         modified, or deleted between the time the first chunk was returned and now may show up in the list.",
    );
    refusal.go_on = Some(Continue(0, key).text());
    refusal
}

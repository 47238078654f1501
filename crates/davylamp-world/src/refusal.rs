//! What the server says when it says no: [`Refusal`], and the [`Problem`]s of single fields that an invalid object has.
//! Gives `Status` objects in the words of a real server, for callers show them to users.

use serde_json::{Value, json};

/// An answer that is no.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{code} {reason}: {message}")]
pub struct Refusal {
    /// Of HTTP.
    pub code: u16,
    /// In one word; may be empty.
    pub reason: &'static str,
    /// In words.
    pub message: String,
    /// Name, kind and causes.
    pub details: Value,
    /// With what a list can be gone on with.
    pub go_on: Option<String>,
}

/// The name of an object and of its resource, for words about it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct About<'a> {
    pub(crate) group: &'a str,
    pub(crate) kind: &'a str,
    pub(crate) plural: &'a str,
    pub(crate) name: &'a str,
}

impl About<'_> {
    fn resource(&self) -> String {
        qualified(self.plural, self.group)
    }

    fn details(&self) -> Value {
        let mut details = json!({"name": self.name, "kind": self.plural});
        if !self.group.is_empty() {
            details["group"] = self.group.into();
        }
        details
    }
}

fn qualified(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

impl Refusal {
    pub(crate) fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into(), details: Value::Null, go_on: None }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(400, "BadRequest", message)
    }

    pub(crate) fn internal(message: impl std::fmt::Display) -> Self {
        let mut refusal = Self::new(500, "InternalError", format!("Internal error occurred: {message}"));
        refusal.details = json!({"causes": [{"message": message.to_string()}]});
        refusal
    }

    /// No such path.
    pub(crate) fn no_path() -> Self {
        let mut refusal = Self::new(404, "NotFound", "the server could not find the requested resource");
        refusal.details = json!({});
        refusal
    }

    pub(crate) fn no_method() -> Self {
        Self::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
    }

    pub(crate) fn not_found(about: About<'_>) -> Self {
        Self {
            details: about.details(),
            ..Self::new(404, "NotFound", format!("{} {:?} not found", about.resource(), about.name))
        }
    }

    pub(crate) fn already_exists(about: About<'_>) -> Self {
        Self {
            details: about.details(),
            ..Self::new(409, "AlreadyExists", format!("{} {:?} already exists", about.resource(), about.name))
        }
    }

    /// Somebody else was faster.
    pub(crate) fn conflict(about: About<'_>, why: &str) -> Self {
        let message =
            format!("Operation cannot be fulfilled on {} {:?}: {why}", about.resource(), about.name);
        Self { details: about.details(), ..Self::new(409, "Conflict", message) }
    }

    /// What was asked for is another object, or another version of it.
    pub(crate) fn precondition(
        about: About<'_>,
        namespace: &str,
        what: &str,
        wanted: &str,
        there: &str,
    ) -> Self {
        let parts = [about.group, about.plural, namespace, about.name];
        let key: Vec<&str> = parts.into_iter().filter(|part| !part.is_empty()).collect();
        let why = format!(
            "StorageError: invalid object, Code: 4, Key: /registry/{}, ResourceVersion: 0, AdditionalErrorMsg: \
             Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {there}",
            key.join("/")
        );
        Self::conflict(about, &why)
    }

    pub(crate) fn stale(about: About<'_>) -> Self {
        Self::conflict(
            about,
            "the object has been modified; please apply your changes to the latest version and try again",
        )
    }

    pub(crate) fn forbidden(about: About<'_>, why: &str) -> Self {
        let message = format!("{} {:?} is forbidden: {why}", about.resource(), about.name);
        Self { details: about.details(), ..Self::new(403, "Forbidden", message) }
    }

    /// The version that was asked for is forgotten.
    pub(crate) fn expired(message: impl Into<String>) -> Self {
        Self::new(410, "Expired", message)
    }

    /// An object with problems; there is one at least.
    pub(crate) fn invalid(about: About<'_>, problems: &[Problem]) -> Self {
        let mut words: Vec<String> = Vec::new();
        for problem in problems {
            let said = format!("{}: {}", problem.field, problem.words());
            if !words.contains(&said) {
                words.push(said);
            }
        }
        let all = match words.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        };
        let kind = qualified(about.kind, about.group);
        let mut details = about.details();
        details["kind"] = about.kind.into();
        details["causes"] = problems
            .iter()
            .map(|p| json!({"reason": p.what.reason(), "message": p.words(), "field": p.field}))
            .collect();
        Self { details, ..Self::new(422, "Invalid", format!("{kind} {:?} is invalid: {all}", about.name)) }
    }

    /// As a `Status`.
    #[must_use]
    pub fn status(&self) -> Value {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "code": self.code,
        });
        if !self.reason.is_empty() {
            status["reason"] = self.reason.into();
        }
        if let Some(token) = &self.go_on {
            status["metadata"]["continue"] = token.clone().into();
        }
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status
    }
}

/// What is wrong with a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    Required,
    Invalid,
    Type,
    Unsupported,
    Duplicate,
    NotFound,
    Forbidden,
    TooLong,
    TooMany,
}

impl Wrong {
    const fn reason(self) -> &'static str {
        match self {
            Self::Required => "FieldValueRequired",
            Self::Invalid => "FieldValueInvalid",
            Self::Type => "FieldValueTypeInvalid",
            Self::Unsupported => "FieldValueNotSupported",
            Self::Duplicate => "FieldValueDuplicate",
            Self::NotFound => "FieldValueNotFound",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }

    const fn words(self) -> &'static str {
        match self {
            Self::Required => "Required value",
            Self::Invalid | Self::Type => "Invalid value",
            Self::Unsupported => "Unsupported value",
            Self::Duplicate => "Duplicate value",
            Self::NotFound => "Not found",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }
}

/// One thing that is wrong with an object.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Problem {
    pub(crate) what: Wrong,
    pub(crate) field: String,
    /// None when it is not shown.
    pub(crate) value: Option<Value>,
    pub(crate) detail: String,
}

impl Problem {
    pub(crate) fn required(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: Wrong::Required, field: field.into(), value: None, detail: detail.into() }
    }

    pub(crate) fn invalid(field: impl Into<String>, value: Value, detail: impl Into<String>) -> Self {
        Self { what: Wrong::Invalid, field: field.into(), value: Some(value), detail: detail.into() }
    }

    pub(crate) fn forbidden(field: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { what: Wrong::Forbidden, field: field.into(), value: None, detail: detail.into() }
    }

    /// It stops further checks, for they would trip over it.
    pub(crate) const fn blocks(&self) -> bool {
        matches!(
            self.what,
            Wrong::Unsupported | Wrong::Required | Wrong::TooLong | Wrong::TooMany | Wrong::Type
        )
    }

    /// Without the field.
    pub(crate) fn words(&self) -> String {
        let mut words = self.what.words().to_owned();
        if let Some(value) = &self.value {
            words = format!("{words}: {value}");
        }
        if !self.detail.is_empty() {
            words = format!("{words}: {}", self.detail);
        }
        words
    }
}

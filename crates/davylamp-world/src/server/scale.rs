//! The scale subresource: the size of an object as a `Scale`, whatever its kind.

use serde_json::{Value, json};

use super::write::text;
use super::{Call, State};
use crate::kinds::{Kind, Scale};
use crate::patch::{Form, patched};
use crate::refusal::Refusal;
use crate::walk::Walk;

impl State {
    pub(super) fn scale(&self, call: &Call<'_>) -> Result<Value, Refusal> {
        let live = self.live(call)?;
        let scale = of(&call.kind, &live).ok_or_else(Refusal::no_path)?;
        if scale.path("/spec/replicas").is_none() {
            let path = call.kind.scale.as_ref().map_or_else(String::new, |scale| dotted(&scale.spec));
            return Err(Refusal::internal(format!("the spec replicas field {path:?} does not exist")));
        }
        Ok(scale)
    }

    pub(super) fn put_scale(&mut self, call: &Call<'_>, body: &Value) -> Result<Value, Refusal> {
        let live = self.live(call)?;
        let paths = call.kind.scale.clone().ok_or_else(Refusal::no_path)?;
        let about = call.kind.about(&call.path.name);
        let name = text(body, "/metadata/name");
        if !name.is_empty() && name != call.path.name {
            return Err(Refusal::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.path.name
            )));
        }
        let replicas = body.path("/spec/replicas").and_then(Value::as_i64).unwrap_or(0);
        if replicas < 0 {
            let detail = "must be greater than or equal to 0";
            let problem = crate::refusal::Problem::invalid("spec.replicas", replicas.into(), detail);
            let about = crate::refusal::About { group: "autoscaling", kind: "Scale", ..about };
            return Err(Refusal::invalid(about, &[problem]));
        }
        let mut new = (*live).clone();
        let (parent, field) = paths.spec.rsplit_once('/').unwrap_or(("", &paths.spec));
        if let Some(Value::Object(fields)) = new.pointer_mut(parent) {
            fields.insert(field.to_owned(), replicas.into());
        }
        if let Some(version) = body.path("/metadata/resourceVersion") {
            new["metadata"]["resourceVersion"] = version.clone();
        }
        if let Some(uid) = body.path("/metadata/uid") {
            new["metadata"]["uid"] = uid.clone();
        }
        let written = self.replace(call, &live, new, None)?;
        of(&call.kind, &written).ok_or_else(Refusal::no_path)
    }

    pub(super) fn patch_scale(
        &mut self,
        call: &Call<'_>,
        form: Form,
        patch: &Value,
    ) -> Result<Value, Refusal> {
        let live = self.live(call)?;
        let scale = of(&call.kind, &live).ok_or_else(Refusal::no_path)?;
        // Of a scale no list is merged and no field is owned apart: an apply is a merge.
        let form = if matches!(form, Form::Json) { Form::Json } else { Form::Merge };
        let next = patched(form, call.kind.schema.at(), &scale, patch)?;
        self.put_scale(call, &next)
    }
}

/// None: the kind has none.
fn of(kind: &Kind, live: &Value) -> Option<Value> {
    let Scale { spec, status, selector } = kind.scale.as_ref()?;
    let number = |path: &str| live.path(path).and_then(Value::as_i64);
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1",
        "metadata": {"name": text(live, "/metadata/name")},
        "spec": {},
        "status": {"replicas": number(status).unwrap_or(0)},
    });
    for field in ["namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = live.path(&format!("/metadata/{field}")) {
            scale["metadata"][field] = value.clone();
        }
    }
    if let Some(replicas) = number(spec) {
        scale["spec"]["replicas"] = replicas.into();
    }
    let selector = if let Some(path) = selector {
        text(live, path).to_owned()
    } else {
        let labels = live.path("/spec/selector/matchLabels").and_then(Value::as_object);
        let term = |(key, value): (&String, &Value)| format!("{key}={}", value.as_str().unwrap_or_default());
        labels.into_iter().flatten().map(term).collect::<Vec<_>>().join(",")
    };
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    Some(scale)
}

fn dotted(pointer: &str) -> String {
    pointer.replace('/', ".")
}

//! A part of an object kept as text: [`Json`]. Takes any JSON, gives it back unchanged in meaning; never fails on a
//! field that it does not know, so a user's mistake inside it cannot stall a watch.

use std::fmt;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer, ser};
use serde_json::Value;

/// JSON as compact text, an eighth of the memory of the [`Value`] it came from; `null` when absent.
///
/// It goes through [`Value`] rather than `RawValue`, which needs `serde_json`'s own deserializer: kube buffers what it
/// reads in another one, inside its guard and when `object` comes before `type` in a watch event.
#[derive(Clone, PartialEq, Eq)]
pub struct Json(Box<str>);

impl Json {
    /// The value as a type of ours.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_str(&self.0)
    }

    /// The value as it stands.
    #[must_use]
    pub fn value(&self) -> Value {
        self.parse().unwrap_or_default()
    }

    /// Whether there is anything: an absent field and `null` are nothing.
    #[must_use]
    pub fn is_null(&self) -> bool {
        &*self.0 == "null"
    }

    /// The text: compact, keys sorted, so equal values have equal texts.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl Default for Json {
    fn default() -> Self {
        Self("null".into())
    }
}

impl fmt::Debug for Json {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&Value> for Json {
    fn from(value: &Value) -> Self {
        Self(value.to_string().into())
    }
}

impl<'de> Deserialize<'de> for Json {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        Value::deserialize(from).map(|value| Self::from(&value))
    }
}

impl Serialize for Json {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        self.parse::<Value>().map_err(ser::Error::custom)?.serialize(to)
    }
}

#[cfg(test)]
mod tests {
    use kube::core::{DeserializeGuard, ObjectMeta};
    use serde_json::json;

    use super::*;

    #[derive(Clone, Debug, Deserialize, Serialize, kube::Resource)]
    #[resource(inherit = davylamp_api::Rollout, crates(k8s_openapi = davylamp_api::k8s_openapi))]
    struct View {
        metadata: ObjectMeta,
        #[serde(default)]
        spec: Json,
        #[serde(default)]
        status: Json,
    }

    fn view() -> Value {
        json!({"apiVersion": "davylamp.dev/v1alpha1", "kind": "Rollout", "metadata": {"name": "web"},
               "spec": {"replicas": 3, "share": 0.25, "template": {"b": [1, null], "a": "ü"}}})
    }

    #[test]
    fn comes_and_goes_unchanged() {
        let read: View = serde_json::from_value(view()).unwrap();
        assert_eq!(read.spec.as_str(), r#"{"replicas":3,"share":0.25,"template":{"a":"ü","b":[1,null]}}"#);
        assert_eq!(serde_json::to_value(&read).unwrap()["spec"], view()["spec"]);
        assert_eq!(read.spec.value(), view()["spec"]);
        assert!(read.status.is_null());
        assert_eq!(read.status.parse::<Option<i32>>().unwrap(), None);
    }

    #[test]
    fn survives_the_buffers_of_kube() {
        let guarded: DeserializeGuard<View> = serde_json::from_value(view()).unwrap();
        assert_eq!(guarded.0.unwrap().spec.value(), view()["spec"]);
        let text = format!(r#"{{"object":{},"type":"ADDED"}}"#, view());
        let event: kube::core::WatchEvent<DeserializeGuard<View>> = serde_json::from_str(&text).unwrap();
        let kube::core::WatchEvent::Added(guarded) = event else { panic!("{event:?}") };
        assert_eq!(guarded.0.unwrap().spec.value(), view()["spec"]);
    }
}

//! Ways into objects: [`Walk`], a JSON pointer that copies nothing. `Value::pointer` allocates for each part of its path,
//! and a server walks all day.

use serde_json::Value;

pub(crate) trait Walk {
    /// What is at a pointer, like `/spec/replicas`.
    fn path(&self, path: &str) -> Option<&Value>;
}

impl Walk for Value {
    fn path(&self, path: &str) -> Option<&Value> {
        if path.contains('~') {
            return self.pointer(path);
        }
        path.split('/').skip(1).try_fold(self, |value, part| match value {
            Self::Object(fields) => fields.get(part),
            Self::Array(list) => list.get(part.parse::<usize>().ok()?),
            Self::Null | Self::Bool(_) | Self::Number(_) | Self::String(_) => None,
        })
    }
}

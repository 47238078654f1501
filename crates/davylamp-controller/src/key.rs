//! The name of an object within its kind. Takes metadata, gives something to sort, print and look up by; knows no kind.

use std::fmt;

/// Namespace and name; the namespace of a cluster-scoped object is empty.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// Empty when the kind is cluster-scoped.
    pub namespace: String,
    /// `.metadata.name`.
    pub name: String,
}

impl Key {
    /// Of an object.
    #[must_use]
    pub fn of(object: &impl kube::Resource) -> Self {
        let meta = object.meta();
        Self {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_kubectl_does() {
        let key = |namespace: &str| Key { namespace: namespace.to_owned(), name: "web".to_owned() };
        assert_eq!(key("shop").to_string(), "shop/web");
        assert_eq!(key("").to_string(), "web");
    }
}

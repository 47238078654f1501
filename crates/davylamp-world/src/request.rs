//! What is asked: [`Asked`], from the method and the address of a request. Only takes apart; whether the kind exists is
//! for others to say.

use std::collections::BTreeMap;

/// A path under `/api` or `/apis`, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Path {
    pub(crate) group: String,
    pub(crate) version: String,
    pub(crate) namespace: String,
    pub(crate) plural: String,
    /// Empty for all of them.
    pub(crate) name: String,
    /// Empty for the object itself.
    pub(crate) subresource: String,
}

impl Path {
    /// None when it is no path of objects.
    pub(crate) fn parse(path: &str) -> Option<Self> {
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] => ("", *version, rest),
            ["apis", group, version, rest @ ..] => (*group, *version, rest),
            _ => return None,
        };
        let (namespace, rest) = match rest {
            ["namespaces", namespace, plural, rest @ ..] if !matches!(*plural, "status" | "finalize") => {
                (*namespace, [&[*plural], rest].concat())
            }
            rest => ("", rest.to_vec()),
        };
        let mut rest = rest.into_iter().map(decoded);
        let mut next = || rest.next().unwrap_or_default();
        let path = Self {
            group: group.to_owned(),
            version: version.to_owned(),
            namespace: decoded(namespace),
            plural: next(),
            name: next(),
            subresource: next(),
        };
        let last = next();
        (!path.plural.is_empty() && last.is_empty()).then_some(path)
    }
}

/// The parameters of a query.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Query(BTreeMap<String, String>);

impl Query {
    pub(crate) fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
        });
        Self(pairs.collect())
    }

    /// Empty when it is not there.
    pub(crate) fn text(&self, key: &str) -> &str {
        self.0.get(key).map_or("", String::as_str)
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        matches!(self.text(key), "true" | "1")
    }

    pub(crate) fn number(&self, key: &str) -> Option<u64> {
        self.text(key).parse().ok()
    }

    /// It is said that nothing is to be written.
    pub(crate) fn dry_run(&self) -> bool {
        self.text("dryRun") == "All"
    }
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        match byte {
            b'+' => bytes.push(b' '),
            b'%' => {
                let mut digit = || rest.next().and_then(|b| char::from(b).to_digit(16));
                let (high, low) = (digit().unwrap_or(0), digit().unwrap_or(0));
                bytes.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
            }
            other => bytes.push(other),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_taken_apart() {
        let parts = |path: &str| {
            let p = Path::parse(path)?;
            Some([p.group, p.version, p.namespace, p.plural, p.name, p.subresource].join(" "))
        };
        for (path, expected) in [
            ("/api/v1/namespaces/shop/pods/a/status", Some(" v1 shop pods a status")),
            ("/api/v1/namespaces/shop", Some(" v1  namespaces shop ")),
            ("/api/v1/namespaces/shop/finalize", Some(" v1  namespaces shop finalize")),
            ("/api/v1/pods", Some(" v1  pods  ")),
            ("/apis/apps/v1/namespaces/shop/replicasets", Some("apps v1 shop replicasets  ")),
            ("/apis/apps/v1", None),
            ("/healthz", None),
        ] {
            assert_eq!(parts(path).as_deref(), expected, "{path}");
        }
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse("labelSelector=a%3Db%2Cc+in+%28d%29&watch=1&limit=5");
        assert_eq!(query.text("labelSelector"), "a=b,c in (d)");
        assert!(query.flag("watch") && !query.dry_run());
        assert_eq!(query.number("limit"), Some(5));
    }
}

//! The labels of a series.

use std::borrow::Cow;
use std::fmt;
use std::ops::Index;

use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// Names and values, in the order of the names. There are thousands of series in an answer, and one text holds all labels of
/// one: that takes a tenth of the time of a map.
#[derive(Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Labels {
    text: String,
    /// Where each name and its value end.
    ends: Vec<(usize, usize)>,
}

impl Labels {
    /// The value of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(other, _)| *other == name).map(|(_, value)| value)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let starts = std::iter::once(0).chain(self.ends.iter().map(|(_, end)| *end));
        starts
            .zip(&self.ends)
            .map(|(start, &(name, value))| (&self.text[start..name], &self.text[name..value]))
    }

    fn push(&mut self, name: &str, value: &str) {
        self.text.push_str(name);
        let end = self.text.len();
        self.text.push_str(value);
        self.ends.push((end, self.text.len()));
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl Index<&str> for Labels {
    type Output = str;

    fn index(&self, name: &str) -> &str {
        self.get(name).unwrap_or_default()
    }
}

impl<K: AsRef<str>, V: AsRef<str>> FromIterator<(K, V)> for Labels {
    /// Of a name that comes twice the last value counts.
    fn from_iter<I: IntoIterator<Item = (K, V)>>(labels: I) -> Self {
        let mut all: Vec<_> = labels.into_iter().collect();
        all.sort_by(|(a, _), (b, _)| a.as_ref().cmp(b.as_ref()));
        let mut sorted = Self::default();
        for (i, (name, value)) in all.iter().enumerate() {
            if all.get(i + 1).is_none_or(|(next, _)| next.as_ref() != name.as_ref()) {
                sorted.push(name.as_ref(), value.as_ref());
            }
        }
        sorted
    }
}

impl<'de> Deserialize<'de> for Labels {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);

        struct Pairs;

        impl<'de> Visitor<'de> for Pairs {
            type Value = Labels;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("labels")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Labels, M::Error> {
                let mut labels = Labels { text: String::with_capacity(256), ends: Vec::with_capacity(12) };
                let (mut sorted, mut last) = (true, Cow::Borrowed(""));
                while let Some((Text(name), Text(value))) = map.next_entry()? {
                    sorted &= labels.ends.is_empty() || *last < *name;
                    labels.push(&name, &value);
                    last = name;
                }
                Ok(if sorted { labels } else { labels.iter().collect() })
            }
        }

        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn they_are_those_of_a_map(
            a: BTreeMap<String, String>, b: BTreeMap<String, String>, name: String, twice: Vec<(String, String)>,
        ) {
            let read = |map: &BTreeMap<String, String>| -> Labels {
                serde_json::from_str(&serde_json::to_string(map).unwrap()).unwrap()
            };
            let labels = read(&a);
            let pairs: Vec<_> = a.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
            prop_assert_eq!(labels.iter().collect::<Vec<_>>(), pairs);
            prop_assert_eq!(labels == read(&b), a == b);
            prop_assert_eq!(labels.get(&name), a.get(&name).map(String::as_str));
            prop_assert_eq!(&twice.iter().map(|(n, v)| (n, v)).collect::<Labels>(), &read(&twice.iter().cloned().collect()));
            let text: Vec<_> = twice.iter().map(|(n, v)| format!("{}:{}", json(n), json(v))).collect();
            let raw: Labels = serde_json::from_str(&format!("{{{}}}", text.join(","))).unwrap();
            prop_assert_eq!(raw, twice.into_iter().collect());
        }
    }

    fn json(text: &str) -> String {
        serde_json::to_string(text).unwrap()
    }
}

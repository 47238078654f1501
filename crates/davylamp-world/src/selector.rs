//! Label and field selectors: [`Labels`] and [`Fields`] are parsed from the texts of a query and match objects.

use serde_json::Value;

use crate::refusal::Refusal;
use crate::walk::Walk;

/// A label selector; empty matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Labels(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    wants: Wants,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Wants {
    Present,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl Labels {
    /// From a query's text, such as `a=b,c!=d,e in (f,g),!h`.
    pub(crate) fn parse(text: &str) -> Result<Self, Refusal> {
        split(text).into_iter().map(|part| requirement(part.trim())).collect::<Result<_, _>>().map(Self)
    }

    /// Whether an object has such labels.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        let labels = object.path("/metadata/labels");
        self.0.iter().all(|requirement| {
            let value = labels.and_then(|labels| labels.get(&requirement.key)).and_then(Value::as_str);
            match &requirement.wants {
                Wants::Present => value.is_some(),
                Wants::Absent => value.is_none(),
                Wants::In(values) => value.is_some_and(|value| values.iter().any(|v| v == value)),
                Wants::NotIn(values) => value.is_none_or(|value| values.iter().all(|v| v != value)),
            }
        })
    }
}

/// At the commas that stand in no parentheses.
fn split(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut depth) = (Vec::new(), 0, 0_i32);
    for (at, character) in text.char_indices() {
        match character {
            '(' => depth += 1,
            ')' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts.retain(|part| !part.trim().is_empty());
    parts
}

fn requirement(text: &str) -> Result<Requirement, Refusal> {
    let wrong = || Refusal::bad_request(format!("unable to parse requirement: found '{text}'"));
    let one = |value: &str| vec![value.trim().to_owned()];
    let (key, wants) = if let Some((key, value)) = text.split_once("!=") {
        (key, Wants::NotIn(one(value)))
    } else if let Some((key, value)) = text.split_once("==").or_else(|| text.split_once('=')) {
        (key, Wants::In(one(value)))
    } else if let Some(key) = text.strip_prefix('!') {
        (key, Wants::Absent)
    } else if let Some((head, rest)) = text.split_once('(') {
        let values = rest.strip_suffix(')').ok_or_else(wrong)?;
        let values = values.split(',').map(|value| value.trim().to_owned()).collect();
        let words: Vec<&str> = head.split_whitespace().collect();
        match words.as_slice() {
            [key, "in"] => (*key, Wants::In(values)),
            [key, "notin"] => (*key, Wants::NotIn(values)),
            _ => return Err(wrong()),
        }
    } else {
        (text, Wants::Present)
    };
    let key = key.trim();
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    if key.is_empty() || !key.chars().all(fits) {
        return Err(wrong());
    }
    Ok(Requirement { key: key.to_owned(), wants })
}

/// A field selector; empty matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(String, String, bool)>);

impl Fields {
    /// From a query's text, such as `metadata.name=web,status.phase!=Running`.
    pub(crate) fn parse(text: &str, known: Option<&[&str]>) -> Result<Self, Refusal> {
        let mut terms = Vec::new();
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (field, value, equal) = if let Some((field, value)) = part.split_once("!=") {
                (field, value, false)
            } else if let Some((field, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
                (field, value, true)
            } else {
                return Err(Refusal::bad_request(format!(
                    "invalid selector: '{text}'; can't understand '{part}'"
                )));
            };
            let plain = matches!(field, "metadata.name" | "metadata.namespace");
            if !plain && !known.is_some_and(|known| known.contains(&field)) {
                // Kinds that have fields of their own say it in other words.
                return Err(Refusal::bad_request(match known {
                    None => format!(
                        "{field:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                    ),
                    Some(_) => format!("field label not supported: {field}"),
                }));
            }
            terms.push((field.to_owned(), value.to_owned(), equal));
        }
        Ok(Self(terms))
    }

    /// Whether an object has such fields.
    pub(crate) fn matches(&self, object: &Value) -> bool {
        self.0.iter().all(|(field, value, equal)| {
            let there = object.path(&format!("/{}", field.replace('.', "/")));
            (there.and_then(Value::as_str).unwrap_or_default() == value) == *equal
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn labels_are_matched_as_kubectl_writes_them() {
        let web = json!({"metadata": {"labels": {"app": "web", "tier": "front"}}});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==web,tier!=back", true),
            ("app in (web, api),tier notin (back)", true),
            ("app", true),
            ("!app", false),
            ("!absent,absent!=x,absent notin (a,b)", true),
            ("app in (api)", false),
            ("absent=", false),
        ] {
            assert_eq!(Labels::parse(text).unwrap().matches(&web), expected, "{text}");
        }
        for text in ["app in web)", "=x", "a b"] {
            assert_eq!(Labels::parse(text).unwrap_err().code, 400, "{text}");
        }
    }

    #[test]
    fn fields_are_those_that_a_kind_knows() {
        let web = json!({"metadata": {"name": "web"}, "status": {"phase": "Running"}});
        assert!(Fields::parse("metadata.name=web", None).unwrap().matches(&web));
        assert!(!Fields::parse("metadata.name!=web", None).unwrap().matches(&web));
        assert!(Fields::parse("status.phase=Running", Some(&["status.phase"])).unwrap().matches(&web));
        assert_eq!(Fields::parse("spec.x=1", None).unwrap_err().code, 400);
    }
}

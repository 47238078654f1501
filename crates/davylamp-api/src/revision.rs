//! The revision of a pod template: a hash of what the user wrote, so that no upgrade of ours starts a rollout.
//!
//! Version 1: SHA-256 of the canonical JSON of the template, and of the collision count when above 0; the first ten
//! hex digits. Canonical: keys sorted, null as absent, 1.0 as 1, quantities as exact decimals where Kubernetes has
//! quantities; empty maps and lists are kept; nothing is defaulted.

use serde_json::{Map, Number, Value};
use sha2::{Digest, Sha256};

/// The version of [`hash`].
pub const HASH_VERSION: i32 = 1;

/// The hash of a template: ten hex digits.
#[must_use]
pub fn hash(template: &Value, collisions: u32) -> String {
    let mut digest = Sha256::new();
    digest.update(canonical(template).to_string());
    if collisions > 0 {
        digest.update(collisions.to_string());
    }
    let text = digest.finalize().iter().take(5).fold(0_u64, |text, byte| text << 8 | u64::from(*byte));
    format!("{text:010x}")
}

/// The template in its canonical form: equal templates give equal texts.
#[must_use]
pub fn canonical(template: &Value) -> Value {
    let mut value = plain(template);
    if let Some(spec) = value.get_mut("spec") {
        for list in ["containers", "initContainers"] {
            for container in spec.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
                resources(container);
            }
        }
        resources(spec);
        quantities(spec.get_mut("overhead"));
        for volume in spec.get_mut("volumes").and_then(Value::as_array_mut).into_iter().flatten() {
            if let Some(limit) = volume.get_mut("emptyDir").and_then(|dir| dir.get_mut("sizeLimit")) {
                quantity(limit);
            }
        }
    }
    value
}

/// `serde_json`'s maps are sorted; null goes, and whole floats become integers.
pub(crate) fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .filter(|(_, v)| !v.is_null())
                .map(|(k, v)| (k.clone(), plain(v)))
                .collect::<Map<_, _>>(),
        ),
        Value::Array(list) => Value::Array(list.iter().map(plain).collect()),
        Value::Number(number) => Value::Number(whole(number)),
        Value::Null | Value::Bool(_) | Value::String(_) => value.clone(),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "bounded by the check before")]
fn whole(number: &Number) -> Number {
    match number.as_f64() {
        Some(f) if number.is_f64() && f.fract() == 0.0 && f.abs() < 9e15 => Number::from(f as i64),
        _ => number.clone(),
    }
}

fn resources(owner: &mut Value) {
    if let Some(resources) = owner.get_mut("resources") {
        quantities(resources.get_mut("limits"));
        quantities(resources.get_mut("requests"));
    }
}

fn quantities(map: Option<&mut Value>) {
    for value in map.and_then(Value::as_object_mut).into_iter().flat_map(Map::values_mut) {
        quantity(value);
    }
}

/// "0.5", "500m" and 0.5 are one quantity; what is none stays as it is.
fn quantity(value: &mut Value) {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => return,
    };
    if let Some(exact) = exact_quantity(&text) {
        *value = Value::String(exact);
    }
}

/// A quantity as a decimal number of nano-units, exactly; None when it is none or has more than 38 digits.
fn exact_quantity(text: &str) -> Option<String> {
    const SUFFIXES: [(&str, u32, i32); 14] = [
        ("Ki", 10, 0),
        ("Mi", 20, 0),
        ("Gi", 30, 0),
        ("Ti", 40, 0),
        ("Pi", 50, 0),
        ("Ei", 60, 0),
        ("n", 0, -9),
        ("u", 0, -6),
        ("m", 0, -3),
        ("k", 0, 3),
        ("M", 0, 6),
        ("G", 0, 9),
        ("T", 0, 12),
        ("P", 0, 15),
    ];
    let (number, twos, tens) = SUFFIXES
        .iter()
        .find_map(|(suffix, twos, tens)| text.strip_suffix(suffix).map(|number| (number, *twos, *tens)))
        .or_else(|| {
            let (number, exponent) = match text.split_once(['e', 'E']) {
                Some((number, "")) if text.ends_with('E') => (number, 18),
                Some((number, exponent)) => (number, exponent.parse().ok()?),
                None => (text, 0),
            };
            Some((number, 0, exponent))
        })?;
    let (negative, digits) = match number.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, number.strip_prefix('+').unwrap_or(number)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if (whole.is_empty() && fraction.is_empty())
        || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let fraction = fraction.trim_end_matches('0');
    let mantissa: u128 = format!("0{whole}{fraction}").parse().ok()?;
    let mut value = mantissa.checked_mul(1_u128 << twos)?;
    let mut exponent = tens.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    if value == 0 {
        return Some("0".to_owned());
    }
    while value.is_multiple_of(10) {
        value /= 10;
        exponent += 1;
    }
    Some(format!("{}{value}e{exponent}", if negative { "-" } else { "" }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_same_template_written_otherwise_has_the_same_hash() {
        let one = json!({"metadata": {"labels": {"a": "b"}, "annotations": null},
            "spec": {"containers": [{"name": "x", "resources": {"limits": {"cpu": "0.5", "memory": "1Gi"}}}], "n": 1.0}});
        let two = json!({"spec": {"n": 1, "containers": [{"resources": {"limits": {"memory": "1024Mi", "cpu": "500m"}}, "name": "x"}]},
            "metadata": {"labels": {"a": "b"}}});
        assert_eq!(hash(&one, 0), hash(&two, 0));
    }

    #[test]
    fn another_template_or_collision_has_another_hash() {
        let one = json!({"spec": {"containers": [], "env": "0.5"}});
        assert_ne!(hash(&one, 0), hash(&json!({"spec": {"containers": [], "env": "500m"}}), 0));
        assert_ne!(hash(&one, 0), hash(&json!({"spec": {"env": "0.5"}}), 0));
        assert_ne!(hash(&one, 0), hash(&one, 1));
        assert_eq!(hash(&one, 0).len(), 10);
    }

    /// A change of this text is an upgrade that would start every rollout anew: raise `HASH_VERSION` instead.
    #[test]
    fn version_1_never_changes() {
        let template = json!({"metadata": {"labels": {"app": "shop"}},
            "spec": {"containers": [{"name": "app", "image": "shop:1", "resources": {"requests": {"cpu": "100m"}}}]}});
        assert_eq!(hash(&template, 0), "cd684e5b58");
    }

    #[test]
    fn quantities_are_exact() {
        for (a, b) in [
            ("1", "1000m"),
            ("1.50", "1500m"),
            ("1Ki", "1024"),
            ("1e3", "1k"),
            ("1E", "1e18"),
            ("0", "0m"),
            ("-1", "-1000m"),
        ] {
            assert_eq!(exact_quantity(a), exact_quantity(b), "{a} {b}");
            assert!(exact_quantity(a).is_some());
        }
        for text in
            ["", "m", "1x", "--1", "1.2.3", "9999999999999999999999999999999999999999Ei", "1e99999999999"]
        {
            assert_eq!(exact_quantity(text), None, "{text}");
        }
    }
}

//! Values by their schema: which fields a value sets, which differ between two, and one merged into another. Where the
//! schema says nothing, objects are merged field by field and lists as a whole.

use serde_json::{Map, Value};

use super::fields::{Fields, field};
use crate::schema::{At, ListType, Type};

/// How a value at a place is looked at.
enum Shape<'a> {
    Fields(&'a Map<String, Value>),
    Elements(&'a [Value], &'a ListType),
    Whole,
}

const ATOMIC: ListType = ListType::Atomic;

fn shape<'a>(at: Option<At<'a>>, value: &'a Value) -> Shape<'a> {
    let node = at.and_then(At::node);
    match value {
        Value::Object(fields) if !node.is_some_and(|node| node.atomic) => Shape::Fields(fields),
        Value::Array(list) => match node.map_or(&ATOMIC, |node| &node.list) {
            ListType::Atomic => Shape::Whole,
            type_ @ (ListType::Set | ListType::Map(_)) => Shape::Elements(list, type_),
        },
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Object(_) => Shape::Whole,
    }
}

/// The step to an element of a list.
fn step(at: Option<At<'_>>, type_: &ListType, element: &Value) -> String {
    match type_ {
        ListType::Map(keys) => {
            let default = |key: &str| {
                let node = at.and_then(At::item).and_then(|item| item.property(key)).and_then(At::node);
                let known = node.and_then(|node| node.default.clone());
                // The one key of a built-in list that may be left out.
                known.or_else(|| (key == "protocol").then(|| "TCP".into()))
            };
            let named = keys
                .iter()
                .filter_map(|key| Some((key.clone(), element.get(key).cloned().or_else(|| default(key))?)));
            format!("k:{}", Value::Object(named.collect()))
        }
        ListType::Set | ListType::Atomic => format!("v:{element}"),
    }
}

/// The fields that a value sets.
pub(crate) fn fields(at: Option<At<'_>>, value: &Value) -> Fields {
    collect(at, value, false)
}

/// The fields that a new value brings, every object and list in it included.
fn brought(at: Option<At<'_>>, value: &Value) -> Fields {
    let mut all = collect(at, value, true);
    all.own = true;
    all
}

fn collect(at: Option<At<'_>>, value: &Value, places: bool) -> Fields {
    let mut set = Fields { own: places, ..Fields::default() };
    match shape(at, value) {
        Shape::Whole => set.own = true,
        Shape::Fields(map) => {
            set.own |= map.is_empty();
            for (name, value) in map {
                let mut below = collect(at.and_then(|at| at.field(name)), value, places);
                // Keys of a map are set as such; fields of an object only by what is in them.
                below.own |= at.and_then(|at| at.property(name)).is_none();
                set.add(field(name), below);
            }
        }
        Shape::Elements(list, type_) => {
            set.own |= list.is_empty();
            for value in list {
                set.add(step(at, type_, value), element(at, type_, value, places));
            }
        }
    }
    set
}

/// The fields of an element, and itself.
fn element(at: Option<At<'_>>, type_: &ListType, value: &Value, places: bool) -> Fields {
    let mut set = match type_ {
        ListType::Map(_) => collect(at.and_then(At::item), value, places),
        ListType::Set | ListType::Atomic => Fields::default(),
    };
    set.own = true;
    set
}

/// What differs: fields that are new or another, and fields that are gone.
#[derive(Debug, Default)]
pub(crate) struct Difference {
    pub(crate) changed: Fields,
    pub(crate) gone: Fields,
}

/// What differs between two values.
pub(crate) fn difference(at: Option<At<'_>>, before: &Value, after: &Value) -> Difference {
    let mut found = Difference::default();
    if before == after {
        return found;
    }
    match (shape(at, before), shape(at, after)) {
        (Shape::Fields(old), Shape::Fields(new)) => {
            for (name, value) in old {
                if !new.contains_key(name) {
                    found.gone.add(field(name), brought(at.and_then(|at| at.field(name)), value));
                }
            }
            for (name, value) in new {
                let below = at.and_then(|at| at.field(name));
                match old.get(name) {
                    Some(old) => found.nest(field(name), difference(below, old, value)),
                    None => found.changed.add(field(name), brought(below, value)),
                }
            }
        }
        (Shape::Elements(old, type_), Shape::Elements(new, _)) => {
            let find = |list: &'_ [Value], wanted: &str| {
                list.iter().position(|element| step(at, type_, element) == wanted)
            };
            for element in old {
                let step = step(at, type_, element);
                if find(new, &step).is_none() {
                    found.gone.add(step, brought(at.and_then(At::item), element));
                }
            }
            for element in new {
                let step = step(at, type_, element);
                match find(old, &step).and_then(|index| old.get(index)) {
                    Some(old) => found.nest(step, difference(at.and_then(At::item), old, element)),
                    None => found.changed.add(step, self::element(at, type_, element, true)),
                }
            }
        }
        _ => {
            found.changed = brought(at, after);
            found.gone = brought(at, before).without(&found.changed);
        }
    }
    found
}

impl Difference {
    fn nest(&mut self, step: String, below: Self) {
        self.changed.add(step.clone(), below.changed);
        self.gone.add(step, below.gone);
    }
}

/// `applied` merged into `live`.
pub(crate) fn merge(at: Option<At<'_>>, live: &Value, applied: &Value) -> Value {
    match (shape(at, live), shape(at, applied)) {
        (Shape::Fields(old), Shape::Fields(new)) => {
            let mut merged = old.clone();
            for (name, value) in new {
                let below = at.and_then(|at| at.field(name));
                let value = old.get(name).map_or_else(|| value.clone(), |old| merge(below, old, value));
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Shape::Elements(old, type_), Shape::Elements(new, _)) => {
            let mut merged = old.to_vec();
            for element in new {
                let wanted = step(at, type_, element);
                match merged.iter_mut().find(|there| step(at, type_, there) == wanted) {
                    Some(there) => *there = merge(at.and_then(At::item), there, element),
                    None => merged.push(element.clone()),
                }
            }
            Value::Array(merged)
        }
        _ => applied.clone(),
    }
}

/// Removes fields from a value, but nothing that is in `kept`.
pub(crate) fn remove(at: Option<At<'_>>, value: &mut Value, gone: &Fields, kept: &Fields) {
    let stays = |step: &str| kept.below.get(step).filter(|kept| !kept.is_empty());
    let nothing = Fields::default();
    let type_ = at.and_then(At::node).map_or(&ATOMIC, |node| &node.list);
    match value {
        Value::Object(map) => map.retain(|name, value| {
            let step = field(name);
            let Some(gone) = gone.below.get(&step) else { return true };
            if gone.own && stays(&step).is_none() {
                return false;
            }
            remove(at.and_then(|at| at.field(name)), value, gone, stays(&step).unwrap_or(&nothing));
            true
        }),
        Value::Array(list) => list.retain_mut(|element| {
            let step = step(at, type_, element);
            let Some(gone) = gone.below.get(&step) else { return true };
            if gone.own && stays(&step).is_none() {
                return false;
            }
            remove(at.and_then(At::item), element, gone, stays(&step).unwrap_or(&nothing));
            true
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The first field that the schema does not know, or the first element that is there twice: what cannot be merged.
pub(crate) fn unmergeable(at: At<'_>, value: &Value, path: &str) -> Option<String> {
    let node = at.node()?;
    match value {
        Value::Object(fields) => fields.iter().find_map(|(name, value)| {
            let path = format!("{path}.{name}");
            match at.field(name) {
                Some(at) => unmergeable(at, value, &path),
                None if node.preserve || node.type_ != Type::Object => None,
                None => Some(format!("{path}: field not declared in schema")),
            }
        }),
        Value::Array(list) => {
            if let ListType::Map(_) = node.list {
                let steps: Vec<String> = list.iter().map(|e| step(Some(at), &node.list, e)).collect();
                if let Some(twice) =
                    steps.iter().enumerate().find(|(i, step)| steps.iter().take(*i).any(|s| s == *step))
                {
                    let keys = Fields { own: false, below: [(twice.1.clone(), Fields::leaf())].into() };
                    return Some(format!("{path}: duplicate entries for key {}", keys.paths().concat()));
                }
            }
            let item = at.item()?;
            list.iter()
                .enumerate()
                .find_map(|(index, value)| unmergeable(item, value, &format!("{path}[{index}]")))
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => None,
    }
}

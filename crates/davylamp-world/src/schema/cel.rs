//! Rules in CEL: `x-kubernetes-validations`. A [`Rule`] is compiled once; [`Rule::check`] takes a value and what it was
//! before, and gives the words of a refusal. The language is the crate `kube-cel`, with the functions of Kubernetes.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use kube_cel::KubeCelExt;
use kube_cel::cel::objects::{Key, Map};
use kube_cel::cel::{Context, Program, Value as Cel};
use serde_json::Value;

use super::{At, Type};

/// The functions that rules may call; to make this costs more than most rules.
static FUNCTIONS: LazyLock<Context<'static>> = LazyLock::new(|| Context::default().with_all());

/// A compiled rule.
pub(crate) struct Rule {
    source: String,
    program: Program,
    message: Option<String>,
    words: Option<Program>,
    /// It compares with what was before.
    transition: bool,
    /// The fields of the value that it reads; None when that cannot be told.
    reads: Option<BTreeSet<String>>,
    /// In which field of the value the fault is shown.
    field: String,
}

impl std::fmt::Debug for Rule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rule").field("source", &self.source).finish_non_exhaustive()
    }
}

/// A rule that does not hold.
pub(crate) struct Broken {
    pub(crate) words: String,
    /// Relative to the value.
    pub(crate) field: String,
}

impl Rule {
    /// From an element of `x-kubernetes-validations`.
    pub(crate) fn compile(rule: &Value) -> Result<Self, String> {
        let text = |key: &str| rule.get(key).and_then(Value::as_str);
        let source = text("rule").unwrap_or_default();
        let program = |source: &str| Program::compile(source).map_err(|error| format!("{source}: {error}"));
        Ok(Self {
            source: source.to_owned(),
            program: program(source)?,
            message: text("message").map(str::to_owned),
            words: text("messageExpression").map(program).transpose()?,
            transition: source.contains("oldSelf"),
            reads: reads(source),
            field: text("fieldPath").unwrap_or_default().to_owned(),
        })
    }

    /// Whether it has something to say: not about a change, when there is none, nor about what is as it was.
    fn concerns(&self, value: &Value, before: Option<&Value>) -> bool {
        let Some(before) = before else { return !self.transition };
        // Of metadata, rules see the name only, which does not change.
        let same = |field: &String| field == "metadata" || value.get(field) == before.get(field);
        self.transition || !self.reads.as_ref().is_some_and(|fields| fields.iter().all(same))
    }

    /// None when the rule holds.
    fn check(&self, context: &Context<'_>) -> Option<Broken> {
        let words = match self.program.execute(context) {
            Ok(Cel::Bool(true)) => return None,
            Ok(_) => {
                let said = self.words.as_ref().and_then(|words| words.execute(context).ok());
                match said {
                    Some(Cel::String(said)) => said.to_string(),
                    _ => self.message.clone().unwrap_or_else(|| format!("failed rule: {}", self.source)),
                }
            }
            Err(error) => {
                let rule = self.message.clone().unwrap_or_else(|| self.source.clone());
                format!("{error} evaluating rule: {rule}")
            }
        };
        Some(Broken { words, field: self.field.clone() })
    }
}

/// The rules that do not hold for a value. A rule about fields that are as they were is not asked again.
pub(super) fn broken(rules: &[Rule], at: At<'_>, value: &Value, before: Option<&Value>) -> Vec<Broken> {
    let rules: Vec<&Rule> = rules.iter().filter(|rule| rule.concerns(value, before)).collect();
    if rules.is_empty() {
        return Vec::new();
    }
    let mut context = FUNCTIONS.new_inner_scope();
    context.add_variable_from_value("self", cel(Some(at), value));
    if let Some(before) = before {
        context.add_variable_from_value("oldSelf", cel(Some(at), before));
    }
    rules.iter().filter_map(|rule| rule.check(&context)).collect()
}

/// The fields of `self` that a rule reads, if it reads it by fields only.
fn reads(source: &str) -> Option<BTreeSet<String>> {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let mut fields = BTreeSet::new();
    for (at, word) in source.match_indices("self") {
        let before = source.get(..at).and_then(|text| text.chars().next_back());
        if before.is_some_and(|c| is_word(c) || c == '.') {
            continue;
        }
        let rest = source.get(at + word.len()..).unwrap_or_default();
        if rest.starts_with(is_word) {
            continue;
        }
        let field: String = rest.strip_prefix('.')?.chars().take_while(|c| is_word(*c)).collect();
        let called = rest.get(1 + field.len()..).is_some_and(|rest| rest.starts_with('('));
        if field.is_empty() || called {
            return None;
        }
        fields.insert(field);
    }
    Some(fields)
}

/// A value as CEL has it; the schema says which numbers are whole.
fn cel(at: Option<At<'_>>, value: &Value) -> Cel {
    match value {
        Value::Null => Cel::Null,
        Value::Bool(flag) => Cel::Bool(*flag),
        Value::Number(number) => {
            let whole = at.and_then(At::node).is_none_or(|node| node.type_ != Type::Number);
            match number.as_i64() {
                Some(number) if whole => Cel::Int(number),
                _ => Cel::Float(number.as_f64().unwrap_or(f64::NAN)),
            }
        }
        Value::String(text) => Cel::String(Arc::new(text.clone())),
        Value::Array(list) => {
            let item = at.and_then(At::item);
            Cel::List(Arc::new(list.iter().map(|value| cel(item, value)).collect()))
        }
        Value::Object(fields) => {
            // Nulls are as good as absent for a rule.
            let there = fields.iter().filter(|(_, value)| !value.is_null());
            let map: HashMap<Key, Cel> = there
                .map(|(key, value)| {
                    (Key::String(Arc::new(key.clone())), cel(at.and_then(|at| at.field(key)), value))
                })
                .collect();
            Cel::Map(Map { map: Arc::new(map) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reads;

    #[test]
    fn what_a_rule_reads_is_known_when_it_reads_by_fields() {
        let fields = |source: &str| reads(source).map(|fields| fields.into_iter().collect::<Vec<_>>());
        assert_eq!(
            fields("self.a.b > 1 && !has(self.c) && myself.d.self == 1"),
            Some(vec!["a".into(), "c".into()])
        );
        for whole in ["self > 1", "self.all(k, k != '')", "self['a'] == 1", "f(self)", "self.size() > 0"] {
            assert_eq!(fields(whole), None, "{whole}");
        }
    }
}

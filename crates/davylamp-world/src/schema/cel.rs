//! Rules in CEL: `x-kubernetes-validations`. A [`Rule`] is compiled once; [`Rule::check`] takes a value and what it was
//! before, and gives the words of a refusal. The language is the crate `kube-cel`, with the functions of Kubernetes.

use std::collections::HashMap;
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
            field: text("fieldPath").unwrap_or_default().to_owned(),
        })
    }

    /// None when the rule holds, or has nothing to say: about a change, when there is none.
    pub(crate) fn check(&self, value: &Cel, before: Option<&Cel>) -> Option<Broken> {
        if self.transition && before.is_none() {
            return None;
        }
        let mut context = FUNCTIONS.new_inner_scope();
        context.add_variable_from_value("self", value.clone());
        if let Some(before) = before {
            context.add_variable_from_value("oldSelf", before.clone());
        }
        let words = match self.program.execute(&context) {
            Ok(Cel::Bool(true)) => return None,
            Ok(_) => {
                let said = self.words.as_ref().and_then(|words| words.execute(&context).ok());
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

/// A value as CEL has it; the schema says which numbers are whole.
pub(super) fn cel(at: Option<At<'_>>, value: &Value) -> Cel {
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

//! Functions of Helm's templates that the chart uses, as [Sprig](https://masterminds.github.io/sprig/) and Helm define them.

use std::collections::HashMap;

use gtmpl::{Func, FuncError, Value};
use serde_json::{Number, Value as Json};

/// By name.
pub(super) const ALL: &[(&str, Func)] = &[
    ("default", default),
    ("first", first),
    ("int", int),
    ("join", join),
    ("nindent", nindent),
    ("quote", quote),
    ("replace", replace),
    ("toYaml", to_yaml),
];

fn wrong(function: &str, args: &[Value]) -> FuncError {
    FuncError::Generic(format!("{function} does not take {args:?}"))
}

fn default(args: &[Value]) -> Result<Value, FuncError> {
    let [default, value] = args else { return Err(wrong("default", args)) };
    let is_empty = match value {
        Value::Nil | Value::NoValue => true,
        Value::String(text) => text.is_empty(),
        _ => false,
    };
    Ok(if is_empty { default.clone() } else { value.clone() })
}

fn first(args: &[Value]) -> Result<Value, FuncError> {
    match args {
        [Value::Array(items)] => Ok(items.first().cloned().unwrap_or(Value::Nil)),
        _ => Err(wrong("first", args)),
    }
}

/// Helm's numbers may be floating ones.
fn int(args: &[Value]) -> Result<Value, FuncError> {
    match args {
        [Value::Number(number)] => number.as_i64().map(Value::from).ok_or_else(|| wrong("int", args)),
        _ => Err(wrong("int", args)),
    }
}

fn join(args: &[Value]) -> Result<Value, FuncError> {
    match args {
        [Value::String(separator), Value::Array(items)] => {
            let items: Vec<String> = items.iter().map(ToString::to_string).collect();
            Ok(items.join(separator).into())
        }
        _ => Err(wrong("join", args)),
    }
}

fn nindent(args: &[Value]) -> Result<Value, FuncError> {
    let [Value::Number(spaces), Value::String(text)] = args else { return Err(wrong("nindent", args)) };
    let spaces = " ".repeat(spaces.as_u64().and_then(|it| it.try_into().ok()).unwrap_or(0));
    let lines: Vec<String> = text.split('\n').map(|line| format!("{spaces}{line}")).collect();
    Ok(format!("\n{}", lines.join("\n").trim_end()).into())
}

fn quote(args: &[Value]) -> Result<Value, FuncError> {
    let [value] = args else { return Err(wrong("quote", args)) };
    Ok(Json::from(value.to_string()).to_string().into())
}

fn replace(args: &[Value]) -> Result<Value, FuncError> {
    match args {
        [Value::String(from), Value::String(to), Value::String(text)] => Ok(text.replace(from, to).into()),
        _ => Err(wrong("replace", args)),
    }
}

fn to_yaml(args: &[Value]) -> Result<Value, FuncError> {
    let [value] = args else { return Err(wrong("toYaml", args)) };
    let text = serde_saphyr::to_string(&json_of(value)).map_err(|error| FuncError::Other(error.into()))?;
    Ok(text.trim_end().into())
}

/// A template's value.
pub(super) fn value_of(json: &Json) -> Value {
    match json {
        Json::Null => Value::Nil,
        Json::Bool(it) => Value::Bool(*it),
        Json::Number(it) => match it.as_i64() {
            Some(it) => it.into(),
            None => it.as_f64().unwrap_or_default().into(),
        },
        Json::String(it) => Value::String(it.clone()),
        Json::Array(items) => Value::Array(items.iter().map(value_of).collect()),
        Json::Object(fields) => {
            let fields: HashMap<_, _> =
                fields.iter().map(|(name, value)| (name.clone(), value_of(value))).collect();
            Value::Map(fields)
        }
    }
}

/// Back, with sorted keys.
fn json_of(value: &Value) -> Json {
    match value {
        Value::Bool(it) => Json::Bool(*it),
        Value::String(it) => Json::String(it.clone()),
        Value::Array(items) => items.iter().map(json_of).collect(),
        Value::Object(fields) | Value::Map(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), json_of(value))).collect()
        }
        Value::Number(it) => match it.as_i64() {
            Some(it) => it.into(),
            None => it.as_f64().and_then(Number::from_f64).map_or(Json::Null, Json::Number),
        },
        Value::NoValue | Value::Nil | Value::Function(_) => Json::Null,
    }
}

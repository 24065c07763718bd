//! Fields that the API does not have.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

/// Paths of the fields of `object` that are lost when it is read as a `T` and written again. `None` if it is not a `T`:
/// then reading it returns the reason.
pub(super) fn fields<T: DeserializeOwned + Serialize>(object: &Value) -> Vec<String> {
    let mut lost = Vec::new();
    if let Ok(known) = T::deserialize(object)
        && let Ok(known) = serde_json::to_value(known)
    {
        compare(object, &known, "", &mut lost);
    }
    lost
}

fn compare(given: &Value, known: &Value, path: &str, lost: &mut Vec<String>) {
    match (given, known) {
        (Value::Object(given), Value::Object(known)) => {
            for (name, value) in given.iter().filter(|(_, value)| !is_nothing(value)) {
                let path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
                match known.get(name) {
                    Some(known) => compare(value, known, &path, lost),
                    None => lost.push(path),
                }
            }
        }
        (Value::Array(given), Value::Array(known)) => {
            for (n, (given, known)) in given.iter().zip(known).enumerate() {
                compare(given, known, &format!("{path}[{n}]"), lost);
            }
        }
        _ => {}
    }
}

/// Values that the API's types leave out as defaults.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        _ => false,
    }
}

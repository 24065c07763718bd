//! Label and field selectors, as far as a service proxy uses them.

use serde_json::Value;

/// One requirement of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Requirement {
    Has(String),
    HasNot(String),
    Is(String, String),
    IsNot(String, String),
}

/// Which objects a request is about.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector {
    labels: Vec<Requirement>,
    fields: Vec<Requirement>,
}

impl Selector {
    pub(super) fn parse(labels: Option<&String>, fields: Option<&String>) -> Self {
        let parse = |text: Option<&String>| text.map(|text| requirements(text)).unwrap_or_default();
        Self { labels: parse(labels), fields: parse(fields) }
    }

    /// Whether it selects by a field that not every server knows.
    pub(super) fn has_special_fields(&self) -> bool {
        self.fields.iter().any(|requirement| match requirement {
            Requirement::Has(key)
            | Requirement::HasNot(key)
            | Requirement::Is(key, _)
            | Requirement::IsNot(key, _) => key != "metadata.name",
        })
    }

    pub(super) fn matches(&self, object: &Value) -> bool {
        let label = |key: &str| object["metadata"]["labels"][key].as_str();
        let field = |key: &str| key.split('.').fold(object, |value, part| &value[part]).as_str();
        self.labels.iter().all(|requirement| requirement.holds(label))
            && self.fields.iter().all(|requirement| requirement.holds(field))
    }
}

impl Requirement {
    fn holds<'a>(&self, get: impl Fn(&str) -> Option<&'a str>) -> bool {
        match self {
            Self::Has(key) => get(key).is_some(),
            Self::HasNot(key) => get(key).is_none(),
            Self::Is(key, value) => get(key) == Some(value),
            Self::IsNot(key, value) => get(key) != Some(value),
        }
    }
}

fn requirements(text: &str) -> Vec<Requirement> {
    let owned = |(key, value): (&str, &str)| (key.to_owned(), value.to_owned());
    let parse = |part: &str| {
        if let Some((key, value)) = part.split_once("!=").map(owned) {
            Requirement::IsNot(key, value)
        } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')).map(owned) {
            Requirement::Is(key, value)
        } else if let Some(key) = part.strip_prefix('!') {
            Requirement::HasNot(key.to_owned())
        } else {
            Requirement::Has(part.to_owned())
        }
    };
    text.split(',').filter(|part| !part.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn selectors_select() {
        let object =
            json!({"metadata": {"name": "a", "labels": {"x/y": "1"}}, "spec": {"clusterIP": "None"}});
        let cases = [
            ("x/y", "", true),
            ("!x/y", "", false),
            ("x/y=1,!z", "", true),
            ("x/y!=1", "", false),
            ("", "metadata.name=a", true),
            ("", "metadata.name==b", false),
            ("", "spec.clusterIP!=None", false),
        ];
        for (labels, fields, expected) in cases {
            let selector = Selector::parse(Some(&labels.to_owned()), Some(&fields.to_owned()));
            assert_eq!(selector.matches(&object), expected, "{labels} {fields}");
        }
    }
}

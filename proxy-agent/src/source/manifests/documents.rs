//! From the text of a file to objects, each with its line.
//!
//! Documents, and the items of lists, stand alone: a bad one does not spoil its neighbours.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use serde_saphyr::{Spanned, budget, options};
use tracing::debug;

use crate::source::{
    convert::{self, Converted},
    lite::{EndpointSliceLite, NodeLite, ServiceCidrLite, ServiceLite},
};

/// What a file holds.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The objects for us, in order.
    pub(super) objects: Vec<Object>,
    /// What could not be read. Not empty: the file may have meant more objects than `objects`.
    pub(super) problems: Vec<Problem>,
}

/// One object.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) line: u64,
    pub(super) converted: Converted,
}

/// Where something is wrong, counted from 1, and what.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) what: String,
}

/// How the text of a file is to be understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON: one document.
    Json,
    /// YAML: any number of them.
    Yaml,
}

/// Reads all documents of a file. `node` is the one Node that is for us.
pub(super) fn parse(text: &str, format: Format, node: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let documents = match format {
        Format::Json => vec![(0, text)],
        Format::Yaml => split(text),
    };
    for (lines_before, text) in documents {
        let document = Document { text, format, lines_before, node };
        if let Err(problem) = document.read(&mut parsed) {
            parsed.problems.push(problem);
        }
    }
    parsed
}

/// Splits at the `---` lines (YAML 1.2.2, 9.1.2: they end any document, even within a block scalar).
/// Gives each document with the number of lines before it.
fn split(text: &str) -> Vec<(u64, &str)> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            documents.push((start_line, &text[start..offset]));
            (start, start_line) = (offset, number);
        }
        offset += line.len();
    }
    documents.push((start_line, &text[start..]));
    documents.retain(|(_, document)| document.lines().any(has_content));
    documents
}

/// Is there more in the line than comments, directives and markers?
fn has_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !line.is_empty() && !line.starts_with(['#', '%']) && line != "..."
}

#[derive(Clone, Copy)]
struct Document<'a> {
    text: &'a str,
    format: Format,
    lines_before: u64,
    node: &'a str,
}

/// What every object has.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Header {
    api_version: Option<String>,
    kind: Option<String>,
    metadata: Option<Metadata>,
}

#[derive(Deserialize)]
struct Metadata {
    name: Option<String>,
}

#[derive(Deserialize)]
struct List<T> {
    items: Option<Vec<T>>,
}

/// What an object is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    Service,
    EndpointSlice,
    Node,
    ServiceCidr,
    List,
    Other,
}

impl Header {
    fn meaning(&self, default: Meaning, node: &str) -> Result<Meaning, String> {
        let meaning = self.kind_of_object(default)?;
        let name = self.metadata.as_ref().and_then(|metadata| metadata.name.as_deref()).unwrap_or_default();
        match meaning {
            Meaning::List | Meaning::Other => Ok(meaning),
            _ if name.is_empty() => {
                let kind = self.kind.as_deref().unwrap_or("object");
                Err(format!("the {kind} has no `metadata.name`"))
            }
            Meaning::Node if name != node => Ok(Meaning::Other),
            _ => Ok(meaning),
        }
    }

    fn kind_of_object(&self, default: Meaning) -> Result<Meaning, String> {
        let Some(kind) = self.kind.as_deref() else {
            return if default == Meaning::Other {
                Err("the document has no `kind`".to_owned())
            } else {
                Ok(default)
            };
        };
        let version = self.api_version.as_deref().ok_or_else(|| format!("the {kind} has no `apiVersion`"))?;
        Ok(match (version, kind) {
            ("v1", "Service") => Meaning::Service,
            ("discovery.k8s.io/v1", "EndpointSlice") => Meaning::EndpointSlice,
            ("v1", "Node") => Meaning::Node,
            ("networking.k8s.io/v1", "ServiceCIDR") => Meaning::ServiceCidr,
            ("discovery.k8s.io/v1beta1", "EndpointSlice") => {
                return Err("apiVersion of the EndpointSlice must be discovery.k8s.io/v1".to_owned());
            }
            ("v1", "List" | "ServiceList" | "NodeList")
            | ("discovery.k8s.io/v1", "EndpointSliceList")
            | ("networking.k8s.io/v1", "ServiceCIDRList") => Meaning::List,
            _ => Meaning::Other,
        })
    }

    /// What the items of a list are if they do not say so, as those of `kubectl get --raw` do not.
    fn items(&self) -> Meaning {
        match self.kind.as_deref() {
            Some("ServiceList") => Meaning::Service,
            Some("EndpointSliceList") => Meaning::EndpointSlice,
            Some("NodeList") => Meaning::Node,
            Some("ServiceCIDRList") => Meaning::ServiceCidr,
            _ => Meaning::Other,
        }
    }
}

impl Document<'_> {
    fn read(self, parsed: &mut Parsed) -> Result<(), Problem> {
        let Some(header) = self.parse::<Option<Header>>()? else {
            return Ok(());
        };
        let line = self.first_line();
        let here = |what| Problem { line, column: 1, what };
        let converted = match header.meaning(Meaning::Other, self.node).map_err(here)? {
            Meaning::Service => convert::service(&self.parse::<ServiceLite>()?),
            Meaning::EndpointSlice => convert::endpoint_slice(&self.parse::<EndpointSliceLite>()?),
            Meaning::Node => convert::node(&self.parse::<NodeLite>()?),
            Meaning::ServiceCidr => convert::service_cidr(&self.parse::<ServiceCidrLite>()?),
            Meaning::List => return self.read_items(header.items(), parsed),
            Meaning::Other => {
                debug!("line {line}: a {} is none of our business", header.kind.unwrap_or_default());
                return Ok(());
            }
        };
        parsed.objects.push(Object { line, converted });
        Ok(())
    }

    fn read_items(self, default: Meaning, parsed: &mut Parsed) -> Result<(), Problem> {
        let items: Vec<(u64, Value)> = match self.format {
            Format::Json => {
                let items = self.parse::<List<Value>>()?.items.unwrap_or_default();
                items.into_iter().map(|item| (1, item)).collect()
            }
            Format::Yaml => {
                let items = self.parse::<List<Spanned<Value>>>()?.items.unwrap_or_default();
                items
                    .into_iter()
                    .map(|item| (self.lines_before + item.referenced.line(), item.value))
                    .collect()
            }
        };
        for (n, (line, item)) in items.into_iter().enumerate() {
            match read_item(item, default, self.node) {
                Ok(Some(converted)) => parsed.objects.push(Object { line, converted }),
                Ok(None) => {}
                Err(what) => {
                    parsed.problems.push(Problem { line, column: 1, what: format!("items[{n}]: {what}") });
                }
            }
        }
        Ok(())
    }

    fn parse<T: DeserializeOwned>(self) -> Result<T, Problem> {
        match self.format {
            Format::Json => serde_json::from_str(self.text).map_err(|error| Problem {
                line: error.line() as u64,
                column: error.column() as u64,
                what: without_location(&error.to_string()),
            }),
            Format::Yaml => {
                // Whoever can write into the folder rules the node's services anyway: a large list is no attack.
                let options = options! {
                    with_snippet: false,
                    budget: budget! {
                        max_events: usize::MAX, max_nodes: usize::MAX, max_total_scalar_bytes: usize::MAX,
                        max_total_comment_bytes: usize::MAX,
                    },
                };
                serde_saphyr::from_str_with_options(self.text, options)
                    .map_err(|error| self.yaml_problem(&error))
            }
        }
    }

    fn yaml_problem(self, error: &serde_saphyr::Error) -> Problem {
        let location = error.location();
        let line = location.map_or(1, |location| location.line().max(1));
        let said = without_location(&error.to_string());
        let text = self.text.lines().nth(line as usize - 1).unwrap_or_default().trim();
        Problem {
            line: self.lines_before + line,
            column: location.map_or(1, |location| location.column().max(1)),
            what: format!("{said} (`{}`)", text.chars().take(LONGEST_QUOTE).collect::<String>()),
        }
    }

    /// Where the document's content begins.
    fn first_line(self) -> u64 {
        let before = self.text.lines().take_while(|line| !has_content(line)).count();
        self.lines_before + before as u64 + 1
    }
}

/// Characters of a bad line that a message shows.
const LONGEST_QUOTE: usize = 60;

fn read_item(item: Value, default: Meaning, node: &str) -> Result<Option<Converted>, String> {
    fn parse<T: DeserializeOwned>(item: Value) -> Result<T, String> {
        serde_json::from_value(item).map_err(|error| error.to_string())
    }
    let header = Header::deserialize(&item).map_err(|error| error.to_string())?;
    Ok(match header.meaning(default, node)? {
        Meaning::Service => Some(convert::service(&parse::<ServiceLite>(item)?)),
        Meaning::EndpointSlice => Some(convert::endpoint_slice(&parse::<EndpointSliceLite>(item)?)),
        Meaning::Node => Some(convert::node(&parse::<NodeLite>(item)?)),
        Meaning::ServiceCidr => Some(convert::service_cidr(&parse::<ServiceCidrLite>(item)?)),
        Meaning::List => return Err("a list in a list is not supported".to_owned()),
        Meaning::Other => None,
    })
}

/// The message alone: the location is said in front of it, in lines of the file.
fn without_location(message: &str) -> String {
    let end = [" at line ", ", set DuplicateKeyPolicy"].iter().filter_map(|mark| message.find(mark)).min();
    let message = &message[..end.unwrap_or(message.len())];
    message.lines().next().unwrap_or(message).trim_end_matches([':', ' ']).to_owned()
}

#[cfg(test)]
mod tests;

//! From the text of a file to objects, each with its line, as kubectl reads it: YAML documents, JSON objects one after the
//! other, lists, lists in lists.
//!
//! Documents, and the items of lists, stand alone: a bad one does not spoil its neighbours.

mod header;
mod json;
mod unknown;
mod yaml;

use std::borrow::Cow;

use k8s_openapi::api::{core, discovery, networking};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

use self::header::{Header, Meaning};
use crate::{
    model::objects::Change,
    source::{
        convert::{self, Converted, Mirrored},
        trimmed::{TrimmedEndpointSlice, TrimmedEndpoints, TrimmedNode, TrimmedService, TrimmedServiceCidr},
    },
};

/// The contents of a file.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    /// The objects for us, in order.
    pub(super) objects: Vec<Object>,
    /// Unreadable parts. Not empty: the file may have meant more objects than `objects`.
    pub(super) problems: Vec<Problem>,
    /// Parts that were read and have no effect.
    pub(super) ignored: Vec<Notice>,
}

/// One object.
#[derive(Debug)]
pub(super) struct Object {
    pub(super) line: u64,
    pub(super) content: Content,
    /// Parts that were dropped and why, for people.
    pub(super) problems: Vec<String>,
}

/// The content of an object.
#[derive(Debug)]
pub(super) enum Content {
    /// An object of the API that the proxy follows.
    Change(Change),
    /// The EndpointSlices that `v1` Endpoints stand for.
    Endpoints(Mirrored),
}

/// The place of a problem, counted from 1, and its text.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) line: u64,
    pub(super) column: u64,
    pub(super) what: String,
}

/// A part of the file that has no effect, and its line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Notice {
    pub(super) line: u64,
    pub(super) what: String,
    /// Probably a mistake.
    pub(super) is_warning: bool,
}

/// The format of a file, where its content leaves that open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

const BYTE_ORDER_MARK: char = '\u{feff}';

/// Reads all documents of a file. `node` is the one Node that is for us.
pub(super) fn parse(text: &str, format: Format, node: &str) -> Parsed {
    let mut parsed = Parsed::default();
    let text = without_marks(text);
    for document in yaml::split(&text, &mut parsed.ignored) {
        if document.content().trim_start().starts_with('{') {
            parsed.append(read_json(document, format, node));
        } else {
            parsed.append(read_yaml(document, node));
        }
    }
    parsed
}

/// Byte order marks may begin the file and each document (YAML 1.2.2, 5.2), as where such files were put together.
fn without_marks(text: &str) -> Cow<'_, str> {
    let text = text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text);
    if text.contains("\n\u{feff}") { text.replace("\n\u{feff}", "\n").into() } else { text.into() }
}

fn read_yaml(document: yaml::Document<'_>, node: &str) -> Parsed {
    let mut parsed = Parsed::default();
    parsed.read(document, Meaning::Other, node);
    parsed
}

/// A text that begins like JSON may also be YAML, in flow style.
fn read_json(document: yaml::Document<'_>, format: Format, node: &str) -> Parsed {
    let (pieces, problem) = json::stream(document.content(), document.lines_before);
    let is_json = format == Format::Json || !pieces.is_empty();
    if problem.is_some() && format == Format::Yaml {
        let parsed = read_yaml(document, node);
        if parsed.problems.is_empty() || !is_json {
            return parsed;
        }
    }
    let mut parsed = Parsed::default();
    pieces.into_iter().for_each(|piece| parsed.read(piece, Meaning::Other, node));
    parsed.problems.extend(problem);
    parsed
}

/// The text or value of one object.
trait Source: Sized {
    /// The type that the items of a list are read from.
    type Item: Source;

    /// The line of the file where it begins.
    fn line(&self) -> u64;

    /// Deserializes it.
    fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem>;

    /// The items of a list.
    fn items(self) -> Result<Vec<Self::Item>, Problem>;
}

impl Parsed {
    fn append(&mut self, other: Self) {
        self.objects.extend(other.objects);
        self.problems.extend(other.problems);
        self.ignored.extend(other.ignored);
    }

    /// Reads an object or list. `default` applies where it has no `kind`.
    fn read<S: Source>(&mut self, source: S, default: Meaning, node: &str) {
        if let Err(problem) = self.try_read(source, default, node) {
            self.problems.push(problem);
        }
    }

    fn try_read<S: Source>(&mut self, source: S, default: Meaning, node: &str) -> Result<(), Problem> {
        let line = source.line();
        let Some(header) = source.parse::<Option<Header>>()? else {
            self.ignore(line, "an empty object is ignored".to_owned());
            return Ok(());
        };
        match header.meaning(default, node).map_err(|what| Problem { line, column: 1, what })? {
            Meaning::Service => {
                self.add::<core::v1::Service>(&source, convert::service(&source.parse::<TrimmedService>()?))
            }
            Meaning::EndpointSlice => {
                let converted = convert::endpoint_slice(&source.parse::<TrimmedEndpointSlice>()?);
                self.add::<discovery::v1::EndpointSlice>(&source, converted);
            }
            Meaning::Endpoints => self.add_endpoints(&source)?,
            Meaning::Node => {
                let Converted { change, problems } = convert::node(&source.parse::<TrimmedNode>()?);
                self.objects.push(Object { line, content: Content::Change(change), problems });
            }
            Meaning::ServiceCidr => {
                let converted = convert::service_cidr(&source.parse::<TrimmedServiceCidr>()?);
                self.add::<networking::v1::ServiceCIDR>(&source, converted);
            }
            Meaning::List => {
                for (n, item) in source.items()?.into_iter().enumerate() {
                    if let Err(problem) = self.try_read(item, header.items(), node) {
                        let what = format!("items[{n}]: {}", problem.what);
                        self.problems.push(Problem { what, ..problem });
                    }
                }
            }
            Meaning::OtherNode => {}
            Meaning::Other => {
                self.ignore(line, format!("{header} is ignored: a service proxy does not use its kind"))
            }
        }
        Ok(())
    }

    /// `T` is the API's full type.
    fn add<T: DeserializeOwned + Serialize>(&mut self, source: &impl Source, converted: Converted) {
        self.note_unknown_fields::<T>(source);
        let Converted { change, problems } = converted;
        self.objects.push(Object { line: source.line(), content: Content::Change(change), problems });
    }

    fn add_endpoints(&mut self, source: &impl Source) -> Result<(), Problem> {
        self.note_unknown_fields::<core::v1::Endpoints>(source);
        let line = source.line();
        let (mirrored, problems) = convert::endpoints(&source.parse::<TrimmedEndpoints>()?);
        match mirrored {
            Ok(mirrored) => {
                self.objects.push(Object { line, content: Content::Endpoints(mirrored), problems });
            }
            Err(reason) => self.ignore(line, reason),
        }
        Ok(())
    }

    fn ignore(&mut self, line: u64, what: String) {
        self.ignored.push(Notice { line, what, is_warning: false });
    }

    /// The API server rejects unknown fields or warns of them (`fieldValidation`). Here each is a warning.
    fn note_unknown_fields<T: DeserializeOwned + Serialize>(&mut self, source: &impl Source) {
        let Ok(value) = source.parse::<Value>() else { return };
        let line = source.line();
        let unknown = unknown::fields::<T>(&value).into_iter();
        self.ignored.extend(unknown.map(|field| Notice {
            line,
            what: format!("unknown field `{field}` is ignored"),
            is_warning: true,
        }));
    }
}

/// The message alone: the caller puts the location in the file in front of it.
fn without_location(message: &str) -> String {
    let end = [" at line ", ", set DuplicateKeyPolicy"].iter().filter_map(|mark| message.find(mark)).min();
    let message = &message[..end.unwrap_or(message.len())];
    message.lines().next().unwrap_or(message).trim_end_matches([':', ' ']).to_owned()
}

#[cfg(test)]
mod tests;

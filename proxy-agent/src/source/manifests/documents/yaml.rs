//! YAML documents.

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::Value;
use serde_saphyr::{Spanned, budget, options};

use super::{Notice, Problem, Source, without_location};

/// Splits at the `---` lines (YAML 1.2.2, 9.1.2: they end any document, even within a block scalar). Those with nothing in
/// them are left out.
pub(super) fn split<'a>(text: &'a str, ignored: &mut Vec<Notice>) -> Vec<Document<'a>> {
    let mut documents = Vec::new();
    let (mut start, mut lines_before, mut offset) = (0, 0, 0);
    for (number, line) in (0..).zip(text.split_inclusive('\n')) {
        let marker = line
            .strip_prefix("---")
            .is_some_and(|rest| rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n']));
        if marker && offset > start {
            documents.push(Document { text: &text[start..offset], lines_before });
            (start, lines_before) = (offset, number);
        }
        offset += line.len();
    }
    // Nothing before the first marker and nothing after the last one is how many files are written, and so are comments.
    let blank = documents.iter().skip(1).filter(|document| document.is_blank());
    ignored.extend(blank.map(|document| Notice {
        line: document.lines_before + 1,
        what: "an empty document is ignored".to_owned(),
        is_warning: false,
    }));
    documents.push(Document { text: &text[start..], lines_before });
    documents.retain(|document| document.text.lines().any(has_content));
    documents
}

/// Whether the line has more than comments, directives and markers.
fn has_content(line: &str) -> bool {
    let line = line.strip_prefix("---").unwrap_or(line).trim();
    !line.is_empty() && !line.starts_with(['#', '%']) && line != "..."
}

/// The text of a document, and where that is in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Document<'a> {
    pub(super) text: &'a str,
    pub(super) lines_before: u64,
}

/// An item of a list.
#[derive(Debug)]
pub(super) struct Item {
    value: Value,
    /// Where the item of the outermost list begins that it is or is in.
    line: u64,
}

#[derive(Deserialize)]
struct List {
    items: Option<Vec<Spanned<Value>>>,
}

/// Characters of a bad line that a message shows.
const LONGEST_QUOTE: usize = 60;

impl<'a> Document<'a> {
    /// The text behind the marker.
    pub(super) fn content(&self) -> &'a str {
        self.text.strip_prefix("---").unwrap_or(self.text)
    }

    fn is_blank(&self) -> bool {
        self.content().trim().is_empty()
    }

    fn problem(self, error: &serde_saphyr::Error) -> Problem {
        let location = error.location();
        let line = location.map_or(1, |location| location.line().max(1));
        let reason = without_location(&error.to_string());
        let text = self.text.lines().nth(line as usize - 1).unwrap_or_default().trim();
        Problem {
            line: self.lines_before + line,
            column: location.map_or(1, |location| location.column().max(1)),
            what: format!("{reason} (`{}`)", text.chars().take(LONGEST_QUOTE).collect::<String>()),
        }
    }
}

impl Source for Document<'_> {
    type Item = Item;

    fn line(&self) -> u64 {
        let before = self.text.lines().take_while(|line| !has_content(line)).count();
        self.lines_before + before as u64 + 1
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        // A writer of the folder controls the node's services anyway: a large list is not an attack.
        let options = options! {
            with_snippet: false,
            budget: budget! {
                max_events: usize::MAX, max_nodes: usize::MAX, max_total_scalar_bytes: usize::MAX,
                max_total_comment_bytes: usize::MAX,
            },
        };
        serde_saphyr::from_str_with_options(self.text, options).map_err(|error| self.problem(&error))
    }

    fn items(self) -> Result<Vec<Item>, Problem> {
        let items = self.parse::<List>()?.items.unwrap_or_default().into_iter();
        Ok(items
            .map(|item| Item { line: self.lines_before + item.referenced.line(), value: item.value })
            .collect())
    }
}

impl Source for Item {
    type Item = Self;

    fn line(&self) -> u64 {
        self.line
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        T::deserialize(&self.value).map_err(|error| Problem {
            line: self.line,
            column: 1,
            what: error.to_string(),
        })
    }

    fn items(self) -> Result<Vec<Self>, Problem> {
        #[derive(Deserialize)]
        struct List {
            items: Option<Vec<Value>>,
        }
        let items = self.parse::<List>()?.items.unwrap_or_default().into_iter();
        Ok(items.map(|value| Self { value, line: self.line }).collect())
    }
}

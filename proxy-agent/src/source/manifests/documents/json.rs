//! JSON: objects one after the other.

use serde::{
    Deserialize,
    de::{DeserializeOwned, IgnoredAny},
};
use serde_json::value::RawValue;

use super::{BYTE_ORDER_MARK, Problem, Source, without_location};

/// The text of one value, and where that is in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct Piece<'a> {
    text: &'a str,
    lines_before: u64,
    columns_before: u64,
}

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

/// Finds the values of a text, up to the first one that is none.
pub(super) fn stream(text: &str, lines_before: u64) -> (Vec<Piece<'_>>, Option<Problem>) {
    let mut pieces = Vec::new();
    let mut rest = Piece { text, lines_before, columns_before: 0 };
    loop {
        let between = |c: char| c.is_ascii_whitespace() || c == BYTE_ORDER_MARK;
        rest = rest.after(rest.text.len() - rest.text.trim_start_matches(between).len());
        if rest.text.is_empty() {
            return (pieces, None);
        }
        let mut values = serde_json::Deserializer::from_str(rest.text).into_iter::<IgnoredAny>();
        match values.next() {
            Some(Ok(_)) => {
                let length = values.byte_offset();
                pieces.push(Piece { text: &rest.text[..length], ..rest });
                rest = rest.after(length);
            }
            Some(Err(error)) => return (pieces, Some(rest.problem(&error))),
            None => return (pieces, None),
        }
    }
}

impl<'a> Piece<'a> {
    /// The text from an offset on.
    fn after(self, offset: usize) -> Self {
        let (before, text) = self.text.split_at(offset);
        let lines = before.matches('\n').count() as u64;
        let columns = before.rsplit('\n').next().unwrap_or_default().len() as u64;
        let columns_before = if lines == 0 { self.columns_before + columns } else { columns };
        Self { text, lines_before: self.lines_before + lines, columns_before }
    }

    fn problem(self, error: &serde_json::Error) -> Problem {
        let (line, column) = (error.line().max(1) as u64, error.column().max(1) as u64);
        Problem {
            line: self.lines_before + line,
            column: if line == 1 { self.columns_before + column } else { column },
            what: without_location(&error.to_string()),
        }
    }

    fn read<T: Deserialize<'a>>(self) -> Result<T, Problem> {
        serde_json::from_str(self.text).map_err(|error| self.problem(&error))
    }
}

impl<'a> Source for Piece<'a> {
    type Item = Self;

    fn line(&self) -> u64 {
        self.lines_before + 1
    }

    fn parse<T: DeserializeOwned>(&self) -> Result<T, Problem> {
        self.read()
    }

    fn items(self) -> Result<Vec<Self>, Problem> {
        let mut items = Vec::new();
        // Each is looked for from the one before it, so that lines are counted once.
        let mut rest = self;
        for item in self.read::<List<'a>>()?.items.unwrap_or_default() {
            rest = rest.after(item.get().as_ptr().addr() - rest.text.as_ptr().addr());
            items.push(Self { text: item.get(), ..rest });
        }
        Ok(items)
    }
}

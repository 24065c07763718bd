//! Rows as a table, JSON or YAML.

use std::io::{self, Write as _};

use anyhow::{Context as _, Result};
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

/// How to print: `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// Spaces between columns, as kubectl has them.
const GAP: u16 = 3;

/// One line of a table, one object in JSON and YAML.
pub(crate) trait Row: Serialize {
    /// Titles of the columns.
    const HEADER: &'static [&'static str];

    /// The texts of the columns.
    fn cells(&self) -> Vec<String>;
}

/// Formats rows.
pub(crate) fn render<R: Row>(rows: &[R], format: OutputFormat) -> Result<String> {
    match format {
        OutputFormat::Table => Ok(table(R::HEADER, rows.iter().map(Row::cells))),
        _ => document(&rows, format),
    }
}

/// Formats a value as a document; a table of one cannot be made here and becomes JSON.
pub(crate) fn document<T: Serialize>(value: &T, format: OutputFormat) -> Result<String> {
    Ok(match format {
        OutputFormat::Yaml => serde_saphyr::to_string(value)?,
        OutputFormat::Json | OutputFormat::Table => serde_json::to_string_pretty(value)? + "\n",
    })
}

/// Formats columns.
pub(crate) fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    table.add_rows(rows);
    for column in table.column_iter_mut() {
        column.set_padding((0, GAP));
    }
    table.trim_fmt() + "\n"
}

/// Text of an empty cell in a table.
pub(crate) fn or_dash<T: ToString>(value: Option<T>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

/// Prints; a reader that has seen enough (`| head`) is not an error.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot print"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Pet {
        name: &'static str,
        age_years: Option<u32>,
    }

    impl Row for Pet {
        const HEADER: &'static [&'static str] = &["NAME", "AGE"];

        fn cells(&self) -> Vec<String> {
            vec![self.name.to_owned(), or_dash(self.age_years)]
        }
    }

    const PETS: [Pet; 2] =
        [Pet { name: "cat", age_years: Some(12) }, Pet { name: "tortoise", age_years: None }];

    #[test]
    fn tables_are_for_grep() {
        let text = render(&PETS, OutputFormat::Table).unwrap();
        assert_eq!(text, "NAME       AGE\ncat        12\ntortoise   -\n");
        assert_eq!(render::<Pet>(&[], OutputFormat::Table).unwrap(), "NAME   AGE\n");
    }

    #[test]
    fn documents_hold_the_same() {
        let expected =
            serde_json::json!([{"name": "cat", "ageYears": 12}, {"name": "tortoise", "ageYears": null}]);
        let json = render(&PETS, OutputFormat::Json).unwrap();
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), expected);
        let yaml = render(&PETS, OutputFormat::Yaml).unwrap();
        assert_eq!(serde_saphyr::from_str::<serde_json::Value>(&yaml).unwrap(), expected);
        assert_eq!(render::<Pet>(&[], OutputFormat::Json).unwrap(), "[]\n");
    }
}

//! Tables in documents that are made from code, and documents that are wholly so. `cargo xtask codegen` runs these tests with
//! `PROXY_AGENT_BLESS`, with which they write the files that they compare otherwise.

mod flags;
mod maps;
mod markers;
mod settings;

use std::{
    collections::BTreeMap,
    env, fs,
    path::{Path, PathBuf},
};

use anyhow::Result;
use similar::TextDiff;

const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Makes a table.
type Table = fn() -> String;

/// The tables by the names that markers have.
const TABLES: [(&str, Table); 5] = [
    ("maps", maps::table),
    ("map-groups", maps::groups),
    ("map-capacities", maps::capacities),
    ("settings", settings::table),
    ("flags-run", flags::of_run),
];

#[test]
fn tables_in_documents_are_current() -> Result<()> {
    let tables: BTreeMap<_, _> = TABLES.into_iter().map(|(name, table)| (name, table())).collect();
    let mut hosts: BTreeMap<_, Vec<PathBuf>> = BTreeMap::new();
    let mut stale = String::new();
    for path in documents()? {
        let text = fs::read_to_string(&path)?;
        let (renewed, names) =
            markers::renew(&text, &tables).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for name in names {
            hosts.entry(name).or_default().push(path.clone());
        }
        stale += &compare(&path, &text, &renewed)?;
    }
    for (name, _) in TABLES {
        let count = hosts.get(name).map_or(0, Vec::len);
        assert_eq!(count, 1, "the table `{name}` must stand in one document: {:?}", hosts.get(name));
    }
    assert!(stale.is_empty(), "stale: run `cargo xtask codegen`\n{stale}");
    Ok(())
}

#[test]
fn conformance_document_is_current() -> Result<()> {
    let path = Path::new(WORKSPACE).join("docs/conformance.md");
    let stands = fs::read_to_string(&path).unwrap_or_default();
    let stale = compare(&path, &stands, &proxy_conformance::document())?;
    assert!(stale.is_empty(), "stale: run `cargo xtask codegen`\n{stale}");
    Ok(())
}

/// Markdown files of the root, `deploy` and, with their folders, `docs`.
fn documents() -> Result<Vec<PathBuf>> {
    let root = Path::new(WORKSPACE);
    let mut documents = Vec::new();
    let mut folders = vec![root.join("docs")];
    for folder in [root.to_owned(), root.join("deploy")] {
        documents.extend(entries(&folder)?.into_iter().filter(|path| path.is_file()));
    }
    while let Some(folder) = folders.pop() {
        let (inner, files): (Vec<_>, Vec<_>) = entries(&folder)?.into_iter().partition(|path| path.is_dir());
        folders.extend(inner);
        documents.extend(files);
    }
    documents.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    documents.sort();
    Ok(documents)
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect()
}

/// The difference between a file and its expected text; none with `PROXY_AGENT_BLESS`, which writes the file.
fn compare(path: &Path, stands: &str, should: &str) -> Result<String> {
    if stands == should {
        return Ok(String::new());
    }
    if env::var_os("PROXY_AGENT_BLESS").is_some() {
        fs::write(path, should)?;
        return Ok(String::new());
    }
    let name = path.strip_prefix(WORKSPACE).unwrap_or(path).display().to_string();
    Ok(TextDiff::from_lines(stands, should).unified_diff().header(&name, "generated").to_string())
}

/// A row of a table. Cells stay in their columns whatever is in them.
fn row(cells: &[&str]) -> String {
    let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
    format!("| {} |\n", cells.join(" | ").replace("|  |", "| |"))
}

/// The two lines above rows.
fn header(titles: &[&str]) -> String {
    format!("{}|{}\n", row(titles), "---|".repeat(titles.len()))
}

/// `65,536`
fn grouped(number: impl ToString) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[test]
fn numbers_are_grouped_by_thousands() {
    for (number, text) in
        [(0, "0"), (999, "999"), (1000, "1,000"), (65_536, "65,536"), (1_048_576, "1,048,576")]
    {
        assert_eq!(grouped(number), text);
    }
}

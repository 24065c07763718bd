//! Files that are too long to have one purpose.

use std::{fs, path::Path};

use anyhow::{Context as _, Result};

use super::tree;

/// The most lines that a Rust file may have.
const MAX: usize = 400;

/// Files that are longer. Split one, and take it off this list; the list does not grow.
const LONG: &[&str] = &[];

/// Returns a line for each file that is too long, and for each entry of the list that is not needed.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let mut lengths = Vec::new();
    for path in tree::files(root, &["rs"])? {
        let text = fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        lengths.push((path, text.lines().count()));
    }
    Ok(assess(&lengths, LONG))
}

fn assess(lengths: &[(String, usize)], known: &[&str]) -> Vec<String> {
    let is_long = |(_, lines): &&(String, usize)| *lines > MAX;
    let new = lengths.iter().filter(is_long).filter(|(path, _)| !known.contains(&path.as_str()));
    let mut findings: Vec<String> = new
        .map(|(path, lines)| format!("{path}:{lines}: {lines} lines, more than {MAX}: split it"))
        .collect();
    let still = |path: &&&str| lengths.iter().filter(is_long).any(|(long, _)| long == **path);
    findings.extend(known.iter().filter(|path| !still(path)).map(|path| {
        format!("{path}: not longer than {MAX} lines: take it off the list in xtask/src/lint/length.rs")
    }));
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_files_are_found_and_the_list_shrinks() {
        let lengths = [("a.rs", 400), ("b.rs", 401), ("c.rs", 401), ("d.rs", 10)];
        let lengths = lengths.map(|(path, lines)| (path.to_owned(), lines));
        let findings = assess(&lengths, &["c.rs", "d.rs", "gone.rs"]);
        let about: Vec<&str> = findings.iter().filter_map(|line| line.split(':').next()).collect();
        assert_eq!(about, ["b.rs", "d.rs", "gone.rs"], "{findings:?}");
        assert_eq!(assess(&lengths, &["b.rs", "c.rs"]), Vec::<String>::new());
    }
}

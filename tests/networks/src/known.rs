//! Known results: `docs/networks.md`, where the file is available. Virtual machines are compared by `cargo xtask vm`.

use std::{collections::BTreeMap, fs};

use proxy_harness::workspace;

use super::Path;

/// Cells of the document's tables, one table per kernel.
#[derive(Debug, Default)]
pub struct Known {
    /// By shape, path and family: the cell in each kernel's table.
    cells: BTreeMap<(String, String), Vec<String>>,
}

impl Known {
    /// Reads the document; empty if there is none.
    #[must_use]
    pub fn committed() -> Self {
        Self::parse(&fs::read_to_string(workspace().join("docs/networks.md")).unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let mut known = Self::default();
        let mut columns = Vec::new();
        for line in text.lines() {
            let Some(row) = line.strip_prefix('|') else {
                columns.clear();
                continue;
            };
            let fields: Vec<_> =
                row.trim_end_matches('|').split('|').map(|field| field.trim().to_owned()).collect();
            if columns.is_empty() {
                columns = fields;
                continue;
            }
            let Some((shape, cells)) = fields.split_first() else { continue };
            for (column, cell) in columns.iter().skip(1).zip(cells) {
                known.cells.entry((shape.clone(), column.clone())).or_default().push(cell.clone());
            }
        }
        known
    }

    /// Whether this works in every kernel that has the shape.
    #[must_use]
    pub fn works(&self, shape: &str, path: Path, family: &str) -> bool {
        let cells = self.cells.get(&(shape.to_owned(), format!("{path} {family}")));
        cells.is_some_and(|cells| {
            let mut possible = cells.iter().filter(|cell| *cell != "-").peekable();
            possible.peek().is_some() && possible.all(|cell| cell == "yes")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_tables_of_several_kernels() {
        let known = Known::parse(
            "# Networks\n\n| shape | pod v4 | pod v6 |\n|---|---|---|\n| a | yes | yes |\n| b | yes | - |\n\n\
             | shape | pod v4 | pod v6 |\n|---|---|---|\n| a | yes | no |\n| b | - | - |\n",
        );
        assert!(known.works("a", Path::Pod, "v4"));
        assert!(!known.works("a", Path::Pod, "v6"));
        assert!(known.works("b", Path::Pod, "v4"));
        assert!(!known.works("b", Path::Pod, "v6"));
        assert!(!known.works("c", Path::Pod, "v6"));
    }
}

//! The files of the project.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Names of folders with nothing that people write.
const FOREIGN: [&str; 3] = ["target", "corpus", "seeds"];

/// Every file with one of these extensions, by its path from the root, sorted. Hidden folders and build output are left out.
pub(super) fn files(root: &Path, extensions: &[&str]) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))?;
        for entry in entries {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() && !name.starts_with('.') && !FOREIGN.contains(&name.as_ref()) {
                folders.push(path);
            } else if path.is_file()
                && extensions.iter().any(|end| path.extension().is_some_and(|own| own == *end))
            {
                found.push(relative(root, path));
            }
        }
    }
    found.sort();
    Ok(found)
}

fn relative(root: &Path, path: PathBuf) -> String {
    path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned()
}

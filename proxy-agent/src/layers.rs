//! Holds the sources to the table of layers in `lib.rs`.

mod aya;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src");

/// Modules by the number of their layer, from the table.
fn layers() -> BTreeMap<String, usize> {
    let text = fs::read_to_string(Path::new(SOURCES).join("lib.rs")).unwrap();
    let rows = text.lines().filter_map(|line| line.strip_prefix("//! | ")).skip(1);
    let mut layers = BTreeMap::new();
    for (number, row) in rows.enumerate() {
        let modules = row.split('|').nth(1).unwrap_or_default();
        for name in modules.split('`').skip(1).step_by(2) {
            let before = layers.insert(name.to_owned(), number);
            assert_eq!(before, None, "{name} is in two layers");
        }
    }
    layers
}

/// All files below a folder.
fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The module of this crate that a file belongs to; none for `lib.rs`, `main.rs` and this one.
fn module_of(file: &Path) -> Option<String> {
    let first = file.strip_prefix(SOURCES).unwrap().components().next().unwrap();
    let name = Path::new(first.as_os_str()).file_stem().unwrap().to_str().unwrap().to_owned();
    (!["lib", "main", "layers"].contains(&name.as_str())).then_some(name)
}

/// A text without its comments.
fn code_of(text: &str) -> String {
    let code: Vec<&str> = text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect();
    code.join("\n")
}

/// The name that a text begins with.
fn name_at(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// The names behind each `crate::`: the modules that a text uses.
fn used(text: &str) -> BTreeSet<String> {
    let code = code_of(text);
    let mut modules = BTreeSet::new();
    for (at, found) in code.match_indices("crate::") {
        // `pub(in crate::debug)` and names that end so are other things.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + found.len()..];
        if !rest.starts_with('{') {
            modules.insert(name_at(rest));
            continue;
        }
        // The first names within the outer braces.
        let (mut depth, mut expects) = (0, false);
        for (offset, c) in rest.char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => {}
            }
            if depth == 0 {
                break;
            }
            if depth == 1 && matches!(c, '{' | ',') {
                expects = true;
            } else if expects && !c.is_whitespace() {
                modules.insert(name_at(&rest[offset..]));
                expects = false;
            }
        }
    }
    modules
}

#[test]
fn modules_use_lower_layers_only() {
    let layers = layers();
    let mut all = Vec::new();
    files(Path::new(SOURCES), &mut all);
    let mut wrong = Vec::new();
    for file in all {
        let Some(module) = module_of(&file) else { continue };
        let shown = file.strip_prefix(SOURCES).unwrap().display().to_string();
        let Some(layer) = layers.get(&module) else {
            wrong.push(format!("{shown}: `{module}` is in no layer of the table in lib.rs"));
            continue;
        };
        let text = fs::read_to_string(&file).unwrap();
        for other in used(&text).into_iter().filter(|other| *other != module) {
            if layers.get(&other).is_some_and(|its| its >= layer) {
                wrong.push(format!("{shown} uses `{other}`, which is not of a layer before its own"));
            }
        }
        if module != "datapath" && ["aya::", "aya_log::", "aya_obj::"].iter().any(|aya| text.contains(aya)) {
            wrong.push(format!("{shown} names aya: only `datapath` does"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn uses_are_found() {
    let text = "use crate::{\n    a::{B, c::D},\n    e, // crate::not\n    f::G,\n};\nlet x = crate::h::i(); // crate::j\n\
                pub(in crate::k) fn l() {}";
    let expected: BTreeSet<String> = ["a", "e", "f", "h", "k"].map(str::to_owned).into();
    assert_eq!(used(text), expected);
}

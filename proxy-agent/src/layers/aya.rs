//! `datapath` shows other modules types of this crate only: a value of a type of aya has methods that can be called without naming the type.

use std::collections::BTreeSet;

use super::{SOURCES, code_of, files, name_at};

/// Of aya's names those that anyone may see: `Pod` marks plain types, and has no methods.
const MARKERS: [&str; 1] = ["Pod"];

/// All names in a text.
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|name| !name.is_empty())
}

/// The text from each place on where this keyword stands.
fn items<'t>(code: &'t str, keyword: &str) -> Vec<&'t str> {
    let is_word = |at: usize| !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
    let found = code.match_indices(keyword).map(|(at, _)| at).filter(|at| is_word(*at));
    found.map(|at| &code[at..]).filter(|text| text[keyword.len()..].starts_with(' ')).collect()
}

/// A text up to the first of these characters.
fn until<'t>(text: &'t str, ends: &[char]) -> &'t str {
    &text[..text.find(ends).unwrap_or(text.len())]
}

/// A text up to the end of its first block.
fn block(text: &str) -> &str {
    let mut depth = 0;
    for (at, c) in text.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 1 => return &text[..at],
            '}' => depth -= 1,
            _ => {}
        }
    }
    text
}

/// Types of aya that a file knows by name: imported, or by an alias for one.
fn known(code: &str, aliases: &BTreeSet<String>) -> BTreeSet<String> {
    let imports = items(code, "use").into_iter().filter(|text| text.starts_with("use aya"));
    let imported = imports.flat_map(|text| names(until(text, &[';'])));
    let types = imported.filter(|name| name.starts_with(char::is_uppercase) && !MARKERS.contains(name));
    let mut known: BTreeSet<String> = types.map(str::to_owned).collect();
    known.extend(["aya", "aya_log", "aya_obj"].map(str::to_owned));
    known.extend(aliases.iter().cloned());
    known
}

/// The declarations that other modules see.
fn seen(code: &str) -> Vec<&str> {
    let public = |visibility: &str| -> Vec<&str> {
        items(code, visibility).into_iter().map(|text| text[visibility.len()..].trim_start()).collect()
    };
    let mut seen: Vec<&str> = [public("pub"), public("pub(crate)")]
        .concat()
        .into_iter()
        .map(|declared| match name_at(declared).as_str() {
            "trait" | "enum" => block(declared),
            "struct" => until(declared, &['{', '(', ';']),
            "type" | "static" | "use" | "mod" => until(declared, &[';']),
            "fn" | "async" | "unsafe" | "const" => until(declared, &['{', ';']),
            _ => until(declared, &['\n']),
        })
        .collect();
    // Of implementations: `Deref` and iterators give away what stands there.
    seen.extend(code.lines().filter(|line| line.starts_with(' ') && line.trim_start().starts_with("type ")));
    seen
}

/// Declarations that show a type of aya.
fn exposed(code: &str, aliases: &BTreeSet<String>) -> Vec<String> {
    let known = known(code, aliases);
    let shows = |declared: &&str| names(declared).any(|name| known.contains(name));
    seen(code).into_iter().filter(shows).map(|declared| until(declared, &['\n']).to_owned()).collect()
}

/// Names of aliases, visible or not, for something with one of aya's types.
fn aliases(codes: &[(String, String)]) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    loop {
        let before = found.len();
        for (_, code) in codes {
            let known = known(code, &found);
            for alias in items(code, "type").into_iter().map(|text| until(text, &[';'])) {
                let Some((name, meaning)) = alias["type ".len()..].split_once('=') else { continue };
                if names(meaning).any(|name| known.contains(name)) {
                    found.insert(name_at(name));
                }
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

#[test]
fn datapath_shows_no_type_of_aya() {
    let folder = std::path::Path::new(SOURCES).join("datapath");
    let mut all = Vec::new();
    files(&folder, &mut all);
    let codes: Vec<(String, String)> = all
        .iter()
        .map(|file| (file.display().to_string(), code_of(&std::fs::read_to_string(file).unwrap())))
        .collect();
    let aliases = aliases(&codes);
    let wrong: Vec<String> = codes
        .iter()
        .flat_map(|(file, code)| {
            exposed(code, &aliases).into_iter().map(move |what| format!("{file}: {what}"))
        })
        .collect();
    assert!(
        wrong.is_empty(),
        "types of aya that modules outside `datapath` could use:\n{}",
        wrong.join("\n")
    );
}

#[test]
fn what_shows_is_found() {
    let code = code_of(
        "use aya::{Ebpf, Pod, maps::{HashMap as AyaMap, MapData}};\n\
         type Private = AyaMap<MapData, u32, u32>;\n\
         pub type Handle<K> = AyaMap<MapData, K, u32>;\n\
         pub struct Fine<K: Pod>(AyaMap<MapData, K, u32>); // pub fn ebpf() -> Ebpf\n\
         impl Fine<u32> {\n    pub(super) fn inner(&self) -> &MapData {}\n    pub fn get(&self) -> u32 {}\n}\n\
         pub(crate) struct Wrong {\n    private: Ebpf,\n    pub field: Ebpf,\n}\n\
         impl Deref for Fine<u32> {\n    type Target = MapData;\n}\n\
         pub trait Opens {\n    fn open() -> Private {}\n}\n\
         pub(crate) fn path() -> aya::Ebpf {}\n",
    );
    let of_code = [("a file".to_owned(), code.clone())];
    let aliases = aliases(&of_code);
    assert_eq!(aliases, ["Handle", "Private", "Target"].map(str::to_owned).into());
    let mut found = exposed(&code, &aliases);
    found.sort();
    let expected = [
        "    type Target = MapData;",
        "field: Ebpf,",
        "fn path() -> aya::Ebpf ",
        "trait Opens {",
        "type Handle<K> = AyaMap<MapData, K, u32>",
    ];
    assert_eq!(found, expected);
}

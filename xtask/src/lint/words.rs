//! Finds [retired words](super::retired) in code, comments and documents.

use std::{collections::HashMap, fs, path::Path};

use anyhow::{Context as _, Result};

use super::{
    retired::{Allowed, RETIRED, Retired, What},
    tree,
};

/// Files that may contain retired words: the history of renames, and the list itself.
const EXEMPT: [&str; 2] = ["CHANGELOG.md", "xtask/src/lint/"];

/// Returns a line for each place, with the replacement.
///
/// # Errors
/// When a file cannot be read.
pub(super) fn check(root: &Path) -> Result<Vec<String>> {
    let index = Index::new(RETIRED);
    let mut findings = Vec::new();
    for path in tree::files(root, &["rs", "md", "yaml", "toml", "tpl", "sh"])? {
        if EXEMPT.iter().any(|exempt| path.starts_with(exempt)) {
            continue;
        }
        let text = fs::read_to_string(root.join(&path)).with_context(|| format!("cannot read {path}"))?;
        findings.extend(index.findings(&path, &text));
    }
    Ok(findings)
}

/// The list, by the first segments of its identifiers.
struct Index<'r> {
    words: HashMap<&'r str, Vec<(Vec<&'r str>, &'r Retired)>>,
    phrases: Vec<(&'r str, &'r Retired)>,
}

impl<'r> Index<'r> {
    fn new(retired: &'r [Retired]) -> Self {
        let mut index = Self { words: HashMap::new(), phrases: Vec::new() };
        for entry in retired {
            match entry.what {
                What::Word(word) => {
                    let segments: Vec<&str> = word.split('_').collect();
                    index
                        .words
                        .entry(segments.first().copied().unwrap_or_default())
                        .or_default()
                        .push((segments, entry));
                }
                What::Phrase(phrase) => index.phrases.push((phrase, entry)),
            }
        }
        index
    }

    fn findings(&self, path: &str, text: &str) -> Vec<String> {
        let prose = Prose::of(text);
        let mut places = Vec::new();
        let mut found = |at: usize, length: usize, retired: &Retired| {
            if !retired.allowed.iter().any(|allowed| allows(allowed, path, &prose.text, at, length)) {
                places.push((prose.line(at), &prose.text[at..at + length], retired.instead));
            }
        };
        for (start, token) in tokens(&prose.text) {
            let segments = segments(token);
            for (number, (at, segment)) in segments.iter().enumerate() {
                for (wanted, retired) in self.words.get(segment.as_str()).into_iter().flatten() {
                    let here = segments.get(number..number + wanted.len()).unwrap_or_default();
                    if here.iter().map(|(_, segment)| segment).eq(wanted.iter()) {
                        let length = here.last().map_or(0, |(last, segment)| last + segment.len() - at);
                        found(start + at, length, retired);
                    }
                }
            }
        }
        let lower = prose.text.to_ascii_lowercase();
        for (phrase, retired) in &self.phrases {
            for (at, _) in lower.match_indices(phrase) {
                if is_apart(&lower, at, phrase.len()) {
                    found(at, phrase.len(), retired);
                }
            }
        }
        places.sort_unstable();
        places
            .iter()
            .map(|(line, what, instead)| format!("{path}:{line}: `{what}` is retired: write {instead}"))
            .collect()
    }
}

/// Whether the word has its ordinary meaning at this place.
fn allows(allowed: &Allowed, path: &str, text: &str, at: usize, length: usize) -> bool {
    match allowed {
        Allowed::In(prefix) => path.starts_with(prefix),
        Allowed::As(phrase) => {
            // The phrase begins at most so much before the word that it reaches over it.
            let (first, last) = (at.saturating_sub(phrase.len()), at);
            text.match_indices(phrase)
                .skip_while(|(start, _)| *start < first)
                .take_while(|(start, _)| *start <= last)
                .any(|(start, _)| start + phrase.len() >= at + length)
        }
    }
}

/// A file's text with one space for each break of lines, indentation and sign of a comment: phrases go on over lines.
struct Prose {
    text: String,
    /// Where each line begins.
    starts: Vec<usize>,
}

impl Prose {
    fn of(text: &str) -> Self {
        let mut prose = Self { text: String::with_capacity(text.len()), starts: Vec::new() };
        for line in text.lines() {
            let line = line.trim();
            let comment = ["//!", "///", "//", "#"].iter().find_map(|sign| line.strip_prefix(sign));
            prose.starts.push(prose.text.len());
            prose.text.push_str(comment.unwrap_or(line).trim_start());
            prose.text.push(' ');
        }
        prose
    }

    /// The number of the line that this byte is in, from 1.
    fn line(&self, at: usize) -> usize {
        self.starts.partition_point(|start| *start <= at)
    }
}

/// Identifiers and words, with where they begin.
fn tokens(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
    let mut at = 0;
    std::iter::from_fn(move || {
        let bytes = text.as_bytes();
        at += bytes.get(at..)?.iter().position(is_part)?;
        let start = at;
        at += bytes.get(at..)?.iter().take_while(|byte| is_part(byte)).count();
        Some((start, text.get(start..at)?))
    })
}

/// The parts of a name in snake case or camel case, in lower case, with where they begin: `RawHTTPReply_v4` is raw, http, reply, v4.
fn segments(token: &str) -> Vec<(usize, String)> {
    let bytes = token.as_bytes();
    let mut segments: Vec<(usize, String)> = Vec::new();
    let mut is_open = false;
    for (at, byte) in bytes.iter().enumerate() {
        if *byte == b'_' {
            is_open = false;
            continue;
        }
        let after_lower = at > 0 && !bytes[at - 1].is_ascii_uppercase();
        let before_lower = bytes.get(at + 1).is_some_and(u8::is_ascii_lowercase);
        if !is_open || byte.is_ascii_uppercase() && (after_lower || before_lower) {
            segments.push((at, String::new()));
            is_open = true;
        }
        if let Some((_, segment)) = segments.last_mut() {
            segment.push(byte.to_ascii_lowercase().into());
        }
    }
    segments
}

/// Whether the match is not a part of a longer word.
fn is_apart(text: &str, at: usize, length: usize) -> bool {
    let is_part = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let bytes = text.as_bytes();
    !is_part(at.checked_sub(1).and_then(|before| bytes.get(before))) && !is_part(bytes.get(at + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &[Retired] = &[
        Retired { what: What::Word("twin"), instead: "the opposite entry", allowed: &[] },
        Retired { what: What::Word("let_go"), instead: "release", allowed: &[] },
        Retired {
            what: What::Word("steady"),
            instead: "fast path",
            allowed: &[Allowed::In("tests/"), Allowed::As("at a steady rate")],
        },
        Retired { what: What::Phrase("passed on"), instead: "forwarded", allowed: &[] },
    ];

    fn found(path: &str, text: &str) -> Vec<(usize, String)> {
        let place = |finding: String| {
            let mut parts = finding.split(':').skip(1);
            let line = parts.next().unwrap().parse().unwrap();
            let word = parts.next().unwrap().split('`').nth(1).unwrap().to_owned();
            (line, word)
        };
        Index::new(LIST).findings(path, text).into_iter().map(place).collect()
    }

    #[test]
    fn segments_of_names() {
        for (name, expected) in [
            ("twin", vec!["twin"]),
            ("make_twin", vec!["make", "twin"]),
            ("TwinKey", vec!["twin", "key"]),
            ("TWIN_KEY_V4", vec!["twin", "key", "v4"]),
            ("HTTPReply", vec!["http", "reply"]),
            ("ofIPv6Twin", vec!["of", "i", "pv6", "twin"]),
            ("_", vec![]),
        ] {
            let segments: Vec<String> = segments(name).into_iter().map(|(_, segment)| segment).collect();
            assert_eq!(segments, expected, "{name}");
        }
    }

    #[test]
    fn retired_words_are_found_with_their_lines() {
        for (text, expected) in [
            ("let twin_key = 1;\n\nstruct TwinKey;\n", vec![(1, "twin"), (3, "Twin")]),
            ("/// Its twin.\nconst TWIN: u8 = 0;", vec![(1, "twin"), (2, "TWIN")]),
            ("fn let_go() {}\nLetGo", vec![(1, "let_go"), (2, "LetGo")]),
            ("a packet is\n    /// passed on", vec![(2, "passed on")]),
            ("    /// A packet is passed\n    /// on to it.", vec![(1, "passed on")]),
            ("Passed on, it leaves.", vec![(1, "Passed on")]),
            ("twine, between, unpassed on, passed one, let it go, goLet", vec![]),
            ("let go = 1;", vec![]),
        ] {
            let expected: Vec<(usize, String)> =
                expected.into_iter().map(|(line, word)| (line, word.to_owned())).collect();
            assert_eq!(found("proxy-agent/src/x.rs", text), expected, "{text:?}");
        }
    }

    #[test]
    fn ordinary_meanings_are_allowed_by_folder_and_by_phrase() {
        let text = "Packets at a steady rate.\nsteady_rate, not at a steady pace";
        let lines: Vec<usize> = found("docs/x.md", text).into_iter().map(|(line, _)| line).collect();
        assert_eq!(lines, [2, 2]);
        assert_eq!(found("tests/x/src/x.rs", text), []);
    }

    /// Paths in the glossary, which a change that moves files must not forget.
    #[test]
    fn the_glossary_names_places_that_exist() {
        let root = crate::workspace::root();
        let text = fs::read_to_string(root.join("docs/glossary.md")).unwrap();
        let paths =
            text.split('`').skip(1).step_by(2).filter(|code| code.contains('/') && !code.contains(' '));
        let missing: Vec<&str> = paths
            .filter(|path| path.starts_with(|c: char| c.is_ascii_lowercase()) && !root.join(path).exists())
            .collect();
        assert!(missing.is_empty(), "{missing:?}");
    }

    #[test]
    fn a_finding_names_the_replacement() {
        let findings = Index::new(LIST).findings("docs/x.md", "its twin");
        assert_eq!(findings, ["docs/x.md:1: `twin` is retired: write the opposite entry"]);
    }
}

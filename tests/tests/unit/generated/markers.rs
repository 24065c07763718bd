//! Markers in documents: the text between them is generated.

use std::collections::BTreeMap;

const BEGIN: &str = "<!-- generated: ";
const BEGIN_REST: &str = ", by `cargo xtask codegen` -->\n";
const END: &str = "<!-- end of generated -->\n";

/// The document with these tables between its markers, and the names of those that it has.
pub(super) fn renew<'t>(
    text: &str,
    tables: &BTreeMap<&'t str, String>,
) -> Result<(String, Vec<&'t str>), String> {
    let mut renewed = String::new();
    let mut names = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(BEGIN) {
        let (name, after) = after
            .split_once(BEGIN_REST)
            .ok_or_else(|| format!("a marker that does not end with {BEGIN_REST:?}"))?;
        let (_, after) = after.split_once(END).ok_or_else(|| format!("no end of the table `{name}`"))?;
        let (name, table) = tables.get_key_value(name).ok_or_else(|| format!("no table `{name}`"))?;
        renewed += &format!("{before}{BEGIN}{name}{BEGIN_REST}\n{}\n\n{END}", table.trim());
        names.push(*name);
        rest = after;
    }
    Ok((renewed + rest, names))
}

#[test]
fn only_what_is_between_markers_is_replaced() {
    let tables = BTreeMap::from([("one", "| 1 |\n".to_owned())]);
    let text = |inner: &str| format!("before\n\n{BEGIN}one{BEGIN_REST}{inner}{END}\nafter\n");
    let (renewed, names) = renew(&text("old\n"), &tables).unwrap();
    assert_eq!(renewed, text("\n| 1 |\n\n"));
    assert_eq!(names, ["one"]);
    assert_eq!(renew(&renewed, &tables).unwrap().0, renewed);
    assert!(renew(&text("").replace("one", "two"), &tables).is_err());
    assert!(renew(text("").trim_end_matches("\nafter\n").trim_end_matches(END), &tables).is_err());
}

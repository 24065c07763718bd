//! Does the network namespace that this thread is in redirect packets, by rules of iptables' own kernel part ("legacy")?

use std::fs;

use super::entries::{IptablesFamily, iptables_entries};

/// Tables that have such rules.
const TABLES: [&str; 2] = ["nat", "mangle"];

/// The first rule that changes where packets go; `None` if there is none, or none can be read.
pub(crate) fn redirect() -> Option<String> {
    tables().find_map(|(family, table, entries)| {
        let target =
            targets(&entries, family.target_offset()).find(|name| super::is_redirect_target(name))?;
        Some(format!("iptables, table {table}, {target}"))
    })
}

/// Is there a chain of this name in one of the tables?
pub(crate) fn has_chain(name: &str) -> bool {
    // The name is within the chain's first entry, ended by a zero (`struct xt_error_target`).
    let name = [name.as_bytes(), &[0]].concat();
    tables().any(|(.., entries)| entries.windows(name.len()).any(|window| window == name))
}

/// The entries of those of [`TABLES`] that are there and can be read.
fn tables() -> impl Iterator<Item = (IptablesFamily, &'static str, Vec<u8>)> {
    [IptablesFamily::V4, IptablesFamily::V6].into_iter().flat_map(|family| {
        let there = fs::read_to_string(family.tables_file()).unwrap_or_default();
        // To ask for a table makes it, and with it conntrack's hooks: only those that are there are asked for.
        let tables = TABLES.into_iter().filter(move |table| there.lines().any(|line| line == *table));
        tables.filter_map(move |table| Some((family, table, iptables_entries(family, table).ok()?)))
    })
}

/// The targets of rules, by name: standard ones have none. `at` is where an entry says where its target is; behind that it says
/// where the next entry is (`struct ipt_entry`, `struct ip6t_entry`).
fn targets(entries: &[u8], at: usize) -> impl Iterator<Item = String> {
    /// `XT_EXTENSION_MAXNAMELEN`.
    const NAME: usize = 29;
    let mut rest = entries;
    std::iter::from_fn(move || {
        let half = |at: usize| Some(u16::from_ne_bytes(rest.get(at..at + 2)?.try_into().ok()?) as usize);
        let (target, next) = (half(at)?, half(at + 2)?);
        // `struct xt_entry_target`: its size, then its name.
        let name =
            rest.get(target + 2..target + 2 + NAME)?.split(|byte| *byte == 0).next().unwrap_or_default();
        let name = String::from_utf8_lossy(name).into_owned();
        // An entry without length would be the last for ever.
        rest = if next == 0 { &[] } else { rest.get(next..).unwrap_or_default() };
        Some(name)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_walked_through() {
        const AT: usize = 8;
        let entry = |name: &str| {
            let mut entry = vec![0u8; 48];
            entry[AT..AT + 2].copy_from_slice(&12u16.to_ne_bytes());
            entry[AT + 2..AT + 4].copy_from_slice(&48u16.to_ne_bytes());
            entry[14..14 + name.len()].copy_from_slice(name.as_bytes());
            entry
        };
        let entries = [entry(""), entry("REDIRECT"), entry("ERROR")].concat();
        assert_eq!(targets(&entries, AT).collect::<Vec<_>>(), ["", "REDIRECT", "ERROR"]);
        for length in 0..entries.len() {
            assert!(targets(&entries[..length], AT).count() <= 3);
        }
        assert_eq!(targets(&[0; 64], AT).count(), 1, "an entry without length");
    }
}

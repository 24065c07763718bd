//! Redirecting rules of iptables' own kernel part ("legacy") in the network namespace that this thread is in.

use std::fs;

use crate::net::xtables::{self, IptablesFamily};

/// Tables that have such rules.
const TABLES: [&str; 2] = ["nat", "mangle"];

/// The first rule that changes where packets go; `None` if there is none, or none can be read.
pub(crate) fn redirect() -> Option<String> {
    tables().find_map(|(family, table, entries)| {
        let target = xtables::entries(family, &entries)
            .map(|entry| entry.name)
            .find(|name| super::is_redirect_target(name))?;
        Some(format!("iptables, table {table}, {target}"))
    })
}

/// Whether a chain of this name exists in one of the tables.
pub(crate) fn has_chain(name: &str) -> bool {
    // The name is within the chain's first entry, ended by a zero (`struct xt_error_target`).
    let name = [name.as_bytes(), &[0]].concat();
    tables().any(|(.., entries)| entries.windows(name.len()).any(|window| window == name))
}

/// The entries of those of [`TABLES`] that are there and can be read.
fn tables() -> impl Iterator<Item = (IptablesFamily, &'static str, Vec<u8>)> {
    IptablesFamily::ALL.into_iter().flat_map(|family| {
        let there = fs::read_to_string(family.tables_file()).unwrap_or_default();
        // The kernel makes a table when it is read, and with it conntrack's hooks: only existing ones are read.
        let tables = TABLES.into_iter().filter(move |table| there.lines().any(|line| line == *table));
        tables.filter_map(move |table| Some((family, table, xtables::read(family, table).ok()?.entries)))
    })
}

//! kube-proxy's chains in iptables' own kernel part ("legacy").
//!
//! Its tables are replaced as a whole: what stays is copied, and where jumps lead to is worked out anew. The kernel checks the result as
//! it checks that of iptables(8), and takes it or leaves the table as it was.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
};

use super::names::{Doomed, TABLES};
use crate::net::xtables::{self, Entry, HOOKS, IptablesFamily, TARGET, Table};

/// What of a table is kube-proxy's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) family: IptablesFamily,
    pub(super) table: &'static str,
    pub(super) doomed: Doomed,
    /// Rules of other chains that lead there.
    pub(super) jumps: usize,
}

/// The tables of this network namespace that have something of kube-proxy.
///
/// # Errors
/// When a table that is there cannot be read.
pub(super) fn find() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for family in IptablesFamily::ALL {
        let there = fs::read_to_string(family.tables_file()).unwrap_or_default();
        // To ask for a table makes it.
        for table in TABLES.into_iter().filter(|table| there.lines().any(|line| line == *table)) {
            let rules = Rules::parse(family, &xtables::read(family, table)?);
            let doomed = rules.doomed();
            if !doomed.chains.is_empty() || !doomed.kept.is_empty() {
                let jumps = rules.jumps().filter(|(from, to)| doomed.cuts(from, to)).count();
                found.push(Found { family, table, doomed, jumps });
            }
        }
    }
    Ok(found)
}

/// Removes what is kube-proxy's of a table.
///
/// # Errors
/// The kernel's.
pub(super) fn remove(found: &Found) -> io::Result<()> {
    const ATTEMPTS: usize = 10;
    let _lock = lock();
    let Found { family, table, .. } = *found;
    for _ in 0..ATTEMPTS {
        let before = xtables::read(family, table)?;
        let rules = Rules::parse(family, &before);
        let (after, kept) = rules.without(&before, &rules.doomed());
        match xtables::replace(family, table, &after, before.count, &kept) {
            // Somebody else changed the table meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    Err(io::Error::other("something changes this table all the time"))
}

/// The lock of iptables(8), where the host has it. Nobody else has a reason to hold it for long.
fn lock() -> Option<File> {
    let file = File::open("/proc/1/root/run/xtables.lock").ok()?;
    file.lock().ok()?;
    Some(file)
}

/// A table, taken apart.
struct Rules {
    entries: Vec<Placed>,
    /// Names of chains by where their first rule is.
    first_rules: BTreeMap<usize, String>,
}

/// An entry.
struct Placed {
    entry: Entry,
    /// Its chain; none for the last entry of the table.
    chain: Option<String>,
    /// The byte that a verdict leads to, if it does not end the walk.
    leads_to: Option<usize>,
}

impl Rules {
    fn parse(family: IptablesFamily, table: &Table) -> Self {
        /// `struct xt_error_target`: what a chain begins with, and the table ends with.
        const ERROR: &str = "ERROR";
        const NAME: usize = 30;
        let built_in = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];
        let hooks: BTreeMap<usize, &str> = (0..HOOKS)
            .filter(|hook| table.valid_hooks & (1 << hook) != 0)
            .map(|hook| (table.hook_entry[hook] as usize, built_in[hook]))
            .collect();
        let mut chain = None;
        let (mut entries, mut first_rules) = (Vec::new(), BTreeMap::new());
        for entry in xtables::entries(family, &table.entries) {
            if let Some(name) = hooks.get(&entry.at) {
                chain = Some((*name).to_owned());
            }
            let data = table.entries.get(entry.target + TARGET..entry.next).unwrap_or_default();
            let mut leads_to = None;
            if entry.name == ERROR {
                let name = xtables::text(data.get(..NAME).unwrap_or(data));
                chain = (name != ERROR).then_some(name);
                if let Some(name) = &chain {
                    first_rules.insert(entry.next, name.clone());
                }
            } else if entry.name.is_empty() {
                let verdict = data.get(..4).and_then(|data| data.try_into().ok()).map(i32::from_ne_bytes);
                leads_to = verdict.and_then(|verdict| usize::try_from(verdict).ok());
            }
            entries.push(Placed { entry, chain: chain.clone(), leads_to });
        }
        Self { entries, first_rules }
    }

    /// From which chain to which rules lead.
    fn jumps(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().filter_map(|placed| Some((placed.chain.as_deref()?, self.target_of(placed)?)))
    }

    /// The chain that a rule leads to. One without a target leads to the next rule.
    fn target_of(&self, placed: &Placed) -> Option<&str> {
        let to = placed.leads_to.filter(|to| *to != placed.entry.next)?;
        self.first_rules.get(&to).map(String::as_str)
    }

    fn doomed(&self) -> Doomed {
        let chains: BTreeSet<&str> = self.first_rules.values().map(String::as_str).collect();
        Doomed::of(chains, self.jumps())
    }

    /// The table without what goes, and for each of its entries the number that it had.
    fn without(&self, before: &Table, doomed: &Doomed) -> (Table, Vec<usize>) {
        let goes = |placed: &Placed| {
            let Some(chain) = placed.chain.as_deref() else { return false };
            doomed.has(chain) || self.target_of(placed).is_some_and(|to| doomed.has(to))
        };
        // Where each byte that begins an entry is afterwards; of one that goes, where the next is that stays.
        let mut places = BTreeMap::new();
        let mut kept = Vec::new();
        let mut length = 0;
        for (number, placed) in self.entries.iter().enumerate() {
            places.insert(placed.entry.at, length);
            if !goes(placed) {
                kept.push(number);
                length += placed.entry.next - placed.entry.at;
            }
        }
        let place = |at: usize| places.get(&at).copied().unwrap_or(at);
        let mut entries = Vec::with_capacity(length);
        for placed in kept.iter().filter_map(|number| self.entries.get(*number)) {
            let Entry { at, next, target, .. } = placed.entry;
            let begin = entries.len();
            entries.extend(before.entries.get(at..next).unwrap_or_default());
            if let Some(to) = placed.leads_to {
                let at = begin + target - at + TARGET;
                if let Some(verdict) = entries.get_mut(at..at + 4) {
                    verdict.copy_from_slice(&(place(to) as i32).to_ne_bytes());
                }
            }
        }
        let moved = |hooks: [u32; HOOKS]| hooks.map(|at| place(at as usize) as u32);
        let after = Table {
            valid_hooks: before.valid_hooks,
            hook_entry: moved(before.hook_entry),
            underflow: moved(before.underflow),
            count: kept.len() as u32,
            entries,
        };
        (after, kept)
    }
}

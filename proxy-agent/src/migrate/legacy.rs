//! kube-proxy's chains in iptables' own kernel part ("legacy").
//!
//! iptables tables are replaced as a whole: rules that stay are copied, and the targets of jumps are computed again. The kernel checks
//! the result as it checks that of iptables(8), and takes it or leaves the table unchanged.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io,
};

use super::doomed::{Doomed, TABLES};
use crate::net::xtables::{self, Entry, HOOKS, IptablesFamily, TARGET, Table};

/// kube-proxy's part of a table.
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
/// When an existing table cannot be read.
pub(super) fn find() -> io::Result<Vec<Found>> {
    let mut found = Vec::new();
    for family in IptablesFamily::ALL {
        let there = fs::read_to_string(family.tables_file()).unwrap_or_default();
        // The kernel makes a table when it is read.
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

/// Removes kube-proxy's rules and chains of a table.
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
            // Another program changed the table meanwhile.
            Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => {}
            result => return result,
        }
    }
    Err(io::Error::other("something changes this table all the time"))
}

/// The lock of iptables(8), where the host has it. No other program has a reason to hold it for long.
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
        /// `struct xt_error_target`: the first entry of a chain, and the last of the table.
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

    /// The table without its doomed part, and for each of its entries the number that it had.
    fn without(&self, before: &Table, doomed: &Doomed) -> (Table, Vec<usize>) {
        let goes = |placed: &Placed| {
            let Some(chain) = placed.chain.as_deref() else { return false };
            doomed.has(chain) || self.target_of(placed).is_some_and(|to| doomed.has(to))
        };
        // Where each byte that begins an entry is afterwards; for an entry that goes, where the next remaining one is.
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

#[cfg(test)]
mod tests {
    use super::*;

    const FAMILY: IptablesFamily = IptablesFamily::V4;

    /// An entry of a table.
    enum Line {
        /// A chain begins.
        Chain(&'static str),
        /// A jump to a chain.
        Jump(&'static str),
        /// A rule of another target.
        Target(&'static str),
        /// The end of a chain.
        Return,
    }

    /// A table as the kernel lays it out; its first chain is PREROUTING, its last entry the end.
    fn table(lines: &[Line]) -> Table {
        const HEAD: usize = 112;
        let size = |line: &Line| HEAD + if matches!(line, Line::Chain(_)) { 64 } else { 40 };
        let mut first_rules = BTreeMap::new();
        let mut at = 0;
        for line in lines {
            at += size(line);
            if let Line::Chain(name) = line {
                first_rules.insert(*name, at as i32);
            }
        }
        let mut entries = Vec::new();
        for line in lines.iter().chain([&Line::Chain("ERROR")]) {
            let mut entry = vec![0u8; size(line)];
            let length = entry.len() as u16;
            entry[88..90].copy_from_slice(&(HEAD as u16).to_ne_bytes());
            entry[90..92].copy_from_slice(&length.to_ne_bytes());
            let (name, verdict) = match line {
                Line::Chain(chain) => {
                    entry[HEAD + TARGET..HEAD + TARGET + chain.len()].copy_from_slice(chain.as_bytes());
                    ("ERROR", None)
                }
                Line::Jump(to) => ("", Some(first_rules[to])),
                Line::Target(name) => (*name, None),
                Line::Return => ("", Some(-5)),
            };
            entry[HEAD + 2..HEAD + 2 + name.len()].copy_from_slice(name.as_bytes());
            if let Some(verdict) = verdict {
                entry[HEAD + TARGET..HEAD + TARGET + 4].copy_from_slice(&verdict.to_ne_bytes());
            }
            entries.extend(entry);
        }
        let policy = lines.iter().position(|line| matches!(line, Line::Return)).unwrap_or(0);
        let underflow: usize = lines[..policy].iter().map(size).sum();
        Table {
            valid_hooks: 1,
            hook_entry: [0; HOOKS],
            underflow: [underflow as u32, 0, 0, 0, 0],
            count: lines.len() as u32 + 1,
            entries,
        }
    }

    fn jumps(table: &Table) -> Vec<(String, String)> {
        let rules = Rules::parse(FAMILY, table);
        rules.jumps().map(|(from, to)| (from.to_owned(), to.to_owned())).collect()
    }

    fn lines(with_plugin: bool) -> Vec<Line> {
        let mark = if with_plugin { Line::Jump("KUBE-MARK-MASQ") } else { Line::Target("LOG") };
        vec![
            Line::Jump("KUBE-SERVICES"),
            Line::Jump("CNI"),
            Line::Return,
            Line::Chain("KUBE-SERVICES"),
            Line::Jump("KUBE-MARK-MASQ"),
            Line::Target("DNAT"),
            Line::Return,
            Line::Chain("CNI"),
            mark,
            Line::Return,
            Line::Chain("KUBE-MARK-MASQ"),
            Line::Target("MARK"),
            Line::Return,
        ]
    }

    #[test]
    fn what_stays_leads_where_it_led() {
        for (with_plugin, count, expected) in [
            (false, 6, vec![("PREROUTING", "CNI")]),
            (true, 9, vec![("PREROUTING", "CNI"), ("CNI", "KUBE-MARK-MASQ")]),
        ] {
            let before = table(&lines(with_plugin));
            let rules = Rules::parse(FAMILY, &before);
            let doomed = rules.doomed();
            assert!(doomed.has("KUBE-SERVICES") && doomed.has("KUBE-MARK-MASQ") != with_plugin, "{doomed:?}");
            let (after, kept) = rules.without(&before, &doomed);
            assert_eq!((after.count, kept.len()), (count, count as usize));
            let expected: Vec<_> =
                expected.into_iter().map(|(from, to)| (from.to_owned(), to.to_owned())).collect();
            assert_eq!(jumps(&after), expected);
            // The policy is the second entry by now.
            assert_eq!((after.hook_entry[0], after.underflow[0]), (0, 152));
            assert!(!Rules::parse(FAMILY, &after).doomed().has("KUBE-SERVICES"));
        }
    }

    #[test]
    fn a_table_that_is_cut_off_is_read_without_a_panic() {
        let whole = table(&lines(true));
        for length in 0..whole.entries.len() {
            let cut = Table { entries: whole.entries[..length].to_vec(), ..whole.clone() };
            let rules = Rules::parse(FAMILY, &cut);
            let _ = rules.without(&cut, &rules.doomed());
        }
    }
}

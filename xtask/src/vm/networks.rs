//! Known results of networks: the tables of `docs/networks.md`, one per kernel, and how a run may differ from them.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::PathBuf};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{kernel::Kernel, report::Report};
use crate::workspace::{root, write_if_changed};

/// The columns: paths and families, as `tests/networks/src/paths.rs` names them.
const COLUMNS: [&str; 8] = [
    "pod v4",
    "pod v6",
    "node v4",
    "node v6",
    "nodePort-local v4",
    "nodePort-local v6",
    "nodePort-remote v4",
    "nodePort-remote v6",
];

const INTRODUCTION: &str = "\
# Networks

Written by `cargo xtask vm --bless --only networks` from what virtual machines with Debian's kernels report; `newest` is
the newest that Debian packages. `cargo xtask vm` compares with these tables: a cell that is `yes` here and is not there is
a failure. `cargo xtask test traffic` compares what the machine's own kernel can make. `cargo xtask test vm` (and `cargo xtask vm --short`)
tries all other shapes in the machine of `newest`: those of devices that not every kernel has.

Two nodes with a pod each, an agent per node, and a client outside, behind a router. The agents are told no interface, and
keep running while the network between the nodes changes from shape to shape. `--pod-datapath tc`: pods' packets are
translated at their own interfaces. A path is tried with the network's own connections first, without a service; then a
connection, 20,000,000 bytes in each direction over it (500,000 in the machines, whose processors are emulated), all
compared, and datagrams of 1,200 and 9,000 bytes, there and back. Pods' interfaces have 1,300 bytes.

| path | client | by | endpoint |
|---|---|---|---|
| `pod` | a pod | cluster IP | on the other node |
| `node` | a process of the node | cluster IP | on the other node |
| `nodePort-local` | outside | nodePort at the node | on that node |
| `nodePort-remote` | outside | nodePort at the node | on the other node |

`yes`: all of that. `no`: the reason is below the table. `error`: the network itself does not work there, without services. `-`: the shape has no such path or family. `NBMA` is a tunnel device
without a remote address: the route's next hop is the other end. The name of a CNI in a row says that its documented mode
of that name makes such devices and routes; its own programs do not run here. Nodes masquerade `fully-random`, as flannel and
Calico do. `SCTP`: sockets of SCTP instead of TCP and UDP, 1,000,000 bytes; the node's own are not served.

`no`, \"and so it is without a service\": the same datagrams to the endpoint's own address are lost, too. The agent has no part in it.

IP fragments of SCTP are not tried: they are not translated ([limits](limits.md#sctp)).

`openvswitch`: the kernel's datapath with an internal port and one other, and flows that send all from one to the other, as a test makes them by
generic netlink; there is no ovs-vswitchd. What a node sees is the same: an Ethernet device with the addresses and routes, and ports whose
frames go elsewhere. Pods that are ports of the datapath are not tried: between pod and internal port the CNI's own tables decide.

ECMP: without what the node itself sends, because IPv6 notes an MTU that it learns from an ICMP error at the way that the error's addresses choose. With
`fib_multipath_hash_policy` 1 that is not always the way of the datagram.
";

/// By shape, then by column: `yes`, or `no` or `error` and a reason.
type Table = BTreeMap<String, BTreeMap<String, String>>;

/// By kernel.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Networks(BTreeMap<String, Table>);

impl Networks {
    /// The committed tables; empty without a document.
    pub(super) fn committed() -> Result<Self> {
        let path = file();
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self::parse(&text))
    }

    /// Replaces the known results of a kernel by its report: of all shapes, or of those that were tried.
    pub(super) fn replace(&mut self, kernel: Kernel, report: &Report, has_all: bool) {
        if report.networks.is_empty() {
            return;
        }
        let table = self.0.entry(kernel.name().to_owned()).or_default();
        if has_all {
            table.clear();
        }
        table.extend(report.networks.clone());
    }

    /// Paths that worked, and no longer do; with all shapes, also those that were not tried.
    pub(super) fn compare(&self, kernel: Kernel, report: &Report, has_all: bool) -> Vec<String> {
        let mut worse = Vec::new();
        let known = self.0.get(kernel.name()).into_iter().flatten();
        for (shape, row) in known.filter(|(shape, _)| has_all || report.networks.contains_key(*shape)) {
            for (column, _) in row.iter().filter(|(_, cell)| *cell == "yes") {
                let now = report.networks.get(shape).and_then(|row| row.get(column));
                let now = now.map_or("not tried", String::as_str);
                if now != "yes" {
                    worse.push(format!("network `{shape}`, {column}: {now}; it was `yes`"));
                }
            }
        }
        worse
    }

    /// Writes the document.
    pub(super) fn write(&self) -> Result<PathBuf> {
        let path = file();
        write_if_changed(&path, self.text().as_bytes())?;
        Ok(path)
    }

    fn text(&self) -> String {
        let mut text = INTRODUCTION.to_owned();
        let names: Vec<_> = Kernel::value_variants().iter().map(|kernel| kernel.name()).collect();
        // Tables of kernels that no machine has stay.
        let others = self.0.keys().map(String::as_str).filter(|name| !names.contains(name));
        for kernel in names.iter().copied().chain(others) {
            let Some(table) = self.0.get(kernel) else { continue };
            let _ = write!(text, "\n{HEADING}{kernel}\n\n{}", markdown(table));
            let reasons = reasons(table);
            if !reasons.is_empty() {
                let _ = write!(text, "\n{reasons}");
            }
        }
        text
    }

    fn parse(text: &str) -> Self {
        let mut networks = Self::default();
        let heading = format!("\n{HEADING}");
        let sections = text.split(&heading).skip(1);
        for (kernel, section) in sections.filter_map(|section| section.split_once('\n')) {
            networks.0.insert(kernel.trim().to_owned(), parse(section));
        }
        networks
    }
}

const HEADING: &str = "## Linux ";
const REASON: &str = "- `";

fn file() -> PathBuf {
    root().join("docs/networks.md")
}

fn markdown(table: &Table) -> String {
    let mut text = format!("| shape | {} |\n|---|{}\n", COLUMNS.join(" | "), "---|".repeat(COLUMNS.len()));
    for (shape, row) in table {
        let cells = COLUMNS.map(|column| match row.get(column) {
            Some(cell) => cell.split(' ').next().unwrap_or_default(),
            None => "-",
        });
        let _ = writeln!(text, "| {shape} | {} |", cells.join(" | "));
    }
    text
}

/// Why cells are not `yes`.
fn reasons(table: &Table) -> String {
    let mut text = String::new();
    for (shape, row) in table {
        for (column, cell) in row {
            if let Some((_, reason)) = cell.split_once(' ') {
                let _ = writeln!(text, "{REASON}{shape}`, {column}: {reason}");
            }
        }
    }
    text
}

fn parse(section: &str) -> Table {
    let mut table = Table::new();
    let rows = section.lines().filter_map(|line| line.strip_prefix('|')).skip(2);
    for row in rows {
        let fields: Vec<_> = row.trim_end_matches('|').split('|').map(str::trim).collect();
        let Some((shape, cells)) = fields.split_first() else { continue };
        let cells = COLUMNS.iter().zip(cells).filter(|(_, cell)| **cell != "-");
        let cells = cells.map(|(column, cell)| ((*column).to_owned(), (*cell).to_owned())).collect();
        table.insert((*shape).to_owned(), cells);
    }
    let reasons = section.lines().filter_map(|line| line.strip_prefix(REASON)?.split_once("`, "));
    for (shape, (column, reason)) in reasons.filter_map(|(shape, rest)| Some((shape, rest.split_once(": ")?)))
    {
        if let Some(cell) = table.get_mut(shape).and_then(|row| row.get_mut(column)) {
            *cell = format!("{cell} {reason}");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(console: &str) -> Report {
        let mut report = Report::default();
        console.lines().for_each(|line| report.line(line));
        report
    }

    const CONSOLE: &str = "NETWORK routes | pod v4 | yes\nNETWORK routes | nodePort-remote v6 | yes\n\
        NETWORK ipip, NBMA | pod v4 | yes\nNETWORK ipip, NBMA | nodePort-remote v4 | no connect: ETIMEDOUT";

    #[test]
    fn written_tables_are_read_again() {
        let mut networks = Networks::default();
        networks.replace(Kernel::V6_1, &report(CONSOLE), true);
        networks.replace(Kernel::Newest, &report(&CONSOLE.replace("yes", "error connect: a, b: c")), true);
        assert_eq!(Networks::parse(&networks.text()), networks);
        // A machine that tried no networks changes nothing.
        networks.replace(Kernel::V6_1, &Report::default(), true);
        assert_eq!(Networks::parse(&networks.text()), networks);
        // One that tried some changes these.
        networks.replace(Kernel::V6_1, &report("NETWORK routes | pod v4 | no bytes"), false);
        assert_eq!(networks.0["6.1"]["routes"]["pod v4"], "no bytes");
        assert_eq!(networks.0["6.1"]["ipip, NBMA"].len(), 2);
    }

    #[test]
    fn what_was_possible_must_be() {
        let mut networks = Networks::default();
        networks.replace(Kernel::V6_1, &report(CONSOLE), true);
        let worse = |kernel, console: &str| networks.compare(kernel, &report(console), true).len();
        assert_eq!(worse(Kernel::V6_1, CONSOLE), 0);
        assert_eq!(worse(Kernel::V6_1, &CONSOLE.replace("no connect: ETIMEDOUT", "yes")), 0);
        assert_eq!(worse(Kernel::V6_1, &CONSOLE.replacen("yes", "no connect: ETIMEDOUT", 2)), 2);
        assert_eq!(worse(Kernel::V6_1, ""), 3);
        assert_eq!(networks.compare(Kernel::V6_1, &report(""), false), [""; 0]);
        assert_eq!(worse(Kernel::Newest, ""), 0);
    }
}

//! Known results of the kernels: the tables of `docs/kernels.md`, and how a run may differ from them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::PathBuf,
};

use anyhow::{Context, Result};
use clap::ValueEnum;

use super::{kernel::Kernel, report::Report};
use crate::workspace::{root, write_if_changed};

const ATTACHED: &str = "## Which program is attached how";
const VERIFIED: &str = "## Instructions that the verifier goes through";
const LACKING: &str = "## What tests cannot show";

const INTRODUCTION: &str = "\
# Kernels

Written by `cargo xtask vm --bless` from what virtual machines with Debian's kernels report; `newest` is the newest that
Debian packages. `cargo xtask vm` compares with these tables.
";
const ABOUT_ATTACHED: &str = "\
Every difference is a failure. XDP was asked for as generic and as native, on a veth; the `l3` programs are on ipip
devices. `clsact` is a filter, the others are links.
";
const ABOUT_VERIFIED: &str = "\
A program may grow by a quarter and 2,000 instructions, and to 600,000 at most: the kernel's own limit is a million.
Beyond that is a failure, and so is a program that is not listed. `+log` is the variant that logs. `n/a`: the kernel
knows no such programs, and the agent uses the sibling.
";
const ABOUT_LACKING: &str = "\
What kernels lack, with two numbers: tests that were not possible at all, and tests that were in part. A new reason is a
failure.
";

/// Growth that is let pass: this part of what was, and so many instructions.
const GROWTH_PERCENT: u64 = 25;
const GROWTH_SLACK: u64 = 2_000;
/// The kernel's own limit is a million.
const MOST: u64 = 600_000;

/// By row and kernel.
type Table = BTreeMap<String, BTreeMap<String, String>>;

/// The three tables.
#[derive(Default)]
pub(super) struct Record {
    attached: Table,
    verified: Table,
    lacking: Table,
}

impl Record {
    /// The committed tables; empty without a document.
    pub(super) fn committed() -> Result<Self> {
        let path = file();
        if !path.exists() {
            return Ok(Self::default());
        }
        let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let table = |heading| parse(&text, heading);
        Ok(Self { attached: table(ATTACHED), verified: table(VERIFIED), lacking: table(LACKING) })
    }

    /// Replaces a kernel's record by its report; where its machine ran only some suites, replaces only the verifier's numbers.
    pub(super) fn replace(&mut self, kernel: Kernel, report: &Report, is_whole: bool) {
        let kernel = kernel.name();
        let mut replaced = Vec::new();
        if !report.verified.is_empty() {
            replaced.push(&mut self.verified);
        }
        if is_whole {
            replaced.extend([&mut self.attached, &mut self.lacking]);
        }
        for table in replaced {
            table.values_mut().for_each(|row| drop(row.remove(kernel)));
        }
        let set = |table: &mut Table, row: &str, cell: String| {
            table.entry(row.to_owned()).or_default().insert(kernel.to_owned(), cell);
        };
        for (program, ways) in report.attached.iter().filter(|_| is_whole) {
            set(&mut self.attached, program, cell(ways));
        }
        for (program, count) in &report.verified {
            set(&mut self.verified, program, count.clone());
        }
        for reason in reasons(report).into_iter().filter(|_| is_whole) {
            let count = |in_part| {
                report.lacking.iter().filter(|test| test.reason == reason && test.in_part == in_part).count()
            };
            set(&mut self.lacking, reason, format!("{} + {}", count(false), count(true)));
        }
        for table in [&mut self.attached, &mut self.verified, &mut self.lacking] {
            table.retain(|_, row| !row.is_empty());
        }
    }

    /// Where a report differs more than it may; for each of the three, so that they can be counted.
    pub(super) fn compare(&self, kernel: Kernel, report: &Report) -> [Vec<String>; 3] {
        let known = |table: &Table, row: &str| table.get(row)?.get(kernel.name()).cloned();
        let none = || "nothing".to_owned();
        let programs: BTreeSet<_> = self.attached.keys().chain(report.attached.keys()).collect();
        let attached = programs.into_iter().filter_map(|program| {
            let now = report.attached.get(program).map(cell).unwrap_or_else(none);
            let before = known(&self.attached, program).unwrap_or_else(none);
            (now != before).then(|| format!("{program} is attached by {now}, not by {before}"))
        });
        let programs: BTreeSet<_> = self.verified.keys().chain(report.verified.keys()).collect();
        let verified = programs.into_iter().filter_map(|program| {
            let now = report.verified.get(program).cloned().unwrap_or_else(none);
            let before = known(&self.verified, program).unwrap_or_else(none);
            (!is_in_limits(&now, &before))
                .then(|| format!("{program} costs the verifier {now}, before {before}"))
        });
        let lacking = reasons(report)
            .into_iter()
            .filter(|reason| known(&self.lacking, reason).is_none())
            .map(|reason| format!("tests are not possible for a reason that is not known: {reason}"));
        [attached.collect(), verified.collect(), lacking.collect()]
    }

    /// Writes the document.
    pub(super) fn write(&self) -> Result<PathBuf> {
        let path = file();
        write_if_changed(&path, self.text().as_bytes())?;
        Ok(path)
    }

    fn text(&self) -> String {
        let mut text = INTRODUCTION.to_owned();
        for (heading, about, first, table) in [
            (ATTACHED, ABOUT_ATTACHED, "program", &self.attached),
            (VERIFIED, ABOUT_VERIFIED, "program", &self.verified),
            (LACKING, ABOUT_LACKING, "not possible", &self.lacking),
        ] {
            let _ = write!(text, "\n{heading}\n\n{about}\n{}", markdown(first, table));
        }
        text
    }

    /// The verifier's table, for the log of a run.
    pub(super) fn verified(&self) -> String {
        markdown("instructions verified", &self.verified)
    }
}

fn file() -> PathBuf {
    root().join("docs/kernels.md")
}

fn cell(ways: &BTreeSet<String>) -> String {
    ways.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

fn reasons(report: &Report) -> BTreeSet<&str> {
    report.lacking.iter().map(|test| test.reason.as_str()).collect()
}

/// Whether a program may cost this. Words instead of numbers must stay the same.
fn is_in_limits(now: &str, before: &str) -> bool {
    match (now.parse::<u64>(), before.parse::<u64>()) {
        (Ok(now), Ok(before)) => now <= MOST && now <= before + before * GROWTH_PERCENT / 100 + GROWTH_SLACK,
        _ => now == before,
    }
}

fn markdown(first: &str, table: &Table) -> String {
    let kernels: Vec<_> = Kernel::value_variants().iter().map(|kernel| kernel.name()).collect();
    let cells = |row: &BTreeMap<String, String>| {
        let cells = kernels.iter().map(|kernel| row.get(*kernel).map_or("-", String::as_str));
        cells.collect::<Vec<_>>().join(" | ")
    };
    let mut text = format!("| {first} | {} |\n|---|{}\n", kernels.join(" | "), "---|".repeat(kernels.len()));
    for (name, row) in table {
        let _ = writeln!(text, "| {name} | {} |", cells(row));
    }
    text
}

/// Reads the first table below a heading.
fn parse(text: &str, heading: &str) -> Table {
    let fields = |line: &str| -> Vec<String> {
        line.trim_matches('|').split('|').map(|field| field.trim().to_owned()).collect()
    };
    let below = text.lines().skip_while(|line| *line != heading).skip(1);
    let mut lines = below.take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with('|'));
    let kernels = lines.next().map(fields).unwrap_or_default();
    let mut table = Table::new();
    for row in lines.skip(1).map(fields) {
        let cells = kernels.iter().zip(&row).skip(1).filter(|(_, cell)| *cell != "-");
        let cells = cells.map(|(kernel, cell)| (kernel.clone(), cell.clone())).collect();
        table.insert(row[0].clone(), cells);
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

    const CONSOLE: &str = "ATTACHED pod_ingress tcx\nATTACHED uplink_xdp xdp generic\n\
        VERIFIED pod_ingress 100000\nVERIFIED uplink_xdp_frags n/a\n\
        CHECK NOT packets a: no eggs\nCHECK PART packets b: no eggs";

    #[test]
    fn written_tables_are_read_again() {
        let mut record = Record::default();
        record.replace(Kernel::V5_10, &report(CONSOLE), true);
        let text = record.text();
        assert_eq!(parse(&text, ATTACHED), record.attached);
        assert_eq!(parse(&text, VERIFIED), record.verified);
        assert_eq!(parse(&text, LACKING)["no eggs"]["5.10"], "1 + 1");
    }

    #[test]
    fn differences_are_reported() {
        let mut record = Record::default();
        record.replace(Kernel::V5_10, &report(CONSOLE), true);
        let differences = |console: &str| {
            record.compare(Kernel::V5_10, &report(console)).map(|differences| differences.len())
        };
        assert_eq!(differences(CONSOLE), [0, 0, 0]);
        assert_eq!(differences(&CONSOLE.replace("100000", "126000")), [0, 0, 0]);
        assert_eq!(differences(&CONSOLE.replace("100000", "128000")), [0, 1, 0]);
        assert_eq!(differences(&CONSOLE.replace("100000", "REFUSED")), [0, 1, 0]);
        assert_eq!(differences(&CONSOLE.replace("VERIFIED pod_ingress", "VERIFIED other")), [0, 2, 0]);
        assert_eq!(differences(&CONSOLE.replace("tcx", "clsact")), [1, 0, 0]);
        assert_eq!(differences(&CONSOLE.replace("eggs", "ham")), [0, 0, 1]);
        // Nothing is known of other kernels.
        let elsewhere = record.compare(Kernel::V6_1, &report(CONSOLE));
        assert_eq!(elsewhere.map(|differences| differences.len()), [2, 2, 1]);
    }

    #[test]
    fn no_program_gets_near_the_kernels_limit() {
        assert!(is_in_limits("590000", "580000"));
        assert!(!is_in_limits("610000", "610000"));
    }
}

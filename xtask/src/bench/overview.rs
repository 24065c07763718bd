//! The text of docs/benchmarks.md: the summary, the missed targets, and where the rest is.

use std::fmt::Write as _;

use super::{
    details::{limit, measured},
    document::{FOLDER, MARK, escape},
    results::{Measured, Results, machine},
    scale,
    summary::Line,
};

const READING: &str = "\
- *Ratio*: rates are divided by the other side's, times the other way round, so that proxy-agent is ahead above 1. Two numbers are the
  worst and the best case; the pages of the benchmarks have a row for each.
- *Number*: what was measured, or with a plus the time that the program adds to an empty eBPF program. From the lowest case to the highest.
- *Met*: how many of the targets for these cases were met. A target for a ratio takes the median of the rounds' ratios, this table the
  ratio of the medians; they may differ by a hundredth or two.
- *kube-proxy's rules* have the shape that kube-proxy 1.36 gives them; the benchmark makes them. *The kernel's masquerade* is the same
  nftables rules, with source ports kept instead of random ones.";

const PEERS: &str = "\
Cilium, Calico and katran were measured beside our programs once, and others have published how they compare with kube-proxy:
[peers](benchmarks/peers.md).";

const INTRODUCTION: &str = "\
`cargo xtask bench all` measures, and writes these pages with the numbers in [results.json](benchmarks/results.json).
`cargo xtask bench packet --document` and its like renew one benchmark; `--compare FILE` shows what is worse than in an earlier run.
Numbers of different machines do not compare. In tables *ours* is proxy-agent, *direct* is no service proxy at all.";

/// The first page, with the name of the summary's plot.
pub(super) fn text(results: &Results, lines: &[Line], plot: Option<&str>) -> String {
    let mut text = format!("{MARK}\n\n# Benchmarks\n");
    if !lines.is_empty() {
        summary(&mut text, lines, plot);
        text.push_str(&scale::text(results).unwrap_or_default());
        let _ = writeln!(text, "\n{PEERS}");
    }
    let _ = writeln!(text, "\n## Benchmarks and their targets\n\n{INTRODUCTION}\n");
    let targets = || results.parts.iter().flat_map(|measured| &measured.part.targets);
    let (met, all) = (targets().filter(|target| target.is_met()).count(), targets().count());
    if all > 0 {
        let _ = writeln!(
            text,
            "{met} of {all} targets are met. The missed ones stand below, with reasons where they were found.\n"
        );
    }
    let _ =
        writeln!(text, "| benchmark | targets met | machine | kernel | revision |\n|---|--:|---|---|---|");
    for Measured { place, revision, part } in &results.parts {
        let bench = &part.bench;
        let met = part.targets.iter().filter(|target| target.is_met()).count();
        let met =
            if part.targets.is_empty() { "-".to_owned() } else { format!("{met} of {}", part.targets.len()) };
        let (machine, kernel) = (machine(place), &place.kernel);
        let _ =
            writeln!(text, "| [{bench}]({FOLDER}/{bench}.md) | {met} | {machine} | {kernel} | {revision} |");
    }
    missed(&mut text, results);
    text
}

fn summary(text: &mut String, lines: &[Line], plot: Option<&str>) {
    let _ = writeln!(text, "\n| what | against | ratio or number | met |\n|---|---|--:|---|");
    for line in lines {
        let what = format!("[{}]({FOLDER}/{}.md)", line.what, line.bench);
        let (against, number, verdict) = (escape(&line.against), line.number(), line.verdict());
        let _ = writeln!(text, "| {what} | {against} | {number} | {verdict} |");
    }
    if let Some(plot) = plot {
        let _ = writeln!(text, "\n![How many times as good as the other]({FOLDER}/{plot})");
    }
    let _ = writeln!(text, "\n{READING}");
}

/// Targets that were missed, and why; the page of the benchmark has them all.
fn missed(text: &mut String, results: &Results) {
    for part in results.parts.iter().map(|measured| &measured.part) {
        let missed: Vec<_> = part.targets.iter().filter(|target| !target.is_met()).collect();
        if missed.is_empty() {
            continue;
        }
        let _ = writeln!(text, "\n### Missed: {}\n", part.bench);
        let _ = writeln!(text, "| target | limit | measured | reason |\n|---|--:|--:|---|");
        for target in missed {
            let (limit, measured) = (limit(target), measured(target));
            let reason = target.reason.as_deref().map_or_else(String::new, escape);
            let _ = writeln!(text, "| {} | {limit} | {measured} | {reason} |", escape(&target.what));
        }
    }
}

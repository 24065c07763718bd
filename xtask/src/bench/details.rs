//! The text of a benchmark's own page: method, targets, tables and plots.

use std::fmt::Write as _;

use proxy_figures::{Better, Part, Statistic, Target};

use super::{
    document::{MARK, escape, plot_name},
    grid::{Grid, quantity},
    results::{Measured, machine},
};

const STATISTICS: &str = "\
In the tables below `1.02 [0.99; 1.03]` is the median of the runs with its quartiles. `47.3 (48.0 to 51.7)` is another statistic, named
above its table, beside the quartiles of the runs, which may not enclose it. A number alone was measured once, counted or computed.
Lines in plots are the quartiles.";

const MEDIAN: &str = "`x [low; high]`: median of the runs [their quartiles].";
const MINIMUM: &str =
    "`x (low to high)`: smallest time, or difference of the smallest times (quartiles of the runs).";
const OVERALL: &str = "`x (low to high)`: all runs as one (quartiles of the runs).";

/// The page, with those plots that there are.
pub(super) fn text(measured: &Measured, plots: &[String]) -> String {
    let Measured { place, revision, part } = measured;
    let mut text = format!("{MARK}\n\n# Benchmark: {}\n\n", part.bench);
    let (machine, kernel) = (machine(place), &place.kernel);
    let _ = writeln!(text, "Measured on {machine}, Linux {kernel}, revision {revision}.");
    let _ = writeln!(text, "[Summary of all benchmarks](../benchmarks.md).");
    let _ = writeln!(text, "\n## Method\n\n{}\n\n{STATISTICS}", part.method.trim());
    targets(&mut text, part);
    let _ = writeln!(text, "\n## Results");
    for grid in Grid::all(part) {
        table(&mut text, &grid);
        let plot = plot_name(part, &grid);
        if plots.contains(&plot) {
            let _ = writeln!(text, "\n![{}]({plot})", grid.heading());
        }
    }
    text
}

/// The limit of a target, as text.
pub(super) fn limit(target: &Target) -> String {
    let word = if target.better == Better::Less { "at most" } else { "at least" };
    format!("{word} {}", quantity(target.unit, target.limit))
}

/// The result for a target, as text.
pub(super) fn measured(target: &Target) -> String {
    quantity(target.unit, target.measured)
}

fn targets(text: &mut String, part: &Part) {
    if part.targets.is_empty() {
        return;
    }
    let met = part.targets.iter().filter(|target| target.is_met()).count();
    let _ = writeln!(text, "\n## Targets: {met} of {} met\n", part.targets.len());
    let _ = writeln!(text, "| target | limit | measured | |\n|---|--:|--:|---|");
    for target in &part.targets {
        let (limit, measured) = (limit(target), measured(target));
        let _ = writeln!(text, "| {} | {limit} | {measured} | {} |", escape(&target.what), verdict(target));
    }
}

fn verdict(target: &Target) -> String {
    match &target.reason {
        _ if target.is_met() => "met".to_owned(),
        Some(reason) => format!("**missed**: {}", escape(reason)),
        None => "**missed**".to_owned(),
    }
}

fn table(text: &mut String, grid: &Grid<'_>) {
    let _ = writeln!(text, "\n### {}\n", grid.heading());
    let notes = [(Statistic::Median, MEDIAN), (Statistic::Minimum, MINIMUM), (Statistic::Overall, OVERALL)];
    let notes: Vec<&str> =
        notes.into_iter().filter(|(statistic, _)| grid.has(*statistic)).map(|(_, note)| note).collect();
    // Medians alone are the rule, which stands above all tables.
    if !notes.is_empty() && notes != [MEDIAN] {
        let _ = writeln!(text, "{}\n", notes.join(" "));
    }
    let columns: Vec<String> = grid.columns.iter().map(|title| escape(title)).collect();
    let _ = writeln!(text, "| | {} |\n|---|{}", columns.join(" | "), "--:|".repeat(columns.len()));
    for row in &grid.rows {
        let cells: Vec<String> = row.cells.iter().map(|figure| grid.cell(*figure)).collect();
        let _ = writeln!(text, "| {} | {} |", escape(row.title), cells.join(" | "));
    }
}

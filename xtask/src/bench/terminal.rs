//! Results for the terminal.

use std::path::Path;

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

use super::{
    compare::Comparison,
    grid::{Grid, quantity},
    results::{Measured, Results, machine},
};
use crate::workspace::say;

/// Prints all tables, and the targets.
pub(super) fn show(results: &Results) {
    for Measured { place, revision, part } in &results.parts {
        println!("\n{}: {}, Linux {}, revision {revision}", part.bench, machine(place), place.kernel);
        for grid in Grid::all(part) {
            let mut table = table(&[&grid.heading()]);
            let mut header = vec![grid.heading()];
            header.extend(grid.columns.iter().map(|title| (*title).to_owned()));
            table.set_header(header);
            for row in &grid.rows {
                let mut cells = vec![row.title.to_owned()];
                cells.extend(row.cells.iter().map(|figure| grid.cell(*figure)));
                table.add_row(cells);
            }
            align(&mut table);
            println!("\n{table}");
        }
        let mut targets = table(&["target", "limit", "measured", ""]);
        for target in &part.targets {
            let verdict = if target.is_met() { "met" } else { "MISSED" };
            let [limit, measured] = [target.limit, target.measured].map(|value| quantity(target.unit, value));
            targets.add_row([target.what.clone(), limit, measured, verdict.to_owned()]);
        }
        let met = part.targets.iter().filter(|target| target.is_met()).count();
        if !part.targets.is_empty() {
            align(&mut targets);
            println!("\n{targets}\n{met} of {} targets are met", part.targets.len());
        }
    }
}

/// Prints the results that are worse than before.
pub(super) fn show_comparison(comparison: &Comparison, earlier: &Path) {
    for note in &comparison.notes {
        say(note);
    }
    let Comparison { compared, improvements, regressions, .. } = comparison;
    if !regressions.is_empty() {
        let mut table = table(&["worse", "before", "now", "ratio"]);
        for change in regressions {
            let [before, now] = [change.before, change.now].map(|value| quantity(change.unit, value));
            table.add_row([change.what.clone(), before, now, format!("{:.2}", change.ratio())]);
        }
        align(&mut table);
        println!("\n{table}");
    }
    println!(
        "\nagainst {}: of {compared} figures {} are worse by a tenth or more and by more than they vary, \
         {improvements} are better",
        earlier.display(),
        regressions.len(),
    );
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::ASCII_MARKDOWN);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.iter().map(|title| (*title).to_owned()));
    table
}

/// Numbers to the right.
fn align(table: &mut Table) {
    for column in table.column_iter_mut().skip(1) {
        column.set_cell_alignment(CellAlignment::Right);
    }
}

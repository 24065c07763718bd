//! How rates compare with kube-proxy's rules as the number of Services grows.

use std::fmt::Write as _;

use proxy_figures::{Part, Unit};

use super::{
    grid::{Grid, range},
    results::Results,
};

/// Our columns, and those of the rules.
const OURS: [&str; 2] = ["ours, sockets", "ours, tc"];
const RULES: [&str; 2] = ["nftables", "iptables"];

const HEADING: &str = "
## kube-proxy's rules over scale

Rate of short connections over the rate with kube-proxy's rules, from the worst to the best path (cluster IP or nodePort, local or
remote backend). Above 1 proxy-agent is ahead. The rates themselves are in [traffic](benchmarks/traffic.md).
";

/// The section, if a table of each number of services is there.
pub(super) fn text(results: &Results) -> Option<String> {
    let part = &results.part("traffic")?.part;
    let rows = rows(part);
    if rows.is_empty() {
        return None;
    }
    let mut text = HEADING.to_owned();
    let pairs = pairs().map(|(ours, rules)| format!("{ours} over {rules}"));
    let _ = writeln!(text, "\n| services | {} |\n|--:|--:|--:|--:|--:|", pairs.join(" | "));
    for (services, ratios) in rows {
        let _ = writeln!(text, "| {services} | {} |", ratios.join(" | "));
    }
    Some(text)
}

fn pairs() -> [(&'static str, &'static str); 4] {
    let [sockets, tc] = OURS;
    let [nftables, iptables] = RULES;
    [(sockets, nftables), (sockets, iptables), (tc, nftables), (tc, iptables)]
}

/// For each number of services the ratios of all pairs.
fn rows(part: &Part) -> Vec<(String, Vec<String>)> {
    let of_grid = |grid: &Grid<'_>| {
        let title = grid.title.strip_prefix("Short connections, ")?;
        let services = title.strip_suffix(" services: rate over direct")?.to_owned();
        Some((services, pairs().map(|(ours, rules)| ratios(grid, ours, rules)).to_vec()))
    };
    Grid::all(part).iter().filter_map(of_grid).collect()
}

fn ratios(grid: &Grid<'_>, ours: &str, rules: &str) -> String {
    let at = |title| grid.columns.iter().position(|column| *column == title);
    let (Some(ours), Some(rules)) = (at(ours), at(rules)) else { return "-".to_owned() };
    let mut ratios: Vec<f64> = grid
        .rows
        .iter()
        .filter_map(|row| Some(row.cells[ours]?.value.value / row.cells[rules]?.value.value))
        .collect();
    ratios.sort_unstable_by(f64::total_cmp);
    range(Unit::Ratio, &ratios)
}

#[cfg(test)]
mod tests {
    use proxy_figures::{Better, Figure, Place, Summary};

    use super::*;
    use crate::bench::results::Measured;

    fn rate(services: &str, path: &str, column: &str, value: f64) -> Figure {
        Figure {
            table: format!("Short connections, {services} services: rate over direct"),
            row: path.to_owned(),
            column: column.to_owned(),
            unit: Unit::Ratio,
            better: Better::More,
            value: Summary::single(value),
        }
    }

    #[test]
    fn a_row_for_each_number_of_services() {
        let mut figures = Vec::new();
        for (services, iptables) in [("10", 0.8), ("10000", 0.4)] {
            for (path, ours) in [("cluster IP", 0.96), ("nodePort", 0.8)] {
                figures.push(rate(services, path, "ours, sockets", ours));
                figures.push(rate(services, path, "iptables", iptables));
            }
        }
        let part = Part { bench: "traffic".to_owned(), method: String::new(), figures, targets: Vec::new() };
        let rows = rows(&part);
        assert_eq!(rows[0], ("10".to_owned(), ["-", "1.00 to 1.20", "-", "-"].map(str::to_owned).to_vec()));
        assert_eq!(rows[1].1[1], "2.00 to 2.40");
        let mut results = Results::default();
        assert_eq!(text(&results), None);
        let place = Place { processor: String::new(), cpus: 2, is_virtual: true, kernel: String::new() };
        results.put(Measured { place, revision: String::new(), part });
        assert!(text(&results).unwrap().contains("| 10000 | - | 2.00 to 2.40 |"));
    }
}

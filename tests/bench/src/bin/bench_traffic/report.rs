//! The results, in the form of all benchmarks.

use std::{collections::BTreeSet, fmt::Write as _};

use proxy_figures::{Better, Figure, Part, Statistic, Summary, Unit};

use crate::{
    forward::{FLOWS, Rates},
    measure::{Row, Sample, Samples},
    method::Method,
    setup::Variant,
    targets::targets,
    wire::Kind,
};

/// The benchmark's name.
pub(crate) const NAME: &str = "traffic";

impl Kind {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Short => "Short connections",
            Self::KeepAlive => "Requests over one connection",
            Self::Datagram => "UDP requests, a socket each",
            Self::Datagrams => "UDP requests, one socket",
            Self::Bulk => "Bulk",
        }
    }

    /// The unit of its rate, and how many of a sample's that is.
    fn rate(self) -> (Unit, f64) {
        if self == Self::Bulk { (Unit::MegabitsPerSecond, 1e6) } else { (Unit::PerSecond, 1.0) }
    }

    /// The unit of CPU time: an operation, or this many bytes.
    fn operation(self) -> (&'static str, f64) {
        match self {
            Self::Short => ("connection", 1.0),
            Self::KeepAlive | Self::Datagram | Self::Datagrams => ("request", 1.0),
            Self::Bulk => ("megabyte", 1e6),
        }
    }
}

/// Figures and targets.
pub(crate) fn part(samples: &Samples, rates: &Rates, method: &Method<'_>) -> Part {
    let mut figures = Vec::new();
    let mut tables: Vec<(usize, Kind)> = samples.keys().map(|(row, _)| (row.services, row.kind)).collect();
    tables.dedup();
    let mut baselines = Vec::new();
    for (services, kind) in tables {
        let of = |row: &Row| row.services == services && row.kind == kind;
        let title = format!("{}, {services} services", kind.title());
        let (operation, unit) = kind.operation();
        let mut cpu = Vec::new();
        let mut latency = Vec::new();
        for ((row, variant), measured) in samples.iter().filter(|((row, _), _)| of(row)) {
            let figure = |table, unit, better, value| Figure {
                table,
                row: row.path.title().to_owned(),
                column: variant.title().to_owned(),
                unit,
                better,
                value,
            };
            if *variant == Variant::Direct {
                let (unit, scale) = kind.rate();
                let rates = Summary::median(measured.iter().map(|sample| sample.rate / scale));
                let table = format!("Rates without a service proxy, {services} services");
                baselines.push(Figure {
                    column: kind.title().to_owned(),
                    ..figure(table, unit, Better::More, rates)
                });
            } else {
                let ratio = against(samples, *row, *variant, Variant::Direct);
                figures.push(figure(format!("{title}: rate over direct"), Unit::Ratio, Better::More, ratio));
            }
            cpu.push(figure(
                format!("{title}: CPU time of a {operation}"),
                Unit::Microseconds,
                Better::Less,
                cpu_time(measured, unit),
            ));
            if kind == Kind::Short {
                for (which, name) in [(0, "median"), (1, "99th percentile")] {
                    let times = measured.iter().map(|sample| sample.connect[which] / 1e3);
                    let table = format!("Time to connect, {services} services, {name}");
                    latency.push(figure(table, Unit::Microseconds, Better::Less, Summary::median(times)));
                }
            }
        }
        latency.sort_by(|one, other| one.table.cmp(&other.table));
        figures.extend(cpu);
        figures.extend(latency);
    }
    figures.extend(rates.iter().map(|(variant, rates)| Figure {
        table: "Packets that a node forwards per second of CPU time".to_owned(),
        row: format!("UDP to a nodePort, remote backend, {FLOWS} flows"),
        column: forwarded_by(*variant).to_owned(),
        unit: Unit::PerSecond,
        better: Better::More,
        value: Summary::median(rates.iter().copied()),
    }));
    let figures = baselines.into_iter().chain(figures).collect();
    let targets = targets(samples, rates);
    Part { bench: NAME.to_owned(), method: method.to_string(), figures, targets }
}

/// Figures of a table one after the other, tables in the order in which they came.
pub(crate) fn group(figures: &mut [Figure]) {
    let mut tables: Vec<String> = figures.iter().map(|figure| figure.table.clone()).collect();
    let mut known = BTreeSet::new();
    tables.retain(|table| known.insert(table.clone()));
    figures.sort_by_key(|figure| tables.iter().position(|table| *table == figure.table));
}

/// Pods have no part in forwarded packets: only the hook at the uplink matters.
pub(crate) fn forwarded_by(variant: Variant) -> &'static str {
    match variant {
        Variant::Direct => "routing alone",
        Variant::Sockets => "ours, tc",
        other => other.title(),
    }
}

/// A variant's rate over that of another, of each round.
pub(crate) fn against(samples: &Samples, row: Row, variant: Variant, other: Variant) -> Summary {
    let of = |variant| samples.get(&(row, variant)).into_iter().flatten();
    Summary::median(of(variant).zip(of(other)).map(|(sample, baseline)| sample.rate / baseline.rate))
}

/// CPU time of an operation in microseconds. The machine counts in 10 ms, so the number is that of all rounds together.
fn cpu_time(samples: &[Sample], unit: f64) -> Summary {
    let sum = |of: fn(&Sample) -> f64| samples.iter().map(of).sum::<f64>();
    let all = sum(|sample| sample.busy) / sum(|sample| sample.done) * unit / 1e3;
    let each = samples.iter().map(|sample| sample.busy / sample.done * unit / 1e3);
    Summary { value: all, statistic: Statistic::Overall, ..Summary::median(each) }
}

/// The figures as tables, to be read in a terminal.
pub(crate) fn tables(part: &Part) -> String {
    let mut text = String::new();
    let mut last = ("", "");
    for figure in &part.figures {
        if figure.table != last.0 {
            let _ = write!(text, "\n\n{}", figure.table);
        }
        if (figure.table.as_str(), figure.row.as_str()) != last {
            let _ = write!(text, "\n  {:28}", figure.row);
        }
        last = (&figure.table, &figure.row);
        let Summary { value, low, high, .. } = figure.value;
        let _ = match figure.unit {
            Unit::Ratio => write!(text, "  {}: {value:.3} ({low:.2}-{high:.2})", figure.column),
            Unit::Percent => write!(text, "  {}: {value:.2} %", figure.column),
            Unit::Microseconds => write!(text, "  {}: {value:.2} µs", figure.column),
            _ => write!(text, "  {}: {value:.0} ({low:.0}-{high:.0})", figure.column),
        };
    }
    text += "\n\n";
    for target in &part.targets {
        let verdict = if target.is_met() { "met   " } else { "MISSED" };
        let _ = writeln!(text, "{verdict}  {:.3} of {:.2}  {}", target.measured, target.limit, target.what);
    }
    text
}

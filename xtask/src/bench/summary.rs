//! The comparison in a few lines: each is computed from the figures of many cases, so that it is renewed with them.

mod subjects;

use proxy_figures::{Better, Figure, Part, Summary, Target, Unit};

use super::{
    grid::{range, symbol},
    results::Results,
};

/// The subject of a line of the summary, and the figures that it is computed from.
struct Subject {
    what: &'static str,
    against: Against,
    /// The benchmark that has the figures.
    bench: &'static str,
    figures: Select,
    /// Part of the text of all targets that belong to it.
    targets: Words,
}

/// The reference of the figures.
enum Against {
    /// A program that does nothing: the figures are the time above it.
    EmptyProgram,
    /// Another proxy: its name in text and in the column of the table.
    Peer(&'static str, &'static str),
    /// No peer was measured: the target alone.
    Target,
}

/// Some figures.
struct Select {
    table: Words,
    row: Words,
    /// Columns of our figures; none: all. Where no peer is compared, several columns of a row are added up.
    columns: &'static [&'static str],
}

/// Text that contains all of the first and none of the second.
struct Words(&'static [&'static str], &'static [&'static str]);

impl Words {
    fn are_in(&self, text: &str) -> bool {
        self.0.iter().all(|word| text.contains(word)) && !self.1.iter().any(|word| text.contains(word))
    }
}

/// A line of the summary.
#[derive(Debug, PartialEq)]
pub(super) struct Line {
    pub(super) what: &'static str,
    pub(super) against: String,
    /// The benchmark that it is from.
    pub(super) bench: &'static str,
    /// The column of the peer, if there is one: then the numbers are ratios.
    peer: Option<&'static str>,
    /// The number of each case, sorted.
    cases: Vec<f64>,
    /// The unit of the numbers.
    unit: Unit,
    /// Whether the numbers are differences.
    is_added: bool,
    /// How many targets were met, of how many.
    met: (usize, usize),
}

/// All lines for which there are figures.
pub(super) fn lines(results: &Results) -> Vec<Line> {
    subjects::ALL.iter().filter_map(|subject| Line::of(subject, &results.part(subject.bench)?.part)).collect()
}

impl Line {
    fn of(subject: &Subject, part: &Part) -> Option<Self> {
        let figures: Vec<&Figure> =
            part.figures.iter().filter(|figure| subject.figures.has(figure)).collect();
        let unit = match subject.against {
            Against::Peer(..) => Unit::Ratio,
            _ => figures.first()?.unit,
        };
        let mut cases: Vec<f64> = match &subject.against {
            Against::Peer(_, column) => figures.iter().filter_map(|ours| ratio(ours, part, column)).collect(),
            _ if subject.figures.columns.len() > 1 => sums(&figures, subject.figures.columns),
            _ => figures.iter().map(|figure| figure.value.value).collect(),
        };
        cases.retain(|number| number.is_finite());
        cases.sort_unstable_by(f64::total_cmp);
        cases.first()?;
        let targets: Vec<&Target> =
            part.targets.iter().filter(|target| subject.targets.are_in(&target.what)).collect();
        Some(Self {
            what: subject.what,
            against: subject.against.text(&targets),
            bench: subject.bench,
            peer: match subject.against {
                Against::Peer(_, column) => Some(column),
                _ => None,
            },
            cases,
            unit,
            is_added: matches!(subject.against, Against::EmptyProgram),
            met: (targets.iter().filter(|target| target.is_met()).count(), targets.len()),
        })
    }

    /// The lowest and the highest number with their unit: one number if they look alike.
    pub(super) fn number(&self) -> String {
        let sign = if self.is_added { "+" } else { "" };
        format!("{sign}{} {}", range(self.unit, &self.cases), symbol(self.unit)).trim_end().to_owned()
    }

    /// Whether the targets were met.
    pub(super) fn verdict(&self) -> String {
        match self.met {
            (_, 0) => "no target".to_owned(),
            (met, all) if met == all => "yes".to_owned(),
            (0, _) => "**no**".to_owned(),
            (met, all) => format!("**{met} of {all}**"),
        }
    }

    /// A bar to the worst case and the best; of ratios only.
    fn bar(&self) -> Option<Figure> {
        let (worst, best) = (self.cases.first()?, self.cases.last()?);
        let value = Summary { high: *best, runs: self.cases.len(), ..Summary::single(*worst) };
        self.peer.map(|peer| Figure {
            table: "How many times as good as the other".to_owned(),
            row: format!("{} / {peer}", self.what),
            column: "to the worst case, lighter to the best".to_owned(),
            unit: self.unit,
            better: Better::More,
            value,
        })
    }
}

/// The ratios of the summary as a table for the plot.
pub(super) fn bars(lines: &[Line]) -> Part {
    let figures = lines.iter().filter_map(Line::bar).collect();
    Part { bench: "summary".to_owned(), method: String::new(), figures, targets: Vec::new() }
}

impl Select {
    fn has(&self, figure: &Figure) -> bool {
        let is_column = self.columns.is_empty() || self.columns.contains(&figure.column.as_str());
        is_column && self.table.are_in(&figure.table) && self.row.are_in(&figure.row)
    }
}

impl Against {
    fn text(&self, targets: &[&Target]) -> String {
        match self {
            Self::EmptyProgram => "an empty program".to_owned(),
            Self::Peer(name, _) => (*name).to_owned(),
            Self::Target => {
                let Some(Target { unit, better, .. }) = targets.first() else { return "-".to_owned() };
                let mut limits: Vec<f64> = targets.iter().map(|target| target.limit).collect();
                limits.sort_unstable_by(f64::total_cmp);
                let word = if *better == Better::Less { "at most" } else { "at least" };
                format!("target: {word} {} {}", range(*unit, &limits), symbol(*unit)).trim_end().to_owned()
            }
        }
    }
}

/// How many times as good as the peer's figure ours is. Infinite, and left out by the caller, where the peer has zero.
fn ratio(ours: &Figure, part: &Part, column: &str) -> Option<f64> {
    let is_peer = |other: &&Figure| {
        (&other.table, &other.row, other.column.as_str()) == (&ours.table, &ours.row, column)
    };
    let peer = part.figures.iter().find(is_peer)?;
    let ratio = ours.value.value / peer.value.value;
    Some(if ours.better == Better::More { ratio } else { 1.0 / ratio })
}

/// The sum of each row that has all columns.
fn sums(figures: &[&Figure], columns: &[&str]) -> Vec<f64> {
    let firsts = figures.iter().filter(|figure| Some(&figure.column.as_str()) == columns.first());
    let sum = |first: &&&Figure| {
        let of = |column: &&str| {
            let is_it = |other: &&&Figure| {
                (&other.table, &other.row, other.column.as_str()) == (&first.table, &first.row, *column)
            };
            figures.iter().find(is_it).map(|figure| figure.value.value)
        };
        columns.iter().map(of).sum()
    };
    firsts.filter_map(|first| sum(&first)).collect()
}

#[cfg(test)]
#[path = "summary_tests.rs"]
mod tests;

//! Figures as tables, and numbers as text.

use proxy_figures::{Figure, Part, Statistic, Summary, Unit};

/// A table: rows and columns in the order in which figures name them first.
pub(super) struct Grid<'f> {
    pub(super) title: &'f str,
    pub(super) columns: Vec<&'f str>,
    pub(super) rows: Vec<Row<'f>>,
}

/// A row, with a place for each column.
pub(super) struct Row<'f> {
    pub(super) title: &'f str,
    pub(super) cells: Vec<Option<&'f Figure>>,
}

impl<'f> Grid<'f> {
    /// All tables of a benchmark.
    pub(super) fn all(part: &'f Part) -> Vec<Self> {
        let mut grids: Vec<Self> = Vec::new();
        for figure in &part.figures {
            let at = position(
                &mut grids,
                |grid| grid.title == figure.table,
                || Self { title: &figure.table, columns: Vec::new(), rows: Vec::new() },
            );
            grids[at].put(figure);
        }
        for grid in &mut grids {
            let columns = grid.columns.len();
            grid.rows.iter_mut().for_each(|row| row.cells.resize(columns, None));
        }
        grids
    }

    fn put(&mut self, figure: &'f Figure) {
        let column = position(&mut self.columns, |title| *title == figure.column, || &figure.column);
        let new = || Row { title: &figure.row, cells: Vec::new() };
        let row = position(&mut self.rows, |row| row.title == figure.row, new);
        let cells = &mut self.rows[row].cells;
        if cells.len() <= column {
            cells.resize(column + 1, None);
        }
        cells[column] = Some(figure);
    }

    /// All figures.
    pub(super) fn figures(&self) -> impl Iterator<Item = &'f Figure> + '_ {
        self.rows.iter().flat_map(|row| row.cells.iter().copied().flatten())
    }

    /// The unit of all figures, if they have one in common.
    pub(super) fn unit(&self) -> Option<Unit> {
        let first = self.figures().next()?.unit;
        self.figures().all(|figure| figure.unit == first).then_some(first)
    }

    /// The title, with the unit that all have in common.
    pub(super) fn heading(&self) -> String {
        match self.unit().map(symbol) {
            Some(unit) if !unit.is_empty() => format!("{} ({unit})", self.title),
            _ => self.title.to_owned(),
        }
    }

    /// Whether a value with quartiles beside it is this statistic.
    pub(super) fn has(&self, statistic: Statistic) -> bool {
        self.figures().any(|Figure { value, .. }| value.runs > 1 && value.statistic == statistic)
    }

    /// The text of a cell: with a unit if the table has none. Quartiles stand in square brackets behind their own median, in
    /// parentheses behind any other statistic.
    pub(super) fn cell(&self, figure: Option<&Figure>) -> String {
        let Some(Figure { unit, value: Summary { value, low, high, runs, statistic }, .. }) = figure else {
            return String::new();
        };
        let unit_text = if self.unit().is_none() { symbol(*unit) } else { "" };
        let value = format!("{} {unit_text}", number(*unit, *value)).trim_end().to_owned();
        if *runs < 2 {
            return value;
        }
        let (low, high) = (number(*unit, *low), number(*unit, *high));
        match statistic {
            Statistic::Median => format!("{value} [{low}; {high}]"),
            Statistic::Minimum | Statistic::Overall => format!("{value} ({low} to {high})"),
        }
    }
}

/// Where an element is, that is appended if there is none.
fn position<T>(all: &mut Vec<T>, is_it: impl Fn(&T) -> bool, new: impl FnOnce() -> T) -> usize {
    all.iter().position(is_it).unwrap_or_else(|| {
        all.push(new());
        all.len() - 1
    })
}

/// The symbol behind a number of this unit.
pub(super) fn symbol(unit: Unit) -> &'static str {
    match unit {
        Unit::Nanoseconds => "ns",
        Unit::Microseconds => "µs",
        Unit::Milliseconds => "ms",
        Unit::Seconds => "s",
        Unit::PerSecond => "/s",
        Unit::MegabitsPerSecond => "Mbit/s",
        Unit::Mebibytes => "MiB",
        Unit::Percent => "%",
        Unit::Ratio | Unit::Count => "",
    }
}

/// A number as text, about as precise as it was measured.
pub(super) fn number(unit: Unit, value: f64) -> String {
    let decimals = match (unit, value.abs()) {
        // Successes may lack little of all.
        (Unit::Percent, _) => 2,
        (Unit::Ratio, size) if size < 100.0 => 2,
        (Unit::Count, _) | (_, 100.0..) => 0,
        (Unit::Nanoseconds, _) | (_, 10.0..) => 1,
        _ => 2,
    };
    thousands(&format!("{value:.decimals$}"))
}

/// A number with its unit.
pub(super) fn quantity(unit: Unit, value: f64) -> String {
    format!("{} {}", number(unit, value), symbol(unit)).trim_end().to_owned()
}

/// The first and the last of sorted numbers, or one if they look alike.
pub(super) fn range(unit: Unit, sorted: &[f64]) -> String {
    let end = |end: Option<&f64>| end.map_or_else(String::new, |end| number(unit, *end));
    let (least, most) = (end(sorted.first()), end(sorted.last()));
    if least == most { least } else { format!("{least} to {most}") }
}

/// Sets commas between thousands.
fn thousands(number: &str) -> String {
    let (sign, digits) = number.strip_prefix('-').map_or(("", number), |digits| ("-", digits));
    let (whole, rest) = digits.split_at(digits.find('.').unwrap_or(digits.len()));
    let mut text = sign.to_owned();
    for (at, digit) in whole.chars().enumerate() {
        if at > 0 && (whole.len() - at).is_multiple_of(3) && whole.chars().all(|c| c.is_ascii_digit()) {
            text.push(',');
        }
        text.push(digit);
    }
    text + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        for (unit, value, text) in [
            (Unit::Nanoseconds, 12.345, "12.3 ns"),
            (Unit::Nanoseconds, 1234.5, "1,234 ns"),
            (Unit::Nanoseconds, -0.5, "-0.5 ns"),
            (Unit::Seconds, 0.5, "0.50 s"),
            (Unit::Seconds, 13.44, "13.4 s"),
            (Unit::PerSecond, 1_234_567.8, "1,234,568 /s"),
            (Unit::Ratio, 0.973, "0.97"),
            (Unit::Count, 3.0, "3"),
            (Unit::Percent, 99.95, "99.95 %"),
            (Unit::Percent, 100.0, "100.00 %"),
            (Unit::Mebibytes, 99.96, "100.0 MiB"),
            (Unit::Mebibytes, f64::NAN, "NaN MiB"),
        ] {
            assert_eq!(quantity(unit, value), text);
        }
    }
}

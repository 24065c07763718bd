//! Numbers of several runs, as tables.

use proxy_figures::{Better, Figure, Part, Summary, Target, Unit};

/// Numbers in the making of a [`Part`]. Less is better for all of them.
pub(crate) struct Report {
    part: Part,
    tables: &'static [(&'static str, Unit)],
    cells: Vec<Cell>,
}

struct Cell {
    table: usize,
    row: String,
    column: String,
    values: Vec<f64>,
}

impl Report {
    pub(crate) fn new(bench: &str, method: &str, tables: &'static [(&'static str, Unit)]) -> Self {
        let part = Part {
            bench: bench.to_owned(),
            method: method.to_owned(),
            figures: Vec::new(),
            targets: Vec::new(),
        };
        Self { part, tables, cells: Vec::new() }
    }

    /// Adds the result of one run for a cell. Rows and columns are shown in the order in which they come first.
    pub(crate) fn add(&mut self, table: usize, row: &str, column: &str, value: f64) {
        match self.cells.iter_mut().find(|cell| cell.is(table, row, column)) {
            Some(cell) => cell.values.push(value),
            None => self.cells.push(Cell {
                table,
                row: row.to_owned(),
                column: column.to_owned(),
                values: vec![value],
            }),
        }
    }

    /// A limit for a cell; nothing if it was not measured.
    pub(crate) fn target(&mut self, what: &str, table: usize, row: &str, column: &str, limit: f64) {
        if let Some(measured) = self.value(table, row, column) {
            self.push(what, self.tables[table].1, limit, measured);
        }
    }

    /// Why the limit that was given last is missed, if it is.
    pub(crate) fn because(&mut self, reason: &str) {
        if let Some(target) = self.part.targets.last_mut() {
            target.reason = Some(reason.to_owned());
        }
    }

    /// A limit for one row's cell over that of another one.
    pub(crate) fn target_ratio(
        &mut self,
        what: &str,
        table: usize,
        rows: [&str; 2],
        column: &str,
        limit: f64,
    ) {
        if let [Some(over), Some(under)] = rows.map(|row| self.value(table, row, column)) {
            self.push(what, Unit::Ratio, limit, over / under);
        }
    }

    fn push(&mut self, what: &str, unit: Unit, limit: f64, measured: f64) {
        let what = what.to_owned();
        self.part.targets.push(Target { what, unit, better: Better::Less, limit, measured, reason: None });
    }

    fn value(&self, table: usize, row: &str, column: &str) -> Option<f64> {
        let cell = self.cells.iter().find(|cell| cell.is(table, row, column))?;
        Some(Summary::median(cell.values.iter().copied()).value)
    }

    /// The tables, one after the other.
    pub(crate) fn part(mut self) -> Part {
        self.cells.sort_by_key(|cell| cell.table);
        let figures = self.cells.into_iter().map(|cell| {
            let (table, unit) = self.tables[cell.table];
            Figure {
                table: table.to_owned(),
                row: cell.row,
                column: cell.column,
                unit,
                better: Better::Less,
                value: Summary::median(cell.values),
            }
        });
        self.part.figures = figures.collect();
        self.part
    }
}

impl Cell {
    fn is(&self, table: usize, row: &str, column: &str) -> bool {
        self.table == table && self.row == row && self.column == column
    }
}

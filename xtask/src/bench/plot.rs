//! A table of figures as a drawing: a bar for each, or where they differ by orders of magnitude a dot on a logarithmic axis.
//! Ratios to a peer are bars from 1 on a logarithmic axis.

use std::ops::Range;

use anyhow::Result;
use plotters::{
    coord::{
        Shift,
        combinators::{IntoLogRange, LogCoord},
        types::RangedCoordf64,
    },
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};
use proxy_figures::{Figure, Unit};

use super::grid::{Grid, number, range, symbol};

const WIDTH: i32 = 960;
/// Height of a bar.
const BAR: i32 = 11;
/// Between rows.
const GAP: i32 = 10;
const TOP: i32 = 58;
const BOTTOM: i32 = 36;
/// Room for the number behind the longest bar.
const RIGHT: i32 = 76;
const FONT: &str = "sans-serif";
/// Width of a letter of the labels, on average.
const LETTER: f64 = 6.4;

/// Okabe and Ito's colours, which remain distinct with colour blindness.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(230, 159, 0),
    RGBColor(0, 158, 115),
    RGBColor(213, 94, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(90, 90, 90),
];
const INK: RGBColor = RGBColor(40, 40, 40);
const FAINT: RGBColor = RGBColor(222, 222, 222);
const WHISKER: RGBColor = RGBColor(70, 70, 70);

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// Draws a table whose figures have one unit, more than one of them; SVG.
pub(super) fn draw(grid: &Grid<'_>) -> Result<Option<String>> {
    draw_along(grid, Axis::of)
}

/// Draws ratios in the same way, as bars from 1 to the left or to the right: to the worst one, and lighter to the best, as the
/// `high` of a figure has it.
pub(super) fn draw_ratios(grid: &Grid<'_>) -> Result<Option<String>> {
    draw_along(grid, Axis::around_one)
}

fn draw_along(grid: &Grid<'_>, axis: impl Fn(&Grid<'_>, (i32, i32)) -> Axis) -> Result<Option<String>> {
    let Some(unit) = grid.unit().filter(|_| grid.figures().count() > 1) else { return Ok(None) };
    let bars = i32::try_from(grid.columns.len())?;
    let pitch = bars * BAR + GAP;
    let height = TOP + pitch * i32::try_from(grid.rows.len())? + BOTTOM;
    let longest = grid.rows.iter().map(|row| row.title.chars().count()).max().unwrap_or(0);
    let left = (longest as f64 * LETTER) as i32 + 24;
    let axis = axis(grid, (left, WIDTH - RIGHT));

    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH as u32, height as u32)).into_drawing_area();
        area.fill(&WHITE)?;
        text(&area, &grid.heading(), (12, 20), 15, HPos::Left)?;
        legend(&area, grid)?;
        axis.draw(&area, unit, height - BOTTOM)?;
        for (row, at) in grid.rows.iter().zip(0..) {
            let top = TOP + at * pitch + GAP / 2;
            text(&area, row.title, (left - 10, top + bars * BAR / 2), 12, HPos::Right)?;
            for ((figure, colour), bar) in row.cells.iter().zip(COLOURS.iter().cycle()).zip(0..) {
                if let Some(figure) = figure {
                    axis.figure(&area, figure, colour, top + bar * BAR)?;
                }
            }
        }
        area.present()?;
    }
    Ok(Some(svg))
}

fn legend(area: &Area<'_>, grid: &Grid<'_>) -> Result<()> {
    let mut x = 12;
    for (title, colour) in grid.columns.iter().zip(COLOURS.iter().cycle()) {
        area.draw(&Rectangle::new([(x, 34), (x + 10, 44)], colour.filled()))?;
        text(area, title, (x + 15, 39), 12, HPos::Left)?;
        x += 15 + (title.chars().count() as f64 * LETTER) as i32 + 22;
    }
    Ok(())
}

fn text(area: &Area<'_>, text: &str, at: (i32, i32), size: i32, from: HPos) -> Result<()> {
    let style = (FONT, size).into_font().color(&INK).pos(Pos::new(from, VPos::Center));
    area.draw(&Text::new(text.to_owned(), at, style))?;
    Ok(())
}

/// Values from left to right.
struct Axis {
    scale: Scale,
    pixels: (i32, i32),
}

enum Scale {
    /// From nothing on.
    Linear(RangedCoordf64),
    Logarithmic(LogCoord<f64>),
    /// Logarithmic, of ratios: above one, or below.
    Ratios(LogCoord<f64>),
}

impl Axis {
    fn of(grid: &Grid<'_>, pixels: (i32, i32)) -> Self {
        /// From where on small values would be too small to see.
        const MAGNITUDES: f64 = 30.0;
        let Range { start: least, end: most } = ends(grid);
        let scale = if values(grid).all(|value| value > 0.0) && most / least > MAGNITUDES {
            let range: Range<f64> = least / 1.3..most * 1.1;
            Scale::Logarithmic(range.log_scale().into())
        } else {
            Scale::Linear((0.0..most * 1.02).into())
        };
        Self { scale, pixels }
    }

    fn around_one(grid: &Grid<'_>, pixels: (i32, i32)) -> Self {
        let Range { start: least, end: most } = ends(grid);
        let range: Range<f64> = least.min(1.0) / 1.1..most.max(1.0) * 1.1;
        Self { scale: Scale::Ratios(range.log_scale().into()), pixels }
    }

    fn at(&self, value: f64) -> i32 {
        match &self.scale {
            Scale::Linear(scale) => scale.map(&value.max(0.0), self.pixels),
            Scale::Logarithmic(scale) => scale.map(&value, self.pixels),
            // A logarithmic axis has no place for a ratio of zero.
            Scale::Ratios(scale) => scale.map(&value.max(scale.range().start), self.pixels),
        }
    }

    fn draw(&self, area: &Area<'_>, unit: Unit, bottom: i32) -> Result<()> {
        let points = match &self.scale {
            Scale::Linear(scale) => scale.key_points(8),
            Scale::Logarithmic(scale) | Scale::Ratios(scale) => magnitudes(&scale.range()),
        };
        for value in points {
            let x = self.at(value);
            let is_equal = matches!(self.scale, Scale::Ratios(_)) && value == 1.0;
            let colour = if is_equal { INK } else { FAINT };
            area.draw(&PathElement::new([(x, TOP - 4), (x, bottom)], colour))?;
            text(area, &tick(value), (x, bottom + 12), 11, HPos::Center)?;
        }
        let kind = match self.scale {
            Scale::Linear(_) => "",
            Scale::Logarithmic(_) => ", logarithmic",
            Scale::Ratios(_) => ", 1: equal, more is better, logarithmic",
        };
        let caption = format!("{}{kind}", symbol(unit));
        text(
            area,
            caption.trim_start_matches(", "),
            (self.pixels.1 + RIGHT - 8, bottom + 26),
            11,
            HPos::Right,
        )
    }

    /// A bar or a dot, the quartiles, and the number.
    fn figure(&self, area: &Area<'_>, figure: &Figure, colour: &RGBColor, top: i32) -> Result<()> {
        let (x, middle) = (self.at(figure.value.value), top + BAR / 2);
        let (low, high) = (self.at(figure.value.low), self.at(figure.value.high));
        match self.scale {
            Scale::Linear(_) => {
                let corners = [(self.pixels.0, top + 1), (x, top + BAR - 1)];
                area.draw(&Rectangle::new(corners, colour.filled()))?;
            }
            Scale::Ratios(_) => {
                let equal = self.at(1.0);
                let corners = |from: i32, to: i32| [(from, top + 1), (to, top + BAR - 1)];
                let best = colour.mix(0.35).filled();
                area.draw(&Rectangle::new(corners(low.max(equal), high.max(equal)), best))?;
                area.draw(&Rectangle::new(corners(x.min(equal), x.max(equal)), colour.filled()))?;
            }
            Scale::Logarithmic(_) => {
                area.draw(&PathElement::new([(self.pixels.0, middle), (x, middle)], colour.mix(0.25)))?;
                area.draw(&Circle::new((x, middle), 4, colour.filled()))?;
            }
        }
        if figure.value.runs > 1 && !matches!(self.scale, Scale::Ratios(_)) {
            area.draw(&PathElement::new([(low, middle), (high, middle)], WHISKER))?;
            for end in [low, high] {
                area.draw(&PathElement::new([(end, middle - 2), (end, middle + 3)], WHISKER))?;
            }
        }
        let behind = x.max(high) + 7;
        match self.scale {
            Scale::Ratios(_) => {
                let behind = behind.max(self.at(1.0) + 7);
                text(
                    area,
                    &range(figure.unit, &[figure.value.low, figure.value.high]),
                    (behind, middle),
                    10,
                    HPos::Left,
                )
            }
            _ => text(area, &number(figure.unit, figure.value.value), (behind, middle), 10, HPos::Left),
        }
    }
}

/// All values of a table, with their quartiles.
fn values(grid: &Grid<'_>) -> impl Iterator<Item = f64> {
    grid.figures().flat_map(|Figure { value, .. }| [value.value, value.low, value.high])
}

/// The smallest positive one and the largest.
fn ends(grid: &Grid<'_>) -> Range<f64> {
    let most = values(grid).filter(|value| value.is_finite()).fold(f64::MIN_POSITIVE, f64::max);
    let least = values(grid).filter(|value| *value > 0.0).fold(most, f64::min);
    least..most
}

/// One, two and five of each power of ten.
fn magnitudes(range: &Range<f64>) -> Vec<f64> {
    let powers = range.start.log10().floor() as i32..=range.end.log10().ceil() as i32;
    let points = powers.flat_map(|power| [1.0, 2.0, 5.0].map(|digit| digit * 10f64.powi(power)));
    points.filter(|point| range.contains(point)).collect()
}

fn tick(value: f64) -> String {
    if value.abs() >= 10.0 { number(Unit::Count, value) } else { format!("{}", (value * 1e6).round() / 1e6) }
}

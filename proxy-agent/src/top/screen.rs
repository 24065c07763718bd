//! The terminal.

use std::time::{Duration, Instant};

use anyhow::Result;
use ratatui::{
    Frame,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
    layout::{Constraint, Layout, Rect},
    style::{Modifier, Style},
    text::Line,
    widgets::{Row, Table},
};

use super::{
    ENDPOINTS, REASONS, SERVICES, endpoints, reasons,
    report::Report,
    sample::{Sample, Sampler},
    services, totals,
};
use crate::{cli::TopArgs, monitor::lookup::Lookup};

/// Shows a report for each interval, until a key ends it.
pub(super) fn run(args: &TopArgs, sampler: &Sampler, lookup: &Lookup) -> Result<()> {
    let mut terminal = ratatui::try_init()?;
    let result = show(args, sampler, lookup, |report| {
        terminal.draw(|frame| draw(frame, report))?;
        Ok(())
    });
    ratatui::try_restore()?;
    result
}

fn show(
    args: &TopArgs,
    sampler: &Sampler,
    lookup: &Lookup,
    mut draw: impl FnMut(&Report) -> Result<()>,
) -> Result<()> {
    let mut before: Sample = sampler.sample()?;
    let mut report = Report::default();
    draw(&report)?;
    loop {
        let next = before.at + args.interval.max(Duration::from_millis(100));
        while let Some(rest) = next.checked_duration_since(Instant::now()) {
            if !event::poll(rest)? {
                break;
            }
            if is_end(&event::read()?) {
                return Ok(());
            }
            // The window may have another size.
            draw(&report)?;
        }
        let after = sampler.sample()?;
        report = Report::new(&before, &after, lookup, args.limit);
        draw(&report)?;
        before = after;
    }
}

fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_interrupt = key.code == KeyCode::Char('c') && key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press && (is_interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc))
}

fn draw(frame: &mut Frame<'_>, report: &Report) {
    let reasons_height = report.reasons.len().min(6) as u16 + 2;
    let [head, upper, middle, lower] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Fill(1),
        Constraint::Fill(1),
        Constraint::Length(reasons_height),
    ])
    .areas(frame.area());
    frame.render_widget(Line::from(totals(report)), head);
    show_table(frame, upper, &SERVICES, services(report), &[40, 12, 10, 10, 10, 10]);
    show_table(frame, middle, &ENDPOINTS, endpoints(report), &[28, 40, 12, 10]);
    show_table(frame, lower, &REASONS, reasons(report), &[20, 11, 80]);
}

fn show_table(
    frame: &mut Frame<'_>,
    area: Rect,
    header: &[&'static str],
    rows: impl Iterator<Item = Vec<String>>,
    widths: &[u16],
) {
    let header = Row::new(header.to_vec()).style(Style::new().add_modifier(Modifier::REVERSED));
    let widths = widths.iter().map(|width| Constraint::Length(*width));
    frame.render_widget(Table::new(rows.map(Row::new), widths).header(header), area);
}

#[cfg(test)]
mod tests {
    use ratatui::{Terminal, backend::TestBackend};

    use super::*;
    use crate::top::report::{Rates, ServiceRate};

    #[test]
    fn a_screen_has_services_with_their_rates() {
        let rates = Rates { new_flows: 12.5, ..Rates::default() };
        let service = ServiceRate { service: Some("default/web".to_owned()), rates, flows: 3 };
        let report = Report { services: vec![service], ..Report::default() };
        let mut terminal = Terminal::new(TestBackend::new(100, 20)).unwrap();
        terminal.draw(|frame| draw(frame, &report)).unwrap();
        let screen = terminal.backend().to_string();
        let row = screen.lines().find(|line| line.contains("default/web")).unwrap();
        assert!(row.contains("12.5") && row.contains('3'), "{screen}");
        assert!(screen.contains("NEW FLOWS/S") && screen.contains("ENDPOINT"), "{screen}");
    }
}

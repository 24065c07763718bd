//! `proxy-agent top`: rates, in a terminal or once.

mod report;
mod sample;
mod screen;

use std::io::IsTerminal as _;

use anyhow::{Result, bail};

use self::{report::Report, sample::Sampler};
use crate::{
    cli::TopArgs,
    datapath::pins::Pins,
    monitor::lookup::Lookup,
    output::{OutputFormat, document, or_dash, print, table},
};

/// Shows rates until a key ends it, or once.
///
/// # Errors
/// When no agent has run, or the kernel refuses.
pub fn run(args: &TopArgs) -> Result<()> {
    if !args.once && !std::io::stdout().is_terminal() {
        bail!("this is not a terminal: --once prints one interval");
    }
    let pins = Pins::new(&args.pins.bpffs);
    let lookup = Lookup::open(&pins)?;
    let sampler = Sampler::start(pins)?;
    if !args.once {
        return screen::run(args, &sampler, &lookup);
    }
    let before = sampler.sample()?;
    std::thread::sleep(args.interval);
    let report = Report::new(&before, &sampler.sample()?, &lookup, args.limit);
    print(&if args.json { document(&report, OutputFormat::Json)? } else { text(&report) })
}

const SERVICES: [&str; 6] = ["SERVICE", "NEW FLOWS/S", "SOCKETS/S", "REJECTED/S", "DROPPED/S", "FLOWS"];
const ENDPOINTS: [&str; 4] = ["ENDPOINT", "SERVICE", "NEW FLOWS/S", "SOCKETS/S"];
const REASONS: [&str; 3] = ["REASON", "PER SECOND", "MEANING"];

fn text(report: &Report) -> String {
    let mut text = totals(report) + "\n\n" + &table(&SERVICES, services(report));
    if !report.endpoints.is_empty() {
        text.push('\n');
        text.push_str(&table(&ENDPOINTS, endpoints(report)));
    }
    if !report.reasons.is_empty() {
        text.push('\n');
        text.push_str(&table(&REASONS, reasons(report)));
    }
    text
}

/// The line above the tables.
fn totals(report: &Report) -> String {
    let totals = &report.totals;
    format!(
        "in {:.1} s, per second: {} new flows, {} sockets, {} rejected, {} dropped; packets {} to endpoints, {} to clients; {} flows",
        report.seconds,
        rate(totals.rates.new_flows),
        rate(totals.rates.sockets),
        rate(totals.rates.rejected),
        rate(totals.rates.dropped),
        rate(totals.packets_to_endpoints),
        rate(totals.packets_to_clients),
        totals.flows
    )
}

fn rate(rate: f64) -> String {
    if rate == 0.0 { "0".to_owned() } else { format!("{rate:.1}") }
}

fn services(report: &Report) -> impl Iterator<Item = Vec<String>> {
    report.services.iter().map(|row| {
        vec![
            or_dash(row.service.as_ref()),
            rate(row.rates.new_flows),
            rate(row.rates.sockets),
            rate(row.rates.rejected),
            rate(row.rates.dropped),
            row.flows.to_string(),
        ]
    })
}

fn endpoints(report: &Report) -> impl Iterator<Item = Vec<String>> {
    report.endpoints.iter().map(|row| {
        vec![row.endpoint.to_string(), or_dash(row.service.as_ref()), rate(row.new_flows), rate(row.sockets)]
    })
}

fn reasons(report: &Report) -> impl Iterator<Item = Vec<String>> {
    report.reasons.iter().map(|row| vec![row.reason.to_owned(), rate(row.rate), row.meaning.to_owned()])
}

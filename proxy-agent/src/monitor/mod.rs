//! `proxy-agent monitor`: decisions as they are made.

mod decision;
pub(crate) mod lookup;

use std::{
    io::{self, Write as _},
    time::Duration,
};

use anyhow::{Context as _, Result};
use k8s_openapi::jiff::Timestamp;
use nix::time::{ClockId, clock_gettime};
use proxy_common::layout::event::{Event, EventFilter};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, interval, sleep_until},
};

use self::{decision::Decision, lookup::Lookup};
use crate::{
    cli::{MonitorArgs, is_of_service},
    datapath::{address::protocol_number, pins::Pins, verdict::mask, watch::Watch},
};

/// How often to look for events that were lost.
const RECHECK: Duration = Duration::from_secs(1);

/// Prints decisions until a signal, or until a limit of the arguments.
///
/// # Errors
/// When no agent has run, the kernel refuses, or nothing can be printed.
pub async fn run(args: &MonitorArgs) -> Result<()> {
    let pins = Pins::new(&args.pins.bpffs);
    let lookup = Lookup::open(&pins)?;
    let mut watch = Watch::start(&pins, filter(args))?;
    let mut events = watch.events()?;
    let mut printer = Printer::new(args, lookup)?;
    eprintln!("watching; Ctrl-C ends it");
    let end = args.time.map(|time| Instant::now() + time);
    let mut terminate = signal(SignalKind::terminate())?;
    let mut recheck = interval(RECHECK);
    while !printer.is_done {
        tokio::select! {
            ready = events.ready() => {
                let mut ready = ready?;
                printer.drain(&mut ready)?;
                ready.clear();
            }
            _ = recheck.tick() => {
                watch.check()?;
                printer.drain(&mut events)?;
                printer.lost(watch.lost()?)?;
            }
            () = until(end) => break,
            _ = terminate.recv() => break,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break;
            }
        }
    }
    printer.drain(&mut events)?;
    printer.lost(watch.lost()?)
}

async fn until(end: Option<Instant>) {
    match end {
        Some(end) => sleep_until(end).await,
        None => std::future::pending().await,
    }
}

fn filter(args: &MonitorArgs) -> EventFilter {
    let (version, address) = args.address.map_or_else(Default::default, lookup::words);
    let protocol = args.protocol.map_or(0, protocol_number);
    EventFilter {
        decisions: mask(&args.verdicts),
        address,
        version,
        limit: args.limit,
        port: args.port.unwrap_or(0).to_be(),
        protocol,
        ..EventFilter::default()
    }
}

/// Prints the requested decisions.
struct Printer<'a> {
    args: &'a MonitorArgs,
    lookup: Lookup,
    /// From the kernel's clock to that of people, in nanoseconds.
    epoch: i128,
    printed: u64,
    lost: u64,
    is_done: bool,
}

impl<'a> Printer<'a> {
    fn new(args: &'a MonitorArgs, lookup: Lookup) -> Result<Self> {
        let monotonic = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?);
        let epoch = Timestamp::now().as_nanosecond() - monotonic.as_nanos() as i128;
        Ok(Self { args, lookup, epoch, printed: 0, lost: 0, is_done: false })
    }

    /// Prints all events that wait.
    fn drain(&mut self, events: &mut impl Iterator<Item = Event>) -> Result<()> {
        while !self.is_done
            && let Some(event) = events.next()
        {
            self.event(&event)?;
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Result<()> {
        let time = Timestamp::from_nanosecond(self.epoch + i128::from(event.time))
            .context("the kernel's clock is wrong")?;
        let Some(decision) = Decision::new(event, time, &self.lookup) else { return Ok(()) };
        let args = self.args;
        if !args.verdicts.is_empty() && !args.verdicts.contains(&decision.verdict) {
            return Ok(());
        }
        if !is_of_service(args.service.as_deref(), decision.service.as_deref()) {
            return Ok(());
        }
        let line = if args.json { serde_json::to_string(&decision)? + "\n" } else { decision.line() };
        self.print(&line)?;
        self.printed += 1;
        self.is_done |= args.count.is_some_and(|count| self.printed >= count);
        Ok(())
    }

    /// Reports how many were lost, in all.
    fn lost(&mut self, lost: u64) -> Result<()> {
        let count = lost.saturating_sub(self.lost);
        self.lost = lost;
        if count == 0 {
            return Ok(());
        }
        let line = if self.args.json {
            serde_json::json!({ "lost": count }).to_string() + "\n"
        } else {
            format!("{count} events lost: more than --limit, or faster than they are read\n")
        };
        self.print(&line)
    }

    /// A reader that has seen enough (`| head`) is not an error.
    fn print(&mut self, line: &str) -> Result<()> {
        let mut stdout = io::stdout().lock();
        match stdout.write_all(line.as_bytes()).and_then(|()| stdout.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_done = true;
                Ok(())
            }
            result => result.context("cannot print"),
        }
    }
}

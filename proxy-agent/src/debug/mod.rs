//! `proxy-agent debug`: looks into the pinned maps, with or without a running agent. Changes nothing.

mod affinity;
mod backends;
mod counters;
mod explain;
mod filter;
mod flows;
pub(crate) mod names;
mod pods;
pub(crate) mod services;
mod sockets;
mod trace;

use anyhow::Result;

use self::filter::{by_backend, by_service};
use crate::{
    cli::{DebugArgs, DebugCommand},
    datapath::pins::Pins,
    output,
};

/// Prints the requested output to standard output. Not for use within an async runtime: `trace` and `explain` start one.
///
/// # Errors
/// When no agent has pinned maps there, or they cannot be read.
pub fn run(args: &DebugArgs) -> Result<()> {
    let pins = Pins::new(&args.pins.bpffs);
    let text = match &args.what {
        DebugCommand::Services(filter) => {
            output::render(&by_service(services::read(&pins)?, filter), args.output)?
        }
        DebugCommand::Backends(filter) => {
            output::render(&by_backend(backends::read(&pins)?, filter), args.output)?
        }
        DebugCommand::Flows(filter) => output::render(&by_backend(flows::read(&pins)?, filter), args.output)?,
        DebugCommand::Sockets(filter) => {
            output::render(&by_backend(sockets::read(&pins)?, filter), args.output)?
        }
        DebugCommand::Pods => output::render(&pods::read(&pins)?, args.output)?,
        DebugCommand::Affinity(filter) => {
            output::render(&by_backend(affinity::read(&pins)?, filter), args.output)?
        }
        DebugCommand::Counters => output::render(&counters::read(&pins)?, args.output)?,
        DebugCommand::Explain(explain) => explain::run(&pins, explain, args.output)?,
        DebugCommand::Trace(trace) => trace::run(&pins, trace)?.render(args.output)?,
    };
    output::print(&text)
}

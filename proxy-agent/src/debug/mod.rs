//! `proxy-agent debug`: looks into the pinned maps, with or without a running agent. Changes nothing.

mod affinity;
mod backends;
mod counters;
mod flows;
mod names;
pub(crate) mod output;
mod pods;
mod services;
mod sockets;
mod trace;

use anyhow::Result;

use crate::{
    cli::{DebugArgs, DebugCommand},
    datapath::pins::Pins,
};

/// Prints what was asked for to standard output. Not for use within an async runtime: `trace` starts one.
///
/// # Errors
/// When no agent has pinned maps there, or they cannot be read.
pub fn run(args: &DebugArgs) -> Result<()> {
    let pins = Pins::new(&args.pins.bpffs);
    let text = match &args.what {
        DebugCommand::Services => output::render(&services::read(&pins)?, args.output)?,
        DebugCommand::Backends => output::render(&backends::read(&pins)?, args.output)?,
        DebugCommand::Flows => output::render(&flows::read(&pins)?, args.output)?,
        DebugCommand::Sockets => output::render(&sockets::read(&pins)?, args.output)?,
        DebugCommand::Pods => output::render(&pods::read(&pins)?, args.output)?,
        DebugCommand::Affinity => output::render(&affinity::read(&pins)?, args.output)?,
        DebugCommand::Counters => output::render(&counters::read(&pins)?, args.output)?,
        DebugCommand::Trace(trace) => trace::run(&pins, trace)?.render(args.output)?,
    };
    output::print(&text)
}

//! The command line of proxy-agent.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use proxy_agent::{
    cleanup,
    cli::{Cli, Command, normalise},
    config, debug, logging, run, status,
};

fn main() -> ExitCode {
    let cli = Cli::parse_from(normalise(std::env::args_os()));
    match dispatch(&cli) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> Result<()> {
    match &cli.command {
        Command::Run(args) => {
            let loaded = config::load(args, &cli.log)?;
            logging::init(loaded.settings.verbosity, loaded.settings.log_format)?;
            // A task of its own: only to wake the runtime's outermost one takes a system call, each time.
            runtime()?.block_on(async { tokio::spawn(run::run(loaded)).await? })
        }
        Command::Status(args) => runtime()?.block_on(status::run(args)),
        Command::Debug(args) => debug::run(args),
        Command::Cleanup(args) => runtime()?.block_on(cleanup::run(args)),
    }
}

/// One thread: the agent's work is a sequence, and a node has better use for its cores.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

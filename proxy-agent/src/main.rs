//! The command line of proxy-agent.

use std::process::ExitCode;

use anyhow::Result;
use clap::Parser as _;
use proxy_agent::{
    cleanup,
    cli::{Cli, Command},
    debug, logging, run,
};

fn main() -> ExitCode {
    let cli = Cli::parse();
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
            logging::init(cli.verbose, cli.log_format)?;
            runtime()?.block_on(run::run(args))
        }
        Command::Debug(args) => debug::run(args),
        Command::Cleanup(args) => runtime()?.block_on(cleanup::run(args)),
    }
}

/// One thread: the agent's work is a sequence, and a node has better use for its cores.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

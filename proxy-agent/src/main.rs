//! The command line of proxy-agent.
#![forbid(unsafe_code)]

use std::{io::Write as _, process::ExitCode};

use anyhow::Result;
use clap::Parser as _;
use proxy_agent::{
    check, cleanup,
    cli::{CleanupArgs, Cli, Command, completions, manual_page, normalise, write_manual_pages},
    config,
    datapath::pins::Pins,
    debug, init, log_level, logging, migrate, monitor, run, status, top,
};

fn main() -> ExitCode {
    let cli = Cli::parse_from(normalise(std::env::args_os()));
    match dispatch(&cli) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(cli: &Cli) -> Result<ExitCode> {
    match &cli.command {
        Command::Run(args) => {
            let loaded = config::load(args, &cli.log)?;
            // As kube-proxy has these, the first one wins.
            if let Some(path) = &args.write_config_to {
                config::write(path, args, &loaded)?;
                return Ok(ExitCode::SUCCESS);
            }
            if args.cleanup {
                let args = CleanupArgs { pins: args.pins.clone(), dry_run: false, force: false };
                runtime()?.block_on(cleanup::run(&args))?;
                return Ok(ExitCode::SUCCESS);
            }
            if args.init_only {
                init::run(&loaded)?;
                return Ok(ExitCode::SUCCESS);
            }
            let control = logging::init(loaded.settings.verbosity, loaded.settings.log_format)?;
            let pins = Pins::new(&args.pins.bpffs);
            // A separate task: waking the runtime's outermost one takes a system call each time.
            runtime()?.block_on(async {
                tokio::spawn(log_level::follow(control, pins));
                tokio::spawn(run::run(loaded)).await?
            })?;
        }
        Command::Status(args) => runtime()?.block_on(status::run(args))?,
        Command::Check(args) => {
            let is_well = check::run(args, &cli.log)?;
            return Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE });
        }
        Command::Monitor(args) => runtime()?.block_on(monitor::run(args))?,
        Command::Top(args) => top::run(args)?,
        Command::LogLevel(args) => log_level::ask(args)?,
        Command::Debug(args) => debug::run(args)?,
        Command::Cleanup(args) => runtime()?.block_on(cleanup::run(args))?,
        Command::Migrate(args) => runtime()?.block_on(migrate::run(args))?,
        Command::Completions(args) => print(&completions(args.shell))?,
        Command::Man(args) => match &args.to {
            Some(folder) => {
                let count = write_manual_pages(folder)?;
                println!("wrote {count} pages to {}", folder.display());
            }
            None => print(&manual_page(&args.subcommand)?)?,
        },
    }
    Ok(ExitCode::SUCCESS)
}

/// A reader that has seen enough (`| head`) is not an error.
fn print(text: &[u8]) -> Result<()> {
    match std::io::stdout().write_all(text) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        result => Ok(result?),
    }
}

/// One thread: the agent's work is a sequence, and a node has better use for its cores.
fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

//! The flags of `proxy-agent check`.

use clap::Args;

use super::{OutputFormat, RunArgs};

/// Arguments of `check`: those of `run`, so that an init container takes them over as they are.
#[derive(Args, Debug)]
pub struct CheckArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,

    /// What the agent would be run with.
    #[command(flatten)]
    pub run: RunArgs,
}

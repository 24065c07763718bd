//! The flags of `proxy-agent check` and `debug explain`: those of `run`, and a few.

use clap::Args;

use super::{RunArgs, filter};
use crate::output::OutputFormat;

/// Arguments of `check`: those of `run`, so that an init container takes them over unchanged.
#[derive(Args, Clone, Debug)]
pub struct CheckArgs {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,

    /// Fail only where the agent would end at its start, and not for conditions that it waits for or serves without: as an init
    /// container. The API server has 5 s to answer then, and all checks together a minute.
    #[arg(long)]
    pub init_container: bool,

    /// The flags that the agent would be run with.
    #[command(flatten)]
    pub run: RunArgs,
}

/// Arguments of `debug explain`.
#[derive(Args, Clone, Debug)]
pub struct ExplainArgs {
    /// The Service.
    #[arg(value_name = "NAMESPACE/NAME", value_parser = filter::parse_service)]
    pub service: String,

    /// The flags that the agent is run with.
    #[command(flatten)]
    pub run: RunArgs,
}

//! The agent's log.

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

use crate::{cli::LogFormat, source::kube::REDUNDANT_LOGS};

/// Starts logging to standard error. `RUST_LOG`, when set, decides what is logged, else `verbose`.
pub fn init(verbose: u8, format: LogFormat) -> Result<()> {
    let level = match verbose {
        0 => "info",
        1 => "info,proxy_agent=debug",
        _ => "debug,proxy_agent=trace",
    };
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter)?,
        _ => EnvFilter::try_new(format!("{level},{REDUNDANT_LOGS}"))?,
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let result = match format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            builder.with_ansi(ansi).with_target(false).try_init()
        }
        LogFormat::Json => builder.json().try_init(),
    };
    result.map_err(|error| anyhow!("cannot start logging: {error}"))
}

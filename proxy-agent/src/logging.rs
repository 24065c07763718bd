//! The agent's log.

use anyhow::{Result, anyhow};
use tracing_subscriber::EnvFilter;

use crate::source::kube::REDUNDANT_LOGS;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// Changes the log filter.
pub struct LogControl {
    default: String,
    present: Box<dyn Fn() -> Result<String> + Send>,
    change: Box<dyn Fn(EnvFilter) -> Result<()> + Send>,
}

impl std::fmt::Debug for LogControl {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("LogControl").field("default", &self.default).finish_non_exhaustive()
    }
}

impl LogControl {
    /// Uses another filter from now on; `None` keeps the present one. Returns the one that is in use then.
    ///
    /// # Errors
    /// When the text is not a filter.
    pub(crate) fn set(&self, filter: Option<&str>) -> Result<String> {
        if let Some(text) = filter {
            let text = if text == DEFAULT { &self.default } else { text };
            (self.change)(parse(text)?)?;
        }
        (self.present)()
    }
}

/// The filter that the agent began with.
const DEFAULT: &str = "default";

/// A filter: a level's name, or as RUST_LOG has it.
pub(crate) fn parse(text: &str) -> Result<EnvFilter> {
    let level = |verbose| format!("{},{REDUNDANT_LOGS}", level(verbose));
    Ok(EnvFilter::try_new(match text {
        "info" => level(0),
        "debug" => level(1),
        "trace" => level(2),
        _ => text.to_owned(),
    })?)
}

fn level(verbose: u8) -> &'static str {
    match verbose {
        0 => "info",
        1 => "info,proxy_agent=debug",
        _ => "debug,proxy_agent=trace",
    }
}

/// Starts logging to standard error. `RUST_LOG`, when set, is the filter, else `verbose` selects one.
///
/// # Errors
/// When `RUST_LOG` is not a filter.
pub fn init(verbose: u8, format: LogFormat) -> Result<LogControl> {
    let filter = match std::env::var(EnvFilter::DEFAULT_ENV) {
        Ok(filter) if !filter.is_empty() => EnvFilter::try_new(filter)?,
        _ => EnvFilter::try_new(format!("{},{REDUNDANT_LOGS}", level(verbose)))?,
    };
    let default = filter.to_string();
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    /// The types of the two formats differ.
    macro_rules! start {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let (present, change) = (builder.reload_handle(), builder.reload_handle());
            builder.try_init().map_err(|error| anyhow!("cannot start logging: {error}"))?;
            LogControl {
                default,
                present: Box::new(move || Ok(present.with_current(ToString::to_string)?)),
                change: Box::new(move |filter| Ok(change.reload(filter)?)),
            }
        }};
    }
    Ok(match format {
        LogFormat::Text => {
            let ansi = std::io::IsTerminal::is_terminal(&std::io::stderr());
            start!(builder.with_ansi(ansi).with_target(false))
        }
        LogFormat::Json => start!(builder.json()),
    })
}

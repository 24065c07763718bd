//! The agent's configuration: flags, and a configuration file of kube-proxy.
//!
//! [`file`](mod@file) reads the file, [`unused`](crate::kube_proxy::unused) lists the settings of kube-proxy that have no effect here,
//! [`effective`] makes the settings out of both, which [`mod@configz`] shows. [`watch`] waits for changes of the file.

mod configz;
mod conntrack;
pub mod effective;
pub mod file;
pub mod machine;
mod parts;
pub mod watch;
mod write;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tracing::{info, warn};

pub(crate) use self::parts::{object_config, topology_config};
pub use self::{configz::configz, effective::Settings, write::write};
use self::{file::KubeProxyConfiguration, machine::Machine};
use crate::cli::{LogArgs, RunArgs};

/// A notice about the configuration, logged once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notice {
    /// In words.
    pub text: String,
    /// Services may behave otherwise than expected.
    pub is_warning: bool,
}

impl Notice {
    fn info(text: String) -> Self {
        Self { text, is_warning: false }
    }

    fn warning(text: String) -> Self {
        Self { text, is_warning: true }
    }

    /// Logs it.
    pub fn log(&self) {
        if self.is_warning {
            warn!("configuration: {}", self.text);
        } else {
            info!("configuration: {}", self.text);
        }
    }
}

/// Settings, and where they are from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// In effect.
    pub settings: Settings,
    /// Logged as soon as logging is set up.
    pub notices: Vec<Notice>,
    /// The configuration file.
    pub file: Option<LoadedFile>,
    /// The parsed file.
    pub configuration: KubeProxyConfiguration,
    /// The flags.
    pub args: RunArgs,
    /// The flags of the log.
    pub log: LogArgs,
}

/// A configuration file as it was read.
#[derive(Clone, Debug)]
pub struct LoadedFile {
    /// Where.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// Reads the configuration file, if one is named, and works out the settings.
///
/// # Errors
///
/// When the file cannot be read or understood, or the settings cannot work together.
pub fn load(args: &RunArgs, log: &LogArgs) -> Result<Loaded> {
    let file = match &args.config {
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .with_context(|| format!("cannot read the configuration {}", path.display()))?;
            Some(LoadedFile { path: path.clone(), text })
        }
        None => None,
    };
    understand(args, log, file)
}

/// The same with a file that was read already.
///
/// # Errors
///
/// The same as for [`load`].
pub fn understand(args: &RunArgs, log: &LogArgs, file: Option<LoadedFile>) -> Result<Loaded> {
    let (configuration, mut notices) = match &file {
        Some(file) => KubeProxyConfiguration::parse(&file.path, &file.text)?,
        None => Default::default(),
    };
    let (settings, more) = Settings::new(args, log, &configuration, &Machine::this()?)?;
    notices.extend(more);
    Ok(Loaded { settings, notices, file, configuration, args: args.clone(), log: log.clone() })
}

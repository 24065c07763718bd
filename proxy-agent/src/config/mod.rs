//! What the agent is told: flags, and a configuration file of kube-proxy.
//!
//! [`file`](mod@file) reads the file, [`unused`] knows what of kube-proxy's settings means nothing here, [`effective`]
//! makes the settings out of both, which [`configz`] shows. [`watch`] tells when the file changed.

mod configz;
pub mod effective;
pub mod file;
pub mod machine;
pub mod unused;
pub mod watch;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tracing::{info, warn};

pub use self::{configz::configz, effective::Settings};
use self::{file::KubeProxyConfiguration, machine::Machine};
use crate::cli::{LogArgs, RunArgs};

/// Something to tell about the configuration, once.
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
    /// To be told when there is a log.
    pub notices: Vec<Notice>,
    /// The configuration file.
    pub file: Option<LoadedFile>,
}

/// A configuration file as it was read.
#[derive(Clone, Debug)]
pub struct LoadedFile {
    /// Where.
    pub path: PathBuf,
    /// What it said.
    pub text: String,
}

/// Reads the configuration file, if one is named, and works out the settings.
///
/// # Errors
///
/// When the file cannot be read or understood, or the settings cannot work together.
pub fn load(args: &RunArgs, log: &LogArgs) -> Result<Loaded> {
    let mut notices = Vec::new();
    let mut config = KubeProxyConfiguration::default();
    let mut file = None;
    if let Some(path) = &args.config {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the configuration {}", path.display()))?;
        (config, notices) = KubeProxyConfiguration::parse(path, &text)?;
        file = Some(LoadedFile { path: path.clone(), text });
    }
    let (settings, more) = Settings::new(args, log, &config, &Machine::this()?)?;
    notices.extend(more);
    Ok(Loaded { settings, notices, file })
}

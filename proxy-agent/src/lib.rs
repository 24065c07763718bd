//! The agent: sources -> store -> model -> plan -> data path.

pub mod cgroup;
pub mod check;
pub mod cleanup;
pub mod cli;
mod clock;
pub mod config;
pub mod datapath;
pub mod debug;
mod handover;
mod host;
pub mod init;
mod kube_proxy;
pub mod logging;
mod memory;
pub mod migrate;
pub mod model;
pub mod monitor;
mod neighbours;
pub mod net;
pub mod observe;
mod pace;
pub mod reaper;
pub mod run;
mod sorted;
pub mod source;
pub mod status;
pub mod sweeper;
pub mod sync;
mod tally;
pub mod top;

/// Operating system and architecture in Go's names, as all components of Kubernetes have them.
pub(crate) const PLATFORM: &str = if cfg!(target_arch = "x86_64") {
    "linux/amd64"
} else if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/unknown"
};

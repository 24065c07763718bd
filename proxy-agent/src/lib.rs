//! The agent: sources -> store -> model -> plan -> data path.
//!
//! # Layers
//!
//! A module uses only modules of the layers above it in this table. A test compares the table with the sources.
//!
//! | layer | modules | knows |
//! |---|---|---|
//! | ground | `cgroup`, `clock`, `folder_watch`, `host`, `kube_proxy`, `memory`, `sorted` | one thing of the machine each |
//! | model | `model` | Kubernetes semantics: objects in, plans out. No I/O |
//! | network | `net` | the node's network, by netlink and `/proc` |
//! | data path | `datapath` | maps, programs and hooks: nothing else names aya, or gets a type of it |
//! | source | `source` | API servers and folders of manifests |
//! | work | `neighbours`, `socket_termination`, `flow_gc`, `sync` | one duty each, over the data path |
//! | seen | `handover`, `logging`, `observe` | what others see of an agent, and other agents |
//! | output | `output` | tables, JSON, YAML |
//! | command line | `cli` | how flags are spelt: what their values mean, layers above know |
//! | settings | `config` | flags and a configuration file, as settings |
//! | origin | `service_source` | which source, by the settings |
//! | commands | `check`, `cleanup`, `debug`, `init`, `log_level`, `status` | |
//! | commands by others | `migrate`, `monitor`, `run` | |
//! | rates | `top` | |

#![deny(unsafe_code)]

pub mod cgroup;
pub mod check;
pub mod cleanup;
pub mod cli;
mod clock;
pub mod config;
pub mod datapath;
pub mod debug;
pub mod flow_gc;
mod folder_watch;
mod handover;
mod host;
pub mod init;
pub mod kube_proxy;
#[cfg(test)]
mod layers;
pub mod log_level;
pub mod logging;
mod memory;
pub mod migrate;
pub mod model;
pub mod monitor;
mod neighbours;
pub mod net;
pub mod observe;
pub mod output;
pub mod run;
mod service_source;
pub mod socket_termination;
mod sorted;
pub mod source;
pub mod status;
pub mod sync;
pub mod top;

/// Operating system and architecture in Go's names, as all components of Kubernetes have them.
pub(crate) const PLATFORM: &str = if cfg!(target_arch = "x86_64") {
    "linux/amd64"
} else if cfg!(target_arch = "aarch64") {
    "linux/arm64"
} else {
    "linux/unknown"
};

//! The flags of `proxy-agent migrate`.

use std::net::SocketAddr;

use clap::Args;

use super::PinArgs;

/// Arguments of `migrate`.
#[derive(Args, Clone, Debug)]
pub struct MigrateArgs {
    /// Where the maps are.
    #[command(flatten)]
    pub pins: PinArgs,

    /// Where the agent answers scrapes: its `--metrics-bind-address`. Default: 127.0.0.1:10249, and `[::1]:10249` if none answers there.
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_address: Option<SocketAddr>,

    /// Show kube-proxy's rules and what would happen, and change nothing. This is the default.
    #[arg(long, conflicts_with = "commit")]
    pub dry_run: bool,

    /// Remove kube-proxy's rules, if kube-proxy is gone and the agent serves.
    #[arg(long)]
    pub commit: bool,

    /// Remove them although it could not be shown that the agent serves, and the connections that IPVS still translates with
    /// them. Never while kube-proxy runs.
    #[arg(long, requires = "commit")]
    pub force: bool,

    /// The way back: with --commit, remove what the agent left, if kube-proxy runs, its rules exist and the agent is gone.
    #[arg(long, conflicts_with = "force")]
    pub back: bool,
}

//! The command line.

mod arguments;
mod check;
mod filter;
mod generate;
mod migrate;
mod monitor;
mod run;
mod unused;
mod values;

use std::{net::SocketAddr, path::PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand};

pub use self::{
    arguments::normalise,
    check::{CheckArgs, ExplainArgs},
    filter::{BackendAddress, BackendFilter, ServiceFilter},
    generate::{CompletionsArgs, ManArgs, completions, manual_page, write_manual_pages},
    migrate::MigrateArgs,
    monitor::{LogLevelArgs, MonitorArgs, TopArgs},
    run::RunArgs,
    unused::{Given, UnusedFlags},
};
pub(crate) use self::{
    filter::is_of_service,
    values::{duration, log_format},
};
use crate::{logging::LogFormat, model::objects::Protocol, output::OutputFormat};

/// A Kubernetes service proxy in eBPF: ClusterIP and NodePort on any cluster, with any CNI, without iptables.
///
/// Run it on every node instead of kube-proxy. It needs root (or CAP_BPF, CAP_NET_ADMIN and
/// CAP_SYS_ADMIN), a kernel of 5.10 or newer and a mounted cgroup v2 hierarchy.
#[derive(Debug, Parser)]
#[command(name = "proxy-agent", version, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,

    /// What to log, and how.
    #[command(flatten)]
    pub log: LogArgs,
}

/// What to log, and how.
#[derive(Args, Clone, Debug, Default)]
pub struct LogArgs {
    /// More log: -v debug, -vv trace. Default: info.
    ///
    /// RUST_LOG, when set, decides instead. Kubernetes' form, -v=N or --v=N: debug from 4, trace from 6.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// The same as Kubernetes' programs count it: up to 3 is the default, 4 and 5 debug, more trace.
    #[arg(long = "v", global = true, value_name = "N", hide = true, conflicts_with = "verbose")]
    pub verbosity: Option<u8>,

    /// Format of the log. Default: text.
    #[arg(long, alias = "logging-format", global = true, value_enum)]
    pub log_format: Option<LogFormat>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch Services and EndpointSlices and keep this node's data path synced, until a signal ends it.
    ///
    /// Maps and programs are pinned: when the agent ends, traffic is forwarded as before. `proxy-agent cleanup` removes everything.
    Run(Box<RunArgs>),
    /// Ask the running agent for its state: one page, with its problems, its watches and how full its maps are.
    ///
    /// Exits with 1 if no agent answers, or if this node is not ready.
    Status(StatusArgs),
    /// Check whether the agent would work on this node with the same flags, with advice for each failure.
    ///
    /// Needs no running agent and leaves nothing behind. Exit code 0 if nothing fails, 1 otherwise; warnings do not count.
    Check(Box<CheckArgs>),
    /// Show decisions as they are made: new flows, rejects and drops, with addresses, Service and reason.
    ///
    /// The programs report only to active watches, up to eight. Events that come faster than the limit, or than they are read, are lost
    /// and counted. Works whether or not an agent is running.
    Monitor(MonitorArgs),
    /// Show rates, like top(1): Services, endpoints, rejects and drops. Keys: q ends it.
    ///
    /// The programs count only for active watches, and no count is lost. Works whether or not an agent is running.
    Top(TopArgs),
    /// Print or change what the running agent logs, until it is started again.
    ///
    /// The request goes through the directory of the pinned maps, which only root can write to: no port is needed.
    LogLevel(LogLevelArgs),
    /// Look into the pinned maps. Works whether or not an agent is running.
    Debug(DebugArgs),
    /// Detach every program and remove every pinned map of this node's agent.
    ///
    /// Services stop working on this node at once, unless another proxy serves them. It refuses while an agent runs.
    Cleanup(CleanupArgs),
    /// Take this node from kube-proxy, whose rules are still in the kernel: show them, and remove them when the agent serves.
    ///
    /// Without --commit nothing is changed. Connections that the rules translated go on: the kernel's connection tracking knows them.
    Migrate(MigrateArgs),
    /// Print a script that completes this command line in a shell.
    Completions(CompletionsArgs),
    /// Print manual pages, in roff.
    Man(ManArgs),
}

/// Arguments of `status`.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Where the agent answers scrapes: its `--metrics-bind-address`. Default: 127.0.0.1:10249, and `[::1]:10249` if none answers there.
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_address: Option<SocketAddr>,

    /// Output format.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,
}

/// Arguments of `cleanup`.
#[derive(Args, Clone, Debug)]
pub struct CleanupArgs {
    /// Where the maps are.
    #[command(flatten)]
    pub pins: PinArgs,

    /// Only print what would be removed.
    #[arg(long)]
    pub dry_run: bool,

    /// Do it while an agent runs. The agent ends; whatever started it should start it again.
    #[arg(long)]
    pub force: bool,
}

/// Where the maps and links are pinned.
#[derive(Args, Clone, Debug)]
pub struct PinArgs {
    /// Directory for pinned maps and links, on a bpf file system. Several agents on one machine need one each.
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf/proxy-agent")]
    pub bpffs: PathBuf,
}

/// Arguments of `debug`.
#[derive(Args, Debug)]
pub struct DebugArgs {
    /// Where the maps are.
    #[command(flatten)]
    pub pins: PinArgs,

    /// How to print.
    #[arg(short, long, global = true, value_enum, default_value_t = OutputFormat::Table)]
    pub output: OutputFormat,

    /// What to look at.
    #[command(subcommand)]
    pub what: DebugCommand,
}

/// Subcommands of `debug`.
#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Every frontend and how many endpoints answer it.
    Services(ServiceFilter),
    /// Every endpoint of every service port.
    Backends(BackendFilter),
    /// The flows that are being translated, packet by packet.
    Flows(BackendFilter),
    /// The unconnected UDP sockets that are being translated.
    Sockets(BackendFilter),
    /// By which way each pod is served, and why.
    Pods,
    /// Which endpoint clients keep by session affinity.
    Affinity(BackendFilter),
    /// The programs' counters.
    Counters,
    /// Ask the data path's own code what it would do with a connection, over the live maps, changing nothing.
    Trace(TraceArgs),
    /// Each endpoint of a Service: whether this node uses it, and why. Reads the Service from the agent's source, so it takes the
    /// flags of `run` that configure the source.
    Explain(Box<ExplainArgs>),
}

/// Arguments of `debug trace`.
#[derive(Args, Clone, Debug)]
pub struct TraceArgs {
    /// The client: an address, with or without a port (default 50000).
    #[arg(long, value_name = "IP[:PORT]", value_parser = parse_client)]
    pub from: SocketAddr,

    /// What it talks to.
    #[arg(long, value_name = "IP:PORT")]
    pub to: SocketAddr,

    /// Over which protocol.
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    pub protocol: Protocol,

    /// The packet comes in by an uplink (default: from a pod of this node).
    #[arg(long)]
    pub from_outside: bool,
}

fn parse_client(text: &str) -> Result<SocketAddr, String> {
    const ANY_CLIENT_PORT: u16 = 50_000;
    if let Ok(address) = text.parse() {
        return Ok(address);
    }
    let ip = text
        .parse()
        .map_err(|_| format!("`{text}` is not an address like 10.244.0.5 or 10.244.0.5:40000"))?;
    Ok(SocketAddr::new(ip, ANY_CLIENT_PORT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_needs_no_port() {
        assert_eq!(parse_client("10.0.0.1"), Ok("10.0.0.1:50000".parse().unwrap()));
        assert_eq!(parse_client("[fd00::1]:7"), Ok("[fd00::1]:7".parse().unwrap()));
        assert!(parse_client("web").is_err());
    }

    #[test]
    fn the_command_line_is_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }
}

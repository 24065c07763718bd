//! The command line.

use std::{net::SocketAddr, path::PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};
use ipnet::IpNet;

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

    /// More log: -v debug, -vv trace. RUST_LOG, when set, decides instead.
    #[arg(short, long, global = true, action = ArgAction::Count)]
    pub verbose: u8,

    /// Format of the log.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Watch Services and EndpointSlices and keep this node's data path in step, until a signal ends it.
    ///
    /// Maps and programs are pinned: when the agent ends, traffic goes on as it was. `proxy-agent cleanup`
    /// removes everything.
    Run(Box<RunArgs>),
    /// Look into the pinned maps. Works whether or not an agent is running.
    Debug(DebugArgs),
    /// Detach every program and remove every pinned map of this node's agent.
    ///
    /// Services stop working on this node at once, unless another proxy serves them.
    Cleanup(PinArgs),
}

/// Where the maps and links are pinned.
#[derive(Args, Clone, Debug)]
pub struct PinArgs {
    /// Directory for pinned maps and links, on a bpf file system. Several agents on one machine need one each.
    #[arg(long, global = true, value_name = "DIR", default_value = "/sys/fs/bpf/proxy-agent")]
    pub bpffs: PathBuf,
}

/// Arguments of `run`.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// This node's name, as the API server and the nodeName of endpoints spell it.
    #[arg(long, env = "NODE_NAME", value_name = "NAME")]
    pub node_name: String,

    /// Read Services and EndpointSlices from the YAML files of this folder (watched for changes)
    /// instead of from an API server.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_server"])]
    pub manifests: Option<PathBuf>,

    /// Credentials for the API server. Without it the pod's service account is used.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The API server's real address, like https://10.0.0.1:6443. Overrides the one in the kubeconfig or the pod's
    /// environment: that one may be a Service address, which only works once this agent has made it work.
    #[arg(long, env = "PROXY_AGENT_API_SERVER", value_name = "URL")]
    pub api_server: Option<String>,

    /// Where the maps are.
    #[command(flatten)]
    pub pins: PinArgs,

    /// The cgroup v2 directory above all processes to serve. Default: where cgroup2 is mounted.
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// How pods reach cluster IPs and node ports: `socket` translates in connect() and sendmsg(), `tc` each packet
    /// at the pod's interface (processes of the node still use the socket hooks), `both` does both.
    #[arg(long, value_enum, default_value_t = PodDatapath::Socket)]
    pub pod_datapath: PodDatapath,

    /// An interface to the world outside (may be repeated). Default: those with the default routes and the node's addresses.
    #[arg(long = "uplink", value_name = "IF")]
    pub uplinks: Vec<String>,

    /// A pod-side interface for `--pod-datapath tc|both` (may be repeated; a trailing * matches any ending).
    /// Default: every veth that is not an uplink.
    #[arg(long = "pod-interface", value_name = "IF")]
    pub pod_interfaces: Vec<String>,

    /// XDP on uplinks: `auto` uses the driver's where it has one (virtual interfaces excepted), `native` insists on it, `generic` uses the
    /// kernel's emulation, `off` leaves everything to tc.
    #[arg(long, value_enum, default_value_t = XdpMode::Auto)]
    pub xdp: XdpMode,

    /// Which of the node's addresses serve node ports: CIDRs, or `primary` for the Node object's own.
    /// Default: all addresses of the uplinks.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub nodeport_addresses: Vec<NodePortAddresses>,

    /// Ports that node ports come from; reserved from automatic use by local sockets.
    #[arg(long, value_name = "FROM-TO", default_value = "30000-32767")]
    pub nodeport_range: PortRange,

    /// Ports for connections passed on to another node; reserved from automatic use by local sockets.
    #[arg(long, value_name = "FROM-TO", default_value = "20000-29999")]
    pub snat_ports: PortRange,

    /// Translate cluster IPs for clients outside the cluster too.
    #[arg(long)]
    pub external_cluster_ips: bool,

    /// Where to answer /healthz and /livez.
    #[arg(long, value_name = "ADDR:PORT", default_value = "0.0.0.0:10256")]
    pub healthz_bind_address: SocketAddr,

    /// Where to answer /metrics.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:10249")]
    pub metrics_bind_address: SocketAddr,

    /// Entries of the flow map, per address family; a flow takes two. Default: by the node's memory.
    #[arg(long, value_name = "N")]
    pub max_flows: Option<u32>,

    /// Load the variant of the programs that logs, at this level.
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub kernel_log: Option<KernelLogLevel>,
}

/// `--pod-datapath`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PodDatapath {
    /// Socket hooks.
    Socket,
    /// tc programs on pod interfaces.
    Tc,
    /// Both.
    Both,
}

/// `--xdp`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum XdpMode {
    /// Native where the driver has it.
    Auto,
    /// Native or an error.
    Native,
    /// The kernel's emulation.
    Generic,
    /// No XDP.
    Off,
}

/// `--kernel-log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KernelLogLevel {
    /// Drops.
    Warn,
    /// And connects.
    Info,
    /// And every translated packet.
    Debug,
}

/// One value of `--nodeport-addresses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodePortAddresses {
    /// The addresses of the Node object.
    Primary,
    /// Local addresses within a prefix.
    Within(IpNet),
}

impl std::str::FromStr for NodePortAddresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "primary" {
            return Ok(Self::Primary);
        }
        text.parse().map(Self::Within).map_err(|_| format!("`{text}` is neither a CIDR nor `primary`"))
    }
}

/// An inclusive range of ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// The first port.
    pub first: u16,
    /// The last port.
    pub last: u16,
}

impl PortRange {
    /// Is the port in the range?
    pub fn contains(&self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// Have they a port in common?
    pub fn overlaps(&self, other: &Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }
}

impl std::fmt::Display for PortRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

impl std::str::FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (first, last) = text.split_once('-')?;
            let range = Self { first: first.parse().ok()?, last: last.parse().ok()? };
            (range.first > 0 && range.first <= range.last).then_some(range)
        };
        parse().ok_or_else(|| format!("`{text}` is not a range of ports like 30000-32767"))
    }
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

/// `-o`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// What `debug` can show.
#[derive(Debug, Subcommand)]
pub enum DebugCommand {
    /// Every frontend and how many endpoints answer it.
    Services,
    /// Every endpoint of every service port.
    Backends,
    /// The flows that are being translated, packet by packet.
    Flows,
    /// The unconnected UDP sockets that are being translated.
    Sockets,
    /// Which endpoint clients keep by session affinity.
    Affinity,
    /// What the programs counted.
    Counters,
    /// Ask the data path's own code what it would do with a connection, over the live maps, changing nothing.
    Trace(TraceArgs),
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
    #[arg(long, value_enum, default_value_t = TraceProtocol::Tcp)]
    pub protocol: TraceProtocol,

    /// The packet comes in by an uplink (default: from a pod of this node).
    #[arg(long)]
    pub from_outside: bool,
}

/// `--protocol`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TraceProtocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
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
    fn port_ranges() {
        let range = |text: &str| text.parse::<PortRange>();
        for wrong in ["", "1", "0-5", "9-8", "1-70000", "a-b"] {
            assert!(range(wrong).is_err(), "{wrong}");
        }
        let (a, b, c) = (range("1-9").unwrap(), range("9-12").unwrap(), range("10-12").unwrap());
        assert!(a.overlaps(&b) && b.overlaps(&a) && b.overlaps(&c));
        assert!(!a.overlaps(&c) && !c.overlaps(&a));
        assert_eq!(a.to_string(), "1-9");
    }

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

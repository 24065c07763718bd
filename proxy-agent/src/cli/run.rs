//! The flags of `proxy-agent run`.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use clap::Args;
use ipnet::IpNet;

use super::{PinArgs, UnusedFlags, values};
use crate::{
    datapath::{KernelLogLevel, Reject, XdpMode},
    model::budget::Budget,
    net::{
        ports::PortRange,
        topology::{NodePortAddresses, PodDatapath},
    },
    observe::BindAddress,
};

/// Arguments of `run`. What is not given here is looked for in the configuration file, where that has it.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A kube-proxy configuration file (KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1). Flags win over it.
    /// When it changes, the agent ends, to be started again.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// This node's name, as the API server and the nodeName of endpoints spell it. Default: the host's name.
    #[arg(long, visible_alias = "hostname-override", env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Read Services and EndpointSlices from the YAML files of this folder (watched for changes)
    /// instead of from an API server.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_servers"])]
    pub manifests: Option<PathBuf>,

    /// Credentials for the API server. Without it the pod's service account is used.
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The API server's real address, like https://10.0.0.1:6443. May be repeated, or have several addresses separated by
    /// commas: one that does not answer is left for the next. Overrides the one in the kubeconfig or the pod's
    /// environment: that one may be a Service address, which only works once this agent has made it work.
    #[arg(
        long = "api-server",
        visible_alias = "master",
        env = "PROXY_AGENT_API_SERVER",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub api_servers: Vec<String>,

    /// Where the maps are.
    #[command(flatten)]
    pub pins: PinArgs,

    /// The cgroup v2 directory above all processes to serve. Default: where cgroup2 is mounted.
    #[arg(long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// How pods reach cluster IPs and node ports: `socket` translates in connect() and sendmsg(), `tc` each packet
    /// at the pod's interface (processes of the node still use the socket hooks), `both` does both. `auto` serves a pod by `socket`
    /// unless its network namespace shows that this cannot be (it redirects packets, forwards, is a virtual machine or a sandbox),
    /// and those by `tc`.
    #[arg(long, value_enum, default_value_t = PodDatapath::Auto)]
    pub pod_datapath: PodDatapath,

    /// An interface that leads off the node (may be repeated): with it no others are served by, overlays excepted. Default: every
    /// interface that is neither loopback nor a pod's.
    #[arg(long = "uplink", value_name = "IF")]
    pub uplinks: Vec<String>,

    /// A pod-side interface for `--pod-datapath auto|tc|both` (may be repeated; a trailing * matches any ending).
    /// Default: every veth whose other end is in another network namespace, and that has no network or router of its own.
    #[arg(long = "pod-interface", value_name = "IF")]
    pub pod_interfaces: Vec<String>,

    /// The same as `--pod-interface PREFIX*`.
    #[arg(long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// XDP on interfaces with a default route or the node's address, and on those named with `--uplink`: `auto` uses the driver's where it has one (virtual interfaces excepted), `native` insists on it, `generic` uses the
    /// kernel's emulation, `off` leaves everything to tc.
    #[arg(long, value_enum, default_value_t = XdpMode::Auto)]
    pub xdp: XdpMode,

    /// The node's primary address, in place of that of the Node object. 0.0.0.0 and :: are no choice.
    #[arg(long, value_name = "ADDR")]
    pub bind_address: Option<IpAddr>,

    /// Which of the node's addresses serve node ports: CIDRs, or `primary` for the node's primary ones.
    /// Default: all of its addresses but those of loopback.
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub nodeport_addresses: Vec<NodePortAddresses>,

    /// Serve node ports at the node's loopback addresses, for processes of the node. Default: true.
    #[arg(
        long, alias = "iptables-localhost-nodeports", value_name = "true|false", num_args = 0..=1,
        default_missing_value = "true", hide_possible_values = true
    )]
    pub localhost_nodeports: Option<bool>,

    /// Ports that are reserved from automatic use by local sockets, because node ports come from there. Others are served, too.
    #[arg(long, value_name = "FROM-TO", default_value = "30000-32767")]
    pub nodeport_range: PortRange,

    /// Source ports for connections to endpoints of other nodes; reserved from automatic use by local sockets. The more there are, the
    /// more connections to one endpoint are possible at a time.
    #[arg(long, value_name = "FROM-TO", default_value = "1024-29999")]
    pub snat_ports: PortRange,

    /// A source address for connections to endpoints of other nodes, in place of the one of the route (may be repeated; up to 16 of each
    /// family). It must be an address of this node to which the pod network returns. Several multiply the source ports.
    #[arg(long = "snat-address", value_name = "ADDR,...", value_delimiter = ',')]
    pub snat_addresses: Vec<IpAddr>,

    /// Translate cluster IPs for clients outside the cluster too.
    #[arg(long)]
    pub external_cluster_ips: bool,

    /// Ranges that cluster IPs come from, in addition to those of the API server's ServiceCIDR objects.
    #[arg(long = "service-cidr", value_name = "CIDR,...", value_delimiter = ',')]
    pub service_cidrs: Vec<IpNet>,

    /// How packets to services without endpoints are refused.
    #[arg(long, value_enum, default_value_t = Reject::Icmp)]
    pub reject: Reject,

    /// Reset TCP connections whose endpoint is removed. Without it they go on for as long as the endpoint does.
    #[arg(long)]
    pub reset_removed_tcp: bool,

    /// Wait at least this long after changes were applied before more are. Default: 0s, at once.
    #[arg(long, alias = "iptables-min-sync-period", value_name = "DURATION", value_parser = values::duration)]
    pub min_sync_period: Option<Duration>,

    /// An endpoint that left all EndpointSlices of its Service keeps its sockets and flows for this long; new ones get it only where no
    /// endpoint is ready. 0s: it is removed at once.
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = values::duration)]
    pub endpoint_settle_time: Duration,

    /// How much of a node's maps one Service may take; what is beyond is left out, and told. Default:
    /// ports=4096,endpoints=262144,addresses=65536,source-ranges=65536, each of which can be given alone.
    #[arg(long, value_name = "ports=N,...")]
    pub service_budget: Option<Budget>,

    /// Where to answer /healthz and /livez. Default: 0.0.0.0:10256.
    #[arg(long, value_name = "ADDR:PORT")]
    pub healthz_bind_address: Option<BindAddress>,

    /// Where to answer /metrics. Default: 127.0.0.1:10249.
    #[arg(long, value_name = "ADDR:PORT")]
    pub metrics_bind_address: Option<BindAddress>,

    /// End if an address to answer at cannot be had, rather than trying again.
    #[arg(
        long, value_name = "true|false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true
    )]
    pub bind_address_hard_fail: Option<bool>,

    /// Entries of the flow map, per address family; a flow takes two. Default: by the node's memory.
    #[arg(long, value_name = "N")]
    pub max_flows: Option<u32>,

    /// Established TCP flows end after this long without a packet, as kube-proxy has it.
    #[arg(long, value_name = "DURATION", value_parser = values::duration, hide = true)]
    pub conntrack_tcp_timeout_established: Option<Duration>,

    /// The same for TCP flows that one side closed.
    #[arg(long, value_name = "DURATION", value_parser = values::duration, hide = true)]
    pub conntrack_tcp_timeout_close_wait: Option<Duration>,

    /// The same for datagrams without answer.
    #[arg(long, value_name = "DURATION", value_parser = values::duration, hide = true)]
    pub conntrack_udp_timeout: Option<Duration>,

    /// The same for datagrams with answers.
    #[arg(long, value_name = "DURATION", value_parser = values::duration, hide = true)]
    pub conntrack_udp_timeout_stream: Option<Duration>,

    /// Flows for each CPU, and entries of the kernel's conntrack, as kube-proxy has it; 0: unset.
    #[arg(long, value_name = "N", hide = true)]
    pub conntrack_max_per_core: Option<u32>,

    /// Flows and entries at least, as kube-proxy has it. Only with `--conntrack-max-per-core`.
    #[arg(long, value_name = "N", hide = true)]
    pub conntrack_min: Option<u32>,

    /// The kernel's conntrack is not to mind sequence numbers that are out of the window, as kube-proxy has it.
    #[arg(
        long, value_name = "true|false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide = true
    )]
    pub conntrack_tcp_be_liberal: Option<bool>,

    /// How soon the kernel ends this process when memory runs out: -1000 (never) to 1000. Default: -999.
    #[arg(
        long, value_name = "N", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000)
    )]
    pub oom_score_adj: Option<i32>,

    /// Load the variant of the programs that logs, at this level.
    #[arg(long, value_enum, value_name = "LEVEL")]
    pub kernel_log: Option<KernelLogLevel>,

    /// Write the settings in effect as a configuration file of kube-proxy, and exit.
    #[arg(long, value_name = "FILE", hide = true)]
    pub write_config_to: Option<PathBuf>,

    /// Remove what an agent left on this node, as `proxy-agent cleanup` does, and exit.
    #[arg(
        long, value_name = "true|false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value_t = false, hide = true, action = clap::ArgAction::Set
    )]
    pub cleanup: bool,

    /// Set on this node what takes all privileges (conntrack, reserved ports, the bpf file system), and exit.
    #[arg(
        long, value_name = "true|false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", default_value_t = false, hide = true, action = clap::ArgAction::Set
    )]
    pub init_only: bool,

    /// What means nothing here.
    #[command(flatten)]
    pub unused: UnusedFlags,
}

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

// Headings of `run --help` and of the tables in docs/operations.md.
const NODE: &str = "Node and API server";
const DATAPATH: &str = "Data path";
const ADDRESSES: &str = "Addresses and ports";
const SERVICES: &str = "Services";
const OBSERVING: &str = "Observing";

/// Arguments of `run`. A value that is not given here comes from the configuration file, if the file has that field.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// A configuration file of kube-proxy (KubeProxyConfiguration, kubeproxy.config.k8s.io/v1alpha1).
    ///
    /// Flags and environment win over it. When it changes, the agent ends, to be started again.
    #[arg(help_heading = NODE, long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// This node's name, as the API server and the nodeName of endpoints spell it. Default: the host's name
    /// in lower case.
    ///
    /// Taken in lower case and without spaces, as kube-proxy takes it.
    #[arg(help_heading = NODE, long, visible_alias = "hostname-override", env = "NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Credentials for the API server. Default: the pod's service account.
    #[arg(help_heading = NODE, long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,

    /// The API server's real address, like https://10.0.0.1:6443. Default: that of the credentials.
    ///
    /// May be repeated, or have several addresses separated by commas: one that does not answer is left for
    /// the next. Never the address of a Service, which the one in the kubeconfig or the pod's environment may
    /// be: it only works once this agent has made it work.
    #[arg(
        help_heading = NODE,
        long = "api-server",
        visible_alias = "master",
        env = "PROXY_AGENT_API_SERVER",
        value_name = "URL",
        value_delimiter = ','
    )]
    pub api_servers: Vec<String>,

    /// Read Services and EndpointSlices from the YAML or JSON files of this folder (watched for changes)
    /// instead of from an API server.
    #[arg(help_heading = NODE, long, value_name = "DIR", conflicts_with_all = ["kubeconfig", "api_servers"])]
    pub manifests: Option<PathBuf>,

    /// How pods reach cluster IPs and node ports.
    ///
    /// `socket` translates in connect() and sendmsg(), `tc` each packet at the pod's interface, `both` does
    /// both. `auto` serves a pod by `socket` unless its network namespace shows that this cannot be (it
    /// redirects packets, forwards, is a virtual machine or a sandbox); such pods are served by `tc`.
    /// Processes of the node always use the socket hooks. While there is a service of SCTP (before Linux 5.14
    /// also one with source ranges), `auto` and `socket` attach programs to all pods: sockets alone cannot
    /// serve it.
    #[arg(help_heading = DATAPATH, long, value_enum, default_value_t = PodDatapath::Auto)]
    pub pod_datapath: PodDatapath,

    /// The cgroup v2 directory above all processes to serve by socket hooks. Default: where cgroup2 is
    /// mounted.
    #[arg(help_heading = DATAPATH, long, value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// An interface that leads off the node (may be repeated). Default: every interface that is neither
    /// loopback nor a pod's.
    ///
    /// A filter: services are reached from outside by these alone. Overlay devices, and the ports of an
    /// uplink that is a bridge, are added always. One that does not exist is a warning and a problem in
    /// /healthz; when it appears, it is used.
    #[arg(help_heading = DATAPATH, long = "uplink", value_name = "IF")]
    pub uplinks: Vec<String>,

    /// A pod-side interface for `--pod-datapath` auto, tc and both (may be repeated; a trailing * matches any
    /// ending). Default: every veth that leads to a pod.
    ///
    /// A veth leads to a pod if its other end is in another network namespace, and neither a network nor a
    /// router is behind the veth itself. An interface that matches is never an uplink.
    #[arg(help_heading = DATAPATH, long = "pod-interface", value_name = "IF")]
    pub pod_interfaces: Vec<String>,

    /// The same as `--pod-interface PREFIX*`.
    #[arg(help_heading = DATAPATH, long, value_name = "PREFIX")]
    pub pod_interface_name_prefix: Option<String>,

    /// XDP on interfaces with a default route or the node's address, and on those named with `--uplink`.
    ///
    /// `auto` uses the driver's on devices that are not virtual, where it has one, `native` insists on it,
    /// `generic` uses the kernel's emulation, `off` leaves everything to tc.
    #[arg(help_heading = DATAPATH, long, value_enum, default_value_t = XdpMode::Auto)]
    pub xdp: XdpMode,

    /// Where the maps are.
    #[command(flatten, next_help_heading = DATAPATH)]
    pub pins: PinArgs,

    /// Entries of each map of confirmed flows; a flow takes two. Default: by the node's memory.
    ///
    /// Unconfirmed flows have maps of a quarter of that, at least 65,536 entries. Counts when the maps are
    /// made (a pinned map keeps its size, which the log reports): to change it, stop the agent and run `proxy-agent cleanup` first.
    #[arg(help_heading = DATAPATH, long, value_name = "N")]
    pub max_flows: Option<u32>,

    /// The node's primary address of its family. Default: that of the Node object.
    ///
    /// 0.0.0.0 and :: choose none; an IPv6 one makes the defaults of the listeners :: and ::1.
    #[arg(help_heading = ADDRESSES, long, value_name = "ADDR")]
    pub bind_address: Option<IpAddr>,

    /// Which of the node's addresses serve node ports: CIDRs, or `primary` for the node's primary ones.
    /// Default: all but loopback and IPv6 link-local ones.
    ///
    /// A family without a CIDR keeps the default.
    #[arg(help_heading = ADDRESSES, long, value_name = "CIDR,...", value_delimiter = ',')]
    pub nodeport_addresses: Vec<NodePortAddresses>,

    /// The cluster's --service-node-port-range: kept off the node's own sockets.
    ///
    /// These ports are reserved from automatic use by local sockets. Every node port is served, whatever the
    /// range.
    #[arg(help_heading = ADDRESSES, long, value_name = "FROM-TO", default_value = "30000-32767")]
    pub nodeport_range: PortRange,

    /// Serve node ports at the node's loopback addresses, for processes of the node. Default: true.
    #[arg(
        help_heading = ADDRESSES,
        long, alias = "iptables-localhost-nodeports", value_name = "true|false", num_args = 0..=1,
        default_missing_value = "true", hide_possible_values = true
    )]
    pub localhost_nodeports: Option<bool>,

    /// Source ports for connections to endpoints of other nodes; reserved from automatic use by local
    /// sockets.
    ///
    /// The more ports, the more connections to one endpoint are possible at a time. The client's port is
    /// mapped one to one into the range first, so a range as wide as the clients' own (32768-60999: 28,232
    /// ports) keeps most connections apart. It may meet `--nodeport-range`; best outside
    /// net.ipv4.ip_local_port_range.
    #[arg(help_heading = ADDRESSES, long, value_name = "FROM-TO", default_value = "1024-29999")]
    pub snat_ports: PortRange,

    /// A source address for connections to endpoints of other nodes (may be repeated; up to 16 of each
    /// family). Default: that of the route.
    ///
    /// It must be an address of this node to which the pod network returns. Several multiply the source
    /// ports. One that the node does not have is not used: a warning, and a problem in /healthz.
    #[arg(help_heading = ADDRESSES, long = "snat-address", value_name = "ADDR,...", value_delimiter = ',')]
    pub snat_addresses: Vec<IpAddr>,

    /// Translate cluster IPs for external clients too.
    #[arg(help_heading = SERVICES, long)]
    pub external_cluster_ips: bool,

    /// Ranges of service addresses, besides the ServiceCIDRs of the API server. Default: none.
    ///
    /// The API server has ServiceCIDRs from Kubernetes 1.33 on. Addresses in the ranges that no Service has
    /// are dropped where they would leave the node.
    #[arg(help_heading = SERVICES, long = "service-cidr", value_name = "CIDR,...", value_delimiter = ',')]
    pub service_cidrs: Vec<IpNet>,

    /// How packets to a service without endpoints are rejected.
    ///
    /// Linux clients act on a reset at once, on ICMP during connect() within a second.
    #[arg(help_heading = SERVICES, long, value_enum, default_value_t = Reject::Icmp)]
    pub reject: Reject,

    /// Reset TCP connections whose endpoint is removed. Without it they live for as long as the endpoint
    /// does.
    #[arg(help_heading = SERVICES, long)]
    pub reset_removed_tcp: bool,

    /// Time between the end of one application of changes and the start of the next. Default: 0s.
    ///
    /// Changes in between are applied together.
    #[arg(help_heading = SERVICES, long, alias = "iptables-min-sync-period", value_name = "DURATION", value_parser = values::duration)]
    pub min_sync_period: Option<Duration>,

    /// An endpoint that left all EndpointSlices of its Service keeps its sockets and flows for this long.
    ///
    /// New ones get it only where no endpoint is ready. 0s: it is removed at once. Endpoints that are
    /// terminating or not ready do not wait.
    #[arg(help_heading = SERVICES, long, value_name = "DURATION", default_value = "1s", value_parser = values::duration)]
    pub endpoint_settle_time: Duration,

    /// How much of a node's maps one Service may take. Default:
    /// ports=4096,endpoints=262144,addresses=65536,source-ranges=65536.
    ///
    /// Bounds that are not named keep their defaults. Objects beyond a bound are left out, and reported.
    #[arg(help_heading = SERVICES, long, value_name = "ports=N,...")]
    pub service_budget: Option<Budget>,

    /// Where to answer /healthz and /livez. Default: 0.0.0.0:10256.
    #[arg(help_heading = OBSERVING, long, value_name = "ADDR:PORT")]
    pub healthz_bind_address: Option<BindAddress>,

    /// Where to answer /metrics, /healthz, /proxyMode and /configz. Default: 127.0.0.1:10249.
    #[arg(help_heading = OBSERVING, long, value_name = "ADDR:PORT")]
    pub metrics_bind_address: Option<BindAddress>,

    /// End if an address to answer at cannot be had. Default: false.
    ///
    /// Without it, it is tried again every 5 seconds.
    #[arg(
        help_heading = OBSERVING,
        long, value_name = "true|false", num_args = 0..=1, require_equals = true,
        default_missing_value = "true", hide_possible_values = true
    )]
    pub bind_address_hard_fail: Option<bool>,

    /// How soon the kernel ends this process when memory runs out: -1000 (never) to 1000. Default: -999.
    #[arg(
        help_heading = OBSERVING,
        long, value_name = "N", allow_negative_numbers = true,
        value_parser = clap::value_parser!(i32).range(-1000..=1000)
    )]
    pub oom_score_adj: Option<i32>,

    /// Load the variant of the programs that logs, at this level. Default: off.
    #[arg(help_heading = OBSERVING, long, value_enum, value_name = "LEVEL")]
    pub kernel_log: Option<KernelLogLevel>,

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

    /// Flags without effect.
    #[command(flatten)]
    pub unused: UnusedFlags,
}

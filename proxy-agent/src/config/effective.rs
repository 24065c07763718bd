//! The settings in effect: flags first, then the configuration file, then defaults.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Result, ensure};
use ipnet::IpNet;
use proxy_common::layout::config::{MAX_SNAT_SOURCES, Timeouts};

use super::{
    Notice,
    conntrack::{max_flows, sysctls, timeouts},
    file::KubeProxyConfiguration,
    machine::Machine,
};
use crate::{
    cli::{LogArgs, RunArgs},
    datapath::{KernelLogLevel, Reject, XdpMode},
    kube_proxy::unused,
    logging::LogFormat,
    model::{budget::Budget, plan::IpFamily},
    net::{
        conntrack_sysctls::ConntrackSysctls,
        ports::PortRange,
        topology::{NodePortAddresses, PodDatapath},
    },
    observe::BindAddress,
};

/// All settings of the agent, with no value left open.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    /// This node's name.
    pub node_name: String,
    /// A folder to read objects from, instead of an API server.
    pub manifests: Option<PathBuf>,
    /// Credentials for the API server; without it the pod's service account.
    pub kubeconfig: Option<PathBuf>,
    /// The API server's address; without it that of the credentials.
    pub api_servers: Vec<String>,
    /// Where maps and links are pinned.
    pub bpffs: PathBuf,
    /// The cgroup of all processes to serve; without it, where cgroup2 is mounted.
    pub cgroup_root: Option<PathBuf>,
    /// How pods are served.
    pub pod_datapath: PodDatapath,
    /// Uplinks; none: those that are found.
    pub uplinks: Vec<String>,
    /// Pod-side interfaces, `*` at the end for any ending; none: those that are found.
    pub pod_interfaces: Vec<String>,
    /// XDP on uplinks.
    pub xdp: XdpMode,
    /// The node's primary address of its family, in place of the Node object's.
    pub bind_address: Option<IpAddr>,
    /// Addresses that serve nodePorts; none: those of the uplinks.
    pub nodeport_addresses: Vec<NodePortAddresses>,
    /// Serve nodePorts at loopback addresses.
    pub localhost_nodeports: bool,
    /// Ports that nodePorts come from.
    pub nodeport_range: PortRange,
    /// Source ports for connections to remote endpoints.
    pub snat_ports: PortRange,
    /// Source addresses for them; none of a family: that of the route.
    pub snat_addresses: Vec<IpAddr>,
    /// Translate cluster IPs for clients outside.
    pub external_cluster_ips: bool,
    /// Ranges of cluster IPs, besides those of ServiceCIDR objects.
    pub service_cidrs: Vec<IpNet>,
    /// How services without endpoints reject.
    pub reject: Reject,
    /// Reset TCP connections whose endpoint is removed.
    pub reset_removed_tcp: bool,
    /// From the end of one application of changes to the start of the next, at least.
    pub min_sync_period: Duration,
    /// How long an endpoint that left all EndpointSlices of its Service keeps its sockets and flows.
    pub endpoint_settle_time: Duration,
    /// How much of the maps one Service may take.
    pub service_budget: Budget,
    /// Where health checks are answered.
    pub healthz_bind_address: SocketAddr,
    /// Where metrics are answered.
    pub metrics_bind_address: SocketAddr,
    /// End when one of these is not available.
    pub bind_address_hard_fail: bool,
    /// Entries of the flow map of each family; a flow takes two.
    pub max_flows: u32,
    /// How long flows stay without a packet.
    pub timeouts: Timeouts,
    /// Limits and timeouts of the kernel's connection tracking.
    pub conntrack: ConntrackSysctls,
    /// For the kernel, when memory runs out.
    pub oom_score_adj: i32,
    /// Load the variant of the programs that logs.
    pub kernel_log: Option<KernelLogLevel>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// 0 information, 1 debugging, 2 and more everything.
    pub verbosity: u8,
}

impl Settings {
    /// Merges flags and file; reports the parts that have no effect.
    ///
    /// # Errors
    ///
    /// When settings contradict each other, or the node's name cannot be determined.
    pub fn new(
        args: &RunArgs,
        log: &LogArgs,
        file: &KubeProxyConfiguration,
        machine: &Machine,
    ) -> Result<(Self, Vec<Notice>)> {
        let mut notices = notices(args, file);
        let bind_address = args.bind_address.or(file.bind_address);
        let (any, loopback): (IpAddr, IpAddr) = match bind_address {
            Some(IpAddr::V6(_)) => (Ipv6Addr::UNSPECIFIED.into(), Ipv6Addr::LOCALHOST.into()),
            _ => (Ipv4Addr::UNSPECIFIED.into(), Ipv4Addr::LOCALHOST.into()),
        };
        let listen = |flag: Option<BindAddress>, file: Option<BindAddress>, ip, port| {
            let default = SocketAddr::new(ip, port);
            flag.or(file).map_or(default, |address| address.or(default))
        };
        let from_api_server = args.manifests.is_none();
        let kubeconfig = file.client_connection.kubeconfig.as_ref().filter(|_| from_api_server);
        let max_flows = max_flows(args, file, machine, &mut notices);
        let settings = Self {
            node_name: node_name(args, file, machine)?,
            manifests: args.manifests.clone(),
            kubeconfig: args.kubeconfig.clone().or(kubeconfig.map(Into::into)),
            api_servers: args.api_servers.clone(),
            bpffs: args.pins.bpffs.clone(),
            cgroup_root: args.cgroup_root.clone(),
            pod_datapath: args.pod_datapath,
            uplinks: args.uplinks.clone(),
            pod_interfaces: pod_interfaces(args, file),
            xdp: args.xdp,
            bind_address: bind_address.filter(|ip| !ip.is_unspecified()),
            nodeport_addresses: or_else(&args.nodeport_addresses, &file.node_port_addresses),
            localhost_nodeports: args
                .localhost_nodeports
                .or(file.iptables.localhost_node_ports)
                .unwrap_or(true),
            nodeport_range: args.nodeport_range,
            snat_ports: args.snat_ports,
            snat_addresses: snat_addresses(args)?,
            external_cluster_ips: args.external_cluster_ips,
            service_cidrs: args.service_cidrs.clone(),
            reject: args.reject,
            reset_removed_tcp: args.reset_removed_tcp,
            min_sync_period: args.min_sync_period.or_else(|| min_sync_period(file)).unwrap_or_default(),
            endpoint_settle_time: args.endpoint_settle_time,
            service_budget: args.service_budget.unwrap_or_default(),
            healthz_bind_address: listen(args.healthz_bind_address, file.healthz_bind_address, any, HEALTHZ),
            metrics_bind_address: listen(
                args.metrics_bind_address,
                file.metrics_bind_address,
                loopback,
                METRICS,
            ),
            bind_address_hard_fail: args
                .bind_address_hard_fail
                .or(file.bind_address_hard_fail)
                .unwrap_or_default(),
            max_flows,
            timeouts: timeouts(args, &file.conntrack, &mut notices),
            conntrack: sysctls(args, &file.conntrack, machine),
            oom_score_adj: args.oom_score_adj.or(file.oom_score_adj).unwrap_or(OOM_SCORE_ADJ),
            kernel_log: args.kernel_log,
            log_format: log.log_format.or(file.logging.format).unwrap_or_default(),
            verbosity: match log.verbosity {
                Some(verbosity) => steps(verbosity),
                None if log.verbose > 0 => log.verbose,
                None => steps(file.logging.verbosity),
            },
        };
        Ok((settings, notices))
    }
}

/// Default ports, and the default for the kernel's score: kube-proxy's.
const HEALTHZ: u16 = 10256;
const METRICS: u16 = 10249;
const OOM_SCORE_ADJ: i32 = -999;

/// Each once.
fn snat_addresses(args: &RunArgs) -> Result<Vec<IpAddr>> {
    let mut addresses: Vec<IpAddr> = Vec::new();
    for ip in &args.snat_addresses {
        let is_usable = !ip.is_unspecified() && !ip.is_loopback() && !ip.is_multicast();
        ensure!(is_usable, "--snat-address {ip}: no other node can send to it");
        if !addresses.contains(ip) {
            addresses.push(*ip);
        }
    }
    for family in IpFamily::ALL {
        let count = addresses.iter().filter(|ip| IpFamily::of(ip) == family).count();
        ensure!(
            count <= MAX_SNAT_SOURCES as usize,
            "--snat-address: {count} addresses of one family, but at most {MAX_SNAT_SOURCES} can be used"
        );
    }
    Ok(addresses)
}

fn or_else<T: Clone>(flag: &[T], file: &[T]) -> Vec<T> {
    if flag.is_empty() { file } else { flag }.to_vec()
}

/// Kubernetes' programs count to 10, where 2 is usual, and 4 is for debugging.
fn steps(verbosity: u8) -> u8 {
    match verbosity {
        0..=3 => 0,
        4..=5 => 1,
        _ => 2,
    }
}

/// In lower case and without spaces around, as kubelet and kube-proxy take it, wherever it is from.
fn node_name(args: &RunArgs, file: &KubeProxyConfiguration, machine: &Machine) -> Result<String> {
    let given = args.node_name.as_deref().filter(|name| !name.trim().is_empty());
    let name = given.or(file.hostname_override.as_deref()).unwrap_or(&machine.hostname);
    let name = name.trim().to_lowercase();
    ensure!(!name.is_empty(), "the host has no name: give the node's with --node-name");
    Ok(name)
}

fn pod_interfaces(args: &RunArgs, file: &KubeProxyConfiguration) -> Vec<String> {
    let pattern = |prefix: &Option<String>| {
        let prefix = prefix.as_ref().filter(|prefix| !prefix.is_empty());
        prefix.map(|prefix| format!("{prefix}*")).into_iter().collect::<Vec<_>>()
    };
    let mut given = args.pod_interfaces.clone();
    given.extend(pattern(&args.pod_interface_name_prefix));
    or_else(&given, &pattern(&file.detect_local.interface_name_prefix))
}

/// The sync period of kube-proxy's mode.
fn min_sync_period(file: &KubeProxyConfiguration) -> Option<Duration> {
    match file.mode.as_deref() {
        Some("nftables") => file.nftables.min_sync_period,
        None | Some("iptables") => file.iptables.min_sync_period,
        Some(_) => None,
    }
}

/// A warning is given below this number of source ports: each connection to an endpoint needs a separate one.
const FEW_SNAT_PORTS: u32 = 1_000;

/// Settings that have no effect, apart from fields that [`KubeProxyConfiguration`] does not have, and settings that
/// will hardly work.
fn notices(args: &RunArgs, file: &KubeProxyConfiguration) -> Vec<Notice> {
    let mut notices = Vec::new();
    let snat_ports = args.snat_ports.count();
    if snat_ports < FEW_SNAT_PORTS {
        notices.push(Notice::warning(format!(
            "--snat-ports {} are only {snat_ports} ports: so many connections to one endpoint of another node are possible at a \
             time (with one source address)",
            args.snat_ports
        )));
    }
    for given in &args.unused.0 {
        // At its default value, such a flag requests nothing.
        let text = format!("--{}={} is not used: {}", given.flag.name, given.value, given.flag.why);
        let matters = given.flag.matters && given.value != "false";
        notices.push(if matters { Notice::warning(text) } else { Notice::info(text) });
    }
    if let Some(mode) = &file.mode {
        notices.push(Notice::info(format!("mode {mode} is not used: {}", unused::MODE)));
    }
    for (section, rules) in [("iptables", &file.iptables), ("nftables", &file.nftables)] {
        if rules.masquerade_all == Some(true) {
            let why = unused::MASQUERADE_ALL;
            notices.push(Notice::warning(format!("{section}.masqueradeAll is not used: {why}")));
        }
    }
    notices
}

#[cfg(test)]
mod tests;

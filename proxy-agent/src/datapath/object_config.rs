//! Settings of the programs that are fixed before they are loaded.

use std::net::IpAddr;

use proxy_common::layout::config::{Constants, StoredSettings, Timeouts};

use crate::{clock, model::plan::IpFamily, net::ports::PortRange};

/// The agent's settings for loading.
#[derive(Clone, Debug)]
pub struct ObjectConfig {
    /// Source ports for connections to remote endpoints.
    pub snat_ports: PortRange,
    /// Source addresses for them that were given.
    pub snat_addresses: Vec<IpAddr>,
    /// Translate cluster IPs for clients outside.
    pub external_cluster_ips: bool,
    /// Socket programs serve the node's own sockets only.
    pub sockets_of_node_only: bool,
    /// Reset TCP connections whose endpoint is gone.
    pub reset_removed_tcp: bool,
    /// Reject TCP connections with a reset instead of an ICMP message.
    pub reject_with_reset: bool,
    /// Serve node ports at loopback addresses, for the node's own sockets.
    pub localhost_nodeports: bool,
    /// Flows per family.
    pub max_flows: u32,
    /// How long flows stay without a packet.
    pub timeouts: Timeouts,
    /// Load the variant that logs.
    pub kernel_log: Option<KernelLogLevel>,
}

/// How packets to services without endpoints are rejected: `--reject`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reject {
    /// ICMP port unreachable, as kube-proxy does.
    #[default]
    Icmp,
    /// TCP: a reset. Everything else: ICMP port unreachable.
    TcpReset,
}

/// The programs' log level: `--kernel-log`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KernelLogLevel {
    /// Drops.
    Warn,
    /// And connects.
    Info,
    /// And every translated packet.
    Debug,
}

impl ObjectConfig {
    /// The constants that do not depend on the kernel.
    pub(super) fn constants(&self) -> Constants {
        Constants {
            snat_first: self.snat_ports.first,
            snat_last: self.snat_ports.last,
            idle: idle(),
            snat_sources: IpFamily::ALL.map(|family| self.snat_sources(family)),
            external_cluster_ips: self.external_cluster_ips,
            reset_removed_tcp: self.reset_removed_tcp,
            reject_with_reset: self.reject_with_reset,
            sockets_of_node_only: self.sockets_of_node_only,
            localhost_nodeports: self.localhost_nodeports,
            ..Constants::default()
        }
    }

    /// How many source addresses of a family were given.
    fn snat_sources(&self, family: IpFamily) -> u32 {
        self.snat_addresses.iter().filter(|ip| IpFamily::of(ip) == family).count() as u32
    }

    /// For the map `settings`.
    pub(super) fn stored(&self) -> StoredSettings {
        StoredSettings::new(&self.constants(), self.timeouts)
    }
}

/// See `Settings::idle`, for this kernel.
pub(super) fn idle() -> u32 {
    const SECONDS: u32 = 10;
    clock::jiffies(SECONDS)
}

/// As aya-log numbers it.
pub(super) fn log_level(level: KernelLogLevel) -> u8 {
    match level {
        KernelLogLevel::Warn => 2,
        KernelLogLevel::Info => 3,
        KernelLogLevel::Debug => 4,
    }
}

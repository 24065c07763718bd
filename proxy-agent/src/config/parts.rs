//! The settings that each part of the agent gets. `check` uses the same.

use super::Settings;
use crate::{
    datapath::{ObjectConfig, Reject},
    net::topology::{PodDatapath, TopologyConfig},
};

/// The settings that the programs are loaded with.
pub(crate) fn object_config(settings: &Settings) -> ObjectConfig {
    ObjectConfig {
        snat_ports: settings.snat_ports,
        snat_addresses: settings.snat_addresses.clone(),
        external_cluster_ips: settings.external_cluster_ips,
        sockets_of_node_only: settings.pod_datapath == PodDatapath::Tc,
        max_flows: settings.max_flows,
        timeouts: settings.timeouts,
        kernel_log: settings.kernel_log,
        reset_removed_tcp: settings.reset_removed_tcp,
        reject_with_reset: settings.reject == Reject::TcpReset,
        localhost_nodeports: settings.localhost_nodeports,
    }
}

/// The settings for the node's network.
pub(crate) fn topology_config(settings: &Settings) -> TopologyConfig {
    TopologyConfig {
        uplinks: settings.uplinks.clone(),
        pod_interfaces: settings.pod_interfaces.clone(),
        pod_datapath: settings.pod_datapath,
        nodeport_addresses: settings.nodeport_addresses.clone(),
        bind_address: settings.bind_address,
        snat_addresses: settings.snat_addresses.clone(),
    }
}

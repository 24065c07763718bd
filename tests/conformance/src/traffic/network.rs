//! Routes to services from outside, and which hook serves which client.

use std::net::SocketAddr;

use anyhow::Result;

use super::super::{NODES, address, node_of, routes};
use proxy_harness::cluster::{Cluster, pipe};

/// The cluster and how its pods are served.
pub(super) struct Network<'c> {
    pub(super) cluster: &'c Cluster,
    /// `--pod-datapath` of the agents.
    pub(super) pod_datapath: &'static str,
}

/// A separate table, so that the router does not forward to another node packets that a node lets out by mistake.
const TABLE: &str = "100";

/// Sets the router's routes: by which node the client reaches services. And makes hosts free the ports of
/// closed connections: there are more connections than ports for them.
pub(super) fn prepare(cluster: &Cluster) -> Result<()> {
    let pods = cluster.nodes.iter().flat_map(|node| node.pods.iter().chain([&node.host]));
    for host in pods.chain([&cluster.client]) {
        host.netns.sysctl(&[("ipv4/tcp_max_tw_buckets", "0")])?;
    }
    for family in ["-4", "-6"] {
        let rule = [family, "rule", "add", "iif", "client", "table", TABLE];
        pipe(cluster.fabric.command("ip")?.args(rule), "")?;
    }
    let lines = routes().into_iter().map(|(prefix, node)| {
        let via = address(&format!("node-{}", node + 1), !prefix.contains(':'));
        format!("route add {prefix} via {via} table {TABLE}")
    });
    cluster.fabric.ip(&lines.collect::<Vec<_>>())
}

impl Network<'_> {
    /// Whether the client's socket is translated, and not its packets.
    pub(super) fn by_socket(&self, from: &str, to: SocketAddr) -> bool {
        let Some(own) = node_of(from) else { return false };
        let node = |node: &usize| to.ip() == address(&format!("node-{}", node + 1), to.is_ipv4());
        let is_elsewhere = (0..NODES).find(node).is_some_and(|node| node != own);
        let has_socket_hooks = from.starts_with("node") || self.pod_datapath != "tc";
        has_socket_hooks && !is_elsewhere
    }
}

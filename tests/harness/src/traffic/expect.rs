//! The source that a server sees: the client itself wherever that is possible.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use anyhow::{Context, Result, ensure};

use super::{SERVICE_PORT, Scenario, cluster_ip, node_port};
use crate::cluster::{Host, Reply, addresses};

/// The address by which a service is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The cluster IP.
    ClusterIp,
    /// The nodePort at the address of a node, by index.
    NodePort(usize),
    /// The nodePort at a node's address on its second uplink.
    SecondNodePort(usize),
    /// The nodePort at the loopback address.
    Localhost,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ClusterIp => f.write_str("cluster IP"),
            Self::NodePort(node) => write!(f, "nodePort of node-{}", node + 1),
            Self::SecondNodePort(node) => write!(f, "nodePort of node-{}, second address", node + 1),
            Self::Localhost => f.write_str("nodePort of localhost"),
        }
    }
}

impl Scenario {
    /// The address to connect to.
    pub fn target(&self, entry: Entry, service: u8, ipv4: bool) -> Result<SocketAddr> {
        Ok(match entry {
            Entry::ClusterIp => (cluster_ip(service, ipv4), SERVICE_PORT).into(),
            Entry::NodePort(node) => {
                let host = &self.cluster.node(node)?.host;
                let address = if ipv4 { IpAddr::from(host.v4) } else { host.v6.into() };
                (address, node_port(service)).into()
            }
            Entry::SecondNodePort(node) => {
                let (v4, v6) = (addresses::second_v4(node), addresses::second_v6(node));
                let address = if ipv4 { IpAddr::from(v4) } else { v6.into() };
                (address, node_port(service)).into()
            }
            Entry::Localhost => {
                let address: IpAddr =
                    if ipv4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
                (address, node_port(service)).into()
            }
        })
    }

    /// Checks an answered request: the server, the client that the server saw, the peer that the client saw.
    pub(super) fn check(
        &self,
        client: &Host,
        entry: Entry,
        target: SocketAddr,
        reply: &Reply,
    ) -> Result<String> {
        let answer = reply.answer.as_ref().with_context(|| format!("no answer: {:?}", reply.error))?;
        let server = self.host(&answer.server).with_context(|| format!("{} is unknown", answer.server))?;
        ensure!(reply.peer == Some(target), "the client sees {:?} as its peer, not {target}", reply.peer);
        self.check_source(client, entry, target.ip(), server, answer.client.ip())
            .with_context(|| format!("{} sees {} as its client", server.name, answer.client))?;
        Ok(server.name.clone())
    }

    fn check_source(
        &self,
        client: &Host,
        entry: Entry,
        target: IpAddr,
        server: &Host,
        seen: IpAddr,
    ) -> Result<()> {
        let is_pod = client.name.starts_with("pod");
        let node_owns = |node: usize| Ok::<_, anyhow::Error>(self.cluster.node(node)?.owns(seen));
        let at = match entry {
            Entry::NodePort(at) | Entry::SecondNodePort(at) => Some(at),
            Entry::ClusterIp | Entry::Localhost => None,
        };
        let at_own_node = |node| at.is_none_or(|at| at == node);
        let right = match (client.node, at) {
            // Packet by packet, a pod that talks to itself must see another source: the service.
            (Some(node), _) if is_pod && server.name == client.name && at_own_node(node) => {
                client.owns(seen) || (self.pod_datapath != "socket" && seen == target)
            }
            // As if it had connected to the server directly.
            (Some(node), Some(at)) if at != node => {
                if server.node == Some(at) {
                    node_owns(node)?
                } else {
                    node_owns(at)?
                }
            }
            (Some(node), _) if is_pod => {
                let leaves_pod_network = server.name.starts_with("node") && server.node != Some(node);
                if leaves_pod_network { node_owns(node)? } else { client.owns(seen) }
            }
            (Some(node), _) => node_owns(node)?,
            // From outside: the client itself, unless the answer must come back through the entry node.
            (None, Some(at)) => {
                if server.node == Some(at) {
                    client.owns(seen)
                } else {
                    node_owns(at)?
                }
            }
            (None, None) => false,
        };
        ensure!(right, "which is not the one expected");
        Ok(())
    }
}

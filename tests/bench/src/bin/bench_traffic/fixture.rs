//! A cluster with its kernel's usual settings, two Services, and one way to serve them: for load that lasts.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use anyhow::Result;
use proxy_harness::{
    cluster::{Agent, Cluster, Node, Process},
    kube_proxy::{Endpoint, NodeContext, Port, Service, nftables},
};

use crate::{
    services::{Where, manifest, node_context},
    setup::start_server,
    wire::{SERVICE_PORT, TARGET_PORT},
};

/// The way to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proxy {
    /// The agent.
    Ours,
    /// kube-proxy's rules in nftables mode, with masquerade that keeps source ports: the kernel's best case.
    Masquerade,
    /// The same with random source ports, as kube-proxy has it.
    Nftables,
}

impl Proxy {
    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Ours => "ours",
            Self::Masquerade => "kernel masquerade",
            Self::Nftables => "nftables",
        }
    }
}

/// Addresses that the client's machine has besides its own.
const FURTHER_CLIENTS: std::ops::Range<u8> = 10..25;

/// The cluster. Processes are declared before it, so that they end first.
pub(crate) struct Fixture {
    _agents: Vec<Agent>,
    _servers: Vec<Process>,
    pub(crate) cluster: Cluster,
}

impl Fixture {
    /// Two Services that have this many of the endpoints on each node.
    pub(crate) fn new(proxy: Proxy, local: usize, remote: usize) -> Result<Self> {
        let cluster = Cluster::builder().nodes(2).pods_per_node(1).build()?;
        let (first, second) = (cluster.node(0)?, cluster.node(1)?);
        let own = |last| format!("addr add {}/24 dev eth0", Ipv4Addr::new(172, 31, 0, last));
        cluster.client.netns.ip(&FURTHER_CLIENTS.map(own).collect::<Vec<_>>())?;
        // A client that closes first could make 470 connections a second to a Service otherwise: its ports rest for a minute.
        cluster
            .client
            .netns
            .sysctl(&[("ipv4/tcp_tw_reuse", "1"), ("ipv4/ip_local_port_range", "32768 60999")])?;
        let local: Vec<_> = endpoints(Where::Local, local).collect();
        let remote: Vec<_> = endpoints(Where::Remote, remote).collect();
        let servers = [servers(first, &local)?, servers(second, &remote)?];
        let services = [0, 1].map(|number| service(number, &local, &remote));
        let mut agents = Vec::new();
        match proxy {
            Proxy::Ours => {
                cluster.manifests.write("services.json", &manifest(&services))?;
                agents = cluster.start_agents(&[])?;
            }
            Proxy::Masquerade | Proxy::Nftables => {
                for (index, node) in cluster.nodes.iter().enumerate() {
                    let keeps_ports = proxy == Proxy::Masquerade;
                    let node_context = NodeContext { keeps_ports, ..node_context(index, node.host.v4) };
                    node.host.netns.nft(&nftables(&node_context, &services))?;
                }
            }
        }
        Ok(Self { _agents: agents, _servers: servers.into_iter().collect(), cluster })
    }

    /// The nodePort of a Service, 0 or 1, at the first node.
    pub(crate) fn target(&self, service: u8) -> Result<SocketAddrV4> {
        Ok(SocketAddrV4::new(self.cluster.node(0)?.host.v4, node_port(service)))
    }

    /// This many of the client's addresses.
    pub(crate) fn clients(&self, count: usize) -> Vec<Ipv4Addr> {
        let further = FURTHER_CLIENTS.map(|last| Ipv4Addr::new(172, 31, 0, last));
        [self.cluster.client.v4].into_iter().chain(further).take(count).collect()
    }
}

fn node_port(service: u8) -> u16 {
    30_080 + u16::from(service)
}

fn endpoints(at: Where, count: usize) -> impl Iterator<Item = Endpoint> {
    let node = at.node();
    at.endpoints().take(count).map(move |address| Endpoint { address: address.into(), node: node.clone() })
}

/// One pod has all the endpoints of its node.
fn servers(node: &Node, endpoints: &[Endpoint]) -> Result<Process> {
    let (pod, own) = (&node.pods[0], node.host.v4);
    let addresses: Vec<_> = endpoints.iter().map(|endpoint| endpoint.address).collect();
    let address = |address: &IpAddr| format!("addr add {address}/32 dev eth0");
    let route = |address: &IpAddr| format!("route add {address}/32 dev veth-a scope link src {own}");
    pod.netns.ip(&addresses.iter().map(address).collect::<Vec<_>>())?;
    node.host.netns.ip(&addresses.iter().map(route).collect::<Vec<_>>())?;
    start_server(pod, &["echo"], &addresses)
}

fn service(number: u8, local: &[Endpoint], remote: &[Endpoint]) -> Service {
    let port = |name, protocol| Port {
        name,
        protocol,
        port: SERVICE_PORT,
        target_port: TARGET_PORT,
        node_port: Some(node_port(number)),
    };
    Service {
        name: format!("lasting-{number}"),
        cluster_ip: Ipv4Addr::new(10, 96, 0, 20 + number).into(),
        ports: vec![port("stream", "tcp"), port("datagram", "udp")],
        endpoints: [local, remote].concat(),
    }
}

//! The conversations.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyhow::{Context, Result};

use super::{
    Fixture, HOST_PORTS, OTHER_CLUSTER_IP, OTHER_NODE_PORT, OUTSIDE_PORTS, OWN_PORTS, Setup, multicast,
    raw_packets,
};
use proxy_harness::{
    cluster::{Host, Protocol},
    traffic::{SINGLE, TARGET_PORT, WEB, node_port},
};

/// How a conversation of the battery fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Client, server and kind.
    pub what: String,
    /// How many tries succeeded.
    pub succeeded: u64,
    /// Number of tries.
    pub tried: u64,
}

/// All conversations that are no Service's, in a [`Fixture`].
#[derive(Debug)]
pub struct Battery<'a> {
    fixture: &'a Fixture,
    round: usize,
    begin: Instant,
    outcomes: Vec<Outcome>,
}

/// How long an answer may take. Without the agent it takes milliseconds.
const PATIENCE: Duration = Duration::from_millis(1500);

/// The router's address in the network of the nodes.
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 99, 1);

impl<'a> Battery<'a> {
    /// Runs everything once. Each round in a fixture has a different number, up to the number of [`OUTSIDE_PORTS`].
    pub fn run(fixture: &'a Fixture, round: usize) -> Result<Vec<Outcome>> {
        let mut battery = Self { fixture, round, begin: Instant::now(), outcomes: Vec::new() };
        for ipv4 in [true, false] {
            battery.many_to_outside(ipv4)?;
            battery.by_source_ports(ipv4)?;
            battery.own_servers(ipv4)?;
            battery.between_pods(ipv4)?;
            battery.host_ports(ipv4)?;
            battery.pings(ipv4)?;
            battery.other_protocols(ipv4)?;
            battery.multicast(ipv4)?;
        }
        battery.other_proxy()?;
        Ok(battery.outcomes)
    }

    fn note(&mut self, what: String, succeeded: u64, tried: u64) {
        println!("{:8.2?} round {}: {what}: {succeeded} of {tried}", self.begin.elapsed(), self.round);
        self.outcomes.push(Outcome { what, succeeded, tried });
    }

    /// Requests over TCP and UDP, each from a new socket, from a source port if one is given.
    fn talk(&mut self, from: &Host, to: SocketAddr, source: Option<u16>, count: u64) -> Result<()> {
        for protocol in [Protocol::Tcp, Protocol::ConnectedUdp] {
            let mut call = from.call(to).protocol(protocol).timeout(PATIENCE);
            if let Some(port) = source {
                let any: IpAddr =
                    if to.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
                call = call.bind((any, port).into());
            }
            let report = call.many(count, 16)?;
            let source = source.map_or_else(String::new, |port| format!(" from port {port}"));
            let to = if OUTSIDE_PORTS.contains(&to.port()) { to.ip().to_string() } else { to.to_string() };
            self.note(format!("{} -> {to}{source}, {protocol:?}", from.name), report.ok, count);
        }
        Ok(())
    }

    fn outside(&self, ipv4: bool) -> Result<SocketAddr> {
        let client = &self.fixture.scenario.cluster.client;
        let address = if ipv4 { IpAddr::from(client.v4) } else { client.v6.into() };
        Ok((address, *OUTSIDE_PORTS.get(self.round).context("too many rounds")?).into())
    }

    fn node(&self, ipv4: bool) -> Result<(&'a Host, IpAddr)> {
        let node = &self.fixture.scenario.cluster.node(0)?.host;
        Ok((node, if ipv4 { node.v4.into() } else { node.v6.into() }))
    }

    /// The kernel's NAT chooses the ports: with `fully-random`, every eighth is one of those that agents give out.
    fn many_to_outside(&mut self, ipv4: bool) -> Result<()> {
        let pod = self.fixture.scenario.cluster.pod("pod-1a")?;
        self.talk(pod, self.outside(ipv4)?, None, 400)
    }

    /// A port of every kind. `masquerade` and `masquerade random` keep it, as it is free.
    fn by_source_ports(&mut self, ipv4: bool) -> Result<()> {
        let to = self.outside(ipv4)?;
        let ports = [700, 1100, 25_000, 29_999, node_port(WEB), node_port(SINGLE), 30_200, 61_500];
        let pod = self.fixture.scenario.cluster.pod("pod-1b")?;
        for port in ports {
            self.talk(pod, to, Some(port), 1)?;
        }
        let (node, _) = self.node(ipv4)?;
        // Others than the pod's, which the node's NAT has given the node's address.
        for port in [701, 25_003, node_port(WEB) + 2, node_port(SINGLE) + 3, 30_201] {
            self.talk(node, to, Some(port), 1)?;
        }
        self.talk(node, to, None, 20)
    }

    fn own_servers(&mut self, ipv4: bool) -> Result<()> {
        let (_, address) = self.node(ipv4)?;
        let cluster = &self.fixture.scenario.cluster;
        for from in [&cluster.client, cluster.pod("pod-1a")?, cluster.pod("pod-2a")?] {
            for port in [TARGET_PORT].into_iter().chain(OWN_PORTS) {
                self.talk(from, (address, port).into(), None, 4)?;
            }
        }
        Ok(())
    }

    fn between_pods(&mut self, ipv4: bool) -> Result<()> {
        let cluster = &self.fixture.scenario.cluster;
        let address = |pod: &Host| if ipv4 { IpAddr::from(pod.v4) } else { pod.v6.into() };
        for (from, to) in [("pod-1a", "pod-1b"), ("pod-1a", "pod-2a"), ("pod-2b", "pod-1b")] {
            let to = SocketAddr::new(address(cluster.pod(to)?), TARGET_PORT);
            self.talk(cluster.pod(from)?, to, None, 4)?;
        }
        Ok(())
    }

    fn host_ports(&mut self, ipv4: bool) -> Result<()> {
        if self.fixture.setup != Setup::HostPorts {
            return Ok(());
        }
        let (node, address) = self.node(ipv4)?;
        let cluster = &self.fixture.scenario.cluster;
        // pod-1a is its own client there.
        let clients =
            [&cluster.client, cluster.pod("pod-1a")?, cluster.pod("pod-1b")?, cluster.pod("pod-2a")?];
        for from in clients.into_iter().chain([node]) {
            for port in HOST_PORTS {
                self.talk(from, (address, port).into(), None, 8)?;
            }
        }
        Ok(())
    }

    fn other_proxy(&mut self) -> Result<()> {
        if self.fixture.setup != Setup::OtherProxy {
            return Ok(());
        }
        let (node, address) = self.node(true)?;
        let cluster = &self.fixture.scenario.cluster;
        let node_port = (address, OTHER_NODE_PORT).into();
        for from in [&cluster.client, cluster.pod("pod-1a")?, node] {
            self.talk(from, node_port, None, 20)?;
        }
        for from in [cluster.pod("pod-1a")?, node] {
            self.talk(from, (OTHER_CLUSTER_IP, 80).into(), None, 20)?;
        }
        Ok(())
    }

    /// Echo requests that fit a packet, just do not, and need several fragments.
    fn pings(&mut self, ipv4: bool) -> Result<()> {
        let cluster = &self.fixture.scenario.cluster;
        let (node, address) = self.node(ipv4)?;
        let outside = self.outside(ipv4)?.ip();
        let pod = cluster.pod("pod-1a")?;
        let own_pod = if ipv4 { IpAddr::from(pod.v4) } else { pod.v6.into() };
        let pairs =
            [(pod, outside), (node, outside), (&cluster.client, address), (pod, address), (node, own_pod)];
        for (from, to) in pairs {
            for size in [56, 1400, 4000, 9000] {
                let answered = from.ping_with(to, size, PATIENCE)?;
                self.note(format!("{} -> {to}, echo of {size} bytes", from.name), u64::from(answered), 1);
            }
        }
        Ok(())
    }

    /// ESP, GRE, IPIP, SCTP: in one packet, and in fragments.
    fn other_protocols(&mut self, ipv4: bool) -> Result<()> {
        let (node, address) = self.node(ipv4)?;
        let client = &self.fixture.scenario.cluster.client;
        let outside = self.outside(ipv4)?.ip();
        for (name, protocol) in [("ESP", 50), ("GRE", 47), ("IPIP", 4), ("SCTP", 132)] {
            for size in [500, 3000] {
                let arrived = raw_packets(client, address, &node.netns, protocol, size, 5)?;
                self.note(format!("client -> {address}, {name} of {size} bytes"), arrived, 5);
                let arrived = raw_packets(node, outside, &client.netns, protocol, size, 5)?;
                self.note(format!("node-1 -> {outside}, {name} of {size} bytes"), arrived, 5);
            }
        }
        Ok(())
    }

    /// Between the router and the node, from and to the number of a nodePort and another.
    fn multicast(&mut self, ipv4: bool) -> Result<()> {
        let cluster = &self.fixture.scenario.cluster;
        let node = &cluster.node(0)?.host;
        let (router, node) = ((&cluster.fabric, "br0", ROUTER), (&node.netns, "eth0", node.v4));
        for port in [node_port(WEB), 5353] {
            let family = if ipv4 { "IPv4" } else { "IPv6" };
            let arrived = multicast(router, node, port, ipv4, 10)?;
            self.note(format!("{family} multicast to node-1, port {port}"), arrived, 10);
            let arrived = multicast(node, router, port, ipv4, 10)?;
            self.note(format!("{family} multicast from node-1, port {port}"), arrived, 10);
        }
        Ok(())
    }
}

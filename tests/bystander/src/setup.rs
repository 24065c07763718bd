//! Rules and programs that CNIs and others put on nodes.

use std::net::{IpAddr, Ipv4Addr};

use anyhow::Result;

use proxy_harness::{
    cluster::{Agent, Cluster, Host, Masquerade, Server},
    kube_proxy as rules,
    traffic::{SERVICE_PORT, SINGLE, Scenario, TARGET_PORT, cluster_ip, node_port},
};

/// Ports of the servers outside. Each round of the battery uses another, so that source ports that are in TIME-WAIT can be used again.
pub const OUTSIDE_PORTS: [u16; 4] = [9000, 9001, 9002, 9003];

/// Ports at which node-1 itself serves: in and below the range for source ports, and in that for nodePorts.
pub const OWN_PORTS: [u16; 4] = [900, 1500, 25_002, 30_099];

/// Ports of node-1 that its hostPort rules give to pod-1a.
pub const HOST_PORTS: [u16; 3] = [8088, 25_001, 30_098];

/// The cluster IP of a Service that only the other service proxy knows.
pub const OTHER_CLUSTER_IP: Ipv4Addr = Ipv4Addr::new(10, 96, 7, 1);

/// Its nodePort.
pub const OTHER_NODE_PORT: u16 = 31_500;

/// Rules and programs on the nodes besides the agent. All have routes to each other's pods, a masquerade rule, and a firewall that
/// drops packets that conntrack marks INVALID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setup {
    /// The masquerade rule of a CNI: `postrouting ip saddr PODS ip daddr != CLUSTER masquerade ...`, IPv4 and IPv6.
    Masquerade(Masquerade),
    /// hostPorts, as the CNI plugin `portmap` writes them: DNAT of [`HOST_PORTS`] to pod-1a, and a mark for packets that must be
    /// masqueraded: the pod's own traffic to its hostPort.
    HostPorts,
    /// An IPsec policy that blocks packets to pods of node-2: "encrypt or drop" without the encryption.
    BlockPolicy,
    /// Rules of kube-proxy's nftables mode for a Service that only kube-proxy knows
    /// (`service.kubernetes.io/service-proxy-name`): [`OTHER_CLUSTER_IP`], [`OTHER_NODE_PORT`]. IPv4.
    OtherProxy,
}

/// Two nodes with two pods each, in a [`Setup`], and servers wherever a conversation of the battery ends.
#[derive(Debug)]
pub struct Fixture {
    /// The cluster with its Services. No agent runs at first.
    pub scenario: Scenario,
    /// The setup of its nodes.
    pub setup: Setup,
    _servers: Vec<Server>,
}

impl Fixture {
    /// Builds it without agents.
    pub fn new(setup: Setup) -> Result<Self> {
        let masquerade = if let Setup::Masquerade(kind) = setup { kind } else { Masquerade::Plain };
        let builder = Cluster::builder().nodes(2).masquerade(masquerade);
        let scenario = Scenario::without_agents(builder, "both")?;
        let cluster = &scenario.cluster;
        let servers =
            vec![cluster.client.serve_all(&OUTSIDE_PORTS)?, cluster.node(0)?.host.serve_all(&OWN_PORTS)?];
        let node = &cluster.node(0)?.host;
        match setup {
            Setup::Masquerade(_) => {}
            Setup::HostPorts => drop(node.netns.nft(&host_ports(cluster)?)?),
            Setup::BlockPolicy => node.netns.ip(&[
                "xfrm policy add src 0.0.0.0/0 dst 10.244.2.0/24 dir out action block".to_owned(),
                "xfrm policy add src ::/0 dst fd00:10:244:2::/64 dir out action block".to_owned(),
            ])?,
            Setup::OtherProxy => drop(node.netns.nft(&other_proxy(cluster)?)?),
        }
        // The only endpoint is on the other node: packets that node-1 forwards there get another source.
        scenario.apply(SINGLE, &[cluster.pod("pod-2a")?])?;
        Ok(Self { scenario, setup, _servers: servers })
    }

    /// Starts the agent of node-1, with programs at pods as well as at sockets and uplinks unless `args` differ.
    pub fn start_agent(&self, args: &[&str]) -> Result<Agent> {
        self.scenario.cluster.start_agent(0, &[&["--pod-datapath", "both"], args].concat())
    }
}

/// The rules of `portmap`: <https://github.com/containernetworking/plugins/blob/v1.5.1/plugins/meta/portmap/portmap.go>, as nftables
/// rules.
fn host_ports(cluster: &Cluster) -> Result<String> {
    let pod = cluster.pod("pod-1a")?;
    let own = [("ip", IpAddr::from(pod.v4)), ("ip6", pod.v6.into())];
    let mut rules = String::new();
    for (family, address) in own {
        let to = std::net::SocketAddr::new(address, TARGET_PORT);
        for port in HOST_PORTS {
            for protocol in ["tcp", "udp"] {
                rules += &format!(
                    "{family} saddr {address} {protocol} dport {port} meta mark set meta mark or 0x2000
                    meta nfproto {version} {protocol} dport {port} dnat {family} to {to}\n",
                    version = if address.is_ipv4() { "ipv4" } else { "ipv6" },
                );
            }
        }
    }
    Ok(format!(
        "table inet cni_hostport {{
            chain hostports {{
                {rules}
            }}
            chain prerouting {{
                type nat hook prerouting priority dstnat; policy accept;
                fib daddr type local jump hostports
            }}
            chain output {{
                type nat hook output priority -100; policy accept;
                fib daddr type local jump hostports
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat - 1; policy accept;
                meta mark and 0x2000 == 0x2000 masquerade
            }}
        }}"
    ))
}

/// kube-proxy's table with one Service, whose endpoint is on the other node.
fn other_proxy(cluster: &Cluster) -> Result<String> {
    let port = |protocol| rules::Port {
        name: protocol,
        protocol,
        port: 80,
        target_port: TARGET_PORT,
        node_port: Some(OTHER_NODE_PORT),
    };
    let service = rules::Service {
        name: "other".to_owned(),
        cluster_ip: OTHER_CLUSTER_IP.into(),
        ports: vec![port("tcp"), port("udp")],
        endpoints: vec![rules::Endpoint {
            address: cluster.pod("pod-2b")?.v4.into(),
            node: "node-2".to_owned(),
        }],
    };
    Ok(rules::nftables(&node_context(cluster)?, &[service]))
}

/// kube-proxy's table at node-1 for one Service of a [`Scenario`], IPv4.
pub fn kube_proxy(scenario: &Scenario, service: u8) -> Result<String> {
    Ok(rules::nftables(&node_context(&scenario.cluster)?, &[known(scenario, service, true)?]))
}

/// The same at any node, of either family, in kube-proxy's nftables mode (first) and iptables mode (second).
pub fn kube_proxy_at(scenario: &Scenario, service: u8, node: usize, ipv4: bool) -> Result<[String; 2]> {
    let (node_context, services) =
        (node_context_at(&scenario.cluster, node, ipv4)?, [known(scenario, service, ipv4)?]);
    Ok([rules::nftables(&node_context, &services), rules::iptables(&node_context, &services)])
}

/// A Service of a [`Scenario`], as kube-proxy's rules are made of.
fn known(scenario: &Scenario, service: u8, ipv4: bool) -> Result<rules::Service> {
    let port = |protocol| rules::Port {
        name: protocol,
        protocol,
        port: SERVICE_PORT,
        target_port: TARGET_PORT,
        node_port: Some(node_port(service)),
    };
    let endpoint = |host: &Host| rules::Endpoint {
        address: address(host, ipv4),
        node: host.node.map_or_else(String::new, |index| format!("node-{}", index + 1)),
    };
    Ok(rules::Service {
        name: "known".to_owned(),
        cluster_ip: cluster_ip(service, ipv4),
        ports: vec![port("tcp"), port("udp")],
        endpoints: scenario.backends(service)?.into_iter().map(endpoint).collect(),
    })
}

/// node-1, as kube-proxy sees it.
fn node_context(cluster: &Cluster) -> Result<rules::NodeContext> {
    node_context_at(cluster, 0, true)
}

fn node_context_at(cluster: &Cluster, node: usize, ipv4: bool) -> Result<rules::NodeContext> {
    let node = &cluster.node(node)?.host;
    Ok(rules::NodeContext {
        node: address(node, ipv4),
        node_name: node.name.clone(),
        cluster_cidr: if ipv4 { "10.244.0.0/16" } else { "fd00:10:244::/48" },
        service_cidr: if ipv4 { "10.96.0.0/16" } else { "fd00:10:96::/112" },
        keeps_ports: true,
    })
}

fn address(host: &Host, ipv4: bool) -> IpAddr {
    if ipv4 { host.v4.into() } else { host.v6.into() }
}

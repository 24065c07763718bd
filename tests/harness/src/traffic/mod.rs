//! A cluster with services, and the table of the results that users must see.

mod cases;
mod expect;
mod loads;
pub mod single;
mod smoke;
mod transfers;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

pub use cases::{all, bulk, endpoints_come_and_go};
pub use expect::Entry;
pub use loads::Loads;
pub use smoke::{BOTH, smoke, smoke_over_restart};
pub use transfers::{Transfers, transfers};

use crate::cluster::{Agent, Builder, Cluster, Endpoint, Host, Server, Service};

/// IPv4 and IPv6.
const FAMILIES: [bool; 2] = [true, false];

fn family(ipv4: bool) -> &'static str {
    if ipv4 { "IPv4" } else { "IPv6" }
}

/// Where clients connect to.
pub const SERVICE_PORT: u16 = 80;
/// Where pods listen.
pub const TARGET_PORT: u16 = 8080;

/// Three pods on two nodes, none on the third.
pub const WEB: u8 = 10;
/// One pod, `pod-1b`.
pub const SINGLE: u8 = 11;
/// One pod, `pod-1a`, that is its own client.
pub const HAIRPIN: u8 = 12;
/// No endpoints.
pub const EMPTY: u8 = 13;
/// The host network of `node-2`.
pub const HOST_NETWORK: u8 = 14;

/// The service's cluster IP of a family.
pub fn cluster_ip(service: u8, ipv4: bool) -> IpAddr {
    if ipv4 {
        Ipv4Addr::new(10, 96, 0, service).into()
    } else {
        Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, 0, u16::from(service)).into()
    }
}

/// The service's port on every node.
pub fn node_port(service: u8) -> u16 {
    30_070 + u16::from(service)
}

/// A cluster that serves.
#[derive(Debug)]
pub struct Scenario {
    /// One per node. They end before the cluster is removed.
    pub agents: Vec<Agent>,
    /// One per pod and node.
    pub servers: Vec<Server>,
    /// `--pod-datapath` of the agents.
    pub pod_datapath: &'static str,
    /// The cluster.
    pub cluster: Cluster,
}

impl Scenario {
    /// Builds a cluster, starts servers, writes the services, and starts an agent per node.
    pub fn start(builder: Builder, pod_datapath: &'static str, agent_args: &[&str]) -> Result<Self> {
        let mut scenario = Self::without_agents(builder, pod_datapath)?;
        let args = [&["--pod-datapath", pod_datapath], agent_args].concat();
        scenario.agents = scenario.cluster.start_agents(&args)?;
        Ok(scenario)
    }

    /// The same before any agent runs.
    pub fn without_agents(builder: Builder, pod_datapath: &'static str) -> Result<Self> {
        let cluster = builder.build()?;
        let hosts = cluster.nodes.iter().flat_map(|node| node.pods.iter().chain([&node.host]));
        let servers = hosts.map(|host| host.serve(TARGET_PORT)).collect::<Result<_>>()?;
        let scenario = Self { agents: Vec::new(), servers, pod_datapath, cluster };
        for service in [WEB, SINGLE, HAIRPIN, EMPTY, HOST_NETWORK] {
            scenario.apply(service, &scenario.backends(service)?)?;
        }
        Ok(scenario)
    }

    /// The pods (or nodes) behind a service.
    pub fn backends(&self, service: u8) -> Result<Vec<&Host>> {
        let names: &[&str] = match service {
            WEB => &["pod-1b", "pod-2a", "pod-2b"],
            SINGLE => &["pod-1b"],
            HAIRPIN => &["pod-1a"],
            HOST_NETWORK => return Ok(vec![&self.cluster.node(1)?.host]),
            _ => &[],
        };
        names.iter().map(|name| self.cluster.pod(name)).collect()
    }

    /// Writes a service with these backends, all ready.
    pub fn apply(&self, service: u8, backends: &[&Host]) -> Result<()> {
        let name = match service {
            WEB => "web",
            SINGLE => "single",
            HAIRPIN => "hairpin",
            EMPTY => "empty",
            _ => "host-network",
        };
        let ips = [cluster_ip(service, true), cluster_ip(service, false)];
        let object =
            Service::new(name, &ips).tcp_and_udp(SERVICE_PORT, TARGET_PORT, Some(node_port(service)));
        let endpoints: Vec<_> = backends.iter().map(|&host| Endpoint::from(host)).collect();
        self.cluster.manifests.apply(&object, &endpoints)
    }

    /// A server's place by the name it answers with.
    fn host(&self, name: &str) -> Option<&Host> {
        let mut hosts = self.cluster.nodes.iter().flat_map(|node| node.pods.iter().chain([&node.host]));
        hosts.find(|host| host.name == name)
    }
}

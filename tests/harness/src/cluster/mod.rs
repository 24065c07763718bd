//! A cluster of network namespaces with real traffic.
//!
//! ```text
//!   client 172.31.0.2 -- fabric (router, bridge 192.168.99.1) --+-- node-1 192.168.99.11 --+-- pod-1a 10.244.1.10
//!          fd00:31::2                        fd00:99::1         |          fd00:99::11     +-- pod-1b 10.244.1.11
//!                                                               +-- node-2 ...                        fd00:10:244:1::b
//! ```
//!
//! Nodes have routes to each other's pods; the fabric and the client have none to pods or services. Every node has
//! the rules of a CNI: forwarding, masquerade of pod traffic that leaves the cluster, `ct state invalid drop`. Each
//! node has a control group with one group per pod below, and a directory of the BPF file system, so that one agent
//! per node can run on one machine.
//!
//! This is the plainest [shape](Builder); others have overlays, second uplinks, narrow links.
//!
//! Needs root, iproute2 and nftables. Everything disappears when the cluster is dropped; the remains of a
//! crashed run disappear when the next one starts.

pub mod addresses;
mod agent;
mod bpf;
mod builder;
mod call;
mod cgroup;
mod container;
mod device;
mod foreign;
mod host;
mod http;
mod manifests;
mod mesh;
mod netns;
mod nodes;
mod overlay;
mod parked;
mod reply;
pub mod segment;
mod shape;
mod sink;
mod teardown;
mod underlay;
mod uplink;
mod verdict;
mod wait;

use std::{net::IpAddr, path::PathBuf};

use anyhow::{Context, Result};

pub use agent::{Agent, agent_binary};
pub use bpf::detach_link;
pub use builder::Builder;
pub use call::{Bulk, CLOSE, Call, Load, PathMtu, Protocol, Server, peer_binary};
pub use container::Container;
pub use device::XdpPass;
pub use foreign::{ForeignProgram, Position};
pub use host::{Host, Process, SourcePorts};
pub use http::HttpAnswer;
pub use manifests::{Endpoint, Manifests, Service, ServicePort};
pub use mesh::{MESH_MARK, MeshRules};
pub use netns::{Netns, pipe};
pub use parked::Parked;
pub use reply::{Answer, BulkReport, LoadReport, Reply};
pub use shape::{Masquerade, NARROW_MTU, Narrow, NodeDevice, Overlay, PodNetwork, SecondUplink};
pub use sink::Sink;
pub use teardown::{remove, remove_stale};
pub use uplink::Uplink;
pub use verdict::Failures;
pub use wait::until;

/// A node and its pods.
#[derive(Debug)]
pub struct Node {
    /// The node itself: host network, control group `host`.
    pub host: Host,
    /// Its pods.
    pub pods: Vec<Host>,
    /// The control group above the node's processes and all its pods: the agent's `--cgroup-root`.
    pub cgroup: PathBuf,
    /// The agent's `--bpffs`.
    pub bpffs: PathBuf,
}

impl Node {
    /// Whether this is an address of the node: its own, one on another interface, or its side of the pod network.
    pub fn owns(&self, address: IpAddr) -> bool {
        self.host.node.is_some_and(|index| addresses::of_node(index).contains(&address))
    }

    /// How many packets the node's firewall dropped because conntrack could not place them.
    pub fn invalid_packets(&self) -> Result<u64> {
        nodes::invalid_packets(&self.host.netns)
    }

    /// All netfilter rules of the node, without their counters.
    pub fn netfilter_rules(&self) -> Result<String> {
        nodes::rules(&self.host.netns)
    }
}

/// The cluster. Dropping it ends all its processes and removes it.
#[derive(Debug)]
pub struct Cluster {
    name: String,
    /// The nodes, `node-1` first.
    pub nodes: Vec<Node>,
    /// A machine outside, behind a router that knows neither pods nor services.
    pub client: Host,
    /// The router, with one device per node (`to-node-1`...).
    pub fabric: Netns,
    /// The folder that all agents read.
    pub manifests: Manifests,
    uplinks: Vec<&'static str>,
    xdp_pass: Vec<XdpPass>,
    logs: PathBuf,
    /// Holds manifests and logs unless the builder got a folder.
    _folder: Option<tempfile::TempDir>,
    keep: bool,
}

impl Cluster {
    /// Starts describing a cluster.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The name in the cluster's namespaces, control groups and pins.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A node by index from 0 (`node-1` has index 0).
    pub fn node(&self, index: usize) -> Result<&Node> {
        self.nodes.get(index).with_context(|| format!("the cluster has {} nodes", self.nodes.len()))
    }

    /// A pod by name, like `pod-1a`.
    pub fn pod(&self, name: &str) -> Result<&Host> {
        let mut pods = self.nodes.iter().flat_map(|node| &node.pods);
        pods.find(|pod| pod.name == name).with_context(|| format!("no pod {name}"))
    }

    /// Leaves the cluster up, with processes that have been detached, for [`remove`] to take down.
    pub fn keep(mut self) {
        self.keep = true;
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.xdp_pass.clear();
        if self.keep {
            return;
        }
        if let Err(error) = remove(&self.name) {
            eprintln!("cannot remove the cluster {}: {error:#}", self.name);
        }
    }
}

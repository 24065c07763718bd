//! Describing and building a cluster.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

use anyhow::{Context, Result, ensure};

use super::{
    Cluster, Host, Manifests, Masquerade, Narrow, Netns, Node, NodeDevice, Overlay, PodNetwork, SecondUplink,
    SourcePorts, XdpPass, addresses as addr,
    cgroup::{BPFFS, cgroup2_mount, ensure_bpffs},
    device::set_checksum_offload,
    nodes, remove, remove_stale,
    shape::Shape,
    teardown::own_name,
    underlay,
};

/// The wanted shape of the cluster.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    name: Option<String>,
    folder: Option<PathBuf>,
    nodes: usize,
    pub(super) pods_per_node: usize,
    pub(super) shape: Shape,
    pub(super) rp_filter: u8,
    pub(super) bridge_nf_call: bool,
    pub(super) masquerade: Masquerade,
    offload: bool,
    xdp_pass: bool,
    names_uplinks: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            name: None,
            folder: None,
            nodes: 3,
            pods_per_node: 2,
            shape: Shape::default(),
            rp_filter: 1,
            bridge_nf_call: true,
            masquerade: Masquerade::Plain,
            offload: true,
            xdp_pass: false,
            names_uplinks: false,
        }
    }
}

impl Builder {
    /// A name; such a cluster survives its maker if it is kept. Default: one that is unique to this process,
    /// by which later runs recognise its remains.
    pub fn name(mut self, name: &str) -> Self {
        self.name = Some(name.to_owned());
        self
    }

    /// Where to put manifests and logs, to stay (default: in a folder that goes with the cluster).
    pub fn folder(mut self, folder: PathBuf) -> Self {
        self.folder = Some(folder);
        self
    }

    /// How many nodes, up to 9 (default 3).
    pub fn nodes(mut self, nodes: usize) -> Self {
        self.nodes = nodes;
        self
    }

    /// How many pods on each, up to 9 (default 2).
    pub fn pods_per_node(mut self, pods: usize) -> Self {
        self.pods_per_node = pods;
        self
    }

    /// How pods are connected (default: routed).
    pub fn pods(mut self, pods: PodNetwork) -> Self {
        self.shape.pods = pods;
        self
    }

    /// How packets get to pods of other nodes (default: by plain routes).
    pub fn overlay(mut self, overlay: Overlay) -> Self {
        self.shape.overlay = overlay;
        self
    }

    /// The device with the node's address (default: `eth0`).
    pub fn node_device(mut self, device: NodeDevice) -> Self {
        self.shape.device = device;
        self
    }

    /// The use of a second interface of the nodes (default: none).
    pub fn second_uplink(mut self, second: SecondUplink) -> Self {
        self.shape.second = second;
        self
    }

    /// Where a link of 1,300 bytes is (default: nowhere).
    pub fn narrow(mut self, narrow: Narrow) -> Self {
        self.shape.narrow = narrow;
        self
    }

    /// `net.ipv4.conf.*.rp_filter` of all machines: 0 off, 1 strict (default), 2 loose.
    pub fn rp_filter(mut self, mode: u8) -> Self {
        self.rp_filter = mode;
        self
    }

    /// `net.bridge.bridge-nf-call-ip(6)tables` of the nodes, where the kernel has it (default: on).
    pub fn bridge_nf_call(mut self, on: bool) -> Self {
        self.bridge_nf_call = on;
        self
    }

    /// How nodes masquerade pods' packets that leave the cluster (default: plain).
    pub fn masquerade(mut self, masquerade: Masquerade) -> Self {
        self.masquerade = masquerade;
        self
    }

    /// Transmit checksum and segmentation offload of all devices (default: on).
    pub fn offload(mut self, on: bool) -> Self {
        self.offload = on;
        self
    }

    /// XDP programs that pass everything, on the far side of every uplink: a veth with native XDP needs them.
    pub fn xdp_pass(mut self, on: bool) -> Self {
        self.xdp_pass = on;
        self
    }

    /// Whether agents get `--uplink` for the interfaces that lead off their nodes. By default they find them.
    pub fn names_uplinks(mut self, on: bool) -> Self {
        self.names_uplinks = on;
        self
    }

    /// Makes it. Whatever fails, nothing is left behind.
    pub fn build(self) -> Result<Cluster> {
        ensure!(nix::unistd::geteuid().is_root(), "network namespaces need root");
        ensure!((1..=9).contains(&self.nodes) && self.pods_per_node <= 9, "at most 9 nodes of 9 pods");
        ensure_bpffs()?;
        remove_stale()?;
        let name = self.name.clone().unwrap_or_else(next_name);
        remove(&name)?;
        let cluster = self.hosts(name.clone()).inspect_err(|_| {
            // Report the first error; a later run cleans up the rest.
            let _ = remove(&name);
        })?;
        self.connect(cluster)
    }

    fn hosts(&self, name: String) -> Result<Cluster> {
        let group = cgroup2_mount()?.join(&name);
        let pins = Path::new(BPFFS).join(&name);
        let netns = |what: &str| Netns::create(&format!("{name}-{what}"));
        let temporary = if self.folder.is_none() { Some(tempfile::tempdir()?) } else { None };
        let folder = self.folder.as_deref().or(temporary.as_ref().map(|dir| dir.path()));
        let folder = folder.context("no folder")?;
        let ports = SourcePorts::default();
        let mut cluster = Cluster {
            fabric: netns("fabric")?,
            client: Host {
                name: "client".to_owned(),
                node: None,
                netns: netns("client")?,
                cgroup: make_dir(group.join("client"))?,
                v4: addr::CLIENT_V4,
                v6: addr::CLIENT_V6,
                ports: ports.clone(),
            },
            nodes: Vec::new(),
            manifests: Manifests::new(folder.join("manifests"))?,
            uplinks: if self.names_uplinks { self.shape.uplinks() } else { Vec::new() },
            xdp_pass: Vec::new(),
            logs: make_dir(folder.join("logs"))?,
            _folder: temporary,
            keep: false,
            name: name.clone(),
        };
        for index in 0..self.nodes {
            let node_name = format!("node-{}", index + 1);
            let cgroup = group.join(&node_name);
            let host = Host {
                netns: netns(&node_name)?,
                cgroup: make_dir(cgroup.join("host"))?,
                node: Some(index),
                v4: addr::node_v4(index),
                v6: addr::node_v6(index),
                ports: ports.clone(),
                name: node_name.clone(),
            };
            let mut pods = Vec::new();
            for pod in 0..self.pods_per_node {
                let name = format!("pod-{}{}", index + 1, nodes::letter(pod));
                pods.push(Host {
                    netns: netns(&name)?,
                    cgroup: make_dir(cgroup.join(&name))?,
                    node: Some(index),
                    v4: addr::pod_v4(index, pod),
                    v6: addr::pod_v6(index, pod),
                    ports: ports.clone(),
                    name,
                });
            }
            let bpffs = make_dir(pins.join(&node_name))?;
            cluster.nodes.push(Node { host, pods, cgroup, bpffs });
        }
        Ok(cluster)
    }

    fn connect(&self, mut cluster: Cluster) -> Result<Cluster> {
        underlay::connect_fabric(self, &cluster)?;
        for node in &cluster.nodes {
            underlay::connect_node(self, node, self.nodes)?;
            nodes::connect_pods(self, node, self.nodes)?;
        }
        if !self.offload {
            let pods = cluster.nodes.iter().flat_map(|node| node.pods.iter().chain([&node.host]));
            for netns in pods.map(|host| &host.netns).chain([&cluster.fabric, &cluster.client.netns]) {
                set_checksum_offload(netns, false)?;
            }
        }
        if self.xdp_pass {
            for node in &cluster.nodes {
                let device = format!("to-{}", node.host.name);
                cluster.xdp_pass.push(XdpPass::attach(&cluster.fabric, &device)?);
            }
        }
        Ok(cluster)
    }
}

fn make_dir(path: PathBuf) -> Result<PathBuf> {
    fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
    Ok(path)
}

fn next_name() -> String {
    // Unique within the process, as the process id is on the machine.
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    own_name(NEXT.fetch_add(1, Ordering::Relaxed))
}

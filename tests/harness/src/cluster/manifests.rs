//! Services and their endpoints as YAML files in a folder.

use std::{
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use super::Host;

/// A Service, in the fields that the tests need.
#[derive(Clone, Debug)]
pub struct Service {
    /// Name, in the namespace `default`.
    pub name: String,
    /// Cluster IPs, at most one of each family.
    pub cluster_ips: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<ServicePort>,
}

/// A port of a service.
#[derive(Clone, Debug)]
pub struct ServicePort {
    /// Its name; endpoints have the same.
    pub name: String,
    /// `TCP` or `UDP`.
    pub protocol: &'static str,
    /// Where clients connect to.
    pub port: u16,
    /// Where endpoints listen.
    pub target_port: u16,
    /// The port on every node. With one, the service is of type NodePort.
    pub node_port: Option<u16>,
}

impl Service {
    /// A service with cluster IPs and no ports yet.
    pub fn new(name: &str, cluster_ips: &[IpAddr]) -> Self {
        Self { name: name.to_owned(), cluster_ips: cluster_ips.to_vec(), ports: Vec::new() }
    }

    /// Adds the same port for TCP and for UDP.
    #[must_use]
    pub fn tcp_and_udp(mut self, port: u16, target_port: u16, node_port: Option<u16>) -> Self {
        for protocol in ["TCP", "UDP"] {
            let name = format!("{}-{port}", protocol.to_lowercase());
            self.ports.push(ServicePort { name, protocol, port, target_port, node_port });
        }
        self
    }

    fn yaml(&self) -> String {
        let families = self.cluster_ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" });
        let kind =
            if self.ports.iter().any(|port| port.node_port.is_some()) { "NodePort" } else { "ClusterIP" };
        let mut text = format!(
            "apiVersion: v1\nkind: Service\nmetadata:\n  name: {}\n  namespace: default\nspec:\n  type: {kind}\n",
            self.name
        );
        if let Some(first) = self.cluster_ips.first() {
            let _ = writeln!(text, "  clusterIP: \"{first}\"");
        }
        let _ = writeln!(text, "  clusterIPs: [{}]", quoted(&self.cluster_ips));
        let _ = writeln!(text, "  ipFamilies: [{}]", families.collect::<Vec<_>>().join(", "));
        text += "  ports:\n";
        for port in &self.ports {
            let ServicePort { name, protocol, port, target_port, node_port } = port;
            let _ = writeln!(text, "    - name: {name}\n      protocol: {protocol}\n      port: {port}");
            let _ = writeln!(text, "      targetPort: {target_port}");
            if let Some(node_port) = node_port {
                let _ = writeln!(text, "      nodePort: {node_port}");
            }
        }
        text
    }

    fn slice_yaml(&self, ipv4: bool, endpoints: &[Endpoint]) -> String {
        let family = if ipv4 { "IPv4" } else { "IPv6" };
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-{suffix}\n  \
             namespace: default\n  labels:\n    kubernetes.io/service-name: {name}\naddressType: {family}\nports:\n",
            name = self.name,
            suffix = family.to_lowercase(),
        );
        for port in &self.ports {
            let ServicePort { name, protocol, target_port, .. } = port;
            let _ = writeln!(text, "  - name: {name}\n    protocol: {protocol}\n    port: {target_port}");
        }
        text += if endpoints.is_empty() { "endpoints: []\n" } else { "endpoints:\n" };
        for endpoint in endpoints {
            let Endpoint { node, ready, serving, terminating, .. } = endpoint;
            let address = if ipv4 { IpAddr::from(endpoint.v4) } else { endpoint.v6.into() };
            let _ = writeln!(text, "  - addresses: [\"{address}\"]\n    nodeName: {node}");
            let _ = writeln!(
                text,
                "    conditions: {{ready: {ready}, serving: {serving}, terminating: {terminating}}}"
            );
        }
        text
    }
}

fn quoted(addresses: &[IpAddr]) -> String {
    addresses.iter().map(|ip| format!("\"{ip}\"")).collect::<Vec<_>>().join(", ")
}

/// An endpoint of a service.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// In the slice for IPv4.
    pub v4: Ipv4Addr,
    /// In the slice for IPv6.
    pub v6: Ipv6Addr,
    /// Name of its node.
    pub node: String,
    /// Condition.
    pub ready: bool,
    /// Condition.
    pub serving: bool,
    /// Condition.
    pub terminating: bool,
}

impl From<&Host> for Endpoint {
    /// The pod (or node, in its host network) as a ready endpoint.
    fn from(host: &Host) -> Self {
        let node = host.node.map_or_else(String::new, |index| format!("node-{}", index + 1));
        Self { v4: host.v4, v6: host.v6, node, ready: true, serving: true, terminating: false }
    }
}

impl Endpoint {
    /// Not ready and not terminating: gets no traffic.
    #[must_use]
    pub fn unready(mut self) -> Self {
        self.ready = false;
        self.serving = false;
        self
    }
}

/// The folder.
#[derive(Debug)]
pub struct Manifests {
    dir: PathBuf,
}

impl Manifests {
    /// The folder; made if it is not there.
    pub(super) fn new(dir: PathBuf) -> Result<Self> {
        fs::create_dir_all(&dir).with_context(|| dir.display().to_string())?;
        Ok(Self { dir })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Writes a service and its endpoints as one file, `NAME.yaml`.
    pub fn apply(&self, service: &Service, endpoints: &[Endpoint]) -> Result<()> {
        self.apply_all(&format!("{}.yaml", service.name), std::slice::from_ref(service), endpoints)
    }

    /// Writes services, all with the same endpoints, as one file.
    pub fn apply_all(&self, file: &str, services: &[Service], endpoints: &[Endpoint]) -> Result<()> {
        let mut documents = Vec::new();
        for service in services {
            documents.push(service.yaml());
            for ipv4 in [true, false] {
                if service.cluster_ips.iter().any(|ip| ip.is_ipv4() == ipv4) {
                    documents.push(service.slice_yaml(ipv4, endpoints));
                }
            }
        }
        self.write(file, &documents.join("---\n"))
    }

    /// Writes a file so that readers see the old or the new one, never a part.
    pub fn write(&self, file: &str, text: &str) -> Result<()> {
        // Hidden until complete: readers of the folder skip such names.
        let mut temporary = tempfile::Builder::new().prefix(".").suffix(".tmp").tempfile_in(&self.dir)?;
        temporary.write_all(text.as_bytes())?;
        temporary.persist(self.dir.join(file)).with_context(|| file.to_owned())?;
        Ok(())
    }

    /// Removes a file.
    pub fn remove(&self, file: &str) -> Result<()> {
        fs::remove_file(self.dir.join(file)).with_context(|| file.to_owned())
    }
}

//! Addresses and objects of one rule in one family: no two rules share any, so that all run in one cluster.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use serde_json::{Value, json};

use super::{Expect, Object};
use proxy_harness::cluster::addresses as addr;

/// The port of services.
pub const PORT: u16 = 80;
/// Where pods listen.
pub const TARGET: u16 = 8080;
/// Where pods listen as well.
pub const TARGETS: [u16; 11] = [TARGET, 8081, 8082, 9001, 9002, 9003, 9004, 9005, 9006, 9007, 9008];
/// All nodes and pods of the cluster, and the client outside.
pub const HOSTS: [&str; 10] =
    ["pod-1a", "pod-1b", "pod-2a", "pod-2b", "pod-3a", "pod-3b", "node-1", "node-2", "node-3", "client"];
/// How many nodes there are.
pub const NODES: usize = 3;
/// Zones of the nodes.
pub const ZONES: [&str; NODES] = ["zone-a", "zone-a", "zone-b"];
/// The range of service addresses.
pub const SERVICE_CIDRS: [&str; 2] = ["10.96.0.0/16", "fd00:10:96::/64"];
/// Addresses for external IPs, then those for load balancers: `net`, which the entry node completes.
const EXTERNAL: u8 = 18;
const LOAD_BALANCER: u8 = 19;
/// Further addresses of a kind are this far away.
const STRIDE: usize = 8;

/// A rule in one family.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// Place of the rule in the table.
    pub number: u8,
    /// Its id.
    pub id: &'static str,
    /// The family: IPv4, or else IPv6.
    pub ipv4: bool,
}

/// The address of a pod, a node or the client.
pub fn address(host: &str, ipv4: bool) -> IpAddr {
    let digit = |at: usize| usize::from(host.as_bytes().get(at).map_or(0, |byte| byte.wrapping_sub(b'1')));
    let (v4, v6) = match host.split_once('-') {
        Some(("pod", _)) => {
            let pod = usize::from(host.as_bytes().get(5).map_or(0, |letter| letter.wrapping_sub(b'a')));
            (addr::pod_v4(digit(4), pod), addr::pod_v6(digit(4), pod))
        }
        Some(("node", _)) => (addr::node_v4(digit(5)), addr::node_v6(digit(5))),
        _ => (addr::CLIENT_V4, addr::CLIENT_V6),
    };
    if ipv4 { v4.into() } else { v6.into() }
}

/// The index of the node that a pod or node is on; none for the client.
pub fn node_of(host: &str) -> Option<usize> {
    let digit = host.split_once('-')?.1.as_bytes().first()?;
    Some(usize::from(digit.wrapping_sub(b'1')))
}

/// The node by which packets from outside to an address enter the cluster.
pub fn entry(to: IpAddr) -> usize {
    if let Some(node) = (0..NODES).find(|node| to == addr::node_v4(*node) || to == addr::node_v6(*node)) {
        return node;
    }
    match to {
        IpAddr::V4(v4) if v4.octets()[0] == 198 => usize::from(v4.octets()[2]) % STRIDE,
        IpAddr::V6(v6) if v6.segments()[0] == 0x2001 => usize::from(v6.segments()[3]) % STRIDE,
        _ => 0,
    }
}

/// The routes of the router outside to services: prefix and entry node.
pub fn routes() -> Vec<(String, usize)> {
    let mut routes: Vec<_> = SERVICE_CIDRS.iter().map(|cidr| ((*cidr).to_owned(), 0)).collect();
    for net in [EXTERNAL, LOAD_BALANCER] {
        for subnet in 0..4 * STRIDE {
            let node = subnet % STRIDE;
            if node < NODES {
                routes.push((format!("198.{net}.{subnet}.0/24"), node));
                routes.push((format!("2001:db8:{net}:{subnet:x}::/64"), node));
            }
        }
    }
    routes
}

impl Case {
    /// The namespace of its objects.
    pub fn namespace(&self) -> String {
        format!("{}-{}", self.id, if self.ipv4 { "v4" } else { "v6" })
    }

    /// A cluster IP.
    pub fn ip(&self, n: u8) -> IpAddr {
        self.ip_of(self.ipv4, n)
    }

    /// A cluster IP of either family.
    pub fn ip_of(&self, ipv4: bool, n: u8) -> IpAddr {
        if ipv4 {
            Ipv4Addr::new(10, 96, self.number, n + if self.ipv4 { 1 } else { 128 }).into()
        } else {
            let last = u16::from(n) + if self.ipv4 { 128 } else { 1 };
            Ipv6Addr::new(0xfd00, 0x10, 0x96, 0, 0, 0, u16::from(self.number), last).into()
        }
    }

    /// The cluster IP and port of [`Self::service`].
    pub fn vip(&self) -> SocketAddr {
        (self.ip(0), PORT).into()
    }

    /// The nth external IP by which packets from outside enter at a node.
    pub fn external_ip(&self, entry: usize, n: usize) -> IpAddr {
        self.outside(EXTERNAL, entry + n * STRIDE)
    }

    /// An external IP of [`Self::exposed`] and its port.
    pub fn external(&self, entry: usize) -> SocketAddr {
        (self.external_ip(entry, 0), PORT).into()
    }

    /// The nth load balancer IP by which packets from outside enter at a node.
    pub fn load_balancer_ip(&self, entry: usize, n: usize) -> IpAddr {
        self.outside(LOAD_BALANCER, entry + n * STRIDE)
    }

    /// A load balancer IP of [`Self::exposed`] and its port.
    pub fn load_balancer(&self, entry: usize) -> SocketAddr {
        (self.load_balancer_ip(entry, 0), PORT).into()
    }

    fn outside(&self, net: u8, subnet: usize) -> IpAddr {
        if self.ipv4 {
            Ipv4Addr::new(198, net, subnet as u8, self.number).into()
        } else {
            // Written in decimal like the IPv4 one.
            let net = if net == EXTERNAL { 0x18 } else { 0x19 };
            Ipv6Addr::new(0x2001, 0xdb8, net, subnet as u16, 0, 0, 0, u16::from(self.number)).into()
        }
    }

    /// A nodePort of the rule.
    pub fn node_port(&self, n: u16) -> u16 {
        30_000 + u16::from(self.number) * 16 + n * 2 + u16::from(self.ipv4)
    }

    /// The nodePort of [`Self::node_port_service`] at a node.
    pub fn at_node(&self, node: usize) -> SocketAddr {
        (address(&format!("node-{}", node + 1), self.ipv4), self.node_port(0)).into()
    }

    /// The same at the loopback address.
    pub fn at_localhost(&self) -> SocketAddr {
        let loopback: IpAddr =
            if self.ipv4 { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        (loopback, self.node_port(0)).into()
    }

    /// The endpoint `pod-1a` (its first port) or `pod-1a:8081`.
    pub fn endpoint(&self, text: &str) -> SocketAddr {
        let (host, port) = text.split_once(':').unwrap_or((text, ""));
        (address(host, self.ipv4), port.parse().unwrap_or(TARGET)).into()
    }

    fn endpoints(&self, texts: &[&str]) -> Vec<SocketAddr> {
        let mut endpoints: Vec<_> = texts.iter().map(|text| self.endpoint(text)).collect();
        endpoints.sort();
        endpoints
    }

    /// Exactly these endpoints answer.
    pub fn answers(&self, endpoints: &[&str]) -> Expect {
        Expect::Answers(self.endpoints(endpoints))
    }

    /// The same one of these answers again and again, with pauses in between.
    pub fn sticky(&self, endpoints: &[&str], pause: Duration) -> Expect {
        Expect::SessionAffinity(self.endpoints(endpoints), pause)
    }

    /// Now one of these answers, now another.
    pub fn repicked(&self, endpoints: &[&str], pause: Duration) -> Expect {
        Expect::Repicked(self.endpoints(endpoints), pause)
    }

    fn family(&self) -> &'static str {
        if self.ipv4 { "IPv4" } else { "IPv6" }
    }

    /// A Service `web` with a cluster IP and a port 80 each for TCP and UDP.
    pub fn service(&self) -> Object {
        Object(json!({
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web", "namespace": self.namespace()},
            "spec": {
                "type": "ClusterIP",
                "clusterIP": self.ip(0),
                "clusterIPs": [self.ip(0)],
                "ipFamilies": [self.family()],
                "ports": [port("tcp", "TCP", PORT), port("udp", "UDP", PORT)],
            },
        }))
    }

    /// The same with nodePorts.
    pub fn node_port_service(&self) -> Object {
        let node_port = json!({"nodePort": self.node_port(0)});
        let ports = [port("tcp", "TCP", PORT), port("udp", "UDP", PORT)];
        let ports = ports.map(|port| Object(port).with(node_port.clone()).0);
        self.service().with(json!({"spec": {"type": "NodePort", "ports": ports}}))
    }

    /// The same with nodePorts, external IPs and load balancer IPs, by which clients outside enter at each node.
    pub fn exposed(&self) -> Object {
        let external: Vec<_> = (0..NODES).map(|entry| self.external_ip(entry, 0)).collect();
        let ingress: Vec<_> =
            (0..NODES).map(|entry| json!({"ip": self.load_balancer_ip(entry, 0)})).collect();
        self.node_port_service().with(json!({
            "spec": {"type": "LoadBalancer", "externalIPs": external},
            "status": {"loadBalancer": {"ingress": ingress}},
        }))
    }

    /// Everything but the cluster IP that an [`Self::exposed`] service has at a node.
    pub fn outside_frontends(&self, entry: usize) -> [SocketAddr; 3] {
        [self.at_node(entry), self.external(entry), self.load_balancer(entry)]
    }

    /// An EndpointSlice of the Service `web`.
    pub fn slice(&self, endpoints: &[EndpointText]) -> Object {
        self.slice_named("web-1", endpoints)
    }

    /// The same with another name.
    pub fn slice_named(&self, name: &str, endpoints: &[EndpointText]) -> Object {
        self.slice_of(self.ipv4, name, endpoints)
    }

    /// The same of either family.
    pub fn slice_of(&self, ipv4: bool, name: &str, endpoints: &[EndpointText]) -> Object {
        let endpoints: Vec<_> = endpoints.iter().map(|endpoint| endpoint.object(ipv4)).collect();
        Object(json!({
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": name,
                "namespace": self.namespace(),
                "labels": {"kubernetes.io/service-name": "web"},
            },
            "addressType": if ipv4 { "IPv4" } else { "IPv6" },
            "ports": [port("tcp", "TCP", TARGET), port("udp", "UDP", TARGET)],
            "endpoints": endpoints,
        }))
    }
}

/// A port of a Service or a slice.
pub fn port(name: &str, protocol: &str, number: u16) -> Value {
    json!({"name": name, "protocol": protocol, "port": number})
}

/// An endpoint of a slice.
#[derive(Clone, Debug)]
pub struct EndpointText {
    host: &'static str,
    patches: Vec<Value>,
}

impl EndpointText {
    /// Changes it by a JSON merge patch.
    #[must_use]
    pub fn with(mut self, patch: Value) -> Self {
        self.patches.push(patch);
        self
    }

    fn object(&self, ipv4: bool) -> Value {
        let endpoint = Object(json!({
            "addresses": [address(self.host, ipv4)],
            "nodeName": node_of(self.host).map(|node| format!("node-{}", node + 1)),
        }));
        self.patches.iter().fold(endpoint, |endpoint, patch| endpoint.with(patch.clone())).0
    }
}

fn endpoint(host: &'static str, ready: bool, serving: bool, terminating: bool) -> EndpointText {
    let conditions = json!({"ready": ready, "serving": serving, "terminating": terminating});
    EndpointText { host, patches: vec![json!({ "conditions": conditions })] }
}

/// A pod that gets new connections.
pub fn ready(host: &'static str) -> EndpointText {
    endpoint(host, true, true, false)
}

/// A pod that gets none although it would answer.
pub fn unready(host: &'static str) -> EndpointText {
    endpoint(host, false, true, false)
}

/// A pod that is being deleted and still answers.
pub fn terminating(host: &'static str) -> EndpointText {
    endpoint(host, false, true, true)
}

/// A pod that is being deleted and does not answer any more.
pub fn dying(host: &'static str) -> EndpointText {
    endpoint(host, false, false, true)
}

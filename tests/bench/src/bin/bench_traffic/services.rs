//! Services, as rules and as manifests.

use std::net::Ipv4Addr;

use proxy_harness::kube_proxy::{Endpoint, NodeContext, Port, Service};
use serde_json::{Value, json};

use crate::wire::{SERVICE_PORT, STREAM_SERVICE_PORT, STREAM_TARGET_PORT, TARGET_PORT};

/// All pods.
pub(crate) const CLUSTER_CIDR: &str = "10.244.0.0/16";
/// All cluster IPs.
pub(crate) const SERVICE_CIDR: &str = "10.96.0.0/12";
/// How many endpoints the services have that are measured.
pub(crate) const ENDPOINTS: u8 = 10;
/// How many the others have: more would only make setting up slower.
pub(crate) const OTHER_ENDPOINTS: u8 = 2;

/// Where the backends of a service are, seen from the first node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Where {
    Local,
    Remote,
}

impl Where {
    fn number(self) -> u8 {
        match self {
            Self::Local => 0,
            Self::Remote => 1,
        }
    }

    pub(crate) fn cluster_ip(self) -> Ipv4Addr {
        Ipv4Addr::new(10, 96, 0, 10 + self.number())
    }

    /// The nodePort of a port of the service.
    pub(crate) fn node_port(self, service_port: u16) -> u16 {
        30_000 + 100 * u16::from(self.number()) + service_port
    }

    /// The endpoints' node.
    pub(crate) fn node(self) -> String {
        format!("node-{}", 1 + self.number())
    }

    /// The endpoints' addresses.
    pub(crate) fn endpoints(self) -> impl Iterator<Item = Ipv4Addr> {
        (0..ENDPOINTS).map(move |last| Ipv4Addr::new(10, 244, 1 + self.number(), 100 + last))
    }

    fn service(self) -> Service {
        let port = |name, protocol, port, target_port| Port {
            name,
            protocol,
            port,
            target_port,
            node_port: Some(self.node_port(port)),
        };
        let node = self.node();
        Service {
            name: format!("measured-{}", self.number()),
            cluster_ip: self.cluster_ip().into(),
            ports: vec![
                port("short", "tcp", SERVICE_PORT, TARGET_PORT),
                port("stream", "tcp", STREAM_SERVICE_PORT, STREAM_TARGET_PORT),
                port("datagram", "udp", SERVICE_PORT, TARGET_PORT),
            ],
            endpoints: self
                .endpoints()
                .map(|address| Endpoint { address: address.into(), node: node.clone() })
                .collect(),
        }
    }
}

/// This many services. The measured ones are in the middle: a linear search passes half of them before, as on average.
pub(crate) fn services(count: usize) -> Vec<Service> {
    let mut services: Vec<_> = (0..count.saturating_sub(2)).map(other).collect();
    let middle = services.len() / 2;
    services.splice(middle..middle, [Where::Local, Where::Remote].map(Where::service));
    services
}

fn other(number: usize) -> Service {
    let [_, high, middle, low] = (number as u32).to_be_bytes();
    let endpoint = |pod| Endpoint {
        address: Ipv4Addr::new(10, 244, 8 + middle % 128, low / 2 * 2 + pod).into(),
        node: "node-3".to_owned(),
    };
    Service {
        name: format!("other-{number}"),
        cluster_ip: Ipv4Addr::new(10, 97 + high, middle, low).into(),
        ports: vec![Port { name: "http", protocol: "tcp", port: 80, target_port: 8080, node_port: None }],
        endpoints: (0..OTHER_ENDPOINTS).map(endpoint).collect(),
    }
}

/// The facts that a node's rules depend on.
pub(crate) fn node_context(node: usize, address: Ipv4Addr) -> NodeContext {
    NodeContext {
        node: address.into(),
        node_name: format!("node-{}", node + 1),
        cluster_cidr: CLUSTER_CIDR,
        service_cidr: SERVICE_CIDR,
        keeps_ports: false,
    }
}

/// Services and EndpointSlices as a List.
pub(crate) fn manifest(services: &[Service]) -> String {
    let items: Vec<_> = services.iter().flat_map(|service| [object(service), slice(service)]).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items }).to_string()
}

fn object(service: &Service) -> Value {
    let is_node_port = service.ports.iter().any(|port| port.node_port.is_some());
    let ports = service.ports.iter().map(|port| {
        let mut value = json!({
            "name": port.name,
            "protocol": port.protocol.to_uppercase(),
            "port": port.port,
            "targetPort": port.target_port,
        });
        if let Some(node_port) = port.node_port {
            value["nodePort"] = node_port.into();
        }
        value
    });
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": { "name": service.name, "namespace": "default" },
        "spec": {
            "type": if is_node_port { "NodePort" } else { "ClusterIP" },
            "clusterIP": service.cluster_ip,
            "clusterIPs": [service.cluster_ip],
            "ipFamilies": ["IPv4"],
            "ports": ports.collect::<Vec<_>>(),
        },
    })
}

fn slice(service: &Service) -> Value {
    let ports = service.ports.iter().map(|port| {
        json!({ "name": port.name, "protocol": port.protocol.to_uppercase(), "port": port.target_port })
    });
    let endpoints = service.endpoints.iter().map(|endpoint| {
        json!({ "addresses": [endpoint.address], "nodeName": endpoint.node, "conditions": { "ready": true } })
    });
    json!({
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": format!("{}-1", service.name),
            "namespace": "default",
            "labels": { "kubernetes.io/service-name": service.name },
        },
        "addressType": "IPv4",
        "ports": ports.collect::<Vec<_>>(),
        "endpoints": endpoints.collect::<Vec<_>>(),
    })
}

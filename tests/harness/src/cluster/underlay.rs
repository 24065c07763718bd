//! The external network, and how nodes are connected to it.

use anyhow::Result;

use super::{
    Builder, Cluster, Narrow, Netns, Node, NodeDevice, SecondUplink, addresses as addr, shape::NARROW_MTU,
};

/// The parameters every namespace gets before it has devices; devices inherit them.
const COMMON: [(&str, &str); 6] = [
    // No duplicate address detection: addresses work at once.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
    // Not the ports that `SourcePorts` gives out.
    ("ipv4/ip_local_port_range", "45000 60999"),
];

const ROUTER: [(&str, &str); 5] = [
    ("ipv4/ip_forward", "1"),
    ("ipv6/conf/all/forwarding", "1"),
    ("ipv6/conf/default/forwarding", "1"),
    // No host may learn of a shorter way than the one the shape wants.
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
];

/// Sets the parameters of a namespace without devices.
pub(super) fn prepare(builder: &Builder, netns: &Netns) -> Result<()> {
    let rp_filter = builder.rp_filter.to_string();
    netns.sysctl(&COMMON)?;
    netns.sysctl(&[("ipv4/conf/all/rp_filter", &rp_filter), ("ipv4/conf/default/rp_filter", &rp_filter)])
}

/// The router outside, a port to every node, and the client behind it.
pub(super) fn connect_fabric(builder: &Builder, cluster: &Cluster) -> Result<()> {
    let client = &cluster.client.netns;
    for netns in
        [&cluster.fabric, client].into_iter().chain(cluster.nodes.iter().map(|node| &node.host.netns))
    {
        prepare(builder, netns)?;
    }
    cluster.fabric.sysctl(&ROUTER)?;
    let mut lines = vec![
        "link set lo up".to_owned(),
        "link add br0 type bridge".to_owned(),
        format!("link add client type veth peer name eth0 netns {}", client.name()),
        "link set br0 up".to_owned(),
        "link set client up".to_owned(),
        format!("addr add {}/24 dev br0", addr::FABRIC_V4),
        format!("addr add {}/64 dev br0 nodad", addr::FABRIC_V6),
        format!("addr add {}/24 dev client", addr::OUTSIDE_GATEWAY_V4),
        format!("addr add {}/64 dev client nodad", addr::OUTSIDE_GATEWAY_V6),
    ];
    if builder.shape.second != SecondUplink::None {
        lines.push("link add br1 type bridge".to_owned());
        lines.push("link set br1 up".to_owned());
        lines.push(format!("addr add {}/24 dev br1", addr::SECOND_FABRIC_V4));
        lines.push(format!("addr add {}/64 dev br1 nodad", addr::SECOND_FABRIC_V6));
    }
    for node in &cluster.nodes {
        let netns = node.host.netns.name();
        let port = format!("to-{}", node.host.name);
        lines.push(format!("link add {port} type veth peer name eth0 netns {netns}"));
        lines.push(format!("link set {port} master br0 up"));
        if builder.shape.second != SecondUplink::None {
            let port = format!("second-{}", node.host.name);
            lines.push(format!("link add {port} type veth peer name eth1 netns {netns}"));
            lines.push(format!("link set {port} master br1 up"));
        }
    }
    lines.extend(narrow(builder.shape.narrow, cluster.nodes.len()));
    cluster.fabric.ip(&lines)?;
    client.ip(&[
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("addr add {}/24 dev eth0", addr::CLIENT_V4),
        format!("addr add {}/64 dev eth0 nodad", addr::CLIENT_V6),
        format!("route add default via {}", addr::OUTSIDE_GATEWAY_V4),
        format!("route add default via {}", addr::OUTSIDE_GATEWAY_V6),
    ])
}

/// Routes with an MTU: the router then acts as in front of a narrow link.
fn narrow(narrow: Narrow, nodes: usize) -> Vec<String> {
    match narrow {
        Narrow::Nowhere | Narrow::Pods => Vec::new(),
        // To the client only: if the client knew the MTU, the nodes would not have to find it out.
        Narrow::Client => vec![
            format!("route add {} dev client mtu {NARROW_MTU}", addr::CLIENT_V4),
            format!("route add {} dev client mtu {NARROW_MTU}", addr::CLIENT_V6),
        ],
        Narrow::Nodes => {
            let to = |node| {
                let (v4, v6) = (addr::pod_cidr_v4(node), addr::pod_cidr_v6(node));
                [
                    format!("route add {v4} via {} mtu {NARROW_MTU}", addr::node_v4(node)),
                    format!("route add {v6} via {} mtu {NARROW_MTU}", addr::node_v6(node)),
                ]
            };
            (0..nodes).flat_map(to).collect()
        }
    }
}

/// The node's uplinks and the routes over them, except for pods'.
pub(super) fn connect_node(builder: &Builder, node: &Node, nodes: usize) -> Result<()> {
    let Some(index) = node.host.node else {
        return Ok(());
    };
    let (netns, shape) = (&node.host.netns, &builder.shape);
    netns.sysctl(&ROUTER)?;
    let device = shape.node_device();
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    match shape.device {
        NodeDevice::Plain => {}
        NodeDevice::Bridge => {
            lines.push(format!("link add {device} type bridge"));
            lines.push(format!("link set eth0 master {device}"));
            lines.push(format!("link set {device} up"));
        }
        NodeDevice::Macvlan => {
            lines.push(format!("link add link eth0 name {device} type macvlan mode bridge"));
            lines.push(format!("link set {device} up"));
        }
    }
    lines.push(format!("addr add {}/24 dev {device}", node.host.v4));
    lines.push(format!("addr add {}/64 dev {device} nodad", node.host.v6));
    let (gateway_v4, gateway_v6) = match shape.second {
        SecondUplink::Asymmetric => (addr::SECOND_FABRIC_V4, addr::SECOND_FABRIC_V6),
        _ => (addr::FABRIC_V4, addr::FABRIC_V6),
    };
    if shape.second != SecondUplink::None {
        lines.push("link set eth1 up".to_owned());
        lines.push(format!("addr add {}/24 dev eth1", addr::second_v4(index)));
        lines.push(format!("addr add {}/64 dev eth1 nodad", addr::second_v6(index)));
    }
    lines.push(format!("route add default via {gateway_v4}"));
    lines.push(format!("route add default via {gateway_v6}"));
    netns.ip(&lines)?;
    if shape.second == SecondUplink::PolicyRouted {
        netns.ip_with(&["-4"], &policy(&Policy::v4(index), (0..nodes).map(Policy::v4)))?;
        netns.ip_with(&["-6"], &policy(&Policy::v6(index), (0..nodes).map(Policy::v6)))?;
    }
    Ok(())
}

/// The facts of a node for policy routing, in one family.
#[derive(PartialEq, Eq)]
struct Policy {
    /// Its address on the second uplink, the network there, and the gateway.
    second: String,
    link: &'static str,
    gateway: String,
    /// Its first pod, all its pods, all pods of the cluster.
    pod: String,
    pods: String,
    cluster: &'static str,
}

impl Policy {
    fn v4(node: usize) -> Self {
        Self {
            second: addr::second_v4(node).to_string(),
            link: "192.168.98.0/24",
            gateway: addr::SECOND_FABRIC_V4.to_string(),
            pod: addr::pod_v4(node, 0).to_string(),
            pods: addr::pod_cidr_v4(node),
            cluster: addr::CLUSTER_CIDR_V4,
        }
    }

    fn v6(node: usize) -> Self {
        Self {
            second: addr::second_v6(node).to_string(),
            link: "fd00:98::/64",
            gateway: addr::SECOND_FABRIC_V6.to_string(),
            pod: addr::pod_v6(node, 0).to_string(),
            pods: addr::pod_cidr_v6(node),
            cluster: addr::CLUSTER_CIDR_V6,
        }
    }
}

/// Rules by source and by interface, with separate tables.
fn policy(own: &Policy, nodes: impl Iterator<Item = Policy>) -> Vec<String> {
    /// Packets with the second uplink's address or that of the first pod as source.
    const BY_SOURCE: u32 = 100;
    /// Packets that came in by the second uplink.
    const BY_INTERFACE: u32 = 200;
    let Policy { second, link, gateway, pod, cluster, .. } = own;
    let mut lines = vec![
        format!("rule add pref 90 iif eth1 lookup {BY_INTERFACE}"),
        format!("rule add pref 100 to {cluster} lookup main"),
        format!("rule add pref 110 from {second} lookup {BY_SOURCE}"),
        format!("rule add pref 120 from {pod} lookup {BY_SOURCE}"),
        format!("route add {link} dev eth1 table {BY_SOURCE}"),
        format!("route add default via {gateway} dev eth1 table {BY_SOURCE}"),
    ];
    for Policy { second, pods, .. } in nodes.filter(|node| node != own) {
        lines.push(format!("route add {pods} via {second} dev eth1 table {BY_INTERFACE}"));
    }
    lines
}

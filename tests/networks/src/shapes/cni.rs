//! Stand-ins for modes of CNIs, named after the modes that their documentation has, where the shapes of the other files
//! are not these modes already.

use anyhow::Result;

use super::{Shape, routes, tunnels};
use crate::{
    Network,
    ends::{Ends, both},
    openvswitch,
};
use proxy_harness::cluster::{Netns, addresses as addr};

/// Shapes of CNIs whose pods are ports of a bridge.
pub(super) const BRIDGED: &[Shape] = &[
    Shape::new("flannel host-gw (bridged pods)", "route", routes::plain).common(),
    Shape::new("flannel vxlan (bridged pods)", "vxlan", tunnels::vxlan).common(),
    Shape::new("weave (bridged pods, the tunnel is a port)", "vxlan", tunnel_at_bridge)
        .undo(without_tunnel_at_bridge)
        .common(),
];

/// Shapes of CNIs with a route per pod.
pub(super) const ROUTED: &[Shape] = &[
    Shape::new("cilium tunnel", "vxlan", tunnel_behind_veth).undo(remove_tunnels).common(),
    Shape::new("antrea encap (openvswitch)", "openvswitch", tunnel_at_gateway).undo(openvswitch::remove_all),
    Shape::new("aws-vpc-cni secondary interface", "veth", secondary_interface)
        .ipv4_only()
        .undo(one_interface)
        .common(),
];

const GATEWAY: &str = "antrea-gw0";

/// The node's routes to other nodes' pods lead to an internal port, with the other node's gateway as next hop; flows send that into the
/// tunnel. Pods are not ports here: between pod and gateway, a service's packets go through the CNI's tables, not the node's routes.
fn tunnel_at_gateway(network: &Network) -> Result<()> {
    network.each(|ends| {
        vec![
            format!("link add {TUNNEL} type geneve id 1 remote {}", ends.peer4()),
            format!("link set {TUNNEL} up"),
        ]
    })?;
    both()
        .into_iter()
        .try_for_each(|ends| openvswitch::connect_ports(network.node(ends), GATEWAY, TUNNEL))?;
    network.each(|ends| {
        let mut lines = vec![format!("link set {GATEWAY} address {} mtu 1450", ends.mac())];
        lines.extend(ends.numbered(GATEWAY));
        lines.extend(ends.neighbours(GATEWAY));
        lines.extend(ends.routes_via(GATEWAY));
        lines
    })
}

const BRIDGE: &str = "cni0";

/// One Ethernet for all pods, as Weave Net's documentation has it ("How Weave Net Works"): each node's bridge has its pods and a tunnel.
fn tunnel_at_bridge(network: &Network) -> Result<()> {
    network.each(|ends| {
        vec![
            format!(
                "link add {TUNNEL} type vxlan id 1 local {} remote {} dstport 6784",
                ends.node4(),
                ends.peer4()
            ),
            format!("link set {TUNNEL} master {BRIDGE} up"),
            format!("route replace {} dev {BRIDGE}", ends.pods4()),
            format!("route replace {} dev {BRIDGE}", ends.pods6()),
        ]
    })?;
    pods_routes(network, "add", &[addr::CLUSTER_CIDR_V4, addr::CLUSTER_CIDR_V6])
}

/// Pods reach all others without a router.
fn pods_routes(network: &Network, verb: &str, nets: &[&str]) -> Result<()> {
    for pod in network.cluster.nodes.iter().flat_map(|node| &node.pods) {
        let lines: Vec<_> = nets.iter().map(|net| format!("route {verb} {net} dev eth0")).collect();
        pod.netns.ip(&lines)?;
    }
    Ok(())
}

fn without_tunnel_at_bridge(network: &Network) -> Result<()> {
    network.each(|ends| {
        vec![
            format!("route del {} dev {BRIDGE}", ends.pods4()),
            format!("route del {} dev {BRIDGE}", ends.pods6()),
        ]
    })?;
    pods_routes(network, "del", &[addr::CLUSTER_CIDR_V4, addr::CLUSTER_CIDR_V6])
}

const HOST: &str = "cilium_host";
const INNER: &str = "cilium_net";
const TUNNEL: &str = "tunnel0";

fn inner_name(network: &Network, ends: Ends) -> String {
    format!("{}-tunnel-{}", network.cluster.name(), ends.own + 1)
}

/// The node has one veth for everything that is for pods of the other nodes. Here a namespace takes packets there into
/// the tunnel, with a device whose packets are sent by the node. The node cannot see it.
fn tunnel_behind_veth(network: &Network) -> Result<()> {
    for ends in both() {
        let (node, peer) = (network.node(ends), ends.reversed());
        let inner = Netns::create(&inner_name(network, ends))?;
        inner.sysctl(&[
            ("ipv4/ip_forward", "1"),
            ("ipv6/conf/all/forwarding", "1"),
            ("ipv6/conf/default/accept_dad", "0"),
            ("ipv4/conf/all/rp_filter", "0"),
            ("ipv4/conf/default/rp_filter", "0"),
        ])?;
        let mut lines = vec![
            format!(
                "link add {HOST} address 02:00:00:00:03:01 type veth peer name {INNER} netns {}",
                inner.name()
            ),
            format!(
                "link add {TUNNEL} address {} type vxlan id 9 local {} remote {} dstport 8472",
                ends.mac(),
                ends.node4(),
                ends.peer4()
            ),
            format!("link set {TUNNEL} netns {}", inner.name()),
        ];
        lines.extend(ends.numbered(HOST));
        lines.push(format!("route replace {} dev {HOST} src {}", ends.pods4(), ends.tunnel4()));
        lines.push(format!("route replace {} via fe80::9 dev {HOST} src {}", ends.pods6(), ends.tunnel6()));
        node.ip(&lines)?;
        // It answers for everything, as the programs at cilium_host do.
        let (own4, own6) = (ends.reversed().pods4(), ends.reversed().pods6());
        inner.ip(&[
            "link set lo up".to_owned(),
            format!("link set {INNER} up"),
            format!("link set {TUNNEL} up"),
            format!("addr add fe80::9/64 dev {INNER} nodad"),
            format!("addr add fe80::2:{}/64 dev {TUNNEL} nodad", ends.own + 1),
            format!("neigh add fe80::2:{} lladdr {} dev {TUNNEL} nud permanent", peer.own + 1, peer.mac()),
            format!("neigh add 169.254.2.{} lladdr {} dev {TUNNEL} nud permanent", peer.own + 1, peer.mac()),
            format!("neigh add 169.254.3.1 lladdr 02:00:00:00:03:01 dev {INNER} nud permanent"),
            format!("neigh add fe80::3:1 lladdr 02:00:00:00:03:01 dev {INNER} nud permanent"),
            format!("route add {own4} via 169.254.3.1 dev {INNER} onlink"),
            format!("route add {own6} via fe80::3:1 dev {INNER} onlink"),
            format!("route add {} via 169.254.2.{} dev {TUNNEL} onlink", ends.pods4(), peer.own + 1),
            format!("route add {} via fe80::2:{} dev {TUNNEL} onlink", ends.pods6(), peer.own + 1),
        ])?;
        inner.sysctl(&[
            (&format!("ipv4/conf/{INNER}/proxy_arp"), "1"),
            (&format!("ipv4/neigh/{INNER}/proxy_delay"), "0"),
        ])?;
    }
    Ok(())
}

fn remove_tunnels(network: &Network) -> Result<()> {
    for ends in both() {
        let name = inner_name(network, ends);
        if Netns::list()?.contains(&name) {
            Netns::remove(&name)?;
        }
    }
    Ok(())
}

const SECONDARY_GATEWAY: &str = "192.168.98.1";

/// All traffic of the pod is by a second interface, selected by a rule for its address: without a tunnel, and the router
/// knows each pod. The first interface has a loose source check, as that CNI sets it.
fn secondary_interface(network: &Network) -> Result<()> {
    let fabric = &network.cluster.fabric;
    fabric.ip(&[
        "link add br1 type bridge".to_owned(),
        "link set br1 up".to_owned(),
        format!("addr add {SECONDARY_GATEWAY}/24 dev br1"),
    ])?;
    for ends in both() {
        let (name, node, pod) = (ends.name(), network.node(ends), &network.cluster.nodes[ends.own].pods[0]);
        let own = addr::second_v4(ends.own);
        fabric.ip(&[
            format!("link add second-{name} type veth peer name eth1 netns {}", node.name()),
            format!("link set second-{name} master br1 up"),
            format!("route add {} via {own} dev br1 onlink", pod.v4),
        ])?;
        node.sysctl(&[("ipv4/conf/eth0/rp_filter", "2")])?;
        node.ip(&[
            "link set eth1 up".to_owned(),
            format!("addr add {own}/24 dev eth1"),
            format!("route add default via {SECONDARY_GATEWAY} dev eth1 table 2"),
            format!("rule add pref 512 to {} lookup main", pod.v4),
            format!("rule add pref 1536 from {} lookup 2", pod.v4),
        ])?;
    }
    Ok(())
}

fn one_interface(network: &Network) -> Result<()> {
    both().into_iter().try_for_each(|ends| {
        let node = network.node(ends);
        node.sysctl(&[("ipv4/conf/eth0/rp_filter", "1")])?;
        node.ip(&["rule del pref 512".to_owned(), "rule del pref 1536".to_owned()])
    })
}

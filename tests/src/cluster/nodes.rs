//! Devices, addresses, routes and netfilter rules, as a node installer and a CNI would leave them.

use std::path::Path;

use anyhow::{Context, Result};

use super::{Builder, Cluster, Netns, Node, PodNetwork, addresses as addr, netns::pipe};

/// The gateway address that routed pods use; nobody has it, the node answers for it by proxy ARP.
const LINK_LOCAL_GATEWAY: &str = "169.254.1.1";

/// The letter of a pod on its node.
pub(super) fn letter(pod: usize) -> char {
    char::from(b'a' + pod as u8)
}

/// The parameters every namespace gets before it has devices; devices inherit them.
const COMMON: [(&str, &str); 5] = [
    // No duplicate address detection: addresses work at once.
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/accept_ra", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/disable_ipv6", "0"),
];

const ROUTER: [(&str, &str); 3] =
    [("ipv4/ip_forward", "1"), ("ipv6/conf/all/forwarding", "1"), ("ipv6/conf/default/forwarding", "1")];

/// The router outside, a port to every node, and the client behind it.
pub(super) fn connect_fabric(cluster: &Cluster) -> Result<()> {
    let client = &cluster.client.netns;
    cluster.fabric.sysctl(&COMMON)?;
    cluster.fabric.sysctl(&ROUTER)?;
    client.sysctl(&COMMON)?;
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
    for node in &cluster.nodes {
        node.place.netns.sysctl(&COMMON)?;
        let port = format!("to-{}", node.place.name);
        lines.push(format!("link add {port} type veth peer name eth0 netns {}", node.place.netns.name()));
        lines.push(format!("link set {port} master br0 up"));
    }
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

/// The node's uplink, routes, pods and netfilter rules.
pub(super) fn connect_node(builder: &Builder, node: &Node, nodes: usize) -> Result<()> {
    let Some(index) = node.place.node else {
        return Ok(());
    };
    let netns = &node.place.netns;
    let rp_filter = builder.rp_filter.to_string();
    netns.sysctl(&ROUTER)?;
    netns.sysctl(&[
        ("ipv4/conf/all/rp_filter", &rp_filter),
        ("ipv4/conf/default/rp_filter", &rp_filter),
        ("ipv4/conf/eth0/rp_filter", &rp_filter),
    ])?;
    if Path::new("/proc/sys/net/bridge").exists() {
        let on = if builder.bridge_nf_call { "1" } else { "0" };
        netns.sysctl(&[("bridge/bridge-nf-call-iptables", on), ("bridge/bridge-nf-call-ip6tables", on)])?;
    }

    let mut lines = vec![
        "link set lo up".to_owned(),
        "link set eth0 up".to_owned(),
        format!("addr add {}/24 dev eth0", node.place.v4),
        format!("addr add {}/64 dev eth0 nodad", node.place.v6),
        format!("route add default via {}", addr::FABRIC_V4),
        format!("route add default via {}", addr::FABRIC_V6),
    ];
    for other in (0..nodes).filter(|other| *other != index) {
        lines.push(format!("route add {} via {}", addr::pod_cidr_v4(other), addr::node_v4(other)));
        lines.push(format!("route add {} via {}", addr::pod_cidr_v6(other), addr::node_v6(other)));
    }
    if builder.pods == PodNetwork::Bridged {
        lines.push("link add cni0 type bridge".to_owned());
        lines.push("link set cni0 up".to_owned());
        lines.push(format!("addr add {}/24 dev cni0", addr::pod_gateway_v4(index)));
        lines.push(format!("addr add {}/64 dev cni0 nodad", addr::pod_gateway_v6(index)));
    }
    for (number, pod) in node.pods.iter().enumerate() {
        pod.netns.sysctl(&COMMON)?;
        let veth = format!("veth-{}", letter(number));
        lines.push(format!("link add {veth} type veth peer name eth0 netns {}", pod.netns.name()));
        match builder.pods {
            PodNetwork::Bridged => lines.push(format!("link set {veth} master cni0 up")),
            PodNetwork::Routed => {
                lines.push(format!("link set {veth} up"));
                lines.push(format!("addr add fe80::1/64 dev {veth} nodad"));
                lines.push(format!("route add {}/32 dev {veth} scope link src {}", pod.v4, node.place.v4));
                lines.push(format!("route add {}/128 dev {veth} src {}", pod.v6, node.place.v6));
            }
        }
    }
    netns.ip(&lines)?;
    for (number, pod) in node.pods.iter().enumerate() {
        if builder.pods == PodNetwork::Routed {
            let veth = letter(number);
            netns.sysctl(&[
                (&format!("ipv4/conf/veth-{veth}/proxy_arp"), "1"),
                (&format!("ipv4/neigh/veth-{veth}/proxy_delay"), "0"),
            ])?;
        }
        pod.netns.ip(&pod_lines(builder.pods, index, pod))?;
    }
    netns.nft(&cni_rules(index))?;
    Ok(())
}

fn pod_lines(network: PodNetwork, node: usize, pod: &super::Place) -> Vec<String> {
    let mut lines = vec!["link set lo up".to_owned(), "link set eth0 up".to_owned()];
    match network {
        PodNetwork::Routed => lines.extend([
            format!("addr add {}/32 dev eth0", pod.v4),
            format!("addr add {}/128 dev eth0 nodad", pod.v6),
            format!("route add {LINK_LOCAL_GATEWAY} dev eth0 scope link"),
            format!("route add default via {LINK_LOCAL_GATEWAY} dev eth0"),
            "route add default via fe80::1 dev eth0".to_owned(),
        ]),
        PodNetwork::Bridged => lines.extend([
            format!("addr add {}/24 dev eth0", pod.v4),
            format!("addr add {}/64 dev eth0 nodad", pod.v6),
            format!("route add default via {}", addr::pod_gateway_v4(node)),
            format!("route add default via {}", addr::pod_gateway_v6(node)),
        ]),
    }
    lines
}

/// Masquerade for pods that talk to the world, and a firewall that drops what conntrack cannot follow.
fn cni_rules(node: usize) -> String {
    format!(
        "table inet cni {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {v4} ip daddr != {all_v4} counter masquerade
                ip6 saddr {v6} ip6 daddr != {all_v6} counter masquerade
            }}
            chain forward {{
                type filter hook forward priority filter; policy accept;
                ct state invalid counter drop
            }}
        }}",
        v4 = addr::pod_cidr_v4(node),
        v6 = addr::pod_cidr_v6(node),
        all_v4 = addr::CLUSTER_CIDR_V4,
        all_v6 = addr::CLUSTER_CIDR_V6,
    )
}

/// The counter of that drop.
pub(super) fn invalid_packets(netns: &Netns) -> Result<u64> {
    let text = pipe(netns.command("nft")?.args(["list", "chain", "inet", "cni", "forward"]), "")?;
    let rule = text.lines().find(|line| line.contains("ct state invalid")).context("no such rule")?;
    let mut words = rule.split_whitespace().skip_while(|word| *word != "packets");
    words.nth(1).context("no counter")?.parse().context(rule.to_owned())
}

/// All rules, without counters.
pub(super) fn rules(netns: &Netns) -> Result<String> {
    pipe(netns.command("nft")?.args(["--stateless", "list", "ruleset"]), "")
}

//! Pods and netfilter rules of a node, as a CNI would leave them.

use std::path::Path;

use anyhow::{Context, Result};

use super::{
    Builder, Netns, Node, Overlay, PodNetwork, addresses as addr, netns::pipe, overlay, underlay::prepare,
};

/// The gateway address that routed pods use; no interface has it, the node answers for it by proxy ARP.
const LINK_LOCAL_GATEWAY: &str = "169.254.1.1";

/// The letter of a pod on its node.
pub(super) fn letter(pod: usize) -> char {
    char::from(b'a' + pod as u8)
}

/// The node's pods, its routes to those of other nodes, and netfilter rules.
pub(super) fn connect_pods(builder: &Builder, node: &Node, nodes: usize) -> Result<()> {
    let Some(index) = node.host.node else {
        return Ok(());
    };
    let (netns, shape) = (&node.host.netns, &builder.shape);
    if Path::new("/proc/sys/net/bridge").exists() {
        let on = if builder.bridge_nf_call { "1" } else { "0" };
        netns.sysctl(&[("bridge/bridge-nf-call-iptables", on), ("bridge/bridge-nf-call-ip6tables", on)])?;
    }
    let mtu = shape.pod_mtu();
    let mut lines = Vec::new();
    if shape.pods == PodNetwork::Bridged {
        lines.push("link add cni0 type bridge".to_owned());
        lines.push(format!("link set cni0 mtu {mtu} up"));
        lines.push(format!("addr add {}/24 dev cni0", addr::pod_gateway_v4(index)));
        lines.push(format!("addr add {}/64 dev cni0 nodad", addr::pod_gateway_v6(index)));
    }
    for (number, pod) in node.pods.iter().enumerate() {
        prepare(builder, &pod.netns)?;
        let veth = format!("veth-{}", letter(number));
        let peer = pod.netns.name();
        lines.push(format!("link add {veth} mtu {mtu} type veth peer name eth0 mtu {mtu} netns {peer}"));
        match shape.pods {
            PodNetwork::Bridged => lines.push(format!("link set {veth} master cni0 up")),
            PodNetwork::Routed => {
                lines.push(format!("link set {veth} up"));
                lines.push(format!("addr add fe80::1/64 dev {veth} nodad"));
                lines.push(format!("route add {}/32 dev {veth} scope link src {}", pod.v4, node.host.v4));
                lines.push(format!("route add {}/128 dev {veth} src {}", pod.v6, node.host.v6));
            }
        }
    }
    if shape.overlay == Overlay::None {
        for other in (0..nodes).filter(|other| *other != index) {
            let (device, v4, v6) = shape.way_to_pods(other);
            lines.push(format!("route add {} via {v4} dev {device}", addr::pod_cidr_v4(other)));
            lines.push(format!("route add {} via {v6} dev {device}", addr::pod_cidr_v6(other)));
        }
    }
    netns.ip(&lines)?;
    if shape.overlay != Overlay::None {
        overlay::connect(shape, netns, index, nodes)?;
    }
    for (number, pod) in node.pods.iter().enumerate() {
        if shape.pods == PodNetwork::Routed {
            let veth = letter(number);
            netns.sysctl(&[
                (&format!("ipv4/conf/veth-{veth}/proxy_arp"), "1"),
                (&format!("ipv4/neigh/veth-{veth}/proxy_delay"), "0"),
            ])?;
        }
        pod.netns.ip(&pod_lines(shape.pods, index, pod))?;
    }
    netns.nft(&cni_rules(index, builder.masquerade.statement()))?;
    Ok(())
}

fn pod_lines(network: PodNetwork, node: usize, pod: &super::Host) -> Vec<String> {
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

/// Masquerade for pods that talk to external hosts, and a firewall that drops packets that conntrack cannot follow.
///
/// Routers also send ICMP errors about fragments other than the first, and no NAT can assign them to a connection: such
/// ICMP errors are INVALID without any service as well, and are counted apart.
fn cni_rules(node: usize, masquerade: &str) -> String {
    format!(
        "table inet cni {{
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                ip saddr {v4} ip daddr != {all_v4} counter {masquerade}
                ip6 saddr {v6} ip6 daddr != {all_v6} counter {masquerade}
            }}
            chain forward {{
                type filter hook forward priority filter; policy accept;
                ct state invalid meta l4proto {{ tcp, udp, sctp }} counter drop
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

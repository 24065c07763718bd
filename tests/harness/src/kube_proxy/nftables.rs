//! The shape of kube-proxy's nftables mode, of 1.36: one rule per service port, which chooses an endpoint by a map.

use std::{fmt::Write as _, net::SocketAddr};

use super::{NodeContext, Service, service_ports};

/// A script for `nft -f` that replaces the table.
pub fn nftables(node_context: &NodeContext, services: &[Service]) -> String {
    let (family, address) =
        if node_context.node.is_ipv4() { ("ip", "ipv4_addr") } else { ("ip6", "ipv6_addr") };
    let mut chains = String::new();
    let (mut service_ips, mut node_ports, mut hairpins) = (Vec::new(), Vec::new(), Vec::new());
    for (number, service, port) in service_ports(services) {
        let protocol = port.protocol;
        let name = format!("{number:08}-default/{}/{protocol}/{}", service.name, port.name);
        service_ips
            .push(format!("{} . {protocol} . {} : goto service-{name}", service.cluster_ip, port.port));
        if let Some(node_port) = port.node_port {
            node_ports.push(format!("{protocol} . {node_port} : goto external-{name}"));
            let _ = writeln!(
                chains,
                "chain external-{name} {{\nmeta mark set meta mark or 0x4000\ngoto service-{name}\n}}"
            );
        }
        let dnat = match service.endpoints.as_slice() {
            [one] => format!("dnat to {}", SocketAddr::new(one.address, port.target_port)),
            many => {
                let numbered = many.iter().enumerate().map(|(number, endpoint)| {
                    format!("{number} : {} . {}", endpoint.address, port.target_port)
                });
                format!(
                    "dnat {family} addr . port to numgen random mod {} map {{ {} }}",
                    many.len(),
                    numbered.collect::<Vec<_>>().join(", ")
                )
            }
        };
        let _ = writeln!(chains, "chain service-{name} {{\nmeta l4proto {protocol} {dnat}\n}}");
        for endpoint in service.endpoints.iter().filter(|endpoint| endpoint.node == node_context.node_name) {
            let address = endpoint.address;
            hairpins.push(format!("{address} . {address} . {protocol} . {}", port.target_port));
        }
    }
    // Service ports of one service may share endpoints.
    hairpins.sort_unstable();
    hairpins.dedup();
    let cluster_ips: Vec<_> = services.iter().map(|service| service.cluster_ip.to_string()).collect();
    let mut text = format!(
        "add table {family} kube-proxy\ndelete table {family} kube-proxy\ntable {family} kube-proxy {{\n"
    );
    text += &elements("set", "cluster-ips", address, &cluster_ips);
    text += &elements("set", "nodeport-ips", address, &[node_context.node.to_string()]);
    let hairpin = format!("{address} . {address} . inet_proto . inet_service");
    text += &elements("set", "hairpin-connections", &hairpin, &hairpins);
    let by_address = &format!("{address} . inet_proto . inet_service : verdict");
    let by_port = "inet_proto . inet_service : verdict";
    text += &elements("map", "no-endpoint-services", by_address, &[]);
    text += &elements("map", "no-endpoint-nodeports", by_port, &[]);
    text += &elements("map", "firewall-ips", by_address, &[]);
    text += &chains;
    text += &elements("map", "service-ips", by_address, &service_ips);
    text += &elements("map", "service-nodeports", by_port, &node_ports);
    text + &base(node_context, family) + "}\n"
}

fn elements(kind: &str, name: &str, of: &str, elements: &[String]) -> String {
    let mut text = format!("{kind} {name} {{\ntype {of}\n");
    if !elements.is_empty() {
        let _ = writeln!(text, "elements = {{ {} }}", elements.join(",\n"));
    }
    text + "}\n"
}

/// The part that does not depend on services.
fn base(node_context: &NodeContext, family: &str) -> String {
    let NodeContext { cluster_cidr, service_cidr, .. } = node_context;
    let masquerade = if node_context.keeps_ports { "masquerade" } else { "masquerade fully-random" };
    format!(
        "chain firewall-check {{
            {family} daddr . meta l4proto . th dport vmap @firewall-ips
        }}
        chain reject-chain {{
            reject
        }}
        chain service-endpoints-check {{
            {family} daddr . meta l4proto . th dport vmap @no-endpoint-services
        }}
        chain nodeport-endpoints-check {{
            {family} daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
        }}
        chain cluster-ips-check {{
            {family} daddr @cluster-ips reject
            {family} daddr {{ {service_cidr} }} drop
        }}
        chain services {{
            {family} daddr @cluster-ips {family} saddr != {cluster_cidr} meta mark set meta mark or 0x4000
            {family} daddr . meta l4proto . th dport vmap @service-ips
            {family} daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
        }}
        chain masquerading {{
            meta mark and 0x4000 != 0 meta mark set meta mark xor 0x4000 {masquerade}
            ct status dnat {family} saddr . {family} daddr . meta l4proto . th dport @hairpin-connections {masquerade}
        }}
        chain filter-prerouting-pre-dnat {{
            type filter hook prerouting priority -110; policy accept;
            ct state new jump firewall-check
        }}
        chain filter-output-pre-dnat {{
            type filter hook output priority -110; policy accept;
            ct state new jump firewall-check
        }}
        chain filter-input {{
            type filter hook input priority 0; policy accept;
            ct state new jump nodeport-endpoints-check
            ct state new jump service-endpoints-check
        }}
        chain filter-forward {{
            type filter hook forward priority 0; policy accept;
            ct state new jump service-endpoints-check
            ct state new jump cluster-ips-check
        }}
        chain filter-output {{
            type filter hook output priority 0; policy accept;
            ct state new jump service-endpoints-check
            ct state new jump cluster-ips-check
        }}
        chain nat-prerouting {{
            type nat hook prerouting priority -100; policy accept;
            jump services
        }}
        chain nat-output {{
            type nat hook output priority -100; policy accept;
            jump services
        }}
        chain nat-postrouting {{
            type nat hook postrouting priority 100; policy accept;
            jump masquerading
        }}
        "
    )
}

//! The shape of kube-proxy's iptables mode: a list of all service ports, and for each of them a list of its endpoints.

use std::{fmt::Write as _, net::SocketAddr};

use super::{NodeContext, Service, service_ports};

/// Text for `iptables-restore` or `ip6tables-restore`, of the tables `filter` and `nat`.
pub fn iptables(node_context: &NodeContext, services: &[Service]) -> String {
    let mut chains = String::new();
    // In the order in which rules must come: chains that others jump to stand apart.
    let (mut portals, mut node_ports, mut rules) = (String::new(), String::new(), String::new());
    for (number, service, port) in service_ports(services) {
        let protocol = port.protocol;
        let matches = format!("-m {protocol} -p {protocol}");
        let title = format!("default/{}:{}", service.name, port.name);
        // Chains are named by 16 letters of a hash.
        let (svc, ext) = (format!("KUBE-SVC-{number:016}"), format!("KUBE-EXT-{number:016}"));
        let _ = writeln!(chains, ":{svc} - [0:0]");
        let _ = writeln!(
            portals,
            "-A KUBE-SERVICES -m comment --comment \"{title} cluster IP\" {matches} -d {} --dport {} -j {svc}",
            service.cluster_ip, port.port
        );
        if let Some(node_port) = port.node_port {
            let _ = writeln!(chains, ":{ext} - [0:0]");
            let _ = writeln!(
                node_ports,
                "-A KUBE-NODEPORTS -m comment --comment \"{title}\" {matches} --dport {node_port} -j {ext}"
            );
            let _ = writeln!(
                rules,
                "-A {ext} -m comment --comment \"masquerade traffic for {title} external destinations\" -j KUBE-MARK-MASQ\n\
                 -A {ext} -j {svc}"
            );
        }
        let _ = writeln!(
            rules,
            "-A {svc} -m comment --comment \"{title} cluster IP\" {matches} -d {} --dport {} ! -s {} -j KUBE-MARK-MASQ",
            service.cluster_ip, port.port, node_context.cluster_cidr
        );
        let count = service.endpoints.len();
        for (index, endpoint) in service.endpoints.iter().enumerate() {
            let (address, target) = (endpoint.address, port.target_port);
            let sep = format!("KUBE-SEP-{number:012}{index:04}");
            let to = SocketAddr::new(address, target);
            let comment = format!("-m comment --comment \"{title} -> {to}\"");
            let left = count - index;
            // The last one takes the rest.
            let chance = if left == 1 {
                String::new()
            } else {
                format!("-m statistic --mode random --probability {:.10} ", 1.0 / left as f64)
            };
            let _ = writeln!(chains, ":{sep} - [0:0]");
            let _ = writeln!(rules, "-A {svc} {comment} {chance}-j {sep}");
            let _ = writeln!(rules, "-A {sep} -m comment --comment {title} -s {address} -j KUBE-MARK-MASQ");
            let _ = writeln!(
                rules,
                "-A {sep} -m comment --comment {title} {matches} -j DNAT --to-destination {to}"
            );
        }
    }
    let local = if node_context.node.is_ipv4() { LOCAL_NETWORK } else { "" };
    format!(
        "{FILTER}{local}{FORWARD}{NAT_CHAINS}{chains}{NAT_RULES}{portals}{LAST_PORTAL}{node_ports}{rules}COMMIT\n"
    )
}

/// kube-proxy counts the packets that it drops for being INVALID with nfacct, where the kernel has it; not here.
const FILTER: &str = "\
*filter
:INPUT ACCEPT [0:0]
:FORWARD ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-SERVICES - [0:0]
:KUBE-EXTERNAL-SERVICES - [0:0]
:KUBE-FIREWALL - [0:0]
:KUBE-FORWARD - [0:0]
:KUBE-PROXY-FIREWALL - [0:0]
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A INPUT -m comment --comment \"kubernetes health check service ports\" -j KUBE-NODEPORTS
-A INPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A INPUT -j KUBE-FIREWALL
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A FORWARD -m conntrack --ctstate NEW -m comment --comment \"kubernetes externally-visible service portals\" -j KUBE-EXTERNAL-SERVICES
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes load balancer firewall\" -j KUBE-PROXY-FIREWALL
-A OUTPUT -m conntrack --ctstate NEW -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -j KUBE-FIREWALL
";

/// kubelet's, of IPv4 alone.
const LOCAL_NETWORK: &str = "\
-A KUBE-FIREWALL ! -s 127.0.0.0/8 -d 127.0.0.0/8 -m comment --comment \"block incoming localnet connections\" -m conntrack ! --ctstate RELATED,ESTABLISHED,DNAT -j DROP
";

const FORWARD: &str = "\
-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding rules\" -m mark --mark 0x4000/0x4000 -j ACCEPT
-A KUBE-FORWARD -m comment --comment \"kubernetes forwarding conntrack rule\" -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
";

const NAT_CHAINS: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
:INPUT ACCEPT [0:0]
:OUTPUT ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-NODEPORTS - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-SERVICES - [0:0]
";

const NAT_RULES: &str = "\
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -m comment --comment \"kubernetes service traffic requiring SNAT\" -j MASQUERADE --random-fully
";

const LAST_PORTAL: &str = "\
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports; NOTE: this must be the last rule in this chain\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
";

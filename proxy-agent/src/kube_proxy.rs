//! kube-proxy's objects on a node, by its names, and which of its settings have no effect here.

pub mod unused;

/// The table of the nftables mode, of `ip` and of `ip6`.
pub(crate) const NFT_TABLE: &str = "kube-proxy";

/// The interface of the IPVS mode, which has the addresses of all Services.
pub(crate) const IPVS_INTERFACE: &str = "kube-ipvs0";

/// Chains of the iptables and IPVS modes. kubelet's are not among them: KUBE-FIREWALL, KUBE-KUBELET-CANARY, KUBE-IPTABLES-HINT,
/// KUBE-MARK-DROP.
const CHAINS: &[&str] = &[
    "KUBE-SERVICES",
    "KUBE-EXTERNAL-SERVICES",
    "KUBE-NODEPORTS",
    "KUBE-FORWARD",
    "KUBE-PROXY-FIREWALL",
    "KUBE-PROXY-CANARY",
    POSTROUTING,
    MARK_MASQ,
    // IPVS.
    "KUBE-NODE-PORT",
    "KUBE-LOAD-BALANCER",
    "KUBE-SOURCE-RANGES-FIREWALL",
    "KUBE-IPVS-FILTER",
    "KUBE-IPVS-OUT-FILTER",
];

/// Chains of Services and endpoints, with a hash behind. `KUBE-EXT-` was called `KUBE-XLB-` before Kubernetes 1.24.
const PREFIXES: &[&str] = &["KUBE-SVC-", "KUBE-SVL-", "KUBE-EXT-", "KUBE-FW-", "KUBE-SEP-", "KUBE-XLB-"];

/// Programs of others may use this chain: it marks packets for masquerading.
pub(crate) const MARK_MASQ: &str = "KUBE-MARK-MASQ";
/// Masquerades packets with the mark.
pub(crate) const POSTROUTING: &str = "KUBE-POSTROUTING";

/// Whether a chain of iptables is kube-proxy's.
pub(crate) fn has_chain(chain: &str) -> bool {
    CHAINS.contains(&chain) || PREFIXES.iter().any(|prefix| chain.starts_with(prefix))
}

/// Whether a process, by its name and its program and arguments, is kube-proxy. An agent in its place may have been given its name as an
/// argument.
pub(crate) fn is_process(name: &str, arguments: &[String]) -> bool {
    const NAME: &str = "kube-proxy";
    let program = arguments.first().map(|path| path.rsplit('/').next().unwrap_or(path));
    name != "proxy-agent" && (name == NAME || program == Some(NAME))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chains_by_their_names() {
        for chain in [
            "KUBE-SERVICES",
            "KUBE-SVC-TCOU7JCQXEZGVUNU",
            "KUBE-SVL-TCOU7JCQXEZGVUNU",
            "KUBE-SEP-AYQ4PW4U2WTYYL6C",
            "KUBE-EXT-TCOU7JCQXEZGVUNU",
            "KUBE-FW-TCOU7JCQXEZGVUNU",
            "KUBE-PROXY-CANARY",
            "KUBE-IPVS-FILTER",
        ] {
            assert!(has_chain(chain), "{chain}");
        }
        for chain in [
            "KUBE-FIREWALL",
            "KUBE-KUBELET-CANARY",
            "KUBE-MARK-DROP",
            "KUBE-IPTABLES-HINT",
            "KUBE-ROUTER-INPUT",
            "CNI-HOSTPORT-DNAT",
            "PREROUTING",
            "cali-PREROUTING",
        ] {
            assert!(!has_chain(chain), "{chain}");
        }
    }

    #[test]
    fn process_by_name_and_command_line() {
        for (name, arguments, expected) in [
            ("kube-proxy", "/usr/local/bin/kube-proxy --config=/c", true),
            ("kube-proxy", "", true),
            ("exe", "/usr/bin/kube-proxy --v=2", true),
            ("proxy-agent", "kube-proxy --config /c", false),
            ("bash", "bash kube-proxy", false),
            ("kube-proxy-test", "/kube-proxy-test", false),
        ] {
            let arguments: Vec<String> = arguments.split(' ').map(str::to_owned).collect();
            assert_eq!(is_process(name, &arguments), expected, "{name} {arguments:?}");
        }
    }
}

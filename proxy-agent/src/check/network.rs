//! Interfaces and sysctls: uplinks, forwarding, source checks, MTU.

use std::{collections::BTreeSet, fs, net::IpAddr};

use super::finding::Finding;
use crate::net::topology::{Topology, Uplink};

const UPLINKS: &str = "uplinks";
const FORWARDING: &str = "forwarding";
const SOURCES: &str = "rp_filter";
const MTU: &str = "MTU";

fn names(uplinks: &[Uplink]) -> String {
    uplinks.iter().map(|uplink| uplink.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// `is_named`: uplinks were named with `--uplink`.
pub(super) fn assess_uplinks(topology: &Topology, is_named: bool) -> Finding {
    match (topology.network_warnings.is_empty(), topology.uplinks.is_empty()) {
        (true, _) => Finding::pass(UPLINKS, names(&topology.uplinks)),
        (false, true) if !is_named && topology.network_warnings.len() == 1 => Finding::warn(
            UPLINKS,
            topology.network_warnings.join("; "),
            "bring the node's interface up, or name it with --uplink; nodePorts are not reached from outside until then",
        ),
        (false, _) => Finding::fail(
            UPLINKS,
            topology.network_warnings.join("; "),
            "correct --uplink, --bind-address or --snat-address; `ip -brief address` lists interfaces and addresses",
        ),
    }
}

/// Addresses of the node that others may send to, and the switches that are off.
pub(super) fn assess_forwarding(addresses: &BTreeSet<IpAddr>, switched_off: &[&str]) -> Finding {
    let has_v6 = addresses.iter().any(|ip| matches!(ip, IpAddr::V6(ip) if !ip.is_unicast_link_local()));
    let has_v4 = addresses.iter().any(IpAddr::is_ipv4);
    let matters = |file: &&&str| if file.contains("/ipv6/") { has_v6 } else { has_v4 };
    let off: Vec<&str> = switched_off.iter().filter(matters).copied().collect();
    if off.is_empty() {
        return Finding::pass(FORWARDING, "on, for each family that the node has addresses of");
    }
    let commands = off.iter().map(|file| {
        let name = file.trim_start_matches("/proc/sys/").replace('/', ".");
        format!("`sysctl -w {name}=1`")
    });
    let commands: Vec<String> = commands.collect();
    Finding::warn(
        FORWARDING,
        format!("{} is 0: nodePorts reach no pod", off.join(" and ")),
        format!("CNI plugins usually set it when they start; else {}", commands.join(", ")),
    )
}

/// `net.ipv4.conf.*.rp_filter` of all interfaces together, and of each uplink; the larger one counts.
#[derive(Debug, Default)]
pub(super) struct SourceChecks {
    all: u8,
    uplinks: Vec<(String, u8)>,
}

pub(super) fn source_checks(uplinks: &[Uplink]) -> SourceChecks {
    let read = |name: &str| {
        let value = fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{name}/rp_filter"));
        value.ok().and_then(|value| value.trim().parse().ok()).unwrap_or_default()
    };
    SourceChecks {
        all: read("all"),
        uplinks: uplinks.iter().map(|uplink| (uplink.name.clone(), read(&uplink.name))).collect(),
    }
}

pub(super) fn assess_source_checks(checks: &SourceChecks) -> Finding {
    const STRICT: u8 = 1;
    let strict: Vec<&str> = checks
        .uplinks
        .iter()
        .filter(|(_, own)| (*own).max(checks.all) == STRICT)
        .map(|(name, _)| name.as_str())
        .collect();
    if strict.is_empty() {
        return Finding::pass(SOURCES, "not strict at any uplink");
    }
    let seen = format!("strict (1) at {}", strict.join(", "));
    if checks.uplinks.len() < 2 {
        return Finding::pass(SOURCES, format!("{seen}, the only uplink"));
    }
    Finding::warn(
        SOURCES,
        seen,
        "with several uplinks, packets that come in by another one than the route back are dropped: `sysctl -w \
         net.ipv4.conf.all.rp_filter=2` \
         checks loosely",
    )
}

pub(super) fn assess_mtu(uplinks: &[Uplink], addresses: &BTreeSet<IpAddr>) -> Finding {
    /// RFC 8200 section 5.
    const LEAST_V6: u32 = 1280;
    let known: Vec<&Uplink> = uplinks.iter().filter(|uplink| uplink.mtu > 0).collect();
    if known.is_empty() {
        return Finding::skipped(MTU, "no uplink was found");
    }
    let list: Vec<String> = known.iter().map(|uplink| format!("{} {}", uplink.name, uplink.mtu)).collect();
    let list = list.join(", ");
    let has_v6 = addresses.iter().any(|ip| matches!(ip, IpAddr::V6(ip) if !ip.is_unicast_link_local()));
    if has_v6 && known.iter().any(|uplink| uplink.mtu < LEAST_V6) {
        return Finding::warn(
            MTU,
            list,
            format!("IPv6 does not work by links of less than {LEAST_V6} bytes: raise the MTU"),
        );
    }
    let (first, all) = (known[0].mtu, &known);
    if all.iter().all(|uplink| uplink.mtu == first) {
        return Finding::pass(MTU, list);
    }
    Finding::pass(
        MTU,
        format!("{list}; they differ: the kernel's stack fragments IPv4 packets that are too long"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::State;

    fn uplink(name: &str, mtu: u32) -> Uplink {
        Uplink {
            index: 2,
            name: name.into(),
            has_link_header: true,
            is_gre: false,
            is_virtual: false,
            bridge: 0,
            may_have_xdp: true,
            sources: Vec::new(),
            mtu,
        }
    }

    fn addresses(texts: &[&str]) -> BTreeSet<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn uplinks_that_are_missing() {
        let topology = |uplinks: &[&str], network_warnings: &[&str]| Topology {
            uplinks: uplinks.iter().map(|name| uplink(name, 1500)).collect(),
            network_warnings: network_warnings.iter().map(|text| (*text).to_owned()).collect(),
            ..Topology::default()
        };
        for (topology, is_named, expected) in [
            (topology(&["eth0"], &[]), false, State::Pass),
            (topology(&[], &["no interface leads off the node"]), false, State::Warn),
            (topology(&[], &["interface `eth9` does not exist"]), true, State::Fail),
            (topology(&["eth0"], &["interface `eth9` does not exist"]), true, State::Fail),
            (topology(&["eth0"], &["no interface has the address 192.0.2.1"]), false, State::Fail),
        ] {
            assert_eq!(
                assess_uplinks(&topology, is_named).state,
                expected,
                "{:?}",
                topology.network_warnings
            );
        }
    }

    #[test]
    fn forwarding_matters_for_families_that_are_there() {
        const V4: &str = "/proc/sys/net/ipv4/ip_forward";
        const V6: &str = "/proc/sys/net/ipv6/conf/all/forwarding";
        for (ips, off, expected) in [
            (&["10.0.0.1"][..], &[][..], State::Pass),
            (&["10.0.0.1"], &[V6], State::Pass),
            (&["10.0.0.1", "fe80::1"], &[V6], State::Pass),
            (&["10.0.0.1", "fd00::1"], &[V6], State::Warn),
            (&["10.0.0.1"], &[V4], State::Warn),
            (&["fd00::1"], &[V4], State::Pass),
        ] {
            assert_eq!(assess_forwarding(&addresses(ips), off).state, expected, "{ips:?} {off:?}");
        }
        let advice = assess_forwarding(&addresses(&["10.0.0.1"]), &[V4]).advice.unwrap();
        assert!(advice.contains("sysctl -w net.ipv4.ip_forward=1"), "{advice}");
    }

    #[test]
    fn strict_source_checks_matter_with_several_uplinks() {
        for (all, uplinks, expected) in [
            (0, &[0, 0][..], State::Pass),
            (1, &[0][..], State::Pass),
            (1, &[0, 0], State::Warn),
            (0, &[0, 1], State::Warn),
            (2, &[1, 1], State::Pass),
            (1, &[2, 2], State::Pass),
        ] {
            let uplinks = uplinks.iter().map(|own| (format!("eth{own}"), *own)).collect();
            let checks = SourceChecks { all, uplinks };
            assert_eq!(assess_source_checks(&checks).state, expected, "{checks:?}");
        }
    }

    #[test]
    fn sizes() {
        for (mtus, ips, expected) in [
            (&[1500][..], &["fd00::1"][..], State::Pass),
            (&[1500, 9000], &["fd00::1"], State::Pass),
            (&[1200], &["fd00::1"], State::Warn),
            (&[1200], &["10.0.0.1", "fe80::1"], State::Pass),
            (&[], &[], State::Skipped),
        ] {
            let uplinks: Vec<Uplink> = mtus.iter().map(|mtu| uplink("eth0", *mtu)).collect();
            assert_eq!(assess_mtu(&uplinks, &addresses(ips)).state, expected, "{mtus:?}");
        }
    }
}

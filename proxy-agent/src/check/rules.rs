//! Rules of netfilter and IPVS: those of kube-proxy, and others that change where packets go.

use std::{collections::BTreeSet, fs};

use super::{finding::Finding, processes::Process};
use crate::{
    kube_proxy::{IPVS_INTERFACE, NFT_TABLE},
    net::{
        interfaces::Interface,
        pods::{
            iptables,
            nftables::{self, ChainName},
        },
    },
};

const KUBE_PROXY: &str = "kube-proxy";
const IPVS: &str = "IPVS";
const NAT: &str = "NAT rules";

/// Chains of kube-proxy in iptables and IPVS mode begin so.
const CHAINS: &str = "KUBE-";
/// The one that both modes have.
const SERVICES: &str = "KUBE-SERVICES";
/// Chains of the CNI plugin portmap: hostPorts.
const HOST_PORTS: &str = "CNI-";

/// Rules and chains in this network namespace.
#[derive(Debug, Default)]
pub(super) struct Facts {
    /// Chains of nftables, those of `iptables-nft` among them.
    chains: BTreeSet<ChainName>,
    /// Rules of nftables that change the destination.
    redirects: BTreeSet<ChainName>,
    /// Whether iptables' own kernel part has kube-proxy's chain.
    has_legacy_chain: bool,
    /// The first rule of iptables' own kernel part that changes the destination.
    legacy_redirect: Option<String>,
    /// IPVS has virtual servers.
    has_virtual_servers: bool,
}

/// # Errors
/// When nftables' rules cannot be listed.
pub(super) fn gather() -> Result<Facts, String> {
    let cannot = |error: std::io::Error| format!("cannot list the rules of nftables: {error}");
    let ipvs = fs::read_to_string("/proc/net/ip_vs").unwrap_or_default();
    Ok(Facts {
        chains: nftables::chains().map_err(cannot)?,
        redirects: nftables::redirects().map_err(cannot)?,
        has_legacy_chain: iptables::has_chain(SERVICES),
        legacy_redirect: iptables::redirect(),
        has_virtual_servers: has_virtual_servers(&ipvs),
    })
}

/// `/proc/net/ip_vs` has three lines of titles.
fn has_virtual_servers(table: &str) -> bool {
    table.lines().skip(3).any(|line| !line.trim().is_empty())
}

fn is_of_kube_proxy(place: &ChainName) -> bool {
    place.table == NFT_TABLE || place.chain.starts_with(CHAINS)
}

pub(super) fn assess_kube_proxy(facts: &Result<Facts, String>, processes: &[Process]) -> Finding {
    let process = processes.iter().find(|process| process.is_kube_proxy());
    let rules = facts.as_ref().ok().and_then(|facts| {
        let of_services = |it: &&ChainName| it.table == NFT_TABLE || it.chain == SERVICES;
        let legacy = || facts.has_legacy_chain.then(|| format!("iptables (legacy), chain {SERVICES}"));
        facts.chains.iter().find(of_services).map(ToString::to_string).or_else(legacy)
    });
    let rules_are_left = "they still translate connections that were made through them. When the agent serves, \
        `proxy-agent migrate` shows them and \
                          `proxy-agent migrate --commit` removes them; open connections live on (docs/migration.md)";
    match (process, rules, facts) {
        (Some(process), ..) => Finding::warn(
            KUBE_PROXY,
            format!("process {} is kube-proxy", process.id),
            "stop it before the agent starts, which listens at the same ports 10249 and 10256: `kubectl -n kube-system delete daemonset \
             kube-proxy` (docs/migration.md)",
        ),
        (None, Some(place), _) => Finding::warn(KUBE_PROXY, format!("rules exist: {place}"), rules_are_left),
        (None, None, Err(why)) => Finding::unknown(KUBE_PROXY, why),
        (None, None, Ok(_)) => Finding::pass(KUBE_PROXY, "no process of it is visible, and it has no rules"),
    }
}

pub(super) fn assess_ipvs(facts: &Result<Facts, String>, interfaces: &[Interface]) -> Finding {
    let has_servers = facts.as_ref().is_ok_and(|facts| facts.has_virtual_servers);
    let interface = interfaces.iter().find(|interface| interface.name == IPVS_INTERFACE);
    let seen = match (interface, has_servers) {
        (None, false) => return Finding::pass(IPVS, "no virtual servers, no kube-ipvs0"),
        (Some(interface), false) => format!("{IPVS_INTERFACE} with {} addresses", interface.addresses.len()),
        (None, true) => "virtual servers".to_owned(),
        (Some(_), true) => format!("virtual servers, and {IPVS_INTERFACE}"),
    };
    let advice = match interface {
        Some(_) => {
            "left by kube-proxy in IPVS mode: `proxy-agent migrate` shows what belongs to it, and removes it with --commit"
        }
        None => "without kube-ipvs0 they cannot be distinguished from those of others: `ipvsadm --list`",
    };
    Finding::warn(IPVS, seen, advice)
}

pub(super) fn assess_nat(facts: &Result<Facts, String>) -> Finding {
    let facts = match facts {
        Ok(facts) => facts,
        Err(why) => return Finding::unknown(NAT, why),
    };
    let (host_ports, others): (Vec<&ChainName>, Vec<&ChainName>) = facts
        .redirects
        .iter()
        .filter(|place| !is_of_kube_proxy(place))
        .partition(|place| place.chain.starts_with(HOST_PORTS));
    let mut places: Vec<String> = others.iter().map(ToString::to_string).collect();
    // These rules have no chains that identify them.
    places.extend(facts.legacy_redirect.clone().filter(|_| !facts.has_legacy_chain));
    if places.is_empty() {
        let seen = if host_ports.is_empty() {
            "none that change the destination"
        } else {
            "hostPorts of the CNI alone"
        };
        return Finding::pass(NAT, seen);
    }
    Finding::warn(
        NAT,
        format!("these change the destination of packets: {}", places.join("; ")),
        "the agent translates before them: a rule for a Service's address or a nodePort does not match any more, and one for an \
         endpoint's address does. Look at them with `nft list ruleset` and `iptables-legacy -t nat -S`",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::finding::State;

    fn places(names: &[(&str, &str)]) -> BTreeSet<ChainName> {
        let place = |(table, chain): &(&str, &str)| ChainName {
            table: (*table).to_owned(),
            chain: (*chain).to_owned(),
        };
        names.iter().map(place).collect()
    }

    #[test]
    fn kube_proxy_by_process_and_rules() {
        let of = |chains: &[(&str, &str)], has_legacy_chain| {
            Ok(Facts { chains: places(chains), has_legacy_chain, ..Facts::default() })
        };
        let running = [Process { id: 7, name: "kube-proxy".into(), ..Process::default() }];
        for (facts, processes, expected, part) in [
            (of(&[("nat", "POSTROUTING")], false), &[][..], State::Pass, "no rules"),
            (of(&[("nat", "KUBE-SERVICES")], false), &[], State::Warn, "KUBE-SERVICES"),
            (of(&[("kube-proxy", "services")], false), &[], State::Warn, "table kube-proxy"),
            (of(&[], true), &[], State::Warn, "legacy"),
            // kubelet makes these.
            (of(&[("mangle", "KUBE-KUBELET-CANARY")], false), &[], State::Pass, "no rules"),
            (of(&[], false), &running, State::Warn, "process 7"),
            (Err("no permission".into()), &[], State::Unknown, "permission"),
        ] {
            let finding = assess_kube_proxy(&facts, processes);
            assert_eq!(finding.state, expected, "{finding:?}");
            assert!(finding.seen.contains(part), "{finding:?}");
        }
    }

    #[test]
    fn what_ipvs_left() {
        let with = |has_virtual_servers| Ok(Facts { has_virtual_servers, ..Facts::default() });
        let interface = |name: &str| Interface { name: name.into(), ..Interface::default() };
        for (facts, name, expected) in [
            (with(false), "eth0", State::Pass),
            (with(false), "kube-ipvs0", State::Warn),
            (with(true), "eth0", State::Warn),
            (with(true), "kube-ipvs0", State::Warn),
        ] {
            assert_eq!(assess_ipvs(&facts, &[interface(name)]).state, expected, "{name}");
        }
        let titles = "IP Virtual Server version 1.2.1 (size=4096)\nProt LocalAddress:Port Scheduler Flags\n  -> RemoteAddress:Port\n";
        assert!(!has_virtual_servers(titles) && !has_virtual_servers(""));
        assert!(has_virtual_servers(&format!("{titles}TCP  0A600001:01BB rr\n")));
    }

    #[test]
    fn rules_of_others_that_change_the_destination() {
        for (redirects, legacy, has_legacy_chain, expected) in [
            (&[][..], None, false, State::Pass),
            (&[("nat", "KUBE-SEP-X"), ("kube-proxy", "x"), ("nat", "CNI-DN-1")], None, false, State::Pass),
            (&[("mesh", "out")], None, false, State::Warn),
            (&[], Some("iptables, table nat, DNAT"), false, State::Warn),
            (&[], Some("iptables, table nat, DNAT"), true, State::Pass),
        ] {
            let legacy_redirect = legacy.map(str::to_owned);
            let facts =
                Facts { redirects: places(redirects), legacy_redirect, has_legacy_chain, ..Facts::default() };
            assert_eq!(assess_nat(&Ok(facts)).state, expected, "{redirects:?} {legacy:?}");
        }
    }
}

//! `debug pods`: by which way each pod is served, and why. Attached programs and exempted sockets are read from the maps and links;
//! the reason is determined again.

use std::{
    collections::{BTreeSet, HashSet},
    net::IpAddr,
};

use anyhow::{Context as _, Result};
use proxy_common::layout::device::DEVICE_UPLINK;
use serde::Serialize;

use crate::{
    datapath::{link_name, maps, pins::Pins},
    net::{
        filters::Direction,
        pods::{self, Pod, Way},
    },
    output::{Row, or_dash},
};

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct PodRow {
    interface: String,
    /// Inode of its network namespace, as `lsns` and `/proc/PID/ns/net` show it.
    namespace: Option<u64>,
    addresses: Vec<IpAddr>,
    served: &'static str,
    why: String,
}

impl Row for PodRow {
    const HEADER: &'static [&'static str] = &["INTERFACE", "NAMESPACE", "ADDRESS", "SERVED BY", "WHY"];

    fn cells(&self) -> Vec<String> {
        let Self { interface, namespace, addresses, served, why } = self;
        vec![
            interface.clone(),
            or_dash(*namespace),
            or_dash(addresses.first()),
            (*served).to_owned(),
            why.clone(),
        ]
    }
}

/// The data path's programs for pods.
struct Programs {
    /// Interfaces that packets are translated at.
    interfaces: HashSet<u32>,
    /// Network namespaces whose sockets are left alone.
    excluded: BTreeSet<u64>,
    /// Pods' sockets are left alone.
    sockets_of_node_only: bool,
}

pub(super) fn read(pins: &Pins) -> Result<Vec<PodRow>> {
    let (mut uplinks, mut interfaces) = (HashSet::new(), HashSet::new());
    for (index, device) in maps::interfaces(pins)?.entries()? {
        let known = if device.flags & DEVICE_UPLINK != 0 { &mut uplinks } else { &mut interfaces };
        known.insert(index);
    }
    let links: HashSet<String> = pins.link_names()?.into_iter().collect();
    // Filters of clsact leave no pins: an interface that the programs treat as a pod's has them.
    if links.iter().any(|name| name.starts_with("tc-")) {
        let has = |index, direction| links.contains(&link_name(index, direction == Direction::Ingress));
        interfaces.retain(|index| has(*index, Direction::Ingress) && has(*index, Direction::Egress));
    }
    let programs = Programs {
        interfaces,
        excluded: maps::packet_pods(pins)?.keys()?.into_iter().collect(),
        sockets_of_node_only: maps::settings(pins)?.sockets_of_node_only != 0,
    };
    let pods = pods::look_once(|index| !uplinks.contains(&index)).context("cannot look at the pods")?;
    Ok(pods.into_iter().map(|pod| row(pod, &programs)).collect())
}

/// Whether the sockets of the pod with this address are left alone.
pub(super) fn has_sockets_left_alone(pins: &Pins, address: IpAddr) -> Result<bool> {
    let excluded = maps::packet_pods(pins)?.keys()?;
    if excluded.is_empty() {
        return Ok(false);
    }
    let pods = pods::look_once(|_| true).context("cannot look at the pods")?;
    let is_excluded = |pod: &Pod| pod.cookie.is_some_and(|cookie| excluded.contains(&cookie));
    Ok(pods.iter().any(|pod| pod.addresses.contains(&address) && is_excluded(pod)))
}

fn row(pod: Pod, programs: &Programs) -> PodRow {
    let packets = programs.interfaces.contains(&pod.index);
    let is_excluded = pod.cookie.is_some_and(|cookie| programs.excluded.contains(&cookie));
    let sockets = !programs.sockets_of_node_only && !is_excluded;
    let served = match (sockets, packets) {
        (true, true) => "sockets, packets",
        (true, false) => "sockets",
        (false, true) => "packets",
        (false, false) => "-",
    };
    let agrees = match pod.reason.way() {
        Way::Sockets => (sockets, packets) == (true, false),
        Way::Packets => packets,
    };
    let why = if agrees {
        pod.reason.to_string()
    } else {
        let others = match pod.reason.way() {
            Way::Sockets => "--pod-datapath, a service of SCTP, or it was served by packets before",
            Way::Packets => "--pod-datapath, or the agent has not seen it yet",
        };
        format!("{others}; itself: {}", pod.reason)
    };
    PodRow { interface: pod.interface, namespace: pod.inode, addresses: pod.addresses, served, why }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::pods::Reason;

    #[test]
    fn both_the_state_and_its_reason() {
        let pod = |index, reason| Pod {
            index,
            interface: format!("veth{index}"),
            inode: Some(7),
            cookie: Some(index.into()),
            addresses: vec!["10.0.0.1".parse().unwrap()],
            reason,
        };
        let programs =
            Programs { interfaces: [2, 3].into(), excluded: [2].into(), sockets_of_node_only: false };
        for (pod, expected) in [
            (pod(1, Reason::Plain), "veth1 7 10.0.0.1 sockets sockets can serve it"),
            (
                pod(2, Reason::NoProcess),
                "veth2 7 10.0.0.1 packets no process of the host is in its network namespace",
            ),
            (
                pod(3, Reason::Plain),
                "veth3 7 10.0.0.1 sockets, packets --pod-datapath, a service of SCTP, or it was served by packets before; \
                 itself: sockets can serve it",
            ),
            (
                pod(4, Reason::NoAddress),
                "veth4 7 10.0.0.1 sockets --pod-datapath, or the agent has not seen it yet; itself: its interface \
                 has no address: a separate network stack",
            ),
        ] {
            assert_eq!(row(pod, &programs).cells().join(" "), expected);
        }
    }
}

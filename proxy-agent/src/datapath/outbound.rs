//! Connections that the node opened before the programs saw it: those of kernel NAT, entered into `outbound_*`.
//!
//! Without that, replies to a pod's packets that kernel masquerade sent from the port of a frontend look like requests, and
//! datagrams that another proxy's rules translate would move to another endpoint.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use proxy_common::{
    V4, V6,
    layout::{
        flow::{FlowKey, LookupPoint, Tuple},
        outbound::{OUTBOUND_ESTABLISHED, OUTBOUND_ONCE, Outbound},
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
};
use tracing::debug;

use super::{maps::MapFamily, pins::Pins};
use crate::{
    clock::Clock,
    model::plan::IpFamily,
    net::{
        conntrack::{self, Connection},
        ports::PortRange,
    },
};

/// Addresses and ports that are ours, and maybe kernel NAT's as well.
#[derive(Clone, Debug)]
pub(crate) struct Ours {
    /// UDP frontends that are not cluster IPs; node ports at each address that serves them.
    pub(crate) frontends: HashSet<SocketAddr>,
    /// Source addresses for connections to remote endpoints.
    pub(crate) snat_sources: BTreeSet<IpAddr>,
    /// Source ports for them.
    pub(crate) snat_ports: PortRange,
}

impl Ours {
    /// Whether no connection could match.
    pub(crate) fn is_empty(&self) -> bool {
        !IpFamily::ALL.into_iter().any(|family| self.has(family))
    }

    /// Whether a connection of that family could match.
    fn has(&self, family: IpFamily) -> bool {
        let mut ips = self.frontends.iter().map(SocketAddr::ip).chain(self.snat_sources.iter().copied());
        ips.any(|ip| IpFamily::of(&ip) == family)
    }

    /// The tuple of packets to this node by which a connection must be known, and flags. Of a frontend's first: there a reply
    /// would be taken for a request.
    fn tuple(&self, connection: &Connection) -> Option<(conntrack::Tuple, u32)> {
        let Connection { protocol, original, reply, is_established } = connection;
        if *protocol == PROTOCOL_UDP {
            if self.frontends.contains(&reply.dst) {
                return Some((*reply, 0));
            }
            // Another proxy's rules translate it, for an unknown time.
            if self.frontends.contains(&original.dst) && reply.src != original.dst {
                return Some((*original, OUTBOUND_ONCE));
            }
        }
        let may_be_snat = matches!(*protocol, PROTOCOL_TCP | PROTOCOL_UDP)
            && self.snat_ports.contains(reply.dst.port())
            && self.snat_sources.contains(&reply.dst.ip());
        may_be_snat.then_some((*reply, if *is_established { OUTBOUND_ESTABLISHED } else { 0 }))
    }
}

/// Reads the kernel's connections and enters those that use our frontends or our source addresses and ports. Blocks: about a second
/// for a million connections. A kernel without connection tracking has no NAT.
pub(crate) fn seed(pins: &Pins, ours: &Ours) {
    if ours.is_empty() {
        return;
    }
    match family::<V4>(pins, ours).and_then(|v4| Ok(v4 + family::<V6>(pins, ours)?)) {
        Ok(count) => debug!(count, "connections of kernel NAT that use addresses and ports of frontends"),
        Err(error) => debug!("connections of kernel NAT are not known: {error:#}"),
    }
}

/// Connections are entered as seen so many seconds ago: this clock may be a little ahead of the kernel's, and to the programs a time
/// in the future is a very old one.
const BEFORE: u32 = 10;

fn family<F: MapFamily>(pins: &Pins, ours: &Ours) -> Result<usize> {
    // The kernel walks through its whole table, however few connections it has.
    if !ours.has(F::FAMILY) {
        return Ok(0);
    }
    let mut found = HashMap::new();
    conntrack::connections(F::FAMILY, |connection| {
        let key = ours
            .tuple(connection)
            .and_then(|(tuple, flags)| Some((key::<F>(connection.protocol, &tuple)?, flags)));
        found.extend(key);
    })?;
    let map = F::outbound(pins)?;
    let last_seen = Clock::read().map_or(0, |clock| clock.ago(BEFORE));
    // The map forgets those first that were entered first.
    let mut entries: Vec<(FlowKey<F>, u32, bool)> = found
        .into_iter()
        .map(|(key, flags)| {
            let to = F::to_socket(&key.tuple.dst, key.tuple.dport);
            (key, flags, key.protocol == PROTOCOL_UDP && ours.frontends.contains(&to))
        })
        .collect();
    entries.sort_by_key(|(_, _, of_frontend)| *of_frontend);
    for (key, flags, _) in &entries {
        map.insert(key, &Outbound { last_seen, flags: *flags })?;
    }
    Ok(entries.len())
}

fn key<F: MapFamily>(protocol: u8, tuple: &conntrack::Tuple) -> Option<FlowKey<F>> {
    let tuple = Tuple {
        src: F::from_ip(tuple.src.ip())?,
        dst: F::from_ip(tuple.dst.ip())?,
        sport: tuple.src.port().to_be(),
        dport: tuple.dst.port().to_be(),
    };
    Some(FlowKey::new(tuple, protocol, LookupPoint::Forward))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::address::UserFamily as _;

    #[test]
    fn only_families_of_our_addresses_are_listed() {
        let ports = PortRange { first: 1_024, last: 29_999 };
        for (frontends, sources, v4, v6) in [
            (&[][..], &[][..], false, false),
            (&["192.0.2.1:53"], &[], true, false),
            (&[], &["2001:db8::1"], false, true),
            (&["[2001:db8::1]:53"], &["192.0.2.1"], true, true),
        ] {
            let frontends = frontends.iter().map(|at| at.parse().unwrap()).collect();
            let snat_sources = sources.iter().map(|ip| ip.parse().unwrap()).collect();
            let ours = Ours { frontends, snat_sources, snat_ports: ports };
            assert_eq!(
                (ours.has(IpFamily::V4), ours.has(IpFamily::V6), ours.is_empty()),
                (v4, v6, !v4 && !v6)
            );
        }
    }

    #[test]
    fn connections_that_use_our_addresses_and_ports() {
        let ours = Ours {
            frontends: ["192.168.0.1:30053", "198.51.100.1:53"].map(|at| at.parse().unwrap()).into(),
            snat_sources: ["192.168.0.1".parse().unwrap()].into(),
            snat_ports: PortRange { first: 1_024, last: 29_999 },
        };
        const UDP: u8 = PROTOCOL_UDP;
        const TCP: u8 = PROTOCOL_TCP;
        for (what, protocol, original, reply, expected) in [
            (
                "masqueraded to a node port",
                UDP,
                "10.244.1.5:4000 192.0.2.9:53",
                "192.0.2.9:53 192.168.0.1:30053",
                Some(("192.0.2.9:53 192.168.0.1:30053", 0)),
            ),
            ("TCP from there", TCP, "10.244.1.5:4000 192.0.2.9:53", "192.0.2.9:53 192.168.0.1:30053", None),
            (
                "translated by another proxy",
                UDP,
                "192.0.2.9:999 192.168.0.1:30053",
                "10.244.1.7:53 192.0.2.9:999",
                Some(("192.0.2.9:999 192.168.0.1:30053", OUTBOUND_ONCE)),
            ),
            (
                "translated and masqueraded by another proxy",
                UDP,
                "192.0.2.9:999 198.51.100.1:53",
                "10.244.2.7:53 192.168.0.1:999",
                Some(("192.0.2.9:999 198.51.100.1:53", OUTBOUND_ONCE)),
            ),
            (
                "a server of the node at the frontend's address",
                UDP,
                "192.0.2.9:999 192.168.0.1:30053",
                "192.168.0.1:30053 192.0.2.9:999",
                None,
            ),
            (
                "masqueraded TCP with a source port that we give, too",
                TCP,
                "10.244.1.5:4000 192.0.2.9:443",
                "192.0.2.9:443 192.168.0.1:4000",
                Some(("192.0.2.9:443 192.168.0.1:4000", OUTBOUND_ESTABLISHED)),
            ),
            ("another port", TCP, "10.244.1.5:40000 192.0.2.9:443", "192.0.2.9:443 192.168.0.1:40000", None),
            ("another address", TCP, "10.244.1.5:4000 192.0.2.9:443", "192.0.2.9:443 10.244.1.5:4000", None),
            ("SCTP", 132, "10.244.1.5:4000 192.0.2.9:443", "192.0.2.9:443 192.168.0.1:4000", None),
        ] {
            let tuple = |text: &str| {
                let (src, dst) = text.split_once(' ').unwrap();
                conntrack::Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() }
            };
            let connection = Connection {
                protocol,
                original: tuple(original),
                reply: tuple(reply),
                is_established: protocol == TCP,
            };
            let expected = expected.map(|(text, flags)| (tuple(text), flags));
            assert_eq!(ours.tuple(&connection), expected, "{what}");
        }
    }

    #[test]
    fn keys_are_tuples_as_packets_come_in() {
        let tuple = conntrack::Tuple {
            src: "192.0.2.9:53".parse().unwrap(),
            dst: "192.168.0.1:30053".parse().unwrap(),
        };
        let key = key::<V4>(PROTOCOL_UDP, &tuple).unwrap();
        assert_eq!(V4::to_socket(&key.tuple.src, key.tuple.sport), tuple.src);
        assert_eq!((key.protocol, key.lookup_point), (PROTOCOL_UDP, LookupPoint::Forward as u8));
        assert!(super::key::<V6>(PROTOCOL_UDP, &tuple).is_none());
    }
}

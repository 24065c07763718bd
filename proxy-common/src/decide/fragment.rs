//! Fragments: the first one has the ports, the others are told by what they share with it.

use super::{frontend::is_cluster_ip, tables::Tables};
use crate::{
    Family,
    layout::{counter::Counter, fragment::FragmentPorts},
    packet::{Dissected, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Parse, Part, extensions},
};

/// What is known of a packet that was taken apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Completion {
    /// It is nothing that services have: leave it alone.
    NotOurs,
    /// All that the decision needs.
    Complete,
    /// A fragment that may be part of a Service's packet, whose first fragment has not been seen.
    Early,
}

/// Remembers the ports of a first fragment, and gives them to a later one. `is_parsed`: the transport header is one that services have.
#[inline(always)]
pub fn complete<F: Parse, T: Tables<F>>(
    tables: &T,
    dissected: &mut Dissected<F>,
    is_parsed: bool,
) -> Completion {
    let tuple = &dissected.packet.tuple;
    let key = dissected.fragment_key();
    match dissected.part {
        Part::Plain | Part::Whole | Part::Error if is_parsed => Completion::Complete,
        Part::First if is_parsed => {
            let protocol = dissected.packet.protocol as u32;
            let ports = FragmentPorts { sport: tuple.sport, dport: tuple.dport, protocol };
            tables.remember_fragment(&key, &ports);
            Completion::Complete
        }
        Part::First => {
            // With IPv6, later fragments may tell the first extension header only.
            if has_extensions::<F>() {
                tables.remember_fragment(&key, &FragmentPorts::default());
            }
            Completion::NotOurs
        }
        Part::Later if may_be_ours::<F>(dissected.packet.protocol) => {
            let Some(ports) = tables.fragment(&key) else {
                tables.count(Counter::FragmentUnknown);
                return Completion::Early;
            };
            if ports.protocol == 0 {
                return Completion::NotOurs;
            }
            dissected.packet.tuple.sport = ports.sport;
            dissected.packet.tuple.dport = ports.dport;
            dissected.packet.protocol = ports.protocol as u8;
            Completion::Complete
        }
        _ => Completion::NotOurs,
    }
}

/// Do the family's fragments tell the protocol of the next header, not that of the transport header?
#[inline(always)]
fn has_extensions<F: Parse>() -> bool {
    F::ICMP == PROTOCOL_ICMPV6
}

/// Can a later fragment that tells this protocol be part of a Service's packet? SCTP's checksum is of the whole packet: its fragments are
/// left alone.
#[inline(always)]
fn may_be_ours<F: Parse>(protocol: u8) -> bool {
    protocol == PROTOCOL_TCP
        || protocol == PROTOCOL_UDP
        || (has_extensions::<F>() && extensions::is_extension(protocol))
}

/// Could a packet to this address be for a service? For fragments whose ports are not known yet: a cluster IP, or an
/// address that serves nodePorts.
#[inline(always)]
pub fn may_be_for_service<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr) -> bool {
    tables.node_address(addr).serves_nodeports() || is_cluster_ip(tables, addr)
}

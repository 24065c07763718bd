//! Fragments. Only the first one has the ports; the others are matched by the fields that all share.

use super::{frontend::is_cluster_ip, tables::Tables};
use crate::{
    Family,
    layout::{counter::Counter, fragment::FragmentPorts},
    packet::{Dissected, PROTOCOL_ICMPV6, PROTOCOL_TCP, PROTOCOL_UDP, Parse, Part, extensions},
};

/// How much is known of a fragmented packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Completion {
    /// Not a Service's packet: leave it alone.
    NotOurs,
    /// The decision has all it needs.
    Complete,
    /// A fragment that may be part of a Service's packet, whose first fragment has not been seen.
    Early,
}

/// Records the ports of a first fragment, and completes later ones with them. `is_parsed`: the transport header
/// is one that Services have.
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
            // With IPv6, later fragments may have the protocol of the first extension header only.
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

/// Whether the family's fragments have the protocol of the next header, not that of the transport header.
#[inline(always)]
fn has_extensions<F: Parse>() -> bool {
    F::ICMP == PROTOCOL_ICMPV6
}

/// Whether a later fragment with this protocol can be part of a Service's packet. SCTP's checksum covers the
/// whole packet, so its fragments are left alone.
#[inline(always)]
fn may_be_ours<F: Parse>(protocol: u8) -> bool {
    protocol == PROTOCOL_TCP
        || protocol == PROTOCOL_UDP
        || (has_extensions::<F>() && extensions::is_extension(protocol))
}

/// Whether a packet to this address could be for a service: a cluster IP, or an address that serves nodePorts.
/// For fragments whose ports are not known yet.
#[inline(always)]
pub fn may_be_for_service<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr) -> bool {
    tables.node_address(addr).serves_nodeports() || is_cluster_ip(tables, addr)
}

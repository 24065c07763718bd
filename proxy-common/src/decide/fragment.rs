//! Fragments: the first one has the ports, the others are told by what they share with it.

use super::{frontend::is_cluster_ip, tables::Tables};
use crate::{
    Family,
    layout::{counter::Counter, fragment::FragmentPorts},
    packet::{Dissected, Part},
};

/// Remembers the ports of a first fragment, and gives them to a later one; false if its first one is not known.
#[inline(always)]
pub fn complete<F: Family, T: Tables<F>>(tables: &T, dissected: &mut Dissected<F>) -> bool {
    let tuple = &dissected.packet.tuple;
    let key = dissected.fragment_key();
    match dissected.part {
        Part::Usual | Part::Whole | Part::Error => true,
        Part::First => {
            let protocol = dissected.packet.protocol as u32;
            let ports = FragmentPorts { sport: tuple.sport, dport: tuple.dport, protocol };
            tables.remember_fragment(&key, &ports);
            true
        }
        Part::Later => {
            let Some(ports) = tables.fragment(&key) else {
                tables.count(Counter::FragmentUnknown);
                return false;
            };
            dissected.packet.tuple.sport = ports.sport;
            dissected.packet.tuple.dport = ports.dport;
            dissected.packet.protocol = ports.protocol as u8;
            true
        }
    }
}

/// Could a packet to this address be for a service? For fragments whose ports are not known yet: a cluster IP, or an
/// address that serves nodePorts.
#[inline(always)]
pub fn may_be_for_service<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr) -> bool {
    tables.node_address(addr).serves_nodeports() || is_cluster_ip(tables, addr)
}

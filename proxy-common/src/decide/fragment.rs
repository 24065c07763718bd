//! Fragments: the first one has the ports, the others are told by what they share with it.

use super::tables::Tables;
use crate::{
    Family,
    layout::{
        counter::Counter,
        fragment::{FragmentKey, FragmentPorts},
    },
    packet::{Dissected, Part},
};

/// Remembers the ports of a first fragment, and gives them to a later one; false if its first one is not known.
#[inline(always)]
pub fn complete<F: Family, T: Tables<F>>(tables: &T, dissected: &mut Dissected<F>) -> bool {
    let tuple = &dissected.packet.tuple;
    let key = FragmentKey {
        src: tuple.src,
        dst: tuple.dst,
        identification: dissected.identification,
        protocol: dissected.fragmented,
    };
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

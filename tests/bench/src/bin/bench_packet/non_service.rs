//! Packets that are not for a service, but look so to the filter of VIPs: they are looked up for nothing.

use std::{collections::HashMap, net::IpAddr};

use proxy_common::{
    V4, V6,
    decide::memory::MemoryTables,
    layout::filter::{self, Fingerprint},
    packet::PROTOCOL_TCP,
};
use proxy_packets::{Frame, PacketFamily};

/// The filter as the programs have it: that of both families.
pub(crate) struct Filter {
    elements: HashMap<u32, u64>,
}

impl Filter {
    pub(crate) fn new(v4: &MemoryTables<V4>, v6: &MemoryTables<V6>) -> Self {
        let mut elements = HashMap::<u32, u64>::new();
        for fingerprint in v4.filter.iter().chain(&v6.filter) {
            *elements.entry(fingerprint.element).or_default() |= fingerprint.mask;
        }
        Self { elements }
    }

    /// How many of the frames to each value of the last 16 bits of the destination it takes for a service's.
    pub(crate) fn mistaken<F: PacketFamily>(&self, frame: &Frame) -> usize {
        let holds = |fingerprint: Fingerprint| {
            self.elements.get(&fingerprint.element).is_some_and(|bits| fingerprint.is_in(*bits))
        };
        let port = frame.dst.port().to_be();
        let is_mistaken = |last: &u16| {
            let addr = F::from_ip(with_last(frame.dst.ip(), *last));
            holds(filter::of_address::<F>(&addr))
                || holds(filter::of_frontend::<F>(&addr, port, PROTOCOL_TCP))
        };
        (0..=u16::MAX).filter(is_mistaken).count()
    }
}

fn with_last(ip: IpAddr, last: u16) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => {
            let [a, b, ..] = ip.octets();
            let [c, d] = last.to_be_bytes();
            [a, b, c, d].into()
        }
        IpAddr::V6(ip) => {
            let mut segments = ip.segments();
            segments[7] = last;
            segments.into()
        }
    }
}

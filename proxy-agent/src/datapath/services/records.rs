//! `backend_ids`: by it the next agent gives endpoints the ids that they have, whatever the layouts of sets and slots are.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use proxy_common::layout::{backend_id::BackendId, id::Id};

use super::{
    Services,
    port::{Member, PortState},
};
use crate::datapath::array::MmapArray;

/// The record of an endpoint of a service port.
pub(super) fn of(service: Id, endpoint: SocketAddr, id: Id) -> BackendId {
    let addr = match endpoint.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped(),
        IpAddr::V6(ip) => ip,
    };
    BackendId { addr: addr.octets(), service, id, port: endpoint.port().to_be(), zero: 0 }
}

/// The endpoint, as [`of`] was given it: no endpoint has an IPv4-mapped address.
fn endpoint(record: &BackendId) -> SocketAddr {
    SocketAddr::new(Ipv6Addr::from(record.addr).to_canonical(), u16::from_be(record.port))
}

/// Records the owner of an id. The id is cleared first and written last: so an agent that is killed in between leaves no entry that is
/// half of another one.
pub(super) fn write(records: &MmapArray<BackendId>, record: &BackendId) {
    clear(records, record.id.index());
    records.write(record.id.index(), BackendId { id: Id::NONE, ..*record });
    records.write(record.id.index(), *record);
}

/// The id is free.
pub(super) fn clear(records: &MmapArray<BackendId>, index: u32) {
    if let Some(record) = records.read(index).filter(|record| record.id != Id::NONE) {
        records.write(index, BackendId { id: Id::NONE, ..record });
    }
}

/// All that is noted of ids with indices below `room`.
pub(super) fn noted(records: &MmapArray<BackendId>, room: u32) -> impl Iterator<Item = BackendId> {
    let all = (0..room).filter_map(|index| Some((index, records.read(index)?)));
    all.filter(|(index, record)| record.id != Id::NONE && record.id.index() == *index)
        .map(|(_, record)| record)
}

/// Adds a backend that is noted, if its service port does not know it by a set. In maps that are new, no set has any.
pub(super) fn add_stray(state: &mut PortState, record: &BackendId) {
    let endpoint = endpoint(record);
    if !state.backends.contains_key(&endpoint) {
        state.backends.insert(endpoint, Member { id: record.id, set_policies: 0 });
        state.has_strays = true;
    }
}

impl Services {
    /// Notes all backends, and no others: an agent may have been killed in between.
    pub(super) fn repair_records(&self) {
        let records = &self.shared.records;
        let mut is_known = vec![false; records.len() as usize];
        for state in self.ports.values() {
            for (endpoint, member) in state.backends.iter() {
                let (index, record) = (member.id.index(), of(state.id, *endpoint, member.id));
                if let Some(is_known) = is_known.get_mut(index as usize) {
                    *is_known = true;
                }
                if records.read(index) != Some(record) {
                    write(records, &record);
                }
            }
        }
        for (index, _) in (0..).zip(is_known).filter(|(_, is_known)| !is_known) {
            clear(records, index);
        }
    }
}

//! The maps that both families share, and the ids and slices to be freed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    V4, V6,
    layout::{
        backend::BackendState,
        backend_id::BackendId,
        filter::{self, Fingerprint},
        frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP},
        id::Id,
        name::ServiceName,
        set::{BackendSet, SetPolicy},
    },
    shared::Published as _,
};

use super::{
    Freed,
    error::{Result, WriteError},
    port::{Member, OwnedFrontend, PortState, SetState},
    records,
};
use crate::{
    datapath::{
        address::protocol_number, array::MmapArray, filter::VipFilter, ids::Ids, maps::MapFamily, room::Part,
        table::Table,
    },
    model::plan::{IpFamily, PortName},
};

/// The state that both families share.
pub(super) struct Shared {
    pub(super) sets: MmapArray<BackendSet>,
    pub(super) alive: MmapArray<BackendState>,
    /// The map `backend_ids`.
    pub(super) records: MmapArray<BackendId>,
    pub(super) names: Box<dyn Table<u32, ServiceName>>,
    pub(super) filter: VipFilter,
    pub(super) service_ids: Ids,
    pub(super) backend_ids: Ids,
    /// Where nodePorts are served, for the filter.
    pub(super) node_addresses: BTreeSet<IpAddr>,
    /// Addresses that connections to remote endpoints may have as source, for the filter.
    pub(super) snat_sources: BTreeSet<IpAddr>,
    pub(super) quarantine: Vec<Freed>,
    /// Backends that were released since the last call, and their service ports.
    pub(super) released_backends: Vec<(PortName, SocketAddr, Id)>,
    /// UDP frontends that service ports lost since the last call.
    pub(super) lost: Vec<(PortName, OwnedFrontend, Id)>,
}

impl Shared {
    pub(super) fn name(&mut self, id: Id, name: &PortName) -> Result<()> {
        let version = if name.family == IpFamily::V4 { 4 } else { 6 };
        let value = ServiceName::new(&name.to_string(), protocol_number(name.protocol), version);
        self.names.insert(id.0, value).map_err(|error| {
            WriteError::of_write(error, Part::ServicePorts).during("cannot note the service's name")
        })
    }

    /// The fingerprints of a frontend in the filter: see `proxy_common::layout::filter`.
    fn fingerprints(&self, owned: &OwnedFrontend, flags: u32) -> Vec<Fingerprint> {
        let OwnedFrontend { address, protocol } = *owned;
        if flags & (FRONTEND_CLUSTER_IP | FRONTEND_ADDRESS) != 0 {
            vec![address_fingerprint(address.ip())]
        } else if owned.is_node_port() {
            let addresses = self.node_addresses.iter().filter(|ip| IpFamily::of(ip) == owned.family());
            addresses.map(|ip| frontend_fingerprint(*ip, address.port(), protocol)).collect()
        } else {
            vec![frontend_fingerprint(address.ip(), address.port(), protocol)]
        }
    }

    pub(super) fn add_fingerprints(&mut self, owned: &OwnedFrontend, flags: u32) {
        for fingerprint in self.fingerprints(owned, flags) {
            self.filter.add(fingerprint);
        }
    }

    pub(super) fn release_fingerprints(&mut self, owned: &OwnedFrontend, flags: u32) {
        for fingerprint in self.fingerprints(owned, flags) {
            self.filter.release(fingerprint);
        }
    }

    /// Allocates a backend of a service port: alive from now on, in no published set yet.
    pub(super) fn allocate_backend(
        &mut self,
        service: Id,
        endpoint: SocketAddr,
        set_policies: u8,
    ) -> Option<Member> {
        let id = self.backend_ids.take()?;
        records::write(&self.records, &records::of(service, endpoint, id));
        self.alive.half(id.index())?.publish(BackendState::entry(id, set_policies));
        Some(Member { id, set_policies })
    }

    /// Rolls allocations back.
    pub(super) fn roll_back_backends(
        &mut self,
        name: &PortName,
        state: &mut PortState,
        allocated: &[(SocketAddr, u8)],
    ) {
        for (endpoint, _) in allocated {
            if let Some(member) = state.backends.remove(endpoint) {
                self.release_backend(name, *endpoint, member.id);
            }
        }
    }

    /// Withholds a service port's endpoints from the clients of some sets, even if the kernel refuses writes: these are stores
    /// to mapped memory.
    pub(super) fn withhold(&mut self, family: IpFamily, state: &mut PortState, set_policies: &[SetPolicy]) {
        let before = state.slices();
        for set_policy in set_policies {
            self.sets.publish(BackendSet::index(state.id, *set_policy), BackendSet::NO_LOCAL_ENDPOINTS.0);
            state.sets[*set_policy as usize] =
                SetState { set: BackendSet::NO_LOCAL_ENDPOINTS, ..SetState::default() };
        }
        let now = state.slices();
        for slice in before.iter().filter(|slice| !now.contains(slice)) {
            self.quarantine.push(Freed::Slots(family, (slice.base, slice.len)));
        }
    }

    /// Notes the sets that a backend is in.
    pub(super) fn put_set_policies(&self, member: &mut Member, set_policies: u8) {
        if member.set_policies != set_policies
            && let Some(half) = self.alive.half(member.id.index())
        {
            half.publish(BackendState::entry(member.id, set_policies));
        }
        member.set_policies = set_policies;
    }

    /// The backend no longer serves: UDP flows move off it with this store.
    pub(super) fn release_backend(&mut self, name: &PortName, endpoint: SocketAddr, id: Id) {
        // First: else the next agent might bring it back.
        records::clear(&self.records, id.index());
        if let Some(half) = self.alive.half(id.index()) {
            half.publish(0);
        }
        self.quarantine.push(Freed::Backend(id));
        self.released_backends.push((name.clone(), endpoint, id));
    }
}

fn address_fingerprint(ip: IpAddr) -> Fingerprint {
    fn fingerprint<F: MapFamily>(ip: IpAddr) -> Option<Fingerprint> {
        F::from_ip(ip).map(|addr| filter::of_address::<F>(&addr))
    }
    fingerprint::<V4>(ip).or_else(|| fingerprint::<V6>(ip)).unwrap_or_default()
}

/// See [`filter::of_snat_source`].
pub(super) fn snat_source_fingerprint(ip: IpAddr) -> Fingerprint {
    fn fingerprint<F: MapFamily>(ip: IpAddr) -> Option<Fingerprint> {
        F::from_ip(ip).map(|addr| filter::of_snat_source::<F>(&addr))
    }
    fingerprint::<V4>(ip).or_else(|| fingerprint::<V6>(ip)).unwrap_or_default()
}

pub(super) fn frontend_fingerprint(ip: IpAddr, port: u16, protocol: u8) -> Fingerprint {
    fn fingerprint<F: MapFamily>(ip: IpAddr, port: u16, protocol: u8) -> Option<Fingerprint> {
        F::from_ip(ip).map(|addr| filter::of_frontend::<F>(&addr, port.to_be(), protocol))
    }
    fingerprint::<V4>(ip, port, protocol)
        .or_else(|| fingerprint::<V6>(ip, port, protocol))
        .unwrap_or_default()
}

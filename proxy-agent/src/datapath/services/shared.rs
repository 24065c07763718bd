//! The maps that both families share, and what is to be freed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
};

use anyhow::{Context as _, Result};
use proxy_common::{
    V4, V6,
    layout::{
        backend::Alive,
        backend_id::BackendId,
        filter::{self, Mark},
        frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP},
        id::Id,
        name::ServiceName,
        set::{Set, SetRole},
    },
};

use super::{
    Freed,
    port::{Claim, Member, PortState, SetState},
    records,
};
use crate::{
    datapath::{
        address::protocol_number,
        array::MmapArray,
        filter::VipFilter,
        ids::Ids,
        maps::MapFamily,
        room::Part,
        table::{Table, write_error},
    },
    model::plan::{IpFamily, PortName},
};

/// What both families share.
pub(super) struct Shared {
    pub(super) sets: MmapArray<Set>,
    pub(super) alive: MmapArray<Alive>,
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
    /// Backends that were buried since they were last asked for, and whose they were.
    pub(super) buried: Vec<(PortName, SocketAddr, Id)>,
    /// UDP frontends that service ports lost since they were last asked for.
    pub(super) lost: Vec<(PortName, Claim, Id)>,
}

impl Shared {
    pub(super) fn name(&mut self, id: Id, name: &PortName) -> Result<()> {
        let version = if name.family == IpFamily::V4 { 4 } else { 6 };
        let value = ServiceName::new(&name.to_string(), protocol_number(name.protocol), version);
        let written = self.names.insert(id.0, value);
        written
            .map_err(|error| write_error(error, Part::ServicePorts))
            .context("cannot note the service's name")
    }

    /// The marks of a frontend in the filter: see `proxy_common::layout::filter`.
    fn marks(&self, claim: &Claim, flags: u32) -> Vec<Mark> {
        let Claim { address, protocol } = *claim;
        if flags & (FRONTEND_CLUSTER_IP | FRONTEND_ADDRESS) != 0 {
            vec![address_mark(address.ip())]
        } else if claim.is_node_port() {
            let addresses = self.node_addresses.iter().filter(|ip| IpFamily::of(ip) == claim.family());
            addresses.map(|ip| frontend_mark(*ip, address.port(), protocol)).collect()
        } else {
            vec![frontend_mark(address.ip(), address.port(), protocol)]
        }
    }

    pub(super) fn add_marks(&mut self, claim: &Claim, flags: u32) {
        for mark in self.marks(claim, flags) {
            self.filter.add(mark);
        }
    }

    pub(super) fn give_up_marks(&mut self, claim: &Claim, flags: u32) {
        for mark in self.marks(claim, flags) {
            self.filter.give_up(mark);
        }
    }

    /// A new backend of a service port, alive from now on, though in no published set yet.
    pub(super) fn birth(&mut self, service: Id, endpoint: SocketAddr, roles: u8) -> Option<Member> {
        let id = self.backend_ids.take()?;
        records::write(&self.records, &records::of(service, endpoint, id));
        self.alive.half(id.index())?.store(Alive::entry(id, roles), Ordering::Release);
        Some(Member { id, roles })
    }

    /// Takes back what was born for nothing.
    pub(super) fn unborn(&mut self, name: &PortName, state: &mut PortState, born: &[(SocketAddr, u8)]) {
        for (endpoint, _) in born {
            if let Some(member) = state.backends.remove(endpoint) {
                self.bury(name, *endpoint, member.id);
            }
        }
    }

    /// Withholds a service port's endpoints from the clients of some sets, whatever the kernel says to writes: these are stores.
    pub(super) fn withhold(&mut self, family: IpFamily, state: &mut PortState, roles: &[SetRole]) {
        let before = state.slices();
        for role in roles {
            self.sets.publish(Set::index(state.id, *role), Set::WITHHELD.0);
            state.sets[*role as usize] = SetState { set: Set::WITHHELD, ..SetState::default() };
        }
        let now = state.slices();
        for slice in before.iter().filter(|slice| !now.contains(slice)) {
            self.quarantine.push(Freed::Slots(family, (slice.base, slice.len)));
        }
    }

    /// Notes the sets that a backend is in.
    pub(super) fn set_roles(&self, member: &mut Member, roles: u8) {
        if member.roles != roles
            && let Some(half) = self.alive.half(member.id.index())
        {
            half.store(Alive::entry(member.id, roles), Ordering::Release);
        }
        member.roles = roles;
    }

    /// The backend no longer serves: UDP flows move off it with this store.
    pub(super) fn bury(&mut self, name: &PortName, endpoint: SocketAddr, id: Id) {
        // First: else the next agent might bring it back.
        records::clear(&self.records, id.index());
        if let Some(half) = self.alive.half(id.index()) {
            half.store(0, Ordering::Release);
        }
        self.quarantine.push(Freed::Backend(id));
        self.buried.push((name.clone(), endpoint, id));
    }
}

fn address_mark(ip: IpAddr) -> Mark {
    fn mark<F: MapFamily>(ip: IpAddr) -> Option<Mark> {
        F::from_ip(ip).map(|addr| filter::of_address::<F>(&addr))
    }
    mark::<V4>(ip).or_else(|| mark::<V6>(ip)).unwrap_or_default()
}

/// See [`filter::of_snat_source`].
pub(super) fn snat_source_mark(ip: IpAddr) -> Mark {
    fn mark<F: MapFamily>(ip: IpAddr) -> Option<Mark> {
        F::from_ip(ip).map(|addr| filter::of_snat_source::<F>(&addr))
    }
    mark::<V4>(ip).or_else(|| mark::<V6>(ip)).unwrap_or_default()
}

pub(super) fn frontend_mark(ip: IpAddr, port: u16, protocol: u8) -> Mark {
    fn mark<F: MapFamily>(ip: IpAddr, port: u16, protocol: u8) -> Option<Mark> {
        F::from_ip(ip).map(|addr| filter::of_frontend::<F>(&addr, port.to_be(), protocol))
    }
    mark::<V4>(ip, port, protocol).or_else(|| mark::<V6>(ip, port, protocol)).unwrap_or_default()
}

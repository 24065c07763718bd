//! The maps that both families share, and what is to be freed.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    sync::atomic::Ordering,
};

use anyhow::{Context as _, Result};
use proxy_common::{
    V4, V6,
    layout::{backend::Alive, filter, id::Id, name::ServiceName, set::Set},
};

use super::{Freed, PortState};
use crate::{
    datapath::{
        address::protocol_number,
        array::MmapArray,
        filter::VipFilter,
        ids::Ids,
        maps::{Hash, MapFamily},
    },
    model::plan::{Frontend, IpFamily, PortName},
};
/// What both families share.
pub(super) struct Shared {
    pub(super) sets: MmapArray<Set>,
    pub(super) alive: MmapArray<Alive>,
    pub(super) names: Hash<u32, ServiceName>,
    pub(super) filter: VipFilter,
    pub(super) service_ids: Ids,
    pub(super) backend_ids: Ids,
    /// Where nodePorts are served, for the filter.
    pub(super) node_addresses: BTreeSet<IpAddr>,
    pub(super) quarantine: Vec<Freed>,
}

impl Shared {
    pub(super) fn name(&mut self, id: Id, name: &PortName) -> Result<()> {
        let version = if name.family == IpFamily::V4 { 4 } else { 6 };
        let value = ServiceName::new(&name.to_string(), protocol_number(name.protocol), version);
        self.names.insert(id.0, value, 0).context("cannot note the service's name")
    }

    /// The bits of a frontend in the filter: see `proxy_common::layout::filter`.
    pub(super) fn bits(&self, name: &PortName, frontend: Frontend) -> Vec<u32> {
        let protocol = protocol_number(name.protocol);
        match frontend {
            Frontend::ClusterIp(address) => vec![address_bit(address.ip())],
            Frontend::ClusterAddress(ip) => vec![address_bit(ip)],
            Frontend::ExternalIp(address) | Frontend::LoadBalancer(address) => {
                vec![node_port_bit(address.ip(), address.port(), protocol)]
            }
            Frontend::NodePort(port) => {
                let addresses = self.node_addresses.iter().filter(|ip| IpFamily::of(ip) == name.family);
                addresses.map(|ip| node_port_bit(*ip, port, protocol)).collect()
            }
        }
    }

    pub(super) fn add_bits(&mut self, name: &PortName, frontend: Frontend) {
        for bit in self.bits(name, frontend) {
            self.filter.add(bit);
        }
    }

    pub(super) fn remove_bits(&mut self, name: &PortName, frontend: Frontend) {
        for bit in self.bits(name, frontend) {
            self.filter.remove(bit);
        }
    }

    /// A new id for a backend, alive from now on.
    pub(super) fn birth(&mut self) -> Option<Id> {
        let id = self.backend_ids.take()?;
        self.alive.byte(id.index())?.store(id.generation(), Ordering::Release);
        Some(id)
    }

    /// Takes back what was born for nothing.
    pub(super) fn unborn(&mut self, state: &mut PortState, born: &[SocketAddr]) {
        for endpoint in born {
            if let Some(id) = state.backends.remove(endpoint) {
                self.bury(id);
            }
        }
    }

    /// The backend no longer serves: UDP flows move off it with this store.
    pub(super) fn bury(&mut self, id: Id) {
        if let Some(byte) = self.alive.byte(id.index()) {
            byte.store(0, Ordering::Release);
        }
        self.quarantine.push(Freed::Backend(id));
    }
}

fn address_bit(ip: IpAddr) -> u32 {
    fn bit<F: MapFamily>(ip: IpAddr) -> Option<u32> {
        F::from_ip(ip).map(|addr| filter::of_address::<F>(&addr))
    }
    bit::<V4>(ip).or_else(|| bit::<V6>(ip)).unwrap_or_default()
}

pub(super) fn node_port_bit(ip: IpAddr, port: u16, protocol: u8) -> u32 {
    fn bit<F: MapFamily>(ip: IpAddr, port: u16, protocol: u8) -> Option<u32> {
        F::from_ip(ip).map(|addr| filter::of_frontend::<F>(&addr, port.to_be(), protocol))
    }
    bit::<V4>(ip, port, protocol).or_else(|| bit::<V6>(ip, port, protocol)).unwrap_or_default()
}

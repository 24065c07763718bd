//! Frontend owners. A service port that comes later waits until the frontend is free.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
};

use proxy_common::{
    layout::{
        frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES},
        id::Id,
        set::SetPolicy,
    },
    packet::PROTOCOL_UDP,
};

use super::{
    LostFrontend, Services,
    error::Result,
    port::{OwnedFrontend, PortState},
    shared::{frontend_fingerprint, snat_source_fingerprint},
};
use crate::{
    datapath::address::{protocol_number, protocol_of},
    model::{
        objects::{ObjectName, Protocol},
        plan::{IpFamily, PortName},
    },
    sorted::SortedMap,
};

/// Flags that keep clients out.
const STRICT: u32 = FRONTEND_SOURCE_RANGES | FRONTEND_CLUSTER_IP;

/// The sets that clients of a frontend with these flags are served from.
fn set_policies(flags: u32) -> &'static [SetPolicy] {
    if flags & FRONTEND_CLUSTER_IP != 0 {
        &[SetPolicy::ClusterIp]
    } else {
        &[SetPolicy::External, SetPolicy::Cluster]
    }
}

impl Services {
    /// The half of a change that closes: takes the frontends from a service port that it is to have no more, and makes those stricter
    /// that are for fewer clients now. Where that fails, its endpoints are removed from the sets of the frontend's clients.
    ///
    /// # Errors
    /// The last write that the kernel refused.
    pub(super) fn close_frontends(
        &mut self,
        name: &PortName,
        state: &mut PortState,
        wanted: &SortedMap<OwnedFrontend, u32>,
    ) -> Result<()> {
        let known: Vec<(OwnedFrontend, u32)> =
            state.frontends.iter().map(|(owned, flags)| (*owned, *flags)).collect();
        let mut result = Ok(());
        for (owned, flags) in known {
            let closed = match wanted.get(&owned) {
                None => self.release(name, state.id, &owned, flags).map(|()| {
                    state.frontends.remove(&owned);
                }),
                Some(wanted) => self.change_frontend(name, state, &owned, flags | wanted & STRICT),
            };
            if let Err(error) = closed {
                self.shared.withhold(name.family, state, set_policies(flags));
                result = Err(error);
            }
        }
        result
    }

    /// The half that opens: new frontends, and those that are for more clients now.
    ///
    /// # Errors
    /// The last write that the kernel refused.
    pub(super) fn open_frontends(
        &mut self,
        name: &PortName,
        state: &mut PortState,
        wanted: &SortedMap<OwnedFrontend, u32>,
    ) -> Result<()> {
        let mut result = Ok(());
        for (owned, flags) in wanted.iter() {
            let opened = if state.frontends.contains_key(owned) {
                self.change_frontend(name, state, owned, *flags)
            } else {
                self.acquire(name, state.id, owned, *flags).map(|()| {
                    state.frontends.insert(*owned, *flags);
                })
            };
            result = opened.and(result);
        }
        result
    }

    /// Gives a frontend of a port other flags, if it has others.
    fn change_frontend(
        &mut self,
        name: &PortName,
        state: &mut PortState,
        owned: &OwnedFrontend,
        flags: u32,
    ) -> Result<()> {
        let Some(known) = state.frontends.get(owned).copied().filter(|known| *known != flags) else {
            return Ok(());
        };
        if self.has(name, owned) {
            self.write_frontend(state.id, owned, flags)?;
            self.shared.release_fingerprints(owned, known);
        }
        state.frontends.insert(*owned, flags);
        Ok(())
    }

    /// UDP frontends that service ports lost since the last call: sockets that connected through them should be ended. Not
    /// those that came back meanwhile.
    pub fn take_lost_frontends(&mut self) -> Vec<LostFrontend> {
        let mut lost = std::mem::take(&mut self.shared.lost);
        lost.retain(|(name, owned, _)| !self.has(name, owned));
        lost.into_iter().map(|(_, owned, service)| LostFrontend { service, address: owned.address }).collect()
    }

    /// Whether this UDP address leads to the service port.
    pub fn leads_to(&self, address: SocketAddr, service: Id) -> bool {
        let protocol = protocol_number(Protocol::Udp);
        let node_port = OwnedFrontend::node_port(IpFamily::of(&address.ip()), address.port(), protocol);
        [OwnedFrontend { address, protocol }, node_port].iter().any(|owned| {
            let owner = self.owned_frontends.get(owned).and_then(|owners| self.ports.get(owners.front()?));
            owner.is_some_and(|state| state.id == service)
        })
    }

    fn has(&self, name: &PortName, owned: &OwnedFrontend) -> bool {
        self.owned_frontends.get(owned).and_then(|owners| owners.front()) == Some(name)
    }

    /// Acquires a frontend for a port, or queues behind its owner.
    fn acquire(&mut self, name: &PortName, id: Id, owned: &OwnedFrontend, flags: u32) -> Result<()> {
        // Mostly no port waits.
        let owners = self.owned_frontends.entry(*owned).or_insert_with(|| {
            self.owned_by_family[owned.family() as usize] += 1;
            VecDeque::with_capacity(1)
        });
        owners.push_back(name.clone());
        if let Some(owner) = owners.front()
            && owner != name
        {
            // All ports of a Service want its addresses as such, and Services may share a load balancer's.
            if owner.service != name.service
                && flags & (FRONTEND_ADDRESS | FRONTEND_CLUSTER_IP) != FRONTEND_ADDRESS
            {
                self.contested.insert(*owned);
            }
            return Ok(());
        }
        let result = self.write_frontend(id, owned, flags);
        if result.is_err() {
            // It will be tried again.
            self.forget_owned(owned);
        }
        result
    }

    /// No service port waits for a frontend any more.
    fn forget_owned(&mut self, owned: &OwnedFrontend) {
        if self.owned_frontends.remove(owned).is_some() {
            self.owned_by_family[owned.family() as usize] -= 1;
        }
    }

    /// Services that wait for a frontend which another one has, with a description.
    pub fn conflicts(&mut self) -> Vec<(ObjectName, String)> {
        let owned_frontends = &self.owned_frontends;
        let rivals = |owned: &OwnedFrontend| -> Vec<(PortName, PortName)> {
            let mut owners = owned_frontends.get(owned).into_iter().flatten();
            let Some(owner) = owners.next() else { return Vec::new() };
            owners
                .filter(|waiting| waiting.service != owner.service)
                .map(|waiting| (waiting.clone(), owner.clone()))
                .collect()
        };
        self.contested.retain(|owned| !rivals(owned).is_empty());
        let mut found = Vec::new();
        for owned in &self.contested {
            let text = |waiting: &PortName, owner: &PortName| {
                format!("service {waiting}: {owned} is served for service {owner}, which had it first")
            };
            found.extend(
                rivals(owned).iter().map(|(waiting, owner)| (waiting.service.clone(), text(waiting, owner))),
            );
        }
        found
    }

    /// Releases a frontend; the next waiting service port gets it.
    ///
    /// # Errors
    /// When the kernel refuses the write: then the port has it still.
    pub(super) fn release(
        &mut self,
        name: &PortName,
        id: Id,
        owned: &OwnedFrontend,
        flags: u32,
    ) -> Result<()> {
        let Some(owners) = self.owned_frontends.get(owned) else { return Ok(()) };
        if owners.front() == Some(name) {
            let next = owners.get(1).and_then(|next| {
                let state = self.ports.get(next)?;
                Some((state.id, *state.frontends.get(owned)?))
            });
            match next {
                Some((id, flags)) => self.write_frontend(id, owned, flags)?,
                None => match owned.family() {
                    IpFamily::V4 => self.v4.remove_frontend(owned)?,
                    IpFamily::V6 => self.v6.remove_frontend(owned)?,
                },
            }
            self.shared.release_fingerprints(owned, flags);
            if protocol_of(owned.protocol) == Some(Protocol::Udp) {
                self.shared.lost.push((name.clone(), *owned, id));
            }
        }
        if let Some(owners) = self.owned_frontends.get_mut(owned) {
            owners.retain(|waiting| waiting != name);
            if owners.is_empty() {
                self.forget_owned(owned);
            }
        }
        Ok(())
    }

    /// Writes a frontend and adds its bits to the filter.
    fn write_frontend(&mut self, id: Id, owned: &OwnedFrontend, flags: u32) -> Result<()> {
        // First: readers check the filter first.
        self.shared.add_fingerprints(owned, flags);
        let result = match owned.family() {
            IpFamily::V4 => self.v4.write_frontend(id, owned, flags),
            IpFamily::V6 => self.v6.write_frontend(id, owned, flags),
        };
        if result.is_err() {
            self.shared.release_fingerprints(owned, flags);
        }
        result
    }

    /// UDP frontends that clients outside may use, node ports at each of these addresses.
    pub(crate) fn udp_frontends(&self, node_addresses: &BTreeSet<IpAddr>) -> HashSet<SocketAddr> {
        let is_outside = |owned: &OwnedFrontend, owner: &PortName| {
            let flags = self.ports.get(owner).and_then(|state| state.frontends.get(owned));
            owned.protocol == PROTOCOL_UDP && flags.is_some_and(|flags| flags & FRONTEND_CLUSTER_IP == 0)
        };
        let owned_frontends = self
            .owned_frontends
            .iter()
            .filter(|(owned, owners)| owners.front().is_some_and(|owner| is_outside(owned, owner)));
        let mut found = HashSet::new();
        for (owned, _) in owned_frontends {
            if owned.is_node_port() {
                let addresses = node_addresses.iter().filter(|ip| IpFamily::of(ip) == owned.family());
                found.extend(addresses.map(|ip| SocketAddr::new(*ip, owned.address.port())));
            } else {
                found.insert(owned.address);
            }
        }
        found
    }

    /// Sets the addresses that connections to remote endpoints may have as source.
    pub(in crate::datapath) fn set_snat_sources(&mut self, addresses: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.shared.snat_sources, addresses.clone());
        for ip in addresses.difference(&before) {
            self.shared.filter.add(snat_source_fingerprint(*ip));
        }
        for ip in before.difference(&addresses) {
            self.shared.filter.release(snat_source_fingerprint(*ip));
        }
    }

    /// Sets the addresses on which nodePorts are served.
    pub(in crate::datapath) fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.shared.node_addresses, addresses.clone());
        for owned in self.owned_frontends.keys().filter(|owned| owned.is_node_port()) {
            let fingerprint = |ip: &IpAddr| frontend_fingerprint(*ip, owned.address.port(), owned.protocol);
            for ip in addresses.difference(&before).filter(|ip| IpFamily::of(ip) == owned.family()) {
                self.shared.filter.add(fingerprint(ip));
            }
            for ip in before.difference(&addresses).filter(|ip| IpFamily::of(ip) == owned.family()) {
                self.shared.filter.release(fingerprint(ip));
            }
        }
    }
}

//! Who has which frontend. Who comes later waits until it is free.

use std::{
    collections::{BTreeSet, HashSet, VecDeque},
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use proxy_common::{
    layout::{
        frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FRONTEND_SOURCES},
        id::Id,
        set::SetRole,
    },
    packet::PROTOCOL_UDP,
};

use super::{
    LostFrontend, Services,
    port::{Claim, PortState},
    shared::{frontend_mark, snat_source_mark},
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
const STRICT: u32 = FRONTEND_SOURCES | FRONTEND_CLUSTER_IP;

/// The sets that clients of a frontend with these flags are served from.
fn roles(flags: u32) -> &'static [SetRole] {
    if flags & FRONTEND_CLUSTER_IP != 0 {
        &[SetRole::ClusterIp]
    } else {
        &[SetRole::External, SetRole::Cluster]
    }
}

impl Services {
    /// The half of a change that closes: takes the frontends from a service port that it is to have no more, and makes those stricter
    /// that are for fewer clients now. Where that fails, its endpoints are withheld from the frontend's clients.
    ///
    /// # Errors
    /// The last write that the kernel refused.
    pub(super) fn close_frontends(
        &mut self,
        name: &PortName,
        state: &mut PortState,
        wanted: &SortedMap<Claim, u32>,
    ) -> Result<()> {
        let known: Vec<(Claim, u32)> =
            state.frontends.iter().map(|(claim, flags)| (*claim, *flags)).collect();
        let mut result = Ok(());
        for (claim, flags) in known {
            let closed = match wanted.get(&claim) {
                None => self.release(name, state.id, &claim, flags).map(|()| {
                    state.frontends.remove(&claim);
                }),
                Some(wanted) => self.change_frontend(name, state, &claim, flags | wanted & STRICT),
            };
            if let Err(error) = closed {
                self.shared.withhold(name.family, state, roles(flags));
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
        wanted: &SortedMap<Claim, u32>,
    ) -> Result<()> {
        let mut result = Ok(());
        for (claim, flags) in wanted.iter() {
            let opened = if state.frontends.contains_key(claim) {
                self.change_frontend(name, state, claim, *flags)
            } else {
                self.claim(name, state.id, claim, *flags).map(|()| {
                    state.frontends.insert(*claim, *flags);
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
        claim: &Claim,
        flags: u32,
    ) -> Result<()> {
        let Some(known) = state.frontends.get(claim).copied().filter(|known| *known != flags) else {
            return Ok(());
        };
        if self.has(name, claim) {
            self.write_frontend(state.id, claim, flags)?;
            self.shared.give_up_marks(claim, known);
        }
        state.frontends.insert(*claim, flags);
        Ok(())
    }

    /// UDP frontends that service ports lost since the last call: sockets that connected through them should be ended. Not
    /// those that came back meanwhile.
    pub fn take_lost_frontends(&mut self) -> Vec<LostFrontend> {
        let mut lost = std::mem::take(&mut self.shared.lost);
        lost.retain(|(name, claim, _)| !self.has(name, claim));
        lost.into_iter().map(|(_, claim, service)| LostFrontend { service, address: claim.address }).collect()
    }

    /// Does this UDP address lead to the service port?
    pub fn leads_to(&self, address: SocketAddr, service: Id) -> bool {
        let protocol = protocol_number(Protocol::Udp);
        let node_port = Claim::node_port(IpFamily::of(&address.ip()), address.port(), protocol);
        [Claim { address, protocol }, node_port].iter().any(|claim| {
            let holder = self.claims.get(claim).and_then(|claimants| self.ports.get(claimants.front()?));
            holder.is_some_and(|state| state.id == service)
        })
    }

    fn has(&self, name: &PortName, claim: &Claim) -> bool {
        self.claims.get(claim).and_then(|claimants| claimants.front()) == Some(name)
    }

    /// Takes a frontend for a port, or queues behind who has it.
    fn claim(&mut self, name: &PortName, id: Id, claim: &Claim, flags: u32) -> Result<()> {
        // Mostly nobody waits.
        let claimants = self.claims.entry(*claim).or_insert_with(|| {
            self.claimed[claim.family() as usize] += 1;
            VecDeque::with_capacity(1)
        });
        claimants.push_back(name.clone());
        if let Some(holder) = claimants.front()
            && holder != name
        {
            // All ports of a Service claim its addresses as such, and Services may share a load balancer's.
            if holder.service != name.service
                && flags & (FRONTEND_ADDRESS | FRONTEND_CLUSTER_IP) != FRONTEND_ADDRESS
            {
                self.contested.insert(*claim);
            }
            return Ok(());
        }
        let result = self.write_frontend(id, claim, flags);
        if result.is_err() {
            // It will be tried again.
            self.forget_claim(claim);
        }
        result
    }

    /// Nobody wants a frontend any more.
    fn forget_claim(&mut self, claim: &Claim) {
        if self.claims.remove(claim).is_some() {
            self.claimed[claim.family() as usize] -= 1;
        }
    }

    /// Services that wait for a frontend which another one has, and what that is in words.
    pub fn conflicts(&mut self) -> Vec<(ObjectName, String)> {
        let claims = &self.claims;
        let rivals = |claim: &Claim| -> Vec<(PortName, PortName)> {
            let mut claimants = claims.get(claim).into_iter().flatten();
            let Some(holder) = claimants.next() else { return Vec::new() };
            claimants
                .filter(|waiting| waiting.service != holder.service)
                .map(|waiting| (waiting.clone(), holder.clone()))
                .collect()
        };
        self.contested.retain(|claim| !rivals(claim).is_empty());
        let mut found = Vec::new();
        for claim in &self.contested {
            let text = |waiting: &PortName, holder: &PortName| {
                format!("service {waiting}: {claim} is served for service {holder}, which had it first")
            };
            found.extend(
                rivals(claim)
                    .iter()
                    .map(|(waiting, holder)| (waiting.service.clone(), text(waiting, holder))),
            );
        }
        found
    }

    /// Gives a frontend up; who waits for it gets it.
    ///
    /// # Errors
    /// When the kernel refuses the write: then the port has it still.
    pub(super) fn release(&mut self, name: &PortName, id: Id, claim: &Claim, flags: u32) -> Result<()> {
        let Some(claimants) = self.claims.get(claim) else { return Ok(()) };
        if claimants.front() == Some(name) {
            let next = claimants.get(1).and_then(|next| {
                let state = self.ports.get(next)?;
                Some((state.id, *state.frontends.get(claim)?))
            });
            match next {
                Some((id, flags)) => self.write_frontend(id, claim, flags)?,
                None => match claim.family() {
                    IpFamily::V4 => self.v4.remove_frontend(claim)?,
                    IpFamily::V6 => self.v6.remove_frontend(claim)?,
                },
            }
            self.shared.give_up_marks(claim, flags);
            if protocol_of(claim.protocol) == Some(Protocol::Udp) {
                self.shared.lost.push((name.clone(), *claim, id));
            }
        }
        if let Some(claimants) = self.claims.get_mut(claim) {
            claimants.retain(|claimant| claimant != name);
            if claimants.is_empty() {
                self.forget_claim(claim);
            }
        }
        Ok(())
    }

    /// Writes a frontend and adds its bits to the filter.
    fn write_frontend(&mut self, id: Id, claim: &Claim, flags: u32) -> Result<()> {
        // First: the filter is asked first.
        self.shared.add_marks(claim, flags);
        let result = match claim.family() {
            IpFamily::V4 => self.v4.write_frontend(id, claim, flags),
            IpFamily::V6 => self.v6.write_frontend(id, claim, flags),
        };
        if result.is_err() {
            self.shared.give_up_marks(claim, flags);
        }
        result
    }

    /// UDP frontends that clients outside may use, node ports at each of these addresses.
    pub(crate) fn udp_frontends(&self, node_addresses: &BTreeSet<IpAddr>) -> HashSet<SocketAddr> {
        let is_outside = |claim: &Claim, holder: &PortName| {
            let flags = self.ports.get(holder).and_then(|state| state.frontends.get(claim));
            claim.protocol == PROTOCOL_UDP && flags.is_some_and(|flags| flags & FRONTEND_CLUSTER_IP == 0)
        };
        let claims = self
            .claims
            .iter()
            .filter(|(claim, claimants)| claimants.front().is_some_and(|holder| is_outside(claim, holder)));
        let mut found = HashSet::new();
        for (claim, _) in claims {
            if claim.is_node_port() {
                let addresses = node_addresses.iter().filter(|ip| IpFamily::of(ip) == claim.family());
                found.extend(addresses.map(|ip| SocketAddr::new(*ip, claim.address.port())));
            } else {
                found.insert(claim.address);
            }
        }
        found
    }

    /// Says which addresses connections to remote endpoints may have as source.
    pub(in crate::datapath) fn set_snat_sources(&mut self, addresses: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.shared.snat_sources, addresses.clone());
        for ip in addresses.difference(&before) {
            self.shared.filter.add(snat_source_mark(*ip));
        }
        for ip in before.difference(&addresses) {
            self.shared.filter.give_up(snat_source_mark(*ip));
        }
    }

    /// Says where nodePorts are served.
    pub(in crate::datapath) fn set_node_addresses(&mut self, addresses: BTreeSet<IpAddr>) {
        let before = std::mem::replace(&mut self.shared.node_addresses, addresses.clone());
        for claim in self.claims.keys().filter(|claim| claim.is_node_port()) {
            let mark = |ip: &IpAddr| frontend_mark(*ip, claim.address.port(), claim.protocol);
            for ip in addresses.difference(&before).filter(|ip| IpFamily::of(ip) == claim.family()) {
                self.shared.filter.add(mark(ip));
            }
            for ip in before.difference(&addresses).filter(|ip| IpFamily::of(ip) == claim.family()) {
                self.shared.filter.give_up(mark(ip));
            }
        }
    }
}

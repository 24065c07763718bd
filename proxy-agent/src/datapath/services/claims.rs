//! Who has which frontend. Who comes later waits until it is free.

use std::{
    collections::{BTreeSet, VecDeque},
    net::{IpAddr, SocketAddr},
};

use anyhow::Result;
use proxy_common::layout::id::Id;
use tracing::warn;

use super::{
    LostFrontend, Services,
    port::{Claim, PortState},
    shared::frontend_mark,
};
use crate::{
    datapath::address::{protocol_number, protocol_of},
    model::{
        objects::Protocol,
        plan::{IpFamily, PortName},
    },
    sorted::SortedMap,
};

impl Services {
    /// Brings a service port's frontends in step with what it wants.
    pub(super) fn frontends(
        &mut self,
        name: &PortName,
        state: &mut PortState,
        wanted: &SortedMap<Claim, u32>,
    ) -> Result<()> {
        let known: Vec<(Claim, u32)> =
            state.frontends.iter().map(|(claim, flags)| (*claim, *flags)).collect();
        for (claim, flags) in known {
            match wanted.get(&claim) {
                None => {
                    state.frontends.remove(&claim);
                    self.release(name, state.id, &claim, flags)?;
                }
                Some(wanted) if *wanted != flags => {
                    if self.has(name, &claim) {
                        self.write_frontend(state.id, &claim, *wanted)?;
                        self.shared.give_up_marks(&claim, flags);
                    }
                    state.frontends.insert(claim, *wanted);
                }
                Some(_) => {}
            }
        }
        for (claim, flags) in wanted.iter() {
            if !state.frontends.contains_key(claim) {
                self.claim(name, state.id, claim, *flags)?;
                state.frontends.insert(*claim, *flags);
            }
        }
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
        let claimants = self.claims.entry(*claim).or_insert_with(|| VecDeque::with_capacity(1));
        claimants.push_back(name.clone());
        if let Some(holder) = claimants.front()
            && holder != name
        {
            // All ports of a Service claim its cluster IPs as such.
            if holder.service != name.service {
                warn!("services {holder} and {name} both want {claim}: {holder} keeps it");
            }
            return Ok(());
        }
        let result = self.write_frontend(id, claim, flags);
        if result.is_err() {
            // It will be tried again.
            self.claims.remove(claim);
        }
        result
    }

    /// Gives a frontend up; who waits for it gets it.
    pub(super) fn release(&mut self, name: &PortName, id: Id, claim: &Claim, flags: u32) -> Result<()> {
        let Some(claimants) = self.claims.get_mut(claim) else { return Ok(()) };
        let was_holder = claimants.front() == Some(name);
        claimants.retain(|claimant| claimant != name);
        if !was_holder {
            return Ok(());
        }
        if protocol_of(claim.protocol) == Some(Protocol::Udp) {
            self.shared.lost.push((name.clone(), *claim, id));
        }
        let next = claimants.front().and_then(|next| {
            let state = self.ports.get(next)?;
            Some((state.id, *state.frontends.get(claim)?))
        });
        let result = match next {
            Some((id, flags)) => self.write_frontend(id, claim, flags),
            None => {
                self.claims.remove(claim);
                match claim.family() {
                    IpFamily::V4 => self.v4.remove_frontend(claim),
                    IpFamily::V6 => self.v6.remove_frontend(claim),
                }
            }
        };
        self.shared.give_up_marks(claim, flags);
        result
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

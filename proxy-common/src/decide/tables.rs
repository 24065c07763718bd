//! The core's environment: maps and helpers in the kernel, other implementations in tests and in `debug trace`.

mod flows;
mod node;
mod packet;
mod services;
mod sockets;
mod steps;

use super::verdict::{DropReason, Verdict};
use crate::{
    Family,
    layout::{
        config::Settings,
        counter::Counter,
        flow::{FlowDraft, FlowKey, LookupPoint},
    },
    packet::Packet,
};

pub use self::{
    flows::{Attempt, Claim, FlowHandle, FlowTables, Found, Inserted},
    node::{NodeAddress, NodeTables, Route, RouteKind},
    packet::{Fragmentable, PacketContext},
    services::{AffinityHandle, ServiceTables},
    sockets::SocketTables,
    steps::Step,
};

/// The maps and helpers that packets need.
pub trait Tables<F: Family>: ServiceTables<F> + FlowTables<F> + NodeTables<F> + PacketContext<F> {
    /// Constants of this node.
    fn settings(&self) -> Settings;
    /// Opens the flow that [`FlowTables::draft`] has, with [`open`](super::open); returns the reason on
    /// failure. A separate function in the kernel.
    fn open_flow(&self, draft: &mut FlowDraft<F>) -> Option<DropReason>;
    /// Finds the flow that a packet belongs to at a lookup point, with [`find`](mod@super::find). A separate
    /// function in the kernel, so that the verifier checks connection tracking once.
    #[inline(always)]
    fn find_flow(&self, packet: &Packet<F>, lookup_point: LookupPoint) -> Option<Self::Flow>
    where
        Self: Sized,
    {
        let key = &FlowKey::new(packet.tuple, packet.protocol, lookup_point);
        match super::find(self, packet, key) {
            Found::None => None,
            Found::Confirmed => self.flow(key),
            // Another CPU may have confirmed it meanwhile.
            Found::Pending => self.pending(key).or_else(|| self.flow(key)),
        }
    }
    /// The route of a packet of this flow, as by [`NodeTables::cached_route`]. In the kernel the flow's entry has a
    /// [`RouteMark`](crate::layout::route_mark::RouteMark) that saves most look-ups.
    #[inline(always)]
    fn route_of_flow(&self, ifindex: u32, flow: &Self::Flow, size: u32) -> Option<Self::CachedRoute> {
        self.cached_route(ifindex, &flow.tuple.src, &flow.tuple.dst, size)
    }
    /// Whether the caller chooses the backend and opens the flow in later steps. The kernel programs run these
    /// steps one after another, not nested: a chain of calls has 512 bytes of stack.
    #[inline(always)]
    fn defers(&self) -> bool {
        false
    }
    /// Tries to open the flow that [`FlowTables::draft`] has with the source port in it, with
    /// [`attempt`](super::attempt). A separate function in the kernel.
    fn attempt(&self, draft: &mut FlowDraft<F>, claim: Claim) -> Attempt;
    /// Moves the flow of which [`FlowTables::draft`] has an entry to the confirmed ones, with
    /// [`confirm`](super::confirm). A separate function in the kernel.
    fn confirm_flow(&self, draft: &mut FlowDraft<F>) -> bool;
    /// 32 random bits.
    fn random(&self) -> u32;
    /// Jiffies, truncated.
    fn now(&self) -> u32;
    /// Increments a counter.
    fn count(&self, counter: Counter);
    /// Counts a packet that is dropped.
    #[inline(always)]
    fn drop(&self, reason: DropReason) -> Verdict {
        self.count(reason.counter());
        self.step(Step::Drop(reason));
        Verdict::Drop
    }
    /// Counts a packet that gets a reply instead of being sent on. Does not count where another program will
    /// decide the same packet again.
    #[inline(always)]
    fn reply(&self, counter: Counter, verdict: Verdict) -> Verdict {
        self.count(counter);
        verdict
    }
    /// Reports a step.
    #[inline(always)]
    fn step(&self, step: Step<F>) {
        let _ = step;
    }
}

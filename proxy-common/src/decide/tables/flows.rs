//! Flows, confirmed or not, and what is remembered beside them.

use core::ops::{Deref, DerefMut};

use crate::{
    Family,
    layout::{
        flow::{Flow, FlowDraft, FlowKey, FlowState, Mac},
        fragment::{FragmentKey, FragmentPorts},
        outbound::Outbound,
    },
};

/// A flow entry that was found, read where it is. Others may be changing it; each write is of one field.
pub trait FlowHandle<F: Family>: Deref<Target = Flow<F>> {
    /// Marks it as seen at `now` (jiffies).
    fn touch(&self, now: u32);
    /// Notes what the handshake has come to.
    fn set_state(&self, state: FlowState);
    /// Notes the backend's MAC.
    fn set_mac(&self, mac: Mac);
    /// Notes the initial sequence number of the side whose packets the entry translates.
    fn set_isn(&self, isn: u32);
    /// Notes that side's last acknowledgment number.
    fn set_acknowledged(&self, acknowledged: u32);
    /// Notes the timestamp of the client's FIN.
    fn set_timestamp(&self, timestamp: u32);
}

/// Whether an entry was inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Inserted {
    /// It was.
    Yes,
    /// There is one with that key.
    Exists,
    /// The map takes no more.
    NoRoom,
}

/// What an attempt to open a flow with a certain source port came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Attempt {
    /// The flow is open.
    Opened = 0,
    /// Another flow, a socket or kernel NAT has the port.
    Taken = 1,
    /// The map takes no more.
    NoRoom = 2,
}

/// Where the flow of a packet was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Found {
    /// Nowhere, or the packet must choose anew.
    None = 0,
    /// Among the confirmed flows.
    Confirmed = 1,
    /// Among the others.
    Pending = 2,
}

/// Flows, and what is remembered of others: which replies may come, what the node sent itself, the ports of first fragments.
pub trait FlowTables<F: Family> {
    /// A flow entry.
    type Flow: FlowHandle<F>;
    /// Room for both entries of a flow.
    type FlowDraft: DerefMut<Target = FlowDraft<F>>;
    /// Room for both entries of a flow, with anything in it; none is a defect.
    fn draft(&self) -> Option<Self::FlowDraft>;
    /// A flow.
    fn flow(&self, key: &FlowKey<F>) -> Option<Self::Flow>;
    /// May a packet from there be a reply with an entry at [`LookupPoint::ReverseEgress`](crate::layout::flow::LookupPoint::ReverseEgress)?
    /// False if the reply filter has no fingerprint of it. The port in network byte order.
    fn may_be_filtered_reply(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool;
    /// Inserts such replies into the reply filter. To be called before their entry is inserted.
    fn insert_reply(&self, addr: &F::Addr, port: u16, protocol: u8);
    /// Inserts or replaces a flow entry; false if the map takes no more.
    fn replace_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool;
    /// Removes a flow entry.
    fn remove_flow(&self, key: &FlowKey<F>);
    /// A flow that is not confirmed.
    fn pending(&self, key: &FlowKey<F>) -> Option<Self::Flow>;
    /// Inserts an entry of an unconfirmed flow if there is none with that key.
    fn insert_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Inserted;
    /// Inserts or replaces an entry of an unconfirmed flow; false if the map takes no more.
    fn replace_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool;
    /// Removes an entry of an unconfirmed flow.
    fn remove_pending(&self, key: &FlowKey<F>);
    /// When the node last sent what this is the tuple of a reply to, from an address and port that are ours as well.
    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound>;
    /// Remembers it.
    fn remember_outbound(&self, key: &FlowKey<F>, outbound: &Outbound);
    /// The ports that the first fragment of a packet had.
    fn fragment(&self, key: &FragmentKey<F>) -> Option<FragmentPorts>;
    /// Remembers them.
    fn remember_fragment(&self, key: &FragmentKey<F>, ports: &FragmentPorts);
}

//! Flows, confirmed or not, and the other maps that record packets.

use core::ops::{Deref, DerefMut};

use crate::{
    Family,
    layout::{
        flow::{Flow, FlowDraft, FlowKey, FlowState, Mac},
        fragment::{FragmentKey, FragmentPorts},
        outbound::Outbound,
    },
};

/// A flow entry, read in the map. Other CPUs may change it; each write is to one field.
pub trait FlowHandle<F: Family>: Deref<Target = Flow<F>> {
    /// Marks it as seen at `now` (jiffies).
    fn touch(&self, now: u32);
    /// Writes the connection-tracking state.
    fn set_state(&self, state: FlowState);
    /// Writes the backend's MAC.
    fn set_mac(&self, mac: Mac);
    /// Writes the initial sequence number of the side whose packets the entry translates.
    fn set_isn(&self, isn: u32);
    /// Writes that side's last acknowledgment number.
    fn set_acknowledged(&self, acknowledged: u32);
    /// Writes the timestamp of the client's FIN.
    fn set_timestamp(&self, timestamp: u32);
}

/// Whether an entry was inserted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Inserted {
    /// It was inserted.
    Yes,
    /// The map has an entry with that key.
    Exists,
    /// The map is full.
    NoRoom,
}

/// When a flow takes the source port of an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Claim {
    /// If no flow has the same replies. Costs the fewest look-ups, and holds for most flows.
    Unused = 0,
    /// If no flow that has the same replies needs it any more.
    Free = 1,
    /// Also from a flow that may have ended.
    Seize = 2,
}

impl Claim {
    /// From its number.
    #[inline(always)]
    pub fn of(number: u32) -> Self {
        match number {
            0 => Self::Unused,
            1 => Self::Free,
            _ => Self::Seize,
        }
    }
}

/// Result of an attempt to open a flow with a certain source port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Attempt {
    /// The flow is open.
    Opened = 0,
    /// Another flow, a socket or kernel NAT has the port.
    Taken = 1,
    /// The map is full.
    NoRoom = 2,
}

/// Where the flow of a packet was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Found {
    /// The packet has no flow, or must choose a new endpoint.
    None = 0,
    /// Among the confirmed flows.
    Confirmed = 1,
    /// Among the unconfirmed flows.
    Pending = 2,
}

/// Flows, the reply filter, packets that the node sent itself, and the ports of first fragments.
pub trait FlowTables<F: Family> {
    /// A flow entry.
    type Flow: FlowHandle<F>;
    /// Room for both entries of a flow.
    type FlowDraft: DerefMut<Target = FlowDraft<F>>;
    /// Scratch memory for both entries of a flow, with undefined content; `None` is a defect.
    fn draft(&self) -> Option<Self::FlowDraft>;
    /// A flow.
    fn flow(&self, key: &FlowKey<F>) -> Option<Self::Flow>;
    /// Whether a packet from this source may be a reply with an entry at
    /// [`LookupPoint::ReverseEgress`](crate::layout::flow::LookupPoint::ReverseEgress). False if the reply
    /// filter has no fingerprint of it. The port in network byte order.
    fn may_be_filtered_reply(&self, addr: &F::Addr, port: u16, protocol: u8) -> bool;
    /// Inserts the source of such replies into the reply filter. Must be called before their entry is inserted.
    fn insert_reply(&self, addr: &F::Addr, port: u16, protocol: u8);
    /// Inserts or replaces a flow entry; false if the map is full.
    fn replace_flow(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool;
    /// Removes a flow entry.
    fn remove_flow(&self, key: &FlowKey<F>);
    /// An unconfirmed flow.
    fn pending(&self, key: &FlowKey<F>) -> Option<Self::Flow>;
    /// Inserts an entry of an unconfirmed flow if the map has none with that key.
    fn insert_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> Inserted;
    /// Inserts or replaces an entry of an unconfirmed flow; false if the map is full.
    fn replace_pending(&self, key: &FlowKey<F>, flow: &Flow<F>) -> bool;
    /// Removes an entry of an unconfirmed flow.
    fn remove_pending(&self, key: &FlowKey<F>);
    /// When the node last sent a packet whose reply has this tuple, from a frontend's or SNAT address and port.
    fn outbound(&self, key: &FlowKey<F>) -> Option<Outbound>;
    /// Records such a packet.
    fn remember_outbound(&self, key: &FlowKey<F>, outbound: &Outbound);
    /// The ports that the first fragment of a packet had.
    fn fragment(&self, key: &FragmentKey<F>) -> Option<FragmentPorts>;
    /// Records the ports of a first fragment.
    fn remember_fragment(&self, key: &FragmentKey<F>, ports: &FragmentPorts);
}

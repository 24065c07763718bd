//! `outbound_v4`, `outbound_v6`: LRU HASH of what leaves the node from addresses and ports that are ours as well, without a flow of
//! ours. Written by the egress programs; the agent enters what conntrack knew before.
//!
//! Kernel NAT uses any port, nodePorts and our source ports included. A reply to what it (or a socket of the node) sent from there
//! looks like a request to a frontend, or like a reply of an endpoint. Keys are tuples as their replies come in.

use super::flow::{FlowKey, LookupPoint, Tuple};
use crate::Family;

/// Entries per family.
pub const ENTRIES: u32 = 1 << 15;

/// When such a packet was seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Outbound {
    /// In jiffies, truncated.
    pub last_seen: u32,
    /// `OUTBOUND_*` bits.
    pub flags: u32,
}

/// Replies do not renew the entry: it stands for a destination that other rules of the kernel translate, for an
/// unknown time.
pub const OUTBOUND_ONCE: u32 = 1;

/// TCP: in use, and silent at times for an unknown time. Connections are known from their SYN; whether they are in use is
/// noted only of those to endpoints that we send connections to, too.
pub const OUTBOUND_ESTABLISHED: u32 = 2;

/// TCP: there was a FIN or a reset. What follows until the next SYN tells nothing.
pub const OUTBOUND_CLOSED: u32 = 4;

/// The key of the replies to a packet that leaves.
#[inline(always)]
pub fn key_of_reply<F: Family>(sent: &Tuple<F>, protocol: u8) -> FlowKey<F> {
    FlowKey::new(sent.reversed(), protocol, LookupPoint::Forward)
}

super::plain!(Outbound);

const _: () = assert!(size_of::<Outbound>() == 8);

//! `outbound_v4`, `outbound_v6`: LRU HASH of packets that leave the node without a flow from addresses and
//! ports that frontends or SNAT use. Written by the egress programs; the agent inserts the connections that
//! conntrack had before.
//!
//! Kernel NAT uses any port, including nodePorts and those for SNAT. A reply to a packet that it (or a socket
//! of the node) sent from such a port looks like a request to a frontend, or like a reply of an endpoint. Keys
//! are the tuples of incoming replies.

use super::flow::{FlowKey, LookupPoint, Tuple};
use crate::Family;

/// Entries per family.
pub const ENTRIES: u32 = 1 << 15;

/// The last such packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Outbound {
    /// When it was seen, in jiffies, truncated.
    pub last_seen: u32,
    /// `OUTBOUND_*` bits.
    pub flags: u32,
}

/// Replies do not renew the entry: it represents a destination that other rules of the kernel translate, for an
/// unknown time.
pub const OUTBOUND_ONCE: u32 = 1;

/// TCP: in use, and possibly silent for an unknown time. Programs see all connections by their SYN, but record
/// the use only of those to endpoints that also have connections through this node.
pub const OUTBOUND_ESTABLISHED: u32 = 2;

/// TCP: a FIN or a reset was seen. Packets until the next SYN are no evidence of use.
pub const OUTBOUND_CLOSED: u32 = 4;

/// The key of the replies to a packet that leaves.
#[inline(always)]
pub fn key_of_reply<F: Family>(sent: &Tuple<F>, protocol: u8) -> FlowKey<F> {
    FlowKey::new(sent.reversed(), protocol, LookupPoint::Forward)
}

super::plain!(Outbound);

const _: () = assert!(size_of::<Outbound>() == 8);

//! `flows_v4`, `flows_v6`: LRU HASH that [grows by use](super::by_use) of confirmed flows; `pending_v4`, `pending_v6`: LRU HASH of unconfirmed
//! ones. Written by the packet programs.
//!
//! A TCP flow is confirmed by the client's ACK of the endpoint's SYN-ACK, a UDP flow by a reply. Until then a
//! sender can open flows from forged addresses, so unconfirmed flows have a separate map: a flood evicts only
//! other unconfirmed flows.
//!
//! Every translation, in either direction and for any reason, is "tuple as seen -> tuple as sent". The two
//! entries of a flow are inverse to each other, so that either can be restored from its opposite.

use core::sync::atomic::{Ordering, compiler_fence};

use super::id::Id;
use crate::{Family, V4, V6};

/// Addresses and ports of a packet.
///
/// ```
/// use proxy_common::{V4, layout::flow::Tuple};
///
/// let addr = |bytes: [u8; 4]| u32::from_ne_bytes(bytes);
/// let request = Tuple::<V4> {
///     src: addr([10, 244, 1, 7]),
///     dst: addr([10, 96, 0, 1]),
///     sport: 40_000u16.to_be(),
///     dport: 443u16.to_be(),
/// };
/// let reply = request.reversed();
/// assert_eq!(reply.src.to_ne_bytes(), [10, 96, 0, 1]);
/// assert_eq!(u16::from_be(reply.dport), 40_000);
/// assert!(reply.reversed().same(&request));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Tuple<F: Family> {
    /// Source address.
    pub src: F::Addr,
    /// Destination address.
    pub dst: F::Addr,
    /// Source port, network byte order.
    pub sport: u16,
    /// Destination port, network byte order.
    pub dport: u16,
}

impl<F: Family> Tuple<F> {
    /// The tuple of the reply.
    #[inline(always)]
    pub fn reversed(&self) -> Self {
        Self { src: self.dst, dst: self.src, sport: self.dport, dport: self.sport }
    }

    /// Becomes the tuple of the reply to another, one address after the other: registers and stack are scarce.
    #[inline(always)]
    pub fn set_reversed(&mut self, other: &Self) {
        self.src = other.dst;
        compiler_fence(Ordering::SeqCst);
        self.dst = other.src;
        compiler_fence(Ordering::SeqCst);
        self.sport = other.dport;
        self.dport = other.sport;
    }

    /// Equality without a call to a comparison function.
    #[inline(always)]
    pub fn same(&self, other: &Self) -> bool {
        F::same(&self.src, &other.src)
            & F::same(&self.dst, &other.dst)
            & (self.sport == other.sport)
            & (self.dport == other.dport)
    }
}

/// Where a tuple is seen. A hook looks up only its own points: without the point in the key, the reply of a
/// local backend would be translated at the backend's interface, before the host's conntrack sees the flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LookupPoint {
    /// Client to VIP, where it enters: from a pod or by an uplink.
    Forward = 0,
    /// Backend to client, where it leaves: to a pod or by an uplink.
    ReverseEgress = 1,
    /// Backend to the SNAT address, where it enters: remote backends, and hairpin.
    ReverseIngress = 2,
}

/// A tuple as seen at a lookup point.
///
/// ```
/// use proxy_common::{
///     V4,
///     layout::flow::{FlowKey, LookupPoint, Tuple},
///     packet::PROTOCOL_TCP,
/// };
///
/// // The reply of a backend on this node is seen twice: where it comes from the backend, and where it leaves to the client.
/// let reply = Tuple::<V4>::default();
/// let leaves = FlowKey::new(reply, PROTOCOL_TCP, LookupPoint::ReverseEgress);
/// let enters = FlowKey::new(reply, PROTOCOL_TCP, LookupPoint::ReverseIngress);
/// assert_ne!(leaves, enters);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct FlowKey<F: Family> {
    /// The tuple, as seen.
    pub tuple: Tuple<F>,
    /// IP protocol number.
    pub protocol: u8,
    /// A [`LookupPoint`].
    pub lookup_point: u8,
    /// Always 0.
    pub zero: u16,
}

impl<F: Family> FlowKey<F> {
    /// A key.
    #[inline(always)]
    pub fn new(tuple: Tuple<F>, protocol: u8, lookup_point: LookupPoint) -> Self {
        Self { tuple, protocol, lookup_point: lookup_point as u8, zero: 0 }
    }
}

/// Flags that both entries of a flow share, except [`REVERSE`](flags::REVERSE).
pub mod flags {
    /// SNAT: the source was changed too, and replies come back to this node's address.
    pub const SNAT: u8 = 1;
    /// A pod connects to itself: the source is the VIP, and packets return to the interface they came from.
    pub const HAIRPIN: u8 = 2;
    /// Client and backend are on one bridge: the frame is addressed to the backend's MAC so that the bridge
    /// forwards it.
    pub const SWITCHED: u8 = 4;
    /// The entry is the one for replies.
    pub const REVERSE: u8 = 8;
    /// The node routes by source: replies are sent by the route for the frontend's address, not the endpoint's.
    pub const BY_SOURCE: u8 = 16;
}

/// Connection-tracking state of a flow. Both entries have the same, except that only the reverse entry has
/// TCP's `SynReceived`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// Only the client has sent packets.
    New = 0,
    /// TCP: the endpoint sent its SYN-ACK. In the reverse entry; the forward entry is still `New`. Datagrams: [`FlowState::REPLIED`].
    SynReceived = 1,
    /// TCP: a reset in the window. A packet of either side makes the flow established again: an endpoint
    /// answers a reset that it does not accept (RFC 5961 section 3.2).
    Reset = 2,
    /// TCP: the client acknowledged the SYN-ACK; from here on the flow is confirmed. Datagrams: more than a request and its reply
    /// (conntrack: ASSURED).
    Established = 3,
    /// FIN by the client. From here on the next SYN is another connection.
    ClosingByClient = 4,
    /// FIN by the endpoint.
    ClosingByServer = 5,
    /// FIN by both, the endpoint's first: its kernel keeps TIME-WAIT.
    TimeWait = 6,
    /// FIN by both, the client's first: the endpoint keeps no state.
    Closed = 7,
}

impl FlowState {
    /// Datagrams: a request and its reply, and no packet since. The flow is confirmed, but probably ended:
    /// conntrack keeps such flows as short as those without a reply. Its packets take the packet path (the
    /// state is below `Established`), which sees the next one.
    pub const REPLIED: Self = Self::SynReceived;

    /// Whether one side or both ended it. Then the next SYN is another connection.
    #[inline(always)]
    pub fn is_ending(state: u8) -> bool {
        state >= Self::ClosingByClient as u8 || state == Self::Reset as u8
    }

    /// Whether no more packets are expected.
    #[inline(always)]
    pub fn is_closed(state: u8) -> bool {
        state >= Self::TimeWait as u8 || state == Self::Reset as u8
    }
}

/// A MAC address in words that need no byte-wise copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Mac(pub [u16; 3]);

impl Mac {
    /// Unknown.
    pub const NONE: Self = Self([0; 3]);

    /// Whether it is [`Mac::NONE`].
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] == 0
    }
}

/// The tuple as sent, and the state that later packets need.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Flow<F: Family> {
    /// As sent.
    pub tuple: Tuple<F>,
    /// When it was last refreshed, in jiffies, truncated; see [`REFRESH`].
    pub last_seen: u32,
    /// The backend.
    pub backend: Id,
    /// The service port.
    pub service: Id,
    /// A [`FlowState`].
    pub state: u8,
    /// [`flags`].
    pub flags: u8,
    /// With [`flags::SWITCHED`]: the backend's MAC, or [`Mac::NONE`] until the neighbour is resolved. With
    /// [`flags::SNAT`]: a [`RouteMark`](super::route_mark::RouteMark).
    pub mac: Mac,
    /// TCP: initial sequence number of the side whose packets this entry translates; 0: unknown. UDP, entry for
    /// requests: when the frontend was last looked up, in the unit of `last_seen`.
    pub isn: u32,
    /// TCP: the last acknowledgment number of that side; 0: unknown. A reset of the other side must be in the
    /// window that starts here.
    pub acknowledged: u32,
    /// TCP, reverse entry, with [`flags::SNAT`]: timestamp of the client's FIN (RFC 7323); 0: none. In a draft:
    /// that of the client's SYN.
    pub timestamp: u32,
}

impl<F: Family> Flow<F> {
    /// Whether this is the opposite of the entry with that key. An entry of another flow may have replaced it:
    /// a client's next connection from the same port has the same forward key, but mostly another endpoint or
    /// source port.
    #[inline(always)]
    pub fn is_opposite_of(&self, key: &FlowKey<F>) -> bool {
        let (sent, seen) = (&self.tuple, &key.tuple);
        F::same(&sent.src, &seen.dst)
            & F::same(&sent.dst, &seen.src)
            & (sent.sport == seen.dport)
            & (sent.dport == seen.sport)
    }
}

/// Window in which a reset is accepted, in bytes after the last number that the other side acknowledged: two of
/// the longest segments, the data that it may have received and not acknowledged yet (RFC 9293 section
/// 3.8.6.3). It acknowledges further data at once, and then the sender's stack, which has no such
/// connection any more, sends a reset with the exact number. Not wider than receive windows: an endpoint takes
/// a reset with the exact number only, answers others in its window, and ignores the rest (RFC 5961 section
/// 3.2).
pub const RESET_WINDOW: u32 = 1 << 15;

/// The window for a FIN, which may be far ahead: as much data may be in flight as fits into a receiver's
/// buffer. It has only one of 256 sequence numbers.
pub const FIN_WINDOW: u32 = 1 << 24;

/// An entry is refreshed when it was last refreshed this many jiffies ago: between 0.25 s (HZ 1000) and 2.6 s
/// (HZ 100), so that a busy flow writes to its entries about once a second.
pub const REFRESH: u32 = 256;

/// Draft of both entries of a flow. Too large for the kernel's 512 bytes of stack: programs have one per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowDraft<F: Family> {
    /// Key of the current entry.
    pub key: FlowKey<F>,
    /// The current entry.
    pub flow: Flow<F>,
    /// Key of the opposite entry.
    pub opposite_key: FlowKey<F>,
    /// The opposite entry.
    pub opposite: Flow<F>,
    /// During the search for a source port: the port that is taken over if no free one is found.
    pub spare: Spare,
    /// [`Device::peer_namespace`](super::device::Device::peer_namespace) of the client, if a connection of the
    /// client without a flow could have the same replies; else 0.
    pub client_namespace: u32,
}

/// A source port of a flow that may have ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Spare {
    /// How expendable the flow is: the jiffies for which it has been idle, with [`Spare::EXPENDABLE`]; 0: no
    /// port found.
    pub rank: u32,
    /// Its port, network byte order.
    pub port: u16,
    /// Index of the source address it belongs to.
    pub source: u8,
    /// Index of the source address that is tried now.
    pub tried: u8,
}

impl Spare {
    /// Bit of flows that never had more than a request and its reply: those give way before all others.
    pub const EXPENDABLE: u32 = 1 << 31;
}

impl<F: Family> FlowDraft<F> {
    /// Sets the current entry.
    #[inline(always)]
    pub fn begin(&mut self, key: &FlowKey<F>, flow: &Flow<F>) {
        self.key = *key;
        self.flow = *flow;
    }

    /// Makes the opposite entry from the current one: its key is the sent tuple reversed, its result the seen
    /// tuple reversed.
    #[inline(always)]
    pub fn make_opposite(&mut self) {
        let Self { key, flow, opposite_key, opposite, .. } = self;
        let lookup_point = if flow.flags & flags::REVERSE != 0 {
            LookupPoint::Forward
        } else if flow.flags & (flags::SNAT | flags::HAIRPIN) != 0 {
            LookupPoint::ReverseIngress
        } else {
            LookupPoint::ReverseEgress
        };
        opposite_key.tuple.set_reversed(&flow.tuple);
        opposite_key.protocol = key.protocol;
        opposite_key.lookup_point = lookup_point as u8;
        opposite_key.zero = 0;
        opposite.tuple.set_reversed(&key.tuple);
        opposite.last_seen = flow.last_seen;
        opposite.backend = flow.backend;
        opposite.service = flow.service;
        opposite.state = flow.state;
        // The packets of the other side have another route.
        opposite.mac = if flow.flags & flags::SNAT == 0 { flow.mac } else { Mac::NONE };
        opposite.isn = 0;
        opposite.acknowledged = 0;
        opposite.timestamp = 0;
        opposite.flags = flow.flags ^ flags::REVERSE;
    }
}

super::plain!(Tuple<F>, FlowKey<F>, Flow<F>, Mac);

const _: () = {
    use core::mem::offset_of;
    assert!(size_of::<Tuple<V4>>() == 12 && size_of::<Tuple<V6>>() == 36);
    assert!(size_of::<FlowKey<V4>>() == 16 && size_of::<FlowKey<V6>>() == 40);
    assert!(offset_of!(FlowKey<V4>, lookup_point) == 13 && offset_of!(FlowKey<V6>, lookup_point) == 37);
    assert!(size_of::<Flow<V4>>() == 44 && size_of::<Flow<V6>>() == 68);
    assert!(offset_of!(Flow<V4>, last_seen) == 12 && offset_of!(Flow<V4>, mac) == 26);
    assert!(size_of::<FlowDraft<V4>>() == 132 && size_of::<FlowDraft<V6>>() == 228);
    assert!(offset_of!(Flow<V6>, last_seen) == 36 && offset_of!(Flow<V6>, mac) == 50);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opposite_entries_make_each_other() {
        for (bits, lookup_point) in [
            (0, LookupPoint::ReverseEgress),
            (flags::SNAT, LookupPoint::ReverseIngress),
            (flags::HAIRPIN, LookupPoint::ReverseIngress),
            (flags::SWITCHED, LookupPoint::ReverseEgress),
        ] {
            let key =
                FlowKey::<V4>::new(Tuple { src: 1, dst: 2, sport: 3, dport: 4 }, 6, LookupPoint::Forward);
            let tuple = Tuple { src: 9, dst: 8, sport: 7, dport: 6 };
            let flow = Flow { tuple, flags: bits, service: Id(5), backend: Id(6), ..Flow::default() };
            let mut draft = FlowDraft::default();
            draft.begin(&key, &flow);
            draft.make_opposite();
            assert_eq!(
                draft.opposite_key,
                FlowKey::new(Tuple { src: 8, dst: 9, sport: 6, dport: 7 }, 6, lookup_point)
            );
            assert_eq!(draft.opposite.tuple, Tuple { src: 2, dst: 1, sport: 4, dport: 3 });
            let mut back = FlowDraft::default();
            back.begin(&draft.opposite_key, &draft.opposite);
            back.make_opposite();
            assert_eq!((back.opposite_key, back.opposite), (key, flow), "flags {bits}");
        }
    }
}

//! `flows_v4`, `flows_v6`: LRU HASH of confirmed flows; `pending_v4`, `pending_v6`: LRU HASH of those that are not confirmed yet.
//! Written by the packet programs.
//!
//! A TCP flow is confirmed by the client's ACK of the endpoint's SYN-ACK, a UDP flow by a reply. Until then anybody can open
//! flows from forged addresses, so they live in a map of their own: a flood pushes out other unconfirmed flows only.
//!
//! Every translation, whatever its direction and reason, is "tuple as seen -> tuple as sent". The two entries
//! of a flow are each the inverse of the other, so that either can be made again from its opposite.

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

    /// Becomes the tuple of the reply to another, one address after the other: there are few registers, and little stack.
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
/// local backend would be translated at the backend's interface, before the host's conntrack knew its flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum LookupPoint {
    /// Client to VIP, where it enters: from a pod or by an uplink.
    Forward = 0,
    /// Backend to client, where it leaves: to a pod or by an uplink.
    ReverseEgress = 1,
    /// Backend to the address we gave as source, where it enters: remote backends, and hairpin.
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
    /// As seen.
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

/// How a flow leaves, and how its replies come back: the same bits in both entries.
pub mod flags {
    /// The source was changed too, and replies come back to this node's address.
    pub const SNAT: u8 = 1;
    /// A pod talks to itself: source is the VIP, and packets return to the interface they came from.
    pub const HAIRPIN: u8 = 2;
    /// Client and backend are on one bridge: the frame goes to the backend's MAC so that it is switched.
    pub const SWITCHED: u8 = 4;
    /// In the entry for replies.
    pub const REVERSE: u8 = 8;
    /// The node routes by source: replies are sent where packets from the frontend's address go, not those from the endpoint's.
    pub const BY_SOURCE: u8 = 16;
}

/// Connection-tracking state of a flow. Both entries have the same, except that TCP's `SynReceived` is noted in the reverse entry alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FlowState {
    /// Only the client was heard.
    New = 0,
    /// TCP: the endpoint sent its SYN-ACK. In the reverse entry; the forward entry is still `New`. Datagrams: [`FlowState::REPLIED`].
    SynReceived = 1,
    /// TCP: a reset in the window. A packet of either side makes the flow established again: an endpoint answers a reset
    /// that it does not accept (RFC 5961 section 3.2).
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
    /// FIN by both, the client's first: the endpoint keeps nothing.
    Closed = 7,
}

impl FlowState {
    /// Datagrams: a request and its reply, and nothing since. The flow is confirmed, but most likely over: conntrack keeps such flows as
    /// short as those without a reply. Its packets take the packet path (the state is below `Established`), so that the next one is seen.
    pub const REPLIED: Self = Self::SynReceived;

    /// Has one side ended it, or both? Then the next SYN is another connection.
    #[inline(always)]
    pub fn is_ending(state: u8) -> bool {
        state >= Self::ClosingByClient as u8 || state == Self::Reset as u8
    }

    /// Is nothing more to come?
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
    /// Not known.
    pub const NONE: Self = Self([0; 3]);

    /// Is it [`Mac::NONE`]?
    #[inline(always)]
    pub fn is_none(&self) -> bool {
        self.0[0] | self.0[1] | self.0[2] == 0
    }
}

/// The tuple as sent, and what else the next packet needs to know.
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
    /// With [`flags::SWITCHED`]: the backend's MAC, or none until a neighbour entry tells.
    pub mac: Mac,
    /// TCP: initial sequence number of the side whose packets this entry translates; 0: not known. UDP, entry for requests: when the
    /// frontend was last looked up, as `last_seen` has it.
    pub isn: u32,
    /// TCP: the last acknowledgment number of that side; 0: not known. A reset of the other side must be in the window that starts here.
    pub acknowledged: u32,
    /// TCP, reverse entry, with [`flags::SNAT`]: timestamp of the client's FIN (RFC 7323); 0: it has none. In an entry that is being
    /// made: that of the client's SYN.
    pub timestamp: u32,
}

impl<F: Family> Flow<F> {
    /// Is this the other entry of the flow with an entry of that key? One of another flow may have taken its place: a client's next
    /// connection from the same port has the same forward key, but mostly another endpoint or source port.
    #[inline(always)]
    pub fn is_opposite_of(&self, key: &FlowKey<F>) -> bool {
        let (sent, seen) = (&self.tuple, &key.tuple);
        F::same(&sent.src, &seen.dst)
            & F::same(&sent.dst, &seen.src)
            & (sent.sport == seen.dport)
            & (sent.dport == seen.sport)
    }
}

/// Window in which a reset is taken for one, in bytes behind what the other side acknowledged last: what it may have received and not
/// acknowledged yet, two of the longest segments (RFC 9293 section 3.8.6.3). It acknowledges more at once, and then the sender's stack, which
/// does not know the connection any more, resets it once more with the exact number. Not wider than receive windows: an endpoint takes a
/// reset with the exact number only, answers others in its window, and is silent about the rest (RFC 5961 section 3.2).
pub const RESET_WINDOW: u32 = 1 << 15;

/// The same for a FIN, which may be far behind: all that fits into a receiver's buffer may be in flight. Only one of 256 numbers
/// is in it.
pub const FIN_WINDOW: u32 = 1 << 24;

/// An entry is refreshed when it was last refreshed this many jiffies ago: between 0.25 s (HZ 1000) and 2.6 s
/// (HZ 100), so that a busy flow writes to its entries about once a second.
pub const REFRESH: u32 = 256;

/// Both entries of a flow in the making. Too large for the kernel's 512 bytes of stack: programs have one per CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct FlowDraft<F: Family> {
    /// Key of the entry at hand.
    pub key: FlowKey<F>,
    /// The entry at hand.
    pub flow: Flow<F>,
    /// Key of the other one.
    pub opposite_key: FlowKey<F>,
    /// The other one.
    pub opposite: Flow<F>,
    /// While a source port is looked for: the flow that gives its port if there is no better one.
    pub spare: Spare,
    /// [`Device::peer_namespace`](super::device::Device::peer_namespace) of the client, if a connection of the client that does not go by
    /// a flow could have the same replies; 0: none could.
    pub client_namespace: u32,
}

/// A source port of a flow that may be over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Spare {
    /// How little the flow would be missed: for how many jiffies it has been idle, with [`Spare::EXPENDABLE`]; 0: there is no such port.
    pub rank: u32,
    /// Its port, network byte order.
    pub port: u16,
    /// Which of several source addresses it has.
    pub source: u8,
    /// Which of them is tried.
    pub tried: u8,
}

impl Spare {
    /// Bit of flows that were never more than a request and its reply: those give way before all others.
    pub const EXPENDABLE: u32 = 1 << 31;
}

impl<F: Family> FlowDraft<F> {
    /// Takes the entry at hand over.
    #[inline(always)]
    pub fn begin(&mut self, key: &FlowKey<F>, flow: &Flow<F>) {
        self.key = *key;
        self.flow = *flow;
    }

    /// Makes the other entry from the one at hand: what is sent comes back reversed, and becomes what was seen, reversed.
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
        opposite.mac = flow.mac;
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

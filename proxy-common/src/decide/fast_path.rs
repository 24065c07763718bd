//! The fast path for nearly all packets: those that are certainly not for a service, and those of a known flow
//! whose state they do not change.
//!
//! Its result is that of the [packet path](super::packet), which handles all other packets. Programs try the
//! fast path first because it is cheap: hardly any stack, no other memory, no calls but one look-up.

use core::sync::atomic::{Ordering, compiler_fence};

use super::{
    packet::may_be_reply,
    tables::{FlowHandle as _, RouteKind, Tables},
    verdict::Verdict,
};
use crate::{
    Family,
    layout::{
        counter::Counter,
        flow::{Flow, FlowKey, FlowState, LookupPoint, REFRESH, flags},
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet, tcp_flags},
};

/// Result of the fast path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FastPath<E> {
    /// The packet is certainly not for a service.
    Pass,
    /// The packet belongs to this entry's flow.
    Follow(E),
    /// No result: the packet path decides.
    Undecided,
}

/// For [`pod_ingress`](super::pod_ingress). The key of the entry is written to `key`.
#[inline(always)]
pub fn pod_ingress<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> FastPath<T::Flow> {
    if may_be_reply(tables, packet) {
        return FastPath::Undecided;
    }
    request(tables, packet, key)
}

/// For [`uplink_ingress`](super::uplink_ingress).
#[inline(always)]
pub fn uplink_ingress<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> FastPath<T::Flow> {
    if may_be_reply(tables, packet) {
        write(key, packet, LookupPoint::ReverseIngress);
        match reply(tables, packet, key) {
            FastPath::Pass => {}
            known => return known,
        }
    }
    request(tables, packet, key)
}

/// For [`pod_egress`](super::pod_egress).
#[inline(always)]
pub fn pod_egress<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> FastPath<T::Flow> {
    match leaving(tables, packet, key) {
        FastPath::Pass if may_be_outbound(tables, packet, key) => FastPath::Undecided,
        known => known,
    }
}

/// For [`uplink_egress`](super::uplink_egress).
#[inline(always)]
pub fn uplink_egress<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> FastPath<T::Flow> {
    match leaving(tables, packet, key) {
        FastPath::Pass
            if tables.is_service_address(&key.tuple.dst)
                || may_be_outbound(tables, packet, key)
                || may_be_returning(tables, key) =>
        {
            FastPath::Undecided
        }
        FastPath::Follow(flow) if flow.flags & flags::BY_SOURCE != 0 => FastPath::Undecided,
        known => known,
    }
}

/// Whether the packet may have to be recorded as sent by the node. Forwarded packets are not: they leave by the
/// uplink that they came in by.
#[inline(always)]
fn may_be_outbound<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, key: &FlowKey<F>) -> bool {
    let is_datagram = key.protocol == PROTOCOL_UDP;
    let tuple = &key.tuple;
    is_datagram && tables.may_be_frontend(&tuple.src, tuple.sport, key.protocol)
        || tables.settings().is_snat_port(tuple.sport)
            && tables.may_be_snat_source(&tuple.src)
            && tables.came_in() != tables.leaves()
            && (is_datagram
                || packet.tcp_flags & tcp_flags::SYN != 0
                || tables.may_be_filtered_reply(&tuple.dst, tuple.dport, key.protocol))
}

/// Whether the packet came in by an interface and is still addressed to a service.
#[inline(always)]
fn may_be_returning<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F>) -> bool {
    tables.came_in() != 0 && tables.may_be_frontend(&key.tuple.dst, key.tuple.dport, key.protocol)
}

/// The verdict for a packet of such a flow; [`route`] finds the route for [`Verdict::Redirect`].
#[inline(always)]
pub fn verdict<F: Family>(flow: &Flow<F>) -> Verdict {
    if flow.flags & flags::SNAT != 0 {
        Verdict::Redirect
    } else if flow.flags & (flags::SWITCHED | flags::REVERSE) == flags::SWITCHED {
        Verdict::Bridge
    } else {
        Verdict::ToStack
    }
}

/// Finds the route of a packet with [`Verdict::Redirect`]; `None` if the packet path must decide.
#[inline(always)]
pub fn route<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    flow: &T::Flow,
    ifindex: u32,
) -> Option<T::CachedRoute> {
    if packet.hop_limit <= 1 {
        return None;
    }
    let route = tables.route_of_flow(ifindex, flow, tables.size(packet))?;
    matches!(route.kind, RouteKind::Neighbour | RouteKind::Unresolved | RouteKind::Stack).then_some(route)
}

/// The counter for packets of such a flow.
#[inline(always)]
pub fn counter<F: Family>(flow: &Flow<F>) -> Counter {
    if flow.flags & flags::REVERSE != 0 { Counter::FlowReverse } else { Counter::FlowForward }
}

#[inline(always)]
fn request<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> FastPath<T::Flow> {
    write(key, packet, LookupPoint::Forward);
    if !tables.may_be_frontend(&key.tuple.dst, key.tuple.dport, key.protocol) {
        return FastPath::Pass;
    }
    // The packet path looks the flow up itself.
    if is_turn(packet) {
        return FastPath::Undecided;
    }
    let Some(flow) = tables.flow(key) else { return FastPath::Undecided };
    // A datagram chooses a new endpoint when its endpoint or its frontend is gone; the frontend is looked up
    // about once a second.
    let stays = match key.protocol {
        PROTOCOL_UDP => tables.is_alive(flow.backend) && tables.now().wrapping_sub(flow.isn) < REFRESH,
        PROTOCOL_TCP => !tables.settings().reset_removed_tcp || tables.is_alive(flow.backend),
        _ => true,
    };
    let needs_mac = flow.flags & flags::SWITCHED != 0 && flow.mac.is_none();
    let is_not_hairpin = flow.flags & flags::HAIRPIN == 0;
    if stays && !needs_mac && is_not_hairpin && has_no_news(tables, packet, &flow) {
        note_acknowledgment(tables, packet, key, &flow);
        FastPath::Follow(flow)
    } else {
        FastPath::Undecided
    }
}

/// The flow of a packet that leaves, if the packet is a reply.
#[inline(always)]
fn leaving<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> FastPath<T::Flow> {
    write(key, packet, LookupPoint::ReverseEgress);
    if tables.may_be_filtered_reply(&key.tuple.src, key.tuple.sport, key.protocol) {
        reply(tables, packet, key)
    } else {
        FastPath::Pass
    }
}

#[inline(always)]
fn reply<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, key: &FlowKey<F>) -> FastPath<T::Flow> {
    let Some(flow) = tables.flow(key) else {
        return if tables.pending(key).is_some() { FastPath::Undecided } else { FastPath::Pass };
    };
    if flow.flags & flags::HAIRPIN == 0 && has_no_news(tables, packet, &flow) {
        note_acknowledgment(tables, packet, key, &flow);
        FastPath::Follow(flow)
    } else {
        FastPath::Undecided
    }
}

/// As [`track`](super::track) does: the window check for resets needs the acknowledgment number.
#[inline(always)]
fn note_acknowledgment<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &T::Flow,
) {
    if key.protocol == PROTOCOL_TCP && packet.tcp_flags & tcp_flags::ACK != 0 {
        flow.set_acknowledged(tables.acknowledgment(packet));
    }
}

/// Whether the packet opens or ends a connection.
#[inline(always)]
fn is_turn<F: Family>(packet: &Packet<F>) -> bool {
    const TURNS: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;
    packet.tcp_flags & TURNS != 0
}

/// Whether the packet neither opens nor ends the flow, and the flow was not reset and was refreshed recently.
#[inline(always)]
fn has_no_news<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, flow: &Flow<F>) -> bool {
    !is_turn(packet)
        && flow.state > FlowState::Reset as u8
        && !packet.follows
        && tables.now().wrapping_sub(flow.last_seen) < REFRESH
}

/// Writes the key. Callers read the tuple from there: a second copy would take stack.
#[inline(always)]
fn write<F: Family>(key: &mut FlowKey<F>, packet: &Packet<F>, lookup_point: LookupPoint) {
    *key = FlowKey::new(packet.tuple, packet.protocol, lookup_point);
    compiler_fence(Ordering::SeqCst);
}

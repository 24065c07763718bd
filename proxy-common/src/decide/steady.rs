//! The shortcut for nearly all packets: those that are surely not for a service, and those of a flow that is there and about
//! which they tell nothing new.
//!
//! What it says is what the [packet path](super::packet) would say, which everything else is left to. Programs ask here
//! first because it takes little: hardly any stack, no other memory, no calls but one look-up.

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
        flow::{Edge, Flow, FlowKey, FlowState, REFRESH, flags},
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet, tcp_flags},
};

/// What can be said of a packet without further ado.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Steady<E> {
    /// It is surely not for a service.
    Pass,
    /// It goes the way of this entry's flow.
    Follow(E),
    /// Nothing: ask the packet path.
    Further,
}

/// For [`from_pod`](super::from_pod). The key of the entry is put together where the caller says.
#[inline(always)]
pub fn from_pod<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> Steady<T::Flow> {
    if may_be_reply(tables, packet) {
        return Steady::Further;
    }
    request(tables, packet, key)
}

/// For [`from_uplink`](super::from_uplink).
#[inline(always)]
pub fn from_uplink<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> Steady<T::Flow> {
    if may_be_reply(tables, packet) {
        write(key, packet, Edge::ReverseIngress);
        match answer(tables, packet, key) {
            Steady::Pass => {}
            known => return known,
        }
    }
    request(tables, packet, key)
}

/// For [`to_client`](super::to_client).
#[inline(always)]
pub fn to_client<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> Steady<T::Flow> {
    match leaving(tables, packet, key) {
        Steady::Pass if may_be_outbound(tables, packet, key) => Steady::Further,
        known => known,
    }
}

/// For [`to_outside`](super::to_outside).
#[inline(always)]
pub fn to_outside<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &mut FlowKey<F>,
) -> Steady<T::Flow> {
    match leaving(tables, packet, key) {
        Steady::Pass
            if tables.is_service_address(&key.tuple.dst)
                || may_be_outbound(tables, packet, key)
                || may_be_returning(tables, key) =>
        {
            Steady::Further
        }
        Steady::Follow(flow) if flow.flags & flags::BY_SOURCE != 0 => Steady::Further,
        known => known,
    }
}

/// Must it be remembered that the node sent this? Not what we sent on ourselves, which leaves by the uplink that it came by.
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
                || tables.may_be_answer(&tuple.dst, tuple.dport, key.protocol))
}

/// Did it come from outside, and is it for a service still?
#[inline(always)]
fn may_be_returning<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F>) -> bool {
    tables.came_in() != 0 && tables.may_be_frontend(&key.tuple.dst, key.tuple.dport, key.protocol)
}

/// What is done with a packet of such a flow, but for [`Verdict::Forward`] its route.
#[inline(always)]
pub fn verdict<F: Family>(flow: &Flow<F>) -> Verdict {
    if flow.flags & flags::SNAT != 0 {
        Verdict::Forward
    } else if flow.flags & (flags::SWITCHED | flags::REVERSE) == flags::SWITCHED {
        Verdict::Switch
    } else {
        Verdict::Translate
    }
}

/// Finds the way of a packet with [`Verdict::Forward`]; none if there is more to say of it.
#[inline(always)]
pub fn route<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    flow: &Flow<F>,
    ifindex: u32,
) -> Option<T::KnownRoute> {
    if packet.hop_limit <= 1 {
        return None;
    }
    let to = &flow.tuple;
    let route = tables.known_route(ifindex, &to.src, &to.dst, tables.size(packet))?;
    matches!(route.kind, RouteKind::Neighbour | RouteKind::Unresolved | RouteKind::Stack).then_some(route)
}

/// What counts a packet of such a flow.
#[inline(always)]
pub fn counter<F: Family>(flow: &Flow<F>) -> Counter {
    if flow.flags & flags::REVERSE != 0 { Counter::FlowReverse } else { Counter::FlowForward }
}

#[inline(always)]
fn request<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, key: &mut FlowKey<F>) -> Steady<T::Flow> {
    write(key, packet, Edge::Forward);
    if !tables.may_be_frontend(&key.tuple.dst, key.tuple.dport, key.protocol) {
        return Steady::Pass;
    }
    // The packet path looks for the flow itself.
    if is_turn(packet) {
        return Steady::Further;
    }
    let Some(flow) = tables.flow(key) else { return Steady::Further };
    // A datagram chooses anew when its endpoint is gone, or its frontend, which is looked at about once a second.
    let stays = match key.protocol {
        PROTOCOL_UDP => tables.is_alive(flow.backend) && tables.now().wrapping_sub(flow.isn) < REFRESH,
        PROTOCOL_TCP => !tables.settings().reset_removed_tcp || tables.is_alive(flow.backend),
        _ => true,
    };
    let needs_mac = flow.flags & flags::SWITCHED != 0 && flow.mac.is_none();
    let is_usual = flow.flags & flags::HAIRPIN == 0;
    if stays && !needs_mac && is_usual && has_no_news(tables, packet, &flow) {
        note_acknowledgment(tables, packet, key, &flow);
        Steady::Follow(flow)
    } else {
        Steady::Further
    }
}

/// An answer on its way out, if it is one.
#[inline(always)]
fn leaving<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, key: &mut FlowKey<F>) -> Steady<T::Flow> {
    write(key, packet, Edge::ReverseEgress);
    if tables.may_be_answer(&key.tuple.src, key.tuple.sport, key.protocol) {
        answer(tables, packet, key)
    } else {
        Steady::Pass
    }
}

#[inline(always)]
fn answer<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, key: &FlowKey<F>) -> Steady<T::Flow> {
    let Some(flow) = tables.flow(key) else {
        return if tables.pending(key).is_some() { Steady::Further } else { Steady::Pass };
    };
    if flow.flags & flags::HAIRPIN == 0 && has_no_news(tables, packet, &flow) {
        note_acknowledgment(tables, packet, key, &flow);
        Steady::Follow(flow)
    } else {
        Steady::Further
    }
}

/// As [`track`](super::track) does. A reset is judged by it.
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

/// Does it open or end a connection?
#[inline(always)]
fn is_turn<F: Family>(packet: &Packet<F>) -> bool {
    const TURNS: u8 = tcp_flags::SYN | tcp_flags::FIN | tcp_flags::RST;
    packet.tcp_flags & TURNS != 0
}

/// It neither opens nor ends the flow, which was not reset, and was marked as seen not long ago.
#[inline(always)]
fn has_no_news<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, flow: &Flow<F>) -> bool {
    !is_turn(packet)
        && flow.state > FlowState::Reset as u8
        && !packet.follows
        && tables.now().wrapping_sub(flow.last_seen) < REFRESH
}

/// Writes the key, from which the tuple is read from then on: keeping it elsewhere would take stack.
#[inline(always)]
fn write<F: Family>(key: &mut FlowKey<F>, packet: &Packet<F>, edge: Edge) {
    *key = FlowKey::new(packet.tuple, packet.protocol, edge);
    compiler_fence(Ordering::SeqCst);
}

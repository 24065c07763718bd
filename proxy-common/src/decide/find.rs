//! Finding the flow of a packet, and bringing it up to date with it.

use super::{
    frontend,
    tables::{FlowHandle as _, Found, Step, Tables},
    track,
};
use crate::{
    Family,
    layout::flow::{Flow, FlowKey, FlowState, LookupPoint, REFRESH},
    packet::{PROTOCOL_UDP, Packet},
};

/// Looks for the flow that a packet belongs to, at the lookup point in the key, and notes what the packet says about it.
#[inline(always)]
pub fn find<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, key: &FlowKey<F>) -> Found {
    let is_forward = key.lookup_point == LookupPoint::Forward as u8;
    if let Some(flow) = tables.flow(key) {
        if is_forward {
            if must_choose(tables, packet, &flow) {
                tables.remove_flow(key);
                return Found::None;
            }
        } else if is_another_s(tables, packet, key, &flow) {
            return Found::None;
        }
        tables.step(Step::KnownFlow(*flow));
        track::confirmed(tables, packet, key, &flow);
        return Found::Confirmed;
    }
    let Some(flow) = tables.pending(key) else { return moved(tables, key) };
    if is_forward && must_choose(tables, packet, &flow) {
        return Found::None;
    }
    tables.step(Step::KnownFlow(*flow));
    track::unconfirmed(tables, packet, key, &flow)
}

/// Looks once more among the confirmed flows: another CPU may have moved it there since. Else the packet would open another flow, or be
/// reset by the stack.
#[inline(always)]
pub(super) fn moved<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F>) -> Found {
    if tables.flow(key).is_some() { Found::Confirmed } else { Found::None }
}

/// Is a packet that looks like a reply of this flow a SYN-ACK of another connection? The endpoint answers a client that talks to it
/// directly, from the same port: our client would have opened the flow anew. Then a closed flow goes, because what follows is of the
/// other connection, too. A SYN-ACK of this flow that was sent again is told by what it acknowledges.
#[inline(always)]
fn is_another_s<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &Flow<F>,
) -> bool {
    if !packet.is_syn_ack() || !FlowState::is_ending(flow.state) {
        return false;
    }
    let Some(mut draft) = tables.draft() else { return false };
    draft.begin(key, flow);
    draft.make_opposite();
    let is_copy = tables
        .flow(&draft.opposite_key)
        .is_some_and(|forward| forward.isn != 0 && packet.acknowledgment == forward.isn.wrapping_add(1));
    if is_copy {
        return false;
    }
    tables.step(Step::StaleFlow(*flow));
    if FlowState::is_closed(flow.state) {
        if tables.flow(&draft.opposite_key).is_some_and(|forward| forward.is_opposite_of(key)) {
            tables.remove_flow(&draft.opposite_key);
        }
        tables.remove_flow(key);
    }
    true
}

/// Must a packet choose an endpoint anew, although it has a flow? TCP stays with an endpoint that is going away until it closes; the next
/// connection from the same port does not. Datagrams move at once.
#[inline(always)]
fn must_choose<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, flow: &T::Flow) -> bool {
    if !packet.is_request() {
        return false;
    }
    let is_copy = flow.isn != 0 && flow.isn == packet.sequence;
    let is_over = packet.is_syn() && FlowState::is_ending(flow.state) && !is_copy;
    let must = is_over || !tables.is_alive(flow.backend) || has_moved(tables, packet, flow);
    if must {
        tables.step(Step::StaleFlow(**flow));
    }
    must
}

/// Has the frontend of a datagram's flow gone to another Service, or away? Looked up about once a second, whichever side sends more.
#[inline(always)]
fn has_moved<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, flow: &T::Flow) -> bool {
    let (tuple, now) = (&packet.tuple, tables.now());
    if packet.protocol != PROTOCOL_UDP || now.wrapping_sub(flow.isn) < REFRESH {
        return false;
    }
    flow.set_isn(now);
    frontend::find(tables, &tuple.dst, tuple.dport, packet.protocol, false)
        .is_none_or(|target| target.service() != flow.service)
}

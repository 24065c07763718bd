//! Finds the flow of a packet, and updates the flow with it.

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

/// Looks for the flow that a packet belongs to, at the lookup point in the key, and updates its
/// connection-tracking state.
#[inline(always)]
pub fn find<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, key: &FlowKey<F>) -> Found {
    let is_forward = key.lookup_point == LookupPoint::Forward as u8;
    // A flow is inserted among the confirmed ones before it is removed from the others: looked up in this order,
    // it is in one of the two maps. Most requests open a flow, and are in neither.
    let is_request = is_forward && packet.is_request();
    let requested = if is_request { tables.pending(key) } else { None };
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
    let flow = match requested {
        Some(flow) => flow,
        None if is_request => return Found::None,
        None => match tables.pending(key) {
            Some(flow) => flow,
            None => return moved(tables, key),
        },
    };
    if is_forward && must_choose(tables, packet, &flow) {
        return Found::None;
    }
    tables.step(Step::KnownFlow(*flow));
    track::unconfirmed(tables, packet, key, &flow)
}

/// Looks among the confirmed flows again: another CPU may have moved the flow there meanwhile. Without this the
/// packet would open another flow, or the stack would reset it.
#[inline(always)]
pub(super) fn moved<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F>) -> Found {
    if tables.flow(key).is_some() { Found::Confirmed } else { Found::None }
}

/// Whether a packet that looks like a reply of this ending flow is the SYN-ACK of another connection. The
/// endpoint sends it to a client that connects to it directly, from the same port: the flow's client would have
/// opened a new flow. A closed flow is then removed, because the packets that follow belong to the other
/// connection, too. The acknowledgment number identifies a retransmitted SYN-ACK of this flow.
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

/// Whether a packet must choose a new endpoint although it has a flow. TCP stays with an endpoint that is going
/// away until it closes; the next connection from the same port does not. Datagrams move at once.
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

/// Whether the frontend of a datagram's flow was removed or moved to another Service. Looked up about once a
/// second, in whichever direction more datagrams go.
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

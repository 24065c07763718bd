//! Packets that the node itself sends from addresses and ports of frontends or of the SNAT range, and replies
//! to them.

use crate::{
    Family,
    decide::tables::Tables,
    layout::{
        flow::{FlowKey, LookupPoint, REFRESH},
        outbound::{OUTBOUND_CLOSED, OUTBOUND_ESTABLISHED, OUTBOUND_ONCE, Outbound, key_of_reply},
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

/// Records packets that leave from a frontend's address and port, or from a possible SNAT address and port,
/// without a flow: a socket of the node or kernel NAT sends them. Replies to them are not requests, and the
/// port is taken.
#[inline(always)]
pub(super) fn note_outbound<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) {
    let tuple = &packet.tuple;
    let is_datagram = packet.protocol == PROTOCOL_UDP;
    let mut flags = 0;
    if !is_datagram && !packet.is_syn() {
        if !is_in_use(tables, packet) {
            return;
        }
        flags = if packet.is_closing() { OUTBOUND_CLOSED } else { OUTBOUND_ESTABLISHED };
    }
    // One key for both look-ups: the stack is small.
    let mut reply = key_of_reply(tuple, packet.protocol);
    let from_frontend = is_datagram && tables.may_be_frontend(&tuple.src, tuple.sport, packet.protocol);
    if from_frontend && is_flow(tables, &reply) {
        return;
    }
    let from_source = may_be_snat(tables, packet);
    // Packets that leave by the uplink that they came in by are forwarded.
    if !from_frontend && (!from_source || tables.came_in() == tables.leaves()) {
        return;
    }
    // A nodePort may be in the range.
    if from_source {
        reply.lookup_point = LookupPoint::ReverseIngress as u8;
        if is_flow(tables, &reply) {
            // A socket of the node was bound to the port since: it would get no replies. The client's next
            // datagram gets another port. A missing ingress device alone does not show it: fragments that the
            // stack makes of forwarded packets have lost theirs (`ip6_copy_metadata`).
            if !is_datagram || tables.came_in() != 0 || !tables.has_socket(&reply.tuple, packet.protocol) {
                return;
            }
            give_way(tables, &reply);
        }
        reply.lookup_point = LookupPoint::Forward as u8;
    }
    let now = tables.now();
    if let Some(known) = tables.outbound(&reply) {
        if flags == OUTBOUND_ESTABLISHED && known.flags & OUTBOUND_CLOSED != 0 {
            flags = OUTBOUND_CLOSED;
        }
        let is_same = is_datagram || known.flags == flags;
        if is_same && now.wrapping_sub(known.last_seen) < REFRESH {
            return;
        }
    }
    tables.remember_outbound(&reply, &Outbound { last_seen: now, flags });
}

/// Removes a datagram flow, by the key of its reverse entry.
#[inline(always)]
pub(super) fn give_way<F: Family, T: Tables<F>>(tables: &T, reverse: &FlowKey<F>) {
    let Some(mut draft) = tables.draft() else { return };
    if let Some(flow) = tables.flow(reverse).or_else(|| tables.pending(reverse)) {
        draft.begin(reverse, &flow);
        draft.make_opposite();
        // The client's next flow, with another endpoint, may have that key by now.
        if tables.flow(&draft.opposite_key).is_some_and(|forward| forward.is_opposite_of(reverse)) {
            tables.remove_flow(&draft.opposite_key);
        }
        if tables.pending(&draft.opposite_key).is_some_and(|forward| forward.is_opposite_of(reverse)) {
            tables.remove_pending(&draft.opposite_key);
        }
    }
    tables.remove_flow(reverse);
    tables.remove_pending(reverse);
}

/// Whether the TCP packet belongs to a connection with an endpoint that also has connections through this node.
#[inline(always)]
fn is_in_use<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let tuple = &packet.tuple;
    packet.protocol == PROTOCOL_TCP && tables.may_be_filtered_reply(&tuple.dst, tuple.dport, packet.protocol)
}

#[inline(always)]
pub(super) fn is_flow<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F>) -> bool {
    tables.flow(key).is_some() || tables.pending(key).is_some()
}

/// Whether a packet's source is one that SNAT might use.
#[inline(always)]
fn may_be_snat<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let tuple = &packet.tuple;
    tables.settings().is_snat_port(tuple.sport) && tables.may_be_snat_source(&tuple.src)
}

/// Whether a datagram to a frontend is a reply to a packet that this node sent from there.
#[inline(always)]
pub(super) fn is_reply_to_node<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let key = FlowKey::new(packet.tuple, packet.protocol, LookupPoint::Forward);
    let Some(sent) = tables.outbound(&key) else { return false };
    let now = tables.now();
    let age = now.wrapping_sub(sent.last_seen);
    if age >= tables.settings().outbound() {
        return false;
    }
    if age >= REFRESH && sent.flags & OUTBOUND_ONCE == 0 {
        tables.remember_outbound(&key, &Outbound { last_seen: now, flags: 0 });
    }
    true
}

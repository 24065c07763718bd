//! Connection tracking: what a packet says about its flow. Both entries are refreshed together, and repaired from either side.

use super::{
    find::moved,
    tables::{FlowHandle as _, Found, Inserted, Tables},
};
use crate::{
    Family,
    layout::{
        counter::Counter,
        flow::{FIN_WINDOW, Flow, FlowDraft, FlowKey, FlowState, REFRESH, RESET_WINDOW, flags},
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet, tcp_flags},
};

/// How far behind the endpoint's initial sequence number the client's first acknowledgment may be: what an endpoint may send with its
/// SYN-ACK (RFC 7413).
const FIRST_ACKNOWLEDGMENT: u32 = 1 << 16;

/// How much of a segment with FIN, sent again together with what was before it, may have been acknowledged: the longest segment.
const FIN_OVERLAP: u32 = 1 << 16;

/// Brings an entry of a confirmed flow up to date with a packet it was found for: about once a second both entries are marked as
/// seen, and a lost one is made again, because the map forgets the silent one first.
#[inline(always)]
pub(super) fn confirmed<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &T::Flow,
) {
    let now = tables.now();
    if now.wrapping_sub(flow.last_seen) >= REFRESH {
        flow.touch(now);
        if let Some(mut draft) = tables.draft() {
            draft.begin(key, flow);
            draft.make_opposite();
            match tables.flow(&draft.opposite_key) {
                Some(other) if other.tuple.same(&draft.opposite.tuple) => other.touch(now),
                // Another flow's by now: it has this one's replies.
                Some(_) => {}
                // The client may have opened another flow meanwhile, which is not confirmed yet.
                None if tables.pending(&draft.opposite_key).is_some() => {}
                None => {
                    draft.opposite.last_seen = now;
                    let FlowKey { tuple, protocol, .. } = &draft.opposite_key;
                    if draft.opposite.flags & flags::REVERSE != 0 {
                        tables.insert_reply(&tuple.src, tuple.sport, *protocol);
                    }
                    if tables.replace_flow(&draft.opposite_key, &draft.opposite) {
                        tables.count(Counter::FlowRepaired);
                    }
                }
            }
        }
    }
    // Neither an error nor a fragment without flags says anything about the connection.
    if packet.follows {
        return;
    }
    if packet.protocol == PROTOCOL_UDP {
        const REPLIED: u8 = FlowState::REPLIED as u8;
        if flow.state == REPLIED {
            set_both(tables, key, flow, FlowState::Established, now, 0);
        }
        return;
    }
    note_acknowledgment::<F, T>(packet, flow);
    const RESET: u8 = FlowState::Reset as u8;
    const CLOSES: u8 = tcp_flags::FIN | tcp_flags::RST;
    if packet.tcp_flags & CLOSES != 0 {
        close(tables, packet, key, flow, now);
    } else if flow.state == RESET && !packet.is_syn() {
        // The receiver of the reset goes on, or its sender does: the connection lives (RFC 5961 section 3.2).
        set_both(tables, key, flow, FlowState::Established, now, 0);
    }
}

#[inline(always)]
fn note_acknowledgment<F: Family, T: Tables<F>>(packet: &Packet<F>, flow: &T::Flow) {
    if packet.protocol == PROTOCOL_TCP && packet.tcp_flags & tcp_flags::ACK != 0 {
        flow.set_acknowledged(packet.acknowledgment);
    }
}

/// A FIN or a reset.
#[inline(always)]
fn close<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &T::Flow,
    now: u32,
) {
    const BY_CLIENT: u8 = FlowState::ClosingByClient as u8;
    const BY_SERVER: u8 = FlowState::ClosingByServer as u8;
    const TIME_WAIT: u8 = FlowState::TimeWait as u8;
    const RESET: u8 = FlowState::Reset as u8;
    let state = flow.state;
    if state >= TIME_WAIT {
        return;
    }
    if packet.is_reset() {
        if state != RESET && is_in_window(tables, packet, key, flow, 0, RESET_WINDOW) {
            set_both(tables, key, flow, FlowState::Reset, now, 0);
        }
        return;
    }
    let is_reply = flow.flags & flags::REVERSE != 0;
    let next = match (is_reply, state) {
        (true, BY_SERVER) | (false, BY_CLIENT) => return,
        (true, BY_CLIENT) => FlowState::Closed,
        (false, BY_SERVER) => FlowState::TimeWait,
        (true, _) => FlowState::ClosingByServer,
        (false, _) => FlowState::ClosingByClient,
    };
    // A forged FIN could end the flow: then one could give the connection another endpoint with a forged SYN.
    if !is_in_window(tables, packet, key, flow, FIN_OVERLAP, FIN_WINDOW) {
        return;
    }
    let is_dated = !is_reply && flow.flags & flags::SNAT != 0;
    let timestamp = if is_dated { tables.timestamp(packet) } else { 0 };
    set_both(tables, key, flow, next, now, timestamp);
}

/// Is the reset or FIN one that its receiver may take, at most so far behind what it acknowledged last, or so little before? That is known
/// from its own packets.
#[inline(always)]
fn is_in_window<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &T::Flow,
    before: u32,
    window: u32,
) -> bool {
    if packet.protocol != PROTOCOL_TCP {
        return true;
    }
    let Some(mut draft) = tables.draft() else { return true };
    draft.begin(key, flow);
    draft.make_opposite();
    match tables.flow(&draft.opposite_key) {
        Some(opposite) if opposite.acknowledged != 0 && opposite.tuple.same(&draft.opposite.tuple) => {
            packet.sequence.wrapping_sub(opposite.acknowledged).wrapping_add(before) <= window
        }
        _ => true,
    }
}

/// Notes a state in both entries: the next packet of the other side is looked up in the other one. A timestamp that is not 0 goes into
/// that one.
// Not in `confirmed` already: this is rare.
#[inline(always)]
fn set_both<F: Family, T: Tables<F>>(
    tables: &T,
    key: &FlowKey<F>,
    flow: &T::Flow,
    state: FlowState,
    now: u32,
    timestamp: u32,
) {
    flow.set_state(state);
    flow.touch(now);
    let Some(mut draft) = tables.draft() else { return };
    draft.begin(key, flow);
    draft.make_opposite();
    if let Some(opposite) = tables.flow(&draft.opposite_key)
        && opposite.tuple.same(&draft.opposite.tuple)
    {
        opposite.set_state(state);
        opposite.touch(now);
        if timestamp != 0 {
            opposite.set_timestamp(timestamp);
        }
    }
}

/// Brings an entry of an unconfirmed flow up to date with a packet it was found for; says where the flow is found now. Nowhere: the entry for
/// replies is lost, and the packet opens the flow anew.
#[inline(always)]
pub(super) fn unconfirmed<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &T::Flow,
) -> Found {
    let now = tables.now();
    let is_reply = flow.flags & flags::REVERSE != 0;
    if now.wrapping_sub(flow.last_seen) >= REFRESH {
        flow.touch(now);
    }
    if packet.follows {
        return Found::Pending;
    }
    let Some(mut draft) = tables.draft() else { return Found::Pending };
    draft.begin(key, flow);
    draft.make_opposite();
    let mut state = FlowState::Established;
    if packet.protocol == PROTOCOL_UDP {
        if !is_reply {
            let Some(opposite) = opposite(tables, &draft) else { return moved(tables, key) };
            // One that keeps sending keeps its port.
            opposite.touch(now);
            return Found::Pending;
        }
        state = FlowState::REPLIED;
    } else if packet.is_reset() {
        flow.set_state(FlowState::Reset);
        if let Some(opposite) = tables.pending(&draft.opposite_key) {
            opposite.set_state(FlowState::Reset);
        }
        return Found::Pending;
    } else if packet.is_syn_ack() {
        if is_reply {
            flow.set_state(FlowState::SynReceived);
            flow.set_isn(packet.sequence);
            flow.set_acknowledged(packet.acknowledgment);
            draft.opposite.state = FlowState::New as u8;
            restore(tables, &draft);
        }
        return Found::Pending;
    } else if packet.is_syn() {
        flow.set_isn(packet.sequence);
        if !is_reply {
            let Some(opposite) = opposite(tables, &draft) else { return moved(tables, key) };
            opposite.touch(now);
            // An endpoint that still waits for the last ACK of the port's former owner answers a SYN with an ACK, which the client resets before
            // it sends its SYN again (RFC 5961 section 4.2): the port is in use.
            if flow.state == FlowState::Reset as u8 {
                flow.set_state(FlowState::New);
                opposite.set_state(FlowState::New);
            }
        }
        return Found::Pending;
    } else {
        if is_reply {
            return Found::Pending;
        }
        let Some(opposite) = opposite(tables, &draft) else {
            restore(tables, &draft);
            return Found::Pending;
        };
        if !is_acknowledged(packet, &opposite) {
            return Found::Pending;
        }
        if packet.is_closing() {
            state = FlowState::ClosingByClient;
        }
        draft.flow.acknowledged = packet.acknowledgment;
    }
    draft.flow.state = state as u8;
    draft.flow.last_seen = now;
    if tables.confirm_flow(&mut draft) { Found::Confirmed } else { Found::Pending }
}

/// The opposite entry of the unconfirmed flow in the draft.
#[inline(always)]
fn opposite<F: Family, T: Tables<F>>(tables: &T, draft: &FlowDraft<F>) -> Option<T::Flow> {
    tables.pending(&draft.opposite_key).filter(|opposite| opposite.tuple.same(&draft.opposite.tuple))
}

/// Makes the opposite entry of the unconfirmed flow in the draft again, if the map forgot it: it forgets one at a time.
#[inline(always)]
fn restore<F: Family, T: Tables<F>>(tables: &T, draft: &FlowDraft<F>) {
    let FlowKey { tuple, protocol, .. } = &draft.opposite_key;
    if tables.pending(&draft.opposite_key).is_some() || tables.flow(&draft.opposite_key).is_some() {
        return;
    }
    if draft.opposite.flags & flags::REVERSE != 0 {
        tables.insert_reply(&tuple.src, tuple.sport, *protocol);
    }
    if matches!(tables.insert_pending(&draft.opposite_key, &draft.opposite), Inserted::Yes) {
        tables.count(Counter::FlowRepaired);
    }
}

/// Does the client's packet acknowledge the endpoint's SYN-ACK? Who sends from the addresses of others cannot know its sequence number.
#[inline(always)]
fn is_acknowledged<F: Family>(packet: &Packet<F>, opposite: &Flow<F>) -> bool {
    if packet.protocol != PROTOCOL_TCP {
        return opposite.state == FlowState::SynReceived as u8;
    }
    // Behind the SYN, which counts as one.
    let acknowledged = packet.acknowledgment.wrapping_sub(opposite.isn).wrapping_sub(1);
    opposite.isn != 0 && acknowledged < FIRST_ACKNOWLEDGMENT
}

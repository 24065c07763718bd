//! Connection tracking: updates a flow with a packet. Both entries are refreshed together, and either can
//! restore the other.

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

/// How far behind the endpoint's initial sequence number the client's first acknowledgment may be: the data
/// that an endpoint may send with its SYN-ACK (RFC 7413).
const FIRST_ACKNOWLEDGMENT: u32 = 1 << 16;

/// How much data of a retransmitted segment with FIN may already have been acknowledged: the longest segment.
const FIN_OVERLAP: u32 = 1 << 16;

/// Updates an entry of a confirmed flow with a packet of the flow. About once a second it refreshes both
/// entries, and restores a lost one, because the map evicts the entry of the silent side first.
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
                // The key belongs to another flow by now, which gets the replies.
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
    // ICMP errors and fragments without flags are no evidence about the connection.
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
        // One side did not accept the reset: the connection lives (RFC 5961 section 3.2).
        set_both(tables, key, flow, FlowState::Established, now, 0);
    }
}

#[inline(always)]
fn note_acknowledgment<F: Family, T: Tables<F>>(packet: &Packet<F>, flow: &T::Flow) {
    if packet.protocol == PROTOCOL_TCP && packet.tcp_flags & tcp_flags::ACK != 0 {
        flow.set_acknowledged(packet.acknowledgment);
    }
}

/// Handles a FIN or a reset.
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
    // A forged FIN could end the flow: then a forged SYN could give the connection another endpoint.
    if !is_in_window(tables, packet, key, flow, FIN_OVERLAP, FIN_WINDOW) {
        return;
    }
    let is_dated = !is_reply && flow.flags & flags::SNAT != 0;
    let timestamp = if is_dated { tables.timestamp(packet) } else { 0 };
    set_both(tables, key, flow, next, now, timestamp);
}

/// Whether the receiver may accept the reset or FIN: its sequence number is at most `window` bytes after the
/// number that the receiver acknowledged last, or at most `before` bytes before it. The receiver's own packets
/// have that number.
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

/// Writes a state to both entries, because the next packet of the other side is looked up in the opposite one.
/// A timestamp that is not 0 goes into the opposite entry.
// A separate function from `confirmed`: this is rare.
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

/// Updates an entry of an unconfirmed flow with a packet of the flow; returns where the flow is found now.
/// `None`: the entry for replies is lost, and the packet opens a new flow.
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
            // A flow that keeps sending keeps its port.
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
            // An endpoint that still waits for the last ACK of the port's former owner answers a SYN with an
            // ACK. The client resets that before it sends its SYN again (RFC 5961 section 4.2): the port is in
            // use.
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

/// Restores the opposite entry of the unconfirmed flow in the draft, if the map evicted it: the map evicts
/// single entries.
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

/// Whether the client's packet acknowledges the endpoint's SYN-ACK. A sender with a forged source address
/// cannot know its sequence number.
#[inline(always)]
fn is_acknowledged<F: Family>(packet: &Packet<F>, opposite: &Flow<F>) -> bool {
    if packet.protocol != PROTOCOL_TCP {
        return opposite.state == FlowState::SynReceived as u8;
    }
    // The SYN counts as one byte.
    let acknowledged = packet.acknowledgment.wrapping_sub(opposite.isn).wrapping_sub(1);
    opposite.isn != 0 && acknowledged < FIRST_ACKNOWLEDGMENT
}

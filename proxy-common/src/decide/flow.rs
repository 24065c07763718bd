//! Pairs of flow entries: made together, refreshed together, repaired from either side.

use super::tables::{FlowHandle, Inserted, Tables};
use super::verdict::DropReason;
use crate::{
    Family,
    layout::{
        counter::Counter,
        flow::{Edge, FlowKey, FlowState, Pair, REFRESH, flags},
    },
    packet::{PROTOCOL_SCTP, PROTOCOL_UDP, Packet},
};

/// How many source ports are tried before a flow is given up.
const PROBES: u32 = 8;

/// From this one on, any closed connection that was idle gives its port: there seems to be no other.
const LAST_PROBES: u32 = 6;

/// Inserts both entries of a new flow, of which `key` and `flow` are filled in, with the tuple as it would be sent.
///
/// Its source port is changed where needed: for SNAT and hairpin it comes from the reserved range, by which answers are
/// known to be such; else it only changes when another flow has the same answers. Returns why it could not be.
#[inline(always)]
pub fn open<F: Family, T: Tables<F>>(tables: &T, pair: &mut Pair<F>) -> Option<DropReason> {
    let settings = tables.settings();
    let ports = settings.snat_last.wrapping_sub(settings.snat_first) as u32 + 1;
    let random = tables.random();
    let mut probe = ((random as u64 * ports as u64) >> 32) as u32;
    // Random, so that two flows that met once do not meet at every step.
    let stride = (random & 0xff) | 1;
    if pair.flow.flags & (flags::SNAT | flags::HAIRPIN) != 0 {
        pair.flow.tuple.sport = settings.snat_first.wrapping_add(probe as u16).to_be();
    }
    for attempt in 0..PROBES {
        pair.make_twin();
        let inserted =
            if is_taken(tables, pair) { None } else { Some(tables.insert_flow(&pair.twin_key, &pair.twin)) };
        match inserted {
            None => {}
            Some(Inserted::Yes) => {
                if tables.replace_flow(&pair.key, &pair.flow) {
                    return None;
                }
                tables.remove_flow(&pair.twin_key);
                return Some(DropReason::FlowMapFull);
            }
            Some(Inserted::NoRoom) => return Some(DropReason::FlowMapFull),
            Some(Inserted::Exists) => {
                let Some(existing) = tables.flow(&pair.twin_key) else { continue };
                let is_closed = FlowState::is_closed(existing.state);
                let is_shared = pair.flow.flags & (flags::SNAT | flags::HAIRPIN) != 0;
                // Ours from before, when only the forward entry was lost or outlived? Or the client's own, of a
                // connection that is over?
                let is_ours = existing.tuple.same(&pair.twin.tuple) || (!is_shared && is_closed);
                let idle = tables.now().wrapping_sub(existing.last_seen);
                let may_go = is_closed || pair.key.protocol == PROTOCOL_UDP;
                let is_resting = pair.key.protocol != PROTOCOL_UDP && attempt < LAST_PROBES;
                let rest = if is_resting { settings.rest() } else { settings.idle };
                if !is_ours && may_go && idle >= rest {
                    // Both entries go: what another client still sent by the old one would be answered to this one.
                    pair.twin.tuple.set_reversed(&existing.tuple);
                    tables.remove_flow(&pair.twin_key);
                    pair.twin_key.tuple = pair.twin.tuple;
                    pair.twin_key.edge = Edge::Forward as u8;
                    tables.remove_flow(&pair.twin_key);
                    continue;
                }
                if is_ours {
                    let replaced = tables.replace_flow(&pair.twin_key, &pair.twin)
                        && tables.replace_flow(&pair.key, &pair.flow);
                    return if replaced { None } else { Some(DropReason::FlowMapFull) };
                }
            }
        }
        probe += stride;
        if probe >= ports {
            probe %= ports;
        }
        pair.flow.tuple.sport = settings.snat_first.wrapping_add(probe as u16).to_be();
    }
    Some(DropReason::SnatExhausted)
}

/// Brings an entry up to date with a packet it was found for: about once a second both entries are marked as
/// seen, and a lost one is made again, because the map forgets the silent one first.
#[inline(always)]
pub(super) fn refresh<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    flow: &T::Flow,
) {
    let now = tables.now();
    if now.wrapping_sub(flow.last_seen) >= REFRESH {
        flow.touch(now);
        if let Some(mut pair) = tables.pair() {
            pair.begin(key, flow);
            pair.make_twin();
            match tables.flow(&pair.twin_key) {
                Some(other) if other.tuple.same(&pair.twin.tuple) => other.touch(now),
                // Another flow's by now: it has this one's answers.
                Some(_) => {}
                None => {
                    pair.twin.last_seen = now;
                    let FlowKey { tuple, protocol, edge, .. } = &pair.twin_key;
                    if *edge == Edge::ReverseEgress as u8 {
                        tables.announce_answers(&tuple.src, tuple.sport, *protocol);
                    }
                    if tables.replace_flow(&pair.twin_key, &pair.twin) {
                        tables.count(Counter::FlowRepaired);
                    }
                }
            }
        }
    }
    // Neither an error nor a fragment without flags is an answer.
    if !packet.follows {
        follow_state(tables, packet, key, flow);
    }
}

/// Would the answers go to a socket of this node that sends from the same port? SCTP's cannot be looked up.
#[inline(always)]
fn is_taken<F: Family, T: Tables<F>>(tables: &T, pair: &Pair<F>) -> bool {
    let Pair { key, flow, twin_key, .. } = pair;
    flow.flags & flags::SNAT != 0
        && key.protocol != PROTOCOL_SCTP
        && tables.has_socket(&twin_key.tuple, key.protocol)
}

/// Notes what the packet says about its flow's state, in both entries: the next packet of the other side is looked up in the
/// other one.
#[inline(always)]
fn follow_state<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, key: &FlowKey<F>, flow: &T::Flow) {
    const NEW: u8 = FlowState::New as u8;
    const ESTABLISHED: u8 = FlowState::Established as u8;
    const ASSURED: u8 = FlowState::Assured as u8;
    let is_answer = flow.flags & flags::REVERSE != 0;
    let state = flow.state;
    let mut next = FlowState::Established;
    if packet.is_closing() {
        let (own, others) = if is_answer {
            (FlowState::ClosingByServer, FlowState::ClosingByClient)
        } else {
            (FlowState::ClosingByClient, FlowState::ClosingByServer)
        };
        if FlowState::is_closed(state) || (state == own as u8 && !packet.is_reset()) {
            return;
        }
        let is_over = packet.is_reset() || state == others as u8;
        next = if is_over { FlowState::Closed } else { own };
    } else if state >= ASSURED || packet.is_syn() {
        return;
    } else if packet.is_syn_ack() {
        if is_answer && state == NEW {
            flow.set_state(FlowState::Answered);
        }
        return;
    } else if is_answer {
        let is_datagram = packet.tcp_flags == 0;
        if is_datagram && state == ESTABLISHED {
            return;
        }
        tables.flow_answered();
        if state == ESTABLISHED {
            flow.set_state(FlowState::Assured);
            return;
        }
    } else if packet.tcp_flags == 0 || state != NEW {
        return;
    }
    // Not in `refresh` already: this is rare.
    let Some(mut pair) = tables.pair() else { return };
    pair.begin(key, flow);
    pair.make_twin();
    let twin = tables.flow(&pair.twin_key).filter(|twin| twin.tuple.same(&pair.twin.tuple));
    let goes_on = matches!(next, FlowState::Established) && !is_answer;
    if let Some(twin) = twin {
        // A client that goes on before the backend answered is none, or its answer came another way.
        if goes_on && twin.state == NEW {
            return;
        }
        twin.set_state(next);
    } else if goes_on {
        return;
    }
    if is_answer && packet.tcp_flags != 0 && matches!(next, FlowState::Established) {
        next = FlowState::Assured;
    }
    flow.set_state(next);
}

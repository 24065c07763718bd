//! Opens flows with a source port that no other flow or socket has, and moves them once they are confirmed.

use super::tables::{Attempt, Claim, Inserted, Tables};
use super::verdict::DropReason;
use crate::{
    Family,
    layout::{
        counter::Counter,
        flow::{Flow, FlowDraft, FlowKey, FlowState, LookupPoint, Spare, flags},
        outbound::{OUTBOUND_ESTABLISHED, key_of_reply},
    },
    packet::{PROTOCOL_SCTP, PROTOCOL_UDP},
};

/// Source ports that are tried before the packet is dropped: with nine of ten ports taken, one flow in a
/// million finds none.
const ATTEMPTS: u32 = 128;

/// Ports of flows that may have ended that are tried: another CPU may take the same one.
const SEIZURES: u32 = 16;

/// After so many attempts, the next of several source addresses is tried.
const ATTEMPTS_PER_SOURCE: u32 = 16;

/// Opens the flow of which `key` and `flow` are filled in, with the tuple as it would be sent, as an
/// unconfirmed one.
///
/// With SNAT and hairpin its source port comes from the reserved range. The first choice is the client's port,
/// mapped one to one into the range: then the client's kernel keeps the rules of TIME-WAIT, sequence numbers
/// and timestamps for the program. Other flows keep their port unless another flow has the same replies.
/// Returns the reason on failure.
#[inline(always)]
pub fn open<F: Family, T: Tables<F>>(tables: &T, draft: &mut FlowDraft<F>) -> Option<DropReason> {
    let settings = tables.settings();
    let client = u16::from_be(draft.key.tuple.sport) as u32;
    let random = tables.random();
    let count = settings.snat_count();
    let mut position = ((random as u64 * count as u64) >> 32) as u32;
    let mut draw = random as u64;
    let has_sources = draft.flow.flags & flags::SNAT != 0 && settings.snat_sources != 0;
    let mut source = spread(F::fold(&draft.key.tuple.src));
    draft.spare = Spare::default();
    if has_sources {
        set_source(tables, draft, source);
    }
    if is_shared(&draft.flow) {
        draft.flow.tuple.sport = settings.snat_port(client);
    }
    match tables.attempt(draft, Claim::Unused) {
        Attempt::Opened => return None,
        Attempt::NoRoom => return Some(DropReason::FlowMapFull),
        Attempt::Taken => {}
    }
    for number in 0..ATTEMPTS {
        match tables.attempt(draft, Claim::Free) {
            Attempt::Opened => return None,
            Attempt::NoRoom => return Some(DropReason::FlowMapFull),
            Attempt::Taken => {}
        }
        if has_sources && number % ATTEMPTS_PER_SOURCE == ATTEMPTS_PER_SOURCE - 1 {
            source = source.wrapping_add(1);
            set_source(tables, draft, source);
        }
        draft.flow.tuple.sport = settings.snat_port(position);
        position = next_position(position, count, &mut draw);
    }
    if draft.spare.rank == 0 {
        return Some(DropReason::SnatExhausted);
    }
    draft.flow.tuple.sport = draft.spare.port;
    if has_sources {
        set_source(tables, draft, draft.spare.source.into());
    }
    for _ in 0..SEIZURES {
        match tables.attempt(draft, Claim::Seize) {
            Attempt::Opened => return None,
            Attempt::NoRoom => return Some(DropReason::FlowMapFull),
            Attempt::Taken => {}
        }
        draft.flow.tuple.sport = settings.snat_port(position);
        position = next_position(position, count, &mut draw);
    }
    Some(DropReason::SnatExhausted)
}

/// The position to try next. Few ports are tried in turn. Of many a random one is tried: neighbours are often
/// taken together, because the ports of one client follow one another.
#[inline(always)]
fn next_position(position: u32, count: u32, draw: &mut u64) -> u32 {
    if count <= ATTEMPTS_PER_SOURCE {
        return position.wrapping_add(1);
    }
    // Knuth's MMIX generator; its upper half is more random.
    *draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*draw >> 32).wrapping_mul(count as u64) >> 32) as u32
}

/// A number whose lower bits depend on all bits of the word.
#[inline(always)]
fn spread(word: u32) -> u32 {
    (word ^ word >> 16).wrapping_mul(0x9e37_79b9) >> 16
}

/// Whether the flow's source is not its client's address, so that it shares ports with other flows.
#[inline(always)]
fn is_shared<F: Family>(flow: &Flow<F>) -> bool {
    flow.flags & (flags::SNAT | flags::HAIRPIN) != 0
}

#[inline(always)]
fn set_source<F: Family, T: Tables<F>>(tables: &T, draft: &mut FlowDraft<F>, number: u32) {
    let count = tables.settings().snat_sources;
    if count == 0 {
        return;
    }
    let number = number % count;
    if let Some(addr) = tables.snat_source(number) {
        draft.flow.tuple.src = addr;
        draft.spare.tried = number as u8;
    }
}

/// Inserts both entries of the flow in the draft, if the claim holds.
#[inline(always)]
pub fn attempt<F: Family, T: Tables<F>>(tables: &T, draft: &mut FlowDraft<F>, claim: Claim) -> Attempt {
    let (is_unused, seize) = (matches!(claim, Claim::Unused), matches!(claim, Claim::Seize));
    draft.make_opposite();
    let confirmed = tables.flow(&draft.opposite_key);
    if is_unused && confirmed.is_some() {
        return Attempt::Taken;
    }
    if confirmed.as_ref().is_some_and(|existing| !may_replace(tables, draft, existing, false, seize)) {
        return Attempt::Taken;
    }
    // An unused port shows when its entry is inserted.
    let unconfirmed = if is_unused { None } else { tables.pending(&draft.opposite_key) };
    if unconfirmed.as_ref().is_some_and(|existing| !may_replace(tables, draft, existing, true, seize)) {
        return Attempt::Taken;
    }
    // Checked before any removal: no flow is removed without need.
    if is_taken(tables, draft, seize) {
        return Attempt::Taken;
    }
    // Both entries are removed: replies to packets that the old client still sends would go to the new one.
    if let Some(existing) = confirmed {
        let forward = forward_key(&draft.opposite_key, &existing);
        if tables.flow(&forward).is_some_and(|flow| flow.is_opposite_of(&draft.opposite_key)) {
            tables.remove_flow(&forward);
        }
        tables.remove_flow(&draft.opposite_key);
    }
    if let Some(existing) = unconfirmed {
        let forward = forward_key(&draft.opposite_key, &existing);
        if tables.pending(&forward).is_some_and(|flow| flow.is_opposite_of(&draft.opposite_key)) {
            tables.remove_pending(&forward);
        }
        tables.remove_pending(&draft.opposite_key);
    }
    match tables.insert_pending(&draft.opposite_key, &draft.opposite) {
        Inserted::Yes => {}
        Inserted::Exists => return Attempt::Taken,
        Inserted::NoRoom => return Attempt::NoRoom,
    }
    if tables.replace_pending(&draft.key, &draft.flow) {
        return Attempt::Opened;
    }
    tables.remove_pending(&draft.opposite_key);
    Attempt::NoRoom
}

/// The key of the forward entry of a flow, from its reverse entry.
#[inline(always)]
fn forward_key<F: Family>(reverse: &FlowKey<F>, flow: &Flow<F>) -> FlowKey<F> {
    FlowKey::new(flow.tuple.reversed(), reverse.protocol, LookupPoint::Forward)
}

/// Whether a flow that has the same replies may give way to the one in the draft. Notes its port if the flow
/// may have ended.
#[inline(always)]
fn may_replace<F: Family, T: Tables<F>>(
    tables: &T,
    draft: &mut FlowDraft<F>,
    existing: &Flow<F>,
    is_pending: bool,
    seize: bool,
) -> bool {
    // An earlier flow of this client, when only the forward entry was lost or has ended.
    if existing.tuple.same(&draft.opposite.tuple) {
        return true;
    }
    let settings = tables.settings();
    let idle = tables.now().wrapping_sub(existing.last_seen);
    let state = existing.state;
    if state == FlowState::Closed as u8 {
        return true;
    }
    if state == FlowState::Reset as u8 && (is_pending || idle >= settings.unconfirmed()) {
        return true;
    }
    if state == FlowState::TimeWait as u8 {
        return idle >= settings.rest() || is_later(&draft.flow, existing);
    }
    if !is_shared(&draft.flow) || !is_pending && draft.key.protocol != PROTOCOL_UDP {
        return false;
    }
    let is_assured = !is_pending && state != FlowState::REPLIED as u8;
    let least = if is_pending {
        settings.unconfirmed()
    } else if is_assured {
        settings.idle
    } else {
        settings.replied()
    };
    if idle < least {
        return false;
    }
    note_spare(draft, if is_assured { idle } else { idle | Spare::EXPENDABLE });
    seize
}

/// Notes the source port in the draft, if its flow is more expendable than that of the port noted before.
#[inline(always)]
fn note_spare<F: Family>(draft: &mut FlowDraft<F>, rank: u32) {
    if rank > draft.spare.rank {
        draft.spare.rank = rank;
        draft.spare.port = draft.flow.tuple.sport;
        draft.spare.source = draft.spare.tried;
    }
}

/// Whether an endpoint in TIME-WAIT accepts the SYN of this flow as that of a new connection. Linux compares
/// the timestamps if both have one, else the sequence numbers (`tcp_timewait_state_process`; RFC 9293 section
/// 3.10.7.4, RFC 7323 section 5.3).
#[inline(always)]
fn is_later<F: Family>(new: &Flow<F>, old: &Flow<F>) -> bool {
    if new.timestamp != 0 && old.timestamp != 0 {
        return (new.timestamp.wrapping_sub(old.timestamp) as i32) > 0;
    }
    old.acknowledged != 0 && (new.isn.wrapping_sub(old.acknowledged) as i32) > 0
}

/// Whether the replies would be those of a socket of this node that sends from the same port, of a connection
/// of kernel NAT, or of a connection that the client's pod has with the endpoint itself. The kernel has no
/// look-up for SCTP sockets. With `seize`, a connection of kernel NAT that may have ended gives way.
#[inline(always)]
fn is_taken<F: Family, T: Tables<F>>(tables: &T, draft: &mut FlowDraft<F>, seize: bool) -> bool {
    let FlowDraft { key, flow, opposite_key, .. } = &*draft;
    if flow.flags & flags::SNAT == 0 {
        // The client's kernel distinguishes its ports by the destinations that it knows: one connection to the
        // VIP and one to the endpoint may have the same port.
        let namespace = draft.client_namespace;
        return namespace != 0
            && key.protocol != PROTOCOL_SCTP
            && tables.has_connection(namespace, &opposite_key.tuple, key.protocol);
    }
    if key.protocol != PROTOCOL_SCTP && tables.has_socket(&opposite_key.tuple, key.protocol) {
        return true;
    }
    let Some(sent) = tables.outbound(&key_of_reply(&flow.tuple, key.protocol)) else { return false };
    if sent.flags & OUTBOUND_ESTABLISHED != 0 {
        return true;
    }
    let idle = tables.now().wrapping_sub(sent.last_seen);
    if idle >= tables.settings().outbound() {
        return false;
    }
    if key.protocol == PROTOCOL_UDP || idle < tables.settings().unconfirmed() {
        return true;
    }
    note_spare(draft, idle);
    !seize
}

/// Confirms the flow of which the draft has a current entry: moves it from the unconfirmed flows to the others.
/// False if the map is full, or if the other entry belongs to another flow by now.
#[inline(always)]
pub fn confirm<F: Family, T: Tables<F>>(tables: &T, draft: &mut FlowDraft<F>) -> bool {
    draft.make_opposite();
    match tables.pending(&draft.opposite_key) {
        Some(other) if other.tuple.same(&draft.opposite.tuple) => {
            draft.opposite.isn = other.isn;
            draft.opposite.acknowledged = other.acknowledged;
            draft.opposite.mac = other.mac;
        }
        // A late reply: the client has another endpoint now.
        Some(_) => return false,
        None if tables.flow(&draft.opposite_key).is_some() => return false,
        None => {}
    }
    if !tables.replace_flow(&draft.opposite_key, &draft.opposite) {
        return false;
    }
    if !tables.replace_flow(&draft.key, &draft.flow) {
        tables.remove_flow(&draft.opposite_key);
        return false;
    }
    tables.remove_pending(&draft.key);
    tables.remove_pending(&draft.opposite_key);
    tables.count(Counter::FlowConfirmed);
    true
}

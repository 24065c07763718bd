//! The packet path: what the tc and XDP programs run.

use super::{
    frontend::{self, Choice},
    tables::{FlowHandle, Fragmentable, RouteKind, Step, Tables},
    verdict::{DropReason, Translation, Verdict},
};
use crate::{
    Family,
    layout::{
        backend::{BACKEND_LOCAL, BACKEND_REMOTE, Backend},
        counter::Counter,
        device::{DEVICE_FRAGMENTS, DEVICE_FRAGMENTS_WHOLE, DEVICE_RULES, DEVICE_UPLINK, LOOPBACK},
        flow::{Edge, FlowKey, FlowState, Mac, Pair, REFRESH, Tuple, flags},
        frontend::FRONTEND_SOURCES,
        outbound::{OUTBOUND_CLOSED, OUTBOUND_ESTABLISHED, OUTBOUND_ONCE, Outbound, key_of_reply},
        set::Scope,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

/// A packet that a pod sends, at the pod's interface with index `ifindex`.
#[inline(always)]
pub fn from_pod<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Verdict {
    // What a pod answers itself goes to the VIP, so it may be a reply and not a request. And behind a namespace that forwards there may
    // be remote endpoints: what they reply by a bridge is for the interface behind it that the request left by, or the host's conntrack
    // would see half of the connection.
    match replies_to(tables, packet, out) {
        Some(flow) if flow & flags::HAIRPIN != 0 => Verdict::Return,
        Some(_) if tables.device(ifindex).is_some_and(|device| device.bridge != 0) => Verdict::Pass,
        Some(_) => forward(tables, packet, ifindex, out),
        None => request_of_pod(tables, packet, ifindex, out),
    }
}

/// What a client in a pod sends.
#[inline(always)]
fn request_of_pod<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Verdict {
    let tuple = &packet.tuple;
    if !tables.may_be_frontend(&tuple.dst, tuple.dport, packet.protocol) {
        tables.step(Step::NoFrontendSurely);
        return Verdict::Pass;
    }
    if packet.is_echo_request() {
        return ping(tables, packet);
    }
    match known_forward(tables, packet) {
        Some(flow) => follow(tables, packet, &flow, ifindex, out),
        None if tables.defers() => Verdict::NewFlow,
        None => new_flow(tables, packet, ifindex, Scope::Internal, out),
    }
}

/// A packet that comes in by the uplink with index `ifindex`.
#[inline(always)]
pub fn from_uplink<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Verdict {
    // Whoever has the address answers: cluster IPs are not for clients outside.
    if packet.is_echo_request() {
        return Verdict::Pass;
    }
    match replies_to(tables, packet, out) {
        Some(_) => forward(tables, packet, ifindex, out),
        None => request_from_outside(tables, packet, ifindex, out),
    }
}

/// Bytes of the longest packet that every route takes (RFC 8200 section 5).
const ALWAYS_FITS: u32 = 1280;

/// The flags of the flow whose reply a packet is, to an address that we gave as source: of a pod to itself, or of a remote endpoint.
#[inline(always)]
fn replies_to<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Option<u8> {
    if !may_be_reply(tables, packet) {
        return None;
    }
    let flow = known_reverse(tables, packet, Edge::ReverseIngress)?;
    out.to = flow.tuple;
    Some(flow.flags)
}

/// May a packet that comes in be the reply of a flow with a source port of ours? False means surely not: the range is wide, and
/// most packets to ports in it are for others.
#[inline(always)]
pub(super) fn may_be_reply<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let tuple = &packet.tuple;
    tables.settings().is_snat_port(tuple.dport)
        && tables.may_be_answer(&tuple.src, tuple.sport, packet.protocol)
}

/// What a client outside sends.
#[inline(always)]
fn request_from_outside<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Verdict {
    let tuple = &packet.tuple;
    if !tables.may_be_frontend(&tuple.dst, tuple.dport, packet.protocol) {
        tables.step(Step::NoFrontendSurely);
        return Verdict::Pass;
    }
    match known_forward(tables, packet) {
        Some(flow) => match follow(tables, packet, &flow, ifindex, out) {
            Verdict::Forward => forward(tables, packet, ifindex, out),
            verdict => verdict,
        },
        None if tables.defers() => Verdict::NewFlow,
        None => new_flow(tables, packet, ifindex, Scope::External, out),
    }
}

/// A packet that leaves by an uplink: the source of a reply becomes the VIP again, and what is still addressed to a service goes no
/// further: the stack neither delivered nor translated it.
#[inline(always)]
pub fn to_outside<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Verdict {
    if let Some(flow) = answer_of_local(tables, packet) {
        out.to = flow.tuple;
        return if flow.flags & flags::BY_SOURCE != 0 && leaves_elsewhere(tables, out) {
            Verdict::Divert
        } else {
            Verdict::Translate
        };
    }
    if !packet.is_echo_request() && !packet.follows {
        note_outbound(tables, packet);
    }
    let tuple = &packet.tuple;
    if tables.is_service_address(&tuple.dst) {
        return to_service_address(tables, packet);
    }
    if tables.came_in() != 0
        && tables.may_be_frontend(&tuple.dst, tuple.dport, packet.protocol)
        && returns(tables)
    {
        return back_to_outside(tables, packet);
    }
    Verdict::Pass
}

/// Does the route of the translated packet leave by another device than the one that the packet is leaving by?
#[inline(always)]
fn leaves_elsewhere<F: Family, T: Tables<F>>(tables: &T, out: &mut Translation<F>) -> bool {
    // As what the node itself sends.
    tables.route(LOOPBACK, &out.to.src, &out.to.dst, 0, &mut out.route);
    tables.step(Step::Route(out.route));
    matches!(out.route.kind, RouteKind::Neighbour | RouteKind::Unresolved | RouteKind::Stack)
        && out.route.ifindex != tables.leaves()
}

/// A packet to an address in the range of service addresses leaves the node: nobody else has it.
#[inline(always)]
fn to_service_address<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    if packet.is_echo_request() {
        return match ping(tables, packet) {
            Verdict::Pass => tables.drop(DropReason::Unallocated),
            verdict => verdict,
        };
    }
    if packet.follows || !frontend::is_cluster_ip(tables, &packet.tuple.dst) {
        return tables.drop(DropReason::Unallocated);
    }
    if packet.protocol != PROTOCOL_TCP || packet.is_request() {
        return tables.answer(Counter::UndefinedPort, Verdict::Reject);
    }
    reset_unknown(tables, packet)
}

/// Did the packet come in by an uplink, so that it is on its way back to where it came from?
#[inline(always)]
fn returns<F: Family, T: Tables<F>>(tables: &T) -> bool {
    let came_in = tables.came_in();
    came_in == tables.leaves() || leads_off(tables, came_in)
}

/// A packet from outside that was not translated and is about to leave again. If a Service has its address, only the next router's hop limit
/// would end its way.
#[inline(always)]
fn back_to_outside<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    let tuple = &packet.tuple;
    if !packet.is_echo_request()
        && !packet.follows
        && frontend::find(tables, &tuple.dst, tuple.dport, packet.protocol, false).is_some()
    {
        return if packet.protocol == PROTOCOL_TCP && !packet.is_request() {
            reset_unknown(tables, packet)
        } else {
            // It was left alone on purpose: as a reply to this node, or because the client may not use this frontend.
            Verdict::Pass
        };
    }
    // By another uplink it may reach somebody who has the address: the node may be a router.
    if tables.came_in() == tables.leaves() && frontend::is_load_balancer(tables, &tuple.dst) {
        return tables.drop(DropReason::Loop);
    }
    Verdict::Pass
}

/// A TCP packet of a connection that neither we nor the kernel know: its sender shall open another one at once.
#[inline(always)]
fn reset_unknown<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    if packet.is_reset() {
        return tables.drop(DropReason::ConnectionUnknown);
    }
    tables.answer(Counter::ConnectionUnknown, Verdict::Reset)
}

/// Remembers what leaves from a frontend's own address and port, or from an address and port that we might give as source, without a
/// flow of ours: a socket of the node or kernel NAT sends it. Replies to it are no requests, and the port is taken.
#[inline(always)]
fn note_outbound<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) {
    let tuple = &packet.tuple;
    let is_datagram = packet.protocol == PROTOCOL_UDP;
    let mut flags = 0;
    if !is_datagram && !packet.is_syn() {
        if !is_in_use(tables, packet) {
            return;
        }
        flags = if packet.is_closing() { OUTBOUND_CLOSED } else { OUTBOUND_ESTABLISHED };
    }
    // One key for both look-ups: there is little stack.
    let mut reply = key_of_reply(tuple, packet.protocol);
    let from_frontend = is_datagram && tables.may_be_frontend(&tuple.src, tuple.sport, packet.protocol);
    if from_frontend && is_flow(tables, &reply) {
        return;
    }
    let from_source = may_be_snat(tables, packet);
    // What leaves by the uplink that it came by, we sent on ourselves.
    if !from_frontend && (!from_source || tables.came_in() == tables.leaves()) {
        return;
    }
    // A nodePort may be in the range.
    if from_source {
        reply.edge = Edge::ReverseIngress as u8;
        if is_flow(tables, &reply) {
            // A socket of the node that was bound to the port since: it would get no replies. The client's next datagram gets another port.
            // That a packet came in by no device does not show it: fragments that the stack makes of what we sent on have lost theirs
            // (`ip6_copy_metadata`).
            if !is_datagram || tables.came_in() != 0 || !tables.has_socket(&reply.tuple, packet.protocol) {
                return;
            }
            give_way(tables, &reply);
        }
        reply.edge = Edge::Forward as u8;
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
fn give_way<F: Family, T: Tables<F>>(tables: &T, reverse: &FlowKey<F>) {
    let Some(mut pair) = tables.pair() else { return };
    if let Some(flow) = tables.flow(reverse).or_else(|| tables.pending(reverse)) {
        pair.begin(reverse, &flow);
        pair.make_twin();
        // The client's next flow, with another endpoint, may have that key by now.
        if tables.flow(&pair.twin_key).is_some_and(|forward| forward.is_twin_of(reverse)) {
            tables.remove_flow(&pair.twin_key);
        }
        if tables.pending(&pair.twin_key).is_some_and(|forward| forward.is_twin_of(reverse)) {
            tables.remove_pending(&pair.twin_key);
        }
    }
    tables.remove_flow(reverse);
    tables.remove_pending(reverse);
}

/// Is the TCP packet of a connection with an endpoint that we send connections to, too?
#[inline(always)]
pub(super) fn is_in_use<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let tuple = &packet.tuple;
    packet.protocol == PROTOCOL_TCP && tables.may_be_answer(&tuple.dst, tuple.dport, packet.protocol)
}

#[inline(always)]
fn is_flow<F: Family, T: Tables<F>>(tables: &T, key: &FlowKey<F>) -> bool {
    tables.flow(key).is_some() || tables.pending(key).is_some()
}

/// Does a packet leave from where we might send a connection to a remote endpoint from?
#[inline(always)]
pub(super) fn may_be_snat<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let tuple = &packet.tuple;
    tables.settings().is_snat_port(tuple.sport) && tables.may_be_snat_source(&tuple.src)
}

/// Is a datagram to a frontend the reply to what this node sent from there?
#[inline(always)]
fn is_reply_to_node<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let key = FlowKey::new(packet.tuple, packet.protocol, Edge::Forward);
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

/// A ping is answered for cluster IPs: nobody else has the address.
#[inline(always)]
fn ping<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    if frontend::is_cluster_ip(tables, &packet.tuple.dst) {
        tables.answer(Counter::EchoReply, Verdict::Echo)
    } else {
        Verdict::Pass
    }
}

/// A packet that leaves to a pod: the source of a reply becomes the VIP again.
#[inline(always)]
pub fn to_client<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Verdict {
    if let Some(flow) = answer_of_local(tables, packet) {
        out.to = flow.tuple;
        return Verdict::Translate;
    }
    if !packet.is_echo_request() && !packet.follows {
        note_outbound(tables, packet);
    }
    Verdict::Pass
}

/// The flow that a packet which leaves to a client is a reply of, if it is one.
#[inline(always)]
fn answer_of_local<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Option<T::Flow> {
    let tuple = &packet.tuple;
    if packet.is_echo_request() || !tables.may_be_answer(&tuple.src, tuple.sport, packet.protocol) {
        return None;
    }
    known_reverse(tables, packet, Edge::ReverseEgress)
}

/// The flow that a packet is a reply of, if it is known at this edge.
#[inline(always)]
fn known_reverse<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, edge: Edge) -> Option<T::Flow> {
    let flow = tables.find_flow(packet, edge)?;
    tables.count(Counter::FlowReverse);
    Some(flow)
}

/// The flow that a packet belongs to; none if there is none, or if it must choose anew.
#[inline(always)]
fn known_forward<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Option<T::Flow> {
    let flow = tables.find_flow(packet, Edge::Forward)?;
    tables.count(Counter::FlowForward);
    Some(flow)
}

/// Sends a packet the way of its flow.
#[inline(always)]
fn follow<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    flow: &T::Flow,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Verdict {
    if tables.settings().reset_removed_tcp
        && !packet.follows
        && packet.protocol == PROTOCOL_TCP
        && !tables.is_alive(flow.backend)
    {
        flow.set_state(FlowState::Closed);
        return tables.answer(Counter::FlowReset, Verdict::Reset);
    }
    out.to = flow.tuple;
    if flow.flags & !flags::BY_SOURCE == 0 {
        return Verdict::Translate;
    }
    if flow.flags & flags::SNAT != 0 {
        return Verdict::Forward;
    }
    if flow.flags & flags::HAIRPIN != 0 {
        return Verdict::Return;
    }
    out.mac = flow.mac;
    if out.mac.is_none() {
        if !is_switched(tables, ifindex, out) || out.mac.is_none() {
            return Verdict::Translate;
        }
        flow.set_mac(out.mac);
    }
    Verdict::Switch
}

/// Chooses a backend and opens a flow, if the packet is a request: what is left to do after [`Verdict::NewFlow`].
#[inline(always)]
pub fn new_flow<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    scope: Scope,
    out: &mut Translation<F>,
) -> Verdict {
    if !packet.is_request() {
        tables.step(Step::NoRequest);
        return Verdict::Pass;
    }
    let tuple = &packet.tuple;
    let Some(target) = frontend::find(tables, &tuple.dst, tuple.dport, packet.protocol, false) else {
        // Only cluster IPs belong to us whole: an external IP may be the node's, with its own servers.
        return if matches!(scope, Scope::Internal) && frontend::is_cluster_ip(tables, &tuple.dst) {
            tables.answer(Counter::UndefinedPort, Verdict::Reject)
        } else {
            Verdict::Pass
        };
    };
    if packet.protocol == PROTOCOL_UDP && is_reply_to_node(tables, packet) {
        tables.step(Step::ReplyToNode);
        return tables.answer(Counter::ReplyToNode, Verdict::Pass);
    }
    if target.flags() & FRONTEND_SOURCES != 0 && !tables.allows_source(target.service(), &tuple.src) {
        return tables.drop(DropReason::SourceDenied);
    }
    let mut backend = Backend::default();
    match frontend::choose(tables, target, scope, &tuple.src, 0, &mut backend) {
        Choice::Made => {}
        Choice::NotOurs => return Verdict::Pass,
        Choice::Nobody => return tables.answer(Counter::NoEndpoints, Verdict::Reject),
        Choice::Withheld => return tables.drop(DropReason::NoLocalEndpoints),
        Choice::Broken => return Verdict::Drop,
    }
    out.to.src = tuple.src;
    out.to.sport = tuple.sport;
    out.to.dst = backend.addr;
    out.to.dport = backend.port;
    let mut verdict = Verdict::Translate;
    let mut flags = 0;
    if matches!(scope, Scope::External) {
        // The stack knows the way to the node's own endpoints.
        if backend.flags & BACKEND_LOCAL == 0 {
            tables.route(ifindex, &tuple.src, &backend.addr, 0, &mut out.route);
            tables.step(Step::Route(out.route));
            match out.route.kind {
                RouteKind::Local => {}
                RouteKind::None => return tables.drop(DropReason::NoRoute),
                _ if backend.flags & BACKEND_REMOTE != 0 || leads_off(tables, out.route.ifindex) => {
                    if !snat_source(tables, tuple, ifindex, out) {
                        return tables.drop(DropReason::NoSnatAddress);
                    }
                    if packet.hop_limit <= 1 {
                        return tables.answer(Counter::HopLimit, Verdict::TimeExceeded);
                    }
                    // The route that is known by now fits nearly all packets.
                    if tables.size(packet) > ALWAYS_FITS {
                        let sent = forward(tables, packet, ifindex, out);
                        if !matches!(sent, Verdict::Forward) {
                            return sent;
                        }
                    }
                    flags = flags::SNAT;
                    verdict = Verdict::Forward;
                }
                _ => {}
            }
        }
        if flags == 0 && tables.device(ifindex).is_some_and(|device| device.flags & DEVICE_RULES != 0) {
            flags = flags::BY_SOURCE;
        }
    } else if F::same(&backend.addr, &tuple.src) {
        tables.step(Step::Hairpin);
        out.to.src = tuple.dst;
        flags = flags::HAIRPIN;
        verdict = Verdict::Return;
    } else if is_switched(tables, ifindex, out) {
        flags = flags::SWITCHED;
        if !out.mac.is_none() {
            verdict = Verdict::Switch;
        }
    }
    let Some(mut pair) = tables.pair() else {
        return tables.drop(DropReason::FlowMapFull);
    };
    pair.key = FlowKey::new(*tuple, packet.protocol, Edge::Forward);
    let flow = &mut pair.flow;
    flow.tuple = out.to;
    flow.last_seen = tables.now();
    flow.backend = backend.id;
    flow.service = target.service();
    flow.state = FlowState::New as u8;
    flow.flags = flags;
    flow.mac = if flags == flags::SWITCHED { out.mac } else { Mac::NONE };
    flow.isn = if packet.protocol == PROTOCOL_UDP { flow.last_seen } else { packet.sequence };
    flow.acknowledged = 0;
    flow.timestamp = if packet.protocol == PROTOCOL_TCP && flags & flags::SNAT != 0 {
        tables.timestamp(packet)
    } else {
        0
    };
    tables.announce_answers(&backend.addr, backend.port, packet.protocol);
    if tables.defers() {
        out.opened = verdict;
        return Verdict::Open;
    }
    opened(tables, &mut pair, verdict, out)
}

/// Opens the flow in the pair: what is left to do after [`Verdict::Open`]. Says what becomes of the packet, `verdict` if nothing is in the
/// way.
#[inline(always)]
pub fn opened<F: Family, T: Tables<F>>(
    tables: &T,
    pair: &mut Pair<F>,
    verdict: Verdict,
    out: &mut Translation<F>,
) -> Verdict {
    if let Some(reason) = tables.open_flow(pair) {
        return tables.drop(reason);
    }
    // The source may be another now.
    out.to.src = pair.flow.tuple.src;
    out.to.sport = pair.flow.tuple.sport;
    tables.step(Step::Answer(out.to.reversed()));
    tables.count(Counter::FlowNew);
    verdict
}

/// Does a device lead to other nodes?
#[inline(always)]
fn leads_off<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    tables.device(ifindex).is_some_and(|device| device.flags & DEVICE_UPLINK != 0)
}

/// The address to send from to the backend `out.to.dst`: the one that the route prefers, if late answers to it are known as
/// such; else that of the device, or of the one that the request came in by. False if there is none.
#[inline(always)]
fn snat_source<F: Family, T: Tables<F>>(
    tables: &T,
    tuple: &Tuple<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> bool {
    if tables.preferred_source(ifindex, &tuple.src, &out.to.dst, &mut out.to.src)
        && tables.node_address(&out.to.src).is_snat_source()
    {
        return true;
    }
    let mut is_of =
        |device| tables.device(device).is_some_and(|device| T::snat_address(device, &mut out.to.src));
    is_of(out.route.ifindex) || is_of(ifindex)
}

/// Is the backend behind the same bridge as the client? Then also says its MAC, none if it is not resolved yet.
///
/// Without it the request would be routed and the answer switched, and the host's conntrack, seeing half of
/// the connection, would call the client's next packet invalid.
#[inline(always)]
fn is_switched<F: Family, T: Tables<F>>(tables: &T, ifindex: u32, out: &mut Translation<F>) -> bool {
    let Some(device) = tables.device(ifindex) else {
        return false;
    };
    let bridge = device.bridge;
    if bridge == 0 {
        return false;
    }
    // Not copies: there is little stack.
    tables.route(bridge, &out.to.src, &out.to.dst, 0, &mut out.route);
    tables.step(Step::Route(out.route));
    out.mac = out.route.to;
    out.route.ifindex == bridge && matches!(out.route.kind, RouteKind::Neighbour | RouteKind::Unresolved)
}

/// Sends a translated packet on past the stack: requests to a remote backend, and their answers. What a router would
/// tell the sender is for us to tell.
#[inline(always)]
fn forward<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Verdict {
    if packet.hop_limit <= 1 {
        // No errors about errors, nor about fragments other than the first (RFC 1122 section 3.2.2).
        return if packet.follows {
            tables.drop(DropReason::HopLimit)
        } else {
            tables.answer(Counter::HopLimit, Verdict::TimeExceeded)
        };
    }
    // Not copies, as above.
    tables.route(ifindex, &out.to.src, &out.to.dst, tables.size(packet), &mut out.route);
    tables.step(Step::Route(out.route));
    match out.route.kind {
        RouteKind::Neighbour | RouteKind::Unresolved | RouteKind::Stack => Verdict::Forward,
        RouteKind::Local => Verdict::Translate,
        RouteKind::TooBig if is_cut(tables, packet, ifindex, out) => {
            out.route.kind = RouteKind::Stack;
            Verdict::Forward
        }
        RouteKind::TooBig if packet.follows => tables.drop(DropReason::TooBig),
        RouteKind::TooBig => tables.answer(Counter::TooBig, Verdict::TooBig),
        RouteKind::None => tables.drop(DropReason::NoRoute),
    }
}

/// Does the stack fragment a packet that is too long for its route? What the stack sends in any case, it does. Else it takes packets alone
/// that leave from an address of the node: others would have to come in by the device that leads to their source (`rp_filter`).
#[inline(always)]
fn is_cut<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    out: &Translation<F>,
) -> bool {
    let wanted = match tables.fragmentable(packet) {
        Fragmentable::No => return false,
        _ if out.route.by_stack => return true,
        Fragmentable::Fragment => DEVICE_FRAGMENTS,
        Fragmentable::Whole => DEVICE_FRAGMENTS | DEVICE_FRAGMENTS_WHOLE,
    };
    tables.device(ifindex).is_some_and(|device| device.flags & wanted != 0)
        && tables.node_address(&out.to.src).0 != 0
}

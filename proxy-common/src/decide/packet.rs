//! The packet path: what the tc and XDP programs run.

use super::{
    flow,
    frontend::{self, Choice},
    tables::{FlowHandle, RouteKind, Step, Tables},
    verdict::{DropReason, Translation, Verdict},
};
use crate::{
    Family,
    layout::{
        backend::Backend,
        counter::Counter,
        device::{DEVICE_UPLINK, Device},
        flow::{Edge, FlowKey, FlowState, Mac, Tuple, flags},
        frontend::FRONTEND_SOURCES,
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
    let tuple = &packet.tuple;
    // What a pod answers itself goes to the VIP, so it may be an answer and not a request.
    if tables.settings().is_snat_port(tuple.dport)
        && let Some(flow) = known_reverse(tables, packet, Edge::ReverseIngress)
    {
        out.to = flow.tuple;
        return Verdict::Return;
    }
    if !tables.may_be_frontend(&tuple.dst, tuple.dport, packet.protocol) {
        tables.step(Step::NoFrontendSurely);
        return Verdict::Pass;
    }
    if packet.is_echo_request() {
        return ping(tables, packet);
    }
    let key = FlowKey::new(*tuple, packet.protocol, Edge::Forward);
    match known_forward(tables, packet, &key) {
        Some(flow) => follow(tables, packet, &flow, ifindex, out),
        None => new_flow(tables, packet, &key, ifindex, Scope::Internal, out),
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
    let verdict = match answer_of_remote(tables, packet, out) {
        Verdict::Pass => request_from_outside(tables, packet, ifindex, out),
        verdict => verdict,
    };
    // A new flow has its route already; only a long packet must ask for more than that.
    let is_routed = !matches!(out.route.kind, RouteKind::None);
    if matches!(verdict, Verdict::Forward) && (!is_routed || tables.size(packet) > ALWAYS_FITS) {
        return forward(tables, packet, ifindex, out);
    }
    verdict
}

/// Bytes of the longest packet that every route takes (RFC 8200 section 5).
const ALWAYS_FITS: u32 = 1280;

/// The answer of a remote backend, to an address that we gave as source.
#[inline(always)]
fn answer_of_remote<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Verdict {
    let tuple = &packet.tuple;
    if !tables.settings().is_snat_port(tuple.dport) {
        return Verdict::Pass;
    }
    if let Some(flow) = known_reverse(tables, packet, Edge::ReverseIngress) {
        out.to = flow.tuple;
        return Verdict::Forward;
    }
    // An address of the node may be a load balancer's as well, with such a port.
    if !packet.follows
        && tables.node_address(&tuple.dst).is_snat_source()
        && !tables.may_be_frontend(&tuple.dst, tuple.dport, packet.protocol)
        && !tables.has_socket(tuple, packet.protocol)
    {
        return tables.drop(DropReason::SnatUnknown);
    }
    Verdict::Pass
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
    let key = FlowKey::new(*tuple, packet.protocol, Edge::Forward);
    match known_forward(tables, packet, &key) {
        Some(flow) => follow(tables, packet, &flow, ifindex, out),
        None => new_flow(tables, packet, &key, ifindex, Scope::External, out),
    }
}

/// A packet that leaves by an uplink: the source of an answer becomes the VIP again, and what was meant for a cluster IP
/// but was not translated goes no further.
#[inline(always)]
pub fn to_outside<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Verdict {
    let verdict = to_client(tables, packet, out);
    if !matches!(verdict, Verdict::Pass) || !tables.is_service_address(&packet.tuple.dst) {
        return verdict;
    }
    if packet.is_echo_request() {
        return match ping(tables, packet) {
            Verdict::Pass => tables.drop(DropReason::Unallocated),
            verdict => verdict,
        };
    }
    if !packet.follows && frontend::is_cluster_ip(tables, &packet.tuple.dst) {
        return tables.answer(Counter::UndefinedPort, Verdict::Reject);
    }
    tables.drop(DropReason::Unallocated)
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

/// A packet that leaves to a pod: the source of an answer becomes the VIP again.
#[inline(always)]
pub fn to_client<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Verdict {
    if packet.is_echo_request() {
        return Verdict::Pass;
    }
    match known_reverse(tables, packet, Edge::ReverseEgress) {
        Some(flow) => {
            out.to = flow.tuple;
            Verdict::Translate
        }
        None => Verdict::Pass,
    }
}

/// The flow that a packet is an answer of, if it is known at this edge.
#[inline(always)]
fn known_reverse<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>, edge: Edge) -> Option<T::Flow> {
    let key = FlowKey::new(packet.tuple, packet.protocol, edge);
    let flow = tables.flow(&key)?;
    if FlowState::is_ending(flow.state) && packet.is_syn_ack() {
        // Our client would have opened the flow anew: this answers somebody who talks to the backend directly.
        tables.step(Step::StaleFlow(*flow));
        return None;
    }
    tables.step(Step::KnownFlow(*flow));
    flow::refresh(tables, packet, &key, &flow);
    tables.count(Counter::FlowReverse);
    Some(flow)
}

/// The flow that a packet belongs to; none if there is none, or if it must choose anew.
#[inline(always)]
fn known_forward<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
) -> Option<T::Flow> {
    let flow = tables.flow(key)?;
    // TCP stays with an endpoint that is going away until it closes; the next connection from the same port does not.
    let begins = !packet.follows && (packet.protocol == PROTOCOL_UDP || packet.is_syn());
    let over = packet.is_syn() && FlowState::is_ending(flow.state);
    if begins && (over || !tables.is_alive(flow.backend)) {
        tables.step(Step::StaleFlow(*flow));
        return None;
    }
    tables.step(Step::KnownFlow(*flow));
    flow::refresh(tables, packet, key, &flow);
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
    if flow.flags == 0 {
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

/// Chooses a backend and opens a flow.
#[inline(always)]
fn new_flow<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    key: &FlowKey<F>,
    ifindex: u32,
    scope: Scope,
    out: &mut Translation<F>,
) -> Verdict {
    if packet.follows {
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
        tables.route(ifindex, &tuple.src, &backend.addr, 0, &mut out.route);
        tables.step(Step::Route(out.route));
        match out.route.kind {
            RouteKind::Local => {}
            RouteKind::None => return tables.drop(DropReason::NoRoute),
            RouteKind::Neighbour | RouteKind::Unresolved | RouteKind::TooBig => {
                if let Some(device) = tables.device(out.route.ifindex)
                    && device.flags & DEVICE_UPLINK != 0
                {
                    if !snat_source(tables, device, tuple, ifindex, out) {
                        return tables.drop(DropReason::NoSnatAddress);
                    }
                    if packet.hop_limit <= 1 {
                        return tables.answer(Counter::HopLimit, Verdict::TimeExceeded);
                    }
                    flags = flags::SNAT;
                    verdict = Verdict::Forward;
                }
            }
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
    if !tables.admit_flow() {
        return tables.drop(DropReason::NewFlowLimited);
    }
    let Some(mut pair) = tables.pair() else {
        return tables.drop(DropReason::FlowMapFull);
    };
    pair.key = *key;
    let flow = &mut pair.flow;
    flow.tuple = out.to;
    flow.last_seen = tables.now();
    flow.backend = backend.id;
    flow.service = target.service();
    flow.state = FlowState::New as u8;
    flow.flags = flags;
    flow.mac = if flags == flags::SWITCHED { out.mac } else { Mac::NONE };
    if flags & (flags::SNAT | flags::HAIRPIN) == 0 {
        tables.announce_answers(&backend.addr, backend.port, key.protocol);
    }
    if let Some(reason) = tables.open_flow(&mut pair) {
        return tables.drop(reason);
    }
    // The source port may be another now.
    out.to.sport = pair.flow.tuple.sport;
    tables.step(Step::Answer(out.to.reversed()));
    tables.count(Counter::FlowNew);
    verdict
}

/// The address to send from to the backend `out.to.dst`: the one that the route prefers, if late answers to it are known as
/// such; else that of the device. False if there is none.
#[inline(always)]
fn snat_source<F: Family, T: Tables<F>>(
    tables: &T,
    device: &Device,
    tuple: &Tuple<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> bool {
    (tables.preferred_source(ifindex, &tuple.src, &out.to.dst, &mut out.to.src)
        && tables.node_address(&out.to.src).is_snat_source())
        || T::snat_address(device, &mut out.to.src)
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
    let Tuple { src, dst, .. } = out.to;
    tables.route(bridge, &src, &dst, 0, &mut out.route);
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
    let Tuple { src, dst, .. } = out.to;
    tables.route(ifindex, &src, &dst, tables.size(packet), &mut out.route);
    tables.step(Step::Route(out.route));
    match out.route.kind {
        RouteKind::Neighbour | RouteKind::Unresolved => Verdict::Forward,
        RouteKind::Local => Verdict::Translate,
        RouteKind::TooBig if packet.follows => tables.drop(DropReason::TooBig),
        RouteKind::TooBig => tables.answer(Counter::TooBig, Verdict::TooBig),
        RouteKind::None => tables.drop(DropReason::NoRoute),
    }
}

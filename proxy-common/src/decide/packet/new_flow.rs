//! The first packet of a flow: chooses backend, route and source.

use super::{ALWAYS_FITS, outbound::is_reply_to_node};
use crate::{
    Family,
    decide::{
        frontend::{self, Choice},
        tables::{Fragmentable, RouteKind, Step, Tables},
        verdict::{DropReason, Translation, Verdict},
    },
    layout::{
        backend::{BACKEND_LOCAL, BACKEND_REMOTE, Backend},
        counter::Counter,
        device::{DEVICE_FRAGMENTS, DEVICE_FRAGMENTS_WHOLE, DEVICE_RULES, DEVICE_UPLINK},
        flow::{FlowDraft, FlowKey, FlowState, LookupPoint, Mac, Tuple, flags},
        frontend::FRONTEND_SOURCE_RANGES,
        set::Scope,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

/// Chooses a backend and opens a flow, if the packet is a request: the step after [`Verdict::NewFlow`].
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
        // Only cluster IPs are a Service's on every port: an external IP may be the node's, with its own
        // servers.
        return if matches!(scope, Scope::Internal) && frontend::is_cluster_ip(tables, &tuple.dst) {
            tables.reply(Counter::UndefinedPort, Verdict::Reject)
        } else {
            Verdict::Pass
        };
    };
    if packet.protocol == PROTOCOL_UDP && is_reply_to_node(tables, packet) {
        tables.step(Step::ReplyToNode);
        return tables.reply(Counter::ReplyToNode, Verdict::Pass);
    }
    if target.flags() & FRONTEND_SOURCE_RANGES != 0 && !tables.allows_source(target.service(), &tuple.src) {
        return tables.drop(DropReason::SourceDenied);
    }
    let mut backend = Backend::default();
    match frontend::choose(tables, target, scope, &tuple.src, 0, &mut backend) {
        Choice::Made => {}
        Choice::NotOurs => return Verdict::Pass,
        Choice::Nobody => return tables.reply(Counter::NoEndpoints, Verdict::Reject),
        Choice::NoLocalEndpoints => return tables.drop(DropReason::NoLocalEndpoints),
        Choice::Broken => return Verdict::Drop,
    }
    out.to.src = tuple.src;
    out.to.sport = tuple.sport;
    out.to.dst = backend.addr;
    out.to.dport = backend.port;
    let mut verdict = Verdict::ToStack;
    let mut flags = 0;
    let mut client_namespace = 0;
    if matches!(scope, Scope::External) {
        match place(tables, &backend, tuple, ifindex, out) {
            Place::Here => {}
            Place::NoRoute => return tables.drop(DropReason::NoRoute),
            Place::NoSource => return tables.drop(DropReason::NoSnatAddress),
            place => {
                if packet.hop_limit <= 1 {
                    return tables.reply(Counter::HopLimit, Verdict::TimeExceeded);
                }
                // A route that was looked up for this packet fits nearly all packets.
                if matches!(place, Place::RemoteAsBefore) || tables.size(packet) > ALWAYS_FITS {
                    let sent = forward(tables, packet, ifindex, out);
                    if !matches!(sent, Verdict::Redirect) {
                        return sent;
                    }
                }
                flags = flags::SNAT;
                verdict = Verdict::Redirect;
            }
        }
        if flags == 0
            && let Some(device) = tables.device(ifindex)
        {
            client_namespace = device.peer_namespace;
            if device.flags & DEVICE_RULES != 0 {
                flags = flags::BY_SOURCE;
            }
        }
    } else if F::same(&backend.addr, &tuple.src) {
        tables.step(Step::Hairpin);
        out.to.src = tuple.dst;
        flags = flags::HAIRPIN;
        verdict = Verdict::Hairpin;
    } else if let Some(device) = tables.device(ifindex) {
        client_namespace = device.peer_namespace;
        if is_switched(tables, device.bridge, out) {
            flags = flags::SWITCHED;
            if !out.mac.is_none() {
                verdict = Verdict::Bridge;
            }
        }
    }
    let Some(mut draft) = tables.draft() else {
        return tables.drop(DropReason::FlowMapFull);
    };
    draft.key = FlowKey::new(*tuple, packet.protocol, LookupPoint::Forward);
    draft.client_namespace = client_namespace;
    let flow = &mut draft.flow;
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
    tables.insert_reply(&backend.addr, backend.port, packet.protocol);
    if tables.defers() {
        out.opened = verdict;
        return Verdict::Open;
    }
    opened(tables, &mut draft, verdict, out)
}

/// Opens the flow in the draft: the step after [`Verdict::Open`]. Returns the verdict for the packet: `verdict`
/// on success.
#[inline(always)]
pub fn opened<F: Family, T: Tables<F>>(
    tables: &T,
    draft: &mut FlowDraft<F>,
    verdict: Verdict,
    out: &mut Translation<F>,
) -> Verdict {
    if let Some(reason) = tables.open_flow(draft) {
        return tables.drop(reason);
    }
    // Opening the flow may have changed the source.
    out.to.src = draft.flow.tuple.src;
    out.to.sport = draft.flow.tuple.sport;
    tables.step(Step::Answer(out.to.reversed()));
    tables.count(Counter::FlowNew);
    verdict
}

/// Where an endpoint is, for a client outside.
#[derive(Clone, Copy)]
#[repr(u32)]
enum Place {
    /// On this node.
    Here,
    /// Elsewhere. Route and source were looked up for the packet.
    Remote,
    /// Elsewhere. The source is that of another flow.
    RemoteAsBefore,
    /// No route.
    NoRoute,
    /// Elsewhere, but the node has no address to send from.
    NoSource,
}

/// Where the endpoint `out.to.dst` is, with the source for packets to it. Routes are looked up for the first of the flows
/// that are opened in a short time: a look-up takes as long as an insertion of a flow, and with IPv6 one for the
/// source takes much longer.
#[inline(always)]
fn place<F: Family, T: Tables<F>>(
    tables: &T,
    backend: &Backend<F>,
    tuple: &Tuple<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Place {
    // The stack knows the routes to the node's own endpoints.
    if backend.flags & BACKEND_LOCAL != 0 {
        return Place::Here;
    }
    if tables.recent_source(ifindex, &backend.addr, &mut out.to.src) {
        return Place::RemoteAsBefore;
    }
    tables.route(ifindex, &tuple.src, &backend.addr, 0, &mut out.route);
    tables.step(Step::Route(out.route));
    match out.route.kind {
        RouteKind::Local => return Place::Here,
        RouteKind::None => return Place::NoRoute,
        _ if backend.flags & BACKEND_REMOTE == 0 && !leads_off(tables, out.route.ifindex) => {
            return Place::Here;
        }
        _ => {}
    }
    if !snat_source(tables, tuple, ifindex, out) {
        return Place::NoSource;
    }
    // Routing rules may choose another route for another client.
    if tables.device(ifindex).is_some_and(|device| device.flags & DEVICE_RULES == 0) {
        tables.remember_source(ifindex, &backend.addr, &out.to.src);
    }
    Place::Remote
}

/// Whether a device leads to other nodes.
#[inline(always)]
pub(super) fn leads_off<F: Family, T: Tables<F>>(tables: &T, ifindex: u32) -> bool {
    tables.device(ifindex).is_some_and(|device| device.flags & DEVICE_UPLINK != 0)
}

/// The source address for packets to the backend `out.to.dst`: the one that the route prefers, if late replies
/// to it are recognised as such; else that of the device, or of the one that the request came in by. False if
/// none is found.
#[inline(always)]
pub(super) fn snat_source<F: Family, T: Tables<F>>(
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

/// Whether the backend is behind the client's bridge, if it has one (not 0). Also finds the backend's MAC,
/// [`Mac::NONE`] until it is resolved.
///
/// Without it the request would be routed and the reply bridged: the host's conntrack would see half of the
/// connection, and treat the client's next packet as invalid.
#[inline(always)]
pub(super) fn is_switched<F: Family, T: Tables<F>>(
    tables: &T,
    bridge: u32,
    out: &mut Translation<F>,
) -> bool {
    if bridge == 0 {
        return false;
    }
    // No copies: the stack is small.
    tables.route(bridge, &out.to.src, &out.to.dst, 0, &mut out.route);
    tables.step(Step::Route(out.route));
    out.mac = out.route.to;
    out.route.ifindex == bridge && matches!(out.route.kind, RouteKind::Neighbour | RouteKind::Unresolved)
}

/// Forwards a translated packet past the stack: requests to a remote backend, and their replies. The program
/// generates the ICMP errors that a router would send.
#[inline(always)]
pub(super) fn forward<F: Family, T: Tables<F>>(
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
            tables.reply(Counter::HopLimit, Verdict::TimeExceeded)
        };
    }
    // No copies, as above.
    tables.route(ifindex, &out.to.src, &out.to.dst, tables.size(packet), &mut out.route);
    tables.step(Step::Route(out.route));
    match out.route.kind {
        RouteKind::Neighbour | RouteKind::Unresolved | RouteKind::Stack => Verdict::Redirect,
        RouteKind::Local => Verdict::ToStack,
        RouteKind::TooBig if is_cut(tables, packet, ifindex, out) => {
            out.route.kind = RouteKind::Stack;
            Verdict::Redirect
        }
        RouteKind::TooBig if packet.follows => tables.drop(DropReason::TooBig),
        RouteKind::TooBig => tables.reply(Counter::TooBig, Verdict::TooBig),
        RouteKind::None => tables.drop(DropReason::NoRoute),
    }
}

/// Whether the stack fragments a packet that is too long for its route. It does so for all routes that only the
/// stack can use. On others it takes only packets that leave from an address of the node: `rp_filter` drops
/// packets that come in by another device than the one that leads to their source.
#[inline(always)]
pub(super) fn is_cut<F: Family, T: Tables<F>>(
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

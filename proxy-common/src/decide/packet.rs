//! The packet path, which the tc and XDP programs run.

mod leaving;
mod new_flow;
mod outbound;

use super::{
    frontend::{self},
    tables::{FlowHandle, Step, Tables},
    verdict::{Translation, Verdict},
};
use crate::{
    Family,
    layout::{
        counter::Counter,
        flow::{FlowState, LookupPoint, flags},
        set::Scope,
    },
    packet::{PROTOCOL_TCP, Packet},
};

pub use self::{
    leaving::uplink_egress,
    new_flow::{new_flow, opened},
};
use self::{
    new_flow::{forward, is_switched},
    outbound::note_outbound,
};

/// A packet that a pod sends, at the pod's interface with index `ifindex`.
#[inline(always)]
pub fn pod_ingress<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Verdict {
    // A hairpin endpoint's reply is addressed to the VIP, so it may be a reply and not a request. And a pod's
    // namespace that forwards may have remote endpoints behind it: their replies by a bridge are translated at
    // the interface behind the bridge that the request left by. Else the host's conntrack would see half of the
    // connection.
    match replies_to(tables, packet, out) {
        Some(flow) if flow & flags::HAIRPIN != 0 => Verdict::Hairpin,
        Some(_) if tables.device(ifindex).is_some_and(|device| device.bridge != 0) => Verdict::Pass,
        Some(_) => forward(tables, packet, ifindex, out),
        None => request_of_pod(tables, packet, ifindex, out),
    }
}

/// A packet of a client in a pod.
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
pub fn uplink_ingress<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    ifindex: u32,
    out: &mut Translation<F>,
) -> Verdict {
    // Pings from outside are left to the address's owner; ClusterIPs are internal.
    if packet.is_echo_request() {
        return Verdict::Pass;
    }
    match replies_to(tables, packet, out) {
        Some(_) => forward(tables, packet, ifindex, out),
        None => request_from_outside(tables, packet, ifindex, out),
    }
}

/// The packet size in bytes that every route takes (RFC 8200 section 5).
const ALWAYS_FITS: u32 = 1280;

/// The flags of the flow whose reply a packet is, with an SNAT or hairpin source: replies of a pod to itself,
/// or of a remote endpoint.
#[inline(always)]
fn replies_to<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Option<u8> {
    if !may_be_reply(tables, packet) {
        return None;
    }
    let flow = known_reverse(tables, packet, LookupPoint::ReverseIngress)?;
    out.to = flow.tuple;
    Some(flow.flags)
}

/// Whether a packet that comes in may be the reply of a flow with SNAT. False is certain: the range is wide,
/// and most packets to ports in it are not replies.
#[inline(always)]
pub(super) fn may_be_reply<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> bool {
    let tuple = &packet.tuple;
    tables.settings().is_snat_port(tuple.dport)
        && tables.may_be_filtered_reply(&tuple.src, tuple.sport, packet.protocol)
}

/// A packet of a client outside.
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
            Verdict::Redirect => forward(tables, packet, ifindex, out),
            verdict => verdict,
        },
        None if tables.defers() => Verdict::NewFlow,
        None => new_flow(tables, packet, ifindex, Scope::External, out),
    }
}

/// Answers a ping to a cluster IP: no host has the address.
#[inline(always)]
fn ping<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    if frontend::is_cluster_ip(tables, &packet.tuple.dst) {
        tables.reply(Counter::EchoReply, Verdict::Echo)
    } else {
        Verdict::Pass
    }
}

/// A packet that leaves to a pod: the source of a reply becomes the VIP again.
#[inline(always)]
pub fn pod_egress<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Verdict {
    if let Some(flow) = reply_of_local(tables, packet) {
        out.to = flow.tuple;
        return Verdict::ToStack;
    }
    if !packet.is_echo_request() && !packet.follows {
        note_outbound(tables, packet);
    }
    Verdict::Pass
}

/// The flow whose reply a packet that leaves to a client is, if any.
#[inline(always)]
fn reply_of_local<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Option<T::Flow> {
    let tuple = &packet.tuple;
    if packet.is_echo_request() || !tables.may_be_filtered_reply(&tuple.src, tuple.sport, packet.protocol) {
        return None;
    }
    known_reverse(tables, packet, LookupPoint::ReverseEgress)
}

/// The flow whose reply a packet is, if it is known at this lookup point.
#[inline(always)]
fn known_reverse<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    lookup_point: LookupPoint,
) -> Option<T::Flow> {
    let flow = tables.find_flow(packet, lookup_point)?;
    tables.count(Counter::FlowReverse);
    Some(flow)
}

/// The flow that a packet belongs to; `None` if it has none, or if it must choose a new endpoint.
#[inline(always)]
fn known_forward<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Option<T::Flow> {
    let flow = tables.find_flow(packet, LookupPoint::Forward)?;
    tables.count(Counter::FlowForward);
    Some(flow)
}

/// Translates a packet by its flow, and decides where it is sent.
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
        return tables.reply(Counter::FlowReset, Verdict::Reset);
    }
    out.to = flow.tuple;
    if flow.flags & !flags::BY_SOURCE == 0 {
        return Verdict::ToStack;
    }
    if flow.flags & flags::SNAT != 0 {
        return Verdict::Redirect;
    }
    if flow.flags & flags::HAIRPIN != 0 {
        return Verdict::Hairpin;
    }
    out.mac = flow.mac;
    if out.mac.is_none() {
        let bridge = tables.device(ifindex).map_or(0, |device| device.bridge);
        if !is_switched(tables, bridge, out) || out.mac.is_none() {
            return Verdict::ToStack;
        }
        flow.set_mac(out.mac);
    }
    Verdict::Bridge
}

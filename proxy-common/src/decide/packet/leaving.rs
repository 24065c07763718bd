//! Packets that leave by an interface that is not a pod's.

use super::{new_flow::leads_off, outbound::note_outbound, ping, reply_of_local};
use crate::{
    Family,
    decide::{
        frontend,
        tables::{RouteKind, Step, Tables},
        verdict::{DropReason, Translation, Verdict},
    },
    layout::{counter::Counter, device::LOOPBACK, flow::flags},
    packet::{PROTOCOL_TCP, Packet},
};

/// A packet that leaves by an uplink: the source of a reply becomes the VIP again. A packet that is still
/// addressed to a service is stopped: the stack neither delivered nor translated it.
#[inline(always)]
pub fn uplink_egress<F: Family, T: Tables<F>>(
    tables: &T,
    packet: &Packet<F>,
    out: &mut Translation<F>,
) -> Verdict {
    if let Some(flow) = reply_of_local(tables, packet) {
        out.to = flow.tuple;
        return if flow.flags & flags::BY_SOURCE != 0 && leaves_elsewhere(tables, out) {
            Verdict::Divert
        } else {
            Verdict::ToStack
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

/// Whether the route of the translated packet leaves by another device than the packet.
#[inline(always)]
pub(super) fn leaves_elsewhere<F: Family, T: Tables<F>>(tables: &T, out: &mut Translation<F>) -> bool {
    // Routed as a packet of the node itself.
    tables.route(LOOPBACK, &out.to.src, &out.to.dst, 0, &mut out.route);
    tables.step(Step::Route(out.route));
    matches!(out.route.kind, RouteKind::Neighbour | RouteKind::Unresolved | RouteKind::Stack)
        && out.route.ifindex != tables.leaves()
}

/// A packet to an address in the range of service addresses leaves the node: no host has it.
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
        return tables.reply(Counter::UndefinedPort, Verdict::Reject);
    }
    reset_unknown(tables, packet)
}

/// Whether the packet came in by an uplink, so that it returns to where it came from.
#[inline(always)]
fn returns<F: Family, T: Tables<F>>(tables: &T) -> bool {
    let came_in = tables.came_in();
    came_in == tables.leaves() || leads_off(tables, came_in)
}

/// A packet from outside that was not translated and is about to leave again. If a Service has its address,
/// only the next router's hop limit would stop the loop.
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
            // The packet was left alone on purpose: as a reply to this node, or because the client may not use
            // this frontend.
            Verdict::Pass
        };
    }
    // By another uplink the packet may reach a host that has the address: the node may be a router.
    if tables.came_in() == tables.leaves() && frontend::is_load_balancer(tables, &tuple.dst) {
        return tables.drop(DropReason::Loop);
    }
    Verdict::Pass
}

/// A TCP packet of a connection that neither the agent nor the kernel knows: the reset makes its sender open a
/// new one at once.
#[inline(always)]
fn reset_unknown<F: Family, T: Tables<F>>(tables: &T, packet: &Packet<F>) -> Verdict {
    if packet.is_reset() {
        return tables.drop(DropReason::ConnectionUnknown);
    }
    tables.reply(Counter::ConnectionUnknown, Verdict::Reset)
}

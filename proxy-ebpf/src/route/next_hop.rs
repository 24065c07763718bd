//! Next hops in use: each look-up of the FIB marks its neighbour, which makes the agent probe it.

use core::ptr;

use proxy_common::{
    decide::{Route, RouteKind},
    layout::next_hop::{HEARTBEAT, NextHop},
};

use super::Routed;

/// Jiffies after which a mark is renewed: a more frequent store would take the cache line from other CPUs more
/// often.
const RENEW: u32 = 16;

/// The slot of a route's neighbour, written for it.
#[inline(always)]
fn slot<F: Routed>(route: &Route<F>, now: u32) -> Option<&'static mut NextHop<F>> {
    let slot = F::next_hop_slot(NextHop::<F>::slot(&route.next_hop, route.ifindex))?;
    // SAFETY: the kernel gave the pointer, and map memory outlives the program. Other CPUs may write it: see `NextHop`.
    let slot = unsafe { &mut *slot };
    if slot.ifindex != route.ifindex || !F::same(&slot.addr, &route.next_hop) {
        slot.addr = route.next_hop;
        slot.ifindex = route.ifindex;
        slot.last_used = now;
        slot.handed_over = now;
    } else if now.wrapping_sub(slot.last_used) >= RENEW {
        slot.last_used = now;
    }
    Some(slot)
}

/// Marks a route's neighbour as used.
#[inline(always)]
pub(crate) fn mark<F: Routed>(route: &Route<F>, now: u32) {
    if matches!(route.kind, RouteKind::Neighbour) && route.names_next_hop {
        slot(route, now);
    }
}

/// The same at XDP. Without an agent that probes, the kernel must see a packet about once a second (`second`
/// jiffies): true if this packet is due. tc then sends it by the kernel's neighbour code, which probes a STALE
/// neighbour.
#[inline(always)]
pub(crate) fn must_hand_over<F: Routed>(route: &Route<F>, now: u32, second: u32) -> bool {
    if !matches!(route.kind, RouteKind::Neighbour) {
        return false;
    }
    // A neighbour of the other family, which the agent does not probe.
    if !route.names_next_hop {
        return true;
    }
    let (Some(slot), Some(agent)) = (slot(route, now), F::next_hop_slot(HEARTBEAT)) else { return false };
    // SAFETY: as above; one word, which the agent writes at any time.
    let beat = unsafe { ptr::read_volatile(&raw const (*agent).last_used) };
    if beat == 0
        || now.wrapping_sub(beat) < second.wrapping_mul(4)
        || now.wrapping_sub(slot.handed_over) < second
    {
        return false;
    }
    slot.handed_over = now;
    true
}

//! Routes to next hops, which entries of flows refer to; see [`RouteMark`].

use proxy_common::{
    Family,
    decide::{Route, RouteKind},
    layout::{
        flow::Mac,
        next_hop::NextHop,
        route_mark::{RouteMark, is_unused},
    },
};

use super::Routed;

/// A route to a next hop. Of two next hops with the same slot the first has it as long as it is in use; flows to the other
/// use the FIB cache. All zero: an empty slot, whose route is of the first kind, [`RouteKind::Local`].
///
/// Programs of several CPUs write without a lock. A slot gets another next hop only when no mark for it is fresh, so no
/// program uses the route while it changes; `since` is written first, for two that take the slot at the same time.
#[repr(C)]
pub(crate) struct HopRoute<F: Family> {
    /// When it got this next hop, in jiffies, truncated.
    since: u32,
    /// When the FIB had the neighbour's MACs.
    looked_up: u32,
    route: Route<F>,
}

/// The route that a flow's entry marks, for a packet of `size` bytes, if it is known. The result is valid until the
/// program ends.
#[inline(always)]
pub(crate) fn marked<F: Routed>(mac: Mac, size: u32, now: u32) -> Option<&'static Route<F>> {
    let mark = RouteMark::from_mac(mac);
    if !mark.is_fresh(size, now) {
        return None;
    }
    let hop = F::hop_route(mark.slot)?;
    // SAFETY: the kernel gave the pointer, and map memory outlives the program. Its content was written as this type,
    // or is zero. Other CPUs may write it: see `HopRoute`.
    let hop = unsafe { &*hop };
    mark.is_after(hop.since, now).then_some(&hop.route)
}

/// Stores a route, which the FIB had at `looked_up` for a packet of `size` bytes, in the slot of its next hop. Returns the
/// mark for entries in the lower six bytes; 0: only the FIB cache has the route.
#[inline(always)]
pub(crate) fn mark<F: Routed>(route: &Route<F>, looked_up: u32, size: u32, now: u32) -> u64 {
    if !matches!(route.kind, RouteKind::Neighbour) || !route.names_next_hop || size > u16::MAX as u32 {
        return 0;
    }
    let slot = NextHop::<F>::slot(&route.next_hop, route.ifindex);
    let Some(hop) = F::hop_route(slot) else { return 0 };
    // SAFETY: as above.
    let hop = unsafe { &mut *hop };
    let known = &mut hop.route;
    if known.ifindex != route.ifindex
        || !F::same(&known.next_hop, &route.next_hop)
        || !matches!(known.kind, RouteKind::Neighbour)
    {
        if matches!(known.kind, RouteKind::Neighbour) && !is_unused(hop.looked_up, now) {
            return 0;
        }
        // SAFETY: a field of the element.
        unsafe { (&raw mut hop.since).write_volatile(now) };
        hop.looked_up = looked_up;
        *known = *route;
    } else if now.wrapping_sub(looked_up) < now.wrapping_sub(hop.looked_up) {
        // Another CPU may have heard of another MAC later.
        hop.looked_up = looked_up;
        known.from = route.from;
        known.to = route.to;
    }
    let Mac([first, second, third]) = RouteMark { slot, looked_up, size: size as u16 }.to_mac();
    first as u64 | (second as u64) << 16 | (third as u64) << 32
}

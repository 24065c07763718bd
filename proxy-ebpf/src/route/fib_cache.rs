//! FIB cache.
//!
//! The kernel's look-up takes longer than all other work for a packet of a known flow. Each CPU caches its
//! result for [`FRESH`]: flows with a higher packet rate hardly ever query, others do not need the cache.
//! No invalidation: the TTL bounds staleness, whether or not an agent runs.

use core::ffi::c_void;

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use proxy_common::{
    Family, V4, V6,
    decide::{Route, RouteKind},
    layout::{
        maps::{DeclaredMap, table},
        route_mark::FRESH,
    },
};

use super::{Routed, hop_route, next_hop};
use crate::settings::second;

/// Routes that a CPU caches of each family, as the exponent of two.
const SLOT_BITS: u32 = SLOTS.trailing_zeros();
const SLOTS: usize = table::FibCache::<V4>::ENTRIES;
const _: () = assert!(SLOTS.is_power_of_two());

/// Cache slot: the last FIB query and its result. All zero is an empty slot: no packet comes in by a device
/// with index 0.
#[repr(C)]
pub(crate) struct CachedRoute<F: Family> {
    src: F::Addr,
    dst: F::Addr,
    ifindex: u32,
    /// The packet's size in bytes.
    size: u32,
    /// Time of the query in jiffies, truncated.
    queried: u32,
    route: Route<F>,
}

/// A FIB query for a packet.
pub(crate) struct FibQuery<'q, F: Family> {
    /// The device by which the packet comes in.
    pub(crate) ifindex: u32,
    pub(crate) src: &'q F::Addr,
    pub(crate) dst: &'q F::Addr,
    /// The packet's size in bytes.
    pub(crate) size: u32,
    /// The time in jiffies.
    pub(crate) now: u32,
}

impl<F: Family> FibQuery<'_, F> {
    #[inline(always)]
    pub(crate) fn slot(&self) -> u32 {
        let word = F::fold(self.src).rotate_left(u32::BITS / 2) ^ F::fold(self.dst);
        word.wrapping_mul(0x9e37_79b9) >> (u32::BITS - SLOT_BITS)
    }

    /// Writes the query to a slot.
    #[inline(always)]
    fn put(&self, cached: &mut CachedRoute<F>) {
        cached.src = *self.src;
        cached.dst = *self.dst;
        cached.ifindex = self.ifindex;
        cached.size = self.size;
        cached.queried = self.now;
    }

    /// Whether the slot has the result of this query.
    #[inline(always)]
    fn is_hit(&self, cached: &CachedRoute<F>) -> bool {
        self.now.wrapping_sub(cached.queried) < FRESH
            && cached.ifindex == self.ifindex
            && self.size <= cached.size
            && F::same(&cached.dst, self.dst)
            && F::same(&cached.src, self.src)
            && matches!(cached.route.kind, RouteKind::Neighbour | RouteKind::Stack)
    }
}

/// As [`super::look_up`], from this CPU's cache or else by `ask`, one of the functions below. The result is
/// valid until the program ends or queries again.
#[inline(always)]
pub(crate) fn look_up<F: Routed>(
    query: &FibQuery<'_, F>,
    ask: impl FnOnce(u32),
) -> Option<&'static Route<F>> {
    let slot = query.slot();
    let cached = F::cached_route(slot)?;
    // SAFETY: this CPU's own memory: programs run with bottom halves off. Its content was written as this type,
    // or is zero, which is the first variant of the enum in it.
    let cached = unsafe { &mut *cached };
    if !query.is_hit(cached) {
        query.put(cached);
        ask(slot);
    }
    Some(&cached.route)
}

/// The same by `ask` always. The slot is another one than that of packets with these addresses.
#[inline(always)]
pub(crate) fn look_up_anew<F: Routed>(
    query: &FibQuery<'_, F>,
    ask: impl FnOnce(u32),
) -> Option<&'static Route<F>> {
    let slot = query.slot() ^ 1;
    let cached = F::cached_route(slot)?;
    // SAFETY: as above.
    let cached = unsafe { &mut *cached };
    query.put(cached);
    ask(slot);
    Some(&cached.route)
}

/// Bit of the index in a slot that has a source address in place of the next hop. No device has it: indices are
/// positive integers.
const SOURCE: u32 = 1 << 31;

/// The query for the source of flows to `dst`, from any client.
#[inline(always)]
fn source_query<F: Routed>(ifindex: u32, dst: &F::Addr, now: u32) -> FibQuery<'_, F> {
    FibQuery { ifindex: ifindex | SOURCE, src: dst, dst, size: 0, now }
}

/// The source that was last recorded for flows to `dst` from this device, if that was within [`FRESH`].
#[inline(always)]
pub(crate) fn recent_source<F: Routed>(ifindex: u32, dst: &F::Addr, now: u32, source: &mut F::Addr) -> bool {
    let query = source_query::<F>(ifindex, dst, now);
    let Some(cached) = F::cached_route(query.slot()) else { return false };
    // SAFETY: as above.
    let cached = unsafe { &*cached };
    let is_hit = query.is_hit(cached);
    if is_hit {
        *source = cached.route.next_hop;
    }
    is_hit
}

/// Records it.
#[inline(always)]
pub(crate) fn remember_source<F: Routed>(ifindex: u32, dst: &F::Addr, now: u32, source: &F::Addr) {
    let query = source_query::<F>(ifindex, dst, now);
    let Some(cached) = F::cached_route(query.slot()) else { return };
    // SAFETY: as above.
    let cached = unsafe { &mut *cached };
    cached.src = *dst;
    cached.dst = *dst;
    cached.ifindex = query.ifindex;
    cached.size = 0;
    cached.queried = now;
    cached.route.next_hop = *source;
    cached.route.kind = RouteKind::Neighbour;
}

/// Answers the query in this slot.
#[inline(always)]
fn fill_slot<F: Routed>(ctx: *mut c_void, slot: u32, is_xdp: bool) -> u32 {
    let Some(cached) = F::cached_route(slot) else { return 0 };
    // SAFETY: as above.
    let CachedRoute { src, dst, ifindex, size, route, queried } = unsafe { &mut *cached };
    super::look_up(ctx, *ifindex, src, dst, *size, route);
    if !is_xdp {
        next_hop::mark(route, *queried);
    } else if next_hop::must_hand_over(route, *queried, second()) {
        // XDP leaves unresolved neighbours to tc, and the next packet queries again.
        route.kind = RouteKind::Unresolved;
    }
    1
}

/// The mark for the route in this slot, in the lower six bytes.
#[inline(always)]
fn mark<F: Routed>(slot: u32, now: u32) -> u64 {
    let Some(cached) = F::cached_route(slot) else { return 0 };
    // SAFETY: as above.
    let CachedRoute { route, queried, size, .. } = unsafe { &*cached };
    hop_route::mark(route, *queried, *size, now)
}

macro_rules! fill_slot {
    ($($family:ident, $of_skb:ident, $of_frame:ident, $mark:ident;)*) => { $(
        // Global functions: the verifier checks them once, and their stack is free afterwards.

        /// For tc.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $of_skb(skb: *mut __sk_buff, slot: u32) -> u32 {
            fill_slot::<$family>(skb.cast(), slot, false)
        }

        /// For XDP.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $of_frame(ctx: *mut xdp_md, slot: u32) -> u32 {
            fill_slot::<$family>(ctx.cast(), slot, true)
        }

        /// The mark for the route in this slot, in the lower six bytes.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $mark(slot: u32, now: u32) -> u64 {
            mark::<$family>(slot, now)
        }
    )* };
}

fill_slot! {
    V4, route4_of_skb, route4_of_frame, mark_route4;
    V6, route6_of_skb, route6_of_frame, mark_route6;
}

//! Differences between the families in the kernel: maps, structures, and functions.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use proxy_common::{
    Family as _, V4, V6,
    decide::{self, Attempt, Claim, DropReason},
    layout::{device::Device, event::EventFamily},
};

use crate::{
    log::Logged,
    maps::FamilyMaps,
    route::{
        Routed,
        fib_cache::{
            mark_route4, mark_route6, route4_of_frame, route4_of_skb, route6_of_frame, route6_of_skb,
        },
    },
    scratch::{Scratch, draft, scratch},
    settings::{SERVES_V4, SERVES_V6, SNAT_SOURCES_V4_COUNT, SNAT_SOURCES_V6_COUNT},
    socket_steps::SocketSteps,
    tables::Kernel,
};

/// An [`Attempt`] as a number.
#[inline(always)]
fn attempt_flow<F: KernelFamily>(kernel: &Kernel, claim: u32) -> u32 {
    let Some(draft) = draft::<F>() else { return Attempt::NoRoom as u32 };
    decide::attempt::<F, _>(kernel, draft, Claim::of(claim)) as u32
}

/// Looks for the flow of the packet in the CPU's scratch, by the key there; returns a [`Found`](decide::Found).
#[inline(always)]
fn find_flow<F: KernelFamily>(kernel: &Kernel) -> u32 {
    let Some(Scratch { dissected, key, .. }) = scratch::<F>() else { return 0 };
    decide::find::<F, _>(kernel, &dissected.packet, key) as u32
}

/// Confirms the flow of which the CPU's draft has an entry; 0 on failure.
#[inline(always)]
fn confirm_flow<F: KernelFamily>() -> u32 {
    let Some(draft) = draft::<F>() else { return 0 };
    decide::confirm::<F, _>(&Kernel::of_socket(core::ptr::null_mut(), false), draft) as u32
}

/// Opens the flow that the CPU's draft has; returns a [`DropReason::code`] or 0.
#[inline(always)]
fn open_flow<F: KernelFamily>(kernel: &Kernel) -> u32 {
    let Some(draft) = draft::<F>() else { return DropReason::FlowMapFull.code() };
    decide::open::<F, _>(kernel, draft).map_or(0, DropReason::code)
}

macro_rules! open_flow {
    ($($family:ident, $of_skb:ident, $of_frame:ident, $attempt_of_skb:ident, $attempt_of_frame:ident, $confirm:ident, $find_of_skb:ident, $find_of_frame:ident;)*) => { $(
        // Global functions, which the verifier checks once: otherwise it would follow each of their many exits
        // to the end.

        /// For tc.
        #[unsafe(no_mangle)]
        pub extern "C" fn $of_skb(skb: *mut __sk_buff) -> u32 {
            open_flow::<$family>(&Kernel::of_skb(skb, 0))
        }

        /// For XDP.
        #[unsafe(no_mangle)]
        pub extern "C" fn $of_frame(ctx: *mut xdp_md) -> u32 {
            open_flow::<$family>(&Kernel::before_tc(ctx.cast()))
        }

        /// Tries one source port, for tc.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $attempt_of_skb(skb: *mut __sk_buff, claim: u32) -> u32 {
            attempt_flow::<$family>(&Kernel::of_skb(skb, 0), claim)
        }

        /// For XDP.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $attempt_of_frame(ctx: *mut xdp_md, claim: u32) -> u32 {
            attempt_flow::<$family>(&Kernel::before_tc(ctx.cast()), claim)
        }

        /// Finds a flow, for tc.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $find_of_skb(skb: *mut __sk_buff) -> u32 {
            find_flow::<$family>(&Kernel::of_skb(skb, 0))
        }

        /// For XDP.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $find_of_frame(ctx: *mut xdp_md) -> u32 {
            find_flow::<$family>(&Kernel::before_tc(ctx.cast()))
        }

        /// Confirms a flow.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $confirm() -> u32 {
            confirm_flow::<$family>()
        }
    )* };
}

open_flow! {
    V4, open_flow4_of_skb, open_flow4_of_frame, attempt_flow4_of_skb, attempt_flow4_of_frame, confirm_flow4, find_flow4_of_skb, find_flow4_of_frame;
    V6, open_flow6_of_skb, open_flow6_of_frame, attempt_flow6_of_skb, attempt_flow6_of_frame, confirm_flow6, find_flow6_of_skb, find_flow6_of_frame;
}

/// The other differences between the families in the kernel.
pub(crate) trait KernelFamily: FamilyMaps + Routed + Logged + EventFamily + SocketSteps {
    /// Opens the flow that the CPU's draft has, at tc; returns a [`DropReason::code`] or 0.
    fn open_flow_of_skb(skb: *mut __sk_buff) -> u32;
    /// The same at XDP.
    fn open_flow_of_frame(ctx: *mut xdp_md) -> u32;
    /// Tries to open it with one source port, at tc; returns an [`Attempt`].
    fn attempt_of_skb(skb: *mut __sk_buff, claim: u32) -> u32;
    /// The same at XDP.
    fn attempt_of_frame(ctx: *mut xdp_md, claim: u32) -> u32;
    /// Looks for the flow of the packet in the CPU's scratch, at tc; returns a [`Found`](decide::Found).
    fn find_of_skb(skb: *mut __sk_buff) -> u32;
    /// The same at XDP.
    fn find_of_frame(ctx: *mut xdp_md) -> u32;
    /// Confirms the flow of which the CPU's draft has an entry; 0 on failure.
    fn confirm() -> u32;
    /// Whether there can be Services of this family. The verifier does not follow what depends on it if not.
    fn is_served() -> bool;
    /// Number of configured source addresses for connections to remote endpoints.
    fn snat_sources() -> u32;
    /// Answers the FIB query in this slot of the FIB cache, at tc.
    fn route_of_skb(skb: *mut __sk_buff, slot: u32);
    /// The same at XDP.
    fn route_of_frame(ctx: *mut xdp_md, slot: u32);
    /// Marks the route in this slot of the FIB cache as that of a flow; returns the mark in the lower six bytes.
    fn mark_route(slot: u32, now: u32) -> u64;
    /// The device's source address for connections that it forwards; false if it has none.
    fn snat_address(device: &Device, addr: &mut Self::Addr) -> bool;
}

impl KernelFamily for V4 {
    #[inline(always)]
    fn open_flow_of_skb(skb: *mut __sk_buff) -> u32 {
        open_flow4_of_skb(skb)
    }

    #[inline(always)]
    fn open_flow_of_frame(ctx: *mut xdp_md) -> u32 {
        open_flow4_of_frame(ctx)
    }

    #[inline(always)]
    fn attempt_of_skb(skb: *mut __sk_buff, claim: u32) -> u32 {
        attempt_flow4_of_skb(skb, claim)
    }

    #[inline(always)]
    fn attempt_of_frame(ctx: *mut xdp_md, claim: u32) -> u32 {
        attempt_flow4_of_frame(ctx, claim)
    }

    #[inline(always)]
    fn find_of_skb(skb: *mut __sk_buff) -> u32 {
        find_flow4_of_skb(skb)
    }

    #[inline(always)]
    fn find_of_frame(ctx: *mut xdp_md) -> u32 {
        find_flow4_of_frame(ctx)
    }

    #[inline(always)]
    fn confirm() -> u32 {
        confirm_flow4()
    }

    #[inline(always)]
    fn is_served() -> bool {
        SERVES_V4.load() != 0
    }

    #[inline(always)]
    fn snat_sources() -> u32 {
        SNAT_SOURCES_V4_COUNT.load()
    }

    #[inline(always)]
    fn route_of_skb(skb: *mut __sk_buff, slot: u32) {
        route4_of_skb(skb, slot);
    }

    #[inline(always)]
    fn route_of_frame(ctx: *mut xdp_md, slot: u32) {
        route4_of_frame(ctx, slot);
    }

    #[inline(always)]
    fn mark_route(slot: u32, now: u32) -> u64 {
        mark_route4(slot, now)
    }

    #[inline(always)]
    fn snat_address(device: &Device, addr: &mut u32) -> bool {
        *addr = device.snat_v4;
        *addr != 0
    }
}

impl KernelFamily for V6 {
    #[inline(always)]
    fn open_flow_of_skb(skb: *mut __sk_buff) -> u32 {
        open_flow6_of_skb(skb)
    }

    #[inline(always)]
    fn open_flow_of_frame(ctx: *mut xdp_md) -> u32 {
        open_flow6_of_frame(ctx)
    }

    #[inline(always)]
    fn attempt_of_skb(skb: *mut __sk_buff, claim: u32) -> u32 {
        attempt_flow6_of_skb(skb, claim)
    }

    #[inline(always)]
    fn attempt_of_frame(ctx: *mut xdp_md, claim: u32) -> u32 {
        attempt_flow6_of_frame(ctx, claim)
    }

    #[inline(always)]
    fn find_of_skb(skb: *mut __sk_buff) -> u32 {
        find_flow6_of_skb(skb)
    }

    #[inline(always)]
    fn find_of_frame(ctx: *mut xdp_md) -> u32 {
        find_flow6_of_frame(ctx)
    }

    #[inline(always)]
    fn confirm() -> u32 {
        confirm_flow6()
    }

    #[inline(always)]
    fn is_served() -> bool {
        SERVES_V6.load() != 0
    }

    #[inline(always)]
    fn snat_sources() -> u32 {
        SNAT_SOURCES_V6_COUNT.load()
    }

    #[inline(always)]
    fn route_of_skb(skb: *mut __sk_buff, slot: u32) {
        route6_of_skb(skb, slot);
    }

    #[inline(always)]
    fn route_of_frame(ctx: *mut xdp_md, slot: u32) {
        route6_of_frame(ctx, slot);
    }

    #[inline(always)]
    fn mark_route(slot: u32, now: u32) -> u64 {
        mark_route6(slot, now)
    }

    #[inline(always)]
    fn snat_address(device: &Device, addr: &mut [u32; 4]) -> bool {
        *addr = device.snat_v6;
        !V6::same(addr, &V6::UNSPECIFIED)
    }
}

//! What differs between the families in the kernel: maps, structures, and functions of their own.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use proxy_common::{
    Family as _, V4, V6,
    decide::{self, DropReason},
    layout::device::Device,
};

use crate::{
    log::Logged,
    maps::FamilyMaps,
    route::{
        Routed,
        known::{route4_of_frame, route4_of_skb, route6_of_frame, route6_of_skb},
    },
    tables::Kernel,
};

/// Opens the flow that the CPU's pair has; returns a [`DropReason::code`] or 0.
#[inline(always)]
fn open_flow<F: KernelFamily>(kernel: &Kernel) -> u32 {
    let Some(pair) = F::pair() else { return DropReason::FlowMapFull.code() };
    // SAFETY: this CPU's own, and the caller does not look at it meanwhile.
    decide::open::<F, _>(kernel, unsafe { &mut *pair }).map_or(0, DropReason::code)
}

macro_rules! open_flow {
    ($($family:ident, $of_skb:ident, $of_frame:ident;)*) => { $(
        // Global functions, which the verifier goes through once: their many ways out would each be followed to the end.

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
    )* };
}

open_flow! {
    V4, open_flow4_of_skb, open_flow4_of_frame;
    V6, open_flow6_of_skb, open_flow6_of_frame;
}

/// What else differs between the families in the kernel.
pub(crate) trait KernelFamily: FamilyMaps + Routed + Logged {
    /// Opens the flow that the CPU's pair has, at tc; returns a [`DropReason::code`] or 0.
    fn open_flow_of_skb(skb: *mut __sk_buff) -> u32;
    /// The same at XDP.
    fn open_flow_of_frame(ctx: *mut xdp_md) -> u32;
    /// Answers the question after a route that stands at this place of the known ones, at tc.
    fn route_of_skb(skb: *mut __sk_buff, place: u32);
    /// The same at XDP.
    fn route_of_frame(ctx: *mut xdp_md, place: u32);
    /// The device's source address for connections passed on.
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
    fn route_of_skb(skb: *mut __sk_buff, place: u32) {
        route4_of_skb(skb, place);
    }

    #[inline(always)]
    fn route_of_frame(ctx: *mut xdp_md, place: u32) {
        route4_of_frame(ctx, place);
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
    fn route_of_skb(skb: *mut __sk_buff, place: u32) {
        route6_of_skb(skb, place);
    }

    #[inline(always)]
    fn route_of_frame(ctx: *mut xdp_md, place: u32) {
        route6_of_frame(ctx, place);
    }

    #[inline(always)]
    fn snat_address(device: &Device, addr: &mut [u32; 4]) -> bool {
        *addr = device.snat_v6;
        !V6::same(addr, &V6::UNSPECIFIED)
    }
}

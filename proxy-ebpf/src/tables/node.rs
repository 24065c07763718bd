//! The node.

use aya_ebpf::{
    bindings::{BPF_F_CURRENT_NETNS, bpf_sock, bpf_sock_tuple},
    helpers::generated::{bpf_sk_lookup_udp, bpf_sk_release, bpf_skc_lookup_tcp},
};
use proxy_common::{
    V4, V6,
    decide::{FlowHandle as _, NodeAddress, NodeTables, Route, RouteKind, Tables},
    layout::{
        device::{DEVICE_RULES, Device},
        filter,
        flow::{Mac, Tuple, flags},
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
};

use super::{FlowEntry, Kernel, Layer};
use crate::{
    family::KernelFamily,
    maps::{INTERFACES, VIP_FILTER, interface},
    route::{
        self,
        fib_cache::{self, FibQuery},
        hop_route,
    },
};

// Socket look-ups take a tuple of this layout.
const _: () = {
    use aya_ebpf::bindings::{
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Ipv4,
        bpf_sock_tuple__bindgen_ty_1__bindgen_ty_2 as Ipv6,
    };
    use core::mem::offset_of;
    assert!(size_of::<Ipv4>() == size_of::<Tuple<V4>>() && size_of::<Ipv6>() == size_of::<Tuple<V6>>());
    assert!(
        offset_of!(Ipv4, daddr) == offset_of!(Tuple<V4>, dst)
            && offset_of!(Ipv6, daddr) == offset_of!(Tuple<V6>, dst)
    );
    assert!(
        offset_of!(Ipv4, sport) == offset_of!(Tuple<V4>, sport)
            && offset_of!(Ipv6, sport) == offset_of!(Tuple<V6>, sport)
    );
};

impl<F: KernelFamily> NodeTables<F> for Kernel {
    type CachedRoute = &'static Route<F>;

    #[inline(always)]
    fn node_address(&self, addr: &F::Addr) -> NodeAddress {
        NodeAddress(F::node_address(addr))
    }

    #[inline(always)]
    fn device(&self, ifindex: u32) -> Option<&Device> {
        // SAFETY: the agent replaces whole elements; a torn one would need two changes at once.
        unsafe { INTERFACES.get(ifindex) }
    }

    #[inline(always)]
    fn snat_source(&self, index: u32) -> Option<F::Addr> {
        // SAFETY: the kernel gave the pointer; written before programs are attached.
        F::snat_source(index).map(|addr| unsafe { *addr })
    }

    #[inline(always)]
    fn may_be_snat_source(&self, addr: &F::Addr) -> bool {
        let mark = filter::of_snat_source::<F>(addr);
        VIP_FILTER.get(mark.element).is_some_and(|element| mark.is_in(*element))
    }

    #[inline(always)]
    fn route(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, size: u32, route: &mut Route<F>) {
        let query = FibQuery { ifindex, src, dst, size, now: Tables::<F>::now(self) };
        let known = if size == 0 {
            fib_cache::look_up_anew(&query, |slot| self.ask_for_route::<F>(slot))
        } else {
            self.query_route(&query)
        };
        match known {
            Some(known) => *route = *known,
            None => route.kind = RouteKind::None,
        }
    }

    #[inline(always)]
    fn cached_route(
        &self,
        ifindex: u32,
        src: &F::Addr,
        dst: &F::Addr,
        size: u32,
    ) -> Option<&'static Route<F>> {
        self.query_route(&FibQuery { ifindex, src, dst, size, now: Tables::<F>::now(self) })
    }

    #[inline(always)]
    fn preferred_source(&self, ifindex: u32, src: &F::Addr, dst: &F::Addr, preferred: &mut F::Addr) -> bool {
        route::preferred_source::<F>(self.ctx, ifindex, src, dst, preferred)
    }

    #[inline(always)]
    fn recent_source(&self, ifindex: u32, dst: &F::Addr, source: &mut F::Addr) -> bool {
        fib_cache::recent_source::<F>(ifindex, dst, Tables::<F>::now(self), source)
    }

    #[inline(always)]
    fn remember_source(&self, ifindex: u32, dst: &F::Addr, source: &F::Addr) {
        fib_cache::remember_source::<F>(ifindex, dst, Tables::<F>::now(self), source);
    }

    #[inline(always)]
    fn has_socket(&self, tuple: &Tuple<F>, protocol: u8) -> bool {
        if protocol != PROTOCOL_TCP && protocol != PROTOCOL_UDP {
            // The kernel has no look-up for SCTP sockets. The stack answering a late packet is better than a
            // server of the node losing all of its packets: SGsAP, for one, has its port in the range.
            return true;
        }
        self.socket_state(tuple, protocol, BPF_F_CURRENT_NETNS as i64 as u64).is_some()
    }

    #[inline(always)]
    fn has_connection(&self, namespace: u32, tuple: &Tuple<F>, protocol: u8) -> bool {
        // `enum tcp_state`; connected UDP sockets have the first value.
        const ESTABLISHED: u32 = 1;
        const LISTEN: u32 = 10;
        // The helper takes ids of namespaces as seen from the context's namespace.
        match self.socket_state(tuple, protocol, namespace.wrapping_sub(1).into()) {
            Some(state) if protocol == PROTOCOL_TCP => state != LISTEN,
            Some(state) => state == ESTABLISHED,
            None => false,
        }
    }

    #[inline(always)]
    fn snat_address(device: &Device, addr: &mut F::Addr) -> bool {
        <F as KernelFamily>::snat_address(device, addr)
    }
}

impl Kernel {
    /// The route of a packet of `size` bytes, from the flow's mark or else from the FIB cache.
    #[inline(always)]
    pub(super) fn marked_route<F: KernelFamily>(
        &self,
        ifindex: u32,
        flow: &FlowEntry<F>,
        size: u32,
    ) -> Option<&'static Route<F>> {
        let now = Tables::<F>::now(self);
        if let Some(route) = hop_route::marked(flow.mac, size, now) {
            return Some(route);
        }
        let query = FibQuery { ifindex, src: &flow.tuple.src, dst: &flow.tuple.dst, size, now };
        let route = self.query_route(&query)?;
        // Routing rules may choose by the device that a packet comes in by, which a mark does not have.
        let is_by_rules = || interface(ifindex).is_none_or(|device| device.flags & DEVICE_RULES != 0);
        if matches!(route.kind, RouteKind::Neighbour) && route.names_next_hop && !is_by_rules() {
            let mark = F::mark_route(query.slot(), now);
            // The kernel may have given the entry to another flow meanwhile, which has a MAC there.
            if flow.current_flags() & flags::SNAT != 0 {
                flow.set_mac(Mac([mark as u16, (mark >> 16) as u16, (mark >> 32) as u16]));
            }
        }
        Some(route)
    }

    /// The result of a query, from this CPU's FIB cache if it has it.
    #[inline(always)]
    fn query_route<F: KernelFamily>(&self, query: &FibQuery<'_, F>) -> Option<&'static Route<F>> {
        fib_cache::look_up(query, |slot| self.ask_for_route::<F>(slot))
    }

    /// Has the kernel answer the query in a slot of the FIB cache.
    #[inline(always)]
    fn ask_for_route<F: KernelFamily>(&self, slot: u32) {
        match self.layer {
            Layer::Xdp => F::route_of_frame(self.ctx.cast(), slot),
            _ => F::route_of_skb(self.ctx.cast(), slot),
        }
    }

    /// The state of the TCP or UDP socket that would receive a packet with this tuple, in the network namespace
    /// with this id for the helpers.
    #[inline(always)]
    fn socket_state<F: KernelFamily>(&self, tuple: &Tuple<F>, protocol: u8, namespace: u64) -> Option<u32> {
        // [`Tuple`] has the layout of the kernel's. The helpers only read it.
        let sock_tuple = (&raw const *tuple).cast_mut().cast::<bpf_sock_tuple>();
        let size = size_of::<Tuple<F>>() as u32;
        // The verifier refuses one instruction that reads from the pointer types of both helpers: `black_box` keeps the compiler
        // from merging the two branches.
        // SAFETY: context and tuple have the types that the helpers take.
        unsafe {
            if protocol == PROTOCOL_TCP {
                read_and_release(bpf_skc_lookup_tcp(self.ctx, sock_tuple, size, namespace, 0))
            } else {
                let socket = bpf_sk_lookup_udp(self.ctx, sock_tuple, size, namespace, 0);
                read_and_release(core::hint::black_box(socket))
            }
        }
    }
}

/// The state of a socket, which is released.
///
/// # Safety
/// The pointer comes from a socket lookup, and was not released.
#[inline(always)]
unsafe fn read_and_release(socket: *mut bpf_sock) -> Option<u32> {
    if socket.is_null() {
        return None;
    }
    // SAFETY: not null, so the kernel holds a reference until the release.
    unsafe {
        let state = (*socket).state;
        bpf_sk_release(socket.cast());
        Some(state)
    }
}

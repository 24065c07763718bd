//! Global functions of the socket programs: the verifier checks each once, not for each call with the state of the caller.
//!
//! They take numbers and the context, where they find the requested address and leave the endpoint's: Linux 5.10 lets them take
//! no other pointers. They run one after another, not nested: a chain of calls has 512 bytes of stack.

use aya_ebpf::{EbpfContext as _, bindings::bpf_sock_addr, programs::SockAddrContext};
use proxy_common::{
    V4, V6,
    decide::{self, SocketClient, SocketOrigin, SocketVerdict},
    layout::{
        event::{EventFamily, from_halves, halves},
        id::Id,
        socket::SocketPeer,
    },
};

use crate::{
    family::KernelFamily,
    socket_address::{AddressAccess, Mapped, Plain, port, protocol, set_port},
    tables::Kernel,
};

/// A verdict in one word. From the lowest bit on: 32 bits for the backend, of [`SocketVerdict::Translate`] only, and 32 for the service
/// port or the verdict.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Outcome(u64);

impl Outcome {
    const PASS: Self = Self((SocketVerdict::Pass as u64) << 32);

    #[inline(always)]
    fn of(verdict: SocketVerdict) -> Self {
        Self((verdict as u64) << 32)
    }

    /// The endpoint is the address in the context.
    #[inline(always)]
    fn translated<F: KernelFamily>(peer: &SocketPeer<F>) -> Self {
        Self(peer.backend.0 as u64 | (peer.service.0 as u64) << 32)
    }

    #[inline(always)]
    fn backend(self) -> Id {
        Id(self.0 as u32)
    }

    #[inline(always)]
    fn service(self) -> Id {
        Id((self.0 >> 32) as u32)
    }

    #[inline(always)]
    fn verdict(self) -> SocketVerdict {
        const PASS: u32 = SocketVerdict::Pass as u32;
        const UNREACHABLE: u32 = SocketVerdict::Unreachable as u32;
        const DENIED: u32 = SocketVerdict::Denied as u32;
        if self.backend().0 != Id::NONE.0 {
            return SocketVerdict::Translate;
        }
        match (self.0 >> 32) as u32 {
            PASS => SocketVerdict::Pass,
            UNREACHABLE => SocketVerdict::Unreachable,
            DENIED => SocketVerdict::Denied,
            _ => SocketVerdict::Reject,
        }
    }
}

/// Chooses the backend for the socket, or finds the one that the shared map has.
#[inline(always)]
fn choose<F: KernelFamily, P: AddressAccess<F>, const IN_SHARED_MAP: bool>(
    ctx: *mut bpf_sock_addr,
    netns: u64,
    origin: u32,
) -> Outcome {
    const NODE: u32 = SocketOrigin::Node as u32;
    let ctx = &SockAddrContext::new(ctx);
    let origin = if origin == NODE { SocketOrigin::Node } else { SocketOrigin::Pod };
    let client = &SocketClient { origin, netns, bound: P::bound(ctx) };
    let (addr, requested_port, protocol) = (&P::get(ctx), port(ctx), protocol(ctx));
    let kernel = &Kernel::of_socket(ctx.as_ptr(), P::IS_MAPPED);
    let mut peer = SocketPeer::<F>::default();
    if IN_SHARED_MAP {
        if !decide::find_shared(kernel, addr, requested_port, protocol, client, &mut peer) {
            return Outcome::PASS;
        }
    } else {
        match decide::translate(kernel, addr, requested_port, protocol, client, &mut peer) {
            SocketVerdict::Translate => {}
            verdict => return Outcome::of(verdict),
        }
    }
    P::set(ctx, &peer.addr);
    set_port(ctx, peer.port);
    Outcome::translated(&peer)
}

/// Writes the entries of the shared map for an address that was requested, in two halves, and the endpoint in the context.
#[inline(always)]
fn share<F: KernelFamily, P: AddressAccess<F>>(
    ctx: *mut bpf_sock_addr,
    addr: [u64; 2],
    requested_port: u16,
    outcome: Outcome,
) -> u64 {
    let ctx = &SockAddrContext::new(ctx);
    let peer = SocketPeer::<F> {
        addr: P::get(ctx),
        port: port(ctx),
        checked: 0,
        backend: outcome.backend(),
        service: outcome.service(),
    };
    let kernel = &Kernel::of_socket(ctx.as_ptr(), P::IS_MAPPED);
    // The compiler would drop an argument that IPv4 has no use for, and the verifier miss it.
    let [low, high] = addr.map(core::hint::black_box);
    decide::share(kernel, &F::of_words(from_halves(low, high)), requested_port, &peer) as u64
}

macro_rules! steps {
    ($($translate:ident, $find_shared:ident, $share:ident => $family:ty, $access:ty;)*) => { $(
        /// Chooses the backend for the socket.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $translate(ctx: *mut bpf_sock_addr, netns: u64, origin: u32) -> u64 {
            choose::<$family, $access, false>(ctx, netns, origin).0
        }

        /// Finds the backend that the shared map has for the socket.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $find_shared(ctx: *mut bpf_sock_addr, netns: u64, origin: u32) -> u64 {
            choose::<$family, $access, true>(ctx, netns, origin).0
        }

        /// Writes the entries of the shared map.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $share(ctx: *mut bpf_sock_addr, low: u64, high: u64, port: u32, outcome: u64) -> u64 {
            share::<$family, $access>(ctx, [low, high], port as u16, Outcome(outcome))
        }
    )* };
}

steps! {
    translate4, find_shared4, share4 => V4, Plain;
    translate_mapped, find_shared_mapped, share_mapped => V4, Mapped;
    translate6, find_shared6, share6 => V6, Plain;
}

type Step = extern "C" fn(*mut bpf_sock_addr, u64, u32) -> u64;
type Share = extern "C" fn(*mut bpf_sock_addr, u64, u64, u32, u64) -> u64;

/// The steps for a family. In the context of an IPv6 socket an address may be IPv4, mapped.
pub(crate) trait SocketSteps: EventFamily {
    fn translate(is_mapped: bool) -> Step;
    fn find_shared(is_mapped: bool) -> Step;
    fn share(is_mapped: bool) -> Share;
    /// The address in the context.
    fn address(ctx: &SockAddrContext, is_mapped: bool) -> Self::Addr;
}

impl SocketSteps for V4 {
    #[inline(always)]
    fn translate(is_mapped: bool) -> Step {
        if is_mapped { translate_mapped } else { translate4 }
    }

    #[inline(always)]
    fn find_shared(is_mapped: bool) -> Step {
        if is_mapped { find_shared_mapped } else { find_shared4 }
    }

    #[inline(always)]
    fn share(is_mapped: bool) -> Share {
        if is_mapped { share_mapped } else { share4 }
    }

    #[inline(always)]
    fn address(ctx: &SockAddrContext, is_mapped: bool) -> u32 {
        if is_mapped {
            <Mapped as AddressAccess<V4>>::get(ctx)
        } else {
            <Plain as AddressAccess<V4>>::get(ctx)
        }
    }
}

impl SocketSteps for V6 {
    #[inline(always)]
    fn translate(_: bool) -> Step {
        translate6
    }

    #[inline(always)]
    fn find_shared(_: bool) -> Step {
        find_shared6
    }

    #[inline(always)]
    fn share(_: bool) -> Share {
        share6
    }

    #[inline(always)]
    fn address(ctx: &SockAddrContext, _: bool) -> [u32; 4] {
        <Plain as AddressAccess<V6>>::get(ctx)
    }
}

impl Kernel {
    /// Runs a step that chooses or finds the backend for a socket; `peer` becomes that.
    #[inline(always)]
    pub(crate) fn run_step<F: KernelFamily>(
        &self,
        step: Step,
        client: &SocketClient<F>,
        peer: &mut SocketPeer<F>,
    ) -> SocketVerdict {
        let outcome = Outcome(step(self.ctx.cast(), client.netns, client.origin as u32));
        let verdict = outcome.verdict();
        if matches!(verdict, SocketVerdict::Translate) {
            let ctx = &SockAddrContext::new(self.ctx.cast());
            *peer = SocketPeer {
                addr: F::address(ctx, self.is_mapped()),
                port: port(ctx),
                checked: 0,
                backend: outcome.backend(),
                service: outcome.service(),
            };
        }
        verdict
    }

    /// Writes the entries of the shared map for an address. One of the other steps left the endpoint in the context.
    #[inline(always)]
    pub(crate) fn share_peer<F: KernelFamily>(
        &self,
        addr: &F::Addr,
        port: u16,
        peer: &SocketPeer<F>,
    ) -> bool {
        let [low, high] = halves(&F::words(addr));
        let step = F::share(self.is_mapped());
        step(self.ctx.cast(), low, high, port as u32, Outcome::translated(peer).0) != 0
    }
}

//! The address that a process requests, in the context of a socket program.

use aya_ebpf::programs::SockAddrContext;
use proxy_common::{Family, V4, V6};

/// Place of an address of this family in the context: its own fields, or IPv4 inside the IPv6 fields.
pub(crate) trait AddressAccess<F: Family> {
    const IS_MAPPED: bool;

    fn get(ctx: &SockAddrContext) -> F::Addr;
    fn set(ctx: &SockAddrContext, addr: &F::Addr);
    /// The address that the socket is bound to, or unspecified.
    fn bound(ctx: &SockAddrContext) -> F::Addr;
}

pub(crate) struct Plain;
pub(crate) struct Mapped;

impl AddressAccess<V4> for Plain {
    const IS_MAPPED: bool = false;

    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> u32 {
        // SAFETY: the context is readable.
        unsafe { (*ctx.sock_addr).user_ip4 }
    }

    #[inline(always)]
    fn set(ctx: &SockAddrContext, addr: &u32) {
        // SAFETY: the hook may write this field.
        unsafe { (*ctx.sock_addr).user_ip4 = *addr };
    }

    #[inline(always)]
    fn bound(ctx: &SockAddrContext) -> u32 {
        // SAFETY: the hooks give a socket.
        unsafe { (*(*ctx.sock_addr).__bindgen_anon_1.sk).src_ip4 }
    }
}

impl AddressAccess<V6> for Plain {
    const IS_MAPPED: bool = false;

    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> [u32; 4] {
        // SAFETY: the context is readable, by words.
        unsafe { words(&raw const (*ctx.sock_addr).user_ip6) }
    }

    #[inline(always)]
    fn set(ctx: &SockAddrContext, addr: &[u32; 4]) {
        // SAFETY: the hook may write this field, by words.
        unsafe {
            let ip = &raw mut (*ctx.sock_addr).user_ip6;
            (&raw mut (*ip)[0]).write_volatile(addr[0]);
            (&raw mut (*ip)[1]).write_volatile(addr[1]);
            (&raw mut (*ip)[2]).write_volatile(addr[2]);
            (&raw mut (*ip)[3]).write_volatile(addr[3]);
        }
    }

    #[inline(always)]
    fn bound(ctx: &SockAddrContext) -> [u32; 4] {
        bound_ip6(ctx)
    }
}

impl AddressAccess<V4> for Mapped {
    const IS_MAPPED: bool = true;

    #[inline(always)]
    fn get(ctx: &SockAddrContext) -> u32 {
        <Plain as AddressAccess<V6>>::get(ctx)[3]
    }

    #[inline(always)]
    fn set(ctx: &SockAddrContext, addr: &u32) {
        // SAFETY: the hook may write this word.
        unsafe { (&raw mut (*ctx.sock_addr).user_ip6[3]).write_volatile(*addr) };
    }

    #[inline(always)]
    fn bound(ctx: &SockAddrContext) -> u32 {
        let bound = bound_ip6(ctx);
        if is_mapped_address(&bound) { bound[3] } else { V4::UNSPECIFIED }
    }
}

#[inline(always)]
fn bound_ip6(ctx: &SockAddrContext) -> [u32; 4] {
    // SAFETY: the hooks give a socket; its fields are readable by words.
    unsafe { words(&raw const (*(*ctx.sock_addr).__bindgen_anon_1.sk).src_ip6) }
}

/// Reads an address of a context by words: the verifier allows no other access.
///
/// # Safety
/// The words are readable.
#[inline(always)]
unsafe fn words(ip: *const [u32; 4]) -> [u32; 4] {
    // SAFETY: the caller's promise.
    let word = |index: usize| unsafe { (&raw const (*ip)[index]).read_volatile() };
    [word(0), word(1), word(2), word(3)]
}

/// `::ffff:0:0/96`, RFC 4291 section 2.5.5.2.
#[inline(always)]
fn is_mapped_address(ip: &[u32; 4]) -> bool {
    ip[0] | ip[1] | (ip[2] ^ 0xffffu32.to_be()) == 0
}

#[inline(always)]
pub(crate) fn is_mapped(ctx: &SockAddrContext) -> bool {
    is_mapped_address(&<Plain as AddressAccess<V6>>::get(ctx))
}

#[inline(always)]
pub(crate) fn port(ctx: &SockAddrContext) -> u16 {
    // SAFETY: the context is readable.
    unsafe { (*ctx.sock_addr).user_port as u16 }
}

#[inline(always)]
pub(crate) fn set_port(ctx: &SockAddrContext, port: u16) {
    // SAFETY: the hook may write this field.
    unsafe { (*ctx.sock_addr).user_port = port as u32 };
}

#[inline(always)]
pub(crate) fn protocol(ctx: &SockAddrContext) -> u8 {
    // SAFETY: the context is readable.
    unsafe { (*ctx.sock_addr).protocol as u8 }
}

//! The programs in the kernel. Each parses, asks the decision core, and applies its verdict; see `proxy-common`.
//!
//! | program | hook |
//! |---|---|
//! | `pod_ingress`, `pod_egress` | tc on the node's side of a pod's interface: what the pod sends, what it gets |
//! | `uplink_ingress`, `uplink_egress` | tc on interfaces that lead off the node |
//! | `uplink_l3_ingress`, `uplink_l3_egress` | the same on interfaces without Ethernet headers |
//! | `uplink_xdp`, `uplink_xdp_frags` | XDP on uplinks, in front of `uplink_ingress` |
//! | `connect4` ... `getpeername6` | cgroup socket hooks |
//! | `probe` | never attached: run once at start to see what the kernel can do |
#![no_std]
#![no_main]
// Atomic addition: the standard library's does not exist for BPF.
#![feature(asm_experimental_arch)]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the macros of the entry points drop their comments and want `pub`"
)]

mod budget;
mod log;
mod maps;
mod probe;
mod refuse;
mod rewrite;
mod route;
mod settings;
mod socket;
mod tables;
mod tc;
mod xdp;

use aya_ebpf::{
    bindings::__sk_buff,
    macros::{cgroup_sock_addr, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use proxy_common::packet::ETHERNET;

/// Not aya's macro: that calls a function in a function, and each call takes 32 bytes of a program's 512 of stack.
macro_rules! tc_hooks {
    ($($(#[doc = $doc:literal])+ $name:ident => $function:expr;)*) => { $(
        $(#[doc = $doc])+
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "classifier")]
        pub fn $name(skb: *mut __sk_buff) -> i32 {
            $function(&TcContext::new(skb))
        }
    )* };
}

tc_hooks! {
    /// What a pod sends.
    pod_ingress => tc::run::<tc::FromPod, ETHERNET>;
    /// What a pod gets.
    pod_egress => tc::run::<tc::ToClient, ETHERNET>;
    /// What comes in from outside.
    uplink_ingress => tc::run::<tc::FromUplink, ETHERNET>;
    /// What leaves to outside.
    uplink_egress => tc::run::<tc::ToOutside, ETHERNET>;
    /// What comes in from outside, without Ethernet header.
    uplink_l3_ingress => tc::run::<tc::FromUplink, 0>;
    /// What leaves to outside, without Ethernet header.
    uplink_l3_egress => tc::run::<tc::ToOutside, 0>;
    /// Tells what this kernel can do.
    probe => probe::run;
}

/// What comes in from outside, before the kernel makes a packet of it.
#[xdp]
pub fn uplink_xdp(ctx: XdpContext) -> u32 {
    xdp::run(&ctx)
}

/// The same where the kernel knows packets in several buffers (5.18): else it would refuse devices with large MTUs.
#[xdp(frags)]
pub fn uplink_xdp_frags(ctx: XdpContext) -> u32 {
    xdp::run(&ctx)
}

macro_rules! socket_hooks {
    ($($hook:ident => $function:path;)*) => { $(
        /// The socket hook of this name.
        #[cgroup_sock_addr($hook)]
        pub fn $hook(ctx: SockAddrContext) -> i32 {
            $function(&ctx)
        }
    )* };
}

socket_hooks! {
    connect4 => socket::connect4;
    connect6 => socket::connect6;
    sendmsg4 => socket::sendmsg4;
    sendmsg6 => socket::sendmsg6;
    recvmsg4 => socket::recvmsg4;
    recvmsg6 => socket::recvmsg6;
    getpeername4 => socket::getpeername4;
    getpeername6 => socket::getpeername6;
}

/// Lets the programs call GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

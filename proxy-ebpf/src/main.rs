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
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the macros of the entry points drop their comments and want `pub`"
)]

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
    macros::{cgroup_sock_addr, classifier, xdp},
    programs::{SockAddrContext, TcContext, XdpContext},
};
use proxy_common::packet::ETHERNET;

/// What a pod sends.
#[classifier]
pub fn pod_ingress(ctx: TcContext) -> i32 {
    tc::run::<tc::FromPod, ETHERNET>(&ctx)
}

/// What a pod gets.
#[classifier]
pub fn pod_egress(ctx: TcContext) -> i32 {
    tc::run::<tc::ToClient, ETHERNET>(&ctx)
}

/// What comes in from outside.
#[classifier]
pub fn uplink_ingress(ctx: TcContext) -> i32 {
    tc::run::<tc::FromUplink, ETHERNET>(&ctx)
}

/// What leaves to outside.
#[classifier]
pub fn uplink_egress(ctx: TcContext) -> i32 {
    tc::run::<tc::ToOutside, ETHERNET>(&ctx)
}

/// What comes in from outside, without Ethernet header.
#[classifier]
pub fn uplink_l3_ingress(ctx: TcContext) -> i32 {
    tc::run::<tc::FromUplink, 0>(&ctx)
}

/// What leaves to outside, without Ethernet header.
#[classifier]
pub fn uplink_l3_egress(ctx: TcContext) -> i32 {
    tc::run::<tc::ToOutside, 0>(&ctx)
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

/// Tells what this kernel can do.
#[classifier]
pub fn probe(ctx: TcContext) -> i32 {
    probe::run(&ctx)
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

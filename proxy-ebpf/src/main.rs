//! The programs in the kernel. Each parses the packet, calls the decision core, and applies its verdict; see
//! `proxy-common`.
//!
//! | program | hook |
//! |---|---|
//! | `pod_ingress`, `pod_egress` | tc on the node's side of a pod's interface: packets from and to the pod |
//! | `uplink_ingress`, `uplink_egress` | tc on interfaces that lead off the node |
//! | `uplink_l3_ingress`, `uplink_l3_egress` | the same on interfaces without Ethernet headers |
//! | `uplink_xdp`, `uplink_xdp_frags` | XDP on uplinks, in front of `uplink_ingress` |
//! | `connect4` ... `getpeername6`, `sock_release` | cgroup socket hooks |
//! | `probe` | never attached: run once at start to detect features of the kernel |
//! | `socket_backend4`, `socket_backend6` | never attached: run to find sockets whose endpoint is gone |
#![no_std]
#![no_main]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![expect(
    missing_docs,
    unreachable_pub,
    reason = "the macros of the entry points drop their comments and want `pub`"
)]

mod by_use;
mod context;
mod family;
mod log;
mod maps;
mod probe;
mod reject;
mod reply_filter;
mod report;
mod rewrite;
mod route;
mod scratch;
mod settings;
mod socket;
mod socket_address;
mod socket_backend;
mod socket_steps;
mod socket_tables;
mod tables;
mod tc;
mod xdp;

use aya_ebpf::{
    bindings::{__sk_buff, xdp_md},
    macros::{cgroup_sock, cgroup_sock_addr},
    programs::{SockAddrContext, SockContext, TcContext, XdpContext},
};
use proxy_common::{V4, V6, layout::set::Scope, packet::ETHERNET};

/// Replaces aya's macro, which calls a function in a function: each call takes time, and 32 bytes of a
/// program's 512 of stack.
macro_rules! tc_programs {
    ($($(#[doc = $doc:literal])+ $name:ident, $packet4:ident, $packet6:ident, $v4:ident, $v6:ident => $hook:ty, $link:expr, $read4:ident, $read6:ident, $new_flow4:ident, $new_flow6:ident, $apply4:ident, $apply6:ident;)*) => { $(
        $(#[doc = $doc])+
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "classifier")]
        pub fn $name(skb: *mut __sk_buff) -> i32 {
            let v4 = tc::Steps { packet_path: $packet4, read: $read4, slow_path: $v4, new_flow: $new_flow4, open: open4, apply: $apply4 };
            let v6 = tc::Steps { packet_path: $packet6, read: $read6, slow_path: $v6, new_flow: $new_flow6, open: open6, apply: $apply6 };
            tc::run::<$hook, { $link }>(&TcContext::new(skb), [v4, v6])
        }

        /// The same for IPv4 packets that the fast path leaves.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $packet4(skb: *mut __sk_buff) -> u64 {
            tc::packet_path::<V4, $hook, { $link }>(&TcContext::new(skb))
        }

        /// The same for IPv6 packets that the fast path leaves.
        #[unsafe(no_mangle)]
        #[inline(never)]
        pub extern "C" fn $packet6(skb: *mut __sk_buff) -> u64 {
            tc::packet_path::<V6, $hook, { $link }>(&TcContext::new(skb))
        }

        /// The same for IPv4 packets that the fast-path parse does not take.
        #[unsafe(no_mangle)]
        pub extern "C" fn $v4(skb: *mut __sk_buff) -> u64 {
            tc::slow_path::<V4, $hook, { $link }>(&TcContext::new(skb))
        }

        /// The same for IPv6 packets that the fast-path parse does not take.
        #[unsafe(no_mangle)]
        pub extern "C" fn $v6(skb: *mut __sk_buff) -> u64 {
            tc::slow_path::<V6, $hook, { $link }>(&TcContext::new(skb))
        }
    )* };
}

tc_programs! {
    /// `pod_ingress`: packets that a pod sends.
    pod_ingress, pod_ingress_packet_path4, pod_ingress_packet_path6, pod_ingress_slow_path4, pod_ingress_slow_path6 => tc::PodIngress, ETHERNET, read4, read6, pod_new_flow4, pod_new_flow6, apply4, apply6;
    /// `pod_egress`: packets to a pod.
    pod_egress, pod_egress_packet_path4, pod_egress_packet_path6, pod_egress_slow_path4, pod_egress_slow_path6 => tc::PodEgress, ETHERNET, read4, read6, pod_new_flow4, pod_new_flow6, apply4, apply6;
    /// `uplink_ingress`: packets from outside.
    uplink_ingress, uplink_ingress_packet_path4, uplink_ingress_packet_path6, uplink_ingress_slow_path4, uplink_ingress_slow_path6 => tc::UplinkIngress, ETHERNET, read4, read6, uplink_new_flow4, uplink_new_flow6, apply4, apply6;
    /// `uplink_egress`: packets to outside.
    uplink_egress, uplink_egress_packet_path4, uplink_egress_packet_path6, uplink_egress_slow_path4, uplink_egress_slow_path6 => tc::UplinkEgress, ETHERNET, read4, read6, uplink_new_flow4, uplink_new_flow6, apply4, apply6;
    /// `uplink_l3_ingress`: packets from outside, without Ethernet header.
    uplink_l3_ingress, uplink_l3_ingress_packet_path4, uplink_l3_ingress_packet_path6, uplink_l3_ingress_slow_path4, uplink_l3_ingress_slow_path6 => tc::UplinkIngress, 0, read4_l3, read6_l3, uplink_l3_new_flow4, uplink_l3_new_flow6, apply4_l3, apply6_l3;
    /// `uplink_l3_egress`: packets to outside, without Ethernet header.
    uplink_l3_egress, uplink_l3_egress_packet_path4, uplink_l3_egress_packet_path6, uplink_l3_egress_slow_path4, uplink_l3_egress_slow_path6 => tc::UplinkEgress, 0, read4_l3, read6_l3, uplink_l3_new_flow4, uplink_l3_new_flow6, apply4_l3, apply6_l3;
}

macro_rules! steps {
    ($($read:ident, $apply:ident => $family:ty, $link:expr;)*) => { $(
        /// Parses a packet that the fast-path parse does not take.
        #[unsafe(no_mangle)]
        pub extern "C" fn $read(skb: *mut __sk_buff) -> u64 {
            tc::read::<$family>(skb, { $link });
            0
        }

        /// Translates a packet and sends it, by the verdict in the CPU's scratch.
        #[unsafe(no_mangle)]
        pub extern "C" fn $apply(skb: *mut __sk_buff) -> u64 {
            tc::apply::<$family, { $link }>(&TcContext::new(skb))
        }
    )* };
}

steps! {
    read4, apply4 => V4, ETHERNET;
    read6, apply6 => V6, ETHERNET;
    read4_l3, apply4_l3 => V4, 0;
    read6_l3, apply6_l3 => V6, 0;
}

macro_rules! new_flows {
    ($($v4:ident, $v6:ident => $scope:expr, $link:expr;)*) => { $(
        /// Chooses a backend for an IPv4 packet.
        #[unsafe(no_mangle)]
        pub extern "C" fn $v4(skb: *mut __sk_buff) -> u64 {
            tc::new_flow::<V4, { $link }>(skb, $scope)
        }

        /// Chooses a backend for an IPv6 packet.
        #[unsafe(no_mangle)]
        pub extern "C" fn $v6(skb: *mut __sk_buff) -> u64 {
            tc::new_flow::<V6, { $link }>(skb, $scope)
        }
    )* };
}

new_flows! {
    pod_new_flow4, pod_new_flow6 => Scope::Internal, ETHERNET;
    uplink_new_flow4, uplink_new_flow6 => Scope::External, ETHERNET;
    uplink_l3_new_flow4, uplink_l3_new_flow6 => Scope::External, 0;
}

/// Opens the flow of an IPv4 packet.
#[unsafe(no_mangle)]
pub extern "C" fn open4(skb: *mut __sk_buff) -> u64 {
    tc::open::<V4>(skb)
}

/// Opens the flow of an IPv6 packet.
#[unsafe(no_mangle)]
pub extern "C" fn open6(skb: *mut __sk_buff) -> u64 {
    tc::open::<V6>(skb)
}

/// Detects features of this kernel.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub fn probe(skb: *mut __sk_buff) -> i32 {
    probe::run(&TcContext::new(skb))
}

/// Reads the record of a connected IPv4 socket.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub fn socket_backend4(skb: *mut __sk_buff) -> i32 {
    socket_backend::run::<V4>(&TcContext::new(skb))
}

/// The same for IPv6.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
pub fn socket_backend6(skb: *mut __sk_buff) -> i32 {
    socket_backend::run::<V6>(&TcContext::new(skb))
}

/// Packets from outside, before the kernel allocates an skb.
// Not aya's macro, as above.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub fn uplink_xdp(ctx: *mut xdp_md) -> u32 {
    xdp::run(&XdpContext::new(ctx))
}

/// The same where the kernel supports packets in several buffers (5.18): otherwise it would refuse devices with
/// large MTUs.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp.frags")]
pub fn uplink_xdp_frags(ctx: *mut xdp_md) -> u32 {
    xdp::run(&XdpContext::new(ctx))
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

/// A socket is closed.
#[cgroup_sock(sock_release)]
pub fn sock_release(ctx: SockContext) -> i32 {
    socket::sock_release(&ctx)
}

/// Lets the programs call GPL-only helpers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

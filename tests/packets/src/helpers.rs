//! Helpers that packet tests share.

use super::Transport;

/// Opens a connection.
pub const SYN: Transport = Transport::Tcp(2);
/// The reply to that.
pub const SYN_ACK: Transport = Transport::Tcp(18);
/// In the middle of a connection.
pub const ACK: Transport = Transport::Tcp(16);
/// Ends it from one side.
pub const FIN: Transport = Transport::Tcp(17);
/// Resets it.
pub const RST: Transport = Transport::Tcp(4);

/// No flags at all.
pub const NULL: Transport = Transport::Tcp(0);

/// tc: the next program, as if there were none of ours.
pub const NEXT: u32 = u32::MAX;
/// tc: dropped.
pub const SHOT: u32 = 2;
/// tc: sent elsewhere.
pub const REDIRECT: u32 = 7;
/// XDP: dropped.
pub const XDP_DROP: u32 = 1;
/// XDP: up the stack.
pub const XDP_PASS: u32 = 2;
/// XDP: sent back out of its interface.
pub const XDP_TX: u32 = 3;

/// Makes a test of each generic function for each family.
#[macro_export]
macro_rules! for_both_families {
    ($($name:ident)*) => {
        mod v4 {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name::<proxy_common::V4>() })*
        }
        mod v6 {
            $(#[test] fn $name() -> anyhow::Result<()> { super::$name::<proxy_common::V6>() })*
        }
    };
}

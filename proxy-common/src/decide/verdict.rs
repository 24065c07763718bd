//! The core's verdicts.
//!
//! Verdicts are enums without fields; their parameters are written to memory of the caller. The compiler would
//! copy enums with fields together with undefined bytes, which the kernel's verifier refuses.

use super::{Route, RouteKind};
use crate::{
    Family,
    layout::{
        counter::Counter,
        flow::{Mac, Tuple},
    },
};

/// The verdict for a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// Leave the packet alone: it is not for a service.
    #[default]
    Pass,
    /// Rewrite it and pass it on through the host's stack.
    ToStack,
    /// Rewrite it and send it by [`Translation::route`], past the stack, which would drop a packet from its own
    /// address as a martian. With [`RouteKind::Stack`] pass it to the stack as received by the loopback
    /// interface: the stack routes it, decrements its hop limit, and applies IPsec policies.
    Redirect,
    /// Rewrite it and send it by [`Translation::route`] instead of the device that it was about to leave by;
    /// its hop limit stays.
    Divert,
    /// Rewrite it and pass it on as a frame for [`Translation::mac`], so that the bridge forwards it.
    Bridge,
    /// Rewrite it and send it out of the device it came in by.
    Hairpin,
    /// Reject it: ICMP error or RST to the sender. The reason has been counted.
    Reject,
    /// Reset the TCP connection: its endpoint is gone, or neither the agent nor the kernel knows it. The reason
    /// has been counted.
    Reset,
    /// Answer the ping.
    Echo,
    /// Send the sender an ICMP error: the hop limit ran out here.
    TimeExceeded,
    /// Send the sender an ICMP error: packets must have [`Route::mtu`] bytes at most.
    TooBig,
    /// Drop it. The reason has been counted.
    Drop,
    /// The packet has no flow: call [`new_flow`](super::new_flow).
    NewFlow,
    /// First open the flow in the draft, with [`opened`](super::opened).
    Open,
}

/// The parameters of a verdict.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation<F: Family> {
    /// The new addresses and ports.
    pub to: Tuple<F>,
    /// The route, with [`Verdict::Redirect`] and [`Verdict::Divert`].
    pub route: Route<F>,
    /// Destination MAC, with [`Verdict::Bridge`].
    pub mac: Mac,
    /// The verdict once the flow is open, with [`Verdict::Open`].
    pub opened: Verdict,
}

impl<F: Family> Translation<F> {
    /// Resets the parameters of the last packet. The other fields are written before they are read.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.route.kind = RouteKind::None;
    }
}

/// The reason for a drop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DropReason {
    /// No free source port towards the backend.
    SnatExhausted,
    /// No route.
    NoRoute,
    /// No address to send from.
    NoSnatAddress,
    /// The hop limit ran out here, and no ICMP error may be sent.
    HopLimit,
    /// Too big for the route, and no ICMP error may be sent.
    TooBig,
    /// The flow map is full.
    FlowMapFull,
    /// A set refers to a slot that does not exist.
    BadSlot,
    /// The traffic policy is Local, and no endpoint is on this node.
    NoLocalEndpoints,
    /// The client is in none of the source ranges.
    SourceDenied,
    /// In the range of service addresses, but no service's, and about to leave the node.
    Unallocated,
    /// For a load balancer's address, but for no port of a Service, and about to leave the node by which it came in.
    Loop,
    /// A TCP packet of an unknown connection, about to leave the node again, and no reset may be sent.
    ConnectionUnknown,
}

impl DropReason {
    /// As a number that is not 0.
    #[inline(always)]
    pub fn code(self) -> u32 {
        self as u32 + 1
    }

    /// The reason for which a flow could not be opened, from its [`DropReason::code`]; `None` for 0.
    #[inline(always)]
    pub fn of_flow(code: u32) -> Option<Self> {
        match code {
            0 => None,
            code if code == Self::SnatExhausted.code() => Some(Self::SnatExhausted),
            _ => Some(Self::FlowMapFull),
        }
    }

    /// The counter of the reason.
    #[inline(always)]
    pub fn counter(self) -> Counter {
        match self {
            Self::SnatExhausted => Counter::SnatExhausted,
            Self::NoRoute => Counter::NoRoute,
            Self::NoSnatAddress => Counter::NoSnatAddress,
            Self::HopLimit => Counter::HopLimit,
            Self::TooBig => Counter::TooBig,
            Self::FlowMapFull => Counter::FlowMapFull,
            Self::BadSlot => Counter::BadSlot,
            Self::NoLocalEndpoints => Counter::NoLocalEndpoints,
            Self::SourceDenied => Counter::SourceDenied,
            Self::Unallocated => Counter::Unallocated,
            Self::Loop => Counter::Loop,
            Self::ConnectionUnknown => Counter::ConnectionUnknown,
        }
    }
}

/// The verdict for a socket's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketVerdict {
    /// Leave the address alone: it is not a service's.
    Pass,
    /// Use the peer that was written instead.
    Translate,
    /// Reject as the kernel does where no socket listens.
    Reject,
    /// Reject as unreachable: the traffic policy is Local, and no endpoint is on this node.
    Unreachable,
    /// Reject as not permitted: the client is in none of the source ranges.
    Denied,
}

//! What the core decides.
//!
//! Verdicts are enums without contents, and what belongs to them is written where the caller says: enums with contents would be
//! copied through undefined bytes, which the kernel's verifier refuses.

use super::{Route, RouteKind};
use crate::{
    Family,
    layout::{
        counter::Counter,
        flow::{Mac, Tuple},
    },
};

/// What to do with a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Verdict {
    /// Nothing: it is not for a service.
    #[default]
    Pass,
    /// Rewrite it and let it go its way, through the host's stack.
    ToStack,
    /// Rewrite it and send it by [`Translation::route`], past the stack, which would take a packet from its own address
    /// for a martian. With [`RouteKind::Stack`] hand it to the stack as the loopback interface's: the stack routes it, takes one off its
    /// hop limit, and asks for IPsec policies.
    Redirect,
    /// Rewrite it and send it by [`Translation::route`] instead of the device it was about to leave by; its hop limit stays.
    Divert,
    /// Rewrite it and let it go its way, but as a frame for [`Translation::mac`], so that the bridge switches it.
    Bridge,
    /// Rewrite it and send it out of the device it came in by.
    Hairpin,
    /// Reject it: ICMP error or RST to the sender. The reason has been counted.
    Reject,
    /// Reset the TCP connection: its endpoint is gone, or neither the agent nor the kernel knows it. What to reset has been counted.
    Reset,
    /// Answer the ping.
    Echo,
    /// Tell the sender that the hop limit ran out here.
    TimeExceeded,
    /// Tell the sender that it must send packets of [`Route::mtu`] bytes at most.
    TooBig,
    /// Drop it. The reason has been counted.
    Drop,
    /// It has no flow: ask [`new_flow`](super::new_flow).
    NewFlow,
    /// First open the flow that is described in the draft, by [`opened`](super::opened).
    Open,
}

/// How to rewrite a packet, as far as the verdict asks for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Translation<F: Family> {
    /// The new addresses and ports.
    pub to: Tuple<F>,
    /// Where it leaves, with [`Verdict::Redirect`] and [`Verdict::Divert`].
    pub route: Route<F>,
    /// Destination MAC, with [`Verdict::Bridge`].
    pub mac: Mac,
    /// What to do when the flow is open, with [`Verdict::Open`].
    pub opened: Verdict,
}

impl<F: Family> Translation<F> {
    /// Makes what was left from another packet ready for the next. The rest is written before it is read.
    #[inline(always)]
    pub fn begin(&mut self) {
        self.route.kind = RouteKind::None;
    }
}

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum DropReason {
    /// No free source port towards the backend.
    SnatExhausted,
    /// No route.
    NoRoute,
    /// No address to send from.
    NoSnatAddress,
    /// The hop limit ran out here, and the sender may not be told.
    HopLimit,
    /// Too big for the way on, and the sender may not be told.
    TooBig,
    /// The flow map took no entry.
    FlowMapFull,
    /// A set names a slot that is not there.
    BadSlot,
    /// The traffic policy is Local, and the endpoints are elsewhere.
    NoLocalEndpoints,
    /// The client is in none of the source ranges.
    SourceDenied,
    /// In the range of service addresses, but no service's, and about to leave the node.
    Unallocated,
    /// For a load balancer's address, but for no port of a Service, and about to leave the node by which it came in.
    Loop,
    /// A TCP packet of an unknown connection, about to leave the node again, and the sender may not be told.
    ConnectionUnknown,
}

impl DropReason {
    /// As a number that is not 0.
    #[inline(always)]
    pub fn code(self) -> u32 {
        self as u32 + 1
    }

    /// What [`DropReason::code`] made of a reason that a flow can have; 0 is none.
    #[inline(always)]
    pub fn of_flow(code: u32) -> Option<Self> {
        match code {
            0 => None,
            code if code == Self::SnatExhausted.code() => Some(Self::SnatExhausted),
            _ => Some(Self::FlowMapFull),
        }
    }

    /// What counts it.
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

/// What to do with a socket's address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SocketVerdict {
    /// Nothing: it is not a service's.
    Pass,
    /// Use the peer that was written instead.
    Translate,
    /// Reject as the kernel does where no socket listens.
    Reject,
    /// Reject as unreachable: the traffic policy is Local, and the endpoints are elsewhere.
    Unreachable,
    /// Reject as not permitted: the client is in none of the source ranges.
    Denied,
}

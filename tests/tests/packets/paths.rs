//! Paths through the node, for requests and the packets that belong to them.

use anyhow::Result;
use proxy_packets::{
    Device, Frame, Host, Kernel, PacketFamily, Transport,
    helpers::{ACK, NEXT, REDIRECT, SYN},
    talk,
};

/// A frame of a family. Zero means "no checksum" in IPv4 only.
pub(crate) fn frame<F: PacketFamily>(src: (Host, u16), dst: (Host, u16), transport: Transport) -> Frame {
    let transport =
        if transport == Transport::UdpUnchecked && !F::IS_V4 { Transport::Udp } else { transport };
    Frame::new(src.0.at::<F>(src.1), dst.0.at::<F>(dst.1), transport)
}

/// A path through the node: the hook of requests, the hook of replies, and the hosts at the ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Path {
    /// The hook that requests come to.
    pub(crate) request: (&'static str, Device),
    /// The hook that translates replies.
    pub(crate) reply: (&'static str, Device),
    /// The client.
    pub(crate) client: Host,
    /// Where to.
    pub(crate) frontend: (Host, u16),
    /// Requests and replies bypass the stack.
    pub(crate) is_forwarded: bool,
}

/// To an endpoint on this node from a pod and from outside, and to one on another node.
pub(crate) const PATHS: [Path; 3] = [
    Path {
        request: ("pod_ingress", Device::PodA),
        reply: ("pod_egress", Device::PodA),
        client: Host::PodA,
        frontend: (Host::LocalVip, 80),
        is_forwarded: false,
    },
    Path {
        request: ("uplink_ingress", Device::Uplink),
        reply: ("uplink_egress", Device::Uplink),
        client: Host::Client,
        frontend: (Host::Node, 30_001),
        is_forwarded: false,
    },
    Path {
        request: ("uplink_ingress", Device::Uplink),
        reply: ("uplink_ingress", Device::Uplink),
        client: Host::Client,
        frontend: (Host::Node, 30_002),
        is_forwarded: true,
    },
];

impl Path {
    /// The return code of the program that translates a request.
    pub(crate) fn result(self) -> u32 {
        if self.is_forwarded { REDIRECT } else { NEXT }
    }

    /// Opens a flow. Returns the request and the sent packet.
    pub(crate) fn open<F: PacketFamily>(
        self,
        kernel: &Kernel,
        port: u16,
        transport: Transport,
    ) -> Result<(Frame, Frame)> {
        let request = frame::<F>((self.client, port), self.frontend, transport);
        let sent = if transport == ACK {
            talk::open(kernel, self.request, self.reply, &request)?
        } else {
            talk::translated(kernel, self.request, &request)?
        };
        Ok((request, sent))
    }
}

/// Transports of flows.
pub(crate) const TRANSPORTS: [Transport; 4] =
    [SYN, Transport::Udp, Transport::UdpUnchecked, Transport::Sctp(1)];

/// More than any packet has.
pub(crate) const ALL: usize = 4_000;

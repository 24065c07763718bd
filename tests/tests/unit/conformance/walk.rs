//! The way of a connection or datagram, hook by hook.

use std::{cell::RefCell, collections::HashMap, net::SocketAddr};

use proxy_common::{
    decide::{
        self, DropReason, SocketClient, SocketOrigin, SocketVerdict, Step, Translation, Verdict,
        memory::MemoryTables,
    },
    layout::{flow::Tuple, socket::SocketPeer},
    packet::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet, tcp_flags},
};
use proxy_conformance::{NODES, Protocol, address, entry, node_of};

use super::{
    family::CoreFamily,
    node::{UPLINK, device_of},
};

/// Which hooks serve pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Datapath {
    /// The hooks of sockets.
    Sockets,
    /// The hooks at the pods' interfaces.
    Packets,
}

/// The outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It goes to this endpoint, which sees this client.
    To {
        endpoint: SocketAddr,
        client: SocketAddr,
    },
    Refused,
    /// The traffic policy leaves no endpoint.
    NoLocalEndpoints,
    /// Not in the source ranges.
    Denied,
    Dropped(Option<DropReason>),
    Echo,
    NotOurs,
}

/// Initial sequence number of all.
const ISN: u32 = 0x0102_0304;

/// One attempt.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Attempt {
    pub(crate) from: &'static str,
    pub(crate) to: SocketAddr,
    pub(crate) protocol: Protocol,
    pub(crate) datapath: Datapath,
    /// Identifies sockets: source port and cookie.
    pub(crate) socket: u16,
    /// The socket was used before.
    pub(crate) is_open: bool,
}

impl Attempt {
    /// Makes it, with the tables of every node.
    pub(crate) fn make<F: CoreFamily>(&self, tables: &[&MemoryTables<F>; NODES]) -> Option<Outcome> {
        let is_ipv4 = self.to.is_ipv4();
        let source = SocketAddr::new(address(self.from, is_ipv4), 40_000 + self.socket);
        let packet = self.packet::<F>(source)?;
        let own_node = node_of(self.from);
        if let Some(node) = own_node {
            let is_pod = self.from.starts_with("pod");
            let tables = tables[node];
            let at_home = if is_pod && self.datapath == Datapath::Packets {
                by_packet(tables, |out| decide::pod_ingress(tables, &packet, device_of(self.from), out))
            } else {
                self.by_socket(tables, source)?
            };
            if at_home != Outcome::NotOurs {
                return Some(at_home);
            }
        }
        // On the wire, to the node that has the address or that outside routers send it to.
        let other_node =
            (0..NODES).find(|node| self.to.ip() == address(&format!("node-{}", node + 1), is_ipv4));
        match (own_node, other_node) {
            (Some(own), Some(other)) if own == other => Some(Outcome::NotOurs),
            (_, Some(other)) => {
                let tables = tables[other];
                Some(by_packet(tables, |out| decide::uplink_ingress(tables, &packet, UPLINK, out)))
            }
            (Some(own), None) => {
                let tables = tables[own];
                let is_loopback = self.to.ip().is_loopback();
                let leaves = |out: &mut _| decide::uplink_egress(tables, &packet, out);
                Some(if is_loopback { Outcome::NotOurs } else { by_packet(tables, leaves) })
            }
            (None, None) => {
                let tables = tables[entry(self.to.ip())];
                let entered = by_packet(tables, |out| decide::uplink_ingress(tables, &packet, UPLINK, out));
                if entered != Outcome::NotOurs {
                    return Some(entered);
                }
                Some(by_packet(tables, |out| decide::uplink_egress(tables, &packet, out)))
            }
        }
    }

    fn packet<F: CoreFamily>(&self, source: SocketAddr) -> Option<Packet<F>> {
        let ports = if self.protocol == Protocol::Ping { (0, 0) } else { (source.port(), self.to.port()) };
        let begins = if self.is_open { tcp_flags::ACK } else { tcp_flags::SYN };
        Some(Packet {
            tuple: Tuple {
                src: F::address(source.ip())?,
                dst: F::address(self.to.ip())?,
                sport: ports.0.to_be(),
                dport: ports.1.to_be(),
            },
            protocol: self.number::<F>(),
            tcp_flags: if matches!(self.protocol, Protocol::Tcp | Protocol::Sctp) { begins } else { 0 },
            hop_limit: 64,
            // The sequence number of the client's first packet, and of the one behind an endpoint's SYN-ACK.
            sequence: ISN.wrapping_add(u32::from(self.is_open)),
            acknowledgment: if self.is_open { ISN.wrapping_add(1) } else { 0 },
            follows: false,
            transport: 34,
        })
    }

    fn number<F: CoreFamily>(&self) -> u8 {
        match self.protocol {
            Protocol::Tcp => PROTOCOL_TCP,
            Protocol::Udp => PROTOCOL_UDP,
            Protocol::Sctp => PROTOCOL_SCTP,
            Protocol::Ping => F::ICMP,
        }
    }

    fn by_socket<F: CoreFamily>(&self, tables: &MemoryTables<F>, source: SocketAddr) -> Option<Outcome> {
        if !matches!(self.protocol, Protocol::Tcp | Protocol::Udp) {
            return Some(Outcome::NotOurs);
        }
        let origin = if self.from.starts_with("pod") { SocketOrigin::Pod } else { SocketOrigin::Node };
        let client = SocketClient { origin, netns: device_of(self.from).into(), bound: F::UNSPECIFIED };
        let (addr, port) = (F::address(self.to.ip())?, self.to.port().to_be());
        let mut peer = SocketPeer::default();
        let protocol = self.number::<F>();
        let verdict = if self.protocol == Protocol::Tcp {
            decide::connect(tables, &addr, port, protocol, &client, &mut peer)
        } else {
            // Cookies are the machine's: no two places share one.
            tables.socket.set(u64::from(device_of(self.from)) << 16 | u64::from(self.socket));
            tables.socket_netns.set(client.netns);
            decide::send(tables, &addr, port, protocol, &client, false, &mut peer)
        };
        Some(match verdict {
            SocketVerdict::Pass => Outcome::NotOurs,
            SocketVerdict::Translate => {
                let endpoint = SocketAddr::new(F::ip(peer.addr), u16::from_be(peer.port));
                Outcome::To { endpoint, client: source }
            }
            SocketVerdict::Reject => Outcome::Refused,
            SocketVerdict::Unreachable => Outcome::NoLocalEndpoints,
            SocketVerdict::Denied => Outcome::Denied,
        })
    }
}

fn by_packet<F: CoreFamily>(
    tables: &MemoryTables<F>,
    decide: impl FnOnce(&mut Translation<F>) -> Verdict,
) -> Outcome {
    tables.steps.borrow_mut().clear();
    let mut out = Translation::default();
    match decide(&mut out) {
        Verdict::Pass => Outcome::NotOurs,
        Verdict::ToStack | Verdict::Redirect | Verdict::Divert | Verdict::Bridge | Verdict::Hairpin => {
            let end = |addr, port| SocketAddr::new(F::ip(addr), u16::from_be(port));
            let to = out.to;
            Outcome::To { endpoint: end(to.dst, to.dport), client: end(to.src, to.sport) }
        }
        Verdict::Reject | Verdict::Reset => Outcome::Refused,
        Verdict::Echo => Outcome::Echo,
        // The tables in memory open flows at once.
        Verdict::TimeExceeded | Verdict::TooBig | Verdict::NewFlow | Verdict::Open => Outcome::Dropped(None),
        Verdict::Drop => {
            let steps = tables.steps.borrow();
            let reason = steps.iter().find_map(|step| match step {
                Step::Drop(reason) => Some(*reason),
                _ => None,
            });
            match reason {
                Some(DropReason::NoLocalEndpoints) => Outcome::NoLocalEndpoints,
                Some(DropReason::SourceDenied) => Outcome::Denied,
                other => Outcome::Dropped(other),
            }
        }
    }
}

/// Sockets that are kept from step to step, by name.
#[derive(Debug, Default)]
pub(crate) struct Sockets {
    last: RefCell<u16>,
    held: RefCell<HashMap<(&'static str, Datapath), Held>>,
}

/// A socket that is kept.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Held {
    pub(crate) socket: u16,
    pub(crate) endpoint: Option<SocketAddr>,
}

impl Sockets {
    /// A new one.
    pub(crate) fn new_socket(&self) -> u16 {
        // Few rules need so many that one is used twice.
        let mut last = self.last.borrow_mut();
        *last = (*last + 1) % 20_000;
        *last
    }

    /// The one of this name, if there is one.
    pub(crate) fn held(&self, name: &'static str, datapath: Datapath) -> Option<Held> {
        self.held.borrow().get(&(name, datapath)).copied()
    }

    /// Keeps it.
    pub(crate) fn hold(&self, name: &'static str, datapath: Datapath, held: Held) {
        self.held.borrow_mut().insert((name, datapath), held);
    }
}

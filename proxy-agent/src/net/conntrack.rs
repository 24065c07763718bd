//! The kernel's connection tracking, listed by netlink: ctnetlink, of the network namespace of the thread.
//!
//! Only tuples are read, attribute by attribute and without a copy: a table may have a million entries.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use netlink_packet_core::{
    DecodeError, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlaBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_NETFILTER};

use crate::model::plan::IpFamily;

/// Addresses and ports of one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tuple {
    /// The sender.
    pub src: SocketAddr,
    /// The receiver.
    pub dst: SocketAddr,
}

/// A connection with ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Connection {
    /// IP protocol number.
    pub protocol: u8,
    /// The client's packets, as they come.
    pub original: Tuple,
    /// The replies. Not the reverse of `original` with address translation.
    pub reply: Tuple,
    /// TCP: both sides may still send. Unlike attempts, and closed connections that are only remembered.
    pub is_established: bool,
}

/// Numbers of `include/uapi/linux/netfilter/nfnetlink.h` and `nfnetlink_conntrack.h`.
mod uapi {
    pub(super) const NFNL_SUBSYS_CTNETLINK: u16 = 1;
    pub(super) const IPCTNL_MSG_CT_NEW: u16 = 0;
    pub(super) const IPCTNL_MSG_CT_GET: u16 = 1;
    /// Bytes of `struct nfgenmsg`: family, version, resource.
    pub(super) const NFGENMSG: usize = 4;
    pub(super) const CTA_TUPLE_ORIG: u16 = 1;
    pub(super) const CTA_TUPLE_REPLY: u16 = 2;
    pub(super) const CTA_PROTOINFO: u16 = 4;
    pub(super) const CTA_PROTOINFO_TCP: u16 = 1;
    pub(super) const CTA_PROTOINFO_TCP_STATE: u16 = 1;
    /// States of `enum tcp_conntrack` in `nf_conntrack_tcp.h`: established, and closed by one side.
    pub(super) const TCP_CONNTRACK_ALIVE: std::ops::RangeInclusive<u8> = 3..=5;
    pub(super) const CTA_TUPLE_IP: u16 = 1;
    pub(super) const CTA_TUPLE_PROTO: u16 = 2;
    pub(super) const CTA_IP_V4_SRC: u16 = 1;
    pub(super) const CTA_IP_V4_DST: u16 = 2;
    pub(super) const CTA_IP_V6_SRC: u16 = 3;
    pub(super) const CTA_IP_V6_DST: u16 = 4;
    pub(super) const CTA_PROTO_NUM: u16 = 1;
    pub(super) const CTA_PROTO_SRC_PORT: u16 = 2;
    pub(super) const CTA_PROTO_DST_PORT: u16 = 3;
}

const SUBSYSTEM: u16 = uapi::NFNL_SUBSYS_CTNETLINK << 8;

/// Bytes of a netlink header.
const HEADER: usize = 16;

/// Gives every connection of a family with ports to `take`. Blocks for about a second per million connections.
///
/// # Errors
/// When the kernel has no connection tracking, or does not list it.
pub fn connections(family: IpFamily, mut take: impl FnMut(&Connection)) -> io::Result<()> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddr::new(0, 0))?;
    socket.send(&request(family), 0)?;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        if let Some(code) = read(&answers, &mut take).map_err(io::Error::other)? {
            return result(code);
        }
    }
}

/// The connections in a message of the kernel, for tests with messages that no kernel would send.
///
/// # Errors
/// When it cannot be read.
pub fn connections_of(message: &[u8]) -> io::Result<Vec<Connection>> {
    let mut found = Vec::new();
    match read(message, |connection| found.push(*connection)).map_err(io::Error::other)? {
        Some(code) => result(code).map(|()| found),
        None => Ok(found),
    }
}

fn result(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_neg())) }
}

fn request(family: IpFamily) -> Vec<u8> {
    let family = match family {
        IpFamily::V4 => libc::AF_INET,
        IpFamily::V6 => libc::AF_INET6,
    };
    let mut request = vec![0; HEADER + uapi::NFGENMSG];
    let length = request.len() as u32;
    let mut message = NetlinkBuffer::new(&mut request);
    message.set_length(length);
    message.set_message_type(SUBSYSTEM | uapi::IPCTNL_MSG_CT_GET);
    message.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    message.payload_mut()[0] = family as u8;
    request
}

/// Takes the connections out of a message of the kernel. The last message has a code.
fn read(mut rest: &[u8], mut take: impl FnMut(&Connection)) -> Result<Option<i32>, DecodeError> {
    const ALIGNMENT: usize = 4;
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest)?;
        let payload = message.payload();
        match message.message_type() {
            NLMSG_DONE | NLMSG_ERROR => {
                // Some kernels' end has no code.
                let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                return Ok(Some(code));
            }
            kind if kind == SUBSYSTEM | uapi::IPCTNL_MSG_CT_NEW => {
                if let Some(connection) = connection(payload.get(uapi::NFGENMSG..).unwrap_or_default())? {
                    take(&connection);
                }
            }
            _ => {}
        }
        let length = (message.length() as usize).next_multiple_of(ALIGNMENT);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(None)
}

/// A connection by its attributes; `None` for one without ports.
fn connection(attributes: &[u8]) -> Result<Option<Connection>, DecodeError> {
    let (mut original, mut reply, mut is_established) = (None, None, false);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        match attribute.kind() {
            uapi::CTA_TUPLE_ORIG => original = tuple(attribute.value())?,
            uapi::CTA_TUPLE_REPLY => reply = tuple(attribute.value())?,
            uapi::CTA_PROTOINFO => is_established = is_alive(attribute.value())?,
            _ => {}
        }
    }
    Ok(match (original, reply) {
        (Some((protocol, original)), Some((_, reply))) => {
            Some(Connection { protocol, original, reply, is_established })
        }

        _ => None,
    })
}

/// Whether the protocol attributes show a TCP connection that is alive.
fn is_alive(attributes: &[u8]) -> Result<bool, DecodeError> {
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        if attribute.kind() != uapi::CTA_PROTOINFO_TCP {
            continue;
        }
        for inner in NlasIterator::new(attribute.value()) {
            let inner = inner?;
            if inner.kind() == uapi::CTA_PROTOINFO_TCP_STATE {
                return Ok(inner
                    .value()
                    .first()
                    .is_some_and(|state| uapi::TCP_CONNTRACK_ALIVE.contains(state)));
            }
        }
    }
    Ok(false)
}

/// Protocol and tuple; `None` for one without ports, like that of a ping.
fn tuple(attributes: &[u8]) -> Result<Option<(u8, Tuple)>, DecodeError> {
    let (mut src, mut dst) = (None, None);
    let (mut protocol, mut sport, mut dport) = (None, None, None);
    for attribute in NlasIterator::new(attributes) {
        let attribute = attribute?;
        for inner in NlasIterator::new(attribute.value()) {
            // Not every attribute has others in it.
            let Ok(inner) = inner else { break };
            match (attribute.kind(), inner.kind()) {
                (uapi::CTA_TUPLE_IP, uapi::CTA_IP_V4_SRC) => src = v4(&inner),
                (uapi::CTA_TUPLE_IP, uapi::CTA_IP_V4_DST) => dst = v4(&inner),
                (uapi::CTA_TUPLE_IP, uapi::CTA_IP_V6_SRC) => src = v6(&inner),
                (uapi::CTA_TUPLE_IP, uapi::CTA_IP_V6_DST) => dst = v6(&inner),
                (uapi::CTA_TUPLE_PROTO, uapi::CTA_PROTO_NUM) => protocol = inner.value().first().copied(),
                (uapi::CTA_TUPLE_PROTO, uapi::CTA_PROTO_SRC_PORT) => sport = port(&inner),
                (uapi::CTA_TUPLE_PROTO, uapi::CTA_PROTO_DST_PORT) => dport = port(&inner),
                _ => {}
            }
        }
    }
    let tuple = || {
        let (src, dst) = (SocketAddr::new(src?, sport?), SocketAddr::new(dst?, dport?));
        Some((protocol?, Tuple { src, dst }))
    };
    Ok(tuple())
}

fn v4(attribute: &NlaBuffer<&[u8]>) -> Option<IpAddr> {
    attribute.value().first_chunk::<4>().map(|octets| Ipv4Addr::from(*octets).into())
}

fn v6(attribute: &NlaBuffer<&[u8]>) -> Option<IpAddr> {
    attribute.value().first_chunk::<16>().map(|octets| Ipv6Addr::from(*octets).into())
}

fn port(attribute: &NlaBuffer<&[u8]>) -> Option<u16> {
    attribute.value().first_chunk().map(|port| u16::from_be_bytes(*port))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend_from_slice(&((value.len() + 4) as u16).to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn nested(kind: u16, inner: &[Vec<u8>]) -> Vec<u8> {
        attribute(kind | 0x8000, &inner.concat())
    }

    fn tuple_of(kind: u16, protocol: u8, tuple: &Tuple) -> Vec<u8> {
        let ip = |v4, v6, ip: IpAddr| match ip {
            IpAddr::V4(ip) => attribute(v4, &ip.octets()),
            IpAddr::V6(ip) => attribute(v6, &ip.octets()),
        };
        let ports = [
            attribute(uapi::CTA_PROTO_NUM, &[protocol]),
            attribute(uapi::CTA_PROTO_SRC_PORT, &tuple.src.port().to_be_bytes()),
            attribute(uapi::CTA_PROTO_DST_PORT, &tuple.dst.port().to_be_bytes()),
        ];
        nested(
            kind,
            &[
                nested(
                    uapi::CTA_TUPLE_IP,
                    &[
                        ip(uapi::CTA_IP_V4_SRC, uapi::CTA_IP_V6_SRC, tuple.src.ip()),
                        ip(uapi::CTA_IP_V4_DST, uapi::CTA_IP_V6_DST, tuple.dst.ip()),
                    ],
                ),
                nested(uapi::CTA_TUPLE_PROTO, &ports),
            ],
        )
    }

    fn message(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0; HEADER];
        bytes.extend_from_slice(payload);
        let length = bytes.len() as u32;
        let mut message = NetlinkBuffer::new(&mut bytes);
        message.set_length(length);
        message.set_message_type(kind);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    fn new_message(attributes: &[Vec<u8>]) -> Vec<u8> {
        message(SUBSYSTEM, &[vec![2, 0, 0, 0], attributes.concat()].concat())
    }

    fn tuple(src: &str, dst: &str) -> Tuple {
        Tuple { src: src.parse().unwrap(), dst: dst.parse().unwrap() }
    }

    fn masqueraded() -> (Connection, Vec<u8>) {
        let connection = Connection {
            protocol: 17,
            original: tuple("10.244.1.5:4000", "192.0.2.9:53"),
            reply: tuple("192.0.2.9:53", "192.168.0.1:30080"),
            is_established: false,
        };
        let attributes = [
            tuple_of(uapi::CTA_TUPLE_ORIG, 17, &connection.original),
            tuple_of(uapi::CTA_TUPLE_REPLY, 17, &connection.reply),
            // A status, and something that no kernel has yet.
            attribute(3, &[0, 0, 1, 0x8e]),
            attribute(99, &[1]),
        ];
        (connection, new_message(&attributes))
    }

    #[test]
    fn connections_are_read_up_to_the_end() {
        let (v4, bytes) = masqueraded();
        let v6 = Connection {
            protocol: 6,
            original: tuple("[fd00::1]:1", "[fd00::2]:2"),
            reply: tuple("[fd00::2]:2", "[fd00::1]:1"),
            is_established: true,
        };
        let with_state = |state| {
            let state = attribute(uapi::CTA_PROTOINFO_TCP_STATE, &[state]);
            let info = nested(uapi::CTA_PROTOINFO, &[nested(uapi::CTA_PROTOINFO_TCP, &[state])]);
            new_message(&[
                tuple_of(uapi::CTA_TUPLE_ORIG, 6, &v6.original),
                tuple_of(uapi::CTA_TUPLE_REPLY, 6, &v6.reply),
                info,
            ])
        };
        let (v6_bytes, over) = (with_state(3), with_state(7));
        let v6_over = Connection { is_established: false, ..v6 };
        let ping = new_message(&[nested(
            uapi::CTA_TUPLE_ORIG,
            &[nested(uapi::CTA_TUPLE_PROTO, &[attribute(uapi::CTA_PROTO_NUM, &[1]), attribute(4, &[0, 1])])],
        )]);
        let end = message(NLMSG_DONE, &0i32.to_ne_bytes());
        let all = [bytes.clone(), ping, v6_bytes, over, end, bytes].concat();
        assert_eq!(connections_of(&all).unwrap(), [v4, v6, v6_over], "nothing comes behind the end");
    }

    #[test]
    fn an_error_is_one() {
        let refused = message(NLMSG_ERROR, &(-libc::EPERM).to_ne_bytes());
        assert_eq!(connections_of(&refused).unwrap_err().raw_os_error(), Some(libc::EPERM));
        assert_eq!(result(i32::MIN).unwrap_err().raw_os_error(), Some(i32::MAX));
    }

    #[test]
    fn this_kernel_lists_its_connections() {
        for family in IpFamily::ALL {
            // Kernels without it, and users without permission, are no failure.
            match connections(family, |connection| {
                assert_eq!(IpFamily::of(&connection.reply.dst.ip()), family);
            }) {
                Ok(()) => {}
                Err(error) => assert!(error.raw_os_error().is_some(), "{error}"),
            }
        }
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = connections_of(&bytes);
            let _ = connections_of(&message(SUBSYSTEM, &bytes));
        }

        #[test]
        fn damaged_messages_can_be_read(at in 0usize..200, value: u8, cut in 0usize..200) {
            let (_, mut bytes) = masqueraded();
            let at = at % bytes.len();
            bytes[at] = value;
            let _ = connections_of(&bytes);
            bytes.truncate(cut);
            let _ = connections_of(&bytes);
        }
    }
}

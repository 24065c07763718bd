//! IPsec (`xfrm`) policies of the node, read and followed by netlink.
//!
//! Packets that a program sends past the stack would skip all policies. This module finds the destinations of policies that block
//! or transform: packets to them are handed to the stack.
#![expect(unsafe_code, reason = "tokio wants a promise about the descriptor")]

use std::{
    collections::BTreeSet,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use futures::{Stream, StreamExt as _, stream};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};
use tokio::io::{Interest, unix::AsyncFd};
use tracing::warn;

// From `linux/netlink.h` and `linux/xfrm.h`.
const NLMSG_HEADER: usize = 16;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRM_MSG_GETDEFAULT: u16 = 0x28;
const XFRMNLGRP_POLICY: u32 = 4;
const XFRM_POLICY_OUT: u8 = 1;
const XFRM_POLICY_FWD: u8 = 2;
const XFRM_POLICY_BLOCK: u8 = 1;
const XFRMA_TMPL: u16 = 5;
const XFRMA_IF_ID: u16 = 31;
/// `struct xfrm_userpolicy_id`.
const POLICY_ID: usize = 64;
/// `struct xfrm_userpolicy_info`, behind which attributes follow.
const POLICY_INFO: usize = 168;

/// The destinations of policies that block or protect the node's own and forwarded packets; empty where the kernel has no IPsec.
///
/// # Errors
/// When the kernel does not return them: listing policies needs `CAP_NET_ADMIN`.
pub fn destinations() -> io::Result<BTreeSet<IpNet>> {
    let Some(socket) = open()? else { return Ok(BTreeSet::new()) };
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut found = BTreeSet::new();
    request(&socket, XFRM_MSG_GETPOLICY, NLM_F_DUMP, &[0; POLICY_ID], |payload| {
        found.extend(Policy::parse(payload).into_iter().flat_map(|policy| policy.destinations()));
    })?;
    // Packets without a policy are blocked as well if the administrator sets that (`ip xfrm policy setdefault`; 5.15).
    let answer = request(&socket, XFRM_MSG_GETDEFAULT, 0, &[0; 4], |payload| {
        if blocks_by_default(payload) {
            found.extend(everything());
        }
    });
    match answer {
        Err(error) if error.raw_os_error() != Some(libc::EINVAL) => Err(error),
        _ => Ok(found),
    }
}

/// A stream of possible changes of policies; [`destinations`] reads the present ones.
///
/// # Errors
/// When they cannot be followed.
pub fn changes() -> io::Result<impl Stream<Item = ()> + Unpin + use<>> {
    let Some(socket) = open()? else { return Ok(stream::pending().left_stream()) };
    socket.add_membership(XFRMNLGRP_POLICY)?;
    socket.set_non_blocking(true)?;
    // SAFETY: the socket has its descriptor to itself, and closes it when it is dropped.
    let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }?;
    let changes = stream::unfold(socket, |socket| async {
        let received = socket
            .async_io(Interest::READABLE, |socket| {
                let mut buffer = [0u8; 1];
                // The rest of the message is not wanted.
                socket.recv(&mut &mut buffer[..], 0)
            })
            .await;
        match received {
            Err(error) if error.raw_os_error() != Some(libc::ENOBUFS) => {
                warn!("cannot follow IPsec policies any more: {error}");
                None
            }
            // Also when messages were lost.
            _ => Some(((), socket)),
        }
    });
    Ok(changes.chain(stream::pending()).boxed().right_stream())
}

/// A bound socket; `None` if the kernel has no IPsec.
fn open() -> io::Result<Option<Socket>> {
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Ok(socket) => socket,
        Err(error) if error.raw_os_error() == Some(libc::EPROTONOSUPPORT) => return Ok(None),
        Err(error) => return Err(error),
    };
    socket.bind_auto()?;
    Ok(Some(socket))
}

/// Sends a request and processes the contents of the kernel's answer.
fn request(
    socket: &Socket,
    kind: u16,
    flags: u16,
    payload: &[u8],
    mut take: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut message = Vec::new();
    message.extend(((NLMSG_HEADER + payload.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(payload);
    socket.send(&message, 0)?;
    loop {
        let (answers, _) = socket.recv_from_full()?;
        let mut rest = answers.as_slice();
        while let Some((kind, payload, further)) = message_of(rest) {
            rest = further;
            match kind {
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = word(payload, 0).map_or(libc::EPROTO, |code| (code as i32).saturating_abs());
                    return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code)) };
                }
                _ => take(payload),
            }
        }
        if flags & NLM_F_DUMP == 0 {
            return Ok(());
        }
    }
}

/// Type and contents of the first message, and the bytes behind it.
fn message_of(bytes: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let length = word(bytes, 0)? as usize;
    let kind = half(bytes, 4)?;
    let payload = bytes.get(NLMSG_HEADER..length)?;
    Some((kind, payload, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The parts of a policy that are used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Policy {
    destination: Option<IpNet>,
    direction: u8,
    /// It blocks or transforms packets.
    asks: bool,
    /// It is for packets of an `xfrm` interface only, which the stack has sent there.
    is_of_interface: bool,
}

impl Policy {
    fn parse(payload: &[u8]) -> Option<Self> {
        const FAMILY: usize = 40;
        const PREFIX: usize = 42;
        const DIRECTION: usize = 160;
        const ACTION: usize = 161;
        let octets = |count: usize| payload.get(..count);
        let prefix = *payload.get(PREFIX)?;
        let destination = match i32::from(half(payload, FAMILY)?) {
            libc::AF_INET => {
                let octets: [u8; 4] = octets(4)?.try_into().ok()?;
                Some(Ipv4Net::new(octets.into(), prefix).ok()?.trunc().into())
            }
            libc::AF_INET6 => {
                let octets: [u8; 16] = octets(16)?.try_into().ok()?;
                Some(Ipv6Net::new(octets.into(), prefix).ok()?.trunc().into())
            }
            _ => None,
        };
        let attributes = payload.get(POLICY_INFO..).unwrap_or_default();
        let asks = *payload.get(ACTION)? == XFRM_POLICY_BLOCK
            || attribute(attributes, XFRMA_TMPL).is_some_and(|templates| !templates.is_empty());
        let is_of_interface = attribute(attributes, XFRMA_IF_ID).and_then(|id| word(id, 0)).unwrap_or(0) != 0;
        Some(Self { destination, direction: *payload.get(DIRECTION)?, asks, is_of_interface })
    }

    /// The destinations of a policy that blocks or transforms. Directions above are those of single sockets.
    fn destinations(self) -> Vec<IpNet> {
        let is_ours = matches!(self.direction, XFRM_POLICY_OUT | XFRM_POLICY_FWD);
        if !is_ours || !self.asks || self.is_of_interface {
            return Vec::new();
        }
        self.destination.map_or_else(|| everything().into(), |destination| vec![destination])
    }
}

/// The contents of an attribute.
fn attribute(mut bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    const HEADER: usize = 4;
    loop {
        let length = usize::from(half(bytes, 0)?);
        let contents = bytes.get(HEADER..length)?;
        if half(bytes, 2)? == wanted {
            return Some(contents);
        }
        bytes = bytes.get(length.next_multiple_of(4)..)?;
    }
}

/// Parses a `struct xfrm_userpolicy_default`: in, forward, out.
fn blocks_by_default(payload: &[u8]) -> bool {
    payload.get(1..3).is_some_and(|actions| actions.contains(&XFRM_POLICY_BLOCK))
}

/// All destinations of both families.
pub fn everything() -> [IpNet; 2] {
    [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()].map(|ip| {
        // A prefix of no bits is one in both families.
        IpNet::new(ip, 0).unwrap_or_else(|_| IpNet::from(ip))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Converts a policy as reported by the kernel.
    fn policy(destination: &str, direction: u8, action: u8, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let destination: IpNet = destination.parse().unwrap();
        let mut payload = vec![0; POLICY_INFO];
        let family = match destination.network() {
            IpAddr::V4(ip) => {
                payload[..4].copy_from_slice(&ip.octets());
                libc::AF_INET
            }
            IpAddr::V6(ip) => {
                payload[..16].copy_from_slice(&ip.octets());
                libc::AF_INET6
            }
        };
        payload[40..42].copy_from_slice(&(family as u16).to_ne_bytes());
        (payload[42], payload[160], payload[161]) = (destination.prefix_len(), direction, action);
        for (kind, contents) in attributes {
            payload.extend((4 + contents.len() as u16).to_ne_bytes());
            payload.extend(kind.to_ne_bytes());
            payload.extend(*contents);
            payload.resize(payload.len().next_multiple_of(4), 0);
        }
        payload
    }

    fn destinations_of(payload: &[u8]) -> Vec<String> {
        let policy = Policy::parse(payload).unwrap();
        policy.destinations().iter().map(ToString::to_string).collect()
    }

    #[test]
    fn policies_that_ask_for_something() {
        const ALLOW: u8 = 0;
        let template: (u16, &[u8]) = (XFRMA_TMPL, &[1; 64]);
        let of_type: (u16, &[u8]) = (16, &[0; 6]);
        for (what, payload, expected) in [
            ("block", policy("10.1.0.0/16", 1, XFRM_POLICY_BLOCK, &[]), &["10.1.0.0/16"][..]),
            ("protect", policy("fd00::/64", 1, ALLOW, &[of_type, template]), &["fd00::/64"]),
            ("forwarded", policy("10.1.0.0/16", 2, ALLOW, &[template, of_type]), &["10.1.0.0/16"]),
            ("let pass", policy("10.1.0.0/16", 1, ALLOW, &[of_type]), &[]),
            ("incoming", policy("10.1.0.0/16", 0, ALLOW, &[template]), &[]),
            ("of a socket", policy("10.1.0.0/16", 4, XFRM_POLICY_BLOCK, &[]), &[]),
            (
                "of an interface",
                policy("0.0.0.0/0", 1, ALLOW, &[template, (XFRMA_IF_ID, &7u32.to_ne_bytes())]),
                &[],
            ),
        ] {
            assert_eq!(destinations_of(&payload), expected, "{what}");
        }
        let mut any = policy("10.1.0.0/16", 1, XFRM_POLICY_BLOCK, &[]);
        any[40] = 0;
        assert_eq!(destinations_of(&any), ["0.0.0.0/0", "::/0"], "of no family");
    }

    #[test]
    fn no_message_is_trusted() {
        let whole = policy("10.1.0.0/16", 1, 0, &[(XFRMA_TMPL, &[1; 64])]);
        for length in 0..whole.len() {
            if let Some(policy) = Policy::parse(&whole[..length]) {
                assert!(!policy.asks, "{length} bytes");
            }
        }
        let mut wrong = whole.clone();
        wrong[42] = 33;
        assert_eq!(Policy::parse(&wrong), None, "33 of 32 bits");
        wrong = whole;
        wrong[POLICY_INFO] = 0;
        assert!(!Policy::parse(&wrong).unwrap().asks, "an attribute without a length");
        for length in [0u32, 3, 15, 17, u32::MAX] {
            let mut message = vec![0; 16];
            message[..4].copy_from_slice(&length.to_ne_bytes());
            assert!(message_of(&message).is_none(), "{length}");
        }
    }

    #[test]
    fn the_default_counts_where_it_blocks() {
        for (default, expected) in
            [([2, 2, 2, 0], false), ([1, 2, 2, 0], false), ([2, 1, 2, 0], true), ([2, 2, 1, 0], true)]
        {
            assert_eq!(blocks_by_default(&default), expected, "{default:?}");
        }
    }
}

//! Keeps conntrack away from packets that programs hand to the stack at the loopback interface.
//!
//! Programs translate and send replies before conntrack would see them, so of each connection it would see one direction, and call the
//! client's ACK INVALID; firewalls drop that. As nft writes it:
//!
//! ```text
//! table inet proxy-agent {
//!     chain loopback { type filter hook prerouting priority raw; iif lo notrack }
//! }
//! ```
//!
//! Packets that sockets send over the loopback interface are tracked already when they arrive, and stay so (`nft_notrack_eval`).
//!
//! Fragments that the stack fragments once more need another rule: reassembled there, they would wait for those that fit, which were sent
//! already. A packet that is untracked before the kernel reassembles (priority -400) stays in fragments (`ipv4_conntrack_defrag`). IPsec
//! policies, though, look at ports, which only whole packets have. So each purpose has a table, and both never exist at once.

use std::io;

use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

/// Why packets are handed to the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// IPsec policies.
    Policies,
    /// IPv4 packets that are longer than their way.
    Fragments,
}

impl Purpose {
    fn table(self) -> &'static [u8] {
        match self {
            Self::Policies => b"proxy-agent\0",
            Self::Fragments => b"proxy-agent-fragments\0",
        }
    }

    /// From `linux/netfilter_ipv4.h`.
    fn priority(self) -> i32 {
        const RAW: i32 = -300;
        const RAW_BEFORE_DEFRAG: i32 = -450;
        match self {
            Self::Policies => RAW,
            Self::Fragments => RAW_BEFORE_DEFRAG,
        }
    }
}

const CHAIN: &[u8] = b"loopback\0";

// From `linux/netlink.h`, `linux/netfilter/nfnetlink.h` and `linux/netfilter/nf_tables.h`.
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
pub(crate) const NLM_F_ACK: u16 = 4;
pub(crate) const NLM_F_CREATE: u16 = 0x400;
pub(crate) const NLM_F_APPEND: u16 = 0x800;
const NLA_F_NESTED: u16 = 0x8000;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
pub(crate) const NEW_TABLE: u16 = NFTABLES << 8;
const GET_TABLE: u16 = NEW_TABLE | 1;
pub(crate) const DELETE_TABLE: u16 = NEW_TABLE | 2;
pub(crate) const NEW_CHAIN: u16 = NEW_TABLE | 3;
pub(crate) const NEW_RULE: u16 = NEW_TABLE | 6;
const NFPROTO_INET: u8 = 1;

/// Makes the rule for packets that IPsec policies are for, if it is not there.
///
/// # Errors
/// When the kernel refuses, or has no nftables.
pub fn ensure() -> io::Result<()> {
    make(Purpose::Policies)
}

/// Whether the table exists.
pub fn is_there() -> bool {
    exists(Purpose::Policies)
}

/// Removes it. A missing one is fine.
///
/// # Errors
/// When the kernel refuses.
pub fn remove() -> io::Result<()> {
    delete(Purpose::Policies)
}

/// Makes the rule for packets that are longer than their way, if it is not there.
///
/// # Errors
/// The same as for [`ensure`].
pub fn ensure_for_fragments() -> io::Result<()> {
    make(Purpose::Fragments)
}

/// Whether the table exists.
pub fn is_there_for_fragments() -> bool {
    exists(Purpose::Fragments)
}

/// Removes it. A missing one is fine.
///
/// # Errors
/// The same as for [`remove`].
pub fn remove_for_fragments() -> io::Result<()> {
    delete(Purpose::Fragments)
}

fn make(purpose: Purpose) -> io::Result<()> {
    let socket = open()?;
    match get(&socket, purpose) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
        result => return result,
    }
    let table = (NEW_TABLE, NLM_F_CREATE, attribute(1, purpose.table()));
    talk(&socket, &batch(&[table, chain(purpose), rule(purpose)]))
}

fn exists(purpose: Purpose) -> bool {
    open().and_then(|socket| get(&socket, purpose)).is_ok()
}

fn get(socket: &Socket, purpose: Purpose) -> io::Result<()> {
    talk(socket, &message(GET_TABLE, 0, NFPROTO_INET, &attribute(1, purpose.table())))
}

fn delete(purpose: Purpose) -> io::Result<()> {
    const NONE: [i32; 4] = [libc::ENOENT, libc::EPROTONOSUPPORT, libc::EOPNOTSUPP, libc::EINVAL];
    let table = (DELETE_TABLE, NLM_F_ACK, attribute(1, purpose.table()));
    let removed = open().and_then(|socket| talk(&socket, &batch(&[table])));
    match removed {
        Err(error) if error.raw_os_error().is_some_and(|code| NONE.contains(&code)) => Ok(()),
        result => result,
    }
}

/// Opens a socket for such messages.
pub(crate) fn open() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    Ok(socket)
}

/// Sends messages, and returns the first answer: an error, the requested acknowledgment, or the requested object.
pub(crate) fn talk(socket: &Socket, messages: &[u8]) -> io::Result<()> {
    socket.send(messages, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_abs())),
        (Some(_), _) => Ok(()),
        (None, _) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Type, flags, attributes.
pub(crate) type Message = (u16, u16, Vec<u8>);

fn batch(messages: &[Message]) -> Vec<u8> {
    batch_of(NFPROTO_INET, messages)
}

/// A transaction of nfnetlink: messages about tables of a family that the kernel applies wholly or not at all.
pub(crate) fn batch_of(family: u8, messages: &[Message]) -> Vec<u8> {
    let mut bytes = message(BATCH_BEGIN, 0, 0, &[]);
    for (kind, flags, attributes) in messages {
        bytes.extend(message(*kind, *flags, family, attributes));
    }
    bytes.extend(message(BATCH_END, 0, 0, &[]));
    bytes
}

fn message(kind: u16, flags: u16, family: u8, attributes: &[u8]) -> Vec<u8> {
    const HEADERS: usize = 16 + 4;
    let mut bytes = Vec::new();
    bytes.extend(((HEADERS + attributes.len()) as u32).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | flags).to_ne_bytes());
    // Sequence number and port.
    bytes.extend([0; 8]);
    // `struct nfgenmsg`; of a batch, whose it is.
    bytes.extend([family, 0]);
    let resource = if matches!(kind, BATCH_BEGIN | BATCH_END) { NFTABLES } else { 0 };
    bytes.extend(resource.to_be_bytes());
    bytes.extend(attributes);
    bytes
}

/// An attribute of a message.
pub(crate) fn attribute(kind: u16, contents: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    bytes.extend((4 + contents.len() as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(contents);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// An attribute of a message.
pub(crate) fn nested(kind: u16, attributes: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | NLA_F_NESTED, &attributes.concat())
}

/// An attribute of a message.
pub(crate) fn number(kind: u16, value: u32) -> Vec<u8> {
    attribute(kind, &value.to_be_bytes())
}

fn chain(purpose: Purpose) -> Message {
    const PRE_ROUTING: u32 = 0;
    let hook = nested(4, &[number(1, PRE_ROUTING), number(2, purpose.priority() as u32)]);
    let attributes = [attribute(1, purpose.table()), attribute(3, CHAIN), hook, attribute(7, b"filter\0")];
    (NEW_CHAIN, NLM_F_CREATE, attributes.concat())
}

fn rule(purpose: Purpose) -> Message {
    const REGISTER: u32 = 1;
    const INCOMING_INTERFACE: u32 = 4;
    const EQUAL: u32 = 0;
    const LOOPBACK: u32 = 1;
    let expression = |name: &[u8], data: &[Vec<u8>]| {
        let mut attributes = vec![attribute(1, name)];
        if !data.is_empty() {
            attributes.push(nested(2, data));
        }
        nested(1, &attributes)
    };
    let value = nested(3, &[attribute(1, &LOOPBACK.to_ne_bytes())]);
    let expressions = [
        expression(b"meta\0", &[number(1, REGISTER), number(2, INCOMING_INTERFACE)]),
        expression(b"cmp\0", &[number(1, REGISTER), number(2, EQUAL), value]),
        expression(b"notrack\0", &[]),
    ];
    let attributes = [attribute(1, purpose.table()), attribute(2, CHAIN), nested(4, &expressions)];
    (NEW_RULE, NLM_F_CREATE | NLM_F_APPEND | NLM_F_ACK, attributes.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_aligned_and_have_their_length() {
        let purpose = Purpose::Fragments;
        let table = (NEW_TABLE, NLM_F_CREATE, attribute(1, purpose.table()));
        let bytes = batch(&[table, chain(purpose), rule(purpose)]);
        let (mut rest, mut kinds) = (bytes.as_slice(), Vec::new());
        while !rest.is_empty() {
            let length = u32::from_ne_bytes(rest[..4].try_into().unwrap()) as usize;
            assert_eq!(length % 4, 0);
            kinds.push(u16::from_ne_bytes(rest[4..6].try_into().unwrap()));
            rest = &rest[length..];
        }
        assert_eq!(kinds, [BATCH_BEGIN, 0xa00, 0xa03, 0xa06, BATCH_END]);
        assert_eq!(attribute(1, b"abc"), [7, 0, 1, 0, b'a', b'b', b'c', 0]);
    }
}

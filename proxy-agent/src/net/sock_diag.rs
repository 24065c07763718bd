//! Connected sockets of a network namespace, listed and ended by netlink: sock_diag(7).

use std::{io, net::SocketAddr};

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
    NetlinkPayload, NetlinkSerializable, Parseable as _,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

use crate::model::objects::Protocol;

/// Which kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl From<Transport> for Protocol {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Tcp => Self::Tcp,
            Transport::Udp => Self::Udp,
        }
    }
}

impl Transport {
    fn number(self) -> u8 {
        match self {
            Self::Tcp => IPPROTO_TCP,
            Self::Udp => IPPROTO_UDP,
        }
    }

    /// The states in which a process can be waiting for its peer.
    fn states(self) -> StateFlags {
        match self {
            Self::Tcp => {
                StateFlags::ESTABLISHED
                    | StateFlags::SYN_SENT
                    | StateFlags::FIN_WAIT1
                    | StateFlags::FIN_WAIT2
                    | StateFlags::CLOSE_WAIT
            }
            // The state of a connected UDP socket; all others are TCP_CLOSE.
            Self::Udp => StateFlags::ESTABLISHED,
        }
    }
}

/// A connected socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connected {
    /// Which kind.
    pub transport: Transport,
    /// The kernel's cookie of it, as BPF programs see it.
    pub cookie: u64,
    /// The peer. An IPv4 address for IPv6 sockets that use one.
    pub peer: SocketAddr,
    /// Its own address, of the same family.
    pub local: SocketAddr,
    /// `AF_INET` or `AF_INET6`.
    family: u8,
    id: SocketId,
}

/// Why sockets cannot be listed or ended.
#[derive(Debug, thiserror::Error)]
pub enum SockDiagError {
    /// `CONFIG_INET_DIAG_DESTROY` is off, or a module is missing.
    #[error(
        "this kernel cannot list or end sockets (CONFIG_INET_DIAG_DESTROY, modules udp_diag and tcp_diag)"
    )]
    Unsupported,
    /// Anything else.
    #[error("sock_diag: {0}")]
    Io(#[from] io::Error),
}

/// Looks at the sockets of the network namespace it was opened in.
pub struct SockDiag {
    socket: Socket,
}

impl SockDiag {
    /// For the network namespace of this thread.
    ///
    /// # Errors
    /// When the kernel has no `sock_diag`.
    pub fn open() -> Result<Self, SockDiagError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_SOCK_DIAG)?;
            socket.bind_auto()?;
            socket.connect(&NetlinkAddr::new(0, 0))?;
            Ok(Self { socket })
        };
        open().map_err(|error: io::Error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT) => SockDiagError::Unsupported,
            _ => error.into(),
        })
    }

    /// Connected sockets of both families that are `wanted`.
    ///
    /// # Errors
    /// When the kernel cannot list sockets.
    pub fn connected(
        &self,
        transport: Transport,
        wanted: impl Fn(&Connected) -> bool,
    ) -> Result<Vec<Connected>, SockDiagError> {
        let mut found = Vec::new();
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let request = inet_request(transport, family, socket_id);
            self.request(request, NLM_F_DUMP, |header| {
                let socket = Connected::new(transport, header);
                if wanted(&socket) {
                    found.push(socket);
                }
            })
            .map_err(|error| match error.raw_os_error() {
                // The kernel looked for a module that knows these sockets.
                Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP) => SockDiagError::Unsupported,
                _ => error.into(),
            })?;
        }
        Ok(found)
    }

    /// Ends a socket: its process gets ECONNABORTED from calls that wait for the peer and from the next one that receives. A
    /// UDP socket is not connected any more (sending without an address gives EDESTADDRREQ), and can connect again. `false`
    /// if the socket is gone.
    ///
    /// # Errors
    /// When the kernel cannot do that.
    pub fn end(&self, socket: &Connected) -> Result<bool, SockDiagError> {
        let request = SockDiagDestroy::new(inet_request(socket.transport, socket.family, socket.id.clone()));
        match self.request(request, NLM_F_ACK, |_| {}) {
            Ok(()) => Ok(true),
            Err(error) => match error.raw_os_error() {
                // Gone, or another socket has its addresses.
                Some(libc::ENOENT | libc::ESTALE) => Ok(false),
                Some(libc::EOPNOTSUPP) => Err(SockDiagError::Unsupported),
                _ => Err(error.into()),
            },
        }
    }

    /// Sends a request and takes all answers, up to the last one.
    fn request<M: NetlinkSerializable>(
        &self,
        message: M,
        flags: u16,
        mut take: impl FnMut(InetResponseHeader),
    ) -> io::Result<()> {
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        packet.finalize();
        let mut buffer = vec![0; packet.buffer_len()];
        packet.serialize(&mut buffer);
        self.socket.send(&buffer, 0)?;
        loop {
            let (answers, _) = self.socket.recv_from_full()?;
            if let Some(code) = read_answers(&answers, &mut take).map_err(io::Error::other)? {
                return result(code);
            }
        }
    }
}

/// Takes the sockets out of a message of the kernel. The last message has a code.
///
/// # Errors
/// When it cannot be read.
fn read_answers(
    mut rest: &[u8],
    mut take: impl FnMut(InetResponseHeader),
) -> Result<Option<i32>, DecodeError> {
    const ALIGNMENT: usize = 4;
    while !rest.is_empty() {
        let answer = NetlinkMessage::<Listed>::deserialize(rest)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(Listed(header)) => take(header),
            NetlinkPayload::Done(done) => return Ok(Some(done.code)),
            NetlinkPayload::Error(error) => return Ok(Some(error.raw_code())),
            _ => {}
        }
        let length = (answer.header.length as usize).next_multiple_of(ALIGNMENT);
        rest = rest.get(length..).unwrap_or_default();
    }
    Ok(None)
}

/// The sockets in a message of the kernel, for tests with messages that no kernel would send.
///
/// # Errors
/// When it cannot be read.
pub fn sockets_of(message: &[u8], transport: Transport) -> io::Result<Vec<Connected>> {
    let mut found = Vec::new();
    let take = |header| found.push(Connected::new(transport, header));
    match read_answers(message, take).map_err(io::Error::other)? {
        Some(code) => result(code).map(|()| found),
        None => Ok(found),
    }
}

impl Connected {
    fn new(transport: Transport, header: InetResponseHeader) -> Self {
        let id = header.socket_id;
        Self {
            transport,
            cookie: cookie(id.cookie),
            peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            family: header.family,
            id,
        }
    }
}

/// The kernel has two words of it, the low one first.
fn cookie([a, b, c, d, e, f, g, h]: [u8; 8]) -> u64 {
    let (low, high) = (u32::from_ne_bytes([a, b, c, d]), u32::from_ne_bytes([e, f, g, h]));
    (high as u64) << 32 | low as u64
}

fn inet_request(transport: Transport, family: u8, socket_id: SocketId) -> SockDiagMessage {
    SockDiagMessage::InetRequest(InetRequest {
        family,
        protocol: transport.number(),
        extensions: ExtensionFlags::empty(),
        states: transport.states(),
        socket_id,
    })
}

/// The result of a netlink code: 0, or a negative error number.
fn result(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_abs())) }
}

/// A socket in the answer. Attributes follow, which depend on the kernel; they are not looked at.
struct Listed(InetResponseHeader);

impl NetlinkDeserializable for Listed {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        InetResponseHeader::parse(payload).map(Self)
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use super::*;

    #[test]
    fn the_low_word_of_a_cookie_comes_first() {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&7u32.to_ne_bytes());
        bytes[4..].copy_from_slice(&1u32.to_ne_bytes());
        assert_eq!(cookie(bytes), 0x1_0000_0007);
    }

    #[test]
    fn any_code_is_an_answer() {
        for code in [0, -libc::ENOENT, libc::ENOENT, i32::MIN, i32::MAX] {
            let mut done = vec![20, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            done.extend(code.to_ne_bytes());
            assert_eq!(sockets_of(&done, Transport::Udp).is_ok(), code == 0, "{code}");
        }
    }

    /// Listing needs no privileges.
    #[test]
    fn connected_sockets_are_found_by_their_peer() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let peer = server.local_addr().unwrap();
        let client = UdpSocket::bind("127.0.0.1:0").unwrap();
        let sock_diag = SockDiag::open().unwrap();
        let found = || sock_diag.connected(Transport::Udp, |socket| socket.peer == peer).unwrap();
        assert_eq!(found(), [], "not connected yet");
        client.connect(peer).unwrap();
        let locals: Vec<_> = found().iter().map(|socket| socket.local).collect();
        assert_eq!(locals, [client.local_addr().unwrap()]);
    }
}

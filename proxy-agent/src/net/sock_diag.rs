//! Connected sockets of a network namespace, listed and ended by netlink: sock_diag(7).

mod storage;

use std::{io, net::SocketAddr, os::fd::BorrowedFd};

use netlink_packet_core::{
    DecodeError, Emitable, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, Parseable as _,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, IPPROTO_UDP, SockDiagDestroy, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddr, protocols::NETLINK_SOCK_DIAG};

pub use self::storage::Stored;

/// Which kind of socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
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
            // Of a connected UDP socket; all others are TCP_CLOSE.
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
    /// Who it is connected to. An IPv4 address for IPv6 sockets that use one.
    pub peer: SocketAddr,
    /// What programs keep with it, in the maps that were asked for.
    pub stored: Vec<Stored>,
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

    /// Connected sockets of both families that are `wanted`, with what they have in these `maps` of socket storage.
    ///
    /// # Errors
    /// When the kernel cannot list sockets.
    pub fn connected(
        &self,
        transport: Transport,
        maps: &[BorrowedFd<'_>],
        wanted: impl Fn(&Connected) -> bool,
    ) -> Result<Vec<Connected>, SockDiagError> {
        let mut found = Vec::new();
        for (family, socket_id) in [(AF_INET, SocketId::new_v4()), (AF_INET6, SocketId::new_v6())] {
            let message = inet_request(transport, family, socket_id);
            let request = ListRequest { message, attributes: storage::request(maps) };
            self.request(request, NLM_F_DUMP, |listed| {
                let socket = Connected::new(transport, listed);
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
    /// UDP socket is not connected any more (sending without an address gives EDESTADDRREQ), and can connect anew.
    /// `false` if the socket is not there any more.
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
        mut take: impl FnMut(Listed),
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
fn read_answers(mut rest: &[u8], mut take: impl FnMut(Listed)) -> Result<Option<i32>, DecodeError> {
    const ALIGNMENT: usize = 4;
    while !rest.is_empty() {
        let answer = NetlinkMessage::<Listed>::deserialize(rest)?;
        match answer.payload {
            NetlinkPayload::InnerMessage(listed) => take(listed),
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
    let take = |listed| found.push(Connected::new(transport, listed));
    match read_answers(message, take).map_err(io::Error::other)? {
        Some(code) => result(code).map(|()| found),
        None => Ok(found),
    }
}

impl Connected {
    fn new(transport: Transport, Listed { header, stored }: Listed) -> Self {
        let id = header.socket_id;
        Self {
            transport,
            cookie: cookie(id.cookie),
            peer: SocketAddr::new(id.destination_address.to_canonical(), id.destination_port),
            stored,
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

/// Of a code as netlink has them: 0, or an error number below.
fn result(code: i32) -> io::Result<()> {
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.saturating_abs())) }
}

/// A request for sockets, and attributes that are made here.
struct ListRequest {
    message: SockDiagMessage,
    attributes: Vec<u8>,
}

impl NetlinkSerializable for ListRequest {
    fn message_type(&self) -> u16 {
        self.message.message_type()
    }

    fn buffer_len(&self) -> usize {
        Emitable::buffer_len(&self.message) + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let (message, attributes) = buffer.split_at_mut(Emitable::buffer_len(&self.message));
        self.message.emit(message);
        attributes.copy_from_slice(&self.attributes);
    }
}

/// A socket in the answer. Attributes follow, which depend on the kernel; of those only what programs keep is looked at.
struct Listed {
    header: InetResponseHeader,
    stored: Vec<Stored>,
}

impl NetlinkDeserializable for Listed {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let header = InetResponseHeader::parse(payload)?;
        let attributes = payload.get(header.buffer_len()..).unwrap_or_default();
        Ok(Self { header, stored: storage::parse(attributes)? })
    }
}

#[cfg(test)]
mod tests;

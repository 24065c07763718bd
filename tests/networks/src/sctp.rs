//! SCTP, one-to-one sockets: an association, and bytes both ways.

use std::{
    fs::File,
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    os::fd::{AsFd, AsRawFd, OwnedFd},
    thread,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, ensure};
use nix::{
    libc,
    sys::{
        socket::{
            AddressFamily, Backlog, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, connect, listen,
            setsockopt, socket,
            sockopt::{ReceiveTimeout, ReuseAddr, SendTimeout},
        },
        time::{TimeVal, TimeValLike},
    },
};

use proxy_sys::socket::write_option;

use super::paths::{PATIENCE, TRANSFER};
use proxy_harness::cluster::Host;

const MESSAGE: usize = 4_000;
const MESSAGES: usize = 250;
/// The size of one chunk, so that no packet needs IP fragments when a smaller path MTU becomes known: chunks that were made
/// before are sent in fragments then, and those of SCTP are not translated.
const CHUNK: u32 = 1_200;

/// Fails if the kernel cannot make such sockets.
pub(super) fn probe() -> Result<()> {
    open(AddressFamily::Inet).map(drop)
}

fn open(family: AddressFamily) -> Result<OwnedFd> {
    let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, SockProtocol::Sctp)
        .map_err(|error| anyhow!("an SCTP socket: {error:?}"))?;
    let limit = TimeVal::milliseconds(PATIENCE.as_millis() as i64);
    setsockopt(&socket, ReceiveTimeout, &limit)?;
    setsockopt(&socket, SendTimeout, &limit)?;
    setsockopt(&socket, ReuseAddr, &true)?;
    limit_chunks(&socket)?;
    Ok(socket)
}

/// `SCTP_MAXSEG` (RFC 6458, 8.1.16).
fn limit_chunks(socket: &OwnedFd) -> Result<()> {
    const SCTP_MAXSEG: i32 = 13;
    // `struct sctp_assoc_value`: of all associations, so many bytes.
    let value = [[0; 4], CHUNK.to_ne_bytes()].concat();
    // SAFETY: no pointers.
    unsafe { write_option(socket.as_fd(), libc::IPPROTO_SCTP, SCTP_MAXSEG, &value) }.context("SCTP_MAXSEG")
}

/// One association from the client to the target, which the server must accept: messages there and back.
pub(super) fn exchange(client: &Host, target: SocketAddr, server: &Host, port: u16) -> Result<()> {
    let family = if target.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let own: SocketAddr = (server.address_like(target.ip()), port).into();
    let listener = server.netns.run(|| {
        let listener = open(family)?;
        bind(listener.as_raw_fd(), &SockaddrStorage::from(own))?;
        listen(&listener, Backlog::new(1)?)?;
        Ok(listener)
    })?;
    thread::scope(|scope| {
        let echo = scope.spawn(move || echo(&listener));
        let sent = client.netns.run(|| talk(family, target));
        let echoed = echo.join().map_err(|_| anyhow!("the server panicked"))?;
        sent.and(echoed)
    })
}

fn echo(listener: &OwnedFd) -> Result<()> {
    // The standard library's calls are the same for TCP.
    let (mut stream, _) = TcpListener::from(listener.try_clone()?).accept().context("accept")?;
    let mut message = [0; MESSAGE];
    let end = Instant::now() + TRANSFER;
    for number in 0..MESSAGES {
        ensure!(Instant::now() < end, "only {number} messages arrived in {} s", TRANSFER.as_secs());
        stream.read_exact(&mut message).context("the server's receive")?;
        stream.write_all(&message).context("the server's send")?;
    }
    // The client closes first.
    let _ = stream.read(&mut message);
    Ok(())
}

fn talk(family: AddressFamily, target: SocketAddr) -> Result<()> {
    let socket = open(family)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(target)).context("connect")?;
    let mut stream = File::from(socket);
    let mut answer = [0; MESSAGE];
    let end = Instant::now() + TRANSFER;
    for number in 0..MESSAGES {
        ensure!(Instant::now() < end, "only {number} messages came back in {} s", TRANSFER.as_secs());
        let message = [number as u8; MESSAGE];
        stream.write_all(&message).context("send")?;
        stream.read_exact(&mut answer).context("receive")?;
        ensure!(answer == message, "message {number} arrived with other content");
    }
    Ok(())
}

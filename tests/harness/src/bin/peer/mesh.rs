//! `peer mesh`: the proxy of a service mesh, as in a pod that redirects its own connections.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6, TcpListener, TcpStream},
    os::fd::{AsRawFd as _, OwnedFd},
    thread,
};

use nix::sys::socket::{
    AddressFamily, SockFlag, SockType, SockaddrStorage, connect, getsockopt, setsockopt, socket,
    sockopt::{Ip6tOriginalDst, Mark, OriginalDst},
};
use proxy_harness::cluster::{Answer, MESH_MARK};

/// Takes connections that were redirected to this port and makes each request for the client, where the client wanted it.
/// The answer contains `mesh` and the server's name; its own address is the client's original destination (`SO_ORIGINAL_DST`).
pub(crate) fn mesh(port: u16) -> io::Result<()> {
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))?;
    writeln!(io::stdout(), "ready")?;
    thread::scope(|scope| {
        for stream in listener.incoming().flatten() {
            // A client that closes its connection is not a failure of the proxy.
            scope.spawn(move || pass_on(stream));
        }
    });
    Ok(())
}

fn pass_on(stream: TcpStream) -> io::Result<()> {
    let (original, client) = (original(&stream)?, stream.peer_addr()?);
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let answer = match ask(original, &request) {
        Ok(answer) => answer.server,
        Err(error) => error.to_string(),
    };
    let answer = Answer { server: format!("mesh {answer}"), client, local: original };
    writer.write_all(&serde_json::to_vec(&answer)?)?;
    writer.write_all(format!("\t{request}").as_bytes())
}

/// Where the client connected to before it was redirected.
fn original(stream: &TcpStream) -> io::Result<SocketAddr> {
    if let SocketAddr::V6(peer) = stream.peer_addr()?
        && peer.ip().to_ipv4_mapped().is_none()
    {
        let address = getsockopt(stream, Ip6tOriginalDst)?;
        let ip = Ipv6Addr::from(address.sin6_addr.s6_addr);
        return Ok(SocketAddrV6::new(ip, u16::from_be(address.sin6_port), 0, 0).into());
    }
    let address = getsockopt(stream, OriginalDst)?;
    Ok(SocketAddrV4::new(u32::from_be(address.sin_addr.s_addr).into(), u16::from_be(address.sin_port)).into())
}

/// Makes a request that is not redirected again.
fn ask(to: SocketAddr, request: &str) -> io::Result<Answer> {
    let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket: OwnedFd = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, Mark, &MESH_MARK)?;
    connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(request.as_bytes())?;
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line)?;
    let (answer, _) = line.split_once('\t').unwrap_or_default();
    Ok(serde_json::from_str(answer)?)
}

//! The endpoints of sustained load and floods: they send back all bytes. Unlike those of the short slices they serve any
//! number of connections at once, and leave the kernel's state of closed ones alone.

use std::{
    io::{self, Write as _},
    net::{Ipv4Addr, SocketAddr},
    rc::Rc,
    time::Duration,
};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use proxy_harness::cluster::CLOSE;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream, UdpSocket},
    runtime,
    task::{LocalSet, spawn_local},
    time::timeout,
};

use crate::wire::TARGET_PORT;

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(120);
const BACKLOG: u32 = 4096;

/// Serves until it is ended; prints `ready` once it listens.
pub(crate) fn serve(addresses: &[Ipv4Addr]) -> io::Result<()> {
    // Connections whose client gave up stay for a while.
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let socket = TcpSocket::new_v4()?;
        socket.set_reuseaddr(true)?;
        socket.bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, TARGET_PORT)))?;
        let listener = socket.listen(BACKLOG)?;
        // A socket for each address: replies must come from where the request went.
        for address in addresses {
            let socket = Rc::new(UdpSocket::bind((*address, TARGET_PORT)).await?);
            spawn_local(async move { datagrams(&socket).await });
        }
        writeln!(io::stdout(), "ready")?;
        loop {
            if let Ok((stream, _)) = listener.accept().await {
                spawn_local(async move { converse(stream).await });
            }
        }
    })
}

async fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 64];
    loop {
        let length = timeout(PATIENCE, stream.read(&mut buffer)).await??;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length]).await?;
        if buffer[..length].starts_with(CLOSE.as_bytes()) {
            return Ok(());
        }
    }
}

async fn datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer).await {
            // The client reports whether the reply arrived.
            let _ = socket.send_to(&buffer[..length], from).await;
        }
    }
}

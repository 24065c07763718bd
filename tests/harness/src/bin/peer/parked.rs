//! `peer park` and `peer sockets`: unconnected UDP sockets that stay, and many that go.

use std::{
    io::{self, Write},
    net::{SocketAddr, UdpSocket},
    time::{Duration, Instant},
};

use proxy_harness::cluster::Reply;

use crate::client::{any, error_name, parse, request_text};

/// Sends a request to each address by one socket, which may be connected to the first, and prints `sent`. Waits for a line of input, and only then receives: prints a
/// reply for each, in the order in which they came.
pub(crate) fn park(to: &[SocketAddr], connected: bool, timeout: Duration) -> io::Result<()> {
    let Some(first) = to.first() else { return Ok(()) };
    let socket = UdpSocket::bind((any(first), 0))?;
    socket.set_read_timeout(Some(timeout))?;
    if connected {
        socket.connect(first)?;
    }
    let text = request_text(0, 0);
    for address in to {
        socket.send_to(text.as_bytes(), address)?;
    }
    writeln!(io::stdout(), "sent")?;
    io::stdin().read_line(&mut String::new())?;
    for _ in to {
        let start = Instant::now();
        let mut buffer = [0; 2048];
        let result = socket.recv_from(&mut buffer).and_then(|(length, from)| {
            Ok((parse(&String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()), &text)?, from))
        });
        let elapsed_ms = start.elapsed().as_millis() as u64;
        let reply = match result {
            Ok((answer, from)) => Reply { answer: Some(answer), peer: Some(from), error: None, elapsed_ms },
            Err(error) => Reply { answer: None, peer: None, error: Some(error_name(&error)), elapsed_ms },
        };
        writeln!(io::stdout(), "{}", serde_json::to_string(&reply)?)?;
    }
    Ok(())
}

/// Opens sockets, a few hundred at a time, and sends a datagram to each address by each.
pub(crate) fn sockets(to: &[SocketAddr], count: usize) -> io::Result<()> {
    const AT_ONCE: usize = 400;
    let Some(first) = to.first() else { return Ok(()) };
    let mut done = 0;
    while done < count {
        let open = (0..AT_ONCE.min(count - done))
            .map(|_| UdpSocket::bind((any(first), 0)))
            .collect::<io::Result<Vec<_>>>()?;
        for socket in &open {
            for address in to {
                // A full queue on the way loses datagrams; the sockets keep the rest all the same.
                let _ = socket.send_to(b"\n", address);
            }
        }
        done += open.len();
    }
    Ok(())
}

//! `peer serve`.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    thread,
};

use proxy_harness::cluster::{Answer, CLOSE};

use crate::bulk;

/// Serves until the process is ended.
pub(crate) fn serve(name: &str, listen: &[SocketAddr]) -> io::Result<()> {
    let sockets: Vec<_> = listen
        .iter()
        .map(|address| Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?)))
        .collect::<io::Result<_>>()?;
    writeln!(io::stdout(), "ready")?;
    thread::scope(|scope| {
        for (tcp, udp) in &sockets {
            scope.spawn(move || serve_udp(name, udp));
            scope.spawn(move || {
                for stream in tcp.incoming().flatten() {
                    // A client that closes its connection is not a failure of the server.
                    scope.spawn(move || serve_stream(name, stream));
                }
            });
        }
    });
    Ok(())
}

fn serve_udp(name: &str, socket: &UdpSocket) -> io::Result<()> {
    let local = socket.local_addr()?;
    let mut buffer = [0; 65_536];
    loop {
        // An error here is about an earlier answer that could not be delivered.
        if let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let mut answer = answer(name, client, local);
            // The request's own text comes back, so that an answer cannot be taken for another's.
            answer.extend_from_slice(&buffer[..length]);
            let _ = socket.send_to(&answer, client);
        }
    }
}

fn serve_stream(name: &str, stream: TcpStream) -> io::Result<()> {
    let (client, local) = (stream.peer_addr()?, stream.local_addr()?);
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 {
        let mut answer = answer(name, client, local);
        if let Some(bytes) = line.trim().strip_prefix("bulk ").and_then(|bytes| bytes.parse().ok()) {
            bulk::receive(&mut reader, bytes)?;
            writer.write_all(&answer)?;
            writer.write_all(b"\n")?;
            bulk::send(&mut writer, bytes)?;
        } else {
            answer.extend_from_slice(line.as_bytes());
            writer.write_all(&answer)?;
            if line.starts_with(CLOSE) {
                return Ok(());
            }
        }
        line.clear();
    }
    Ok(())
}

/// The answer as JSON and a tab; the request follows.
fn answer(name: &str, client: SocketAddr, local: SocketAddr) -> Vec<u8> {
    let answer = Answer { server: name.to_owned(), client, local };
    let mut text = serde_json::to_vec(&answer).unwrap_or_default();
    text.push(b'\t');
    text
}

//! The endpoints: one thread for each thing to wait for. Everything runs on one CPU, so threads that sleep cost nothing.

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    thread,
    time::Duration,
};

use crate::wire::{FLOOD, STREAM_TARGET_PORT, TARGET_PORT};

/// How long a client may be silent.
const PATIENCE: Duration = Duration::from_secs(1);

/// Serves until it is ended; prints `ready` once it listens.
pub(crate) fn serve(addresses: &[Ipv4Addr]) -> io::Result<()> {
    let short = TcpListener::bind((Ipv4Addr::UNSPECIFIED, TARGET_PORT))?;
    let streams = TcpListener::bind((Ipv4Addr::UNSPECIFIED, STREAM_TARGET_PORT))?;
    // A socket for each address: answers must come from where the question went.
    for address in addresses {
        let socket = UdpSocket::bind((*address, TARGET_PORT))?;
        thread::spawn(move || datagrams(&socket));
    }
    thread::spawn(move || accept(&streams));
    writeln!(io::stdout(), "ready")?;
    loop {
        // The client reports its own failures.
        let _ = short.accept().and_then(|(stream, _)| answer(stream));
    }
}

/// One byte for one byte, and the end.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    stream.write_all(&byte)
}

fn accept(listener: &TcpListener) {
    loop {
        if let Ok((stream, _)) = listener.accept() {
            thread::spawn(move || converse(stream));
        }
    }
}

fn converse(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut byte = [0];
    stream.read_exact(&mut byte)?;
    if byte[0] == FLOOD {
        let block = vec![0_u8; 64 * 1024];
        loop {
            stream.write_all(&block)?;
        }
    }
    while stream.read(&mut byte)? > 0 {
        stream.write_all(&byte)?;
    }
    Ok(())
}

fn datagrams(socket: &UdpSocket) {
    let mut buffer = [0; 64];
    loop {
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], from);
        }
    }
}

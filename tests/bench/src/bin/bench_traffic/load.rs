//! The load generator: does one thing at a time, so that every operation's whole way is within its time.

use std::{
    io::{self, BufRead, Read, Write},
    net::{Ipv4Addr, SocketAddrV4, TcpStream, UdpSocket},
    os::fd::{AsRawFd, OwnedFd},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket,
        sockopt::{ReceiveTimeout, SendTimeout},
    },
    time::{TimeVal, TimeValLike},
};

use crate::wire::{ECHO, FLOOD, Kind, Order, Outcome};

/// How long anything may take before the slice has failed. A lost packet is sent again after 200 ms at least.
const PATIENCE: i64 = 2;
/// Every so many operations one is timed. Odd, so that it is not always the same endpoint.
const TIMED: u64 = 3;

/// Follows the orders on standard input, one a line, until there are no more; prints the result of each.
pub(crate) fn follow_orders() -> io::Result<()> {
    for line in io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        let outcome = Load::new(&order).run();
        writeln!(io::stdout(), "{}", serde_json::to_string(&outcome)?)?;
    }
    Ok(())
}

struct Load<'a> {
    order: &'a Order,
    outcome: Outcome,
    start: Instant,
    end: Instant,
}

impl<'a> Load<'a> {
    fn new(order: &'a Order) -> Self {
        let start = Instant::now();
        let end = start + Duration::from_millis(order.milliseconds);
        Self { order, outcome: Outcome::default(), start, end }
    }

    fn run(mut self) -> Outcome {
        let result = match self.order.kind {
            Kind::Short => self.repeat(Self::short),
            Kind::Datagram => self.repeat(Self::datagram),
            Kind::KeepAlive => self.keep_alive(),
            Kind::Datagrams => self.datagrams(),
            Kind::Bulk => self.bulk(),
        };
        self.outcome.error = result.err().map(|error| error.to_string());
        self.outcome.nanoseconds = self.start.elapsed().as_nanos() as u64;
        self.outcome
    }

    /// The next target.
    fn target(&self) -> SocketAddrV4 {
        let to = &self.order.to;
        SocketAddrV4::new(to[self.outcome.done as usize % to.len()], self.order.port)
    }

    fn repeat(&mut self, mut operation: impl FnMut(&mut Self) -> io::Result<()>) -> io::Result<()> {
        while Instant::now() < self.end {
            operation(self)?;
            self.outcome.done += 1;
        }
        Ok(())
    }

    fn short(&mut self) -> io::Result<()> {
        let begin = Instant::now();
        let mut stream = tcp(self.target())?;
        if self.outcome.done.is_multiple_of(TIMED) {
            self.outcome.connects.push(begin.elapsed().as_nanos() as u64);
        }
        stream.write_all(&[1])?;
        let mut byte = [0];
        stream.read_exact(&mut byte)
    }

    fn datagram(&mut self) -> io::Result<()> {
        let socket = udp()?;
        socket.connect(self.target())?;
        socket.send(&[1])?;
        socket.recv(&mut [0; 2]).map(drop)
    }

    fn keep_alive(&mut self) -> io::Result<()> {
        let mut stream = tcp(self.target())?;
        stream.set_nodelay(true)?;
        stream.write_all(&[ECHO])?;
        // Before the first answer the server may still be starting its thread.
        let mut byte = [1];
        stream.write_all(&byte)?;
        stream.read_exact(&mut byte)?;
        self.restart();
        self.repeat(|_| {
            stream.write_all(&byte)?;
            stream.read_exact(&mut byte)
        })
    }

    fn datagrams(&mut self) -> io::Result<()> {
        let socket = udp()?;
        let target = self.target();
        self.repeat(|_| {
            socket.send_to(&[1], target)?;
            socket.recv(&mut [0; 2]).map(drop)
        })
    }

    fn bulk(&mut self) -> io::Result<()> {
        let mut stream = tcp(self.target())?;
        stream.write_all(&[FLOOD])?;
        let mut block = vec![0; 256 * 1024];
        stream.read_exact(&mut block)?;
        self.restart();
        while Instant::now() < self.end {
            self.outcome.done += stream.read(&mut block)? as u64;
        }
        Ok(())
    }

    /// The time counts from now.
    fn restart(&mut self) {
        let now = Instant::now();
        self.end = now + (self.end - self.start);
        self.start = now;
    }
}

/// A connection that gives up in time.
fn tcp(to: SocketAddrV4) -> io::Result<TcpStream> {
    let socket: OwnedFd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    setsockopt(&socket, SendTimeout, &TimeVal::seconds(PATIENCE))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    connect(socket.as_raw_fd(), &SockaddrIn::from(to))?;
    Ok(TcpStream::from(socket))
}

fn udp() -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    setsockopt(&socket, ReceiveTimeout, &TimeVal::seconds(PATIENCE))?;
    Ok(socket)
}

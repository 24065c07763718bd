//! The other side of every conversation: a server that replies with the client's address, and clients that print what they got.
#![forbid(unsafe_code)]

mod bulk;
mod client;
mod datagram;
mod many;
mod mesh;
mod parked;
mod ping;
mod server;

use std::{
    io,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use clap::{Args, Parser, Subcommand, ValueEnum};
use nix::{
    sys::prctl::set_dumpable,
    unistd::{Gid, Uid, setgid, setuid},
};

use datagram::PathMtu;

#[derive(Parser)]
#[command(about = "A server that replies with the client's address, and clients that print their results")]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Be this user first, as a pod's process mostly is one that is not root.
    #[arg(long, global = true)]
    user: Option<u32>,
}

#[derive(Subcommand)]
enum Command {
    /// Serve TCP and UDP; print `ready` once listening.
    Serve {
        /// The server's name for itself.
        #[arg(long)]
        name: String,
        /// Address to listen at (may be repeated).
        #[arg(long, required = true)]
        listen: Vec<SocketAddr>,
    },
    /// Make requests, until one fails, and print a line of JSON for each.
    Call {
        #[command(flatten)]
        target: Target,
        /// How many.
        #[arg(long, default_value_t = 1)]
        count: usize,
    },
    /// Make requests until SIGTERM; print a summary of all so far after each, and at the end.
    Load {
        #[command(flatten)]
        target: Target,
        /// Pause after each.
        #[arg(long, default_value_t = 5)]
        interval_ms: u64,
    },
    /// Make requests from many sockets at once, each from a new one, and print a summary of all.
    Many {
        #[command(flatten)]
        target: Target,
        /// How many; without it until the time has passed.
        #[arg(long, default_value_t = u64::MAX)]
        count: u64,
        /// For how long at most.
        #[arg(long, default_value_t = 60_000)]
        milliseconds: u64,
        /// How many at a time.
        #[arg(long, default_value_t = 16)]
        parallel: usize,
        /// Have the server close TCP connections first (default: the client does).
        #[arg(long)]
        server_closes: bool,
    },
    /// Send bytes over TCP and get as many back, both compared.
    Bulk {
        #[command(flatten)]
        target: Target,
        /// How many.
        #[arg(long)]
        bytes: u64,
    },
    /// Send a datagram of a size until it is answered, with its content, and print a line of JSON.
    Datagram {
        #[command(flatten)]
        target: Target,
        /// How to treat the path's MTU.
        #[arg(long, value_enum, default_value_t = PathMtu::Want)]
        path_mtu: PathMtu,
        /// How often to try.
        #[arg(long, default_value_t = 1)]
        attempts: usize,
    },
    /// Send a request to each address by one unconnected UDP socket, print `sent`, and receive after a line of input.
    Park {
        /// A server (may be repeated).
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        /// Connect the socket to the first one before.
        #[arg(long)]
        connected: bool,
        /// How long to wait for a reply.
        #[arg(long, default_value_t = 3000)]
        timeout_ms: u64,
    },
    /// Open many unconnected UDP sockets, and send a datagram to each address by each.
    Sockets {
        /// A server (may be repeated).
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        /// How many sockets.
        #[arg(long)]
        count: usize,
    },
    /// Connect many UDP sockets, round-robin to the addresses, and check that each shows its address as its peer; print `sent`. Check
    /// again after a line of input.
    Connected {
        /// A server (may be repeated).
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        /// How many sockets.
        #[arg(long)]
        count: usize,
    },
    /// Connect IPv6 sockets to an IPv6 address and then to an IPv4 one, and make them sockets of IPv4 (`IPV6_ADDRFORM`); print `sent`.
    /// Close them after a line of input.
    Converted {
        /// The IPv6 address, and the IPv4 one.
        #[arg(long, required = true)]
        to: Vec<SocketAddr>,
        /// How many sockets.
        #[arg(long)]
        count: usize,
    },
    /// Be the proxy of a service mesh; print `ready` once listening.
    Mesh {
        /// Where redirected connections come.
        #[arg(long)]
        port: u16,
    },
    /// Send one echo request; print `true` if it is answered, `false` if not.
    Ping {
        /// The address to ping.
        #[arg(long)]
        to: IpAddr,
        /// How long to wait for an answer.
        #[arg(long, default_value_t = 1000)]
        timeout_ms: u64,
        /// Bytes after the ICMP header.
        #[arg(long, default_value_t = 0)]
        size: usize,
    },
}

#[derive(Args)]
struct Target {
    /// The server.
    #[arg(long)]
    to: SocketAddr,
    /// Over which protocol.
    #[arg(long, value_enum, default_value_t = Protocol::Tcp)]
    protocol: Protocol,
    /// connect() the UDP socket.
    #[arg(long)]
    connected_udp: bool,
    /// Use an IPv6 socket for an IPv4 server.
    #[arg(long)]
    v4_mapped: bool,
    /// One socket for all requests.
    #[arg(long)]
    keepalive: bool,
    /// Bind the socket first.
    #[arg(long)]
    bind: Option<SocketAddr>,
    /// Bind the socket to a network interface (SO_BINDTODEVICE).
    #[arg(long)]
    device: Option<String>,

    /// Binds the socket of each request to a separate port, from this one on.
    #[arg(long)]
    first_port: Option<u16>,
    /// Makes requests at least this long, in bytes.
    #[arg(long, default_value_t = 0)]
    size: usize,
    /// How long to wait for an answer.
    #[arg(long, default_value_t = 3000)]
    timeout_ms: u64,
}

impl Target {
    fn timeout(&self) -> Duration {
        Duration::from_millis(self.timeout_ms)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Protocol {
    Tcp,
    Udp,
}

/// As a container runtime does it: the process belongs to the user in /proc as well.
fn become_user(user: u32) -> io::Result<()> {
    setgid(Gid::from_raw(user))?;
    setuid(Uid::from_raw(user))?;
    set_dumpable(true)?;
    Ok(())
}

fn main() -> io::Result<()> {
    let Cli { command, user } = Cli::parse();
    user.map_or(Ok(()), become_user)?;
    match command {
        Command::Serve { name, listen } => server::serve(&name, &listen),
        Command::Call { target, count } => client::call(&target, count),
        Command::Load { target, interval_ms } => client::load(&target, Duration::from_millis(interval_ms)),
        Command::Bulk { target, bytes } => bulk::client(&target, bytes),
        Command::Datagram { target, path_mtu, attempts } => datagram::datagram(&target, path_mtu, attempts),
        Command::Many { target, count, milliseconds, parallel, server_closes } => {
            let limit = many::Limit { count, time: Duration::from_millis(milliseconds) };
            many::many(&target, &limit, parallel, server_closes)
        }
        Command::Mesh { port } => mesh::mesh(port),
        Command::Ping { to, timeout_ms, size } => ping::ping(to, Duration::from_millis(timeout_ms), size),
        Command::Park { to, connected, timeout_ms } => {
            parked::park(&to, connected, Duration::from_millis(timeout_ms))
        }
        Command::Sockets { to, count } => parked::sockets(&to, count),
        Command::Connected { to, count } => parked::connected(&to, count),
        Command::Converted { to, count } => parked::converted(&to, count),
    }
}

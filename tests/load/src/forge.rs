//! Forged packets: floods of SYNs, and resets.

use std::{
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd as _, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use nix::{
    errno::Errno,
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket},
};

use proxy_harness::cluster::{
    Cluster,
    segment::{RST, SYN, Segment},
};

/// RFC 2544's range for benchmarks: no machine of a cluster has such addresses.
const SOURCES: &str = "198.18.0.0/16";

/// Between looks at the clock.
const STEP: Duration = Duration::from_micros(500);
/// How far behind its rate a flood may be before it gives up catching up.
const MOST_BEHIND: Duration = Duration::from_millis(20);

/// Lets replies to forged sources end at the client's machine, in silence, as they end in a large network.
///
/// # Errors
/// If the route cannot be made.
pub fn route_forged_sources(cluster: &Cluster) -> Result<()> {
    cluster.fabric.ip(&[format!("route replace {SOURCES} via {}", cluster.client.v4)])
}

/// How large a flood was.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flood {
    /// How many packets.
    pub sent: u64,
    /// In which time.
    pub elapsed: Duration,
}

impl Flood {
    /// Packets per second; 0 if there were none.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.elapsed.as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

/// Sends raw packets, headers included.
#[derive(Debug)]
pub struct Forger {
    raw: OwnedFd,
}

impl Forger {
    /// In the network namespace of this thread.
    ///
    /// # Errors
    /// Without the right to open raw sockets.
    pub fn new() -> Result<Self> {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw);
        Ok(Self { raw: raw.context("cannot open a raw socket")? })
    }

    /// Sends this many SYNs per second, or as many as possible, to these targets in turn, until it is stopped. Each
    /// comes from another address and port, as long as they suffice.
    ///
    /// # Errors
    /// If a packet cannot be sent for another reason than a full queue.
    pub fn flood(&self, to: &[SocketAddrV4], per_second: u32, stop: &AtomicBool) -> Result<Flood> {
        let begin = Instant::now();
        let (mut sent, mut late) = (0_u64, Duration::ZERO);
        let interval = Duration::from_secs(1) / per_second.max(1);
        while !stop.load(Ordering::Relaxed) {
            let due = begin + late + interval.mul_f64(sent as f64);
            let now = Instant::now();
            if due > now {
                thread::sleep((due - now).max(STEP));
                continue;
            }
            if now - due > MOST_BEHIND {
                late += now - due;
            }
            let to = to[sent as usize % to.len()];
            self.send(source(sent), to, (sent as u32).wrapping_mul(0x9e37_79b9), SYN)?;
            sent += 1;
        }
        Ok(Flood { sent, elapsed: begin.elapsed() })
    }

    /// Sends a RST with this sequence number.
    ///
    /// # Errors
    /// If it cannot be sent.
    pub fn reset(&self, from: SocketAddrV4, to: SocketAddrV4, sequence: u32) -> Result<()> {
        self.send(from, to, sequence, RST)
    }

    fn send(&self, from: SocketAddrV4, to: SocketAddrV4, sequence: u32, flags: u8) -> Result<()> {
        let packet = Segment { from, to, seq: sequence, ack: 0, flags }.packet();
        match sendto(self.raw.as_raw_fd(), &packet, &SockaddrIn::from(to), MsgFlags::empty()) {
            // The device's queue is full, as a flood's is.
            Ok(_) | Err(Errno::ENOBUFS) => Ok(()),
            Err(error) => Err(error).with_context(|| format!("cannot send a forged packet to {to}")),
        }
    }
}

/// The source of a flood's packet: all ports of 65,024 hosts in turn, a host after the other.
fn source(number: u64) -> SocketAddrV4 {
    const HOSTS: u64 = 254 * 256;
    const PORTS: u64 = 64_512;
    let (host, round) = (number % HOSTS, number / HOSTS);
    let address = Ipv4Addr::new(198, 18, (host / 254) as u8, 1 + (host % 254) as u8);
    // Ports that are not the same for all hosts of a round.
    SocketAddrV4::new(address, 1024 + ((round + host * 7) % PORTS) as u16)
}

//! TCP segments by hand, and a look at those that come.

use std::{
    io,
    net::{Ipv4Addr, SocketAddrV4},
    os::fd::{AsRawFd, OwnedFd},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, setsockopt,
            socket, sockopt::ReceiveTimeout,
        },
        time::{TimeVal, TimeValLike},
    },
};

use super::{Netns, until};

/// TCP flags.
pub const FIN: u8 = 1;
/// TCP flags.
pub const SYN: u8 = 2;
/// TCP flags.
pub const RST: u8 = 4;
/// TCP flags.
pub const ACK: u8 = 16;

/// The fields of an IPv4 TCP segment without data that tests choose or look at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Source.
    pub from: SocketAddrV4,
    /// Destination.
    pub to: SocketAddrV4,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgement number.
    pub ack: u32,
    /// [`SYN`], [`ACK`], [`FIN`], [`RST`].
    pub flags: u8,
}

impl Segment {
    /// Sends it from a namespace, with any source address.
    pub fn send(&self, netns: &Netns) -> Result<()> {
        let to = SockaddrIn::from(self.to);
        netns.run(|| {
            // With this protocol the packets are whole, headers included.
            let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Raw)?;
            sendto(raw.as_raw_fd(), &self.packet(), &to, MsgFlags::empty())
                .with_context(|| format!("cannot send {self:?}"))?;
            Ok(())
        })
    }

    /// The packet, as a raw socket takes it. The kernel fills in length and checksum of the IP header.
    pub fn packet(&self) -> [u8; 40] {
        let mut packet = [0; 40];
        packet[0] = 0x45;
        packet[8] = 64;
        packet[9] = 6;
        packet[12..16].copy_from_slice(&self.from.ip().octets());
        packet[16..20].copy_from_slice(&self.to.ip().octets());
        packet[20..22].copy_from_slice(&self.from.port().to_be_bytes());
        packet[22..24].copy_from_slice(&self.to.port().to_be_bytes());
        packet[24..28].copy_from_slice(&self.seq.to_be_bytes());
        packet[28..32].copy_from_slice(&self.ack.to_be_bytes());
        packet[32] = 5 << 4;
        packet[33] = self.flags;
        packet[34..36].copy_from_slice(&[0xff, 0xff]);
        // Addresses, ports and flags, with the pseudo header's protocol and length.
        let words = packet[12..].chunks_exact(2);
        let mut sum =
            words.map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>() + 6 + 20;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        packet[36..38].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        packet
    }

    fn parse(packet: &[u8]) -> Option<Self> {
        let header = usize::from(*packet.first()? & 15) * 4;
        let tcp = packet.get(header..header + 20)?;
        let address = |at: usize| {
            let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
            Some(Ipv4Addr::from(octets))
        };
        let port = |at: usize| u16::from_be_bytes([tcp[at], tcp[at + 1]]);
        let number = |at: usize| u32::from_be_bytes([tcp[at], tcp[at + 1], tcp[at + 2], tcp[at + 3]]);
        Some(Self {
            from: SocketAddrV4::new(address(12)?, port(0)),
            to: SocketAddrV4::new(address(16)?, port(2)),
            seq: number(4),
            ack: number(8),
            flags: tcp[13],
        })
    }
}

/// Sees every IPv4 TCP segment that a namespace's own addresses receive from now on, before the stack handles it.
#[derive(Debug)]
pub struct Tap(OwnedFd);

impl Tap {
    /// Starts to look.
    pub fn open(netns: &Netns) -> Result<Self> {
        netns.run(|| {
            let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::Tcp)?;
            setsockopt(&raw, ReceiveTimeout, &TimeVal::milliseconds(20))?;
            Ok(Self(raw))
        })
    }

    /// Waits for a segment.
    pub fn wait(&self, time: Duration, what: &str, is_it: impl Fn(&Segment) -> bool) -> Result<Segment> {
        until(time, what, || Ok(self.next()?.filter(&is_it)))
    }

    /// All segments that came and come, up to the first that is asked for.
    pub fn all_until(
        &self,
        time: Duration,
        what: &str,
        is_last: impl Fn(&Segment) -> bool,
    ) -> Result<Vec<Segment>> {
        let mut all = Vec::new();
        until(time, what, || {
            all.extend(self.next()?);
            Ok(all.last().is_some_and(&is_last).then_some(()))
        })?;
        Ok(all)
    }

    /// The next, if one comes soon.
    fn next(&self) -> io::Result<Option<Segment>> {
        let mut buffer = [0; 65_536];
        match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            Ok(length) => Ok(Segment::parse(&buffer[..length])),
            Err(Errno::EAGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

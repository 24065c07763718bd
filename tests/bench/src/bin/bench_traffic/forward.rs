//! Packets to a nodePort whose backends are on another node: how many a node forwards per second of CPU time.
//!
//! The kernel makes the packets at the node's uplink (live frames of `BPF_PROG_TEST_RUN`), and forwarded packets are
//! dropped where they enter the fabric. So next to nothing is counted but the node.

use std::{
    fs,
    net::{Ipv4Addr, UdpSocket},
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use nix::{
    ifaddrs::getifaddrs,
    net::if_::if_nametoindex,
    time::{ClockId, clock_gettime},
};
use proxy_figures::pin;
use proxy_harness::cluster::{Sink, until};
use proxy_packets::sys::{self, Kind};

use crate::{
    services::Where,
    setup::{Setup, Variant},
    wire::{SERVICE_PORT, TARGET_PORT},
};

/// How many flows there are; a power of two.
pub(crate) const FLOWS: u16 = 1024;
/// The first of their source ports.
const FIRST_PORT: u16 = 40_960;
const UPLINK: &str = "eth0";
/// The uplink's other end.
const FABRIC_PORT: &str = "to-node-1";
/// Packets of one system call.
const BATCH: u32 = 100_000;

/// Packets per second of each variant, in the order of the rounds.
pub(crate) type Rates = Vec<(Variant, Vec<f64>)>;

/// Measures all stands, one after the other, again and again.
pub(crate) fn forward(setups: &[&Setup], cpu: usize, rounds: usize, time: Duration) -> Result<Rates> {
    let forwarders = setups.iter().map(|setup| Forwarder::new(setup, cpu));
    let forwarders = forwarders.collect::<Result<Vec<_>>>()?;
    for forwarder in &forwarders {
        // The flows come into being.
        forwarder.rate(Duration::from_millis(20))?;
    }
    let mut rates: Rates = setups.iter().map(|setup| (setup.variant, Vec::new())).collect();
    for _ in 0..rounds {
        for (forwarder, (_, rates)) in forwarders.iter().zip(&mut rates) {
            rates.push(forwarder.rate(time)?);
        }
    }
    Ok(rates)
}

/// One variant, ready.
struct Forwarder<'s> {
    setup: &'s Setup,
    /// Writes the frame again, and makes a tail call to the program of the device, or passes it to the stack.
    program: OwnedFd,
    _array: Option<OwnedFd>,
    frame: [u8; FRAME],
    cpu: usize,
}

impl<'s> Forwarder<'s> {
    /// Frames are made on this CPU.
    fn new(setup: &'s Setup, cpu: usize) -> Result<Self> {
        let node = setup.cluster.node(0)?;
        let array = if setup.variant == Variant::Xdp {
            let program = xdp_program(&node.bpffs.join("links"))?;
            Some(sys::program_array(program.as_fd())?)
        } else {
            None
        };
        let mac = node.host.netns.run(|| mac_of(UPLINK))?;
        let to = match setup.variant {
            Variant::Direct => (Where::Remote.endpoints().next().context("no endpoint")?, TARGET_PORT),
            _ => (node.host.v4, Where::Remote.node_port(SERVICE_PORT)),
        };
        let frame = frame(mac, setup.cluster.client.v4, to);
        let flags = if array.is_some() { sys::XDP_HAS_FRAGS } else { 0 };
        let program = sys::load_with(Kind::Xdp, &instructions(&frame, array.as_ref()), flags)?;
        let forwarder = Self { setup, program, _array: array, frame, cpu };
        forwarder.find_neighbour()?;
        Ok(forwarder)
    }

    /// Forwards for about this long; packets per second.
    fn rate(&self, time: Duration) -> Result<f64> {
        let fabric = &self.setup.cluster.fabric;
        let sink = match self.setup.variant {
            Variant::Xdp => Sink::xdp(fabric, FABRIC_PORT)?,
            _ => Sink::tc(fabric, FABRIC_PORT)?,
        };
        let node = &self.setup.cluster.node(0)?.host.netns;
        let (sent, spent) = node.run(|| {
            pin(self.cpu)?;
            let uplink = if_nametoindex(UPLINK)?;
            let (begin, before) = (Instant::now(), cpu_time()?);
            let mut sent = 0;
            while begin.elapsed() < time {
                sys::run_live(self.program.as_fd(), &self.frame, uplink, BATCH)?;
                sent += u64::from(BATCH);
            }
            Ok((sent, cpu_time()? - before))
        })?;
        let arrived = sink.packets()?;
        let title = self.setup.variant.title();
        // New flows may be limited for a moment.
        ensure!(arrived * 100 >= sent * 95, "{title}: {arrived} of {sent} packets were forwarded");
        Ok(arrived as f64 / spent.as_secs_f64())
    }

    /// XDP forwards only to neighbours that are known.
    fn find_neighbour(&self) -> Result<()> {
        let next = self.setup.cluster.node(1)?.host.v4;
        self.setup.cluster.node(0)?.host.netns.run(|| {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            // No process listens: ECONNREFUSED shows that the packet arrived.
            socket.connect((next, 9))?;
            until(Duration::from_secs(5), "the other node to be known", || {
                Ok(socket.send(&[0]).is_err().then_some(()))
            })
        })?;
        Ok(())
    }
}

/// CPU time of this thread. Softirqs run in it, all at once; and the kernel's waits around each run do not count.
fn cpu_time() -> Result<Duration> {
    Ok(Duration::from(clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID)?))
}

fn xdp_program(links: &std::path::Path) -> Result<OwnedFd> {
    for entry in fs::read_dir(links).with_context(|| links.display().to_string())? {
        if let Some(program) = sys::xdp_of_link(&entry?.path())? {
            return Ok(program);
        }
    }
    anyhow::bail!("the agent has no XDP program attached")
}

fn mac_of(device: &str) -> Result<[u8; 6]> {
    let addresses = getifaddrs()?.filter(|address| address.interface_name == device);
    let mut macs = addresses.filter_map(|address| address.address?.as_link_addr()?.addr());
    macs.next().with_context(|| format!("{device} has no address"))
}

/// Ethernet, IPv4, UDP, and as much as there must be in Ethernet's smallest frame.
pub(crate) const FRAME: usize = 64;
const SOURCE_PORT: usize = 14 + 20;
const PAYLOAD: usize = SOURCE_PORT + 8;

/// A datagram from the first source port. The checksum holds for all of them, because the payload begins with bytes that
/// compensate the source port.
fn frame(to_mac: [u8; 6], from: Ipv4Addr, to: (Ipv4Addr, u16)) -> [u8; FRAME] {
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&to_mac);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 1, 8, 0]);
    let length = (FRAME - 14) as u16;
    let mut put = |at: usize, word: u16| frame[at..at + 2].copy_from_slice(&word.to_be_bytes());
    put(14, 0x4500);
    put(16, length);
    put(20, 0x4000);
    put(22, 0x4011);
    let [source, destination] = [from, to.0].map(|address| {
        let bits = u32::from(address);
        [(bits >> 16) as u16, bits as u16]
    });
    let addresses = [source[0], source[1], destination[0], destination[1]];
    for (at, word) in (26..).step_by(2).zip(addresses) {
        put(at, word);
    }
    put(24, checksum([0x4500, length, 0x4000, 0x4011].into_iter().chain(addresses)));
    put(SOURCE_PORT, FIRST_PORT);
    put(SOURCE_PORT + 2, to.1);
    put(SOURCE_PORT + 4, length - 20);
    put(PAYLOAD, !FIRST_PORT);
    let pseudo = [17, length - 20].into_iter().chain(addresses);
    put(SOURCE_PORT + 6, checksum(pseudo.chain([0xffff, to.1, length - 20])));
    frame
}

/// RFC 1071.
fn checksum(words: impl Iterator<Item = u16>) -> u16 {
    let mut sum: u32 = words.map(u32::from).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_IMMEDIATE: u8 = 0xb7;
const AND_IMMEDIATE: u8 = 0x57;
const ADD_IMMEDIATE: u8 = 0x07;
const XOR_IMMEDIATE: u8 = 0xa7;
const LOAD_IMMEDIATE: u8 = 0x18;
const TO_BIG_ENDIAN: u8 = 0xdc;
const STORE_DOUBLE: u8 = 0x7b;
const STORE_HALF: u8 = 0x6b;
const JUMP_IF_GREATER: u8 = 0x2d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// One instruction: operation, destination and source register, offset, immediate.
fn op(code: u8, dst: u64, src: u64, offset: i16, immediate: i32) -> u64 {
    u64::from(code)
        | dst << 8
        | src << 12
        | u64::from(offset as u16) << 16
        | u64::from(immediate as u32) << 32
}

/// An XDP program. The kernel uses frames again as programs left them, so it writes the headers again, with a random
/// source port; then it makes a tail call to the program in the array, or passes.
fn instructions(frame: &[u8; FRAME], array: Option<&OwnedFd>) -> Vec<u64> {
    const GET_PRANDOM_U32: i32 = 7;
    const TAIL_CALL: i32 = 12;
    const PSEUDO_MAP_FD: u64 = 1;
    const PASS: i32 = 2;
    let mut code = vec![
        op(MOVE, 6, 1, 0, 0),
        op(CALL, 0, 0, 0, GET_PRANDOM_U32),
        op(MOVE, 7, 0, 0, 0),
        op(AND_IMMEDIATE, 7, 0, 0, i32::from(FLOWS - 1)),
        op(ADD_IMMEDIATE, 7, 0, 0, i32::from(FIRST_PORT)),
        op(TO_BIG_ENDIAN, 7, 0, 0, 16),
        op(LOAD_WORD, 2, 6, 0, 0), // data
        op(LOAD_WORD, 3, 6, 4, 0), // data_end
        op(MOVE, 4, 2, 0, 0),
        op(ADD_IMMEDIATE, 4, 0, 0, FRAME as i32),
    ];
    let check = code.len();
    code.push(0);
    for (at, chunk) in (0..).step_by(8).zip(frame[..PAYLOAD + 6].chunks_exact(8)) {
        let half = |at: usize| i32::from_le_bytes([chunk[at], chunk[at + 1], chunk[at + 2], chunk[at + 3]]);
        code.extend([op(LOAD_IMMEDIATE, 5, 0, 0, half(0)), op(0, 0, 0, 0, half(4))]);
        code.push(op(STORE_DOUBLE, 2, 5, at, 0));
    }
    code.push(op(STORE_HALF, 2, 7, SOURCE_PORT as i16, 0));
    code.push(op(XOR_IMMEDIATE, 7, 0, 0, 0xffff));
    code.push(op(STORE_HALF, 2, 7, PAYLOAD as i16, 0));
    code[check] = op(JUMP_IF_GREATER, 4, 3, (code.len() - check - 1) as i16, 0);
    if let Some(array) = array {
        code.push(op(MOVE, 1, 6, 0, 0));
        code.extend([op(LOAD_IMMEDIATE, 2, PSEUDO_MAP_FD, 0, array.as_raw_fd()), 0]);
        code.push(op(MOVE_IMMEDIATE, 3, 0, 0, 0));
        code.push(op(CALL, 0, 0, 0, TAIL_CALL));
    }
    code.extend([op(MOVE_IMMEDIATE, 0, 0, 0, PASS), op(EXIT, 0, 0, 0, 0)]);
    code
}

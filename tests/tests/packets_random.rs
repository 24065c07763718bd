//! The programs in the kernel against the core run natively over the same tables: same packets, same answers. Needs root.

use anyhow::{Context as _, Result};
use proxy_common::{
    decide::{self, RouteKind, Translation, Verdict, memory::MemoryTables},
    layout::flow::Mac,
    packet::{ETHERNET, Packet},
};
use proxy_tests::packets::{
    Device, Frame, Host, Kernel, Node, Options, PacketFamily, SNAT, Transport, same_frame, sys::Kind,
};

const PACKETS: usize = 10_000;
/// Reproduces a run.
const SEED: u64 = 0x5eed_0000_0000_0001;

#[test]
fn packet_random_v4() -> Result<()> {
    let Node { kernel, v4, .. } = Node::new(Options::default())?;
    compare(&kernel, &v4)
}

#[test]
fn packet_random_v6() -> Result<()> {
    let Node { kernel, v6, .. } = Node::new(Options::default())?;
    compare(&kernel, &v6)
}

/// A generator of random numbers (xorshift), good enough to choose packets.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % limit
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len())]
    }
}

const PROGRAMS: [(&str, Device); 7] = [
    ("pod_ingress", Device::PodA),
    ("pod_ingress", Device::PodB),
    ("pod_ingress", Device::PortC),
    ("pod_egress", Device::PodA),
    ("uplink_ingress", Device::Uplink),
    ("uplink_xdp", Device::Uplink),
    ("uplink_egress", Device::Uplink),
];

/// A frame as each side sees it: they differ in the source ports that each chose by chance.
#[derive(Clone)]
struct Both {
    kernel: Frame,
    native: Frame,
}

fn request<F: PacketFamily>(random: &mut Random) -> Frame {
    const SOURCES: [Host; 5] = [Host::PodA, Host::PodB, Host::PodC, Host::Client, Host::Remote];
    const DESTINATIONS: [(Host, u16); 16] = [
        (Host::LocalVip, 80),
        (Host::RemoteVip, 80),
        (Host::HairpinVip, 80),
        (Host::BridgeVip, 80),
        (Host::UnresolvedVip, 80),
        (Host::EmptyVip, 80),
        (Host::OddVip, 80),
        (Host::LocalVip, 81),
        (Host::Node, 30_001),
        (Host::Node, 30_002),
        (Host::Node, 30_005),
        (Host::Node, 30_006),
        (Host::Node, 22),
        (Host::OtherNode, 30_001),
        (Host::Client, 443),
        (Host::PodB, 8080),
    ];
    let transport = random.of(&[
        Transport::Tcp(2),
        Transport::Tcp(16),
        Transport::Tcp(17),
        Transport::Tcp(4),
        Transport::Tcp(18),
        Transport::Udp,
    ]);
    let src = random.of(&SOURCES).at::<F>(random.of(&[40_000, 40_001, 0xffff]));
    let (host, port) = random.of(&DESTINATIONS);
    let mut frame = Frame::new(src, host.at::<F>(port), transport);
    frame.hop_limit = random.of(&[64, 64, 64, 64, 2, 1]);
    frame.payload = vec![random.below(256) as u8; random.below(40)];
    frame.options = if F::IS_V4 { random.of(&[0, 0, 4, 40]) } else { 0 };
    frame
}

fn compare<F: PacketFamily>(kernel: &Kernel, native: &MemoryTables<F>) -> Result<()> {
    let mut random = Random(SEED);
    let mut sent: Vec<Both> = Vec::new();
    let mut verdicts = std::collections::HashMap::new();
    for number in 0..PACKETS {
        let (program, device) = random.of(&PROGRAMS);
        let both = if sent.is_empty() || random.below(2) == 0 {
            let frame = request::<F>(&mut random);
            Both { kernel: frame.clone(), native: frame }
        } else {
            let Both { mut kernel, mut native } = sent[random.below(sent.len())].clone();
            (kernel, native) = (kernel.reply(), native.reply());
            if let Transport::Tcp(_) = kernel.transport {
                kernel.transport = Transport::Tcp(random.of(&[18, 16, 16, 17, 4]));
            }
            kernel.hop_limit = 60;
            (native.transport, native.hop_limit) = (kernel.transport, 60);
            Both { kernel, native }
        };
        let what = || format!("packet {number}: {program} at {device:?}: {:?}", both.kernel);
        let input = both.kernel.build()?;
        let run = kernel.run(program, &input, device.index()?, 0).with_context(what)?;
        let (verdict, out) = natively(native, program, device.index()?, &both.native);
        *verdicts.entry(verdict as u32).or_insert(0) += 1;

        let is_xdp = Kernel::kind(program) == Kind::Xdp;
        let (pass, drop) = if is_xdp { (2, 1) } else { (u32::MAX, 2) };
        if verdict == Verdict::Drop {
            assert_eq!(run.result, drop, "{}", what());
            continue;
        }
        // XDP sends only back by the device itself, and knows neither bridges nor hairpin.
        let handed_over = is_xdp
            && match verdict {
                Verdict::Forward => {
                    out.route.kind != RouteKind::Neighbour || out.route.ifindex != device.index()?
                }
                Verdict::Switch | Verdict::Return => true,
                _ => false,
            };
        if verdict == Verdict::Reject && !is_xdp {
            // What is sent back has tests of its own. Too many at once are dropped.
            assert!([7, 2].contains(&run.result), "{}: {}", what(), run.result);
            continue;
        }
        if matches!(verdict, Verdict::Pass | Verdict::Reject) || handed_over {
            assert_eq!((run.result, &run.packet), (pass, &input), "{}", what());
            continue;
        }
        let result = match verdict {
            Verdict::Forward if is_xdp => 3,
            Verdict::Forward | Verdict::Return => 7,
            _ => pass,
        };
        assert_eq!(run.result, result, "{}: natively {verdict:?}", what());

        // What natively would be sent, with the ports that the kernel chose.
        let (src, dst) = F::ends(&out.to);
        let expected = both.native.between(src, dst);
        let mut by_kernel = expected.clone();
        let at = expected.transport_offset();
        let port = u16::from_be_bytes([run.packet[at], run.packet[at + 1]]);
        if SNAT.contains(&src.port()) {
            assert!(SNAT.contains(&port), "{}: source port {port}", what());
            by_kernel.src.set_port(port);
        }
        match verdict {
            Verdict::Forward => {
                by_kernel.hop_limit -= 1;
                if is_xdp {
                    by_kernel = by_kernel.with_macs(bytes(out.route.to), bytes(out.route.from));
                }
            }
            Verdict::Return => by_kernel = by_kernel.clone().with_macs(by_kernel.from, by_kernel.to),
            Verdict::Switch => by_kernel.to = bytes(out.mac),
            _ => {}
        }
        assert!(
            same_frame(&by_kernel.build()?, &run.packet),
            "{}: natively {verdict:?} {by_kernel:?}\n{:02x?}",
            what(),
            run.packet
        );
        by_kernel.hop_limit = 64;
        let plain = Frame { to: both.kernel.to, from: both.kernel.from, ..by_kernel };
        sent.push(Both { native: plain.between(src, dst), kernel: plain });
    }
    assert_eq!(kernel.flows::<F>()?.len(), native.flows.borrow().len(), "flow entries");
    // Every verdict was met: pass, translate, forward, switch, return, reject, drop.
    assert_eq!(verdicts.len(), 7, "{verdicts:?}");
    Ok(())
}

fn natively<F: PacketFamily>(
    tables: &MemoryTables<F>,
    program: &str,
    ifindex: u32,
    frame: &Frame,
) -> (Verdict, Translation<F>) {
    let packet = Packet {
        tuple: F::tuple(frame.src, frame.dst),
        protocol: frame.transport.protocol(),
        tcp_flags: frame.transport.flags(),
        hop_limit: frame.hop_limit,
        transport: frame.transport_offset() - ETHERNET,
        follows: false,
    };
    let mut out = Translation::default();
    let verdict = match program {
        "pod_ingress" => decide::from_pod(tables, &packet, ifindex, &mut out),
        "uplink_ingress" | "uplink_xdp" => decide::from_uplink(tables, &packet, ifindex, &mut out),
        _ => decide::to_client(tables, &packet, &mut out),
    };
    (verdict, out)
}

fn bytes(mac: Mac) -> [u8; 6] {
    let words = mac.0.map(u16::to_ne_bytes);
    [words[0][0], words[0][1], words[1][0], words[1][1], words[2][0], words[2][1]]
}

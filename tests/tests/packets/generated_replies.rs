//! Packets that the programs reply to or drop by design, and clients that keep their backend, on single packets. Needs root.

use anyhow::{Context as _, Result};
use etherparse::{
    Icmpv4Type, Icmpv6Type, PacketBuilder, icmpv4::DestUnreachableHeader, icmpv6::DestUnreachableCode,
};
use proxy_common::layout::{
    counter::Counter,
    frontend::{FRONTEND_SOURCE_RANGES, FrontendKey, Target},
    id::Id,
    set::{BackendSet, SetPolicy},
};
use proxy_packets::{
    CLIENT_ISN, Device, Frame, Host, Kernel, Node, Options, PacketFamily, Transport, checksums_are_valid,
    for_both_families,
    helpers::{ACK, FIN, NEXT, NULL, REDIRECT, RST, SHOT, SYN, SYN_ACK, XDP_PASS},
    same_frame,
};

for_both_families! {
    packet_rejected_with_port_unreachable
    packet_rejected_with_reset
    packet_rejects_are_limited
    packet_for_another_host_is_left_alone
    packet_ping_is_answered
    packet_that_would_leave_for_a_service_address
    packet_without_local_endpoints_is_dropped
    packet_from_a_denied_source_is_dropped
    packet_affinity_keeps_the_backend
    packet_of_a_removed_endpoint_is_reset_on_demand
    packet_sctp_keeps_its_checksum
}

fn frame<F: PacketFamily>(src: (Host, u16), dst: (Host, u16), transport: Transport) -> Frame {
    Frame::new(src.0.at::<F>(src.1), dst.0.at::<F>(dst.1), transport)
}

/// The reply as a host makes it: from where the packet was sent to, quoting its headers.
fn port_unreachable(to: &Frame) -> Result<Vec<u8>> {
    let bytes = to.build()?;
    let transport = to.transport_offset();
    let mut quote = bytes[14..if to.src.is_ipv4() { 34 } else { 54 }].to_vec();
    if to.src.is_ipv4() {
        quote[0] = 0x45;
    }
    quote.extend(&bytes[transport..transport + 8]);
    let mut answer = Vec::new();
    let builder = PacketBuilder::ethernet2(to.to, to.from);
    match (to.src.ip(), to.dst.ip()) {
        (std::net::IpAddr::V4(src), std::net::IpAddr::V4(dst)) => builder
            .ipv4(dst.octets(), src.octets(), 64)
            .icmpv4(Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::Port))
            .write(&mut answer, &quote)?,
        (std::net::IpAddr::V6(src), std::net::IpAddr::V6(dst)) => builder
            .ipv6(dst.octets(), src.octets(), 64)
            .icmpv6(Icmpv6Type::DestinationUnreachable(DestUnreachableCode::Port))
            .write(&mut answer, &quote)?,
        _ => anyhow::bail!("two families"),
    }
    Ok(answer)
}

/// Runs a program on a frame and compares the output.
#[track_caller]
fn gives(
    kernel: &Kernel,
    program: &str,
    device: Device,
    input: &Frame,
    result: u32,
    expected: &[u8],
) -> Result<()> {
    let run = kernel.run(program, &input.build()?, device.index()?, 0)?;
    assert_eq!(run.result, result, "result of {program} on {input:?}");
    if result != SHOT {
        // Ethernet frames are not shorter than this; etherparse sets "don't fragment".
        let mut got = run.packet.clone();
        if expected.len() == got.len() && got.len() > 21 && got[12..14] == [8, 0] && got[20..22] == [0, 0] {
            got[20] = expected[20];
            got[24..26].copy_from_slice(&expected[24..26]);
            assert!(checksums_are_valid(&run.packet), "{program}: {:02x?}", run.packet);
        }
        assert!(same_frame(expected, &got), "{program} on {input:?}\n{expected:02x?}\n{got:02x?}");
    }
    Ok(())
}

fn packet_rejected_with_port_unreachable<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut refused = 0;
    for transport in [SYN, Transport::Udp, Transport::Sctp(1)] {
        for options in if F::IS_V4 { vec![0, 12] } else { vec![0] } {
            for (program, device, src, dst) in [
                ("pod_ingress", Device::PodA, (Host::PodA, 40_000), (Host::EmptyVip, 80)),
                ("pod_ingress", Device::PodA, (Host::PodA, 40_000), (Host::Node, 30_006)),
                ("uplink_ingress", Device::Uplink, (Host::Client, 50_000), (Host::Node, 30_006)),
                // A port that the service does not have.
                ("pod_ingress", Device::PodA, (Host::PodA, 40_000), (Host::LocalVip, 81)),
            ] {
                let mut asked = frame::<F>(src, dst, transport);
                asked.options = options;
                gives(&kernel, program, device, &asked, REDIRECT, &port_unreachable(&asked)?)?;
                refused += 1;
            }
        }
    }
    assert_eq!(kernel.counter(Counter::RejectSent)?, refused);
    assert_eq!(kernel.counter(Counter::UndefinedPort)?, refused / 4);
    assert_eq!(kernel.counter(Counter::NoEndpoints)?, refused / 4 * 3);
    // XDP leaves it to tc, which counts it.
    let asked = frame::<F>((Host::Client, 50_000), (Host::Node, 30_006), SYN);
    for program in kernel.possible(&["uplink_xdp"])? {
        gives(&kernel, program, Device::Uplink, &asked, XDP_PASS, &asked.build()?)?;
    }
    assert_eq!(kernel.counter(Counter::NoEndpoints)?, refused / 4 * 3);
    // From outside, the other ports of a cluster IP are not the proxy's.
    let asked = frame::<F>((Host::Client, 50_000), (Host::LocalVip, 81), SYN);
    gives(&kernel, "uplink_ingress", Device::Uplink, &asked, NEXT, &asked.build()?)?;
    assert!(kernel.flows::<F>()?.is_empty());
    Ok(())
}

/// Sequence, acknowledgement and flags of a TCP frame.
fn numbers(bytes: &[u8]) -> (u32, u32, u8) {
    let tcp = if bytes[12..14] == [8, 0] { 34 } else { 54 };
    let word = |at: usize| u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    (word(tcp + 4), word(tcp + 8), bytes[tcp + 13])
}

fn packet_rejected_with_reset<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options { reject_with_reset: true, ..Options::default() })?;
    let asked = |transport| frame::<F>((Host::PodA, 40_000), (Host::EmptyVip, 80), transport);
    for (transport, expected) in [SYN, Transport::Tcp(10)].map(|syn| (syn, (0, CLIENT_ISN + 1, 20))) {
        let run = kernel.run("pod_ingress", &asked(transport).build()?, Device::PodA.index()?, 0)?;
        assert_eq!(run.result, REDIRECT);
        assert_eq!(numbers(&run.packet), expected);
        assert!(checksums_are_valid(&run.packet), "{:02x?}", run.packet);
        let reply = asked(transport).reply();
        let ports = [reply.src.port(), reply.dst.port()].map(u16::to_be_bytes).concat();
        let header = reply.transport_offset();
        assert_eq!((run.packet.len(), &run.packet[header..header + 4]), (header + 20, &ports[..]));
        let macs = [reply.from, reply.to].concat();
        assert_eq!(run.packet[..12], macs);
    }
    // A packet that opens nothing gets no reply, and UDP is rejected as ever.
    for transport in [ACK, RST, FIN, SYN_ACK, NULL] {
        let asked = asked(transport);
        gives(&kernel, "pod_ingress", Device::PodA, &asked, NEXT, &asked.build()?)?;
    }
    let asked = asked(Transport::Udp);
    gives(&kernel, "pod_ingress", Device::PodA, &asked, REDIRECT, &port_unreachable(&asked)?)
}

fn packet_rejects_are_limited<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let asked = frame::<F>((Host::PodA, 40_000), (Host::EmptyVip, 80), Transport::Udp).build()?;
    let index = Device::PodA.index()?;
    let mut sent = 0;
    const MOST: u64 = 100_000;
    for number in 0.. {
        match kernel.run("pod_ingress", &asked, index, 0)?.result {
            REDIRECT => sent += 1,
            SHOT => break,
            other => anyhow::bail!("result {other}"),
        }
        // Slower than the limit the machine would have to be for ever.
        anyhow::ensure!(number < MOST, "never limited");
    }
    assert!(sent > 0);
    assert_eq!(kernel.counter(Counter::RejectSent)?, sent);
    assert_eq!(kernel.counter(Counter::RejectLimited)?, 1);
    Ok(())
}

/// A promiscuous interface shows frames for others: they may be for the same VIP, on another node.
fn packet_for_another_host_is_left_alone<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for port in [30_001, 30_002, 30_006] {
        let overheard = frame::<F>((Host::Client, 50_000), (Host::Node, port), SYN);
        let overheard = Frame { to: [2, 0, 0, 0, 9, 9], ..overheard };
        gives(&kernel, "uplink_ingress", Device::Uplink, &overheard, NEXT, &overheard.build()?)?;
    }
    assert!(kernel.flows::<F>()?.is_empty());
    // At a port of a bridge, a packet for the bridge looks the same.
    let asked = frame::<F>((Host::Client, 50_000), (Host::Node, 30_001), SYN);
    let sent = asked.between(asked.src, Host::PodB.at::<F>(8080));
    gives(&kernel, "uplink_ingress", Device::PortC, &asked, NEXT, &sent.build()?)?;
    let asked = frame::<F>((Host::PodA, 40_000), (Host::LocalVip, 80), SYN);
    let sent = asked.between(asked.src, Host::PodB.at::<F>(8080));
    gives(&kernel, "pod_ingress", Device::PodA, &asked, NEXT, &sent.build()?)
}

fn packet_ping_is_answered<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for options in if F::IS_V4 { vec![0, 8] } else { vec![0] } {
        for (to, is_answered) in [(Host::LocalVip, true), (Host::EmptyVip, true), (Host::PodB, false)] {
            let mut ping = frame::<F>((Host::PodA, 0), (to, 0), Transport::Echo(false));
            ping.options = options;
            if is_answered {
                let reply =
                    Frame { transport: Transport::Echo(true), ..ping.reply() }.with_macs(ping.from, ping.to);
                gives(&kernel, "pod_ingress", Device::PodA, &ping, REDIRECT, &reply.build()?)?;
            } else {
                gives(&kernel, "pod_ingress", Device::PodA, &ping, NEXT, &ping.build()?)?;
            }
            gives(&kernel, "uplink_ingress", Device::Uplink, &ping, NEXT, &ping.build()?)?;
        }
    }
    Ok(())
}

fn packet_that_would_leave_for_a_service_address<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, v4, v6 } = Node::new(Options::default())?;
    let (vip, unallocated) = (Host::LocalVip, Host::Unresolved);
    let request = |to, transport| frame::<F>((Host::Node, 40_000), (to, 81), transport);
    for transport in [SYN, Transport::Udp, Transport::Echo(false)] {
        let leaving = request(vip, transport);
        gives(&kernel, "uplink_egress", Device::Uplink, &leaving, NEXT, &leaving.build()?)?;
    }
    let (mut v4, mut v6) = (v4, v6);
    v4.service_addresses = [vip, unallocated].map(|host| host.addr::<proxy_common::V4>()).into();
    v6.service_addresses = [vip, unallocated].map(|host| host.addr::<proxy_common::V6>()).into();
    kernel.install(&v4)?;
    kernel.install(&v6)?;
    for transport in [SYN, Transport::Udp] {
        let leaving = request(vip, transport);
        gives(&kernel, "uplink_egress", Device::Uplink, &leaving, REDIRECT, &port_unreachable(&leaving)?)?;
        gives(&kernel, "uplink_egress", Device::Uplink, &request(unallocated, transport), SHOT, &[])?;
    }
    let ping = request(vip, Transport::Echo(false));
    let reply = Frame { transport: Transport::Echo(true), ..ping.reply() }.with_macs(ping.from, ping.to);
    gives(&kernel, "uplink_egress", Device::Uplink, &ping, REDIRECT, &reply.build()?)?;
    gives(
        &kernel,
        "uplink_egress",
        Device::Uplink,
        &request(unallocated, Transport::Echo(false)),
        SHOT,
        &[],
    )?;
    assert_eq!(kernel.counter(Counter::Unallocated)?, 3);
    // On its way to a pod it may be anything.
    let leaving = request(unallocated, SYN);
    gives(&kernel, "pod_egress", Device::PodA, &leaving, NEXT, &leaving.build()?)
}

/// The service behind [`Host::LocalVip`], as `memory_tables` numbers it.
fn local_service<F: PacketFamily>() -> Id {
    Id::new(1 + 10 * F::NUMBER, 1)
}

fn packet_without_local_endpoints_is_dropped<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, mut v4, mut v6 } = Node::new(Options::default())?;
    let index = BackendSet::index(local_service::<F>(), SetPolicy::External);
    v4.sets.insert(index, BackendSet::NO_LOCAL_ENDPOINTS);
    v6.sets.insert(index, BackendSet::NO_LOCAL_ENDPOINTS);
    kernel.install(&v4)?;
    let programs = kernel.possible(&["uplink_ingress", "uplink_xdp"])?;
    for &program in &programs {
        let asked = frame::<F>((Host::Client, 50_000), (Host::Node, 30_001), SYN);
        let run = kernel.run(program, &asked.build()?, Device::Uplink.index()?, 0)?;
        assert_eq!(run.result, if program == "uplink_xdp" { 1 } else { SHOT }, "{program}");
    }
    assert_eq!(kernel.counter(Counter::NoLocalEndpoints)?, programs.len() as u64);
    let inside = frame::<F>((Host::PodA, 40_000), (Host::Node, 30_001), SYN);
    let sent = inside.between(inside.src, Host::PodB.at::<F>(8080));
    gives(&kernel, "pod_ingress", Device::PodA, &inside, NEXT, &sent.build()?)
}

fn packet_from_a_denied_source_is_dropped<F: PacketFamily>() -> Result<()> {
    const VIP: Host = Host::OddVip;
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    let mut tables = proxy_packets::memory_tables::<F>(Device::index)?;
    let target = Target::new(local_service::<F>(), FRONTEND_SOURCE_RANGES).context("an id")?;
    tables.add_frontend(FrontendKey::new(VIP.addr::<F>(), 443u16.to_be(), 6), target);
    tables.sources = [(local_service::<F>(), Host::Client.addr::<F>())].into();
    kernel.install(&tables)?;
    let from = |client| frame::<F>((client, 50_000), (VIP, 443), SYN);
    let sent = from(Host::Client).between(Host::Client.at::<F>(50_000), Host::PodB.at::<F>(8080));
    gives(&kernel, "uplink_ingress", Device::Uplink, &from(Host::Client), NEXT, &sent.build()?)?;
    gives(&kernel, "uplink_ingress", Device::Uplink, &from(Host::OtherNode), SHOT, &[])?;
    gives(&kernel, "pod_ingress", Device::PodA, &from(Host::PodA), SHOT, &[])?;
    assert_eq!(kernel.counter(Counter::SourceDenied)?, 2);
    Ok(())
}

fn packet_affinity_keeps_the_backend<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    let mut tables = proxy_packets::memory_tables::<F>(Device::index)?;
    let service = local_service::<F>();
    // Long: the machine may be slow.
    tables.affinity_timeouts.insert(service, u32::MAX / 2);
    let backends: Vec<_> = (1..=16)
        .map(|n| {
            let id = Id::new(100 + 20 * F::NUMBER + n, 1);
            proxy_common::layout::backend::Backend::new(
                Host::PodB.addr::<F>(),
                (8_000 + n as u16).to_be(),
                id,
            )
        })
        .collect();
    for set_policy in SetPolicy::ALL {
        tables.publish(service, set_policy, &backends);
    }
    kernel.install(&tables)?;
    let chosen = |client: Host, device: Device, program: &str, to: (Host, u16), port: u16| -> Result<u16> {
        let asked = frame::<F>((client, port), to, SYN);
        let run = kernel.run(program, &asked.build()?, device.index()?, 0)?;
        assert_eq!(run.result, NEXT);
        let at = asked.transport_offset() + 2;
        Ok(u16::from_be_bytes([run.packet[at], run.packet[at + 1]]))
    };
    let inside = |port| chosen(Host::PodA, Device::PodA, "pod_ingress", (Host::LocalVip, 80), port);
    let first = inside(40_000)?;
    for port in 40_001..40_020 {
        assert_eq!(inside(port)?, first);
    }
    assert_eq!(chosen(Host::PodA, Device::PodA, "pod_ingress", (Host::Node, 30_001), 41_000)?, first);
    let outside = |port| chosen(Host::Client, Device::Uplink, "uplink_ingress", (Host::Node, 30_001), port);
    let first = outside(50_000)?;
    for port in 50_001..50_020 {
        assert_eq!(outside(port)?, first);
    }
    assert_eq!(kernel.counter(Counter::AffinityKept)?, 39);
    Ok(())
}

fn packet_of_a_removed_endpoint_is_reset_on_demand<F: PacketFamily>() -> Result<()> {
    for is_reset in [false, true] {
        let Node { v4, v6, .. } = Node::new(Options::default())?;
        let (mut v4, mut v6) = (v4, v6);
        v4.settings.reset_removed_tcp = is_reset;
        v6.settings.reset_removed_tcp = is_reset;
        let mut kernel = Kernel::load(Options::default(), &v4, &v6)?;
        let asked = |transport| frame::<F>((Host::PodA, 40_000), (Host::LocalVip, 80), transport);
        let sent = |asked: &Frame| asked.between(asked.src, Host::PodB.at::<F>(8080)).build();
        gives(&kernel, "pod_ingress", Device::PodA, &asked(SYN), NEXT, &sent(&asked(SYN))?)?;
        kernel.release_backend(local_service::<F>())?;
        if is_reset {
            let run = kernel.run("pod_ingress", &asked(ACK).build()?, Device::PodA.index()?, 0)?;
            assert_eq!((run.result, numbers(&run.packet).2), (REDIRECT, 4));
            assert!(checksums_are_valid(&run.packet));
        } else {
            gives(&kernel, "pod_ingress", Device::PodA, &asked(ACK), NEXT, &sent(&asked(ACK))?)?;
        }
    }
    Ok(())
}

/// CRC32c covers everything behind the ports too: the length of the packet, without the padding of its frame.
fn packet_sctp_keeps_its_checksum<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (port, length) in (40_000..).zip([0, 1, 3, 4, 11, 255, 256, 1_024, 1_400]) {
        for padding in [0, 7] {
            let mut asked = frame::<F>((Host::PodA, port), (Host::LocalVip, 80), Transport::Sctp(1));
            asked.payload = (0..length).map(|i| i as u8).collect();
            let sent = asked.between(asked.src, Host::PodB.at::<F>(8080));
            let mut input = asked.build()?;
            input.resize(input.len() + padding, 0xa5);
            let mut expected = sent.build()?;
            expected.resize(expected.len() + padding, 0xa5);
            let run = kernel.run("pod_ingress", &input, Device::PodA.index()?, 0)?;
            assert_eq!((run.result, run.packet), (NEXT, expected), "{length} bytes and {padding} of padding");
            gives(&kernel, "pod_egress", Device::PodA, &sent.reply(), NEXT, &asked.reply().build()?)?;
        }
    }
    // CHECKSUM_PARTIAL: the field stays empty, because its value would become part of the checksum.
    let asked = frame::<F>((Host::PodA, 45_000), (Host::LocalVip, 80), Transport::Sctp(1));
    let without = |frame: &Frame| -> Result<Vec<u8>> {
        let mut bytes = frame.build()?;
        let checksum = bytes.len() - frame.payload.len() - 8..bytes.len() - frame.payload.len() - 4;
        bytes[checksum].fill(0);
        Ok(bytes)
    };
    let sent = without(&asked.between(asked.src, Host::PodB.at::<F>(8080)))?;
    let run = kernel.run("pod_ingress", &without(&asked)?, Device::PodA.index()?, 0)?;
    assert_eq!((run.result, run.packet), (NEXT, sent), "CHECKSUM_PARTIAL");
    // Through a node port to another node: both ports change.
    let asked = frame::<F>((Host::Client, 50_000), (Host::Node, 30_002), Transport::Sctp(1));
    let run = kernel.run("uplink_ingress", &asked.build()?, Device::Uplink.index()?, 0)?;
    assert_eq!(run.result, REDIRECT);
    assert!(checksums_are_valid(&run.packet), "{:02x?}", run.packet);
    for program in kernel.possible(&["uplink_xdp"])? {
        gives(&kernel, program, Device::Uplink, &asked, XDP_PASS, &asked.build()?)?;
    }
    // The node's own server at a port that forwarded connections might have.
    let own = frame::<F>((Host::Client, 50_000), (Host::Node, 29_118), Transport::Sctp(1));
    gives(&kernel, "uplink_ingress", Device::Uplink, &own, NEXT, &own.build()?)
}

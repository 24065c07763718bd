//! Packets that do not fit their way, and headers that are seldom seen. Needs root.

use anyhow::{Context as _, Result};
use proxy_common::layout::counter::Counter;
use proxy_packets::{
    Device, Frame, Host, IcmpError, Node, Options, PacketFamily, Transport, checksums_are_valid, ends,
    for_both_families, header,
    helpers::{ACK, NEXT, REDIRECT, SYN, XDP_PASS},
    icmp_error, same_frame, with_extensions,
};

use crate::paths::{PATHS, frame};

for_both_families! {
    packet_too_big_gives_an_icmp_error
    packet_with_too_big_segments_gives_an_icmp_error
    packet_hop_limit_gives_an_icmp_error
}

/// A router's ICMP error: sender and receiver exchanged, and the packet quoted as it came.
fn error_packet<F: PacketFamily>(error: IcmpError, about: &Frame) -> Result<Vec<u8>> {
    let quoted = header(F::IS_V4) + 8;
    let mut bytes = icmp_error(error, (about.dst.ip(), about.src.ip()), 64, &about.build()?, quoted)?;
    bytes[..6].copy_from_slice(&about.from);
    bytes[6..12].copy_from_slice(&about.to);
    Ok(bytes)
}

/// The same but for IPv4's "don't fragment", which etherparse sets.
fn without_dont_fragment(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    if bytes[12..14] == [8, 0] {
        bytes[20..22].fill(0);
        bytes[24..26].fill(0);
    }
    bytes
}

#[track_caller]
fn assert_error(expected: &[u8], got: &[u8]) {
    assert!(checksums_are_valid(got), "{got:02x?}");
    assert_eq!(without_dont_fragment(expected), without_dont_fragment(got));
}

fn packet_too_big_gives_an_icmp_error<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let path = PATHS[2];
    let (request, sent) = path.open::<F>(&kernel, 40_000, ACK)?;
    let long = |frame: &Frame| Frame { payload: vec![1; 1_600], ..frame.clone() };
    let new = frame::<F>((Host::Client, 40_001), (Host::Node, 30_002), Transport::Udp);
    for (what, input) in [("known flow", &request), ("answer", &sent.reply()), ("new flow", &new)] {
        let input = long(input);
        for program in kernel.possible(&["uplink_xdp"])? {
            let run = kernel.run(program, &input.build()?, Device::Uplink.index()?, 0)?;
            assert_eq!((run.result, run.packet), (XDP_PASS, input.build()?), "{what}");
        }
        let run = kernel.run("uplink_ingress", &input.build()?, Device::Uplink.index()?, 0)?;
        assert_eq!(run.result, REDIRECT, "{what}");
        assert_error(&error_packet::<F>(IcmpError::TooBig(1_500), &input)?, &run.packet);
    }
    assert_eq!(kernel.counter(Counter::TooBig)?, 3);
    // Just so long that it fits.
    let room = 1_500 - header(F::IS_V4) - 20;
    let fits = Frame { payload: vec![1; room], ..request.clone() };
    let run = kernel.run("uplink_ingress", &fits.build()?, Device::Uplink.index()?, 0)?;
    let expected = Frame { payload: vec![1; room], ..sent }.one_hop_less();
    assert!(run.result == REDIRECT && same_frame(&expected.build()?, &run.packet));
    // For a backend on this node the stack decides.
    let local = long(&frame::<F>((Host::Client, 40_002), (Host::Node, 30_001), SYN));
    assert_eq!(kernel.run("uplink_ingress", &local.build()?, Device::Uplink.index()?, 0)?.result, NEXT);
    Ok(())
}

/// A packet that was merged (GRO) and will be segmented (GSO): the segments count. The reply has unread options
/// where a device would write the packet's checksum.
fn packet_with_too_big_segments_gives_an_icmp_error<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let path = PATHS[2];
    let (request, sent) = path.open::<F>(&kernel, 40_000, ACK)?;
    let input = Frame { payload: vec![1; 3_000], ..request };
    let bytes = input.build()?;
    let fits = 1_500 - header(F::IS_V4) as u32 - 20;
    let run = kernel.run_on_segments("uplink_ingress", &bytes, Device::Uplink.index()?, fits)?;
    let expected = Frame { payload: vec![1; 3_000], ..sent }.one_hop_less();
    assert!(run.result == REDIRECT && same_frame(&expected.build()?, &run.packet));

    let run = kernel.run_on_segments("uplink_ingress", &bytes, Device::Uplink.index()?, fits + 1)?;
    assert_eq!(run.result, REDIRECT);
    let padding = if F::IS_V4 { 20 } else { 24 };
    let network = 14 + header(F::IS_V4);
    let expected = error_packet::<F>(IcmpError::TooBig(1_500), &input)?;
    assert_eq!(run.packet.len(), expected.len() + padding);
    assert_eq!(run.packet[network + padding..], expected[network..], "the message itself");
    let checksum = network + 16;
    if F::IS_V4 {
        assert_eq!((run.packet[14], &run.packet[34..54]), (0x4a, &[0; 20][..]));
        let header = &run.packet[14..54];
        let sum = header.chunks(2).map(|word| u32::from(u16::from_be_bytes([word[0], word[1]]))).sum::<u32>();
        assert!(sum.is_multiple_of(0xffff), "{header:02x?}");
        assert_eq!(u16::from_be_bytes([run.packet[16], run.packet[17]]) as usize, run.packet.len() - 14);
    } else {
        assert_eq!((run.packet[20], &run.packet[54..58]), (60, &[58, 2, 0x1e, 20][..]));
        assert_eq!(u16::from_be_bytes([run.packet[18], run.packet[19]]) as usize, run.packet.len() - 54);
    }
    assert!(checksum + 2 <= network + padding, "where a device would write");
    Ok(())
}

fn packet_hop_limit_gives_an_icmp_error<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let path = PATHS[2];
    let (request, sent) = path.open::<F>(&kernel, 40_000, ACK)?;
    for options in if F::IS_V4 { vec![0, 12] } else { vec![0] } {
        for input in [&request, &sent.reply()] {
            let input = Frame { hop_limit: 1, options, ..input.clone() };
            let run = kernel.run("uplink_ingress", &input.build()?, Device::Uplink.index()?, 0)?;
            assert_eq!(run.result, REDIRECT);
            if options == 0 {
                assert_error(&error_packet::<F>(IcmpError::TimeExceeded, &input)?, &run.packet);
            } else {
                // The quote is without them.
                assert!(checksums_are_valid(&run.packet) && run.packet.len() == 14 + 20 + 8 + 28);
            }
        }
    }
    Ok(())
}

/// IPv6 only: headers between network and transport header.
#[test]
fn packet_extension_headers_stay() -> Result<()> {
    type F = proxy_common::V6;
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (path, port) in PATHS.into_iter().zip(40_000..) {
        for (transport, types) in [
            (SYN, &[0][..]),
            (ACK, &[0, 60]),
            (Transport::Udp, &[60, 60, 60, 60, 60]),
            (Transport::Sctp(1), &[0]),
        ] {
            let request = frame::<F>((path.client, port), path.frontend, transport);
            let input = with_extensions(&request.build()?, types);
            let run = kernel.run(path.request.0, &input, path.request.1.index()?, 0)?;
            assert_eq!(run.result, path.result(), "{path:?} {transport:?}");
            let mut plain = run.packet.clone();
            plain.drain(54..54 + 8 * types.len());
            let (src, dst) = ends(&plain);
            let sent = request.between(src, dst);
            let sent = if path.is_forwarded { sent.one_hop_less() } else { sent };
            let expected = with_extensions(&sent.build()?, types);
            let end = run.packet.len() - request.payload.len() - 40;
            assert_eq!(run.packet[..end], expected[..end], "{path:?} {transport:?}");
            // Without them, it must be a packet that is right in all.
            plain[20] = request.build()?[20];
            let length = (plain.len() - 54) as u16;
            plain[18..20].copy_from_slice(&length.to_be_bytes());
            assert!(same_frame(&sent.build()?, &plain), "{path:?} {transport:?}");
        }
    }
    // Too many, and those that mean more than they can be taken for here.
    let request = frame::<F>((Host::Client, 50_000), (Host::Node, 30_001), SYN).build()?;
    for types in [&[60; 6][..], &[50], &[135]] {
        let input = with_extensions(&request, types);
        let run = kernel.run("uplink_ingress", &input, Device::Uplink.index()?, 0)?;
        assert_eq!((run.result, &run.packet), (NEXT, &input), "{types:?}");
    }
    // A refusal quotes the packet without them.
    let refused = frame::<F>((Host::PodA, 40_000), (Host::EmptyVip, 80), SYN);
    let input = with_extensions(&refused.build()?, &[0, 60]);
    let run = kernel.run("pod_ingress", &input, Device::PodA.index()?, 0)?;
    assert_eq!(run.result, REDIRECT);
    let mut expected = error_packet::<F>(IcmpError::PortUnreachable, &refused)?;
    // All but the length that the quoted header has, and so the checksum.
    let (length, checksum) = (14 + 40 + 8 + 4, 14 + 40 + 2);
    for at in [length, length + 1, checksum, checksum + 1] {
        expected[at] = run.packet[at];
    }
    assert_eq!(run.packet, expected);
    assert!(checksums_are_valid(&run.packet));
    Ok(())
}

/// A tag is for the VLAN's own interface, by which the frame comes again.
#[test]
fn packet_with_a_vlan_tag_is_left_alone() -> Result<()> {
    type F = proxy_common::V4;
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut tagged = frame::<F>((Host::Client, 50_000), (Host::Node, 30_001), SYN).build()?;
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    for program in kernel.possible(&["uplink_ingress", "uplink_egress", "uplink_xdp"])? {
        let run = kernel.run(program, &tagged, Device::Uplink.index()?, 0)?;
        let pass = if program == "uplink_xdp" { XDP_PASS } else { NEXT };
        assert_eq!((run.result, &run.packet), (pass, &tagged), "{program}");
    }
    assert!(kernel.flows::<F>().context("flows")?.is_empty());
    Ok(())
}

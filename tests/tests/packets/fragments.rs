//! Fragments: those behind the first follow it. Needs root.

use anyhow::{Result, ensure};
use proxy_common::layout::counter::Counter;
use proxy_packets::{
    Device, Frame, Host, Kernel, Node, Options, PacketFamily, Transport, checksums_are_valid, ends,
    for_both_families, fragments, header,
    helpers::{ACK, NEXT, SHOT},
    same_frame,
};
use std::net::SocketAddr;

use crate::paths::{PATHS, frame};

for_both_families! {
    packet_fragments_follow_the_first_one
    packet_fragments_of_replies
    packet_fragment_before_the_first_one
    packet_fragments_wait_for_the_first_one
}

/// The packet that fragments are of.
fn reassembled<F: PacketFamily>(pieces: &[Vec<u8>], whole: &[u8]) -> Vec<u8> {
    let skip = 14 + header(F::IS_V4) + if F::IS_V4 { 0 } else { 8 };
    let mut bytes = whole[..14 + header(F::IS_V4)].to_vec();
    for piece in pieces {
        bytes.extend(&piece[skip..]);
    }
    bytes
}

/// Sends the fragments of a packet, and compares with the fragments of the expected one.
fn follow<F: PacketFamily>(
    kernel: &Kernel,
    (program, device): (&str, Device),
    result: u32,
    input: &Frame,
    expected: impl Fn(&[u8]) -> Result<Frame>,
) -> Result<()> {
    let whole = input.build()?;
    let pieces = fragments(&whole, 0x1234, 512);
    ensure!(pieces.len() == 3);
    // The first one first, the others in any order.
    let mut got = vec![Vec::new(); 3];
    for number in [0, 2, 1] {
        let run = kernel.run(program, &pieces[number], device.index()?, 0)?;
        assert_eq!(run.result, result, "{program}: fragment {number}");
        got[number] = run.packet;
    }
    let expected = expected(&got[0])?.build()?;
    let by_hand = fragments(&expected, 0x1234, 512);
    for (number, piece) in got.iter().enumerate() {
        let network = 14..14 + header(F::IS_V4);
        assert_eq!(
            piece[network.clone()],
            by_hand[number][network],
            "{program}: header of fragment {number}"
        );
    }
    let (got, by_hand) = (reassembled::<F>(&got, &expected), reassembled::<F>(&by_hand, &expected));
    assert!(same_frame(&by_hand, &got) && checksums_are_valid(&got), "{program}");
    Ok(())
}

const LARGE: usize = 1_400;

fn packet_fragments_follow_the_first_one<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut port = 40_000;
    for path in PATHS {
        for transport in [Transport::Udp, Transport::UdpUnchecked, ACK] {
            port += 1;
            let mut request = frame::<F>((path.client, port), path.frontend, transport);
            request.payload = (0..LARGE).map(|i| i as u8).collect();
            if transport == ACK {
                path.open::<F>(&kernel, port, ACK)?;
            }
            // The first packet of a flow, and a later one.
            for _ in 0..2 {
                follow::<F>(&kernel, path.request, path.result(), &request, |first| {
                    let (src, dst) = tuple_of_fragment::<F>(first);
                    let sent = request.between(src, dst);
                    Ok(if path.is_forwarded { sent.one_hop_less() } else { sent })
                })?;
            }
            let whole = kernel.run(
                path.request.0,
                &frame::<F>((path.client, port), path.frontend, transport).build()?,
                path.request.1.index()?,
                0,
            )?;
            assert_eq!(whole.result, path.result());
        }
    }
    assert_eq!(kernel.counter(Counter::FragmentFollowed)?, 3 * 3 * 2 * 2);
    assert_eq!(kernel.counter(Counter::FragmentUnknown)?, 0);
    Ok(())
}

/// Like [`ends`], of a first fragment.
fn tuple_of_fragment<F: PacketFamily>(bytes: &[u8]) -> (SocketAddr, SocketAddr) {
    let mut bytes = bytes.to_vec();
    if !F::IS_V4 {
        bytes.drain(54..62);
    }
    ends(&bytes)
}

fn packet_fragments_of_replies<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (path, port) in PATHS.into_iter().zip(40_000..) {
        let (request, sent) = path.open::<F>(&kernel, port, Transport::Udp)?;
        let payload: Vec<u8> = (0..LARGE).map(|i| i as u8).collect();
        let answer = Frame { payload: payload.clone(), ..sent.reply() };
        follow::<F>(&kernel, path.reply, path.result(), &answer, |_| {
            let expected = Frame { payload: payload.clone(), ..request.reply() };
            Ok(if path.is_forwarded { expected.one_hop_less() } else { expected })
        })?;
    }
    Ok(())
}

fn packet_fragment_before_the_first_one<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut request = frame::<F>((Host::Client, 50_000), (Host::Client, 30_001), Transport::Udp);
    request.payload = vec![7; LARGE];
    let pieces = fragments(&request.build()?, 0x1234, 512);
    // Fragments of a non-service packet: they pass.
    for piece in [&pieces[1], &pieces[0], &pieces[2]] {
        let run = kernel.run("uplink_ingress", piece, Device::Uplink.index()?, 0)?;
        assert_eq!((run.result, &run.packet), (NEXT, piece));
    }
    assert_eq!(kernel.counter(Counter::FragmentUnknown)?, 1);
    Ok(())
}

/// Fragments to the node and to cluster IPs wait; when the first one comes, all come in once more.
fn packet_fragments_wait_for_the_first_one<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (number, path) in (1u16..).zip(PATHS) {
        let mut request = frame::<F>((path.client, 40_000), path.frontend, Transport::Udp);
        request.payload = vec![7; LARGE];
        let pieces = fragments(&request.build()?, number, 512);
        let run = |piece: &[u8]| kernel.run(path.request.0, piece, path.request.1.index()?, 0);
        for piece in [&pieces[2], &pieces[1]] {
            assert_eq!(run(piece)?.result, SHOT, "held");
        }
        assert_eq!(kernel.counter(Counter::FragmentReleased)?, 2 * u64::from(number - 1));
        assert_eq!(run(&pieces[0])?.result, SHOT, "it comes in again");
        assert_eq!(kernel.counter(Counter::FragmentReleased)?, 2 * u64::from(number));
        for piece in &pieces {
            assert_eq!(run(piece)?.result, path.result(), "nothing is held any more");
        }
    }
    // No more than so many of one packet.
    let mut request = frame::<F>((Host::Client, 50_000), (Host::Node, 30_001), Transport::Udp);
    request.payload = vec![7; LARGE];
    let pieces = fragments(&request.build()?, 99, 128);
    let mut results = Vec::new();
    for piece in pieces.iter().skip(1).take(8) {
        results.push(kernel.run("uplink_ingress", piece, Device::Uplink.index()?, 0)?.result);
    }
    assert_eq!(results, [SHOT, SHOT, SHOT, SHOT, SHOT, SHOT, NEXT, NEXT]);
    Ok(())
}

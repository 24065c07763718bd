//! ICMP errors, fragments, extension headers, and packets that do not fit: what the programs make of them. Needs root.

use std::net::{IpAddr, SocketAddr};

use anyhow::{Context as _, Result, ensure};
use proxy_common::layout::counter::Counter;
use proxy_tests::packets::{
    Device, Frame, Host, IcmpError, Kernel, Node, Options, PacketFamily, Transport, checksums_are_valid,
    ends, fragments, header, icmp_error, same_frame, talk, with_extensions,
};
use proxy_tests::{
    for_both_families,
    packets::words::{ACK, NEXT, REDIRECT, SHOT, SYN, XDP_PASS},
};

for_both_families! {
    packet_error_about_a_request
    packet_error_about_an_answer
    packet_error_in_a_short_or_strange_quote
    packet_error_of_nobody_is_left_alone
    packet_error_ends_here
    packet_echo_is_not_of_a_flow
    packet_fragments_follow_the_first_one
    packet_fragments_of_answers
    packet_fragment_before_the_first_one
    packet_fragments_wait_for_the_first_one
    packet_too_big_is_told
    packet_too_big_when_cut_is_told
    packet_hop_limit_is_told
}

fn frame<F: PacketFamily>(src: (Host, u16), dst: (Host, u16), transport: Transport) -> Frame {
    let transport =
        if transport == Transport::UdpUnchecked && !F::IS_V4 { Transport::Udp } else { transport };
    Frame::new(src.0.at::<F>(src.1), dst.0.at::<F>(dst.1), transport)
}

/// A way through the node: where requests come in, where their answers go out, and who is at the ends.
#[derive(Clone, Copy, Debug)]
struct Way {
    request: (&'static str, Device),
    /// The hook that translates answers.
    answer: (&'static str, Device),
    client: Host,
    frontend: (Host, u16),
    /// Requests and answers are sent on past the stack.
    is_forwarded: bool,
}

const WAYS: [Way; 3] = [
    Way {
        request: ("pod_ingress", Device::PodA),
        answer: ("pod_egress", Device::PodA),
        client: Host::PodA,
        frontend: (Host::LocalVip, 80),
        is_forwarded: false,
    },
    Way {
        request: ("uplink_ingress", Device::Uplink),
        answer: ("uplink_egress", Device::Uplink),
        client: Host::Client,
        frontend: (Host::Node, 30_001),
        is_forwarded: false,
    },
    Way {
        request: ("uplink_ingress", Device::Uplink),
        answer: ("uplink_ingress", Device::Uplink),
        client: Host::Client,
        frontend: (Host::Node, 30_002),
        is_forwarded: true,
    },
];

impl Way {
    fn result(self) -> u32 {
        if self.is_forwarded { REDIRECT } else { NEXT }
    }

    /// Opens a flow. Returns the request and what became of it.
    fn open<F: PacketFamily>(
        self,
        kernel: &Kernel,
        port: u16,
        transport: Transport,
    ) -> Result<(Frame, Frame)> {
        let request = frame::<F>((self.client, port), self.frontend, transport);
        let sent = if transport == ACK {
            talk::open(kernel, self.request, self.answer, &request)?
        } else {
            talk::translated(kernel, self.request, &request)?
        };
        Ok((request, sent))
    }
}

const TRANSPORTS: [Transport; 4] = [SYN, Transport::Udp, Transport::UdpUnchecked, Transport::Sctp(1)];
const ERRORS: [IcmpError; 3] = [IcmpError::PortUnreachable, IcmpError::TimeExceeded, IcmpError::TooBig(1400)];
/// More than any packet has.
const ALL: usize = 4_000;

/// The checksum of a packet's transport header is quoted as it would be had the packet been sent so; that of SCTP stays.
fn expected_quote(sent: &Frame, was: &Frame) -> Result<Vec<u8>> {
    let mut bytes = sent.build()?;
    if let Transport::Sctp(_) = sent.transport {
        let at = sent.transport_offset() + 8;
        bytes[at..at + 4].copy_from_slice(&was.build()?[at..at + 4]);
    }
    Ok(bytes)
}

/// Are they the same, apart from a checksum of 0 that is 0xffff, in the message or in its quote?
fn same_error(expected: &[u8], got: &[u8]) -> bool {
    let both = expected.iter().zip(got).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at);
    let different: Vec<usize> = both.collect();
    expected.len() == got.len()
        && checksums_are_valid(got)
        && (different.is_empty()
            || (different.len() <= 2 && different.iter().all(|&at| [0, 0xff].contains(&got[at]))))
}

/// About what was sent to the backend: it goes to the client, about what the client sent.
fn packet_error_about_a_request<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut port = 40_000;
    for way in WAYS {
        for transport in TRANSPORTS {
            port += 1;
            let (request, sent) = way.open::<F>(&kernel, port, transport)?;
            for error in ERRORS {
                // From the backend, and from a router before it: the client knows only the frontend.
                for from in [sent.dst.ip(), Host::Gateway.ip::<F>()] {
                    let input = icmp_error(error, (from, sent.src.ip()), 60, &sent.build()?, ALL)?;
                    let run = kernel.run(way.answer.0, &input, way.answer.1.index()?, 0)?;
                    let what = format!("{way:?} {transport:?} {error:?} from {from}");
                    assert_eq!(run.result, way.result(), "{what}");
                    let ends = (request.dst.ip(), request.src.ip());
                    let quote = expected_quote(&request, &sent)?;
                    let expected = icmp_error(error, ends, 60 - u8::from(way.is_forwarded), &quote, ALL)?;
                    assert!(
                        same_error(&expected, &run.packet),
                        "{what}\n{expected:02x?}\n{:02x?}",
                        run.packet
                    );
                }
            }
        }
    }
    assert_eq!(kernel.counter(Counter::IcmpError)?, 3 * 4 * 3 * 2);
    Ok(())
}

/// About what was sent to the client: it goes to the backend, about what the backend sent.
fn packet_error_about_an_answer<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut port = 40_000;
    for way in WAYS {
        for transport in TRANSPORTS {
            port += 1;
            let (request, sent) = way.open::<F>(&kernel, port, transport)?;
            for error in ERRORS {
                for from in [request.src.ip(), Host::Gateway.ip::<F>()] {
                    let about = request.reply();
                    let input = icmp_error(error, (from, request.dst.ip()), 60, &about.build()?, ALL)?;
                    let run = kernel.run(way.request.0, &input, way.request.1.index()?, 0)?;
                    let what = format!("{way:?} {transport:?} {error:?} from {from}");
                    assert_eq!(run.result, way.result(), "{what}");
                    // The backend knows the client by the address we gave, if we gave one.
                    let reporter = if way.is_forwarded { sent.src.ip() } else { from };
                    let quote = expected_quote(&sent.reply(), &about)?;
                    let hops = 60 - u8::from(way.is_forwarded);
                    let expected = icmp_error(error, (reporter, sent.dst.ip()), hops, &quote, ALL)?;
                    assert!(
                        same_error(&expected, &run.packet),
                        "{what}\n{expected:02x?}\n{:02x?}",
                        run.packet
                    );
                }
            }
            // XDP leaves them to tc.
            let programs = kernel.possible(&["uplink_xdp"])?;
            for program in programs.into_iter().filter(|_| way.request.1 == Device::Uplink) {
                let ends = (request.src.ip(), request.dst.ip());
                let input = icmp_error(IcmpError::TimeExceeded, ends, 60, &request.reply().build()?, ALL)?;
                let run = kernel.run(program, &input, Device::Uplink.index()?, 0)?;
                assert_eq!((run.result, &run.packet), (XDP_PASS, &input));
            }
        }
    }
    Ok(())
}

/// Routers need not quote more than 8 bytes of the transport header, and some packets have headers in between.
fn packet_error_in_a_short_or_strange_quote<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let way = WAYS[1];
    let (request, sent) = way.open::<F>(&kernel, 40_000, SYN)?;
    // With and without TCP's checksum.
    for length in [4, 8, 16, 18, 20].map(|length| header(F::IS_V4) + length) {
        let error = |about: &Frame, from: IpAddr| {
            icmp_error(IcmpError::TooBig(1300), (from, about.src.ip()), 60, &about.build()?, length)
        };
        let run = kernel.run(way.answer.0, &error(&sent, sent.dst.ip())?, way.answer.1.index()?, 0)?;
        let expected = error(&request, request.dst.ip())?;
        assert!(same_error(&expected, &run.packet), "{length}\n{expected:02x?}\n{:02x?}", run.packet);
    }
    let strange = |about: &Frame| -> Result<Vec<u8>> {
        let bytes = about.build()?;
        Ok(if F::IS_V4 { fragments(&bytes, 7, 32).swap_remove(0) } else { with_extensions(&bytes, &[0, 60]) })
    };
    let ends = |about: &Frame| (about.dst.ip(), about.src.ip());
    let large = |about: &Frame| Frame { payload: vec![1; 64], ..about.clone() };
    let (sent, request) = (large(&sent), large(&request));
    let input = icmp_error(IcmpError::TooBig(1300), ends(&sent), 60, &strange(&sent)?, ALL)?;
    let run = kernel.run(way.answer.0, &input, way.answer.1.index()?, 0)?;
    let expected = icmp_error(IcmpError::TooBig(1300), ends(&request), 60, &strange(&request)?, ALL)?;
    assert!(same_error(&expected, &run.packet), "{expected:02x?}\n{:02x?}", run.packet);
    Ok(())
}

fn packet_error_of_nobody_is_left_alone<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let (_, sent) = WAYS[1].open::<F>(&kernel, 40_000, SYN)?;
    let unknown = frame::<F>((Host::Node, 30_001), (Host::Client, 50_000), ACK);
    let own = frame::<F>((Host::Node, 40_000), (Host::Client, 443), ACK);
    let snat = frame::<F>((Host::Node, 20_001), (Host::Remote, 8080), ACK);
    let about = |about: &Frame, to: IpAddr| {
        icmp_error(IcmpError::TimeExceeded, (Host::Gateway.ip::<F>(), to), 60, &about.build()?, ALL)
    };
    for (what, input) in [
        ("no such flow", about(&unknown, unknown.src.ip())?),
        ("the node's own connection", about(&own, own.src.ip())?),
        ("an unknown source port", about(&snat, snat.src.ip())?),
        ("not about what its receiver sent", about(&sent, Host::PodA.ip::<F>())?),
    ] {
        for (program, device) in [
            ("pod_ingress", Device::PodA),
            ("pod_egress", Device::PodA),
            ("uplink_ingress", Device::Uplink),
            ("uplink_egress", Device::Uplink),
        ] {
            let run = kernel.run(program, &input, device.index()?, 0)?;
            assert_eq!((run.result, &run.packet), (NEXT, &input), "{what}: {program}");
        }
    }
    assert_eq!(kernel.counter(Counter::IcmpError)?, 0);
    Ok(())
}

/// An error whose hop limit runs out is dropped: there are no errors about errors.
fn packet_error_ends_here<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let way = WAYS[2];
    let (_, sent) = way.open::<F>(&kernel, 40_000, SYN)?;
    let input = icmp_error(IcmpError::TimeExceeded, (sent.dst.ip(), sent.src.ip()), 1, &sent.build()?, ALL)?;
    assert_eq!(kernel.run(way.answer.0, &input, way.answer.1.index()?, 0)?.result, SHOT);
    assert_eq!((kernel.counter(Counter::HopLimit)?, kernel.counter(Counter::RejectSent)?), (1, 0));
    Ok(())
}

/// Pings of the node itself, to and from the address that it gives to connections passed on: they have no ports, and are
/// neither taken for answers nor dropped as late ones.
fn packet_echo_is_not_of_a_flow<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    WAYS[2].open::<F>(&kernel, 40_000, SYN)?;
    for is_reply in [false, true] {
        let from_outside = frame::<F>((Host::Remote, 0), (Host::Node, 0), Transport::Echo(is_reply));
        for (program, frame) in [("uplink_ingress", &from_outside), ("uplink_egress", &from_outside.reply())]
        {
            let run = kernel.run(program, &frame.build()?, Device::Uplink.index()?, 0)?;
            assert_eq!((run.result, run.packet), (NEXT, frame.build()?), "{program}, reply {is_reply}");
        }
        let about = icmp_error(
            IcmpError::TimeExceeded,
            (Host::Gateway.ip::<F>(), Host::Node.ip::<F>()),
            60,
            &from_outside.reply().build()?,
            ALL,
        )?;
        let run = kernel.run("uplink_ingress", &about, Device::Uplink.index()?, 0)?;
        assert_eq!((run.result, &run.packet), (NEXT, &about), "an error about one");
    }
    Ok(())
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

/// Sends the fragments of a packet, and compares with the fragments of what it should become.
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
    for way in WAYS {
        for transport in [Transport::Udp, Transport::UdpUnchecked, ACK] {
            port += 1;
            let mut request = frame::<F>((way.client, port), way.frontend, transport);
            request.payload = (0..LARGE).map(|i| i as u8).collect();
            if transport == ACK {
                way.open::<F>(&kernel, port, ACK)?;
            }
            // The first packet of a flow, and a later one.
            for _ in 0..2 {
                follow::<F>(&kernel, way.request, way.result(), &request, |first| {
                    let (src, dst) = tuple_of_fragment::<F>(first);
                    let sent = request.between(src, dst);
                    Ok(if way.is_forwarded { sent.one_hop_less() } else { sent })
                })?;
            }
            let whole = kernel.run(
                way.request.0,
                &frame::<F>((way.client, port), way.frontend, transport).build()?,
                way.request.1.index()?,
                0,
            )?;
            assert_eq!(whole.result, way.result());
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

fn packet_fragments_of_answers<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (way, port) in WAYS.into_iter().zip(40_000..) {
        let (request, sent) = way.open::<F>(&kernel, port, Transport::Udp)?;
        let payload: Vec<u8> = (0..LARGE).map(|i| i as u8).collect();
        let answer = Frame { payload: payload.clone(), ..sent.reply() };
        follow::<F>(&kernel, way.answer, way.result(), &answer, |_| {
            let expected = Frame { payload: payload.clone(), ..request.reply() };
            Ok(if way.is_forwarded { expected.one_hop_less() } else { expected })
        })?;
    }
    Ok(())
}

fn packet_fragment_before_the_first_one<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut request = frame::<F>((Host::Client, 50_000), (Host::Client, 30_001), Transport::Udp);
    request.payload = vec![7; LARGE];
    let pieces = fragments(&request.build()?, 0x1234, 512);
    // Of somebody else's packet: it goes its way.
    for piece in [&pieces[1], &pieces[0], &pieces[2]] {
        let run = kernel.run("uplink_ingress", piece, Device::Uplink.index()?, 0)?;
        assert_eq!((run.result, &run.packet), (NEXT, piece));
    }
    assert_eq!(kernel.counter(Counter::FragmentUnknown)?, 1);
    Ok(())
}

/// Those to the node and to cluster IPs wait; when the first one comes, all come in once more.
fn packet_fragments_wait_for_the_first_one<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (number, way) in (1u16..).zip(WAYS) {
        let mut request = frame::<F>((way.client, 40_000), way.frontend, Transport::Udp);
        request.payload = vec![7; LARGE];
        let pieces = fragments(&request.build()?, number, 512);
        let run = |piece: &[u8]| kernel.run(way.request.0, piece, way.request.1.index()?, 0);
        for piece in [&pieces[2], &pieces[1]] {
            assert_eq!(run(piece)?.result, SHOT, "held");
        }
        assert_eq!(kernel.counter(Counter::FragmentReleased)?, 2 * u64::from(number - 1));
        assert_eq!(run(&pieces[0])?.result, SHOT, "it comes in again");
        assert_eq!(kernel.counter(Counter::FragmentReleased)?, 2 * u64::from(number));
        for piece in &pieces {
            assert_eq!(run(piece)?.result, way.result(), "nothing is held any more");
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

/// What a router would say: sender and receiver exchanged, and the packet quoted as it came.
fn told<F: PacketFamily>(error: IcmpError, about: &Frame) -> Result<Vec<u8>> {
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
fn assert_told(expected: &[u8], got: &[u8]) {
    assert!(checksums_are_valid(got), "{got:02x?}");
    assert_eq!(without_dont_fragment(expected), without_dont_fragment(got));
}

fn packet_too_big_is_told<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let way = WAYS[2];
    let (request, sent) = way.open::<F>(&kernel, 40_000, ACK)?;
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
        assert_told(&told::<F>(IcmpError::TooBig(1_500), &input)?, &run.packet);
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

/// A packet that came in pieces (GRO) and is to leave in pieces (GSO): the pieces count. The answer has options that
/// nobody reads where a device would write the packet's checksum.
fn packet_too_big_when_cut_is_told<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let way = WAYS[2];
    let (request, sent) = way.open::<F>(&kernel, 40_000, ACK)?;
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
    let expected = told::<F>(IcmpError::TooBig(1_500), &input)?;
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

fn packet_hop_limit_is_told<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let way = WAYS[2];
    let (request, sent) = way.open::<F>(&kernel, 40_000, ACK)?;
    for options in if F::IS_V4 { vec![0, 12] } else { vec![0] } {
        for input in [&request, &sent.reply()] {
            let input = Frame { hop_limit: 1, options, ..input.clone() };
            let run = kernel.run("uplink_ingress", &input.build()?, Device::Uplink.index()?, 0)?;
            assert_eq!(run.result, REDIRECT);
            if options == 0 {
                assert_told(&told::<F>(IcmpError::TimeExceeded, &input)?, &run.packet);
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
    for (way, port) in WAYS.into_iter().zip(40_000..) {
        for (transport, types) in [
            (SYN, &[0][..]),
            (ACK, &[0, 60]),
            (Transport::Udp, &[60, 60, 60, 60, 60]),
            (Transport::Sctp(1), &[0]),
        ] {
            let request = frame::<F>((way.client, port), way.frontend, transport);
            let input = with_extensions(&request.build()?, types);
            let run = kernel.run(way.request.0, &input, way.request.1.index()?, 0)?;
            assert_eq!(run.result, way.result(), "{way:?} {transport:?}");
            let mut plain = run.packet.clone();
            plain.drain(54..54 + 8 * types.len());
            let (src, dst) = ends(&plain);
            let sent = request.between(src, dst);
            let sent = if way.is_forwarded { sent.one_hop_less() } else { sent };
            let expected = with_extensions(&sent.build()?, types);
            let end = run.packet.len() - request.payload.len() - 40;
            assert_eq!(run.packet[..end], expected[..end], "{way:?} {transport:?}");
            // Without them, it must be a packet that is right in all.
            plain[20] = request.build()?[20];
            let length = (plain.len() - 54) as u16;
            plain[18..20].copy_from_slice(&length.to_be_bytes());
            assert!(same_frame(&sent.build()?, &plain), "{way:?} {transport:?}");
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
    let mut expected = told::<F>(IcmpError::PortUnreachable, &refused)?;
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

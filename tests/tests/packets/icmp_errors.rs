//! ICMP errors about packets that the programs translate, and pings. Needs root.

use anyhow::Result;
use proxy_common::layout::counter::Counter;
use proxy_packets::{
    Device, Frame, Host, IcmpError, Node, Options, PacketFamily, Transport, checksums_are_valid,
    for_both_families, fragments, header,
    helpers::{ACK, NEXT, SHOT, SYN, XDP_PASS},
    icmp_error, with_extensions,
};
use std::net::IpAddr;

use crate::paths::{ALL, PATHS, TRANSPORTS, frame};

for_both_families! {
    packet_error_about_a_request
    packet_error_about_a_reply
    packet_error_in_a_short_or_strange_quote
    packet_error_without_a_flow_is_left_alone
    packet_error_ends_here
    packet_echo_is_not_of_a_flow
}

const ERRORS: [IcmpError; 3] = [IcmpError::PortUnreachable, IcmpError::TimeExceeded, IcmpError::TooBig(1400)];

/// The checksum of a packet's transport header is quoted as it would be had the packet been sent so; that of SCTP stays.
fn expected_quote(sent: &Frame, was: &Frame) -> Result<Vec<u8>> {
    let mut bytes = sent.build()?;
    if let Transport::Sctp(_) = sent.transport {
        let at = sent.transport_offset() + 8;
        bytes[at..at + 4].copy_from_slice(&was.build()?[at..at + 4]);
    }
    Ok(bytes)
}

/// Whether they are the same, apart from a checksum of 0 that is 0xffff, in the message or in its quote.
fn same_error(expected: &[u8], got: &[u8]) -> bool {
    let both = expected.iter().zip(got).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at);
    let different: Vec<usize> = both.collect();
    expected.len() == got.len()
        && checksums_are_valid(got)
        && (different.is_empty()
            || (different.len() <= 2 && different.iter().all(|&at| [0, 0xff].contains(&got[at]))))
}

/// About a packet to the backend: it goes to the client, about the client's packet.
fn packet_error_about_a_request<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut port = 40_000;
    for path in PATHS {
        for transport in TRANSPORTS {
            port += 1;
            let (request, sent) = path.open::<F>(&kernel, port, transport)?;
            for error in ERRORS {
                // From the backend, and from a router before it: the client knows only the frontend.
                for from in [sent.dst.ip(), Host::Gateway.ip::<F>()] {
                    let input = icmp_error(error, (from, sent.src.ip()), 60, &sent.build()?, ALL)?;
                    let run = kernel.run(path.reply.0, &input, path.reply.1.index()?, 0)?;
                    let what = format!("{path:?} {transport:?} {error:?} from {from}");
                    assert_eq!(run.result, path.result(), "{what}");
                    let ends = (request.dst.ip(), request.src.ip());
                    let quote = expected_quote(&request, &sent)?;
                    let expected = icmp_error(error, ends, 60 - u8::from(path.is_forwarded), &quote, ALL)?;
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

/// About a packet to the client: it goes to the backend, about the backend's packet.
fn packet_error_about_a_reply<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut port = 40_000;
    for path in PATHS {
        for transport in TRANSPORTS {
            port += 1;
            let (request, sent) = path.open::<F>(&kernel, port, transport)?;
            for error in ERRORS {
                for from in [request.src.ip(), Host::Gateway.ip::<F>()] {
                    let about = request.reply();
                    let input = icmp_error(error, (from, request.dst.ip()), 60, &about.build()?, ALL)?;
                    let run = kernel.run(path.request.0, &input, path.request.1.index()?, 0)?;
                    let what = format!("{path:?} {transport:?} {error:?} from {from}");
                    assert_eq!(run.result, path.result(), "{what}");
                    // The backend knows the client by the address we gave, if we gave one.
                    let reporter = if path.is_forwarded { sent.src.ip() } else { from };
                    let quote = expected_quote(&sent.reply(), &about)?;
                    let hops = 60 - u8::from(path.is_forwarded);
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
            for program in programs.into_iter().filter(|_| path.request.1 == Device::Uplink) {
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
    let path = PATHS[1];
    let (request, sent) = path.open::<F>(&kernel, 40_000, SYN)?;
    // With and without TCP's checksum.
    for length in [4, 8, 16, 18, 20].map(|length| header(F::IS_V4) + length) {
        let error = |about: &Frame, from: IpAddr| {
            icmp_error(IcmpError::TooBig(1300), (from, about.src.ip()), 60, &about.build()?, length)
        };
        let run = kernel.run(path.reply.0, &error(&sent, sent.dst.ip())?, path.reply.1.index()?, 0)?;
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
    let run = kernel.run(path.reply.0, &input, path.reply.1.index()?, 0)?;
    let expected = icmp_error(IcmpError::TooBig(1300), ends(&request), 60, &strange(&request)?, ALL)?;
    assert!(same_error(&expected, &run.packet), "{expected:02x?}\n{:02x?}", run.packet);
    Ok(())
}

fn packet_error_without_a_flow_is_left_alone<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let (_, sent) = PATHS[1].open::<F>(&kernel, 40_000, SYN)?;
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
    let path = PATHS[2];
    let (_, sent) = path.open::<F>(&kernel, 40_000, SYN)?;
    let input = icmp_error(IcmpError::TimeExceeded, (sent.dst.ip(), sent.src.ip()), 1, &sent.build()?, ALL)?;
    assert_eq!(kernel.run(path.reply.0, &input, path.reply.1.index()?, 0)?.result, SHOT);
    assert_eq!((kernel.counter(Counter::HopLimit)?, kernel.counter(Counter::RejectSent)?), (1, 0));
    Ok(())
}

/// Pings of the node itself, to and from the address that it gives to forwarded connections: pings have no ports, and are
/// neither taken for replies nor dropped as late ones.
fn packet_echo_is_not_of_a_flow<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    PATHS[2].open::<F>(&kernel, 40_000, SYN)?;
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

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::packet::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, tcp_flags};

const CLIENT: u8 = 1;
const SERVER: u8 = 2;

fn take<F: Parse>(bytes: &[u8]) -> Option<Dissected<F>> {
    let mut out = Dissected::default();
    // As left from another packet: programs reuse one value.
    (out.packet.follows, out.packet.tcp_flags) = (true, tcp_flags::FIN);
    dissect(bytes, 0, &mut out).then_some(out)
}

/// An IPv4 packet; `fragment` is the word of flags and offset.
fn ipv4(fragment: u16, protocol: u8, (src, dst): (u8, u8), payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x46, 0, 0, 0, 0xab, 0xcd];
    bytes.extend(fragment.to_be_bytes());
    bytes.extend([63, protocol, 0, 0, 10, 0, 0, src, 10, 0, 0, dst, 1, 1, 1, 0]);
    bytes.extend(payload);
    bytes
}

/// An IPv6 packet with extension headers: type and contents behind the next header number, in order.
fn ipv6(extensions: &[(u8, &[u8])], protocol: u8, (src, dst): (u8, u8), payload: &[u8]) -> Vec<u8> {
    let next = |i: usize| extensions.get(i).map_or(protocol, |(number, _)| *number);
    let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next(0), 63];
    for last in [src, dst] {
        bytes.extend([0xfd; 15]);
        bytes.push(last);
    }
    for (i, (_, contents)) in extensions.iter().enumerate() {
        bytes.push(next(i + 1));
        bytes.extend(*contents);
    }
    bytes.extend(payload);
    bytes
}

fn tcp(sport: u16, dport: u16, length: usize) -> Vec<u8> {
    let mut header = [sport.to_be_bytes(), dport.to_be_bytes()].concat();
    header.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, tcp_flags::SYN, 0, 0, 0, 0, 0, 0]);
    header.truncate(length);
    header
}

fn last(addr: &[u32; 4]) -> u8 {
    addr[3].to_ne_bytes()[3]
}

fn ports<F: Family>(tuple: &Tuple<F>) -> (u16, u16) {
    (u16::from_be(tuple.sport), u16::from_be(tuple.dport))
}

const FRAGMENT: u8 = extensions::FRAGMENT;
const MORE: &[u8] = &[0, 0, 1, 1, 2, 3, 4];
const OFFSET: &[u8] = &[0, 0, 8, 1, 2, 3, 4];
const ATOMIC: &[u8] = &[0, 0, 0, 1, 2, 3, 4];

#[test]
fn ipv4_fragments() {
    let ends = (CLIENT, SERVER);
    for (word, part) in
        [(0x2000, Part::First), (0x2001, Part::Later), (0x0001, Part::Later), (0x4000, Part::Whole)]
    {
        let seen = take::<V4>(&ipv4(word, PROTOCOL_UDP, ends, &[0x9c, 0x40, 0, 53, 0, 8, 0, 0])).unwrap();
        assert_eq!(seen.part, part, "{word:x}");
        assert_eq!(seen.identification.to_ne_bytes()[..2], [0xab, 0xcd]);
        assert_eq!(seen.fragmented, u32::from(PROTOCOL_UDP));
        let is_later = part == Part::Later;
        assert_eq!(seen.packet.follows, is_later);
        assert_eq!(ports(&seen.packet.tuple), if is_later { (0, 0) } else { (40_000, 53) });
        assert_eq!((seen.packet.transport, seen.packet.hop_limit), (24, 63));
    }
}

#[test]
fn ipv6_extension_headers() {
    let eight = &[0, 1, 4, 0, 0, 0, 0][..];
    let sixteen = &[1, 1, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0][..];
    let arrived = &[0, 2, 0, 0, 0, 0, 0][..];
    let on_its_way = &[0, 2, 1, 0, 0, 0, 0][..];
    // Its length is in words of four bytes, less two.
    let authentication = &[1, 0, 0, 0, 0, 0, 1, 0, 0, 0, 1][..];
    type Extensions<'a> = &'a [(u8, &'a [u8])];
    let cases: [(Extensions<'_>, Option<(Part, usize)>); 12] = [
        (&[], Some((Part::Whole, 40))),
        (&[(0, eight)], Some((Part::Whole, 48))),
        (&[(0, eight), (60, sixteen), (43, arrived)], Some((Part::Whole, 72))),
        (&[(51, authentication)], Some((Part::Whole, 52))),
        (&[(43, on_its_way)], None),
        (&[(FRAGMENT, ATOMIC)], Some((Part::Whole, 48))),
        (&[(0, eight), (FRAGMENT, MORE)], Some((Part::First, 56))),
        (&[(FRAGMENT, MORE), (60, eight)], Some((Part::First, 56))),
        (&[(FRAGMENT, OFFSET)], Some((Part::Later, 48))),
        (&[(60, eight); 5], Some((Part::Whole, 80))),
        (&[(60, eight); 6], None),
        (&[(50, eight)], None),
    ];
    for (extensions, expected) in cases {
        let seen = take::<V6>(&ipv6(extensions, PROTOCOL_TCP, (CLIENT, SERVER), &tcp(40_000, 80, 20)));
        let told = seen.map(|seen| (seen.part, seen.packet.transport));
        // A later fragment's payload is no header.
        let told = told.map(|(part, at)| (part, if part == Part::Later { 48 } else { at }));
        assert_eq!(told, expected, "{extensions:?}");
        if let Some(seen) = seen.filter(|seen| !seen.packet.follows) {
            assert_eq!((ports(&seen.packet.tuple), seen.packet.protocol), ((40_000, 80), PROTOCOL_TCP));
            assert!(seen.packet.is_syn());
        }
        if let Some(seen) = seen.filter(|seen| seen.part != Part::Whole) {
            assert_eq!((seen.identification.to_ne_bytes(), seen.fragmented), ([1, 2, 3, 4], 0));
        }
    }
}

#[test]
fn errors_are_about_what_their_receiver_sent() {
    let quoted = ipv4(0x4000, PROTOCOL_TCP, (SERVER, CLIENT), &tcp(80, 40_000, 8));
    let message = |r#type: u8, quoted: &[u8]| {
        let icmp = [&[r#type, 4, 0, 0, 0, 0, 5, 20][..], quoted].concat();
        ipv4(0, PROTOCOL_ICMP, (9, SERVER), &icmp)
    };
    for r#type in [3, 4, 11, 12] {
        let seen = take::<V4>(&message(r#type, &quoted)).unwrap();
        assert_eq!((seen.part, seen.icmp, seen.packet.transport), (Part::Error, 24, 56));
        assert_eq!(seen.reporter.to_ne_bytes()[3], 9);
        let Packet { tuple, protocol, tcp_flags, follows, .. } = seen.packet;
        // The next packet of the client.
        assert_eq!((tuple.src.to_ne_bytes()[3], tuple.dst.to_ne_bytes()[3]), (CLIENT, SERVER));
        assert_eq!((ports(&tuple), protocol, tcp_flags, follows), ((40_000, 80), PROTOCOL_TCP, 0, true));
    }
    let later = ipv4(0x0001, PROTOCOL_TCP, (SERVER, CLIENT), &tcp(80, 40_000, 8));
    let another_s = ipv4(0, PROTOCOL_TCP, (7, CLIENT), &tcp(80, 40_000, 8));
    let echo = ipv4(0, PROTOCOL_ICMP, (SERVER, CLIENT), &[8, 0, 0, 0, 0, 0, 0, 0]);
    for (what, bytes) in [
        ("no error", message(0, &quoted)),
        ("redirect", message(5, &quoted)),
        ("quote without ports", message(3, &quoted[..27])),
        ("quote without header", message(3, &quoted[..19])),
        ("nothing quoted", message(3, &[])),
        ("later fragment quoted", message(3, &later)),
        ("not sent by the receiver", message(3, &another_s)),
        ("about a ping", message(3, &echo)),
    ] {
        assert_eq!(take::<V4>(&bytes), None, "{what}");
    }

    let quoted = ipv6(&[(FRAGMENT, MORE)], PROTOCOL_UDP, (SERVER, CLIENT), &[0, 53, 0x9c, 0x40]);
    for r#type in 1..=4u8 {
        let icmp = [&[r#type, 0, 0, 0, 0, 0, 5, 20][..], &quoted].concat();
        let seen = take::<V6>(&ipv6(&[], PROTOCOL_ICMPV6, (9, SERVER), &icmp)).unwrap();
        assert_eq!((seen.part, last(&seen.reporter)), (Part::Error, 9));
        assert_eq!((seen.packet.transport, ports(&seen.packet.tuple)), (40 + 8 + 48, (40_000, 53)));
        assert_eq!(last(&seen.packet.tuple.dst), SERVER);
    }
}

proptest! {
    /// Any bytes, any length: a result, and offsets within the packet.
    #[test]
    fn any_bytes(mut bytes in proptest::collection::vec(any::<u8>(), 0..160), first in any::<u8>(), next in 0usize..6) {
        let next = [0u8, 43, 44, 51, 60, 58][next];
        if bytes.len() > 9 {
            (bytes[0], bytes[6]) = (0x60 | first & 0xf, next);
        }
        if let Some(seen) = take::<V6>(&bytes) && !seen.packet.follows {
            prop_assert!(seen.packet.transport + 4 <= bytes.len());
        }
        if bytes.len() > 9 {
            (bytes[0], bytes[9]) = (0x40 | first & 0xf, [1, 6, 17, 132, 47, 1][first as usize % 6]);
        }
        if let Some(seen) = take::<V4>(&bytes) && seen.part == Part::Error {
            prop_assert!(seen.packet.transport + 4 <= bytes.len() && seen.icmp >= IPV4);
        }
    }
}

//! The fast-path parse on packets, ordinary ones and others.

use std::{vec, vec::Vec};

use proptest::prelude::*;

use super::*;
use crate::{V4, V6};

fn parse<F: Parse>(bytes: &[u8]) -> Result<Packet<F>, Unparsed> {
    let range = bytes.as_ptr_range();
    // SAFETY: the range of a slice.
    unsafe { F::parse(range.start, range.end, 0) }
}

fn ipv4(options: usize, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0x45 + (options / 4) as u8, 0, 0, 0, 0, 0, 0x40, 0, 63, protocol, 0, 0];
    bytes.extend([10, 0, 0, 1, 10, 96, 0, 1]);
    bytes.extend(vec![1; options]);
    bytes.extend(payload);
    bytes
}

fn tcp(flags: u8) -> Vec<u8> {
    let mut header = vec![0x9c, 0x40, 0, 80];
    header.extend([0; 9]);
    header.push(flags);
    header.extend([0; 6]);
    header
}

#[test]
fn ipv4_with_and_without_options() {
    for options in [0, 4, 40] {
        let packet = parse::<V4>(&ipv4(options, PROTOCOL_TCP, &tcp(tcp_flags::SYN))).unwrap();
        assert_eq!(packet.transport, 20 + options);
        assert_eq!(packet.tuple.src.to_ne_bytes(), [10, 0, 0, 1]);
        assert_eq!(packet.tuple.dst.to_ne_bytes(), [10, 96, 0, 1]);
        assert_eq!((u16::from_be(packet.tuple.sport), u16::from_be(packet.tuple.dport)), (40_000, 80));
        assert!(packet.is_syn() && !packet.is_closing());
        assert_eq!((packet.hop_limit, packet.checksum_offset()), (63, 36 + options));
    }
}

#[test]
fn ipv6_and_udp() {
    let mut bytes = vec![0x60, 0, 0, 0, 0, 8, PROTOCOL_UDP, 9];
    bytes.extend([0xfd; 16]);
    bytes.extend([0xfc; 16]);
    bytes.extend([0, 53, 0x30, 0x39, 0, 8, 0, 0]);
    let packet = parse::<V6>(&bytes).unwrap();
    assert_eq!(packet.tuple.src, [0xfdfd_fdfd; 4]);
    assert_eq!((u16::from_be(packet.tuple.sport), u16::from_be(packet.tuple.dport)), (53, 12_345));
    assert_eq!((packet.tcp_flags, packet.transport, packet.checksum_offset()), (0, 40, 46));
}

#[test]
fn sctp_speaks_of_associations_as_tcp_of_connections() {
    for (chunk, is_syn, is_syn_ack, is_closing) in [
        (1, true, false, false),
        (2, false, true, false),
        (0, false, false, false),
        (6, false, false, true),
        (14, false, false, true),
    ] {
        let mut payload = vec![0; 16];
        payload[12] = chunk;
        let packet = parse::<V4>(&ipv4(0, PROTOCOL_SCTP, &payload)).unwrap();
        let said = (packet.is_syn(), packet.is_syn_ack(), packet.is_closing());
        assert_eq!(said, (is_syn, is_syn_ack, is_closing), "chunk {chunk}");
        assert_eq!(packet.checksum_offset(), 28);
    }
    assert_eq!(parse::<V4>(&ipv4(0, PROTOCOL_SCTP, &[0; 15])), Err(Unparsed::Short));
}

#[test]
fn only_echo_requests_of_icmp_are_ours() {
    let icmp = |r#type, code| ipv4(0, PROTOCOL_ICMP, &[r#type, code, 0, 0, 0, 0, 0, 0]);
    let packet = parse::<V4>(&icmp(8, 0)).unwrap();
    assert!(packet.is_echo_request());
    assert_eq!((packet.tuple.sport, packet.tuple.dport), (0, 0));
    for bytes in [icmp(0, 0), icmp(8, 1), ipv4(0, PROTOCOL_ICMPV6, &[128, 0, 0, 0, 0, 0, 0, 0])] {
        assert_eq!(parse::<V4>(&bytes), Err(Unparsed::NotOurs), "{bytes:?}");
    }
    assert_eq!(parse::<V4>(&icmp(3, 3)), Err(Unparsed::SlowPath));
}

#[test]
fn what_is_not_parsed() {
    let mut fragment = ipv4(0, PROTOCOL_UDP, &[0; 8]);
    fragment[6] = 0x20;
    let mut contradiction = ipv4(0, PROTOCOL_UDP, &[0; 8]);
    contradiction[0] = 0x44;
    for (bytes, expected) in [
        (ipv4(0, 1, &[0; 8]), Unparsed::NotOurs),
        (contradiction, Unparsed::NotOurs),
        (fragment, Unparsed::SlowPath),
        (ipv4(0, PROTOCOL_UDP, &[0; 7]), Unparsed::Short),
        (ipv4(0, PROTOCOL_TCP, &[0; 19]), Unparsed::Short),
        (vec![0x45; 19], Unparsed::Short),
        (vec![], Unparsed::Short),
    ] {
        assert_eq!(parse::<V4>(&bytes), Err(expected), "{bytes:?}");
    }
}

proptest! {
    /// Any bytes, any length: a result, and never a read outside (run under Miri to see the latter).
    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
        if let Ok(packet) = parse::<V4>(&bytes) {
            prop_assert!(packet.transport + 8 <= bytes.len());
        }
        if let Ok(packet) = parse::<V6>(&bytes) {
            prop_assert!(packet.transport + 8 <= bytes.len());
        }
    }
}

//! Parsing packets.

use proxy_common::{
    V4, V6,
    packet::{Dissected, Packet, Parse, Part, Unparsed, dissect, timestamp},
};

/// The first byte is the offset of the network header; the rest is the frame. The sanitizer finds reads outside; the
/// parsed fields must match the packet.
pub fn parse_packet(bytes: &[u8]) {
    let Some((first, frame)) = bytes.split_first() else { return };
    // On the heap and of exactly this size, so that one byte too far is noticed.
    let frame: Box<[u8]> = frame.into();
    let network = *first as usize % (frame.len() + 1);
    check::<V4>(&frame, network);
    check::<V6>(&frame, network);
}

/// Parses the packet whose network header starts at this offset.
pub(crate) fn parse<F: Parse>(frame: &[u8], network: usize) -> Result<Packet<F>, Unparsed> {
    let range = frame.as_ptr_range();
    // SAFETY: the range of a slice.
    unsafe { F::parse(range.start, range.end, network) }
}

/// The full parse agrees with the fast-path parse; and an error quotes what its receiver sent.
fn check_dissected<F: Parse>(frame: &[u8], network: usize) {
    let mut dissected = Dissected::<F>::default();
    let is_ours = dissect(frame, network, &mut dissected);
    let Dissected { packet, part, icmp, .. } = dissected;
    if let Ok(parsed) = parse::<F>(frame, network)
        && !parsed.is_echo_request()
    {
        assert!(is_ours, "{parsed:?}");
        assert_eq!((packet, part), (parsed, Part::Whole));
        let dated = timestamp(frame, packet.transport, packet.is_syn());
        assert!(dated == 0 || packet.transport + 32 <= frame.len());
    }
    if !is_ours {
        return;
    }
    assert!(packet.transport >= network + F::HEADER, "{dissected:?}");
    match part {
        Part::Plain | Part::Whole | Part::First => {
            assert!(packet.transport + 4 <= frame.len() && !packet.follows)
        }
        Part::Later => assert!(packet.follows),
        Part::Error => {
            assert!(icmp >= network + F::HEADER && packet.follows, "{dissected:?}");
            assert!(packet.transport >= icmp + 8 + F::HEADER && packet.transport + 4 <= frame.len());
        }
    }
}

fn check<F: Parse>(frame: &[u8], network: usize) {
    check_dissected::<F>(frame, network);
    let Ok(packet) = parse::<F>(frame, network) else { return };
    assert!(packet.transport >= network + F::HEADER, "{packet:?}");
    assert!(packet.transport + 8 <= frame.len(), "{packet:?}");
    if !packet.is_echo_request() {
        assert!(packet.checksum_offset() + 2 <= frame.len(), "{packet:?}");
        let port = |at: usize| u16::from_ne_bytes([frame[at], frame[at + 1]]);
        assert_eq!(
            (packet.tuple.sport, packet.tuple.dport),
            (port(packet.transport), port(packet.transport + 2))
        );
    }
}

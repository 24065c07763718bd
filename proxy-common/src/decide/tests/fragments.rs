//! Fragments.

use super::{fixture::*, for_both_families};
use crate::{
    decide::{Completion, complete},
    layout::counter::Counter,
    packet::{
        Dissected, PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_SCTP, PROTOCOL_UDP, Packet, Parse, Part,
        extensions,
    },
};

for_both_families! {
    later_fragments_get_the_ports_of_the_first_one
    what_no_service_has_is_not_waited_for
}

fn later_fragments_get_the_ports_of_the_first_one<F: TestFamily + Parse>() {
    let fixture = Fixture::<F>::new(&[POD_A]);
    let of = |part, identification, source| {
        let (sport, dport) = if part == Part::First { (40_000, 53) } else { (0, 0) };
        let mut packet = tcp((source, sport), (REMOTE, dport), 0);
        packet.protocol = PROTOCOL_UDP;
        Dissected::<F> { packet, part, identification, ..Dissected::default() }
    };
    let complete = |mut dissected| {
        let completion = complete(&*fixture, &mut dissected, true);
        (completion == Completion::Complete).then_some(dissected.packet)
    };
    assert_eq!(complete(of(Part::Later, 7, CLIENT)), None, "the first one was not seen");
    let first = complete(of(Part::First, 7, CLIENT)).unwrap();
    let later = complete(of(Part::Later, 7, CLIENT)).unwrap();
    assert_eq!((later.tuple, later.protocol), (first.tuple, PROTOCOL_UDP));
    assert_eq!(complete(of(Part::Later, 8, CLIENT)), None, "another packet");
    assert_eq!(complete(of(Part::Later, 7, POD_A)), None, "another sender");
    assert_eq!(fixture.counter(Counter::FragmentUnknown), 3);
}

/// Regression test: later fragments of large pings were queued for a first one that was never recorded.
fn what_no_service_has_is_not_waited_for<F: TestFamily + Parse>() {
    const ESP: u8 = 50;
    let fixture = Fixture::<F>::new(&[POD_A]);
    let of = |part, protocol, identification| {
        let packet = Packet { protocol, ..udp((CLIENT, 0), (NODE, 0)) };
        Dissected::<F> { packet, part, identification, ..Dissected::default() }
    };
    for protocol in [PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_SCTP, ESP] {
        let later = complete(&*fixture, &mut of(Part::Later, protocol, 1), true);
        assert_eq!(later, Completion::NotOurs, "protocol {protocol}");
    }
    // Behind an extension header of IPv6, only the first fragment has the protocol.
    let behind = extensions::DESTINATION;
    if F::ICMP == PROTOCOL_ICMPV6 {
        assert_eq!(complete(&*fixture, &mut of(Part::Later, behind, 2), true), Completion::Early);
    }
    assert_eq!(complete(&*fixture, &mut of(Part::First, ESP, 2), false), Completion::NotOurs);
    assert_eq!(complete(&*fixture, &mut of(Part::Later, behind, 2), true), Completion::NotOurs);
}

//! Fragments.

use super::{for_both_families, world::*};
use crate::{
    decide::complete,
    layout::counter::Counter,
    packet::{Dissected, PROTOCOL_UDP, Part},
};

for_both_families! {
    later_fragments_get_the_ports_of_the_first_one
}

fn later_fragments_get_the_ports_of_the_first_one<F: TestFamily>() {
    let world = World::<F>::new(&[POD_A]);
    let of = |part, identification, source| {
        let (sport, dport) = if part == Part::First { (40_000, 53) } else { (0, 0) };
        let mut packet = tcp((source, sport), (REMOTE, dport), 0);
        packet.protocol = if part == Part::First { PROTOCOL_UDP } else { 0 };
        Dissected::<F> { packet, part, identification, ..Dissected::default() }
    };
    let complete = |mut dissected| complete(&*world, &mut dissected).then_some(dissected.packet);
    assert_eq!(complete(of(Part::Later, 7, CLIENT)), None, "the first one was not seen");
    let first = complete(of(Part::First, 7, CLIENT)).unwrap();
    let later = complete(of(Part::Later, 7, CLIENT)).unwrap();
    assert_eq!((later.tuple, later.protocol), (first.tuple, PROTOCOL_UDP));
    assert_eq!(complete(of(Part::Later, 8, CLIENT)), None, "another packet");
    assert_eq!(complete(of(Part::Later, 7, POD_A)), None, "another sender");
    assert_eq!(world.counter(Counter::FragmentUnknown), 3);
}

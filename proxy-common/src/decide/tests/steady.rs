//! The shortcut: when it has an answer. That the answer is the core's, all other tests see to.

use super::{for_both_families, world::*};
use crate::{
    decide::{
        Verdict,
        steady::{self, Steady},
    },
    layout::flow::{Edge, FlowKey, flags},
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    what_is_plain_to_see
    flows_of_each_kind
    what_has_news_goes_further
    endpoints_that_are_gone
}

const CLIENT_END: End = (CLIENT, 40_000);
const POD_END: End = (POD_A, 40_000);

fn is_followed<F: TestFamily, E>(steady: Steady<E>, packet: &Packet<F>) -> bool {
    match steady {
        Steady::Follow(_) => true,
        Steady::Further => false,
        Steady::Pass => panic!("{packet:?} passes"),
    }
}

fn from_pod<F: TestFamily>(world: &World<F>, packet: &Packet<F>) -> bool {
    is_followed(steady::from_pod(&world.0, packet, &mut FlowKey::default()), packet)
}

fn to_client<F: TestFamily>(world: &World<F>, packet: &Packet<F>) -> bool {
    is_followed(steady::to_client(&world.0, packet, &mut FlowKey::default()), packet)
}

fn from_uplink<F: TestFamily>(world: &World<F>, packet: &Packet<F>) -> bool {
    is_followed(steady::from_uplink(&world.0, packet, &mut FlowKey::default()), packet)
}

/// Opens a TCP flow from a pod to the cluster IP; returns an answer.
fn open<F: TestFamily>(world: &World<F>) -> Packet<F> {
    let said = world.pod_sends(&tcp(POD_END, (VIP, PORT), SYN));
    let answer = |flags| packet(said.out.to.reversed(), PROTOCOL_TCP, flags);
    world.to_client(&answer(SYN_ACK));
    world.pod_sends(&tcp(POD_END, (VIP, PORT), ACK));
    world.to_client(&answer(ACK));
    answer(ACK)
}

fn what_is_plain_to_see<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    let key = &mut FlowKey::default();
    let elsewhere = tcp(POD_END, (CLIENT, 443), ACK);
    assert!(matches!(steady::from_pod(&world.0, &elsewhere, key), Steady::Pass));
    assert!(matches!(steady::from_uplink(&world.0, &elsewhere, key), Steady::Pass));
    assert!(matches!(steady::to_client(&world.0, &elsewhere, key), Steady::Pass));
    assert!(matches!(steady::to_outside(&world.0, &elsewhere, key), Steady::Pass));
    // A port that we give to others is no evidence.
    let ours = tcp(POD_END, (NODE, *SNAT.start()), ACK);
    assert!(matches!(steady::from_pod(&world.0, &ours, key), Steady::Pass));
    assert!(matches!(steady::from_uplink(&world.0, &ours, key), Steady::Pass));
    // A new flow.
    assert!(matches!(steady::from_pod(&world.0, &tcp(POD_END, (VIP, PORT), SYN), key), Steady::Further));
}

fn flows_of_each_kind<F: TestFamily>() {
    // To the cluster IP.
    let world = World::<F>::new(&[POD_B]);
    let answer = open(&world);
    assert!(from_pod(&world, &tcp(POD_END, (VIP, PORT), ACK)));
    assert!(to_client(&world, &answer));
    // By a nodePort to a remote backend.
    let world = World::<F>::new(&[REMOTE]);
    let said = world.uplink_gets(&tcp(CLIENT_END, (NODE, NODE_PORT), SYN));
    assert_eq!(said.verdict, Verdict::Forward);
    let answer = |flags| packet(said.out.to.reversed(), PROTOCOL_TCP, flags);
    world.uplink_gets(&answer(SYN_ACK));
    let request = tcp(CLIENT_END, (NODE, NODE_PORT), ACK);
    world.uplink_gets(&request);
    world.uplink_gets(&answer(ACK));
    assert!(from_uplink(&world, &request) && from_uplink(&world, &answer(ACK)));
    // On a bridge, but for the packets before the neighbour is known.
    let mut world = World::<F>::new(&[POD_B]).bridged();
    world.resolve(POD_B, false);
    open(&world);
    let request = tcp(POD_END, (VIP, PORT), ACK);
    assert!(!from_pod(&world, &request));
    world.resolve(POD_B, true);
    assert_eq!(world.pod_sends(&request).verdict, Verdict::Switch);
    assert!(from_pod(&world, &request));
    // A pod's own are rare.
    let world = World::<F>::new(&[POD_A]);
    let said = world.pod_sends(&tcp(POD_END, (VIP, PORT), SYN));
    assert_eq!(said.verdict, Verdict::Return);
    assert!(world.pending.borrow().values().all(|flow| flow.get().flags & flags::HAIRPIN != 0));
    assert!(!from_pod(&world, &tcp(POD_END, (VIP, PORT), ACK)));
}

fn what_has_news_goes_further<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    let answer = open(&world);
    for flags in [SYN, SYN_ACK, FIN, RST] {
        assert!(!from_pod(&world, &tcp(POD_END, (VIP, PORT), flags)), "flags {flags}");
        assert!(!to_client(&world, &Packet { tcp_flags: flags, ..answer }), "flags {flags}");
    }
    // Only what acknowledges says what was acknowledged.
    let acknowledged = || {
        let flows = world.flows.borrow();
        flows[&FlowKey::new(tcp::<F>(POD_END, (VIP, PORT), ACK).tuple, PROTOCOL_TCP, Edge::Forward)]
            .get()
            .acknowledged
    };
    let before = acknowledged();
    let null = Packet { acknowledgment: 7, ..tcp(POD_END, (VIP, PORT), 0) };
    assert!(from_pod(&world, &null) && before != 0);
    assert_eq!(acknowledged(), before);
    assert!(!from_pod(&world, &Packet { follows: true, ..tcp(POD_END, (VIP, PORT), ACK) }));
    world.wait();
    assert!(!from_pod(&world, &tcp(POD_END, (VIP, PORT), ACK)), "to be marked as seen");
    world.pod_sends(&tcp(POD_END, (VIP, PORT), ACK));
    assert!(from_pod(&world, &tcp(POD_END, (VIP, PORT), ACK)));
    // Datagrams: until there was more than a request and a reply.
    let request = udp(POD_END, (VIP, PORT));
    let said = world.pod_sends(&request);
    let answer = packet(said.out.to.reversed(), PROTOCOL_UDP, 0);
    assert!(!from_pod(&world, &request));
    assert!(!to_client(&world, &answer));
    world.to_client(&answer);
    assert!(!from_pod(&world, &request) && !to_client(&world, &answer));
    world.pod_sends(&request);
    assert!(from_pod(&world, &request) && to_client(&world, &answer));
}

fn endpoints_that_are_gone<F: TestFamily>() {
    for reset_removed_tcp in [false, true] {
        let mut world = World::<F>::new(&[POD_B]);
        world.settings.reset_removed_tcp = reset_removed_tcp;
        open(&world);
        let (stream, datagram) = (tcp(POD_END, (VIP, PORT), ACK), udp(POD_END, (VIP, PORT)));
        let said = world.pod_sends(&datagram);
        for _ in 0..2 {
            world.to_client(&packet(said.out.to.reversed(), PROTOCOL_UDP, 0));
        }
        assert!(from_pod(&world, &stream) && from_pod(&world, &datagram));
        world.alive.clear();
        assert_eq!(from_pod(&world, &stream), !reset_removed_tcp);
        assert!(!from_pod(&world, &datagram), "a datagram chooses anew");
    }
}

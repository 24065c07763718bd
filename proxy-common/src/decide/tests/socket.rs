//! Sockets as clients.

use super::{for_both_families, world::*};
use crate::{
    decide::{self, SocketClient, SocketOrigin, SocketVerdict},
    layout::{counter::Counter, set::SetRole, socket::SocketPeer},
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
};

for_both_families! {
    connect_table
    no_endpoints_refuses
    datagrams_keep_their_backend
    datagrams_leave_a_removed_backend
    answers_seem_to_come_from_the_vip
    two_services_on_one_backend_answer_for_the_last_asked
}

const COOKIE: u64 = 7;

fn connect<F: TestFamily>(
    world: &World<F>,
    addr: F::Addr,
    port: u16,
    protocol: u8,
    origin: SocketOrigin,
) -> (SocketVerdict, SocketPeer<F>) {
    let mut peer = SocketPeer::default();
    let client = SocketClient { origin, netns: 1, bound: F::UNSPECIFIED };
    let verdict = decide::connect(&world.0, &addr, port.to_be(), protocol, &client, &mut peer);
    (verdict, peer)
}

fn send<F: TestFamily>(world: &World<F>, vip: u8) -> (SocketVerdict, SocketPeer<F>) {
    let mut peer = SocketPeer::default();
    let (addr, port) = (F::addr(vip), PORT.to_be());
    let client = SocketClient { origin: SocketOrigin::Pod, netns: 1, bound: F::UNSPECIFIED };
    let verdict = decide::send(&world.0, COOKIE, &addr, port, PROTOCOL_UDP, &client, &mut peer);
    (verdict, peer)
}

fn connect_table<F: TestFamily>() {
    use SocketOrigin::{Node, Pod};
    use SocketVerdict::{Pass, Reject, Translate};
    let world = World::<F>::new(&[POD_B]);
    for (addr, port, origin, expected) in [
        (F::addr(VIP), PORT, Pod, Translate),
        (F::addr(VIP), PORT, Node, Translate),
        (F::addr(VIP), PORT + 1, Pod, Reject),
        (F::addr(NODE), NODE_PORT, Pod, Translate),
        (F::addr(NODE), NODE_PORT, Node, Translate),
        (F::addr(NODE), NODE_PORT + 1, Node, Pass),
        (F::addr(OTHER_NODE_ADDRESS), NODE_PORT, Node, Pass),
        (F::loopback(), NODE_PORT, Node, Translate),
        // A pod's loopback is its own.
        (F::loopback(), NODE_PORT, Pod, Pass),
        (F::loopback(), PORT, Node, Pass),
        (F::addr(EXTERNAL_IP), PORT, Pod, Translate),
        (F::addr(POD_B), TARGET_PORT, Pod, Pass),
    ] {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            let (verdict, peer) = connect(&world, addr, port, protocol, origin);
            assert_eq!(verdict, expected, "{addr:?}:{port} {protocol} {origin:?}");
            if expected == Translate {
                let expected = backend::<F>(POD_B);
                assert_eq!((peer.addr, peer.port, peer.backend), (expected.addr, expected.port, expected.id));
                assert_eq!(peer.service, SERVICE);
            }
        }
    }
    assert_eq!(world.counter(Counter::SocketConnect), 12);
}

fn no_endpoints_refuses<F: TestFamily>() {
    let world = World::<F>::new(&[]);
    let (verdict, _) = connect(&world, F::addr(VIP), PORT, PROTOCOL_TCP, SocketOrigin::Pod);
    assert_eq!(verdict, SocketVerdict::Reject);
    assert_eq!(send(&world, VIP).0, SocketVerdict::Reject);
}

fn datagrams_keep_their_backend<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B, REMOTE, 14, 15, 16]);
    let first = send(&world, VIP);
    assert_eq!(first.0, SocketVerdict::Translate);
    for _ in 0..20 {
        assert_eq!(send(&world, VIP), first);
    }
}

fn datagrams_leave_a_removed_backend<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    send(&world, VIP);
    world.alive.clear();
    world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
    assert_eq!(send(&world, VIP).1.addr, F::addr(REMOTE));
}

fn answers_seem_to_come_from_the_vip<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    send(&world, VIP);
    let source = |cookie, addr: u8, port: u16| {
        let peer = decide::peer_of_datagram(&world.0, cookie, &F::addr(addr), port.to_be());
        peer.map(|peer| (peer.addr, u16::from_be(peer.port)))
    };
    assert_eq!(source(COOKIE, POD_B, TARGET_PORT), Some((F::addr(VIP), PORT)));
    assert_eq!(source(COOKIE, POD_B, TARGET_PORT + 1), None);
    assert_eq!(source(COOKIE, REMOTE, TARGET_PORT), None);
    assert_eq!(source(COOKIE + 1, POD_B, TARGET_PORT), None);
}

fn two_services_on_one_backend_answer_for_the_last_asked<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    for vip in [VIP, VIP2, VIP] {
        send(&world, vip);
        let peer = decide::peer_of_datagram(&world.0, COOKIE, &F::addr(POD_B), TARGET_PORT.to_be()).unwrap();
        assert_eq!(peer.addr, F::addr(vip));
    }
}

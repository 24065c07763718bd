//! Sockets as clients.

use super::{for_both_families, world::*};
use crate::{
    decide::{self, Seen, SocketClient, SocketOrigin, SocketVerdict, Step},
    layout::{
        counter::Counter,
        frontend::{FRONTEND_CLUSTER_IP, FRONTEND_SOURCES, FrontendKey},
        id::Id,
        set::SetRole,
        socket::{SharedKey, SocketPeer},
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
};

for_both_families! {
    connect_table
    no_endpoints_refuses
    datagrams_keep_their_backend
    datagrams_leave_a_removed_backend
    answers_seem_to_come_from_the_vip
    two_services_on_one_backend_answer_for_the_last_asked
    a_connected_socket_sends_to_its_backend
    datagrams_leave_a_service_that_lost_the_frontend
    datagrams_to_a_frontend_that_is_gone_are_not_translated
    a_source_that_is_no_longer_allowed_is_turned_away
    the_frontend_is_looked_up_seldom
    namespaces_do_not_push_out_each_other
    further_vips_are_shared_and_answer
    without_memory_nothing_is_sent
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
    send_by(world, F::addr(vip), false)
}

fn send_by<F: TestFamily>(
    world: &World<F>,
    addr: F::Addr,
    is_connected: bool,
) -> (SocketVerdict, SocketPeer<F>) {
    let mut peer = SocketPeer::default();
    let netns = world.socket_netns.get();
    let client = SocketClient { origin: SocketOrigin::Pod, netns, bound: F::UNSPECIFIED };
    let verdict = decide::send(&world.0, &addr, PORT.to_be(), PROTOCOL_UDP, &client, is_connected, &mut peer);
    (verdict, peer)
}

/// Where a datagram from a pod seems to come from.
fn source<F: TestFamily>(world: &World<F>, addr: u8, port: u16) -> Option<(F::Addr, u16)> {
    let mut seen = Seen::default();
    decide::datagram_source(&world.0, &F::addr(addr), port.to_be(), &mut seen)
        .then_some((seen.addr, u16::from_be(seen.port)))
}

/// With socket storage, and without.
fn both_ways<F: TestFamily>(backends: &[u8]) -> [World<F>; 2] {
    [true, false].map(|socket_storage| {
        let mut world = World::<F>::new(backends);
        world.socket_storage = socket_storage;
        world
    })
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
    for world in both_ways::<F>(&[POD_B, REMOTE, 14, 15, 16]) {
        let first = send(&world, VIP);
        assert_eq!(first.0, SocketVerdict::Translate);
        for _ in 0..20 {
            world.now.set(world.now.get() + 40);
            let next = send(&world, VIP);
            assert_eq!((next.0, next.1.addr, next.1.backend), (first.0, first.1.addr, first.1.backend));
        }
    }
}

fn datagrams_leave_a_removed_backend<F: TestFamily>() {
    for mut world in both_ways::<F>(&[POD_B]) {
        send(&world, VIP);
        world.alive.clear();
        world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
        assert_eq!(send(&world, VIP).1.addr, F::addr(REMOTE));
    }
}

fn answers_seem_to_come_from_the_vip<F: TestFamily>() {
    for world in both_ways::<F>(&[POD_B]) {
        send(&world, VIP);
        assert_eq!(source(&world, POD_B, TARGET_PORT), Some((F::addr(VIP), PORT)));
        assert_eq!(source(&world, POD_B, TARGET_PORT + 1), None);
        assert_eq!(source(&world, REMOTE, TARGET_PORT), None);
        world.socket.set(COOKIE + 1);
        assert_eq!(source(&world, POD_B, TARGET_PORT), None);
    }
}

fn two_services_on_one_backend_answer_for_the_last_asked<F: TestFamily>() {
    for world in both_ways::<F>(&[POD_B]) {
        for vip in [VIP, VIP2, EXTERNAL_IP, VIP, EXTERNAL_IP, VIP2] {
            send(&world, vip);
            assert_eq!(source(&world, POD_B, TARGET_PORT), Some((F::addr(vip), PORT)));
        }
    }
}

/// It would not hear any other.
fn a_connected_socket_sends_to_its_backend<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B, REMOTE, 14, 15, 16]);
    let (verdict, peer) = connect(&world, F::addr(VIP), PORT, PROTOCOL_UDP, SocketOrigin::Pod);
    assert_eq!(verdict, SocketVerdict::Translate);
    decide::remember_connected(&world.0, &F::addr(VIP), PORT.to_be(), &peer);
    for _ in 0..20 {
        assert_eq!(send_by(&world, F::addr(VIP), true).1.addr, peer.addr);
    }
    // The agent ended it, because that is gone.
    world.alive.remove(&peer.backend);
    world.set(SERVICE, SetRole::ClusterIp, &[20]);
    assert_eq!(send_by(&world, F::addr(VIP), false).1.addr, F::addr(20));
}

fn later<F: TestFamily>(world: &World<F>) {
    world.now.set(world.now.get() + 64);
}

fn datagrams_leave_a_service_that_lost_the_frontend<F: TestFamily>() {
    for mut world in both_ways::<F>(&[POD_B]) {
        assert_eq!(send(&world, VIP).1.service, SERVICE);
        world.set(SERVICE2, SetRole::ClusterIp, &[REMOTE]);
        world.frontend(F::addr(VIP), PORT, SERVICE2, FRONTEND_CLUSTER_IP);
        later(&world);
        for _ in 0..3 {
            let (verdict, peer) = send(&world, VIP);
            assert_eq!(
                (verdict, peer.addr, peer.service),
                (SocketVerdict::Translate, F::addr(REMOTE), SERVICE2)
            );
            assert_eq!(source(&world, REMOTE, TARGET_PORT), Some((F::addr(VIP), PORT)));
        }
        // Nothing else changed for others.
        assert!(world.alive.len() > 1);
    }
}

fn datagrams_to_a_frontend_that_is_gone_are_not_translated<F: TestFamily>() {
    for mut world in both_ways::<F>(&[POD_B]) {
        for vip in [VIP, EXTERNAL_IP] {
            assert_eq!(send(&world, vip).0, SocketVerdict::Translate);
            world.frontends.remove(&FrontendKey::new(F::addr(vip), PORT.to_be(), PROTOCOL_UDP));
        }
        later(&world);
        for _ in 0..3 {
            assert_eq!(send(&world, VIP).0, SocketVerdict::Reject, "another port of the cluster IP is there");
            assert_eq!(send(&world, EXTERNAL_IP).0, SocketVerdict::Pass);
        }
    }
}

fn a_source_that_is_no_longer_allowed_is_turned_away<F: TestFamily>() {
    for mut world in both_ways::<F>(&[POD_B]) {
        world.frontend(F::addr(EXTERNAL_IP), PORT, SERVICE, FRONTEND_SOURCES);
        world.netns.insert(1, F::addr(POD_A));
        world.sources = [(SERVICE, F::addr(POD_A))].into();
        assert_eq!(send(&world, EXTERNAL_IP).0, SocketVerdict::Translate);
        world.sources.clear();
        later(&world);
        assert_eq!(send(&world, EXTERNAL_IP).0, SocketVerdict::Denied);
    }
}

fn the_frontend_is_looked_up_seldom<F: TestFamily>() {
    for world in both_ways::<F>(&[POD_B]) {
        world.now.set(64_000);
        send(&world, VIP);
        world.steps.borrow_mut().clear();
        for jiffy in 0..640 {
            world.now.set(64_000 + jiffy);
            send(&world, VIP);
        }
        let steps = world.steps.borrow();
        let look_ups = steps.iter().filter(|step| matches!(step, Step::Frontend(_))).count();
        assert_eq!(look_ups, 9);
    }
}

/// Even if no socket can keep anything itself.
fn namespaces_do_not_push_out_each_other<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    world.socket_storage = false;
    send(&world, VIP);
    world.socket_netns.set(2);
    for cookie in 0..20_000 {
        world.socket.set(COOKIE + 1 + cookie);
        send(&world, VIP);
    }
    assert!(world.shared_peers.borrow().len() <= SharedKey::PER_NETNS as usize + 2);
    assert_eq!(source(&world, POD_B, TARGET_PORT), Some((F::addr(VIP), PORT)), "the latest of its own");
    world.socket_netns.set(1);
    world.socket.set(COOKIE);
    assert_eq!(source(&world, POD_B, TARGET_PORT), Some((F::addr(VIP), PORT)));
}

/// A hundred VIPs, each with a backend of its own: all but two are in the map.
fn further_vips_are_shared_and_answer<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    for number in 100..200 {
        let service = Id::new(number.into(), 1);
        world.set(service, SetRole::ClusterIp, &[number]);
        world.frontend(F::addr(number), PORT, service, FRONTEND_CLUSTER_IP);
    }
    for _ in 0..2 {
        for number in 100..200 {
            assert_eq!(send(&world, number).1.addr, F::addr(number));
        }
        for number in 100..200 {
            assert_eq!(source(&world, number, TARGET_PORT), Some((F::addr(number), PORT)), "{number}");
        }
        assert_eq!(world.shared_peers.borrow().len(), 2 * 98);
    }
    // A backend that goes makes room.
    world.alive.remove(&backend::<F>(100).id);
    send(&world, VIP);
    assert_eq!(world.shared_peers.borrow().len(), 2 * 98);
}

fn without_memory_nothing_is_sent<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    world.socket_memory = false;
    assert_eq!(send(&world, VIP).0, SocketVerdict::Reject);
    assert_eq!(world.counter(Counter::FlowMapFull), 1);
    assert_eq!(send(&world, CLIENT).0, SocketVerdict::Pass);
}

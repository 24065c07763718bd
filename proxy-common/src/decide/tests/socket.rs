//! Sockets as clients.

use super::{fixture::*, for_both_families};
use crate::{
    decide::{self, Seen, SocketClient, SocketOrigin, SocketVerdict, Step},
    layout::{
        counter::Counter,
        frontend::{FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES, FrontendKey},
        id::Id,
        set::SetPolicy,
        socket::{SharedKey, SocketPeer},
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
};

for_both_families! {
    connect_table
    no_endpoints_refuses
    datagrams_keep_their_backend
    datagrams_leave_a_removed_backend
    replies_seem_to_come_from_the_vip
    two_services_on_one_backend_reply_as_the_last_requested
    a_connected_socket_sends_to_its_backend
    datagrams_leave_a_service_that_lost_the_frontend
    datagrams_to_a_frontend_that_is_gone_are_not_translated
    a_source_that_is_no_longer_allowed_is_denied
    the_frontend_is_looked_up_seldom
    namespaces_do_not_push_out_each_other
    further_vips_are_shared_and_answer
    without_memory_nothing_is_sent
}

const COOKIE: u64 = 7;

fn connect<F: TestFamily>(
    fixture: &Fixture<F>,
    addr: F::Addr,
    port: u16,
    protocol: u8,
    origin: SocketOrigin,
) -> (SocketVerdict, SocketPeer<F>) {
    let mut peer = SocketPeer::default();
    let client = SocketClient { origin, netns: 1, bound: F::UNSPECIFIED };
    let verdict = decide::connect(&fixture.0, &addr, port.to_be(), protocol, &client, &mut peer);
    (verdict, peer)
}

fn send<F: TestFamily>(fixture: &Fixture<F>, vip: u8) -> (SocketVerdict, SocketPeer<F>) {
    send_by(fixture, F::addr(vip), false)
}

fn send_by<F: TestFamily>(
    fixture: &Fixture<F>,
    addr: F::Addr,
    is_connected: bool,
) -> (SocketVerdict, SocketPeer<F>) {
    let mut peer = SocketPeer::default();
    let netns = fixture.socket_netns.get();
    let client = SocketClient { origin: SocketOrigin::Pod, netns, bound: F::UNSPECIFIED };
    let verdict =
        decide::send(&fixture.0, &addr, PORT.to_be(), PROTOCOL_UDP, &client, is_connected, &mut peer);
    (verdict, peer)
}

/// The source that a datagram for a pod shows.
fn source<F: TestFamily>(fixture: &Fixture<F>, addr: u8, port: u16) -> Option<(F::Addr, u16)> {
    let mut seen = Seen::default();
    decide::datagram_source(&fixture.0, &F::addr(addr), port.to_be(), &mut seen)
        .then_some((seen.addr, u16::from_be(seen.port)))
}

/// With socket storage, and without.
fn both_ways<F: TestFamily>(backends: &[u8]) -> [Fixture<F>; 2] {
    [true, false].map(|socket_storage| {
        let mut fixture = Fixture::<F>::new(backends);
        fixture.socket_storage = socket_storage;
        fixture
    })
}

fn connect_table<F: TestFamily>() {
    use SocketOrigin::{Node, Pod};
    use SocketVerdict::{Pass, Reject, Translate};
    let fixture = Fixture::<F>::new(&[POD_B]);
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
            let (verdict, peer) = connect(&fixture, addr, port, protocol, origin);
            assert_eq!(verdict, expected, "{addr:?}:{port} {protocol} {origin:?}");
            if expected == Translate {
                let expected = backend::<F>(POD_B);
                assert_eq!((peer.addr, peer.port, peer.backend), (expected.addr, expected.port, expected.id));
                assert_eq!(peer.service, SERVICE);
            }
        }
    }
    assert_eq!(fixture.counter(Counter::SocketConnect), 12);
}

fn no_endpoints_refuses<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[]);
    let (verdict, _) = connect(&fixture, F::addr(VIP), PORT, PROTOCOL_TCP, SocketOrigin::Pod);
    assert_eq!(verdict, SocketVerdict::Reject);
    assert_eq!(send(&fixture, VIP).0, SocketVerdict::Reject);
}

fn datagrams_keep_their_backend<F: TestFamily>() {
    for fixture in both_ways::<F>(&[POD_B, REMOTE, 14, 15, 16]) {
        let first = send(&fixture, VIP);
        assert_eq!(first.0, SocketVerdict::Translate);
        for _ in 0..20 {
            fixture.now.set(fixture.now.get() + 40);
            let next = send(&fixture, VIP);
            assert_eq!((next.0, next.1.addr, next.1.backend), (first.0, first.1.addr, first.1.backend));
        }
    }
}

fn datagrams_leave_a_removed_backend<F: TestFamily>() {
    for mut fixture in both_ways::<F>(&[POD_B]) {
        send(&fixture, VIP);
        fixture.alive.clear();
        fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
        assert_eq!(send(&fixture, VIP).1.addr, F::addr(REMOTE));
    }
}

fn replies_seem_to_come_from_the_vip<F: TestFamily>() {
    for fixture in both_ways::<F>(&[POD_B]) {
        send(&fixture, VIP);
        assert_eq!(source(&fixture, POD_B, TARGET_PORT), Some((F::addr(VIP), PORT)));
        assert_eq!(source(&fixture, POD_B, TARGET_PORT + 1), None);
        assert_eq!(source(&fixture, REMOTE, TARGET_PORT), None);
        fixture.socket.set(COOKIE + 1);
        assert_eq!(source(&fixture, POD_B, TARGET_PORT), None);
    }
}

fn two_services_on_one_backend_reply_as_the_last_requested<F: TestFamily>() {
    for fixture in both_ways::<F>(&[POD_B]) {
        for vip in [VIP, VIP2, EXTERNAL_IP, VIP, EXTERNAL_IP, VIP2] {
            send(&fixture, vip);
            assert_eq!(source(&fixture, POD_B, TARGET_PORT), Some((F::addr(vip), PORT)));
        }
    }
}

/// It would not receive from another source.
fn a_connected_socket_sends_to_its_backend<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B, REMOTE, 14, 15, 16]);
    let (verdict, peer) = connect(&fixture, F::addr(VIP), PORT, PROTOCOL_UDP, SocketOrigin::Pod);
    assert_eq!(verdict, SocketVerdict::Translate);
    decide::remember_connected(&fixture.0, &F::addr(VIP), PORT.to_be(), &peer);
    for _ in 0..20 {
        assert_eq!(send_by(&fixture, F::addr(VIP), true).1.addr, peer.addr);
    }
    // The agent ended the connection, because the backend is gone.
    fixture.alive.remove(&peer.backend);
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[20]);
    assert_eq!(send_by(&fixture, F::addr(VIP), false).1.addr, F::addr(20));
}

fn later<F: TestFamily>(fixture: &Fixture<F>) {
    fixture.now.set(fixture.now.get() + 64);
}

fn datagrams_leave_a_service_that_lost_the_frontend<F: TestFamily>() {
    for mut fixture in both_ways::<F>(&[POD_B]) {
        assert_eq!(send(&fixture, VIP).1.service, SERVICE);
        fixture.set(SERVICE2, SetPolicy::ClusterIp, &[REMOTE]);
        fixture.frontend(F::addr(VIP), PORT, SERVICE2, FRONTEND_CLUSTER_IP);
        later(&fixture);
        for _ in 0..3 {
            let (verdict, peer) = send(&fixture, VIP);
            assert_eq!(
                (verdict, peer.addr, peer.service),
                (SocketVerdict::Translate, F::addr(REMOTE), SERVICE2)
            );
            assert_eq!(source(&fixture, REMOTE, TARGET_PORT), Some((F::addr(VIP), PORT)));
        }
        // The other backends are still alive.
        assert!(fixture.alive.len() > 1);
    }
}

fn datagrams_to_a_frontend_that_is_gone_are_not_translated<F: TestFamily>() {
    for mut fixture in both_ways::<F>(&[POD_B]) {
        for vip in [VIP, EXTERNAL_IP] {
            assert_eq!(send(&fixture, vip).0, SocketVerdict::Translate);
            fixture.frontends.remove(&FrontendKey::new(F::addr(vip), PORT.to_be(), PROTOCOL_UDP));
        }
        later(&fixture);
        for _ in 0..3 {
            assert_eq!(
                send(&fixture, VIP).0,
                SocketVerdict::Reject,
                "another port of the cluster IP is there"
            );
            assert_eq!(send(&fixture, EXTERNAL_IP).0, SocketVerdict::Pass);
        }
    }
}

fn a_source_that_is_no_longer_allowed_is_denied<F: TestFamily>() {
    for mut fixture in both_ways::<F>(&[POD_B]) {
        fixture.frontend(F::addr(EXTERNAL_IP), PORT, SERVICE, FRONTEND_SOURCE_RANGES);
        fixture.netns.insert(1, F::addr(POD_A));
        fixture.sources = [(SERVICE, F::addr(POD_A))].into();
        assert_eq!(send(&fixture, EXTERNAL_IP).0, SocketVerdict::Translate);
        fixture.sources.clear();
        later(&fixture);
        assert_eq!(send(&fixture, EXTERNAL_IP).0, SocketVerdict::Denied);
    }
}

fn the_frontend_is_looked_up_seldom<F: TestFamily>() {
    for fixture in both_ways::<F>(&[POD_B]) {
        fixture.now.set(64_000);
        send(&fixture, VIP);
        fixture.steps.borrow_mut().clear();
        for jiffy in 0..640 {
            fixture.now.set(64_000 + jiffy);
            send(&fixture, VIP);
        }
        let steps = fixture.steps.borrow();
        let look_ups = steps.iter().filter(|step| matches!(step, Step::Frontend(_))).count();
        assert_eq!(look_ups, 9);
    }
}

/// Even without socket storage.
fn namespaces_do_not_push_out_each_other<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    fixture.socket_storage = false;
    send(&fixture, VIP);
    fixture.socket_netns.set(2);
    for cookie in 0..20_000 {
        fixture.socket.set(COOKIE + 1 + cookie);
        send(&fixture, VIP);
    }
    assert!(fixture.shared_peers.borrow().len() <= SharedKey::PER_NETNS as usize + 2);
    assert_eq!(source(&fixture, POD_B, TARGET_PORT), Some((F::addr(VIP), PORT)), "the latest of its own");
    fixture.socket_netns.set(1);
    fixture.socket.set(COOKIE);
    assert_eq!(source(&fixture, POD_B, TARGET_PORT), Some((F::addr(VIP), PORT)));
}

/// A hundred VIPs, each with a different backend: all but two are in the shared map.
fn further_vips_are_shared_and_answer<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    for number in 100..200 {
        let service = Id::new(number.into(), 1);
        fixture.set(service, SetPolicy::ClusterIp, &[number]);
        fixture.frontend(F::addr(number), PORT, service, FRONTEND_CLUSTER_IP);
    }
    for _ in 0..2 {
        for number in 100..200 {
            assert_eq!(send(&fixture, number).1.addr, F::addr(number));
        }
        for number in 100..200 {
            assert_eq!(source(&fixture, number, TARGET_PORT), Some((F::addr(number), PORT)), "{number}");
        }
        assert_eq!(fixture.shared_peers.borrow().len(), 2 * 98);
    }
    // The entry of a removed backend makes room.
    fixture.alive.remove(&backend::<F>(100).id);
    send(&fixture, VIP);
    assert_eq!(fixture.shared_peers.borrow().len(), 2 * 98);
}

fn without_memory_nothing_is_sent<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    fixture.socket_memory = false;
    assert_eq!(send(&fixture, VIP).0, SocketVerdict::Reject);
    assert_eq!(fixture.counter(Counter::FlowMapFull), 1);
    assert_eq!(send(&fixture, CLIENT).0, SocketVerdict::Pass);
}

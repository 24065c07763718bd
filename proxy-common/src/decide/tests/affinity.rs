//! Clients that keep their endpoint (`sessionAffinity: ClientIP`).

use std::collections::HashSet;

use super::{fixture::*, for_both_families};
use crate::{
    decide::{self, SocketClient, SocketOrigin, SocketVerdict},
    layout::{counter::Counter, set::SetPolicy, socket::SocketPeer},
    packet::PROTOCOL_TCP,
};

for_both_families! {
    a_client_keeps_its_endpoint_over_all_frontends
    it_chooses_anew_when_it_was_away_too_long
    it_leaves_an_endpoint_that_left_the_set
    sockets_keep_theirs_by_namespace
}

const TIMEOUT: u32 = 10_000;
const MANY: [u8; 8] = [POD_B, REMOTE, 14, 15, 16, 17, 18, 19];

fn fixture<F: TestFamily>(backends: &[u8]) -> Fixture<F> {
    let mut fixture = Fixture::<F>::new(&[]);
    fixture.affinity_timeouts.insert(SERVICE, TIMEOUT);
    for set_policy in SetPolicy::ALL {
        fixture.set(SERVICE, set_policy, backends);
    }
    fixture.set(SERVICE2, SetPolicy::ClusterIp, backends);
    fixture
}

/// The endpoints of `count` new connections of a client.
fn chosen<F: TestFamily>(fixture: &Fixture<F>, client: u8, to: End, count: u16) -> HashSet<F::Addr> {
    // Different source ports: each is a new flow.
    let first = 10_000 + fixture.entries().1 as u16;
    let packets = (0..count).map(|i| tcp((client, first + i), to, SYN));
    packets.map(|packet| fixture.pod_sends(&packet).out.to.dst).collect()
}

fn a_client_keeps_its_endpoint_over_all_frontends<F: TestFamily>() {
    let fixture = fixture::<F>(&MANY);
    let kept = chosen(&fixture, POD_A, (VIP, PORT), 30);
    assert_eq!(kept.len(), 1);
    assert_eq!(fixture.counter(Counter::AffinityKept), 29);
    for frontend in [(NODE, NODE_PORT), (EXTERNAL_IP, PORT)] {
        assert_eq!(chosen(&fixture, POD_A, frontend, 3), kept, "{frontend:?}");
    }
    // Other services and other clients do not share the affinity.
    assert!(chosen(&fixture, POD_A, (VIP2, PORT), 30).len() > 1);
    let others = (40..70).map(|client| chosen(&fixture, client, (VIP, PORT), 2));
    let others: std::vec::Vec<_> = others.collect();
    assert!(others.iter().all(|chosen| chosen.len() == 1));
    assert!(others.iter().flatten().collect::<HashSet<_>>().len() > 1);
}

fn it_chooses_anew_when_it_was_away_too_long<F: TestFamily>() {
    let fixture = fixture::<F>(&MANY);
    let pass = |time| fixture.now.set(fixture.now.get() + time);
    let before = chosen(&fixture, POD_A, (VIP, PORT), 1);
    // The timeout starts again with each new connection.
    for _ in 0..5 {
        pass(TIMEOUT - 1);
        assert_eq!(chosen(&fixture, POD_A, (VIP, PORT), 1), before);
    }
    let mut seen = HashSet::new();
    for _ in 0..30 {
        pass(TIMEOUT);
        seen.extend(chosen(&fixture, POD_A, (VIP, PORT), 1));
    }
    assert!(seen.len() > 1);
}

fn it_leaves_an_endpoint_that_left_the_set<F: TestFamily>() {
    let mut fixture = fixture::<F>(&[POD_B]);
    assert_eq!(chosen(&fixture, POD_A, (VIP, PORT), 2), [F::addr(POD_B)].into());
    // The backend still serves, as a terminating endpoint does, but gets no new connections.
    let set_policy = SetPolicy::ClusterIp;
    fixture.members.remove(&(backend::<F>(POD_B).id, set_policy.bit()));
    fixture.set(SERVICE, set_policy, &[REMOTE]);
    assert_eq!(chosen(&fixture, POD_A, (VIP, PORT), 2), [F::addr(REMOTE)].into());
    // The affinity also ends if another backend has its id by now.
    fixture.members.insert((backend::<F>(REMOTE).id, set_policy.bit()));
    fixture.alive.remove(&backend::<F>(REMOTE).id);
    fixture.set(SERVICE, set_policy, &[POD_B]);
    fixture.alive.remove(&backend::<F>(REMOTE).id);
    assert_eq!(chosen(&fixture, POD_A, (VIP, PORT), 2), [F::addr(POD_B)].into());
}

fn sockets_keep_theirs_by_namespace<F: TestFamily>() {
    let fixture = fixture::<F>(&MANY);
    let connect = |netns, bound: F::Addr| {
        let client = SocketClient { origin: SocketOrigin::Pod, netns, bound };
        let mut peer = SocketPeer::<F>::default();
        let (addr, port) = (F::addr(VIP), PORT.to_be());
        let verdict = decide::connect(&fixture.0, &addr, port, PROTOCOL_TCP, &client, &mut peer);
        assert_eq!(verdict, SocketVerdict::Translate);
        peer.addr
    };
    let first = connect(1, F::UNSPECIFIED);
    assert!((0..30).all(|_| connect(1, F::UNSPECIFIED) == first));
    let others: HashSet<_> = (2..32).map(|netns| connect(netns, F::UNSPECIFIED)).collect();
    assert!(others.len() > 1);
}

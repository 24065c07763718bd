//! Clients that keep their endpoint (`sessionAffinity: ClientIP`).

use std::collections::HashSet;

use super::{for_both_families, world::*};
use crate::{
    decide::{self, SocketClient, SocketOrigin, SocketVerdict},
    layout::{counter::Counter, set::SetRole, socket::SocketPeer},
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

fn world<F: TestFamily>(backends: &[u8]) -> World<F> {
    let mut world = World::<F>::new(&[]);
    world.affinity_timeouts.insert(SERVICE, TIMEOUT);
    for role in SetRole::ALL {
        world.set(SERVICE, role, backends);
    }
    world.set(SERVICE2, SetRole::ClusterIp, backends);
    world
}

/// Where `count` new connections of a client go.
fn chosen<F: TestFamily>(world: &World<F>, client: u8, to: End, count: u16) -> HashSet<F::Addr> {
    // Source ports of their own: each is a new flow.
    let first = 10_000 + world.entries().1 as u16;
    let packets = (0..count).map(|i| tcp((client, first + i), to, SYN));
    packets.map(|packet| world.pod_sends(&packet).out.to.dst).collect()
}

fn a_client_keeps_its_endpoint_over_all_frontends<F: TestFamily>() {
    let world = world::<F>(&MANY);
    let kept = chosen(&world, POD_A, (VIP, PORT), 30);
    assert_eq!(kept.len(), 1);
    assert_eq!(world.counter(Counter::AffinityKept), 29);
    for frontend in [(NODE, NODE_PORT), (EXTERNAL_IP, PORT)] {
        assert_eq!(chosen(&world, POD_A, frontend, 3), kept, "{frontend:?}");
    }
    // Not shared with other services, nor with other clients.
    assert!(chosen(&world, POD_A, (VIP2, PORT), 30).len() > 1);
    let others = (40..70).map(|client| chosen(&world, client, (VIP, PORT), 2));
    let others: std::vec::Vec<_> = others.collect();
    assert!(others.iter().all(|chosen| chosen.len() == 1));
    assert!(others.iter().flatten().collect::<HashSet<_>>().len() > 1);
}

fn it_chooses_anew_when_it_was_away_too_long<F: TestFamily>() {
    let world = world::<F>(&MANY);
    let pass = |time| world.now.set(world.now.get() + time);
    let before = chosen(&world, POD_A, (VIP, PORT), 1);
    // Each new connection counts from itself.
    for _ in 0..5 {
        pass(TIMEOUT - 1);
        assert_eq!(chosen(&world, POD_A, (VIP, PORT), 1), before);
    }
    let mut seen = HashSet::new();
    for _ in 0..30 {
        pass(TIMEOUT);
        seen.extend(chosen(&world, POD_A, (VIP, PORT), 1));
    }
    assert!(seen.len() > 1);
}

fn it_leaves_an_endpoint_that_left_the_set<F: TestFamily>() {
    let mut world = world::<F>(&[POD_B]);
    assert_eq!(chosen(&world, POD_A, (VIP, PORT), 2), [F::addr(POD_B)].into());
    // It still serves, as a terminating endpoint does, but gets no new connections.
    let role = SetRole::ClusterIp;
    world.members.remove(&(backend::<F>(POD_B).id, role.bit()));
    world.set(SERVICE, role, &[REMOTE]);
    assert_eq!(chosen(&world, POD_A, (VIP, PORT), 2), [F::addr(REMOTE)].into());
    // Nor is it one if its id is another's by now.
    world.members.insert((backend::<F>(REMOTE).id, role.bit()));
    world.alive.remove(&backend::<F>(REMOTE).id);
    world.set(SERVICE, role, &[POD_B]);
    world.alive.remove(&backend::<F>(REMOTE).id);
    assert_eq!(chosen(&world, POD_A, (VIP, PORT), 2), [F::addr(POD_B)].into());
}

fn sockets_keep_theirs_by_namespace<F: TestFamily>() {
    let world = world::<F>(&MANY);
    let connect = |netns, bound: F::Addr| {
        let client = SocketClient { origin: SocketOrigin::Pod, netns, bound };
        let mut peer = SocketPeer::<F>::default();
        let (addr, port) = (F::addr(VIP), PORT.to_be());
        let verdict = decide::connect(&world.0, &addr, port, PROTOCOL_TCP, &client, &mut peer);
        assert_eq!(verdict, SocketVerdict::Translate);
        peer.addr
    };
    let first = connect(1, F::UNSPECIFIED);
    assert!((0..30).all(|_| connect(1, F::UNSPECIFIED) == first));
    let others: HashSet<_> = (2..32).map(|netns| connect(netns, F::UNSPECIFIED)).collect();
    assert!(others.len() > 1);
}

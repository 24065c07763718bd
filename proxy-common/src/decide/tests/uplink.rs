//! Clients outside.

use super::{for_both_families, world::*};
use crate::{
    decide::{Fragmentable, RouteKind, Verdict},
    layout::{
        counter::Counter,
        device::{DEVICE_FRAGMENTS, DEVICE_FRAGMENTS_WHOLE},
        set::SetRole,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    local_backend_and_back
    remote_backend_and_back
    remote_endpoint_behind_a_pods_interface
    cluster_ip_from_outside_passes
    cluster_ip_from_outside_when_allowed
    external_set_from_outside
    unresolved_neighbour_is_forwarded_all_the_same
    what_the_stack_must_send
    no_route_drops
    hop_limit
    packets_that_may_be_fragmented
    whole_packets_that_may_be_fragmented
    what_the_stack_sends_it_fragments
    packets_too_big_for_the_route
    no_endpoints_rejects
    broken_slot_drops
    full_map_drops_and_leaves_nothing
}

pub(super) const CLIENT_END: End = (CLIENT, 50_000);
pub(super) const FRONTEND: End = (NODE, NODE_PORT);

fn local_backend_and_back<F: TestFamily>() {
    let world = World::<F>::new(&[POD_A]);
    for _ in 0..2 {
        let said = world.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN));
        // The client keeps its address: the answer must leave by this node anyway.
        said.is(Verdict::Translate, CLIENT_END, (POD_A, TARGET_PORT));
    }
    let reply = tcp((POD_A, TARGET_PORT), CLIENT_END, SYN_ACK);
    assert_eq!(world.pod_sends(&reply).verdict, Verdict::Pass);
    world.to_client(&reply).is(Verdict::Translate, FRONTEND, CLIENT_END);
}

/// The first packet of a connection to the endpoint on another node, as it is sent there.
pub(super) fn open<F: TestFamily>(world: &World<F>, client: End) -> Packet<F> {
    let request = tcp(client, FRONTEND, SYN);
    let said = world.uplink_gets(&request);
    assert_eq!(said.verdict, Verdict::Forward, "{client:?}");
    said.sent(&request)
}

fn remote_backend_and_back<F: TestFamily>() {
    let world = World::<F>::new(&[REMOTE]);
    let sent = open(&world, CLIENT_END);
    assert_eq!((sent.tuple.src, sent.tuple.dst), (F::addr(NODE), F::addr(REMOTE)));
    assert_eq!(open(&world, CLIENT_END), sent, "the second packet takes the same way");
    let reply = packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK);
    let back = world.uplink_gets(&reply);
    back.is(Verdict::Forward, FRONTEND, CLIENT_END);
    assert_eq!(back.out.route.next_hop, F::addr(GATEWAY));
    assert_eq!(world.to_client(&reply).verdict, Verdict::Pass, "never at the other edge");
}

fn remote_endpoint_behind_a_pods_interface<F: TestFamily>() {
    let reply_of = |world: &World<F>| packet(open(world, CLIENT_END).tuple.reversed(), PROTOCOL_TCP, SYN_ACK);
    let world = World::<F>::new(&[REMOTE]);
    world.pod_sends(&reply_of(&world)).is(Verdict::Forward, FRONTEND, CLIENT_END);
    // The request left by an interface behind the bridge, which translates the reply.
    let world = World::<F>::new(&[REMOTE]).bridged();
    assert_eq!(world.pod_sends(&reply_of(&world)).verdict, Verdict::Pass);
}

fn cluster_ip_from_outside_passes<F: TestFamily>() {
    let world = World::<F>::new(&[POD_A]);
    assert_eq!(world.uplink_gets(&tcp(CLIENT_END, (VIP, PORT), SYN)).verdict, Verdict::Pass);
}

fn cluster_ip_from_outside_when_allowed<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_A]);
    world.settings.external_cluster_ips = true;
    let said = world.uplink_gets(&tcp(CLIENT_END, (VIP, PORT), SYN));
    said.is(Verdict::Translate, CLIENT_END, (POD_A, TARGET_PORT));
}

fn external_set_from_outside<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    world.set(SERVICE, SetRole::External, &[POD_A]);
    world.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).is(
        Verdict::Translate,
        CLIENT_END,
        (POD_A, TARGET_PORT),
    );
    let to_external_ip = world.uplink_gets(&tcp((CLIENT, 50_001), (EXTERNAL_IP, PORT), SYN));
    to_external_ip.is(Verdict::Translate, (CLIENT, 50_001), (POD_A, TARGET_PORT));
    // From inside, policies for outside do not count.
    let inside = world.pod_sends(&tcp((POD_A, 1), FRONTEND, SYN));
    inside.is(Verdict::Translate, (POD_A, 1), (REMOTE, TARGET_PORT));
}

fn unresolved_neighbour_is_forwarded_all_the_same<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    world.resolve(REMOTE, false);
    for _ in 0..2 {
        let said = world.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN));
        assert_eq!((said.verdict, said.out.route.kind), (Verdict::Forward, RouteKind::Unresolved));
    }
}

/// It is translated as by any other route, and the stack takes one off its hop limit.
fn what_the_stack_must_send<F: TestFamily>() {
    for is_there_before in [true, false] {
        let mut world = World::<F>::new(&[REMOTE]);
        let known = is_there_before.then(|| open(&world, CLIENT_END));
        let before = world.default_route.hops();
        world.default_route.kind = RouteKind::Stack;
        assert_eq!((before, world.default_route.hops()), (1, 0));
        let sent = open(&world, CLIENT_END);
        assert_eq!((sent.tuple.src, sent.tuple.dst), (F::addr(NODE), F::addr(REMOTE)));
        assert!(known.is_none_or(|known| known == sent), "the flow stays");
        let back = world.uplink_gets(&packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK));
        back.is(Verdict::Forward, FRONTEND, CLIENT_END);
        assert_eq!(back.out.route.kind, RouteKind::Stack);
        let acknowledged = world.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK));
        assert_eq!((acknowledged.verdict, acknowledged.out.route.kind), (Verdict::Forward, RouteKind::Stack));
        let last = Packet { hop_limit: 1, ..tcp(CLIENT_END, FRONTEND, ACK) };
        assert_eq!(
            world.uplink_gets(&last).verdict,
            Verdict::TimeExceeded,
            "the client is told, not this node"
        );
        // The stack sends it by the same uplink; it came in by another interface then.
        world.came_in.set(1);
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            let flags = if protocol == PROTOCOL_TCP { SYN } else { 0 };
            let request = packet(tuple((CLIENT, 50_007), FRONTEND), protocol, flags);
            let sent = world.uplink_gets(&request).sent(&request);
            assert_eq!(world.to_outside(&sent).verdict, Verdict::Pass);
        }
        assert!(world.outbound.borrow().is_empty(), "nothing else has sent it");
    }
}

fn no_route_drops<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    open(&world, CLIENT_END);
    world.default_route.kind = RouteKind::None;
    for client in [CLIENT_END, (CLIENT, 50_001)] {
        assert_eq!(world.uplink_gets(&tcp(client, FRONTEND, SYN)).verdict, Verdict::Drop);
    }
    assert_eq!(world.counter(Counter::NoRoute), 2);
}

fn hop_limit<F: TestFamily>() {
    for hop_limit in [0, 1] {
        let remote = World::<F>::new(&[REMOTE]);
        let request = Packet { hop_limit, ..tcp(CLIENT_END, FRONTEND, SYN) };
        assert_eq!(remote.uplink_gets(&request).verdict, Verdict::TimeExceeded, "new flow");
        assert_eq!(remote.entries(), (0, 0));
        let sent = open(&remote, CLIENT_END);
        assert_eq!(remote.uplink_gets(&request).verdict, Verdict::TimeExceeded, "known flow");
        let reply = Packet { hop_limit, ..packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK) };
        assert_eq!(remote.uplink_gets(&reply).verdict, Verdict::TimeExceeded, "answer");
        // Nobody is told of errors, nor of fragments other than the first.
        for packet in [request, reply] {
            let follower = Packet { follows: true, ..packet };
            assert_eq!(remote.uplink_gets(&follower).verdict, Verdict::Drop, "follower");
        }
        assert_eq!(remote.counter(Counter::HopLimit), 5);
        // The stack answers for what goes through it.
        let local = World::<F>::new(&[POD_A]);
        assert_eq!(local.uplink_gets(&request).verdict, Verdict::Translate);
    }
}

/// The stack cuts what leaves from an address of the node, where it takes such packets; nobody is told then.
fn packets_that_may_be_fragmented<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    world.default_route.mtu = 1400;
    world.size.set(1401);
    world.fragmentable.set(Fragmentable::Fragment);
    let request = udp(CLIENT_END, FRONTEND);
    assert_eq!(world.uplink_gets(&request).verdict, Verdict::TooBig, "the stack takes none");
    for device in world.devices.values_mut() {
        device.flags |= DEVICE_FRAGMENTS;
    }
    let sent = world.uplink_gets(&request);
    assert_eq!((sent.verdict, sent.out.route.kind), (Verdict::Forward, RouteKind::Stack), "new flow");
    let again = world.uplink_gets(&request);
    assert_eq!((again.verdict, again.out.route.kind), (Verdict::Forward, RouteKind::Stack), "known flow");
    let follower = Packet { follows: true, ..request };
    let later = world.uplink_gets(&follower);
    assert_eq!((later.verdict, later.out.route.kind), (Verdict::Forward, RouteKind::Stack), "later fragment");
    world.fragmentable.set(Fragmentable::No);
    assert_eq!(world.uplink_gets(&request).verdict, Verdict::TooBig, "don't fragment");
    assert_eq!(world.counter(Counter::TooBig), 2);
}

/// Where the stack puts fragments together, it takes whole packets alone.
fn whole_packets_that_may_be_fragmented<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    world.default_route.mtu = 1400;
    world.size.set(1401);
    world.devices.values_mut().for_each(|device| device.flags |= DEVICE_FRAGMENTS_WHOLE);
    let request = udp(CLIENT_END, FRONTEND);
    for (fragmentable, verdict) in [
        (Fragmentable::Whole, Verdict::Forward),
        (Fragmentable::Fragment, Verdict::TooBig),
        (Fragmentable::No, Verdict::TooBig),
    ] {
        world.fragmentable.set(fragmentable);
        assert_eq!(world.uplink_gets(&request).verdict, verdict, "{fragmentable:?}");
    }
}

/// By an encapsulation, or for a policy: fragments too, and by interfaces that differ in nothing. Who allows none is told.
fn what_the_stack_sends_it_fragments<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    world.default_route.mtu = 1400;
    world.default_route.by_stack = true;
    world.size.set(1401);
    let request = udp(CLIENT_END, FRONTEND);
    for fragmentable in [Fragmentable::Whole, Fragmentable::Fragment] {
        world.fragmentable.set(fragmentable);
        let sent = world.uplink_gets(&request);
        assert_eq!((sent.verdict, sent.out.route.kind), (Verdict::Forward, RouteKind::Stack));
    }
    world.fragmentable.set(Fragmentable::No);
    assert_eq!(world.uplink_gets(&request).verdict, Verdict::TooBig);
}

/// A router in our place would say so. Nothing was sent, so no flow is opened; smaller packets go on.
fn packets_too_big_for_the_route<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    world.default_route.mtu = 1400;
    world.size.set(1401);
    let request = tcp(CLIENT_END, FRONTEND, SYN);
    let told = world.uplink_gets(&request);
    assert_eq!((told.verdict, told.out.route.mtu), (Verdict::TooBig, 1400), "new flow");
    assert_eq!(world.entries(), (0, 0));
    world.size.set(1400);
    let sent = world.uplink_gets(&request);
    assert_eq!(sent.verdict, Verdict::Forward);
    world.size.set(1401);
    assert_eq!(world.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK)).verdict, Verdict::TooBig, "known flow");
    let reply = packet(sent.out.to.reversed(), PROTOCOL_TCP, SYN_ACK);
    assert_eq!(world.uplink_gets(&reply).verdict, Verdict::TooBig, "answer");
    let follower = Packet { follows: true, ..reply };
    assert_eq!(world.uplink_gets(&follower).verdict, Verdict::Drop, "follower");
    assert_eq!(world.counter(Counter::TooBig), 4);
    // The stack looks at what goes through it.
    let mut local = World::<F>::new(&[POD_A]);
    local.default_route.mtu = 1400;
    local.size.set(9_000);
    assert_eq!(local.uplink_gets(&request).verdict, Verdict::Translate);
}

fn no_endpoints_rejects<F: TestFamily>() {
    let world = World::<F>::new(&[]);
    assert_eq!(world.uplink_gets(&udp(CLIENT_END, FRONTEND)).verdict, Verdict::Reject);
}

fn broken_slot_drops<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_A]);
    world.backends.clear();
    assert_eq!(world.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Drop);
    assert_eq!(world.counter(Counter::BadSlot), 1);
}

fn full_map_drops_and_leaves_nothing<F: TestFamily>() {
    for max_flows in [0, 1] {
        let mut world = World::<F>::new(&[POD_A]);
        world.max_flows = max_flows;
        assert_eq!(world.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Drop);
        assert_eq!(world.counter(Counter::FlowMapFull), 1);
        assert_eq!(world.entries(), (0, 0));
    }
}

//! Clients outside.

use super::{for_both_families, world::*};
use crate::{
    decide::{NodeAddress, RouteKind, Verdict},
    layout::{
        counter::Counter,
        device::{Device, NODE_ADDR_SNAT},
        frontend::{FrontendKey, Target},
        set::SetRole,
    },
    packet::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    local_backend_and_back
    remote_backend_and_back
    snat_ports_come_from_the_range
    cluster_ip_from_outside_passes
    cluster_ip_from_outside_when_allowed
    external_set_from_outside
    unresolved_neighbour_is_forwarded_all_the_same
    no_route_drops
    no_snat_address_drops
    hop_limit
    packets_too_big_for_the_route
    followers_need_a_flow
    snat_exhaustion
    idle_flows_give_their_source_ports
    a_closed_connection_s_port_rests_while_there_is_another
    a_socket_s_port_is_not_given_away
    the_source_is_the_one_that_the_route_prefers
    unknown_snat_port
    a_frontend_may_have_a_snat_port
    no_endpoints_rejects
    broken_slot_drops
    full_map_drops_and_leaves_nothing
}

const CLIENT_END: End = (CLIENT, 50_000);
const FRONTEND: End = (NODE, NODE_PORT);

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

fn open<F: TestFamily>(world: &World<F>, client: End) -> Packet<F> {
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

fn snat_ports_come_from_the_range<F: TestFamily>() {
    let world = World::<F>::new(&[REMOTE]);
    let mut ports = std::collections::HashSet::new();
    for port in 50_000..50_030 {
        let sport = u16::from_be(open(&world, (CLIENT, port)).tuple.sport);
        assert!(SNAT.contains(&sport));
        assert!(ports.insert(sport), "{sport} twice");
    }
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

fn no_route_drops<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    open(&world, CLIENT_END);
    world.default_route.kind = RouteKind::None;
    for client in [CLIENT_END, (CLIENT, 50_001)] {
        assert_eq!(world.uplink_gets(&tcp(client, FRONTEND, SYN)).verdict, Verdict::Drop);
    }
    assert_eq!(world.counter(Counter::NoRoute), 2);
}

fn no_snat_address_drops<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    let flags = world.devices[&UPLINK].flags;
    world.devices.insert(UPLINK, Device { flags, ..Device::default() });
    assert_eq!(world.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Drop);
    assert_eq!(world.counter(Counter::NoSnatAddress), 1);
}

fn hop_limit<F: TestFamily>() {
    for hop_limit in [0, 1] {
        let remote = World::<F>::new(&[REMOTE]);
        let request = Packet { hop_limit, ..tcp(CLIENT_END, FRONTEND, SYN) };
        assert_eq!(remote.uplink_gets(&request).verdict, Verdict::TimeExceeded, "new flow");
        assert!(remote.flows.borrow().is_empty());
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

/// A router in our place would say so; the flow is opened nevertheless, and smaller packets go on.
fn packets_too_big_for_the_route<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    world.default_route.mtu = 1400;
    world.size.set(1401);
    let request = tcp(CLIENT_END, FRONTEND, SYN);
    let told = world.uplink_gets(&request);
    assert_eq!((told.verdict, told.out.route.mtu), (Verdict::TooBig, 1400), "new flow");
    assert_eq!(world.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK)).verdict, Verdict::TooBig, "known flow");
    world.size.set(1400);
    let sent = world.uplink_gets(&request);
    assert_eq!(sent.verdict, Verdict::Forward);
    world.size.set(1401);
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

/// ICMP errors and fragments open nothing and refuse nothing.
fn followers_need_a_flow<F: TestFamily>() {
    for backends in [&[REMOTE][..], &[POD_A], &[]] {
        let world = World::<F>::new(backends);
        let follower = Packet { follows: true, ..tcp(CLIENT_END, FRONTEND, 0) };
        assert_eq!(world.uplink_gets(&follower).verdict, Verdict::Pass, "{backends:?}");
        let to_snat = Packet { follows: true, ..tcp((REMOTE, 8080), (NODE, 20_001), 0) };
        assert_eq!(world.uplink_gets(&to_snat).verdict, Verdict::Pass, "{backends:?}");
        assert!(world.flows.borrow().is_empty());
    }
    let world = World::<F>::new(&[REMOTE]);
    let sent = open(&world, CLIENT_END);
    let follower = Packet { follows: true, ..tcp(CLIENT_END, FRONTEND, 0) };
    let seen = world.uplink_gets(&follower);
    assert_eq!((seen.verdict, seen.out.to), (Verdict::Forward, sent.tuple));
}

fn snat_exhaustion<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_003);
    let mut verdicts = std::vec![];
    for port in 50_000..50_064 {
        verdicts.push(world.uplink_gets(&tcp((CLIENT, port), FRONTEND, SYN)).verdict);
    }
    let forwarded = verdicts.iter().filter(|&&verdict| verdict == Verdict::Forward).count();
    assert_eq!(forwarded, 4);
    assert_eq!(world.counter(Counter::SnatExhausted), 60);
    assert_eq!(world.flows.borrow().len(), 8);
    // Another backend has the same ports to itself.
    world.set(SERVICE, SetRole::External, &[14]);
    assert_eq!(world.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK)).verdict, Verdict::Forward);
    assert_eq!(world.uplink_gets(&tcp((CLIENT, 60_000), FRONTEND, SYN)).verdict, Verdict::Forward);
}

/// Once found by losing one of 6,700 requests: datagram flows never end, and their ports ran out.
fn idle_flows_give_their_source_ports<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_000);
    let open = |world: &World<F>, request: &Packet<F>| world.uplink_gets(request).verdict;
    let datagram = |port| udp((CLIENT, port), FRONTEND);
    let first = datagram(50_000);
    let sent = world.uplink_gets(&first).sent(&first);
    assert_eq!(open(&world, &datagram(50_001)), Verdict::Drop, "in use");
    world.now.set(world.now.get() + world.settings.idle);
    assert_eq!(open(&world, &datagram(50_002)), Verdict::Forward, "idle");
    // Nothing of the old flow is left: its client could get the new one's answers.
    assert_eq!(world.flows.borrow().len(), 2);
    let reply = packet(sent.tuple.reversed(), PROTOCOL_UDP, 0);
    world.uplink_gets(&reply).is(Verdict::Forward, FRONTEND, (CLIENT, 50_002));

    let syn = |port| tcp((CLIENT, port), FRONTEND, SYN);
    assert_eq!(open(&world, &syn(50_000)), Verdict::Forward);
    world.now.set(world.now.get() + world.settings.idle);
    assert_eq!(open(&world, &syn(50_001)), Verdict::Drop, "a silent connection is still one");
    world.uplink_gets(&tcp((CLIENT, 50_000), FRONTEND, RST));
    world.now.set(world.now.get() + world.settings.idle);
    assert_eq!(open(&world, &syn(50_002)), Verdict::Forward, "closed and idle");
}

/// Once seen as handshakes that took a second: the backend, in TIME-WAIT, took the SYN for an old one.
fn a_closed_connection_s_port_rests_while_there_is_another<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_001);
    let open = |world: &World<F>, port| {
        let said = world.uplink_gets(&tcp((CLIENT, port), FRONTEND, SYN));
        (said.verdict, said.out.to.sport)
    };
    let (_, closed) = open(&world, 50_000);
    world.uplink_gets(&tcp((CLIENT, 50_000), FRONTEND, RST));
    world.now.set(world.now.get() + world.settings.idle);
    let (verdict, other) = open(&world, 50_001);
    assert_eq!((verdict, other == closed), (Verdict::Forward, false), "another is free");
    assert_eq!(open(&world, 50_002), (Verdict::Forward, closed), "rather that than none");
    world.uplink_gets(&tcp((CLIENT, 50_001), FRONTEND, RST));
    world.now.set(world.now.get() + world.settings.rest());
    assert_eq!(open(&world, 50_003), (Verdict::Forward, other), "it rested long enough");
}

fn a_socket_s_port_is_not_given_away<F: TestFamily>() {
    for (protocol, is_given) in [(PROTOCOL_TCP, false), (PROTOCOL_UDP, false), (PROTOCOL_SCTP, true)] {
        let mut world = World::<F>::new(&[REMOTE]);
        (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_003);
        let target = Target::new(SERVICE, 0).unwrap();
        world.add_frontend(FrontendKey::new(F::UNSPECIFIED, NODE_PORT.to_be(), protocol), target);
        world.listening.insert((F::addr(NODE), 20_001u16.to_be(), protocol));
        let ports: std::collections::HashSet<u16> = (50_000..50_004)
            .map(|port| packet(tuple((CLIENT, port), FRONTEND), protocol, SYN))
            .map(|request| world.uplink_gets(&request))
            .filter(|said| said.verdict == Verdict::Forward)
            .map(|said| u16::from_be(said.out.to.sport))
            .collect();
        // There is no look-up for SCTP.
        assert_eq!((ports.len(), ports.contains(&20_001)), if is_given { (4, true) } else { (3, false) });
        assert_eq!(world.counter(Counter::SnatExhausted), (!is_given).into());
    }
}

fn the_source_is_the_one_that_the_route_prefers<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    let source = |world: &World<F>, port| open(world, (CLIENT, port)).tuple.src;
    world.preferred_sources.insert(F::addr(REMOTE), F::addr(OTHER_NODE_ADDRESS));
    assert_eq!(source(&world, 1), F::addr(NODE), "late answers to the other would be taken for the stack's");
    world.node_addresses.insert(F::addr(OTHER_NODE_ADDRESS), NodeAddress(NODE_ADDR_SNAT));
    assert_eq!(source(&world, 2), F::addr(OTHER_NODE_ADDRESS));
    assert_eq!(source(&world, 1), F::addr(NODE), "flows keep theirs");
    // It does without an address of the device.
    world.devices.get_mut(&UPLINK).unwrap().snat_v4 = 0;
    world.devices.get_mut(&UPLINK).unwrap().snat_v6 = [0; 4];
    assert_eq!(source(&world, 3), F::addr(OTHER_NODE_ADDRESS));
}

fn unknown_snat_port<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    let stray = tcp((REMOTE, TARGET_PORT), (NODE, 20_050), ACK);
    assert_eq!(world.uplink_gets(&stray).verdict, Verdict::Drop);
    assert_eq!(world.counter(Counter::SnatUnknown), 1);
    for (destination, why) in [
        ((NODE, 19_999), "below the range"),
        ((NODE, 20_100), "above the range"),
        ((OTHER_NODE_ADDRESS, 20_050), "an address we never give"),
        ((POD_A, 20_050), "routed through"),
    ] {
        let said = world.uplink_gets(&tcp((REMOTE, TARGET_PORT), destination, ACK));
        assert_eq!(said.verdict, Verdict::Pass, "{why}");
    }
    world.listening.insert((F::addr(NODE), 20_050u16.to_be(), PROTOCOL_TCP));
    assert_eq!(world.uplink_gets(&stray).verdict, Verdict::Pass, "a socket of the node");
}

fn a_frontend_may_have_a_snat_port<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_A]);
    let frontend = (NODE, 20_050);
    world.frontend(F::addr(NODE), 20_050, SERVICE, 0);
    for _ in 0..2 {
        let said = world.uplink_gets(&tcp(CLIENT_END, frontend, SYN));
        said.is(Verdict::Translate, CLIENT_END, (POD_A, TARGET_PORT));
    }
    assert_eq!(world.counter(Counter::SnatUnknown), 0);
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
        assert!(world.flows.borrow().is_empty());
    }
}

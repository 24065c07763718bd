//! Clients outside.

use super::{for_both_families, world::*};
use crate::{
    decide::{Fragmentable, NodeAddress, RouteKind, Verdict},
    layout::{
        counter::Counter,
        device::{DEVICE_FRAGMENTS, DEVICE_FRAGMENTS_WHOLE, Device, NODE_ADDR_SNAT},
        filter,
        flow::{Edge, FlowKey},
        frontend::{FRONTEND_ADDRESS, FrontendKey, Target},
        outbound::{OUTBOUND_ONCE, Outbound},
        set::SetRole,
    },
    packet::{PROTOCOL_ICMP, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    local_backend_and_back
    remote_backend_and_back
    remote_endpoint_behind_a_pods_interface
    snat_ports_come_from_the_range
    cluster_ip_from_outside_passes
    cluster_ip_from_outside_when_allowed
    external_set_from_outside
    unresolved_neighbour_is_forwarded_all_the_same
    what_the_stack_must_send
    no_route_drops
    no_snat_address_drops
    hop_limit
    packets_that_may_be_fragmented
    whole_packets_that_may_be_fragmented
    what_the_stack_sends_it_fragments
    packets_too_big_for_the_route
    followers_need_a_flow
    snat_exhaustion
    the_client_s_port_is_mapped_one_to_one
    a_range_that_is_nearly_full_still_yields
    idle_flows_give_their_source_ports
    flows_give_their_port_when_it_is_safe
    free_ports_are_found
    given_source_addresses_are_used
    kernel_nat_s_port_is_not_given_away
    a_datagram_flow_gives_way_to_a_socket_of_the_node
    a_socket_s_port_is_not_given_away
    the_source_is_the_one_that_the_route_prefers
    what_is_no_request_passes
    replies_to_what_the_node_sent_are_no_requests
    unknown_connections_are_reset_on_their_way_out
    what_would_loop_is_dropped
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

fn remote_endpoint_behind_a_pods_interface<F: TestFamily>() {
    let reply_of = |world: &World<F>| packet(open(world, CLIENT_END).tuple.reversed(), PROTOCOL_TCP, SYN_ACK);
    let world = World::<F>::new(&[REMOTE]);
    world.pod_sends(&reply_of(&world)).is(Verdict::Forward, FRONTEND, CLIENT_END);
    // The request left by an interface behind the bridge, which translates the reply.
    let world = World::<F>::new(&[REMOTE]).bridged();
    assert_eq!(world.pod_sends(&reply_of(&world)).verdict, Verdict::Pass);
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

/// ICMP errors and fragments open nothing and refuse nothing.
fn followers_need_a_flow<F: TestFamily>() {
    for backends in [&[REMOTE][..], &[POD_A], &[]] {
        let world = World::<F>::new(backends);
        let follower = Packet { follows: true, ..tcp(CLIENT_END, FRONTEND, 0) };
        assert_eq!(world.uplink_gets(&follower).verdict, Verdict::Pass, "{backends:?}");
        let to_snat = Packet { follows: true, ..tcp((REMOTE, 8080), (NODE, 20_001), 0) };
        assert_eq!(world.uplink_gets(&to_snat).verdict, Verdict::Pass, "{backends:?}");
        assert_eq!(world.entries(), (0, 0));
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
    assert_eq!(world.entries(), (0, 8));
    // Another backend has the same ports to itself.
    world.set(SERVICE, SetRole::External, &[14]);
    assert_eq!(world.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK)).verdict, Verdict::Forward);
    assert_eq!(world.uplink_gets(&tcp((CLIENT, 60_000), FRONTEND, SYN)).verdict, Verdict::Forward);
}

/// So that the client's kernel keeps the rules of TIME-WAIT between the same ends. The usual ephemeral range fits whole.
fn the_client_s_port_is_mapped_one_to_one<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    (world.settings.snat_first, world.settings.snat_last) = (1_024, 29_999);
    let mut ports = std::collections::HashSet::new();
    for port in (32_768..=60_999).step_by(7) {
        let sent = open(&world, (CLIENT, port));
        assert_eq!(u16::from_be(sent.tuple.sport), 1_024 + (port % 28_976), "port {port}");
        assert!(ports.insert(sent.tuple.sport));
    }
}

fn a_range_that_is_nearly_full_still_yields<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_999);
    for port in 50_000..50_900 {
        world.client_connects((CLIENT, port), FRONTEND);
    }
    for port in 51_000..51_050 {
        open(&world, (CLIENT, port));
    }
    assert_eq!((world.counter(Counter::SnatExhausted), world.entries().0), (0, 1_800));
}

/// Once found by losing one of 6,700 requests: datagram flows never end, and their ports ran out.
fn idle_flows_give_their_source_ports<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_001);
    let open = |world: &World<F>, request: &Packet<F>| {
        let said = world.uplink_gets(request);
        (said.verdict, u16::from_be(said.out.to.sport))
    };
    let datagram = |port| udp((CLIENT, port), FRONTEND);
    let reply = |port| udp((REMOTE, TARGET_PORT), (NODE, port));
    assert_eq!(open(&world, &datagram(50_000)), (Verdict::Forward, 20_000));
    world.uplink_gets(&reply(20_000));
    world.now.set(world.now.get() + world.settings.idle);
    assert_eq!(open(&world, &datagram(50_002)), (Verdict::Forward, 20_001), "another port is free");
    world.uplink_gets(&reply(20_001));
    assert_eq!(open(&world, &datagram(50_004)), (Verdict::Forward, 20_000), "rather an idle one than none");
    // Nothing of the old flow is left: its client could get the new one's replies.
    world.uplink_gets(&reply(20_000)).is(Verdict::Forward, FRONTEND, (CLIENT, 50_004));
    assert_eq!(world.entries(), (4, 0));
    assert_eq!(open(&world, &datagram(50_006)).0, Verdict::Drop, "both in use");
    assert_eq!(world.counter(Counter::SnatExhausted), 1);
}

/// TCP, with one port.
fn flows_give_their_port_when_it_is_safe<F: TestFamily>() {
    let reply = tuple((REMOTE, TARGET_PORT), (NODE, 20_000));
    let client = (CLIENT, 50_000);
    let end = |world: &World<F>, steps: &[(bool, u8)]| {
        for (is_reply, flags) in steps {
            let packet =
                if *is_reply { packet(reply, PROTOCOL_TCP, *flags) } else { tcp(client, FRONTEND, *flags) };
            world.uplink_gets(&packet);
        }
    };
    let (second, rest) = (2_500 / 8, 2_500 * 6);
    let later = ISN + 2;
    for (what, is_open, steps, wait, sequence, timestamps, is_given) in [
        ("established", true, &[][..], rest, later, (0, 0), false),
        ("half closed", true, &[(false, FIN)], rest, later, (0, 0), false),
        ("closed by the client first", true, &[(false, FIN), (true, FIN)], 0, 0, (0, 0), true),
        (
            "by the endpoint first, earlier",
            true,
            &[(true, FIN), (false, FIN), (true, ACK)],
            0,
            ISN,
            (0, 0),
            false,
        ),
        (
            "by the endpoint first, later",
            true,
            &[(true, FIN), (false, FIN), (true, ACK)],
            0,
            later,
            (0, 0),
            true,
        ),
        (
            "with an earlier timestamp",
            true,
            &[(true, FIN), (false, FIN), (true, ACK)],
            0,
            later,
            (7, 6),
            false,
        ),
        ("with a later timestamp", true, &[(true, FIN), (false, FIN), (true, ACK)], 0, ISN, (7, 8), true),
        ("after TIME-WAIT", true, &[(true, FIN), (false, FIN), (true, ACK)], rest, ISN, (0, 0), true),
        ("reset just now", true, &[(true, RST)], second - 1, later, (0, 0), false),
        ("reset a second ago", true, &[(true, RST)], second, later, (0, 0), true),
        ("refused", false, &[(true, RST)], 0, later, (0, 0), true),
        ("unconfirmed, just now", false, &[(true, SYN_ACK)], second - 1, later, (0, 0), false),
        ("unconfirmed for a second", false, &[(true, SYN_ACK)], second, later, (0, 0), true),
    ] {
        let mut world = World::<F>::new(&[REMOTE]);
        (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_000);
        world.timestamp.set(timestamps.0);
        if is_open {
            world.client_connects(client, FRONTEND);
        } else {
            open(&world, client);
        }
        end(&world, steps);
        world.now.set(world.now.get() + wait);
        world.timestamp.set(timestamps.1);
        let syn = Packet { sequence, ..tcp((CLIENT, 50_001), FRONTEND, SYN) };
        let expected = if is_given { Verdict::Forward } else { Verdict::Drop };
        assert_eq!(world.uplink_gets(&syn).verdict, expected, "{what}");
        if is_given {
            world.uplink_gets(&packet(reply, PROTOCOL_TCP, SYN_ACK)).is(
                Verdict::Forward,
                FRONTEND,
                (CLIENT, 50_001),
            );
        }
    }
}

/// Of few ports the last free one is found. Of many that are taken side by side, as those of one client are, a free one.
fn free_ports_are_found<F: TestFamily>() {
    for (count, taken) in [(1, 0), (2, 1), (10, 9), (16, 15), (1_000, 900), (8_000, 7_200)] {
        let mut world = World::<F>::new(&[REMOTE]);
        (world.settings.snat_first, world.settings.snat_last) = (1_024, 1_023 + count);
        for number in 0..taken {
            open(&world, (CLIENT, 1_024 + number));
        }
        let before = world.pending.borrow().clone();
        for port in 1_024..1_024 + taken.min(100) {
            open(&world, (CLIENT + 1, port));
            world.pending.borrow_mut().clone_from(&before);
        }
    }
}

fn given_source_addresses_are_used<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    world.snat_sources = std::vec![F::addr(NODE), F::addr(OTHER_NODE_ADDRESS)];
    world.settings.snat_sources = 2;
    (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_009);
    // One client has one of them while it has ports, then the other.
    let sources: std::vec::Vec<_> =
        (0..20).map(|number| open(&world, (CLIENT, 50_000 + number)).tuple.src).collect();
    assert!(sources[..10].iter().all(|source| *source == sources[0]));
    assert!(sources[10..].iter().all(|source| *source != sources[0]));
    assert_eq!(world.uplink_gets(&tcp((CLIENT, 51_000), FRONTEND, SYN)).verdict, Verdict::Drop);
    // Clients are spread over both.
    let mut world = World::<F>::new(&[REMOTE]);
    world.snat_sources = std::vec![F::addr(NODE), F::addr(OTHER_NODE_ADDRESS)];
    world.settings.snat_sources = 2;
    let ours = (100..120).filter(|client| open(&world, (*client, 50_000)).tuple.src == F::addr(NODE)).count();
    assert!((5..16).contains(&ours), "{ours} of 20");
}

/// Once seen: a socket that was bound to the source port of a flow got no replies from the flow's endpoint.
fn a_datagram_flow_gives_way_to_a_socket_of_the_node<F: TestFamily>() {
    for is_answered in [false, true] {
        let mut world = World::<F>::new(&[REMOTE]);
        let request = udp(CLIENT_END, FRONTEND);
        let sent = world.uplink_gets(&request).sent(&request);
        let reply = packet(sent.tuple.reversed(), PROTOCOL_UDP, 0);
        if is_answered {
            assert_eq!(world.uplink_gets(&reply).verdict, Verdict::Forward);
        }
        // What is sent on for the client leaves as it did, and so does what the stack sends on for us, in fragments that came in by no
        // device, too. Once these removed the flow that they are of.
        for came_in in [UPLINK, 1, 0] {
            world.came_in.set(came_in);
            assert_eq!(world.to_outside(&packet(sent.tuple, PROTOCOL_UDP, 0)).verdict, Verdict::Pass);
            assert_eq!(world.uplink_gets(&request).out.to, sent.tuple);
        }
        let port = sent.tuple.sport;
        world.listening.insert((F::addr(NODE), port, PROTOCOL_UDP));
        assert_eq!(world.to_outside(&packet(sent.tuple, PROTOCOL_UDP, 0)).verdict, Verdict::Pass);
        assert_eq!(world.uplink_gets(&reply).verdict, Verdict::Pass, "the socket's");
        let said = world.uplink_gets(&request);
        assert_eq!(said.verdict, Verdict::Forward);
        assert_ne!(said.out.to.sport, sent.tuple.sport, "the client has another one");
    }
}

/// Kernel NAT takes any port, and replies to it must not be taken for an endpoint's.
fn kernel_nat_s_port_is_not_given_away<F: TestFamily>() {
    for (protocol, flags) in [(PROTOCOL_TCP, SYN), (PROTOCOL_UDP, 0)] {
        let mut world = World::<F>::new(&[REMOTE]);
        (world.settings.snat_first, world.settings.snat_last) = (20_000, 20_001);
        // A pod talks to the endpoint directly, and the kernel gives it the node's address and this port.
        let direct = packet(tuple((NODE, 20_000), (REMOTE, TARGET_PORT)), protocol, flags);
        world.came_in.set(POD_A_DEVICE);
        assert_eq!(world.to_outside(&direct).verdict, Verdict::Pass);
        let request = |port| packet(tuple((CLIENT, port), FRONTEND), protocol, flags);
        let said = world.uplink_gets(&request(50_000));
        assert_eq!((said.verdict, said.out.to.sport), (Verdict::Forward, 20_001u16.to_be()));
        assert_eq!(world.uplink_gets(&request(50_002)).verdict, Verdict::Drop);
        // What we send on ourselves is not remembered.
        let own = packet(said.out.to, protocol, flags);
        assert_eq!(world.to_outside(&own).verdict, Verdict::Pass);
        assert_eq!(world.outbound.borrow().len(), 1);
        // Nor is what came in by the uplink that it leaves by, as the shortcut has it.
        world.leaves.set(UPLINK);
        world.came_in.set(UPLINK);
        assert_eq!(
            world.to_outside(&packet(tuple((NODE, 20_001), (CLIENT, 9)), protocol, flags)).verdict,
            Verdict::Pass
        );
        assert_eq!(world.outbound.borrow().len(), 1);
        world.now.set(world.now.get() + world.settings.outbound());
        assert_eq!(world.uplink_gets(&request(50_002)).verdict, Verdict::Forward, "long ago");
    }
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
    assert_eq!(source(&world, 1), F::addr(NODE), "the agent does not know the other");
    world.node_addresses.insert(F::addr(OTHER_NODE_ADDRESS), NodeAddress(NODE_ADDR_SNAT));
    assert_eq!(source(&world, 2), F::addr(OTHER_NODE_ADDRESS));
    assert_eq!(source(&world, 1), F::addr(NODE), "flows keep theirs");
    // It does without an address of the device.
    world.devices.get_mut(&UPLINK).unwrap().snat_v4 = 0;
    world.devices.get_mut(&UPLINK).unwrap().snat_v6 = [0; 4];
    assert_eq!(source(&world, 3), F::addr(OTHER_NODE_ADDRESS));
}

/// Ports and addresses alone are no evidence.
fn what_is_no_request_passes<F: TestFamily>() {
    for backends in [&[POD_A][..], &[REMOTE], &[]] {
        let world = World::<F>::new(backends);
        for flags in [ACK, RST, RST | ACK, FIN, SYN_ACK, SYN | FIN, SYN | RST, 0] {
            for destination in [FRONTEND, (NODE, 20_050), (EXTERNAL_IP, PORT), (VIP, PORT), (VIP, 9)] {
                for source in [CLIENT_END, (REMOTE, TARGET_PORT)] {
                    let packet = tcp(source, destination, flags);
                    assert_eq!(world.uplink_gets(&packet).verdict, Verdict::Pass, "{packet:?}");
                    assert_eq!(world.pod_sends(&packet).verdict, Verdict::Pass, "{packet:?}");
                }
            }
        }
        assert_eq!(world.entries(), (0, 0));
    }
}

/// Kernel NAT uses nodePorts, too.
fn replies_to_what_the_node_sent_are_no_requests<F: TestFamily>() {
    let server = (CLIENT, 53);
    let (sent, reply) = (udp(FRONTEND, server), udp(server, FRONTEND));
    for is_to_pod in [false, true] {
        let world = World::<F>::new(&[POD_A]);
        if is_to_pod {
            assert_eq!(world.to_client(&sent).verdict, Verdict::Pass);
            assert_eq!(world.pod_sends(&reply).verdict, Verdict::Pass);
        } else {
            assert_eq!(world.to_outside(&sent).verdict, Verdict::Pass);
            assert_eq!(world.uplink_gets(&reply).verdict, Verdict::Pass);
        }
        assert_eq!(world.counter(Counter::ReplyToNode), 1);
        // As long as one side sends.
        for _ in 0..5 {
            world.now.set(world.now.get() + world.settings.outbound() - 1);
            assert_eq!(world.uplink_gets(&reply).verdict, Verdict::Pass);
        }
        // Others are served meanwhile, and so is this one later.
        assert_eq!(world.uplink_gets(&udp((CLIENT, 54), FRONTEND)).verdict, Verdict::Translate);
        world.now.set(world.now.get() + world.settings.outbound());
        assert_eq!(world.uplink_gets(&reply).verdict, Verdict::Translate);
    }
    // The endpoint's reply, translated and seen once more at another interface, is not the node's.
    let world = World::<F>::new(&[POD_A]);
    assert_eq!(world.uplink_gets(&reply).verdict, Verdict::Translate);
    assert_eq!(world.to_outside(&sent).verdict, Verdict::Pass);
    assert!(world.outbound.borrow().is_empty());
    // What other rules of the kernel translate is left to them for so long, and no longer.
    let world = World::<F>::new(&[POD_A]);
    let outbound = Outbound { last_seen: world.now.get(), flags: OUTBOUND_ONCE };
    world.outbound.borrow_mut().insert(FlowKey::new(reply.tuple, PROTOCOL_UDP, Edge::Forward), outbound);
    for _ in 0..2 {
        assert_eq!(world.uplink_gets(&reply).verdict, Verdict::Pass);
        world.now.set(world.now.get() + world.settings.outbound() / 2);
    }
    assert_eq!(world.uplink_gets(&reply).verdict, Verdict::Translate);
}

/// Failover of an address, eviction, reboot: the client shall open another connection at once.
fn unknown_connections_are_reset_on_their_way_out<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_A]);
    world.service_addresses.insert(F::addr(VIP));
    for (came_in, destination, flags, expected) in [
        (UPLINK, (EXTERNAL_IP, PORT), ACK, Verdict::Reset),
        (UPLINK, (EXTERNAL_IP, PORT), FIN, Verdict::Reset),
        (UPLINK, (EXTERNAL_IP, PORT), RST, Verdict::Drop),
        // Nobody else has a cluster IP.
        (POD_A_DEVICE, (VIP, PORT), ACK, Verdict::Reset),
        (0, (VIP, PORT), ACK, Verdict::Reset),
        (POD_A_DEVICE, (VIP, PORT), RST, Verdict::Drop),
        // A server elsewhere may have the external address: this node's pods may have been connected to it before.
        (POD_A_DEVICE, (EXTERNAL_IP, PORT), ACK, Verdict::Pass),
        (0, (EXTERNAL_IP, PORT), ACK, Verdict::Pass),
        // No Service's port.
        (UPLINK, (EXTERNAL_IP, 9), ACK, Verdict::Pass),
    ] {
        world.came_in.set(came_in);
        let packet = tcp(CLIENT_END, destination, flags);
        assert_eq!(world.to_outside(&packet).verdict, expected, "{packet:?} from {came_in}");
    }
    // By another uplink.
    world.came_in.set(UPLINK + 1);
    let packet = tcp(CLIENT_END, (EXTERNAL_IP, PORT), ACK);
    assert_eq!(world.to_outside(&packet).verdict, Verdict::Pass, "no uplink");
    let uplink = world.devices[&UPLINK];
    world.devices.insert(UPLINK + 1, uplink);
    assert_eq!(world.to_outside(&packet).verdict, Verdict::Reset);
    assert_eq!(world.counter(Counter::ConnectionUnknown), 7);
}

fn what_would_loop_is_dropped<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_A]);
    let address = Target::new(SERVICE, FRONTEND_ADDRESS).unwrap();
    world.frontends.insert(FrontendKey::of_address(F::addr(EXTERNAL_IP)), address);
    world.filter.insert(filter::of_address::<F>(&F::addr(EXTERNAL_IP)));
    let to = |port| udp(CLIENT_END, (EXTERNAL_IP, port));
    let ping = packet(tuple((CLIENT, 0), (EXTERNAL_IP, 0)), PROTOCOL_ICMP, 0);
    let fragment = Packet { follows: true, ..to(9) };
    for packet in [to(9), ping, fragment, tcp(CLIENT_END, (EXTERNAL_IP, 9), SYN)] {
        // Whoever takes it on this node gets it.
        assert_eq!(world.uplink_gets(&packet).verdict, Verdict::Pass);
        world.came_in.set(POD_A_DEVICE);
        assert_eq!(world.to_outside(&packet).verdict, Verdict::Pass, "from a pod");
        world.came_in.set(UPLINK);
        assert_eq!(world.to_outside(&packet).verdict, Verdict::Drop, "{packet:?}");
    }
    let uplink = world.devices[&UPLINK];
    world.devices.insert(UPLINK + 1, uplink);
    world.came_in.set(UPLINK + 1);
    assert_eq!(world.to_outside(&to(9)).verdict, Verdict::Pass, "the node is a router between two uplinks");
    assert_eq!(world.counter(Counter::Loop), 4);
    assert_eq!(world.pod_sends(&to(9)).verdict, Verdict::Pass, "no cluster IP");
}

fn a_frontend_may_have_a_snat_port<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_A]);
    let frontend = (NODE, 20_050);
    world.frontend(F::addr(NODE), 20_050, SERVICE, 0);
    for _ in 0..2 {
        let said = world.uplink_gets(&tcp(CLIENT_END, frontend, SYN));
        said.is(Verdict::Translate, CLIENT_END, (POD_A, TARGET_PORT));
    }
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

//! Source addresses and ports of flows to endpoints on other nodes.

use super::{
    fixture::*,
    for_both_families,
    uplink::{CLIENT_END, FRONTEND, open},
};
use crate::{
    decide::{NodeAddress, Verdict},
    layout::{
        counter::Counter,
        device::{Device, NODE_ADDR_SNAT},
        frontend::{FrontendKey, Target},
        set::SetPolicy,
    },
    packet::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    snat_ports_come_from_the_range
    no_snat_address_drops
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
    a_frontend_may_have_a_snat_port
}

fn snat_ports_come_from_the_range<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[REMOTE]);
    let mut ports = std::collections::HashSet::new();
    for port in 50_000..50_030 {
        let sport = u16::from_be(open(&fixture, (CLIENT, port)).tuple.sport);
        assert!(SNAT.contains(&sport));
        assert!(ports.insert(sport), "{sport} twice");
    }
}

fn no_snat_address_drops<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    let flags = fixture.devices[&UPLINK].flags;
    fixture.devices.insert(UPLINK, Device { flags, ..Device::default() });
    assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Drop);
    assert_eq!(fixture.counter(Counter::NoSnatAddress), 1);
}

fn snat_exhaustion<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 20_003);
    let mut verdicts = std::vec![];
    for port in 50_000..50_064 {
        verdicts.push(fixture.uplink_gets(&tcp((CLIENT, port), FRONTEND, SYN)).verdict);
    }
    let forwarded = verdicts.iter().filter(|&&verdict| verdict == Verdict::Redirect).count();
    assert_eq!(forwarded, 4);
    assert_eq!(fixture.counter(Counter::SnatExhausted), 60);
    assert_eq!(fixture.entries(), (0, 8));
    // Another backend has its own range of ports.
    fixture.set(SERVICE, SetPolicy::External, &[14]);
    assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK)).verdict, Verdict::Redirect);
    assert_eq!(fixture.uplink_gets(&tcp((CLIENT, 60_000), FRONTEND, SYN)).verdict, Verdict::Redirect);
}

/// So the client's kernel keeps the rules of TIME-WAIT between the same ends. The usual ephemeral range fits
/// whole.
fn the_client_s_port_is_mapped_one_to_one<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    (fixture.settings.snat_first, fixture.settings.snat_last) = (1_024, 29_999);
    let mut ports = std::collections::HashSet::new();
    for port in (32_768..=60_999).step_by(7) {
        let sent = open(&fixture, (CLIENT, port));
        assert_eq!(u16::from_be(sent.tuple.sport), 1_024 + (port % 28_976), "port {port}");
        assert!(ports.insert(sent.tuple.sport));
    }
}

fn a_range_that_is_nearly_full_still_yields<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 20_999);
    for port in 50_000..50_900 {
        fixture.client_connects((CLIENT, port), FRONTEND);
    }
    for port in 51_000..51_050 {
        open(&fixture, (CLIENT, port));
    }
    assert_eq!((fixture.counter(Counter::SnatExhausted), fixture.entries().0), (0, 1_800));
}

/// Regression test: one of 6,700 requests was lost, because datagram flows never end, and their ports ran out.
fn idle_flows_give_their_source_ports<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 20_001);
    let open = |fixture: &Fixture<F>, request: &Packet<F>| {
        let decision = fixture.uplink_gets(request);
        (decision.verdict, u16::from_be(decision.out.to.sport))
    };
    let datagram = |port| udp((CLIENT, port), FRONTEND);
    let reply = |port| udp((REMOTE, TARGET_PORT), (NODE, port));
    assert_eq!(open(&fixture, &datagram(50_000)), (Verdict::Redirect, 20_000));
    fixture.uplink_gets(&reply(20_000));
    fixture.now.set(fixture.now.get() + fixture.settings.idle);
    assert_eq!(open(&fixture, &datagram(50_002)), (Verdict::Redirect, 20_001), "another port is free");
    fixture.uplink_gets(&reply(20_001));
    assert_eq!(
        open(&fixture, &datagram(50_004)),
        (Verdict::Redirect, 20_000),
        "rather an idle one than none"
    );
    // The old flow has no entries left: its client could get the new one's replies.
    fixture.uplink_gets(&reply(20_000)).is(Verdict::Redirect, FRONTEND, (CLIENT, 50_004));
    assert_eq!(fixture.entries(), (4, 0));
    assert_eq!(open(&fixture, &datagram(50_006)).0, Verdict::Drop, "both in use");
    assert_eq!(fixture.counter(Counter::SnatExhausted), 1);
}

/// TCP, with one port.
fn flows_give_their_port_when_it_is_safe<F: TestFamily>() {
    let reply = tuple((REMOTE, TARGET_PORT), (NODE, 20_000));
    let client = (CLIENT, 50_000);
    let end = |fixture: &Fixture<F>, steps: &[(bool, u8)]| {
        for (is_reply, flags) in steps {
            let packet =
                if *is_reply { packet(reply, PROTOCOL_TCP, *flags) } else { tcp(client, FRONTEND, *flags) };
            fixture.uplink_gets(&packet);
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
        let mut fixture = Fixture::<F>::new(&[REMOTE]);
        (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 20_000);
        fixture.timestamp.set(timestamps.0);
        if is_open {
            fixture.client_connects(client, FRONTEND);
        } else {
            open(&fixture, client);
        }
        end(&fixture, steps);
        fixture.now.set(fixture.now.get() + wait);
        fixture.timestamp.set(timestamps.1);
        let syn = Packet { sequence, ..tcp((CLIENT, 50_001), FRONTEND, SYN) };
        let expected = if is_given { Verdict::Redirect } else { Verdict::Drop };
        assert_eq!(fixture.uplink_gets(&syn).verdict, expected, "{what}");
        if is_given {
            fixture.uplink_gets(&packet(reply, PROTOCOL_TCP, SYN_ACK)).is(
                Verdict::Redirect,
                FRONTEND,
                (CLIENT, 50_001),
            );
        }
    }
}

/// The last free port of a small range is found. In a large range a free one is found beside many that are
/// taken side by side, as those of one client are.
fn free_ports_are_found<F: TestFamily>() {
    for (count, taken) in [(1, 0), (2, 1), (10, 9), (16, 15), (1_000, 900), (8_000, 7_200)] {
        let mut fixture = Fixture::<F>::new(&[REMOTE]);
        (fixture.settings.snat_first, fixture.settings.snat_last) = (1_024, 1_023 + count);
        for number in 0..taken {
            open(&fixture, (CLIENT, 1_024 + number));
        }
        let before = fixture.pending.borrow().clone();
        for port in 1_024..1_024 + taken.min(100) {
            open(&fixture, (CLIENT + 1, port));
            fixture.pending.borrow_mut().clone_from(&before);
        }
    }
}

fn given_source_addresses_are_used<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.snat_sources = std::vec![F::addr(NODE), F::addr(OTHER_NODE_ADDRESS)];
    fixture.settings.snat_sources = 2;
    (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 20_009);
    // One client uses one address while that has ports, then the other.
    let sources: std::vec::Vec<_> =
        (0..20).map(|number| open(&fixture, (CLIENT, 50_000 + number)).tuple.src).collect();
    assert!(sources[..10].iter().all(|source| *source == sources[0]));
    assert!(sources[10..].iter().all(|source| *source != sources[0]));
    assert_eq!(fixture.uplink_gets(&tcp((CLIENT, 51_000), FRONTEND, SYN)).verdict, Verdict::Drop);
    // Clients are spread over both.
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.snat_sources = std::vec![F::addr(NODE), F::addr(OTHER_NODE_ADDRESS)];
    fixture.settings.snat_sources = 2;
    let ours =
        (100..120).filter(|client| open(&fixture, (*client, 50_000)).tuple.src == F::addr(NODE)).count();
    assert!((5..16).contains(&ours), "{ours} of 20");
}

/// Regression test: a socket that was bound to the source port of a flow got no replies from the flow's
/// endpoint.
fn a_datagram_flow_gives_way_to_a_socket_of_the_node<F: TestFamily>() {
    for is_answered in [false, true] {
        let mut fixture = Fixture::<F>::new(&[REMOTE]);
        let request = udp(CLIENT_END, FRONTEND);
        let sent = fixture.uplink_gets(&request).sent(&request);
        let reply = packet(sent.tuple.reversed(), PROTOCOL_UDP, 0);
        if is_answered {
            assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::Redirect);
        }
        // The client's forwarded packets leave as before. So do those that the stack sends for the program,
        // even as fragments without an ingress device. Regression test: these removed their flow.
        for came_in in [UPLINK, 1, 0] {
            fixture.came_in.set(came_in);
            assert_eq!(fixture.uplink_egress(&packet(sent.tuple, PROTOCOL_UDP, 0)).verdict, Verdict::Pass);
            assert_eq!(fixture.uplink_gets(&request).out.to, sent.tuple);
        }
        let port = sent.tuple.sport;
        fixture.listening.insert((F::addr(NODE), port, PROTOCOL_UDP));
        assert_eq!(fixture.uplink_egress(&packet(sent.tuple, PROTOCOL_UDP, 0)).verdict, Verdict::Pass);
        assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::Pass, "the socket's");
        let decision = fixture.uplink_gets(&request);
        assert_eq!(decision.verdict, Verdict::Redirect);
        assert_ne!(decision.out.to.sport, sent.tuple.sport, "the client has another one");
    }
}

/// Kernel NAT uses any port, and replies to it must not be taken for an endpoint's.
fn kernel_nat_s_port_is_not_given_away<F: TestFamily>() {
    for (protocol, flags) in [(PROTOCOL_TCP, SYN), (PROTOCOL_UDP, 0)] {
        let mut fixture = Fixture::<F>::new(&[REMOTE]);
        (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 20_001);
        // A pod connects to the endpoint directly, and the kernel gives it the node's address and this port.
        let direct = packet(tuple((NODE, 20_000), (REMOTE, TARGET_PORT)), protocol, flags);
        fixture.came_in.set(POD_A_DEVICE);
        assert_eq!(fixture.uplink_egress(&direct).verdict, Verdict::Pass);
        let request = |port| packet(tuple((CLIENT, port), FRONTEND), protocol, flags);
        let decision = fixture.uplink_gets(&request(50_000));
        assert_eq!((decision.verdict, decision.out.to.sport), (Verdict::Redirect, 20_001u16.to_be()));
        assert_eq!(fixture.uplink_gets(&request(50_002)).verdict, Verdict::Drop);
        // Forwarded packets are not recorded.
        let own = packet(decision.out.to, protocol, flags);
        assert_eq!(fixture.uplink_egress(&own).verdict, Verdict::Pass);
        assert_eq!(fixture.outbound.borrow().len(), 1);
        // Nor are packets that leave by the uplink that they came in by, as on the fast path.
        fixture.leaves.set(UPLINK);
        fixture.came_in.set(UPLINK);
        assert_eq!(
            fixture.uplink_egress(&packet(tuple((NODE, 20_001), (CLIENT, 9)), protocol, flags)).verdict,
            Verdict::Pass
        );
        assert_eq!(fixture.outbound.borrow().len(), 1);
        fixture.now.set(fixture.now.get() + fixture.settings.outbound());
        assert_eq!(fixture.uplink_gets(&request(50_002)).verdict, Verdict::Redirect, "long ago");
    }
}

fn a_socket_s_port_is_not_given_away<F: TestFamily>() {
    for (protocol, is_given) in [(PROTOCOL_TCP, false), (PROTOCOL_UDP, false), (PROTOCOL_SCTP, true)] {
        let mut fixture = Fixture::<F>::new(&[REMOTE]);
        (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 20_003);
        let target = Target::new(SERVICE, 0).unwrap();
        fixture.add_frontend(FrontendKey::new(F::UNSPECIFIED, NODE_PORT.to_be(), protocol), target);
        fixture.listening.insert((F::addr(NODE), 20_001u16.to_be(), protocol));
        let ports: std::collections::HashSet<u16> = (50_000..50_004)
            .map(|port| packet(tuple((CLIENT, port), FRONTEND), protocol, SYN))
            .map(|request| fixture.uplink_gets(&request))
            .filter(|decision| decision.verdict == Verdict::Redirect)
            .map(|decision| u16::from_be(decision.out.to.sport))
            .collect();
        // The kernel has no look-up for SCTP sockets.
        assert_eq!((ports.len(), ports.contains(&20_001)), if is_given { (4, true) } else { (3, false) });
        assert_eq!(fixture.counter(Counter::SnatExhausted), u64::from(!is_given));
    }
}

fn the_source_is_the_one_that_the_route_prefers<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    let source = |fixture: &Fixture<F>, port| open(fixture, (CLIENT, port)).tuple.src;
    fixture.preferred_sources.insert(F::addr(REMOTE), F::addr(OTHER_NODE_ADDRESS));
    assert_eq!(source(&fixture, 1), F::addr(NODE), "the agent does not know the other");
    fixture.node_addresses.insert(F::addr(OTHER_NODE_ADDRESS), NodeAddress(NODE_ADDR_SNAT));
    assert_eq!(source(&fixture, 2), F::addr(OTHER_NODE_ADDRESS));
    assert_eq!(source(&fixture, 1), F::addr(NODE), "flows keep theirs");
    // A preferred source works without an address of the device.
    fixture.devices.get_mut(&UPLINK).unwrap().snat_v4 = 0;
    fixture.devices.get_mut(&UPLINK).unwrap().snat_v6 = [0; 4];
    assert_eq!(source(&fixture, 3), F::addr(OTHER_NODE_ADDRESS));
}

fn a_frontend_may_have_a_snat_port<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_A]);
    let frontend = (NODE, 20_050);
    fixture.frontend(F::addr(NODE), 20_050, SERVICE, 0);
    for _ in 0..2 {
        let decision = fixture.uplink_gets(&tcp(CLIENT_END, frontend, SYN));
        decision.is(Verdict::ToStack, CLIENT_END, (POD_A, TARGET_PORT));
    }
}

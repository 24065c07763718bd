//! Source ports when others had them before, and when all are used.

use super::{for_both_families, world::*};
use crate::{
    decide::Verdict,
    layout::{
        counter::Counter,
        flow::{Edge, FlowKey, FlowState, REFRESH},
        set::SetRole,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    a_port_that_is_taken_over_ends_no_later_connection
    a_closed_flow_ends_no_later_connection_of_its_client
    a_socket_of_the_node_ends_no_later_flow
    a_nodeport_in_the_range_is_used_again
    more_than_one_reply_makes_a_stream
    a_burst_of_datagrams_uses_ports_again
    talking_flows_keep_their_ports
    streams_give_way_last
    tcp_keeps_its_ports
    no_flow_goes_for_nothing
    a_syn_that_is_sent_again_after_a_reset_keeps_its_port
}

const FRONTEND: End = (NODE, NODE_PORT);
const OTHER: u8 = 101;
const THIRD: u8 = 102;

/// A node with so many ports towards its one endpoint.
fn with_ports<F: TestFamily>(count: u16) -> World<F> {
    let mut world = World::<F>::new(&[REMOTE]);
    (world.settings.snat_first, world.settings.snat_last) = (20_000, 19_999 + count);
    world
}

/// The source port of a client's packet; none if it is dropped.
fn port<F: TestFamily>(world: &World<F>, packet: &Packet<F>) -> Option<u16> {
    let said = world.uplink_gets(packet);
    match said.verdict {
        Verdict::Forward => Some(u16::from_be(said.out.to.sport)),
        Verdict::Drop => None,
        other => panic!("{other:?}"),
    }
}

fn reply<F: TestFamily>(world: &World<F>, port: u16) -> Said<F> {
    world.uplink_gets(&udp((REMOTE, TARGET_PORT), (NODE, port)))
}

/// A datagram of a client, and the reply.
fn exchange<F: TestFamily>(world: &World<F>, client: End) -> Option<u16> {
    let port = port(world, &udp(client, FRONTEND))?;
    reply(world, port).is(Verdict::Forward, FRONTEND, client);
    Some(port)
}

fn later<F: TestFamily>(world: &World<F>, jiffies: u32) {
    world.now.set(world.now.get() + jiffies);
}

/// Once seen with many clients: 4 of 373,000 connections were reset. A client's last connection but one had had another source port. When a
/// third client was given that, the forward entry with the first client's address and port was removed, which was that of its next connection.
fn a_port_that_is_taken_over_ends_no_later_connection<F: TestFamily>() {
    let world = with_ports::<F>(2);
    let (one, other) = ((CLIENT, 50_000), (OTHER, 50_000));
    assert_eq!(u16::from_be(world.client_connects(other, FRONTEND).dport), 20_000);
    let first = world.client_connects(one, FRONTEND);
    assert_eq!(u16::from_be(first.dport), 20_001, "its own choice is taken");
    for (client, port) in [(one, 20_001), (other, 20_000)] {
        world.uplink_gets(&tcp(client, FRONTEND, FIN));
        world.uplink_gets(&tcp((REMOTE, TARGET_PORT), (NODE, port), FIN));
    }
    let second = world.uplink_gets(&next_syn(one, FRONTEND)).out.to;
    assert_eq!(u16::from_be(second.sport), 20_000);
    world.uplink_gets(&packet(second.reversed(), PROTOCOL_TCP, SYN_ACK));
    world.uplink_gets(&tcp(one, FRONTEND, ACK));
    // The port of the first connection is free for others.
    assert_eq!(port(&world, &tcp((THIRD, 50_001), FRONTEND, SYN)), Some(20_001));
    let said = world.uplink_gets(&tcp(one, FRONTEND, ACK));
    assert_eq!((said.verdict, said.out.to), (Verdict::Forward, second), "the second connection goes on");
}

/// A client's connection to one endpoint is over, and the next from the same port has another one. What the first endpoint sends to somebody
/// who talks to it directly from there ends only the first.
fn a_closed_flow_ends_no_later_connection_of_its_client<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    let (client, vip) = ((POD_A, 40_000), (VIP, PORT));
    let first = world.pod_connects(client, vip);
    world.pod_sends(&tcp(client, vip, FIN));
    world.to_client(&packet(first, PROTOCOL_TCP, FIN));
    world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
    let second = world.pod_sends(&next_syn(client, vip)).out.to;
    world.to_client(&packet(second.reversed(), PROTOCOL_TCP, SYN_ACK));
    world.pod_sends(&tcp(client, vip, ACK));
    let direct = Packet { acknowledgment: 5 * ISN, ..packet::<F>(first, PROTOCOL_TCP, SYN_ACK) };
    assert_eq!(world.to_client(&direct).verdict, Verdict::Pass);
    assert_eq!(world.to_client(&packet(first, PROTOCOL_TCP, ACK)).verdict, Verdict::Pass, "it is gone");
    let said = world.pod_sends(&tcp(client, vip, ACK));
    assert_eq!((said.verdict, said.out.to), (Verdict::Translate, second));
}

fn a_socket_of_the_node_ends_no_later_flow<F: TestFamily>() {
    for is_answered in [false, true] {
        let mut world = with_ports::<F>(2);
        let client = (CLIENT, 50_000);
        let first = port(&world, &udp(client, FRONTEND)).unwrap();
        if is_answered {
            reply(&world, first);
        }
        // Its endpoint goes, and it has another one.
        world.alive.clear();
        world.set(SERVICE, SetRole::External, &[14]);
        let second = world.uplink_gets(&udp(client, FRONTEND)).out.to;
        if is_answered {
            world.uplink_gets(&packet(second.reversed(), PROTOCOL_UDP, 0));
        }
        world.listening.insert((F::addr(NODE), first.to_be(), PROTOCOL_UDP));
        world.to_outside(&udp((NODE, first), (REMOTE, TARGET_PORT)));
        assert_eq!(reply(&world, first).verdict, Verdict::Pass, "the socket's");
        let key = FlowKey::new(tuple(client, FRONTEND), PROTOCOL_UDP, Edge::Forward);
        let flow = world.flow_entry(&key).expect("the second flow goes on");
        assert_eq!(flow.tuple, second, "answered: {is_answered}");
    }
}

/// What we send on from a port that is a nodePort, too, is not the node's own.
fn a_nodeport_in_the_range_is_used_again<F: TestFamily>() {
    for came_in in [UPLINK, 1] {
        let mut world = World::<F>::new(&[REMOTE]);
        (world.settings.snat_first, world.settings.snat_last) = (NODE_PORT, NODE_PORT);
        for number in 0..3 {
            let client = (CLIENT, 50_000 + number);
            let request = udp(client, FRONTEND);
            let sent = world.uplink_gets(&request).sent(&request);
            world.came_in.set(came_in);
            assert_eq!(world.to_outside(&sent).verdict, Verdict::Pass);
            reply(&world, NODE_PORT).is(Verdict::Forward, FRONTEND, client);
            later(&world, world.settings.replied());
        }
        assert!(world.outbound.borrow().is_empty());
    }
}

/// What conntrack calls ASSURED, from the first packet after a request and its reply on, of either side.
fn more_than_one_reply_makes_a_stream<F: TestFamily>() {
    for is_of_client in [true, false] {
        let world = with_ports::<F>(2);
        let client = (CLIENT, 50_000);
        let states = |expected: FlowState| {
            assert_eq!(world.entries(), (2, 0));
            for flow in world.flows.borrow().values() {
                assert_eq!(flow.get().state, expected as u8, "both entries");
            }
        };
        // A request may be sent again.
        port(&world, &udp(client, FRONTEND));
        let port = exchange(&world, client).unwrap();
        states(FlowState::REPLIED);
        // An error is no datagram of the flow.
        let error = Packet { follows: true, ..udp(client, FRONTEND) };
        assert_eq!(world.uplink_gets(&error).verdict, Verdict::Forward);
        states(FlowState::REPLIED);
        if is_of_client {
            world.uplink_gets(&udp(client, FRONTEND));
        } else {
            reply(&world, port);
        }
        states(FlowState::Established);
    }
}

/// Once 387 of 132,840 datagrams were lost: more flows than ports, each of a request and its reply.
fn a_burst_of_datagrams_uses_ports_again<F: TestFamily>() {
    const PORTS: u16 = 64;
    let world = with_ports::<F>(PORTS);
    let per_port = world.settings.replied() / u32::from(PORTS) + 1;
    for number in 0..1_000 {
        let client = (CLIENT, 10_000 + number);
        assert!(exchange(&world, client).is_some(), "flow {number}");
        later(&world, per_port);
    }
    assert_eq!((world.counter(Counter::SnatExhausted), world.entries()), (0, (2 * usize::from(PORTS), 0)));
    // The last ones are there, and nothing is left of the others.
    for number in 0..1_000 {
        let key = FlowKey::new(tuple((CLIENT, 10_000 + number), FRONTEND), PROTOCOL_UDP, Edge::Forward);
        assert_eq!(world.flow_entry(&key).is_some(), number >= 1_000 - PORTS, "flow {number}");
    }
}

/// One of a full range is idle: it gives its port, and its entries are gone. The others talk.
fn talking_flows_keep_their_ports<F: TestFamily>() {
    const PORTS: u16 = 32;
    let world = with_ports::<F>(PORTS);
    let talkers: std::vec::Vec<End> = (0..PORTS - 1).map(|number| (CLIENT, 10_000 + number)).collect();
    let idle = (OTHER, 40_000);
    let known: std::vec::Vec<_> = talkers.iter().map(|&client| exchange(&world, client)).collect();
    let given = exchange(&world, idle);
    let key = FlowKey::new(tuple(idle, FRONTEND), PROTOCOL_UDP, Edge::Forward);
    for _ in 0..20 {
        later(&world, REFRESH);
        for (&client, &known) in talkers.iter().zip(&known) {
            assert_eq!(exchange(&world, client), known);
        }
        assert!(world.flow_entry(&key).is_some(), "nobody needs its port");
    }
    let new = (THIRD, 50_000);
    assert_eq!(exchange(&world, new), given);
    assert!(world.flow_entry(&key).is_none());
    reply(&world, given.unwrap()).is(Verdict::Forward, FRONTEND, new);
    for (&client, &known) in talkers.iter().zip(&known) {
        assert_eq!(exchange(&world, client), known);
    }
    // All talk now.
    assert_eq!(port(&world, &udp((THIRD, 50_001), FRONTEND)), None);
    assert_eq!(world.counter(Counter::SnatExhausted), 1);
}

/// A stream that was silent for longer keeps its port while a flow of one reply can give one.
fn streams_give_way_last<F: TestFamily>() {
    let world = with_ports::<F>(2);
    let (stream, once) = ((CLIENT, 50_000), (OTHER, 50_000));
    let kept = exchange(&world, stream);
    assert_eq!(exchange(&world, stream), kept);
    later(&world, 2 * world.settings.idle);
    let given = exchange(&world, once);
    later(&world, world.settings.replied());
    assert_eq!(exchange(&world, (THIRD, 50_001)), given);
    reply(&world, kept.unwrap()).is(Verdict::Forward, FRONTEND, stream);
    // It was heard just now, and so was the other.
    assert_eq!(exchange(&world, (THIRD, 50_002)), None);
    later(&world, world.settings.replied());
    assert_eq!(exchange(&world, (THIRD, 50_002)), given);
    assert_eq!(exchange(&world, (THIRD, 50_002)), given, "a stream, too");
    // Both are silent for long.
    later(&world, world.settings.idle);
    assert!(exchange(&world, (THIRD, 50_003)).is_some());
}

fn tcp_keeps_its_ports<F: TestFamily>() {
    let world = with_ports::<F>(4);
    for number in 0..4 {
        world.client_connects((CLIENT, 50_000 + number), FRONTEND);
    }
    later(&world, 100 * world.settings.idle);
    assert_eq!(port(&world, &tcp((OTHER, 50_000), FRONTEND, SYN)), None);
    for number in 0..4 {
        let said = world.uplink_gets(&tcp((CLIENT, 50_000 + number), FRONTEND, ACK));
        assert_eq!(said.verdict, Verdict::Forward);
    }
    // UDP has ports of its own.
    assert!(exchange(&world, (OTHER, 50_000)).is_some());
}

/// The port is a socket's by now: nobody would gain by the end of its flow.
fn no_flow_goes_for_nothing<F: TestFamily>() {
    let mut world = with_ports::<F>(1);
    let client = (CLIENT, 50_000);
    let known = exchange(&world, client).unwrap();
    world.listening.insert((F::addr(NODE), known.to_be(), PROTOCOL_UDP));
    later(&world, 2 * world.settings.idle);
    assert_eq!(port(&world, &udp((OTHER, 50_001), FRONTEND)), None);
    assert_eq!(exchange(&world, client), Some(known));
}

/// The endpoint is in LAST-ACK with the former owner of the port, and answers the SYN with an ACK, which the client resets.
fn a_syn_that_is_sent_again_after_a_reset_keeps_its_port<F: TestFamily>() {
    let world = with_ports::<F>(1);
    let client = (CLIENT, 50_000);
    let syn = tcp(client, FRONTEND, SYN);
    let sent = world.uplink_gets(&syn).sent(&syn);
    let answer = packet(sent.tuple.reversed(), PROTOCOL_TCP, ACK);
    world.uplink_gets(&answer).is(Verdict::Forward, FRONTEND, client);
    assert_eq!(port(&world, &tcp(client, FRONTEND, RST)), Some(20_000));
    assert_eq!(port(&world, &syn), Some(20_000));
    assert_eq!(port(&world, &tcp((OTHER, 50_001), FRONTEND, SYN)), None, "another one waits");
    world.uplink_gets(&packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK)).is(
        Verdict::Forward,
        FRONTEND,
        client,
    );
    world.uplink_gets(&tcp(client, FRONTEND, ACK));
    assert_eq!(world.entries(), (2, 0));
}

//! Source ports that other flows had before, and full ranges of ports.

use super::{fixture::*, for_both_families};
use crate::{
    decide::Verdict,
    layout::{
        counter::Counter,
        flow::{FlowKey, FlowState, LookupPoint, REFRESH},
        set::SetPolicy,
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
fn with_ports<F: TestFamily>(count: u16) -> Fixture<F> {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 19_999 + count);
    fixture
}

/// The source port of a client's packet; `None` if it is dropped.
fn port<F: TestFamily>(fixture: &Fixture<F>, packet: &Packet<F>) -> Option<u16> {
    let decision = fixture.uplink_gets(packet);
    match decision.verdict {
        Verdict::Redirect => Some(u16::from_be(decision.out.to.sport)),
        Verdict::Drop => None,
        other => panic!("{other:?}"),
    }
}

fn reply<F: TestFamily>(fixture: &Fixture<F>, port: u16) -> Decision<F> {
    fixture.uplink_gets(&udp((REMOTE, TARGET_PORT), (NODE, port)))
}

/// A datagram of a client, and the reply.
fn exchange<F: TestFamily>(fixture: &Fixture<F>, client: End) -> Option<u16> {
    let port = port(fixture, &udp(client, FRONTEND))?;
    reply(fixture, port).is(Verdict::Redirect, FRONTEND, client);
    Some(port)
}

fn later<F: TestFamily>(fixture: &Fixture<F>, jiffies: u32) {
    fixture.now.set(fixture.now.get() + jiffies);
}

/// Regression test: with many clients, 4 of 373,000 connections were reset. A client's last connection but one
/// had another source port. When a third client got that port, the program removed the forward entry with the
/// first client's address and port, which belonged to the first client's next connection.
fn a_port_that_is_taken_over_ends_no_later_connection<F: TestFamily>() {
    let fixture = with_ports::<F>(2);
    let (one, other) = ((CLIENT, 50_000), (OTHER, 50_000));
    assert_eq!(u16::from_be(fixture.client_connects(other, FRONTEND).dport), 20_000);
    let first = fixture.client_connects(one, FRONTEND);
    assert_eq!(u16::from_be(first.dport), 20_001, "its own choice is taken");
    for (client, port) in [(one, 20_001), (other, 20_000)] {
        fixture.uplink_gets(&tcp(client, FRONTEND, FIN));
        fixture.uplink_gets(&tcp((REMOTE, TARGET_PORT), (NODE, port), FIN));
    }
    let second = fixture.uplink_gets(&next_syn(one, FRONTEND)).out.to;
    assert_eq!(u16::from_be(second.sport), 20_000);
    fixture.uplink_gets(&packet(second.reversed(), PROTOCOL_TCP, SYN_ACK));
    fixture.uplink_gets(&tcp(one, FRONTEND, ACK));
    // Other clients can use the port of the first connection.
    assert_eq!(port(&fixture, &tcp((THIRD, 50_001), FRONTEND, SYN)), Some(20_001));
    let decision = fixture.uplink_gets(&tcp(one, FRONTEND, ACK));
    assert_eq!(
        (decision.verdict, decision.out.to),
        (Verdict::Redirect, second),
        "the second connection goes on"
    );
}

/// A client's connection to one endpoint has ended, and the next from the same port has another endpoint.
/// Packets of the first endpoint on a direct connection to that port end only the first flow.
fn a_closed_flow_ends_no_later_connection_of_its_client<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    let (client, vip) = ((POD_A, 40_000), (VIP, PORT));
    let first = fixture.pod_connects(client, vip);
    fixture.pod_sends(&tcp(client, vip, FIN));
    fixture.pod_egress(&packet(first, PROTOCOL_TCP, FIN));
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
    let second = fixture.pod_sends(&next_syn(client, vip)).out.to;
    fixture.pod_egress(&packet(second.reversed(), PROTOCOL_TCP, SYN_ACK));
    fixture.pod_sends(&tcp(client, vip, ACK));
    let direct = Packet { acknowledgment: 5 * ISN, ..packet::<F>(first, PROTOCOL_TCP, SYN_ACK) };
    assert_eq!(fixture.pod_egress(&direct).verdict, Verdict::Pass);
    assert_eq!(fixture.pod_egress(&packet(first, PROTOCOL_TCP, ACK)).verdict, Verdict::Pass, "it is gone");
    let decision = fixture.pod_sends(&tcp(client, vip, ACK));
    assert_eq!((decision.verdict, decision.out.to), (Verdict::ToStack, second));
}

fn a_socket_of_the_node_ends_no_later_flow<F: TestFamily>() {
    for is_answered in [false, true] {
        let mut fixture = with_ports::<F>(2);
        let client = (CLIENT, 50_000);
        let first = port(&fixture, &udp(client, FRONTEND)).unwrap();
        if is_answered {
            reply(&fixture, first);
        }
        // The endpoint is removed, and the client gets another one.
        fixture.alive.clear();
        fixture.set(SERVICE, SetPolicy::External, &[14]);
        let second = fixture.uplink_gets(&udp(client, FRONTEND)).out.to;
        if is_answered {
            fixture.uplink_gets(&packet(second.reversed(), PROTOCOL_UDP, 0));
        }
        fixture.listening.insert((F::addr(NODE), first.to_be(), PROTOCOL_UDP));
        fixture.uplink_egress(&udp((NODE, first), (REMOTE, TARGET_PORT)));
        assert_eq!(reply(&fixture, first).verdict, Verdict::Pass, "the socket's");
        let key = FlowKey::new(tuple(client, FRONTEND), PROTOCOL_UDP, LookupPoint::Forward);
        let flow = fixture.flow_entry(&key).expect("the second flow goes on");
        assert_eq!(flow.tuple, second, "answered: {is_answered}");
    }
}

/// A forwarded packet from a port that is also a nodePort is not the node's own.
fn a_nodeport_in_the_range_is_used_again<F: TestFamily>() {
    for came_in in [UPLINK, 1] {
        let mut fixture = Fixture::<F>::new(&[REMOTE]);
        (fixture.settings.snat_first, fixture.settings.snat_last) = (NODE_PORT, NODE_PORT);
        for number in 0..3 {
            let client = (CLIENT, 50_000 + number);
            let request = udp(client, FRONTEND);
            let sent = fixture.uplink_gets(&request).sent(&request);
            fixture.came_in.set(came_in);
            assert_eq!(fixture.uplink_egress(&sent).verdict, Verdict::Pass);
            reply(&fixture, NODE_PORT).is(Verdict::Redirect, FRONTEND, client);
            later(&fixture, fixture.settings.replied());
        }
        assert!(fixture.outbound.borrow().is_empty());
    }
}

/// conntrack's ASSURED: starts with the first packet of either side after a request and its reply.
fn more_than_one_reply_makes_a_stream<F: TestFamily>() {
    for is_of_client in [true, false] {
        let fixture = with_ports::<F>(2);
        let client = (CLIENT, 50_000);
        let states = |expected: FlowState| {
            assert_eq!(fixture.entries(), (2, 0));
            for flow in fixture.flows.borrow().values() {
                assert_eq!(flow.get().state, expected as u8, "both entries");
            }
        };
        // The client may retransmit a request.
        port(&fixture, &udp(client, FRONTEND));
        let port = exchange(&fixture, client).unwrap();
        states(FlowState::REPLIED);
        // An ICMP error is no datagram of the flow.
        let error = Packet { follows: true, ..udp(client, FRONTEND) };
        assert_eq!(fixture.uplink_gets(&error).verdict, Verdict::Redirect);
        states(FlowState::REPLIED);
        if is_of_client {
            fixture.uplink_gets(&udp(client, FRONTEND));
        } else {
            reply(&fixture, port);
        }
        states(FlowState::Established);
    }
}

/// Regression test: 387 of 132,840 datagrams were lost, with more flows than ports, each of a request and its
/// reply.
fn a_burst_of_datagrams_uses_ports_again<F: TestFamily>() {
    const PORTS: u16 = 64;
    let fixture = with_ports::<F>(PORTS);
    let per_port = fixture.settings.replied() / u32::from(PORTS) + 1;
    for number in 0..1_000 {
        let client = (CLIENT, 10_000 + number);
        assert!(exchange(&fixture, client).is_some(), "flow {number}");
        later(&fixture, per_port);
    }
    assert_eq!(
        (fixture.counter(Counter::SnatExhausted), fixture.entries()),
        (0, (2 * usize::from(PORTS), 0))
    );
    // The last flows exist, and the others have no entries.
    for number in 0..1_000 {
        let key =
            FlowKey::new(tuple((CLIENT, 10_000 + number), FRONTEND), PROTOCOL_UDP, LookupPoint::Forward);
        assert_eq!(fixture.flow_entry(&key).is_some(), number >= 1_000 - PORTS, "flow {number}");
    }
}

/// In a full range one flow is idle: it gives up its port, and its entries are removed. The others are active.
fn talking_flows_keep_their_ports<F: TestFamily>() {
    const PORTS: u16 = 32;
    let fixture = with_ports::<F>(PORTS);
    let talkers: std::vec::Vec<End> = (0..PORTS - 1).map(|number| (CLIENT, 10_000 + number)).collect();
    let idle = (OTHER, 40_000);
    let known: std::vec::Vec<_> = talkers.iter().map(|&client| exchange(&fixture, client)).collect();
    let given = exchange(&fixture, idle);
    let key = FlowKey::new(tuple(idle, FRONTEND), PROTOCOL_UDP, LookupPoint::Forward);
    for _ in 0..20 {
        later(&fixture, REFRESH);
        for (&client, &known) in talkers.iter().zip(&known) {
            assert_eq!(exchange(&fixture, client), known);
        }
        assert!(fixture.flow_entry(&key).is_some(), "nobody needs its port");
    }
    let new = (THIRD, 50_000);
    assert_eq!(exchange(&fixture, new), given);
    assert!(fixture.flow_entry(&key).is_none());
    reply(&fixture, given.unwrap()).is(Verdict::Redirect, FRONTEND, new);
    for (&client, &known) in talkers.iter().zip(&known) {
        assert_eq!(exchange(&fixture, client), known);
    }
    // All are active now.
    assert_eq!(port(&fixture, &udp((THIRD, 50_001), FRONTEND)), None);
    assert_eq!(fixture.counter(Counter::SnatExhausted), 1);
}

/// A stream keeps its port, even after longer silence, while a flow of one reply can give up its port.
fn streams_give_way_last<F: TestFamily>() {
    let fixture = with_ports::<F>(2);
    let (stream, once) = ((CLIENT, 50_000), (OTHER, 50_000));
    let kept = exchange(&fixture, stream);
    assert_eq!(exchange(&fixture, stream), kept);
    later(&fixture, 2 * fixture.settings.idle);
    let given = exchange(&fixture, once);
    later(&fixture, fixture.settings.replied());
    assert_eq!(exchange(&fixture, (THIRD, 50_001)), given);
    reply(&fixture, kept.unwrap()).is(Verdict::Redirect, FRONTEND, stream);
    // The stream was active just now, and so was the other.
    assert_eq!(exchange(&fixture, (THIRD, 50_002)), None);
    later(&fixture, fixture.settings.replied());
    assert_eq!(exchange(&fixture, (THIRD, 50_002)), given);
    assert_eq!(exchange(&fixture, (THIRD, 50_002)), given, "a stream, too");
    // Both are silent for long.
    later(&fixture, fixture.settings.idle);
    assert!(exchange(&fixture, (THIRD, 50_003)).is_some());
}

fn tcp_keeps_its_ports<F: TestFamily>() {
    let fixture = with_ports::<F>(4);
    for number in 0..4 {
        fixture.client_connects((CLIENT, 50_000 + number), FRONTEND);
    }
    later(&fixture, 100 * fixture.settings.idle);
    assert_eq!(port(&fixture, &tcp((OTHER, 50_000), FRONTEND, SYN)), None);
    for number in 0..4 {
        let decision = fixture.uplink_gets(&tcp((CLIENT, 50_000 + number), FRONTEND, ACK));
        assert_eq!(decision.verdict, Verdict::Redirect);
    }
    // UDP ports are independent of TCP's.
    assert!(exchange(&fixture, (OTHER, 50_000)).is_some());
}

/// A socket has the port by now: removing the flow would free no port.
fn no_flow_goes_for_nothing<F: TestFamily>() {
    let mut fixture = with_ports::<F>(1);
    let client = (CLIENT, 50_000);
    let known = exchange(&fixture, client).unwrap();
    fixture.listening.insert((F::addr(NODE), known.to_be(), PROTOCOL_UDP));
    later(&fixture, 2 * fixture.settings.idle);
    assert_eq!(port(&fixture, &udp((OTHER, 50_001), FRONTEND)), None);
    assert_eq!(exchange(&fixture, client), Some(known));
}

/// The endpoint is in LAST-ACK with the former owner of the port, and sends an ACK for the SYN, which the
/// client resets.
fn a_syn_that_is_sent_again_after_a_reset_keeps_its_port<F: TestFamily>() {
    let fixture = with_ports::<F>(1);
    let client = (CLIENT, 50_000);
    let syn = tcp(client, FRONTEND, SYN);
    let sent = fixture.uplink_gets(&syn).sent(&syn);
    let reply = packet(sent.tuple.reversed(), PROTOCOL_TCP, ACK);
    fixture.uplink_gets(&reply).is(Verdict::Redirect, FRONTEND, client);
    assert_eq!(port(&fixture, &tcp(client, FRONTEND, RST)), Some(20_000));
    assert_eq!(port(&fixture, &syn), Some(20_000));
    assert_eq!(port(&fixture, &tcp((OTHER, 50_001), FRONTEND, SYN)), None, "another one waits");
    fixture.uplink_gets(&packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK)).is(
        Verdict::Redirect,
        FRONTEND,
        client,
    );
    fixture.uplink_gets(&tcp(client, FRONTEND, ACK));
    assert_eq!(fixture.entries(), (2, 0));
}

//! Packets at the wrong moment, or with forged sources.

use super::{fixture::*, for_both_families};
use crate::{
    decide::Verdict,
    layout::{
        counter::Counter,
        flow::{FlowKey, FlowState, LookupPoint},
        frontend::FRONTEND_CLUSTER_IP,
        set::SetPolicy,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    a_long_connection_of_kernel_nat_keeps_its_port
    closed_connections_of_kernel_nat_do_not_use_up_the_ports
    a_forged_fin_ends_nothing
    a_packet_finds_the_flow_that_is_confirmed_meanwhile
    datagrams_without_a_way_back_get_another_one
    a_syn_without_a_way_back_gets_another_one
    a_syn_ack_brings_the_way_there_back
    an_ack_brings_the_way_back_back
    the_spare_port_belongs_to_its_source
    a_frontend_that_moved_takes_a_download_along
}

const CLIENT_END: End = (CLIENT, 50_000);
const FRONTEND: End = (NODE, NODE_PORT);

/// Two source ports; the client's first choice is the first one.
fn narrow<F: TestFamily>() -> Fixture<F> {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    (fixture.settings.snat_first, fixture.settings.snat_last) = (20_000, 20_001);
    fixture
}

fn pass_time<F: TestFamily>(fixture: &Fixture<F>, jiffies: u32) {
    fixture.now.set(fixture.now.get().wrapping_add(jiffies));
}

/// A pod has a connection to an endpoint directly, to which kernel NAT gave a port of the range: the flow would
/// reset it.
fn a_long_connection_of_kernel_nat_keeps_its_port<F: TestFamily>() {
    let fixture = narrow::<F>();
    let direct = |flags| tcp((NODE, 20_000), (REMOTE, TARGET_PORT), flags);
    let leaves = |flags| {
        fixture.came_in.set(POD_A_DEVICE);
        assert_eq!(fixture.uplink_egress(&direct(flags)).verdict, Verdict::Pass);
        fixture.came_in.set(0);
    };
    leaves(SYN);
    // The endpoint also serves other clients.
    let other = fixture.client_connects((CLIENT, 50_001), FRONTEND);
    assert_eq!(u16::from_be(other.dport), 20_001);
    for _ in 0..5 {
        pass_time(&fixture, fixture.settings.outbound() - 1);
        leaves(ACK);
    }
    // Then the connection is silent for long.
    pass_time(&fixture, 10 * fixture.settings.outbound());
    let decision = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN));
    assert_eq!(decision.verdict, Verdict::Drop, "{decision:?}");
    assert_eq!(fixture.uplink_gets(&direct(SYN_ACK)).verdict, Verdict::Pass);
    // Until it has ended.
    leaves(FIN);
    leaves(ACK);
    pass_time(&fixture, fixture.settings.outbound());
    assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Redirect);
}

/// Pods open many short connections to an endpoint that also gets flows from this node.
fn closed_connections_of_kernel_nat_do_not_use_up_the_ports<F: TestFamily>() {
    let fixture = narrow::<F>();
    for port in [20_000, 20_001] {
        for flags in [SYN, ACK, FIN, ACK] {
            fixture.came_in.set(POD_A_DEVICE);
            fixture.uplink_egress(&tcp((NODE, port), (REMOTE, TARGET_PORT), flags));
        }
    }
    fixture.came_in.set(0);
    pass_time(&fixture, fixture.settings.unconfirmed());
    assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Redirect);
}

/// A sender that does not see a connection does not know its sequence numbers. A FIN, and then a SYN, would
/// give it another endpoint.
fn a_forged_fin_ends_nothing<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    let reply = fixture.client_connects(CLIENT_END, FRONTEND);
    for sequence in [ISN.wrapping_add(1 << 31), ISN.wrapping_sub(1 << 28), ISN.wrapping_add(1 << 28)] {
        fixture.uplink_gets(&Packet { sequence, ..tcp(CLIENT_END, FRONTEND, FIN) });
        fixture.uplink_gets(&Packet { sequence, ..packet(reply, PROTOCOL_TCP, FIN) });
    }
    fixture.set(SERVICE, SetPolicy::External, &[14]);
    fixture.uplink_gets(&Packet { sequence: 77, ..tcp(CLIENT_END, FRONTEND, SYN) });
    let data = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK));
    assert_eq!((data.verdict, data.out.to.dst), (Verdict::Redirect, F::addr(REMOTE)));
    let key = FlowKey::new(tuple(CLIENT_END, FRONTEND), PROTOCOL_TCP, LookupPoint::Forward);
    assert_eq!(fixture.flow_entry(&key).unwrap().state, FlowState::Established as u8);
    // A genuine FIN, with megabytes in flight.
    fixture.uplink_gets(&Packet { sequence: ISN + (8 << 20), ..tcp(CLIENT_END, FRONTEND, FIN) });
    assert_eq!(fixture.flow_entry(&key).unwrap().state, FlowState::ClosingByClient as u8);
}

/// Another CPU moves a flow between two look-ups: a datagram would get another endpoint, and the node would
/// reset a TCP connection.
fn a_packet_finds_the_flow_that_is_confirmed_meanwhile<F: TestFamily>() {
    for (protocol, flags) in [(PROTOCOL_TCP, ACK), (PROTOCOL_TCP, SYN), (PROTOCOL_UDP, 0)] {
        let fixture = Fixture::<F>::new(&[POD_A, REMOTE]);
        let request = packet(tuple(CLIENT_END, FRONTEND), protocol, SYN * u8::from(flags != 0));
        let to = fixture.uplink_gets(&request).out.to;
        let moved = fixture.pending.take();
        fixture.arriving.replace(moved);
        let decision = fixture.uplink_gets(&packet(tuple(CLIENT_END, FRONTEND), protocol, flags));
        assert_eq!(decision.out.to, to, "{decision:?}");
        assert_eq!(fixture.entries(), (2, 0));
    }
}

/// The map evicts one entry of an unconfirmed flow, and not the other: replies would be lost for as long as the
/// client sends.
fn datagrams_without_a_way_back_get_another_one<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let request = udp((POD_A, 40_000), (VIP, PORT));
    let reply = fixture.pod_sends(&request).out.to.reversed();
    fixture.pending.borrow_mut().retain(|key, _| key.lookup_point == LookupPoint::Forward as u8);
    assert_eq!(fixture.pod_sends(&request).verdict, Verdict::ToStack);
    let decision = fixture.pod_egress(&packet(reply, PROTOCOL_UDP, 0));
    decision.is(Verdict::ToStack, (VIP, PORT), (POD_A, 40_000));
}

fn a_syn_without_a_way_back_gets_another_one<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[REMOTE]);
    let syn = tcp(CLIENT_END, FRONTEND, SYN);
    fixture.uplink_gets(&syn);
    fixture.pending.borrow_mut().retain(|key, _| key.lookup_point == LookupPoint::Forward as u8);
    fixture.client_connects(CLIENT_END, FRONTEND);
    assert_eq!(fixture.entries(), (2, 0));
}

fn a_syn_ack_brings_the_way_there_back<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[REMOTE]);
    let reply = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).out.to.reversed();
    fixture.pending.borrow_mut().retain(|key, _| key.lookup_point != LookupPoint::Forward as u8);
    assert_eq!(fixture.uplink_gets(&packet(reply, PROTOCOL_TCP, SYN_ACK)).verdict, Verdict::Redirect);
    let decision = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK));
    assert_eq!((decision.verdict, decision.out.to), (Verdict::Redirect, reply.reversed()));
    assert_eq!(fixture.entries(), (2, 0));
}

fn an_ack_brings_the_way_back_back<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[REMOTE]);
    let reply = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).out.to.reversed();
    fixture.uplink_gets(&packet(reply, PROTOCOL_TCP, SYN_ACK));
    fixture.pending.borrow_mut().retain(|key, _| key.lookup_point == LookupPoint::Forward as u8);
    fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK));
    let decision = fixture.uplink_gets(&packet(reply, PROTOCOL_TCP, ACK));
    decision.is(Verdict::Redirect, FRONTEND, CLIENT_END);
}

/// With several source addresses, the spare port belongs to one of them.
fn the_spare_port_belongs_to_its_source<F: TestFamily>() {
    let mut fixture = narrow::<F>();
    let sources = [NODE, OTHER_NODE_ADDRESS];
    fixture.snat_sources = sources.iter().map(|source| F::addr(*source)).collect();
    fixture.settings.snat_sources = 2;
    let request = |port| udp((CLIENT, port), FRONTEND);
    let mut replies: std::vec::Vec<_> = (50_000..50_004)
        .map(|port| {
            let decision = fixture.uplink_gets(&request(port));
            assert_eq!(decision.verdict, Verdict::Redirect);
            let reply = decision.out.to.reversed();
            fixture.uplink_gets(&packet(reply, PROTOCOL_UDP, 0));
            (port, reply)
        })
        .collect();
    for idle in 0..4 {
        pass_time(&fixture, 2 * fixture.settings.idle);
        // All but one are in use.
        for (number, (port, reply)) in replies.iter().enumerate() {
            if number != idle {
                assert_eq!(fixture.uplink_gets(&request(*port)).out.to.reversed(), *reply);
            }
        }
        let new = 60_000 + idle as u16;
        let decision = fixture.uplink_gets(&request(new));
        assert_eq!((decision.verdict, decision.out.to.reversed()), (Verdict::Redirect, replies[idle].1));
        fixture.uplink_gets(&packet(replies[idle].1, PROTOCOL_UDP, 0));
        replies[idle].0 = new;
    }
}

/// The endpoint sends nearly all datagrams, so that its datagrams refresh the flow.
fn a_frontend_that_moved_takes_a_download_along<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    fixture.set(SERVICE2, SetPolicy::ClusterIp, &[REMOTE]);
    let request = udp((POD_A, 40_000), (VIP, PORT));
    let reply = packet(fixture.pod_sends(&request).out.to.reversed(), PROTOCOL_UDP, 0);
    assert_eq!(fixture.pod_egress(&reply).verdict, Verdict::ToStack);
    fixture.frontend(F::addr(VIP), PORT, SERVICE2, FRONTEND_CLUSTER_IP);
    fixture.wait();
    assert_eq!(fixture.pod_egress(&reply).verdict, Verdict::ToStack);
    fixture.pod_sends(&request).is(Verdict::ToStack, (POD_A, 40_000), (REMOTE, TARGET_PORT));
    assert_eq!(fixture.counter(Counter::FlowNew), 2);
}

//! Which packets are requests.

use super::{
    fixture::*,
    for_both_families,
    uplink::{CLIENT_END, FRONTEND, open},
};
use crate::{
    decide::Verdict,
    layout::{
        counter::Counter,
        filter,
        flow::{FlowKey, LookupPoint},
        frontend::{FRONTEND_ADDRESS, FrontendKey, Target},
        outbound::{OUTBOUND_ONCE, Outbound},
    },
    packet::{PROTOCOL_ICMP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    followers_need_a_flow
    what_is_no_request_passes
    replies_to_what_the_node_sent_are_no_requests
    unknown_connections_are_reset_on_their_way_out
    what_would_loop_is_dropped
}

/// ICMP errors and fragments open no flow and cause no reject.
fn followers_need_a_flow<F: TestFamily>() {
    for backends in [&[REMOTE][..], &[POD_A], &[]] {
        let fixture = Fixture::<F>::new(backends);
        let follower = Packet { follows: true, ..tcp(CLIENT_END, FRONTEND, 0) };
        assert_eq!(fixture.uplink_gets(&follower).verdict, Verdict::Pass, "{backends:?}");
        let to_snat = Packet { follows: true, ..tcp((REMOTE, 8080), (NODE, 20_001), 0) };
        assert_eq!(fixture.uplink_gets(&to_snat).verdict, Verdict::Pass, "{backends:?}");
        assert_eq!(fixture.entries(), (0, 0));
    }
    let fixture = Fixture::<F>::new(&[REMOTE]);
    let sent = open(&fixture, CLIENT_END);
    let follower = Packet { follows: true, ..tcp(CLIENT_END, FRONTEND, 0) };
    let seen = fixture.uplink_gets(&follower);
    assert_eq!((seen.verdict, seen.out.to), (Verdict::Redirect, sent.tuple));
}

/// Ports and addresses alone are no evidence.
fn what_is_no_request_passes<F: TestFamily>() {
    for backends in [&[POD_A][..], &[REMOTE], &[]] {
        let fixture = Fixture::<F>::new(backends);
        for flags in [ACK, RST, RST | ACK, FIN, SYN_ACK, SYN | FIN, SYN | RST, 0] {
            for destination in [FRONTEND, (NODE, 20_050), (EXTERNAL_IP, PORT), (VIP, PORT), (VIP, 9)] {
                for source in [CLIENT_END, (REMOTE, TARGET_PORT)] {
                    let packet = tcp(source, destination, flags);
                    assert_eq!(fixture.uplink_gets(&packet).verdict, Verdict::Pass, "{packet:?}");
                    assert_eq!(fixture.pod_sends(&packet).verdict, Verdict::Pass, "{packet:?}");
                }
            }
        }
        assert_eq!(fixture.entries(), (0, 0));
    }
}

/// Kernel NAT uses nodePorts, too.
fn replies_to_what_the_node_sent_are_no_requests<F: TestFamily>() {
    let server = (CLIENT, 53);
    let (sent, reply) = (udp(FRONTEND, server), udp(server, FRONTEND));
    for is_to_pod in [false, true] {
        let fixture = Fixture::<F>::new(&[POD_A]);
        if is_to_pod {
            assert_eq!(fixture.pod_egress(&sent).verdict, Verdict::Pass);
            assert_eq!(fixture.pod_sends(&reply).verdict, Verdict::Pass);
        } else {
            assert_eq!(fixture.uplink_egress(&sent).verdict, Verdict::Pass);
            assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::Pass);
        }
        assert_eq!(fixture.counter(Counter::ReplyToNode), 1);
        // As long as one side sends.
        for _ in 0..5 {
            fixture.now.set(fixture.now.get() + fixture.settings.outbound() - 1);
            assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::Pass);
        }
        // Other clients are served meanwhile, and so is this one later.
        assert_eq!(fixture.uplink_gets(&udp((CLIENT, 54), FRONTEND)).verdict, Verdict::ToStack);
        fixture.now.set(fixture.now.get() + fixture.settings.outbound());
        assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::ToStack);
    }
    // The endpoint's reply, translated and seen again at another interface, is not the node's packet.
    let fixture = Fixture::<F>::new(&[POD_A]);
    assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::ToStack);
    assert_eq!(fixture.uplink_egress(&sent).verdict, Verdict::Pass);
    assert!(fixture.outbound.borrow().is_empty());
    // Packets that other rules of the kernel translate are left to them until the entry expires.
    let fixture = Fixture::<F>::new(&[POD_A]);
    let outbound = Outbound { last_seen: fixture.now.get(), flags: OUTBOUND_ONCE };
    fixture
        .outbound
        .borrow_mut()
        .insert(FlowKey::new(reply.tuple, PROTOCOL_UDP, LookupPoint::Forward), outbound);
    for _ in 0..2 {
        assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::Pass);
        fixture.now.set(fixture.now.get() + fixture.settings.outbound() / 2);
    }
    assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::ToStack);
}

/// Failover of an address, eviction, reboot: the client should open another connection at once.
fn unknown_connections_are_reset_on_their_way_out<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_A]);
    fixture.service_addresses.insert(F::addr(VIP));
    for (came_in, destination, flags, expected) in [
        (UPLINK, (EXTERNAL_IP, PORT), ACK, Verdict::Reset),
        (UPLINK, (EXTERNAL_IP, PORT), FIN, Verdict::Reset),
        (UPLINK, (EXTERNAL_IP, PORT), RST, Verdict::Drop),
        // No other host has a cluster IP.
        (POD_A_DEVICE, (VIP, PORT), ACK, Verdict::Reset),
        (0, (VIP, PORT), ACK, Verdict::Reset),
        (POD_A_DEVICE, (VIP, PORT), RST, Verdict::Drop),
        // A server on another host may have the external address: this node's pods may have been connected to
        // it before.
        (POD_A_DEVICE, (EXTERNAL_IP, PORT), ACK, Verdict::Pass),
        (0, (EXTERNAL_IP, PORT), ACK, Verdict::Pass),
        // A port without a Service.
        (UPLINK, (EXTERNAL_IP, 9), ACK, Verdict::Pass),
    ] {
        fixture.came_in.set(came_in);
        let packet = tcp(CLIENT_END, destination, flags);
        assert_eq!(fixture.uplink_egress(&packet).verdict, expected, "{packet:?} from {came_in}");
    }
    // By another uplink.
    fixture.came_in.set(UPLINK + 1);
    let packet = tcp(CLIENT_END, (EXTERNAL_IP, PORT), ACK);
    assert_eq!(fixture.uplink_egress(&packet).verdict, Verdict::Pass, "no uplink");
    let uplink = fixture.devices[&UPLINK];
    fixture.devices.insert(UPLINK + 1, uplink);
    assert_eq!(fixture.uplink_egress(&packet).verdict, Verdict::Reset);
    assert_eq!(fixture.counter(Counter::ConnectionUnknown), 7);
}

fn what_would_loop_is_dropped<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_A]);
    let address = Target::new(SERVICE, FRONTEND_ADDRESS).unwrap();
    fixture.frontends.insert(FrontendKey::of_address(F::addr(EXTERNAL_IP)), address);
    fixture.filter.insert(filter::of_address::<F>(&F::addr(EXTERNAL_IP)));
    let to = |port| udp(CLIENT_END, (EXTERNAL_IP, port));
    let ping = packet(tuple((CLIENT, 0), (EXTERNAL_IP, 0)), PROTOCOL_ICMP, 0);
    let fragment = Packet { follows: true, ..to(9) };
    for packet in [to(9), ping, fragment, tcp(CLIENT_END, (EXTERNAL_IP, 9), SYN)] {
        // The stack delivers it to a server on this node.
        assert_eq!(fixture.uplink_gets(&packet).verdict, Verdict::Pass);
        fixture.came_in.set(POD_A_DEVICE);
        assert_eq!(fixture.uplink_egress(&packet).verdict, Verdict::Pass, "from a pod");
        fixture.came_in.set(UPLINK);
        assert_eq!(fixture.uplink_egress(&packet).verdict, Verdict::Drop, "{packet:?}");
    }
    let uplink = fixture.devices[&UPLINK];
    fixture.devices.insert(UPLINK + 1, uplink);
    fixture.came_in.set(UPLINK + 1);
    assert_eq!(
        fixture.uplink_egress(&to(9)).verdict,
        Verdict::Pass,
        "the node is a router between two uplinks"
    );
    assert_eq!(fixture.counter(Counter::Loop), 4);
    assert_eq!(fixture.pod_sends(&to(9)).verdict, Verdict::Pass, "no cluster IP");
}

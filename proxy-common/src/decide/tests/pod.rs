//! Pods as clients.

use super::{fixture::*, for_both_families};
use crate::{
    decide::Verdict,
    layout::{
        counter::Counter,
        device::Device,
        flow::{FlowKey, LookupPoint, Mac, flags},
        set::SetPolicy,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
};

for_both_families! {
    cluster_ip_and_back
    remote_backend_needs_no_snat
    node_port_from_a_pod_uses_the_cluster_set
    external_ip_from_a_pod
    hairpin_both_ways
    bridge_with_known_neighbour_switches
    bridge_learns_the_neighbour_later
    bridge_and_remote_backend_is_routed
    no_endpoints
    other_traffic_passes
    node_ports_only_at_node_addresses
    choices_spread_evenly
    a_port_of_the_client_s_own_connection_is_not_used_twice
}

const CLIENT_END: End = (POD_A, 40_000);

fn cluster_ip_and_back<F: TestFamily>() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let fixture = Fixture::<F>::new(&[POD_B]);
        let request =
            packet(tuple(CLIENT_END, (VIP, PORT)), protocol, SYN * (protocol == PROTOCOL_TCP) as u8);
        for round in 0..2 {
            let decision = fixture.pod_sends(&request);
            decision.is(Verdict::ToStack, CLIENT_END, (POD_B, TARGET_PORT));
            let mut reply = packet(decision.out.to.reversed(), protocol, 0);
            if protocol == PROTOCOL_TCP {
                reply.tcp_flags = SYN_ACK;
            }
            // The reply is not translated where it comes in, only where it leaves to the client.
            assert_eq!(fixture.pod_sends(&reply).verdict, Verdict::Pass);
            fixture.pod_egress(&reply).is(Verdict::ToStack, (VIP, PORT), CLIENT_END);
            assert_eq!(fixture.counter(Counter::FlowForward), round);
        }
        assert_eq!((fixture.counter(Counter::FlowNew), fixture.counter(Counter::FlowReverse)), (1, 2));
        // A datagram's flow is confirmed by the reply.
        assert_eq!(fixture.entries(), if protocol == PROTOCOL_TCP { (0, 2) } else { (2, 0) });
    }
}

fn remote_backend_needs_no_snat<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.pod_sends(&tcp(CLIENT_END, (VIP, PORT), SYN)).is(
        Verdict::ToStack,
        CLIENT_END,
        (REMOTE, TARGET_PORT),
    );
    let reply = tcp((REMOTE, TARGET_PORT), CLIENT_END, SYN_ACK);
    assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::Pass, "the reply is the pod's edge's");
    fixture.pod_egress(&reply).is(Verdict::ToStack, (VIP, PORT), CLIENT_END);
}

fn node_port_from_a_pod_uses_the_cluster_set<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[]);
    fixture.set(SERVICE, SetPolicy::Cluster, &[REMOTE]);
    let decision = fixture.pod_sends(&tcp(CLIENT_END, (NODE, NODE_PORT), SYN));
    decision.is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
}

fn external_ip_from_a_pod<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let decision = fixture.pod_sends(&tcp(CLIENT_END, (EXTERNAL_IP, PORT), SYN));
    decision.is(Verdict::ToStack, CLIENT_END, (POD_B, TARGET_PORT));
}

fn hairpin_both_ways<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_A]);
    let request = tcp(CLIENT_END, (VIP, PORT), SYN);
    let first = fixture.pod_sends(&request).out.to;
    for _ in 0..2 {
        let decision = fixture.pod_sends(&request);
        assert_eq!((decision.verdict, decision.out.to), (Verdict::Hairpin, first));
        // The pod must not see its own address as source: it would send the reply to itself.
        assert_eq!((decision.out.to.src, decision.out.to.dst), (F::addr(VIP), F::addr(POD_A)));
        assert!(SNAT.contains(&u16::from_be(decision.out.to.sport)));
        let reply = packet(first.reversed(), PROTOCOL_TCP, SYN_ACK);
        fixture.pod_sends(&reply).is(Verdict::Hairpin, (VIP, PORT), CLIENT_END);
    }
    assert_eq!(fixture.counter(Counter::FlowNew), 1);
}

fn bridge_with_known_neighbour_switches<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]).bridged();
    let request = tcp(CLIENT_END, (VIP, PORT), SYN);
    for _ in 0..2 {
        let decision = fixture.pod_sends(&request);
        decision.is(Verdict::Bridge, CLIENT_END, (POD_B, TARGET_PORT));
        assert_eq!(decision.out.mac, Mac([POD_B as u16; 3]));
    }
    fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, SYN_ACK)).is(
        Verdict::ToStack,
        (VIP, PORT),
        CLIENT_END,
    );
}

fn bridge_learns_the_neighbour_later<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]).bridged();
    fixture.resolve(POD_B, false);
    let request = tcp(CLIENT_END, (VIP, PORT), SYN);
    for _ in 0..2 {
        fixture.pod_sends(&request).is(Verdict::ToStack, CLIENT_END, (POD_B, TARGET_PORT));
    }
    fixture.resolve(POD_B, true);
    let decision = fixture.pod_sends(&request);
    assert_eq!((decision.verdict, decision.out.mac), (Verdict::Bridge, Mac([POD_B as u16; 3])));
    let key = FlowKey::new(request.tuple, PROTOCOL_TCP, LookupPoint::Forward);
    let flow = fixture.flow_entry(&key).unwrap();
    assert_eq!((flow.mac, flow.flags), (Mac([POD_B as u16; 3]), flags::SWITCHED), "remembered");
}

fn bridge_and_remote_backend_is_routed<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[REMOTE]).bridged();
    for _ in 0..2 {
        let decision = fixture.pod_sends(&tcp(CLIENT_END, (VIP, PORT), SYN));
        decision.is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
    }
}

fn no_endpoints<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[]);
    assert_eq!(fixture.pod_sends(&tcp(CLIENT_END, (VIP, PORT), SYN)).verdict, Verdict::Reject);
    assert_eq!(fixture.counter(Counter::NoEndpoints), 1);
    assert_eq!(fixture.pod_sends(&udp(CLIENT_END, (NODE, NODE_PORT))).verdict, Verdict::Reject);
    assert_eq!(fixture.entries(), (0, 0));
}

fn other_traffic_passes<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    for destination in
        [(POD_B, TARGET_PORT), (CLIENT, 443), (EXTERNAL_IP, 81), (NODE, 22), (NODE, NODE_PORT + 1)]
    {
        let decision = fixture.pod_sends(&tcp(CLIENT_END, destination, SYN));
        assert_eq!(decision.verdict, Verdict::Pass, "{destination:?}");
    }
    assert_eq!(fixture.pod_egress(&tcp((POD_B, 80), CLIENT_END, ACK)).verdict, Verdict::Pass);
    assert_eq!(fixture.entries(), (0, 0));
}

fn node_ports_only_at_node_addresses<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    // Even with a false positive of the filter.
    for number in [OTHER_NODE_ADDRESS, GATEWAY] {
        let tuple = tuple::<F>(CLIENT_END, (number, NODE_PORT));
        let mark = crate::layout::filter::of_frontend::<F>(&tuple.dst, tuple.dport, PROTOCOL_TCP);
        fixture.filter.insert(mark);
        assert_eq!(fixture.pod_sends(&packet(tuple, PROTOCOL_TCP, SYN)).verdict, Verdict::Pass);
    }
    // With any range of nodePorts.
    for port in [443, 8_443, 25_000, 65_535] {
        assert_eq!(fixture.pod_sends(&tcp(CLIENT_END, (NODE, port), SYN)).verdict, Verdict::Pass);
        fixture.frontend(F::UNSPECIFIED, port, SERVICE, 0);
        assert_eq!(
            fixture.pod_sends(&tcp(CLIENT_END, (NODE, port), SYN)).verdict,
            Verdict::ToStack,
            "{port}"
        );
        assert_eq!(fixture.pod_sends(&tcp(CLIENT_END, (GATEWAY, port), SYN)).verdict, Verdict::Pass);
    }
}

fn choices_spread_evenly<F: TestFamily>() {
    const CONNECTIONS: u32 = 4_000;
    let mut fixture = Fixture::<F>::new(&[POD_B, REMOTE, 14, 15]);
    fixture.devices.insert(POD_A_DEVICE, Device::default());
    let mut chosen = std::collections::HashMap::<F::Addr, u32>::new();
    for i in 0..CONNECTIONS {
        let decision = fixture.pod_sends(&tcp((POD_A, 10_000 + i as u16), (VIP, PORT), SYN));
        *chosen.entry(decision.out.to.dst).or_default() += 1;
    }
    assert_eq!(chosen.len(), 4);
    // Six standard deviations of a fair choice.
    assert!(chosen.values().all(|&count| count.abs_diff(CONNECTIONS / 4) < 165), "{chosen:?}");
}

/// The client's kernel may use one source port for a connection to the VIP and for one to its endpoint.
fn a_port_of_the_client_s_own_connection_is_not_used_twice<F: TestFamily>() {
    const NAMESPACE: u32 = 7;
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        for (frontend, endpoint) in [((VIP, PORT), POD_B), ((VIP, PORT), REMOTE), ((NODE, NODE_PORT), POD_B)]
        {
            let mut fixture = Fixture::<F>::new(&[endpoint]);
            fixture.devices.insert(POD_A_DEVICE, Device { peer_namespace: NAMESPACE, ..Device::default() });
            let request =
                packet(tuple(CLIENT_END, frontend), protocol, SYN * (protocol == PROTOCOL_TCP) as u8);
            for (namespace, is_taken) in [(NAMESPACE + 1, false), (NAMESPACE, true)] {
                let direct = tuple((endpoint, TARGET_PORT), CLIENT_END);
                fixture.connections.insert((namespace, direct, protocol));
                let sent = fixture.pod_sends(&request).out.to;
                assert!(F::same(&sent.src, &F::addr(POD_A)));
                assert_eq!(sent.sport != request.tuple.sport, is_taken, "{frontend:?} {protocol}");
                if is_taken {
                    // Replies to the direct connection do not belong to the flow, and the flow's reach the
                    // client.
                    assert_eq!(fixture.pod_egress(&packet(direct, protocol, SYN_ACK)).verdict, Verdict::Pass);
                    let reply = packet(sent.reversed(), protocol, SYN_ACK);
                    fixture.pod_egress(&reply).is(Verdict::ToStack, frontend, CLIENT_END);
                } else {
                    fixture.flows.borrow_mut().clear();
                    fixture.pending.borrow_mut().clear();
                }
            }
        }
    }
}

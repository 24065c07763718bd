//! Clients that are not served, and the replies to them.

use super::{fixture::*, for_both_families};
use crate::{
    decide::{self, SocketClient, SocketOrigin, SocketVerdict, Verdict},
    layout::{
        counter::Counter,
        frontend::{FRONTEND_SOURCE_RANGES, FrontendKey},
        set::{BackendSet, SetPolicy},
        socket::SocketPeer,
    },
    packet::{PROTOCOL_ICMP, PROTOCOL_SCTP, PROTOCOL_TCP, Packet},
};

for_both_families! {
    a_policy_that_leaves_nobody_drops
    undefined_ports_of_cluster_ips_are_rejected_inside
    pings_to_cluster_ips_are_answered
    what_leaves_for_a_service_address
    source_ranges
    sockets_and_source_ranges
    sockets_are_told_why
    connections_to_removed_endpoints_are_reset_on_demand
    sctp_is_a_connection
}

const POD_END: End = (POD_A, 40_000);
const OUTSIDE_END: End = (CLIENT, 50_000);
const NETNS: u64 = 9;

fn ping<F: TestFamily>(to: u8) -> Packet<F> {
    packet(tuple((POD_A, 0), (to, 0)), PROTOCOL_ICMP, 0)
}

fn connect<F: TestFamily>(fixture: &Fixture<F>, to: End, bound: F::Addr) -> SocketVerdict {
    let client = SocketClient { origin: SocketOrigin::Pod, netns: NETNS, bound };
    let mut peer = SocketPeer::<F>::default();
    decide::connect(&fixture.0, &F::addr(to.0), to.1.to_be(), PROTOCOL_TCP, &client, &mut peer)
}

/// No local endpoint, but some on other nodes: clients must not take the service for dead.
fn a_policy_that_leaves_nobody_drops<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    for set_policy in [SetPolicy::ClusterIp, SetPolicy::External] {
        fixture.sets.insert(BackendSet::index(SERVICE, set_policy), BackendSet::NO_LOCAL_ENDPOINTS);
    }
    assert_eq!(fixture.pod_sends(&tcp(POD_END, (VIP, PORT), SYN)).verdict, Verdict::Drop);
    assert_eq!(fixture.uplink_gets(&tcp(OUTSIDE_END, (NODE, NODE_PORT), SYN)).verdict, Verdict::Drop);
    assert_eq!(fixture.counter(Counter::NoLocalEndpoints), 2);
    // Pods use other nodes' endpoints through a nodePort, with any policy.
    let decision = fixture.pod_sends(&tcp(POD_END, (NODE, NODE_PORT), SYN));
    decision.is(Verdict::ToStack, POD_END, (REMOTE, TARGET_PORT));
}

fn undefined_ports_of_cluster_ips_are_rejected_inside<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    for (destination, inside, outside) in [
        ((VIP, 81), Verdict::Reject, Verdict::Pass),
        ((EXTERNAL_IP, 81), Verdict::Pass, Verdict::Pass),
        ((NODE, NODE_PORT + 1), Verdict::Pass, Verdict::Pass),
    ] {
        assert_eq!(fixture.pod_sends(&tcp(POD_END, destination, SYN)).verdict, inside, "{destination:?}");
        let decision = fixture.uplink_gets(&tcp(OUTSIDE_END, destination, SYN));
        assert_eq!(decision.verdict, outside, "{destination:?}");
    }
    assert_eq!(fixture.counter(Counter::UndefinedPort), 1);
}

fn pings_to_cluster_ips_are_answered<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[]);
    for (to, expected) in
        [(VIP, Verdict::Echo), (EXTERNAL_IP, Verdict::Pass), (NODE, Verdict::Pass), (POD_B, Verdict::Pass)]
    {
        assert_eq!(fixture.pod_sends(&ping(to)).verdict, expected, "{to}");
        assert_eq!(fixture.uplink_gets(&ping(to)).verdict, Verdict::Pass, "{to} from outside");
        assert_eq!(fixture.pod_egress(&ping(to)).verdict, Verdict::Pass, "{to} on its way to a pod");
    }
}

/// Untranslated packets: a ping, SCTP of the node itself, or an address that no service has (yet).
fn what_leaves_for_a_service_address<F: TestFamily>() {
    const UNALLOCATED: u8 = 39;
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    let decisions = |fixture: &Fixture<F>, to: u8| {
        let decision = |packet| fixture.uplink_egress(&packet).verdict;
        (decision(ping(to)), decision(tcp(POD_END, (to, 81), SYN)), decision(udp(POD_END, (to, PORT))))
    };
    use Verdict::{Drop, Echo, Pass, Reject};
    assert_eq!(decisions(&fixture, VIP), (Pass, Pass, Pass), "the range is not known");
    fixture.service_addresses = [VIP, UNALLOCATED].map(F::addr).into();
    assert_eq!(decisions(&fixture, VIP), (Echo, Reject, Reject));
    assert_eq!(decisions(&fixture, UNALLOCATED), (Drop, Drop, Drop));
    assert_eq!(decisions(&fixture, CLIENT), (Pass, Pass, Pass));
    assert_eq!(fixture.counter(Counter::Unallocated), 3);
    // Replies are translated first.
    let request = tcp(POD_END, (VIP, PORT), SYN);
    let reply = tcp::<F>((POD_B, TARGET_PORT), POD_END, SYN_ACK);
    fixture.pod_sends(&request);
    fixture.uplink_egress(&reply).is(Verdict::ToStack, (VIP, PORT), POD_END);
}

fn source_ranges<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    fixture.frontend(F::addr(EXTERNAL_IP), PORT, SERVICE, FRONTEND_SOURCE_RANGES);
    fixture.sources = [(SERVICE, F::addr(CLIENT))].into();
    let frontend = (EXTERNAL_IP, PORT);
    assert_eq!(fixture.uplink_gets(&tcp(OUTSIDE_END, frontend, SYN)).verdict, Verdict::ToStack);
    assert_eq!(fixture.uplink_gets(&tcp((GATEWAY, 1), frontend, SYN)).verdict, Verdict::Drop);
    assert_eq!(fixture.pod_sends(&tcp(POD_END, frontend, SYN)).verdict, Verdict::Drop);
    assert_eq!(fixture.counter(Counter::SourceDenied), 2);
    // Other frontends of the service have no source ranges, and known flows are not checked.
    assert_eq!(fixture.pod_sends(&tcp(POD_END, (VIP, PORT), SYN)).verdict, Verdict::ToStack);
    fixture.sources.clear();
    assert_eq!(fixture.uplink_gets(&tcp(OUTSIDE_END, frontend, ACK)).verdict, Verdict::ToStack);
}

fn sockets_and_source_ranges<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    fixture.frontend(F::addr(EXTERNAL_IP), PORT, SERVICE, FRONTEND_SOURCE_RANGES);
    fixture.sources = [(SERVICE, F::addr(POD_A))].into();
    let frontend = (EXTERNAL_IP, PORT);
    assert_eq!(connect(&fixture, frontend, F::UNSPECIFIED), SocketVerdict::Pass, "the packets will tell");
    assert_eq!(connect(&fixture, frontend, F::addr(POD_A)), SocketVerdict::Translate);
    assert_eq!(connect(&fixture, frontend, F::addr(NODE)), SocketVerdict::Denied);
    for (address, expected) in [(POD_A, SocketVerdict::Translate), (POD_B, SocketVerdict::Denied)] {
        fixture.netns.insert(NETNS, F::addr(address));
        assert_eq!(connect(&fixture, frontend, F::UNSPECIFIED), expected, "{address}");
    }
}

fn sockets_are_told_why<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[]);
    let to = |fixture: &Fixture<F>, port| connect(fixture, (VIP, port), F::UNSPECIFIED);
    assert_eq!(to(&fixture, PORT), SocketVerdict::Reject);
    assert_eq!(to(&fixture, PORT + 1), SocketVerdict::Reject);
    fixture.sets.insert(BackendSet::index(SERVICE, SetPolicy::ClusterIp), BackendSet::NO_LOCAL_ENDPOINTS);
    assert_eq!(to(&fixture, PORT), SocketVerdict::Unreachable);
    let counts = [Counter::NoEndpoints, Counter::UndefinedPort, Counter::NoLocalEndpoints];
    assert_eq!(counts.map(|counter| fixture.counter(counter)), [1, 1, 1]);
}

fn connections_to_removed_endpoints_are_reset_on_demand<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    fixture.pod_sends(&tcp(POD_END, (VIP, PORT), SYN));
    fixture.pod_sends(&udp(POD_END, (VIP, PORT)));
    fixture.alive.clear();
    let request = tcp(POD_END, (VIP, PORT), ACK);
    assert_eq!(fixture.pod_sends(&request).verdict, Verdict::ToStack, "left alone by default");
    fixture.settings.reset_removed_tcp = true;
    assert_eq!(fixture.pod_sends(&request).verdict, Verdict::Reset);
    assert_eq!(fixture.counter(Counter::FlowReset), 1);
    // UDP and new connections still choose another endpoint.
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
    for packet in [tcp(POD_END, (VIP, PORT), SYN), udp(POD_END, (VIP, PORT))] {
        fixture.pod_sends(&packet).is(Verdict::ToStack, POD_END, (REMOTE, TARGET_PORT));
    }
}

fn sctp_is_a_connection<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    let target = fixture.frontends[&FrontendKey::new(F::addr(VIP), PORT.to_be(), PROTOCOL_TCP)];
    fixture.add_frontend(FrontendKey::new(F::addr(VIP), PORT.to_be(), PROTOCOL_SCTP), target);
    let sctp = |flags| packet::<F>(tuple(POD_END, (VIP, PORT)), PROTOCOL_SCTP, flags);
    fixture.pod_sends(&sctp(SYN)).is(Verdict::ToStack, POD_END, (POD_B, TARGET_PORT));
    // Like TCP, and unlike UDP, it stays with a removed endpoint until it opens a new association.
    fixture.alive.clear();
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
    fixture.pod_sends(&sctp(ACK)).is(Verdict::ToStack, POD_END, (POD_B, TARGET_PORT));
    fixture.pod_sends(&sctp(SYN)).is(Verdict::ToStack, POD_END, (REMOTE, TARGET_PORT));
}

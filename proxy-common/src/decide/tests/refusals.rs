//! Who is not served, and how it learns that.

use super::{for_both_families, world::*};
use crate::{
    decide::{self, SocketClient, SocketOrigin, SocketVerdict, Verdict},
    layout::{
        counter::Counter,
        frontend::{FRONTEND_SOURCES, FrontendKey},
        set::{Set, SetRole},
        socket::SocketPeer,
    },
    packet::{PROTOCOL_ICMP, PROTOCOL_SCTP, PROTOCOL_TCP, Packet},
};

for_both_families! {
    a_policy_that_leaves_nobody_drops
    undefined_ports_of_cluster_ips_are_refused_inside
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

fn connect<F: TestFamily>(world: &World<F>, to: End, bound: F::Addr) -> SocketVerdict {
    let client = SocketClient { origin: SocketOrigin::Pod, netns: NETNS, bound };
    let mut peer = SocketPeer::<F>::default();
    decide::connect(&world.0, &F::addr(to.0), to.1.to_be(), PROTOCOL_TCP, &client, &mut peer)
}

/// No local endpoint, but some elsewhere: nobody may take the service for dead.
fn a_policy_that_leaves_nobody_drops<F: TestFamily>() {
    let mut world = World::<F>::new(&[REMOTE]);
    for role in [SetRole::ClusterIp, SetRole::External] {
        world.sets.insert(Set::index(SERVICE, role), Set::WITHHELD);
    }
    assert_eq!(world.pod_sends(&tcp(POD_END, (VIP, PORT), SYN)).verdict, Verdict::Drop);
    assert_eq!(world.uplink_gets(&tcp(OUTSIDE_END, (NODE, NODE_PORT), SYN)).verdict, Verdict::Drop);
    assert_eq!(world.counter(Counter::NoLocalEndpoints), 2);
    // Pods use other nodes' endpoints through a node port, whatever the policy.
    let said = world.pod_sends(&tcp(POD_END, (NODE, NODE_PORT), SYN));
    said.is(Verdict::Translate, POD_END, (REMOTE, TARGET_PORT));
}

fn undefined_ports_of_cluster_ips_are_refused_inside<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    for (destination, inside, outside) in [
        ((VIP, 81), Verdict::Reject, Verdict::Pass),
        ((EXTERNAL_IP, 81), Verdict::Pass, Verdict::Pass),
        ((NODE, NODE_PORT + 1), Verdict::Pass, Verdict::Pass),
    ] {
        assert_eq!(world.pod_sends(&tcp(POD_END, destination, SYN)).verdict, inside, "{destination:?}");
        let said = world.uplink_gets(&tcp(OUTSIDE_END, destination, SYN));
        assert_eq!(said.verdict, outside, "{destination:?}");
    }
    assert_eq!(world.counter(Counter::UndefinedPort), 1);
}

fn pings_to_cluster_ips_are_answered<F: TestFamily>() {
    let world = World::<F>::new(&[]);
    for (to, expected) in
        [(VIP, Verdict::Echo), (EXTERNAL_IP, Verdict::Pass), (NODE, Verdict::Pass), (POD_B, Verdict::Pass)]
    {
        assert_eq!(world.pod_sends(&ping(to)).verdict, expected, "{to}");
        assert_eq!(world.uplink_gets(&ping(to)).verdict, Verdict::Pass, "{to} from outside");
        assert_eq!(world.to_client(&ping(to)).verdict, Verdict::Pass, "{to} on its way to a pod");
    }
}

/// Nobody translated it: a ping, SCTP of the node itself, or an address that no service has (yet).
fn what_leaves_for_a_service_address<F: TestFamily>() {
    const UNALLOCATED: u8 = 39;
    let mut world = World::<F>::new(&[POD_B]);
    let answers = |world: &World<F>, to: u8| {
        let said = |packet| world.to_outside(&packet).verdict;
        (said(ping(to)), said(tcp(POD_END, (to, 81), SYN)), said(udp(POD_END, (to, PORT))))
    };
    use Verdict::{Drop, Echo, Pass, Reject};
    assert_eq!(answers(&world, VIP), (Pass, Pass, Pass), "the range is not known");
    world.service_addresses = [VIP, UNALLOCATED].map(F::addr).into();
    assert_eq!(answers(&world, VIP), (Echo, Reject, Reject));
    assert_eq!(answers(&world, UNALLOCATED), (Drop, Drop, Drop));
    assert_eq!(answers(&world, CLIENT), (Pass, Pass, Pass));
    assert_eq!(world.counter(Counter::Unallocated), 3);
    // Answers are translated first.
    let request = tcp(POD_END, (VIP, PORT), SYN);
    let answer = tcp::<F>((POD_B, TARGET_PORT), POD_END, SYN_ACK);
    world.pod_sends(&request);
    world.to_outside(&answer).is(Verdict::Translate, (VIP, PORT), POD_END);
}

fn source_ranges<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    world.frontend(F::addr(EXTERNAL_IP), PORT, SERVICE, FRONTEND_SOURCES);
    world.sources = [(SERVICE, F::addr(CLIENT))].into();
    let frontend = (EXTERNAL_IP, PORT);
    assert_eq!(world.uplink_gets(&tcp(OUTSIDE_END, frontend, SYN)).verdict, Verdict::Translate);
    assert_eq!(world.uplink_gets(&tcp((GATEWAY, 1), frontend, SYN)).verdict, Verdict::Drop);
    assert_eq!(world.pod_sends(&tcp(POD_END, frontend, SYN)).verdict, Verdict::Drop);
    assert_eq!(world.counter(Counter::SourceDenied), 2);
    // Other frontends of the service are not filtered, and neither are known flows.
    assert_eq!(world.pod_sends(&tcp(POD_END, (VIP, PORT), SYN)).verdict, Verdict::Translate);
    world.sources.clear();
    assert_eq!(world.uplink_gets(&tcp(OUTSIDE_END, frontend, ACK)).verdict, Verdict::Translate);
}

fn sockets_and_source_ranges<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    world.frontend(F::addr(EXTERNAL_IP), PORT, SERVICE, FRONTEND_SOURCES);
    world.sources = [(SERVICE, F::addr(POD_A))].into();
    let frontend = (EXTERNAL_IP, PORT);
    assert_eq!(connect(&world, frontend, F::UNSPECIFIED), SocketVerdict::Pass, "the packets will tell");
    assert_eq!(connect(&world, frontend, F::addr(POD_A)), SocketVerdict::Translate);
    assert_eq!(connect(&world, frontend, F::addr(NODE)), SocketVerdict::Denied);
    for (address, expected) in [(POD_A, SocketVerdict::Translate), (POD_B, SocketVerdict::Denied)] {
        world.netns.insert(NETNS, F::addr(address));
        assert_eq!(connect(&world, frontend, F::UNSPECIFIED), expected, "{address}");
    }
}

fn sockets_are_told_why<F: TestFamily>() {
    let mut world = World::<F>::new(&[]);
    let to = |world: &World<F>, port| connect(world, (VIP, port), F::UNSPECIFIED);
    assert_eq!(to(&world, PORT), SocketVerdict::Reject);
    assert_eq!(to(&world, PORT + 1), SocketVerdict::Reject);
    world.sets.insert(Set::index(SERVICE, SetRole::ClusterIp), Set::WITHHELD);
    assert_eq!(to(&world, PORT), SocketVerdict::Unreachable);
    let counts = [Counter::NoEndpoints, Counter::UndefinedPort, Counter::NoLocalEndpoints];
    assert_eq!(counts.map(|counter| world.counter(counter)), [1, 1, 1]);
}

fn connections_to_removed_endpoints_are_reset_on_demand<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    world.pod_sends(&tcp(POD_END, (VIP, PORT), SYN));
    world.pod_sends(&udp(POD_END, (VIP, PORT)));
    world.alive.clear();
    let request = tcp(POD_END, (VIP, PORT), ACK);
    assert_eq!(world.pod_sends(&request).verdict, Verdict::Translate, "left alone by default");
    world.settings.reset_removed_tcp = true;
    assert_eq!(world.pod_sends(&request).verdict, Verdict::Reset);
    assert_eq!(world.counter(Counter::FlowReset), 1);
    // UDP and new connections choose anew, as ever.
    world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
    for packet in [tcp(POD_END, (VIP, PORT), SYN), udp(POD_END, (VIP, PORT))] {
        world.pod_sends(&packet).is(Verdict::Translate, POD_END, (REMOTE, TARGET_PORT));
    }
}

fn sctp_is_a_connection<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    let target = world.frontends[&FrontendKey::new(F::addr(VIP), PORT.to_be(), PROTOCOL_TCP)];
    world.add_frontend(FrontendKey::new(F::addr(VIP), PORT.to_be(), PROTOCOL_SCTP), target);
    let sctp = |flags| packet::<F>(tuple(POD_END, (VIP, PORT)), PROTOCOL_SCTP, flags);
    world.pod_sends(&sctp(SYN)).is(Verdict::Translate, POD_END, (POD_B, TARGET_PORT));
    // Like TCP, and unlike UDP, it stays with an endpoint that is gone until it opens an association anew.
    world.alive.clear();
    world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
    world.pod_sends(&sctp(ACK)).is(Verdict::Translate, POD_END, (POD_B, TARGET_PORT));
    world.pod_sends(&sctp(SYN)).is(Verdict::Translate, POD_END, (REMOTE, TARGET_PORT));
}

//! Clients outside.

use super::{fixture::*, for_both_families};
use crate::{
    decide::{Fragmentable, RouteKind, Verdict},
    layout::{
        counter::Counter,
        device::{DEVICE_FRAGMENTS, DEVICE_FRAGMENTS_WHOLE},
        set::SetPolicy,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    local_backend_and_back
    remote_backend_and_back
    remote_endpoint_behind_a_pods_interface
    cluster_ip_from_outside_passes
    cluster_ip_from_outside_when_allowed
    external_set_from_outside
    unresolved_neighbour_is_forwarded_all_the_same
    what_the_stack_must_send
    no_route_drops
    hop_limit
    packets_that_may_be_fragmented
    whole_packets_that_may_be_fragmented
    what_the_stack_sends_it_fragments
    packets_too_big_for_the_route
    no_endpoints_rejects
    broken_slot_drops
    full_map_drops_and_leaves_nothing
}

pub(super) const CLIENT_END: End = (CLIENT, 50_000);
pub(super) const FRONTEND: End = (NODE, NODE_PORT);

fn local_backend_and_back<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_A]);
    for _ in 0..2 {
        let decision = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN));
        // The client keeps its address: the reply must leave by this node anyway.
        decision.is(Verdict::ToStack, CLIENT_END, (POD_A, TARGET_PORT));
    }
    let reply = tcp((POD_A, TARGET_PORT), CLIENT_END, SYN_ACK);
    assert_eq!(fixture.pod_sends(&reply).verdict, Verdict::Pass);
    fixture.pod_egress(&reply).is(Verdict::ToStack, FRONTEND, CLIENT_END);
}

/// The first packet of a connection to the endpoint on another node, after its translation.
pub(super) fn open<F: TestFamily>(fixture: &Fixture<F>, client: End) -> Packet<F> {
    let request = tcp(client, FRONTEND, SYN);
    let decision = fixture.uplink_gets(&request);
    assert_eq!(decision.verdict, Verdict::Redirect, "{client:?}");
    decision.sent(&request)
}

fn remote_backend_and_back<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[REMOTE]);
    let sent = open(&fixture, CLIENT_END);
    assert_eq!((sent.tuple.src, sent.tuple.dst), (F::addr(NODE), F::addr(REMOTE)));
    assert_eq!(open(&fixture, CLIENT_END), sent, "the second packet takes the same way");
    let reply = packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK);
    let back = fixture.uplink_gets(&reply);
    back.is(Verdict::Redirect, FRONTEND, CLIENT_END);
    assert_eq!(back.out.route.next_hop, F::addr(GATEWAY));
    assert_eq!(fixture.pod_egress(&reply).verdict, Verdict::Pass, "never at the other edge");
}

fn remote_endpoint_behind_a_pods_interface<F: TestFamily>() {
    let reply_of =
        |fixture: &Fixture<F>| packet(open(fixture, CLIENT_END).tuple.reversed(), PROTOCOL_TCP, SYN_ACK);
    let fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.pod_sends(&reply_of(&fixture)).is(Verdict::Redirect, FRONTEND, CLIENT_END);
    // The request left by an interface behind the bridge, which translates the reply.
    let fixture = Fixture::<F>::new(&[REMOTE]).bridged();
    assert_eq!(fixture.pod_sends(&reply_of(&fixture)).verdict, Verdict::Pass);
}

fn cluster_ip_from_outside_passes<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_A]);
    assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, (VIP, PORT), SYN)).verdict, Verdict::Pass);
}

fn cluster_ip_from_outside_when_allowed<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_A]);
    fixture.settings.external_cluster_ips = true;
    let decision = fixture.uplink_gets(&tcp(CLIENT_END, (VIP, PORT), SYN));
    decision.is(Verdict::ToStack, CLIENT_END, (POD_A, TARGET_PORT));
}

fn external_set_from_outside<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.set(SERVICE, SetPolicy::External, &[POD_A]);
    fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).is(
        Verdict::ToStack,
        CLIENT_END,
        (POD_A, TARGET_PORT),
    );
    let to_external_ip = fixture.uplink_gets(&tcp((CLIENT, 50_001), (EXTERNAL_IP, PORT), SYN));
    to_external_ip.is(Verdict::ToStack, (CLIENT, 50_001), (POD_A, TARGET_PORT));
    // From inside, policies for clients outside do not apply.
    let inside = fixture.pod_sends(&tcp((POD_A, 1), FRONTEND, SYN));
    inside.is(Verdict::ToStack, (POD_A, 1), (REMOTE, TARGET_PORT));
}

fn unresolved_neighbour_is_forwarded_all_the_same<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.resolve(REMOTE, false);
    for _ in 0..2 {
        let decision = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN));
        assert_eq!((decision.verdict, decision.out.route.kind), (Verdict::Redirect, RouteKind::Unresolved));
    }
}

/// The packet is translated as by any other route, and the stack takes one off its hop limit.
fn what_the_stack_must_send<F: TestFamily>() {
    for is_there_before in [true, false] {
        let mut fixture = Fixture::<F>::new(&[REMOTE]);
        let known = is_there_before.then(|| open(&fixture, CLIENT_END));
        let before = fixture.default_route.hops();
        fixture.default_route.kind = RouteKind::Stack;
        assert_eq!((before, fixture.default_route.hops()), (1, 0));
        let sent = open(&fixture, CLIENT_END);
        assert_eq!((sent.tuple.src, sent.tuple.dst), (F::addr(NODE), F::addr(REMOTE)));
        assert!(known.is_none_or(|known| known == sent), "the flow stays");
        let back = fixture.uplink_gets(&packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK));
        back.is(Verdict::Redirect, FRONTEND, CLIENT_END);
        assert_eq!(back.out.route.kind, RouteKind::Stack);
        let acknowledged = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK));
        assert_eq!(
            (acknowledged.verdict, acknowledged.out.route.kind),
            (Verdict::Redirect, RouteKind::Stack)
        );
        let last = Packet { hop_limit: 1, ..tcp(CLIENT_END, FRONTEND, ACK) };
        assert_eq!(
            fixture.uplink_gets(&last).verdict,
            Verdict::TimeExceeded,
            "the client is told, not this node"
        );
        // The stack sends it by the same uplink; then it came in by another interface.
        fixture.came_in.set(1);
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            let flags = if protocol == PROTOCOL_TCP { SYN } else { 0 };
            let request = packet(tuple((CLIENT, 50_007), FRONTEND), protocol, flags);
            let sent = fixture.uplink_gets(&request).sent(&request);
            assert_eq!(fixture.uplink_egress(&sent).verdict, Verdict::Pass);
        }
        assert!(fixture.outbound.borrow().is_empty(), "nothing else has sent it");
    }
}

fn no_route_drops<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    open(&fixture, CLIENT_END);
    fixture.default_route.kind = RouteKind::None;
    for client in [CLIENT_END, (CLIENT, 50_001)] {
        assert_eq!(fixture.uplink_gets(&tcp(client, FRONTEND, SYN)).verdict, Verdict::Drop);
    }
    assert_eq!(fixture.counter(Counter::NoRoute), 2);
}

fn hop_limit<F: TestFamily>() {
    for hop_limit in [0, 1] {
        let remote = Fixture::<F>::new(&[REMOTE]);
        let request = Packet { hop_limit, ..tcp(CLIENT_END, FRONTEND, SYN) };
        assert_eq!(remote.uplink_gets(&request).verdict, Verdict::TimeExceeded, "new flow");
        assert_eq!(remote.entries(), (0, 0));
        let sent = open(&remote, CLIENT_END);
        assert_eq!(remote.uplink_gets(&request).verdict, Verdict::TimeExceeded, "known flow");
        let reply = Packet { hop_limit, ..packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK) };
        assert_eq!(remote.uplink_gets(&reply).verdict, Verdict::TimeExceeded, "answer");
        // ICMP errors, and fragments other than the first, cause no ICMP error.
        for packet in [request, reply] {
            let follower = Packet { follows: true, ..packet };
            assert_eq!(remote.uplink_gets(&follower).verdict, Verdict::Drop, "follower");
        }
        assert_eq!(remote.counter(Counter::HopLimit), 5);
        // The stack generates the errors for packets that it forwards.
        let local = Fixture::<F>::new(&[POD_A]);
        assert_eq!(local.uplink_gets(&request).verdict, Verdict::ToStack);
    }
}

/// The stack fragments packets that leave from an address of the node, where it takes such packets; then the
/// sender gets no ICMP error.
fn packets_that_may_be_fragmented<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.default_route.mtu = 1400;
    fixture.size.set(1401);
    fixture.fragmentable.set(Fragmentable::Fragment);
    let request = udp(CLIENT_END, FRONTEND);
    assert_eq!(fixture.uplink_gets(&request).verdict, Verdict::TooBig, "the stack takes none");
    for device in fixture.devices.values_mut() {
        device.flags |= DEVICE_FRAGMENTS;
    }
    let sent = fixture.uplink_gets(&request);
    assert_eq!((sent.verdict, sent.out.route.kind), (Verdict::Redirect, RouteKind::Stack), "new flow");
    let again = fixture.uplink_gets(&request);
    assert_eq!((again.verdict, again.out.route.kind), (Verdict::Redirect, RouteKind::Stack), "known flow");
    let follower = Packet { follows: true, ..request };
    let later = fixture.uplink_gets(&follower);
    assert_eq!(
        (later.verdict, later.out.route.kind),
        (Verdict::Redirect, RouteKind::Stack),
        "later fragment"
    );
    fixture.fragmentable.set(Fragmentable::No);
    assert_eq!(fixture.uplink_gets(&request).verdict, Verdict::TooBig, "don't fragment");
    assert_eq!(fixture.counter(Counter::TooBig), 2);
}

/// Where the stack reassembles fragments, it takes only unfragmented packets.
fn whole_packets_that_may_be_fragmented<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.default_route.mtu = 1400;
    fixture.size.set(1401);
    fixture.devices.values_mut().for_each(|device| device.flags |= DEVICE_FRAGMENTS_WHOLE);
    let request = udp(CLIENT_END, FRONTEND);
    for (fragmentable, verdict) in [
        (Fragmentable::Whole, Verdict::Redirect),
        (Fragmentable::Fragment, Verdict::TooBig),
        (Fragmentable::No, Verdict::TooBig),
    ] {
        fixture.fragmentable.set(fragmentable);
        assert_eq!(fixture.uplink_gets(&request).verdict, verdict, "{fragmentable:?}");
    }
}

/// By an encapsulation, or for a policy: also fragments, and without a flag of the interface. A sender that
/// forbids fragmentation gets an ICMP error.
fn what_the_stack_sends_it_fragments<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.default_route.mtu = 1400;
    fixture.default_route.by_stack = true;
    fixture.size.set(1401);
    let request = udp(CLIENT_END, FRONTEND);
    for fragmentable in [Fragmentable::Whole, Fragmentable::Fragment] {
        fixture.fragmentable.set(fragmentable);
        let sent = fixture.uplink_gets(&request);
        assert_eq!((sent.verdict, sent.out.route.kind), (Verdict::Redirect, RouteKind::Stack));
    }
    fixture.fragmentable.set(Fragmentable::No);
    assert_eq!(fixture.uplink_gets(&request).verdict, Verdict::TooBig);
}

/// The program sends the ICMP error of a router. The packet is not sent, so no flow is opened; smaller packets
/// pass.
fn packets_too_big_for_the_route<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[REMOTE]);
    fixture.default_route.mtu = 1400;
    fixture.size.set(1401);
    let request = tcp(CLIENT_END, FRONTEND, SYN);
    let told = fixture.uplink_gets(&request);
    assert_eq!((told.verdict, told.out.route.mtu), (Verdict::TooBig, 1400), "new flow");
    assert_eq!(fixture.entries(), (0, 0));
    fixture.size.set(1400);
    let sent = fixture.uplink_gets(&request);
    assert_eq!(sent.verdict, Verdict::Redirect);
    fixture.size.set(1401);
    assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, ACK)).verdict, Verdict::TooBig, "known flow");
    let reply = packet(sent.out.to.reversed(), PROTOCOL_TCP, SYN_ACK);
    assert_eq!(fixture.uplink_gets(&reply).verdict, Verdict::TooBig, "answer");
    let follower = Packet { follows: true, ..reply };
    assert_eq!(fixture.uplink_gets(&follower).verdict, Verdict::Drop, "follower");
    assert_eq!(fixture.counter(Counter::TooBig), 4);
    // The stack checks the size of packets that it forwards.
    let mut local = Fixture::<F>::new(&[POD_A]);
    local.default_route.mtu = 1400;
    local.size.set(9_000);
    assert_eq!(local.uplink_gets(&request).verdict, Verdict::ToStack);
}

fn no_endpoints_rejects<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[]);
    assert_eq!(fixture.uplink_gets(&udp(CLIENT_END, FRONTEND)).verdict, Verdict::Reject);
}

fn broken_slot_drops<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_A]);
    fixture.backends.clear();
    assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Drop);
    assert_eq!(fixture.counter(Counter::BadSlot), 1);
}

fn full_map_drops_and_leaves_nothing<F: TestFamily>() {
    for max_flows in [0, 1] {
        let mut fixture = Fixture::<F>::new(&[POD_A]);
        fixture.max_flows = max_flows;
        assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Drop);
        assert_eq!(fixture.counter(Counter::FlowMapFull), 1);
        assert_eq!(fixture.entries(), (0, 0));
    }
}

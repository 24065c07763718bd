//! What is a request, and what is not.

use super::{
    for_both_families,
    uplink::{CLIENT_END, FRONTEND, open},
    world::*,
};
use crate::{
    decide::Verdict,
    layout::{
        counter::Counter,
        filter,
        flow::{Edge, FlowKey},
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

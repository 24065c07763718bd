//! Life of a flow's entries.

use super::{for_both_families, world::*};
use crate::{
    decide::Verdict,
    layout::{
        counter::Counter,
        flow::{Edge, FlowKey, FlowState},
        set::SetRole,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    two_vips_on_one_backend_from_one_port
    retransmitted_syn_keeps_the_backend
    syn_after_close_chooses_anew
    close_by_the_backend_counts_too
    tcp_stays_with_a_removed_backend
    udp_leaves_a_removed_backend
    reused_backend_id_is_another_backend
    lost_reverse_entry_comes_back
    lost_forward_entry_comes_back
    lost_entries_of_a_snat_flow_come_back
    entries_are_touched_once_a_second
    states_of_a_connection
    datagrams_are_answered
    errors_are_no_answers
    new_flows_are_limited
    answers_of_a_closed_flow_are_not_for_its_client
    closed_flow_gives_its_answers_up
    the_end_of_a_flow_is_not_another_s
}

const CLIENT_END: End = (POD_A, 40_000);
const REQUEST: (End, End) = (CLIENT_END, (VIP, PORT));

fn state<F: TestFamily>(world: &World<F>, packet: &Packet<F>) -> u8 {
    world.flow_entry(&FlowKey::new(packet.tuple, packet.protocol, Edge::Forward)).unwrap().state
}

/// A router that says the backend is not there does not establish a connection, nor take it from the limit.
fn errors_are_no_answers<F: TestFamily>() {
    for (protocol, flags) in [(PROTOCOL_TCP, SYN), (PROTOCOL_UDP, 0)] {
        let world = World::<F>::new(&[POD_B]);
        let request = packet(tuple(REQUEST.0, REQUEST.1), protocol, flags);
        let sent = world.pod_sends(&request).sent(&request);
        let error = Packet { follows: true, ..packet(sent.tuple.reversed(), protocol, 0) };
        assert_eq!(world.to_client(&error).verdict, Verdict::Translate);
        assert_eq!(state(&world, &request), FlowState::New as u8);
        let about_answer = Packet { follows: true, ..packet(request.tuple, protocol, 0) };
        assert_eq!(world.pod_sends(&about_answer).verdict, Verdict::Translate);
        assert_eq!(state(&world, &request), FlowState::New as u8);
    }
}

fn two_vips_on_one_backend_from_one_port<F: TestFamily>() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let world = World::<F>::new(&[POD_B]);
        let mut replies = std::vec![];
        for vip in [VIP, VIP2] {
            let flags = if protocol == PROTOCOL_TCP { SYN } else { 0 };
            let request = packet(tuple(CLIENT_END, (vip, PORT)), protocol, flags);
            let sent = world.pod_sends(&request).sent(&request);
            assert_eq!(world.pod_sends(&request).out.to, sent.tuple, "the same the second time");
            replies.push((vip, packet(sent.tuple.reversed(), protocol, SYN_ACK & flags)));
        }
        assert_ne!(replies[0].1.tuple, replies[1].1.tuple);
        for (vip, reply) in replies {
            world.to_client(&reply).is(Verdict::Translate, (vip, PORT), CLIENT_END);
        }
    }
}

fn retransmitted_syn_keeps_the_backend<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B, REMOTE, 14, 15, 16]);
    let request = tcp(REQUEST.0, REQUEST.1, SYN);
    let first = world.pod_sends(&request).out.to;
    for _ in 0..20 {
        assert_eq!(world.pod_sends(&request).out.to, first);
    }
}

fn syn_after_close_chooses_anew<F: TestFamily>() {
    for closing in [FIN, RST] {
        let mut world = World::<F>::new(&[POD_B]);
        let (syn, end) = (tcp(REQUEST.0, REQUEST.1, SYN), tcp(REQUEST.0, REQUEST.1, closing));
        world.pod_sends(&syn);
        world.pod_sends(&end);
        assert!(FlowState::is_ending(state(&world, &syn)));
        world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
        world.pod_sends(&tcp(REQUEST.0, REQUEST.1, ACK)).is(
            Verdict::Translate,
            CLIENT_END,
            (POD_B, TARGET_PORT),
        );
        world.pod_sends(&syn).is(Verdict::Translate, CLIENT_END, (REMOTE, TARGET_PORT));
        assert_eq!(state(&world, &syn), FlowState::New as u8);
    }
}

fn close_by_the_backend_counts_too<F: TestFamily>() {
    for closing in [FIN, RST] {
        let mut world = World::<F>::new(&[POD_B]);
        let syn = tcp(REQUEST.0, REQUEST.1, SYN);
        world.pod_sends(&syn);
        world.to_client(&tcp((POD_B, TARGET_PORT), CLIENT_END, closing));
        world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
        world.pod_sends(&syn).is(Verdict::Translate, CLIENT_END, (REMOTE, TARGET_PORT));
    }
}

fn tcp_stays_with_a_removed_backend<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    let syn = tcp(REQUEST.0, REQUEST.1, SYN);
    world.pod_sends(&syn);
    world.alive.clear();
    world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
    let said = world.pod_sends(&tcp(REQUEST.0, REQUEST.1, ACK));
    said.is(Verdict::Translate, CLIENT_END, (POD_B, TARGET_PORT));
    // But a SYN, even a retransmitted one, has nothing to lose there.
    world.pod_sends(&syn).is(Verdict::Translate, CLIENT_END, (REMOTE, TARGET_PORT));
}

fn udp_leaves_a_removed_backend<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    let request = udp(REQUEST.0, REQUEST.1);
    world.pod_sends(&request).is(Verdict::Translate, CLIENT_END, (POD_B, TARGET_PORT));
    world.alive.clear();
    world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
    world.pod_sends(&request).is(Verdict::Translate, CLIENT_END, (REMOTE, TARGET_PORT));
    let reply = udp((REMOTE, TARGET_PORT), CLIENT_END);
    world.to_client(&reply).is(Verdict::Translate, (VIP, PORT), CLIENT_END);
    world.set(SERVICE, SetRole::ClusterIp, &[]);
    world.alive.clear();
    assert_eq!(world.pod_sends(&request).verdict, Verdict::Reject);
    assert_eq!(world.counter(Counter::NoEndpoints), 1);
}

fn reused_backend_id_is_another_backend<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    let request = udp(REQUEST.0, REQUEST.1);
    world.pod_sends(&request);
    let old = backend::<F>(POD_B).id;
    world.alive = [old.next()].into();
    world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
    world.pod_sends(&request).is(Verdict::Translate, CLIENT_END, (REMOTE, TARGET_PORT));
}

/// Removes the entry of an edge; there is only one.
fn lose<F: TestFamily>(world: &World<F>, edge: Edge) {
    let before = world.flows.borrow().len();
    world.flows.borrow_mut().retain(|key, _| key.edge != edge as u8);
    assert_eq!(world.flows.borrow().len(), before - 1);
}

fn lost_reverse_entry_comes_back<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, SYN));
    lose(&world, Edge::ReverseEgress);
    // The agent clears marks that no entry has.
    world.answers.borrow_mut().clear();
    let reply = tcp((POD_B, TARGET_PORT), CLIENT_END, ACK);
    assert_eq!(world.to_client(&reply).verdict, Verdict::Pass);
    world.wait();
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, ACK));
    world.to_client(&reply).is(Verdict::Translate, (VIP, PORT), CLIENT_END);
    assert_eq!(world.counter(Counter::FlowRepaired), 1);
}

fn lost_forward_entry_comes_back<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, SYN));
    lose(&world, Edge::Forward);
    world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
    world.wait();
    world.to_client(&tcp((POD_B, TARGET_PORT), CLIENT_END, ACK));
    let said = world.pod_sends(&tcp(REQUEST.0, REQUEST.1, ACK));
    said.is(Verdict::Translate, CLIENT_END, (POD_B, TARGET_PORT));
    assert_eq!(world.counter(Counter::FlowRepaired), 1);
}

fn lost_entries_of_a_snat_flow_come_back<F: TestFamily>() {
    for lost in [Edge::Forward, Edge::ReverseIngress] {
        let world = World::<F>::new(&[REMOTE]);
        let request = tcp((CLIENT, 50_000), (NODE, NODE_PORT), SYN);
        let sent = world.uplink_gets(&request).sent(&request);
        let before = world.flows.borrow().clone();
        lose(&world, lost);
        world.wait();
        if matches!(lost, Edge::Forward) {
            world.uplink_gets(&packet(sent.tuple.reversed(), PROTOCOL_TCP, ACK));
        } else {
            world.uplink_gets(&Packet { tcp_flags: ACK, ..request });
        }
        let after = world.flows.borrow();
        assert_eq!(after.len(), 2);
        for (key, flow) in &before {
            let (old, new) = (flow.get(), after[key].get());
            assert_eq!((old.tuple, old.flags, old.backend), (new.tuple, new.flags, new.backend));
        }
    }
}

fn entries_are_touched_once_a_second<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    let ack = tcp(REQUEST.0, REQUEST.1, ACK);
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, SYN));
    let seen =
        || -> std::vec::Vec<u32> { world.flows.borrow().values().map(|flow| flow.get().last_seen).collect() };
    let start = world.now.get();
    world.now.set(start + crate::layout::flow::REFRESH - 1);
    world.pod_sends(&ack);
    assert_eq!(seen(), [start; 2]);
    world.now.set(start + crate::layout::flow::REFRESH);
    world.pod_sends(&ack);
    assert_eq!(seen(), [start + crate::layout::flow::REFRESH; 2], "both entries");
}

/// Who sends.
#[derive(Clone, Copy, Debug)]
enum By {
    Client,
    Server,
}

/// Sends packets with these flags and compares the states of both entries after each, for requests first.
fn lives<F: TestFamily>(steps: &[(By, u8, FlowState, FlowState)]) {
    let world = World::<F>::new(&[POD_B]);
    let answers = FlowKey::new(tuple((POD_B, TARGET_PORT), CLIENT_END), PROTOCOL_TCP, Edge::ReverseEgress);
    for (by, flags, request, answer) in steps {
        match by {
            By::Client => world.pod_sends(&tcp(REQUEST.0, REQUEST.1, *flags)),
            By::Server => world.to_client(&tcp((POD_B, TARGET_PORT), CLIENT_END, *flags)),
        };
        let said =
            (state(&world, &tcp(REQUEST.0, REQUEST.1, SYN)), world.flow_entry(&answers).unwrap().state);
        assert_eq!(said, (*request as u8, *answer as u8), "after {flags:#x} by {by:?} of {steps:?}");
    }
}

fn states_of_a_connection<F: TestFamily>() {
    use By::{Client, Server};
    use FlowState::{Answered, Assured, Closed, ClosingByClient, ClosingByServer, Established, New};
    let handshake = [
        (Client, SYN, New, New),
        (Client, SYN, New, New),
        (Server, SYN_ACK, New, Answered),
        (Server, SYN_ACK, New, Answered),
        (Client, ACK, Established, Established),
        (Client, ACK, Established, Established),
        (Server, ACK, Established, Assured),
        (Client, ACK, Established, Assured),
    ];
    for rest in [
        &[
            (Client, FIN, ClosingByClient, ClosingByClient),
            (Server, ACK, ClosingByClient, ClosingByClient),
            (Client, FIN, ClosingByClient, ClosingByClient),
            (Server, FIN, Closed, Closed),
            (Client, ACK, Closed, Closed),
            (Client, FIN, Closed, Closed),
        ][..],
        &[
            (Server, FIN, ClosingByServer, ClosingByServer),
            (Server, FIN, ClosingByServer, ClosingByServer),
            (Client, FIN, Closed, Closed),
            (Client, SYN, New, New),
        ],
        &[(Client, FIN, ClosingByClient, ClosingByClient), (Client, RST, Closed, Closed)],
        &[(Client, RST, Closed, Closed), (Server, FIN, Closed, Closed)],
        &[(Server, RST, Closed, Closed)],
    ] {
        lives::<F>(&[&handshake, rest].concat());
    }
    // Without a handshake: the client alone says nothing, the backend does.
    lives::<F>(&[(Client, ACK, New, New), (Client, ACK, New, New), (Server, ACK, Established, Assured)]);
    // Refused.
    lives::<F>(&[(Client, SYN, New, New), (Server, RST, Closed, Closed), (Client, SYN, New, New)]);
}

fn datagrams_are_answered<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    let (request, reply) = (udp(REQUEST.0, REQUEST.1), udp((POD_B, TARGET_PORT), CLIENT_END));
    for _ in 0..2 {
        world.pod_sends(&request);
        assert_eq!(state(&world, &request), FlowState::New as u8);
    }
    for _ in 0..2 {
        world.to_client(&reply);
        for flow in world.flows.borrow().values() {
            assert_eq!(flow.get().state, FlowState::Established as u8, "both entries");
        }
    }
    assert_eq!(world.unanswered.get(), 0);
}

fn new_flows_are_limited<F: TestFamily>() {
    let mut world = World::<F>::new(&[POD_B]);
    world.max_unanswered = 2;
    let syn = |port| tcp((POD_A, port), REQUEST.1, SYN);
    let back = |port, flags| tcp((POD_B, TARGET_PORT), (POD_A, port), flags);
    for port in [1, 2] {
        assert_eq!(world.pod_sends(&syn(port)).verdict, Verdict::Translate);
    }
    let entries = world.flows.borrow().len();
    assert_eq!(world.pod_sends(&syn(3)).verdict, Verdict::Drop);
    assert_eq!((world.counter(Counter::NewFlowLimited), world.flows.borrow().len()), (1, entries));
    // Known flows go on. A handshake that the backend only answered is not one that the client completed: whoever sends from
    // others' addresses gets so far, and with a guess even one packet further.
    assert_eq!(world.pod_sends(&syn(1)).verdict, Verdict::Translate);
    world.to_client(&back(1, SYN_ACK));
    world.pod_sends(&tcp((POD_A, 1), REQUEST.1, ACK));
    assert_eq!(world.pod_sends(&syn(3)).verdict, Verdict::Drop);
    world.to_client(&back(1, ACK));
    world.to_client(&back(1, ACK));
    assert_eq!(world.pod_sends(&syn(3)).verdict, Verdict::Translate);
    assert_eq!(world.pod_sends(&syn(4)).verdict, Verdict::Drop, "it gave one place back, once");
    assert_eq!(world.unanswered.get(), 2);
}

fn answers_of_a_closed_flow_are_not_for_its_client<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, SYN));
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, RST));
    // The client's next connection from that port is to the backend directly.
    let reply = |flags| tcp((POD_B, TARGET_PORT), CLIENT_END, flags);
    assert_eq!(world.to_client(&reply(SYN_ACK)).verdict, Verdict::Pass);
    // What is left of the closed one still belongs to it.
    world.to_client(&reply(FIN)).is(Verdict::Translate, (VIP, PORT), CLIENT_END);
}

fn closed_flow_gives_its_answers_up<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, SYN));
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, FIN));
    // Half closed, the backend may still be at it.
    let meanwhile = world.pod_sends(&tcp(CLIENT_END, (EXTERNAL_IP, PORT), SYN)).out.to;
    assert_ne!(meanwhile.sport, CLIENT_END.1.to_be());
    world.to_client(&tcp((POD_B, TARGET_PORT), CLIENT_END, FIN));
    // The same port again, to another service on the same backend: the source port need not change.
    world.pod_sends(&tcp(CLIENT_END, (VIP2, PORT), SYN)).is(
        Verdict::Translate,
        CLIENT_END,
        (POD_B, TARGET_PORT),
    );
    world.to_client(&tcp((POD_B, TARGET_PORT), CLIENT_END, SYN_ACK)).is(
        Verdict::Translate,
        (VIP2, PORT),
        CLIENT_END,
    );
}

fn the_end_of_a_flow_is_not_another_s<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, SYN));
    // The answers' entry was forgotten, and another service's flow from the same port took it.
    lose(&world, Edge::ReverseEgress);
    world.pod_sends(&tcp(CLIENT_END, (VIP2, PORT), SYN));
    // A late reset of the first one.
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, RST));
    world.to_client(&tcp((POD_B, TARGET_PORT), CLIENT_END, SYN_ACK)).is(
        Verdict::Translate,
        (VIP2, PORT),
        CLIENT_END,
    );
}

//! Life of a flow's entries.

use super::{fixture::*, for_both_families};
use crate::{
    decide::Verdict,
    layout::{
        counter::Counter,
        flow::{FlowKey, FlowState, LookupPoint},
        set::SetPolicy,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    two_vips_on_one_backend_from_one_port
    retransmitted_syn_keeps_the_backend
    tcp_stays_with_a_removed_backend
    udp_leaves_a_removed_backend
    reused_backend_id_is_another_backend
    lost_reverse_entry_comes_back
    lost_forward_entry_comes_back
    lost_entries_of_a_snat_flow_come_back
    entries_are_touched_once_a_second
    datagrams_are_answered
    errors_are_no_replies
    unconfirmed_flows_are_kept_apart
    only_who_saw_the_syn_ack_confirms
    a_frontend_that_moved_takes_its_datagrams_along
}

const CLIENT_END: End = (POD_A, 40_000);
const REQUEST: (End, End) = (CLIENT_END, (VIP, PORT));

fn state<F: TestFamily>(fixture: &Fixture<F>, packet: &Packet<F>) -> u8 {
    fixture.flow_entry(&FlowKey::new(packet.tuple, packet.protocol, LookupPoint::Forward)).unwrap().state
}

/// A router's error that the backend is unreachable does not confirm the flow.
fn errors_are_no_replies<F: TestFamily>() {
    for (protocol, flags) in [(PROTOCOL_TCP, SYN), (PROTOCOL_UDP, 0)] {
        let fixture = Fixture::<F>::new(&[POD_B]);
        let request = packet(tuple(REQUEST.0, REQUEST.1), protocol, flags);
        let sent = fixture.pod_sends(&request).sent(&request);
        let error = Packet { follows: true, ..packet(sent.tuple.reversed(), protocol, 0) };
        assert_eq!(fixture.pod_egress(&error).verdict, Verdict::ToStack);
        assert_eq!(state(&fixture, &request), FlowState::New as u8);
        let about_reply = Packet { follows: true, ..packet(request.tuple, protocol, 0) };
        assert_eq!(fixture.pod_sends(&about_reply).verdict, Verdict::ToStack);
        assert_eq!(state(&fixture, &request), FlowState::New as u8);
    }
}

fn two_vips_on_one_backend_from_one_port<F: TestFamily>() {
    for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
        let fixture = Fixture::<F>::new(&[POD_B]);
        let mut replies = std::vec![];
        for vip in [VIP, VIP2] {
            let flags = if protocol == PROTOCOL_TCP { SYN } else { 0 };
            let request = packet(tuple(CLIENT_END, (vip, PORT)), protocol, flags);
            let sent = fixture.pod_sends(&request).sent(&request);
            assert_eq!(fixture.pod_sends(&request).out.to, sent.tuple, "the same the second time");
            replies.push((vip, packet(sent.tuple.reversed(), protocol, SYN_ACK & flags)));
        }
        assert_ne!(replies[0].1.tuple, replies[1].1.tuple);
        for (vip, reply) in replies {
            fixture.pod_egress(&reply).is(Verdict::ToStack, (vip, PORT), CLIENT_END);
        }
    }
}

fn retransmitted_syn_keeps_the_backend<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B, REMOTE, 14, 15, 16]);
    let request = tcp(REQUEST.0, REQUEST.1, SYN);
    let first = fixture.pod_sends(&request).out.to;
    for _ in 0..20 {
        assert_eq!(fixture.pod_sends(&request).out.to, first);
    }
}

fn tcp_stays_with_a_removed_backend<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    let syn = tcp(REQUEST.0, REQUEST.1, SYN);
    fixture.pod_sends(&syn);
    fixture.alive.clear();
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
    let decision = fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, ACK));
    decision.is(Verdict::ToStack, CLIENT_END, (POD_B, TARGET_PORT));
    // But a SYN, even a retransmitted one, may move to another endpoint.
    fixture.pod_sends(&syn).is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
}

fn udp_leaves_a_removed_backend<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    let request = udp(REQUEST.0, REQUEST.1);
    fixture.pod_sends(&request).is(Verdict::ToStack, CLIENT_END, (POD_B, TARGET_PORT));
    fixture.alive.clear();
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
    fixture.pod_sends(&request).is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
    let reply = udp((REMOTE, TARGET_PORT), CLIENT_END);
    fixture.pod_egress(&reply).is(Verdict::ToStack, (VIP, PORT), CLIENT_END);
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[]);
    fixture.alive.clear();
    assert_eq!(fixture.pod_sends(&request).verdict, Verdict::Reject);
    assert_eq!(fixture.counter(Counter::NoEndpoints), 1);
}

fn reused_backend_id_is_another_backend<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    let request = udp(REQUEST.0, REQUEST.1);
    fixture.pod_sends(&request);
    let old = backend::<F>(POD_B).id;
    fixture.alive = [old.next()].into();
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
    fixture.pod_sends(&request).is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
}

/// Removes the only entry of a lookup point.
pub(super) fn lose<F: TestFamily>(fixture: &Fixture<F>, lookup_point: LookupPoint) {
    let before = fixture.flows.borrow().len();
    fixture.flows.borrow_mut().retain(|key, _| key.lookup_point != lookup_point as u8);
    assert_eq!(fixture.flows.borrow().len(), before - 1, "a confirmed flow");
}

fn lost_reverse_entry_comes_back<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    fixture.pod_connects(REQUEST.0, REQUEST.1);
    lose(&fixture, LookupPoint::ReverseEgress);
    // The agent clears fingerprints without an entry.
    fixture.reply_filter.borrow_mut().clear();
    let reply = tcp((POD_B, TARGET_PORT), CLIENT_END, ACK);
    assert_eq!(fixture.pod_egress(&reply).verdict, Verdict::Pass);
    fixture.wait();
    fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, ACK));
    fixture.pod_egress(&reply).is(Verdict::ToStack, (VIP, PORT), CLIENT_END);
    assert_eq!(fixture.counter(Counter::FlowRepaired), 1);
}

fn lost_forward_entry_comes_back<F: TestFamily>() {
    let mut fixture = Fixture::<F>::new(&[POD_B]);
    fixture.pod_connects(REQUEST.0, REQUEST.1);
    lose(&fixture, LookupPoint::Forward);
    fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
    fixture.wait();
    fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, ACK));
    let decision = fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, ACK));
    decision.is(Verdict::ToStack, CLIENT_END, (POD_B, TARGET_PORT));
    assert_eq!(fixture.counter(Counter::FlowRepaired), 1);
}

fn lost_entries_of_a_snat_flow_come_back<F: TestFamily>() {
    for lost in [LookupPoint::Forward, LookupPoint::ReverseIngress] {
        let fixture = Fixture::<F>::new(&[REMOTE]);
        let request = tcp((CLIENT, 50_000), (NODE, NODE_PORT), ACK);
        let reply = fixture.client_connects((CLIENT, 50_000), (NODE, NODE_PORT));
        let before = fixture.flows.borrow().clone();
        lose(&fixture, lost);
        fixture.wait();
        if matches!(lost, LookupPoint::Forward) {
            fixture.uplink_gets(&packet(reply, PROTOCOL_TCP, ACK));
        } else {
            fixture.uplink_gets(&request);
        }
        let after = fixture.flows.borrow();
        assert_eq!(after.len(), 2);
        for (key, flow) in &before {
            let (old, new) = (flow.get(), after[key].get());
            assert_eq!((old.tuple, old.flags, old.backend), (new.tuple, new.flags, new.backend));
        }
    }
}

fn entries_are_touched_once_a_second<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let ack = tcp(REQUEST.0, REQUEST.1, ACK);
    fixture.pod_connects(REQUEST.0, REQUEST.1);
    let seen = || -> std::vec::Vec<u32> {
        fixture.flows.borrow().values().map(|flow| flow.get().last_seen).collect()
    };
    let start = fixture.now.get();
    fixture.now.set(start + crate::layout::flow::REFRESH - 1);
    fixture.pod_sends(&ack);
    assert_eq!(seen(), [start; 2]);
    fixture.now.set(start + crate::layout::flow::REFRESH);
    fixture.pod_sends(&ack);
    assert_eq!(seen(), [start + crate::layout::flow::REFRESH; 2], "both entries");
}

fn datagrams_are_answered<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let (request, reply) = (udp(REQUEST.0, REQUEST.1), udp((POD_B, TARGET_PORT), CLIENT_END));
    for _ in 0..2 {
        fixture.pod_sends(&request);
        assert_eq!(state(&fixture, &request), FlowState::New as u8);
    }
    for expected in [FlowState::REPLIED, FlowState::Established] {
        fixture.pod_egress(&reply);
        assert_eq!(fixture.entries(), (2, 0));
        for flow in fixture.flows.borrow().values() {
            assert_eq!(flow.get().state, expected as u8, "both entries");
        }
    }
}

/// A flood evicts only other unconfirmed flows.
fn unconfirmed_flows_are_kept_apart<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    for port in 1..100 {
        let syn = tcp((POD_A, port), REQUEST.1, SYN);
        let sent = fixture.pod_sends(&syn).sent(&syn);
        // The endpoint accepts each as a client.
        let reply = packet(sent.tuple.reversed(), PROTOCOL_TCP, SYN_ACK);
        assert_eq!(fixture.pod_egress(&reply).verdict, Verdict::ToStack);
    }
    assert_eq!(fixture.entries(), (0, 198));
    fixture.pod_connects(CLIENT_END, REQUEST.1);
    assert_eq!((fixture.entries(), fixture.counter(Counter::FlowConfirmed)), ((2, 198), 1));
}

/// A sender with a forged source address does not see the endpoint's reply.
fn only_who_saw_the_syn_ack_confirms<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, SYN));
    let early = tcp(REQUEST.0, REQUEST.1, ACK);
    fixture.pod_sends(&early);
    fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, SYN_ACK));
    for acknowledgment in [0, ISN, ISN + 2 + (1 << 16), u32::MAX] {
        let guess = Packet { acknowledgment, ..early };
        assert_eq!(fixture.pod_sends(&guess).verdict, Verdict::ToStack, "the endpoint judges");
        assert_eq!(fixture.entries(), (0, 2), "{acknowledgment}");
    }
    fixture.pod_sends(&early);
    assert_eq!(fixture.entries(), (2, 0));
}

/// Regression test: an address moved from one Service to another, and datagrams stayed with the first one.
fn a_frontend_that_moved_takes_its_datagrams_along<F: TestFamily>() {
    for is_answered in [false, true] {
        let mut fixture = Fixture::<F>::new(&[POD_B]);
        let request = udp(REQUEST.0, REQUEST.1);
        fixture.pod_sends(&request).is(Verdict::ToStack, CLIENT_END, (POD_B, TARGET_PORT));
        if is_answered {
            fixture.pod_egress(&udp((POD_B, TARGET_PORT), CLIENT_END));
        }
        fixture.set(SERVICE2, SetPolicy::ClusterIp, &[REMOTE]);
        fixture.frontend(F::addr(VIP), PORT, SERVICE2, crate::layout::frontend::FRONTEND_CLUSTER_IP);
        fixture.wait();
        fixture.pod_sends(&request).is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
        fixture.wait();
        fixture.pod_egress(&udp((POD_B, TARGET_PORT), CLIENT_END));
        fixture.pod_sends(&request).is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
        // Then the frontend is removed.
        fixture.frontends.clear();
        fixture.wait();
        assert_eq!(fixture.pod_sends(&request).verdict, Verdict::Pass);
    }
}

//! The end of flows, and what remains of them.

use super::{fixture::*, flows::lose, for_both_families};
use crate::{
    decide::Verdict,
    layout::{
        flow::{FlowKey, FlowState, LookupPoint, RESET_WINDOW},
        set::SetPolicy,
    },
    packet::{PROTOCOL_TCP, Packet},
};

for_both_families! {
    syn_after_close_chooses_anew
    close_by_the_backend_counts_too
    states_of_a_connection
    resets_that_nobody_takes_end_nothing
    a_reset_that_is_answered_ends_nothing
    late_copies_of_a_syn_ack_belong_to_their_flow
    replies_of_a_closed_flow_are_not_for_its_client
    a_closed_flow_releases_its_replies
    the_end_of_a_flow_is_not_another_s
}

const CLIENT_END: End = (POD_A, 40_000);
const REQUEST: (End, End) = (CLIENT_END, (VIP, PORT));

fn state<F: TestFamily>(fixture: &Fixture<F>, packet: &Packet<F>) -> u8 {
    fixture.flow_entry(&FlowKey::new(packet.tuple, packet.protocol, LookupPoint::Forward)).unwrap().state
}

fn syn_after_close_chooses_anew<F: TestFamily>() {
    for closing in [FIN, RST] {
        let mut fixture = Fixture::<F>::new(&[POD_B]);
        let (syn, end) = (next_syn(REQUEST.0, REQUEST.1), tcp(REQUEST.0, REQUEST.1, closing));
        fixture.pod_connects(REQUEST.0, REQUEST.1);
        fixture.pod_sends(&end);
        assert!(FlowState::is_ending(state(&fixture, &syn)));
        fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
        // A second copy of the end, and a late copy of the SYN.
        for packet in [end, tcp(REQUEST.0, REQUEST.1, SYN)] {
            fixture.pod_sends(&packet).is(Verdict::ToStack, CLIENT_END, (POD_B, TARGET_PORT));
        }
        fixture.pod_sends(&syn).is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
        assert_eq!(state(&fixture, &syn), FlowState::New as u8);
        // Late packets do not belong to the new connection, and do not restore the old one.
        fixture.wait();
        fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, FIN));
        fixture.pod_sends(&syn).is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
    }
}

fn close_by_the_backend_counts_too<F: TestFamily>() {
    for closing in [FIN, RST] {
        let mut fixture = Fixture::<F>::new(&[POD_B]);
        fixture.pod_connects(REQUEST.0, REQUEST.1);
        fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, closing));
        fixture.set(SERVICE, SetPolicy::ClusterIp, &[REMOTE]);
        let syn = next_syn(REQUEST.0, REQUEST.1);
        fixture.pod_sends(&syn).is(Verdict::ToStack, CLIENT_END, (REMOTE, TARGET_PORT));
    }
}

/// The sender of a packet.
#[derive(Clone, Copy, Debug)]
enum By {
    Client,
    Server,
}

/// Sends packets with these flags and compares the states of both entries after each, for requests first.
fn lives<F: TestFamily>(steps: &[(By, u8, FlowState, FlowState)]) {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let answers =
        FlowKey::new(tuple((POD_B, TARGET_PORT), CLIENT_END), PROTOCOL_TCP, LookupPoint::ReverseEgress);
    for (by, flags, request, reply) in steps {
        match by {
            By::Client => fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, *flags)),
            By::Server => fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, *flags)),
        };
        let decision =
            (state(&fixture, &tcp(REQUEST.0, REQUEST.1, SYN)), fixture.flow_entry(&answers).unwrap().state);
        assert_eq!(decision, (*request as u8, *reply as u8), "after {flags:#x} by {by:?} of {steps:?}");
    }
}

fn states_of_a_connection<F: TestFamily>() {
    use By::{Client, Server};
    use FlowState::{
        Closed, ClosingByClient, ClosingByServer, Established, New, Reset, SynReceived, TimeWait,
    };
    let handshake = [
        (Client, SYN, New, New),
        (Client, SYN, New, New),
        (Server, SYN_ACK, New, SynReceived),
        (Server, SYN_ACK, New, SynReceived),
        (Client, ACK, Established, Established),
        (Client, ACK, Established, Established),
        (Server, ACK, Established, Established),
    ];
    for rest in [
        &[
            (Client, FIN, ClosingByClient, ClosingByClient),
            (Server, ACK, ClosingByClient, ClosingByClient),
            (Client, FIN, ClosingByClient, ClosingByClient),
            (Server, FIN, Closed, Closed),
            (Client, ACK, Closed, Closed),
            (Client, FIN, Closed, Closed),
            (Client, RST, Closed, Closed),
        ][..],
        &[
            (Server, FIN, ClosingByServer, ClosingByServer),
            (Server, FIN, ClosingByServer, ClosingByServer),
            (Client, FIN, TimeWait, TimeWait),
            (Server, ACK, TimeWait, TimeWait),
        ],
        &[(Client, FIN, ClosingByClient, ClosingByClient), (Client, RST, Reset, Reset)],
        &[(Client, RST, Reset, Reset), (Server, FIN, ClosingByServer, ClosingByServer)],
        &[(Server, RST, Reset, Reset), (Server, RST, Reset, Reset)],
    ] {
        lives::<F>(&[&handshake, rest].concat());
    }
    // A FIN of the client, because its ACK was lost.
    lives::<F>(&[&handshake[..4], &[(Client, FIN, ClosingByClient, ClosingByClient)]].concat());
    // Without a handshake the flow is not confirmed.
    lives::<F>(&[(Client, SYN, New, New), (Client, ACK, New, New), (Server, ACK, New, New)]);
    // Refused, and tried again.
    lives::<F>(&[(Client, SYN, New, New), (Server, RST, Reset, Reset), (Client, SYN, New, New)]);
}

/// Resets from forged addresses: the endpoint drops them, because their sequence number is not in its window.
fn resets_that_nobody_takes_end_nothing<F: TestFamily>() {
    let established = FlowState::Established as u8;
    for (offset, expected) in [
        (0, FlowState::Reset as u8),
        (RESET_WINDOW, FlowState::Reset as u8),
        (RESET_WINDOW + 1, established),
        (1 << 31, established),
        (u32::MAX, established),
    ] {
        let fixture = Fixture::<F>::new(&[POD_B]);
        let reply = fixture.pod_connects(REQUEST.0, REQUEST.1);
        fixture.pod_egress(&packet(reply, PROTOCOL_TCP, ACK));
        let reset = Packet { sequence: (ISN + 1).wrapping_add(offset), ..tcp(REQUEST.0, REQUEST.1, RST) };
        // The endpoint decides about it.
        assert_eq!(fixture.pod_sends(&reset).verdict, Verdict::ToStack);
        assert_eq!(state(&fixture, &reset), expected, "offset {offset}");
        let reset = Packet { sequence: (ISN + 1).wrapping_add(offset), ..packet(reply, PROTOCOL_TCP, RST) };
        fixture.pod_egress(&reset);
        assert_eq!(state(&fixture, &tcp(REQUEST.0, REQUEST.1, RST)), expected, "offset {offset} of a reply");
    }
}

/// RFC 5961: an endpoint answers a reset in its window that is not the exact one, and the connection lives.
fn a_reset_that_is_answered_ends_nothing<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let reply = fixture.pod_connects(REQUEST.0, REQUEST.1);
    let reset = tcp(REQUEST.0, REQUEST.1, RST);
    fixture.pod_sends(&reset);
    assert_eq!(state(&fixture, &reset), FlowState::Reset as u8);
    fixture.pod_egress(&packet(reply, PROTOCOL_TCP, ACK)).is(Verdict::ToStack, (VIP, PORT), CLIENT_END);
    assert_eq!(state(&fixture, &reset), FlowState::Established as u8);
    assert!(fixture.flows.borrow().values().all(|flow| flow.get().state == FlowState::Established as u8));
}

/// Regression test: a SYN-ACK that was retransmitted after the client's FIN left with the endpoint's address.
fn late_copies_of_a_syn_ack_belong_to_their_flow<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let reply = fixture.pod_connects(REQUEST.0, REQUEST.1);
    let copy = packet(reply, PROTOCOL_TCP, SYN_ACK);
    for (by, flags) in [(By::Client, FIN), (By::Server, FIN)] {
        match by {
            By::Client => fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, flags)),
            By::Server => fixture.pod_egress(&packet(reply, PROTOCOL_TCP, flags)),
        };
        fixture.pod_egress(&copy).is(Verdict::ToStack, (VIP, PORT), CLIENT_END);
    }
}

fn replies_of_a_closed_flow_are_not_for_its_client<F: TestFamily>() {
    // The client's next connection from that port is to the backend directly.
    let replies_to_another =
        |reply| Packet { acknowledgment: 5 * ISN, ..packet::<F>(reply, PROTOCOL_TCP, SYN_ACK) };
    // Half closed, the flow still exists.
    let fixture = Fixture::<F>::new(&[POD_B]);
    let reply = fixture.pod_connects(REQUEST.0, REQUEST.1);
    fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, FIN));
    assert_eq!(fixture.pod_egress(&replies_to_another(reply)).verdict, Verdict::Pass);
    fixture.pod_egress(&packet(reply, PROTOCOL_TCP, FIN)).is(Verdict::ToStack, (VIP, PORT), CLIENT_END);
    // Closed, it must not take the other connection's data.
    assert_eq!(fixture.pod_egress(&replies_to_another(reply)).verdict, Verdict::Pass);
    assert_eq!(fixture.pod_egress(&packet(reply, PROTOCOL_TCP, ACK)).verdict, Verdict::Pass);
    assert_eq!(fixture.entries(), (0, 0));
}

fn a_closed_flow_releases_its_replies<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    fixture.pod_connects(CLIENT_END, (VIP, PORT));
    fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, FIN));
    // Half closed, the backend may still send.
    let meanwhile = fixture.pod_sends(&tcp(CLIENT_END, (EXTERNAL_IP, PORT), SYN)).out.to;
    assert_ne!(meanwhile.sport, CLIENT_END.1.to_be());
    fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, FIN));
    // The same port again, to another service on the same backend: the source port need not change.
    fixture.pod_sends(&tcp(CLIENT_END, (VIP2, PORT), SYN)).is(
        Verdict::ToStack,
        CLIENT_END,
        (POD_B, TARGET_PORT),
    );
    fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, SYN_ACK)).is(
        Verdict::ToStack,
        (VIP2, PORT),
        CLIENT_END,
    );
}

fn the_end_of_a_flow_is_not_another_s<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    fixture.pod_connects(REQUEST.0, REQUEST.1);
    // The map evicted the reverse entry, and another service's flow from the same port took its key.
    lose(&fixture, LookupPoint::ReverseEgress);
    fixture.pod_sends(&tcp(CLIENT_END, (VIP2, PORT), SYN));
    // A late reset of the first one.
    fixture.pod_sends(&tcp(REQUEST.0, REQUEST.1, RST));
    fixture.pod_egress(&tcp((POD_B, TARGET_PORT), CLIENT_END, SYN_ACK)).is(
        Verdict::ToStack,
        (VIP2, PORT),
        CLIENT_END,
    );
}

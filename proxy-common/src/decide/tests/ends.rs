//! How flows end, and what is left of them.

use super::{flows::lose, for_both_families, world::*};
use crate::{
    decide::Verdict,
    layout::{
        flow::{Edge, FlowKey, FlowState, RESET_WINDOW},
        set::SetRole,
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
    answers_of_a_closed_flow_are_not_for_its_client
    closed_flow_gives_its_answers_up
    the_end_of_a_flow_is_not_another_s
}

const CLIENT_END: End = (POD_A, 40_000);
const REQUEST: (End, End) = (CLIENT_END, (VIP, PORT));

fn state<F: TestFamily>(world: &World<F>, packet: &Packet<F>) -> u8 {
    world.flow_entry(&FlowKey::new(packet.tuple, packet.protocol, Edge::Forward)).unwrap().state
}

fn syn_after_close_chooses_anew<F: TestFamily>() {
    for closing in [FIN, RST] {
        let mut world = World::<F>::new(&[POD_B]);
        let (syn, end) = (next_syn(REQUEST.0, REQUEST.1), tcp(REQUEST.0, REQUEST.1, closing));
        world.pod_connects(REQUEST.0, REQUEST.1);
        world.pod_sends(&end);
        assert!(FlowState::is_ending(state(&world, &syn)));
        world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
        // The end once more, and a copy of the SYN that was long on its way.
        for packet in [end, tcp(REQUEST.0, REQUEST.1, SYN)] {
            world.pod_sends(&packet).is(Verdict::Translate, CLIENT_END, (POD_B, TARGET_PORT));
        }
        world.pod_sends(&syn).is(Verdict::Translate, CLIENT_END, (REMOTE, TARGET_PORT));
        assert_eq!(state(&world, &syn), FlowState::New as u8);
        // What is late is not taken for the new connection's, and does not bring the old one back.
        world.wait();
        world.to_client(&tcp((POD_B, TARGET_PORT), CLIENT_END, FIN));
        world.pod_sends(&syn).is(Verdict::Translate, CLIENT_END, (REMOTE, TARGET_PORT));
    }
}

fn close_by_the_backend_counts_too<F: TestFamily>() {
    for closing in [FIN, RST] {
        let mut world = World::<F>::new(&[POD_B]);
        world.pod_connects(REQUEST.0, REQUEST.1);
        world.to_client(&tcp((POD_B, TARGET_PORT), CLIENT_END, closing));
        world.set(SERVICE, SetRole::ClusterIp, &[REMOTE]);
        let syn = next_syn(REQUEST.0, REQUEST.1);
        world.pod_sends(&syn).is(Verdict::Translate, CLIENT_END, (REMOTE, TARGET_PORT));
    }
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
    // The client's FIN, because its ACK was lost.
    lives::<F>(&[&handshake[..4], &[(Client, FIN, ClosingByClient, ClosingByClient)]].concat());
    // Without a handshake nothing is confirmed.
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
        let world = World::<F>::new(&[POD_B]);
        let reply = world.pod_connects(REQUEST.0, REQUEST.1);
        world.to_client(&packet(reply, PROTOCOL_TCP, ACK));
        let reset = Packet { sequence: (ISN + 1).wrapping_add(offset), ..tcp(REQUEST.0, REQUEST.1, RST) };
        // The endpoint judges it.
        assert_eq!(world.pod_sends(&reset).verdict, Verdict::Translate);
        assert_eq!(state(&world, &reset), expected, "offset {offset}");
        let reset = Packet { sequence: (ISN + 1).wrapping_add(offset), ..packet(reply, PROTOCOL_TCP, RST) };
        world.to_client(&reset);
        assert_eq!(state(&world, &tcp(REQUEST.0, REQUEST.1, RST)), expected, "offset {offset} of a reply");
    }
}

/// RFC 5961: an endpoint answers a reset in its window that is not the exact one, and the connection lives.
fn a_reset_that_is_answered_ends_nothing<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    let reply = world.pod_connects(REQUEST.0, REQUEST.1);
    let reset = tcp(REQUEST.0, REQUEST.1, RST);
    world.pod_sends(&reset);
    assert_eq!(state(&world, &reset), FlowState::Reset as u8);
    world.to_client(&packet(reply, PROTOCOL_TCP, ACK)).is(Verdict::Translate, (VIP, PORT), CLIENT_END);
    assert_eq!(state(&world, &reset), FlowState::Established as u8);
    assert!(world.flows.borrow().values().all(|flow| flow.get().state == FlowState::Established as u8));
}

/// Once seen: a SYN-ACK that was sent again after the client's FIN left with the endpoint's address.
fn late_copies_of_a_syn_ack_belong_to_their_flow<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    let reply = world.pod_connects(REQUEST.0, REQUEST.1);
    let copy = packet(reply, PROTOCOL_TCP, SYN_ACK);
    for (by, flags) in [(By::Client, FIN), (By::Server, FIN)] {
        match by {
            By::Client => world.pod_sends(&tcp(REQUEST.0, REQUEST.1, flags)),
            By::Server => world.to_client(&packet(reply, PROTOCOL_TCP, flags)),
        };
        world.to_client(&copy).is(Verdict::Translate, (VIP, PORT), CLIENT_END);
    }
}

fn answers_of_a_closed_flow_are_not_for_its_client<F: TestFamily>() {
    // The client's next connection from that port is to the backend directly.
    let answers_another =
        |reply| Packet { acknowledgment: 5 * ISN, ..packet::<F>(reply, PROTOCOL_TCP, SYN_ACK) };
    // Half closed, the flow is there still.
    let world = World::<F>::new(&[POD_B]);
    let reply = world.pod_connects(REQUEST.0, REQUEST.1);
    world.pod_sends(&tcp(REQUEST.0, REQUEST.1, FIN));
    assert_eq!(world.to_client(&answers_another(reply)).verdict, Verdict::Pass);
    world.to_client(&packet(reply, PROTOCOL_TCP, FIN)).is(Verdict::Translate, (VIP, PORT), CLIENT_END);
    // Closed, it must not take the other connection's data.
    assert_eq!(world.to_client(&answers_another(reply)).verdict, Verdict::Pass);
    assert_eq!(world.to_client(&packet(reply, PROTOCOL_TCP, ACK)).verdict, Verdict::Pass);
    assert_eq!(world.entries(), (0, 0));
}

fn closed_flow_gives_its_answers_up<F: TestFamily>() {
    let world = World::<F>::new(&[POD_B]);
    world.pod_connects(CLIENT_END, (VIP, PORT));
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
    world.pod_connects(REQUEST.0, REQUEST.1);
    // The reverse entry was forgotten, and another service's flow from the same port took it.
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

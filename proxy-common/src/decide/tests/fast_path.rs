//! Which packets the fast path decides. All other tests check that its verdict equals the core's.

use super::{fixture::*, for_both_families};
use crate::{
    decide::{
        Verdict,
        fast_path::{self, FastPath},
    },
    layout::flow::{FlowKey, LookupPoint, flags},
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet},
};

for_both_families! {
    what_is_plain_to_see
    flows_of_each_kind
    what_has_news_goes_further
    endpoints_that_are_gone
}

const CLIENT_END: End = (CLIENT, 40_000);
const POD_END: End = (POD_A, 40_000);

fn is_followed<F: TestFamily, E>(fast_path: FastPath<E>, packet: &Packet<F>) -> bool {
    match fast_path {
        FastPath::Follow(_) => true,
        FastPath::Undecided => false,
        FastPath::Pass => panic!("{packet:?} passes"),
    }
}

fn pod_ingress<F: TestFamily>(fixture: &Fixture<F>, packet: &Packet<F>) -> bool {
    is_followed(fast_path::pod_ingress(&fixture.0, packet, &mut FlowKey::default()), packet)
}

fn pod_egress<F: TestFamily>(fixture: &Fixture<F>, packet: &Packet<F>) -> bool {
    is_followed(fast_path::pod_egress(&fixture.0, packet, &mut FlowKey::default()), packet)
}

fn uplink_ingress<F: TestFamily>(fixture: &Fixture<F>, packet: &Packet<F>) -> bool {
    is_followed(fast_path::uplink_ingress(&fixture.0, packet, &mut FlowKey::default()), packet)
}

/// Opens a TCP flow from a pod to the cluster IP; returns a reply.
fn open<F: TestFamily>(fixture: &Fixture<F>) -> Packet<F> {
    let decision = fixture.pod_sends(&tcp(POD_END, (VIP, PORT), SYN));
    let reply = |flags| packet(decision.out.to.reversed(), PROTOCOL_TCP, flags);
    fixture.pod_egress(&reply(SYN_ACK));
    fixture.pod_sends(&tcp(POD_END, (VIP, PORT), ACK));
    fixture.pod_egress(&reply(ACK));
    reply(ACK)
}

fn what_is_plain_to_see<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let key = &mut FlowKey::default();
    let elsewhere = tcp(POD_END, (CLIENT, 443), ACK);
    assert!(matches!(fast_path::pod_ingress(&fixture.0, &elsewhere, key), FastPath::Pass));
    assert!(matches!(fast_path::uplink_ingress(&fixture.0, &elsewhere, key), FastPath::Pass));
    assert!(matches!(fast_path::pod_egress(&fixture.0, &elsewhere, key), FastPath::Pass));
    assert!(matches!(fast_path::uplink_egress(&fixture.0, &elsewhere, key), FastPath::Pass));
    // A port of the SNAT range is no evidence.
    let ours = tcp(POD_END, (NODE, *SNAT.start()), ACK);
    assert!(matches!(fast_path::pod_ingress(&fixture.0, &ours, key), FastPath::Pass));
    assert!(matches!(fast_path::uplink_ingress(&fixture.0, &ours, key), FastPath::Pass));
    // A new flow.
    assert!(matches!(
        fast_path::pod_ingress(&fixture.0, &tcp(POD_END, (VIP, PORT), SYN), key),
        FastPath::Undecided
    ));
}

fn flows_of_each_kind<F: TestFamily>() {
    // To the cluster IP.
    let fixture = Fixture::<F>::new(&[POD_B]);
    let reply = open(&fixture);
    assert!(pod_ingress(&fixture, &tcp(POD_END, (VIP, PORT), ACK)));
    assert!(pod_egress(&fixture, &reply));
    // By a nodePort to a remote backend.
    let fixture = Fixture::<F>::new(&[REMOTE]);
    let decision = fixture.uplink_gets(&tcp(CLIENT_END, (NODE, NODE_PORT), SYN));
    assert_eq!(decision.verdict, Verdict::Redirect);
    let reply = |flags| packet(decision.out.to.reversed(), PROTOCOL_TCP, flags);
    fixture.uplink_gets(&reply(SYN_ACK));
    let request = tcp(CLIENT_END, (NODE, NODE_PORT), ACK);
    fixture.uplink_gets(&request);
    fixture.uplink_gets(&reply(ACK));
    assert!(uplink_ingress(&fixture, &request) && uplink_ingress(&fixture, &reply(ACK)));
    // On a bridge, except for packets before the neighbour is resolved.
    let mut fixture = Fixture::<F>::new(&[POD_B]).bridged();
    fixture.resolve(POD_B, false);
    open(&fixture);
    let request = tcp(POD_END, (VIP, PORT), ACK);
    assert!(!pod_ingress(&fixture, &request));
    fixture.resolve(POD_B, true);
    assert_eq!(fixture.pod_sends(&request).verdict, Verdict::Bridge);
    assert!(pod_ingress(&fixture, &request));
    // Hairpin flows are rare, and not on the fast path.
    let fixture = Fixture::<F>::new(&[POD_A]);
    let decision = fixture.pod_sends(&tcp(POD_END, (VIP, PORT), SYN));
    assert_eq!(decision.verdict, Verdict::Hairpin);
    assert!(fixture.pending.borrow().values().all(|flow| flow.get().flags & flags::HAIRPIN != 0));
    assert!(!pod_ingress(&fixture, &tcp(POD_END, (VIP, PORT), ACK)));
}

fn what_has_news_goes_further<F: TestFamily>() {
    let fixture = Fixture::<F>::new(&[POD_B]);
    let reply = open(&fixture);
    for flags in [SYN, SYN_ACK, FIN, RST] {
        assert!(!pod_ingress(&fixture, &tcp(POD_END, (VIP, PORT), flags)), "flags {flags}");
        assert!(!pod_egress(&fixture, &Packet { tcp_flags: flags, ..reply }), "flags {flags}");
    }
    // Only a packet with ACK updates the acknowledgment number.
    let acknowledged = || {
        let flows = fixture.flows.borrow();
        flows[&FlowKey::new(tcp::<F>(POD_END, (VIP, PORT), ACK).tuple, PROTOCOL_TCP, LookupPoint::Forward)]
            .get()
            .acknowledged
    };
    let before = acknowledged();
    let null = Packet { acknowledgment: 7, ..tcp(POD_END, (VIP, PORT), 0) };
    assert!(pod_ingress(&fixture, &null) && before != 0);
    assert_eq!(acknowledged(), before);
    assert!(!pod_ingress(&fixture, &Packet { follows: true, ..tcp(POD_END, (VIP, PORT), ACK) }));
    fixture.wait();
    assert!(!pod_ingress(&fixture, &tcp(POD_END, (VIP, PORT), ACK)), "to be marked as seen");
    fixture.pod_sends(&tcp(POD_END, (VIP, PORT), ACK));
    assert!(pod_ingress(&fixture, &tcp(POD_END, (VIP, PORT), ACK)));
    // Datagrams take the packet path until the flow has more than a request and a reply.
    let request = udp(POD_END, (VIP, PORT));
    let decision = fixture.pod_sends(&request);
    let reply = packet(decision.out.to.reversed(), PROTOCOL_UDP, 0);
    assert!(!pod_ingress(&fixture, &request));
    assert!(!pod_egress(&fixture, &reply));
    fixture.pod_egress(&reply);
    assert!(!pod_ingress(&fixture, &request) && !pod_egress(&fixture, &reply));
    fixture.pod_sends(&request);
    assert!(pod_ingress(&fixture, &request) && pod_egress(&fixture, &reply));
}

fn endpoints_that_are_gone<F: TestFamily>() {
    for reset_removed_tcp in [false, true] {
        let mut fixture = Fixture::<F>::new(&[POD_B]);
        fixture.settings.reset_removed_tcp = reset_removed_tcp;
        open(&fixture);
        let (stream, datagram) = (tcp(POD_END, (VIP, PORT), ACK), udp(POD_END, (VIP, PORT)));
        let decision = fixture.pod_sends(&datagram);
        for _ in 0..2 {
            fixture.pod_egress(&packet(decision.out.to.reversed(), PROTOCOL_UDP, 0));
        }
        assert!(pod_ingress(&fixture, &stream) && pod_ingress(&fixture, &datagram));
        fixture.alive.clear();
        assert_eq!(pod_ingress(&fixture, &stream), !reset_removed_tcp);
        assert!(!pod_ingress(&fixture, &datagram), "a datagram chooses anew");
    }
}

//! In all sequences of client actions: replies come from the address that the client sent to.

use std::{
    collections::{HashMap, HashSet},
    vec::Vec,
};

use proptest::prelude::*;

use super::fixture::*;
use crate::{
    V4, V6,
    decide::Verdict,
    layout::flow::{FlowDraft, LookupPoint, Tuple},
    layout::set::SetPolicy,
    packet::{PROTOCOL_TCP, PROTOCOL_UDP},
};

/// The next event.
#[derive(Clone, Debug)]
enum Event {
    /// A client sends to a frontend; the indices are taken modulo the number of choices.
    Request { client: u8, port: u8, frontend: u8, is_tcp: bool, flags: u8 },
    /// A backend replies to a request that reached it.
    Reply { which: u16, flags: u8 },
    /// The service's endpoints change; a removed one is no longer alive.
    Endpoints { mask: u8 },
    /// Time passes.
    Wait,
    /// The map evicts an entry.
    Forget { which: u16 },
}

fn event() -> impl Strategy<Value = Event> {
    let flags = || prop_oneof![Just(SYN), Just(SYN_ACK), Just(ACK), Just(FIN), Just(RST)];
    prop_oneof![
        6 => (any::<u8>(), 0u8..3, any::<u8>(), any::<bool>(), flags())
            .prop_map(|(client, port, frontend, is_tcp, flags)| Event::Request { client, port, frontend, is_tcp, flags }),
        // An endpoint replies; a SYN alone would be a request.
        6 => (any::<u16>(), flags()).prop_map(|(which, flags)| {
            Event::Reply { which, flags: if flags == SYN { SYN_ACK } else { flags } }
        }),
        1 => (1u8..8).prop_map(|mask| Event::Endpoints { mask }),
        1 => Just(Event::Wait),
        1 => any::<u16>().prop_map(|which| Event::Forget { which }),
    ]
}

const INSIDE: [End; 3] = [(VIP, PORT), (VIP2, PORT), (NODE, NODE_PORT)];
const OUTSIDE: [End; 2] = [(NODE, NODE_PORT), (EXTERNAL_IP, PORT)];
const POOL: [u8; 3] = [POD_A, POD_B, REMOTE];

/// A request as the backend got it: the reply's tuple must lead back to the client's request.
type Asked<F> = HashMap<(Tuple<F>, u8), (Tuple<F>, bool)>;

fn run<F: TestFamily>(events: &[Event]) -> Result<(), TestCaseError> {
    let mut fixture = Fixture::<F>::new(&POOL);
    let mut asked = Asked::<F>::new();
    // Hash maps have no fixed order; this one makes every run the same.
    let mut order: Vec<(Tuple<F>, u8)> = Vec::new();
    // Ended connections, by the client's tuple: the next packet with that tuple is a SYN.
    let mut closed = HashSet::<(Tuple<F>, u8)>::new();
    let mut over = HashSet::<(Tuple<F>, u8)>::new();
    let mut isn = ISN;
    for event in events {
        match *event {
            Event::Request { client, port, frontend, is_tcp, flags } => {
                let is_inside = client % 2 == 0;
                let frontends: &[End] = if is_inside { &INSIDE } else { &OUTSIDE };
                let source = (if is_inside { POD_A } else { CLIENT }, 40_000 + port as u16);
                let to = frontends[frontend as usize % frontends.len()];
                let (protocol, flags) = if is_tcp { (PROTOCOL_TCP, flags) } else { (PROTOCOL_UDP, 0) };
                let connection = (tuple(source, to), protocol);
                let flags = if is_tcp && closed.remove(&connection) {
                    // Others may take the ended connection's port.
                    let left = asked.iter().filter(|(reply, asked)| (asked.0, reply.1) == connection);
                    over.extend(left.map(|(reply, _)| *reply));
                    SYN
                } else {
                    flags
                };
                if is_tcp && flags & (FIN | RST) & !ACK != 0 {
                    closed.insert(connection);
                }
                let mut request = packet::<F>(connection.0, protocol, flags);
                if is_tcp && flags == SYN {
                    isn += 1_000;
                    request.sequence = isn;
                }
                let decision =
                    if is_inside { fixture.pod_sends(&request) } else { fixture.uplink_gets(&request) };
                if decision.verdict == Verdict::Pass && !request.is_request() {
                    continue;
                }
                prop_assert!(!matches!(decision.verdict, Verdict::Pass | Verdict::Reject | Verdict::Drop));
                let sent = decision.out.to;
                prop_assert!(POOL.iter().any(|&number| sent.dst == F::addr(number)));
                let key = (sent.reversed(), protocol);
                if let Some((before, _)) = asked.insert(key, (request.tuple, is_inside)) {
                    let may_replace = before == request.tuple
                        || over.contains(&key)
                        || closed.contains(&(before, protocol));
                    prop_assert!(may_replace, "two requests that the backend cannot tell apart");
                } else {
                    order.push(key);
                }
                over.remove(&key);
            }
            Event::Reply { which, flags } => {
                let Some(&(tuple, protocol)) = order.get(which as usize % order.len().max(1)) else {
                    continue;
                };
                let (request, is_inside) = asked[&(tuple, protocol)];
                let flags = if protocol == PROTOCOL_TCP { flags } else { 0 };
                if flags & (FIN | RST) & !ACK != 0 {
                    closed.insert((request, protocol));
                }
                let reply = packet::<F>(tuple, protocol, flags);
                // All paths of a backend's packet, in the order of the hooks.
                let came_in = if tuple.src == F::addr(REMOTE) {
                    fixture.uplink_gets(&reply)
                } else {
                    fixture.pod_sends(&reply)
                };
                let decision = match came_in.verdict {
                    Verdict::Pass => fixture.pod_egress(&reply),
                    _ => came_in,
                };
                match decision.verdict {
                    // The entry was lost or superseded meanwhile: the packet is not translated, which must
                    // never mean mistranslated.
                    Verdict::Pass | Verdict::Drop => {}
                    _ => prop_assert_eq!(decision.out.to, request.reversed(), "inside: {}", is_inside),
                }
            }
            Event::Endpoints { mask } => {
                let chosen: Vec<u8> =
                    POOL.iter().enumerate().filter(|(i, _)| mask >> i & 1 != 0).map(|(_, &n)| n).collect();
                fixture.alive.clear();
                for service in [SERVICE, SERVICE2] {
                    SetPolicy::ALL
                        .into_iter()
                        .for_each(|set_policy| fixture.set(service, set_policy, &chosen));
                }
            }
            Event::Wait => fixture.wait(),
            Event::Forget { which } => {
                let entries = if which % 2 == 0 { &fixture.flows } else { &fixture.pending };
                let mut flows = entries.borrow_mut();
                let mut keys: Vec<_> = flows.keys().copied().collect();
                keys.sort_by_key(|key| std::format!("{key:?}"));
                let Some(key) = keys.get(which as usize % keys.len().max(1)) else { continue };
                let Some(flow) = flows.remove(key) else { continue };
                if key.lookup_point != LookupPoint::Forward as u8 {
                    // Removes the forward entry, too: alone it would still translate to a tuple that others may
                    // take until the next refresh restores the opposite entry. The core makes no promise for
                    // that second.
                    let mut draft = FlowDraft::default();
                    draft.begin(key, &flow.get());
                    draft.make_opposite();
                    if flows
                        .get(&draft.opposite_key)
                        .is_some_and(|opposite| opposite.get().tuple == draft.opposite.tuple)
                    {
                        flows.remove(&draft.opposite_key);
                    }
                    asked.remove(&(key.tuple, key.protocol));
                    order.retain(|asked| *asked != (key.tuple, key.protocol));
                }
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn a_client_hears_only_whom_it_asked_v4(events in proptest::collection::vec(event(), 1..80)) {
        run::<V4>(&events)?;
    }

    #[test]
    fn a_client_hears_only_whom_it_asked_v6(events in proptest::collection::vec(event(), 1..80)) {
        run::<V6>(&events)?;
    }
}

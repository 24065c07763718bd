//! Local and remote endpoints: their node decides, and the route is only for sending.

use super::{fixture::*, for_both_families};
use crate::{
    decide::{Route, RouteKind, Verdict},
    layout::{
        backend::{BACKEND_LOCAL, BACKEND_REMOTE},
        counter::Counter,
        device::{DEVICE_RULES, DEVICE_UPLINK, Device, LOOPBACK},
        set::SetPolicy,
    },
    packet::Packet,
};

for_both_families! {
    the_node_decides_and_not_the_device
    affinity_knows_where_the_endpoint_runs
    flows_to_one_endpoint_share_what_was_looked_up
    routing_rules_may_choose_by_client
    replies_leave_where_the_frontend_s_packets_go
}

const CLIENT_END: End = (CLIENT, 50_000);
const FRONTEND: End = (NODE, NODE_PORT);
/// A device that the agent does not know.
const STRANGE_DEVICE: u32 = 77;
/// A second uplink.
const SECOND_UPLINK: u32 = 3;

/// All sets have one endpoint with these flags.
fn fixture<F: TestFamily>(endpoint: u8, flags: u16) -> Fixture<F> {
    let mut fixture = Fixture::<F>::new(&[]);
    for set_policy in SetPolicy::ALL {
        fixture.publish(SERVICE, set_policy, &[backend(endpoint).with_flags(flags)]);
    }
    fixture
}

fn the_node_decides_and_not_the_device<F: TestFamily>() {
    for (flags, device, is_remote) in [
        (BACKEND_REMOTE, UPLINK, true),
        (BACKEND_REMOTE, POD_A_DEVICE, true),
        (BACKEND_REMOTE, STRANGE_DEVICE, true),
        (BACKEND_LOCAL, UPLINK, false),
        (BACKEND_LOCAL, POD_A_DEVICE, false),
        (0, UPLINK, true),
        (0, POD_A_DEVICE, false),
        (0, STRANGE_DEVICE, false),
    ] {
        let mut fixture = fixture::<F>(REMOTE, flags);
        let route = Route { ifindex: device, ..fixture.default_route };
        fixture.routes.insert(F::addr(REMOTE), route);
        let decision = fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN));
        let verdict = if is_remote { Verdict::Redirect } else { Verdict::ToStack };
        assert_eq!(decision.verdict, verdict, "{flags} by {device}");
        let source = if is_remote { NODE } else { CLIENT };
        assert_eq!(decision.out.to.src, F::addr(source), "{flags} by {device}");
        if is_remote {
            assert_eq!(decision.out.route.ifindex, device);
        }
    }
    // A local address needs no SNAT.
    let mut fixture = fixture::<F>(POD_A, BACKEND_REMOTE);
    let local = Route { kind: RouteKind::Local, ifindex: LOOPBACK, ..fixture.default_route };
    fixture.routes.insert(F::addr(POD_A), local);
    assert_eq!(fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::ToStack);
}

fn affinity_knows_where_the_endpoint_runs<F: TestFamily>() {
    let mut fixture = fixture::<F>(REMOTE, BACKEND_REMOTE);
    fixture.affinity_timeouts.insert(SERVICE, 1_000);
    for set_policy in SetPolicy::ALL {
        fixture.publish(SERVICE, set_policy, &[backend(REMOTE).with_flags(BACKEND_REMOTE)]);
    }
    let route = Route { ifindex: STRANGE_DEVICE, ..fixture.default_route };
    fixture.routes.insert(F::addr(REMOTE), route);
    for port in 50_000..50_003 {
        let decision = fixture.uplink_gets(&tcp((CLIENT, port), FRONTEND, SYN));
        assert_eq!(decision.verdict, Verdict::Redirect);
    }
    assert_eq!(fixture.counter(Counter::AffinityKept), 2);
}

fn flows_to_one_endpoint_share_what_was_looked_up<F: TestFamily>() {
    let mut fixture = fixture::<F>(REMOTE, BACKEND_REMOTE);
    fixture.remembers_sources = true;
    let opens = |fixture: &Fixture<F>, port| fixture.uplink_gets(&tcp((CLIENT, port), FRONTEND, SYN));
    assert_eq!(opens(&fixture, 50_000).verdict, Verdict::Redirect);
    // The device has no address any more: the next flow is not looked up again.
    let flags = fixture.devices[&UPLINK].flags;
    fixture.devices.insert(UPLINK, Device { flags, ..Device::default() });
    let decision = opens(&fixture, 50_001);
    assert_eq!((decision.verdict, decision.out.to.src), (Verdict::Redirect, F::addr(NODE)));
    assert_eq!(decision.out.route.ifindex, UPLINK);
    assert_eq!(fixture.counter(Counter::FlowNew), 2);
    // What its packets would get, it gets as well: their route may have changed.
    let low = Packet { hop_limit: 1, ..tcp((CLIENT, 50_002), FRONTEND, SYN) };
    assert_eq!(fixture.uplink_gets(&low).verdict, Verdict::TimeExceeded);
    let none = Route { kind: RouteKind::None, ..fixture.default_route };
    fixture.routes.insert(F::addr(REMOTE), none);
    assert_eq!(opens(&fixture, 50_002).verdict, Verdict::Drop);
    assert_eq!(fixture.counter(Counter::NoRoute), 1);
    assert_eq!(fixture.counter(Counter::FlowNew), 2);
    // Endpoints of this node are left to the stack.
    for set_policy in SetPolicy::ALL {
        fixture.publish(SERVICE, set_policy, &[backend(REMOTE).with_flags(BACKEND_LOCAL)]);
    }
    let decision = opens(&fixture, 50_003);
    assert_eq!((decision.verdict, decision.out.to.src), (Verdict::ToStack, F::addr(CLIENT)));
}

fn routing_rules_may_choose_by_client<F: TestFamily>() {
    let mut fixture = fixture::<F>(REMOTE, BACKEND_REMOTE);
    fixture.remembers_sources = true;
    fixture.devices.get_mut(&UPLINK).unwrap().flags |= DEVICE_RULES;
    fixture.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN));
    assert!(fixture.recent_sources.borrow().is_empty());
}

fn replies_leave_where_the_frontend_s_packets_go<F: TestFamily>() {
    let mut fixture = fixture::<F>(POD_A, BACKEND_LOCAL);
    let request = tcp(CLIENT_END, FRONTEND, SYN);
    let reply = tcp((POD_A, TARGET_PORT), CLIENT_END, SYN_ACK);
    let second = Device { flags: DEVICE_UPLINK, ..Device::default() };
    fixture.devices.insert(SECOND_UPLINK, second);
    // Without rules the core does not look up the route.
    fixture.uplink_gets(&request);
    fixture.leaves.set(SECOND_UPLINK);
    fixture.uplink_egress(&reply).is(Verdict::ToStack, FRONTEND, CLIENT_END);

    let mut first = fixture.devices[&UPLINK];
    first.flags |= DEVICE_RULES;
    fixture.devices.insert(UPLINK, first);
    let request = tcp((CLIENT, 50_001), FRONTEND, SYN);
    let reply = tcp((POD_A, TARGET_PORT), (CLIENT, 50_001), SYN_ACK);
    fixture.uplink_gets(&request).is(Verdict::ToStack, (CLIENT, 50_001), (POD_A, TARGET_PORT));
    for _ in 0..2 {
        let decision = fixture.uplink_egress(&reply);
        decision.is(Verdict::Divert, FRONTEND, (CLIENT, 50_001));
        assert_eq!(decision.out.route.ifindex, UPLINK);
    }
    // The reply already leaves by the right device, or goes to this node.
    fixture.leaves.set(UPLINK);
    fixture.uplink_egress(&reply).is(Verdict::ToStack, FRONTEND, (CLIENT, 50_001));
    fixture.leaves.set(SECOND_UPLINK);
    let local = Route { kind: RouteKind::Local, ifindex: LOOPBACK, ..fixture.default_route };
    fixture.routes.insert(F::addr(CLIENT), local);
    fixture.uplink_egress(&reply).is(Verdict::ToStack, FRONTEND, (CLIENT, 50_001));
    // The next request of the flow is translated as before.
    let next = tcp((CLIENT, 50_001), FRONTEND, ACK);
    fixture.uplink_gets(&next).is(Verdict::ToStack, (CLIENT, 50_001), (POD_A, TARGET_PORT));
}

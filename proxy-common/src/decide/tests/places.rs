//! Local and remote endpoints: where they run decides, and the route only says how to send.

use super::{for_both_families, world::*};
use crate::{
    decide::{Route, RouteKind, Verdict},
    layout::{
        backend::{BACKEND_LOCAL, BACKEND_REMOTE},
        counter::Counter,
        device::{DEVICE_RULES, DEVICE_UPLINK, Device, LOOPBACK},
        set::SetRole,
    },
};

for_both_families! {
    the_node_decides_and_not_the_device
    affinity_knows_where_the_endpoint_runs
    replies_leave_where_the_frontend_s_packets_go
}

const CLIENT_END: End = (CLIENT, 50_000);
const FRONTEND: End = (NODE, NODE_PORT);
/// A device that the agent says nothing of.
const STRANGE_DEVICE: u32 = 77;
/// A second way out.
const SECOND_UPLINK: u32 = 3;

/// All sets have one endpoint, of which this is said.
fn world<F: TestFamily>(endpoint: u8, flags: u16) -> World<F> {
    let mut world = World::<F>::new(&[]);
    for role in SetRole::ALL {
        world.publish(SERVICE, role, &[backend(endpoint).with_flags(flags)]);
    }
    world
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
        let mut world = world::<F>(REMOTE, flags);
        let route = Route { ifindex: device, ..world.default_route };
        world.routes.insert(F::addr(REMOTE), route);
        let said = world.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN));
        let verdict = if is_remote { Verdict::Forward } else { Verdict::Translate };
        assert_eq!(said.verdict, verdict, "{flags} by {device}");
        let source = if is_remote { NODE } else { CLIENT };
        assert_eq!(said.out.to.src, F::addr(source), "{flags} by {device}");
        if is_remote {
            assert_eq!(said.out.route.ifindex, device);
        }
    }
    // An address of this node needs no other one.
    let mut world = world::<F>(POD_A, BACKEND_REMOTE);
    let local = Route { kind: RouteKind::Local, ifindex: LOOPBACK, ..world.default_route };
    world.routes.insert(F::addr(POD_A), local);
    assert_eq!(world.uplink_gets(&tcp(CLIENT_END, FRONTEND, SYN)).verdict, Verdict::Translate);
}

fn affinity_knows_where_the_endpoint_runs<F: TestFamily>() {
    let mut world = world::<F>(REMOTE, BACKEND_REMOTE);
    world.affinity_timeouts.insert(SERVICE, 1_000);
    for role in SetRole::ALL {
        world.publish(SERVICE, role, &[backend(REMOTE).with_flags(BACKEND_REMOTE)]);
    }
    let route = Route { ifindex: STRANGE_DEVICE, ..world.default_route };
    world.routes.insert(F::addr(REMOTE), route);
    for port in 50_000..50_003 {
        let said = world.uplink_gets(&tcp((CLIENT, port), FRONTEND, SYN));
        assert_eq!(said.verdict, Verdict::Forward);
    }
    assert_eq!(world.counter(Counter::AffinityKept), 2);
}

fn replies_leave_where_the_frontend_s_packets_go<F: TestFamily>() {
    let mut world = world::<F>(POD_A, BACKEND_LOCAL);
    let request = tcp(CLIENT_END, FRONTEND, SYN);
    let reply = tcp((POD_A, TARGET_PORT), CLIENT_END, SYN_ACK);
    let second = Device { flags: DEVICE_UPLINK, ..Device::default() };
    world.devices.insert(SECOND_UPLINK, second);
    // Without rules nobody asks.
    world.uplink_gets(&request);
    world.leaves.set(SECOND_UPLINK);
    world.to_outside(&reply).is(Verdict::Translate, FRONTEND, CLIENT_END);

    let mut first = world.devices[&UPLINK];
    first.flags |= DEVICE_RULES;
    world.devices.insert(UPLINK, first);
    let request = tcp((CLIENT, 50_001), FRONTEND, SYN);
    let reply = tcp((POD_A, TARGET_PORT), (CLIENT, 50_001), SYN_ACK);
    world.uplink_gets(&request).is(Verdict::Translate, (CLIENT, 50_001), (POD_A, TARGET_PORT));
    for _ in 0..2 {
        let said = world.to_outside(&reply);
        said.is(Verdict::Divert, FRONTEND, (CLIENT, 50_001));
        assert_eq!(said.out.route.ifindex, UPLINK);
    }
    // By the right device already, and to this node.
    world.leaves.set(UPLINK);
    world.to_outside(&reply).is(Verdict::Translate, FRONTEND, (CLIENT, 50_001));
    world.leaves.set(SECOND_UPLINK);
    let local = Route { kind: RouteKind::Local, ifindex: LOOPBACK, ..world.default_route };
    world.routes.insert(F::addr(CLIENT), local);
    world.to_outside(&reply).is(Verdict::Translate, FRONTEND, (CLIENT, 50_001));
    // The next request of the flow is translated as before.
    let next = tcp((CLIENT, 50_001), FRONTEND, ACK);
    world.uplink_gets(&next).is(Verdict::Translate, (CLIENT, 50_001), (POD_A, TARGET_PORT));
}

//! A node with two pods, a remote one, a bridge, and two services.

use core::ops::{Deref, DerefMut};

use crate::{
    V4, V6,
    decide::{
        self, FlowTables, NodeAddress, Route, RouteKind, Translation, Verdict,
        fast_path::{self, FastPath},
        memory::{MemoryFamily, MemoryTables},
    },
    layout::{
        backend::Backend,
        config::Settings,
        device::{DEVICE_UPLINK, Device, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT},
        filter,
        flow::{Flow, FlowKey, Mac, Tuple},
        frontend::{FRONTEND_CLUSTER_IP, FrontendKey, Target},
        id::Id,
        set::SetPolicy,
    },
    packet::{PROTOCOL_TCP, PROTOCOL_UDP, Packet, tcp_flags},
};

/// A family whose addresses can be numbered.
pub(super) trait TestFamily: MemoryFamily {
    fn addr(number: u8) -> Self::Addr;
    fn loopback() -> Self::Addr;
}

impl TestFamily for V4 {
    fn addr(number: u8) -> u32 {
        u32::from_ne_bytes([10, 0, 0, number])
    }

    fn loopback() -> u32 {
        u32::from_ne_bytes([127, 0, 0, 1])
    }
}

impl TestFamily for V6 {
    fn addr(number: u8) -> [u32; 4] {
        [0xfdu32.to_be() | 0xfd, 0, 0, (number as u32).to_be()]
    }

    fn loopback() -> [u32; 4] {
        [0, 0, 0, 1u32.to_be()]
    }
}

// Hosts by number.
pub(super) const CLIENT: u8 = 1;
pub(super) const NODE: u8 = 2;
pub(super) const OTHER_NODE_ADDRESS: u8 = 3;
pub(super) const GATEWAY: u8 = 4;
pub(super) const POD_A: u8 = 11;
pub(super) const POD_B: u8 = 12;
pub(super) const REMOTE: u8 = 13;
pub(super) const VIP: u8 = 31;
pub(super) const VIP2: u8 = 32;
pub(super) const EXTERNAL_IP: u8 = 33;

// Devices by index.
pub(super) const UPLINK: u32 = 2;
pub(super) const POD_A_DEVICE: u32 = 11;
pub(super) const POD_B_DEVICE: u32 = 12;
pub(super) const BRIDGE: u32 = 20;

pub(super) const SERVICE: Id = Id::new(1, 1);
pub(super) const SERVICE2: Id = Id::new(2, 1);
pub(super) const PORT: u16 = 80;
pub(super) const NODE_PORT: u16 = 30_080;
pub(super) const TARGET_PORT: u16 = 8080;
pub(super) const SNAT: core::ops::RangeInclusive<u16> = 20_000..=20_099;

pub(super) const SYN: u8 = tcp_flags::SYN;
pub(super) const SYN_ACK: u8 = tcp_flags::SYN | tcp_flags::ACK;
pub(super) const ACK: u8 = tcp_flags::ACK;
pub(super) const FIN: u8 = tcp_flags::FIN | tcp_flags::ACK;
pub(super) const RST: u8 = tcp_flags::RST;

/// An address and a port, host byte order.
pub(super) type End = (u8, u16);

pub(super) fn tuple<F: TestFamily>(src: End, dst: End) -> Tuple<F> {
    Tuple { src: F::addr(src.0), dst: F::addr(dst.0), sport: src.1.to_be(), dport: dst.1.to_be() }
}

/// The initial sequence number of both sides of a connection.
pub(super) const ISN: u32 = 1_000;

/// A packet of a TCP connection without data: it has the number after the SYN, and acknowledges the other
/// side's SYN.
pub(super) fn packet<F: TestFamily>(tuple: Tuple<F>, protocol: u8, tcp_flags: u8) -> Packet<F> {
    let is_tcp = protocol == PROTOCOL_TCP;
    let sequence = if tcp_flags & SYN == 0 { ISN + 1 } else { ISN };
    Packet {
        tuple,
        protocol,
        tcp_flags,
        hop_limit: 64,
        sequence: if is_tcp { sequence } else { 0 },
        acknowledgment: if is_tcp && tcp_flags & ACK != 0 { ISN + 1 } else { 0 },
        transport: 34,
        follows: false,
    }
}

/// The SYN of the next connection between the same ends.
pub(super) fn next_syn<F: TestFamily>(src: End, dst: End) -> Packet<F> {
    Packet { sequence: 2 * ISN, ..tcp(src, dst, SYN) }
}

pub(super) fn tcp<F: TestFamily>(src: End, dst: End, flags: u8) -> Packet<F> {
    packet(tuple(src, dst), PROTOCOL_TCP, flags)
}

pub(super) fn udp<F: TestFamily>(src: End, dst: End) -> Packet<F> {
    packet(tuple(src, dst), PROTOCOL_UDP, 0)
}

pub(super) fn backend<F: TestFamily>(number: u8) -> Backend<F> {
    Backend::new(F::addr(number), TARGET_PORT.to_be(), Id::new(number as u32, 1))
}

/// The core's decision.
#[derive(Clone, Copy, Debug)]
pub(super) struct Decision<F: TestFamily> {
    pub(super) verdict: Verdict,
    pub(super) out: Translation<F>,
}

impl<F: TestFamily> Decision<F> {
    /// The packet after its translation.
    #[track_caller]
    pub(super) fn sent(&self, before: &Packet<F>) -> Packet<F> {
        assert!(!matches!(self.verdict, Verdict::Pass | Verdict::Reject | Verdict::Drop), "{self:?}");
        Packet { tuple: self.out.to, ..*before }
    }

    #[track_caller]
    pub(super) fn is(&self, verdict: Verdict, src: End, dst: End) {
        assert_eq!((self.verdict, self.out.to), (verdict, tuple(src, dst)));
    }
}

/// The node. Service 1 has `VIP:80` and a nodePort, service 2 has `VIP2:80`.
pub(super) struct Fixture<F: TestFamily>(pub(super) MemoryTables<F>);

impl<F: TestFamily> Deref for Fixture<F> {
    type Target = MemoryTables<F>;

    fn deref(&self) -> &MemoryTables<F> {
        &self.0
    }
}

impl<F: TestFamily> DerefMut for Fixture<F> {
    fn deref_mut(&mut self) -> &mut MemoryTables<F> {
        &mut self.0
    }
}

impl<F: TestFamily> Fixture<F> {
    /// A node on which all sets of both services have these backends.
    pub(super) fn new(backends: &[u8]) -> Self {
        let mut tables = MemoryTables::new(Settings {
            snat_first: *SNAT.start(),
            snat_last: *SNAT.end(),
            idle: 2_500,
            snat_sources: 0,
            external_cluster_ips: false,
            reset_removed_tcp: false,
        });
        let uses = NodeAddress(NODE_ADDR_NODEPORT | NODE_ADDR_SNAT);
        tables.node_addresses.insert(F::addr(NODE), uses);
        tables.node_addresses.insert(F::addr(OTHER_NODE_ADDRESS), NodeAddress(0));
        let mut uplink = Device { flags: DEVICE_UPLINK, ..Device::default() };
        uplink.snat_v4 = V4::addr(NODE);
        uplink.snat_v6 = V6::addr(NODE);
        tables.devices.insert(UPLINK, uplink);
        tables.filter.insert(filter::of_snat_source::<F>(&F::addr(NODE)));
        tables.leaves.set(UPLINK);
        for device in [POD_A_DEVICE, POD_B_DEVICE] {
            tables.devices.insert(device, Device::default());
        }
        let route = |kind, ifindex, next_hop: u8| Route {
            kind,
            ifindex,
            next_hop: F::addr(next_hop),
            names_next_hop: true,
            by_stack: false,
            from: Mac([1; 3]),
            mtu: 0,
            to: Mac([next_hop as u16; 3]),
        };
        tables.routes.insert(F::addr(NODE), route(RouteKind::Local, 1, NODE));
        tables.routes.insert(F::addr(POD_A), route(RouteKind::Neighbour, POD_A_DEVICE, POD_A));
        tables.routes.insert(F::addr(POD_B), route(RouteKind::Neighbour, POD_B_DEVICE, POD_B));
        tables.default_route = route(RouteKind::Neighbour, UPLINK, GATEWAY);
        let mut fixture = Self(tables);
        for (service, vip) in [(SERVICE, VIP), (SERVICE2, VIP2)] {
            fixture.frontend(F::addr(vip), PORT, service, FRONTEND_CLUSTER_IP);
            for set_policy in SetPolicy::ALL {
                fixture.set(service, set_policy, backends);
            }
        }
        fixture.frontend(F::UNSPECIFIED, NODE_PORT, SERVICE, 0);
        fixture.frontend(F::addr(EXTERNAL_IP), PORT, SERVICE, 0);
        fixture
    }

    pub(super) fn frontend(&mut self, addr: F::Addr, port: u16, service: Id, flags: u32) {
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP] {
            let target = Target::new(service, flags).unwrap();
            self.add_frontend(FrontendKey::new(addr, port.to_be(), protocol), target);
        }
    }

    pub(super) fn set(&mut self, service: Id, set_policy: SetPolicy, backends: &[u8]) {
        let backends: std::vec::Vec<_> = backends.iter().map(|&number| backend(number)).collect();
        self.publish(service, set_policy, &backends);
    }

    /// Number of entries, of confirmed flows and of unconfirmed ones.
    pub(super) fn entries(&self) -> (usize, usize) {
        (self.flows.borrow().len(), self.pending.borrow().len())
    }

    /// A pod opens a connection to a cluster IP, and the endpoint takes it; returns the tuple of replies.
    pub(super) fn pod_connects(&self, client: End, vip: End) -> Tuple<F> {
        let reply = self.pod_sends(&tcp(client, vip, SYN)).out.to.reversed();
        assert_eq!(self.pod_egress(&packet(reply, PROTOCOL_TCP, SYN_ACK)).verdict, Verdict::ToStack);
        self.pod_sends(&tcp(client, vip, ACK));
        reply
    }

    /// A client outside opens one to a nodePort with a remote endpoint.
    pub(super) fn client_connects(&self, client: End, frontend: End) -> Tuple<F> {
        let decision = self.uplink_gets(&tcp(client, frontend, SYN));
        assert_eq!(decision.verdict, Verdict::Redirect, "{client:?}");
        let reply = decision.out.to.reversed();
        assert_eq!(self.uplink_gets(&packet(reply, PROTOCOL_TCP, SYN_ACK)).verdict, Verdict::Redirect);
        self.uplink_gets(&tcp(client, frontend, ACK));
        reply
    }

    /// Puts both pods on the bridge.
    pub(super) fn bridged(mut self) -> Self {
        for device in [POD_A_DEVICE, POD_B_DEVICE] {
            self.devices.insert(device, Device { bridge: BRIDGE, ..Device::default() });
        }
        for pod in [POD_A, POD_B] {
            let route = Route { ifindex: BRIDGE, ..self.routes[&F::addr(pod)] };
            self.routes.insert(F::addr(pod), route);
        }
        self
    }

    /// Resolves the neighbour, or makes it unresolved.
    pub(super) fn resolve(&mut self, pod: u8, is_resolved: bool) {
        let mut route = self.routes.get(&F::addr(pod)).copied().unwrap_or(self.default_route);
        (route.kind, route.to) = if is_resolved {
            (RouteKind::Neighbour, Mac([pod as u16; 3]))
        } else {
            (RouteKind::Unresolved, Mac::NONE)
        };
        self.routes.insert(F::addr(pod), route);
    }

    /// Calls the core, and before that its fast path, as programs do. The fast path must agree or be undecided.
    fn say(
        &self,
        packet: &Packet<F>,
        ifindex: u32,
        fast_path: impl FnOnce(
            &MemoryTables<F>,
            &mut FlowKey<F>,
        ) -> FastPath<<MemoryTables<F> as FlowTables<F>>::Flow>,
        decide: impl FnOnce(&MemoryTables<F>, &mut Translation<F>) -> Verdict,
    ) -> Decision<F> {
        let mut key = FlowKey::default();
        let has_no_options = matches!(packet.protocol, PROTOCOL_TCP | PROTOCOL_UDP);
        let fast_verdict = if has_no_options { fast_path(&self.0, &mut key) } else { FastPath::Undecided };
        let known = match &fast_verdict {
            FastPath::Follow(flow) => Some((**flow, fast_path::verdict(flow), fast_path::counter(flow))),
            _ => None,
        };
        let counted = known.map(|(_, _, counter)| self.counter(counter));
        let route = match &fast_verdict {
            FastPath::Follow(flow) => fast_path::route(&self.0, packet, flow, ifindex),
            _ => None,
        };

        let mut out = Translation::default();
        let verdict = decide(&self.0, &mut out);

        if matches!(fast_verdict, FastPath::Pass) {
            assert_eq!(verdict, Verdict::Pass, "the fast path lets {packet:?} pass");
        }
        match known {
            Some((flow, expected, counter)) if expected != Verdict::Redirect || route.is_some() => {
                assert_eq!(
                    (verdict, out.to),
                    (expected, flow.tuple),
                    "the fast path has a flow of {packet:?}"
                );
                let noted = Flow { acknowledged: packet.acknowledgment, ..flow };
                assert_eq!(self.flows.borrow()[&key].get(), noted, "it was left alone");
                assert_eq!(Some(self.counter(counter) - 1), counted);
                match verdict {
                    Verdict::Bridge => assert_eq!(out.mac, flow.mac),
                    Verdict::Redirect => assert_eq!(Some(out.route), route.as_deref().copied()),
                    _ => {}
                }
            }
            _ => {}
        }
        Decision { verdict, out }
    }

    pub(super) fn pod_sends(&self, packet: &Packet<F>) -> Decision<F> {
        self.say(
            packet,
            POD_A_DEVICE,
            |tables, key| fast_path::pod_ingress(tables, packet, key),
            |tables, out| decide::pod_ingress(tables, packet, POD_A_DEVICE, out),
        )
    }

    pub(super) fn uplink_gets(&self, packet: &Packet<F>) -> Decision<F> {
        self.say(
            packet,
            UPLINK,
            |tables, key| fast_path::uplink_ingress(tables, packet, key),
            |tables, out| decide::uplink_ingress(tables, packet, UPLINK, out),
        )
    }

    pub(super) fn uplink_egress(&self, packet: &Packet<F>) -> Decision<F> {
        self.say(
            packet,
            UPLINK,
            |tables, key| fast_path::uplink_egress(tables, packet, key),
            |tables, out| decide::uplink_egress(tables, packet, out),
        )
    }

    pub(super) fn pod_egress(&self, packet: &Packet<F>) -> Decision<F> {
        self.say(
            packet,
            POD_A_DEVICE,
            |tables, key| fast_path::pod_egress(tables, packet, key),
            |tables, out| decide::pod_egress(tables, packet, out),
        )
    }

    /// Advances the time so that the next packet refreshes the flow.
    pub(super) fn wait(&self) {
        self.now.set(self.now.get() + crate::layout::flow::REFRESH);
    }
}

//! The decision core over memory tables, on any sequence of packets.

use std::collections::HashMap;

use anyhow::Result;
use proxy_common::{
    V4, V6,
    decide::{
        self, ServiceTables as _, SocketClient, SocketOrigin, SocketVerdict, Translation, Verdict,
        memory::{FlowEntries, MemoryTables},
    },
    layout::{
        backend::Backend,
        flow::{Flow, FlowDraft, FlowKey, LookupPoint, REFRESH, Tuple, flags},
        id::Id,
        socket::SocketPeer,
    },
    packet::{PROTOCOL_ICMP, PROTOCOL_ICMPV6, PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP, Packet, tcp_flags},
};

use super::bytes::Choices;
use proxy_packets::{Device, Host, PacketFamily, memory_tables, random::add_services};

/// Packets, removed and returning endpoints, time and forgotten entries, a few bytes each.
///
/// Each translated request gets a reply at once, through the hooks that replies pass: the client must see the address
/// that it asked. The two entries of a flow are each other's opposite entry, or one of them is gone.
pub fn flows(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    match choices.byte() % 2 {
        0 => run::<V4>(&mut choices),
        _ => run::<V6>(&mut choices),
    }
}

const CLIENTS: [Host; 6] = [Host::PodA, Host::PodB, Host::PodC, Host::Client, Host::Gateway, Host::Remote];
const DESTINATIONS: [(Host, u16); 24] = [
    (Host::LocalVip, 80),
    (Host::LocalVip2, 80),
    (Host::RemoteVip, 80),
    (Host::HairpinVip, 80),
    (Host::BridgeVip, 80),
    (Host::UnresolvedVip, 80),
    (Host::EmptyVip, 80),
    (Host::SpreadVip, 80),
    (Host::AffinityVip, 80),
    (Host::LocalOnlyVip, 80),
    (Host::NoLocalVip, 80),
    (Host::OwnVip, 80),
    (Host::GuardedIp, 80),
    (Host::OpenIp, 80),
    (Host::LocalVip, 81),
    (Host::UnallocatedVip, 80),
    (Host::PodB, 8080),
    (Host::Node, 30_001),
    (Host::Node, 30_002),
    (Host::Node, 30_583),
    (Host::Node, 30_590),
    (Host::Node, 30_600),
    (Host::Node, 30_610),
    (Host::Node, 25_000),
];

/// Initial sequence number of all.
const ISN: u32 = 0x0102_0304;

fn index(device: Device) -> Result<u32> {
    Ok(device as u32 + 2)
}

fn tables<F: PacketFamily>() -> Result<MemoryTables<F>> {
    let mut tables = memory_tables::<F>(index)?;
    add_services(&mut tables);
    Ok(tables)
}

/// A translated request: the client's packet, and where the reply must come out.
#[derive(Clone, Copy)]
struct Asked<F: PacketFamily> {
    request: Tuple<F>,
    protocol: u8,
    device: Device,
}

struct Fixture<F: PacketFamily> {
    tables: MemoryTables<F>,
    backends: Vec<Id>,
    /// By the reply's tuple, as the backend sends it: the client that asked last.
    asked: HashMap<(Tuple<F>, u8), Asked<F>>,
    /// Ended connections: their next packet is a SYN.
    over: Vec<(Tuple<F>, u8)>,
}

fn run<F: PacketFamily>(choices: &mut Choices<'_>) {
    let Ok(mut tables) = tables::<F>() else { return };
    tables.settings.external_cluster_ips = choices.byte() % 2 == 1;
    tables.settings.reset_removed_tcp = choices.byte() % 2 == 1;
    // Few ports, so that they run out; and a small map, so that it does.
    let (ports, flows) = (choices.of(&[10_000u16, 1, 4, 100]), choices.of(&[1_000, 2, 3, 9]));
    tables.settings.snat_last = tables.settings.snat_first + (ports - 1);
    tables.max_flows = flows;
    let mut backends: Vec<_> = tables.alive.iter().copied().collect();
    backends.sort_by_key(|id| id.0);
    let mut fixture = Fixture { tables, backends, asked: HashMap::new(), over: Vec::new() };
    while !choices.is_empty() {
        match choices.below(12) {
            0 => {
                let id = fixture.backends[choices.below(fixture.backends.len())];
                fixture.tables.alive.remove(&id);
            }
            1 => {
                let id = fixture.backends[choices.below(fixture.backends.len())];
                fixture.tables.alive.insert(id);
            }
            2 => {
                let jiffies = choices.of(&[REFRESH, 3_000, u32::MAX / 2]);
                fixture.tables.now.set(fixture.tables.now.get().wrapping_add(jiffies));
            }
            3 => fixture.forget(choices.byte()),
            4 | 5 => fixture.late_reply(choices),
            6 => fixture.stray(choices),
            11 => fixture.connect(choices),
            _ => fixture.request(choices),
        }
        fixture.tables.steps.borrow_mut().clear();
    }
}

fn ends_it(protocol: u8, flags: u8) -> bool {
    protocol == PROTOCOL_TCP && flags & (tcp_flags::FIN | tcp_flags::RST) != 0
}

impl<F: PacketFamily> Fixture<F> {
    fn packet(&self, tuple: Tuple<F>, protocol: u8, tcp_flags: u8, hop_limit: u8) -> Packet<F> {
        let is_tcp = protocol == PROTOCOL_TCP;
        let acknowledges = is_tcp && tcp_flags & tcp_flags::ACK != 0;
        let sequence = ISN + u32::from(tcp_flags & tcp_flags::SYN == 0);
        let (sequence, acknowledgment) =
            (if is_tcp { sequence } else { 0 }, if acknowledges { ISN + 1 } else { 0 });
        let (transport, follows) = (34, false);
        Packet { tuple, protocol, tcp_flags, hop_limit, sequence, acknowledgment, transport, follows }
    }

    /// The verdict of a hook.
    fn ask(&self, device: Device, packet: &Packet<F>) -> (Verdict, Translation<F>) {
        let mut out = Translation::default();
        let ifindex = device as u32 + 2;
        let verdict = match device {
            Device::Uplink => decide::uplink_ingress(&self.tables, packet, ifindex, &mut out),
            _ => decide::pod_ingress(&self.tables, packet, ifindex, &mut out),
        };
        (verdict, out)
    }

    fn request(&mut self, choices: &mut Choices<'_>) {
        let client = choices.of(&CLIENTS);
        let device = device_of(client);
        let source = client.at::<F>(choices.of(&[40_000, 40_001, 25_000]));
        let (host, port) = choices.of(&DESTINATIONS);
        let tuple = F::tuple(source, host.at::<F>(port));
        let protocol = choices.of(&[PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_SCTP]);
        let mut flags = if protocol == PROTOCOL_UDP { 0 } else { choices.of(&[2, 16, 17, 4, 18]) };
        let is_over = self.over.iter().position(|over| *over == (tuple, protocol));
        if let Some(place) = is_over {
            self.over.swap_remove(place);
            flags = tcp_flags::SYN;
        }
        let mut packet = self.packet(tuple, protocol, flags, choices.of(&[64, 64, 2, 1]));
        // Another connection, or a forged packet.
        let skew = choices.of(&[0, 0, 0, 1, 1 << 17, 1 << 21, u32::MAX]);
        packet.sequence = packet.sequence.wrapping_add(skew);
        packet.acknowledgment = packet.acknowledgment.wrapping_add(choices.of(&[0, 0, 0, skew]));
        let (verdict, out) = self.ask(device, &packet);
        self.check_entries();
        if !is_translated(verdict) {
            return;
        }
        assert_ne!(out.to.reversed(), out.to, "{packet:?}");
        let asked = Asked { request: tuple, protocol, device };
        self.asked.insert((out.to.reversed(), protocol), asked);
        // A pod's ports may be in the range as well; then this was an answer, and is not answered.
        let key = FlowKey::new(tuple, protocol, LookupPoint::Forward);
        if self.tables.flow_entry(&key).is_some_and(|flow| flow.tuple == out.to) {
            self.answer(&out.to.reversed(), &asked, 16, true);
        } else {
            self.asked.remove(&(out.to.reversed(), protocol));
        }
        if ends_it(protocol, flags) || (protocol == PROTOCOL_SCTP && flags & tcp_flags::RST != 0) {
            self.over.push((tuple, protocol));
        }
    }

    /// A backend sends an answer: every hook on the way, in order. `at_once`: right after the request.
    fn answer(&mut self, tuple: &Tuple<F>, asked: &Asked<F>, flags: u8, at_once: bool) {
        let flags = if asked.protocol == PROTOCOL_UDP { 0 } else { flags };
        let packet = self.packet(*tuple, asked.protocol, flags, 64);
        let backend = Host::all().into_iter().find(|host| host.addr::<F>() == tuple.src);
        let came_in = self.ask(backend.map_or(Device::Uplink, device_of), &packet);
        let (verdict, out) = match came_in.0 {
            Verdict::Pass => {
                let mut out = Translation::default();
                let verdict = match asked.device {
                    Device::Uplink => decide::uplink_egress(&self.tables, &packet, &mut out),
                    _ => decide::pod_egress(&self.tables, &packet, &mut out),
                };
                (verdict, out)
            }
            _ => came_in,
        };
        self.check_entries();
        if is_translated(verdict) {
            let expected = asked.request.reversed();
            assert_eq!(out.to, expected, "an answer that its client cannot know: {verdict:?}");
        } else if at_once {
            // A full map may have refused to make a lost entry again.
            let may_be_lost = self.tables.max_flows < 10;
            assert!(may_be_lost, "a request was translated, and its answer is not: {packet:?} {verdict:?}");
        }
        if ends_it(asked.protocol, flags) {
            self.over.push((asked.request, asked.protocol));
        }
    }

    fn late_reply(&mut self, choices: &mut Choices<'_>) {
        let mut known: Vec<_> = self.asked.keys().copied().collect();
        known.sort_by_key(|(tuple, protocol)| (F::ends(tuple), *protocol));
        let Some(key) = known.get(choices.byte() as usize % known.len().max(1)) else { return };
        let asked = self.asked[key];
        let flags = choices.of(&[16, 18, 17, 4]);
        self.answer(&key.0, &asked, flags, false);
    }

    /// Any packet at any hook: whatever it becomes, no panic.
    fn stray(&mut self, choices: &mut Choices<'_>) {
        let src = choices.of(&Host::all()).at::<F>(choices.of(&[40_000, 80, 8080, 20_000]));
        let dst = choices.of(&Host::all()).at::<F>(choices.of(&[40_000, 80, 30_001, 20_000, 8080]));
        let protocol =
            choices.of(&[PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_SCTP, PROTOCOL_ICMP, PROTOCOL_ICMPV6, 0]);
        let mut tuple = F::tuple(src, dst);
        let is_echo = protocol == PROTOCOL_ICMP || protocol == PROTOCOL_ICMPV6;
        if is_echo {
            (tuple.sport, tuple.dport) = (0, 0);
        }
        // `request` makes proper requests, because it knows their clients.
        if !is_echo && self.tables.may_be_frontend(&tuple.dst, tuple.dport, protocol) {
            return;
        }
        let mut packet = self.packet(tuple, protocol, choices.byte() & 0x3f & !5, choices.byte());
        packet.follows = choices.byte() % 2 == 1;
        let mut out = Translation::default();
        match choices.below(4) {
            0 => decide::pod_ingress(&self.tables, &packet, choices.byte().into(), &mut out),
            1 => decide::uplink_ingress(&self.tables, &packet, choices.byte().into(), &mut out),
            2 => decide::pod_egress(&self.tables, &packet, &mut out),
            _ => decide::uplink_egress(&self.tables, &packet, &mut out),
        };
        self.check_entries();
    }

    /// A socket connects: to an endpoint of the service, if to any.
    fn connect(&self, choices: &mut Choices<'_>) {
        let (host, port) = choices.of(&DESTINATIONS);
        let protocol = choices.of(&[PROTOCOL_TCP, PROTOCOL_UDP]);
        let bound = choices.of(&[None, Some(Host::PodA), Some(Host::Client)]);
        let client = SocketClient {
            origin: choices.of(&[SocketOrigin::Pod, SocketOrigin::Node]),
            netns: choices.byte().into(),
            bound: bound.map_or(F::UNSPECIFIED, |host| host.addr::<F>()),
        };
        let mut peer = SocketPeer::default();
        let addr = host.addr::<F>();
        let verdict = decide::connect(&self.tables, &addr, port.to_be(), protocol, &client, &mut peer);
        if verdict == SocketVerdict::Translate {
            let is_peer = |backend: &Backend<F>| {
                (backend.addr, backend.port, backend.id) == (peer.addr, peer.port, peer.backend)
            };
            assert!(self.tables.backends.iter().any(is_peer), "{host:?}:{port}: {peer:?}");
        }
    }

    /// The map forgets both entries of a flow. One alone may give out a tuple that another has taken meanwhile, for a second:
    /// that the core does not promise.
    fn forget(&mut self, which: u8) {
        let tables = &self.tables;
        let entries = if which.is_multiple_of(2) { &tables.flows } else { &tables.pending };
        let mut flows = entries.borrow_mut();
        let mut keys: Vec<_> = flows.keys().copied().collect();
        keys.sort_by_key(|key| (F::ends(&key.tuple), key.protocol, key.lookup_point));
        let Some(key) = keys.get((which / 2) as usize % keys.len().max(1)) else { return };
        let Some(flow) = flows.remove(key) else { return };
        let opposite = opposite(key, &flow.get());
        if flows.get(&opposite.opposite_key).is_some_and(|other| other.get().tuple == opposite.opposite.tuple)
        {
            flows.remove(&opposite.opposite_key);
        }
        for key in [key, &opposite.opposite_key] {
            self.asked.remove(&(key.tuple, key.protocol));
        }
    }

    fn check_entries(&self) {
        self.check_entries_of(&self.tables.flows.borrow());
        self.check_entries_of(&self.tables.pending.borrow());
    }

    fn check_entries_of(&self, flows: &FlowEntries<F>) {
        assert!(flows.len() <= self.tables.max_flows);
        for (key, flow) in flows.iter() {
            let flow = flow.get();
            let draft = opposite(key, &flow);
            let is_reverse = key.lookup_point != LookupPoint::Forward as u8;
            assert_eq!(is_reverse, flow.flags & flags::REVERSE != 0, "{key:?} {flow:?}");
            let Some(other) = flows.get(&draft.opposite_key).map(|other| other.get()) else { continue };
            if other.tuple != draft.opposite.tuple {
                // If two forward entries have one answer, the reverse entry has the newer; never the other way.
                assert!(!is_reverse || other.tuple != flow.tuple, "{key:?} {flow:?} {other:?}");
                continue;
            }
            let same = |flow: &Flow<F>| (flow.backend, flow.service, flow.flags & !flags::REVERSE);
            assert_eq!(same(&other), same(&flow), "{key:?}");
        }
    }
}

fn opposite<F: PacketFamily>(key: &FlowKey<F>, flow: &Flow<F>) -> FlowDraft<F> {
    let mut draft = FlowDraft::default();
    draft.begin(key, flow);
    draft.make_opposite();
    draft
}

fn is_translated(verdict: Verdict) -> bool {
    matches!(
        verdict,
        Verdict::ToStack | Verdict::Redirect | Verdict::Divert | Verdict::Bridge | Verdict::Hairpin
    )
}

/// The device that a host's packets come in by.
fn device_of(host: Host) -> Device {
    match host {
        Host::PodA => Device::PodA,
        Host::PodB | Host::OddPod | Host::L3Pod => Device::PodB,
        Host::PodC | Host::PodD => Device::PortC,
        _ => Device::Uplink,
    }
}

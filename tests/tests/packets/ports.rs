//! Source ports of connections to remote endpoints: which one a connection gets, and when it gets another's. Needs root.

use std::collections::{BTreeSet, HashSet};

use anyhow::{Context as _, Result};
use proxy_common::layout::{
    counter::Counter,
    flow::FlowState,
    frontend::{FrontendKey, Target},
    id::Id,
};
use proxy_harness::kernel_capabilities::MissingCapability;
use proxy_packets::{
    CLIENT_ISN, Device, Frame, Host, Kernel, Node, Options, PacketFamily, SNAT, Transport, for_both_families,
    helpers::{ACK, FIN, NEXT, SYN},
    memory_tables,
    talk::{self, Hook},
};

for_both_families! {
    packet_ports_are_mapped_one_to_one
    packet_ports_are_found_in_a_crowded_range
    packet_ports_of_time_wait_are_reused_when_the_endpoint_takes_them
    packet_ports_of_kernel_nat_are_not_given_away
    packet_ports_of_one_reply_are_used_again
    packet_sources_are_those_that_were_given
    packet_of_a_moved_frontend_moves
}

const UPLINK: Hook = ("uplink_ingress", Device::Uplink);

fn hooks(kernel: &Kernel) -> Result<Vec<Hook>> {
    let programs = kernel.possible(&["uplink_ingress", "uplink_xdp"])?;
    Ok(programs.into_iter().map(|program| (program, Device::Uplink)).collect())
}

/// From a client to a nodePort of an endpoint on another node.
fn request<F: PacketFamily>(client: Host, port: u16, transport: Transport) -> Frame {
    Frame::new(client.at::<F>(port), Host::Node.at::<F>(30_002), transport)
}

/// The client's kernel then keeps the rules of TIME-WAIT, sequence numbers and timestamps for us.
fn packet_ports_are_mapped_one_to_one<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let count = Options::default().snat_ports;
    let mapped = |port: u16| *SNAT.start() + port % count;
    // Taken, a port is not given away: any other one is.
    for client in [Host::Client, Host::Gateway] {
        for hook in hooks(&kernel)? {
            for transport in [SYN, Transport::Udp] {
                let base = if hook == UPLINK { 1_024 } else { 33_000 };
                for port in [base, base + 1, base + 8_975, base + 8_976, base + 19_000] {
                    for _ in 0..2 {
                        let sent = talk::translated(&kernel, hook, &request::<F>(client, port, transport))?;
                        let is_mapped = sent.src.port() == mapped(port);
                        assert_eq!(is_mapped, client == Host::Client, "{} {transport:?} from {port}", hook.0);
                        assert!(SNAT.contains(&sent.src.port()));
                    }
                }
            }
        }
    }
    // A pod that talks to itself.
    let own = Frame::new(Host::PodA.at::<F>(40_123), Host::HairpinVip.at::<F>(80), SYN);
    let sent = talk::translated(&kernel, ("pod_ingress", Device::PodA), &own)?;
    assert_eq!(sent.src, Host::HairpinVip.at::<F>(mapped(40_123)));
    Ok(())
}

fn packet_ports_are_found_in_a_crowded_range<F: PacketFamily>() -> Result<()> {
    const PORTS: u16 = 1_000;
    const TAKEN: u16 = 900;
    // Nothing is so old that it gives way.
    let Node { mut kernel, .. } =
        Node::new(Options { snat_ports: PORTS, idle: 1 << 20, ..Options::default() })?;
    for port in 40_000..40_000 + TAKEN {
        talk::translated(&kernel, UPLINK, &request::<F>(Host::Client, port, SYN))?;
    }
    let before: HashSet<_> = kernel.flows::<F>()?.into_keys().collect();
    for hook in hooks(&kernel)? {
        for port in 40_000..40_100 {
            talk::translated(&kernel, hook, &request::<F>(Host::Gateway, port, SYN))?;
            kernel.retain_flows::<F>(|key| before.contains(key))?;
        }
    }
    assert_eq!(kernel.counter(Counter::SnatExhausted)?, 0);
    assert_eq!(kernel.pending::<F>()?.len(), before.len(), "and no client lost one");
    Ok(())
}

/// A timestamp where Linux writes it, and where BSD does.
fn dated(time: u32, is_linux: bool) -> Vec<u8> {
    let front: &[u8] = if is_linux { &[2, 4, 5, 180, 4, 2] } else { &[2, 4, 5, 180, 1, 3, 3, 6, 1, 1] };
    let behind: &[u8] = if is_linux { &[1, 3, 3, 7] } else { &[4, 2, 0, 0] };
    [front, &[8, 10], &time.to_be_bytes(), &[0; 4], behind].concat()
}

/// And in other segments.
fn dated_behind_syn(time: u32) -> Vec<u8> {
    [&[1, 1, 8, 10][..], &time.to_be_bytes(), &[0; 4]].concat()
}

fn packet_ports_of_time_wait_are_reused_when_the_endpoint_takes_them<F: PacketFamily>() -> Result<()> {
    /// Bytes that the client has sent when its connection ends.
    const SENT: u32 = 5_000;
    const TIME: u32 = 1_000;
    let (earlier, later) = (CLIENT_ISN.wrapping_add(SENT), CLIENT_ISN.wrapping_add(SENT + 3));
    let Node { mut kernel, .. } = Node::new(Options { snat_ports: 1, idle: 1 << 20, ..Options::default() })?;
    for hook in hooks(&kernel)? {
        for (is_dated, initial, options, is_given) in [
            (false, later, vec![], true),
            (false, earlier, vec![], false),
            (false, later.wrapping_add(1 << 31), vec![], false),
            // Only both or none.
            (false, later, dated(TIME - 1, true), true),
            (true, later, vec![], true),
            (true, earlier, vec![], false),
            // Timestamps decide before sequence numbers.
            (true, earlier, dated(TIME + 1, true), true),
            (true, earlier, dated(TIME + 1, false), true),
            (true, later, dated(TIME - 1, true), false),
            (true, later, dated(TIME - 1, false), false),
            (true, later, dated(TIME, true), false),
        ] {
            let first = request::<F>(Host::Client, 50_000, FIN);
            let sent = talk::open(&kernel, hook, hook, &first)?;
            // The endpoint ends it, having got all.
            let fin = Frame { transport: FIN, ..sent.reply() }.skewed(0, SENT);
            talk::translated(&kernel, hook, &fin)?;
            let options_of_fin = if is_dated { dated_behind_syn(TIME) } else { vec![] };
            let end = Frame { tcp_options: options_of_fin, ..first.clone() }.skewed(SENT, 1);
            talk::translated(&kernel, hook, &end)?;
            let states: Vec<_> = kernel.confirmed::<F>()?.values().map(|flow| flow.state).collect();
            assert_eq!(states, [FlowState::TimeWait as u8; 2]);
            // The endpoint acknowledges the FIN.
            talk::translated(&kernel, hook, &Frame { transport: ACK, ..sent.reply() }.skewed(1, SENT + 1))?;

            let mut next = request::<F>(Host::Gateway, 50_001, SYN);
            next.initial[0] = initial;
            next.tcp_options = options;
            let what = format!("{}: dated {is_dated}, {next:?}", hook.0);
            match talk::translated(&kernel, hook, &next) {
                Ok(_) => assert!(is_given, "{what}"),
                Err(error) => assert!(!is_given && format!("{error}").contains("drops"), "{what}: {error:#}"),
            }
            assert_eq!(kernel.count_flows::<F>()?, if is_given { (0, 2) } else { (2, 0) }, "{what}");
            kernel.retain_flows::<F>(|_| false)?;
        }
    }
    Ok(())
}

fn packet_ports_of_kernel_nat_are_not_given_away<F: PacketFamily>() -> Result<()> {
    for transport in [SYN, Transport::Udp] {
        for came_in in [None, Some(Device::PodA), Some(Device::Uplink)] {
            let Node { kernel, .. } =
                Node::new(Options { snat_ports: 2, idle: 1 << 20, ..Options::default() })?;
            let uplink = Device::Uplink.index()?;
            let came_in = came_in.map(Device::index).transpose()?;
            if came_in.is_some() && !kernel.takes_ingress()? {
                MissingCapability::TestIngress.note();
                continue;
            }
            // A client talks to the endpoint directly, from the node's address and a port in the range.
            let direct = Frame::new(Host::Node.at::<F>(20_000), Host::Remote.at::<F>(8080), transport);
            let input = direct.build()?;
            let run = kernel.run_leaving("uplink_egress", &input, uplink, came_in.unwrap_or(0))?;
            assert_eq!((run.result, run.packet), (NEXT, input));
            for (hook, port) in hooks(&kernel)?.into_iter().zip([50_000, 60_000]) {
                let first = talk::translated(&kernel, hook, &request::<F>(Host::Client, port, transport));
                if came_in == Some(uplink) {
                    // The node itself forwarded the packet that came in by the uplink.
                    assert_eq!(first?.src.port(), 20_000);
                    break;
                }
                if hook == UPLINK {
                    assert_eq!(first?.src.port(), 20_001, "{transport:?}");
                } else {
                    assert!(first.is_err(), "{first:?}");
                }
            }
        }
    }
    Ok(())
}

/// All ports are used, by datagram flows of a request and its reply, but for one that talks.
fn packet_ports_of_one_reply_are_used_again<F: PacketFamily>() -> Result<()> {
    // So few ports are tried each in turn: the last free one is found.
    const PORTS: u16 = 16;
    const IDLE: u32 = 1 << 20;
    // Longer than flows of one reply must be idle, and shorter than others.
    const A_WHILE: u32 = IDLE / 100;
    let Node { mut kernel, .. } = Node::new(Options { snat_ports: PORTS, idle: IDLE, ..Options::default() })?;
    for hook in hooks(&kernel)? {
        let exchange = |kernel: &Kernel, port: u16| {
            let request = request::<F>(Host::Client, port, Transport::Udp);
            let sent = talk::translated(kernel, hook, &request)?;
            let reply = talk::translated(kernel, hook, &sent.reply())?;
            assert_eq!((reply.src, reply.dst), (request.dst, request.src), "{}", hook.0);
            anyhow::Ok(sent.src)
        };
        let stream = exchange(&kernel, 39_000)?;
        for port in 40_000..40_000 + 5 * PORTS {
            assert_ne!(exchange(&kernel, port)?, stream, "{}", hook.0);
            kernel.age_flows::<F>(A_WHILE)?;
            assert_eq!(exchange(&kernel, 39_000)?, stream, "{}", hook.0);
        }
        assert_eq!(kernel.count_flows::<F>()?, (2 * usize::from(PORTS), 0), "{}", hook.0);
        // Now all were heard just now.
        for port in 50_000..50_000 + PORTS - 1 {
            exchange(&kernel, port)?;
        }
        let last = talk::translated(&kernel, hook, &request::<F>(Host::Client, 51_000, Transport::Udp));
        assert!(last.is_err(), "{last:?}");
        kernel.retain_flows::<F>(|_| false)?;
    }
    Ok(())
}

fn packet_sources_are_those_that_were_given<F: PacketFamily>() -> Result<()> {
    const SOURCES: [Host; 2] = [Host::Node, Host::OtherNode];
    const PORTS: u16 = 10;
    let options = Options { snat_ports: PORTS, idle: 1 << 20, ..Options::default() };
    let Node { kernel, .. } = Node::with(options, |v4, v6| {
        v4.snat_sources = SOURCES.map(|host| host.addr::<proxy_common::V4>()).into();
        v6.snat_sources = SOURCES.map(|host| host.addr::<proxy_common::V6>()).into();
        (v4.settings.snat_sources, v6.settings.snat_sources) = (2, 2);
    })?;
    for (hook, transport) in hooks(&kernel)?.into_iter().zip([ACK, Transport::Udp]) {
        let mut sources = BTreeSet::new();
        for port in 50_000..50_000 + 2 * PORTS {
            // Replies come to where the request was sent from.
            let sent = talk::open(&kernel, hook, hook, &request::<F>(Host::Client, port, transport))?;
            assert!(SOURCES.iter().any(|host| host.ip::<F>() == sent.src.ip()), "{sent:?}");
            assert!(sources.insert(sent.src), "{sent:?}");
        }
        assert_eq!(sources.len(), usize::from(2 * PORTS));
        let last = talk::translated(&kernel, hook, &request::<F>(Host::Client, 51_000, transport));
        assert!(last.is_err(), "{last:?}");
    }
    Ok(())
}

/// Datagrams do not stay with a Service that has lost the frontend.
fn packet_of_a_moved_frontend_moves<F: PacketFamily>() -> Result<()> {
    const A_WHILE: u32 = 300;
    for hook in ["pod_ingress", "uplink_ingress", "uplink_xdp"] {
        let Node { mut kernel, .. } = Node::new(Options::default())?;
        if kernel.possible(&[hook])?.is_empty() {
            continue;
        }
        let is_pod = hook == "pod_ingress";
        let device = if is_pod { Device::PodA } else { Device::Uplink };
        let client = if is_pod { Host::PodA } else { Host::Client };
        let reply = if is_pod { "pod_egress" } else { "uplink_egress" };
        let frame = Frame::new(client.at::<F>(40_000), Host::Node.at::<F>(30_001), Transport::Udp);
        let sent = talk::open(&kernel, (hook, device), (reply, device), &frame)?;
        assert_eq!(sent.dst, Host::PodB.at::<F>(8080));
        let mut tables = memory_tables::<F>(Device::index)?;
        // The service of the cluster IP with odd words.
        let other = Target::new(Id::new(8 + 10 * F::NUMBER, 1), 0).context("an id")?;
        tables.add_frontend(FrontendKey::new(F::UNSPECIFIED, 30_001u16.to_be(), 17), other);
        kernel.install(&tables)?;
        kernel.age_flows::<F>(A_WHILE)?;
        let sent = talk::translated(&kernel, (hook, device), &frame)?;
        assert_eq!(sent.dst, Host::OddPod.at::<F>(8080), "{hook}");
        assert_eq!(talk::open(&kernel, (hook, device), (reply, device), &frame)?.dst, sent.dst);
    }
    Ok(())
}

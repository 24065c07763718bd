//! A packet is translated, dropped or answered because it belongs to a flow or asks for one, never because of a port. Needs root.

use anyhow::Result;
use proxy_common::layout::{
    counter::Counter,
    flow::{FlowState, RESET_WINDOW},
};
use proxy_packets::{
    CLIENT_ISN, Device, Frame, Host, Kernel, Node, Options, PacketFamily, SERVER_ISN, SNAT, Transport,
    checksums_are_valid, ends, for_both_families,
    helpers::{ACK, FIN, NEXT, NULL, REDIRECT, RST, SHOT, SYN, SYN_ACK, XDP_PASS},
    random::add_services,
    sys::Kind,
    talk::{self, Hook},
};

for_both_families! {
    packet_that_is_not_a_request_passes
    packet_that_answers_the_node_passes
    packet_of_the_client_confirms
    packet_with_a_forged_acknowledgment_confirms_nothing
    packet_reset_counts_in_the_window_only
    packet_late_copy_of_a_syn_ack_is_translated
    packet_of_a_direct_connection_is_none_of_a_closed_flow
    packet_of_an_unknown_connection_is_reset_where_it_leaves
    packet_that_would_loop_is_dropped
    packet_flood_pushes_out_unconfirmed_flows_only
}

/// A path through the node: the hooks that translate requests and replies.
struct Path {
    request: Hook,
    reply: Hook,
    client: Host,
    frontend: (Host, u16),
}

impl Path {
    fn frame<F: PacketFamily>(&self, port: u16, transport: Transport) -> Frame {
        Frame::new(self.client.at::<F>(port), self.frontend.0.at::<F>(self.frontend.1), transport)
    }
}

const UPLINK: Hook = ("uplink_ingress", Device::Uplink);
const XDP: Hook = ("uplink_xdp", Device::Uplink);
const OUT: Hook = ("uplink_egress", Device::Uplink);
const FROM_POD: Hook = ("pod_ingress", Device::PodA);
const TO_POD: Hook = ("pod_egress", Device::PodA);

fn paths(kernel: &Kernel) -> Result<Vec<Path>> {
    let (local, remote) = ((Host::Node, 30_001), (Host::Node, 30_002));
    let mut paths = vec![
        Path { request: FROM_POD, reply: TO_POD, client: Host::PodA, frontend: (Host::LocalVip, 80) },
        Path { request: FROM_POD, reply: TO_POD, client: Host::PodA, frontend: (Host::RemoteVip, 80) },
        Path { request: FROM_POD, reply: FROM_POD, client: Host::PodA, frontend: (Host::HairpinVip, 80) },
        Path { request: UPLINK, reply: OUT, client: Host::Client, frontend: local },
        Path { request: UPLINK, reply: UPLINK, client: Host::Client, frontend: remote },
    ];
    if !kernel.possible(&[XDP.0])?.is_empty() {
        paths.push(Path { request: XDP, reply: OUT, client: Host::Client, frontend: local });
        paths.push(Path { request: XDP, reply: XDP, client: Host::Client, frontend: remote });
    }
    Ok(paths)
}

/// Runs a program on bytes that it must leave unchanged.
#[track_caller]
fn passes(kernel: &Kernel, (program, device): Hook, input: &[u8], what: &str) -> Result<()> {
    let pass = if Kernel::kind(program) == Kind::Xdp { XDP_PASS } else { NEXT };
    let run = kernel.run(program, input, device.index()?, 0)?;
    assert_eq!((run.result, run.packet.as_slice()), (pass, input), "{program}: {what}");
    Ok(())
}

fn packet_that_is_not_a_request_passes<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let hooks = [
        FROM_POD,
        ("pod_ingress", Device::PortC),
        TO_POD,
        UPLINK,
        OUT,
        XDP,
        ("uplink_xdp_frags", Device::Uplink),
    ];
    let programs = kernel.possible(&hooks.map(|(program, _)| program))?;
    let transports = [ACK, RST, FIN, SYN_ACK, NULL].into_iter();
    let transports = transports.chain([20, 1, 3, 6, 0x29, 0x3f].map(Transport::Tcp));
    for transport in transports.chain([0, 2, 6, 10, 14].map(Transport::Sctp)) {
        for frontend in [
            (Host::Node, 30_001),
            (Host::Node, 30_002),
            (Host::Node, 30_006),
            (Host::Node, *SNAT.start()),
            (Host::Node, 23_456),
            (Host::LocalVip, 80),
            (Host::LocalVip, 81),
            (Host::RemoteVip, 80),
            (Host::EmptyVip, 80),
        ] {
            for source in [(Host::Client, 50_000), (Host::Remote, 8080), (Host::PodA, 30_001)] {
                let (source, frontend) = (source.0.at::<F>(source.1), frontend.0.at::<F>(frontend.1));
                let input = Frame::new(source, frontend, transport).build()?;
                let what = format!("{transport:?} {source} > {frontend}");
                for hook in hooks.into_iter().filter(|(program, _)| programs.contains(program)) {
                    passes(&kernel, hook, &input, &what)?;
                }
            }
        }
    }
    assert_eq!((kernel.count_flows::<F>()?, kernel.outbound::<F>()?.len()), ((0, 0), 0));
    assert_eq!(kernel.counter(Counter::FlowNew)?, 0);
    Ok(())
}

/// Kernel NAT and the node's sockets send from nodePorts, too.
fn packet_that_answers_the_node_passes<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    let mut hooks = vec![(FROM_POD, TO_POD), (UPLINK, OUT)];
    hooks.extend(
        kernel
            .possible(&["uplink_xdp", "uplink_xdp_frags"])?
            .iter()
            .map(|program| ((*program, Device::Uplink), OUT)),
    );
    for ((way_in, way_out), port) in hooks.iter().copied().zip(53..) {
        let sent = Frame::new(Host::Node.at::<F>(30_001), Host::Client.at::<F>(port), Transport::Udp);
        passes(&kernel, way_out, &sent.build()?, "what the node sends")?;
        for _ in 0..2 {
            passes(&kernel, way_in, &sent.reply().build()?, "its reply")?;
        }
        // Others are served meanwhile.
        let other = Frame::new(Host::Client.at::<F>(port + 1_000), sent.src, Transport::Udp);
        talk::translated(&kernel, way_in, &other)?;
    }
    assert_eq!(kernel.counter(Counter::ReplyToNode)?, 4, "by tc");
    // Long ago.
    kernel.age_flows::<F>(18 * Options::default().idle + 1)?;
    for ((way_in, _), port) in hooks.into_iter().zip(53..) {
        let request = Frame::new(Host::Client.at::<F>(port), Host::Node.at::<F>(30_001), Transport::Udp);
        talk::translated(&kernel, way_in, &request)?;
    }
    Ok(())
}

fn packet_of_the_client_confirms<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    for path in paths(&kernel)? {
        for transport in [SYN, Transport::Udp, Transport::Sctp(1)] {
            let is_sctp = matches!(transport, Transport::Sctp(_));
            if is_sctp && Kernel::kind(path.request.0) == Kind::Xdp {
                continue;
            }
            let request = path.frame::<F>(40_000, transport);
            let sent = talk::translated(&kernel, path.request, &request)?;
            assert_eq!(kernel.count_flows::<F>()?, (0, 2), "{request:?}");
            kernel.retain_flows::<F>(|_| false)?;
            talk::open(&kernel, path.request, path.reply, &request)?;
            assert_eq!(kernel.count_flows::<F>()?, (2, 0), "{request:?} {sent:?}");
            kernel.retain_flows::<F>(|_| false)?;
        }
    }
    Ok(())
}

/// A sender with a forged source address does not see the endpoint's sequence number.
fn packet_with_a_forged_acknowledgment_confirms_nothing<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    for path in paths(&kernel)? {
        let request = path.frame::<F>(40_000, SYN);
        let acknowledges = |skew| Frame { transport: ACK, ..request.clone() }.skewed(0, skew);
        let sent = talk::translated(&kernel, path.request, &request)?;
        talk::translated(&kernel, path.request, &acknowledges(0))?;
        assert_eq!(kernel.count_flows::<F>()?, (0, 2), "before the endpoint's reply");
        talk::translated(&kernel, path.reply, &Frame { transport: SYN_ACK, ..sent.reply() })?;
        for skew in [1 << 16, u32::MAX, 1 << 31, SERVER_ISN.wrapping_neg().wrapping_sub(1)] {
            let forged = acknowledges(skew);
            talk::translated(&kernel, path.request, &forged)?;
            assert_eq!(kernel.count_flows::<F>()?, (0, 2), "{forged:?}");
        }
        // An endpoint may send data with its reply.
        talk::translated(&kernel, path.request, &acknowledges((1 << 16) - 1))?;
        assert_eq!(kernel.count_flows::<F>()?, (2, 0));
        kernel.retain_flows::<F>(|_| false)?;
    }
    Ok(())
}

fn packet_reset_counts_in_the_window_only<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    for path in paths(&kernel)? {
        for (acknowledged, skew, is_reset) in [
            (0, 0, true),
            (0, RESET_WINDOW, true),
            (0, RESET_WINDOW + 1, false),
            (0, u32::MAX, false),
            (0, 1 << 31, false),
            (5_000, 5_000, true),
            (5_000, 4_999, false),
        ] {
            for by_client in [true, false] {
                let request = path.frame::<F>(40_000, ACK);
                let sent = talk::open(&kernel, path.request, path.reply, &request)?;
                let reply = Frame { transport: ACK, ..sent.reply() };
                // Each acknowledges the other's packet.
                talk::translated(&kernel, path.request, &request.clone().skewed(0, acknowledged))?;
                talk::translated(&kernel, path.reply, &reply.clone().skewed(0, acknowledged))?;
                let (hook, frame) = if by_client { (path.request, &request) } else { (path.reply, &reply) };
                talk::translated(&kernel, hook, &Frame { transport: RST, ..frame.clone() }.skewed(skew, 0))?;
                let expected = if is_reset { FlowState::Reset } else { FlowState::Established };
                let flows = kernel.confirmed::<F>()?;
                let states: Vec<_> = flows.values().map(|flow| flow.state).collect();
                let what = format!("{} by client: {by_client}, {skew}", path.request.0);
                assert_eq!(states, [expected as u8; 2], "{what}");
                kernel.retain_flows::<F>(|_| false)?;
            }
        }
    }
    Ok(())
}

fn packet_late_copy_of_a_syn_ack_is_translated<F: PacketFamily>() -> Result<()> {
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    for path in paths(&kernel)? {
        let request = path.frame::<F>(40_000, FIN);
        let sent = talk::open(&kernel, path.request, path.reply, &request)?;
        let copy = Frame { transport: SYN_ACK, ..sent.reply() };
        let fin = Frame { transport: FIN, ..sent.reply() };
        talk::translated(&kernel, path.request, &request)?;
        for _ in 0..2 {
            let returned = talk::translated(&kernel, path.reply, &copy)?;
            assert_eq!((returned.src, returned.dst), (request.dst, request.src));
            talk::translated(&kernel, path.reply, &fin)?;
        }
        assert_eq!(kernel.count_flows::<F>()?, (2, 0));
        kernel.retain_flows::<F>(|_| false)?;
    }
    Ok(())
}

/// The client's port is free again when its connection has ended, and may be that of one to the endpoint itself.
fn packet_of_a_direct_connection_is_none_of_a_closed_flow<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for path in paths(&kernel)? {
        let request = path.frame::<F>(40_000, FIN);
        let sent = talk::open(&kernel, path.request, path.reply, &request)?;
        talk::translated(&kernel, path.request, &request)?;
        talk::translated(&kernel, path.reply, &Frame { transport: FIN, ..sent.reply() })?;
        let direct = |transport| Frame {
            transport,
            initial: [SERVER_ISN + 77, CLIENT_ISN + 1_000_000],
            ..sent.reply()
        };
        for transport in [SYN_ACK, ACK, FIN] {
            passes(&kernel, path.reply, &direct(transport).build()?, "of a direct connection")?;
            assert_eq!(kernel.count_flows::<F>()?, (0, 0));
        }
    }
    Ok(())
}

/// A node with addresses that only load balancers have, and all cluster IPs in its range.
fn node_with_addresses() -> Result<Kernel> {
    let Node { kernel, .. } = Node::with(Options::default(), |v4, v6| {
        add_services(v4);
        add_services(v6);
    })?;
    Ok(kernel)
}

/// Failover of an address, eviction, reboot.
fn packet_of_an_unknown_connection_is_reset_where_it_leaves<F: PacketFamily>() -> Result<()> {
    let kernel = node_with_addresses()?;
    let (uplink, pod) = (Device::Uplink.index()?, Device::PodA.index()?);
    let mut resets = 0;
    for (came_in, to, transport, expected) in [
        (uplink, Host::OpenIp, ACK, REDIRECT),
        (uplink, Host::OpenIp, FIN, REDIRECT),
        (uplink, Host::OpenIp, NULL, REDIRECT),
        (uplink, Host::OpenIp, RST, SHOT),
        // A server elsewhere may have the address.
        (pod, Host::OpenIp, ACK, NEXT),
        (0, Host::OpenIp, ACK, NEXT),
        // No other host has a cluster IP.
        (pod, Host::LocalVip, ACK, REDIRECT),
        (0, Host::LocalVip, ACK, REDIRECT),
        (0, Host::LocalVip, RST, SHOT),
        // A packet that the stack left alone may be meant so.
        (uplink, Host::OpenIp, SYN, NEXT),
        (uplink, Host::OpenIp, Transport::Udp, NEXT),
    ] {
        let input = Frame::new(Host::Client.at::<F>(50_000), to.at::<F>(80), transport);
        let run = kernel.run_leaving("uplink_egress", &input.build()?, uplink, came_in)?;
        assert_eq!(run.result, expected, "{input:?} from {came_in}");
        match expected {
            NEXT => assert_eq!(run.packet, input.build()?, "{input:?}"),
            REDIRECT => {
                resets += 1;
                let at = input.transport_offset();
                assert_eq!(ends(&run.packet), (input.dst, input.src));
                assert_eq!(run.packet[at + 13] & 4, 4, "a reset");
                assert!(checksums_are_valid(&run.packet));
                if transport == ACK {
                    let sequence = run.packet[at + 4..at + 8].try_into().map(u32::from_be_bytes).ok();
                    assert_eq!(sequence, Some(SERVER_ISN + 1), "what the client expects next");
                }
            }
            _ => {}
        }
    }
    assert_eq!(kernel.counter(Counter::RejectSent)?, resets);
    assert_eq!(kernel.counter(Counter::ConnectionUnknown)?, resets + 2);
    assert_eq!(kernel.count_flows::<F>()?, (0, 0));
    Ok(())
}

fn packet_that_would_loop_is_dropped<F: PacketFamily>() -> Result<()> {
    let kernel = node_with_addresses()?;
    let (uplink, pod) = (Device::Uplink.index()?, Device::PodA.index()?);
    let mut dropped = 0;
    for transport in [SYN, ACK, Transport::Udp, Transport::Sctp(1), Transport::Echo(false)] {
        let input = Frame::new(Host::Client.at::<F>(50_000), Host::GuardedIp.at::<F>(81), transport);
        let input = input.build()?;
        // Its server on this node gets it.
        passes(&kernel, UPLINK, &input, "comes in")?;
        for (came_in, expected) in [(uplink, SHOT), (pod, NEXT), (0, NEXT)] {
            let run = kernel.run_leaving("uplink_egress", &input, uplink, came_in)?;
            assert_eq!(run.result, expected, "{transport:?} from {came_in}");
            dropped += u64::from(expected == SHOT);
        }
    }
    assert_eq!(kernel.counter(Counter::Loop)?, dropped);
    Ok(())
}

fn packet_flood_pushes_out_unconfirmed_flows_only<F: PacketFamily>() -> Result<()> {
    const FLOOD: u16 = 10_000;
    let Node { kernel, .. } = Node::new(Options { max_pending: 1_024, ..Options::default() })?;
    let path = Path { request: UPLINK, reply: OUT, client: Host::Client, frontend: (Host::Node, 30_001) };
    let open: Vec<_> = (40_000..40_100).map(|port| path.frame::<F>(port, ACK)).collect();
    for request in &open {
        talk::open(&kernel, path.request, path.reply, request)?;
    }
    for transport in [SYN, Transport::Udp] {
        let mut flood = path.frame::<F>(1_000, transport);
        for port in 1_000..1_000 + FLOOD {
            flood.src.set_port(port);
            talk::translated(&kernel, path.request, &flood)?;
        }
    }
    let (confirmed, pending) = kernel.count_flows::<F>()?;
    assert!(confirmed == 200 && pending <= 1_024, "{confirmed} and {pending}");
    for request in &open {
        talk::translated(&kernel, path.request, request)?;
    }
    assert_eq!(kernel.counter(Counter::FlowMapFull)?, 0);
    Ok(())
}

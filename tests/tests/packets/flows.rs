//! Life of flows in the kernel's programs, packet by packet: states, source ports. Needs root.

use std::{
    net::{IpAddr, TcpListener, UdpSocket},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use proxy_common::{
    decide::NodeAddress,
    layout::{
        counter::Counter,
        device::NODE_ADDR_SNAT,
        flow::{FlowState, LookupPoint, flags},
    },
};
use proxy_packets::{
    Device, Frame, Host, Kernel, Node, Options, PacketFamily, SNAT, Transport, for_both_families,
    helpers::{ACK, FIN, REDIRECT, SHOT, SYN, SYN_ACK, XDP_DROP, XDP_TX},
    memory_tables, same_frame,
    sys::Kind,
    talk::translated,
};

/// NodePorts, by backend.
pub(super) const AT_REMOTE: u16 = 30_002;
const AT_UNRESOLVED: u16 = 30_005;

for_both_families! {
    packet_each_backend_has_all_source_ports
    packet_source_ports_run_out_and_come_back
    packet_flow_entries_are_repaired_from_either_side
    packet_ports_of_sockets_are_not_given_away
    packet_states_are_those_of_both_entries
    packet_source_that_the_route_prefers
    packet_a_changed_route_is_followed_soon
    packet_a_changed_source_is_used_soon
}

/// The outcome for a packet to be forwarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Sent(Frame),
    Dropped,
}

impl Outcome {
    pub(super) fn sent(self) -> Result<Frame> {
        match self {
            Self::Sent(frame) => Ok(frame),
            Self::Dropped => bail!("the packet was dropped"),
        }
    }
}

/// Runs a program of the uplink on a packet that should be forwarded between these ends. Source port and MACs are the program's.
#[track_caller]
fn pass_on(kernel: &Kernel, program: &str, frame: &Frame, to: &Frame) -> Result<Outcome> {
    let run = kernel.run(program, &frame.build()?, Device::Uplink.index()?, 0)?;
    let is_xdp = Kernel::kind(program) == Kind::Xdp;
    if run.result == if is_xdp { XDP_DROP } else { SHOT } {
        return Ok(Outcome::Dropped);
    }
    ensure!(run.result == if is_xdp { XDP_TX } else { REDIRECT }, "{program} gave {}", run.result);
    let at = to.transport_offset();
    let mut expected = to.clone().one_hop_less();
    if expected.src.port() == 0 {
        expected.src.set_port(u16::from_be_bytes([run.packet[at], run.packet[at + 1]]));
    }
    let mac = |at: usize| -> [u8; 6] { std::array::from_fn(|byte| run.packet[at + byte]) };
    expected = expected.with_macs(mac(0), mac(6));
    ensure!(same_frame(&expected.build()?, &run.packet), "{program}: {expected:?}\n{:02x?}", run.packet);
    Ok(Outcome::Sent(expected))
}

/// A client's packet to a nodePort of a remote backend.
#[track_caller]
pub(super) fn ask<F: PacketFamily>(
    kernel: &Kernel,
    client: u16,
    (port, backend): (u16, Host),
    transport: Transport,
) -> Result<Outcome> {
    let request = Frame::new(Host::Client.at::<F>(client), Host::Node.at::<F>(port), transport);
    pass_on(
        kernel,
        "uplink_ingress",
        &request,
        &request.between(Host::Node.at::<F>(0), backend.at::<F>(8080)),
    )
}

/// The backend's reply to its packet, which must come to this client from this nodePort.
#[track_caller]
pub(super) fn answer<F: PacketFamily>(
    kernel: &Kernel,
    sent: &Frame,
    client: u16,
    port: u16,
    transport: Transport,
) -> Result<()> {
    let answer = Frame { transport, hop_limit: 64, ..sent.reply() };
    let back = answer.between(Host::Node.at::<F>(port), Host::Client.at::<F>(client));
    assert_ne!(pass_on(kernel, "uplink_ingress", &answer, &back)?, Outcome::Dropped);
    Ok(())
}

pub(super) const REMOTE: (u16, Host) = (AT_REMOTE, Host::Remote);
const OTHER: (u16, Host) = (AT_UNRESOLVED, Host::Unresolved);

fn packet_each_backend_has_all_source_ports<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options { snat_ports: 1, ..Options::default() })?;
    for transport in [SYN, Transport::Udp] {
        let first = ask::<F>(&kernel, 50_000, REMOTE, transport)?.sent()?;
        let second = ask::<F>(&kernel, 50_001, OTHER, transport)?.sent()?;
        assert_eq!((first.src.port(), second.src.port()), (*SNAT.start(), *SNAT.start()));
        let reply = if transport == SYN { SYN_ACK } else { transport };
        answer::<F>(&kernel, &first, 50_000, AT_REMOTE, reply)?;
        answer::<F>(&kernel, &second, 50_001, AT_UNRESOLVED, reply)?;
    }
    assert_eq!(kernel.counter(Counter::SnatExhausted)?, 0);
    Ok(())
}

fn packet_source_ports_run_out_and_come_back<F: PacketFamily>() -> Result<()> {
    const PORTS: u16 = 4;
    let Node { mut kernel, .. } =
        Node::new(Options { snat_ports: PORTS, idle: 60_000, ..Options::default() })?;
    let clients = 50_000..50_000 + PORTS;
    let mut used = std::collections::BTreeSet::new();
    let mut sent = Vec::new();
    for client in clients.clone() {
        sent.push(ask::<F>(&kernel, client, REMOTE, SYN)?.sent()?);
        used.insert(sent[sent.len() - 1].src.port());
    }
    assert_eq!(
        used.into_iter().collect::<Vec<_>>(),
        (*SNAT.start()..SNAT.start() + PORTS).collect::<Vec<_>>()
    );
    assert_eq!(ask::<F>(&kernel, 51_000, REMOTE, SYN)?, Outcome::Dropped);
    assert_eq!(kernel.counter(Counter::SnatExhausted)?, 1);
    // Others do not suffer: those that are there, and another backend's.
    for (client, sent) in clients.zip(&sent) {
        answer::<F>(&kernel, sent, client, AT_REMOTE, SYN_ACK)?;
    }
    ask::<F>(&kernel, 51_000, OTHER, SYN)?.sent()?;
    // Half closed, a connection keeps its port; closed, it gives it away.
    ask::<F>(&kernel, 50_001, REMOTE, FIN)?.sent()?;
    assert_eq!(ask::<F>(&kernel, 51_001, REMOTE, SYN)?, Outcome::Dropped);
    answer::<F>(&kernel, &sent[1], 50_001, AT_REMOTE, FIN)?;
    let next = ask::<F>(&kernel, 51_001, REMOTE, SYN)?.sent()?;
    assert_eq!(next.src, sent[1].src);
    answer::<F>(&kernel, &next, 51_001, AT_REMOTE, SYN_ACK)?;
    // So does one that the agent removes.
    assert_eq!(ask::<F>(&kernel, 51_002, REMOTE, SYN)?, Outcome::Dropped);
    let port = sent[2].src.port().to_be();
    kernel.retain_flows::<F>(|key| key.tuple.dport != port && key.tuple.sport != 50_002u16.to_be())?;
    assert_eq!(ask::<F>(&kernel, 51_002, REMOTE, SYN)?.sent()?.src, sent[2].src);
    assert_eq!(kernel.counter(Counter::SnatExhausted)?, 3);
    Ok(())
}

fn packet_flow_entries_are_repaired_from_either_side<F: PacketFamily>() -> Result<()> {
    // Longer than the time after which entries are refreshed.
    const A_WHILE: u32 = 300;
    for lost in [LookupPoint::Forward, LookupPoint::ReverseIngress] {
        let Node { mut kernel, .. } = Node::new(Options::default())?;
        let sent = ask::<F>(&kernel, 50_000, REMOTE, SYN)?.sent()?;
        answer::<F>(&kernel, &sent, 50_000, AT_REMOTE, SYN_ACK)?;
        ask::<F>(&kernel, 50_000, REMOTE, ACK)?.sent()?;
        let before = kernel.flows::<F>()?;
        kernel.age_flows::<F>(A_WHILE)?;
        kernel.retain_flows::<F>(|key| key.lookup_point != lost as u8)?;
        assert_eq!(kernel.flows::<F>()?.len(), 1);
        match lost {
            LookupPoint::Forward => answer::<F>(&kernel, &sent, 50_000, AT_REMOTE, ACK)?,
            _ => assert_eq!(ask::<F>(&kernel, 50_000, REMOTE, ACK)?.sent()?.src, sent.src),
        }
        assert_eq!(kernel.counter(Counter::FlowRepaired)?, 1, "{lost:?}");
        let after = kernel.flows::<F>()?;
        assert_eq!(after.len(), 2);
        for (key, flow) in &before {
            let now = after.get(key).context("the entry is not there again")?;
            assert_eq!((now.tuple, now.flags, now.backend), (flow.tuple, flow.flags, flow.backend));
        }
        // And it continues both ways.
        assert_eq!(ask::<F>(&kernel, 50_000, REMOTE, ACK)?.sent()?.src, sent.src);
        answer::<F>(&kernel, &sent, 50_000, AT_REMOTE, ACK)?;
    }
    Ok(())
}

fn packet_ports_of_sockets_are_not_given_away<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options { snat_ports: 1, ..Options::default() })?;
    let port = *SNAT.start();
    let any: IpAddr = if F::IS_V4 { [0; 4].into() } else { [0; 16].into() };
    let listener = TcpListener::bind((any, port))?;
    assert_eq!(ask::<F>(&kernel, 50_000, REMOTE, SYN)?, Outcome::Dropped);
    assert_eq!(kernel.counter(Counter::SnatExhausted)?, 1);
    // It is TCP's.
    ask::<F>(&kernel, 50_000, REMOTE, Transport::Udp)?.sent()?;
    drop(listener);
    ask::<F>(&kernel, 50_000, REMOTE, SYN)?.sent()?;
    // A socket at the address itself, of the other protocol. Flows that are there keep their port.
    let socket = UdpSocket::bind((Host::Node.ip::<F>(), port))?;
    assert_eq!(ask::<F>(&kernel, 50_001, OTHER, Transport::Udp)?, Outcome::Dropped);
    ask::<F>(&kernel, 50_000, REMOTE, Transport::Udp)?.sent()?;
    drop(socket);
    ask::<F>(&kernel, 50_001, OTHER, Transport::Udp)?.sent()?;
    Ok(())
}

fn packet_states_are_those_of_both_entries<F: PacketFamily>() -> Result<()> {
    use FlowState::{
        Closed, ClosingByClient, ClosingByServer, Established, New, Reset, SynReceived, TimeWait,
    };
    let Node { mut kernel, .. } = Node::new(Options::default())?;
    let states = |kernel: &Kernel| -> Result<(u8, u8)> {
        let flows = kernel.flows::<F>()?;
        ensure!(flows.len() == 2, "{flows:?}");
        let state =
            |bit| flows.values().find(|flow| flow.flags & flags::REVERSE == bit).map(|flow| flow.state);
        state(0).zip(state(flags::REVERSE)).context("not a pair")
    };
    let (client, server) = (true, false);
    let reset = Transport::Tcp(4);
    let handshake = [
        (client, SYN, New, New),
        (server, SYN_ACK, New, SynReceived),
        (client, ACK, Established, Established),
        (server, ACK, Established, Established),
    ];
    for rest in [
        &[
            (client, FIN, ClosingByClient, ClosingByClient),
            (server, ACK, ClosingByClient, ClosingByClient),
            (server, FIN, Closed, Closed),
            (client, ACK, Closed, Closed),
        ][..],
        &[(server, FIN, ClosingByServer, ClosingByServer), (client, FIN, TimeWait, TimeWait)],
        &[(client, reset, Reset, Reset), (server, ACK, Established, Established)],
        &[(server, reset, Reset, Reset), (client, ACK, Established, Established)],
    ] {
        let mut sent = None;
        for (number, (by_client, transport, requests, answers)) in handshake.iter().chain(rest).enumerate() {
            match (by_client, &sent) {
                (true, _) => sent = Some(ask::<F>(&kernel, 50_000, REMOTE, *transport)?.sent()?),
                (false, Some(sent)) => answer::<F>(&kernel, sent, 50_000, AT_REMOTE, *transport)?,
                (false, None) => unreachable!("the client begins"),
            }
            let what = format!("{transport:?} by client: {by_client}");
            assert_eq!(states(&kernel)?, (*requests as u8, *answers as u8), "{what}");
            let confirmed = if number < 2 { (0, 2) } else { (2, 0) };
            assert_eq!(kernel.count_flows::<F>()?, confirmed, "{what}");
        }
        kernel.retain_flows::<F>(|_| false)?;
    }
    let sent = ask::<F>(&kernel, 50_000, REMOTE, Transport::Udp)?.sent()?;
    assert_eq!(states(&kernel)?, (New as u8, New as u8));
    // One-way datagrams stay unconfirmed, however many.
    for _ in 0..3 {
        ask::<F>(&kernel, 50_000, REMOTE, Transport::Udp)?.sent()?;
    }
    assert_eq!(kernel.count_flows::<F>()?, (0, 2));
    answer::<F>(&kernel, &sent, 50_000, AT_REMOTE, Transport::Udp)?;
    assert_eq!(states(&kernel)?, (FlowState::REPLIED as u8, FlowState::REPLIED as u8));
    assert_eq!(kernel.count_flows::<F>()?, (2, 0));
    ask::<F>(&kernel, 50_000, REMOTE, Transport::Udp)?.sent()?;
    assert_eq!(states(&kernel)?, (Established as u8, Established as u8));
    assert_eq!(kernel.counter(Counter::FlowConfirmed)?, 5);
    Ok(())
}

fn packet_source_that_the_route_prefers<F: PacketFamily>() -> Result<()> {
    let other = second_address::<F>();
    for (fib_src, is_known, expected) in
        [(true, true, other), (true, false, Host::Node.ip::<F>()), (false, true, Host::Node.ip::<F>())]
    {
        let Node { mut kernel, .. } = Node::new(Options { fib_src, ..Options::default() })?;
        if fib_src && !kernel.knows_fib_src()? {
            continue;
        }
        prefer_second_address::<F>()?;
        if is_known {
            let mut tables = memory_tables::<F>(Device::index)?;
            tables.node_addresses.insert(F::from_ip(other), NodeAddress(NODE_ADDR_SNAT));
            kernel.install(&tables)?;
        }
        for program in kernel.possible(&["uplink_ingress", "uplink_xdp"])? {
            let client = if program == "uplink_xdp" { 50_001 } else { 50_000 };
            let request = Frame::new(Host::Client.at::<F>(client), Host::Node.at::<F>(AT_REMOTE), SYN);
            let to = request.between((expected, 0).into(), Host::Remote.at::<F>(8080));
            let sent = pass_on(&kernel, program, &request, &to)?.sent()?;
            let back = sent.reply().between(request.dst, request.src);
            pass_on(
                &kernel,
                program,
                &Frame { hop_limit: 64, ..sent.reply() },
                &Frame { hop_limit: 64, ..back },
            )?
            .sent()?;
        }
    }
    Ok(())
}

/// The node's second address.
fn second_address<F: PacketFamily>() -> IpAddr {
    if F::IS_V4 { [192, 168, 1, 99].into() } else { [0xfd00, 1, 0, 0, 0, 0, 0, 0x99].into() }
}

/// Adds it, for the route to the remote backend.
fn prefer_second_address<F: PacketFamily>() -> Result<()> {
    let (address, flag, length, nodad) = match second_address::<F>() {
        address @ IpAddr::V4(_) => (address, "-4", 24, ""),
        address @ IpAddr::V6(_) => (address, "-6", 64, " nodad"),
    };
    let (remote, next_hop) = (Host::Remote.ip::<F>(), Host::OtherNode.ip::<F>());
    ip(&format!("{flag} addr add {address}/{length} dev uplink{nodad}"))?;
    ip(&format!("{flag} route replace {remote} via {next_hop} src {address}"))
}

/// New flows have the source of the last one to their endpoint for a moment, but not for long.
fn packet_a_changed_source_is_used_soon<F: PacketFamily>() -> Result<()> {
    const SOON: Duration = Duration::from_secs(2);
    let Node { mut kernel, .. } = Node::new(Options { fib_src: true, ..Options::default() })?;
    if !kernel.knows_fib_src()? {
        return Ok(());
    }
    let mut tables = memory_tables::<F>(Device::index)?;
    let second = second_address::<F>();
    tables.node_addresses.insert(F::from_ip(second), NodeAddress(NODE_ADDR_SNAT));
    kernel.install(&tables)?;
    let request = Frame::new(Host::Client.at::<F>(50_000), Host::Node.at::<F>(AT_REMOTE), SYN);
    let source = |kernel: &Kernel, program| -> Result<IpAddr> {
        Ok(translated(kernel, (program, Device::Uplink), &request)?.src.ip())
    };
    for program in kernel.possible(&["uplink_ingress", "uplink_xdp"])? {
        kernel.forget_routes::<F>()?;
        kernel.retain_flows::<F>(|_| false)?;
        assert_eq!(source(&kernel, program)?, Host::Node.ip::<F>());
        prefer_second_address::<F>()?;
        let changed = Instant::now();
        loop {
            kernel.retain_flows::<F>(|_| false)?;
            if source(&kernel, program)? == second {
                break;
            }
            ensure!(changed.elapsed() < SOON, "{program}: still not from {second}");
        }
        let flag = if F::IS_V4 { "-4" } else { "-6" };
        ip(&format!("{flag} route replace {} via {}", Host::Remote.ip::<F>(), Host::OtherNode.ip::<F>()))?;
        ip(&format!("{flag} addr del {second}/{} dev uplink", if F::IS_V4 { 24 } else { 64 }))?;
    }
    Ok(())
}

/// Routes are kept for a moment: the packets after a change may go the way of before, but not for long.
fn packet_a_changed_route_is_followed_soon<F: PacketFamily>() -> Result<()> {
    const SOON: Duration = Duration::from_secs(2);
    let Node { kernel, .. } = Node::new(Options::default())?;
    let request = Frame::new(Host::Client.at::<F>(50_000), Host::Node.at::<F>(AT_REMOTE), SYN);
    let goes_to = |frame: &Frame| -> Result<[u8; 6]> {
        let to = frame.between(Host::Node.at::<F>(0), Host::Remote.at::<F>(8080));
        Ok(pass_on(&kernel, "uplink_xdp", frame, &to)?.sent()?.to)
    };
    assert_eq!(goes_to(&request)?, Host::OtherNode.mac());
    let to = request.between(Host::Node.at::<F>(0), Host::Remote.at::<F>(8080));
    let sent = pass_on(&kernel, "uplink_xdp", &request, &to)?.sent()?;
    let sent = sent.with_macs(request.to, request.from);
    answer::<F>(&kernel, &sent, 50_000, AT_REMOTE, SYN_ACK)?;
    let more = Frame { transport: ACK, ..request.clone() };
    let flag = if F::IS_V4 { "-4" } else { "-6" };
    for next_hop in [Host::Gateway, Host::OtherNode] {
        ip(&format!("{flag} route replace {} via {}", Host::Remote.ip::<F>(), next_hop.ip::<F>()))?;
        let changed = Instant::now();
        while goes_to(&more)? != next_hop.mac() {
            ensure!(changed.elapsed() < SOON, "still not to {next_hop:?}");
        }
        // And it stays so.
        assert_eq!(goes_to(&more)?, next_hop.mac());
    }
    Ok(())
}

fn ip(line: &str) -> Result<()> {
    let output = Command::new("ip").args(line.split(' ')).output()?;
    ensure!(output.status.success(), "ip {line}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

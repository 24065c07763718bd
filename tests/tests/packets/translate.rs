//! Each program in the kernel on packets: input and output. Needs root.

use anyhow::Result;
use proxy_common::layout::{
    counter::Counter,
    flow::{FlowState, LookupPoint},
};
use proxy_packets::{
    CLIENT_ISN, Device, Frame, Host, Kernel, Node, Options, PacketFamily, SERVER_ISN, SNAT, Transport,
    checksums_are_valid, for_both_families,
    helpers::{ACK, FIN, NEXT, REDIRECT, RST, SYN, SYN_ACK, XDP_PASS, XDP_TX},
    same_frame,
    sys::Kind,
};

use crate::expect::{ALL, Expect, frame};

for_both_families! {
    packet_cluster_ip_of_a_local_backend
    packet_cluster_ip_of_a_remote_backend
    packet_node_port_local
    packet_node_port_remote
    packet_node_port_remote_by_xdp
    packet_xdp_hands_over_what_it_cannot_finish
    packet_hairpin
    packet_bridge
    packet_life_of_a_connection
    packet_hop_limit
    packet_without_ethernet_header
    packet_two_vips_from_one_port
}

fn packet_cluster_ip_of_a_local_backend<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (port, transport) in (40_000..).zip(ALL) {
        let request = frame::<F>((Host::PodA, port), (Host::LocalVip, 80), transport);
        let sent = request.between(request.src, Host::PodB.at::<F>(8080));
        for _ in 0..2 {
            kernel.gives("pod_ingress", Device::PodA, &request, NEXT, &sent)?;
            // The reply is translated where it leaves to the client, and nowhere else.
            kernel.gives("pod_ingress", Device::PodB, &sent.reply(), NEXT, &sent.reply())?;
            kernel.gives("pod_egress", Device::PodA, &sent.reply(), NEXT, &request.reply())?;
        }
    }
    assert_eq!(kernel.counter(Counter::FlowNew)?, 3);
    assert_eq!(kernel.counter(Counter::FlowForward)?, 3);
    assert_eq!(kernel.counter(Counter::FlowReverse)?, 6);
    Ok(())
}

fn packet_cluster_ip_of_a_remote_backend<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for transport in ALL {
        let request = frame::<F>((Host::PodA, 40_000), (Host::RemoteVip, 80), transport);
        let sent = request.between(request.src, Host::Remote.at::<F>(8080));
        kernel.gives("pod_ingress", Device::PodA, &request, NEXT, &sent)?;
        for program in kernel.possible(&["uplink_xdp", "uplink_ingress"])? {
            let pass = if program == "uplink_xdp" { XDP_PASS } else { NEXT };
            kernel.gives(program, Device::Uplink, &sent.reply(), pass, &sent.reply())?;
        }
        kernel.gives("pod_egress", Device::PodA, &sent.reply(), NEXT, &request.reply())?;
    }
    Ok(())
}

fn packet_node_port_local<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut port = 50_000;
    for program in kernel.possible(&["uplink_ingress", "uplink_xdp", "uplink_xdp_frags"])? {
        let pass = if Kernel::kind(program) == Kind::Xdp { XDP_PASS } else { NEXT };
        for transport in ALL {
            port += 1;
            let request = frame::<F>((Host::Client, port), (Host::Node, 30_001), transport);
            let sent = request.between(request.src, Host::PodB.at::<F>(8080));
            for _ in 0..2 {
                kernel.gives(program, Device::Uplink, &request, pass, &sent)?;
            }
            kernel.gives("uplink_egress", Device::Uplink, &sent.reply(), NEXT, &request.reply())?;
        }
    }
    Ok(())
}

fn packet_node_port_remote<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (port, transport) in (50_000..).zip(ALL) {
        let request = frame::<F>((Host::Client, port), (Host::Node, 30_002), transport);
        let expected = request.between(Host::Node.at::<F>(0), Host::Remote.at::<F>(8080)).one_hop_less();
        // MACs are the neighbour redirect's to write.
        let sent = kernel.forwards("uplink_ingress", &request, REDIRECT, expected)?;
        kernel.gives("uplink_ingress", Device::Uplink, &request, REDIRECT, &sent)?;
        let reply = Frame { hop_limit: 60, ..sent.reply() };
        let back = reply.between(request.dst, request.src).one_hop_less();
        kernel.gives("uplink_ingress", Device::Uplink, &reply, REDIRECT, &back)?;
    }
    assert_eq!(kernel.flows::<F>()?.len(), 6);
    Ok(())
}

fn packet_node_port_remote_by_xdp<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (port, transport) in (50_000..).zip(ALL) {
        let request = frame::<F>((Host::Client, port), (Host::Node, 30_002), transport);
        let expected = request
            .between(Host::Node.at::<F>(0), Host::Remote.at::<F>(8080))
            .with_macs(Host::OtherNode.mac(), Device::Uplink.mac())
            .one_hop_less();
        let sent = kernel.forwards("uplink_xdp", &request, XDP_TX, expected)?;
        let reply = Frame { hop_limit: 60, ..sent.reply() };
        let back = reply.between(request.dst, request.src).one_hop_less();
        let back = back.with_macs(Host::Gateway.mac(), Device::Uplink.mac());
        kernel.gives("uplink_xdp", Device::Uplink, &reply, XDP_TX, &back)?;
        // tc takes a flow over that XDP began.
        let by_tc = sent.clone().with_macs(request.to, request.from);
        kernel.gives("uplink_ingress", Device::Uplink, &request, REDIRECT, &by_tc)?;
    }
    Ok(())
}

fn packet_xdp_hands_over_what_it_cannot_finish<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let request = frame::<F>((Host::Client, 50_000), (Host::Node, 30_005), SYN);
    for _ in 0..2 {
        kernel.gives("uplink_xdp", Device::Uplink, &request, XDP_PASS, &request)?;
    }
    assert_eq!(kernel.counter(Counter::XdpToTc)?, 2);
    let expected = request.between(Host::Node.at::<F>(0), Host::Unresolved.at::<F>(8080)).one_hop_less();
    kernel.forwards("uplink_ingress", &request, REDIRECT, expected)?;
    Ok(())
}

fn packet_hairpin<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for (port, transport) in (40_000..).zip(ALL) {
        let request = frame::<F>((Host::PodA, port), (Host::HairpinVip, 80), transport);
        let expected = request.between(Host::HairpinVip.at::<F>(0), Host::PodA.at::<F>(8080));
        let swapped = |frame: &Frame| frame.clone().with_macs(frame.from, frame.to);
        let run = kernel.run("pod_ingress", &request.build()?, Device::PodA.index()?, 0)?;
        let at = request.transport_offset();
        let mut sent = swapped(&expected);
        sent.src.set_port(u16::from_be_bytes([run.packet[at], run.packet[at + 1]]));
        assert!(SNAT.contains(&sent.src.port()));
        assert_eq!(run.result, REDIRECT);
        assert!(same_frame(&sent.build()?, &run.packet));
        let reply = swapped(&sent.reply());
        kernel.gives(
            "pod_ingress",
            Device::PodA,
            &reply,
            REDIRECT,
            &swapped(&reply.between(request.dst, request.src)),
        )?;
    }
    Ok(())
}

fn packet_bridge<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    for transport in ALL {
        let request = frame::<F>((Host::PodC, 40_000), (Host::BridgeVip, 80), transport);
        let sent =
            request.between(request.src, Host::PodD.at::<F>(8080)).with_macs(Host::PodD.mac(), request.from);
        for _ in 0..2 {
            kernel.gives("pod_ingress", Device::PortC, &request, NEXT, &sent)?;
        }
        // A backend elsewhere is routed: the frame stays addressed to the bridge.
        let request = frame::<F>((Host::PodC, 40_001), (Host::LocalVip, 80), transport);
        let sent = request.between(request.src, Host::PodB.at::<F>(8080));
        kernel.gives("pod_ingress", Device::PortC, &request, NEXT, &sent)?;
    }
    Ok(())
}

fn packet_life_of_a_connection<F: PacketFamily>() -> Result<()> {
    for end in [FIN, RST] {
        let Node { mut kernel, .. } = Node::new(Options::default())?;
        let request = |transport| frame::<F>((Host::PodA, 40_000), (Host::LocalVip, 80), transport);
        let sent =
            |transport| request(transport).between(Host::PodA.at::<F>(40_000), Host::PodB.at::<F>(8080));
        let up = |kernel: &Kernel, t| kernel.gives("pod_ingress", Device::PodA, &request(t), NEXT, &sent(t));
        let down = |kernel: &Kernel, t| {
            kernel.gives("pod_egress", Device::PodA, &sent(t).reply(), NEXT, &request(t).reply())
        };
        up(&kernel, SYN)?;
        down(&kernel, SYN_ACK)?;
        up(&kernel, ACK)?;
        assert_eq!(kernel.count_flows::<F>()?, (2, 0), "confirmed");
        let states = |kernel: &Kernel| -> Result<Vec<u8>> {
            let mut flows: Vec<_> = kernel.flows::<F>()?.into_iter().collect();
            flows.sort_by_key(|(key, _)| key.lookup_point);
            let forward = F::tuple(request(SYN).src, request(SYN).dst);
            assert_eq!(flows.len(), 2);
            assert_eq!((flows[0].0.tuple, flows[1].1.tuple), (forward, forward.reversed()));
            assert_eq!(flows[1].0.lookup_point, LookupPoint::ReverseEgress as u8);
            assert_eq!(flows[0].1.tuple.reversed(), flows[1].0.tuple);
            Ok(flows.iter().map(|(_, flow)| flow.state).collect())
        };
        let both = |state| [state as u8; 2];
        assert_eq!(states(&kernel)?, both(FlowState::Established));
        down(&kernel, ACK)?;
        assert_eq!(states(&kernel)?, both(FlowState::Established));
        down(&kernel, end)?;
        let state = if end == RST { FlowState::Reset } else { FlowState::ClosingByServer };
        assert_eq!(states(&kernel)?, both(state));
        // A new connection from the same port.
        let anew = Frame { initial: [CLIENT_ISN + 1_000_000, SERVER_ISN], ..request(SYN) };
        let sent_again = anew.between(sent(SYN).src, sent(SYN).dst);
        kernel.gives("pod_ingress", Device::PodA, &anew, NEXT, &sent_again)?;
        assert_eq!(states(&kernel)?, both(FlowState::New));
        assert_eq!(kernel.count_flows::<F>()?, (0, 2), "not confirmed yet");
        // The map forgot the replies: nothing is made up.
        kernel.retain_flows::<F>(|key| key.lookup_point == LookupPoint::Forward as u8)?;
        kernel.gives("pod_egress", Device::PodA, &sent(ACK).reply(), NEXT, &sent(ACK).reply())?;
    }
    Ok(())
}

fn packet_hop_limit<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let programs = kernel.possible(&["uplink_ingress", "uplink_xdp"])?;
    for &program in &programs {
        for hop_limit in [0, 1] {
            let remote = frame::<F>((Host::Client, 50_000), (Host::Node, 30_002), SYN);
            let remote = Frame { hop_limit, ..remote };
            if program == "uplink_xdp" {
                // tc will send the ICMP error.
                kernel.gives(program, Device::Uplink, &remote, XDP_PASS, &remote)?;
            } else {
                assert_eq!(
                    kernel.run(program, &remote.build()?, Device::Uplink.index()?, 0)?.result,
                    REDIRECT
                );
            }
            let local = Frame { hop_limit, ..frame::<F>((Host::Client, 50_000), (Host::Node, 30_001), SYN) };
            let sent = local.between(local.src, Host::PodB.at::<F>(8080));
            let pass = if program == "uplink_xdp" { XDP_PASS } else { NEXT };
            kernel.gives(program, Device::Uplink, &local, pass, &sent)?;
        }
    }
    assert_eq!(kernel.counter(Counter::HopLimit)?, 2);
    Ok(())
}

/// On a device without Ethernet headers. The test run makes an Ethernet header of the first 14 bytes it is given, so
/// the client's address is such that they name the right protocol; the program sees them unchanged.
fn packet_without_ethernet_header<F: PacketFamily>() -> Result<()> {
    const ETHERNET: usize = 14;
    let Node { kernel, .. } = Node::new(Options::default())?;
    // Without options the first byte is odd, and so no frame for another host.
    let frame = |port, to| Frame::new(Host::L3Client.at::<F>(port), Host::Node.at::<F>(to), SYN);
    let request = frame(50_000, 30_001);
    let sent = request.between(request.src, Host::PodB.at::<F>(8080));
    let (input, expected) = (request.build()?, sent.build()?);
    let run = kernel.run("uplink_l3_ingress", &input[ETHERNET..], Device::Uplink.index()?, 0)?;
    assert_eq!(run.result, NEXT);
    assert_eq!(run.packet, expected[ETHERNET..]);
    // To a remote backend: an Ethernet header is put in front for the redirect.
    let request = frame(50_001, 30_002);
    let input = request.build()?;
    let run = kernel.run("uplink_l3_ingress", &input[ETHERNET..], Device::Uplink.index()?, 0)?;
    assert_eq!((run.result, run.packet.len()), (REDIRECT, input.len()));
    assert!(checksums_are_valid(&[&input[..ETHERNET], &run.packet[ETHERNET..]].concat()));
    Ok(())
}

fn packet_two_vips_from_one_port<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut answers = Vec::new();
    for vip in [Host::LocalVip, Host::LocalVip2] {
        let request = frame::<F>((Host::PodA, 40_000), (vip, 80), Transport::Udp);
        let run = kernel.run("pod_ingress", &request.build()?, Device::PodA.index()?, 0)?;
        let at = request.transport_offset();
        let mut sent = request.between(request.src, Host::PodB.at::<F>(8080));
        sent.src.set_port(u16::from_be_bytes([run.packet[at], run.packet[at + 1]]));
        assert!(same_frame(&sent.build()?, &run.packet));
        answers.push((sent.reply(), request.reply()));
    }
    assert_ne!(answers[0].0, answers[1].0, "the backend can distinguish them");
    for (answer, expected) in answers {
        kernel.gives("pod_egress", Device::PodA, &answer, NEXT, &expected)?;
    }
    Ok(())
}

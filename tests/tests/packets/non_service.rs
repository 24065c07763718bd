//! Non-service packets, in every program. Needs root.

use anyhow::Result;
use proxy_packets::{
    Device, Host, Kernel, Node, Options, PacketFamily, SNAT, Transport, for_both_families,
    helpers::{ACK, NEXT, SYN, XDP_PASS},
    sys::Kind,
};

use crate::expect::{Expect, frame};

for_both_families! {
    packet_of_any_length
    packet_of_others_is_left_alone
    packet_to_a_port_that_we_might_give
}

fn packet_of_any_length<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let transports = [ACK, Transport::Udp];
    let programs = [
        "pod_ingress",
        "pod_egress",
        "uplink_ingress",
        "uplink_egress",
        "uplink_l3_ingress",
        "uplink_l3_egress",
        "uplink_xdp",
        "uplink_xdp_frags",
    ];
    for program in kernel.possible(&programs)? {
        let device = if program.starts_with("pod") { Device::PodA } else { Device::Uplink };
        let pass = if Kernel::kind(program) == Kind::Xdp { XDP_PASS } else { NEXT };
        for transport in transports {
            let request = frame::<F>((Host::Client, 50_000), (Host::LocalVip, 80), transport);
            let bytes = request.build()?;
            let transport_header = if transport == ACK { 20 } else { 8 };
            let whole = request.transport_offset() + transport_header;
            for length in 0..whole.min(80) {
                match kernel.run(program, &bytes[..length], device.index()?, 0) {
                    Ok(run) => {
                        assert_eq!(run.result, pass, "{program} on {length} bytes");
                        assert_eq!(run.packet, bytes[..length], "{program} on {length} bytes");
                    }
                    // The kernel itself refuses to make a packet of less than its headers.
                    Err(error) => assert!(length < request.transport_offset(), "{length}: {error:#}"),
                }
            }
        }
    }
    assert!(kernel.flows::<F>()?.is_empty());
    Ok(())
}

fn packet_of_others_is_left_alone<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let request = frame::<F>((Host::PodA, 40_000), (Host::LocalVip, 80), Transport::Udp);
    let bytes = request.build()?;
    let protocol = if F::IS_V4 { 23 } else { 20 };
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = bytes.clone();
        change(&mut bytes);
        bytes
    };
    let mut others = vec![
        ("arp", with(&|bytes| bytes[12..14].copy_from_slice(&[8, 6]))),
        ("icmp", with(&|bytes| bytes[protocol] = if F::IS_V4 { 1 } else { 58 })),
        ("esp", with(&|bytes| bytes[protocol] = 50)),
        ("too short for sctp", with(&|bytes| bytes[protocol] = 132)),
        ("no service", frame::<F>((Host::PodA, 1), (Host::PodB, 80), SYN).build()?),
        ("outside", frame::<F>((Host::PodA, 1), (Host::Client, 443), SYN).build()?),
        ("other node's nodePort", frame::<F>((Host::PodA, 1), (Host::OtherNode, 30_001), SYN).build()?),
        ("wrong version", with(&|bytes| bytes[14] ^= 0xf0)),
    ];
    if F::IS_V4 {
        others.push(("short header length", with(&|bytes| bytes[14] = 0x44)));
        others.push(("header longer than the packet", with(&|bytes| bytes[14] = 0x4f)));
    } else {
        others.push(("extension header of a routing", with(&|bytes| bytes[protocol] = 43)));
    }
    let programs =
        kernel.possible(&["pod_ingress", "pod_egress", "uplink_ingress", "uplink_egress", "uplink_xdp"])?;
    for (what, bytes) in &others {
        for &program in &programs {
            let pass = if Kernel::kind(program) == Kind::Xdp { XDP_PASS } else { NEXT };
            match kernel.run(program, bytes, Device::Uplink.index()?, 0) {
                Ok(run) => assert_eq!((run.result, &run.packet), (pass, bytes), "{program}: {what}"),
                // Newer kernels check headers before they run a program.
                Err(error) => {
                    assert!(what.contains("header") || what.contains("version"), "{what}: {error:#}")
                }
            }
        }
    }
    let mut tagged = bytes.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    for program in kernel.possible(&["uplink_xdp"])? {
        kernel.gives_bytes(program, Device::Uplink, &tagged, XDP_PASS, &tagged)?;
    }
    assert!(kernel.flows::<F>()?.is_empty());
    Ok(())
}

/// Kernel NAT and sockets of the node use any port.
fn packet_to_a_port_that_we_might_give<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let stray = frame::<F>((Host::Remote, 8080), (Host::Node, *SNAT.start()), Transport::Udp);
    for is_socket in [false, true] {
        let _socket = is_socket.then(|| std::net::UdpSocket::bind(stray.dst)).transpose()?;
        for program in kernel.possible(&["uplink_ingress", "uplink_xdp"])? {
            let pass = if Kernel::kind(program) == Kind::Xdp { XDP_PASS } else { NEXT };
            kernel.gives(program, Device::Uplink, &stray, pass, &stray)?;
        }
    }
    assert_eq!(kernel.count_flows::<F>()?, (0, 0));
    Ok(())
}

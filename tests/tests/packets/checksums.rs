//! Checksums of packets that the programs rewrite. Needs root.

use anyhow::Result;
use proxy_harness::kernel_capabilities::MissingCapability;
use proxy_packets::{
    Device, Frame, Host, Node, Options, PacketFamily, Transport, checksums_are_valid, for_both_families,
    helpers::{ACK, NEXT, SYN, SYN_ACK, XDP_PASS},
    sys,
};

use crate::expect::{Expect, frame};

for_both_families! {
    packet_checksums_at_carry_boundaries
    packet_checksum_of_the_whole_frame
}

fn packet_checksums_at_carry_boundaries<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = Node::new(Options::default())?;
    let mut flip = 0u8;
    for client_port in [0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff] {
        for payload in [vec![], vec![0xff; 2], vec![0xff; 3], vec![0; 1], vec![0x80, 0, 0x7f, 0xff]] {
            for transport in [SYN, ACK, Transport::Udp] {
                flip = flip.wrapping_add(41);
                let mut request = frame::<F>((Host::PodA, client_port), (Host::OddVip, 80), transport);
                request.payload = payload.clone();
                request.traffic_class = flip;
                let sent = request.between(request.src, Host::OddPod.at::<F>(8080));
                kernel.gives("pod_ingress", Device::PodA, &request, NEXT, &sent)?;
                kernel.gives("pod_egress", Device::PodA, &sent.reply(), NEXT, &request.reply())?;
                let mut request = frame::<F>((Host::Client, client_port), (Host::Node, 30_008), transport);
                request.payload = payload.clone();
                let sent = request.between(request.src, Host::OddPod.at::<F>(8080));
                for program in kernel.possible(&["uplink_xdp"])? {
                    kernel.gives(program, Device::Uplink, &request, XDP_PASS, &sent)?;
                }
            }
        }
    }
    // A payload that brings the checksum to its edges: it must stay valid, whichever zero it becomes.
    for word in (0..=u16::MAX).step_by(97).chain([0xfffe, 0xffff]) {
        let mut request = frame::<F>((Host::Client, 7), (Host::Node, 30_002), Transport::Udp);
        request.payload = word.to_be_bytes().to_vec();
        for program in kernel.possible(&["uplink_xdp", "uplink_ingress"])? {
            let run = kernel.run(program, &request.build()?, Device::Uplink.index()?, 0)?;
            assert!(checksums_are_valid(&run.packet), "{program} with {word:#x}");
        }
    }
    Ok(())
}

/// With a sum of the whole frame from the device, the kernel checks that it is kept right.
fn packet_checksum_of_the_whole_frame<F: PacketFamily>() -> Result<()> {
    for csum_ipv6 in [false, true] {
        let Node { kernel, .. } = Node::new(Options { csum_ipv6, ..Options::default() })?;
        if csum_ipv6 && !kernel.knows_csum_ipv6()? {
            continue;
        }
        // The first two rounds open the flow and confirm it, the third finds it so.
        let tcp = [(SYN, SYN_ACK), (ACK, ACK), (ACK, ACK)];
        let udp = [(Transport::Udp, Transport::Udp); 3];
        for (transport, answer) in tcp.into_iter().chain(udp) {
            let local = frame::<F>((Host::PodA, 40_000), (Host::LocalVip, 80), transport);
            let sent = local.between(local.src, Host::PodB.at::<F>(8080));
            let from_client = |port| frame::<F>((Host::Client, 50_000), (Host::Node, port), transport);
            let answered = |port, host: Host| {
                let sent = from_client(port).between(Host::Client.at::<F>(50_000), host.at::<F>(8080));
                Frame { transport: answer, ..sent.reply() }
            };
            // A device sets CHECKSUM_COMPLETE on packets that it received, and only packets handed on to a pod keep it.
            for (program, device, frame, flags) in [
                ("pod_ingress", Device::PodA, local, 0),
                (
                    "pod_egress",
                    Device::PodA,
                    Frame { transport: answer, ..sent.reply() },
                    sys::CHECKSUM_COMPLETE,
                ),
                ("uplink_ingress", Device::Uplink, from_client(30_001), sys::CHECKSUM_COMPLETE),
                ("uplink_ingress", Device::Uplink, from_client(30_008), sys::CHECKSUM_COMPLETE),
                ("uplink_egress", Device::Uplink, answered(30_001, Host::PodB), 0),
                ("uplink_egress", Device::Uplink, answered(30_008, Host::OddPod), 0),
            ] {
                let run = kernel.run(program, &frame.build()?, device.index()?, flags);
                let run = match run {
                    Err(error) if is_errno(&error, libc_einval()) => {
                        MissingCapability::ChecksumComplete.note();
                        return Ok(());
                    }
                    run => run?,
                };
                assert_ne!(run.packet, frame.build()?, "{program}");
                assert!(checksums_are_valid(&run.packet), "{program}");
            }
        }
    }
    Ok(())
}

fn libc_einval() -> i32 {
    nix::errno::Errno::EINVAL as i32
}

fn is_errno(error: &anyhow::Error, errno: i32) -> bool {
    error.downcast_ref::<std::io::Error>().and_then(std::io::Error::raw_os_error) == Some(errno)
}

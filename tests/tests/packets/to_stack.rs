//! Packets that programs hand to the kernel's IP stack to be sent. Needs root.

use anyhow::Result;
use proxy_common::layout::device::DEVICE_STACK;
use proxy_packets::{
    Device, Frame, Host, Node, Options, PacketFamily, checksums_are_valid, for_both_families,
    helpers::{ACK, REDIRECT, SYN, SYN_ACK, XDP_PASS},
};

for_both_families! {
    packet_by_a_device_that_the_stack_must_send_by
    packet_without_ethernet_header
}

const ETHERNET: usize = 14;

/// The uplink is such a device.
fn node() -> Result<Node> {
    Node::with(Options::default(), |v4, v6| {
        for devices in [&mut v4.devices, &mut v6.devices] {
            devices
                .values_mut()
                .filter(|device| device.snat_v4 != 0)
                .for_each(|device| device.flags |= DEVICE_STACK);
        }
    })
}

/// It is translated, keeps its hop limit, and is for the loopback interface. XDP leaves it unchanged.
fn packet_by_a_device_that_the_stack_must_send_by<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = node()?;
    let client = Frame::new(Host::Client.at::<F>(50_000), Host::Node.at::<F>(30_002), SYN);
    let send = |request: &Frame| -> Result<Frame> {
        let input = request.build()?;
        if !kernel.possible(&["uplink_xdp"])?.is_empty() {
            let run = kernel.run("uplink_xdp", &input, Device::Uplink.index()?, 0)?;
            assert_eq!((run.result, run.packet), (XDP_PASS, input.clone()), "{request:?}");
        }
        let run = kernel.run("uplink_ingress", &input, Device::Uplink.index()?, 0)?;
        assert_eq!(run.result, REDIRECT, "{request:?}");
        assert_eq!(run.packet[..6], [0; 6], "the loopback interface's address");
        assert!(checksums_are_valid(&run.packet));
        let hops = if F::IS_V4 { ETHERNET + 8 } else { ETHERNET + 7 };
        assert_eq!(run.packet[hops], input[hops]);
        let (src, dst) = proxy_packets::ends(&run.packet);
        Ok(request.between(src, dst))
    };
    let sent = send(&client)?;
    assert_eq!(sent.dst, Host::Remote.at::<F>(8080));
    assert_eq!(sent.src.ip(), Host::Node.at::<F>(0).ip());
    let back = send(&Frame { transport: SYN_ACK, ..sent.reply() })?;
    assert_eq!((back.src, back.dst), (client.dst, client.src));
    // By the fast path, when the flow is confirmed.
    for _ in 0..3 {
        let again = send(&Frame { transport: ACK, ..client.clone() })?;
        assert_eq!((again.src, again.dst), (sent.src, sent.dst));
        let back = send(&Frame { transport: ACK, ..sent.reply() })?;
        assert_eq!((back.src, back.dst), (client.dst, client.src));
    }
    Ok(())
}

/// It gets one, of its protocol. See the test of the same name in `translate.rs`.
fn packet_without_ethernet_header<F: PacketFamily>() -> Result<()> {
    let Node { kernel, .. } = node()?;
    let request = Frame::new(Host::L3Client.at::<F>(50_001), Host::Node.at::<F>(30_002), SYN);
    let input = request.build()?;
    let run = kernel.run("uplink_l3_ingress", &input[ETHERNET..], Device::Uplink.index()?, 0)?;
    assert_eq!((run.result, run.packet.len()), (REDIRECT, input.len()));
    assert_eq!((&run.packet[..6], &run.packet[12..14]), (&[0; 6][..], &input[12..14]));
    assert!(checksums_are_valid(&run.packet));
    Ok(())
}

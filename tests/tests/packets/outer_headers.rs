//! Packets that a tunnel hands in with their outer header in front. Needs root.

use anyhow::Result;
use proxy_common::layout::device::DEVICE_GRE;
use proxy_packets::{
    Device, Frame, Host, Node, Options, PacketFamily, for_both_families,
    helpers::{NEXT, REDIRECT, SYN},
};

for_both_families! {
    packet_with_an_outer_header_is_received_without
}

/// Offset of the network header in a test run: behind the bytes that the kernel takes for an Ethernet header. So much of an outer
/// header fits.
const IN_FRONT: usize = 14;
const PROTOCOL: usize = 9;
const GRE: u8 = 47;

/// It is left unchanged, and sent to the interface that it came by; only if that is a GRE device, and only GRE packets.
fn packet_with_an_outer_header_is_received_without<F: PacketFamily>() -> Result<()> {
    for (flags, protocol, expected) in [(DEVICE_GRE, GRE, REDIRECT), (0, GRE, NEXT), (DEVICE_GRE, 17, NEXT)] {
        let Node { kernel, .. } = Node::with(Options::default(), |v4, v6| {
            for devices in [&mut v4.devices, &mut v6.devices] {
                devices.values_mut().for_each(|device| device.flags |= flags);
            }
        })?;
        let inner = Frame::new(Host::L3Client.at::<F>(50_001), Host::Node.at::<F>(30_002), SYN);
        // The kernel takes the packet's protocol from the end of the header in front.
        let mut packet = inner.build()?;
        packet[..IN_FRONT - 2].fill(0);
        packet[0] = 0x45;
        packet[PROTOCOL] = protocol;
        let run = kernel.run("uplink_l3_ingress", &packet, Device::Uplink.index()?, 0)?;
        assert_eq!((run.result, &run.packet), (expected, &packet), "{flags} {protocol}");
    }
    Ok(())
}

//! Settings of a device that iproute2 lacks, or lacks on some machines: checksum offload and a minimal XDP program.

use std::{io, os::fd::OwnedFd};

use anyhow::{Context, Result};
use nix::net::if_::{if_nameindex, if_nametoindex};
use proxy_sys::ethtool::set_transmit_checksum;

use super::{bpf, netns::Netns};

/// Switches transmit checksum offload on all devices of a namespace (and with it segmentation offload, which needs
/// it). Without offload packets carry complete checksums, as from a real network card.
pub(crate) fn set_checksum_offload(netns: &Netns, on: bool) -> Result<()> {
    netns.run(|| {
        for device in &if_nameindex()? {
            let name = device.name().to_string_lossy().into_owned();
            if name != "lo" {
                set_transmit_checksum(&name, on).with_context(|| format!("checksum offload of {name}"))?;
            }
        }
        Ok(())
    })
}

/// An XDP program that passes everything, attached for as long as the value lives.
///
/// A veth delivers packets that its peer sends by XDP_TX or redirect only if it has an XDP program itself.
#[derive(Debug)]
pub struct XdpPass {
    _link: OwnedFd,
}

impl XdpPass {
    /// Attaches it (native mode) to a device of the namespace.
    pub fn attach(netns: &Netns, device: &str) -> Result<Self> {
        netns.run(|| {
            let program = load_xdp_pass().context("cannot load an XDP program")?;
            let ifindex = if_nametoindex(device)?;
            let link =
                attach_xdp(&program, ifindex).with_context(|| format!("cannot attach XDP to {device}"))?;
            Ok(Self { _link: link })
        })
    }
}

fn load_xdp_pass() -> io::Result<OwnedFd> {
    // r0 = 2 (XDP_PASS); exit
    bpf::load(bpf::XDP, "pass", &[0x0000_0002_0000_00b7, 0x0000_0000_0000_0095])
}

pub(super) fn attach_xdp(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    bpf::attach(program, ifindex, BPF_XDP, XDP_FLAGS_DRV_MODE)
}

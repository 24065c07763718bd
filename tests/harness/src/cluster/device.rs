//! What iproute2 cannot set on a device, or not on every machine: checksum offload and a minimal XDP program.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::net::if_::{if_nameindex, if_nametoindex};

use super::{bpf, netns::Netns};

/// linux/sockios.h
const SIOCETHTOOL: libc::c_ulong = 0x8946;
/// linux/ethtool.h
const ETHTOOL_STXCSUM: u32 = 0x17;

/// Switches transmit checksum offload on all devices of a namespace (and with it segmentation offload, which needs
/// it). Without offload packets carry complete checksums, as from a real network card.
pub(crate) fn set_checksum_offload(netns: &Netns, on: bool) -> Result<()> {
    netns.run(|| {
        let socket = UdpSocket::bind("127.0.0.1:0")?;
        for device in &if_nameindex()? {
            let name = device.name().to_string_lossy().into_owned();
            if name != "lo" {
                ethtool(&socket, &name, ETHTOOL_STXCSUM, u32::from(on))
                    .with_context(|| format!("checksum offload of {name}"))?;
            }
        }
        Ok(())
    })
}

fn ethtool(socket: &UdpSocket, device: &str, command: u32, value: u32) -> io::Result<()> {
    let mut argument = [command, value];
    // SAFETY: ifreq is plain data; all zeroes is a value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(device.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = argument.as_mut_ptr().cast();
    // SAFETY: the request names a device (terminated by the zeroes) and points to an ethtool_value, both alive.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, &mut request) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// An XDP program that passes everything, attached for as long as the value lives.
///
/// A veth delivers what its peer sends by XDP_TX or redirect only if it has an XDP program itself.
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

//! What iproute2 cannot set on a device, or not on every machine: checksum offload and a minimal XDP program.

use std::{
    io,
    net::UdpSocket,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context, Result};
use nix::net::if_::{if_nameindex, if_nametoindex};

use super::netns::Netns;

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

/// The start of `union bpf_attr` for BPF_PROG_LOAD (linux/bpf.h).
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The start of `union bpf_attr` for BPF_LINK_CREATE (linux/bpf.h).
#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
}

fn load_xdp_pass() -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: libc::c_int = 5;
    const BPF_PROG_TYPE_XDP: u32 = 6;
    // r0 = 2 (XDP_PASS); exit
    let program: [u64; 2] = [0x0000_0002_0000_00b7, 0x0000_0000_0000_0095];
    let attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: program.len() as u32,
        insns: program.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    bpf(BPF_PROG_LOAD, &attributes)
}

fn attach_xdp(program: &OwnedFd, ifindex: u32) -> io::Result<OwnedFd> {
    const BPF_LINK_CREATE: libc::c_int = 28;
    const BPF_XDP: u32 = 37;
    const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
    let attributes = LinkCreate {
        prog_fd: program.as_raw_fd() as u32,
        target_ifindex: ifindex,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
    };
    bpf(BPF_LINK_CREATE, &attributes)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes by their size and only for the time of the call; both commands used here
    // return a new descriptor or an error.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, attributes as *const T, size_of::<T>());
        if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd as i32)) }
    }
}

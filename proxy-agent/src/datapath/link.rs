//! Links between programs and their targets: made, pinned, and given a new program without a gap.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
};

use anyhow::{Context as _, Result};
use proxy_sys::bpf::{self, link::link_info};

use super::pins::Pins;

/// The target of a program.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target<'a> {
    /// A cgroup, by an open directory and its id.
    Cgroup { directory: BorrowedFd<'a>, id: u64, attach_type: u32 },
    /// TCX of an interface, before other programs.
    Tcx { ifindex: u32, attach_type: u32 },
    /// XDP of an interface.
    Xdp { ifindex: u32, flags: u32 },
}

/// `BPF_TCX_INGRESS`.
pub(super) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(super) const TCX_EGRESS: u32 = 47;
/// `XDP_FLAGS_SKB_MODE`.
pub(super) const XDP_GENERIC: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
pub(super) const XDP_NATIVE: u32 = 1 << 2;

/// The result of a request to attach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Attached {
    /// A new link was made.
    New,
    /// An earlier agent's link got the program.
    Updated,
}

impl Target<'_> {
    /// Whether the link is attached to this.
    fn is_of(&self, link: &OwnedFd) -> io::Result<bool> {
        let info = link_info(link.as_fd())?;
        Ok(match *self {
            Self::Cgroup { id, .. } => info.cgroup_id == id,
            Self::Tcx { ifindex, .. } | Self::Xdp { ifindex, .. } => info.ifindex == ifindex,
        })
    }

    fn create(&self, program: BorrowedFd<'_>) -> io::Result<OwnedFd> {
        const BPF_XDP: u32 = 37;
        const BPF_F_BEFORE: u32 = 1 << 3;
        use std::os::fd::AsRawFd as _;
        match *self {
            Self::Cgroup { directory, attach_type, .. } => {
                bpf::link::create(program, directory.as_raw_fd() as u32, attach_type, 0)
            }
            Self::Tcx { ifindex, attach_type } => {
                bpf::link::create(program, ifindex, attach_type, BPF_F_BEFORE)
            }
            Self::Xdp { ifindex, flags } => bpf::link::create(program, ifindex, BPF_XDP, flags),
        }
    }
}

/// Attaches a program under a name: by the link pinned under it, if that is attached to the target, else by a new one.
///
/// # Errors
/// With the system's error at the root, so that callers can recognise missing support of a kernel or driver.
pub(super) fn attach(
    pins: &Pins,
    name: &str,
    program: BorrowedFd<'_>,
    target: Target<'_>,
) -> Result<Attached> {
    let path = pins.link(name);
    if let Ok(link) = bpf::open_pinned(&path) {
        // A link whose target is gone, or another's: its successor takes the name.
        if target.is_of(&link).unwrap_or(false) && bpf::link::update(link.as_fd(), program).is_ok() {
            return Ok(Attached::Updated);
        }
        detach(pins, name)?;
    }
    let link = target.create(program)?;
    bpf::pin(link.as_fd(), &path).with_context(|| format!("cannot pin the link {}", path.display()))?;
    Ok(Attached::New)
}

/// Whether the link pinned under a name is attached to anything, with this program if its id is known.
pub(super) fn is_attached(pins: &Pins, name: &str, program: Option<u32>) -> bool {
    let info = bpf::open_pinned(&pins.link(name)).and_then(|link| link_info(link.as_fd()));
    info.is_ok_and(|info| {
        // 0 when the kernel has detached it.
        let target = if name.starts_with("cgroup-") { info.cgroup_id } else { info.ifindex.into() };
        target != 0 && program.is_none_or(|program| program == info.program_id)
    })
}

/// Detaches the link pinned under a name at once: after [`detach`] alone, the kernel does it some time later.
pub(super) fn detach_now(pins: &Pins, name: &str) -> Result<()> {
    if let Ok(link) = bpf::open_pinned(&pins.link(name))
        && let Err(error) = bpf::link::detach(link.as_fd())
    {
        tracing::debug!("cannot detach the link {name}: {error}");
    }
    detach(pins, name)
}

/// Detaches the link pinned under a name.
pub(super) fn detach(pins: &Pins, name: &str) -> Result<()> {
    let path = pins.link(name);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot unpin {}", path.display()))
        }
        _ => Ok(()),
    }
}

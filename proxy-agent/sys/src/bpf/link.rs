//! Links, and what is attached.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use super::{Attr, Command, info};

/// Attaches a program by a link. `target` is an interface index, or a descriptor as a number.
///
/// # Errors
/// The kernel's.
pub fn create(program: BorrowedFd<'_>, target: u32, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let mut attr = Attr::new().fd(0, program).u32(4, target).u32(8, attach_type).u32(12, flags);
    // SAFETY: no pointers; the command returns a new descriptor.
    unsafe { attr.call_for_fd(Command::LinkCreate) }
}

/// Replaces the program of a link, at once.
///
/// # Errors
/// The kernel's.
pub fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe { Attr::new().fd(0, link).fd(4, program).call(Command::LinkUpdate) }.map(drop)
}

/// Detaches a link at once: one whose last reference goes is detached some time later.
///
/// # Errors
/// The kernel's.
pub fn detach(link: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe { Attr::new().fd(0, link).call(Command::LinkDetach) }.map(drop)
}

/// What a link is attached to: the words of `bpf_link_info` behind the common part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkInfo {
    /// `bpf_link_info.type`.
    pub kind: u32,
    /// `bpf_link_info.prog_id`.
    pub program_id: u32,
    /// `bpf_link_info.cgroup.cgroup_id`, for links of cgroups.
    pub cgroup_id: u64,
    /// `bpf_link_info.{xdp,tcx}.ifindex`, for links of interfaces; 0 when the interface is gone.
    pub ifindex: u32,
}

/// [`LinkInfo::kind`] of XDP: `BPF_LINK_TYPE_XDP`.
pub const KIND_XDP: u32 = 6;

/// Asks a link what it is attached to.
///
/// # Errors
/// The kernel's.
pub fn link_info(link: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    const PROGRAM: usize = 8;
    const TARGET: usize = 16;
    let info = info(link)?;
    let low = info.get_u32(TARGET);
    let cgroup_id = u64::from(info.get_u32(TARGET + 4)) << 32 | u64::from(low);
    Ok(LinkInfo { kind: info.get_u32(0), program_id: info.get_u32(PROGRAM), cgroup_id, ifindex: low })
}

/// The programs at a hook of a cgroup, without those of the cgroups above.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPrograms {
    /// `BPF_F_ALLOW_OVERRIDE` and `BPF_F_ALLOW_MULTI` of the program that was attached first; 0: no others may be attached.
    pub flags: u32,
    /// The kernel's ids, in the order they run.
    pub ids: Vec<u32>,
}

/// Reads which programs are at a hook of a cgroup.
///
/// # Errors
/// The kernel's.
pub fn query_cgroup(cgroup: BorrowedFd<'_>, attach_type: u32) -> io::Result<CgroupPrograms> {
    const FLAGS: usize = 12;
    const COUNT: usize = 24;
    /// As many as the kernel allows (`BPF_CGROUP_MAX_PROGS`).
    const MAX: usize = 64;
    let mut ids = vec![0u32; MAX];
    let mut attr =
        Attr::new().fd(0, cgroup).u32(4, attach_type).u64(16, ids.as_mut_ptr() as u64).u32(COUNT, MAX as u32);
    // SAFETY: the buffer has room for as many ids as are asked for.
    unsafe { attr.call(Command::ProgQuery) }?;
    ids.truncate(attr.get_u32(COUNT) as usize);
    Ok(CgroupPrograms { flags: attr.get_u32(FLAGS), ids })
}

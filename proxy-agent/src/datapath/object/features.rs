//! This kernel's features.

use std::os::fd::{AsFd as _, BorrowedFd};

use aya::util::KernelVersion;
use proxy_common::layout::probe::{PROBED_CSUM_IPV6, PROBED_FIB_SRC};
use proxy_sys::bpf::program;
use tracing::{debug, warn};

use super::{
    image::Linked,
    load::{LoadError, load},
};
use crate::datapath::denied::Refused;

/// Helper numbers, from the kernel's `include/uapi/linux/bpf.h`.
pub(super) mod helper {
    pub(in super::super) const BPF_FUNC_GET_CURRENT_PID_TGID: u32 = 14;
    pub(in super::super) const BPF_FUNC_GET_CURRENT_COMM: u32 = 16;
    pub(in super::super) const BPF_FUNC_SK_STORAGE_GET: u32 = 107;
    pub(in super::super) const BPF_FUNC_SET_RETVAL: u32 = 187;
}

/// Features that a kernel may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// `bpf_set_retval` (5.18): rejected sockets see ECONNREFUSED instead of EPERM.
    pub set_retval: bool,
    /// Socket storage in socket address programs: connected sockets never forget their VIP.
    pub sk_storage: bool,
    /// `BPF_F_IPV6` in checksum updates (6.16).
    pub csum_ipv6: bool,
    /// The source address that a route prefers, from the FIB look-up (6.7).
    pub fib_src: bool,
    /// TCX links (6.6) instead of clsact filters.
    pub tcx: bool,
}

impl Features {
    /// Probes them. The probe program uses no maps.
    ///
    /// # Errors
    /// When the kernel refuses even that program.
    pub(super) fn find(probe: &Linked, types: Option<BorrowedFd<'_>>) -> Result<Self, Refused> {
        let probed = run(probe, types)?;
        let features = Self {
            set_retval: has_helper(helper::BPF_FUNC_SET_RETVAL),
            sk_storage: has_helper(helper::BPF_FUNC_SK_STORAGE_GET),
            csum_ipv6: probed & PROBED_CSUM_IPV6 != 0,
            fib_src: probed & PROBED_FIB_SRC != 0,
            tcx: KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0)),
        };
        debug!(?features, "kernel features");
        Ok(features)
    }
}

/// Whether the kernel lets socket hooks call a helper.
pub(super) fn has_helper(helper: u32) -> bool {
    program::cgroup_sock_addr_has_helper(helper).unwrap_or_else(|error| {
        warn!("cannot find out whether the kernel has helper {helper}: {error}; assuming not");
        false
    })
}

/// Runs the probe program. Returns `PROBED_*` bits.
fn run(probe: &Linked, types: Option<BorrowedFd<'_>>) -> Result<u32, Refused> {
    let program = load(probe, types).map_err(|LoadError { error, log }| Refused {
        request: format!("load even the probe program (the verifier's log: {log})"),
        error,
    })?;
    let mut packet = [0u8; 128];
    packet[12..14].copy_from_slice(&[0x86, 0xdd]);
    packet[14] = 0x60;
    program::run_once(program.as_fd(), &mut packet).map_err(Refused::request("run the probe program"))
}

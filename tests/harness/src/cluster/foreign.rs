//! Programs that a CNI might have at an interface: they count packets and let them go on.

use std::{fs, os::fd::OwnedFd, path::Path};

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use super::{Netns, bpf, netns::pipe};

/// The name of the programs.
const NAME: &str = "counting";

/// Where a program stands, and how it passes packets on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Position {
    /// The first of the TCX programs; the next program runs.
    TcxFirst,
    /// The last of the TCX programs; no other program runs.
    TcxLast,
    /// A filter of the clsact qdisc; no other filter runs.
    Clsact,
}

/// A foreign program at an interface. It goes with the interface; if it is a TCX program, with this value.
#[derive(Debug)]
pub struct ForeignProgram {
    what: String,
    counter: OwnedFd,
    _link: Option<OwnedFd>,
}

impl ForeignProgram {
    /// Attaches one. `pins` is a folder of the BPF file system, for a moment.
    pub fn attach(
        netns: &Netns,
        device: &str,
        is_ingress: bool,
        position: Position,
        pins: &Path,
    ) -> Result<Self> {
        const TCX_INGRESS: u32 = 46;
        const TCX_EGRESS: u32 = 47;
        const BPF_F_BEFORE: u32 = 1 << 3;
        const BPF_F_AFTER: u32 = 1 << 4;
        const NEXT: i32 = -1;
        const OK: i32 = 0;
        let direction = if is_ingress { "ingress" } else { "egress" };
        let what = format!("{position:?} at {direction} of {device} in {}", netns.name());
        let counter = bpf::create_counter()?;
        let result = if position == Position::TcxFirst { NEXT } else { OK };
        let program = bpf::load(bpf::SCHED_CLS, NAME, &counting(&counter, result))
            .context("cannot load a tc program")?;
        let link = if position == Position::Clsact {
            let pin = pins.join(NAME);
            bpf::pin(&program, &pin)?;
            let attached = attach_filter(netns, device, direction, &pin);
            fs::remove_file(&pin)?;
            attached.context(what.clone())?;
            None
        } else {
            let attach_type = if is_ingress { TCX_INGRESS } else { TCX_EGRESS };
            let flags = if position == Position::TcxFirst { BPF_F_BEFORE } else { BPF_F_AFTER };
            let link = netns.run(|| Ok(bpf::attach(&program, if_nametoindex(device)?, attach_type, flags)?));
            Some(link.context(what.clone())?)
        };
        Ok(Self { what, counter, _link: link })
    }

    /// Which it is.
    pub fn name(&self) -> &str {
        &self.what
    }

    /// How many packets it has seen.
    pub fn packets(&self) -> Result<u64> {
        bpf::read_counter(&self.counter).context(self.what.clone())
    }
}

fn attach_filter(netns: &Netns, device: &str, direction: &str, pin: &Path) -> Result<()> {
    // It may be there already.
    let _ = pipe(netns.command("tc")?.args(["qdisc", "add", "dev", device, "clsact"]), "");
    let mut command = netns.command("tc")?;
    command.args(["filter", "add", "dev", device, direction, "bpf", "direct-action", "object-pinned"]);
    pipe(command.arg(pin), "")?;
    Ok(())
}

/// Counts in the first element of the array, and returns the number.
pub(super) fn counting(counter: &OwnedFd, result: i32) -> [u64; 11] {
    use std::os::fd::AsRawFd;
    let word = |op: u64, dst: u64, src: u64, offset: i16, immediate: i32| {
        op | dst << 8 | src << 12 | u64::from(offset as u16) << 16 | u64::from(immediate as u32) << 32
    };
    [
        word(0x18, 1, 1, 0, counter.as_raw_fd()), // r1 = the map, in two words
        0,
        word(0x62, 10, 0, -4, 0), // *(u32 *)(r10 - 4) = 0
        word(0xbf, 2, 10, 0, 0),  // r2 = r10
        word(0x07, 2, 0, 0, -4),  // r2 += -4
        word(0x85, 0, 0, 0, 1),   // r0 = bpf_map_lookup_elem(r1, r2)
        word(0x15, 0, 0, 2, 0),   // if r0 == 0 goto +2
        word(0xb7, 1, 0, 0, 1),   // r1 = 1
        word(0xdb, 0, 1, 0, 0),   // lock *(u64 *)r0 += r1
        word(0xb7, 0, 0, 0, result),
        0x95, // exit
    ]
}

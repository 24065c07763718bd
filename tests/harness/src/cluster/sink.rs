//! Where packets end that are only sent to be counted.

use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use nix::net::if_::if_nametoindex;

use super::{Netns, bpf, device::attach_xdp, foreign::counting};

/// Drops all that comes in by a device, and counts it, for as long as the value lives.
#[derive(Debug)]
pub struct Sink {
    counter: OwnedFd,
    _link: OwnedFd,
}

impl Sink {
    /// For packets that the device's peer sends in the usual way. Needs TCX (Linux 6.6).
    pub fn tc(netns: &Netns, device: &str) -> Result<Self> {
        const TCX_INGRESS: u32 = 46;
        const SHOT: i32 = 2;
        let counter = bpf::create_counter()?;
        let program = bpf::load(bpf::SCHED_CLS, "sink", &counting(&counter, SHOT))?;
        let link = netns.run(|| Ok(bpf::attach(&program, if_nametoindex(device)?, TCX_INGRESS, 0)?));
        Ok(Self { counter, _link: link.with_context(|| format!("cannot attach to {device}"))? })
    }

    /// For packets that a veth's peer sends from an XDP program.
    pub fn xdp(netns: &Netns, device: &str) -> Result<Self> {
        const DROP: i32 = 1;
        let counter = bpf::create_counter()?;
        let program = bpf::load(bpf::XDP, "sink", &counting(&counter, DROP))?;
        let link = netns.run(|| Ok(attach_xdp(&program, if_nametoindex(device)?)?));
        Ok(Self { counter, _link: link.with_context(|| format!("cannot attach XDP to {device}"))? })
    }

    /// How many packets came.
    pub fn packets(&self) -> Result<u64> {
        Ok(bpf::read_counter(&self.counter)?)
    }
}

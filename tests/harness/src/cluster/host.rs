//! Where processes run: a pod, a node, the outside client.

use std::{
    fs,
    io::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::unix::process::CommandExt,
    path::PathBuf,
    process::{Child, Command},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::netns::Netns;

/// A network namespace and a control group, with the addresses by which others reach it.
#[derive(Clone, Debug)]
pub struct Host {
    /// Like `pod-1a`, `node-2` or `client`.
    pub name: String,
    /// Index of the node that it is or is on; none for the outside client.
    pub node: Option<usize>,
    /// Its network.
    pub netns: Netns,
    /// Its control group (v2).
    pub cgroup: PathBuf,
    /// Its IPv4 address.
    pub v4: Ipv4Addr,
    /// Its IPv6 address.
    pub v6: Ipv6Addr,
    /// The source ports that calls of its cluster have used.
    pub ports: SourcePorts,
}

/// Source ports that no two calls in a cluster share, outside of those that kernel and agent give out.
///
/// A source port that was used for a nodePort must not be used for one of its backends directly soon after: the answers look
/// the same. That limit is documented, and not the subject of these tests. It is for the whole cluster, because pods may be
/// seen as their node, with the port they have.
#[derive(Clone, Debug, Default)]
pub struct SourcePorts(Arc<[AtomicU32; 4]>);

impl SourcePorts {
    /// The first of some ports in a row.
    ///
    /// Families and protocols have nothing to do with each other, except that an IPv6 socket bound to no address keeps
    /// IPv4 from its port: at any one time the families are at different ends of the range.
    pub(super) fn take(&self, count: usize, ipv4: bool, tcp: bool) -> u16 {
        const FIRST: u32 = 33_000;
        const COUNT: u32 = 9_000;
        const FURTHER: u32 = 61_000;
        const FURTHER_COUNT: u32 = 4_500;
        let count = count as u32;
        let next = &self.0[usize::from(ipv4) * 2 + usize::from(tcp)];
        loop {
            let offset = if ipv4 { 0 } else { (COUNT + FURTHER_COUNT) / 2 };
            let first = (next.fetch_add(count, Ordering::Relaxed) + offset) % (COUNT + FURTHER_COUNT);
            if first + count <= COUNT {
                return (FIRST + first) as u16;
            }
            if (COUNT..=COUNT + FURTHER_COUNT - count).contains(&first) {
                return (FURTHER + first - COUNT) as u16;
            }
        }
    }
}

impl Host {
    /// Its address in the family of another address.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        if other.is_ipv4() { self.v4.into() } else { self.v6.into() }
    }

    /// Whether this is one of its addresses.
    pub fn owns(&self, address: IpAddr) -> bool {
        address == IpAddr::from(self.v4) || address == IpAddr::from(self.v6)
    }

    /// A command whose process will be in this network and control group.
    pub fn command(&self, program: &str) -> Result<Command> {
        let mut command = self.netns.command(program)?;
        let processes = self.cgroup.join("cgroup.procs");
        let file = fs::OpenOptions::new()
            .write(true)
            .open(&processes)
            .with_context(|| processes.display().to_string())?;
        // SAFETY: one write system call, from a constant: nothing allocates or locks.
        unsafe { command.pre_exec(move || (&file).write_all(b"0")) };
        Ok(command)
    }
}

/// A child process that ends when it is dropped.
#[derive(Debug)]
pub struct Process {
    child: Child,
}

impl Process {
    /// A child that is ended when this is dropped.
    pub fn new(child: Child) -> Self {
        Self { child }
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child itself.
    pub(crate) fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// Ends it with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to end with SIGTERM and waits until it has.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        self.child.wait()?;
        Ok(())
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        kill(Pid::from_raw(self.child.id() as i32), signal).context("cannot send a signal")
    }

    /// Leaves the process running, until the cluster is taken down.
    pub fn detach(self) {
        std::mem::forget(self);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A process that has already ended and been waited for is not an error here.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.kill();
        }
    }
}

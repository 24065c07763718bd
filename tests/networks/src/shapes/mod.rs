//! The shapes: how each connects the pods of two nodes, or the nodes to the external network.

mod cni;
mod ipsec;
mod metadata;
mod multipath;
mod routes;
mod tunnels;
mod uplinks;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;

use super::{FAMILIES, Network, Path};
use proxy_harness::cluster::addresses as addr;

/// A network between two nodes.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Its row in the table.
    pub name: &'static str,
    /// The missing capability of a kernel that cannot make it.
    pub(super) kind: &'static str,
    /// Whether it has IPv4, whether IPv6.
    pub(super) families: [bool; 2],
    /// Paths that it does not have.
    pub(super) without: &'static [Path],
    /// The address of `node-1` for nodePorts, if it is not the usual one.
    pub(super) node: Option<(Ipv4Addr, Ipv6Addr)>,
    /// Whether it is tried by SCTP instead of TCP and UDP.
    pub(super) is_sctp: bool,
    /// Whether nearly every kernel can make it.
    is_common: bool,
    /// Makes it.
    pub(super) make: fn(&Network) -> Result<()>,
    /// Removes the rest after the interfaces that it made are gone.
    pub(super) undo: fn(&Network) -> Result<()>,
}

impl Shape {
    const fn new(name: &'static str, kind: &'static str, make: fn(&Network) -> Result<()>) -> Self {
        Self {
            name,
            kind,
            families: [true, true],
            without: &[],
            node: None,
            is_sctp: false,
            is_common: false,
            make,
            undo: |_| Ok(()),
        }
    }

    const fn ipv4_only(mut self) -> Self {
        self.families = [true, false];
        self
    }

    const fn ipv6_only(mut self) -> Self {
        self.families = [false, true];
        self
    }

    const fn without(mut self, paths: &'static [Path]) -> Self {
        self.without = paths;
        self
    }

    const fn undo(mut self, undo: fn(&Network) -> Result<()>) -> Self {
        self.undo = undo;
        self
    }

    /// A shape of devices that nearly every kernel has: `cargo xtask test traffic` tries it by the machine's own, so short runs in
    /// virtual machines do without.
    const fn common(mut self) -> Self {
        self.is_common = true;
        self
    }

    /// Whether it is for short runs, too.
    #[must_use]
    pub fn is_for_short_runs(&self) -> bool {
        !self.is_common
    }

    /// The printed name of a cell.
    pub(super) fn cell(&self, path: Path, family: &str) -> String {
        format!("{} | {path} {family}", self.name)
    }

    /// The names of all cells that it has.
    pub(super) fn cells(&self) -> impl Iterator<Item = String> {
        let families = FAMILIES.into_iter().zip(self.families).filter(|(_, has)| *has);
        families.flat_map(move |(family, _)| {
            let paths = Path::ALL.into_iter().filter(|path| !self.without.contains(path));
            paths.map(move |path| self.cell(path, family))
        })
    }

    /// It is tried by SCTP. The node's own SCTP sockets are not served: the socket hooks are for TCP and UDP.
    const fn sctp(mut self) -> Self {
        self.is_sctp = true;
        self.without(&[Path::Node])
    }

    /// The address of `node-1` that clients use.
    pub(super) fn node_address(&self, is_ipv4: bool) -> IpAddr {
        let (v4, v6) = self.node.unwrap_or((addr::node_v4(0), addr::node_v6(0)));
        if is_ipv4 { v4.into() } else { v6.into() }
    }
}

/// For clusters with a route per pod.
pub const ROUTED: &[&[Shape]] =
    &[routes::ALL, multipath::ALL, tunnels::ALL, metadata::ALL, ipsec::ALL, uplinks::ALL, cni::ROUTED];

/// For clusters whose pods are ports of a bridge.
pub const BRIDGED: &[&[Shape]] = &[cni::BRIDGED];

//! Attached programs, and those of them that the kernel still has.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType};

use super::{Datapath, Hook, clsact};
use crate::net::filters::{Direction, Filter};

impl Datapath {
    /// The kernel's ids of our programs that are loaded; `None` where there are no TCX links.
    pub fn tcx_program_ids(&self) -> Option<BTreeSet<u32>> {
        self.object.features.tcx.then(|| self.object.program_ids())
    }

    /// Attached programs.
    pub fn hooks(&self) -> impl Iterator<Item = &Hook> {
        self.hooks.attached()
    }

    /// Whether any attached program serves clients outside.
    pub fn serves_outside(&self) -> bool {
        self.hooks.attached().any(|hook| hook.program.starts_with("uplink_"))
    }

    /// Links that could not be made, and why.
    pub fn failed_hooks(&self) -> impl Iterator<Item = (&String, &String)> {
        self.hooks.failed()
    }

    /// The TCX programs at an interface in the order they run: names of others', none for ours, which
    /// have these ids ([`Self::tcx_program_ids`]).
    pub fn tcx_programs(
        own: Option<&BTreeSet<u32>>,
        interface: &str,
        direction: Direction,
    ) -> Vec<Option<String>> {
        let Some(own) = own else { return Vec::new() };
        let direction = match direction {
            Direction::Ingress => TcAttachType::Ingress,
            Direction::Egress => TcAttachType::Egress,
        };
        // An interface that goes meanwhile has none.
        let (_, programs) = SchedClassifier::query_tcx(interface, direction).unwrap_or_default();
        let name = |program: ProgramInfo| program.name_as_str().unwrap_or_default().to_owned();
        programs.into_iter().map(|program| (!own.contains(&program.id())).then(|| name(program))).collect()
    }

    /// Whether a filter of the clsact qdisc is ours.
    pub fn is_own_filter(filter: &Filter) -> bool {
        clsact::is_own_filter(filter)
    }

    /// Links that others removed: they count as not attached from now on. Does not check filters.
    pub fn forget_lost_links(&mut self) -> Vec<Hook> {
        self.hooks.forget_lost_links(&self.object)
    }

    /// Programs attached by filters of the clsact qdisc, each with the index of its interface.
    pub fn filter_hooks(&self) -> Vec<(u32, Hook)> {
        self.hooks.filters()
    }

    /// Others removed a filter: it counts as not attached from now on.
    pub fn forget_filter(&mut self, index: u32, hook: &Hook) {
        self.hooks.forget_filter(index, hook);
    }

    /// Attaches the socket hooks to the same cgroup as before.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn attach_sockets_again(&mut self) -> Result<()> {
        let cgroup = self.cgroup.clone().context("no cgroup has socket hooks")?;
        self.hooks.attach_sockets(&mut self.object, &cgroup)
    }
}

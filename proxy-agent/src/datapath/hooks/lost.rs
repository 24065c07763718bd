//! Hooks that are no longer attached, and hooks that get other programs.

use std::{
    os::fd::AsFd as _,
    time::{Duration, Instant},
};

use anyhow::Result;
use aya::programs::TcAttachType;
use nix::net::if_::if_nametoindex;
use proxy_sys::bpf::{self, open_pinned};
use tracing::debug;

use super::{Hook, Hooks, index_of};
use crate::datapath::{
    clsact::{CLSACT, attach_clsact},
    link,
    object::Object,
};

impl Hooks {
    /// Hooks whose link the kernel no longer has, or that has another program. They count as not attached from now on. Hooks of
    /// interfaces that are gone are left out: they go with the topology.
    pub(in crate::datapath) fn forget_lost_links(&mut self, object: &Object) -> Vec<Hook> {
        let is_lost = |name: &str, hook: &Hook| {
            let is_there = || hook.is_of_sockets() || if_nametoindex(hook.at.as_str()).ok() == index_of(name);
            hook.how != CLSACT
                && !link::is_attached(&self.pins, name, object.program_id(&hook.program))
                && is_there()
        };
        let lost: Vec<String> = self
            .attached
            .iter()
            .filter(|(name, hook)| is_lost(name, hook))
            .map(|(name, _)| name.clone())
            .collect();
        lost.iter().filter_map(|name| self.attached.remove(name)).collect()
    }

    /// Gives everything that is attached the programs of another object, each at once, and attaches what waits. Returns the failed
    /// ones, which count as not attached from now on.
    pub(in crate::datapath) fn replace_programs(&mut self, object: &mut Object) -> Vec<Hook> {
        let mut lost = Vec::new();
        for (name, hook) in self.attached.clone() {
            if let Err(error) = self.replace_program(object, &name, &hook) {
                debug!("{} at {}: {error:#}", hook.program, hook.at);
                self.attached.remove(&name);
                lost.push(hook);
            }
        }
        while let Some(far) = Instant::now().checked_add(Duration::from_secs(3600))
            && self.has_pending()
        {
            self.work(object, far);
        }
        lost
    }

    fn replace_program(&self, object: &mut Object, name: &str, hook: &Hook) -> Result<()> {
        if hook.how == CLSACT {
            let is_ingress = name.ends_with("ingress");
            let direction = if is_ingress { TcAttachType::Ingress } else { TcAttachType::Egress };
            return attach_clsact(object, &hook.at, &hook.program, direction).map(drop);
        }
        let program = object.program(&hook.program)?;
        let link = open_pinned(&self.pins.link(name))?;
        Ok(bpf::link::update(link.as_fd(), program.as_fd())?)
    }

    /// Hooks attached by filters, with the index of the interface.
    pub(in crate::datapath) fn filters(&self) -> Vec<(u32, Hook)> {
        let filters = self.attached.iter().filter(|(_, hook)| hook.how == CLSACT);
        filters.filter_map(|(name, hook)| Some((index_of(name)?, hook.clone()))).collect()
    }

    /// A filter is gone.
    pub(in crate::datapath) fn forget_filter(&mut self, index: u32, hook: &Hook) {
        self.attached.retain(|name, other| {
            other != hook || !["ingress", "egress"].iter().any(|way| *name == format!("tc-{index}-{way}"))
        });
    }
}

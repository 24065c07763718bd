//! What the kernel still has of what was attached.

use anyhow::{Context as _, Result};

use super::{Datapath, Hook};

impl Datapath {
    /// What others removed: it counts as not attached from now on. Filters are not looked at.
    pub fn forget_lost_links(&mut self) -> Vec<Hook> {
        self.hooks.forget_lost_links(&self.object)
    }

    /// What is attached by filters of the clsact qdisc, each with the index of its interface.
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

//! IPv4 packets that are longer than their way: does the kernel's stack cut them?

use tracing::{info, warn};

use super::Agent;
use crate::net::{forwarding, topology::Topology, untracked};

impl Agent {
    /// Prepares the stack for packets that it is to cut, where uplinks differ in how long their packets are; false if there are none, or if
    /// the stack does not take them: then their senders are told.
    ///
    /// With IPsec policies, whose packets the stack must put together, and routes with encapsulation there is nothing of the kind.
    pub(super) fn prepare_fragments(&mut self, topology: &Topology) -> bool {
        let was_ready = self.topology.fragments;
        let lengths = || topology.uplinks.iter().map(|uplink| uplink.mtu).filter(|mtu| *mtu != 0);
        if topology.needs_stack() || lengths().min() == lengths().max() {
            if untracked::is_there_for_fragments()
                && let Err(error) = untracked::remove_for_fragments()
            {
                warn!("cannot remove the nftables table `proxy-agent-fragments`: {error}");
            }
            return false;
        }
        let ready = forwarding::accept_from_loopback().and_then(|()| Ok(untracked::ensure_for_fragments()?));
        match &ready {
            Ok(()) if !was_ready => info!(
                "IPv4 packets that are longer than the way to their endpoint are fragmented by the kernel's stack"
            ),
            Err(error) if !self.fragments_failed => info!(
                "IPv4 packets that are longer than the way to their endpoint are refused, not fragmented: {error:#}"
            ),
            _ => {}
        }
        self.fragments_failed = ready.is_err();
        ready.is_ok()
    }

    /// Is the rule that they need gone? Firewalls that load their rules anew remove those of others.
    pub(super) fn lost_rule_for_fragments(&self) -> bool {
        self.topology.fragments && !untracked::is_there_for_fragments()
    }
}

//! IPv4 packets that are longer than their way: does the kernel's stack cut them?

use tracing::{info, warn};

use super::InterfaceController;
use crate::net::{
    forwarding,
    topology::{Fragments, Topology},
    untracked,
};

impl InterfaceController {
    /// Prepares the stack for packets that it fragments, where uplinks or routes differ in their MTU. Returns those that it takes; the
    /// senders of others get ICMP errors.
    ///
    /// With IPsec policies and routes with an encapsulation it takes whole packets alone: there it must put fragments together.
    pub(super) fn prepare_fragments(&mut self, topology: &Topology) -> Fragments {
        let was_ready = self.topology.fragments == Fragments::All;
        let of_routes = || topology.hints.values().filter_map(|hint| hint.mtu);
        let mtus =
            || topology.uplinks.iter().map(|uplink| uplink.mtu).filter(|mtu| *mtu != 0).chain(of_routes());
        if topology.needs_stack() || mtus().min() == mtus().max() {
            if untracked::is_there_for_fragments()
                && let Err(error) = untracked::remove_for_fragments()
            {
                warn!("cannot remove the nftables table `proxy-agent-fragments`: {error}");
            }
            return if topology.needs_stack() { Fragments::Whole } else { Fragments::None };
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
        if ready.is_ok() { Fragments::All } else { Fragments::None }
    }

    /// Whether their rule is gone. Firewalls that reload their rules remove those of others.
    pub(super) fn lost_rule_for_fragments(&self) -> bool {
        self.topology.fragments == Fragments::All && !untracked::is_there_for_fragments()
    }
}

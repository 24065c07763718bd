//! Packets that only the kernel's IP stack can send: those to destinations of IPsec policies, and by routes with an encapsulation.

use std::collections::BTreeSet;

use ipnet::IpNet;
use tracing::{info, warn};

use super::InterfaceController;
use crate::net::{forwarding, topology::Topology, untracked, xfrm};

impl InterfaceController {
    /// Finds out what the stack must send, and lets it take packets from programs while anything is.
    pub(super) fn prepare_stack(&self, topology: &mut Topology) {
        topology.policies = self.ipsec_policies(&mut topology.network_warnings);
        let before = self.topology.needs_stack();
        if !topology.needs_stack() {
            if before {
                if let Err(error) = untracked::remove() {
                    warn!("cannot remove the nftables table `proxy-agent`: {error}");
                }
                info!(
                    "no IPsec policies and no routes with encapsulation any more: all packets bypass the kernel's stack"
                );
            }
            return;
        }
        if !before {
            info!(
                "found IPsec policies or routes with encapsulation: packets forwarded to their destinations go through \
                 the kernel's stack"
            );
        }
        if let Err(error) = forwarding::accept_from_loopback() {
            topology.network_warnings.push(format!(
                "{error:#}: services' packets to the destinations of IPsec policies and of routes with encapsulation are lost"
            ));
        }
        if let Err(error) = untracked::ensure() {
            topology.network_warnings.push(format!(
                "cannot make the nftables rule `iif lo notrack`: {error}; firewalls that drop packets INVALID to \
                 conntrack drop services' TCP packets that the kernel's stack must send"
            ));
        }
    }

    /// Destinations of IPsec policies; the previous ones if the kernel does not return them.
    fn ipsec_policies(&self, network_warnings: &mut Vec<String>) -> BTreeSet<IpNet> {
        xfrm::destinations().unwrap_or_else(|error| {
            network_warnings.push(format!(
                "cannot list IPsec policies: {error}; packets forwarded to remote endpoints may not obey them"
            ));
            self.topology.policies.clone()
        })
    }

    /// Whether the rule for packets through the stack is gone. Firewalls that reload their rules remove those of others.
    pub(super) fn lost_rule(&self) -> bool {
        self.topology.needs_stack() && !untracked::is_there()
    }
}

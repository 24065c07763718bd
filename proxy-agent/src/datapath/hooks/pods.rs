//! Programs at pods' interfaces, of which there may be many: attached and detached a few at a time.

use std::time::Instant;

use aya::programs::TcAttachType;
use tracing::{info, warn};

use super::{Hooks, link_name};
use crate::{
    datapath::{link, object::Object, rcu::Expedited},
    net::topology::PodPort,
};

/// A change that waits.
pub(super) enum Pending {
    Attach(PodPort),
    /// By the name of its link.
    Detach(String),
}

/// With more changes than these, grace periods are made short.
pub(super) const FEW: usize = 8;

/// Programs at the interface of a pod.
pub(in crate::datapath) const POD: [&str; 2] = ["pod_egress", "pod_ingress"];

impl Hooks {
    /// Whether [`Self::work`] has programs to attach.
    pub(in crate::datapath) fn attaches_to_pods(&self) -> bool {
        self.pending.iter().any(|change| matches!(change, Pending::Attach(_)))
    }

    /// Whether [`Self::work`] has anything to do.
    pub(in crate::datapath) fn has_pending(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether both programs are at the interface of a pod.
    pub(in crate::datapath) fn serves_pod(&self, index: u32) -> bool {
        // An interface may look like a pod's that was an uplink.
        [(true, "pod_ingress"), (false, "pod_egress")].into_iter().all(|(is_ingress, program)| {
            self.attached.get(&link_name(index, is_ingress)).is_some_and(|hook| hook.program == program)
        })
    }

    /// Attaches and detaches at pods' interfaces until it is done, or that time.
    pub(in crate::datapath) fn work(&mut self, object: &mut Object, until: Instant) {
        let _expedited = (self.pending.len() > FEW).then(Expedited::begin);
        let (mut attached, mut detached) = (0, 0);
        while let Some(change) = self.pending.pop_front() {
            match change {
                Pending::Attach(PodPort { index, name, .. }) => {
                    // Answers must be translated back before anything is translated forth.
                    self.tc(object, index, &name, "pod_egress", TcAttachType::Egress);
                    self.tc(object, index, &name, "pod_ingress", TcAttachType::Ingress);
                    attached += 1;
                }
                Pending::Detach(name) => {
                    match link::detach_now(&self.pins, &name) {
                        Ok(()) => drop(self.attached.remove(&name)),
                        Err(error) => warn!("{error:#}"),
                    }
                    detached += 1;
                }
            }
            if Instant::now() >= until {
                break;
            }
        }
        let left = self.pending.len();
        if attached > 0 {
            info!("attached programs at {attached} pod interfaces; {left} changes are left");
        }
        if detached > 0 {
            info!("detached {detached} programs from pod interfaces; {left} changes are left");
        }
    }
}

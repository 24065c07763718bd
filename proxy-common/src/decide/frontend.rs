//! Which service a destination belongs to, and who answers.

use super::{
    tables::{Step, Tables},
    verdict::DropReason,
};
use crate::{
    Family,
    layout::{
        backend::Backend,
        frontend::{FRONTEND_CLUSTER_IP, FrontendKey, Target},
        set::{Scope, SetRole},
    },
};

/// Whether there is somebody to answer.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Choice {
    /// The backend that was written.
    Made,
    /// The client must not use this frontend: nothing is translated.
    NotOurs,
    /// No endpoints.
    Nobody,
    /// A defect, counted.
    Broken,
}

/// The frontend of a destination: one with its address, else a nodePort if the address is the node's.
#[inline(always)]
pub(super) fn find<F: Family, T: Tables<F>>(
    tables: &T,
    addr: &F::Addr,
    port: u16,
    protocol: u8,
    is_node_loopback: bool,
) -> Option<Target> {
    if let Some(target) = tables.frontend(&FrontendKey::new(*addr, port, protocol)) {
        tables.step(Step::Frontend(target));
        return Some(target);
    }
    if tables.settings().is_nodeport(port)
        && (is_node_loopback || tables.node_address(addr).serves_nodeports())
        && let Some(target) = tables.frontend(&FrontendKey::new(F::UNSPECIFIED, port, protocol))
    {
        tables.step(Step::NodePort(target));
        return Some(target);
    }
    tables.step(Step::NoFrontend);
    None
}

/// Chooses a backend for a new flow or socket.
#[inline(always)]
pub(super) fn choose<F: Family, T: Tables<F>>(
    tables: &T,
    target: Target,
    scope: Scope,
    backend: &mut Backend<F>,
) -> Choice {
    let is_cluster_ip = target.flags() & FRONTEND_CLUSTER_IP != 0;
    if matches!(scope, Scope::External) && is_cluster_ip && !tables.settings().external_cluster_ips {
        tables.step(Step::ClusterIpFromOutside(target));
        return Choice::NotOurs;
    }
    let role = SetRole::of(is_cluster_ip, scope);
    let set = tables.set(target.service(), role);
    tables.step(Step::Set(role, set));
    if set.count() == 0 {
        return Choice::Nobody;
    }
    let Some(slot) = tables.backend(set.slot(tables.random())) else {
        tables.drop(DropReason::BadSlot);
        return Choice::Broken;
    };
    *backend = *slot;
    tables.step(Step::Backend(*backend));
    Choice::Made
}

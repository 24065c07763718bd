//! Finds the service that a destination belongs to, and the backend for the flow.

use super::{
    tables::{AffinityHandle as _, Step, Tables},
    verdict::DropReason,
};
use crate::{
    Family,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::Backend,
        counter::Counter,
        frontend::{FRONTEND_CLUSTER_IP, FrontendKey, Target},
        set::{Scope, SetPolicy},
    },
};

/// Result of the choice of a backend.
#[derive(Clone, Copy)]
#[repr(u32)]
pub(super) enum Choice {
    /// A backend was chosen and written.
    Made,
    /// The client must not use this frontend: the packet is not translated.
    NotOurs,
    /// No endpoints.
    Nobody,
    /// Endpoints, but none that the traffic policy allows here.
    NoLocalEndpoints,
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
    // One key for both: there is little stack.
    let mut key = FrontendKey::new(*addr, port, protocol);
    if let Some(target) = tables.frontend(&key) {
        tables.step(Step::Frontend(target));
        return Some(target);
    }
    if is_node_loopback || tables.node_address(addr).serves_nodeports() {
        key.addr = F::UNSPECIFIED;
        if let Some(target) = tables.frontend(&key) {
            tables.step(Step::NodePort(target));
            return Some(target);
        }
    }
    tables.step(Step::NoFrontend);
    None
}

/// Whether the address is a cluster IP, with any port.
#[inline(always)]
pub(super) fn is_cluster_ip<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr) -> bool {
    match tables.frontend(&FrontendKey::of_address(*addr)) {
        Some(target) if target.flags() & FRONTEND_CLUSTER_IP != 0 => {
            tables.step(Step::UndefinedPort(target));
            true
        }
        _ => false,
    }
}

/// Whether the address is a load balancer's, and not the node's.
#[inline(always)]
pub(super) fn is_load_balancer<F: Family, T: Tables<F>>(tables: &T, addr: &F::Addr) -> bool {
    tables
        .frontend(&FrontendKey::of_address(*addr))
        .is_some_and(|target| target.flags() & FRONTEND_CLUSTER_IP == 0)
}

/// Chooses a backend for a new flow or socket of a client: an address (unspecified for unbound sockets) in a
/// network namespace (0 for packets).
#[inline(always)]
pub(super) fn choose<F: Family, T: Tables<F>>(
    tables: &T,
    target: Target,
    scope: Scope,
    client: &F::Addr,
    netns: u64,
    backend: &mut Backend<F>,
) -> Choice {
    let is_cluster_ip = target.flags() & FRONTEND_CLUSTER_IP != 0;
    if matches!(scope, Scope::External) && is_cluster_ip && !tables.settings().external_cluster_ips {
        tables.step(Step::ClusterIpFromOutside(target));
        return Choice::NotOurs;
    }
    let service = target.service();
    let set_policy = SetPolicy::of(is_cluster_ip, scope);
    let set = tables.set(service, set_policy);
    tables.step(Step::BackendSet(set_policy, set));
    if set.count() == 0 {
        return if set.lacks_local_endpoints() { Choice::NoLocalEndpoints } else { Choice::Nobody };
    }
    let key = AffinityKey::new(*client, netns, service);
    if set.has_session_affinity() && keep(tables, &key, set_policy, backend) {
        return Choice::Made;
    }
    let Some(slot) = tables.backend(set.slot(tables.random())) else {
        tables.drop(DropReason::BadSlot);
        return Choice::Broken;
    };
    *backend = *slot;
    if set.has_session_affinity() {
        let affinity = Affinity {
            addr: backend.addr,
            port: backend.port,
            flags: backend.flags,
            backend: backend.id,
            last_used: tables.now(),
        };
        tables.remember_affinity(&key, &affinity);
    }
    tables.step(Step::Backend(*backend));
    Choice::Made
}

/// Gives a client its previous backend, if the affinity has not timed out and the backend is still in the set.
#[inline(always)]
fn keep<F: Family, T: Tables<F>>(
    tables: &T,
    key: &AffinityKey<F>,
    set_policy: SetPolicy,
    backend: &mut Backend<F>,
) -> bool {
    let Some(kept) = tables.affinity(key) else { return false };
    let now = tables.now();
    if now.wrapping_sub(kept.last_used) >= tables.affinity_timeout(key.service)
        || !tables.is_member(kept.backend, set_policy)
    {
        return false;
    }
    backend.addr = kept.addr;
    backend.port = kept.port;
    backend.flags = kept.flags;
    backend.id = kept.backend;
    kept.touch(now);
    tables.count(Counter::AffinityKept);
    tables.step(Step::Kept(*kept));
    true
}

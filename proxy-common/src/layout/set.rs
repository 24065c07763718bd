//! `backend_sets`: mmap-able ARRAY, written by the agent, read for each new flow and each connect.

use super::id::Id;

/// The side of the cluster that a client is on. Follows from the hook, never from an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Scope {
    /// A pod or this node.
    Internal = 0,
    /// Beyond an uplink.
    External = 1,
}

/// A backend set of a service port: traffic policies make the sets differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum SetPolicy {
    /// For the cluster IP: `internalTrafficPolicy` governs it.
    ClusterIp = 0,
    /// For every other frontend, from outside: `externalTrafficPolicy` governs it.
    External = 1,
    /// For every other frontend, from pods and this node: no traffic policy restricts it.
    Cluster = 2,
    /// Every endpoint that still serves, with or without new flows. Programs never choose from it; a starting
    /// agent reads the ids of all backends from it.
    Serving = 3,
}

impl SetPolicy {
    /// All policies.
    pub const ALL: [Self; 4] = [Self::ClusterIp, Self::External, Self::Cluster, Self::Serving];

    /// Elements of the array per service port: a power of two, so that indices are shifts, and one cache line.
    pub const STRIDE: u32 = 8;

    /// The policy's bit in [`super::backend::BackendState`].
    #[inline(always)]
    pub const fn bit(self) -> u8 {
        1 << self as u32
    }

    /// The policy for a frontend and a client.
    #[inline(always)]
    pub const fn of(is_cluster_ip: bool, scope: Scope) -> Self {
        match (is_cluster_ip, scope) {
            (true, _) => Self::ClusterIp,
            (false, Scope::External) => Self::External,
            (false, Scope::Internal) => Self::Cluster,
        }
    }
}

/// How to choose within a set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum BackendSetKind {
    /// Each backend once; any can be chosen.
    Uniform = 0,
    /// The same, but a client keeps the backend it had: see [`super::affinity`].
    SessionAffinity = 1,
    /// Empty because a traffic policy leaves no endpoint on this node, while other nodes have some: packets are
    /// dropped, not rejected, so that clients do not take the service for dead.
    NoLocalEndpoints = 2,
}

/// A slice of the backends array, packed into the one word that publishes it.
///
/// ```
/// use proxy_common::layout::set::{BackendSet, BackendSetKind};
///
/// let set = BackendSet::new(100, 3, BackendSetKind::Uniform);
/// assert_eq!((set.base(), set.count()), (100, 3));
/// // All random numbers choose one of its slots.
/// assert_eq!([0, u32::MAX / 2, u32::MAX].map(|random| set.slot(random)), [100, 101, 102]);
/// assert!(BackendSet::NO_LOCAL_ENDPOINTS.lacks_local_endpoints());
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(transparent)]
pub struct BackendSet(pub u64);

impl BackendSet {
    /// No endpoints.
    pub const EMPTY: Self = Self(0);

    /// Endpoints, but none on this node for these clients.
    pub const NO_LOCAL_ENDPOINTS: Self = Self::new(0, 0, BackendSetKind::NoLocalEndpoints);

    /// Maximum number of slots of a set.
    pub const MAX_COUNT: u32 = (1 << 24) - 1;

    /// `count` slots from `base` on.
    #[inline(always)]
    pub const fn new(base: u32, count: u32, kind: BackendSetKind) -> Self {
        Self((kind as u64) << 56 | ((count & Self::MAX_COUNT) as u64) << 32 | base as u64)
    }

    /// The first slot.
    #[inline(always)]
    pub const fn base(self) -> u32 {
        self.0 as u32
    }

    /// The number of slots.
    #[inline(always)]
    pub const fn count(self) -> u32 {
        (self.0 >> 32) as u32 & Self::MAX_COUNT
    }

    /// Whether clients keep their backend.
    #[inline(always)]
    pub const fn has_session_affinity(self) -> bool {
        self.0 >> 56 == BackendSetKind::SessionAffinity as u64
    }

    /// Whether it is [`BackendSet::NO_LOCAL_ENDPOINTS`].
    #[inline(always)]
    pub const fn lacks_local_endpoints(self) -> bool {
        self.0 >> 56 == BackendSetKind::NoLocalEndpoints as u64
    }

    /// The slot for a 32-bit random number or hash. The set must not be empty.
    #[inline(always)]
    pub const fn slot(self, random: u32) -> u32 {
        self.base().wrapping_add(((random as u64 * self.count() as u64) >> 32) as u32)
    }

    /// Index of a service port's set in the array.
    #[inline(always)]
    pub const fn index(service: Id, set_policy: SetPolicy) -> u32 {
        service.index() * SetPolicy::STRIDE + set_policy as u32
    }

    /// Index of a service port's affinity timeout in the array, a separate word beside its sets: jiffies since
    /// the client's last new flow.
    #[inline(always)]
    pub const fn affinity_index(service: Id) -> u32 {
        service.index() * SetPolicy::STRIDE + SetPolicy::ALL.len() as u32
    }
}

super::plain!(BackendSet);

const _: () = assert!(size_of::<BackendSet>() == 8);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_choice_is_within_the_slice(base in 0u32..1 << 30, count in 1..BackendSet::MAX_COUNT, random in any::<u32>()) {
            let set = BackendSet::new(base, count, BackendSetKind::Uniform);
            prop_assert_eq!((set.base(), set.count()), (base, count));
            prop_assert!((base..base + count).contains(&set.slot(random)));
        }
    }

    #[test]
    fn choices_reach_both_ends() {
        let set = BackendSet::new(10, 3, BackendSetKind::Uniform);
        assert_eq!((set.slot(0), set.slot(u32::MAX)), (10, 12));
    }
}

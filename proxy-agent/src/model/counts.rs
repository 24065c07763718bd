//! Sums over all plans, updated with each change, not counted again.

use super::{
    objects::Protocol,
    plan::{IpFamily, ServicePlan},
};

/// Service ports that have endpoints, but none that a `Local` policy allows on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NoLocalEndpoints {
    /// By `internalTrafficPolicy`.
    pub internal: usize,
    /// By `externalTrafficPolicy`.
    pub external: usize,
}

/// How many service ports there are that something depends on.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    no_local_endpoints: [NoLocalEndpoints; 2],
    sctp: usize,
    with_source_ranges: usize,
}

impl Counts {
    /// A plan is in effect.
    pub(crate) fn add(&mut self, plan: &ServicePlan) {
        self.change(plan, |count, by| *count += by);
    }

    /// A plan that was added no longer is.
    pub(crate) fn remove(&mut self, plan: &ServicePlan) {
        self.change(plan, |count, by| *count -= by);
    }

    /// The counts of a family.
    pub(crate) fn no_local_endpoints(&self, family: IpFamily) -> NoLocalEndpoints {
        self.no_local_endpoints[family as usize]
    }

    /// Service ports of SCTP.
    pub(crate) fn sctp(&self) -> usize {
        self.sctp
    }

    /// Service ports whose load balancer addresses have source ranges.
    pub(crate) fn with_source_ranges(&self) -> usize {
        self.with_source_ranges
    }

    fn change(&mut self, plan: &ServicePlan, change: impl Fn(&mut usize, usize)) {
        for port in &plan.ports {
            let lacking = &mut self.no_local_endpoints[port.name.family as usize];
            change(&mut lacking.internal, port.lacks_internal().into());
            change(&mut lacking.external, port.lacks_external().into());
            change(&mut self.sctp, (port.name.protocol == Protocol::Sctp).into());
            change(&mut self.with_source_ranges, port.sources.is_some().into());
        }
    }
}

//! Filters of the clsact qdisc, on kernels without TCX links.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, bail};
use aya::programs::{
    TcAttachType,
    tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle, qdisc_add_clsact},
};
use nix::net::if_::if_nametoindex;

use super::{link::Attached, object::Object};
use crate::net::{
    filters::{Direction, Filter},
    qdisc,
    topology::Topology,
};

/// [`Hook::how`](super::Hook::how) of filters.
pub(super) const CLSACT: &str = "clsact";
/// Before every program of a CNI; 0 would let the kernel choose.
const CLSACT_PRIORITY: u16 = 1;
/// Marks our filters, so that a later agent finds them.
const CLSACT_HANDLE: TcHandle = TcHandle::new(0, 0x7078);

/// Whether it is one of ours.
pub(super) fn is_own_filter(filter: &Filter) -> bool {
    let is_name = ["uplink_", "pod_"].iter().any(|start| filter.name.starts_with(start));
    is_name && (filter.priority, filter.handle) == (CLSACT_PRIORITY, u32::from(CLSACT_HANDLE))
}

/// Attaches by a filter of the clsact qdisc, which outlives the agent by itself; replaces an earlier agent's.
pub(super) fn attach_clsact(
    object: &mut Object,
    interface: &str,
    program: &str,
    direction: TcAttachType,
) -> Result<Attached> {
    object.program(program)?;
    if let Err(error) = qdisc_add_clsact(interface) {
        let exists = match &error {
            TcError::NetlinkError(error) => error.raw_os_error() == Some(libc::EEXIST),
            error => matches!(error, TcError::AlreadyAttached),
        };
        if !exists {
            return Err(error).context("cannot add a clsact qdisc");
        }
        // A filter for egress would land among those for ingress, without an error.
        let index = if_nametoindex(interface).context("no such interface")?;
        if let Some(kind) = qdisc::at_ingress(index).context("cannot look at the qdiscs")?
            && kind != "clsact"
        {
            bail!(
                "another program has made a qdisc `{kind}` in the place of clsact, which has no egress: `tc qdisc del dev \
                 {interface} {kind}` removes it, and Linux 6.6 needs none"
            );
        }
    }
    let program = object.classifier(program)?;
    let options = TcAttachOptions::Netlink(NlOptions {
        priority: CLSACT_PRIORITY,
        handle: CLSACT_HANDLE,
        ..NlOptions::default()
    });
    let (link, attached) = match program.attach_with_options(interface, direction, options) {
        Ok(id) => (program.take_link(id)?, Attached::New),
        // An earlier agent's filter exists.
        Err(_) => {
            let there =
                SchedClassifierLink::attached(interface, direction, CLSACT_PRIORITY, CLSACT_HANDLE, None)?;
            let id = program.attach_to_link(there)?;
            (program.take_link(id)?, Attached::Updated)
        }
    };
    // Dropping the link would remove the filter.
    std::mem::forget(link);
    Ok(attached)
}

/// Removes an earlier agent's filters at interfaces that are not in the topology: filters leave no pin to find them by.
pub(super) fn detach_stale_clsact(topology: &Topology) {
    let uplinks = topology.uplinks.iter().map(|uplink| uplink.name.as_str());
    let wanted: BTreeSet<&str> = uplinks.chain(topology.pods.iter().map(|pod| pod.name.as_str())).collect();
    let Ok(interfaces) = nix::net::if_::if_nameindex() else { return };
    let names = interfaces.iter().filter_map(|interface| interface.name().to_str().ok());
    names.filter(|name| !wanted.contains(name)).for_each(detach_clsact);
}

/// Removes our filter from one direction of an interface.
pub(super) fn detach_filter(interface: &str, direction: Direction) -> Result<()> {
    let direction = match direction {
        Direction::Ingress => TcAttachType::Ingress,
        Direction::Egress => TcAttachType::Egress,
    };
    // Dropping a link to a filter removes it.
    SchedClassifierLink::attached(interface, direction, CLSACT_PRIORITY, CLSACT_HANDLE, None)
        .map(drop)
        .with_context(|| format!("cannot detach the filter from {interface}"))
}

/// Removes our clsact filters from an interface.
pub(super) fn detach_clsact(interface: &str) {
    for direction in [TcAttachType::Ingress, TcAttachType::Egress] {
        // Dropping a link to a filter removes it; where there is none there is nothing to do.
        if let Ok(link) =
            SchedClassifierLink::attached(interface, direction, CLSACT_PRIORITY, CLSACT_HANDLE, None)
        {
            drop(link);
        }
    }
}

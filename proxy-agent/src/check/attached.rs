//! Reads which programs are at the hooks that the agent uses: socket hooks of the cgroup root, tc and XDP of interfaces.

use std::{collections::BTreeMap, path::Path};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::link::{LinkAttribute, LinkXdp};
use rtnetlink::Handle;

use super::foreign::{Hook, Kind, Program, named};
use crate::{
    datapath::{Datapath, XdpMode, pins::Pins, survey},
    net::{
        filters::{self, Direction},
        topology::Topology,
    },
};

/// All of them that have programs.
///
/// # Errors
/// The kernel's.
pub(super) async fn read(
    netlink: &Handle,
    cgroup: Option<&Path>,
    has_socket_storage: bool,
    topology: &Topology,
    pins: &Pins,
    xdp: XdpMode,
) -> Result<Vec<Hook>> {
    let (own, names) = (survey::own_programs(pins), survey::program_names().context("cannot list programs")?);
    let mut hooks = Vec::new();
    if let Some(cgroup) = cgroup {
        let found = survey::cgroup_hooks(cgroup, has_socket_storage)
            .with_context(|| format!("cannot read the programs of {}", cgroup.display()))?;
        hooks.extend(found.into_iter().map(|hook| Hook {
            at: format!("{} of the cgroup root", hook.name),
            kind: Kind::Cgroup { has_room: hook.has_room },
            programs: named(&hook.ids, &names, &own),
        }));
    }
    let of_xdp = xdp_programs(netlink).await?;
    let uplinks = topology.uplinks.iter().map(|uplink| (uplink.index, uplink.name.as_str()));
    let pods = topology.pods.iter().map(|pod| (pod.index, pod.name.as_str()));
    for (index, interface) in uplinks.chain(pods) {
        for direction in [Direction::Ingress, Direction::Egress] {
            let mut programs: Vec<Program> = Datapath::tcx_programs(Some(&own), interface, direction)
                .into_iter()
                .map(|name| Program { is_ours: name.is_none(), name: name.unwrap_or_default() })
                .collect();
            // One without a clsact qdisc has no filters.
            let filters = filters::read(netlink, index, direction).await.unwrap_or_default();
            programs.extend(filters.into_iter().map(|filter| Program {
                is_ours: Datapath::is_own_filter(&filter),
                name: format!("{} (clsact, priority {})", filter.name, filter.priority),
            }));
            hooks.push(Hook { at: format!("{direction} of {interface}"), kind: Kind::Tc, programs });
        }
    }
    for uplink in &topology.uplinks {
        if let Some(id) = of_xdp.get(&uplink.index) {
            let is_wanted = uplink.may_have_xdp && xdp != XdpMode::Off;
            hooks.push(Hook {
                at: format!("XDP of {}", uplink.name),
                kind: Kind::Xdp { is_wanted, is_required: xdp != XdpMode::Auto },
                programs: named(&[*id], &names, &own),
            });
        }
    }
    hooks.retain(|hook| !hook.programs.is_empty());
    Ok(hooks)
}

/// Ids of XDP programs by the indexes of interfaces.
async fn xdp_programs(netlink: &Handle) -> Result<BTreeMap<u32, u32>> {
    let mut found = BTreeMap::new();
    let mut links = netlink.link().get().execute();
    while let Some(link) = links.try_next().await.context("cannot list interfaces")? {
        let of_xdp = link.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::Xdp(of_xdp) => Some(of_xdp),
            _ => None,
        });
        let id = of_xdp.flatten().find_map(|attribute| match attribute {
            LinkXdp::ProgId(id) => Some(*id),
            _ => None,
        });
        if let Some(id) = id {
            found.insert(link.header.index, id);
        }
    }
    Ok(found)
}

//! tc programs of others at the interfaces that have ours: the order in which they run is logged.

use std::collections::{BTreeMap, BTreeSet};

use rtnetlink::Handle;
use tracing::{debug, info, warn};

use super::InterfaceController;
use crate::{
    datapath::Datapath,
    net::{
        filters::{self, Direction},
        interfaces,
    },
};

/// Ours, among others.
const OURS: &str = "ours";

impl InterfaceController {
    /// Reads, in the background, the programs of others at interfaces that have ours since now, and logs them, once for all
    /// interfaces with the same ones.
    pub(super) fn find_foreign_programs(&mut self, datapath: &Datapath) {
        let topology = &self.topology;
        let uplinks = topology.uplinks.iter().map(|uplink| (uplink.index, &uplink.name, false));
        let pods = topology.pods.iter().map(|pod| (pod.index, &pod.name, true));
        let all: Vec<(u32, &String, bool)> = uplinks.chain(pods).collect();
        self.searched.retain(|index| all.iter().any(|(there, ..)| there == index));
        let new = all.into_iter().filter(|(index, ..)| self.searched.insert(*index));
        let new: Vec<Interface> =
            new.map(|(index, name, is_pod)| Interface { index, name: name.clone(), is_pod }).collect();
        if !new.is_empty() {
            // By a separate socket: the kernel runs one dump at a time per socket (EBUSY, `__netlink_dump_start`).
            match interfaces::connect() {
                Ok(netlink) => drop(tokio::spawn(search(netlink, datapath.tcx_program_ids(), new))),
                Err(error) => warn!("{error:#}"),
            }
        }
    }
}

struct Interface {
    index: u32,
    name: String,
    is_pod: bool,
}

async fn search(netlink: Handle, own: Option<BTreeSet<u32>>, interfaces: Vec<Interface>) {
    let mut found: BTreeMap<(bool, Direction, String), Vec<String>> = BTreeMap::new();
    for Interface { index, name, is_pod } in interfaces {
        for direction in [Direction::Ingress, Direction::Egress] {
            let programs = programs(&netlink, own.as_ref(), index, &name, direction).await;
            if programs.iter().any(|program| program != OURS) {
                found.entry((is_pod, direction, programs.join(", "))).or_default().push(name.clone());
            }
        }
    }
    for ((is_pod, direction, order), interfaces) in found {
        let interfaces = interfaces.join(", ");
        if is_pod && direction == Direction::Egress {
            warn!(
                "others have tc programs where packets leave to pods, at {interfaces}; in the order they run: {order}. \
                 Programs behind ours see the service as the source of a reply. If the CNI does not support that, use \
                 `--pod-datapath socket`"
            );
        } else {
            info!(
                "others have tc programs at the {direction} of {interfaces}; in the order they run: {order}"
            );
        }
    }
}

/// The running programs, in this order: TCX before filters. Unreadable ones are left out.
async fn programs(
    netlink: &Handle,
    own: Option<&BTreeSet<u32>>,
    index: u32,
    interface: &str,
    direction: Direction,
) -> Vec<String> {
    let mut programs = Vec::new();
    for program in Datapath::tcx_programs(own, interface, direction) {
        programs.push(program.map_or_else(|| OURS.to_owned(), |name| format!("`{name}` (tcx)")));
    }
    match filters::read(netlink, index, direction).await {
        Ok(filters) => programs.extend(filters.into_iter().map(|filter| {
            if Datapath::is_own_filter(&filter) {
                OURS.to_owned()
            } else {
                format!("`{}` (clsact, priority {})", filter.name, filter.priority)
            }
        })),
        Err(error) => debug!("{interface}: {error:#}"),
    }
    programs
}

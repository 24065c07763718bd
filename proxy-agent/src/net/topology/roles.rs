//! The role of an interface: leading off the node, leading to a pod, or neither. Pure.

use std::{
    collections::{HashMap, HashSet},
    net::IpAddr,
};

use super::TopologyConfig;
use crate::net::interfaces::Interface;

/// The role of an interface in the data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Leads off the node: by a default route, with the node's address, or because it was named.
    Uplink,
    /// Its packets go to other nodes within packets of another interface.
    Overlay,
    /// A port of a bridge that is an [`Role::Uplink`].
    Port,
    /// Any other interface that may lead off the node: clients, load balancers and pods of other nodes may be behind it.
    Further,
    /// The node's side of a pod's interface.
    Pod,
    /// No program is attached there.
    Idle,
}

/// Kinds of interface whose packets go to other nodes in packets of another interface.
const OVERLAYS: [&str; 9] = ["vxlan", "geneve", "ipip", "sit", "gre", "ip6gre", "ip6tnl", "wireguard", "tun"];

/// No packet comes or leaves there that another interface does not have: packets sent by a `dummy` are lost, an `ifb` has those of
/// others, a `vrf`'s packets come and leave by its slaves, and the rest does not carry IP.
const IDLE: [&str; 7] = ["dummy", "ifb", "vrf", "nlmon", "can", "vcan", "vxcan"];

/// Masters whose slaves hand every packet to them: a packet seen at the slave is seen at the master.
const AGGREGATES: [&str; 2] = ["bond", "team"];

/// Ports of its datapath that the node itself uses ("internal"), and the datapath.
const SWITCH: &str = "openvswitch";

/// One end of a pair, of which a pod has the other.
const PAIRS: [&str; 2] = ["veth", "netkit"];

/// All interfaces, and the facts that decide their roles.
pub(super) struct Roles<'a> {
    topology_config: &'a TopologyConfig,
    node_addresses: &'a [IpAddr],
    by_index: HashMap<u32, &'a Interface>,
    /// Indexes of interfaces that others (VLANs, macvlan devices) send their frames by.
    parents: HashSet<u32>,
    /// Indexes of bridges with a port that does not lead to a pod.
    bridging: HashSet<u32>,
    /// MACs of internal ports of openvswitch that are uplinks.
    switched: HashSet<&'a [u8]>,
}

impl<'a> Roles<'a> {
    pub(super) fn new(
        interfaces: impl Iterator<Item = &'a Interface> + Clone,
        node_addresses: &'a [IpAddr],
        topology_config: &'a TopologyConfig,
    ) -> Self {
        let standing = interfaces.clone().filter(|interface| !is_overlay(interface) && interface.parent != 0);
        let mut roles = Self {
            topology_config,
            node_addresses,
            by_index: interfaces.clone().map(|interface| (interface.index, interface)).collect(),
            parents: standing.map(|interface| interface.parent).collect(),
            bridging: HashSet::new(),
            switched: HashSet::new(),
        };
        let internal = interfaces.clone().filter(|port| port.kind == SWITCH && roles.is_uplink(port));
        roles.switched = internal.map(|port| port.mac.as_slice()).collect();
        let ports = interfaces
            .filter(|interface| interface.master != 0 && interface.is_up && !roles.is_pod(interface));
        roles.bridging = ports.map(|port| port.master).collect();
        roles
    }

    pub(super) fn of(&self, interface: &Interface) -> Role {
        if interface.is_loopback {
            return Role::Idle;
        }
        if self.is_uplink(interface) {
            return Role::Uplink;
        }
        let master = self.by_index.get(&interface.master).copied();
        if master.is_some_and(|master| master.kind == "bridge" && self.is_uplink(master)) {
            return if is_overlay(interface) { Role::Overlay } else { Role::Port };
        }
        if self.is_pod(interface) {
            return self.pod(interface);
        }
        if is_overlay(interface) {
            return Role::Overlay;
        }
        if self.is_further(interface, master) { Role::Further } else { Role::Idle }
    }

    /// The index of a master that is a bridge, or 0.
    pub(super) fn bridge(&self, interface: &Interface) -> u32 {
        let master = self.by_index.get(&interface.master);
        if master.is_some_and(|master| master.kind == "bridge") { interface.master } else { 0 }
    }

    fn is_uplink(&self, interface: &Interface) -> bool {
        let configured = &self.topology_config.uplinks;
        !interface.is_loopback
            && if configured.is_empty() {
                let is_node = |ip: &IpAddr| self.node_addresses.contains(ip);
                let leads = interface.has_default_route || interface.addresses.iter().any(is_node);
                leads && !IDLE.contains(&interface.kind.as_str())
            } else {
                configured.contains(&interface.name)
            }
    }

    /// How pairs are recognised: the other end is a pod's if it is in another network namespace, and no sign shows that it leads
    /// further than to a pod. A CNI gives its end no address, or one that is the gateway of this pod alone.
    fn is_pod(&self, interface: &Interface) -> bool {
        let is_configured =
            self.topology_config.pod_interfaces.iter().any(|pattern| matches(pattern, &interface.name));
        is_configured
            || interface.peer_namespace.is_some()
                && PAIRS.contains(&interface.kind.as_str())
                && !self.is_uplink(interface)
                && !interface.has_network
                && !interface.has_gateway
                && !self.parents.contains(&interface.index)
                && !self.is_aggregated(interface)
                && !self.is_below_switch(interface)
    }

    fn pod(&self, interface: &Interface) -> Role {
        let patterns = &self.topology_config.pod_interfaces;
        let is_wanted = if patterns.is_empty() {
            interface.kind == "veth"
        } else {
            patterns.iter().any(|pattern| matches(pattern, &interface.name))
        };
        if is_wanted && interface.has_link_header { Role::Pod } else { Role::Idle }
    }

    fn is_aggregated(&self, interface: &Interface) -> bool {
        let master = self.by_index.get(&interface.master);
        master.is_some_and(|master| AGGREGATES.contains(&master.kind.as_str()))
    }

    /// Whether it is the way out of a switch that has the node's address. All ports of all bridges have the same master, but a bridge's
    /// internal port has the MAC of one of its ports, which is the way out if there are no pods (`br-ex` of OVN-Kubernetes).
    fn is_below_switch(&self, interface: &Interface) -> bool {
        let master = self.by_index.get(&interface.master);
        master.is_some_and(|master| master.kind == SWITCH) && self.switched.contains(interface.mac.as_slice())
    }

    fn is_further(&self, interface: &Interface, master: Option<&Interface>) -> bool {
        if !self.topology_config.uplinks.is_empty()
            || !interface.is_up
            || IDLE.contains(&interface.kind.as_str())
        {
            return false;
        }
        match master {
            // Its ports have already seen the packets that come to this node, as far as the ports lead off it, but the frames are
            // for the bridge.
            Some(master) if master.kind == "bridge" => self.is_further(master, None),
            Some(master) if master.kind != "vrf" => false,
            // A bridge of pods alone is theirs.
            _ if interface.kind == "bridge" => {
                let is_addressed = !interface.addresses.is_empty() || !interface.narrow_addresses.is_empty();
                interface.has_gateway || is_addressed && self.bridging.contains(&interface.index)
            }
            _ => true,
        }
    }
}

fn is_overlay(interface: &Interface) -> bool {
    OVERLAYS.contains(&interface.kind.as_str())
}

/// A name, or the beginning of one followed by `*`.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

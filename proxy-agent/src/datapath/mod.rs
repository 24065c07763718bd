//! The data path, seen from the agent: maps, programs, and where they are attached. aya and bpf(2) end here.

pub mod address;
mod array;
pub(crate) mod by_use;
mod checks;
mod clsact;
mod cluster_maps;
mod denied;
mod destinations;
mod filter;
pub(crate) mod flows;
mod grow;
pub(crate) mod growth_signals;
mod hash;
mod hooks;
mod ids;
mod kernel_log;
mod leftovers;
mod link;
pub(crate) mod live;
pub(crate) mod locked_memory;
pub(crate) mod mailbox;
mod map_types;
pub mod maps;
pub(crate) mod next_hops;
mod object;
mod object_config;
pub(crate) mod outbound;
mod packet_pods;
pub mod peer_cells;
pub mod pins;
mod prepared;
mod rcu;
pub(crate) mod reply_filter;
pub mod room;
pub mod services;
pub(crate) mod sizes;
mod slices;
mod socket_reader;
pub(crate) mod survey;
pub(crate) mod synced;
mod table;
pub(crate) mod verdict;
pub(crate) mod watch;

use std::{
    collections::{BTreeSet, HashMap},
    net::IpAddr,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use proxy_common::{
    V4, V6,
    layout::{
        config::MAX_SNAT_SOURCES,
        counter::Counter,
        device::{
            DEVICE_DESTINATIONS, DEVICE_FRAGMENTS, DEVICE_FRAGMENTS_WHOLE, DEVICE_GRE, DEVICE_L3,
            DEVICE_RULES, DEVICE_UPLINK, DEVICE_XDP_REDIRECT, Device, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT,
        },
    },
};
use tracing::{debug, info, warn};

pub use grow::{Grown, Growth, Larger};
pub(crate) use hooks::link_name;
pub use hooks::{Hook, XdpMode};
pub use leftovers::Leftover;
pub use object::{Features, Loaded};
pub use object_config::{KernelLogLevel, ObjectConfig, Reject};
pub use prepared::Prepared;
pub use services::{LostFrontend, Services};
pub use socket_reader::{Kept, SocketReader};
pub use verdict::MonitorVerdict;

use self::{
    address::UserFamily as _, cluster_maps::ClusterMaps, hooks::Hooks, maps::MapFamily, object::Object,
    packet_pods::PacketPods, pins::Pins,
};
use crate::net::topology::{Fragments, Topology};

/// The running data path of this node.
pub struct Datapath {
    config: ObjectConfig,
    pins: Pins,
    object: Object,
    hooks: Hooks,
    cluster_maps: ClusterMaps,
    packet_pods: PacketPods,
    /// The cgroup with the socket hooks.
    cgroup: Option<PathBuf>,
    /// The services in the maps.
    pub services: Services,
}

impl Datapath {
    /// Loads the programs, for any node, and takes over the maps of an earlier agent.
    ///
    /// # Errors
    /// When the kernel or its permissions do not allow it; with advice.
    pub fn open(config: &ObjectConfig, pins: &Pins, xdp: XdpMode) -> Result<Self> {
        Self::open_prepared(Prepared::maps_only(config, pins, None)?, config, pins, xdp)
    }

    /// The same with programs that were loaded for it.
    ///
    /// # Errors
    /// When the maps cannot be read.
    pub fn open_prepared(
        prepared: Prepared,
        config: &ObjectConfig,
        pins: &Pins,
        xdp: XdpMode,
    ) -> Result<Self> {
        pins.remove_larger()?;
        let Prepared { object, .. } = prepared;
        maps::write_settings(pins, config.stored())?;
        let services = services::Maps::open(pins)
            .and_then(|maps| Services::restore(maps, generation()))
            .context("cannot read the pinned maps")?;
        let cluster_maps = ClusterMaps::open(pins).context("cannot read the pinned maps")?;
        let packet_pods = PacketPods::open(pins).context("cannot read the pinned maps")?;
        let hooks = Hooks::new(pins.clone(), xdp);
        let (config, pins) = (config.clone(), pins.clone());
        Ok(Self { config, pins, object, hooks, cluster_maps, packet_pods, cgroup: None, services })
    }

    /// Features of this kernel.
    pub fn features(&self) -> Features {
        self.object.features
    }

    /// Reads what connected sockets store; `None` on kernels without socket storage, where the programs write it
    /// to the maps `sockets_v4` and `sockets_v6`.
    ///
    /// # Errors
    /// When the kernel refuses the programs.
    pub fn socket_reader(&mut self) -> Result<Option<SocketReader>> {
        self.features().sk_storage.then(|| SocketReader::load(&mut self.object)).transpose()
    }

    /// Attaches the socket hooks to everything below a cgroup.
    pub fn attach_sockets(&mut self, cgroup: &Path) -> Result<()> {
        warn_if_not_root(cgroup);
        self.cgroup = Some(cgroup.to_owned());
        self.hooks.attach_sockets(&mut self.object, cgroup)
    }

    /// Follows the node's network: devices, addresses, programs at interfaces.
    ///
    /// # Errors
    /// When a map cannot be written. Programs that cannot be attached are logged and tried again the next time.
    pub fn follow(&mut self, topology: &Topology) -> Result<()> {
        self.write_sources(topology)?;
        let native = self.hooks.attach_interfaces(&mut self.object, topology);
        self.write_network(topology, &native)
    }

    /// Writes the state of the node's network that programs need before they are attached.
    ///
    /// # Errors
    /// When a map cannot be written.
    pub fn fill(&mut self, topology: &Topology) -> Result<()> {
        self.write_sources(topology)?;
        self.write_network(topology, &BTreeSet::new())
    }

    fn write_sources(&mut self, topology: &Topology) -> Result<()> {
        self.write_snat_sources::<V4>(topology)?;
        self.write_snat_sources::<V6>(topology)?;
        // First: the programs record packets that leave from there.
        self.services.set_snat_sources(topology.snat_sources.clone());
        Ok(())
    }

    fn write_network(&mut self, topology: &Topology, native: &BTreeSet<u32>) -> Result<()> {
        // New ones before a device needs them, old ones when no device needs them any more.
        let stale_v4 = destinations::write::<V4>(&self.pins, topology)?;
        let stale_v6 = destinations::write::<V6>(&self.pins, topology)?;
        self.write_devices(topology, native)?;
        stale_v4.remove()?;
        stale_v6.remove()?;
        self.write_node_addresses::<V4>(topology)?;
        self.write_node_addresses::<V6>(topology)?;
        self.services.set_node_addresses(topology.nodeport_addresses.clone());
        Ok(())
    }

    /// Sets the ranges of Services' addresses: packets to an address in them that no Service has go no
    /// further. At most [`ServiceCidrs::MAX`] ranges of a family are used; for the rest a warning is logged.
    ///
    /// # Errors
    /// When a map cannot be written.
    ///
    /// [`ServiceCidrs::MAX`]: proxy_common::layout::cidr::ServiceCidrs::MAX
    pub fn set_service_cidrs(&mut self, ranges: &[IpNet]) -> Result<()> {
        self.cluster_maps.set_service_cidrs(ranges)
    }

    /// Sets the addresses from which network namespaces send, by their cookies: the first of each family counts. Needed
    /// for frontends with source ranges only. Namespaces that are not named are forgotten.
    ///
    /// # Errors
    /// When a map cannot be written; the others are.
    pub fn set_netns_addresses(&mut self, addresses: &HashMap<u64, Vec<IpAddr>>) -> Result<()> {
        self.cluster_maps.set_netns_addresses(addresses)
    }

    /// Cookies of the network namespaces whose sockets are left alone.
    pub fn packet_pods(&self) -> &BTreeSet<u64> {
        self.packet_pods.known()
    }

    /// Leaves the sockets of these network namespaces alone, by their cookies, and of no others.
    ///
    /// # Errors
    /// When the map cannot be written; the other entries are.
    pub fn set_packet_pods(&mut self, cookies: &BTreeSet<u64>) -> Result<()> {
        self.packet_pods.set(cookies)
    }

    /// Takes over programs that were loaded meanwhile; false if they are for maps that were replaced since.
    pub fn add(&mut self, loaded: Loaded) -> bool {
        self.object.add(loaded)
    }

    /// Whether programs must be attached to or detached from pods' interfaces.
    pub fn has_pending_hooks(&self) -> bool {
        self.hooks.has_pending()
    }

    /// Does that, until it is done or that time has come.
    pub fn attach_pending_hooks(&mut self, until: Instant) {
        self.hooks.work(&mut self.object, until);
    }

    /// Whether packets are translated at the interface of a pod.
    pub fn serves_packets_of(&self, index: u32) -> bool {
        self.hooks.serves_pod(index)
    }

    /// The programs' counters, summed over CPUs.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn counters(&self) -> Result<Vec<(Counter, u64)>> {
        maps::counters(&self.pins)
    }

    /// Removes the entries of killed watches: see [`watch`].
    pub fn remove_expired_watches(&self) {
        if let Err(error) = watch::remove_expired(&self.pins) {
            debug!("cannot look after watches: {error:#}");
        }
    }

    /// Prints the programs' log records, from now on.
    pub fn follow_kernel_log(&mut self) -> Result<()> {
        kernel_log::follow(&mut self.object)
    }

    fn write_devices(&self, topology: &Topology, native: &BTreeSet<u32>) -> Result<()> {
        let map = maps::interfaces(&self.pins)?;
        let mut wanted: Vec<(u32, Device)> = Vec::new();
        for uplink in &topology.uplinks {
            let mut device =
                Device { flags: DEVICE_UPLINK, bridge: uplink.bridge, mtu: uplink.mtu, ..Device::default() };
            if !uplink.has_link_header {
                device.flags |= DEVICE_L3;
            }
            if !topology.policies.is_empty() || !topology.hints.is_empty() {
                device.flags |= DEVICE_DESTINATIONS;
            }
            if uplink.is_gre {
                device.flags |= DEVICE_GRE;
            }
            if topology.rules {
                device.flags |= DEVICE_RULES;
            }
            device.flags |= match topology.fragments {
                Fragments::None => 0,
                Fragments::Whole => DEVICE_FRAGMENTS_WHOLE,
                Fragments::All => DEVICE_FRAGMENTS,
            };
            if native.contains(&uplink.index) && !uplink.is_virtual {
                device.flags |= DEVICE_XDP_REDIRECT;
            }
            for source in &uplink.sources {
                if let Some(addr) = V4::from_ip(*source) {
                    device.snat_v4 = addr;
                } else if let Some(addr) = V6::from_ip(*source) {
                    device.snat_v6 = addr;
                }
            }
            wanted.push((uplink.index, device));
        }
        for pod in &topology.pods {
            let peer_namespace = pod.peer_namespace.map_or(0, |id| id + 1);
            wanted.push((pod.index, Device { bridge: pod.bridge, peer_namespace, ..Device::default() }));
        }
        for (index, device) in &wanted {
            map.insert(index, device).context("cannot write the map `interfaces`")?;
        }
        let keep: BTreeSet<u32> = wanted.iter().map(|(index, _)| *index).collect();
        for index in map.keys()?.into_iter().filter(|key| !keep.contains(key)) {
            map.remove(&index).context("cannot write the map `interfaces`")?;
        }
        Ok(())
    }

    /// Writes the source addresses that were given, again and again until the map is full: so each of the programs' numbers has
    /// an address. Where none of them exists, it is the address of an uplink.
    fn write_snat_sources<F: MapFamily>(&self, topology: &Topology) -> Result<()> {
        let of_uplinks = topology.uplinks.iter().flat_map(|uplink| &uplink.sources);
        let mut sources: Vec<F::Addr> =
            topology.given_snat_sources.iter().filter_map(|ip| F::from_ip(*ip)).collect();
        if sources.is_empty() {
            sources.extend(of_uplinks.filter_map(|ip| F::from_ip(*ip)).take(1));
        }
        let mut map = F::snat_sources(&self.pins)?;
        for (index, addr) in (0..MAX_SNAT_SOURCES).zip(sources.iter().cycle()) {
            if map.get(index).ok().flatten() != Some(*addr) {
                map.set(index, *addr).context("cannot write the map `snat_sources`")?;
            }
        }
        Ok(())
    }

    fn write_node_addresses<F: MapFamily>(&self, topology: &Topology) -> Result<()> {
        let map = F::node_addrs(&self.pins)?;
        let sources = &topology.snat_sources;
        let mut keep = Vec::new();
        for ip in topology.nodeport_addresses.union(sources) {
            let Some(addr) = F::from_ip(*ip) else { continue };
            let mut flags = 0;
            if topology.nodeport_addresses.contains(ip) {
                flags |= NODE_ADDR_NODEPORT;
            }
            if sources.contains(ip) {
                flags |= NODE_ADDR_SNAT;
            }
            map.insert(&addr, &flags).context("cannot write the map `node_addrs`")?;
            keep.push(addr);
        }
        for addr in map.keys()?.into_iter().filter(|key| !keep.contains(key)) {
            map.remove(&addr).context("cannot write the map `node_addrs`")?;
        }
        Ok(())
    }
}

/// Loads every program into the kernel, without attaching it: shows which programs a kernel takes, for any node. Returns
/// by name how many instructions the verifier processed, or why it refused. On kernels before 5.16 this lowers the
/// process' limit of open files for moments: it is meant for tests.
///
/// # Errors
/// When not even the maps can be made.
pub fn load_every_program(config: &ObjectConfig, pins: &Pins) -> Result<Vec<(String, Result<u32>)>> {
    pins.create()?;
    Object::load_all(config, pins)
}

/// Waits until no program that was running still runs; for use where blocking is allowed.
pub fn wait_for_readers() {
    /// Longer than any program runs, where the kernel offers no better way (`nohz_full`).
    const LONG: std::time::Duration = std::time::Duration::from_millis(100);
    if let Err(error) = proxy_sys::process::wait_for_readers() {
        tracing::debug!("membarrier: {error}; waiting {LONG:?} instead");
        std::thread::sleep(LONG);
    }
}

/// The first generation of ids of this start. Only has to differ from the last start's, mostly.
fn generation() -> u8 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |now| (now.as_secs() % 255) as u8 + 1)
}

/// Warns about hooks at a cgroup below the root: they serve only the processes in it, and nothing else would show that.
fn warn_if_not_root(cgroup: &Path) {
    // Only cgroups that are not the root of the hierarchy have this file.
    if cgroup.join("cgroup.type").exists() {
        warn!(
            "{} is not the root of the cgroup hierarchy: only processes below it are served. In a container, mount the \
             host's hierarchy and name it with --cgroup-root",
            cgroup.display()
        );
    } else {
        info!("socket hooks at {} serve every process of this machine", cgroup.display());
    }
}

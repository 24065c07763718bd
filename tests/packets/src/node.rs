//! A node: a namespace with an uplink, pods and a bridge, its services, and the programs.

use std::{ops::RangeInclusive, process::Command};

use anyhow::{Context, Result};
use nix::{
    net::if_::if_nametoindex,
    sched::{CloneFlags, unshare},
};
use proxy_common::{
    V4, V6,
    decide::{NodeAddress, Route, RouteKind, memory::MemoryTables},
    layout::{
        backend::Backend,
        config::Settings,
        device::{self, DEVICE_UPLINK, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT},
        filter,
        flow::Mac,
        frontend::{FRONTEND_CLUSTER_IP, FrontendKey, Target},
        id::Id,
        set::SetPolicy,
    },
    packet::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP},
};

use super::{
    family::{Host, PacketFamily},
    kernel::{Kernel, Options},
};
use proxy_harness::cluster::pipe;

/// Ports for forwarded connections.
pub const SNAT: RangeInclusive<u16> = 20_000..=29_999;

/// The node's devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Device {
    /// Leads to the gateway and the other nodes.
    Uplink,
    /// To [`Host::PodA`].
    PodA,
    /// To [`Host::PodB`].
    PodB,
    /// A port of the bridge, to [`Host::PodC`].
    PortC,
    /// The bridge.
    Bridge,
}

impl Device {
    const ALL: [Self; 5] = [Self::Uplink, Self::PodA, Self::PodB, Self::PortC, Self::Bridge];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Uplink => "uplink",
            Self::PodA => "pod-a",
            Self::PodB => "pod-b",
            Self::PortC => "port-c",
            Self::Bridge => "bridge",
        }
    }

    /// Its MAC.
    pub fn mac(self) -> [u8; 6] {
        match self {
            // Frames go to this address by default: uplinks take no others.
            Self::Uplink => [2, 0, 0, 0, 0, 1],
            _ => [2, 0, 0, 0, 1, self as u8],
        }
    }

    /// Its index, in the namespace of the calling thread.
    ///
    /// # Errors
    /// When the device is missing here.
    pub fn index(self) -> Result<u32> {
        if_nametoindex(self.name()).context(self.name())
    }
}

/// Backend, cluster IP and nodePort of each service. All listen on port 80 and their backends on 8080.
const SERVICES: [(Option<Host>, Host, u16); 8] = [
    (Some(Host::PodB), Host::LocalVip, 30_001),
    (Some(Host::Remote), Host::RemoteVip, 30_002),
    (Some(Host::PodA), Host::HairpinVip, 30_003),
    (Some(Host::PodD), Host::BridgeVip, 30_004),
    (Some(Host::Unresolved), Host::UnresolvedVip, 30_005),
    (None, Host::EmptyVip, 30_006),
    (Some(Host::PodB), Host::LocalVip2, 30_007),
    (Some(Host::OddPod), Host::OddVip, 30_008),
];

/// Hosts with the device that leads to them and the neighbour that takes their packets.
const NEIGHBOURS: [(Host, Device, Host); 9] = [
    (Host::PodA, Device::PodA, Host::PodA),
    (Host::PodB, Device::PodB, Host::PodB),
    (Host::PodC, Device::Bridge, Host::PodC),
    (Host::PodD, Device::Bridge, Host::PodD),
    (Host::OddPod, Device::PodB, Host::OddPod),
    (Host::L3Pod, Device::PodB, Host::L3Pod),
    (Host::Gateway, Device::Uplink, Host::Gateway),
    (Host::OtherNode, Device::Uplink, Host::OtherNode),
    (Host::Remote, Device::Uplink, Host::OtherNode),
];

impl Host {
    /// The MAC its packets go to, once resolved.
    pub fn mac(self) -> [u8; 6] {
        [2, 0, 0, 0, 2, self as u8]
    }
}

/// The MAC as maps hold it.
fn words(mac: [u8; 6]) -> Mac {
    Mac(std::array::from_fn(|i| u16::from_ne_bytes([mac[2 * i], mac[2 * i + 1]])))
}

/// The node. It lives in the namespace of the thread that made it, and goes with that thread.
pub struct Node {
    /// Its programs.
    pub kernel: Kernel,
    /// The same in memory.
    pub v4: MemoryTables<V4>,
    /// The same in memory.
    pub v6: MemoryTables<V6>,
}

impl Node {
    /// Makes the node, in a new namespace that the calling thread enters.
    ///
    /// # Errors
    /// When there are no privileges, no iproute2 or no kernel programs.
    pub fn new(options: Options) -> Result<Self> {
        Self::with(options, |_, _| {})
    }

    /// The same with changes to its tables.
    ///
    /// # Errors
    /// As for [`Node::new`].
    pub fn with(
        options: Options,
        change: impl FnOnce(&mut MemoryTables<V4>, &mut MemoryTables<V6>),
    ) -> Result<Self> {
        unshare(CloneFlags::CLONE_NEWNET).context("packet tests need root")?;
        configure()?;
        let (mut v4, mut v6) = (memory_tables::<V4>(Device::index)?, memory_tables::<V6>(Device::index)?);
        for settings in [&mut v4.settings, &mut v6.settings] {
            settings.snat_last = settings.snat_first + options.snat_ports - 1;
            settings.idle = options.idle;
        }
        change(&mut v4, &mut v6);
        let kernel = Kernel::load(options, &v4, &v6)?;
        Ok(Self { kernel, v4, v6 })
    }
}

fn configure() -> Result<()> {
    let mut lines = vec!["link set lo up".to_owned()];
    for device in Device::ALL {
        let name = device.name();
        let mac = device.mac().map(|byte| format!("{byte:02x}")).join(":");
        match device {
            Device::Bridge => lines.push(format!("link add {name} address {mac} type bridge")),
            _ => {
                lines.push(format!("link add {name} address {mac} type veth peer name {name}-peer"));
                lines.push(format!("link set {name}-peer up"));
            }
        }
        lines.push(format!("link set {name} up"));
    }
    lines.push(format!("link set {} master {}", Device::PortC.name(), Device::Bridge.name()));
    let (v4, v6) = Host::Node.addresses();
    let uplink = Device::Uplink.name();
    lines.push(format!("addr add {v4}/24 dev {uplink}"));
    lines.push(format!("addr add {v6}/64 dev {uplink} nodad"));
    let via = |host: Host| host.addresses();
    for (host, device, neighbour) in NEIGHBOURS {
        let name = device.name();
        let ((v4, v6), (next4, next6)) = (host.addresses(), via(neighbour));
        if host != neighbour {
            lines.push(format!("route add {v4}/32 via {next4}"));
            lines.push(format!("route add {v6}/128 via {next6}"));
            continue;
        }
        if device != Device::Uplink {
            lines.push(format!("route add {v4}/32 dev {name}"));
            lines.push(format!("route add {v6}/128 dev {name}"));
        }
        let mac = host.mac().map(|byte| format!("{byte:02x}")).join(":");
        lines.push(format!("neigh add {v4} lladdr {mac} dev {name} nud permanent"));
        lines.push(format!("neigh add {v6} lladdr {mac} dev {name} nud permanent"));
    }
    let ((v4, v6), (gateway4, gateway6)) = (Host::Unresolved.addresses(), via(Host::Gateway));
    // An unresolved neighbour.
    lines.push(format!("route add {v4}/32 via 192.168.1.30"));
    lines.push(format!("route add {v6}/128 via fd00:1::30"));
    lines.push(format!("route add default via {gateway4}"));
    lines.push(format!("route add default via {gateway6}"));
    let script = lines.join("\n") + "\n";
    pipe(Command::new("ip").args(["-batch", "-"]), &script).with_context(|| script.clone())?;
    for path in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
        let path = format!("/proc/sys/net/{path}");
        std::fs::write(&path, "1").with_context(|| path.clone())?;
    }
    Ok(())
}

/// The node's tables, with these indices of its devices: [`Device::index`], where they exist.
///
/// # Errors
/// When the devices are not there.
pub fn memory_tables<F: PacketFamily>(index: impl Fn(Device) -> Result<u32>) -> Result<MemoryTables<F>> {
    let mut tables = MemoryTables::new(Settings {
        snat_first: *SNAT.start(),
        snat_last: *SNAT.end(),
        idle: 2_500,
        snat_sources: 0,
        external_cluster_ips: false,
        reset_removed_tcp: false,
    });
    tables.node_addresses.insert(Host::Node.addr::<F>(), NodeAddress(NODE_ADDR_NODEPORT | NODE_ADDR_SNAT));
    tables.filter.insert(filter::of_snat_source::<F>(&Host::Node.addr::<F>()));
    for device in [Device::Uplink, Device::PodA, Device::PodB, Device::PortC] {
        let mut value = device::Device::default();
        match device {
            Device::Uplink => {
                value.flags = DEVICE_UPLINK;
                value.mtu = 1_500;
                value.snat_v4 = Host::Node.addr::<V4>();
                value.snat_v6 = Host::Node.addr::<V6>();
            }
            Device::PortC => value.bridge = index(Device::Bridge)?,
            _ => {}
        }
        tables.devices.insert(index(device)?, value);
    }
    for (host, device, neighbour) in NEIGHBOURS {
        let route = Route {
            kind: RouteKind::Neighbour,
            ifindex: index(device)?,
            next_hop: neighbour.addr::<F>(),
            names_next_hop: true,
            by_stack: false,
            from: words(device.mac()),
            to: words(neighbour.mac()),
            mtu: 0,
        };
        tables.routes.insert(host.addr::<F>(), route);
        if host == Host::Gateway {
            tables.default_route = route;
        }
    }
    let unresolved = Route { kind: RouteKind::Unresolved, to: Mac::NONE, ..tables.default_route };
    tables.routes.insert(Host::Unresolved.addr::<F>(), unresolved);
    let local = Route { kind: RouteKind::Local, ..tables.default_route };
    tables.routes.insert(Host::Node.addr::<F>(), local);
    for (number, (backend, vip, node_port)) in (1..).zip(SERVICES) {
        // Both families share the sets.
        let service = Id::new(number + 10 * F::NUMBER, 1);
        for protocol in [PROTOCOL_TCP, PROTOCOL_UDP, PROTOCOL_SCTP] {
            for (addr, port, flags) in
                [(vip.addr::<F>(), 80u16, FRONTEND_CLUSTER_IP), (F::UNSPECIFIED, node_port, 0)]
            {
                let target = Target::new(service, flags).context("an id of 0")?;
                tables.add_frontend(FrontendKey::new(addr, port.to_be(), protocol), target);
            }
        }
        let backend = backend.map(|host| Backend::new(host.addr::<F>(), 8080u16.to_be(), service));
        for set_policy in SetPolicy::ALL {
            tables.publish(service, set_policy, backend.as_slice());
        }
    }
    Ok(tables)
}

//! `interfaces`: HASH by interface index. `node_addrs_v4`, `node_addrs_v6`: HASH by address. Written by the agent.

/// Properties of an interface that the programs read. Read for new flows, and for forwarded packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Device {
    /// `DEVICE_*` bits.
    pub flags: u32,
    /// Index of the bridge of which it is a port, or 0.
    pub bridge: u32,
    /// Source address for connections forwarded by this device; zero: none.
    pub snat_v4: u32,
    /// The same for IPv6.
    pub snat_v6: [u32; 4],
    /// Its MTU in bytes; 0: unknown. For kernels that do not report a route's.
    pub mtu: u32,
    /// The network namespace at the other end of a pod's interface, as its id in this namespace
    /// (`IFLA_LINK_NETNSID`) plus one; 0: unknown.
    pub peer_namespace: u32,
}

/// Leads off the node: replies to clients outside leave by it, and endpoints behind it without a `nodeName` are
/// remote.
pub const DEVICE_UPLINK: u32 = 1;
/// XDP may redirect to it. Others lose redirected frames silently (VXLAN, bridges, WireGuard).
pub const DEVICE_XDP_REDIRECT: u32 = 2;
/// Packets have no Ethernet header there.
pub const DEVICE_L3: u32 = 4;
/// Programs cannot send by it; the kernel's IP stack can.
pub const DEVICE_STACK: u32 = 8;
/// Some destinations have properties that the FIB does not report ([`destination`](super::destination)): IPsec
/// policies, encapsulations, MTUs.
pub const DEVICE_DESTINATIONS: u32 = 16;
/// Rules of the node choose routes by more than the destination: an endpoint's packets may leave by another
/// device than those of the frontend that clients use.
pub const DEVICE_RULES: u32 = 32;

/// Index of the loopback interface, in every network namespace.
pub const LOOPBACK: u32 = 1;
/// The stack fragments IPv4 packets that came in by it and are too long for their route, if fragmentation is
/// allowed.
pub const DEVICE_FRAGMENTS: u32 = 1 << 8;
/// The same, for unfragmented packets only: fragments would be reassembled at the loopback interface, and wait
/// there for fragments that programs send directly.
pub const DEVICE_FRAGMENTS_WHOLE: u32 = 1 << 9;

/// A GRE device: without a remote address it passes packets in with their outer header in front.
pub const DEVICE_GRE: u32 = 1 << 10;

/// The address serves nodePorts.
pub const NODE_ADDR_NODEPORT: u32 = 1;
/// Forwarded connections get the address as source.
pub const NODE_ADDR_SNAT: u32 = 2;

super::plain!(Device);

const _: () = assert!(size_of::<Device>() == 36);

//! The hosts that packets go between, in both families.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use proxy_common::{V4, V6, decide::memory::MemoryFamily, layout::flow::Tuple, packet::Parse};

/// A sender or receiver, or an address that stands for a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Outside, beyond the gateway.
    Client,
    /// The router.
    Gateway,
    /// The node itself.
    Node,
    /// The other node, on the same link.
    OtherNode,
    /// A pod of the node, on a separate interface.
    PodA,
    /// Another one.
    PodB,
    /// A pod of the node, on the bridge.
    PodC,
    /// Another one.
    PodD,
    /// A pod of the other node.
    Remote,
    /// A pod of a third node, whose MAC is not known.
    Unresolved,
    /// Cluster IP of the service whose backend is [`Host::PodB`].
    LocalVip,
    /// Cluster IP of the service whose backend is [`Host::Remote`].
    RemoteVip,
    /// Cluster IP of the service whose backend is [`Host::PodA`].
    HairpinVip,
    /// Cluster IP of the service whose backend is [`Host::PodD`].
    BridgeVip,
    /// Cluster IP of the service whose backend is [`Host::Unresolved`].
    UnresolvedVip,
    /// Cluster IP of the service without endpoints.
    EmptyVip,
    /// A second cluster IP whose backend is [`Host::PodB`].
    LocalVip2,
    /// A client whose address, read as a frame, is the EtherType of its family: on devices without Ethernet headers.
    L3Client,
    /// A cluster IP of odd words (0xffff and 0), whose backend is [`Host::OddPod`].
    OddVip,
    /// Its backend.
    OddPod,
    /// Cluster IP of a service with backends here and on the other node.
    SpreadVip,
    /// The same, and clients keep theirs.
    AffinityVip,
    /// The same, and clients outside get only those here.
    LocalOnlyVip,
    /// Cluster IP of a service whose only backend is on the other node, and whose policies want one here.
    NoLocalVip,
    /// Cluster IP of the service of [`Host::GuardedIp`].
    GuardedVip,
    /// Cluster IP of a service whose backends are [`Host::PodA`] and [`Host::PodC`].
    OwnVip,
    /// Cluster IP of the service whose backend is [`Host::L3Pod`].
    L3Vip,
    /// In the range of service addresses, and no service's.
    UnallocatedVip,
    /// A load balancer's address with source ranges.
    GuardedIp,
    /// An external IP of the service of [`Host::SpreadVip`].
    OpenIp,
    /// A pod with an address like that of [`Host::L3Client`].
    L3Pod,
}

impl Host {
    /// All of them.
    pub fn all() -> [Self; 31] {
        [
            Self::Client,
            Self::Gateway,
            Self::Node,
            Self::OtherNode,
            Self::PodA,
            Self::PodB,
            Self::PodC,
            Self::PodD,
            Self::Remote,
            Self::Unresolved,
            Self::LocalVip,
            Self::RemoteVip,
            Self::HairpinVip,
            Self::BridgeVip,
            Self::UnresolvedVip,
            Self::EmptyVip,
            Self::LocalVip2,
            Self::L3Client,
            Self::OddVip,
            Self::OddPod,
            Self::SpreadVip,
            Self::AffinityVip,
            Self::LocalOnlyVip,
            Self::NoLocalVip,
            Self::GuardedVip,
            Self::OwnVip,
            Self::L3Vip,
            Self::UnallocatedVip,
            Self::GuardedIp,
            Self::OpenIp,
            Self::L3Pod,
        ]
    }

    /// Its addresses.
    pub fn addresses(self) -> (Ipv4Addr, Ipv6Addr) {
        let v4 = Ipv4Addr::new;
        let pod = |node, host| {
            (v4(10, 244, node, host), Ipv6Addr::new(0xfd00, 0x244, node as u16, 0, 0, 0, 0, host as u16))
        };
        let vip = |n| (v4(10, 96, 0, n), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, n as u16));
        // Far from the others: an address one bit off a cluster IP must be none of these.
        let far = |n| (v4(10, 96, 240, n), Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0xf0f0, n as u16));
        let public = |n| (v4(203, 0, 113, n), Ipv6Addr::new(0x2001, 0xdb8, 0x113, 0, 0, 0, 0, n as u16));
        let link = |n| (v4(192, 168, 1, n), Ipv6Addr::new(0xfd00, 1, 0, 0, 0, 0, 0, n as u16));
        match self {
            Self::Client => (v4(198, 51, 100, 7), Ipv6Addr::new(0x2001, 0xdb8, 7, 0, 0, 0, 0, 7)),
            Self::Gateway => link(1),
            Self::Node => link(10),
            Self::OtherNode => link(20),
            Self::PodA => pod(1, 2),
            Self::PodB => pod(1, 3),
            Self::PodC => pod(1, 4),
            Self::PodD => pod(1, 5),
            Self::Remote => pod(2, 2),
            Self::Unresolved => pod(3, 2),
            Self::LocalVip => vip(10),
            Self::RemoteVip => vip(11),
            Self::HairpinVip => vip(12),
            Self::BridgeVip => vip(13),
            Self::UnresolvedVip => vip(14),
            Self::EmptyVip => vip(15),
            Self::LocalVip2 => vip(16),
            Self::L3Client => (v4(8, 0, 3, 4), Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 8)),
            Self::OddVip => {
                (v4(10, 96, 255, 255), Ipv6Addr::new(0xfd00, 0xffff, 0xffff, 0, 0, 0xffff, 0, 0xffff))
            }
            Self::SpreadVip => far(1),
            Self::AffinityVip => far(2),
            Self::LocalOnlyVip => far(4),
            Self::NoLocalVip => far(8),
            Self::GuardedVip => far(16),
            Self::OwnVip => far(32),
            Self::L3Vip => far(64),
            Self::UnallocatedVip => far(99),
            Self::GuardedIp => public(5),
            Self::OpenIp => public(10),
            Self::L3Pod => (v4(8, 0, 9, 9), Ipv6Addr::new(0x2001, 0xdb8, 0x86dd, 0, 0, 0, 0, 9)),
            Self::OddPod => (v4(10, 244, 0, 0), Ipv6Addr::new(0xfd00, 0, 0, 0xffff, 0, 0, 0, 0)),
        }
    }

    /// Its address.
    pub fn ip<F: PacketFamily>(self) -> IpAddr {
        let (v4, v6) = self.addresses();
        if F::IS_V4 { v4.into() } else { v6.into() }
    }

    /// Its address with a port.
    pub fn at<F: PacketFamily>(self, port: u16) -> SocketAddr {
        SocketAddr::new(self.ip::<F>(), port)
    }

    /// Its address as maps hold it.
    pub fn addr<F: PacketFamily>(self) -> F::Addr {
        F::from_ip(self.ip::<F>())
    }
}

/// A family, with everything that packets need.
pub trait PacketFamily: MemoryFamily<Addr: aya::Pod> + Parse {
    /// Whether it is IPv4.
    const IS_V4: bool;
    /// Distinguishes its maps and its ids.
    const NUMBER: u32 = if Self::IS_V4 { 4 } else { 6 };

    /// An address with all bits set.
    const ONES: Self::Addr;

    /// An address as maps hold it; of the other family: the unspecified one.
    fn from_ip(ip: IpAddr) -> Self::Addr;
    /// Back again.
    fn to_ip(addr: &Self::Addr) -> IpAddr;

    /// Both ends as maps hold them.
    fn tuple(src: SocketAddr, dst: SocketAddr) -> Tuple<Self> {
        Tuple {
            src: Self::from_ip(src.ip()),
            dst: Self::from_ip(dst.ip()),
            sport: src.port().to_be(),
            dport: dst.port().to_be(),
        }
    }

    /// Both ends for people.
    fn ends(tuple: &Tuple<Self>) -> (SocketAddr, SocketAddr) {
        (
            SocketAddr::new(Self::to_ip(&tuple.src), u16::from_be(tuple.sport)),
            SocketAddr::new(Self::to_ip(&tuple.dst), u16::from_be(tuple.dport)),
        )
    }
}

impl PacketFamily for V4 {
    const IS_V4: bool = true;
    const ONES: u32 = u32::MAX;

    fn from_ip(ip: IpAddr) -> u32 {
        match ip {
            IpAddr::V4(ip) => u32::from_ne_bytes(ip.octets()),
            IpAddr::V6(_) => 0,
        }
    }

    fn to_ip(addr: &u32) -> IpAddr {
        Ipv4Addr::from(addr.to_ne_bytes()).into()
    }
}

impl PacketFamily for V6 {
    const IS_V4: bool = false;
    const ONES: [u32; 4] = [u32::MAX; 4];

    fn from_ip(ip: IpAddr) -> [u32; 4] {
        match ip {
            IpAddr::V4(_) => [0; 4],
            IpAddr::V6(ip) => {
                let octets = ip.octets();
                std::array::from_fn(|i| {
                    u32::from_ne_bytes([
                        octets[4 * i],
                        octets[4 * i + 1],
                        octets[4 * i + 2],
                        octets[4 * i + 3],
                    ])
                })
            }
        }
    }

    fn to_ip(addr: &[u32; 4]) -> IpAddr {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(addr) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Ipv6Addr::from(octets).into()
    }
}

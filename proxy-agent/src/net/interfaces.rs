//! Interfaces, addresses and default routes, read and followed by netlink.

use std::{collections::HashMap, net::IpAddr};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
};
use rtnetlink::{Handle, RouteMessageBuilder, new_connection};

mod changes;

pub use changes::{Happened, Known, News, changes};

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Kind of virtual interface, as `ip -d link` says it; empty for hardware.
    pub kind: String,
    /// Index of the bridge or bond it belongs to, or 0.
    pub master: u32,
    /// Index of the interface that it sends its frames by, if it stands above one (macvlan, VLAN), or 0.
    pub parent: u32,
    /// The other end of a veth, or the parent, is in another network namespace.
    pub has_peer_elsewhere: bool,
    /// Frames have an Ethernet header.
    pub has_link_header: bool,
    /// Is the loopback interface.
    pub is_loopback: bool,
    /// Is administratively up. A veth is up if its other end is, too: while a pod is made, both may be here for a moment.
    pub is_up: bool,
    /// Global addresses, in the order in which the kernel would choose them as source. None that cannot be used (yet).
    pub addresses: Vec<IpAddr>,
    /// IPv4 addresses of narrower scope, loopback ones excepted: packets may be sent to them, but the kernel does not choose them as
    /// source.
    pub narrow_addresses: Vec<IpAddr>,
    /// One of the addresses has others in its network: not those of a host alone (`/32`), nor of point-to-point links.
    pub has_network: bool,
    /// A default route leaves by it.
    pub has_default_route: bool,
    /// A route by it, in whatever table, has a next hop: there is a router.
    pub has_gateway: bool,
    /// Its MTU in bytes; 0: not known.
    pub mtu: u32,
    /// A route by it has an encapsulation (`encap`, ip-route(8)).
    pub encapsulates: bool,
    /// Source addresses that routes by it were given (`ip route ... src`), the default route's first.
    pub preferred_sources: Vec<IpAddr>,
}

/// Reads all interfaces.
pub async fn read(handle: &Handle) -> Result<Vec<Interface>> {
    let mut interfaces = Vec::new();
    let mut links = handle.link().get().execute();
    while let Some(link) = links.try_next().await.context("cannot list interfaces")? {
        let mut interface = Interface {
            index: link.header.index,
            has_link_header: link.header.link_layer_type == LinkLayerType::Ether,
            is_loopback: link.header.flags.contains(LinkFlags::Loopback),
            is_up: link.header.flags.contains(LinkFlags::Up),
            ..Interface::default()
        };
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Link(index) => interface.parent = index,
                LinkAttribute::LinkNetNsId(_) => interface.has_peer_elsewhere = true,
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Mtu(mtu) => interface.mtu = mtu,
                LinkAttribute::Controller(index) => interface.master = index,
                LinkAttribute::LinkInfo(infos) => {
                    for info in infos {
                        if let LinkInfo::Kind(kind) = info {
                            interface.kind = kind_name(&kind);
                        }
                    }
                }
                _ => {}
            }
        }
        // The other end of a veth is told as its parent, by its index in another network namespace.
        if interface.has_peer_elsewhere || interface.kind == "veth" {
            interface.parent = 0;
        }
        interface.is_up &= interface.kind != "veth" || link.header.flags.contains(LinkFlags::LowerUp);
        interfaces.push(interface);
    }
    read_addresses(handle, &mut interfaces).await?;
    read_routes(handle, &mut interfaces).await?;
    Ok(interfaces)
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

/// Positions of interfaces by their indexes.
fn positions(interfaces: &[Interface]) -> HashMap<u32, usize> {
    interfaces.iter().enumerate().map(|(position, interface)| (interface.index, position)).collect()
}

async fn read_addresses(handle: &Handle, interfaces: &mut [Interface]) -> Result<()> {
    let positions = positions(interfaces);
    let mut ranked: Vec<(usize, Rank, IpAddr)> = Vec::new();
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.context("cannot list addresses")? {
        let Some(&position) = positions.get(&message.header.index) else { continue };
        let (Some(address), Some(rank)) = (Address::of(&message), rank(message.header.flags)) else {
            continue;
        };
        let Some(interface) = interfaces.get_mut(position) else { continue };
        if matches!(message.header.scope, AddressScope::Universe | AddressScope::Site) {
            ranked.push((position, rank, address.ip));
            interface.has_network |= address.has_network;
        } else if address.ip.is_ipv4() && !address.ip.is_loopback() {
            interface.narrow_addresses.push(address.ip);
        }
    }
    // Stable: within a rank it is the kernel's order.
    ranked.sort_by_key(|(position, rank, _)| (*position, *rank));
    for (position, _, ip) in ranked {
        if let Some(interface) = interfaces.get_mut(position) {
            interface.addresses.push(ip);
        }
    }
    Ok(())
}

/// How much the kernel would like to have an address as source; the first one most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Preferred,
    /// IPv4: a further one of the same network. IPv6: one for privacy, not to be relied on.
    Secondary,
    /// Only where there is no other (RFC 6724 section 5, rule 3): deprecated, or not known to be unique.
    Deprecated,
}

/// None: it cannot be used, as duplicate address detection is not done or found another owner.
fn rank(flags: AddressHeaderFlags) -> Option<Rank> {
    let has = |flag| flags.contains(flag);
    if has(AddressHeaderFlags::Dadfailed)
        || has(AddressHeaderFlags::Tentative) && !has(AddressHeaderFlags::Optimistic)
    {
        None
    } else if has(AddressHeaderFlags::Deprecated) || has(AddressHeaderFlags::Optimistic) {
        Some(Rank::Deprecated)
    } else if has(AddressHeaderFlags::Secondary) {
        Some(Rank::Secondary)
    } else {
        Some(Rank::Preferred)
    }
}

struct Address {
    ip: IpAddr,
    has_network: bool,
}

impl Address {
    fn of(message: &AddressMessage) -> Option<Self> {
        let (mut local, mut address) = (None, None);
        for attribute in &message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(*ip),
                AddressAttribute::Address(ip) => address = Some(*ip),
                _ => {}
            }
        }
        // On point-to-point interfaces `address` is the peer's.
        let ip = local.or(address)?;
        let is_alone = message.header.prefix_len >= if ip.is_ipv4() { 32 } else { 128 };
        let has_peer = address.is_some_and(|address| address != ip);
        Some(Self { ip, has_network: !is_alone && !has_peer })
    }
}

/// Notes which interfaces routes with a next hop and default routes leave by, and which source addresses routes prefer.
async fn read_routes(handle: &Handle, interfaces: &mut [Interface]) -> Result<()> {
    let positions = positions(interfaces);
    for message in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(message).execute();
        while let Some(route) = routes.try_next().await.context("cannot list routes")? {
            if route.header.kind != RouteType::Unicast {
                continue;
            }
            let is_main = is_of_main_table(&route);
            let is_default = is_main && route.header.destination_prefix_length == 0;
            let preferred = preferred_source(&route).filter(|_| is_main);
            for hop in hops(&route) {
                let position = positions.get(&hop.interface).copied();
                let Some(interface) = position.and_then(|position| interfaces.get_mut(position)) else {
                    continue;
                };
                interface.has_default_route |= is_default;
                interface.encapsulates |= is_main && hop.encapsulates;
                interface.has_gateway |= hop.has_gateway;
                // That of the default route comes first.
                let at = if is_default { 0 } else { interface.preferred_sources.len() };
                preferred.into_iter().for_each(|source| interface.preferred_sources.insert(at, source));
            }
        }
    }
    Ok(())
}

/// The source address that somebody gave a route. The kernel's own routes to the networks of its addresses have theirs.
fn preferred_source(route: &RouteMessage) -> Option<IpAddr> {
    if route.header.protocol == RouteProtocol::Kernel {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

fn is_of_main_table(route: &RouteMessage) -> bool {
    const MAIN_TABLE: u8 = 254;
    route.header.table == MAIN_TABLE
}

/// One way of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Hop {
    interface: u32,
    has_gateway: bool,
    /// Packets are wrapped on the way (`encap`, ip-route(8)).
    encapsulates: bool,
}

impl Hop {
    fn new(interface: u32, attributes: &[RouteAttribute]) -> Self {
        let has = |is_it: fn(&RouteAttribute) -> bool| attributes.iter().any(is_it);
        Self {
            interface,
            has_gateway: has(|it| matches!(it, RouteAttribute::Gateway(_) | RouteAttribute::Via(_))),
            encapsulates: has(|it| matches!(it, RouteAttribute::EncapType(_))),
        }
    }
}

fn hops(route: &RouteMessage) -> Vec<Hop> {
    let mut found = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.push(Hop::new(*index, &route.attributes)),
            RouteAttribute::MultiPath(hops) => {
                found.extend(hops.iter().map(|hop| Hop::new(hop.interface_index, &hop.attributes)));
            }
            _ => {}
        }
    }
    found
}

/// A connection to read with.
pub fn connect() -> Result<Handle> {
    let (connection, handle, _) = new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn the_source_that_a_route_was_given() {
        let source = Ipv4Addr::new(10, 1, 0, 10);
        let route = |protocol| {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(2).pref_source(source);
            builder.protocol(protocol).build()
        };
        for protocol in [RouteProtocol::Static, RouteProtocol::Boot, RouteProtocol::Bgp, RouteProtocol::Dhcp]
        {
            let route = route(protocol);
            assert_eq!(
                (preferred_source(&route), hops(&route)),
                (Some(source.into()), vec![Hop { interface: 2, ..Hop::default() }]),
                "{protocol:?}"
            );
        }
        assert_eq!(preferred_source(&route(RouteProtocol::Kernel)), None, "the network of any address");
        let without = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(2).build();
        assert_eq!(preferred_source(&without), None);
        let router = Ipv4Addr::new(10, 1, 0, 1);
        let route = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(3).gateway(router).build();
        assert_eq!(hops(&route), [Hop { interface: 3, has_gateway: true, ..Hop::default() }]);
    }

    #[test]
    fn addresses_as_the_kernel_would_choose_them() {
        use AddressHeaderFlags as Flags;
        for (flags, expected) in [
            (Flags::Permanent, Some(Rank::Preferred)),
            (Flags::empty(), Some(Rank::Preferred)),
            (Flags::Secondary | Flags::Permanent, Some(Rank::Secondary)),
            (Flags::Deprecated | Flags::Permanent, Some(Rank::Deprecated)),
            (Flags::Deprecated | Flags::Secondary, Some(Rank::Deprecated)),
            (Flags::Tentative | Flags::Optimistic, Some(Rank::Deprecated)),
            (Flags::Tentative | Flags::Permanent, None),
            (Flags::Tentative | Flags::Dadfailed, None),
            (Flags::Dadfailed | Flags::Permanent, None),
        ] {
            assert_eq!(rank(flags), expected, "{flags:?}");
        }
        assert!(Rank::Preferred < Rank::Secondary && Rank::Secondary < Rank::Deprecated);
    }

    #[test]
    fn addresses_with_and_without_a_network() {
        for (local, address, length, expected) in [
            ("10.0.0.1", "10.0.0.1", 24, true),
            ("10.0.0.1", "10.0.0.1", 31, true),
            ("10.0.0.1", "10.0.0.1", 32, false),
            ("10.0.0.1", "10.0.0.2", 24, false),
            ("", "fd00::1", 64, true),
            ("", "fd00::1", 128, false),
        ] {
            let mut message = AddressMessage::default();
            message.header.prefix_len = length;
            message.attributes.push(AddressAttribute::Address(address.parse().unwrap()));
            message.attributes.extend(local.parse().ok().map(AddressAttribute::Local));
            let found = Address::of(&message).unwrap();
            assert_eq!(found.has_network, expected, "{local} {address}/{length}");
            assert_eq!(found.ip.to_string(), if local.is_empty() { address } else { local });
        }
    }
}

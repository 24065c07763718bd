//! Interfaces, addresses and default routes, read and followed by netlink.

use std::net::IpAddr;

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _, TryStreamExt as _};
use netlink_packet_route::{
    address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteType},
};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder, new_connection, new_multicast_connection};

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
    /// Frames have an Ethernet header.
    pub has_link_header: bool,
    /// Is the loopback interface.
    pub is_loopback: bool,
    /// Is administratively up.
    pub is_up: bool,
    /// Global addresses, preferred ones first.
    pub addresses: Vec<IpAddr>,
    /// A default route leaves by it.
    pub has_default_route: bool,
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
        let mut is_parent_elsewhere = false;
        for attribute in link.attributes {
            match attribute {
                LinkAttribute::Link(index) => interface.parent = index,
                LinkAttribute::LinkNetNsId(_) => is_parent_elsewhere = true,
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
        if is_parent_elsewhere || interface.kind == "veth" {
            interface.parent = 0;
        }
        interfaces.push(interface);
    }
    read_addresses(handle, &mut interfaces).await?;
    read_routes(handle, &mut interfaces).await?;
    Ok(interfaces)
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

async fn read_addresses(handle: &Handle, interfaces: &mut [Interface]) -> Result<()> {
    let mut addresses = handle.address().get().execute();
    while let Some(message) = addresses.try_next().await.context("cannot list addresses")? {
        let is_global = matches!(message.header.scope, AddressScope::Universe | AddressScope::Site);
        let Some(interface) = interfaces.iter_mut().find(|interface| interface.index == message.header.index)
        else {
            continue;
        };
        let (mut local, mut address, mut secondary) = (None, None, false);
        if message.header.flags.contains(AddressHeaderFlags::Secondary) {
            secondary = true;
        }
        for attribute in message.attributes {
            match attribute {
                AddressAttribute::Local(ip) => local = Some(ip),
                AddressAttribute::Address(ip) => address = Some(ip),
                AddressAttribute::Flags(flags) => {
                    secondary |= flags.intersects(AddressFlags::Deprecated | AddressFlags::Secondary);
                }
                _ => {}
            }
        }
        // On point-to-point interfaces `address` is the peer's.
        let Some(ip) = local.or(address).filter(|_| is_global) else { continue };
        if secondary {
            interface.addresses.push(ip);
        } else {
            let primaries = interface.addresses.len();
            interface.addresses.insert(primaries, ip);
        }
    }
    Ok(())
}

/// Notes which interfaces default routes leave by, and which source addresses routes prefer.
async fn read_routes(handle: &Handle, interfaces: &mut [Interface]) -> Result<()> {
    for message in [
        RouteMessageBuilder::<std::net::Ipv4Addr>::new().build(),
        RouteMessageBuilder::<std::net::Ipv6Addr>::new().build(),
    ] {
        let mut routes = handle.route().get(message).execute();
        while let Some(route) = routes.try_next().await.context("cannot list routes")? {
            if !is_of_main_table(&route) {
                continue;
            }
            let is_default = route.header.destination_prefix_length == 0;
            let preferred = preferred_source(&route);
            let devices = devices(&route);
            let encapsulates = has_encapsulation(&route.attributes);
            for interface in interfaces.iter_mut().filter(|interface| devices.contains(&interface.index)) {
                interface.has_default_route |= is_default;
                interface.encapsulates |= encapsulates;
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

fn has_encapsulation(attributes: &[RouteAttribute]) -> bool {
    attributes.iter().any(|attribute| match attribute {
        RouteAttribute::EncapType(_) => true,
        RouteAttribute::MultiPath(hops) => hops.iter().any(|hop| has_encapsulation(&hop.attributes)),
        _ => false,
    })
}

fn is_of_main_table(route: &RouteMessage) -> bool {
    const MAIN_TABLE: u8 = 254;
    route.header.kind == RouteType::Unicast && route.header.table == MAIN_TABLE
}

fn devices(route: &RouteMessage) -> Vec<u32> {
    let mut found = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => found.push(*index),
            RouteAttribute::MultiPath(hops) => found.extend(hops.iter().map(|hop| hop.interface_index)),
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

/// Says when something may have changed; what it is is for [`read`] to find out.
///
/// A lost notification shows as an end of the stream.
pub fn changes() -> Result<impl Stream<Item = ()> + Unpin> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Ipv4Rule,
        MulticastGroup::Ipv6Rule,
    ];
    let (connection, _, messages) =
        new_multicast_connection(&groups).context("cannot follow the interfaces by netlink")?;
    tokio::spawn(connection);
    Ok(messages.map(|_| ()))
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
                (preferred_source(&route), devices(&route)),
                (Some(source.into()), vec![2]),
                "{protocol:?}"
            );
        }
        assert_eq!(preferred_source(&route(RouteProtocol::Kernel)), None, "the network of any address");
        let without = RouteMessageBuilder::<Ipv4Addr>::new().output_interface(2).build();
        assert_eq!(preferred_source(&without), None);
    }
}

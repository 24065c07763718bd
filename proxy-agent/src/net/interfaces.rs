//! Interfaces, addresses and default routes, read and followed by netlink.

use std::{collections::HashMap, net::IpAddr};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::{
    address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope},
    link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType},
};
use rtnetlink::{Handle, new_connection};

mod changes;

pub use changes::{Happened, Known, News, changes};

use super::routes::{self, Route};

/// An interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Kind of virtual interface, as `ip -d link` shows it; empty for hardware.
    pub kind: String,
    /// Its link-layer address; empty if it has none.
    pub mac: Vec<u8>,
    /// Index of the bridge or bond it belongs to, or 0.
    pub master: u32,
    /// Index of the interface that it sends its frames by, if it stands above one (macvlan, VLAN), or 0.
    pub parent: u32,
    /// The other end of a veth, or the parent, is in another network namespace: its id in this one; negative if it has none.
    pub peer_namespace: Option<i32>,
    /// Frames have an Ethernet header.
    pub has_link_header: bool,
    /// Is the loopback interface.
    pub is_loopback: bool,
    /// Is administratively up. A veth is up if its other end is, too: while a pod is made, both may be here for a moment.
    pub is_up: bool,
    /// Global addresses, in the order in which the kernel would choose them as source. Without those that cannot be used (yet).
    pub addresses: Vec<IpAddr>,
    /// IPv4 addresses of narrower scope, loopback ones excepted: packets may be sent to them, but the kernel does not choose them as
    /// source.
    pub narrow_addresses: Vec<IpAddr>,
    /// One of the addresses has others in its network: not those of a host alone (`/32`), nor of point-to-point links.
    pub has_network: bool,
    /// A default route leaves by it.
    pub has_default_route: bool,
    /// A route by it, in any table, has a next hop: a router is behind it.
    pub has_gateway: bool,
    /// Its MTU in bytes; 0: not known.
    pub mtu: u32,
    /// Source addresses that routes by it were given (`ip route ... src`), the default route's first.
    pub preferred_sources: Vec<IpAddr>,
}

/// Reads all interfaces.
pub async fn read(handle: &Handle) -> Result<Vec<Interface>> {
    Ok(read_with_routes(handle).await?.0)
}

/// Reads all interfaces, and the routes of the main table.
pub async fn read_with_routes(handle: &Handle) -> Result<(Vec<Interface>, Vec<Route>)> {
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
                LinkAttribute::LinkNetNsId(id) => interface.peer_namespace = Some(id),
                LinkAttribute::IfName(name) => interface.name = name,
                LinkAttribute::Address(mac) => interface.mac = mac,
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
        // The kernel reports the other end of a veth as its parent, by its index in another network namespace.
        if interface.peer_namespace.is_some() || interface.kind == "veth" {
            interface.parent = 0;
        }
        interface.is_up &= interface.kind != "veth" || link.header.flags.contains(LinkFlags::LowerUp);
        interfaces.push(interface);
    }
    read_addresses(handle, &mut interfaces).await?;
    let routes = routes::read(handle, &mut interfaces).await?;
    Ok((interfaces, routes))
}

fn kind_name(kind: &InfoKind) -> String {
    kind.to_string()
}

/// Positions of interfaces by their indexes.
pub(super) fn positions(interfaces: &[Interface]) -> HashMap<u32, usize> {
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
    /// Only if no other address exists (RFC 6724 section 5, rule 3): deprecated, or not known to be unique.
    Deprecated,
}

/// `None`: it cannot be used, as duplicate address detection is not done or found another owner.
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

/// A connection to read with.
pub fn connect() -> Result<Handle> {
    let (connection, handle, _) = new_connection().context("cannot open a netlink socket")?;
    tokio::spawn(connection);
    Ok(handle)
}

#[cfg(test)]
mod tests {
    use super::*;

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

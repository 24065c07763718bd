//! Routes, read by netlink: what they show of interfaces, and the attributes that `bpf_fib_lookup` does not report.

use std::{
    collections::{BTreeMap, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use ipnet::IpNet;
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::interfaces::{Interface, positions};

/// A route of the main table to other hosts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The destination.
    pub net: IpNet,
    /// Its MTU in bytes, if it has one that is not locked: `bpf_fib_lookup` obeys the others.
    pub mtu: Option<u32>,
    /// Index of the interface, if the route has an encapsulation (`encap`, ip-route(8)).
    pub encapsulates_by: Option<u32>,
}

/// Attributes of a destination that `bpf_fib_lookup` does not report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hint {
    /// Longest packet in bytes.
    pub mtu: Option<u32>,
    /// Index of the interface by which the route leaves, which encapsulates.
    pub encapsulates_by: Option<u32>,
}

/// As many hints as the maps have room for, beside as many policies and those of before.
pub const MAX_HINTS: usize = 1024;

/// Notes which interfaces routes with a next hop and default routes leave by, and which source addresses routes prefer. Returns the
/// routes of the main table.
pub(super) async fn read(handle: &Handle, interfaces: &mut [Interface]) -> Result<Vec<Route>> {
    let positions = positions(interfaces);
    let mut found = Vec::new();
    for message in
        [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()]
    {
        let mut routes = handle.route().get(message).execute();
        while let Some(route) = routes.try_next().await.context("cannot list routes")? {
            if route.header.kind != RouteType::Unicast {
                continue;
            }
            let is_main = is_of_main_table(&route);
            let is_default = is_main && route.header.destination_prefix_length == 0;
            let preferred = preferred_source(&route).filter(|_| is_main);
            let hops = hops(&route);
            if is_main {
                found.extend(Route::of(&route, &hops));
            }
            for hop in hops {
                let position = positions.get(&hop.interface).copied();
                let Some(interface) = position.and_then(|position| interfaces.get_mut(position)) else {
                    continue;
                };
                interface.has_default_route |= is_default;
                interface.has_gateway |= hop.has_gateway;
                // The source of the default route comes first.
                let at = if is_default { 0 } else { interface.preferred_sources.len() };
                preferred.into_iter().for_each(|source| interface.preferred_sources.insert(at, source));
            }
        }
    }
    Ok(found)
}

/// The hints that routes give; `None` if there are too many of them. A longer prefix without such an attribute below one that has it
/// gets an empty hint: the longest one decides.
///
/// Where a route has an encapsulation, its interface's MTU counts, too: `bpf_fib_lookup` returns no interface then.
#[must_use]
pub fn hints(routes: &[Route], interfaces: &[Interface]) -> Option<BTreeMap<IpNet, Hint>> {
    let mtus: HashMap<u32, u32> =
        interfaces.iter().map(|interface| (interface.index, interface.mtu)).collect();
    let hint = |route: &Route| {
        let of_interface =
            route.encapsulates_by.and_then(|index| mtus.get(&index).copied()).filter(|mtu| *mtu != 0);
        Hint { mtu: route.mtu.into_iter().chain(of_interface).min(), encapsulates_by: route.encapsulates_by }
    };
    let given: BTreeMap<IpNet, Hint> = routes
        .iter()
        .map(|route| (route.net, hint(route)))
        .filter(|(_, hint)| *hint != Hint::default())
        .take(MAX_HINTS + 1)
        .collect();
    let below = routes
        .iter()
        .filter(|route| !given.is_empty() && !given.contains_key(&route.net))
        .filter(|route| given.keys().any(|net| net.contains(&route.net)));
    let below: Vec<_> = below.take(MAX_HINTS + 1).map(|route| (route.net, Hint::default())).collect();
    (given.len() + below.len() <= MAX_HINTS).then(|| below.into_iter().chain(given).collect())
}

impl Route {
    /// Whether `bpf_fib_lookup` returns less than the route has.
    pub(super) fn has_hint(&self) -> bool {
        self.mtu.is_some() || self.encapsulates_by.is_some()
    }

    pub(super) fn of(message: &RouteMessage, hops: &[Hop]) -> Option<Self> {
        let is_ipv4 = message.header.address_family == netlink_packet_route::AddressFamily::Inet;
        let unspecified: IpAddr =
            if is_ipv4 { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let (mut destination, mut mtu, mut is_locked) = (unspecified, None, false);
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(RouteAddress::Inet(ip)) => destination = (*ip).into(),
                RouteAttribute::Destination(RouteAddress::Inet6(ip)) => destination = (*ip).into(),
                RouteAttribute::Metrics(metrics) => {
                    for metric in metrics {
                        match metric {
                            RouteMetric::Mtu(bytes) => mtu = Some(*bytes),
                            // `1 << RTAX_MTU`
                            RouteMetric::Lock(locked) => is_locked = locked & (1 << 2) != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        let net = IpNet::new(destination, message.header.destination_prefix_length).ok()?.trunc();
        let encapsulates_by = hops.iter().find(|hop| hop.encapsulates).map(|hop| hop.interface);
        Some(Self { net, mtu: mtu.filter(|_| !is_locked), encapsulates_by })
    }
}

/// The configured source address of a route. The kernel's own routes to the networks of its addresses have theirs.
pub(super) fn preferred_source(route: &RouteMessage) -> Option<IpAddr> {
    if route.header.protocol == RouteProtocol::Kernel {
        return None;
    }
    route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::PrefSource(RouteAddress::Inet(ip)) => Some((*ip).into()),
        RouteAttribute::PrefSource(RouteAddress::Inet6(ip)) => Some((*ip).into()),
        _ => None,
    })
}

pub(super) fn is_of_main_table(route: &RouteMessage) -> bool {
    const MAIN_TABLE: u8 = 254;
    route.header.table == MAIN_TABLE
}

/// One way of a route.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) interface: u32,
    pub(super) has_gateway: bool,
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

pub(super) fn hops(route: &RouteMessage) -> Vec<Hop> {
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

#[cfg(test)]
mod tests {
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

    fn route(net: &str, mtu: Option<u32>, encapsulates_by: Option<u32>) -> Route {
        Route { net: net.parse().unwrap(), mtu, encapsulates_by }
    }

    #[test]
    fn a_route_as_the_kernel_reports_it() {
        let (net, router) = (Ipv4Addr::new(10, 244, 2, 0), Ipv4Addr::new(10, 1, 0, 1));
        let message = |metrics: &[RouteMetric]| {
            let mut message = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net, 24)
                .output_interface(3)
                .gateway(router)
                .build();
            message.attributes.push(RouteAttribute::Metrics(metrics.to_vec()));
            message
        };
        let of = |message: &RouteMessage| Route::of(message, &hops(message)).unwrap();
        let (mtu, lock) = (RouteMetric::Mtu(1400), RouteMetric::Lock(1 << 2));
        assert_eq!(of(&message(&[])), route("10.244.2.0/24", None, None));
        assert_eq!(of(&message(std::slice::from_ref(&mtu))), route("10.244.2.0/24", Some(1400), None));
        assert_eq!(
            of(&message(&[mtu.clone(), RouteMetric::Lock(1)])).mtu,
            Some(1400),
            "something else is locked"
        );
        for both in [[mtu.clone(), lock.clone()], [lock, mtu]] {
            assert_eq!(of(&message(&both)).mtu, None, "bpf_fib_lookup obeys it");
        }
        let everything = RouteMessageBuilder::<Ipv6Addr>::new().output_interface(3).build();
        assert_eq!(of(&everything), route("::/0", None, None));
    }

    #[test]
    fn hints_of_routes_and_of_those_below_them() {
        let interfaces = [
            Interface { index: 7, mtu: 1450, ..Interface::default() },
            Interface { index: 8, ..Interface::default() },
        ];
        let nothing = route("0.0.0.0/0", None, None);
        let of = |routes: &[Route]| -> Vec<(String, Option<u32>, Option<u32>)> {
            let hints = hints(routes, &interfaces).unwrap();
            hints.iter().map(|(net, hint)| (net.to_string(), hint.mtu, hint.encapsulates_by)).collect()
        };
        let name = |net: &str| net.to_owned();
        assert_eq!(of(&[nothing, route("fd00::/64", None, None)]), [], "IPv6 is forwarded with any value");
        assert_eq!(
            of(&[
                nothing,
                route("10.244.0.0/16", Some(1400), None),
                route("10.244.2.0/24", None, None),
                route("10.245.2.0/24", None, Some(7)),
                route("10.246.2.0/24", Some(1300), Some(7)),
                route("10.247.2.0/24", None, Some(8)),
                route("fd00:1::/64", Some(1300), Some(7)),
            ]),
            [
                (name("10.244.0.0/16"), Some(1400), None),
                (name("10.244.2.0/24"), None, None),
                (name("10.245.2.0/24"), Some(1450), Some(7)),
                (name("10.246.2.0/24"), Some(1300), Some(7)),
                (name("10.247.2.0/24"), None, Some(8)),
                (name("fd00:1::/64"), Some(1300), Some(7)),
            ]
        );
        let many: Vec<Route> =
            (0..MAX_HINTS).map(|n| route(&format!("10.{}.{}.0/24", n / 256, n % 256), None, None)).collect();
        assert_eq!(hints(&many, &interfaces).unwrap().len(), 0);
        let with_default = [&many[1..], &[route("0.0.0.0/0", Some(1400), None)]].concat();
        assert_eq!(hints(&with_default, &interfaces).unwrap().len(), MAX_HINTS);
        assert_eq!(hints(&[&with_default[..], &many[..1]].concat(), &interfaces), None, "one too many");
    }
}

//! Events of the network, and whether they matter.
//!
//! A node may have 100,000 routes that a routing daemon changes all the time, and reading them takes a fifth of a second. All that counts of
//! most of them is that their interface leads to a router, which is known. Those count that the data path has hints of
//! ([`hints`](crate::net::routes::hints)), and those below such a one.

use std::collections::{HashMap, HashSet};

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _};
use ipnet::IpNet;
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteMessage, RouteType},
};
use rtnetlink::{MulticastGroup, new_multicast_connection, packet_core::NetlinkPayload};

use super::Interface;
use crate::net::routes::{Route, hops, is_of_main_table, preferred_source};

/// Something that happened.
#[derive(Debug)]
pub enum Happened {
    /// A route is new, or was replaced.
    NewRoute(Box<RouteMessage>),
    /// A route is gone.
    LostRoute(Box<RouteMessage>),
    /// Anything else: interfaces, addresses, rules.
    Other,
}

/// The consequence of an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// Hardly anything: an interface may have lost its last router.
    Little,
    /// The network must be read again.
    Much,
}

/// The routes as they were read last.
#[derive(Debug, Default)]
pub struct Known {
    interfaces: HashMap<u32, Interface>,
    /// Prefixes of routes with an MTU or an encapsulation.
    hinted: HashSet<IpNet>,
}

impl Known {
    /// From these interfaces, and the routes of the main table.
    pub fn new(interfaces: &[Interface], routes: &[Route]) -> Self {
        Self {
            interfaces: interfaces.iter().map(|interface| (interface.index, interface.clone())).collect(),
            hinted: routes.iter().filter(|route| route.has_hint()).map(|route| route.net).collect(),
        }
    }

    /// Whether it changes the known state.
    pub fn news(&self, happened: &Happened) -> News {
        match happened {
            Happened::Other => News::Much,
            Happened::NewRoute(route) | Happened::LostRoute(route) if self.concerns_hints(route) => {
                News::Much
            }
            Happened::NewRoute(route) => {
                if self.adds(route) {
                    News::Much
                } else {
                    News::None
                }
            }
            Happened::LostRoute(route) => lost(route),
        }
    }

    /// Whether it has an MTU or an encapsulation, or is below, or in the place of, one that has.
    fn concerns_hints(&self, message: &RouteMessage) -> bool {
        if !is_of_main_table(message) || message.header.kind != RouteType::Unicast {
            return false;
        }
        Route::of(message, &hops(message))
            .is_some_and(|route| route.has_hint() || self.is_below_a_hint(route.net))
    }

    fn is_below_a_hint(&self, net: IpNet) -> bool {
        let mut above = Some(net);
        while let Some(net) = above {
            if self.hinted.contains(&net) {
                return true;
            }
            above = net.supernet();
        }
        false
    }

    fn adds(&self, route: &RouteMessage) -> bool {
        let is_main = is_of_main_table(route);
        let is_default = is_main && route.header.destination_prefix_length == 0;
        let source = preferred_source(route).filter(|_| is_main);
        route.header.kind == RouteType::Unicast
            && hops(route).iter().any(|hop| {
                let Some(known) = self.interfaces.get(&hop.interface) else { return true };
                is_default
                    || (hop.has_gateway && !known.has_gateway)
                    || source.is_some_and(|source| !known.preferred_sources.contains(&source))
            })
    }
}

fn lost(route: &RouteMessage) -> News {
    if route.header.kind != RouteType::Unicast {
        return News::None;
    }
    let is_main = is_of_main_table(route);
    let hops = hops(route);
    let decides = route.header.destination_prefix_length == 0 || preferred_source(route).is_some();
    if is_main && decides {
        News::Much
    } else if hops.iter().any(|hop| hop.has_gateway) {
        News::Little
    } else {
        News::None
    }
}

/// A stream of changes from now on. It ends when a notification was lost.
///
/// # Errors
/// When the kernel refuses.
pub fn changes() -> Result<impl Stream<Item = Happened> + Unpin> {
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
    Ok(messages.map(|(message, _)| match message.payload {
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => {
            Happened::NewRoute(Box::new(route))
        }
        NetlinkPayload::InnerMessage(RouteNetlinkMessage::DelRoute(route)) => {
            Happened::LostRoute(Box::new(route))
        }
        _ => Happened::Other,
    }))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netlink_packet_route::route::{RouteAttribute, RouteMetric, RouteProtocol};
    use rtnetlink::RouteMessageBuilder;

    use super::*;

    type Builder = RouteMessageBuilder<Ipv4Addr>;

    fn by(interface: u32) -> Builder {
        Builder::new().output_interface(interface).destination_prefix(Ipv4Addr::new(10, 7, 0, 0), 24)
    }

    #[test]
    fn most_routes_decide_nothing() {
        let router = Ipv4Addr::new(10, 1, 0, 1);
        let source = Ipv4Addr::new(10, 1, 0, 10);
        let uplink = Interface {
            index: 2,
            has_gateway: true,
            preferred_sources: vec![source.into()],
            ..Interface::default()
        };
        let pod = Interface { index: 3, ..Interface::default() };
        let hinted: IpNet = "10.8.0.0/16".parse().unwrap();
        let routes = [
            Route { net: hinted, mtu: Some(1400), encapsulates_by: None },
            Route { net: "10.0.0.0/8".parse().unwrap(), mtu: None, encapsulates_by: None },
        ];
        let known = Known::new(&[uplink, pod], &routes);
        let below = |third| by(3).destination_prefix(Ipv4Addr::new(10, 8, third, 0), 24);
        let with_mtu = |mut route: RouteMessage| {
            route.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(1300)]));
            route
        };
        let default = Builder::new().output_interface(2).gateway(router);
        for (what, route, new, gone) in [
            ("one more by a router that is known", by(2).gateway(router), News::None, News::Little),
            ("to a pod", by(3), News::None, News::None),
            ("the first by a router", by(3).gateway(router), News::Much, News::Little),
            ("by an interface that is not known", by(4), News::Much, News::None),
            ("the default route", default, News::Much, News::Much),
            ("a source that is known", by(2).pref_source(source), News::None, News::Much),
            ("another source", by(3).pref_source(source), News::Much, News::Much),
            (
                "the kernel's own",
                by(3).pref_source(source).protocol(RouteProtocol::Kernel),
                News::None,
                News::None,
            ),
            ("below one with an MTU", below(7), News::Much, News::Much),
            (
                "in the place of one with an MTU",
                by(3).destination_prefix(Ipv4Addr::new(10, 8, 0, 0), 16),
                News::Much,
                News::Much,
            ),
            ("below one in another table", below(7).table_id(7), News::None, News::None),
            ("a blackhole", by(3).gateway(router).kind(RouteType::BlackHole), News::None, News::None),
        ] {
            let route = Box::new(route.build());
            assert_eq!(known.news(&Happened::NewRoute(route.clone())), new, "{what}");
            assert_eq!(known.news(&Happened::LostRoute(route)), gone, "{what} is gone");
        }
        let route = Box::new(with_mtu(by(3).build()));
        assert_eq!(known.news(&Happened::NewRoute(route.clone())), News::Much, "with an MTU");
        assert_eq!(known.news(&Happened::LostRoute(route)), News::Much, "with an MTU, gone");
        assert_eq!(known.news(&Happened::Other), News::Much);
    }
}

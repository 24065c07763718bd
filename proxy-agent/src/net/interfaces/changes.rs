//! What happens to the network, and whether it decides anything.
//!
//! A node may have 100,000 routes that a routing daemon changes all the time, and reading them takes a fifth of a second. All that counts of
//! most of them is that their interface leads to a router, which is known.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _};
use netlink_packet_route::{
    RouteNetlinkMessage,
    route::{RouteMessage, RouteType},
};
use rtnetlink::{MulticastGroup, new_multicast_connection, packet_core::NetlinkPayload};

use super::{Interface, hops, is_of_main_table, preferred_source};

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

/// What may follow from something that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// Hardly anything: an interface may have lost its last router.
    Little,
    /// The network is to be looked at.
    Much,
}

/// What routes said of interfaces when they were read last.
#[derive(Debug, Default)]
pub struct Known(HashMap<u32, Interface>);

impl Known {
    /// Of these interfaces.
    pub fn new(interfaces: &[Interface]) -> Self {
        Self(interfaces.iter().map(|interface| (interface.index, interface.clone())).collect())
    }

    /// Does it change what is known?
    pub fn news(&self, happened: &Happened) -> News {
        match happened {
            Happened::Other => News::Much,
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

    fn adds(&self, route: &RouteMessage) -> bool {
        let is_main = is_of_main_table(route);
        let is_default = is_main && route.header.destination_prefix_length == 0;
        let source = preferred_source(route).filter(|_| is_main);
        route.header.kind == RouteType::Unicast
            && hops(route).iter().any(|hop| {
                let Some(known) = self.0.get(&hop.interface) else { return true };
                is_default
                    || (is_main && hop.encapsulates && !known.encapsulates)
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
    let decides = route.header.destination_prefix_length == 0
        || preferred_source(route).is_some()
        || hops.iter().any(|hop| hop.encapsulates);
    if is_main && decides {
        News::Much
    } else if hops.iter().any(|hop| hop.has_gateway) {
        News::Little
    } else {
        News::None
    }
}

/// Says what happens from now on. A lost notification shows as an end of the stream.
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

    use netlink_packet_route::route::RouteProtocol;
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
        let known = Known::new(&[uplink, pod]);
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
            ("a blackhole", by(3).gateway(router).kind(RouteType::BlackHole), News::None, News::None),
        ] {
            let route = Box::new(route.build());
            assert_eq!(known.news(&Happened::NewRoute(route.clone())), new, "{what}");
            assert_eq!(known.news(&Happened::LostRoute(route)), gone, "{what} is gone");
        }
        assert_eq!(known.news(&Happened::Other), News::Much);
    }
}

//! The kernel's routing and neighbours, read by netlink.

use std::{collections::HashMap, net::IpAddr};

use anyhow::{Context as _, Result};
use futures::TryStreamExt as _;
use netlink_packet_route::{
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia},
};
use proxy_common::layout::flow::Mac;
use rtnetlink::{Handle, RouteMessageBuilder};
use tokio::runtime::Runtime;

use crate::net::interfaces;

/// The next hop of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hop {
    /// To a process of this node.
    pub(super) is_local: bool,
    pub(super) ifindex: u32,
    /// The gateway, or the destination itself.
    pub(super) next_hop: IpAddr,
    /// The source address that the node would choose.
    pub(super) source: Option<IpAddr>,
}

/// The core's queries to the kernel.
pub(super) trait Routing {
    /// The route to `dst`, for packets that come in by an interface, or of this node. `None`: no route.
    fn lookup(&self, input: Option<u32>, src: Option<IpAddr>, dst: IpAddr) -> Option<Hop>;
    /// A neighbour's MAC, if it is known. [`Mac::NONE`] for neighbours without one.
    fn neighbour(&self, ifindex: u32, ip: IpAddr) -> Option<Mac>;
    /// An interface's name.
    fn interface(&self, ifindex: u32) -> String;
}

/// The kernel of this network namespace.
pub(super) struct Rtnetlink {
    runtime: Runtime,
    handle: Handle,
    neighbours: HashMap<(u32, IpAddr), Mac>,
    interfaces: HashMap<u32, String>,
    /// Interfaces without Ethernet header: there a packet needs no neighbour.
    headerless: Vec<u32>,
}

impl Rtnetlink {
    pub(super) fn open() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (handle, neighbours, all) = runtime.block_on(async {
            let (connection, handle, _) = rtnetlink::new_connection().context("cannot use netlink")?;
            // Ends with the handle.
            tokio::spawn(connection);
            let neighbours = read_neighbours(&handle).await?;
            let interfaces = interfaces::read(&handle).await?;
            anyhow::Ok((handle, neighbours, interfaces))
        })?;
        let headerless = all.iter().filter(|i| !i.has_link_header).map(|i| i.index).collect();
        let interfaces = all.into_iter().map(|interface| (interface.index, interface.name)).collect();
        Ok(Self { runtime, handle, neighbours, interfaces, headerless })
    }
}

impl Routing for Rtnetlink {
    fn lookup(&self, input: Option<u32>, src: Option<IpAddr>, dst: IpAddr) -> Option<Hop> {
        let message = request(input, src, dst)?;
        // An error (unreachable, prohibited, martian) means "no route".
        let answer = self.runtime.block_on(self.handle.route().get(message).execute().try_next()).ok()??;
        hop(&answer, dst)
    }

    fn neighbour(&self, ifindex: u32, ip: IpAddr) -> Option<Mac> {
        if self.headerless.contains(&ifindex) {
            return Some(Mac::NONE);
        }
        self.neighbours.get(&(ifindex, ip)).copied()
    }

    fn interface(&self, ifindex: u32) -> String {
        self.interfaces.get(&ifindex).cloned().unwrap_or_else(|| format!("interface {ifindex}"))
    }
}

fn request(input: Option<u32>, src: Option<IpAddr>, dst: IpAddr) -> Option<RouteMessage> {
    let whole = |ip: IpAddr| if ip.is_ipv4() { 32 } else { 128 };
    let mut builder = RouteMessageBuilder::<IpAddr>::new().destination_prefix(dst, whole(dst)).ok()?;
    if let Some(src) = src {
        builder = builder.source_prefix(src, whole(src)).ok()?;
    }
    if let Some(input) = input {
        builder = builder.input_interface(input);
    }
    Some(builder.build())
}

fn hop(route: &RouteMessage, dst: IpAddr) -> Option<Hop> {
    let is_local = match route.header.kind {
        RouteType::Local | RouteType::Broadcast | RouteType::Anycast => true,
        RouteType::Unicast => false,
        _ => return None,
    };
    let mut hop = Hop { is_local, ifindex: 0, next_hop: dst, source: None };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(index) => hop.ifindex = *index,
            RouteAttribute::Gateway(gateway) => hop.next_hop = ip(gateway)?,
            RouteAttribute::Via(RouteVia::Inet6(gateway)) => hop.next_hop = (*gateway).into(),
            RouteAttribute::PrefSource(source) => hop.source = ip(source),
            _ => {}
        }
    }
    Some(hop)
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(ip) => Some((*ip).into()),
        RouteAddress::Inet6(ip) => Some((*ip).into()),
        _ => None,
    }
}

async fn read_neighbours(handle: &Handle) -> Result<HashMap<(u32, IpAddr), Mac>> {
    let mut found = HashMap::new();
    let mut neighbours = handle.neighbours().get().execute();
    while let Some(message) = neighbours.try_next().await.context("cannot list neighbours")? {
        found.extend(neighbour(&message));
    }
    Ok(found)
}

/// A neighbour that can be sent to.
fn neighbour(message: &NeighbourMessage) -> Option<((u32, IpAddr), Mac)> {
    let is_valid = matches!(
        message.header.state,
        NeighbourState::Reachable
            | NeighbourState::Stale
            | NeighbourState::Delay
            | NeighbourState::Probe
            | NeighbourState::Permanent
            | NeighbourState::Noarp
    );
    let (mut ip, mut mac) = (None, Mac::NONE);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => ip = Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => ip = Some(IpAddr::from(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                if let [a, b, c, d, e, f] = bytes[..] {
                    mac = Mac([[a, b], [c, d], [e, f]].map(u16::from_ne_bytes));
                }
            }
            _ => {}
        }
    }
    is_valid.then_some(((message.header.ifindex, ip?), mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_is_local_and_nothing_leads_nowhere() {
        let routing = Rtnetlink::open().unwrap();
        let loopback = "127.0.0.1".parse().unwrap();
        let hop = routing.lookup(None, None, loopback).unwrap();
        assert!(hop.is_local);
        assert_eq!(routing.interface(hop.ifindex), "lo");
        assert_eq!(routing.interface(4_000_000), "interface 4000000");
    }
}

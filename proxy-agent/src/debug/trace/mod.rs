//! `debug trace`: the data path's own decision core, over the live maps, changing nothing.
//!
//! * [`tables`]: the core's view of the maps; its writes are dropped.
//! * [`routing`]: the kernel's routing, by netlink.
//! * [`explore`]: runs the core, once for each backend it could choose.
//! * [`explain`]: its steps in words.
//! * [`mod@answer`]: the output.

mod answer;
mod explain;
mod explore;
mod routing;
mod tables;

use std::net::{IpAddr, SocketAddr};

use anyhow::{Result, bail};
use proxy_common::{
    V4, V6,
    layout::{config::Settings, set::Scope},
    packet::PROTOCOL_SCTP,
};

pub(super) use self::answer::Answer;
use self::{
    answer::Verdict,
    explore::{Explorer, Path},
    routing::{Routing, Rtnetlink},
};
use super::{names::Names, pods};
use crate::{
    cli::TraceArgs,
    datapath::{
        address::{UserFamily, protocol_number},
        live::{LiveMaps, PinnedMaps, is_uplink},
        maps::{self, MapFamily},
        pins::Pins,
    },
    model::plan::IpFamily,
};

/// The traced packet or connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Question {
    from: SocketAddr,
    to: SocketAddr,
    /// IP protocol number.
    protocol: u8,
    from_outside: bool,
}

/// The client, as far as the data path sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Pod,
    Node,
    Outside,
}

impl Client {
    fn scope(self) -> Scope {
        if self == Self::Outside { Scope::External } else { Scope::Internal }
    }
}

/// Programs attached on this node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Attached {
    /// Socket hooks.
    sockets: bool,
    /// They serve pods too, not only the node.
    pod_sockets: bool,
    /// Packet programs at pod interfaces.
    pods: bool,
}

/// Answers a question over the pinned maps and this network namespace's routing.
pub(super) fn run(pins: &Pins, args: &TraceArgs) -> Result<Answer> {
    let canonical = |address: SocketAddr| SocketAddr::new(address.ip().to_canonical(), address.port());
    let question = Question {
        from: canonical(args.from),
        to: canonical(args.to),
        protocol: protocol_number(args.protocol),
        from_outside: args.from_outside,
    };
    if question.from.is_ipv4() != question.to.is_ipv4() {
        bail!("{} and {} are of different address families", question.from.ip(), question.to.ip());
    }
    match IpFamily::of(&question.to.ip()) {
        IpFamily::V4 => over_pins::<V4>(pins, &question),
        IpFamily::V6 => over_pins::<V6>(pins, &question),
    }
}

fn over_pins<F: MapFamily>(pins: &Pins, question: &Question) -> Result<Answer> {
    let pinned = PinnedMaps::<F>::open(pins)?;
    let names = Names::read(pins)?;
    let routing = Rtnetlink::open()?;
    let stored = maps::settings(pins)?;
    let sockets = pins.link_names()?.iter().any(|name| name.starts_with("cgroup-connect"));
    let attached = Attached {
        sockets,
        pod_sockets: sockets
            && (stored.sockets_of_node_only == 0)
            && !pods::has_sockets_left_alone(pins, question.from.ip())?,
        // Only then does the agent enter devices other than uplinks.
        pods: pinned.devices().values().any(|device| !is_uplink(device)),
    };
    let family = if F::FAMILY == IpFamily::V4 { 0 } else { 1 };
    let answer = answer(&pinned, &routing, &names, stored.settings(family), attached, question)?;
    pinned.check()?;
    Ok(answer)
}

fn answer<F: UserFamily>(
    maps: &impl LiveMaps<F>,
    routing: &impl Routing,
    names: &Names,
    settings: Settings,
    attached: Attached,
    question: &Question,
) -> Result<Answer> {
    let client = if question.from_outside {
        Client::Outside
    } else if is_local(routing, question.from.ip()) {
        Client::Node
    } else {
        Client::Pod
    };
    let explorer = Explorer { maps, routing, names, settings, question, client };
    let mut notes = Vec::new();
    if !attached.sockets && client == Client::Node {
        notes.push("no socket hook is attached: this is what it would do".to_owned());
    }
    if !attached.pod_sockets && !attached.pods && client == Client::Pod {
        notes.push("nothing is attached that serves pods: this is what the programs would do".to_owned());
    }
    let mut explored = match client {
        Client::Outside => explorer.explore(Path::Uplink)?,
        Client::Node if explorer.is_unseen() => {
            notes.push(
                "socket hooks do not see SCTP: packets of this node's own processes are left alone"
                    .to_owned(),
            );
            explorer.nothing(Path::Socket)
        }
        Client::Node => explorer.explore(Path::Socket)?,
        Client::Pod if question.protocol == PROTOCOL_SCTP => explorer.explore(Path::Pod)?,
        Client::Pod => {
            let socket = explorer.explore(Path::Socket)?;
            let packet = explorer.explore(Path::Pod)?;
            // A known flow proves that this client's packets are translated one by one.
            let (main, other) = if attached.pod_sockets && !packet.is_known_flow() {
                (socket, packet)
            } else {
                (packet, socket)
            };
            if attached.pod_sockets && attached.pods {
                notes.push(format!("{}: {}", other.path.text(), other.summary()));
            }
            main
        }
    };
    if explored.verdict() == Verdict::Pass && explorer.leaves::<F>() {
        let leaving = explorer.explore(Path::Leaving)?;
        if leaving.verdict() != Verdict::Pass {
            notes.push(format!("{}: {}", explored.path.text(), explored.summary()));
            explored = leaving;
        }
    }
    Ok(explorer.answer(&explored, notes))
}

fn is_local(routing: &impl Routing, ip: IpAddr) -> bool {
    ip.is_loopback() || routing.lookup(None, None, ip).is_some_and(|hop| hop.is_local)
}

#[cfg(test)]
mod tests;

//! Pods, by the node's side of their interfaces: which network namespace is behind each, and what it shows of the pod.

mod assess;
mod events;
pub(crate) mod iptables;
mod links;
pub(crate) mod nftables;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    net::IpAddr,
    time::{Duration, Instant},
};

use proxy_sys::socket::netns_cookie;
use tracing::debug;

use self::{
    assess::WITHOUT_PROCESS,
    links::{Link, Routing},
};
pub use self::{
    assess::{Evidence, Reason, Way, assess},
    events::{Changed, Events},
};
use super::{
    netns::{self, Namespace},
    topology::PodPort,
};

/// How soon a new pod is looked at again, then after twice as long, and so on.
const FIRST: Duration = Duration::from_millis(250);
/// Changes without a message (sysctls, iptables' own rules, processes) are found within this time.
const LAST: Duration = Duration::from_secs(30);

/// A pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// Index of the node's side of its interface.
    pub index: u32,
    /// Name of that.
    pub interface: String,
    /// Inode of its network namespace, if that was found.
    pub inode: Option<u64>,
    /// Cookie of that (kernel 5.14).
    pub cookie: Option<u64>,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Why it is served this way.
    pub reason: Reason,
}

/// The pods of this node, and when each is to be checked.
#[derive(Debug)]
pub struct Pods {
    ports: BTreeMap<u32, Port>,
    /// Cookies of those that packets served before.
    before: HashSet<u64>,
    started: Instant,
}

#[derive(Debug)]
struct Port {
    pod: Pod,
    namespace: Option<Namespace>,
    /// This namespace's id of that one.
    name: Option<i32>,
    /// Since when it has no address, or no process.
    lacks_since: Option<Instant>,
    pause: Duration,
    next: Instant,
}

/// The result of a check of a namespace.
struct Found {
    evidence: Evidence,
    cookie: Option<u64>,
    addresses: Vec<IpAddr>,
}

impl Pods {
    /// None yet; these are the cookies of those that an earlier agent served by packets.
    pub fn new(before: HashSet<u64>) -> Self {
        Self { ports: BTreeMap::new(), before, started: Instant::now() }
    }

    /// When the next look is due; `None` without pods.
    pub fn due(&self) -> Option<Instant> {
        self.ports.values().map(|port| port.next).min()
    }

    /// Looks at those of these pods that are new, due, or in a namespace where something changed. Returns all.
    ///
    /// For use where blocking is allowed.
    ///
    /// # Errors
    /// When interfaces cannot be listed, or no thread can be made.
    pub fn look(&mut self, ports: &[PodPort], changed: &Changed) -> io::Result<Vec<Pod>> {
        let now = Instant::now();
        self.follow(ports, now);
        let is_due = |port: &Port| port.next <= now || changed.has(port.name);
        let due: Vec<u32> =
            self.ports.iter().filter(|(_, port)| is_due(port)).map(|(index, _)| *index).collect();
        if !due.is_empty() {
            self.find_namespaces()?;
            let found = visit(due.iter().filter_map(|index| self.ports.get(index)))?;
            self.assess(&due, found, now);
        }
        Ok(self.ports.values().map(|port| port.pod.clone()).collect())
    }

    /// Takes over which interfaces there are.
    fn follow(&mut self, ports: &[PodPort], now: Instant) {
        let there: HashSet<(u32, &str)> = ports.iter().map(|port| (port.index, port.name.as_str())).collect();
        self.ports.retain(|index, port| there.contains(&(*index, port.pod.interface.as_str())));
        for PodPort { index, name, .. } in ports {
            self.ports.entry(*index).or_insert_with(|| Port {
                pod: Pod {
                    index: *index,
                    interface: name.clone(),
                    inode: None,
                    cookie: None,
                    addresses: Vec::new(),
                    reason: Reason::Young,
                },
                namespace: None,
                name: None,
                lacks_since: None,
                pause: FIRST,
                next: now,
            });
        }
    }

    /// Finds the namespace of each interface: the one that this namespace calls by the name that the interface has for its peer's.
    fn find_namespaces(&mut self) -> io::Result<()> {
        let routing = Routing::open()?;
        let links: HashMap<u32, Link> = routing.links()?.into_iter().map(|link| (link.index, link)).collect();
        let mut names: HashMap<i32, Namespace> = HashMap::new();
        for namespace in netns::find() {
            // A namespace that is gone meanwhile has no name.
            let name = namespace.open().and_then(|file| routing.name_of(&file)).ok().flatten();
            if let Some(name) = name {
                names.insert(name, namespace);
            }
        }
        for (index, port) in &mut self.ports {
            port.name = links.get(index).and_then(|link| link.peer_namespace);
            port.namespace = port.name.and_then(|name| names.get(&name).cloned());
            port.pod.inode = port.namespace.as_ref().map(|namespace| namespace.id.1);
        }
        Ok(())
    }

    fn assess(&mut self, due: &[u32], mut found: HashMap<u32, Found>, now: Instant) {
        for index in due {
            let Some(port) = self.ports.get_mut(index) else { continue };
            let found = found.remove(index);
            let lacks = found.as_ref().is_none_or(|it| !it.evidence.has_address || !it.evidence.has_process);
            if lacks && port.lacks_since.is_none() {
                port.lacks_since = Some(now);
                // It will be looked at again soon.
                port.pause = FIRST;
            } else if !lacks {
                port.lacks_since = None;
            }
            let lacks_for =
                port.lacks_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
            let judged = match found {
                Some(found) => {
                    port.pod.cookie = found.cookie;
                    port.pod.addresses = found.addresses;
                    assess(&found.evidence, lacks_for)
                }
                None => (lacks_for >= WITHOUT_PROCESS).then_some(Reason::NotFound),
            };
            let is_first = matches!(port.pod.reason, Reason::Young);
            match judged {
                Some(reason) => port.pod.reason = reason,
                None if is_first && port.pod.cookie.is_some_and(|cookie| self.before.contains(&cookie)) => {
                    port.pod.reason = Reason::AsBefore;
                }
                None => {}
            }
            port.next = now + port.pause;
            if port.pause >= LAST {
                // Old ones are looked at together.
                let turns = (port.next - self.started).as_secs() / LAST.as_secs();
                port.next = self.started + LAST * (turns as u32);
                if port.next <= now {
                    port.next += LAST;
                }
            }
            port.pause = (port.pause * 2).min(LAST);
        }
    }
}

/// Checks all pods once: what one lacks now, it has lacked for long.
///
/// For use where blocking is allowed.
///
/// # Errors
/// The same as for [`Pods::look`].
pub fn look_once(is_pod: impl Fn(u32) -> bool) -> io::Result<Vec<Pod>> {
    let links = Routing::open()?.links()?;
    let of_pods = links
        .into_iter()
        .filter(|link| link.kind == "veth" && link.peer_namespace.is_some() && is_pod(link.index));
    let ports: Vec<PodPort> = of_pods
        .map(|link| PodPort { index: link.index, name: link.name, bridge: 0, peer_namespace: None })
        .collect();
    let mut pods = Pods::new(HashSet::new());
    let now = Instant::now();
    pods.follow(&ports, now);
    for port in pods.ports.values_mut() {
        port.lacks_since = now.checked_sub(WITHOUT_PROCESS);
    }
    pods.look(&ports, &Changed::default())
}

fn visit<'p>(ports: impl Iterator<Item = &'p Port>) -> io::Result<HashMap<u32, Found>> {
    let items = ports.filter_map(|port| Some((port.namespace.clone()?, port.pod.index))).collect();
    let mut found = HashMap::new();
    netns::visit(items, |namespace, index| match look_into(namespace, index) {
        Ok(it) => drop(found.insert(index, it)),
        Err(error) => debug!("cannot look into the network namespace behind interface {index}: {error}"),
    })?;
    Ok(found)
}

/// Looks into the namespace that this thread is in, behind the interface with an index.
fn look_into(namespace: &Namespace, own: u32) -> io::Result<Found> {
    let links = Routing::open()?.links()?;
    let others = links.iter().filter(|link| link.is_up && !link.is_loopback && link.peer != own);
    let addresses = netns::global_addresses()?;
    let redirect = nftables::redirect().unwrap_or_else(|error| {
        debug!("cannot list nftables rules of a pod: {error}");
        None
    });
    let evidence = Evidence {
        redirect: redirect.or_else(iptables::redirect),
        interfaces: others.map(|link| (link.name.clone(), link.kind.clone())).collect(),
        forwards: ["/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"]
            .into_iter()
            .any(|file| fs::read_to_string(file).is_ok_and(|value| value.trim() == "1")),
        has_address: !addresses.is_empty(),
        has_process: namespace.has_process,
    };
    Ok(Found { evidence, cookie: netns_cookie().ok(), addresses })
}

/// Targets of iptables that change where packets go.
fn is_redirect_target(name: &str) -> bool {
    matches!(name, "REDIRECT" | "DNAT" | "NETMAP" | "TPROXY")
}

use std::collections::{HashMap, HashSet};

use proxy_common::{
    decide::NodeAddress,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::{Alive, Backend},
        cidr::{Cidr, ServiceCidrs},
        device::{DEVICE_UPLINK, Device, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT},
        filter::{self, Mark},
        flow::{Edge, Flow, FlowKey, Mac, Pair, Tuple},
        frontend::{FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FRONTEND_SOURCES, Frontend, FrontendKey, Target},
        id::Id,
        name::ServiceName,
        outbound::Outbound,
        set::{Set, SetKind, SetRole},
    },
};

use super::{answer::Verdict, routing::Hop, *};
use crate::cli::OutputFormat;

const UPLINK: u32 = 2;
const POD_PORT: u32 = 7;
const NODE: &str = "192.168.0.1";
const WEB: Id = Id::new(1, 1);
const EMPTY: Id = Id::new(2, 1);
const ELSEWHERE: Id = Id::new(3, 1);

/// A node with the Services `web` (cluster IP, node port and load balancer; a local and a remote endpoint), `empty` (no
/// endpoints) and `elsewhere` (endpoints on other nodes, policies Local).
#[derive(Default)]
struct Node {
    filter: HashMap<u32, u64>,
    frontends: HashMap<FrontendKey<V4>, Frontend<V4>>,
    sets: HashMap<u32, Set>,
    backends: Vec<Backend<V4>>,
    node_addresses: HashMap<u32, NodeAddress>,
    flows: HashMap<FlowKey<V4>, Flow<V4>>,
    pending: HashMap<FlowKey<V4>, Flow<V4>>,
    outbound: HashMap<FlowKey<V4>, Outbound>,
    devices: HashMap<u32, Device>,
    affinity: HashMap<AffinityKey<V4>, Affinity<V4>>,
    sources: HashSet<(Id, u32)>,
    netns: HashMap<u64, u32>,
}

fn addr(ip: &str) -> u32 {
    V4::from_ip(ip.parse().unwrap()).unwrap()
}

impl Node {
    fn new() -> Self {
        let mut node = Self::default();
        for (ip, port, id, flags) in [
            ("10.96.0.1", 80, WEB, FRONTEND_CLUSTER_IP),
            ("0.0.0.0", 30016, WEB, 0),
            ("198.51.100.1", 80, WEB, FRONTEND_SOURCES),
            ("10.96.0.2", 80, EMPTY, FRONTEND_CLUSTER_IP),
            ("10.96.0.3", 80, ELSEWHERE, FRONTEND_CLUSTER_IP),
        ] {
            let key = FrontendKey::new(addr(ip), u16::to_be(port), PROTOCOL_TCP);
            node.frontends.insert(key, Frontend::new(key, Target::new(id, flags).unwrap()));
            node.mark(filter::of_address::<V4>(&addr(ip)));
        }
        let whole = FrontendKey::of_address(addr("10.96.0.1"));
        let target = Target::new(WEB, FRONTEND_CLUSTER_IP | FRONTEND_ADDRESS).unwrap();
        node.frontends.insert(whole, Frontend::new(whole, target));
        node.sets.insert(Set::index(ELSEWHERE, SetRole::ClusterIp), Set::WITHHELD);
        node.mark(filter::of_frontend::<V4>(&addr(NODE), 30016u16.to_be(), PROTOCOL_TCP));
        for (ip, id) in [("10.244.1.5", 1), ("10.244.2.5", 2)] {
            node.backends.push(Backend::new(addr(ip), 8080u16.to_be(), Id::new(id, 1)));
        }
        for role in SetRole::ALL {
            node.sets.insert(Set::index(WEB, role), Set::new(0, 2, SetKind::Uniform));
        }
        node.node_addresses.insert(addr(NODE), NodeAddress(NODE_ADDR_NODEPORT | NODE_ADDR_SNAT));
        let uplink = Device { flags: DEVICE_UPLINK, snat_v4: addr(NODE), ..Device::default() };
        node.devices.insert(UPLINK, uplink);
        node
    }

    fn mark(&mut self, mark: Mark) {
        *self.filter.entry(mark.element).or_default() |= mark.mask;
    }

    fn only(mut self, slot: u32) -> Self {
        for role in SetRole::ALL {
            self.sets.insert(Set::index(WEB, role), Set::new(slot, 1, SetKind::Uniform));
        }
        self
    }

    fn ask(&self, from: &str, to: &str, from_outside: bool, attached: Attached) -> Answer {
        self.ask_over(PROTOCOL_TCP, from, to, from_outside, attached)
    }

    fn ask_over(&self, protocol: u8, from: &str, to: &str, from_outside: bool, attached: Attached) -> Answer {
        let names: Names =
            [(WEB, "default/web:http"), (EMPTY, "default/empty"), (ELSEWHERE, "default/elsewhere")]
                .map(|(id, name)| (id, ServiceName::new(name, PROTOCOL_TCP, 4)))
                .into_iter()
                .collect();
        let question =
            Question { from: from.parse().unwrap(), to: to.parse().unwrap(), protocol, from_outside };
        let settings = Settings {
            snat_first: 20_000,
            snat_last: 29_999,
            idle: 2_500,
            snat_sources: 0,
            external_cluster_ips: false,
            reset_removed_tcp: false,
        };
        answer::<V4>(self, &Routes, &names, settings, attached, &question).unwrap()
    }
}

impl LiveMaps<V4> for Node {
    fn filter(&self, element: u32) -> u64 {
        self.filter.get(&element).copied().unwrap_or_default()
    }
    fn frontend(&self, key: &FrontendKey<V4>) -> Option<Frontend<V4>> {
        self.frontends.get(key).copied()
    }
    fn set(&self, index: u32) -> Set {
        self.sets.get(&index).copied().unwrap_or_default()
    }
    fn backend(&self, slot: u32) -> Option<Backend<V4>> {
        self.backends.get(slot as usize).copied()
    }
    fn alive(&self, _element: u32) -> Alive {
        // All of generation 1, and members of every set.
        Alive(0x0f01_0f01_0f01_0f01)
    }
    fn node_address(&self, addr: &u32) -> NodeAddress {
        self.node_addresses.get(addr).copied().unwrap_or_default()
    }
    fn flow(&self, key: &FlowKey<V4>) -> Option<Flow<V4>> {
        self.flows.get(key).copied()
    }
    fn pending(&self, key: &FlowKey<V4>) -> Option<Flow<V4>> {
        self.pending.get(key).copied()
    }
    fn outbound(&self, key: &FlowKey<V4>) -> Option<Outbound> {
        self.outbound.get(key).copied()
    }
    fn snat_source(&self, _index: u32) -> Option<u32> {
        None
    }
    fn devices(&self) -> &HashMap<u32, Device> {
        &self.devices
    }
    fn affinity(&self, key: &AffinityKey<V4>) -> Option<Affinity<V4>> {
        self.affinity.get(key).copied()
    }
    fn is_admitted(&self, service: Id, client: &u32) -> bool {
        self.sources.contains(&(service, *client))
    }
    fn service_cidrs(&self) -> ServiceCidrs<V4> {
        let mut cidrs = ServiceCidrs::default();
        cidrs.0[0] = Cidr { base: addr("10.96.0.0"), mask: addr("255.240.0.0") };
        cidrs
    }
    fn netns(&self) -> &HashMap<u64, u32> {
        &self.netns
    }
    fn node_netns(&self) -> u64 {
        1
    }
    fn now(&self) -> u32 {
        10_000
    }
}

/// 10.244.1.0/24 is here, everything else behind the uplink.
struct Routes;

impl Routing for Routes {
    fn lookup(&self, _input: Option<u32>, _src: Option<IpAddr>, dst: IpAddr) -> Option<Hop> {
        let is_local = dst.to_string() == NODE;
        let ifindex = if dst.to_string().starts_with("10.244.1.") { POD_PORT } else { UPLINK };
        Some(Hop { is_local, ifindex, next_hop: dst, source: NODE.parse().ok() })
    }
    fn neighbour(&self, _ifindex: u32, _ip: IpAddr) -> Option<Mac> {
        Some(Mac([1, 2, 3]))
    }
    fn interface(&self, ifindex: u32) -> String {
        format!("if{ifindex}")
    }
}

const SOCKETS: Attached = Attached { sockets: true, pod_sockets: true, pods: false };
const PACKETS: Attached = Attached { sockets: true, pod_sockets: false, pods: true };

#[test]
fn verdicts_for_each_kind_of_client() {
    use Verdict::{Drop, Pass, Reject, Translate};
    const POD: &str = "10.244.1.9:50000";
    for (from, to, outside, attached, verdict, service, source) in [
        (POD, "10.96.0.1:80", false, SOCKETS, Translate, "default/web:http", "10.244.1.9"),
        (POD, "10.96.0.1:80", false, PACKETS, Translate, "default/web:http", "10.244.1.9"),
        (POD, "192.168.0.1:30016", false, SOCKETS, Translate, "default/web:http", "10.244.1.9"),
        (POD, "10.96.0.1:81", false, SOCKETS, Reject, "-", "-"),
        (POD, "10.96.0.1:81", false, PACKETS, Reject, "-", "-"),
        (POD, "10.96.0.3:80", false, SOCKETS, Drop, "default/elsewhere", "-"),
        (POD, "10.96.0.3:80", false, PACKETS, Drop, "default/elsewhere", "-"),
        // In the service range, but nobody's.
        (POD, "10.96.9.9:80", false, SOCKETS, Drop, "-", "-"),
        ("192.168.0.1:1", "10.96.9.9:80", false, SOCKETS, Drop, "-", "-"),
        ("192.0.2.9:1", "10.96.9.9:80", true, SOCKETS, Pass, "-", "-"),
        // Source ranges: the packets of a pod that is not known yet pass by the load balancer.
        (POD, "198.51.100.1:80", false, SOCKETS, Pass, "default/web:http", "-"),
        (POD, "198.51.100.1:80", false, PACKETS, Drop, "default/web:http", "-"),
        ("192.0.2.9:1", "198.51.100.1:80", true, SOCKETS, Drop, "default/web:http", "-"),
        (POD, "192.0.2.1:80", false, PACKETS, Pass, "-", "-"),
        (POD, "10.96.0.2:80", false, SOCKETS, Reject, "default/empty", "-"),
        (POD, "10.96.0.2:80", false, PACKETS, Reject, "default/empty", "-"),
        // Loopback node ports are for the node itself.
        ("127.0.0.1:1", "127.0.0.1:30016", false, SOCKETS, Translate, "default/web:http", NODE),
        ("192.168.0.1:1", "10.96.0.1:80", false, SOCKETS, Translate, "default/web:http", NODE),
        (POD, "127.0.0.1:30016", false, SOCKETS, Pass, "-", "-"),
        ("192.0.2.9:1", "10.96.0.1:80", true, SOCKETS, Pass, "default/web:http", "-"),
    ] {
        let answer = Node::new().ask(from, to, outside, attached);
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".into());
        assert_eq!(
            (answer.verdict, &*shown(answer.service), &*shown(answer.source_seen.map(|ip| ip.to_string()))),
            (verdict, service, source),
            "{from} -> {to}: {:#?}",
            answer.steps
        );
        assert_eq!(answer.scope, if outside { "external" } else { "internal" });
        assert_eq!(answer.backend, None, "chance is not foretold");
        assert_eq!(answer.candidates.is_empty(), verdict != Translate);
    }
}

#[test]
fn a_node_port_from_outside_depends_on_where_the_backend_is() {
    let ask = |node: Node| node.ask("192.0.2.9:1000", "192.168.0.1:30016", true, SOCKETS);
    let both = ask(Node::new());
    assert_eq!((both.verdict, both.source_seen), (Verdict::Translate, None));
    assert_eq!(both.candidates, ["10.244.1.5:8080", "10.244.2.5:8080"].map(|a| a.parse().unwrap()));
    let steps = both.steps.join("\n");
    assert!(steps.contains("30016 is a node port of default/web:http"), "{steps}");
    assert!(steps.contains("with 10.244.2.5:8080: routed by if2"), "{steps}");
    assert!(steps.contains("sent with source 192.168.0.1:21000; if something"), "{steps}");

    for (slot, backend, source) in [(0, "10.244.1.5:8080", "192.0.2.9"), (1, "10.244.2.5:8080", NODE)] {
        let one = ask(Node::new().only(slot));
        assert_eq!(one.backend, backend.parse().ok());
        assert_eq!(one.source_seen, source.parse().ok());
        assert_eq!(one.reason, "the only backend of default/web:http");
    }
}

#[test]
fn a_known_flow_keeps_its_backend() {
    let mut node = Node::new();
    let tuple = Tuple {
        src: addr("10.244.1.9"),
        dst: addr("10.96.0.1"),
        sport: 50000u16.to_be(),
        dport: 80u16.to_be(),
    };
    let mut pair = Pair::default();
    let sent = Tuple { dst: addr("10.244.2.5"), dport: 8080u16.to_be(), ..tuple };
    let flow = Flow { tuple: sent, service: WEB, backend: Id::new(2, 1), ..Flow::default() };
    pair.begin(&FlowKey::new(tuple, PROTOCOL_TCP, Edge::Forward), &flow);
    pair.make_twin();
    node.flows = HashMap::from([(pair.key, pair.flow), (pair.twin_key, pair.twin)]);
    let answer = node.ask("10.244.1.9:50000", "10.96.0.1:80", false, PACKETS);
    assert_eq!(answer.backend, "10.244.2.5:8080".parse().ok());
    assert_eq!(answer.candidates.len(), 2, "what else could have been chosen");
    assert_eq!(answer.reason, "a known flow keeps its backend");
    let other = node.ask("10.244.1.9:50001", "10.96.0.1:80", false, PACKETS);
    assert_eq!(other.backend, None);
}

#[test]
fn refusals_and_drops_say_why() {
    const POD: &str = "10.244.1.9:50000";
    for (to, attached, reason) in [
        ("10.96.0.2:80", SOCKETS, "default/empty has no endpoints for the cluster IP"),
        ("10.96.0.3:80", SOCKETS, "the traffic policy is Local, and all endpoints are on other nodes"),
        ("10.96.0.1:81", PACKETS, "10.96.0.1 is a cluster IP of default/web, but this is none of its ports"),
        ("10.96.9.9:80", SOCKETS, "the address is in the service range, but no service has it"),
        ("198.51.100.1:80", PACKETS, "the client is in none of the load balancer's source ranges"),
        (
            "198.51.100.1:80",
            SOCKETS,
            "default/web:http has source ranges, and the client's address is not known here: left to who sees its \
             packets",
        ),
    ] {
        let answer = Node::new().ask(POD, to, false, attached);
        assert_eq!(answer.reason, reason, "{:#?}", answer.steps);
    }
}

#[test]
fn clients_in_the_source_ranges_are_served() {
    let mut node = Node::new();
    node.netns.insert(42, addr("10.244.1.9"));
    let ask = |node: &Node| node.ask("10.244.1.9:50000", "198.51.100.1:80", false, SOCKETS);
    assert_eq!(ask(&node).verdict, Verdict::Drop);
    node.sources.insert((WEB, addr("10.244.1.9")));
    assert_eq!(ask(&node).verdict, Verdict::Translate);
    node.sources.insert((WEB, addr("192.0.2.9")));
    let outside = node.ask("192.0.2.9:1", "198.51.100.1:80", true, SOCKETS);
    assert_eq!(outside.verdict, Verdict::Translate);
    assert!(outside.steps.iter().any(|step| step.contains("with source ranges, of default/web:http")));
}

#[test]
fn session_affinity_names_the_endpoint() {
    let mut node = Node::new();
    for role in SetRole::ALL {
        node.sets.insert(Set::index(WEB, role), Set::new(0, 2, SetKind::Sticky));
    }
    node.sets.insert(Set::affinity_index(WEB), Set(1_000));
    node.netns.insert(42, addr("10.244.1.9"));
    let kept = |last_used| Affinity::<V4> {
        addr: addr("10.244.2.5"),
        port: 8080u16.to_be(),
        backend: Id::new(2, 1),
        last_used,
        ..Affinity::default()
    };
    let ask = |node: &Node, attached| node.ask("10.244.1.9:50000", "10.96.0.1:80", false, attached);
    assert_eq!(ask(&node, SOCKETS).backend, None);
    for (key, attached) in
        [(AffinityKey::new(0, 42, WEB), SOCKETS), (AffinityKey::new(addr("10.244.1.9"), 0, WEB), PACKETS)]
    {
        node.affinity = HashMap::from([(key, kept(9_500))]);
        let answer = ask(&node, attached);
        assert_eq!(answer.backend, "10.244.2.5:8080".parse().ok(), "{:#?}", answer.steps);
        assert_eq!(answer.reason, "the client keeps the endpoint it had (session affinity)");
        assert_eq!(answer.candidates.len(), 2);
        node.affinity = HashMap::from([(key, kept(9_000))]);
        assert_eq!(ask(&node, attached).backend, None, "it expired");
    }
}

#[test]
fn sctp_is_seen_packet_by_packet_only() {
    let mut node = Node::new();
    let key = FrontendKey::new(addr("10.96.0.1"), 80u16.to_be(), PROTOCOL_SCTP);
    node.frontends.insert(key, Frontend::new(key, Target::new(WEB, FRONTEND_CLUSTER_IP).unwrap()));
    for (from, to, verdict, reason) in [
        (
            "10.244.1.9:1",
            "10.96.0.1:80",
            Verdict::Translate,
            "one of 2 backends of default/web:http, at random",
        ),
        (
            "192.168.0.1:1",
            "10.96.0.1:80",
            Verdict::Reject,
            "10.96.0.1 is a cluster IP of default/web, and what was not translated goes no further",
        ),
        ("192.168.0.1:1", "192.168.0.1:30016", Verdict::Pass, "socket hooks do not see SCTP"),
    ] {
        let answer = node.ask_over(PROTOCOL_SCTP, from, to, false, PACKETS);
        assert_eq!((answer.verdict, &*answer.reason), (verdict, reason), "{from}: {:#?}", answer.steps);
    }
}

#[test]
fn a_pod_that_talks_to_itself() {
    let answer = Node::new().only(0).ask("10.244.1.5:1000", "10.96.0.1:80", false, PACKETS);
    assert_eq!(answer.source_seen, "10.96.0.1".parse().ok(), "{:#?}", answer.steps);
    assert!(answer.steps.iter().any(|step| step.contains("the same pod")));
}

#[test]
fn what_is_not_attached_is_said() {
    let nothing = Attached::default();
    for from in ["10.244.1.9:1", "127.0.0.1:1"] {
        let answer = Node::new().ask(from, "10.96.0.1:80", false, nothing);
        assert!(answer.steps.last().unwrap().contains("attached"), "{:#?}", answer.steps);
    }
}

#[test]
fn as_text_and_as_json() {
    let answer = Node::new().only(0).ask("10.244.1.9:1", "10.96.0.1:80", false, SOCKETS);
    let text = answer.render(OutputFormat::Table).unwrap();
    assert!(
        text.starts_with(" 1. 10.244.1.9:1 (a pod of this node) to 10.96.0.1:80 TCP: socket hook"),
        "{text}"
    );
    assert!(text.contains("\nVERDICT      translate: the only backend of default/web:http\n"), "{text}");
    let json: serde_json::Value = serde_json::from_str(&answer.render(OutputFormat::Json).unwrap()).unwrap();
    let mut keys: Vec<&String> = json.as_object().unwrap().keys().collect();
    keys.sort();
    let expected = ["backend", "candidates", "reason", "scope", "service", "sourceSeen", "steps", "verdict"];
    assert_eq!(keys, expected);
    assert_eq!((&json["verdict"], &json["backend"]), (&"translate".into(), &"10.244.1.5:8080".into()));
}

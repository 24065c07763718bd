//! Questions over the maps of a node in memory.

mod node;

use std::collections::{HashMap, HashSet};

use proxy_common::{
    decide::NodeAddress,
    layout::{
        affinity::{Affinity, AffinityKey},
        backend::{Backend, BackendState},
        cidr::{Cidr, ServiceCidrs},
        device::{DEVICE_UPLINK, Device, NODE_ADDR_NODEPORT, NODE_ADDR_SNAT},
        filter::{self, Fingerprint},
        flow::{Flow, FlowDraft, FlowKey, LookupPoint, Mac, Tuple},
        frontend::{
            FRONTEND_ADDRESS, FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES, Frontend, FrontendKey, Target,
        },
        id::Id,
        name::ServiceName,
        outbound::Outbound,
        set::{BackendSet, BackendSetKind, SetPolicy},
    },
    packet::PROTOCOL_TCP,
};

use self::node::{NODE, Node, WEB, addr};
use super::{answer::Verdict, routing::Hop, *};
use crate::output::OutputFormat;

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
        // In the service range, but of no Service.
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
    let mut draft = FlowDraft::default();
    let sent = Tuple { dst: addr("10.244.2.5"), dport: 8080u16.to_be(), ..tuple };
    let flow = Flow { tuple: sent, service: WEB, backend: Id::new(2, 1), ..Flow::default() };
    draft.begin(&FlowKey::new(tuple, PROTOCOL_TCP, LookupPoint::Forward), &flow);
    draft.make_opposite();
    node.flows = HashMap::from([(draft.key, draft.flow), (draft.opposite_key, draft.opposite)]);
    let answer = node.ask("10.244.1.9:50000", "10.96.0.1:80", false, PACKETS);
    assert_eq!(answer.backend, "10.244.2.5:8080".parse().ok());
    assert_eq!(answer.candidates.len(), 2, "what else could have been chosen");
    assert_eq!(answer.reason, "a known flow keeps its backend");
    let other = node.ask("10.244.1.9:50001", "10.96.0.1:80", false, PACKETS);
    assert_eq!(other.backend, None);
}

#[test]
fn rejects_and_drops_have_a_reason() {
    const POD: &str = "10.244.1.9:50000";
    for (to, attached, reason) in [
        ("10.96.0.2:80", SOCKETS, "default/empty has no endpoints for the cluster IP"),
        ("10.96.0.3:80", SOCKETS, "the traffic policy is Local, and all endpoints are on other nodes"),
        ("10.96.0.1:81", PACKETS, "10.96.0.1 is a cluster IP of default/web, but it has no such port"),
        ("10.96.9.9:80", SOCKETS, "the address is in the service range, but no service has it"),
        ("198.51.100.1:80", PACKETS, "the client is in none of the load balancer's source ranges"),
        (
            "198.51.100.1:80",
            SOCKETS,
            "default/web:http has source ranges, and the client's address is not known here: left to the programs \
             that see its packets",
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
    for set_policy in SetPolicy::ALL {
        node.sets.insert(
            BackendSet::index(WEB, set_policy),
            BackendSet::new(0, 2, BackendSetKind::SessionAffinity),
        );
    }
    node.sets.insert(BackendSet::affinity_index(WEB), BackendSet(1_000));
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
            "10.96.0.1 is a cluster IP of default/web, and untranslated packets go no further",
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
fn missing_hooks_are_reported() {
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

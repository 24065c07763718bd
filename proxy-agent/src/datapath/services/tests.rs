//! The maps as the programs see them.

mod closed;
mod interleavings;
mod larger;
mod node;
mod owners;
mod restart;

use std::{net::SocketAddr, time::Duration};

use proxy_common::layout::{
    backend::Backend,
    filter,
    frontend::{FRONTEND_CLUSTER_IP, FRONTEND_SOURCE_RANGES, Frontend as FrontendValue, FrontendKey, Target},
    source_range::SourceRange,
};

use self::node::{HOUR, Node, at, endpoints, nets, port};
use super::*;
use crate::{
    clock,
    datapath::{
        address::{UserFamily as _, protocol_number},
        table::{SourcePrefix, memory::Memory},
    },
    model::{
        objects::ObjectName,
        plan::{Endpoints, Frontend, Places},
    },
};

#[test]
fn sets_follow_policies_and_backends_know_their_sets() {
    let mut node = Node::new();
    let mut plan = port("web", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    for (internal, external, cluster, serving) in [
        ("12", "12", "12", "12"),
        ("1", "12", "12", "12"),
        ("1", "2", "12", "123"),
        ("", "2", "23", "1234"),
        ("", "", "3", "34"),
        ("12", "1", "123", "123"),
        ("", "", "", "1"),
        ("", "", "", ""),
    ] {
        plan.internal = endpoints(internal);
        plan.external = endpoints(external);
        plan.cluster = endpoints(cluster);
        plan.serving = endpoints(serving);
        node.apply(&plan);
        let wanted = [internal, external, cluster, serving].join("|");
        assert_eq!(node.all_offered(&plan), wanted);
        for (set_policy, list) in [(SetPolicy::ClusterIp, internal), (SetPolicy::External, external)] {
            let lacks_local_endpoints = list.is_empty() && !cluster.is_empty();
            assert_eq!(
                node.set(&plan, set_policy).lacks_local_endpoints(),
                lacks_local_endpoints,
                "{wanted}"
            );
        }
        assert!(!node.set(&plan, SetPolicy::Cluster).lacks_local_endpoints());
        let freed = node.services.take_quarantine();
        node.services.give_back(freed);
        assert_eq!(node.services.usage().backends, serving.len() as u32);
    }
}

#[test]
fn a_backend_that_leaves_a_set_but_serves_keeps_its_id() {
    let mut node = Node::new();
    let mut plan = port("web", Protocol::Udp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    node.apply(&plan);
    let id = node.services.ports[&plan.name].backends.get(&endpoints("1")[0]).unwrap().id;
    for list in [&mut plan.internal, &mut plan.external, &mut plan.cluster] {
        *list = endpoints("2");
    }
    node.apply(&plan);
    let alive = |node: &Node| node.services.shared.alive.read(BackendState::position(id).0).unwrap();
    assert!(alive(&node).holds(id), "UDP flows stay with it");
    assert!(!alive(&node).holds_in(id, SetPolicy::ClusterIp), "clients do not");
    assert!(node.services.take_dead().is_empty());
    plan.serving = endpoints("2");
    node.apply(&plan);
    assert!(!alive(&node).holds(id));
    assert!(!node.services.is_served(id));
    assert_eq!(node.services.take_dead(), [(Protocol::Udp, id)]);
}

#[test]
fn affinity_comes_changes_and_goes() {
    let mut node = Node::new();
    let mut plan = port("web", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    for seconds in [None, Some(10_800), Some(60), None] {
        plan.affinity = seconds.map(|seconds: u32| Duration::from_secs(seconds.into()));
        node.apply(&plan);
        assert_eq!(node.affinity(&plan), u64::from(seconds.map_or(0, clock::jiffies)));
        assert_eq!(node.set(&plan, SetPolicy::ClusterIp).has_session_affinity(), seconds.is_some());
        assert_eq!(node.all_offered(&plan), "12|12|12|12");
    }
}

#[test]
fn only_load_balancers_have_source_ranges() {
    let mut node = Node::new();
    let frontends = [
        Frontend::ClusterIp(at("10.96.0.1:80")),
        Frontend::NodePort(30_080),
        Frontend::ExternalIp(at("192.0.2.7:80")),
        Frontend::LoadBalancer(at("198.51.100.1:80")),
    ];
    let mut plan = port("web", Protocol::Tcp, &frontends);
    node.apply(&plan);
    let id = node.id(&plan);
    let flags = |node: &Node| {
        ["10.96.0.1:80", "0.0.0.0:30080", "192.0.2.7:80", "198.51.100.1:80"]
            .map(|address| node.frontend(address, Protocol::Tcp).map(|(_, flags)| flags).unwrap())
    };
    assert_eq!(flags(&node), [FRONTEND_CLUSTER_IP, 0, 0, 0]);

    plan.sources = nets(&["10.0.0.77/8", "192.0.2.0/24", "2001:db8::/32"]);
    node.apply(&plan);
    assert_eq!(flags(&node), [FRONTEND_CLUSTER_IP, 0, 0, FRONTEND_SOURCE_RANGES]);
    assert!(node.is_allowed(&plan, "10.0.0.0/8") && node.is_allowed(&plan, "192.0.2.0/24"));

    plan.sources = nets(&["192.0.2.0/24"]);
    node.apply(&plan);
    assert!(!node.is_allowed(&plan, "10.0.0.0/8") && node.is_allowed(&plan, "192.0.2.0/24"));

    plan.sources = nets(&[]);
    node.apply(&plan);
    assert_eq!(flags(&node), [FRONTEND_CLUSTER_IP, 0, 0, FRONTEND_SOURCE_RANGES], "no client is allowed");
    assert!(node.sources.entries().unwrap().is_empty());

    plan.sources = nets(&["192.0.2.0/24"]);
    node.apply(&plan);
    plan.sources = None;
    node.apply(&plan);
    assert_eq!(flags(&node), [FRONTEND_CLUSTER_IP, 0, 0, 0]);
    assert!(node.sources.entries().unwrap().is_empty());
    assert_eq!(node.id(&plan), id);

    plan.sources = nets(&["192.0.2.0/24"]);
    node.apply(&plan);
    node.services.remove(&plan.name).unwrap();
    assert!(node.sources.entries().unwrap().is_empty() && node.frontends.entries().unwrap().is_empty());
}

/// An address that is an external IP and a load balancer's is filtered, as kube-proxy does.
#[test]
fn the_stricter_of_two_frontends_at_one_address_holds() {
    let mut node = Node::new();
    let address = at("192.0.2.7:80");
    for frontends in [
        [Frontend::ExternalIp(address), Frontend::LoadBalancer(address)],
        [Frontend::LoadBalancer(address), Frontend::ExternalIp(address)],
    ] {
        let mut plan = port("web", Protocol::Tcp, &frontends);
        plan.sources = nets(&["10.0.0.0/8"]);
        node.apply(&plan);
        assert_eq!(
            node.frontend("192.0.2.7:80", Protocol::Tcp),
            Some((node.id(&plan), FRONTEND_SOURCE_RANGES))
        );
    }
}

/// Once it did not: the fingerprint that was added was that of the address, so that the programs took all of the node's own traffic for a Service's, and
/// none for kernel NAT's.
#[test]
fn the_filter_knows_source_addresses_as_such() {
    let mut node = Node::new();
    let [first, second] = ["192.168.0.1", "192.168.0.7"];
    let is_source = |node: &Node, ip: &str| {
        let addr = V4::from_ip(ip.parse().unwrap()).unwrap();
        node.services.shared.filter.holds(filter::of_snat_source::<V4>(&addr))
    };
    node.services.set_snat_sources([first.parse().unwrap()].into());
    assert_eq!([first, second].map(|ip| is_source(&node, ip)), [true, false]);
    assert!(!node.may_be_frontend(&format!("{first}:20000")));
    node.services.set_snat_sources([first, second].map(|ip| ip.parse().unwrap()).into());
    assert_eq!([first, second].map(|ip| is_source(&node, ip)), [true, true]);
}

#[test]
fn the_filter_knows_frontends_until_an_hour_after_they_are_gone() {
    let mut node = Node::new();
    let addresses = ["10.96.0.1:80", "192.168.0.1:30080", "192.0.2.7:80"];
    let plan = port(
        "web",
        Protocol::Tcp,
        &[
            Frontend::ClusterIp(at(addresses[0])),
            Frontend::NodePort(30_080),
            Frontend::ExternalIp(at(addresses[2])),
        ],
    );
    let seen = |node: &Node| addresses.map(|address| node.may_be_frontend(address));
    assert_eq!(seen(&node), [false; 3]);
    node.apply(&plan);
    assert_eq!(seen(&node), [true; 3]);
    assert!(!node.may_be_frontend("192.0.2.7:81"));
    node.services.set_node_addresses(["192.168.0.2".parse().unwrap()].into());
    assert!(node.may_be_frontend("192.168.0.2:30080"));
    let start = Instant::now();
    node.services.expire_filter_bits(start);
    node.services.remove(&plan.name).unwrap();
    node.services.expire_filter_bits(start + HOUR);
    assert_eq!(seen(&node), [true, false, true], "the address went an hour ago, the rest just now");
    assert!(node.may_be_frontend("192.168.0.2:30080"));
    node.services.expire_filter_bits(start + 2 * HOUR);
    assert_eq!(seen(&node), [false; 3]);
    assert!(!node.may_be_frontend("192.168.0.2:30080"));
}

/// A socket belongs to the service that it connected to: it leaves an endpoint that this one lost, even if another Service has it.
#[test]
fn a_backend_is_dead_when_its_own_port_has_it_no_more() {
    let mut node = Node::new();
    let mut web = port("web", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    let other = port("other", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.2:80"))]);
    for plan in [&web, &other] {
        node.apply(plan);
    }
    let ids = |node: &Node, plan: &PortPlan| {
        let mut ids: Vec<_> =
            node.services.ports[&plan.name].backends.values().map(|m| (Protocol::Tcp, m.id)).collect();
        ids.sort();
        ids
    };
    let before = ids(&node, &web);
    assert!(before.iter().all(|(_, id)| node.services.is_served(*id)));
    for list in [&mut web.internal, &mut web.external, &mut web.cluster, &mut web.serving] {
        *list = endpoints("3");
    }
    node.apply(&web);
    let mut dead = node.services.take_dead();
    dead.sort();
    assert_eq!(dead, before);
    assert!(before.iter().all(|(_, id)| !node.services.is_served(*id)));
    assert!(node.services.take_dead().is_empty());
    // Gone and back before the next call.
    node.services.remove(&web.name).unwrap();
    node.apply(&web);
    assert!(node.services.take_dead().is_empty());
}

#[test]
fn what_finds_no_room_is_tried_again() {
    let mut node = Node::new();
    node.frontends.set_room(1);
    let frontends = [Frontend::ClusterIp(at("10.96.0.1:80")), Frontend::NodePort(30_080)];
    let plan = port("web", Protocol::Tcp, &frontends);
    for _ in 0..2 {
        let error = node.services.apply(&plan).unwrap_err();
        assert!(
            format!("{error:#}").starts_with("service default/web:web (TCP): cannot write the frontend"),
            "{error:#}"
        );
    }
    node.frontends.set_room(2);
    node.apply(&plan);
    for address in ["10.96.0.1:80", "0.0.0.0:30080"] {
        assert!(node.frontend(address, Protocol::Tcp).is_some(), "{address}");
    }
    node.services.remove(&plan.name).unwrap();
    assert!(node.frontends.entries().unwrap().is_empty());
}

#[test]
fn too_many_endpoints_leave_what_was_there() {
    let mut node = Node::new();
    let mut plan = port("web", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    node.apply(&plan);
    let many: Endpoints = (0..100).map(|i| at(&format!("10.244.1.{i}:80"))).collect();
    (plan.cluster, plan.serving) = (many.clone(), many);
    node.services.apply(&plan).unwrap_err();
    assert_eq!(node.all_offered(&plan), "12|12|12|12");
    assert_eq!(node.services.ports[&plan.name].backends.values().count(), 2);
}

/// UDP sockets that connected through it must be ended, unless it came back meanwhile.
#[test]
fn a_udp_frontend_is_lost_when_it_goes_or_moves() {
    let mut node = Node::new();
    let vip = Frontend::ClusterIp(at("10.96.0.1:80"));
    let mut web = port("web", Protocol::Udp, &[vip, Frontend::NodePort(30_080)]);
    let mut other = port("other", Protocol::Udp, &[Frontend::ClusterIp(at("10.96.0.2:80"))]);
    let mut tcp = port("tcp", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    for plan in [&web, &other, &tcp] {
        node.apply(plan);
    }
    let (web_id, other_id) = (node.id(&web), node.id(&other));
    assert!(node.services.take_lost_frontends().is_empty());
    assert!(node.services.leads_to(at("10.96.0.1:80"), web_id));
    assert!(node.services.leads_to(at("192.168.0.1:30080"), web_id), "a nodePort");
    // It moves, while the other waits for it or comes later.
    other.frontends.push(vip);
    node.apply(&other);
    assert!(node.services.take_lost_frontends().is_empty(), "the first keeps it");
    web.frontends.retain(|frontend| *frontend != vip);
    node.apply(&web);
    let lost = |service, address| LostFrontend { service, address: at(address) };
    assert_eq!(node.services.take_lost_frontends(), [lost(web_id, "10.96.0.1:80")]);
    assert!(node.services.leads_to(at("10.96.0.1:80"), other_id));
    assert!(!node.services.leads_to(at("10.96.0.1:80"), web_id));
    // Gone and back before the next call.
    web.frontends.clear();
    node.apply(&web);
    web.frontends.push(Frontend::NodePort(30_080));
    node.apply(&web);
    assert!(node.services.take_lost_frontends().is_empty());
    node.services.remove(&web.name).unwrap();
    assert_eq!(node.services.take_lost_frontends(), [lost(web_id, "0.0.0.0:30080")]);
    tcp.frontends.clear();
    node.apply(&tcp);
    assert!(node.services.take_lost_frontends().is_empty(), "TCP continues");
}

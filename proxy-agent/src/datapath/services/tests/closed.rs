//! A failed write keeps clients out, not in, and those of one service alone.

use super::*;

const BALANCER: &str = "198.51.100.1:80";

/// A load balancer's address that everyone may use, a cluster IP and a node port.
fn open_service() -> PortPlan {
    let frontends = [
        Frontend::ClusterIp(at("10.96.0.1:80")),
        Frontend::NodePort(30_080),
        Frontend::LoadBalancer(at(BALANCER)),
    ];
    port("web", Protocol::Tcp, &frontends)
}

fn flags(node: &Node, address: &str) -> Option<u32> {
    node.frontend(address, Protocol::Tcp).map(|(_, flags)| flags)
}

fn ranges(node: &Node) -> usize {
    node.sources.entries().unwrap().len()
}

#[test]
fn ranges_without_room_close_a_service_that_was_open() {
    let mut node = Node::new();
    node.sources.set_room(3);
    let mut other = port("other", Protocol::Tcp, &[Frontend::LoadBalancer(at("198.51.100.2:80"))]);
    other.sources = nets(&["10.0.0.0/8"]);
    node.apply(&other);
    let mut web = open_service();
    node.apply(&web);
    assert_eq!(flags(&node, BALANCER), Some(0));

    web.sources = nets(&["10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16"]);
    for _ in 0..2 {
        let error = format!("{:#}", node.services.apply(&web).unwrap_err());
        assert!(
            error.contains("default/web") && error.contains("4 of 4 source ranges are kept out"),
            "{error}"
        );
        assert_eq!(flags(&node, BALANCER), Some(FRONTEND_SOURCE_RANGES), "all clients are denied");
        assert_eq!(ranges(&node), 1, "others find the room that is left");
    }
    assert_eq!(flags(&node, "10.96.0.1:80"), Some(FRONTEND_CLUSTER_IP));
    assert_eq!(node.all_offered(&web), "12|12|12|12", "cluster IP and node port serve");
    assert!(node.is_allowed(&other, "10.0.0.0/8"));
    other.sources = nets(&["10.0.0.0/8", "10.7.0.0/16"]);
    node.apply(&other);

    node.sources.set_room(6);
    node.apply(&web);
    assert!(node.is_allowed(&web, "10.3.0.0/16") && ranges(&node) == 6);
    web.sources = None;
    node.apply(&web);
    assert_eq!((flags(&node, BALANCER), ranges(&node)), (Some(0), 2));
}

#[test]
fn a_new_service_whose_ranges_find_no_room_denies_all() {
    let mut node = Node::new();
    node.sources.set_room(0);
    let mut web = open_service();
    web.sources = nets(&["10.0.0.0/8"]);
    node.services.apply(&web).unwrap_err();
    assert_eq!(flags(&node, BALANCER), Some(FRONTEND_SOURCE_RANGES));
    assert_eq!(flags(&node, "0.0.0.0:30080"), Some(0));
}

#[test]
fn ranges_that_go_make_room_for_those_that_come() {
    let mut node = Node::new();
    node.sources.set_room(2);
    let mut web = open_service();
    web.sources = nets(&["10.0.0.0/8", "10.1.0.0/16"]);
    node.apply(&web);
    web.sources = nets(&["10.1.0.0/16", "10.2.0.0/16"]);
    node.apply(&web);
    assert!(!node.is_allowed(&web, "10.0.0.0/8") && node.is_allowed(&web, "10.2.0.0/16"));
    // Too many: those that stay are let in still.
    web.sources = nets(&["10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16"]);
    node.services.apply(&web).unwrap_err();
    assert!(node.is_allowed(&web, "10.2.0.0/16") && ranges(&node) == 1);
}

#[test]
fn a_frontend_that_cannot_be_made_stricter_leads_nowhere() {
    let mut node = Node::new();
    let mut web = open_service();
    node.apply(&web);
    web.sources = nets(&["10.0.0.0/8"]);
    node.frontends.set_refuses(true);
    for _ in 0..2 {
        node.services.apply(&web).unwrap_err();
        assert_eq!(flags(&node, BALANCER), Some(0));
        assert_eq!(node.all_offered(&web), "12|||12", "clients of the cluster IP are served");
        for set_policy in [SetPolicy::External, SetPolicy::Cluster] {
            assert!(node.set(&web, set_policy).lacks_local_endpoints());
        }
    }
    node.frontends.set_refuses(false);
    node.apply(&web);
    assert_eq!(
        (flags(&node, BALANCER), &*node.all_offered(&web)),
        (Some(FRONTEND_SOURCE_RANGES), "12|12|12|12")
    );
}

#[test]
fn a_frontend_that_cannot_be_removed_leads_nowhere_until_it_is() {
    let mut node = Node::new();
    let mut web = open_service();
    node.apply(&web);
    let balancer = web.frontends.pop();
    node.frontends.set_refuses(true);
    for _ in 0..2 {
        node.services.apply(&web).unwrap_err();
        assert_eq!(node.all_offered(&web), "12|||12");
    }
    node.frontends.set_refuses(false);
    node.apply(&web);
    assert_eq!((flags(&node, BALANCER), &*node.all_offered(&web)), (None, "12|12|12|12"));

    web.frontends.extend(balancer);
    node.apply(&web);
    let id = node.id(&web);
    node.frontends.set_refuses(true);
    node.services.remove(&web.name).unwrap_err();
    assert_eq!((node.id(&web), &*node.all_offered(&web)), (id, "|||12"), "no other service gets its id");
    node.frontends.set_refuses(false);
    node.services.remove(&web.name).unwrap();
    assert!(node.frontends.entries().unwrap().is_empty());
    assert!(node.services.port_names().next().is_none());
}

#[test]
fn a_range_that_cannot_be_removed_denies_all() {
    let mut node = Node::new();
    let mut web = open_service();
    web.sources = nets(&["10.0.0.0/8", "10.1.0.0/16"]);
    node.apply(&web);
    web.sources = nets(&["10.1.0.0/16"]);
    node.sources.set_refuses(true);
    for _ in 0..2 {
        node.services.apply(&web).unwrap_err();
        assert_eq!(node.all_offered(&web), "12|||12");
    }
    node.sources.set_refuses(false);
    node.apply(&web);
    assert_eq!((ranges(&node), &*node.all_offered(&web)), (1, "12|12|12|12"));
}

#[test]
fn a_policy_holds_although_there_is_no_room_for_its_endpoints() {
    for (internal, external, expected) in [("1", "12", "|12|12|12"), ("12", "2", "12||12|12")] {
        let mut node = Node::new();
        let mut web = open_service();
        node.apply(&web);
        let freed = node.services.take_quarantine();
        node.services.give_back(freed);
        // All slots of a family are taken.
        let mut big = port("big", Protocol::Tcp, &[]);
        let many: Endpoints = (0..62).map(|i| at(&format!("10.244.1.{i}:80"))).collect();
        for list in [&mut big.internal, &mut big.external, &mut big.cluster, &mut big.serving] {
            *list = many.clone();
        }
        node.apply(&big);
        web.internal = endpoints(internal);
        web.external = endpoints(external);
        node.services.apply(&web).unwrap_err();
        assert_eq!(node.all_offered(&web), expected);
        node.services.remove(&big.name).unwrap();
        let freed = node.services.take_quarantine();
        node.services.give_back(freed);
        node.apply(&web);
        assert_eq!(node.all_offered(&web), format!("{internal}|{external}|12|12"));
    }
}

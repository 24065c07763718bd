//! The owner of a frontend that several service ports want.

use proxy_common::layout::frontend::FRONTEND_ADDRESS;

use super::*;

#[test]
fn ports_of_a_service_share_its_address() {
    let mut node = Node::new();
    let address = Frontend::ClusterAddress("10.96.0.1".parse().unwrap());
    let tcp = port("dns", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:53")), address]);
    let udp = port("dns", Protocol::Udp, &[Frontend::ClusterIp(at("10.96.0.1:53")), address]);
    node.apply(&tcp);
    node.apply(&udp);
    let owner = |node: &Node| node.frontend("10.96.0.1:0", Protocol::Tcp).map(|(id, _)| id);
    assert_eq!(owner(&node), Some(node.id(&tcp)));
    node.services.remove(&tcp.name).unwrap();
    assert_eq!(owner(&node), Some(node.id(&udp)));
    assert!(node.may_be_frontend("10.96.0.1:1"));
    node.services.remove(&udp.name).unwrap();
    assert_eq!(owner(&node), None);
}

#[test]
fn a_load_balancer_s_address_is_known_as_such_and_may_be_shared() {
    let mut node = Node::new();
    let frontends = |port| {
        let address = at(&format!("198.51.100.1:{port}"));
        [Frontend::LoadBalancer(address), Frontend::LoadBalancerAddress(address.ip())]
    };
    let (web, mail) =
        (port("web", Protocol::Tcp, &frontends(80)), port("mail", Protocol::Tcp, &frontends(25)));
    assert!(!node.may_be_frontend("198.51.100.1:81"));
    node.apply(&web);
    node.apply(&mail);
    let owner = |node: &Node| node.frontend("198.51.100.1:0", Protocol::Tcp);
    assert_eq!(owner(&node), Some((node.id(&web), FRONTEND_ADDRESS)), "not a cluster IP");
    assert_eq!(node.frontend("198.51.100.1:25", Protocol::Tcp), Some((node.id(&mail), 0)));
    assert!(node.may_be_frontend("198.51.100.1:81"), "whatever the port");
    node.services.remove(&web.name).unwrap();
    assert_eq!(owner(&node), Some((node.id(&mail), FRONTEND_ADDRESS)));
    // It became the node's own.
    let mut local = mail.clone();
    local.frontends.pop();
    node.apply(&local);
    assert_eq!(
        (owner(&node), node.frontend("198.51.100.1:25", Protocol::Tcp)),
        (None, Some((node.id(&mail), 0)))
    );
}

#[test]
fn who_comes_later_waits_for_a_frontend() {
    let mut node = Node::new();
    let address = at("192.0.2.7:80");
    let first = port("first", Protocol::Tcp, &[Frontend::ExternalIp(address)]);
    let mut second = port("second", Protocol::Tcp, &[Frontend::LoadBalancer(address)]);
    second.sources = nets(&["10.0.0.0/8"]);
    let third = port("third", Protocol::Udp, &[Frontend::ExternalIp(address)]);
    for plan in [&first, &second, &third, &second] {
        node.apply(plan);
    }
    let has = |node: &Node, protocol| node.frontend("192.0.2.7:80", protocol);
    assert_eq!(has(&node, Protocol::Tcp), Some((node.id(&first), 0)));
    assert_eq!(has(&node, Protocol::Udp), Some((node.id(&third), 0)));
    let mut emptied = first.clone();
    emptied.frontends.clear();
    node.apply(&emptied);
    assert_eq!(has(&node, Protocol::Tcp), Some((node.id(&second), FRONTEND_SOURCE_RANGES)));
    node.apply(&first);
    assert_eq!(has(&node, Protocol::Tcp), Some((node.id(&second), FRONTEND_SOURCE_RANGES)));
    node.services.remove(&second.name).unwrap();
    assert_eq!(has(&node, Protocol::Tcp), Some((node.id(&first), 0)));
}

#[test]
fn services_that_wait_for_a_frontend_are_reported() {
    let mut node = Node::new();
    let of = |service, address| {
        port(service, Protocol::Tcp, &[Frontend::ClusterIp(at(address)), Frontend::NodePort(30_080)])
    };
    let (web, late) = (of("web", "10.96.0.1:80"), of("late", "10.96.0.2:80"));
    node.apply(&web);
    assert_eq!(node.services.conflicts(), []);
    node.apply(&late);
    let conflicts = node.services.conflicts();
    assert_eq!(conflicts.len(), 1);
    let (service, text) = &conflicts[0];
    assert_eq!(*service, late.name.service);
    assert_eq!(
        text,
        "service default/late:web: node port 30080 (TCP) is served for service default/web:web, which had it first"
    );
    node.services.remove(&web.name).unwrap();
    assert_eq!(node.services.conflicts(), []);
    assert_eq!(node.frontend("0.0.0.0:30080", Protocol::Tcp).map(|(id, _)| id), Some(node.id(&late)));
}

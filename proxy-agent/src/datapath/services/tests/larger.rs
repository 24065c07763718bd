//! Larger maps have the entries of the smaller ones, and room for more.

use super::*;
use crate::datapath::room::Part;

/// Endpoints 10.244.1.x:80.
fn many(count: u32) -> Endpoints {
    (0..count).map(|end| at(&format!("10.244.1.{end}:80"))).collect()
}

fn with_endpoints(service: &str, vip: &str, count: u32) -> PortPlan {
    let mut plan = port(service, Protocol::Tcp, &[Frontend::ClusterIp(at(vip))]);
    for list in [&mut plan.internal, &mut plan.external, &mut plan.cluster, &mut plan.serving] {
        *list = many(count);
    }
    plan
}

fn full(result: Result<()>) -> Option<Part> {
    result.err()?.full()
}

#[test]
fn full_parts_have_names() {
    let mut node = Node::new();
    let web = port("web", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    assert_eq!(full(node.services.apply(&with_endpoints("big", "10.96.0.9:80", 65))), Some(Part::Backends));
    let freed = node.services.take_quarantine();
    node.services.give_back(freed);
    node.apply(&with_endpoints("half", "10.96.0.8:80", 40));
    let mut slots = with_endpoints("slots", "10.96.0.7:80", 10);
    (slots.internal, slots.external, slots.cluster) = (many(9), many(8), many(7));
    assert_eq!(full(node.services.apply(&slots)), Some(Part::Slots(IpFamily::V4)));
    node.frontends.set_room(1);
    assert_eq!(full(node.services.apply(&web)), Some(Part::Frontends(IpFamily::V4)));
    node.sources.set_room(0);
    node.frontends.set_room(100);
    let mut balanced = port("lb", Protocol::Tcp, &[Frontend::LoadBalancer(at("198.51.100.1:80"))]);
    balanced.sources = nets(&["10.0.0.0/8"]);
    assert_eq!(full(node.services.apply(&balanced)), Some(Part::SourceRanges(IpFamily::V4)));
    let without_endpoints =
        |number: u8| with_endpoints(&number.to_string(), &format!("10.96.1.{number}:80"), 0);
    let ports = (0..20).find_map(|number| full(node.services.apply(&without_endpoints(number))));
    assert_eq!(ports, Some(Part::ServicePorts));
}

#[test]
fn the_first_service_of_a_family_asks_for_room_for_its_flows() {
    let mut node = Node::new();
    let web = port("web", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:80"))]);
    let headless = port("headless", Protocol::Tcp, &[]);
    node.services.v4.tables.has_flows = false;
    assert_eq!(node.services.room().of(Part::Flows(IpFamily::V4)), 0);
    node.services.apply(&headless).unwrap();
    assert_eq!(full(node.services.apply(&web)), Some(Part::Flows(IpFamily::V4)));
    assert_eq!(node.frontend("10.96.0.1:80", Protocol::Tcp), None);
    assert!(!node.may_be_frontend("10.96.0.1:80"));
    node.services.v4.tables.has_flows = true;
    node.apply(&web);
    assert!(node.frontend("10.96.0.1:80", Protocol::Tcp).is_some());
}

#[test]
fn larger_maps_take_over() {
    let mut node = Node::new();
    let web =
        port("web", Protocol::Tcp, &[Frontend::ClusterIp(at("10.96.0.1:80")), Frontend::NodePort(30_080)]);
    node.apply(&web);
    let (id, offered, before) = (node.id(&web), node.all_offered(&web), node.services.room());
    let big = with_endpoints("big", "10.96.0.9:80", 100);
    node.services.apply(&big).unwrap_err();

    let (frontends, names) = (Memory::new(200), Memory::new(200));
    let mut larger = Maps {
        v4: FamilyTables {
            frontends: Box::new(frontends.clone()),
            sources: Box::new(node.sources.clone()),
            backends: MmapArray::anonymous(256),
            has_flows: true,
        },
        v6: FamilyTables {
            frontends: Box::new(Memory::new(100)),
            sources: Box::new(node.sources_v6.clone()),
            backends: MmapArray::anonymous(64),
            has_flows: true,
        },
        names: Box::new(names.clone()),
        sets: MmapArray::anonymous(32 * SetPolicy::STRIDE),
        alive: MmapArray::anonymous(64),
        filter: MmapArray::anonymous(filter::ELEMENTS),
        records: MmapArray::anonymous(256),
    };
    node.services.copy_to(&mut larger).unwrap();
    node.services.move_to(larger);
    (node.frontends, node.names) = (frontends, names);
    let after = node.services.room();
    for (part, factor) in [
        (Part::ServicePorts, 2),
        (Part::Backends, 4),
        (Part::Slots(IpFamily::V4), 4),
        (Part::Slots(IpFamily::V6), 1),
    ] {
        assert_eq!(after.of(part), factor * before.of(part), "{part:?}");
    }
    assert_eq!((node.id(&web), node.all_offered(&web)), (id, offered));
    assert_eq!(node.frontend("10.96.0.1:80", Protocol::Tcp), Some((id, FRONTEND_CLUSTER_IP)));
    node.apply(&big);
    assert_eq!(node.set(&big, SetPolicy::ClusterIp).count(), 100);
    assert!(node.may_be_frontend("10.96.0.9:80"));
    // The next agent finds it all.
    let node = node.restart();
    assert_eq!((node.id(&web), node.services.used().of(Part::Backends)), (id, 102));
}

use std::{net::SocketAddr, sync::Arc, time::Duration};

use super::*;
use crate::datapath::services::error::Cause;
use crate::model::{
    objects::{
        Endpoint, EndpointSlice, Hints, Kind, Protocol, Service, ServicePort, SlicePort, TrafficPolicy,
    },
    plan::Frontend,
};

const VIP: &str = "10.96.0.10:80";

/// A Service `web` with the policies Local, and one endpoint elsewhere.
fn knowing(protocol: Protocol) -> (Sync, ObjectName) {
    let name = ObjectName::new("default", "web");
    let mut sync = Sync::new("node", Duration::ZERO);
    sync.take(Change::Service(Service {
        name: name.clone(),
        cluster_ips: vec!["10.96.0.10".parse().unwrap()],
        load_balancer_ips: vec!["198.51.100.1".parse().unwrap()],
        ports: vec![ServicePort { name: "a".into(), protocol, port: 80, node_port: Some(30_080) }],
        internal_policy: TrafficPolicy::Local,
        external_policy: TrafficPolicy::Local,
        health_check_node_port: Some(31_000),
        ..Service::default()
    }));
    sync.take(Change::EndpointSlice(endpoints(protocol, "elsewhere", None)));
    (sync, name)
}

fn endpoints(protocol: Protocol, node: &str, triggered: Option<SystemTime>) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: ObjectName::new("default", "web"),
        ports: vec![SlicePort { name: "a".into(), protocol, port: 8080 }],
        endpoints: vec![Endpoint {
            address: "10.244.0.1".parse().unwrap(),
            node: Some(node.into()),
            ready: true,
            serving: true,
            terminating: false,
            hints: Hints::default(),
        }],
        triggered,
        ..EndpointSlice::default()
    }
}

#[test]
fn every_protocol_is_planned() {
    for protocol in [Protocol::Tcp, Protocol::Udp, Protocol::Sctp] {
        let (sync, name) = knowing(protocol);
        let found: Vec<_> = sync.plan(&name).ports.iter().map(|plan| plan.name.protocol).collect();
        assert_eq!(found, [protocol]);
    }
}

/// NodeLocal DNSCache serves a cluster IP that it has put on an interface of the node.
#[test]
fn a_cluster_ip_of_this_node_is_left_to_its_server() {
    let (mut sync, name) = knowing(Protocol::Tcp);
    let frontends = |sync: &Sync| sync.plan(&name).ports[0].frontends.clone();
    let vip: SocketAddr = VIP.parse().unwrap();
    let balancer: SocketAddr = "198.51.100.1:80".parse().unwrap();
    let all = [
        Frontend::ClusterIp(vip),
        Frontend::ClusterAddress(vip.ip()),
        Frontend::LoadBalancer(balancer),
        Frontend::LoadBalancerAddress(balancer.ip()),
        Frontend::NodePort(30_080),
    ];
    assert_eq!(frontends(&sync), all);
    sync.set_local_addresses(&[vip.ip()].into());
    assert!(std::mem::take(&mut sync.failed).len() == 1, "it is planned again");
    assert_eq!(frontends(&sync), all[2..]);
    // A load balancer's address that the node has itself: other ports of it are the node's.
    sync.set_local_addresses(&[balancer.ip()].into());
    assert!(std::mem::take(&mut sync.failed).len() == 1);
    assert_eq!(frontends(&sync), [all[0], all[1], all[2], all[4]]);
    sync.set_local_addresses(&BTreeSet::new());
    assert!(std::mem::take(&mut sync.failed).len() == 1);
    assert_eq!(frontends(&sync), all);
}

#[test]
fn lists_of_endpoints_that_did_not_change_are_kept() {
    let (mut sync, name) = knowing(Protocol::Tcp);
    sync.note_plan(name.clone(), sync.plan(&name));
    let before = sync.planned[&name].ports[0].clone();
    // The endpoint is on this node now.
    sync.take(Change::EndpointSlice(endpoints(Protocol::Tcp, "node", None)));
    let now = &sync.plan(&name).ports[0];
    assert_ne!((&now.internal, &now.places), (&before.internal, &before.places));
    assert!(Arc::ptr_eq(&now.cluster, &before.cluster) && Arc::ptr_eq(&now.serving, &before.serving));
}

#[test]
fn planned_health_checks_are_reported() {
    let (mut sync, name) = knowing(Protocol::Tcp);
    let replan = |sync: &mut Sync| {
        let plan = sync.plan(&name);
        assert!(sync.note_health_check(&name, plan.health_check), "it is news");
        assert!(!sync.note_health_check(&name, plan.health_check), "it no longer is");
        let before = sync.planned.remove(&name).unwrap_or_default();
        sync.counts.remove(&before);
        sync.note_plan(name.clone(), plan);
        (sync.health_checks()[&name].local_endpoints, sync.no_local_endpoints(IpFamily::V4))
    };
    assert_eq!(replan(&mut sync), (0, NoLocalEndpoints { internal: 1, external: 1 }));
    assert_eq!(sync.no_local_endpoints(IpFamily::V6), NoLocalEndpoints::default());
    sync.take(Change::EndpointSlice(endpoints(Protocol::Tcp, "node", None)));
    assert_eq!(replan(&mut sync), (1, NoLocalEndpoints::default()));
    assert_eq!(sync.health_checks()[&name].port, 31_000);
    assert!(!sync.needs_packets(false));
    sync.take(Change::ServiceGone(name.clone()));
    assert!(sync.note_health_check(&name, sync.plan(&name).health_check));
    assert!(sync.health_checks().is_empty());
}

#[test]
fn changes_have_their_time_once_they_are_applied_unless_they_are_older_than_the_agent() {
    let (mut sync, name) = knowing(Protocol::Tcp);
    let applied =
        |sync: &mut Sync| sync.applied_triggers().iter().map(|trigger| trigger.at).collect::<Vec<_>>();
    let change = |sync: &mut Sync, node: &str, at| {
        sync.take(Change::EndpointSlice(endpoints(Protocol::Tcp, node, Some(at))));
    };
    let later = sync.started + Duration::from_secs(1);
    let before = sync.started - Duration::from_secs(1);
    change(&mut sync, "a", before);
    assert_eq!(applied(&mut sync), []);
    change(&mut sync, "b", later);
    sync.failed.insert(name.clone());
    assert_eq!(applied(&mut sync), [], "the maps did not take it");
    sync.failed.clear();
    assert_eq!(applied(&mut sync), [later]);
    assert_eq!(applied(&mut sync), []);
}

fn complete(sync: &mut Sync) {
    let services: Vec<Service> = sync.store.all_services().cloned().collect();
    for kind in [Kind::Service, Kind::EndpointSlice] {
        sync.take(Change::ListStart(kind));
        services.iter().for_each(|service| sync.take(Change::Service(service.clone())));
        sync.take(Change::ListDone(kind));
    }
}

#[test]
fn udp_frontends_are_known_before_they_come() {
    let nodes: BTreeSet<IpAddr> = ["192.168.0.1", "fd00::10"].map(|ip| ip.parse().unwrap()).into();
    let coming = |sync: &Sync| {
        let mut coming: Vec<String> =
            sync.coming_udp_frontends(&nodes).iter().map(ToString::to_string).collect();
        coming.sort();
        coming
    };
    let (mut sync, name) = knowing(Protocol::Udp);
    assert_eq!(coming(&sync), [""; 0], "nothing is applied before all is listed");
    complete(&mut sync);
    assert_eq!(coming(&sync), ["192.168.0.1:30080", "198.51.100.1:80", "[fd00::10]:30080"]);
    sync.note_plan(name.clone(), sync.plan(&name));
    assert_eq!(coming(&sync), [""; 0], "an endpoint changes");
    let (mut tcp, _) = knowing(Protocol::Tcp);
    complete(&mut tcp);
    assert_eq!(coming(&tcp), [""; 0]);
}

#[test]
fn a_service_that_fails_is_tried_again_and_is_its_own_problem() {
    let (mut sync, name) = knowing(Protocol::Tcp);
    let other = ObjectName::new("default", "other");
    for name in [&name, &other] {
        sync.note_plan(name.clone(), sync.plan(&ObjectName::new("default", "web")));
    }
    let refused = || [Cause::Kernel(std::io::ErrorKind::PermissionDenied.into()).into()];
    assert!(sync.note_failure(&name, &[]) && !sync.has_failed());
    assert!(!sync.note_failure(&name, &refused()));
    assert!(sync.has_failed() && !sync.fails_wholly());
    assert_eq!(sync.problems.all(Vec::new()).len(), 1);
    assert!(!sync.note_failure(&other, &[Cause::Full(Part::ServicePorts).into()]));
    assert!(!sync.fails_wholly(), "full maps are the problem of the Service that does not fit");
    assert!(!sync.note_failure(&other, &refused()));
    assert!(sync.fails_wholly());
    assert!(sync.note_failure(&name, &[]) && sync.note_failure(&other, &[]));
    assert!(sync.problems.all(Vec::new()).is_empty() && !sync.fails_wholly());
}

#[test]
fn a_node_is_eligible_unless_it_leaves_or_is_gone() {
    let node = |leaving| Change::Node(Node { leaving, ..Node::default() });
    let mut sync = Sync::new("node", Duration::ZERO);
    assert_eq!(sync.node_is_eligible(), None);
    for (change, expected) in
        [(node(false), true), (node(true), false), (Change::NodeGone, false), (node(false), true)]
    {
        sync.take(change);
        assert_eq!(sync.node_is_eligible(), Some(expected));
    }
}

use std::{path::Path, time::Duration};

use super::*;
use crate::model::objects::{Kind, Node};

/// Knows nothing and has written nothing.
fn reconciler() -> ServiceReconciler {
    let reports = Reports::nowhere();
    ServiceReconciler {
        sync: Sync::new("node", Duration::ZERO),
        is_synced: false,
        sync_limiter: SyncLimiter::new(Duration::ZERO),
        quarantine: Quarantine::default(),
        eligible_unknown: false,
        is_inherited: false,
        service_cidrs: Vec::new(),
        seeder: Seeder {
            pins: Pins::new(Path::new("/no/such/pins")),
            snat_ports: "1024-29999".parse().unwrap(),
        },
        service_health: ServiceHealth::new(reports.health.clone(), reports.events.clone()),
        growing: Growing::default(),
        reports,
    }
}

fn node(address: &str, leaving: bool) -> Change {
    Change::Node(Node { addresses: vec![address.parse().unwrap()], leaving, ..Node::default() })
}

fn empty_lists() -> Vec<Change> {
    let kinds = [Kind::Service, Kind::EndpointSlice];
    kinds.into_iter().flat_map(|kind| [Change::ListStart(kind), Change::ListDone(kind)]).collect()
}

#[test]
fn addresses_of_the_node_decide_more_than_services() {
    let mut services = reconciler();
    for (change, expected) in [
        (node("192.168.0.1", false), true),
        (node("192.168.0.1", true), false),
        (node("192.168.0.2", false), true),
        (Change::NodeGone, false),
    ] {
        let shown = format!("{change:?}");
        assert_eq!(services.take([change].into_iter()), expected, "{shown}");
    }
}

#[test]
fn nothing_is_written_before_all_is_listed() {
    let mut services = reconciler();
    services.want_to_apply();
    assert!(!services.sync_limiter.is_wanted());
    services.take(empty_lists().into_iter());
    services.want_to_apply();
    assert!(services.sync_limiter.is_wanted());
}

#[test]
fn a_node_that_served_before_is_eligible_until_the_source_knows() {
    for (eligible_unknown, is_inherited, before, after) in [
        // Manifests need no Node.
        (true, false, true, true),
        (false, false, false, false),
        (false, true, true, false),
    ] {
        let mut services = reconciler();
        (services.eligible_unknown, services.is_inherited) = (eligible_unknown, is_inherited);
        let case = format!("manifests: {eligible_unknown}, in step before: {is_inherited}");
        assert_eq!(services.is_eligible(), before, "{case}");
        services.take(empty_lists().into_iter());
        assert_eq!(services.is_eligible(), after, "{case}, all listed");
        services.take([node("192.168.0.1", false)].into_iter());
        assert!(services.is_eligible(), "{case}, with a Node");
        services.take([node("192.168.0.1", true)].into_iter());
        assert!(!services.is_eligible(), "{case}, with a Node that leaves");
    }
}

#[test]
fn addresses_of_the_node_are_among_the_needs() {
    let mut services = reconciler();
    assert_eq!(services.needs(true), ServiceNeeds::default());
    services.take([node("192.168.0.1", false)].into_iter());
    let expected = ServiceNeeds { node_addresses: vec!["192.168.0.1".parse().unwrap()], packets: false };
    assert_eq!(services.needs(true), expected);
}

#[test]
fn only_addresses_that_come_are_looked_for() {
    let set = |ips: &[&str]| -> BTreeSet<IpAddr> { ips.iter().map(|ip| ip.parse().unwrap()).collect() };
    for (now, before, expected) in [
        (set(&["10.0.0.1"]), set(&[]), true),
        (set(&["10.0.0.1"]), set(&["10.0.0.1"]), false),
        (set(&[]), set(&["10.0.0.1"]), false),
        (set(&["10.0.0.2"]), set(&["10.0.0.1"]), true),
    ] {
        assert_eq!(gains(&now, &before), expected, "{now:?} after {before:?}");
    }
}

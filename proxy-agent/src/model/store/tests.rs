use std::{net::IpAddr, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::model::objects::{Endpoint, Hints, Protocol, ServicePort, SlicePort, TrafficPolicy};

fn service(name: &str, last: u8) -> Service {
    Service {
        name: ObjectName::new("default", name),
        cluster_ips: vec![IpAddr::from([10, 0, 0, last])],
        ports: vec![ServicePort { name: "".into(), protocol: Protocol::Tcp, port: 80, node_port: None }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        ..Service::default()
    }
}

fn slice(name: &str, service: &str, last: u8) -> EndpointSlice {
    EndpointSlice {
        name: ObjectName::new("default", name),
        service: ObjectName::new("default", service),
        ipv6: false,
        ports: vec![SlicePort { name: "".into(), protocol: Protocol::Tcp, port: 8080 }],
        endpoints: vec![Endpoint {
            address: IpAddr::from([10, 1, 0, last]),
            node: Some("n1".into()),
            ready: true,
            serving: true,
            terminating: false,
            hints: Hints::default(),
        }],
        triggered: None,
    }
}

fn gone(name: &str) -> ObjectName {
    ObjectName::new("default", name)
}

fn changed(store: &mut Store) -> Vec<String> {
    store.take_changed().iter().map(|name| name.name.to_string()).collect()
}

#[test]
fn each_event_names_the_services_it_touches() {
    use Change::{EndpointSliceGone as SliceGone, ServiceGone};
    let steps: Vec<(&str, Change, &[&str])> = vec![
        ("slice before its service", Change::EndpointSlice(slice("s1", "web", 1)), &["web"]),
        ("the service", Change::Service(service("web", 1)), &["web"]),
        ("the same again", Change::Service(service("web", 1)), &[]),
        ("the same slice again", Change::EndpointSlice(slice("s1", "web", 1)), &[]),
        ("another address", Change::Service(service("web", 2)), &["web"]),
        ("another endpoint", Change::EndpointSlice(slice("s1", "web", 2)), &["web"]),
        ("slice moves to another service", Change::EndpointSlice(slice("s1", "db", 2)), &["db", "web"]),
        ("unknown slice gone", SliceGone(gone("nobody")), &[]),
        ("unknown service gone", ServiceGone(gone("nobody")), &[]),
        ("slice gone", SliceGone(gone("s1")), &["db"]),
        ("slice gone twice", SliceGone(gone("s1")), &[]),
        ("service gone", ServiceGone(gone("web")), &["web"]),
        ("service gone twice", ServiceGone(gone("web")), &[]),
        ("the node", Change::Node(Node::default()), &[]),
    ];
    let mut store = Store::new();
    for (what, change, expected) in steps {
        store.apply(change);
        assert_eq!(changed(&mut store), expected, "{what}");
    }
    assert!(store.services.is_empty() && store.owners.is_empty());
    assert_eq!(store.node(), Some(&Node::default()));
}

#[test]
fn a_slice_that_changes_keeps_its_name_and_ports() {
    let mut store = Store::new();
    let first = slice("s1", "web", 1);
    let ports = first.ports.as_ptr();
    store.apply(Change::EndpointSlice(first));
    store.apply(Change::EndpointSlice(slice("s1", "web", 2)));
    let (key, service) = store.owners.iter().next().unwrap();
    let object = store.slices(service).next().unwrap();
    assert_eq!(object.endpoints, slice("s1", "web", 2).endpoints);
    assert!(Arc::ptr_eq(&key.name, &object.name.name));
    assert_eq!(object.ports.as_ptr(), ports);
}

#[test]
fn a_complete_list_removes_what_it_does_not_name() {
    let mut store = Store::new();
    for kind in [Kind::Service, Kind::EndpointSlice] {
        store.apply(Change::ListDone(kind));
    }
    assert!(!store.is_complete(), "an end without a beginning proves nothing");

    store.apply(Change::ListStart(Kind::Service));
    for name in ["a", "b"] {
        store.apply(Change::Service(service(name, 1)));
    }
    store.apply(Change::ListDone(Kind::Service));
    assert!(!store.is_complete());
    store.apply(Change::ListStart(Kind::EndpointSlice));
    for name in ["a", "b"] {
        store.apply(Change::EndpointSlice(slice(name, name, 1)));
    }
    store.apply(Change::ListDone(Kind::EndpointSlice));
    assert!(store.is_complete());
    store.take_changed();

    // A list that is cut off removes nothing, and the objects that it named do not count for the next one.
    store.apply(Change::ListStart(Kind::Service));
    store.apply(Change::Service(service("a", 1)));
    store.apply(Change::ListStart(Kind::Service));
    assert!(store.is_complete() && changed(&mut store).is_empty());
    store.apply(Change::Service(service("b", 1)));
    store.apply(Change::ListDone(Kind::Service));
    assert_eq!(changed(&mut store), ["a"]);
    assert!(store.service(&gone("a")).is_none() && store.service(&gone("b")).is_some());
    assert_eq!(store.slices(&gone("a")).count(), 1, "slices have their own lists");

    store.apply(Change::ListStart(Kind::EndpointSlice));
    store.apply(Change::EndpointSlice(slice("a", "a", 1)));
    store.apply(Change::ListDone(Kind::EndpointSlice));
    assert_eq!(changed(&mut store), ["b"]);
}

fn cidr(name: &str, net: &str) -> Change {
    Change::ServiceCidr(ServiceCidr { name: ObjectName::new("", name), cidrs: vec![net.parse().unwrap()] })
}

#[test]
fn service_cidrs_come_and_go_and_nothing_waits_for_them() {
    const A: &str = "10.96.0.0/16";
    const B: &str = "10.97.0.0/16";
    let mut store = Store::new();
    for kind in [Kind::Service, Kind::EndpointSlice] {
        store.apply(Change::ListStart(kind));
        store.apply(Change::ListDone(kind));
    }
    assert!(store.is_complete());

    let (start, done) = (|| Change::ListStart(Kind::ServiceCidr), || Change::ListDone(Kind::ServiceCidr));
    let cidr_gone = |name| Change::ServiceCidrGone(ObjectName::new("", name));
    let steps: Vec<(&str, Vec<Change>, &[&str])> = vec![
        ("at first", vec![], &[]),
        ("one", vec![start(), cidr("a", A), done()], &[A]),
        ("another of another name", vec![cidr("b", A), cidr("c", B)], &[A, B]),
        ("one changes", vec![cidr("c", A)], &[A]),
        ("one goes, its range is another's too", vec![cidr_gone("a")], &[A]),
        ("an unknown one goes", vec![cidr_gone("x")], &[A]),
        ("a list that is cut off", vec![start(), cidr("d", B)], &[A, B]),
        ("a list without some", vec![start(), cidr("d", B), done()], &[B]),
    ];
    for (what, changes, expected) in steps {
        changes.into_iter().for_each(|change| store.apply(change));
        let found: Vec<_> = store.service_cidrs().iter().map(ToString::to_string).collect();
        assert_eq!(found, expected, "{what}");
    }
    assert!(store.is_complete() && changed(&mut store).is_empty());
}

#[test]
fn plans_depend_on_the_zone_and_source_ranges_on_the_addresses() {
    let mut store = Store::new();
    let ranged = Service { source_ranges: Some(vec!["10.0.0.0/8".parse().unwrap()]), ..service("ranged", 1) };
    store.apply(Change::Service(ranged));
    store.apply(Change::Service(service("web", 2)));
    store.apply(Change::EndpointSlice(slice("orphan", "nobody", 1)));
    changed(&mut store);
    let node = |address: &str, zone: Option<&str>, leaving| {
        let addresses = vec![address.parse().unwrap()];
        Change::Node(Node { addresses, zone: zone.map(Into::into), leaving })
    };
    let (a, b) = (Some("a"), Some("b"));
    let steps: Vec<(&str, Change, &[&str], bool)> = vec![
        ("gone before it was there", Change::NodeGone, &[], true),
        ("an address appears", node("10.2.0.1", None, false), &["ranged"], false),
        ("a zone appears", node("10.2.0.1", a, false), &["ranged", "web"], false),
        ("the same", node("10.2.0.1", a, false), &[], false),
        ("it leaves", node("10.2.0.1", a, true), &[], false),
        ("another address", node("10.2.0.2", a, true), &["ranged"], false),
        ("another zone", node("10.2.0.2", b, true), &["ranged", "web"], false),
        ("gone", Change::NodeGone, &[], true),
        ("back as it was", node("10.2.0.2", b, true), &[], false),
    ];
    for (what, change, expected, gone) in steps {
        store.apply(change);
        assert_eq!(changed(&mut store), expected, "{what}");
        assert_eq!(store.node_is_gone(), gone, "{what}");
    }
    store.apply(Change::NodeGone);
    assert_eq!(store.node().unwrap().zone.as_deref(), b, "what was known of it stays");
}

#[test]
fn the_times_of_changes_are_returned_once_and_removals_have_none() {
    let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
    let timed = |name: &str, service: &str, last, seconds| {
        Change::EndpointSlice(EndpointSlice { triggered: Some(at(seconds)), ..slice(name, service, last) })
    };
    let v6 = |last, seconds| {
        let triggered = Some(at(seconds));
        Change::EndpointSlice(EndpointSlice { ipv6: true, triggered, ..slice("v6", "web", last) })
    };
    let slice_gone = |name| Change::EndpointSliceGone(gone(name));
    let steps: Vec<(&str, Vec<Change>, &[&str])> = vec![
        ("nothing", vec![], &[]),
        ("without a time", vec![Change::EndpointSlice(slice("a", "web", 1))], &[]),
        ("two changes", vec![timed("a", "web", 2, 5), timed("a", "web", 3, 6)], &["web V4 5", "web V4 6"]),
        ("returned once", vec![], &[]),
        ("the time alone is not a change", vec![timed("a", "web", 3, 7)], &[]),
        ("of several services", vec![timed("b", "db", 1, 8), v6(1, 9)], &["db V4 8", "web V6 9"]),
        ("a removal", vec![slice_gone("b")], &[]),
        (
            "a removal takes along what waits for its service and family",
            vec![
                timed("a", "web", 4, 10),
                timed("c", "web", 1, 11),
                timed("b", "db", 1, 12),
                v6(2, 13),
                slice_gone("c"),
            ],
            &["db V4 12", "web V6 13"],
        ),
        ("a removal of nothing", vec![timed("a", "web", 5, 14), slice_gone("nobody")], &["web V4 14"]),
    ];
    let mut store = Store::new();
    for (what, changes, expected) in steps {
        changes.into_iter().for_each(|change| store.apply(change));
        let shown = |Trigger { service, family, at }: &Trigger| {
            let seconds = at.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
            format!("{} {family:?} {seconds}", service.name)
        };
        assert_eq!(store.take_triggers().iter().map(shown).collect::<Vec<_>>(), expected, "{what}");
    }
}

fn events() -> impl Strategy<Value = Vec<Change>> {
    let name = || prop::sample::select(vec!["a", "b", "c", "d"]);
    let kind = || prop::sample::select(vec![Kind::Service, Kind::EndpointSlice]);
    let event = prop_oneof![
        4 => (name(), 0u8..3).prop_map(|(n, last)| Change::Service(service(n, last))),
        2 => name().prop_map(|n| Change::ServiceGone(gone(n))),
        6 => (name(), name(), 0u8..3).prop_map(|(n, s, last)| Change::EndpointSlice(slice(n, s, last))),
        3 => name().prop_map(|n| Change::EndpointSliceGone(gone(n))),
        1 => kind().prop_map(Change::ListStart),
        1 => kind().prop_map(Change::ListDone),
    ];
    prop::collection::vec(event, 0..80)
}

/// The plainest possible store: two maps, and for a running list the names seen in it.
#[derive(Default)]
struct Naive {
    services: BTreeMap<ObjectName, Service>,
    slices: BTreeMap<ObjectName, EndpointSlice>,
    seen: HashMap<Kind, BTreeSet<ObjectName>>,
}

impl Naive {
    fn apply(&mut self, change: Change) {
        let mut see = |kind, name: &ObjectName| {
            if let Some(seen) = self.seen.get_mut(&kind) {
                seen.insert(name.clone());
            }
        };
        match change {
            Change::Service(s) => {
                see(Kind::Service, &s.name);
                self.services.insert(s.name.clone(), s);
            }
            Change::EndpointSlice(s) => {
                see(Kind::EndpointSlice, &s.name);
                self.slices.insert(s.name.clone(), s);
            }
            Change::ServiceGone(name) => drop(self.services.remove(&name)),
            Change::EndpointSliceGone(name) => drop(self.slices.remove(&name)),
            Change::ListStart(kind) => drop(self.seen.insert(kind, BTreeSet::new())),
            Change::ListDone(kind) => {
                if let Some(seen) = self.seen.remove(&kind) {
                    match kind {
                        Kind::Service => self.services.retain(|name, _| seen.contains(name)),
                        Kind::EndpointSlice => self.slices.retain(|name, _| seen.contains(name)),
                        Kind::ServiceCidr => {}
                    }
                }
            }
            Change::Node(_) | Change::NodeGone | Change::ServiceCidr(_) | Change::ServiceCidrGone(_) => {}
        }
    }

    fn view(&self, name: &ObjectName) -> (Option<Service>, Vec<EndpointSlice>) {
        let slices = self.slices.values().filter(|slice| slice.service == *name).cloned().collect();
        (self.services.get(name).cloned(), slices)
    }
}

proptest! {
    #[test]
    fn the_store_equals_a_naive_one_and_names_exactly_what_changed(events in events()) {
        let (mut store, mut naive) = (Store::new(), Naive::default());
        let names: Vec<_> = ["a", "b", "c", "d"].map(gone).into();
        for event in events {
            let before: Vec<_> = names.iter().map(|name| naive.view(name)).collect();
            store.apply(event.clone());
            naive.apply(event);
            let touched = store.take_changed();
            for (name, before) in names.iter().zip(before) {
                let after = naive.view(name);
                let stored = (store.service(name).cloned(), store.slices(name).cloned().collect::<Vec<_>>());
                prop_assert_eq!(&stored, &after);
                prop_assert_eq!(touched.contains(name), before != after, "{}", name);
            }
        }
        // Nothing empty is kept.
        let known = names.iter().filter(|name| naive.view(name) != (None, vec![])).count();
        prop_assert_eq!(store.services.len(), known);
        prop_assert_eq!(store.owners.len(), naive.slices.len());
    }
}

use std::net::IpAddr;

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

    // A list that is cut off removes nothing, and what it named does not count for the next one.
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

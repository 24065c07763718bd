use super::*;
use crate::model::objects::{Endpoint, Hints, Protocol, SlicePort};

const NODE: &str = "here";

/// `web` with a cluster IP of each family, ports `http` 80/TCP (nodePort 30080) and `dns` 53/UDP.
fn service() -> Service {
    let port =
        |name: &str, protocol, port, node_port| ServicePort { name: name.into(), protocol, port, node_port };
    Service {
        name: ObjectName::new("default", "web"),
        cluster_ips: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
        ports: vec![port("http", Protocol::Tcp, 80, Some(30080)), port("dns", Protocol::Udp, 53, None)],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        ..Service::default()
    }
}

/// Endpoints in a short form: address, `@` if local, then conditions: `r`eady, `s`erving, `t`erminating.
fn slice(port: (&str, Protocol, u16), endpoints: &[&str]) -> EndpointSlice {
    let (name, protocol, number) = port;
    let endpoints: Vec<_> = endpoints
        .iter()
        .map(|text| {
            let (address, flags) = text.split_once(' ').unwrap();
            Endpoint {
                address: address.parse().unwrap(),
                node: Some(if flags.contains('@') { NODE.into() } else { "elsewhere".into() }),
                ready: flags.contains('r'),
                serving: flags.contains('s'),
                terminating: flags.contains('t'),
                hints: Hints::default(),
            }
        })
        .collect();
    EndpointSlice {
        name: ObjectName::new("default", "web-1"),
        service: ObjectName::new("default", "web"),
        ipv6: endpoints.first().is_some_and(|e| e.address.is_ipv6()),
        ports: vec![SlicePort { name: name.into(), protocol, port: number }],
        endpoints,
        ..EndpointSlice::default()
    }
}

const HTTP: (&str, Protocol, u16) = ("http", Protocol::Tcp, 8080);

/// The plan of port `http`, IPv4.
fn http(service: &Service, slices: &[EndpointSlice]) -> PortPlan {
    let plans = plan(service, slices.iter(), NODE);
    plans.into_iter().find(|p| &*p.name.port == "http" && p.name.family == IpFamily::V4).unwrap()
}

fn shown(addresses: &[SocketAddr]) -> Vec<String> {
    addresses.iter().map(ToString::to_string).collect()
}

#[test]
fn every_port_of_every_family_has_its_frontends() {
    let plans = plan(&service(), [].iter(), NODE);
    let frontends: Vec<_> =
        plans.iter().map(|p| (&*p.name.port, p.name.family, p.frontends.clone())).collect();
    let ip = |text: &str| Frontend::ClusterIp(text.parse().unwrap());
    assert_eq!(
        frontends,
        [
            ("http", IpFamily::V4, vec![ip("10.0.0.1:80"), Frontend::NodePort(30080)]),
            ("dns", IpFamily::V4, vec![ip("10.0.0.1:53")]),
            ("http", IpFamily::V6, vec![ip("[fd00::1]:80"), Frontend::NodePort(30080)]),
            ("dns", IpFamily::V6, vec![ip("[fd00::1]:53")]),
        ]
    );

    let v4_only = Service { cluster_ips: vec!["10.0.0.1".parse().unwrap()], ..service() };
    let families: Vec<_> = plan(&v4_only, [].iter(), NODE).iter().map(|p| p.name.family).collect();
    assert_eq!(families, [IpFamily::V4, IpFamily::V4]);

    let none = Service { cluster_ips: vec![], ..service() };
    assert!(plan(&none, [].iter(), NODE).is_empty(), "no cluster IP, no node port either");
}

#[test]
fn slices_match_by_port_name_protocol_and_family() {
    let cases: &[(&str, &[EndpointSlice], &[&str])] = &[
        (
            "a plain slice",
            &[slice(HTTP, &["10.1.0.2 rs", "10.1.0.1 rs"])],
            &["10.1.0.1:8080", "10.1.0.2:8080"],
        ),
        ("another name", &[slice(("web", Protocol::Tcp, 8080), &["10.1.0.1 rs"])], &[]),
        ("another protocol", &[slice(("http", Protocol::Udp, 8080), &["10.1.0.1 rs"])], &[]),
        ("another family", &[slice(HTTP, &["fd01::1 rs"])], &[]),
        (
            "several slices, different numbers under one name",
            &[slice(HTTP, &["10.1.0.1 rs"]), slice(("http", Protocol::Tcp, 9090), &["10.1.0.1 rs"])],
            &["10.1.0.1:8080", "10.1.0.1:9090"],
        ),
    ];
    for (what, slices, expected) in cases {
        assert_eq!(shown(&http(&service(), slices).cluster), *expected, "{what}");
    }

    let v6 = [slice(HTTP, &["fd01::1 rs"])];
    let plans = plan(&service(), v6.iter(), NODE);
    let found: Vec<_> = plans.iter().map(|p| shown(&p.internal)).collect();
    assert_eq!(found, [vec![], vec![], vec!["[fd01::1]:8080".to_owned()], vec![]]);
}

#[test]
fn ready_serving_and_terminating_decide() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("ready wins", &["10.1.0.1 rs", "10.1.0.2 st", "10.1.0.3 s"], &["10.1.0.1:8080"]),
        ("ready though terminating", &["10.1.0.1 rst", "10.1.0.2 st"], &["10.1.0.1:8080"]),
        ("none ready: terminating ones that serve", &["10.1.0.1 st", "10.1.0.2 t"], &["10.1.0.1:8080"]),
        ("serving alone is not enough", &["10.1.0.1 s"], &[]),
        ("terminating alone is not enough", &["10.1.0.1 t"], &[]),
        ("ready by publishNotReadyAddresses", &["10.1.0.1 r"], &["10.1.0.1:8080"]),
        ("nobody", &[], &[]),
    ];
    for (what, endpoints, expected) in cases {
        let plan = http(&service(), &[slice(HTTP, endpoints)]);
        assert_eq!(shown(&plan.cluster), *expected, "{what}");
        assert_eq!((&plan.internal, &plan.external), (&plan.cluster, &plan.cluster), "{what}");
    }
}

#[test]
fn of_duplicates_the_later_wins_unless_it_terminates() {
    let cases: &[(&str, &[&str], &[&str])] = &[
        ("later wins", &["10.1.0.1 ", "10.1.0.1 rs"], &["10.1.0.1:8080"]),
        ("later wins, unready", &["10.1.0.1 rs", "10.1.0.1 "], &[]),
        ("later terminates", &["10.1.0.1 rs", "10.1.0.1 st"], &["10.1.0.1:8080"]),
        ("earlier terminates", &["10.1.0.1 t", "10.1.0.1 rs"], &["10.1.0.1:8080"]),
        ("both terminate: the first", &["10.1.0.1 st", "10.1.0.1 t"], &["10.1.0.1:8080"]),
    ];
    for (what, endpoints, expected) in cases {
        let one = [slice(HTTP, endpoints)];
        assert_eq!(shown(&http(&service(), &one).cluster), *expected, "{what}");
        let each: Vec<_> = endpoints.iter().map(|e| slice(HTTP, &[e])).collect();
        assert_eq!(shown(&http(&service(), &each).cluster), *expected, "{what}, over two slices");
    }
    // The local flag follows the winner.
    let moved = Service { internal_policy: TrafficPolicy::Local, ..service() };
    assert!(http(&moved, &[slice(HTTP, &["10.1.0.1 rs@", "10.1.0.1 rs"])]).internal.is_empty());
}

#[test]
fn local_policies_choose_local_endpoints_for_their_frontends() {
    use TrafficPolicy::{Cluster, Local};
    type Case<'a> = (&'a str, TrafficPolicy, TrafficPolicy, &'a [&'a str], [&'a [&'a str]; 3]);
    let (a, b) = ("10.1.0.1:8080", "10.1.0.2:8080");
    let cases: &[Case<'_>] = &[
        ("both Cluster", Cluster, Cluster, &["10.1.0.1 rs@", "10.1.0.2 rs"], [&[a, b], &[a, b], &[a, b]]),
        ("internal Local", Local, Cluster, &["10.1.0.1 rs@", "10.1.0.2 rs"], [&[a], &[a, b], &[a, b]]),
        ("external Local", Cluster, Local, &["10.1.0.1 rs@", "10.1.0.2 rs"], [&[a, b], &[a], &[a, b]]),
        ("nobody here", Local, Local, &["10.1.0.1 rs", "10.1.0.2 rs"], [&[], &[], &[a, b]]),
        ("local fallback of its own", Local, Local, &["10.1.0.1 st@", "10.1.0.2 rs"], [&[a], &[a], &[b]]),
        ("local one unready", Local, Local, &["10.1.0.1 s@", "10.1.0.2 rs"], [&[], &[], &[b]]),
        ("both fall back", Local, Local, &["10.1.0.1 st@", "10.1.0.2 st"], [&[a], &[a], &[a, b]]),
        ("nothing anywhere", Local, Local, &["10.1.0.1 s@"], [&[], &[], &[]]),
    ];
    for (what, internal_policy, external_policy, endpoints, [internal, external, cluster]) in cases {
        let service =
            Service { internal_policy: *internal_policy, external_policy: *external_policy, ..service() };
        let plan = http(&service, &[slice(HTTP, endpoints)]);
        assert_eq!(shown(&plan.internal), *internal, "{what}: internal");
        assert_eq!(shown(&plan.external), *external, "{what}: external");
        assert_eq!(shown(&plan.cluster), *cluster, "{what}: cluster");
    }

    // Without a node port there is nothing for the external policy to govern.
    let inside = Service { external_policy: Local, ..service() };
    let dns = [slice(("dns", Protocol::Udp, 53), &["10.1.0.2 rs"])];
    let plans = plan(&inside, dns.iter(), NODE);
    assert_eq!(shown(&plans[1].external), ["10.1.0.2:53"]);
}

#[test]
fn an_endpoint_without_a_node_is_remote() {
    let mut anywhere = slice(HTTP, &["10.1.0.1 rs@"]);
    anywhere.endpoints[0].node = None;
    let local = Service { internal_policy: TrafficPolicy::Local, ..service() };
    assert!(http(&local, &[anywhere]).internal.is_empty());
}

#[test]
fn a_stored_service_is_planned_with_its_slices_and_a_missing_one_is_nothing() {
    use crate::model::objects::Change;
    let mut store = Store::new();
    let name = service().name;
    store.apply(Change::EndpointSlice(slice(HTTP, &["10.1.0.1 rs"])));
    assert!(plan_stored(&store, &name, NODE).is_empty());
    store.apply(Change::Service(service()));
    let planned = plan_stored(&store, &name, NODE);
    assert_eq!(planned.len(), 4);
    assert_eq!(shown(&planned[0].internal), ["10.1.0.1:8080"]);
}
